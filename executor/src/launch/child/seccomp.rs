//! The filter: loading it from inside, and knowing beforehand whether it lets the rest of the steps be done.
//!
//! With a listener (seccomp_unotify(2)) the kernel gives the descriptor to whoever loads the filter. The parent takes it
//! out of this process (pidfd_getfd(2)) and hands it on: what this process would need to send it itself may be among
//! the calls that wait for the listener. Only write(2) never is.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use tepui_isolators::Attribute;
use tepui_isolators::launch_info::SeccompFilter;
use tepui_isolators::linux::seccomp::missing_calls;

use crate::launch::error::{Error, Result};
use crate::launch::report::Record;
use crate::launch::step::Step;
use crate::launch::sys;

/// Puts this process under a filter. With a listener it waits until the parent has handed that on, and closes its own
/// descriptor: as long as one is open the kernel thinks that somebody listens.
pub(super) fn load(filter: &SeccompFilter, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    match sys::set_seccomp_filter(filter)? {
        Some(listener) => super::rendezvous(socket, Record::Listener(listener.as_raw_fd())),
        None => Ok(()),
    }
}

/// Whether the filter, if there is one, lets the steps after it be done.
///
/// # Errors
/// `Error::ProfileTooStrict` with the calls that it denies whatever their arguments.
pub fn check(steps: &[Step]) -> Result<()> {
    let filters = steps.iter().enumerate();
    let mut filters = filters.filter_map(|(index, step)| match step {
        Step::Seccomp(filter) => Some((filter, index)),
        _ => None,
    });
    let Some((filter, index)) = filters.next() else {
        return Ok(());
    };
    // A failure is reported, and the process ends.
    let mut needed = BTreeSet::from(["exit_group", "write"]);
    if filter.listener.is_some() {
        needed.extend(["close", "read"]);
    }
    for step in &steps[index + 1..] {
        needed.extend(calls_of(step));
    }
    let needed: Vec<_> = needed.into_iter().collect();
    let missing = missing_calls(filter, &needed);
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::ProfileTooStrict {
            calls: missing.join(", "),
        }),
    }
}

/// What a step calls that may come after a filter.
fn calls_of(step: &Step) -> Vec<&'static str> {
    match step {
        Step::Rendezvous(_) => vec!["read", "write"],
        Step::Hook(hook) => {
            let ends_it = hook.timeout.map(|_| "pidfd_send_signal");
            let always = [
                "clone",
                "close_range",
                "dup3",
                "execve",
                "lseek",
                "ppoll",
                "rt_sigprocmask",
                "waitid",
            ];
            always.into_iter().chain(ends_it).collect()
        }
        Step::Attribute(Attribute::Personality(_)) => vec!["personality"],
        Step::BoundingSet(_) | Step::NoNewPrivileges | Step::Dumpable(_) => vec!["prctl"],
        Step::Ids(ids) => {
            let groups = ids.groups.is_some().then_some("setgroups");
            let others = ["prctl", "setresgid", "setresuid"];
            others.into_iter().chain(groups).collect()
        }
        Step::Capabilities(sets) => {
            let ambient = (sets.ambient != 0).then_some("prctl");
            std::iter::once("capset").chain(ambient).collect()
        }
        Step::WorkingDirectory(_) => vec!["chdir", "getcwd"],
        Step::StayInDirectory => vec!["chdir"],
        Step::CloseOnExec { .. } => vec!["close_range"],
        Step::AwaitStart { init, listener } => {
            let signals = if *init { "fcntl" } else { "rt_sigprocmask" };
            let word = listener.as_ref().map(|_| "accept4");
            ["read", "write", signals].into_iter().chain(word).collect()
        }
        Step::Execute(execute) if execute.init.is_some() => vec![
            "execveat",
            "execve",
            "fcntl",
            "kill",
            "prctl",
            "rt_sigprocmask",
            "rt_sigtimedwait",
            "vfork",
            "wait4",
            "write",
        ],
        Step::Execute(_) => vec!["execve"],
        // All that the plan puts before any filter.
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tepui_isolators::launch_info::CapabilitySets;
    use tepui_isolators::linux::seccomp::{Profile, compile, resolve};

    use super::*;
    use crate::launch::report::Point;
    use crate::launch::step::Ids;

    fn allow(names: &[&str]) -> Step {
        let names = serde_json::to_string(names).unwrap();
        let json = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": {names}, "action": "SCMP_ACT_ALLOW"}}]}}"#
        );
        let profile = Profile::parse("test", &json).unwrap();
        Step::Seccomp(compile(&resolve(&profile, 0, (6, 1))).unwrap().filter)
    }

    fn missing(steps: &[Step]) -> String {
        match check(steps) {
            Ok(()) => String::new(),
            Err(Error::ProfileTooStrict { calls }) => calls,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn what_is_needed_is_what_comes_after_the_filter() {
        let ids = |groups| {
            Step::Ids(Ids {
                uid: 1,
                gid: 1,
                groups,
            })
        };
        let least = ["write", "exit_group"];
        assert_eq!(missing(&[ids(None), allow(&least)]), "");
        assert_eq!(
            missing(&[allow(&least), ids(None)]),
            "prctl, setresgid, setresuid"
        );
        assert_eq!(
            missing(&[
                allow(&["write", "prctl", "setresgid", "setresuid"]),
                ids(Some(vec![]))
            ]),
            "exit_group, setgroups"
        );
        let sets = CapabilitySets::default();
        let steps = [
            allow(&least),
            Step::Capabilities(sets),
            Step::Rendezvous(Point::Mounted),
        ];
        assert_eq!(missing(&steps), "capset, read");
        assert_eq!(missing(&[]), "");
    }
}
