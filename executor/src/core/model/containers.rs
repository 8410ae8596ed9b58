//! The model's containers, and what the core owes each of them: SIGTERM and SIGKILL in time, one end, the right one.

use std::time::Duration;

use tepui_isolators::LimitEvent;

use super::world::{RECOVERY_TIMEOUT, World};
use crate::agent::messages::{DurationInfo, Kill, TaskState};
use crate::core::Event;
use crate::supervise::ContainerEvent;

#[derive(Debug, Default)]
pub(super) struct Container {
    pub is_running: bool,
    pub has_ended: bool,
    /// It was killed before it ran: nobody is to hear that it runs.
    pub is_silent: bool,
    /// It ignores SIGTERM.
    pub is_deaf: bool,
    pub terminated: Option<Duration>,
    /// When a SIGKILL must have come at the latest; and whether it came.
    pub due: Option<Duration>,
    pub is_destroyed: bool,
    pub group: Option<u64>,
    pub grace: Option<Duration>,
    /// What the core must say of it.
    pub expected: Vec<TaskState>,
    pub reported: Option<TaskState>,
}

impl World {
    /// A KILL arrives: it bounds the time to the SIGKILL, from the first one on.
    pub(super) fn is_to_be_killed(&mut self, kill: &Kill) -> String {
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
    pub(super) fn check_kill(&self, id: &str) -> Result<(), String> {
        match self.containers.get(id) {
            Some(container) if !container.has_ended && container.terminated.is_none() => {
                Err(format!("the kill of {id} was ignored"))
            }
            _ => self.check_due(),
        }
    }

    pub(super) fn check_due(&self) -> Result<(), String> {
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

    pub(super) fn container_event(&mut self) -> Result<(), String> {
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
            container.is_silent = is_killed;
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
            self.ended = self.now;
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
    pub(super) fn check_group(&mut self, group: u64) -> Result<(), String> {
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

    /// What must hold when the core has exited.
    pub(super) fn check_end(&mut self) -> Result<(), String> {
        // An agent that takes no updates for this long is as good as gone.
        let patience = if self.checkpoint {
            RECOVERY_TIMEOUT
        } else {
            Duration::from_secs(60)
        };
        self.is_ending |= self.now >= self.ended + patience;
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
            let is_silent = self
                .containers
                .get(id)
                .is_some_and(|container| container.is_silent);
            if state == TaskState::Running && is_silent {
                return Err(format!("{id} was reported as running after it was killed"));
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
