//! The agent is SIGKILLed and comes back while a checkpointed task runs.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use tepui_tests::job::Job;
use tepui_tests::scheduler::{states, update};
use tepui_tests::{Cluster, Ground, Image, Launcher, Task, requires};

const CHECKPOINT: [&str; 3] = ["--checkpoint", "--failover-timeout", "60"];
const UNTIL_GO: &str = "while ! test -e \"$MESOS_SANDBOX/go\"; do usleep 10000; done; exit 4";

/// When the task ends: while the agent is down, or after it is back.
#[derive(Clone, Copy, PartialEq)]
enum End {
    WhileDown,
    AfterReturn,
}

/// How often the agent was given each update, by state: a uuid more than once is a repetition, two uuids of one state
/// are two updates.
fn updates_at_the_agent(cluster: &Cluster) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in cluster.agent_log().lines() {
        let Some((_, after)) = line.split_once("Handling status update ") else {
            continue;
        };
        let Some((state, after)) = after.split_once(" (Status UUID: ") else {
            continue;
        };
        let (uuid, _) = after.split_once(')').expect("the uuid's bracket is closed");
        found
            .entry(state.to_owned())
            .or_default()
            .push(uuid.to_owned());
    }
    found
}

fn recovery(launcher: Launcher, end: End) {
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, launcher);
    let job = Job::new(&ground, &[Task::new("t1").image(&image).shell(UNTIL_GO)]);
    let mut scheduler = cluster.scheduler(&job, &CHECKPOINT);
    scheduler.update("t1", "TASK_RUNNING");
    let before = ground.container();
    let go = || {
        for sandbox in cluster.sandboxes() {
            fs::write(sandbox.join("go"), "").expect("the sandbox");
        }
    };
    let is_alive = || kill(Pid::from_raw(before.pid), None).is_ok();

    cluster.kill_agent();
    assert!(is_alive(), "the task died with the agent");
    if end == End::WhileDown {
        go();
        tepui_tests::wait::until("the task ends", std::time::Duration::from_secs(10), || {
            (!is_alive()).then_some(())
        });
    }
    cluster.start_agent();
    if end == End::AfterReturn {
        assert_eq!(
            ground.container().pid,
            before.pid,
            "another process runs now"
        );
        assert!(is_alive());
        go();
    }
    let events = scheduler.finish();
    assert_eq!(
        states(&events, "t1"),
        ["TASK_STARTING", "TASK_RUNNING", "TASK_FAILED"]
    );
    assert_eq!(
        update(&events, "t1", "TASK_FAILED").text("message"),
        "Command exited with status 4"
    );
    for (state, uuids) in updates_at_the_agent(&cluster) {
        assert_eq!(
            uuids.len(),
            1,
            "the agent was given {state} more than once: {uuids:?}"
        );
    }
    drop(cluster);
    ground.assert_clean();
}

#[test]
fn a_task_outlives_its_agent_and_its_end_is_reported_once() {
    requires!(root(), busybox(), mesos());
    recovery(Launcher::Posix, End::AfterReturn);
}

#[test]
fn a_task_outlives_its_agent_under_the_linux_launcher() {
    requires!(root(), busybox(), mesos(), linux_launcher());
    recovery(Launcher::LinuxCpu, End::AfterReturn);
}

#[test]
fn an_end_while_the_agent_is_down_is_reported_once() {
    requires!(root(), busybox(), mesos());
    recovery(Launcher::Posix, End::WhileDown);
}

#[test]
fn without_checkpointing_the_task_ends_with_its_agent() {
    requires!(root(), busybox(), mesos());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let job = Job::new(
        &ground,
        &[Task::new("t1").image(&image).shell("exec sleep 1000")],
    );
    let mut scheduler = cluster.scheduler(&job, &[]);
    scheduler.update("t1", "TASK_RUNNING");
    let container = ground.container();
    cluster.kill_agent();
    scheduler.update("t1", "TASK_LOST");
    tepui_tests::wait::until("the task ends", std::time::Duration::from_secs(10), || {
        kill(Pid::from_raw(container.pid), None)
            .is_err()
            .then_some(())
    });
    drop(scheduler);
    drop(cluster);
    ground.assert_clean();
}
