//! A task over its memory: reported as that limit, whoever in the container was killed, and only when it was that limit.

use serde_json::Value;
use tepui_tests::job::Job;
use tepui_tests::scheduler::{states, update};
use tepui_tests::{Cluster, Event, Ground, Image, Launcher, Task, requires};

const MEGABYTES: u64 = 48;
/// busybox' tail keeps the last line that it read, here one without an end.
const HOG: &str = "tail /dev/zero";

fn assert_limited(events: &[Event], task: &str) {
    let failed = update(events, task, "TASK_FAILED");
    assert_eq!(
        failed.text("reason"),
        "REASON_CONTAINER_LIMITATION_MEMORY",
        "{failed:?}"
    );
    let message = failed.text("message");
    assert!(
        message.starts_with("Memory limit exceeded: Requested: 48MB Maximum Used: "),
        "{message}"
    );
    assert_eq!(
        states(events, task).last().map(String::as_str),
        Some("TASK_FAILED")
    );
}

/// The `limitation` of the update, as it came over the wire.
fn limitation(ground: &Ground, task: &str) -> Value {
    let wire = std::fs::read_to_string(ground.path("wire")).expect("the scheduler keeps its wire");
    let events = wire
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("< ")?).ok());
    let mut statuses = events.map(|event| event["update"]["status"].clone());
    let failed = statuses.find(|s| s["task_id"]["value"] == task && s["state"] == "TASK_FAILED");
    failed
        .map(|status| status["limitation"].clone())
        .unwrap_or_default()
}

fn over_its_memory(launcher: Launcher, script: &str) {
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, launcher);
    let task = Task::new("t1")
        .image(&image)
        .resources(0.1, MEGABYTES)
        .shell(script);
    let events = cluster.run(&Job::new(&ground, &[task]));
    assert_limited(&events, "t1");
    let limitation = limitation(&ground, "t1");
    let resource = &limitation["resources"][0];
    assert_eq!(resource["name"], "mem", "{limitation}");
    // What was used; the kernel counts in batches, so not quite the limit.
    let megabytes = resource["scalar"]["value"].as_f64().unwrap_or_default();
    assert!((47.0..=48.5).contains(&megabytes), "{limitation}");
    drop(cluster);
    ground.assert_clean();
}

#[test]
fn the_tasks_first_process_is_the_victim() {
    requires!(root(), busybox(), mesos());
    over_its_memory(Launcher::Posix, &format!("exec {HOG}"));
}

#[test]
fn the_tasks_first_process_is_the_victim_under_the_linux_launcher() {
    requires!(root(), busybox(), mesos(), linux_launcher());
    over_its_memory(Launcher::LinuxCpu, &format!("exec {HOG}"));
}

#[test]
fn a_child_is_the_victim_while_the_first_process_lives_on() {
    requires!(root(), busybox(), mesos());
    over_its_memory(Launcher::Posix, &format!("{HOG}; exec sleep 1000"));
}

#[test]
fn a_process_in_a_cgroup_below_is_the_victim() {
    requires!(root(), busybox(), mesos(), cgroup_v1());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let wait = "while ! test -e \"$MESOS_SANDBOX/go\"; do usleep 10000; done";
    let script = format!("echo ready; {wait}; {HOG}; exec sleep 1000");
    let task = Task::new("t1")
        .image(&image)
        .resources(0.1, MEGABYTES)
        .shell(&script);
    let mut scheduler = cluster.scheduler(&Job::new(&ground, &[task]), &[]);
    scheduler.update("t1", "TASK_RUNNING");
    // The container sees its cgroups read-only, so the test moves its processes for it, as a workload with a writable
    // cgroup would: into a child of the container's memory cgroup, which has no limit of its own.
    let container = ground.container();
    let member = |process: &&tepui_tests::host::Process| process.cgroups.contains(&container.id);
    let processes = ground.processes();
    let process = processes
        .iter()
        .find(member)
        .expect("a process in the container's cgroups");
    let path = process
        .cgroups
        .lines()
        .find_map(|line| line.split_once(":memory:"))
        .expect("a memory cgroup")
        .1;
    let below = std::path::PathBuf::from(format!("/sys/fs/cgroup/memory{path}/below"));
    std::fs::create_dir(&below).expect("a cgroup");
    for process in processes.iter().filter(member) {
        let moved = std::fs::write(below.join("cgroup.procs"), process.pid.to_string());
        // ESRCH: the shell's usleep of a moment ago has ended.
        let has_ended = |error: &std::io::Error| error.raw_os_error() == Some(nix::libc::ESRCH);
        assert!(moved.as_ref().err().is_none_or(has_ended), "{moved:?}");
    }
    for sandbox in cluster.sandboxes() {
        std::fs::write(sandbox.join("go"), "").expect("the sandbox");
    }
    let events = scheduler.finish();
    assert_limited(&events, "t1");
    drop(cluster);
    ground.assert_clean();
}

#[test]
fn a_kill_by_the_cgroup_above_is_a_failure_without_limitation() {
    requires!(root(), busybox(), mesos(), cgroup_v1());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    // The parent of all of this ground's containers has less than the task may use.
    let parent = std::path::PathBuf::from(format!("/sys/fs/cgroup/memory/{}", ground.name()));
    std::fs::create_dir(&parent).expect("a cgroup");
    std::fs::write(parent.join("memory.limit_in_bytes"), "24M").expect("a limit");
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let task = Task::new("t1")
        .image(&image)
        .resources(0.1, MEGABYTES)
        .shell(&format!("exec {HOG}"));
    let events = cluster.run(&Job::new(&ground, &[task]));
    let failed = update(&events, "t1", "TASK_FAILED");
    assert_ne!(
        failed.text("reason"),
        "REASON_CONTAINER_LIMITATION_MEMORY",
        "{failed:?}"
    );
    assert!(failed.text("message").contains("memory"), "{failed:?}");
    assert_eq!(limitation(&ground, "t1"), Value::Null);
    drop(cluster);
    ground.assert_clean();
}
