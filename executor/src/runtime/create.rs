//! `create`: a container that is set up and waits for `start`; and what `run` shares with it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{ContainerState, Hook};
use tepui_isolators::cgroups::group::Group;
use tepui_isolators::{ContainerId, Declaration, registry};

use super::arguments::{self, Create};
use super::bundle::Bundle;
use super::command_line::Globals;
use super::error::{Error, Result};
use super::store::{Entry, LastSteps, NewContainer, Store};
use super::{console, descriptors, home, hooks};
use crate::launch::step::HookStep;
use crate::launch::{self, Attendant, Handover, Process, Stdio, Terminal, Waiting, start};
use crate::seal::{self, Method};

/// The name of the start socket in the state directory.
pub const START_SOCKET: &str = "start.sock";

/// Makes a container, and returns while it waits for `start`.
///
/// # Errors
/// What cannot be honoured or what failed; nothing of the container is left then.
pub fn run(globals: &Globals, arguments: Create) -> Result<u8> {
    seal::protect_own_program(Method::View)?;
    let made = Made::new(globals, &arguments.id, &arguments.bundle, Lifetime::Created)?;
    made.finish(|made| {
        let Some(waiting) = made.waiting.take() else {
            return Ok(0);
        };
        waiting.leave()?;
        Error::at("left")?;
        Ok(0)
    })
}

/// Who starts a container and who waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Another command starts it.
    Created,
    /// We start it, and leave it.
    Detached,
    /// We start it, and wait for its end.
    Foreground,
}

/// A container that waits for its start, with all that is to be undone when that fails.
#[derive(Debug)]
pub struct Made {
    /// Its state.
    pub entry: Entry,
    /// What was asked for.
    pub declaration: Declaration,
    /// The process; taken by whoever starts it.
    pub waiting: Option<Waiting>,
    /// Our end of its terminal, where it was not sent to a socket.
    pub terminal: Option<OwnedFd>,
}

impl Made {
    /// Makes a container of a bundle, as far as the word to start.
    ///
    /// # Errors
    /// See [`run`].
    pub fn new(
        globals: &Globals,
        id: &str,
        arguments: &arguments::Bundle,
        lifetime: Lifetime,
    ) -> Result<Self> {
        let store = Store::open(&globals.root);
        if globals.systemd_cgroup {
            return Err(Error::refused(
                "--systemd-cgroup: this version makes cgroups itself; leave it out",
            ));
        }
        let id: ContainerId = id.parse().map_err(super::store::Error::from)?;
        let here = PathBuf::from(".");
        let bundle = Bundle::load(arguments.bundle.as_ref().unwrap_or(&here))?;
        let mut declaration = bundle.declaration(&id)?;
        declaration.keep_keyring = arguments.no_new_keyring;
        // What an `exec` starts from: its user has another home.
        let declared = declaration.clone();
        let process = declaration.spec.process_mut().as_mut();
        let process = process.ok_or_else(|| Error::bundle("process property must not be empty"))?;
        console::check(
            process.terminal().unwrap_or(false),
            lifetime != Lifetime::Foreground,
            arguments.console_socket.as_deref(),
        )?;
        let passed = descriptors::passed(arguments.preserve_fds)?;
        home::complete_environment(process, &passed, Some(&bundle.rootfs))?;
        // Before anything is ours: what is undone later ends whatever is in these cgroups.
        refuse_foreign_cgroup(&id, &declaration)?;
        Error::at("understood")?;

        let entry = store.create(
            &id,
            NewContainer {
                bundle: bundle.path,
                rootfs: bundle.rootfs,
                declaration: declared,
                no_new_keyring: arguments.no_new_keyring,
                systemd_cgroup: globals.systemd_cgroup,
            },
        )?;
        let mut made = Self {
            entry,
            declaration,
            waiting: None,
            terminal: None,
        };
        match made.set_up(arguments, lifetime, passed.count) {
            Ok(()) => Ok(made),
            Err(error) => Err(made.undo(error)),
        }
    }

    fn set_up(
        &mut self,
        arguments: &arguments::Bundle,
        lifetime: Lifetime,
        preserved: u32,
    ) -> Result<()> {
        Error::at("entered")?;
        let id = self.entry.id().clone();
        let info = registry::prepare(&registry::all(), &id, &self.declaration)?;
        let handover = self.handover(lifetime, preserved)?;
        Error::at("handed over")?;
        let spec_hooks = self.declaration.spec.hooks().clone().unwrap_or_default();
        let prestart = spec_hooks.prestart().clone().unwrap_or_default();
        let (state_file, handover) = handover;
        let mut attendant = Maker {
            entry: &mut self.entry,
            state_file,
            prestart,
            create_runtime: spec_hooks.create_runtime().clone().unwrap_or_default(),
        };
        tracing::debug!("nsexec container setup: namespaces, cgroups, mounts");
        let mut waiting = launch::prepare(&self.declaration, info, handover, &mut attendant)?;
        let (first, steps) = waiting.last_steps();
        self.entry.state.last_steps = LastSteps { first, steps };
        self.entry.set_process(waiting.process().host_pid)?;
        tracing::debug!(
            "child process in init(): pid {}",
            waiting.process().host_pid
        );
        tracing::debug!("init: closing the pipe to signal completion");
        Error::at("written down")?;
        let terminal = waiting.take_terminal();
        let pidfd = &waiting.process().pidfd;
        if let Some(path) = &arguments.pidfd_socket {
            console::send(path, pidfd, "pidfd")?;
        }
        match (terminal, &arguments.console_socket) {
            (Some(terminal), Some(path)) => console::send(path, &terminal, "/dev/ptmx")?,
            (terminal, _) => self.terminal = terminal,
        }
        if let Some(path) = &arguments.pid_file {
            write_pid(path, waiting.process())?;
        }
        Error::at("made")?;
        self.waiting = Some(waiting);
        Ok(())
    }

    fn handover(&self, lifetime: Lifetime, preserved: u32) -> Result<(Option<OwnedFd>, Handover)> {
        let spec = &self.declaration.spec;
        let process = spec.process().as_ref();
        let is_terminal = process
            .and_then(|process| process.terminal())
            .unwrap_or(false);
        let stdio = match is_terminal {
            true => Stdio::Terminal(Terminal {
                size: process.and_then(console::size),
                is_console: true,
            }),
            false => Stdio::Descriptors(descriptors::standard()?),
        };
        let listener = match lifetime {
            Lifetime::Created => {
                let directory = &self.entry.directory;
                let listener = start::listen(directory, START_SOCKET);
                Some(listener.map_err(Error::file("listen in", directory))?)
            }
            Lifetime::Detached | Lifetime::Foreground => None,
        };
        let all = spec.hooks().clone().unwrap_or_default();
        let state = match hooks::all(&all).next() {
            Some(_) => Some(hooks::state_file()?),
            None => None,
        };
        let on_host = all.prestart().is_some() || all.create_runtime().is_some();
        let handover = Handover {
            stdio,
            mount_point: self.entry.state.rootfs.clone(),
            init: None,
            preserved,
            start: listener,
            create_hooks: hooks::inside(
                all.create_container().as_ref(),
                Some(&self.entry.state.bundle),
                state.as_ref(),
            )?,
            start_hooks: self.start_hooks(all.start_container().as_ref(), state.as_ref())?,
            waits_when_mounted: on_host || all.start_container().is_some(),
            state: hooks::spec_state(&self.entry.state, ContainerState::Creating),
        };
        Ok((state, handover))
    }

    /// The hooks inside that run last: without an environment of their own they have that of the program.
    fn start_hooks(
        &self,
        hooks: Option<&Vec<Hook>>,
        state: Option<&OwnedFd>,
    ) -> Result<Vec<HookStep>> {
        let mut hooks = hooks.cloned();
        let process = self.declaration.spec.process().as_ref();
        let environment = process.and_then(|process| process.env().clone());
        for hook in hooks
            .iter_mut()
            .flatten()
            .filter(|hook| hook.env().is_none())
        {
            hook.set_env(environment.clone());
        }
        hooks::inside(hooks.as_ref(), None, state)
    }

    /// Does the rest; when that fails the container is undone.
    ///
    /// # Errors
    /// That of `rest`.
    pub fn finish<T>(mut self, rest: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        match rest(&mut self) {
            Ok(done) => Ok(done),
            Err(error) => Err(self.undo(error)),
        }
    }

    /// Releases everything after `error`.
    pub(super) fn undo(mut self, error: Error) -> Error {
        // Its end kills the process.
        self.waiting = None;
        let id = self.entry.id().clone();
        let released = super::delete::release(self.entry, &self.declaration);
        if let Err(left) = released {
            tracing::error!(
                "container {id}: left behind after a failed start: {}",
                crate::report::chain(&left)
            );
        }
        error
    }
}

/// What happens while the container waits to be made.
struct Maker<'a> {
    entry: &'a mut Entry,
    state_file: Option<OwnedFd>,
    prestart: Vec<Hook>,
    create_runtime: Vec<Hook>,
}

impl Maker<'_> {
    fn run_hooks(&mut self, process: &Process) -> Result<()> {
        // A hook may ask for the state.
        self.entry.set_process(process.host_pid)?;
        let state = &self.entry.state;
        // The lifecycle is past its second step, the environment is there (runtime-spec runtime.md "State").
        let created = hooks::state(state, "created", process.host_pid);
        if let Some(file) = &self.state_file {
            hooks::fill(file, &created)?;
        }
        hooks::run_host("prestart", &self.prestart, &created, &state.bundle)?;
        Error::at("prestart")?;
        hooks::run_host(
            "createRuntime",
            &self.create_runtime,
            &created,
            &state.bundle,
        )
    }
}

impl Attendant for Maker<'_> {
    fn mounted(&mut self, process: &Process) -> Result<(), launch::Failure> {
        Ok(self.run_hooks(process)?)
    }

    fn still_waiting(&mut self, _: &Process) -> Result<(), launch::Failure> {
        refuse_frozen(self.entry)
    }
}

/// A start that waits for its container only while that is not frozen.
#[derive(Debug)]
pub struct UnlessFrozen<'a>(pub &'a Entry);

impl Attendant for UnlessFrozen<'_> {
    fn mounted(&mut self, _: &Process) -> Result<(), launch::Failure> {
        Ok(())
    }

    fn still_waiting(&mut self, _: &Process) -> Result<(), launch::Failure> {
        refuse_frozen(self.0)
    }
}

pub(super) fn refuse_frozen(entry: &Entry) -> Result<(), launch::Failure> {
    let group = Group::of(entry.id(), &entry.state.identity.cgroups)?;
    match group.is_frozen()? {
        true => Err("the container was paused meanwhile; resume it and try again".into()),
        false => Ok(()),
    }
}

/// A cgroup with somebody else's processes in it would be limited, frozen and killed with the container.
fn refuse_foreign_cgroup(id: &ContainerId, declaration: &Declaration) -> Result<()> {
    let group = Group::of(id, &declaration.cgroups)?;
    if group.exists() {
        if group.is_frozen()? {
            return Err(Error::refused("container's cgroup unexpectedly frozen"));
        }
        let count = group.processes(true)?.len();
        if count > 0 {
            return Err(Error::refused(format!(
                "container's cgroup is not empty: {count} process(es) found"
            )));
        }
    }
    Ok(())
}

/// Writes a pid file, complete from the start.
///
/// # Errors
/// When the disk refuses.
pub fn write_pid(path: &Path, process: &Process) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}"));
    let written = std::fs::write(&new, process.host_pid.to_string())
        .and_then(|()| std::fs::rename(&new, path));
    written.map_err(Error::file("write the pid file", path))
}
