//! What the executor and its launcher say to each other: one packet a message on a SOCK_SEQPACKET pair, JSON text with
//! descriptors attached. Whatever may be large (the declaration) lies in an attached memfd.

use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tepui_isolators::{ContainerId, Declaration, LimitEvent};

/// The largest packet in bytes; both ends are ours.
const PACKET: usize = 64 * 1024;

/// The most descriptors in one packet.
const DESCRIPTORS: usize = 4;

/// The longest message text in a reply, so that a packet never overflows.
const MESSAGE: usize = 16 * 1024;

/// To the launcher.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Start a container. Attached: a memfd with a [`Launch`], then standard input, output and error.
    Launch {
        /// The sender's number for it, never used twice.
        number: u64,
    },
    /// Send a signal to its first process.
    Signal {
        /// The container.
        number: u64,
        /// Signal number.
        signal: i32,
    },
    /// Kill everything in it.
    Kill {
        /// The container.
        number: u64,
    },
}

/// One container to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Launch {
    /// Its name.
    pub id: ContainerId,
    /// What it is to be.
    pub declaration: Declaration,
    /// Where its state directory goes.
    pub state_dir: PathBuf,
    /// Isolators to use, comma separated; all of them when missing.
    pub isolation: Option<String>,
}

/// From the launcher.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The workload was executed.
    Running {
        /// The container.
        number: u64,
        /// Pid of its first process on the host.
        pid: u32,
    },
    /// It was not, and nothing of it is left.
    Failed {
        /// The container.
        number: u64,
        /// Why.
        message: String,
        /// Exit status for a command line: 125, 126 or 127.
        exit_status: i32,
    },
    /// It ended, and nothing of it is left.
    Exited {
        /// The container.
        number: u64,
        /// Wait status of the workload.
        status: i32,
        /// The limit that was hit.
        limit: Option<LimitEvent>,
    },
}

impl Reply {
    /// A failure, its message cut to what a packet holds.
    pub fn failed(number: u64, mut message: String, exit_status: i32) -> Self {
        let end = (0..=MESSAGE.min(message.len()))
            .rev()
            .find(|at| message.is_char_boundary(*at))
            .unwrap_or_default();
        message.truncate(end);
        Self::Failed {
            number,
            message,
            exit_status,
        }
    }
}

/// Sends one message with its descriptors.
///
/// # Errors
/// When the other end is gone (EPIPE), or the packet is too large.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > PACKET {
        return Err(io::Error::other("a message to the launcher is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&text)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message with its descriptors; `None` when the other end is gone.
///
/// # Errors
/// `WouldBlock` when `flags` say so and there is none; anything else is a broken channel.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut packet = vec![0; PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut packet)],
        &mut control,
        flags,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = rights.flatten().collect();
    Ok(Some((
        serde_json::from_slice(&packet[..received.bytes])?,
        descriptors,
    )))
}

/// Puts a value into a memfd.
///
/// # Errors
/// When there is no memory for it.
pub fn to_memory<T: Serialize>(value: &T) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create(c"tepui-launch", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&serde_json::to_vec(value)?)?;
    Ok(file.into())
}

/// Reads a value back.
///
/// # Errors
/// When it is not what `to_memory` wrote.
pub fn from_memory<T: DeserializeOwned>(memory: OwnedFd) -> io::Result<T> {
    let mut file = std::fs::File::from(memory);
    file.rewind()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let memory = to_memory(&vec!["a", "b"]).unwrap();
        send(
            ours.as_fd(),
            &Request::Launch { number: 7 },
            &[memory.as_fd(), ours.as_fd()],
        )
        .unwrap();
        let (request, mut descriptors): (Request, _) = receive(theirs.as_fd(), RecvFlags::empty())
            .unwrap()
            .unwrap();
        assert!(matches!(request, Request::Launch { number: 7 }));
        assert_eq!(descriptors.len(), 2);
        let back: Vec<String> = from_memory(descriptors.remove(0)).unwrap();
        assert_eq!(back, ["a", "b"]);
    }

    #[test]
    fn a_long_failure_message_is_cut_at_a_character() {
        let Reply::Failed { message, .. } = Reply::failed(1, "ä".repeat(MESSAGE), 125) else {
            panic!("not a failure")
        };
        assert!(message.len() <= MESSAGE && message.chars().all(|c| c == 'ä'));
    }
}
