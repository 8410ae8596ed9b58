//! How a container's first process comes to be: the parent's side, top to bottom.
//!
//! The only place that clones. It runs in the launcher process, which is single-threaded and small, so that a clone is
//! cheap and copies nothing of value.

pub mod child;
pub mod error;
pub mod plan;
pub mod report;
pub mod step;
pub mod sys;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions};
use tepui_isolators::{ContainerLaunchInfo, Declaration};

pub use error::{Error, Result};
use plan::Attachments;
use report::Record;
use step::Step;

use crate::pidfd;

/// How long a killed process may take to be gone.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// A container's process that is set up and waits for the word to execute.
#[derive(Debug)]
pub struct Waiting {
    process: Process,
    steps: Vec<Step>,
}

/// A container's first process.
#[derive(Debug)]
pub struct Process {
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Where it reports; our init says here how the workload ended.
    pub socket: OwnedFd,
    /// Its pid as the host sees it.
    pub host_pid: u32,
    reaped: Cell<bool>,
}

/// A process that nobody waited for is killed and reaped: no launch leaves one behind, wherever it failed.
impl Drop for Process {
    fn drop(&mut self) {
        if self.reaped.get() {
            return;
        }
        self.kill();
        match pidfd::ended_within(&self.pidfd, LAST_WAIT) {
            Ok(true) => {
                // Of a status that nobody asked for there is nothing to tell.
                let _ = self.reap();
            }
            // Frozen: cleaning up its cgroups thaws it, and it dies.
            other => tracing::error!(
                pid = self.host_pid,
                ?other,
                "a killed container does not end"
            ),
        }
    }
}

/// What the caller gives a launch: the parts of [`Attachments`] that it knows.
#[derive(Debug)]
pub struct Handover {
    /// Standard input, output and error of the workload.
    pub stdio: [OwnedFd; 3],
    /// An empty directory of the host for the root mount.
    pub mount_point: std::path::PathBuf,
    /// Our init, when the declaration asks for it.
    pub init: Option<OwnedFd>,
}

/// Clones the container's process and sets it up as far as the word to execute.
///
/// # Errors
/// The first thing that failed; the child is dead and reaped then, and the cgroups are as they were.
pub fn prepare(
    declaration: &Declaration,
    info: ContainerLaunchInfo,
    handover: Handover,
) -> Result<Waiting> {
    let flags = namespace_flags(&info.namespaces);
    let cgroup = info.cgroup_v2.as_deref().map(open_directory).transpose()?;
    check_profile(&info, handover.init.is_some())?;
    let (socket, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|source| Error::Channel {
        action: "make a socket pair",
        source: source.into(),
    })?;
    let Handover {
        stdio,
        mount_point,
        init,
    } = handover;
    let attachments = Attachments {
        stdio,
        mount_point,
        init,
        socket: theirs.as_raw_fd(),
    };
    let steps = plan::steps(declaration, info, attachments)?;

    let clone_error = |errno: Errno| Error::Clone {
        source: errno.into(),
    };
    let mask = sys::block_signals().map_err(clone_error)?;
    let cloned = sys::clone_process(flags, cgroup.as_ref().map(AsFd::as_fd));
    let pidfd = match cloned {
        Ok(sys::Cloned::Child) => {
            // Else the child would hold the launcher's end open itself and never read end-of-file. It cannot fail.
            let _ = sys::close_in_child(socket.as_fd());
            child::run(&steps, theirs.as_fd())
        }
        Ok(sys::Cloned::Parent { pidfd }) => Ok(pidfd),
        Err(errno) => Err(clone_error(errno)),
    };
    sys::restore_signals(mask).map_err(clone_error)?;
    drop(theirs);
    let pidfd = pidfd?;
    let mut process = Process {
        pidfd,
        socket,
        host_pid: 0,
        reaped: Cell::new(false),
    };
    // Its end takes the process with it, wherever we leave from here on.
    process.host_pid = host_pid(&process.pidfd).map_err(|source| Error::Channel {
        action: "learn the container's pid",
        source,
    })?;
    let waiting = Waiting { process, steps };
    match waiting.process.receive() {
        Ok(Some(Record::Ready)) => Ok(waiting),
        other => Err(waiting.abandon(other)),
    }
}

impl Waiting {
    /// The container's process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Lets the workload be executed and waits until it was.
    ///
    /// # Errors
    /// When it could not be; the process is dead and reaped then.
    pub fn start(self) -> Result<Process> {
        if let Err(errno) = rustix::io::write(&self.process.socket, b"!") {
            return Err(self.abandon(Err(errno.into())));
        }
        let with_init = self
            .steps
            .iter()
            .any(|step| matches!(step, Step::AwaitStart { init: true }));
        match self.process.receive() {
            Ok(Some(Record::Executed)) => Ok(self.process),
            // The socket closes on execve(2).
            Ok(None) if !with_init => Ok(self.process),
            other => Err(self.abandon(other)),
        }
    }

    /// Ends the child and says what went wrong.
    fn abandon(self, answer: io::Result<Option<Record>>) -> Error {
        self.process.kill();
        // It is dead or dying: this waits for the kernel only.
        let reaped = self.process.reap();
        match answer {
            Ok(Some(Record::StepFailed { index, errno })) => {
                let step = self.steps.get(usize::from(index));
                Error::Step {
                    step: step.map(ToString::to_string).unwrap_or_default(),
                    index: usize::from(index) + 1,
                    count: self.steps.len(),
                    source: io::Error::from_raw_os_error(errno.into()),
                }
            }
            Ok(Some(Record::ExecuteFailed(errno))) => Error::Execute {
                program: self.program(),
                source: io::Error::from_raw_os_error(errno),
            },
            Err(source) => Error::Channel {
                action: "hear from the container's process",
                source,
            },
            Ok(_) => match reaped {
                Err(source) => Error::Channel {
                    action: "wait for the container's process",
                    source,
                },
                Ok(_) => Error::Died,
            },
        }
    }

    fn program(&self) -> String {
        let skip = |execute: &step::Execute| if execute.init.is_some() { 2 } else { 0 };
        self.steps
            .iter()
            .find_map(|step| match step {
                Step::Execute(execute) => execute.arguments.strings().get(skip(execute)),
                _ => None,
            })
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

impl Process {
    /// The next record; `None` at the end of the socket.
    fn receive(&self) -> io::Result<Option<Record>> {
        let mut bytes = [0; Record::SIZE];
        loop {
            match rustix::io::read(&self.socket, &mut bytes) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(None),
                Ok(length) => {
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

    /// The wait status that init reported, when it did. Never blocks.
    pub fn reported_status(&self) -> Option<i32> {
        let mut bytes = [0; Record::SIZE];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        let mut status = None;
        while let Ok((length, _)) = rustix::net::recv(&self.socket, &mut bytes, flags) {
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
                    self.reaped.set(true);
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

/// The flags of clone3(2). The cgroup namespace is left to the child: its root is where one is when it is made.
fn namespace_flags(namespaces: &[LinuxNamespaceType]) -> u64 {
    let flag = |kind: &LinuxNamespaceType| match kind {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Cgroup | LinuxNamespaceType::Time => 0,
    };
    namespaces
        .iter()
        .map(|kind| flag(kind) as u64)
        .fold(0, |all, one| all | one)
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|source| Error::Open {
        path: path.to_owned(),
        source: source.into(),
    })
}

/// What a task needs after its filter is loaded: with no_new_privs only execve and what init does; without, also the
/// change of ids and capabilities.
fn check_profile(info: &ContainerLaunchInfo, init: bool) -> Result<()> {
    const INIT: [&str; 10] = [
        "execveat",
        "execve",
        "prctl",
        "fcntl",
        "rt_sigprocmask",
        "vfork",
        "write",
        "rt_sigtimedwait",
        "wait4",
        "kill",
    ];
    const LATE: [&str; 12] = [
        "prctl",
        "setgroups",
        "setresgid",
        "setresuid",
        "capset",
        "chdir",
        "getcwd",
        "close_range",
        "fcntl",
        "write",
        "read",
        "rt_sigprocmask",
    ];
    let Some(filter) = &info.seccomp else {
        return Ok(());
    };
    let mut needed = vec!["execve", "exit_group", "write"];
    needed.extend(if init { &INIT[..] } else { &[] });
    needed.extend(if info.no_new_privileges {
        &[]
    } else {
        &LATE[..]
    });
    let missing = tepui_isolators::linux::seccomp::missing_calls(filter, &needed);
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::ProfileTooStrict {
            calls: missing.join(", "),
        }),
    }
}

/// The pid that the mounted /proc shows for a process descriptor: the launcher has a pid namespace of its own and knows
/// its children by other numbers (pidfd's fdinfo, Linux 5.4).
fn host_pid(pidfd: &OwnedFd) -> io::Result<u32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    // -1 or 0: it is gone, or not in the namespace of this /proc.
    let pid = line
        .and_then(|pid| pid.trim().parse().ok())
        .filter(|pid| *pid > 0);
    pid.ok_or_else(|| io::ErrorKind::NotFound.into())
}
