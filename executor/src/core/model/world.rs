//! The model's world: time, connections, containers and the scheduler around one core.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::agent::{Agent, AgentTask, Phase};
use super::containers::Container;
use super::network::Link;
use super::{Bug, Random};
use crate::agent::environment::Checkpoint;
use crate::agent::messages::{
    self, Call, DurationInfo, EventType, Kill, KillPolicy, Launch, LaunchGroup, Reason,
    TaskGroupInfo, TaskId, TaskInfo, TaskState, TaskStatus,
};
use crate::core::{Action, Core, Event, Stamp, TaskProblem, tests};

/// Unique numbers for uuids.
struct Counter(u128);

impl Stamp for Counter {
    fn uuid(&mut self) -> [u8; 16] {
        self.0 += 1;
        self.0.to_be_bytes()
    }

    fn timestamp(&mut self) -> f64 {
        0.0
    }
}

pub struct World {
    pub(super) random: Random,
    pub(super) bug: Bug,
    pub(super) core: Core,
    pub(super) now: Duration,
    pub(super) link: Link,
    pub(super) calls: VecDeque<Call>,
    pub agent: Agent,
    pub(super) containers: BTreeMap<String, Container>,
    /// Updates whose acknowledgement reached the core.
    pub(super) acknowledged: BTreeSet<Bytes>,
    /// All that the core ever wanted to say.
    pub(super) said: BTreeMap<Bytes, TaskStatus>,
    pub(super) checkpoint: bool,
    pub(super) was_subscribed: bool,
    /// SUBSCRIBED has come on the present connection.
    pub(super) is_subscribed: bool,
    /// When a container ended last.
    pub(super) ended: Duration,
    pub(super) away_since: Option<Duration>,
    /// Everything is to end: what is not reported is the agent's business.
    pub(super) is_ending: bool,
    pub(super) exited: Option<i32>,
    pub(super) groups: u64,
    pub subscriptions: usize,
    pub kills: usize,
    pub(super) is_traced: bool,
    pub trace: Vec<String>,
}

pub(super) const RECOVERY_TIMEOUT: Duration = Duration::from_secs(100);
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

impl World {
    pub fn new(mut random: Random, bug: Bug, is_traced: bool) -> Self {
        let checkpoint = !random.one_in(6);
        let mut environment = tests::environment();
        environment.shutdown_grace = SHUTDOWN_GRACE;
        environment.checkpoint = checkpoint.then_some(Checkpoint {
            recovery_timeout: RECOVERY_TIMEOUT,
            backoff: Duration::from_secs(2),
        });
        let wants_killing = random.one_in(2);
        World {
            random,
            bug,
            core: Core::new(&environment, Box::new(Counter(0))),
            now: Duration::ZERO,
            link: Link::Idle,
            calls: VecDeque::new(),
            agent: Agent::new(wants_killing),
            containers: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            said: BTreeMap::new(),
            checkpoint,
            was_subscribed: false,
            is_subscribed: false,
            ended: Duration::ZERO,
            away_since: None,
            is_ending: false,
            exited: None,
            groups: 0,
            subscriptions: 0,
            kills: 0,
            is_traced,
            trace: Vec::new(),
        }
    }

    /// A stretch of anything, then one in which nothing more goes wrong, until the core exits.
    pub fn run(&mut self) -> Result<(), String> {
        let actions = self.core.start(self.now);
        self.perform(actions)?;
        for _ in 0..20 + self.random.below(80) {
            if self.exited.is_some() {
                break;
            }
            self.anything()?;
        }
        self.agent.phase = Phase::Up;
        for _ in 0..500 {
            if self.exited.is_some() {
                return self.check_end();
            }
            self.something_good()?;
        }
        Err("the core does not exit though everything is over".to_owned())
    }

    fn anything(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..6 => self.scheduler_launches(),
            6..18 => self.scheduler_kills(),
            18..35 => self.connect_or_deliver_call(true)?,
            35..56 => self.deliver_event()?,
            56..76 => self.container_event()?,
            76..84 => {
                let longest = if self.random.one_in(10) {
                    100_000
                } else {
                    3000
                };
                let step = Duration::from_millis(1 + self.random.below(longest));
                self.pass_time(self.now + step)?;
            }
            84..88 => self.break_connection()?,
            88..91 => {
                self.agent.phase = Phase::Down;
                self.break_connection()?;
            }
            91..96 => self.agent_recovers(),
            96 => self.agent.send(messages::Event::of(EventType::Shutdown)),
            97 => self.agent.send(messages::Event::of(EventType::Error)),
            98 => self.agent.send(messages::Event {
                r#type: Some(77),
                ..Default::default()
            }),
            _ => {
                let kinds = [EventType::Message, EventType::Heartbeat, EventType::Unknown];
                let kind = kinds[self.random.below(3) as usize];
                self.agent.send(messages::Event::of(kind));
            }
        }
        Ok(())
    }

    /// Something that brings the end nearer; time passes only when there is nothing else.
    fn something_good(&mut self) -> Result<(), String> {
        let has_events = self
            .agent
            .stream
            .as_ref()
            .is_some_and(|stream| !stream.is_empty());
        let live = self
            .containers
            .values()
            .any(|container| !container.has_ended);
        if self.link == Link::Connecting || !self.calls.is_empty() {
            self.connect_or_deliver_call(false)
        } else if has_events && self.link == Link::Open {
            self.deliver_event()
        } else if live {
            let deadline = self.core.deadline().unwrap_or(self.now);
            self.container_event()?;
            // The deaf ones wait for their SIGKILL.
            if self
                .containers
                .values()
                .all(|c| c.has_ended || (c.terminated.is_some() && c.is_deaf))
            {
                self.pass_time(deadline.max(self.now))?;
            }
            Ok(())
        } else if self.containers.is_empty() {
            self.agent.send(messages::Event::of(EventType::Shutdown));
            Ok(())
        } else {
            let all_known = self
                .said
                .keys()
                .all(|uuid| self.acknowledged.contains(uuid));
            if all_known && !self.is_ending {
                return Err("all is acknowledged, but the core does not exit".to_owned());
            }
            if !self.agent.has_withheld && !self.is_ending {
                return Err(
                    "the core waits though the agent acknowledged everything it got".to_owned(),
                );
            }
            let deadline = self.core.deadline().ok_or("the core waits for nothing")?;
            self.pass_time(deadline)
        }
    }

    fn scheduler_launches(&mut self) {
        if self.agent.tasks.len() >= 6 || (self.was_subscribed && self.agent.stream.is_none()) {
            return;
        }
        let is_group = self.random.one_in(3);
        let count = if is_group {
            1 + self.random.below(3)
        } else {
            1
        };
        let mut tasks = Vec::new();
        for _ in 0..count {
            let id = format!("t{}", self.agent.tasks.len());
            let grace = self.random.one_in(2).then(|| self.random.below(5000));
            self.agent.tasks.insert(id.clone(), AgentTask::default());
            tasks.push(TaskInfo {
                task_id: TaskId { value: id },
                kill_policy: grace.map(policy),
                ..Default::default()
            });
        }
        let event = match is_group {
            true => {
                let launch = LaunchGroup {
                    task_group: TaskGroupInfo { tasks },
                };
                messages::Event {
                    launch_group: Some(launch),
                    ..messages::Event::of(EventType::LaunchGroup)
                }
            }
            false => {
                let launch = tasks.pop().map(|task| Launch { task });
                messages::Event {
                    launch,
                    ..messages::Event::of(EventType::Launch)
                }
            }
        };
        match self.agent.stream {
            Some(_) => self.agent.send(event),
            None => self.agent.queued.push(event),
        }
    }

    fn scheduler_kills(&mut self) {
        let Some(count) = std::num::NonZeroU64::new(self.agent.tasks.len() as u64) else {
            return;
        };
        let task_id = TaskId {
            value: format!("t{}", self.random.below(count.get())),
        };
        let grace = self.random.one_in(2).then(|| self.random.below(5000));
        let kill = Some(Kill {
            task_id,
            kill_policy: grace.map(policy),
        });
        self.agent.send(messages::Event {
            kill,
            ..messages::Event::of(EventType::Kill)
        });
    }

    fn agent_recovers(&mut self) {
        self.agent.phase = match self.agent.phase {
            Phase::Down => Phase::Starting,
            Phase::Starting => Phase::Recovering,
            _ => Phase::Up,
        };
    }

    pub(super) fn shuts_down(&mut self) {
        self.is_ending = true;
        for container in self.containers.values_mut() {
            let due = self.now + SHUTDOWN_GRACE;
            container.due = Some(container.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    fn pass_time(&mut self, until: Duration) -> Result<(), String> {
        while self.exited.is_none() {
            let deadline = self.core.deadline().filter(|deadline| *deadline <= until);
            let Some(deadline) = deadline else { break };
            self.now = self.now.max(deadline);
            let is_given_up = |since: Duration| since + RECOVERY_TIMEOUT <= self.now;
            if self.was_subscribed && self.away_since.is_some_and(is_given_up) {
                self.shuts_down();
            }
            self.feed(Event::Tick)?;
            if self.exited.is_none() && self.core.deadline() == Some(deadline) {
                return Err("the deadline does not move".to_owned());
            }
        }
        self.now = self.now.max(until);
        self.check_due()
    }

    /// Gives the core an event and does what it says.
    pub(super) fn feed(&mut self, event: Event) -> Result<(), String> {
        if self.is_traced {
            self.trace.push(format!("{:?} {}", self.now, told(&event)));
        }
        let launched: Vec<TaskInfo> = match &event {
            Event::Agent(event) => {
                let single = event.launch.iter().map(|launch| launch.task.clone());
                let group = event
                    .launch_group
                    .iter()
                    .flat_map(|launch| launch.task_group.tasks.clone());
                single.chain(group).collect()
            }
            _ => Vec::new(),
        };
        self.groups += 1;
        let is_group = matches!(&event, Event::Agent(event) if event.launch_group.is_some());
        let group = is_group.then_some(self.groups);
        for task in launched.iter().filter(|_| !self.is_ending) {
            let policy = task
                .kill_policy
                .as_ref()
                .and_then(|policy| policy.grace_period.as_ref());
            let container = Container {
                group,
                grace: policy.map(DurationInfo::to_duration),
                is_deaf: self.random.one_in(3),
                ..Default::default()
            };
            if self
                .containers
                .insert(task.task_id.value.clone(), container)
                .is_some()
            {
                return Err("the model launched a task twice".to_owned());
            }
        }
        let actions = self.core.step(self.now, event);
        let count = actions
            .iter()
            .filter(|action| matches!(action, Action::Launch { .. }))
            .count();
        if self.exited.is_none() && !self.is_ending && count != launched.len() {
            return Err(format!(
                "{} tasks arrived, {count} were launched",
                launched.len()
            ));
        }
        self.perform(actions)
    }

    fn perform(&mut self, actions: Vec<Action>) -> Result<(), String> {
        for action in actions {
            if self.is_traced {
                self.trace.push(format!("        -> {}", done(&action)));
            }
            if self.exited.is_some() {
                return Err("an action after the exit".to_owned());
            }
            match action {
                Action::Connect => {
                    self.cut()?;
                    self.link = Link::Connecting;
                }
                Action::Send(call) => self.sends(*call)?,
                Action::Launch { key, .. } => {
                    if self.random.one_in(20) {
                        let container = self.containers.entry(key.clone()).or_default();
                        container.has_ended = true;
                        container.expected = vec![TaskState::Failed];
                        let problem = TaskProblem {
                            reason: Reason::ContainerLaunchFailed,
                            message: "no".to_owned(),
                        };
                        self.feed(Event::Refused { key, problem })?;
                    }
                }
                Action::Terminate { key } => {
                    let container = self
                        .containers
                        .get_mut(&key)
                        .ok_or("a container that is not there")?;
                    if container.terminated.replace(self.now).is_some() {
                        return Err(format!("{key} got a second SIGTERM"));
                    }
                    if container.has_ended {
                        return Err(format!("{key} got SIGTERM after its end"));
                    }
                }
                Action::Destroy { key } => {
                    let container = self
                        .containers
                        .get_mut(&key)
                        .ok_or("a container that is not there")?;
                    let is_early = container.due.is_some_and(|due| self.now < due)
                        && container.group.is_none();
                    if is_early && !self.is_ending {
                        return Err(format!("{key} was destroyed within its grace period"));
                    }
                    container.is_destroyed = self.bug != Bug::NoEscalation;
                }
                Action::Exit(status) => self.exited = Some(status),
            }
        }
        Ok(())
    }
}

fn policy(milliseconds: u64) -> KillPolicy {
    let nanoseconds = i64::try_from(milliseconds * 1_000_000).unwrap_or(0);
    KillPolicy {
        grace_period: Some(DurationInfo { nanoseconds }),
    }
}

/// An event in a line of the trace.
fn told(event: &Event) -> String {
    let Event::Agent(event) = event else {
        return format!("{event:?}");
    };
    let mut text = format!("{:?}", event.r#type());
    let group = event
        .launch_group
        .iter()
        .flat_map(|launch| &launch.task_group.tasks);
    let tasks = event
        .launch
        .iter()
        .map(|launch| &launch.task)
        .chain(group)
        .map(|task| &task.task_id);
    let kill = event.kill.iter().map(|kill| &kill.task_id);
    let acknowledged = event
        .acknowledged
        .iter()
        .map(|acknowledged| &acknowledged.task_id);
    for id in tasks.chain(kill).chain(acknowledged) {
        text = format!("{text} {}", id.value);
    }
    text
}

/// An action in a line of the trace.
fn done(action: &Action) -> String {
    match action {
        Action::Send(call) => {
            let subscribe = call
                .subscribe
                .iter()
                .flat_map(|subscribe| &subscribe.unacknowledged_updates);
            let updates = call.update.iter().chain(subscribe).map(|update| {
                format!(
                    " {} {:?}",
                    update.status.task_id.value,
                    TaskState::try_from(update.status.state)
                )
            });
            format!("{:?}{}", call.r#type(), updates.collect::<String>())
        }
        Action::Launch { key, .. } => format!("Launch {key}"),
        other => format!("{other:?}"),
    }
}
