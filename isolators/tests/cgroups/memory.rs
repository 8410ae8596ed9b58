//! Whose memory limit was hit is told rightly.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tepui_isolators::cgroups::hierarchy::Version;
use tepui_isolators::{LimitEvent, Watch};

use crate::container::Container;

const MIB: u64 = 1 << 20;

/// Waits until the watch has something to say.
fn next_event(watch: &mut dyn Watch) -> LimitEvent {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = deadline
            .checked_duration_since(Instant::now())
            .expect("an event within a minute");
        let flags = match watch.is_priority() {
            true => PollFlags::PRI,
            false => PollFlags::IN,
        };
        let pause = Timespec::try_from(left).expect("a short time");
        let descriptor = watch.descriptor();
        poll(&mut [PollFd::new(&descriptor, flags)], Some(&pause)).expect("poll");
        if let Some(event) = watch.check().expect("check") {
            return event;
        }
    }
}

fn memory(limit: u64) -> String {
    format!(r#"{{"memory":{{"limit":{limit},"swap":{limit}}}}}"#)
}

#[track_caller]
fn assert_own_limit(event: &LimitEvent, expected: u64) {
    let LimitEvent::Memory {
        limit,
        peak,
        statistics,
    } = event
    else {
        panic!("{event:?}");
    };
    assert_eq!(*limit, expected);
    assert!(*peak > expected / 2 && *peak <= expected, "peak {peak}");
    assert!(!statistics.is_empty());
}

/// Uses memory without end.
const HOG: &str = "tail /dev/zero";

#[test]
fn a_limit_below_the_size_of_a_shell_takes_effect() {
    requires_root!();
    let container = Container::prepare(&memory(MIB));
    let limit = container.file("memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, MIB.to_string());
    let mut watch = container.watch();
    let whole = format!("for door in \"$@\"; do echo 0 > $door || exit 99; done; exec {HOG}");
    let mut child = Command::new("/bin/sh")
        .args(["-c", &whole, "sh"])
        .args(container.doors())
        .spawn()
        .expect("a shell");
    assert_eq!(child.wait().expect("its end").signal(), Some(9));
    assert_own_limit(&next_event(watch.as_mut()), MIB);
}

#[test]
fn our_own_limit_is_told_when_the_first_process_is_the_victim() {
    requires_root!();
    let container = Container::prepare(&memory(24 * MIB));
    let mut watch = container.watch();
    let mut workload = container.start(&format!("exec {HOG}"));
    assert_eq!(watch.check().expect("check"), None);
    workload.go();
    assert_own_limit(&next_event(watch.as_mut()), 24 * MIB);
    assert_eq!(workload.signal(), Some(9));
}

#[test]
fn our_own_limit_is_told_when_a_child_is_the_victim_and_its_parent_lives_on() {
    requires_root!();
    let container = Container::prepare(&memory(24 * MIB));
    let mut watch = container.watch();
    let mut workload = container.start(&format!("{HOG}; echo survived; exec sleep 1000"));
    workload.go();
    assert_own_limit(&next_event(watch.as_mut()), 24 * MIB);
    assert_eq!(workload.line(), "survived");
    assert!(workload.child.try_wait().expect("a state").is_none());
}

/// A script that makes a cgroup below the container's memory cgroup and uses memory without end in it.
fn hog_in_a_cgroup_below(container: &Container) -> String {
    let memory = container.directory("memory");
    let own = memory.path().display();
    // v2: processes and passed-down controllers exclude each other in one cgroup, so the shell moves first.
    let pass_down = match memory.version() {
        Version::V1 => "true".to_owned(),
        Version::V2 => format!(
            "mkdir {own}/rest && echo 0 > {own}/rest/cgroup.procs && echo +memory > {own}/cgroup.subtree_control"
        ),
    };
    format!(
        "{pass_down} && mkdir {own}/sub && sh -c 'echo 0 > {own}/sub/cgroup.procs && exec {HOG}'; echo after"
    )
}

#[test]
fn our_own_limit_is_told_when_the_victim_is_in_a_cgroup_below() {
    requires_root!();
    let container = Container::prepare(&memory(24 * MIB));
    let mut watch = container.watch();
    let mut workload = container.start(&hog_in_a_cgroup_below(&container));
    workload.go();
    assert_own_limit(&next_event(watch.as_mut()), 24 * MIB);
    assert_eq!(workload.line(), "after");
}

#[test]
fn at_exit_tells_what_no_check_has_told() {
    requires_root!();
    let container = Container::prepare(&memory(24 * MIB));
    let mut watch = container.watch();
    container.run(HOG);
    assert_own_limit(
        &watch.at_exit().expect("at exit").expect("an event"),
        24 * MIB,
    );
    assert_eq!(watch.at_exit().expect("at exit"), None, "told once");
}

/// Prepares a container whose parent has the lower limit.
fn below_a_limited_parent() -> Container {
    let container = Container::prepare(&memory(256 * MIB));
    let memory = container.directory("memory");
    let parent = memory.parent_path().expect("not the root");
    let (file, swap) = match memory.version() {
        Version::V1 => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        Version::V2 => ("memory.max", "memory.swap.max"),
    };
    fs::write(parent.join(file), (24 * MIB).to_string()).expect("the parent's limit");
    let swap_value = match memory.version() {
        Version::V1 => (24 * MIB).to_string(),
        Version::V2 => "0".to_owned(),
    };
    fs::write(parent.join(swap), swap_value).expect("the parent's limit");
    container
}

#[test]
fn a_limit_above_us_is_not_taken_for_ours() {
    requires_root!();
    let container = below_a_limited_parent();
    let mut watch = container.watch();
    container.run(HOG);
    let event = watch.at_exit().expect("at exit");
    assert_eq!(event, Some(LimitEvent::OutsideMemory { killed: 1 }));
}

#[test]
fn a_limit_above_us_is_not_taken_for_ours_when_the_victim_is_in_a_cgroup_below() {
    requires_root!();
    let container = below_a_limited_parent();
    let mut watch = container.watch();
    container.run(&hog_in_a_cgroup_below(&container));
    let event = watch.at_exit().expect("at exit");
    assert_eq!(event, Some(LimitEvent::OutsideMemory { killed: 1 }));
}

#[test]
fn the_limit_of_a_cgroup_that_the_workload_made_is_its_own_affair() {
    requires_root!();
    let container = Container::prepare(&memory(256 * MIB));
    let memory = container.directory("memory");
    let limit = memory.path().join("sub").join(match memory.version() {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    });
    let script = hog_in_a_cgroup_below(&container).replace(
        "&& sh -c",
        &format!("&& echo 16M > {} && sh -c", limit.display()),
    );
    let mut watch = container.watch();
    assert!(container.run(&script).contains("after"));
    assert_eq!(watch.at_exit().expect("at exit"), None);
}

#[test]
fn a_removed_cgroup_is_no_event() {
    requires_root!();
    let container = Container::prepare(&memory(24 * MIB));
    let mut watch = container.watch();
    container.cleanup().expect("cleanup");
    // v1 signals the eventfd when the cgroup goes.
    assert_eq!(watch.check().expect("check"), None);
}
