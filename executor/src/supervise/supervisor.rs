//! The containers of this process: prepared here, started by the launcher, their ends passed on.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::RecvFlags;
use tepui_isolators::ContainerId;
use tepui_oci::Store;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, JoinSet};

use super::request::{PrepareError, Prepared, Request};
use super::{ContainerEvent, Containers};
use crate::launcher::handle::{Launcher, StartError};
use crate::launcher::protocol::{self, Launch, Reply};
use crate::{container, pidfd, report};

/// How long a dead launcher's containers may take to be gone.
const LAST_WAIT: Duration = Duration::from_secs(2);

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

/// What the launcher is still to be told. It is never waited for: it may itself wait for us to read.
#[derive(Debug)]
enum Outgoing {
    Launch(u64, Box<Launch>, [OwnedFd; 3]),
    Signal(u64, i32),
    Kill(u64),
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
    outgoing: VecDeque<Outgoing>,
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
            outgoing: VecDeque::new(),
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
        self.tell(Outgoing::Launch(number, Box::new(launch), prepared.stdio));
    }

    fn tell(&mut self, message: Outgoing) {
        self.outgoing.push_back(message);
        self.send_waiting();
    }

    /// Sends what the launcher's queue takes, in order.
    fn send_waiting(&mut self) {
        while let Some(message) = self.outgoing.pop_front() {
            let launcher = self.launcher.get_ref();
            let sent = match &message {
                Outgoing::Launch(number, launch, stdio) => launcher.launch(*number, launch, stdio),
                Outgoing::Signal(number, signal) => launcher.signal(*number, *signal),
                Outgoing::Kill(number) => launcher.kill(*number),
            };
            match (sent, message) {
                (Err(error), message) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.outgoing.push_front(message);
                    return;
                }
                (Err(error), Outgoing::Launch(number, ..)) => {
                    let message = format!("could not reach the launcher process: {error}");
                    self.end(number, ContainerEvent::LaunchFailed { message });
                }
                // It is gone, and its containers' ends are reported when its socket is read.
                (Err(error), _) => tracing::warn!(%error, "could not reach the launcher"),
                (Ok(()), _) => {}
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
            } => {
                self.end(number, ContainerEvent::Exited { status, limit });
                // Beside the loop: it may take long, and what is not done when we end is done by the next start.
                let layers = self.store.writable_layers();
                drop(tokio::task::spawn_blocking(move || sweep(&layers)));
            }
        }
    }

    /// The launcher is gone and with it, by the kernel, all its containers: what they left is released, their end is
    /// reported, and a new launcher takes over.
    fn launcher_died(&mut self) -> Result<(), StartError> {
        tracing::error!("the launcher process died; its containers died with it");
        // Its socket closes before the kernel has killed its containers.
        let dead = &self.launcher.get_ref().pidfd;
        if !pidfd::ended_within(dead, LAST_WAIT).unwrap_or(false) {
            tracing::error!(
                "it does not end; what is left of its containers is released by the next start"
            );
        }
        release_orphans(&self.place.state_dir);
        self.outgoing.clear();
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
        self.tell(Outgoing::Kill(number));
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
                writable = self.launcher.writable(), if !self.outgoing.is_empty() => {
                    match writable {
                        Ok(mut guard) => {
                            guard.clear_ready();
                            drop(guard);
                            self.send_waiting();
                        }
                        Err(error) => tracing::error!(%error, "could not watch the launcher"),
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
        self.tell(Outgoing::Signal(number, signal));
    }
}

/// Removes large writable layers that were set aside.
pub fn sweep(layers: &std::path::Path) {
    if let Err(error) = tepui_isolators::filesystem::writable::sweep(layers) {
        tracing::warn!(
            error = report::chain(&error),
            "could not remove what is left of a writable layer"
        );
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
