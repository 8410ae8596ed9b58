//! `exec`: another process in a running container.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capability, ContainerState, LinuxCapabilities, LinuxNamespaceType, Process, User,
};
use tepui_isolators::cgroups::group::{self, Group};
use tepui_isolators::linux::scheduling;
use tepui_isolators::{Attribute, ContainerLaunchInfo, Declaration, registry, undefended};

use super::arguments::Exec;
use super::bundle;
use super::command_line::Globals;
use super::create::{UnlessFrozen, write_pid};
use super::error::{Error, Result};
use super::foreground::{self, Guest};
use super::store::{Entry, Status, Store};
use super::{console, descriptors, home, hooks};
use crate::launch::{self, Attendant, Handover, Patient, Stdio, Terminal, sys};
use crate::seal::{self, Method};

/// The isolators of a single process; all others made the container that it goes into.
const OF_A_PROCESS: [&str; 11] = [
    "linux/capabilities",
    "linux/keyring",
    "linux/landlock",
    "linux/lsm",
    "linux/memory_policy",
    "linux/nnp",
    "linux/oom_score",
    "linux/personality",
    "linux/scheduling",
    "linux/seccomp",
    "posix/rlimits",
];

/// The namespaces of a process, by their names in /proc/PID/ns.
const NAMESPACES: [(LinuxNamespaceType, &str); 8] = [
    (LinuxNamespaceType::User, "user"),
    (LinuxNamespaceType::Ipc, "ipc"),
    (LinuxNamespaceType::Uts, "uts"),
    (LinuxNamespaceType::Network, "net"),
    (LinuxNamespaceType::Pid, "pid"),
    (LinuxNamespaceType::Cgroup, "cgroup"),
    (LinuxNamespaceType::Time, "time"),
    (LinuxNamespaceType::Mount, "mnt"),
];

/// Runs a process in a container. The exit status is its own, 128 + n where signal n ended it.
///
/// # Errors
/// What cannot be honoured or what failed; the container is as it was then.
pub fn run(globals: &Globals, arguments: Exec) -> Result<u8> {
    seal::protect_own_program(Method::View)?;
    let entry = Store::open(&globals.root).load(&arguments.id)?;
    let ignores_pause = arguments.ignore_paused;
    match entry.status()? {
        Status::Stopped => return Err(Error::refused("cannot exec in a stopped container")),
        Status::Paused if !ignores_pause => {
            return Err(Error::refused(
                "cannot exec in a paused container (use --ignore-paused to override)",
            ));
        }
        _ => {}
    }
    let mut declaration = entry.declaration()?;
    let mut process = process(&arguments, &declaration)?;
    let pid = entry.state.identity.pid;
    let passed = descriptors::passed(arguments.preserve_fds)?;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    home::complete_environment(&mut process, &passed, Some(&root))?;
    let is_terminal = process.terminal().unwrap_or(false);
    console::check(
        is_terminal,
        arguments.detach,
        arguments.console_socket.as_deref(),
    )?;
    let size = console::size(&process);
    declaration.spec.set_process(Some(process));

    let mut guest = Guest::default();
    if !arguments.detach {
        guest.hold_signals()?;
    }
    let info = info(&entry, &declaration, &arguments.cgroup)?;
    // Its namespaces were opened by name: were it another process by now, they would not be the container's.
    if entry.init()?.is_none() {
        return Err(Error::refused("cannot exec in a stopped container"));
    }
    Error::at("found")?;
    let stdio = match is_terminal {
        true => Stdio::Terminal(Terminal {
            size,
            is_console: false,
        }),
        false => Stdio::Descriptors(descriptors::standard()?),
    };
    let handover = Handover {
        stdio,
        preserved: passed.count,
        state: hooks::spec_state(&entry.state, ContainerState::Running),
        ..Handover::new(descriptors::standard()?, PathBuf::from("/"), None)
    };
    let mut patient = Patient;
    let mut impatient = UnlessFrozen(&entry);
    let attendant: &mut dyn Attendant = match ignores_pause {
        true => &mut patient,
        false => &mut impatient,
    };
    tracing::debug!("nsexec container setup: the namespaces and cgroups of process {pid}");
    let mut waiting = launch::prepare(&declaration, info, handover, attendant)?;
    tracing::debug!(
        "child process in init(): pid {}",
        waiting.process().host_pid
    );
    tracing::debug!("setns_init: about to exec; init: closing the pipe to signal completion");
    Error::at("made")?;
    let mut terminal = waiting.take_terminal();
    if let Some(path) = &arguments.pidfd_socket {
        console::send(path, &waiting.process().pidfd, "pidfd")?;
    }
    if let (Some(path), Some(ours)) = (&arguments.console_socket, terminal.as_ref()) {
        console::send(path, ours, "/dev/ptmx")?;
        terminal = None;
    }
    if let Some(terminal) = &terminal {
        foreground::adopt(terminal)?;
    }
    let process = waiting.start(attendant)?;
    Error::at("started")?;
    if let Some(path) = &arguments.pid_file {
        write_pid(path, &process)?;
    }
    if arguments.detach {
        process.release();
        return Ok(0);
    }
    guest.attend(&process, terminal.as_ref())
}

/// What the process joins and what it gets.
fn info(
    entry: &Entry,
    declaration: &Declaration,
    cgroups: &[String],
) -> Result<ContainerLaunchInfo> {
    let known = registry::all();
    let names: Vec<&str> = known
        .iter()
        .map(|isolator| isolator.name())
        .filter(|name| OF_A_PROCESS.contains(name))
        .collect();
    let isolators = registry::select(Some(&names.join(",")))?;
    let mut info = registry::prepare(&isolators, entry.id(), declaration)?;
    let pid = entry.state.identity.pid;
    let group = Group::of(entry.id(), &entry.state.identity.cgroups)?;
    let joins = group.join_steps(&group::subgroups(cgroups)?, Some(pid))?;
    info.cgroup_v1 = joins.cgroup_v1;
    info.cgroup_v2 = joins.cgroup_v2;
    if let Some(process) = declaration.spec.process() {
        let affinity = scheduling::exec_affinity(process)?;
        if let Some(cpus) = affinity.initial {
            tracing::debug!(
                "nsexec: affinity: {:#x}",
                cpus.first().copied().unwrap_or_default()
            );
            // Ours, which the process inherits and keeps until it is in the container's cgroups.
            sys::set_affinity(&cpus).map_err(Error::file("set", Path::new("the CPU affinity")))?;
        }
        if let Some(cpus) = affinity.last {
            let others = |one: &Attribute| !matches!(one, Attribute::CpuAffinity(_));
            info.attributes.retain(others);
            info.attributes.insert(0, Attribute::CpuAffinity(cpus));
        }
    }
    for (kind, name) in NAMESPACES {
        let theirs = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        let ours = Path::new("/proc/self/ns").join(name);
        let link = |path: &Path| std::fs::read_link(path);
        match (link(&theirs), link(&ours)) {
            (Ok(theirs), Ok(ours)) if theirs == ours => {}
            // A kernel without this type has it for nobody.
            (Err(error), _)
                if error.kind() == std::io::ErrorKind::NotFound && link(&ours).is_err() => {}
            (Err(error), _) => return Err(Error::file("look at", &theirs)(error)),
            _ => info.join_namespaces.push((kind, theirs)),
        }
    }
    Ok(info)
}

/// The process: that of the bundle as the options change it, or one of its own from a file.
fn process(arguments: &Exec, declaration: &Declaration) -> Result<Process> {
    if let Some(path) = &arguments.process {
        let text = std::fs::read(path).map_err(Error::file("read", path))?;
        let process = bundle::parse(&text).map_err(Error::file("understand", path))?;
        bundle::check_process(&process)?;
        return Ok(process);
    }
    let process = declaration.spec.process().clone();
    let mut process = process.ok_or_else(|| Error::refused("the container has no process"))?;
    if arguments.command.is_empty() {
        return Err(Error::refused("exec args cannot be empty"));
    }
    process.set_args(Some(arguments.command.clone()));
    if let Some(cwd) = &arguments.cwd {
        process.set_cwd(cwd.into());
    }
    if let Some(profile) = &arguments.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &arguments.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    let mut environment = process.env().clone().unwrap_or_default();
    environment.extend(arguments.env.iter().cloned());
    process.set_env(Some(environment));
    process.set_terminal(Some(arguments.tty));
    if arguments.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(user) = &arguments.user {
        let user = self::user(user, process.user())?;
        process.set_user(user);
    }
    let mut groups = process.user().additional_gids().clone().unwrap_or_default();
    groups.extend(&arguments.additional_gids);
    process
        .user_mut()
        .set_additional_gids((!groups.is_empty()).then_some(groups));
    add_capabilities(&mut process, &arguments.cap)?;
    bundle::check_process(&process)?;
    Ok(process)
}

/// `UID[:GID]`, digits and nothing else (CVE-2026-30892).
fn user(text: &str, before: &User) -> Result<User> {
    let number = |what: &str, digits: &str| {
        if undefended("strict-user") {
            // As atoi(3) would: what follows the digits is ignored, and what is too large is cut.
            let end = digits.bytes().take_while(u8::is_ascii_digit).count();
            return Ok(digits[..end].parse::<u64>().unwrap_or_default() as u32);
        }
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits
            .parse::<u32>()
            .ok()
            .filter(|number| plain && *number != u32::MAX);
        number.ok_or_else(|| {
            Error::refused(format!(
                "bad {what}: {digits:?} in --user {text:?} is no id"
            ))
        })
    };
    let mut user = before.clone();
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    if let Some(gid) = gid {
        user.set_gid(number("gid", gid)?);
    }
    user.set_uid(number("uid", uid)?);
    Ok(user)
}

/// Adds capabilities to the bounding, effective and permitted sets, to the ambient one only where the bundle has an
/// inheritable set: that one never grows (CVE-2022-29162).
fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut sets = process.capabilities().clone().unwrap_or_else(|| {
        let mut none = LinuxCapabilities::default();
        none.set_bounding(None)
            .set_effective(None)
            .set_permitted(None);
        none.set_inheritable(None).set_ambient(None);
        none
    });
    for name in names {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let value = serde_json::Value::from(format!("CAP_{bare}"));
        let capability: Capability = serde_json::from_value(value)
            .map_err(|_| Error::refused(format!("unknown capability {name:?} in --cap")))?;
        let with = |set: &Option<std::collections::HashSet<Capability>>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        let (bounding, effective) = (with(sets.bounding()), with(sets.effective()));
        let (permitted, ambient) = (with(sets.permitted()), with(sets.ambient()));
        let inherits = sets
            .inheritable()
            .as_ref()
            .is_some_and(|set| set.contains(&capability));
        sets.set_bounding(bounding)
            .set_effective(effective)
            .set_permitted(permitted);
        if inherits {
            sets.set_ambient(ambient);
        }
        if undefended("empty-inheritable") {
            let inheritable = with(sets.inheritable());
            sets.set_inheritable(inheritable);
        }
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_digits_and_nothing_else() {
        let before = User::default();
        let good = user("1000:50", &before).unwrap();
        assert_eq!((good.uid(), good.gid()), (1000, 50));
        assert_eq!(user("7", &before).unwrap().uid(), 7);
        for bad in [
            "",
            ":",
            "1:",
            ":1",
            "1x",
            "x",
            "-1",
            "+1",
            " 1",
            "1 ",
            "1:2:3",
            "4294967296",
            "4294967295",
            "0x1",
            "1:root",
            "١",
        ] {
            assert!(user(bad, &before).is_err(), "{bad:?}");
        }
    }
}
