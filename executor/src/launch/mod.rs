//! How a container's first process comes to be: the parent's side, top to bottom.
//!
//! The only place that clones. It runs in the launcher process, which is single-threaded and small, so that a clone is
//! cheap and copies nothing of value.

mod child;
mod clone;
pub mod error;
mod id_maps;
pub mod plan;
pub mod process;
pub mod report;
pub mod start;
pub mod step;
pub mod sys;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tepui_isolators::launch_info::IdMaps;
use tepui_isolators::{ContainerLaunchInfo, Declaration};

pub use error::{Error, Result};
use plan::Attachments;
pub use process::Process;
use report::{Point, Record};
use step::{HookStep, Step};

/// A container's process that is set up and waits for the word to execute.
#[derive(Debug)]
pub struct Waiting {
    process: Process,
    steps: Vec<Step>,
    terminal: Option<OwnedFd>,
}

/// Where the workload's standard input, output and error lead.
#[derive(Debug)]
pub enum Stdio {
    /// To these.
    Descriptors([OwnedFd; 3]),
    /// To a terminal in the container's own devpts, whose other end the caller gets.
    Terminal(Terminal),
}

/// A terminal of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Rows and columns, when they are known.
    pub size: Option<(u16, u16)>,
    /// Whether it becomes `/dev/console` too.
    pub is_console: bool,
}

/// What the caller gives a launch: the parts of [`Attachments`] that it knows.
#[derive(Debug)]
pub struct Handover {
    /// Standard input, output and error of the workload.
    pub stdio: Stdio,
    /// An empty directory of the host for the root mount.
    pub mount_point: PathBuf,
    /// Our init, when the declaration asks for it.
    pub init: Option<OwnedFd>,
    /// How many descriptors after standard error the workload inherits from us.
    pub preserved: u32,
    /// A listening socket where the word to start comes from when this process is gone ([`start`]); without it the word
    /// comes from [`Waiting::start`].
    pub start: Option<OwnedFd>,
    /// Hooks that run inside the container when it is mounted and before its root is changed (`createContainer`).
    pub create_hooks: Vec<HookStep>,
    /// Hooks that run inside the container right before the workload (`startContainer`).
    pub start_hooks: Vec<HookStep>,
    /// Whether `when_mounted` is called at all: it costs a round trip.
    pub waits_when_mounted: bool,
}

impl Handover {
    /// One without terminal, hooks and start socket.
    pub fn new(stdio: [OwnedFd; 3], mount_point: PathBuf, init: Option<OwnedFd>) -> Self {
        Self {
            stdio: Stdio::Descriptors(stdio),
            mount_point,
            init,
            preserved: 0,
            start: None,
            create_hooks: Vec::new(),
            start_hooks: Vec::new(),
            waits_when_mounted: false,
        }
    }
}

/// What the caller does while the container's process waits for it; an error ends the launch.
pub type WhenMounted<'a> =
    &'a mut dyn FnMut(
        &Process,
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Clones the container's process and sets it up as far as the word to execute.
///
/// # Errors
/// The first thing that failed; the child is dead and reaped then, and the cgroups are as they were.
pub fn prepare(
    declaration: &Declaration,
    info: ContainerLaunchInfo,
    handover: Handover,
    when_mounted: WhenMounted<'_>,
) -> Result<Waiting> {
    let flags = namespace_flags(&info.namespaces);
    let cgroup = info.cgroup_v2.as_deref().map(open_directory).transpose()?;
    check_profile(&info, handover.init.is_some())?;
    let joins = open_namespaces(&info.join_namespaces)?;
    let id_maps = info.id_maps.clone();
    let channel = |source: Errno| Error::Channel {
        action: "make a socket pair",
        source: source.into(),
    };
    let flags_of_pair = SocketFlags::CLOEXEC;
    let (socket, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags_of_pair,
        None,
    )
    .map_err(channel)?;
    let attachments = Attachments {
        handover,
        socket: theirs.as_raw_fd(),
    };
    let steps = plan::steps(declaration, info, attachments)?;

    let clone_error = |errno: Errno| Error::Clone {
        source: errno.into(),
    };
    let mask = sys::block_signals().map_err(clone_error)?;
    let cgroup = cgroup.as_ref().map(AsFd::as_fd);
    let cloned = clone::clone_container(
        &steps,
        flags,
        cgroup,
        &joins,
        socket.as_fd(),
        theirs.as_fd(),
    );
    sys::restore_signals(mask).map_err(clone_error)?;
    drop(theirs);
    let process = Process::new(cloned?, socket).map_err(|source| Error::Channel {
        action: "learn the container's pid",
        source,
    })?;
    let waiting = Waiting {
        process,
        steps,
        terminal: None,
    };
    waiting.meet(id_maps.as_ref(), when_mounted)
}

impl Waiting {
    /// Answers each rendezvous until the child has nothing left to do but execute.
    fn meet(mut self, id_maps: Option<&IdMaps>, when_mounted: WhenMounted<'_>) -> Result<Self> {
        loop {
            let done = match self.process.receive() {
                Ok(Some(Record::Ready)) => return Ok(self),
                Ok(Some(Record::Reached(Point::IdMaps))) => match id_maps {
                    Some(maps) => id_maps::write(self.process.host_pid, maps),
                    None => Ok(()),
                },
                Ok(Some(Record::Reached(Point::Mounted))) => {
                    when_mounted(&self.process).map_err(Error::Caller)
                }
                Ok(Some(Record::Terminal)) => {
                    self.terminal = self.process.take_received();
                    continue;
                }
                other => return Err(self.abandon(other)),
            };
            // Its end takes the process with it.
            done?;
            if let Err(errno) = self.process.answer() {
                return Err(self.abandon(Err(errno.into())));
            }
        }
    }

    /// The container's process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Our end of the container's terminal.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Leaves the process waiting for a word through its start socket, and lets go of it.
    ///
    /// # Errors
    /// When it has ended meanwhile.
    pub fn leave(self) -> Result<()> {
        if let Err(errno) = self.process.answer() {
            return Err(self.abandon(Err(errno.into())));
        }
        self.process.release();
        Ok(())
    }

    /// Lets the workload be executed and waits until it was.
    ///
    /// # Errors
    /// When it could not be; the process is dead and reaped then.
    pub fn start(self) -> Result<Process> {
        if let Err(errno) = self.process.answer() {
            return Err(self.abandon(Err(errno.into())));
        }
        let with_init = self
            .steps
            .iter()
            .any(|step| matches!(step, Step::AwaitStart { init: true, .. }));
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

/// Opens the namespaces to enter, before anything of them is entered.
fn open_namespaces(
    namespaces: &[(LinuxNamespaceType, PathBuf)],
) -> Result<Vec<(LinuxNamespaceType, OwnedFd)>> {
    let open = |(kind, path): &(LinuxNamespaceType, PathBuf)| {
        let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let namespace = opened.map_err(|source| Error::Open {
            path: path.clone(),
            source: source.into(),
        })?;
        Ok((*kind, namespace))
    };
    namespaces.iter().map(open).collect()
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
