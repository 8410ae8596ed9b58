//! What a process needs before its first line, where Rust's own start does not run.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use crate::launch::sys;

/// Makes sure that descriptors 0 to 2 are open, so that no file of ours ever gets one of these numbers, and that a write
/// to a pipe without a reader is an error and not our end.
pub fn set_up() {
    let standard = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    let mut polled = standard.map(|one| PollFd::from_borrowed_fd(one, PollFlags::empty()));
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let looked = poll(&mut polled, Some(&now));
    let is_closed = |one: &PollFd<'_>| one.revents().contains(PollFlags::NVAL);
    for _ in polled
        .iter()
        .filter(|one| looked.is_err() || is_closed(one))
    {
        // The lowest free number is the one that is closed.
        match rustix::fs::open(c"/dev/null", OFlags::RDWR, Mode::empty()) {
            Ok(null) if std::os::fd::AsRawFd::as_raw_fd(&null) <= 2 => std::mem::forget(null),
            Ok(_) => {}
            Err(_) => std::process::abort(),
        }
    }
    if sys::ignore_signal(libc::SIGPIPE).is_err() {
        std::process::abort();
    }
}
