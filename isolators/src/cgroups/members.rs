//! The processes of a cgroup: listed, and signalled without ever hitting another one.

use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::directory::is_gone;
use crate::error::{Error, Result};

/// Sends a signal to every process of one cgroup but those in `done`, and to no other. Tells which were signalled.
pub(super) fn signal_members(
    directory: &Path,
    signal: Signal,
    done: &HashSet<Pid>,
) -> Result<Vec<Pid>> {
    // A pid may be given to another process between reading and signalling. So each gets a pidfd first, and only those
    // still listed afterwards are signalled: what the descriptor names is then either a member or already dead.
    let handles: Vec<(Pid, OwnedFd)> = members(directory)?
        .into_iter()
        .filter(|pid| !done.contains(pid))
        .filter_map(|pid| match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Some(Ok((pid, handle))),
            Err(Errno::SRCH) => None,
            Err(error) => Some(Err(Error::file(
                format!("open a pidfd of pid {} of", pid.as_raw_nonzero()),
                directory,
                error,
            ))),
        })
        .collect::<Result<_>>()?;
    if handles.is_empty() {
        return Ok(Vec::new());
    }
    let still_there = members(directory)?;
    let mut signalled = Vec::with_capacity(handles.len());
    for (pid, handle) in handles {
        if !still_there.contains(&pid) {
            continue;
        }
        match pidfd_send_signal(&handle, signal) {
            Ok(()) => signalled.push(pid),
            Err(Errno::SRCH) => {}
            Err(error) => {
                let pid = pid.as_raw_nonzero();
                let action = format!("send signal {} to pid {pid} of", signal.as_raw());
                return Err(Error::file(action, directory, error));
            }
        }
    }
    Ok(signalled)
}

/// The processes of one cgroup. Those outside our pid namespace are listed as 0 and left out: signalled as such they
/// would be our own process group.
pub(super) fn members(directory: &Path) -> Result<Vec<Pid>> {
    let path = directory.join("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text
            .lines()
            .filter_map(|line| Pid::from_raw(line.parse().ok()?))
            .collect()),
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        // A threaded cgroup of v2 lists its processes in the domain above it.
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
            Ok(Vec::new())
        }
        Err(error) => Err(Error::file("read", path, error)),
    }
}
