//! Nothing is left of a container, whatever is in it and whoever else is beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tepui_isolators::cgroups::directory::Directory;
use tepui_isolators::cgroups::hierarchy::Hierarchies;

use crate::container::Container;

#[test]
fn removal_kills_what_is_left_in_every_cgroup() {
    requires_root!();
    let container = Container::prepare("{}");
    let memory = container.directory("memory");
    let sub = memory.path().join("sub");
    let mut workload = container.start(&format!(
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 1000; done' & mkdir {0}; echo started; \
         while :; do sleep 1000; done",
        sub.display()
    ));
    workload.go();
    assert_eq!(workload.line(), "started");
    let started = Instant::now();
    container.cleanup().expect("cleanup");
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(workload.signal(), Some(9));
    assert_eq!(container.left(), Vec::<PathBuf>::new());
    container.cleanup().expect("a second time");
}

#[test]
fn removal_takes_frozen_processes_too() {
    requires_root!();
    let container = Container::prepare("{}");
    let mut workload = container.start("sleep 1000 & echo started; wait");
    workload.go();
    assert_eq!(workload.line(), "started");
    let freezer = Directory::of("freezer", &container.id, &container.declaration.cgroups);
    match freezer.expect("a layout") {
        Some(v1) => {
            v1.write("freezer.state", "FROZEN").expect("freeze");
            wait_for(&v1.path().join("freezer.state"), "FROZEN");
        }
        None => {
            let v2 = container.directory("memory");
            v2.write("cgroup.freeze", "1").expect("freeze");
            wait_for(&v2.path().join("cgroup.events"), "frozen 1");
        }
    }
    container.cleanup().expect("cleanup");
    assert_eq!(workload.signal(), Some(9));
}

/// Reads a file until it has this line.
fn wait_for(path: &Path, line: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fs::read_to_string(path)
        .expect("a file")
        .lines()
        .any(|l| l == line)
    {
        assert!(Instant::now() < deadline, "{line} in {}", path.display());
        std::thread::yield_now();
    }
}

#[test]
fn removal_outruns_a_fork_bomb() {
    requires_root!();
    let container = Container::prepare(r#"{"pids":{"limit":60}}"#);
    let mut workload = container
        .start("exec 2>/dev/null; bomb() { bomb & bomb & }; bomb; echo started; sleep 1000");
    workload.go();
    assert_eq!(workload.line(), "started");
    container.cleanup().expect("cleanup");
}

#[test]
fn an_unknown_container_is_cleaned_up_without_complaint() {
    requires_root!();
    let parent = format!("/tepui-test-cg-{}-none", std::process::id());
    let container = Container::below(&parent, "never-seen", "{}");
    container.cleanup().expect("cleanup");
}

#[test]
fn containers_that_come_and_go_share_a_parent() {
    requires_root!();
    let parent = format!("/tepui-test-cg-{}-shared", std::process::id());
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let parent = &parent;
            scope.spawn(move || {
                for _ in 0..100 {
                    let id = format!("box-{worker}");
                    let container = Container::below(parent, &id, r#"{"pids":{"limit":5}}"#);
                    container.prepare_all().expect("prepare");
                    assert_eq!(container.file("pids", "pids.max", "pids.max"), "5");
                    container.cleanup().expect("cleanup");
                    // The parent may belong to another worker now: only the last drop checks it.
                    std::mem::forget(container);
                }
            });
        }
    });
    drop(Container::below(&parent, "last", "{}"));
}

#[test]
fn a_nested_container_leaves_the_cgroup_of_its_agent_alone() {
    requires_root!();
    let host = Hierarchies::of_this_host().expect("a layout");
    let Some(freezer) = host.of("freezer") else {
        eprintln!("skipped: cgroup v2 is never nested");
        return;
    };
    let agent = format!("/tepui-test-cg-{}-agent", std::process::id());
    let executor = freezer.directory(Path::new(&agent));
    fs::create_dir(&executor).expect("the executor's cgroup");
    let mut container = Container::below(&format!("{agent}-else"), "box", "{}");
    let below = Path::new(&agent).join("tepui");
    container
        .declaration
        .cgroups
        .nested
        .insert("freezer".into(), below);
    container.prepare_all().expect("prepare");
    assert!(executor.join("tepui/box/tasks").exists());
    container.cleanup().expect("cleanup");
    let left: Vec<_> = fs::read_dir(&executor)
        .expect("it is still there")
        .filter_map(|entry| entry.ok().filter(|e| e.path().is_dir()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    fs::remove_dir(&executor).expect("nothing is in it");
}
