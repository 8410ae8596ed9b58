//! KILL from a real scheduler: SIGTERM, the grace period, SIGKILL.

use tepui_tests::job::Job;
use tepui_tests::scheduler::{states, update};
use tepui_tests::{Cluster, Event, Ground, Image, Launcher, Task, output, requires};

/// Seconds from the scheduler's KILL to TASK_KILLED.
fn killed_after(events: &[Event], task: &str) -> f64 {
    let kill = events
        .iter()
        .find(|e| e.text("command").starts_with(&format!("kill {task}")));
    let kill = kill.unwrap_or_else(|| panic!("{task} was not killed: {events:#?}"));
    update(events, task, "TASK_KILLED").time() - kill.time()
}

fn a_kill(launcher: Launcher) {
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, launcher);
    let tasks = [
        Task::new("exec").image(&image).shell("exec sleep 1000"),
        Task::new("shell").image(&image).shell("sleep 1000; true"),
    ];
    let job = Job::new(&ground, &tasks)
        .when("exec", "TASK_RUNNING", "kill exec 5")
        .when("shell", "TASK_RUNNING", "kill shell 5");
    let events = cluster.run(&job);
    assert_eq!(
        states(&events, "exec"),
        ["TASK_STARTING", "TASK_RUNNING", "TASK_KILLED"]
    );
    for task in ["exec", "shell"] {
        let seconds = killed_after(&events, task);
        output::say(&format!(
            "{task}: TASK_KILLED {seconds:.3} s after KILL ({launcher:?} launcher)"
        ));
        assert!(seconds < 0.2, "{task} took {seconds} s");
    }
    drop(cluster);
    ground.assert_clean();
}

#[test]
fn a_task_that_sleeps_is_killed_at_once() {
    requires!(root(), busybox(), mesos());
    a_kill(Launcher::Posix);
}

#[test]
fn a_task_that_sleeps_is_killed_at_once_under_the_linux_launcher() {
    requires!(root(), busybox(), mesos(), linux_launcher());
    a_kill(Launcher::LinuxCpu);
}

#[test]
fn a_task_that_ignores_sigterm_is_killed_after_its_grace_period() {
    requires!(root(), busybox(), mesos());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let deaf = "trap '' TERM; echo ready; while true; do sleep 1000; done";
    let tasks = [
        Task::new("call").image(&image).shell(deaf), // the grace period comes with the KILL
        Task::new("task").image(&image).shell(deaf).grace(1), // ... or with the task
    ];
    let mut scheduler = cluster.scheduler(&Job::new(&ground, &tasks), &[]);
    for task in ["call", "task"] {
        scheduler.update(task, "TASK_RUNNING");
    }
    tepui_tests::wait::until(
        "both ignore SIGTERM",
        std::time::Duration::from_secs(10),
        || (cluster.sandbox_file("stdout").matches("ready").count() == 2).then_some(()),
    );
    scheduler.command("kill call 2");
    scheduler.command("kill task");
    let events = scheduler.finish();
    for (task, grace) in [("call", 2.0), ("task", 1.0)] {
        let seconds = killed_after(&events, task);
        assert!(
            (grace..grace + 0.5).contains(&seconds),
            "{task}: {seconds} s, its grace is {grace} s"
        );
    }
    drop(cluster);
    ground.assert_clean();
}

#[test]
fn a_shutdown_ends_all_tasks_as_killed() {
    requires!(root(), busybox(), mesos());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let tasks = ["t1", "t2"].map(|id| Task::new(id).image(&image).shell("sleep 1000"));
    let mut scheduler = cluster.scheduler(&Job::new(&ground, &tasks), &[]);
    scheduler.update("t1", "TASK_RUNNING");
    scheduler.update("t2", "TASK_RUNNING");
    scheduler.command("shutdown");
    let events = scheduler.finish();
    for task in ["t1", "t2"] {
        assert_eq!(
            states(&events, task).last().map(String::as_str),
            Some("TASK_KILLED"),
            "{events:#?}"
        );
    }
    drop(cluster);
    ground.assert_clean();
}
