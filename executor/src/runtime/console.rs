//! Terminals: who gets our end of one.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use super::error::{Error, Result};

/// Whether terminal, detachment and console socket go together.
///
/// # Errors
/// When nobody would hold the terminal, or there is none for the socket.
pub fn check(terminal: bool, detaches: bool, socket: Option<&Path>) -> Result<()> {
    match (terminal, detaches, socket) {
        (true, true, None) => Err(Error::refused(
            "cannot allocate tty if runc will detach without setting console socket",
        )),
        (false, _, Some(_)) | (_, false, Some(_)) => Err(Error::refused(
            "cannot use console socket if runc will not detach or allocate tty",
        )),
        _ => Ok(()),
    }
}

/// Rows and columns of a process' terminal.
pub fn size(process: &Process) -> Option<(u16, u16)> {
    let size = process.console_size()?;
    let number = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    Some((number(size.height()), number(size.width())))
}

/// Sends a descriptor to whoever listens on a Unix socket.
///
/// # Errors
/// When nobody does.
pub fn send(path: &Path, descriptor: &OwnedFd, name: &str) -> Result<()> {
    let sent = || -> rustix::io::Result<()> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(rustix::io::Errno::NOBUFS);
        }
        let parts = [IoSlice::new(name.as_bytes())];
        rustix::net::sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL).map(drop)
    };
    sent().map_err(Error::file("send a descriptor to", path))
}
