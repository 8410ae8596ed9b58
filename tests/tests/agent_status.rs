//! How a task's end reaches the scheduler, through a real master and agent.

use serde_json::json;
use tepui_tests::job::Job;
use tepui_tests::scheduler::{states, update};
use tepui_tests::{Cluster, Ground, Image, Launcher, Task, requires};

const FINISHED: [&str; 3] = ["TASK_STARTING", "TASK_RUNNING", "TASK_FINISHED"];
const FAILED: [&str; 3] = ["TASK_STARTING", "TASK_RUNNING", "TASK_FAILED"];

fn exit_statuses(launcher: Launcher) {
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, launcher);
    assert_eq!(cluster.version(), "1.11.0");
    let tasks = [
        Task::new("good").image(&image).shell("exit 0"),
        Task::new("three").image(&image).shell("exit 3"),
        Task::new("signal").image(&image).shell("kill -SEGV $$"),
    ];
    let events = cluster.run(&Job::new(&ground, &tasks));

    assert_eq!(states(&events, "good"), FINISHED);
    assert_eq!(states(&events, "three"), FAILED);
    assert_eq!(
        update(&events, "three", "TASK_FAILED").text("message"),
        "Command exited with status 3"
    );
    assert_eq!(states(&events, "signal"), FAILED);
    let message = update(&events, "signal", "TASK_FAILED").text("message");
    assert!(
        message.starts_with("Command terminated with signal Segmentation fault"),
        "{message}"
    );
    drop(cluster);
    ground.assert_clean();
}

#[test]
fn the_exit_status_of_a_task_decides_its_state() {
    requires!(root(), busybox(), mesos());
    exit_statuses(Launcher::Posix);
}

#[test]
fn the_exit_status_of_a_task_decides_its_state_under_the_linux_launcher() {
    requires!(root(), busybox(), mesos(), linux_launcher());
    exit_statuses(Launcher::LinuxCpu);
}

#[test]
fn a_task_runs_the_images_entrypoint_when_it_brings_no_command() {
    requires!(root(), busybox(), mesos());
    let ground = Ground::new();
    let image = Image::busybox()
        .with("Entrypoint", json!(["/bin/sh", "-c", "exit \"$0\""]))
        .with("Cmd", json!(["7"]));
    let image = ground.layout(&image);
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let events = cluster.run(&Job::new(&ground, &[Task::new("t1").image(&image)]));
    assert_eq!(
        update(&events, "t1", "TASK_FAILED").text("message"),
        "Command exited with status 7"
    );
}

#[test]
fn a_command_after_two_dashes_serves_tasks_that_bring_none() {
    requires!(root(), busybox(), mesos());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let tasks = [
        Task::new("own").image(&image).shell("exit 5"),
        Task::new("none").image(&image),
    ];
    let job = Job::with_flags(&ground, &tasks, &["--", "/bin/sh", "-c", "'exit 6'"]);
    let events = cluster.run(&job);
    assert_eq!(
        update(&events, "own", "TASK_FAILED").text("message"),
        "Command exited with status 5"
    );
    assert_eq!(
        update(&events, "none", "TASK_FAILED").text("message"),
        "Command exited with status 6"
    );
}

#[test]
fn a_group_brings_its_commands_itself() {
    requires!(root(), busybox(), mesos());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let task = |id: &str| {
        let command = json!({"shell": true, "value": "true"});
        Task::new(id).image(&image).with("command", command)
    };
    let events = cluster.run(&Job::new(&ground, &[task("g1"), task("g2")]).group());
    assert_eq!(states(&events, "g1"), FINISHED);
    assert_eq!(states(&events, "g2"), FINISHED);
}

/// The same task over each transport and encoding that an agent offers.
fn transport(up: &[&str], flags: &[&str]) {
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start_with(&ground, Launcher::Posix, up);
    let task = Task::new("t1").image(&image).shell("true");
    let events = cluster.run(&Job::with_flags(&ground, &[task], flags));
    assert_eq!(states(&events, "t1"), FINISHED);
    drop(cluster);
    ground.assert_clean();
}

#[test]
fn json_in_place_of_protobuf() {
    requires!(root(), busybox(), mesos());
    transport(&[], &["--content-type", "json"]);
}

#[test]
fn the_agents_domain_socket() {
    requires!(root(), busybox(), mesos());
    transport(&["--domain-socket"], &[]);
}

#[test]
fn an_agent_that_demands_the_executors_token() {
    requires!(root(), busybox(), mesos());
    transport(&["--executor-tokens"], &[]);
}

#[test]
fn the_sandbox_is_mapped_and_has_the_output() {
    requires!(root(), busybox(), mesos());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let script = "echo to-stdout; echo to-stderr >&2; echo kept >\"$MESOS_SANDBOX/file\"; \
                  case $MESOS_SANDBOX in /tmp*) exit 1;; esac";
    let events = cluster.run(&Job::new(
        &ground,
        &[Task::new("t1").image(&image).shell(script)],
    ));
    assert_eq!(states(&events, "t1"), FINISHED);
    assert!(cluster.sandbox_file("stdout").contains("to-stdout\n"));
    assert!(cluster.sandbox_file("stderr").contains("to-stderr\n"));
    assert_eq!(cluster.sandbox_file("file"), "kept\n");
}
