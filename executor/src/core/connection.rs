//! The core's side of the connection: subscribing, what the agent has not acknowledged yet, and its absence.

use std::time::Duration;

use super::{ACKNOWLEDGEMENT_TIMEOUT, Action, Core, START_TIMEOUT};
use crate::agent::messages::{
    Acknowledged, Call, CallType, ExecutorId, FrameworkId, Subscribe, TaskStatus, Update,
};

/// How far we are with the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    /// No connection.
    Away,
    /// SUBSCRIBE is sent, SUBSCRIBED has not come.
    Subscribing,
    /// Updates can be sent.
    Subscribed,
}

/// An update that the agent has not acknowledged.
#[derive(Debug)]
pub(super) struct Pending {
    status: TaskStatus,
    /// Of the launch that it belongs to: a framework may use the id of an ended task again.
    launch: u64,
    delivery: Delivery,
}

/// How far an update has come on the present connection, which began with all of them in its SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Waiting,
    Sent,
    /// The agent has it, and will acknowledge it unless it no longer knows the task.
    Accepted,
}

impl Core {
    pub(super) fn connected(&mut self, actions: &mut Vec<Action>) {
        self.recovery_deadline = None;
        self.connection = Connection::Subscribing;
        let unknown = self.tasks.values().filter(|task| !task.is_acknowledged);
        let subscribe = Subscribe {
            unacknowledged_tasks: unknown.map(|task| (*task.info).clone()).collect(),
            unacknowledged_updates: self
                .updates
                .iter()
                .map(|update| Update {
                    status: update.status.clone(),
                })
                .collect(),
        };
        for update in &mut self.updates {
            update.delivery = Delivery::Sent;
        }
        let call = Call {
            subscribe: Some(subscribe),
            ..self.call(CallType::Subscribe)
        };
        actions.push(Action::Send(Box::new(call)));
    }

    pub(super) fn subscribed(&mut self, actions: &mut Vec<Action>) {
        self.connection = Connection::Subscribed;
        self.was_subscribed = true;
        for update in self
            .updates
            .iter_mut()
            .filter(|update| update.delivery == Delivery::Sent)
        {
            update.delivery = Delivery::Accepted;
        }
        self.idle_since = None;
        self.send_updates(actions);
    }

    /// Without checkpointing the agent will not know us again, so this is the end.
    pub(super) fn disconnected(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.connection = Connection::Away;
        if self.was_subscribed && self.checkpoint.is_none() {
            tracing::error!(
                "the connection to the agent is gone and there is no checkpointing: ending"
            );
            return self.shutdown(now, actions);
        }
        let deadline = now + self.patience();
        self.recovery_deadline.get_or_insert(deadline);
        actions.push(Action::Connect);
    }

    /// Starts over with an agent that is there, on new connections.
    pub(super) fn resubscribe(&mut self, actions: &mut Vec<Action>) {
        if self.connection != Connection::Away {
            self.connection = Connection::Away;
            actions.push(Action::Connect);
        }
    }

    /// How long the agent may be away.
    pub(super) fn patience(&self) -> Duration {
        self.checkpoint
            .map_or(START_TIMEOUT, |checkpoint| checkpoint.recovery_timeout)
    }

    /// Keeps an update until it is acknowledged, and sends it if that is possible now.
    pub(super) fn update(&mut self, launch: u64, status: TaskStatus, actions: &mut Vec<Action>) {
        self.updates.push(Pending {
            status,
            launch,
            delivery: Delivery::Waiting,
        });
        if self.connection == Connection::Subscribed {
            self.send_updates(actions);
        }
    }

    fn send_updates(&mut self, actions: &mut Vec<Action>) {
        let call = self.call(CallType::Update);
        let is_waiting = |update: &&mut Pending| update.delivery == Delivery::Waiting;
        for update in self.updates.iter_mut().filter(is_waiting) {
            update.delivery = Delivery::Sent;
            let update = Some(Update {
                status: update.status.clone(),
            });
            actions.push(Action::Send(Box::new(Call {
                update,
                ..call.clone()
            })));
        }
    }

    pub(super) fn accepted(&mut self, uuid: &[u8]) {
        let is_it = |update: &&mut Pending| update.status.uuid.as_deref() == Some(uuid);
        if let Some(update) = self.updates.iter_mut().find(is_it) {
            update.delivery = Delivery::Accepted;
            self.idle_since = None;
        }
    }

    /// How long to wait when only acknowledgements are missing. Where the agent has not even accepted an update, it
    /// would be lost with us: as long as for an agent that is away.
    pub(super) fn idle_patience(&self) -> Duration {
        match self
            .updates
            .iter()
            .all(|update| update.delivery == Delivery::Accepted)
        {
            true => ACKNOWLEDGEMENT_TIMEOUT,
            false => self.patience(),
        }
    }

    /// Forgets the update, and the task with its last one. A second acknowledgement of the same is nothing new.
    pub(super) fn acknowledged(&mut self, acknowledged: &Acknowledged) {
        let is_it = |update: &Pending| {
            update.status.task_id == acknowledged.task_id
                && update.status.uuid.as_ref() == Some(&acknowledged.uuid)
        };
        let Some(index) = self.updates.iter().position(is_it) else {
            return;
        };
        let launch = self.updates.remove(index).launch;
        let is_last = !self.updates.iter().any(|update| update.launch == launch);
        let key = &acknowledged.task_id.value;
        if let Some(task) = self.tasks.get_mut(key).filter(|task| task.launch == launch) {
            task.is_acknowledged = true;
            if is_last && task.is_terminal() {
                self.tasks.remove(key);
            }
        }
    }

    fn call(&self, kind: CallType) -> Call {
        Call {
            executor_id: ExecutorId {
                value: self.executor_id.clone(),
            },
            framework_id: FrameworkId {
                value: self.framework_id.clone(),
            },
            r#type: Some(kind.into()),
            ..Default::default()
        }
    }
}
