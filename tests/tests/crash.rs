//! The executor or the launcher dies without warning: nothing of the task survives, and the next start of any tepui
//! leaves nothing of it on the disk.
//!
//! Under the agent's posix launcher, which does nothing about processes with a session of their own.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tepui_tests::ground::Container;
use tepui_tests::host::{self, Process};
use tepui_tests::job::Job;
use tepui_tests::tarball::Entry;
use tepui_tests::{Cluster, Ground, Image, Launcher, Task, requires, wait};

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Executor,
    Launcher,
    Both,
}

/// The launcher is the parent of the container's first process and process 1 of a pid namespace directly below ours;
/// the executor is its parent.
fn executor_and_launcher(container: &Container) -> (Process, Process) {
    let parent = |process: &Process| Process::read(process.parent).expect("a parent");
    let first = Process::read(container.pid).expect("the container's first process");
    let launcher = parent(&first);
    let executor = parent(&launcher);
    let depth = executor.nspid.len();
    assert_eq!(
        launcher.nspid.get(depth..),
        Some([1].as_slice()),
        "{launcher:?}"
    );
    assert!(
        executor
            .arguments
            .iter()
            .any(|argument| argument == "executor"),
        "{executor:?}"
    );
    (executor, launcher)
}

fn crash(victim: Victim) {
    let ground = Ground::new();
    let escapee = fs::read(env!("CARGO_BIN_EXE_escapee")).expect("it is built with the tests");
    let image = Image::busybox().layer(vec![Entry::file("bin/escapee", 0o755, escapee)]);
    let image = ground.layout(&image);
    let mark = format!("{}escapee", ground.name());
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let command = json!({"shell": false, "value": "/bin/escapee", "arguments": ["escapee", mark]});
    let job = Job::new(&ground, &[Task::new("t1").image(&image).command(command)]);
    let mut scheduler = cluster.scheduler(&job, &[]);
    scheduler.update("t1", "TASK_RUNNING");
    wait::until("the workload escapes", Duration::from_secs(10), || {
        cluster
            .sandbox_file("stdout")
            .contains("escaped")
            .then_some(())
    });
    let container = ground.container();
    let marked = || -> Vec<Process> {
        let is_marked = |process: &Process| process.arguments.contains(&mark);
        host::processes().into_iter().filter(is_marked).collect()
    };
    // Beside init, which has the mark among its arguments too.
    let escapees = marked()
        .into_iter()
        .filter(|process| process.arguments[0] == "escapee");
    assert_eq!(
        escapees.count(),
        2,
        "the workload and its stray: {:?}",
        marked()
    );

    let (executor, launcher) = executor_and_launcher(&container);
    let victims = match victim {
        Victim::Executor => vec![&executor],
        Victim::Launcher => vec![&launcher],
        Victim::Both => vec![&executor, &launcher],
    };
    for process in victims {
        // The second of two may already be gone with the first.
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
    let gone = wait::within(Duration::from_secs(2), || marked().is_empty().then_some(()));
    assert!(
        gone.is_some(),
        "still there 2 s after the crash: {:?}",
        marked()
    );
    scheduler.update("t1", "TASK_FAILED");
    let events = scheduler.finish();
    println!(
        "{victim:?} killed: {}",
        events.iter().map(|e| e.text("message")).collect::<String>()
    );
    drop(cluster);

    ground.run(&[&image, "true"]).success();
    ground.assert_clean();
}

#[test]
fn nothing_survives_the_executor() {
    requires!(root(), busybox(), mesos());
    crash(Victim::Executor);
}

#[test]
fn nothing_survives_the_launcher() {
    requires!(root(), busybox(), mesos());
    crash(Victim::Launcher);
}

#[test]
fn nothing_survives_both() {
    requires!(root(), busybox(), mesos());
    crash(Victim::Both);
}
