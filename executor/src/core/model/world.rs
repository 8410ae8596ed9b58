//! The model's world: time, connections, containers and the scheduler around one core.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tepui_isolators::LimitEvent;

use super::agent::{Agent, AgentTask, Phase};
use super::{Bug, Random};
use crate::agent::environment::Checkpoint;
use crate::agent::messages::{
    self, Call, CallType, DurationInfo, EventType, Kill, KillPolicy, Launch, LaunchGroup, Reason,
    TaskGroupInfo, TaskId, TaskInfo, TaskState, TaskStatus,
};
use crate::core::{Action, Core, Event, Stamp, TaskProblem, tests};
use crate::supervise::ContainerEvent;

/// The connection, as a driver has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Idle,
    /// The core asked for one.
    Connecting,
    /// Calls go to the agent, events come from it.
    Open,
}

#[derive(Debug, Default)]
struct Container {
    is_running: bool,
    has_ended: bool,
    /// It ignores SIGTERM.
    is_deaf: bool,
    terminated: Option<Duration>,
    /// When a SIGKILL must have come at the latest; and whether it came.
    due: Option<Duration>,
    is_destroyed: bool,
    group: Option<u64>,
    grace: Option<Duration>,
    /// What the core must say of it.
    expected: Vec<TaskState>,
    reported: Option<TaskState>,
}

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
    random: Random,
    bug: Bug,
    core: Core,
    now: Duration,
    link: Link,
    calls: VecDeque<Call>,
    pub agent: Agent,
    containers: BTreeMap<String, Container>,
    /// Updates whose acknowledgement reached the core.
    acknowledged: BTreeSet<Bytes>,
    /// All that the core ever wanted to say.
    said: BTreeMap<Bytes, TaskStatus>,
    checkpoint: bool,
    was_subscribed: bool,
    away_since: Option<Duration>,
    /// Everything is to end: what is not reported is the agent's business.
    is_ending: bool,
    exited: Option<i32>,
    groups: u64,
    pub subscriptions: usize,
    pub kills: usize,
    is_traced: bool,
    pub trace: Vec<String>,
}

const RECOVERY_TIMEOUT: Duration = Duration::from_secs(40);
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
                let step = Duration::from_millis(1 + self.random.below(3000));
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

    fn connect_or_deliver_call(&mut self, may_fail: bool) -> Result<(), String> {
        if self.link == Link::Connecting {
            if self.agent.phase == Phase::Down {
                return self.lose();
            }
            self.link = Link::Open;
            self.away_since = None;
            return self.feed(Event::Connected);
        }
        let Some(call) = self.calls.front() else {
            return Ok(());
        };
        match (call.r#type(), self.agent.phase) {
            (CallType::Subscribe, Phase::Starting) => self.lose(),
            (CallType::Subscribe, _) => {
                self.subscriptions += 1;
                let call = self.calls.pop_front().unwrap_or_default();
                self.agent.subscribe(&call.subscribe.unwrap_or_default())
            }
            // The driver tries again.
            (_, Phase::Starting | Phase::Recovering) => Ok(()),
            _ => {
                let status = call.update.clone().unwrap_or_default().status;
                // An answer can be lost, or be a refusal.
                if may_fail && self.random.one_in(20) {
                    if self.random.one_in(2) {
                        self.agent.receive(&status, false)?;
                    }
                    return self.feed(Event::UpdateRejected);
                }
                self.calls.pop_front();
                let withhold = may_fail && self.random.one_in(30);
                self.agent.receive(&status, withhold)
            }
        }
    }

    fn deliver_event(&mut self) -> Result<(), String> {
        if self.link != Link::Open {
            return Ok(());
        }
        let Some(event) = self.agent.stream.as_mut().and_then(VecDeque::pop_front) else {
            return Ok(());
        };
        if let Some(acknowledged) = &event.acknowledged {
            self.acknowledged.insert(acknowledged.uuid.clone());
            // The same acknowledgement may come twice.
            if self.random.one_in(20) {
                self.agent.send(event.clone());
            }
            if self.bug == Bug::DroppedAcknowledgement && self.random.one_in(4) {
                return Ok(());
            }
        }
        if event.subscribed.is_some() {
            self.was_subscribed = true;
        }
        let killed = event.kill.as_ref().map(|kill| self.is_to_be_killed(kill));
        if event.r#type == Some(EventType::Shutdown.into()) {
            self.shuts_down();
        }
        if self.bug != Bug::IgnoredKill || killed.is_none() {
            self.feed(Event::Agent(event))?;
        }
        match killed {
            Some(id) if self.exited.is_none() => self.check_kill(&id),
            _ => Ok(()),
        }
    }

    fn shuts_down(&mut self) {
        self.is_ending = true;
        for container in self.containers.values_mut() {
            let due = self.now + SHUTDOWN_GRACE;
            container.due = Some(container.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    /// A KILL arrives: it bounds the time to the SIGKILL, from the first one on.
    fn is_to_be_killed(&mut self, kill: &Kill) -> String {
        let id = &kill.task_id.value;
        if let Some(container) = self
            .containers
            .get_mut(id)
            .filter(|container| !container.has_ended)
        {
            self.kills += 1;
            let policy = kill
                .kill_policy
                .as_ref()
                .and_then(|policy| policy.grace_period.as_ref());
            let grace = policy.map(DurationInfo::to_duration).or(container.grace);
            let since = container.terminated.unwrap_or(self.now);
            let due = since + grace.unwrap_or(Duration::from_secs(3));
            container.due = Some(container.due.map_or(due, |earlier| earlier.min(due)));
        }
        id.clone()
    }

    /// What was killed must have SIGTERM by now.
    fn check_kill(&self, id: &str) -> Result<(), String> {
        match self.containers.get(id) {
            Some(container) if !container.has_ended && container.terminated.is_none() => {
                Err(format!("the kill of {id} was ignored"))
            }
            _ => self.check_due(),
        }
    }

    fn check_due(&self) -> Result<(), String> {
        for (id, container) in &self.containers {
            let is_due = container.due.is_some_and(|due| due <= self.now);
            if is_due && !container.has_ended && !container.is_destroyed {
                return Err(format!(
                    "{id} is past its grace period and was not destroyed"
                ));
            }
        }
        Ok(())
    }

    fn container_event(&mut self) -> Result<(), String> {
        let live: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, c)| !c.has_ended)
            .map(|(id, _)| id.clone())
            .collect();
        if live.is_empty() {
            return Ok(());
        }
        let key = live[self.random.below(live.len() as u64) as usize].clone();
        let Some(container) = self.containers.get_mut(&key) else {
            return Ok(());
        };
        let is_killed = container.terminated.is_some();
        let event = if !container.is_running
            && (container.is_destroyed || (is_killed && self.random.one_in(2)))
        {
            ContainerEvent::Aborted
        } else if !container.is_running && self.random.one_in(6) {
            ContainerEvent::LaunchFailed {
                message: "no".to_owned(),
            }
        } else if !container.is_running {
            container.is_running = true;
            ContainerEvent::Running { pid: 1 }
        } else if container.is_destroyed {
            ContainerEvent::Exited {
                status: 9,
                limit: None,
            }
        } else if is_killed && container.is_deaf {
            return Ok(());
        } else {
            let memory = LimitEvent::Memory {
                limit: 1,
                peak: 1,
                statistics: String::new(),
            };
            let (status, limit) = match self.random.below(6) {
                0 => (3 << 8, None),
                1 => (9, Some(memory)),
                2 => (9, Some(LimitEvent::OutsideMemory { killed: 1 })),
                3 => (0, Some(LimitEvent::OutsideMemory { killed: 1 })),
                _ => (0, None),
            };
            ContainerEvent::Exited { status, limit }
        };
        container.has_ended = !matches!(event, ContainerEvent::Running { .. });
        if container.has_ended {
            container.expected = match &event {
                _ if is_killed => vec![TaskState::Killed],
                ContainerEvent::Exited { status: 0, .. } => vec![TaskState::Finished],
                _ => vec![TaskState::Failed],
            };
        }
        let group = container
            .group
            .filter(|_| container.has_ended && container.expected != [TaskState::Finished]);
        self.feed(Event::Container { key, event })?;
        match group {
            Some(group) if !self.is_ending => self.check_group(group),
            _ => Ok(()),
        }
    }

    /// The rest of a group is killed when one of it does not finish.
    fn check_group(&mut self, group: u64) -> Result<(), String> {
        for (id, container) in &mut self.containers {
            if container.group == Some(group)
                && !container.has_ended
                && container.terminated.is_none()
            {
                return Err(format!(
                    "{id} was left alone when another of its group failed"
                ));
            }
        }
        Ok(())
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

    /// Something between the two of them fails: what is on the way arrives in part.
    fn break_connection(&mut self) -> Result<(), String> {
        if self.link == Link::Open {
            self.lose()
        } else {
            Ok(())
        }
    }

    fn lose(&mut self) -> Result<(), String> {
        self.cut()?;
        self.away_since.get_or_insert(self.now);
        if self.was_subscribed && !self.checkpoint {
            self.shuts_down();
        }
        self.link = Link::Idle;
        self.feed(Event::Disconnected)
    }

    fn cut(&mut self) -> Result<(), String> {
        let arriving = self.random.below(1 + self.calls.len() as u64);
        for call in std::mem::take(&mut self.calls)
            .into_iter()
            .take(arriving as usize)
        {
            match (call.subscribe, call.update) {
                (Some(subscribe), _) if self.agent.phase == Phase::Up => {
                    self.agent.subscribe(&subscribe)?
                }
                (_, Some(update)) if self.agent.phase == Phase::Up => {
                    self.agent.receive(&update.status, false)?
                }
                _ => (),
            }
        }
        self.agent.stream = None;
        Ok(())
    }

    /// Gives the core an event and does what it says.
    fn feed(&mut self, event: Event) -> Result<(), String> {
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

    fn sends(&mut self, mut call: Call) -> Result<(), String> {
        if let Some(subscribe) = &mut call.subscribe {
            for update in &subscribe.unacknowledged_updates {
                let uuid = update.status.uuid.clone().unwrap_or_default();
                if self.acknowledged.contains(&uuid) {
                    return Err(format!(
                        "{} was acknowledged and comes again",
                        update.status.task_id.value
                    ));
                }
            }
            if self.bug == Bug::ForgottenTasks {
                subscribe.unacknowledged_tasks.clear();
                subscribe.unacknowledged_updates.clear();
            }
        }
        let Some(update) = &call.update else {
            self.calls.push_back(call);
            return Ok(());
        };
        let status = update.status.clone();
        self.said
            .insert(status.uuid.clone().unwrap_or_default(), status.clone());
        if self.bug == Bug::LostUpdate && self.random.one_in(8) {
            return Ok(());
        }
        let is_terminal = TaskState::try_from(status.state).is_ok_and(TaskState::is_terminal);
        self.calls.push_back(call.clone());
        let again = match self.bug {
            Bug::ResendAfterTerminal if is_terminal => self
                .said
                .values()
                .find(|said| said.task_id == status.task_id)
                .cloned(),
            Bug::SecondTerminal if is_terminal => Some(status),
            _ => None,
        };
        if let Some(mut status) = again {
            status.uuid = Some(Bytes::from(self.random.next().to_be_bytes().repeat(2)));
            call.update = Some(messages::Update { status });
            self.calls.push_back(call);
        }
        Ok(())
    }

    /// What must hold when the core has exited.
    fn check_end(&mut self) -> Result<(), String> {
        for (uuid, status) in &self.said {
            let state =
                TaskState::try_from(status.state).map_err(|_| "a state that does not exist")?;
            let id = &status.task_id.value;
            if let Some(container) = self.containers.get_mut(id).filter(|_| state.is_terminal()) {
                if !container.has_ended {
                    return Err(format!(
                        "{id} was reported as {state:?} while its container lived"
                    ));
                }
                if !container.expected.contains(&state) {
                    return Err(format!(
                        "{id} was reported as {state:?}, not {:?}",
                        container.expected
                    ));
                }
                if container.reported.replace(state).is_some() {
                    return Err(format!("{id} ended twice"));
                }
            }
            let is_received = self
                .agent
                .tasks
                .get(id)
                .is_some_and(|task| task.received.contains(uuid));
            if !is_received && !self.is_ending {
                return Err(format!("the update of {id} to {state:?} was lost"));
            }
        }
        if self.is_ending {
            return Ok(());
        }
        if self.exited != Some(0) {
            return Err(format!("the exit status is {:?}", self.exited));
        }
        for (id, container) in &self.containers {
            if !container.has_ended {
                return Err(format!("the core exited while {id} lived"));
            }
            let task = &self.agent.tasks[id];
            if !task.state.is_some_and(TaskState::is_terminal) || task.is_dropped {
                return Err(format!("{id} ended, but is {:?} at the agent", task.state));
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
