//! The launcher's loop: requests in, containers started and watched, replies out.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::Duration;

use oci_spec::runtime::ContainerState;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tepui_isolators::{ContainerId, Declaration, Isolator, LimitEvent, Watch, registry};

use super::protocol::{self, Launch, Reply, Request};
use crate::container::StateDirectory;
use crate::init;
use crate::launch::{self, Handover, Patient, Process, sys};
use crate::{pidfd, report};

/// First argument of the launcher: how `main` knows that it is one.
pub const PROGRAM_NAME: &CStr = c"tepui-launcher";

/// The socket to the executor.
pub(super) const SOCKET: RawFd = 3;

/// The event of the socket; containers use their number with a kind in the low bits.
const SOCKET_EVENT: u64 = u64::MAX;

/// How long a killed container may take to be gone before more is done about it.
const END: Duration = Duration::from_secs(1);

/// Low bits of an event: 0 is the pidfd, the others are watches.
const KIND_BITS: u32 = 8;

struct Container {
    process: Process,
    declaration: Declaration,
    directory: StateDirectory,
    watches: Vec<Box<dyn Watch>>,
    limit: Option<LimitEvent>,
    id: ContainerId,
}

struct Server {
    socket: OwnedFd,
    events: OwnedFd,
    /// Our init, made once for all containers.
    init: Option<OwnedFd>,
    containers: HashMap<u64, Container>,
}

/// Serves one executor until it is gone; then kills what is left, releases it and returns.
///
/// # Errors
/// When the launcher's own descriptors cannot be made or polled.
pub fn run() -> io::Result<()> {
    let socket = sys::adopt_descriptor(SOCKET);
    sys::close_on_exec_from(SOCKET as u32)?;
    let events = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &events,
        &socket,
        EventData::new_u64(SOCKET_EVENT),
        EventFlags::IN,
    )?;
    let mut server = Server {
        socket,
        events,
        init: None,
        containers: HashMap::new(),
    };
    let result = server.serve();
    server.end_all();
    result
}

impl Server {
    fn serve(&mut self) -> io::Result<()> {
        let mut ready = Vec::with_capacity(64);
        loop {
            ready.clear();
            match epoll::wait(
                &self.events,
                rustix::buffer::spare_capacity(&mut ready),
                None,
            ) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            for event in &ready {
                let data = event.data.u64();
                if data == SOCKET_EVENT {
                    if !self.take_request()? {
                        return Ok(());
                    }
                    continue;
                }
                let (number, kind) = (data >> KIND_BITS, data & ((1 << KIND_BITS) - 1));
                match kind {
                    0 => self.container_ended(number)?,
                    watch => self.limit_reached(number, watch as usize - 1),
                }
            }
        }
    }

    /// Handles one request; false when the executor is gone.
    fn take_request(&mut self) -> io::Result<bool> {
        let message = match protocol::receive::<Request>(self.socket.as_fd(), RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            other => other?,
        };
        let Some((request, descriptors)) = message else {
            return Ok(false);
        };
        match request {
            Request::Launch { number } => {
                let reply = match self.launch(number, descriptors) {
                    Ok(pid) => Reply::Running { number, pid },
                    Err(error) => Reply::failed(number, report::chain(&error), error.exit_status()),
                };
                self.reply(&reply)?;
            }
            Request::Signal { number, signal } => {
                if let Some(container) = self.containers.get(&number) {
                    container.process.signal(signal);
                }
            }
            Request::Kill { number } => {
                if let Some(container) = self.containers.get(&number) {
                    container.process.kill();
                }
            }
        }
        Ok(true)
    }

    fn reply(&self, reply: &Reply) -> io::Result<()> {
        match protocol::send(self.socket.as_fd(), reply, &[]) {
            // The executor is gone; the next event says so.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    fn launch(&mut self, number: u64, mut descriptors: Vec<OwnedFd>) -> Result<u32, LaunchError> {
        if descriptors.len() != 4 {
            return Err(LaunchError::Request {
                source: io::ErrorKind::InvalidData.into(),
            });
        }
        let stdio: Vec<OwnedFd> = descriptors.drain(1..).collect();
        let stdio = stdio.try_into().expect("three of four are left");
        let memory = descriptors.remove(0);
        let launch: Launch =
            protocol::from_memory(memory).map_err(|source| LaunchError::Request { source })?;
        let Launch {
            id,
            declaration,
            state_dir,
            isolation,
        } = launch;

        let isolators = registry::select(isolation.as_deref())?;
        let mut directory = StateDirectory::create(&state_dir, &id, &declaration)?;
        let started = self.start(&id, &declaration, &isolators, &mut directory, stdio);
        let started = started.and_then(|(process, watches)| {
            // On failure the process ends with what holds it.
            self.poll(number, &process, &watches)
                .map_err(|source| LaunchError::Poll { source })?;
            launch::at("polled")?;
            Ok((process, watches))
        });
        match started {
            Ok((process, watches)) => {
                let pid = process.host_pid;
                let container = Container {
                    process,
                    declaration,
                    directory,
                    watches,
                    limit: None,
                    id,
                };
                self.containers.insert(number, container);
                Ok(pid)
            }
            Err(error) => {
                free(&isolators, &id, &declaration, directory);
                Err(error)
            }
        }
    }

    fn start(
        &mut self,
        id: &ContainerId,
        declaration: &Declaration,
        isolators: &[Box<dyn Isolator>],
        directory: &mut StateDirectory,
        stdio: [OwnedFd; 3],
    ) -> Result<(Process, Vec<Box<dyn Watch>>), LaunchError> {
        launch::at("entered")?;
        let init = match declaration.init {
            true => Some(self.init()?),
            false => None,
        };
        let info = registry::prepare(isolators, id, declaration)?;
        let mut watches = Vec::new();
        for isolator in isolators {
            watches.extend(isolator.watch(id, declaration)?);
        }
        let mount_point = directory.mount_point();
        let mut handover = Handover::new(stdio, mount_point.clone(), init);
        handover
            .state
            .set_version(declaration.spec.version().clone())
            .set_id(id.to_string())
            .set_status(ContainerState::Creating)
            .set_bundle(mount_point.parent().unwrap_or(&mount_point).to_owned());
        let waiting = launch::prepare(declaration, info, handover, &mut Patient)?;
        // Before the workload runs: a crash from here on finds the process by its name.
        directory.set_running(waiting.process().host_pid)?;
        launch::at("written down")?;
        let process = waiting.start(&mut Patient)?;
        launch::at("started")?;
        Ok((process, watches))
    }

    fn init(&mut self) -> Result<OwnedFd, LaunchError> {
        let copied = |file: &OwnedFd| {
            file.try_clone()
                .map_err(|source| LaunchError::Init { source })
        };
        if let Some(file) = &self.init {
            return copied(file);
        }
        let file = init::sealed().map_err(|source| LaunchError::Init { source })?;
        copied(self.init.insert(file))
    }

    fn poll(&self, number: u64, process: &Process, watches: &[Box<dyn Watch>]) -> io::Result<()> {
        let data = |kind: u64| EventData::new_u64(number << KIND_BITS | kind);
        epoll::add(&self.events, &process.pidfd, data(0), EventFlags::IN)?;
        for (index, watch) in watches.iter().enumerate() {
            let flags = if watch.is_priority() {
                EventFlags::PRI
            } else {
                EventFlags::IN
            };
            epoll::add(
                &self.events,
                watch.descriptor(),
                data(index as u64 + 1),
                flags,
            )?;
        }
        Ok(())
    }

    /// A limit of the container itself ends it: half of a task is of no use to anybody.
    fn limit_reached(&mut self, number: u64, watch: usize) {
        let Some(container) = self.containers.get_mut(&number) else {
            return;
        };
        let Some(watch) = container.watches.get_mut(watch) else {
            return;
        };
        match watch.check() {
            Ok(Some(event)) => {
                // Its own limit says more than what happened around it.
                if matches!(event, LimitEvent::Memory { .. }) {
                    container.process.kill();
                    container.limit = Some(event);
                } else {
                    container.limit.get_or_insert(event);
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(id = %container.id, error = report::chain(&error), "could not read a limit");
                // It would be ready again and again; what it counted is still read at the end.
                if let Err(errno) = epoll::delete(&self.events, watch.descriptor()) {
                    tracing::error!(id = %container.id, %errno, "could not stop watching it");
                }
            }
        }
    }

    fn container_ended(&mut self, number: u64) -> io::Result<()> {
        let Some(container) = self.containers.remove(&number) else {
            return Ok(());
        };
        let (status, limit) = release(container);
        self.reply(&Reply::Exited {
            number,
            status,
            limit,
        })
    }

    /// The executor is gone: its tasks go too.
    fn end_all(&mut self) {
        for container in self.containers.values() {
            container.process.kill();
        }
        for (_, container) in self.containers.drain() {
            if !ended(&container) {
                // Frozen, most likely: SIGKILL reaches it only when its cgroup is thawed, which cleaning up does.
                if let Err(error) =
                    registry::cleanup(&registry::all(), &container.id, &container.declaration)
                {
                    tracing::error!(id = %container.id, error = report::chain(&error), "could not end it");
                }
                if !ended(&container) {
                    // The end of this process is the end of its pid namespace, as soon as the kernel lets go.
                    continue;
                }
            }
            release(container);
        }
    }
}

fn ended(container: &Container) -> bool {
    pidfd::ended_within(&container.process.pidfd, END).unwrap_or_else(|error| {
        tracing::error!(id = %container.id, %error, "could not wait for its end");
        false
    })
}

/// Takes the status of a container whose first process has ended, and frees all that it had.
fn release(mut container: Container) -> (i32, Option<LimitEvent>) {
    let reported = container.process.reported_status();
    let reaped = container.process.reap();
    let status = reported.or(reaped.ok()).unwrap_or(libc::SIGKILL);
    let mut limit = container.limit.take();
    for watch in &mut container.watches {
        match watch.at_exit() {
            // Its own limit says more than what happened around it.
            Ok(Some(event @ LimitEvent::Memory { .. })) => limit = Some(event),
            Ok(event) => limit = limit.or(event),
            Err(error) => {
                tracing::error!(id = %container.id, error = report::chain(&error), "could not read a limit")
            }
        }
    }
    drop(container.watches);
    free(
        &registry::all(),
        &container.id,
        &container.declaration,
        container.directory,
    );
    (status, limit)
}

/// Releases what a container had by name, and its state directory last: while anything is left the next start must find it.
fn free(
    isolators: &[Box<dyn Isolator>],
    id: &ContainerId,
    declaration: &Declaration,
    directory: StateDirectory,
) {
    match registry::cleanup(isolators, id, declaration) {
        Ok(()) => {
            if let Err(error) = directory.remove() {
                tracing::error!(%id, error = report::chain(&error), "could not remove its state");
            }
        }
        Err(error) => {
            tracing::error!(%id, error = report::chain(&error), "could not release all of it")
        }
    }
}

/// A container could not be started.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("could not read the request to launch")]
    Request { source: io::Error },
    #[error("could not watch the container")]
    Poll { source: io::Error },
    #[error("could not make the container's init")]
    Init { source: io::Error },
    #[error(transparent)]
    Isolator(#[from] tepui_isolators::Error),
    #[error(transparent)]
    State(#[from] crate::container::Error),
    #[error(transparent)]
    Launch(#[from] launch::Error),
}

impl LaunchError {
    fn exit_status(&self) -> i32 {
        match self {
            Self::Launch(error) => error.exit_status(),
            _ => 125,
        }
    }
}
