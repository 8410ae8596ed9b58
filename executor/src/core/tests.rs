#![allow(clippy::unwrap_used)]
use std::time::Duration;

use tepui_isolators::LimitEvent;

use super::*;
use crate::agent::Environment;
use crate::agent::messages::{
    Acknowledged, CallType, CheckInfo, CheckType, FrameworkCapability, FrameworkInfo, Kill, Launch,
    Subscribed, TaskId, TaskState, TaskStatus,
};

pub fn environment() -> Environment {
    Environment {
        framework_id: "F".to_owned(),
        executor_id: "E".to_owned(),
        agent_id: "S".to_owned(),
        prefix: "slave(1)".to_owned(),
        address: ([127, 0, 0, 1], 5051).into(),
        domain_socket: None,
        sandbox: "/sandbox".into(),
        shutdown_grace: Duration::from_secs(5),
        checkpoint: None,
        token: None,
    }
}

struct Count(u8);

impl Stamp for Count {
    fn uuid(&mut self) -> [u8; 16] {
        self.0 += 1;
        [self.0; 16]
    }

    fn timestamp(&mut self) -> f64 {
        1.5
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn core(has_checkpoint: bool) -> Core {
    let mut environment = environment();
    environment.checkpoint = has_checkpoint.then_some(Checkpoint {
        recovery_timeout: at(900),
        backoff: at(2),
    });
    let mut core = Core::new(&environment, Box::new(Count(0)));
    assert!(matches!(core.start(at(0))[..], [Action::Connect]));
    core
}

fn subscribe(core: &mut Core) -> Vec<Action> {
    let actions = core.step(at(0), Event::Connected);
    assert!(matches!(&actions[..], [Action::Send(call)] if call.subscribe.is_some()));
    let capability = Some(FrameworkCapabilityType::TaskKillingState.into());
    let capabilities = vec![FrameworkCapability { r#type: capability }];
    let framework_info = FrameworkInfo {
        capabilities,
        ..Default::default()
    };
    let subscribed = Some(Subscribed {
        framework_info,
        ..Default::default()
    });
    core.step(
        at(0),
        agent(messages::Event {
            subscribed,
            ..messages::Event::of(EventType::Subscribed)
        }),
    )
}

fn agent(event: messages::Event) -> Event {
    Event::Agent(Box::new(event))
}

fn id(name: &str) -> TaskId {
    TaskId {
        value: name.to_owned(),
    }
}

fn launch(core: &mut Core, name: &str) -> Vec<Action> {
    let task = TaskInfo {
        task_id: id(name),
        ..Default::default()
    };
    let launch = Some(Launch { task });
    core.step(
        at(0),
        agent(messages::Event {
            launch,
            ..messages::Event::of(EventType::Launch)
        }),
    )
}

fn acknowledge(core: &mut Core, now: Duration, status: &TaskStatus) -> Vec<Action> {
    let uuid = status.uuid.clone().unwrap();
    let acknowledged = Some(Acknowledged {
        task_id: status.task_id.clone(),
        uuid,
    });
    core.step(
        now,
        agent(messages::Event {
            acknowledged,
            ..messages::Event::of(EventType::Acknowledged)
        }),
    )
}

fn container(core: &mut Core, name: &str, event: ContainerEvent) -> Vec<Action> {
    core.step(
        at(1),
        Event::Container {
            key: name.to_owned(),
            event,
        },
    )
}

/// The updates among the actions.
fn updates(actions: &[Action]) -> Vec<TaskStatus> {
    let update = |action: &Action| match action {
        Action::Send(call) => call.update.clone().map(|update| update.status),
        _ => None,
    };
    actions.iter().filter_map(update).collect()
}

fn exits(actions: &[Action]) -> Option<i32> {
    actions.iter().find_map(|action| match action {
        Action::Exit(status) => Some(*status),
        _ => None,
    })
}

/// The end of a task whose container ended like this.
fn end(event: ContainerEvent) -> TaskStatus {
    let mut core = core(false);
    subscribe(&mut core);
    launch(&mut core, "t");
    container(&mut core, "t", ContainerEvent::Running { pid: 1 });
    updates(&container(&mut core, "t", event)).pop().unwrap()
}

#[test]
fn a_task_starts_runs_and_finishes_and_then_so_do_we() {
    let mut core = core(false);
    subscribe(&mut core);
    let mut said = updates(&launch(&mut core, "t"));
    said.extend(updates(&container(
        &mut core,
        "t",
        ContainerEvent::Running { pid: 1 },
    )));
    said.extend(updates(&container(
        &mut core,
        "t",
        ContainerEvent::Exited {
            status: 0,
            limit: None,
        },
    )));
    let states: Vec<TaskState> = said
        .iter()
        .map(|status| status.state.try_into().unwrap())
        .collect();
    assert_eq!(
        states,
        [TaskState::Starting, TaskState::Running, TaskState::Finished]
    );
    assert_eq!(said[2].message(), "Command exited with status 0");
    assert_eq!(
        (
            said[2].timestamp,
            said[2].executor_id.clone().unwrap().value
        ),
        (Some(1.5), "E".to_owned())
    );
    let ends: Vec<_> = said
        .iter()
        .map(|status| exits(&acknowledge(&mut core, at(1), status)))
        .collect();
    assert_eq!(ends, [None, None, Some(0)]);
}

#[test]
fn a_memory_limit_is_reported_as_mesos_does() {
    let limit = LimitEvent::Memory {
        limit: 32 << 20,
        peak: 32 << 20,
        statistics: "cache 0\nrss 1".to_owned(),
    };
    let status = end(ContainerEvent::Exited {
        status: 9,
        limit: Some(limit),
    });
    assert_eq!(status.state, TaskState::Failed as i32);
    assert_eq!(
        status.reason,
        Some(Reason::ContainerLimitationMemory.into())
    );
    assert_eq!(
        status.message(),
        "Memory limit exceeded: Requested: 32MB Maximum Used: 32MB\n\nMEMORY STATISTICS:\ncache 0\nrss 1"
    );
    let resources = status.limitation.unwrap().resources;
    assert_eq!(
        (
            resources[0].name.as_str(),
            resources[0].scalar.clone().unwrap().value
        ),
        ("mem", 32.0)
    );
}

#[test]
fn memory_that_ran_out_elsewhere_is_no_limitation() {
    let limit = Some(LimitEvent::OutsideMemory { killed: 1 });
    let status = end(ContainerEvent::Exited {
        status: 9,
        limit: limit.clone(),
    });
    assert_eq!(
        (status.state, status.reason),
        (TaskState::Failed as i32, None)
    );
    assert!(status.limitation.is_none());
    assert!(
        status
            .message()
            .starts_with("Command terminated with signal Killed: the kernel killed a process")
    );
    // The task did its work all the same.
    let status = end(ContainerEvent::Exited { status: 0, limit });
    assert_eq!(status.state, TaskState::Finished as i32);
}

#[test]
fn a_launch_that_fails_says_why() {
    let status = end(ContainerEvent::LaunchFailed {
        message: "no image".to_owned(),
    });
    assert_eq!(status.state, TaskState::Failed as i32);
    assert_eq!(status.reason, Some(Reason::ContainerLaunchFailed.into()));
    assert_eq!(status.message(), "no image");

    let mut core = core(false);
    subscribe(&mut core);
    launch(&mut core, "t");
    let problem = TaskProblem {
        reason: Reason::TaskInvalid,
        message: "container.type".to_owned(),
    };
    let actions = core.step(
        at(1),
        Event::Refused {
            key: "t".to_owned(),
            problem,
        },
    );
    let status = updates(&actions).pop().unwrap();
    assert_eq!(
        (status.state, status.reason),
        (TaskState::Error as i32, Some(Reason::TaskInvalid.into()))
    );
}

#[test]
fn a_kill_goes_from_sigterm_over_the_grace_period_to_sigkill() {
    let mut core = core(false);
    subscribe(&mut core);
    launch(&mut core, "t");
    container(&mut core, "t", ContainerEvent::Running { pid: 1 });
    let kill = Some(Kill {
        task_id: id("t"),
        kill_policy: None,
    });
    let kill = messages::Event {
        kill,
        ..messages::Event::of(EventType::Kill)
    };
    let actions = core.step(at(10), agent(kill.clone()));
    assert!(
        matches!(&actions[..], [Action::Send(call), Action::Terminate { .. }]
        if call.update.as_ref().unwrap().status.state == TaskState::Killing as i32)
    );
    assert!(core.step(at(11), agent(kill)).is_empty());
    assert_eq!(core.deadline(), Some(at(13)));
    assert!(matches!(
        core.step(at(13), Event::Tick)[..],
        [Action::Destroy { .. }]
    ));
    // Until it is gone.
    assert_eq!(core.deadline(), Some(at(14)));
    assert!(matches!(
        core.step(at(14), Event::Tick)[..],
        [Action::Destroy { .. }]
    ));
    let end = ContainerEvent::Exited {
        status: 9,
        limit: None,
    };
    let status = updates(&container(&mut core, "t", end)).pop().unwrap();
    assert_eq!(status.state, TaskState::Killed as i32);
    assert_eq!(status.message(), "Command terminated with signal Killed");
}

#[test]
fn what_is_not_acknowledged_goes_with_the_next_subscription() {
    let mut core = core(true);
    subscribe(&mut core);
    let starting = updates(&launch(&mut core, "t")).pop().unwrap();
    launch(&mut core, "u");
    acknowledge(&mut core, at(1), &starting);
    assert!(matches!(
        core.step(at(1), Event::Disconnected)[..],
        [Action::Connect]
    ));
    assert_eq!(core.deadline(), Some(at(901)));
    // It ends while nobody listens.
    let end = ContainerEvent::Exited {
        status: 0,
        limit: None,
    };
    assert!(container(&mut core, "t", end).is_empty());
    let actions = core.step(at(2), Event::Connected);
    let [Action::Send(call)] = &actions[..] else {
        panic!("{actions:?}")
    };
    let subscribe = call.subscribe.clone().unwrap();
    let tasks: Vec<_> = subscribe
        .unacknowledged_tasks
        .iter()
        .map(|task| task.task_id.value.as_str())
        .collect();
    assert_eq!(tasks, ["u"]);
    let states: Vec<_> = subscribe
        .unacknowledged_updates
        .iter()
        .map(|update| update.status.state)
        .collect();
    assert_eq!(
        states,
        [TaskState::Starting as i32, TaskState::Finished as i32]
    );
    // What is said before SUBSCRIBED comes waits for it.
    assert!(container(&mut core, "u", ContainerEvent::Running { pid: 1 }).is_empty());
    let actions = core.step(at(2), agent(messages::Event::of(EventType::Subscribed)));
    assert_eq!(updates(&actions).len(), 1);
}

#[test]
fn without_checkpointing_a_lost_connection_is_the_end() {
    let mut core = core(false);
    // Before the agent knew us it may be tried again.
    assert!(matches!(
        core.step(at(0), Event::Disconnected)[..],
        [Action::Connect]
    ));
    subscribe(&mut core);
    launch(&mut core, "t");
    assert!(matches!(
        core.step(at(1), Event::Disconnected)[..],
        [Action::Terminate { .. }]
    ));
    let end = ContainerEvent::Exited {
        status: 15,
        limit: None,
    };
    assert_eq!(exits(&container(&mut core, "t", end)), Some(0));
}

#[test]
fn an_agent_that_stays_away_is_given_up() {
    let mut core = core(true);
    assert_eq!(exits(&core.step(at(900), Event::Tick)), Some(1));

    let mut core = self::core(true);
    subscribe(&mut core);
    launch(&mut core, "t");
    core.step(at(10), Event::Disconnected);
    core.step(at(20), Event::Disconnected);
    assert!(core.step(at(909), Event::Tick).is_empty());
    assert!(matches!(
        core.step(at(910), Event::Tick)[..],
        [Action::Terminate { .. }]
    ));
    // The grace period of five seconds, less two to report.
    assert_eq!(core.deadline(), Some(at(913)));
    assert!(matches!(
        core.step(at(913), Event::Tick)[..],
        [Action::Destroy { .. }]
    ));
    assert_eq!(exits(&core.step(at(915), Event::Tick)), Some(1));
}

#[test]
fn shutdown_may_be_the_first_word_of_the_agent() {
    let mut core = core(false);
    core.step(at(0), Event::Connected);
    let actions = core.step(at(0), agent(messages::Event::of(EventType::Shutdown)));
    assert_eq!(exits(&actions), Some(0));
}

#[test]
fn the_last_acknowledgement_is_not_waited_for_without_end() {
    let mut core = core(false);
    subscribe(&mut core);
    launch(&mut core, "t");
    container(
        &mut core,
        "t",
        ContainerEvent::Exited {
            status: 0,
            limit: None,
        },
    );
    assert_eq!(core.deadline(), Some(at(61)));
    assert_eq!(exits(&core.step(at(61), Event::Tick)), Some(0));
}

#[test]
fn odd_events_do_no_harm() {
    let mut core = core(false);
    // A launch before SUBSCRIBED has no framework: subscribing again tells the agent that we do not have the task.
    core.step(at(0), Event::Connected);
    assert!(matches!(launch(&mut core, "t")[..], [Action::Connect]));
    subscribe(&mut core);
    launch(&mut core, "t");
    assert!(launch(&mut core, "t").is_empty());
    for kind in [
        EventType::Message,
        EventType::Heartbeat,
        EventType::Unknown,
        EventType::Kill,
        EventType::Launch,
    ] {
        assert!(
            core.step(at(0), agent(messages::Event::of(kind)))
                .is_empty(),
            "{kind:?}"
        );
    }
    let unknown = messages::Event {
        r#type: Some(77),
        ..Default::default()
    };
    assert!(core.step(at(0), agent(unknown)).is_empty());
    assert!(matches!(
        core.step(at(0), agent(messages::Event::of(EventType::Error)))[..],
        [Action::Connect]
    ));
}

#[test]
fn each_status_of_a_checked_task_says_so() {
    let mut core = core(false);
    subscribe(&mut core);
    let check = CheckInfo {
        r#type: Some(CheckType::Tcp.into()),
        ..Default::default()
    };
    let task = TaskInfo {
        task_id: id("t"),
        check: Some(check),
        ..Default::default()
    };
    let launch = Some(Launch { task });
    let event = messages::Event {
        launch,
        ..messages::Event::of(EventType::Launch)
    };
    let status = updates(&core.step(at(0), agent(event)))
        .pop()
        .unwrap()
        .check_status
        .unwrap();
    assert!(status.r#type() == CheckType::Tcp && status.tcp.is_some() && status.command.is_none());
}

#[test]
fn a_call_says_who_we_are() {
    let mut core = core(false);
    let actions = core.step(at(0), Event::Connected);
    let [Action::Send(call)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(
        (
            call.framework_id.value.as_str(),
            call.executor_id.value.as_str()
        ),
        ("F", "E")
    );
    assert_eq!(call.r#type(), CallType::Subscribe);
}
