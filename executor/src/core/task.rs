//! The core's tasks: launching, killing, ending, and what the end of one means for its group.

use std::sync::Arc;
use std::time::Duration;

use super::status::Outcome;
use super::{Action, Core, TaskProblem};
use crate::agent::messages::{Kill, KillPolicy, TaskInfo, TaskState};
use crate::supervise::ContainerEvent;

/// Time between SIGTERM and SIGKILL where nobody says; also for the rest of a group, whatever its members say.
const DEFAULT_GRACE: Duration = Duration::from_secs(3);
/// When to SIGKILL again what is still there.
const DESTROY_INTERVAL: Duration = Duration::from_secs(1);

/// A task, until its last update is acknowledged.
#[derive(Debug)]
pub(super) struct Task {
    pub info: Arc<TaskInfo>,
    /// A number of its own.
    pub launch: u64,
    /// Whether the agent acknowledged any update of it, which means that it knows the task.
    pub is_acknowledged: bool,
    /// The number of its group.
    group: Option<u64>,
    phase: Phase,
    killing: Option<Killing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Ended,
}

#[derive(Debug, Clone, Copy)]
struct Killing {
    /// When it was first asked for.
    since: Duration,
    /// Of the next SIGKILL.
    deadline: Duration,
    is_destroyed: bool,
}

impl Task {
    pub fn is_terminal(&self) -> bool {
        self.phase == Phase::Ended
    }

    pub fn deadline(&self) -> Option<Duration> {
        self.killing
            .filter(|_| !self.is_terminal())
            .map(|killing| killing.deadline)
    }

    /// Whether the SIGKILL is due; the next one then is a while later.
    pub fn is_to_be_destroyed(&mut self, now: Duration) -> bool {
        let is_live = !self.is_terminal();
        let due = self
            .killing
            .as_mut()
            .filter(|killing| is_live && killing.deadline <= now);
        if let Some(killing) = due {
            killing.is_destroyed = true;
            killing.deadline = now + DESTROY_INTERVAL;
            return true;
        }
        false
    }
}

impl Core {
    pub(super) fn live_tasks(&self) -> Vec<String> {
        let live = self.tasks.iter().filter(|(_, task)| !task.is_terminal());
        live.map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn launch(
        &mut self,
        tasks: Vec<TaskInfo>,
        is_group: bool,
        actions: &mut Vec<Action>,
    ) {
        if self.shutdown_deadline.is_some() {
            // The agent reports them when we are gone.
            tracing::warn!("ignored a launch: shutting down");
            return;
        }
        if !self.was_subscribed {
            // Whatever this is, it does not know our framework. Subscribing again tells it that we have no such task.
            tracing::warn!("ignored a launch before SUBSCRIBED");
            return self.resubscribe(actions);
        }
        self.launched += 1;
        let group = is_group.then_some(self.launched);
        for info in tasks {
            let key = info.task_id.value.clone();
            if self.tasks.get(&key).is_some_and(|task| !task.is_terminal()) {
                tracing::warn!(task = key, "ignored a second launch of a task");
                continue;
            }
            self.launched += 1;
            let task = Task {
                info: Arc::new(info),
                launch: self.launched,
                is_acknowledged: false,
                group,
                phase: Phase::Starting,
                killing: None,
            };
            let info = task.info.clone();
            self.tasks.insert(key.clone(), task);
            self.report(&key, Outcome::of(TaskState::Starting), actions);
            actions.push(Action::Launch {
                key,
                task: info,
                in_group: is_group,
            });
        }
    }

    pub(super) fn kill_on_request(
        &mut self,
        now: Duration,
        kill: &Kill,
        actions: &mut Vec<Action>,
    ) {
        let key = &kill.task_id.value;
        let Some(task) = self.tasks.get(key).filter(|task| !task.is_terminal()) else {
            tracing::info!(task = key, "ignored a kill: no such task, or it has ended");
            return;
        };
        let grace =
            |policy: Option<&KillPolicy>| Some(policy?.grace_period.as_ref()?.to_duration());
        let grace = grace(kill.kill_policy.as_ref())
            .or_else(|| grace(task.info.kill_policy.as_ref()))
            .unwrap_or(DEFAULT_GRACE);
        // A repeated kill can only shorten the first one.
        let since = task.killing.map_or(now, |killing| killing.since);
        self.kill(now, key, since + grace, actions);
    }

    /// Has the task end before `deadline`; if it is being killed already, then that may come earlier, but not later.
    pub(super) fn kill(
        &mut self,
        now: Duration,
        key: &str,
        deadline: Duration,
        actions: &mut Vec<Action>,
    ) {
        let Some(task) = self.tasks.get_mut(key).filter(|task| !task.is_terminal()) else {
            return;
        };
        if let Some(killing) = &mut task.killing {
            if !killing.is_destroyed {
                killing.deadline = killing.deadline.min(deadline);
            }
            return;
        }
        task.killing = Some(Killing {
            since: now,
            deadline,
            is_destroyed: false,
        });
        if task.phase == Phase::Running && self.wants_killing {
            self.report(key, Outcome::of(TaskState::Killing), actions);
        }
        actions.push(Action::Terminate {
            key: key.to_owned(),
        });
    }

    pub(super) fn refused(
        &mut self,
        now: Duration,
        key: &str,
        problem: TaskProblem,
        actions: &mut Vec<Action>,
    ) {
        self.end(now, key, Outcome::of_problem(problem), actions);
    }

    pub(super) fn container(
        &mut self,
        now: Duration,
        key: &str,
        event: ContainerEvent,
        actions: &mut Vec<Action>,
    ) {
        let Some(task) = self.tasks.get_mut(key).filter(|task| !task.is_terminal()) else {
            tracing::warn!(
                task = key,
                ?event,
                "an event of a container whose task has ended"
            );
            return;
        };
        let is_killed = task.killing.is_some();
        let outcome = match event {
            ContainerEvent::Running { .. } => {
                if task.phase == Phase::Starting {
                    task.phase = Phase::Running;
                    if !is_killed {
                        self.report(key, Outcome::of(TaskState::Running), actions);
                    }
                }
                return;
            }
            ContainerEvent::LaunchFailed { message } => Outcome::of_failed_launch(message),
            ContainerEvent::Aborted => Outcome::of_abort(),
            ContainerEvent::Exited { status, limit } => Outcome::of_exit(status, limit),
        };
        // What was killed on request ends as killed, however it went.
        let outcome = if is_killed {
            outcome.into_killed()
        } else {
            outcome
        };
        self.end(now, key, outcome, actions);
    }

    fn end(&mut self, now: Duration, key: &str, outcome: Outcome, actions: &mut Vec<Action>) {
        let Some(task) = self.tasks.get_mut(key).filter(|task| !task.is_terminal()) else {
            return;
        };
        task.phase = Phase::Ended;
        let group = task.group.filter(|_| outcome.state != TaskState::Finished);
        self.report(key, outcome, actions);
        if let Some(group) = group {
            self.fail_group(now, group, actions);
        }
    }

    /// Kills what is left of a group. Those that are being killed already are left to that.
    fn fail_group(&mut self, now: Duration, group: u64, actions: &mut Vec<Action>) {
        let is_left = |task: &Task| task.group == Some(group) && task.killing.is_none();
        let others = self.tasks.iter().filter(|(_, task)| is_left(task));
        for key in others.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.kill(now, &key, now + DEFAULT_GRACE, actions);
        }
    }

    fn report(&mut self, key: &str, outcome: Outcome, actions: &mut Vec<Action>) {
        let Some(task) = self.tasks.get(key) else {
            return;
        };
        let (launch, info) = (task.launch, task.info.clone());
        let status = self.status(&info, outcome);
        self.update(launch, status, actions);
    }
}
