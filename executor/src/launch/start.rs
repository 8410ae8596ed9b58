//! The word to start, from a process that did not make the container: `start` after `create`.
//!
//! The container's process listens on a socket in its state directory, from before it is set up until it executes the
//! workload. Whoever connects and says the word gets a report like the launcher does: the connection closes on
//! execve(2), or brings the record of what failed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::report::Record;

/// How the workload's start ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It was executed.
    Executed,
    /// execve(2) failed with this errno.
    ExecuteFailed(i32),
    /// A step failed: index in the plan, errno.
    StepFailed(u16, u16),
    /// A `startContainer` hook failed: its number and its wait status.
    HookFailed(u16, u16),
    /// Not yet.
    Waiting,
}

/// Makes the listening socket `<directory>/<name>`.
///
/// # Errors
/// When the name is taken or the disk refuses.
pub fn listen(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let (_directory, address) = address(directory, name)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

/// Connects to the container that listens on `<directory>/<name>`.
///
/// # Errors
/// `ConnectionRefused` when nobody listens any more, `NotFound` when there is no such socket.
pub fn connect(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let (_directory, address) = address(directory, name)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Says the word.
///
/// # Errors
/// When the container is gone.
pub fn say(connection: &OwnedFd) -> io::Result<()> {
    let sent = rustix::net::send(connection, b"!", rustix::net::SendFlags::NOSIGNAL);
    Ok(sent.map(drop)?)
}

/// Waits for what comes of it, at most for `patience`.
///
/// # Errors
/// When the connection cannot be read.
pub fn outcome(connection: &OwnedFd, patience: Duration) -> io::Result<Started> {
    let timeout = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    match poll(
        &mut [PollFd::new(connection, PollFlags::IN)],
        Some(&timeout),
    ) {
        Ok(0) | Err(Errno::INTR) => return Ok(Started::Waiting),
        Ok(_) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut bytes = [0; Record::SIZE];
    let length = match rustix::io::read(connection, &mut bytes) {
        Err(Errno::CONNRESET) => 0,
        other => other?,
    };
    Ok(match Record::decode(&bytes[..length]) {
        Some(Record::ExecuteFailed(errno)) => Started::ExecuteFailed(errno),
        Some(Record::StepFailed { index, errno }) => Started::StepFailed(index, errno),
        Some(Record::HookFailed { number, status, .. }) => Started::HookFailed(number, status),
        _ => Started::Executed,
    })
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// A socket's address has room for 107 bytes: the directory goes by its descriptor.
fn address(directory: &Path, name: &str) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    Ok((directory, SocketAddrUnix::new(path)?))
}
