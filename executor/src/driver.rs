//! The executor's loop: what the agent, the containers, the clock and signals report goes into the core, and what the
//! core says is done.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep_until;

use crate::agent::Environment;
use crate::agent::client::{self, Client};
use crate::agent::link::{Link, LinkEvent};
use crate::agent::messages::{self, CallType, Subscribed, TaskInfo};
use crate::core::{Action, Core, Event, Stamp, TaskProblem};
use crate::report;
use crate::settings::ContentType;
use crate::supervise::Containers;

/// Why the executor could not do its work at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The agent is there and does not want us.
    #[error("the agent refuses this executor")]
    Refused(#[source] client::Error),
    /// Without it we could not end tasks in order.
    #[error("could not listen for signals")]
    Signals(#[source] std::io::Error),
}

/// How the executor runs.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of the messages to and from the agent.
    pub content_type: ContentType,
}

/// A task that is to be launched, and what is known around it.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What it wants.
    pub task: &'a TaskInfo,
    /// Whether it came in a group.
    pub in_group: bool,
    /// What the agent said of itself, the framework and us.
    pub subscribed: &'a Subscribed,
}

/// Runs tasks for the agent until there is nothing more to do; returns the executor's exit status. Containers that are
/// left then must go down with this process.
///
/// `prepare` says what to launch for a task, or why that cannot be done. It runs in this loop, so it must be quick.
///
/// # Errors
/// When the agent refuses us from the start.
pub async fn run<C: Containers>(
    environment: &Environment,
    options: Options,
    prepare: impl Fn(Wanted<'_>) -> Result<C::Request, TaskProblem>,
    containers: C,
) -> Result<i32, Error> {
    let listen = |kind| signal(kind).map_err(Error::Signals);
    let mut signals = [
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    ];
    let client = Client::new(environment, options.content_type);
    let backoff = environment.checkpoint.map(|checkpoint| checkpoint.backoff);
    let mut driver = Driver {
        start: Instant::now(),
        core: Core::new(environment, Box::new(RealStamp)),
        link: Link::new(client, backoff),
        containers,
        prepare,
        subscribed: None,
        is_away: false,
    };
    let actions = driver.core.start(Duration::ZERO);
    driver.perform(actions);
    loop {
        let event = driver.next_event(&mut signals).await?;
        if let Some(status) = driver.step(event) {
            return Ok(status);
        }
    }
}

struct Driver<C, P> {
    start: Instant,
    core: Core,
    link: Link,
    containers: C,
    prepare: P,
    subscribed: Option<Box<Subscribed>>,
    /// Since the last SUBSCRIBED.
    is_away: bool,
}

impl<C: Containers, P> Driver<C, P>
where
    P: Fn(Wanted<'_>) -> Result<C::Request, TaskProblem>,
{
    async fn next_event(&mut self, signals: &mut [Signal; 2]) -> Result<Event, Error> {
        let deadline = self
            .core
            .deadline()
            .map(|deadline| (self.start + deadline).into());
        let [terminate, interrupt] = signals;
        Ok(tokio::select! {
            event = self.link.next_event() => self.link_event(event)?,
            (key, event) = self.containers.next_event() => Event::Container { key, event },
            () = sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => Event::Tick,
            _ = terminate.recv() => Event::Shutdown,
            _ = interrupt.recv() => Event::Shutdown,
        })
    }

    fn link_event(&mut self, event: LinkEvent) -> Result<Event, Error> {
        Ok(match event {
            LinkEvent::Connected => Event::Connected,
            LinkEvent::Accepted(uuid) => Event::UpdateAccepted(uuid),
            LinkEvent::Disconnected(error) => {
                if self.subscribed.is_none() && error.is_refusal() {
                    return Err(Error::Refused(error));
                }
                // One line for an absence; an attempt every quarter second would fill the sandbox.
                if std::mem::replace(&mut self.is_away, true) {
                    tracing::debug!(
                        error = report::chain(&error),
                        "still not connected to the agent"
                    );
                } else {
                    tracing::info!(error = report::chain(&error), "not connected to the agent");
                }
                Event::Disconnected
            }
            LinkEvent::Rejected(error) => {
                tracing::warn!(
                    error = report::chain(&error),
                    "the agent did not take an update"
                );
                Event::UpdateRejected
            }
            LinkEvent::Event(mut event) => {
                if let Some(subscribed) = event.subscribed.take() {
                    self.is_away = false;
                    // The core wants the framework's capabilities only.
                    let framework_info = subscribed.framework_info.clone();
                    event.subscribed = Some(Subscribed {
                        framework_info,
                        ..Default::default()
                    });
                    self.subscribed = Some(Box::new(subscribed));
                }
                log_event(&event);
                Event::Agent(event)
            }
        })
    }

    fn step(&mut self, event: Event) -> Option<i32> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let actions = self.core.step(self.start.elapsed(), event);
            let (more, status) = self.perform(actions);
            if status.is_some() {
                return status;
            }
            events.extend(more);
        }
        None
    }

    /// Does what the core says; returns what comes of it at once, and the exit status if this is the end.
    fn perform(&mut self, actions: Vec<Action>) -> (Vec<Event>, Option<i32>) {
        let mut events = Vec::new();
        for action in actions {
            match action {
                Action::Connect => self.link.connect(),
                Action::Send(call) if call.r#type() == CallType::Subscribe => {
                    self.link.subscribe(*call)
                }
                Action::Send(call) => self.link.call(*call),
                Action::Launch {
                    key,
                    task,
                    in_group,
                } => match self.prepare(&task, in_group) {
                    Ok(request) => self.containers.launch(&key, request),
                    Err(problem) => {
                        tracing::error!(task = key, %problem, "refused a task");
                        events.push(Event::Refused { key, problem });
                    }
                },
                Action::Terminate { key } => self.containers.terminate(&key),
                Action::Destroy { key } => self.containers.destroy(&key),
                Action::Exit(status) => return (events, Some(status)),
            }
        }
        (events, None)
    }

    fn prepare(&self, task: &TaskInfo, in_group: bool) -> Result<C::Request, TaskProblem> {
        let subscribed = self
            .subscribed
            .as_ref()
            .expect("the core launches nothing before SUBSCRIBED");
        (self.prepare)(Wanted {
            task,
            in_group,
            subscribed,
        })
    }
}

fn log_event(event: &messages::Event) {
    let launched = event.launch.iter().map(|launch| &launch.task);
    let group = event
        .launch_group
        .iter()
        .flat_map(|launch| &launch.task_group.tasks);
    let killed = event.kill.iter().map(|kill| &kill.task_id);
    let acknowledged = event
        .acknowledged
        .iter()
        .map(|acknowledged| &acknowledged.task_id);
    let ids = launched
        .chain(group)
        .map(|task| &task.task_id)
        .chain(killed)
        .chain(acknowledged);
    let tasks: Vec<&str> = ids.map(|id| id.value.as_str()).collect();
    if event.acknowledged.is_some() {
        tracing::debug!(?tasks, "the agent acknowledged an update");
    } else {
        tracing::info!(kind = ?event.r#type(), ?tasks, "event from the agent");
    }
}

/// Random UUIDs and the system's clock.
struct RealStamp;

impl Stamp for RealStamp {
    fn uuid(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("getrandom(2) cannot fail once the node has booted");
        // RFC 9562, 5.4: version 4, variant 10.
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        bytes
    }

    fn timestamp(&mut self) -> f64 {
        // Before 1970 it is 1970.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64()
    }
}
