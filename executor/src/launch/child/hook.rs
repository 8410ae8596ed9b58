//! Hooks that run inside the container while it is set up: runtime-spec "createContainer" and "startContainer" hooks.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{WaitId, WaitIdOptions};

use crate::launch::report::Record;
use crate::launch::step::HookStep;
use crate::launch::sys;

/// Runs one hook to its end: its wait status, or that it took too long.
pub(super) fn run(hook: &HookStep) -> Result<u16, Errno> {
    rustix::fs::seek(&hook.state, rustix::fs::SeekFrom::Start(0))?;
    let pidfd = match sys::clone_plainly()? {
        sys::Cloned::Parent { pidfd } => pidfd,
        sys::Cloned::Child => {
            let directory = hook.directory.as_deref();
            let executed = directory
                .map_or(Ok(()), rustix::process::chdir)
                .and_then(|()| sys::duplicate_to(hook.state.as_fd(), 0))
                .and_then(|()| sys::close_on_exec_from(3))
                .and_then(|()| sys::unblock_signals())
                .and_then(|()| {
                    Err::<(), _>(sys::execute(&hook.path, &hook.arguments, &hook.environment))
                });
            sys::exit_now(executed.map_or(127, |()| 0))
        }
    };
    let deadline = hook.timeout.map(|seconds| Timespec {
        tv_sec: i64::from(seconds),
        tv_nsec: 0,
    });
    let ready =
        retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], deadline.as_ref()))?;
    if ready == 0 {
        sys::send_signal(pidfd.as_fd(), libc::SIGKILL)?;
    }
    let status = retry_on_intr(|| {
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
    })?;
    let status = status.ok_or(Errno::CHILD)?;
    Ok(match (ready, status.exit_status()) {
        (0, _) => Record::TIMED_OUT,
        (_, Some(code)) => (code as u16) << 8,
        (_, None) => status.terminating_signal().unwrap_or_default() as u16,
    })
}
