//! How a container's first process comes to be: the parent's side, top to bottom.
//!
//! The only place that clones. It runs in the launcher process, which is single-threaded and small, so that a clone is
//! cheap and copies nothing of value.

mod child;
mod clone;
pub mod error;
mod id_maps;
pub mod notify;
pub mod plan;
pub mod process;
pub mod report;
pub mod start;
pub mod step;
pub mod sys;
pub mod tree;
pub mod user_namespace;

use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, State};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tepui_isolators::launch_info::IdMaps;
use tepui_isolators::{ContainerLaunchInfo, Declaration, fault};

pub use error::{Error, Result};
use notify::ListenerRequest;
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
    listener: Option<ListenerRequest>,
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
    /// Whether [`Attendant::mounted`] is called at all: it costs a round trip.
    pub waits_when_mounted: bool,
    /// What the agent of a seccomp filter with a listener is told of the container.
    pub state: State,
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
            state: State::default(),
        }
    }
}

/// The caller of a launch, while the container's process waits or takes its time.
pub trait Attendant {
    /// Everything is mounted and the process waits: hooks of the host run now. An error ends the launch.
    ///
    /// # Errors
    /// Whatever the caller could not do.
    fn mounted(&mut self, process: &Process) -> std::result::Result<(), Failure>;

    /// Nothing was heard for [`PATIENCE`]. An error ends the launch, as when the container is frozen.
    ///
    /// # Errors
    /// Why it is not worth waiting on.
    fn still_waiting(&mut self, process: &Process) -> std::result::Result<(), Failure>;
}

/// Why a caller ends a launch.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long a launch waits for the next word of the container's process before it asks the caller.
pub const PATIENCE: Duration = Duration::from_millis(400);

/// An attendant with nothing to do, who waits as long as it takes.
#[derive(Debug, Clone, Copy)]
pub struct Patient;

impl Attendant for Patient {
    fn mounted(&mut self, _: &Process) -> std::result::Result<(), Failure> {
        Ok(())
    }

    fn still_waiting(&mut self, _: &Process) -> std::result::Result<(), Failure> {
        Ok(())
    }
}

/// Clones the container's process and sets it up as far as the word to execute.
///
/// # Errors
/// The first thing that failed; the child is dead and reaped then, and the cgroups are as they were.
pub fn prepare(
    declaration: &Declaration,
    info: ContainerLaunchInfo,
    handover: Handover,
    attendant: &mut dyn Attendant,
) -> Result<Waiting> {
    let flags = namespace_flags(&info.namespaces);
    let cgroup = info.cgroup_v2.as_deref().map(open_directory).transpose()?;
    // The cgroup namespace is entered by the child, after the move into the cgroups.
    let at_clone = |(kind, _): &&(LinuxNamespaceType, PathBuf)| *kind != LinuxNamespaceType::Cgroup;
    let joins = open_namespaces(info.join_namespaces.iter().filter(at_clone))?;
    let id_maps = info.id_maps.clone();
    let listener = info
        .seccomp
        .as_ref()
        .and_then(|filter| filter.listener.clone());
    let state = handover.state.clone();
    let listener = listener.map(|listener| ListenerRequest { listener, state });
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
    let oom_score = info.oom_score_adj;
    let time_offsets = info.time_offsets.clone();
    let steps = plan::steps(declaration, info, attachments)?;
    child::seccomp::check(&steps)?;
    fault::arm(&steps);
    at("planned")?;

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
    at("cloned")?;
    if let Some(value) = oom_score {
        set_oom_score(&process, value)?;
    }
    at("oom score")?;
    let waiting = Waiting {
        process,
        steps,
        terminal: None,
        listener,
    };
    waiting.meet(id_maps.as_ref(), &time_offsets, attendant)
}

impl Waiting {
    /// Answers each rendezvous until the child has nothing left to do but execute.
    fn meet(
        mut self,
        id_maps: Option<&IdMaps>,
        time_offsets: &[CString],
        attendant: &mut dyn Attendant,
    ) -> Result<Self> {
        loop {
            let heard = match self.hear(attendant) {
                Ok(heard) => heard,
                Err(error) => return Err(self.give_up(error)),
            };
            let done = match heard {
                Some(Record::Ready) => return Ok(self),
                Some(Record::Reached(Point::IdMaps)) => match id_maps {
                    Some(maps) => id_maps::write(self.process.host_pid, maps),
                    None => Ok(()),
                },
                Some(Record::Reached(Point::TimeOffsets)) => {
                    set_clocks(&self.process, time_offsets)
                }
                Some(Record::Reached(Point::Mounted)) => {
                    attendant.mounted(&self.process).map_err(Error::Caller)
                }
                Some(Record::Terminal) => {
                    self.terminal = self.process.take_received();
                    if let Err(error) = at(Record::Terminal.name()) {
                        return Err(self.give_up(error));
                    }
                    continue;
                }
                Some(Record::Listener(number)) => self.deliver(number),
                other => return Err(self.abandon(other)),
            };
            let done = done.and_then(|()| at(heard.map(Record::name).unwrap_or_default()));
            if let Err(error) = done {
                return Err(self.give_up(error));
            }
            if let Err(errno) = self.process.answer() {
                return Err(self.give_up(unheard(errno.into())));
            }
        }
    }

    /// The next record, as long as the attendant has patience.
    fn hear(&self, attendant: &mut dyn Attendant) -> Result<Option<Record>> {
        loop {
            match self.process.receive_within(PATIENCE) {
                Ok(Some(heard)) => return Ok(heard),
                Ok(None) => attendant
                    .still_waiting(&self.process)
                    .map_err(Error::Caller)?,
                Err(source) => return Err(unheard(source)),
            }
        }
    }

    /// Hands the listener of the child's filter, its descriptor `number`, to the agent.
    fn deliver(&self, number: i32) -> Result<()> {
        match &self.listener {
            Some(request) => {
                let Process {
                    pidfd, host_pid, ..
                } = &self.process;
                notify::deliver(pidfd.as_fd(), *host_pid, number, request)
            }
            None => Err(Error::Died),
        }
    }

    /// The steps that follow the word to start, in words, and the number of the first: whoever says the word later has
    /// no plan to name them from.
    pub fn last_steps(&self) -> (usize, Vec<String>) {
        let wait = |step: &Step| matches!(step, Step::AwaitStart { .. });
        let first = self
            .steps
            .iter()
            .position(wait)
            .map_or(0, |index| index + 1);
        (
            first + 1,
            self.steps[first..]
                .iter()
                .map(ToString::to_string)
                .collect(),
        )
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
            return Err(self.give_up(unheard(errno.into())));
        }
        self.process.release();
        Ok(())
    }

    /// Lets the workload be executed and waits until it was.
    ///
    /// # Errors
    /// When it could not be; the process is dead and reaped then.
    pub fn start(self, attendant: &mut dyn Attendant) -> Result<Process> {
        if let Err(errno) = self.process.answer() {
            return Err(self.give_up(unheard(errno.into())));
        }
        let with_init = self
            .steps
            .iter()
            .any(|step| matches!(step, Step::AwaitStart { init: true, .. }));
        match self.hear(attendant) {
            Ok(Some(Record::Executed)) => Ok(self.let_go()),
            // The socket closes on execve(2).
            Ok(None) if !with_init => Ok(self.let_go()),
            Ok(other) => Err(self.abandon(other)),
            Err(error) => Err(self.give_up(error)),
        }
    }

    /// Closes what was opened for the launch.
    fn let_go(self) -> Process {
        let all = self.steps.into_iter().flat_map(Step::into_descriptors);
        sys::close_all(all.collect());
        self.process
    }

    /// Ends the child because of `error`.
    fn give_up(self, error: Error) -> Error {
        match error {
            Error::Caller(_) => self.process.leave_to_die(),
            _ => self.process.end(),
        }
        error
    }

    /// Ends the child and says what went wrong.
    fn abandon(self, answer: Option<Record>) -> Error {
        self.process.end();
        match answer {
            Some(Record::StepFailed { index, errno }) => {
                let step = self.steps.get(usize::from(index));
                Error::Step {
                    step: step.map(ToString::to_string).unwrap_or_default(),
                    index: usize::from(index) + 1,
                    count: self.steps.len(),
                    source: io::Error::from_raw_os_error(errno.into()),
                }
            }
            Some(Record::HookFailed {
                at_start,
                number,
                status,
            }) => Error::hook(at_start, number, status),
            Some(Record::ExecuteFailed(errno)) => Error::Execute {
                program: self.program(),
                source: io::Error::from_raw_os_error(errno),
            },
            _ => Error::Died,
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

/// A point where a test may want the launch to fail.
pub(crate) fn at(point: &str) -> Result<()> {
    fault::point(point).map_err(|source| Error::Channel {
        action: "go on with the launch",
        source,
    })
}

fn unheard(source: io::Error) -> Error {
    Error::Channel {
        action: "hear from the container's process",
        source,
    }
}

/// The parent does it: lowering it takes a capability over the host, which a process in a user namespace lacks.
fn set_oom_score(process: &Process, value: i32) -> Result<()> {
    let path = format!("/proc/{}/oom_score_adj", process.host_pid);
    std::fs::write(path, value.to_string()).map_err(|source| Error::OomScore { value, source })
}

/// The clocks of a time namespace that nobody is in yet, time_namespaces(7).
fn set_clocks(process: &Process, offsets: &[CString]) -> Result<()> {
    let path = PathBuf::from(format!("/proc/{}/timens_offsets", process.host_pid));
    let set = || {
        let mut file = std::fs::OpenOptions::new().write(true).open(&path)?;
        offsets
            .iter()
            .try_for_each(|line| file.write_all(line.to_bytes()))
    };
    set().map_err(|source| Error::Clocks { path, source })
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
fn open_namespaces<'a>(
    namespaces: impl Iterator<Item = &'a (LinuxNamespaceType, PathBuf)>,
) -> Result<Vec<(LinuxNamespaceType, OwnedFd)>> {
    let open = |(kind, path): &(LinuxNamespaceType, PathBuf)| {
        let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let namespace = opened.map_err(|source| Error::Open {
            path: path.clone(),
            source: source.into(),
        })?;
        Ok((*kind, namespace))
    };
    namespaces.map(open).collect()
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
