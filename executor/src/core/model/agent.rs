//! The model of the agent: which tasks it launched, which updates it has taken charge of.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::agent::messages::{
    Acknowledged, Event, EventType, FrameworkCapability, FrameworkCapabilityType, FrameworkInfo,
    Subscribe, Subscribed, TaskId, TaskState, TaskStatus,
};

/// What an agent goes through after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Connections are refused.
    Down,
    /// SUBSCRIBE gets 404 or 503.
    Starting,
    /// SUBSCRIBE is fine, UPDATE gets 503.
    Recovering,
    Up,
}

/// A task as the agent has it. All of it is checkpointed.
#[derive(Debug, Default)]
pub struct AgentTask {
    /// `None` while it is STAGING.
    pub state: Option<TaskState>,
    pub received: BTreeSet<Bytes>,
    pub is_dropped: bool,
}

pub struct Agent {
    pub phase: Phase,
    pub tasks: BTreeMap<String, AgentTask>,
    /// Events on the present stream; without one they are lost.
    pub stream: Option<VecDeque<Event>>,
    /// LAUNCHes from before the first subscription.
    pub queued: Vec<Event>,
    pub wants_killing: bool,
    /// Whether every update that arrived was acknowledged, as far as the agent is concerned.
    pub has_withheld: bool,
}

impl Agent {
    pub fn new(wants_killing: bool) -> Self {
        Agent {
            phase: Phase::Up,
            tasks: BTreeMap::new(),
            stream: None,
            queued: Vec::new(),
            wants_killing,
            has_withheld: false,
        }
    }

    pub fn send(&mut self, event: Event) {
        if let Some(stream) = &mut self.stream {
            stream.push_back(event);
        }
    }

    /// A SUBSCRIBE arrives (`Slave::subscribe`).
    pub fn subscribe(&mut self, subscribe: &Subscribe) -> Result<(), String> {
        self.stream = Some(VecDeque::new());
        for update in &subscribe.unacknowledged_updates {
            self.receive(&update.status, false)?;
        }
        let known: BTreeSet<&str> = subscribe
            .unacknowledged_tasks
            .iter()
            .map(|task| task.task_id.value.as_str())
            .collect();
        for (id, task) in &mut self.tasks {
            let is_queued = self.queued.iter().any(|event| launches(event, id));
            if task.state.is_none() && !known.contains(id.as_str()) && !is_queued {
                (task.state, task.is_dropped) = (Some(TaskState::Dropped), true);
            }
        }
        let kind = self
            .wants_killing
            .then_some(FrameworkCapabilityType::TaskKillingState as i32);
        let capabilities = vec![FrameworkCapability { r#type: kind }];
        let framework_info = FrameworkInfo {
            capabilities,
            ..Default::default()
        };
        let subscribed = Some(Subscribed {
            framework_info,
            ..Default::default()
        });
        self.send(Event {
            subscribed,
            ..Event::of(EventType::Subscribed)
        });
        for event in std::mem::take(&mut self.queued) {
            self.send(event);
        }
        Ok(())
    }

    /// A status arrives (`Slave::statusUpdate`), which the update manager takes charge of.
    pub fn receive(&mut self, status: &TaskStatus, withhold: bool) -> Result<(), String> {
        let id = &status.task_id.value;
        let state = TaskState::try_from(status.state).map_err(|_| "a state that does not exist")?;
        let task = self
            .tasks
            .get_mut(id)
            .ok_or_else(|| format!("an update for unknown task {id}"))?;
        let uuid = status.uuid.clone().ok_or("an update without a uuid")?;
        if task.received.insert(uuid.clone()) {
            if !may_follow(task.state, state, self.wants_killing) {
                return Err(format!("task {id} went from {:?} to {state:?}", task.state));
            }
            task.state = Some(state);
        }
        if withhold {
            self.has_withheld = true;
        } else {
            let task_id = TaskId { value: id.clone() };
            let acknowledged = Some(Acknowledged { task_id, uuid });
            self.send(Event {
                acknowledged,
                ..Event::of(EventType::Acknowledged)
            });
        }
        Ok(())
    }
}

pub fn launches(event: &Event, id: &str) -> bool {
    let single = event.launch.iter().map(|launch| &launch.task);
    let group = event
        .launch_group
        .iter()
        .flat_map(|launch| &launch.task_group.tasks);
    single.chain(group).any(|task| task.task_id.value == id)
}

/// The legal orders of states: contract of the executor API, "States an executor may send".
fn may_follow(from: Option<TaskState>, to: TaskState, wants_killing: bool) -> bool {
    use TaskState::*;
    match (from, to) {
        (None, to) => to == Starting,
        (Some(Starting), Running) => true,
        (Some(Running), Killing) => wants_killing,
        (Some(Starting | Running), to) => matches!(to, Finished | Failed | Killed | Error),
        (Some(Killing), to) => to == Killed,
        _ => false,
    }
}
