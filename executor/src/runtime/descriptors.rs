//! The descriptors that a container inherits from its caller.

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::Path;

use rustix::event::EventfdFlags;
use rustix::io::Errno;

use super::error::{Error, Result};

/// Descriptors beyond the standard ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// How many by socket activation (sd_listen_fds(3)), from 3 on.
    pub listening: u32,
    /// All of them.
    pub count: u32,
}

/// What the caller passes: `LISTEN_FDS` by socket activation and up to `preserved` more after these. Numbers among the
/// latter that the caller left open are taken, so that none of our own descriptors gets one and goes along.
///
/// # Errors
/// When one of socket activation is not open, or there cannot be so many.
pub fn passed(preserved: u32) -> Result<Passed> {
    let listening = std::env::var("LISTEN_FDS").ok();
    let listening = listening
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    let passed = Passed {
        listening,
        count: listening.saturating_add(preserved),
    };
    let mut filler = None;
    for number in 3..passed.count.saturating_add(3) {
        let path = format!("/proc/self/fd/{number}");
        match std::fs::symlink_metadata(&path) {
            Ok(_) => {}
            Err(_) if number - 3 >= listening => {
                let taken = take(number, &mut filler);
                taken.map_err(Error::file("keep free", Path::new(&path)))?;
            }
            Err(source) => {
                let action = "find the preserved descriptor";
                return Err(Error::file(action, Path::new(&path))(source));
            }
        }
    }
    // It is under one of these numbers itself, and stays for as long as we do.
    let _ = filler.map(IntoRawFd::into_raw_fd);
    Ok(passed)
}

/// Puts something that is of no use to anybody under a free number, until the next execve(2).
fn take(number: u32, filler: &mut Option<OwnedFd>) -> Result<(), Errno> {
    let filler = match filler {
        Some(filler) => filler,
        // The lowest free number is the first that is to be taken.
        None => filler.insert(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?),
    };
    let wanted = i32::try_from(number).map_err(|_| Errno::BADF)?;
    if filler.as_raw_fd() != wanted {
        let copy = rustix::io::fcntl_dupfd_cloexec(&filler, wanted)?;
        let _ = copy.into_raw_fd();
    }
    Ok(())
}

/// Our own standard input, output and error, for the container's process.
///
/// # Errors
/// When descriptors run out.
pub fn standard() -> Result<[OwnedFd; 3]> {
    let copy = |descriptor: BorrowedFd<'_>| {
        // Above what a caller may pass on.
        rustix::io::fcntl_dupfd_cloexec(descriptor, 64)
            .or_else(|errno| match errno {
                Errno::INVAL => rustix::io::fcntl_dupfd_cloexec(descriptor, 3),
                other => Err(other),
            })
            .map_err(Error::file("copy", Path::new("a standard descriptor")))
    };
    Ok([
        copy(rustix::stdio::stdin())?,
        copy(rustix::stdio::stdout())?,
        copy(rustix::stdio::stderr())?,
    ])
}
