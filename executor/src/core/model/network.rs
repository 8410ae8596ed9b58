//! The model's connections: calls go one way, events the other, and both are lost in part when a connection breaks.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Bug;
use super::agent::Phase;
use super::world::World;
use crate::agent::messages::{self, Call, CallType, EventType, TaskState};
use crate::core::Event;

/// The connection, as a driver has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Idle,
    /// The core asked for one.
    Connecting,
    /// Calls go to the agent, events come from it.
    Open,
}

impl World {
    pub(super) fn connect_or_deliver_call(&mut self, may_fail: bool) -> Result<(), String> {
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
                self.agent.receive(&status, withhold)?;
                self.feed(Event::UpdateAccepted(status.uuid.unwrap_or_default()))
            }
        }
    }

    pub(super) fn deliver_event(&mut self) -> Result<(), String> {
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
            self.is_subscribed = true;
        }
        let killed = event.kill.as_ref().map(|kill| self.is_to_be_killed(kill));
        if event.r#type == Some(EventType::Shutdown.into()) {
            self.shuts_down();
        }
        if self.bug != Bug::IgnoredKill || killed.is_none() {
            self.feed(Event::Agent(Box::new(event)))?;
        }
        match killed {
            Some(id) if self.exited.is_none() => self.check_kill(&id),
            _ => Ok(()),
        }
    }

    /// Something between the two of them fails: what is on the way arrives in part.
    pub(super) fn break_connection(&mut self) -> Result<(), String> {
        if self.link == Link::Open {
            self.lose()
        } else {
            Ok(())
        }
    }

    pub(super) fn lose(&mut self) -> Result<(), String> {
        self.cut()?;
        self.away_since.get_or_insert(self.now);
        if self.was_subscribed && !self.checkpoint {
            self.shuts_down();
        }
        self.link = Link::Idle;
        self.feed(Event::Disconnected)
    }

    pub(super) fn cut(&mut self) -> Result<(), String> {
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

    pub(super) fn sends(&mut self, mut call: Call) -> Result<(), String> {
        if let Some(subscribe) = &mut call.subscribe {
            for update in &subscribe.unacknowledged_updates {
                let said = update.status.clone();
                self.said
                    .insert(said.uuid.clone().unwrap_or_default(), said);
                let uuid = update.status.uuid.clone().unwrap_or_default();
                if self.acknowledged.contains(&uuid) {
                    return Err(format!(
                        "{} was acknowledged and comes again",
                        update.status.task_id.value
                    ));
                }
            }
            self.is_subscribed = false;
            for id in self.containers.keys() {
                let is_known = self.said.iter().any(|(uuid, status)| {
                    status.task_id.value == *id && self.acknowledged.contains(uuid)
                });
                let is_listed = subscribe
                    .unacknowledged_tasks
                    .iter()
                    .any(|task| task.task_id.value == *id);
                if is_known == is_listed {
                    return Err(format!(
                        "{id}: acknowledged {is_known}, among the unacknowledged {is_listed}"
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
        if !self.is_subscribed {
            return Err("an update before SUBSCRIBED".to_owned());
        }
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
}
