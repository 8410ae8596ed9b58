//! What a command does while its container runs in the foreground: passes signals on and carries the terminal's bytes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty};

use super::error::{Error, Result};
use crate::launch::{Process, sys};

/// A foreground container's keeper.
#[derive(Debug, Default)]
pub struct Guest {
    signals: Option<SignalFd>,
}

impl Guest {
    /// Takes all signals into a descriptor, so that none is lost and none ends us before the container.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn hold_signals(&mut self) -> Result<()> {
        let mut set = SigSet::all();
        // Those that a fault of our own raises stay deadly.
        for fault in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
        ] {
            set.remove(fault);
        }
        let failed = |errno: nix::errno::Errno| {
            Error::file("hold", Path::new("signals"))(io::Error::from_raw_os_error(errno as i32))
        };
        set.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        self.signals = Some(SignalFd::with_flags(&set, flags).map_err(failed)?);
        Ok(())
    }

    /// Waits for the end of the container's first process; its exit status, 128 + n for signal n.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn attend(&self, process: &Process, terminal: Option<&OwnedFd>) -> Result<u8> {
        let failed =
            |source: io::Error| Error::file("wait for", Path::new("the container"))(source);
        let raw = terminal.map(|_| RawTerminal::of_ours());
        self.carry(process, terminal).map_err(failed)?;
        drop(raw);
        let status = process.reap().map_err(failed)?;
        Ok(match (status & 0x7f, status >> 8 & 0xff) {
            (0, code) => code as u8,
            (signal, _) => 128u8.wrapping_add(signal as u8),
        })
    }

    fn carry(&self, process: &Process, terminal: Option<&OwnedFd>) -> io::Result<()> {
        let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
        let mut input_open = terminal.is_some();
        let mut terminal = terminal.map(AsFd::as_fd);
        if let Some(terminal) = terminal {
            resize(terminal);
        }
        loop {
            let nothing = PollFlags::empty();
            let when = |open: bool| if open { PollFlags::IN } else { nothing };
            let signals = self.signals.as_ref().map_or(stdin, AsFd::as_fd);
            let mut fds = [
                PollFd::new(&process.pidfd, PollFlags::IN),
                PollFd::from_borrowed_fd(signals, when(self.signals.is_some())),
                PollFd::from_borrowed_fd(terminal.unwrap_or(stdin), when(terminal.is_some())),
                PollFd::from_borrowed_fd(stdin, when(input_open)),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready = fds.map(|fd| fd.revents());
            if self.signals.is_some() && ready[1].contains(PollFlags::IN) {
                self.pass_on(process, terminal);
            }
            if let Some(source) = terminal
                && !ready[2].is_empty()
                && !copy(source, stdout)?
            {
                terminal = None;
                input_open = false;
            }
            if let (Some(target), true) = (terminal, input_open && !ready[3].is_empty())
                && !copy(stdin, target)?
            {
                input_open = false;
            }
            if ready[0].contains(PollFlags::IN) {
                // What it wrote last is still in the terminal.
                if let Some(source) = terminal {
                    drain(source, stdout)?;
                }
                return Ok(());
            }
        }
    }

    /// Signals to us are meant for the container.
    fn pass_on(&self, process: &Process, terminal: Option<BorrowedFd<'_>>) {
        let Some(signals) = &self.signals else { return };
        while let Ok(Some(information)) = signals.read_signal() {
            match information.ssi_signo as i32 {
                libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE => {}
                libc::SIGWINCH => {
                    if let Some(terminal) = terminal {
                        resize(terminal);
                    }
                }
                signal => process.signal(signal),
            }
        }
    }
}

/// Readies our end of a container's terminal, before anything is written to the other: what goes into a file or a pipe
/// shall have the line ends that the container's processes wrote, not those of a terminal.
///
/// # Errors
/// When the kernel refuses.
pub fn adopt(terminal: &OwnedFd) -> Result<()> {
    if isatty(rustix::stdio::stdout()) {
        return Ok(());
    }
    let plain = || -> rustix::io::Result<()> {
        let mut modes = rustix::termios::tcgetattr(terminal)?;
        modes.output_modes -= OutputModes::ONLCR;
        rustix::termios::tcsetattr(terminal, OptionalActions::Now, &modes)
    };
    plain().map_err(Error::file("set up", Path::new("the container's terminal")))
}

/// One read and its writes; false at the end of the source.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let mut buffer = [0u8; 16 << 10];
    match rustix::io::read(from, &mut buffer) {
        // EIO: nobody has the other end of the terminal open.
        Ok(0) | Err(Errno::IO) => Ok(false),
        Ok(length) => {
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                match rustix::io::write(to, rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => {
                        poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None)?;
                    }
                    // Nobody reads it any more: the container goes on.
                    Err(Errno::IO | Errno::PIPE) => return Ok(false),
                    Err(errno) => return Err(errno.into()),
                }
            }
            Ok(true)
        }
        Err(Errno::INTR | Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// Shows what a container that is not attended to has written to its terminal.
pub fn show_rest(terminal: Option<&OwnedFd>) {
    if let Some(terminal) = terminal {
        // The failure that is told next says more than one of this.
        let _ = drain(terminal.as_fd(), rustix::stdio::stdout());
    }
}

/// What is there without waiting.
fn drain(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        let mut fds = [PollFd::from_borrowed_fd(from, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&now))?;
        if ready == 0 || !fds[0].revents().contains(PollFlags::IN) || !copy(from, to)? {
            return Ok(());
        }
    }
}

/// The container's terminal takes the size of ours.
fn resize(terminal: BorrowedFd<'_>) {
    if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin())
        && let Err(errno) = sys::set_terminal_size(terminal, size.ws_row, size.ws_col)
    {
        tracing::warn!(
            "could not resize the container's terminal {}: {errno}",
            terminal.as_raw_fd()
        );
    }
}

/// Our terminal in raw mode, until this is dropped.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn of_ours() -> Self {
        let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            if !isatty(rustix::stdio::stdout()) {
                // The container's output goes elsewhere; what comes out here is not from a terminal.
                raw.output_modes = before.output_modes;
            }
            // Without it the terminal merely echoes twice.
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw);
        }
        Self(before)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing can be done about a terminal that is gone.
            let _ =
                rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, before);
        }
    }
}
