//! What is said of a task: state, reason, message.

use bytes::Bytes;
use tepui_isolators::LimitEvent;

use super::exit::describe_exit;
use super::{Core, TaskProblem};
use crate::agent::messages::{
    CheckInfo, CheckStatusInfo, CheckType, ExecutorId, Reason, Resource, Source, TaskInfo,
    TaskResourceLimitation, TaskState, TaskStatus,
};

/// What a status says beyond the task's name.
#[derive(Debug)]
pub(super) struct Outcome {
    pub state: TaskState,
    reason: Option<Reason>,
    message: Option<String>,
    limitation: Option<TaskResourceLimitation>,
}

impl Outcome {
    pub fn of(state: TaskState) -> Self {
        Outcome {
            state,
            reason: None,
            message: None,
            limitation: None,
        }
    }

    fn failed(reason: Option<Reason>, message: String) -> Self {
        Outcome {
            reason,
            message: Some(message),
            ..Outcome::of(TaskState::Failed)
        }
    }

    pub fn of_failed_launch(message: String) -> Self {
        Outcome::failed(Some(Reason::ContainerLaunchFailed), message)
    }

    pub fn of_abort() -> Self {
        Outcome::of_failed_launch("The launch was aborted".to_owned())
    }

    pub fn of_problem(problem: TaskProblem) -> Self {
        let state = match problem.reason {
            Reason::TaskInvalid => TaskState::Error,
            _ => TaskState::Failed,
        };
        Outcome {
            state,
            ..Outcome::failed(Some(problem.reason), problem.message)
        }
    }

    pub fn of_exit(status: i32, limit: Option<LimitEvent>) -> Self {
        let exit = describe_exit(status);
        match limit {
            Some(LimitEvent::Memory {
                limit,
                peak,
                statistics,
            }) => {
                let used = if peak > 0 { peak } else { limit };
                #[expect(clippy::cast_precision_loss, reason = "megabytes, for a person")]
                let megabytes = used as f64 / f64::from(1 << 20);
                let message = format!(
                    "Memory limit exceeded: Requested: {} Maximum Used: {}\n\nMEMORY STATISTICS:\n{statistics}",
                    in_bytes(limit),
                    in_bytes(used)
                );
                let resources = vec![Resource::scalar("mem", megabytes)];
                Outcome {
                    limitation: Some(TaskResourceLimitation { resources }),
                    ..Outcome::failed(Some(Reason::ContainerLimitationMemory), message)
                }
            }
            _ if status == 0 => Outcome {
                message: Some(exit),
                ..Outcome::of(TaskState::Finished)
            },
            Some(LimitEvent::OutsideMemory { killed }) => {
                let processes = if killed == 1 {
                    "a process"
                } else {
                    "processes"
                };
                let message = format!(
                    "{exit}: the kernel killed {processes} of the task because memory ran out on the node or in \
                     the executor's cgroup; the task was within its own limit"
                );
                Outcome::failed(None, message)
            }
            None => Outcome::failed(None, exit),
        }
    }

    /// The same, for a task that was killed on request. Without its reason, since this was not why.
    pub fn into_killed(self) -> Self {
        Outcome {
            message: self.message,
            ..Outcome::of(TaskState::Killed)
        }
    }
}

impl Core {
    pub(super) fn status(&mut self, task: &TaskInfo, outcome: Outcome) -> TaskStatus {
        TaskStatus {
            task_id: task.task_id.clone(),
            state: outcome.state.into(),
            message: outcome.message,
            source: Some(Source::Executor.into()),
            reason: outcome.reason.map(Into::into),
            executor_id: Some(ExecutorId {
                value: self.executor_id.clone(),
            }),
            timestamp: Some(self.stamp.timestamp()),
            uuid: Some(Bytes::copy_from_slice(&self.stamp.uuid())),
            check_status: task.check.as_ref().map(no_result),
            limitation: outcome.limitation,
            ..Default::default()
        }
    }
}

/// Each status of a checked task says which check it has, even without a result.
fn no_result(check: &CheckInfo) -> CheckStatusInfo {
    let is = |kind| check.r#type() == kind;
    CheckStatusInfo {
        r#type: check.r#type,
        command: is(CheckType::Command).then(Default::default),
        http: is(CheckType::Http).then(Default::default),
        tcp: is(CheckType::Tcp).then(Default::default),
    }
}

/// As Mesos prints bytes: in the largest unit that leaves no fraction.
fn in_bytes(bytes: u64) -> String {
    let units = [(40, "TB"), (30, "GB"), (20, "MB"), (10, "KB")];
    let exact = units
        .into_iter()
        .find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    match exact {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_printed_as_mesos_does() {
        let printed = [0, 1000, 33_550_336, 32 << 20, 3 << 30, 1 << 40].map(in_bytes);
        assert_eq!(printed, ["0B", "1000B", "32764KB", "32MB", "3GB", "1TB"]);
    }
}
