//! The executor's end: starting the launcher.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use tepui_isolators::fault;
use tokio::io::unix::AsyncFd;

use super::protocol::{self, Launch, Request};
use super::serve::{PROGRAM_NAME, SOCKET};
use crate::launch::sys::{self, StringArray};
use crate::{pidfd, seal};

/// A running launcher. It and all its containers end when this is dropped.
#[derive(Debug)]
pub struct Launcher {
    /// The socket to it; non-blocking.
    pub socket: OwnedFd,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

/// The launcher could not be started.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not start the launcher process ({action}); containers need root, or a user namespace"
)]
pub struct StartError {
    action: &'static str,
    source: io::Error,
}

impl Launcher {
    /// Starts one. The new process is a copy of this thread alone and makes nothing but system calls until it executes,
    /// so that other threads may exist.
    ///
    /// # Errors
    /// When the kernel refuses the pid namespace or the execution.
    pub fn start() -> Result<Self, StartError> {
        let failed = |action| move |source: io::Error| StartError { action, source };
        let (socket, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| failed("make a socket pair")(errno.into()))?;
        let program = seal::own_program().map_err(failed("open our own program"))?;
        let null = std::fs::File::open("/dev/null").map_err(failed("open /dev/null"))?;
        let arguments = StringArray::new(vec![PROGRAM_NAME.into()]);
        // Nothing of the executor's environment: it holds the agent's token.
        let variables = ["TEPUI_LOG"].into_iter().chain(fault::variable());
        let variables = variables.filter_map(|name| {
            let value = std::env::var(name).ok()?;
            CString::new(format!("{name}={value}")).ok()
        });
        let environment = StringArray::new(variables.collect());
        let flags = libc::CLONE_NEWPID as u64;
        match sys::clone_process(flags, None).map_err(|errno| failed("clone")(errno.into()))? {
            sys::Cloned::Parent { pidfd } => {
                drop(theirs);
                rustix::io::ioctl_fionbio(&socket, true)
                    .map_err(|errno| failed("use its socket")(errno.into()))?;
                Ok(Self { socket, pidfd })
            }
            sys::Cloned::Child => {
                let set_up = || -> sys::Result<()> {
                    sys::process_control(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0)?;
                    sys::unblock_signals()?;
                    sys::duplicate_to(null.as_fd(), 0)?;
                    sys::duplicate_to(std::io::stderr().as_fd(), 1)?;
                    sys::close_on_exec_from(3)?;
                    if theirs.as_raw_fd() == SOCKET {
                        return sys::keep_on_exec(theirs.as_fd());
                    }
                    sys::duplicate_to(theirs.as_fd(), SOCKET)
                };
                if set_up().is_ok() {
                    sys::execute_descriptor(program.as_fd(), &arguments, &environment);
                }
                sys::exit_now(127)
            }
        }
    }

    /// Asks for a container.
    ///
    /// # Errors
    /// When the launcher is gone or its queue is full.
    pub fn launch(&self, number: u64, launch: &Launch, stdio: &[OwnedFd; 3]) -> io::Result<()> {
        let memory = protocol::to_memory(launch)?;
        let descriptors = [
            memory.as_fd(),
            stdio[0].as_fd(),
            stdio[1].as_fd(),
            stdio[2].as_fd(),
        ];
        protocol::send(
            self.socket.as_fd(),
            &Request::Launch { number },
            &descriptors,
        )
    }

    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// When the launcher is gone.
    pub fn signal(&self, number: u64, signal: i32) -> io::Result<()> {
        protocol::send(
            self.socket.as_fd(),
            &Request::Signal { number, signal },
            &[],
        )
    }

    /// Kills everything in a container.
    ///
    /// # Errors
    /// When the launcher is gone.
    pub fn kill(&self, number: u64) -> io::Result<()> {
        protocol::send(self.socket.as_fd(), &Request::Kill { number }, &[])
    }
}

/// How long a launcher may take to kill and release its last containers.
const END: Duration = Duration::from_secs(5);

/// Ends it in order: it kills what is left, releases it and exits; its status is taken, so that no zombie stays.
impl Drop for Launcher {
    fn drop(&mut self) {
        // It may be gone already: then this fails and the wait below returns at once.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if !pidfd::ended_within(&self.pidfd, END).unwrap_or(false) {
            tracing::error!(
                "the launcher process does not end; it is killed, and its containers with it"
            );
            // ESRCH: it has just ended.
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            if !pidfd::ended_within(&self.pidfd, END).unwrap_or(false) {
                // The kernel ends it and its pid namespace when it can; we are not kept from ending.
                return;
            }
        }
        // Nothing is to be learnt from its status; ECHILD when it was taken before.
        let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// The launcher is ready when its socket is.
impl AsRawFd for Launcher {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Launcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Launcher {
    /// The same, for the runtime of the calling thread to watch.
    ///
    /// # Errors
    /// When the runtime cannot.
    #[allow(unsafe_code)]
    pub fn watched(self) -> Result<AsyncFd<Self>, StartError> {
        // SAFETY: the socket is ours, is never replaced, and closes only when the launcher is dropped.
        unsafe { AsyncFd::register(self) }.map_err(|error| StartError {
            action: "watch it",
            source: error.into(),
        })
    }
}
