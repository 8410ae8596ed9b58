//! A container's first process, as its parent holds it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{WaitId, WaitIdOptions};
use tepui_isolators::observe::record;

use super::report::Record;
use super::sys;
use crate::pidfd;

/// How long a killed process may take to be gone.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// How long one that may be frozen may take: whoever stopped waiting for it has waited already.
const SHORT_WAIT: Duration = Duration::from_millis(100);

/// A container's first process. One that nobody waited for is killed and reaped when this is dropped: no launch leaves
/// one behind, wherever it failed.
#[derive(Debug)]
pub struct Process {
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Where it reports; our init says here how the workload ended.
    pub socket: OwnedFd,
    /// Its pid as the host sees it.
    pub host_pid: u32,
    is_done_with: Cell<bool>,
    received: RefCell<Option<OwnedFd>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

impl Process {
    /// Kills it and takes its status, unless that was done; waits a second at most.
    pub(super) fn end(&self) {
        if let Err(error) = self.end_within(LAST_WAIT) {
            // Frozen: cleaning up its cgroups thaws it, and it dies.
            tracing::error!(pid = self.host_pid, %error, "a killed container does not end");
        }
    }

    /// The same for one that its caller no longer waits for, as when it is frozen: it dies once it is thawed, and that is
    /// not waited for.
    pub(super) fn leave_to_die(&self) {
        if let Err(error) = self.end_within(SHORT_WAIT) {
            tracing::debug!(pid = self.host_pid, %error, "it dies once it is thawed");
        }
    }

    fn end_within(&self, limit: Duration) -> io::Result<()> {
        if self.is_done_with.replace(true) {
            return Ok(());
        }
        self.kill();
        match pidfd::ended_within(&self.pidfd, limit)? {
            // Of a status that nobody asked for there is nothing to tell.
            true => drop(self.reap()),
            false => return Err(io::ErrorKind::TimedOut.into()),
        }
        Ok(())
    }

    pub(super) fn new(pidfd: OwnedFd, socket: OwnedFd) -> io::Result<Self> {
        let mut process = Self {
            pidfd,
            socket,
            host_pid: 0,
            is_done_with: Cell::new(false),
            received: RefCell::new(None),
        };
        // Its end takes the process with it, wherever we leave from here on.
        process.host_pid = host_pid(&process.pidfd)?;
        Ok(process)
    }

    /// As `receive`; `None` when nothing comes within `patience`.
    pub(super) fn receive_within(&self, patience: Duration) -> io::Result<Option<Option<Record>>> {
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        match poll(
            &mut [PollFd::new(&self.socket, PollFlags::IN)],
            Some(&timeout),
        ) {
            Ok(0) | Err(Errno::INTR) => Ok(None),
            Ok(_) => self.receive().map(Some),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The next record; `None` at the end of the socket. A descriptor that comes along is kept for `take_received`.
    fn receive(&self) -> io::Result<Option<Record>> {
        let mut bytes = [0; Record::SIZE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let buffers = &mut [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.socket, buffers, &mut control, flags) {
                Ok(message) if message.bytes == 0 => return Ok(None),
                Err(Errno::CONNRESET) => return Ok(None),
                Ok(message) => {
                    let length = message.bytes;
                    for part in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(mut descriptors) = part {
                            *self.received.borrow_mut() = descriptors.next();
                        }
                    }
                    // Anything else is not from us.
                    if let Some(record) = Record::decode(&bytes[..length]) {
                        return Ok(Some(record));
                    }
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The descriptor that came with the last record that had one.
    pub(super) fn take_received(&self) -> Option<OwnedFd> {
        self.received.borrow_mut().take()
    }

    /// Lets a process that waits at a rendezvous go on.
    pub(super) fn answer(&self) -> Result<(), Errno> {
        rustix::net::send(&self.socket, b"!", rustix::net::SendFlags::NOSIGNAL).map(drop)
    }

    /// Nobody here waits for it any more: it lives on by itself.
    pub fn release(self) {
        self.is_done_with.set(true);
    }

    /// The wait status that init reported, when it did. Never blocks.
    pub fn reported_status(&self) -> Option<i32> {
        let mut bytes = [0; Record::SIZE];
        let mut status = None;
        while let Ok((length, _)) = rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT)
        {
            if length == 0 {
                break;
            }
            if let Some(Record::Ended(reported)) = Record::decode(&bytes[..length]) {
                status.get_or_insert(reported);
            }
        }
        status
    }

    /// SIGKILL to the container's process, and with it to its whole pid namespace.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    /// Sends a signal, a real-time one too; a process that is gone needs none.
    pub fn signal(&self, signal: i32) {
        if let Err(errno) = sys::send_signal(self.pidfd.as_fd(), signal)
            && errno != Errno::SRCH
        {
            tracing::warn!(pid = self.host_pid, ?signal, %errno, "could not signal a container");
        }
    }

    /// Waits for its end and takes the wait status.
    ///
    /// # Errors
    /// When it is not our child.
    pub fn reap(&self) -> io::Result<i32> {
        loop {
            let options = WaitIdOptions::EXITED;
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(status) => {
                    let status = status.ok_or(Errno::CHILD)?;
                    self.is_done_with.set(true);
                    let core = if status.dumped() { 0x80 } else { 0 };
                    return Ok(match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => code << 8,
                        (None, Some(signal)) => signal | core,
                        (None, None) => 0,
                    });
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The pid that the mounted /proc shows for a process descriptor: the launcher has a pid namespace of its own and knows
/// its children by other numbers (pidfd's fdinfo, Linux 5.4).
pub(super) fn host_pid(pidfd: &OwnedFd) -> io::Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = record(Path::new(&path))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    // -1 or 0: it is gone, or not in the namespace of this /proc.
    let pid = line
        .and_then(|pid| pid.trim().parse().ok())
        .filter(|pid| *pid > 0);
    pid.ok_or_else(|| io::ErrorKind::NotFound.into())
}
