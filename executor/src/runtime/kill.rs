//! `kill`: a signal to the first process of a container, or to all of them.

use std::os::fd::AsFd;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::process::Signal;
use tepui_isolators::cgroups::group::Group;

use super::Failure;
use super::arguments::Kill;
use super::command_line::Globals;
use super::store::Entry;
use crate::launch::sys::send_signal;

/// Runs the command. It waits for nothing and takes no lock: a container that is being made or deleted can be killed.
pub(super) fn run(globals: &Globals, arguments: &Kill) -> Result<(), Failure> {
    let entry = super::load(globals, &arguments.id)?;
    let signal = parse_signal(arguments.signal.as_deref().unwrap_or("SIGTERM"))?;
    match send(&entry, signal, arguments.all)? {
        Sent::Yes => Ok(()),
        Sent::NotRunning if arguments.all => Ok(()),
        Sent::NotRunning => Err(format!("container not running: {}", entry.id()).into()),
    }
}

/// Whether there was anybody to signal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    NotRunning,
}

/// Sends a signal to the first process, or to all.
///
/// SIGKILL to the first process of a pid namespace ends the others with it (pid_namespaces(7)). A container that shares
/// its pid namespace has no such process: all are killed then, also when the first one has gone.
pub(super) fn send(entry: &Entry, signal: i32, all: bool) -> Result<Sent, Failure> {
    let identity = &entry.state.identity;
    let group = Group::of(&identity.id, &identity.cgroups)?;
    let init = entry.init()?;
    let kills = signal == libc::SIGKILL;
    let mut sent = Sent::NotRunning;
    if let Some(init) = &init {
        match send_signal(init.as_fd(), signal) {
            Ok(()) => sent = Sent::Yes,
            Err(error) if error.raw_os_error() == libc::ESRCH => {}
            Err(error) => return Err(format!("unable to signal init: {error}").into()),
        }
    }
    let others = all || (kills && shares_pid_namespace(entry));
    if others && !group.processes(true)?.is_empty() {
        // The first process has had it already, unless it is to be killed: twice is no harm then.
        match (kills, Signal::from_named_raw(signal)) {
            (true, _) => group.kill_all()?,
            (false, Some(signal)) => group.signal_all(signal)?,
            (false, None) => {}
        }
        sent = Sent::Yes;
    } else if kills && group.is_frozen()? {
        // A frozen process of v1 dies only once it is thawed (cgroup-v1/freezer-subsystem).
        group.thaw()?;
    }
    Ok(sent)
}

/// Whether others than the container's own processes are in its pid namespace. What cannot be read counts as shared:
/// then all are killed one by one.
fn shares_pid_namespace(entry: &Entry) -> bool {
    let declaration = entry.declaration();
    !declaration.is_ok_and(|declaration| declaration.has_new_namespace(LinuxNamespaceType::Pid))
}

/// The first realtime signal that programs may use, and the last: glibc keeps two below for itself (signal(7)).
const REALTIME: std::ops::RangeInclusive<i32> = 34..=64;

/// `KILL`, `SIGKILL`, `sigkill`, `9`, `RTMIN+3`.
fn parse_signal(text: &str) -> Result<i32, Failure> {
    let unknown = || format!("unknown signal {text:?}").into();
    if let Ok(number) = text.parse::<i32>() {
        return match (0..=*REALTIME.end()).contains(&number) {
            true => Ok(number),
            false => Err(unknown()),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let realtime = |prefix: &str, sign: char| {
        let rest = name.strip_prefix(prefix)?;
        match rest.strip_prefix(sign) {
            Some(digits) => digits.parse::<i32>().ok(),
            None => rest.is_empty().then_some(0),
        }
    };
    let from_start = realtime("RTMIN", '+').map(|n| REALTIME.start().saturating_add(n));
    let number =
        from_start.or_else(|| realtime("RTMAX", '-').map(|n| REALTIME.end().saturating_sub(n)));
    number
        .filter(|number| REALTIME.contains(number))
        .ok_or_else(unknown)
}

/// signal(7), with the older names that are still used.
const NAMES: [(&str, i32); 34] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGABRT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGPOLL),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("0", 0),
            ("15", 15),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in ["", "SIG", "SIGNO", "-1", "65", "RTMIN+40", "RTMIN-1"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
