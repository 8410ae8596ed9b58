//! The containers of this process: prepared here, started by the launcher, their ends passed on.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};
use rustix::net::RecvFlags;
use tepui_isolators::ContainerId;
use tepui_oci::Store;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, JoinSet};

use super::request::{PrepareError, Prepared, Request};
use super::{ContainerEvent, Containers};
use crate::launcher::handle::{Launcher, StartError};
use crate::launcher::protocol::{self, Launch, Reply};
use crate::{container, report};

/// Where containers live on this node.
#[derive(Debug, Clone)]
pub struct Place {
    /// State directories.
    pub state_dir: PathBuf,
    /// Isolators, comma separated; all of them when missing.
    pub isolation: Option<String>,
}

/// One container between `launch` and its last event.
#[derive(Debug)]
struct Entry {
    key: String,
    id: ContainerId,
    /// While it is being prepared.
    preparing: Option<AbortHandle>,
    stop_signal: i32,
}

type Outcome = (u64, Result<Prepared, PrepareError>);

/// All containers of this process.
#[derive(Debug)]
pub struct Supervisor {
    launcher: AsyncFd<Launcher>,
    store: Arc<Store>,
    place: Place,
    numbers: u64,
    entries: HashMap<u64, Entry>,
    numbers_by_key: HashMap<String, u64>,
    preparing: JoinSet<Outcome>,
    events: VecDeque<(String, ContainerEvent)>,
    /// Exit status of the last launch that failed, for a command line.
    pub failure_status: i32,
}

impl Supervisor {
    /// Takes over a launcher. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(launcher: Launcher, store: Store, place: Place) -> Result<Self, StartError> {
        Ok(Self {
            launcher: launcher.watched()?,
            store: Arc::new(store),
            place,
            numbers: 0,
            entries: HashMap::new(),
            numbers_by_key: HashMap::new(),
            preparing: JoinSet::new(),
            events: VecDeque::new(),
            failure_status: 125,
        })
    }

    fn number_of(&self, key: &str) -> Option<u64> {
        self.numbers_by_key.get(key).copied()
    }

    fn end(&mut self, number: u64, event: ContainerEvent) {
        if let Some(entry) = self.entries.remove(&number) {
            self.numbers_by_key.remove(&entry.key);
            self.events.push_back((entry.key, event));
        }
    }

    /// The image is here: now the launcher.
    fn prepared(&mut self, number: u64, result: Result<Prepared, PrepareError>) {
        let Some(entry) = self.entries.get_mut(&number) else {
            return;
        };
        entry.preparing = None;
        let prepared = match result {
            Ok(prepared) => prepared,
            Err(error) => {
                self.failure_status = 125;
                return self.end(
                    number,
                    ContainerEvent::LaunchFailed {
                        message: report::chain(&error),
                    },
                );
            }
        };
        entry.stop_signal = prepared.stop_signal;
        let launch = Launch {
            id: entry.id.clone(),
            declaration: prepared.declaration,
            state_dir: self.place.state_dir.clone(),
            isolation: self.place.isolation.clone(),
        };
        if let Err(error) =
            self.to_launcher(|launcher| launcher.launch(number, &launch, &prepared.stdio))
        {
            let message = format!("could not reach the launcher process: {error}");
            self.end(number, ContainerEvent::LaunchFailed { message });
        }
    }

    /// Sends, and waits while the launcher's queue is full: it is never busy for long.
    fn to_launcher(&self, send: impl Fn(&Launcher) -> io::Result<()>) -> io::Result<()> {
        let launcher = self.launcher.get_ref();
        loop {
            match send(launcher) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut polled = [PollFd::new(&launcher.socket, PollFlags::OUT)];
                    rustix::event::poll(&mut polled, None)?;
                }
                other => return other,
            }
        }
    }

    fn received(&mut self, reply: Reply) {
        match reply {
            Reply::Running { number, pid } => {
                if let Some(entry) = self.entries.get(&number) {
                    self.events
                        .push_back((entry.key.clone(), ContainerEvent::Running { pid }));
                }
            }
            Reply::Failed {
                number,
                message,
                exit_status,
            } => {
                self.failure_status = exit_status;
                self.end(number, ContainerEvent::LaunchFailed { message });
            }
            Reply::Exited {
                number,
                status,
                limit,
            } => self.end(number, ContainerEvent::Exited { status, limit }),
        }
    }

    /// The launcher is gone and with it, by the kernel, all its containers: what they left is released, their end is
    /// reported, and a new launcher takes over.
    fn launcher_died(&mut self) -> Result<(), StartError> {
        tracing::error!("the launcher process died; its containers died with it");
        release_orphans(&self.place.state_dir);
        let launched: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, e)| e.preparing.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in launched {
            self.end(
                number,
                ContainerEvent::Exited {
                    status: libc::SIGKILL,
                    limit: None,
                },
            );
        }
        let launcher = Launcher::start()?;
        self.launcher = launcher.watched()?;
        Ok(())
    }

    /// One message of the launcher, without waiting: `None` when there is none.
    fn poll_launcher(&mut self) -> Option<()> {
        let socket = self.launcher.get_ref().socket.as_fd();
        match protocol::receive::<Reply>(socket, RecvFlags::DONTWAIT) {
            Ok(Some((reply, _))) => self.received(reply),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Ok(None) | Err(_) => {
                if let Err(error) = self.launcher_died() {
                    tracing::error!(
                        error = report::chain(&error),
                        "no container can be started any more"
                    );
                    std::process::exit(125);
                }
            }
        }
        Some(())
    }
}

impl Containers for Supervisor {
    type Request = Request;

    fn launch(&mut self, key: &str, request: Request) {
        let number = self.numbers;
        self.numbers += 1;
        let id = request.options.id.clone();
        let store = Arc::clone(&self.store);
        let abort = self
            .preparing
            .spawn(async move { (number, request.prepare(store).await) });
        let entry = Entry {
            key: key.to_owned(),
            id,
            preparing: Some(abort),
            stop_signal: libc::SIGTERM,
        };
        self.numbers_by_key.insert(key.to_owned(), number);
        self.entries.insert(number, entry);
    }

    fn terminate(&mut self, key: &str) {
        let Some(number) = self.number_of(key) else {
            return;
        };
        let entry = &self.entries[&number];
        if let Some(preparing) = &entry.preparing {
            preparing.abort();
            return self.end(number, ContainerEvent::Aborted);
        }
        let signal = entry.stop_signal;
        self.signal(key, signal);
    }

    fn destroy(&mut self, key: &str) {
        let Some(number) = self.number_of(key) else {
            return;
        };
        if let Some(preparing) = &self.entries[&number].preparing {
            preparing.abort();
            return self.end(number, ContainerEvent::Aborted);
        }
        if let Err(error) = self.to_launcher(|launcher| launcher.kill(number)) {
            // Then its end is reported when the socket's is read.
            tracing::warn!(key, %error, "could not reach the launcher");
        }
    }

    async fn next_event(&mut self) -> (String, ContainerEvent) {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            tokio::select! {
                Some(joined) = self.preparing.join_next() => {
                    // An error is one that was aborted; its event is out already. A panic ends the process by itself.
                    if let Ok((number, result)) = joined {
                        self.prepared(number, result);
                    }
                }
                readable = self.launcher.readable() => {
                    match readable {
                        Ok(mut guard) => {
                            guard.clear_ready();
                            drop(guard);
                            while self.poll_launcher().is_some() {}
                        }
                        Err(error) => tracing::error!(%error, "could not watch the launcher"),
                    }
                }
            }
        }
    }
}

impl Supervisor {
    /// As [`Containers::terminate`], with a signal of the caller's choice.
    pub fn stop(&mut self, key: &str, signal: i32) {
        match self
            .number_of(key)
            .map(|number| &self.entries[&number].preparing)
        {
            Some(Some(_)) => self.terminate(key),
            Some(None) => self.signal(key, signal),
            None => {}
        }
    }

    /// Sends any signal to a container's first process.
    pub fn signal(&mut self, key: &str, signal: i32) {
        let Some(number) = self.number_of(key) else {
            return;
        };
        if let Err(error) = self.to_launcher(|launcher| launcher.signal(number, signal)) {
            tracing::warn!(key, %error, "could not reach the launcher");
        }
    }
}

/// Releases what dead executors left on this node, and says what could not be.
pub fn release_orphans(state_dir: &std::path::Path) {
    for (name, error) in container::recover(state_dir) {
        tracing::warn!(
            container = name,
            error = report::chain(&error),
            "could not release what is left of it"
        );
    }
}
