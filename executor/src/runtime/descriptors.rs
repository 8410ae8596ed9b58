//! The descriptors that a container inherits from its caller.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

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

/// What the caller passes: `LISTEN_FDS` by socket activation and `preserved` more after these.
///
/// # Errors
/// When one of them is not open.
pub fn passed(preserved: u32) -> Result<Passed> {
    let listening = std::env::var("LISTEN_FDS").ok();
    let listening = listening
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    let passed = Passed {
        listening,
        count: listening.saturating_add(preserved),
    };
    for number in 3..passed.count.saturating_add(3) {
        let path = format!("/proc/self/fd/{number}");
        if let Err(source) = std::fs::symlink_metadata(&path) {
            return Err(Error::file::<std::io::Error>(
                "find the preserved descriptor",
                Path::new(&path),
            )(source));
        }
    }
    Ok(passed)
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
