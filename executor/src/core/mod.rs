//! The executor's state machine: what the agent, the containers and the clock report goes in, what is to be done comes
//! out. It has no clock, does no I/O and rolls no dice, so that any order of events can be tried in a unit test.
//!
//! What holds at all times: a task that was launched gets exactly one terminal update, after its container is gone; no
//! RUNNING follows a KILLING; an update is kept, in order, until the agent acknowledges it, and goes with the next
//! SUBSCRIBE if the connection ends before.

mod connection;
mod exit;
#[cfg(test)]
mod model;
mod status;
mod task;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::agent::Environment;
use crate::agent::environment::Checkpoint;
use crate::agent::messages::{self, Call, EventType, FrameworkCapabilityType, Reason, TaskInfo};
use crate::supervise::ContainerEvent;

use connection::{Connection, Pending};
pub use exit::{describe_exit, exit_status_of_message};
use task::Task;

/// How long to wait for the agent at the start, when nothing else says.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait for the last acknowledgements. The agent sends none for a task that it no longer knows.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A connection to the agent is there; it wants a SUBSCRIBE.
    Connected,
    /// The connection is gone, or could not be made.
    Disconnected,
    /// The agent accepted the update with this uuid.
    UpdateAccepted(Bytes),
    /// The agent did not accept an update.
    UpdateRejected,
    /// From the agent.
    Agent(Box<messages::Event>),
    /// The task cannot be launched at all: there is no container.
    Refused {
        /// The task.
        key: String,
        /// Why.
        problem: TaskProblem,
    },
    /// From the containers.
    Container {
        /// The task.
        key: String,
        /// What happened to it.
        event: ContainerEvent,
    },
    /// Somebody else than the agent wants us to end.
    Shutdown,
    /// `Core::deadline` has come.
    Tick,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Give up the connection, if there is one, and make another. Answered by `Connected` or `Disconnected`.
    Connect,
    /// Send to the agent: a SUBSCRIBE on the new connection, the rest in order.
    Send(Box<Call>),
    /// Start a container. Answered by `Refused` or `Container`.
    Launch {
        /// The task, from here on.
        key: String,
        /// What it wants.
        task: Arc<TaskInfo>,
        /// Whether it came in a group: then it has a sandbox of its own below the executor's.
        in_group: bool,
    },
    /// Send the workload its stop signal.
    Terminate {
        /// The task.
        key: String,
    },
    /// Kill everything in the container.
    Destroy {
        /// The task.
        key: String,
    },
    /// End, with this status. Containers that are left go down with us. Nothing follows.
    Exit(i32),
}

/// Why a task cannot be launched, for the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TaskProblem {
    /// `TaskInvalid` when the task's description is at fault, else `ContainerLaunchFailed`.
    pub reason: Reason,
    /// For the scheduler's eyes: which field or step, and what to do.
    pub message: String,
}

/// What updates are marked with. It is given, so that a test can have it repeat.
pub trait Stamp {
    /// A version 4 UUID (RFC 9562) that was never returned before.
    fn uuid(&mut self) -> [u8; 16];

    /// Seconds since the epoch.
    fn timestamp(&mut self) -> f64;
}

/// The state machine.
pub struct Core {
    framework_id: String,
    executor_id: String,
    shutdown_grace: Duration,
    checkpoint: Option<Checkpoint>,
    stamp: Box<dyn Stamp>,

    connection: Connection,
    /// Whether the agent ever knew us.
    was_subscribed: bool,
    /// When to give up on an agent that is away.
    recovery_deadline: Option<Duration>,
    /// Whether the framework wants TASK_KILLING.
    wants_killing: bool,

    tasks: BTreeMap<String, Task>,
    /// Oldest first.
    updates: Vec<Pending>,
    /// Tasks and groups ever launched.
    launched: u64,

    /// Set when everything is to end: when to exit whatever is left.
    shutdown_deadline: Option<Duration>,
    /// Since when only acknowledgements are missing.
    idle_since: Option<Duration>,
    exited: bool,
}

impl Core {
    /// Nothing has happened yet.
    pub fn new(environment: &Environment, stamp: Box<dyn Stamp>) -> Self {
        Core {
            framework_id: environment.framework_id.clone(),
            executor_id: environment.executor_id.clone(),
            shutdown_grace: environment.shutdown_grace,
            checkpoint: environment.checkpoint,
            stamp,
            connection: Connection::Away,
            was_subscribed: false,
            recovery_deadline: None,
            wants_killing: false,
            tasks: BTreeMap::new(),
            updates: Vec::new(),
            launched: 0,
            shutdown_deadline: None,
            idle_since: None,
            exited: false,
        }
    }

    /// The first actions.
    pub fn start(&mut self, now: Duration) -> Vec<Action> {
        self.recovery_deadline = Some(now + self.patience());
        vec![Action::Connect]
    }

    /// Takes what happened, `now` after the start, and says what is to be done.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.exited {
            return actions;
        }
        match event {
            Event::Connected => self.connected(&mut actions),
            Event::Disconnected => self.disconnected(now, &mut actions),
            Event::UpdateAccepted(uuid) => self.accepted(&uuid),
            Event::UpdateRejected => self.resubscribe(&mut actions),
            Event::Agent(event) => self.agent(now, *event, &mut actions),
            Event::Refused { key, problem } => self.refused(now, &key, problem, &mut actions),
            Event::Container { key, event } => self.container(now, &key, event, &mut actions),
            Event::Shutdown => self.shutdown(now, &mut actions),
            Event::Tick => (),
        }
        self.check_time(now, &mut actions);
        self.check_end(now, &mut actions);
        actions
    }

    /// When the next `Tick` is due.
    pub fn deadline(&self) -> Option<Duration> {
        let kills = self.tasks.values().filter_map(Task::deadline);
        let idle = self.idle_since.map(|since| since + self.idle_patience());
        kills
            .chain(self.recovery_deadline)
            .chain(self.shutdown_deadline)
            .chain(idle)
            .min()
    }

    fn agent(&mut self, now: Duration, event: messages::Event, actions: &mut Vec<Action>) {
        let kind = event
            .r#type
            .and_then(|number| EventType::try_from(number).ok());
        match kind.unwrap_or(EventType::Unknown) {
            EventType::Subscribed => {
                let framework = event.subscribed.unwrap_or_default().framework_info;
                self.wants_killing =
                    framework.is_capable(FrameworkCapabilityType::TaskKillingState);
                self.subscribed(actions);
            }
            EventType::Launch => {
                let tasks = event.launch.map(|launch| vec![launch.task]);
                self.launch(tasks.unwrap_or_default(), false, actions);
            }
            EventType::LaunchGroup => {
                let tasks = event.launch_group.map(|launch| launch.task_group.tasks);
                self.launch(tasks.unwrap_or_default(), true, actions);
            }
            EventType::Kill => {
                if let Some(kill) = event.kill {
                    self.kill_on_request(now, &kill, actions);
                }
            }
            EventType::Acknowledged => {
                if let Some(acknowledged) = event.acknowledged {
                    self.acknowledged(&acknowledged);
                }
            }
            EventType::Shutdown => self.shutdown(now, actions),
            EventType::Error => {
                let message = event.error.map(|error| error.message).unwrap_or_default();
                tracing::warn!(message, "the agent reports an error, subscribing again");
                self.resubscribe(actions);
            }
            EventType::Message => tracing::debug!("ignored a message of the scheduler"),
            EventType::Heartbeat => (),
            EventType::Unknown => {
                tracing::debug!(kind = event.r#type, "skipped an event of unknown type");
            }
        }
    }

    /// Ends everything, in time to report it before the agent kills us.
    fn shutdown(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.shutdown_deadline.is_some() {
            return;
        }
        self.shutdown_deadline = Some(now + self.shutdown_grace);
        let reserve = (self.shutdown_grace / 2).min(Duration::from_secs(2));
        let deadline = now + self.shutdown_grace - reserve;
        for key in self.live_tasks() {
            self.kill(now, &key, deadline, actions);
        }
    }

    fn check_time(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self
            .recovery_deadline
            .is_some_and(|deadline| deadline <= now)
        {
            tracing::error!("the agent has been away for too long");
            self.recovery_deadline = None;
            if !self.was_subscribed {
                return self.exit(1, actions);
            }
            self.shutdown(now, actions);
        }
        for (key, task) in &mut self.tasks {
            if task.is_to_be_destroyed(now) {
                actions.push(Action::Destroy { key: key.clone() });
            }
        }
    }

    /// Exits when nothing is left to do, or no time to do it.
    fn check_end(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.exited {
            return;
        }
        let all_ended = self.tasks.values().all(Task::is_terminal);
        if let Some(deadline) = self.shutdown_deadline {
            self.idle_since = None; // the deadline is nearer
            let nobody_listens = self.connection == Connection::Away && self.checkpoint.is_none();
            if all_ended && (self.updates.is_empty() || nobody_listens) {
                self.exit(0, actions);
            } else if deadline <= now {
                self.exit(i32::from(!all_ended), actions);
            }
        } else if all_ended && self.launched > 0 {
            if self.updates.is_empty() {
                return self.exit(0, actions);
            }
            // While the agent is away the recovery timeout is the bound.
            if self.connection != Connection::Subscribed {
                self.idle_since = None;
            } else if *self.idle_since.get_or_insert(now) + self.idle_patience() <= now {
                tracing::warn!(
                    "the agent acknowledges no more, updates left: {}",
                    self.updates.len()
                );
                self.exit(0, actions);
            }
        } else {
            self.idle_since = None;
        }
    }

    fn exit(&mut self, status: i32, actions: &mut Vec<Action>) {
        self.exited = true;
        actions.push(Action::Exit(status));
    }
}
