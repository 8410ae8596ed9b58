//! What is declared is what the kernel has, and what a process inside is seen to have.

use std::process::{Command, Stdio};

use tepui_isolators::Verdict;
use tepui_isolators::cgroups::hierarchy::Version;

use crate::container::Container;

#[test]
fn limits_are_in_the_files_of_the_kernel() {
    requires_root!();
    let container = Container::prepare(
        r#"{"cpu":{"shares":512,"quota":20000,"period":50000},
            "memory":{"limit":67108864,"swap":100663296,"reservation":33554432},
            "pids":{"limit":17}}"#,
    );
    let memory = |v1, v2| container.file("memory", v1, v2);
    let v2 = container.directory("memory").version() == Version::V2;
    assert_eq!(memory("memory.limit_in_bytes", "memory.max"), "67108864");
    let swap = if v2 { "33554432" } else { "100663296" };
    assert_eq!(
        memory("memory.memsw.limit_in_bytes", "memory.swap.max"),
        swap
    );
    assert_eq!(
        memory("memory.soft_limit_in_bytes", "memory.low"),
        "33554432"
    );
    assert_eq!(container.file("pids", "pids.max", "pids.max"), "17");
    if v2 {
        assert_eq!(container.file("cpu", "", "cpu.weight"), "59");
        assert_eq!(container.file("cpu", "", "cpu.max"), "20000 50000");
    } else {
        assert_eq!(container.file("cpu", "cpu.shares", ""), "512");
        assert_eq!(container.file("cpu", "cpu.cfs_quota_us", ""), "20000");
        assert_eq!(container.file("cpu", "cpu.cfs_period_us", ""), "50000");
    }
}

#[test]
fn what_was_declared_is_seen_at_a_process_inside_and_missed_at_one_outside() {
    requires_root!();
    let container = Container::prepare(
        r#"{"cpu":{"shares":512,"quota":20000,"period":50000},
            "memory":{"limit":67108864,"swap":67108864,"reservation":33554432},
            "pids":{"limit":17},
            "devices":[{"allow":false,"access":"rwm"},
                       {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}]}"#,
    );
    let workload = container.start("true");
    let inside = container.findings(workload.child.id());
    assert!(inside.len() >= 8, "{inside:?}");
    for (item, verdict) in &inside {
        assert_eq!(*verdict, Verdict::Match, "{item}");
    }
    let mut outside = Command::new("/bin/sh")
        .args(["-c", "read go"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    for (item, verdict) in container.findings(outside.id()) {
        // A host's default of shares and of memory.low may be the stronger one.
        assert_ne!(verdict, Verdict::Match, "{item}");
        assert_ne!(verdict, Verdict::Unknown, "{item}");
    }
    drop(outside.stdin.take());
    outside.wait().expect("its end");
}

#[test]
fn a_number_that_was_raised_behind_our_back_is_weaker() {
    requires_root!();
    let container = Container::prepare(
        r#"{"memory":{"limit":67108864},"pids":{"limit":17},"cpu":{"quota":20000}}"#,
    );
    let workload = container.start("true");
    let write = |controller: &str, v1, v2, value: &str| {
        let directory = container.directory(controller);
        let file = match directory.version() {
            Version::V1 => v1,
            Version::V2 => v2,
        };
        directory.write(file, value).expect("a write");
    };
    write("memory", "memory.limit_in_bytes", "memory.max", "134217728");
    write("pids", "pids.max", "pids.max", "max");
    write("cpu", "cpu.cfs_quota_us", "cpu.max", "30000");
    for (item, verdict) in container.findings(workload.child.id()) {
        if !item.ends_with("cgroup of its own") {
            assert_eq!(verdict, Verdict::Weaker, "{item}");
        }
    }
}

#[test]
fn the_pids_limit_holds_and_none_means_none() {
    requires_root!();
    let container = Container::prepare(r#"{"pids":{"limit":3}}"#);
    // The shell is the first of the three, and gives up when it cannot fork.
    let mut workload = container
        .start("exec 2>/dev/null; sleep 1000 & sleep 1000 & echo two; sleep 1000 & echo three");
    workload.go();
    assert_eq!(workload.line(), "two");
    assert!(!workload.child.wait().expect("its end").success());
    container.cleanup().expect("cleanup");
    assert_eq!(workload.line(), "", "no third one");
    drop(container);
    for (limit, expected) in [("-1", "max"), ("0", "1")] {
        let container = Container::prepare(&format!(r#"{{"pids":{{"limit":{limit}}}}}"#));
        assert_eq!(container.file("pids", "pids.max", "pids.max"), expected);
    }
}

#[test]
fn a_refused_value_names_file_and_value() {
    requires_root!();
    let parent = format!("/tepui-test-cg-{}-refused", std::process::id());
    let container = Container::below(&parent, "box", r#"{"cpu":{"quota":5,"period":100000}}"#);
    let error = container.prepare_all().expect_err("a quota below 1 ms");
    let text = error.to_string();
    assert!(text.starts_with("could not write \"5"), "{text}");
    assert!(text.contains("/box/cpu."), "{text}");
}
