//! The controllers beside processor, memory and processes, and a cgroup of its own in every hierarchy.

use std::fs;

use tepui_isolators::Verdict;
use tepui_isolators::cgroups::hierarchy::{Hierarchies, Version, memberships};

use crate::container::Container;

fn host() -> &'static Hierarchies {
    Hierarchies::of_this_host().expect("a layout")
}

/// Says that a test has nothing to do here.
fn skip(what: &str) {
    eprintln!("skipped: this host has no {what}");
}

/// Prepares a container that must be refused; returns the error's text.
fn refused(resources: &str) -> String {
    let parent = format!(
        "/tepui-test-cg-{}-refused-{}",
        std::process::id(),
        resources.len()
    );
    let container = Container::below(&parent, "box", resources);
    let error = container.prepare_all().expect_err("refused");
    error.to_string()
}

#[track_caller]
fn assert_all_match(container: &Container) {
    let workload = container.start("read end");
    let findings = container.findings(workload.child.id());
    assert!(!findings.is_empty());
    for (item, verdict) in findings {
        assert_eq!(verdict, Verdict::Match, "{item}");
    }
}

#[test]
fn a_container_is_below_its_own_cgroup_in_every_hierarchy() {
    requires_root!();
    let container = Container::prepare("{}");
    let workload = container.start("read end");
    let text =
        fs::read_to_string(format!("/proc/{}/cgroup", workload.child.id())).expect("it runs");
    let own = container.declaration.cgroups.parent.join("box");
    let mut seen = 0;
    for member in memberships(&text) {
        // What is mounted nowhere, or read-only, cannot be joined.
        let hierarchy = match member.version() {
            Version::V1 => host().of(&member.controllers[0]),
            Version::V2 => host().unified(),
        };
        if hierarchy.is_some_and(|hierarchy| hierarchy.writable) {
            assert_eq!(member.path, own, "{member:?}");
            seen += 1;
        }
    }
    assert!(seen > 0);
    assert_all_match(&container);
}

#[test]
fn every_controller_of_v2_is_passed_down() {
    requires_root!();
    let Some(unified) = host().unified() else {
        return skip("cgroup v2");
    };
    let container = Container::prepare("{}");
    let directory = container.info.cgroup_v2.clone().expect("a directory");
    let text = fs::read_to_string(directory.join("cgroup.controllers")).expect("a list");
    let mut own: Vec<&str> = text.split_whitespace().collect();
    let mut all: Vec<&str> = unified.controllers.iter().map(String::as_str).collect();
    own.sort_unstable();
    all.sort_unstable();
    assert_eq!(own, all);
}

#[test]
fn the_processors_are_those_that_were_declared() {
    requires_root!();
    if host().of("cpuset").is_none() {
        return skip("cpuset controller");
    }
    let container = Container::prepare(r#"{"cpu":{"cpus":"0","mems":"0"}}"#);
    assert_eq!(container.file("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(container.file("cpuset", "cpuset.mems", "cpuset.mems"), "0");
    let said = container.run("grep Cpus_allowed_list /proc/self/status");
    assert_eq!(said.split_whitespace().last(), Some("0"));
    assert_all_match(&container);
    // A number that no machine has.
    let error = refused(r#"{"cpu":{"cpus":"8000"}}"#);
    assert!(error.contains("cpuset.cpus"), "{error}");
}

#[test]
fn without_a_declared_list_a_container_has_its_parents_processors() {
    requires_root!();
    let Some(cpuset) = host().of("cpuset") else {
        return skip("cpuset controller");
    };
    let container = Container::prepare("{}");
    if cpuset.version == Version::V1 {
        let all = fs::read_to_string(cpuset.mount_point.join("cpuset.cpus")).expect("a list");
        assert_eq!(
            container
                .directory("cpuset")
                .read("cpuset.cpus")
                .expect("a list"),
            all.trim()
        );
    }
    let own = "grep Cpus_allowed_list /proc/self/status";
    let outside = std::process::Command::new("/bin/sh")
        .args(["-c", own])
        .output()
        .expect("a shell");
    assert_eq!(container.run(own).as_bytes(), outside.stdout);
}

/// A block device that limits can be written for: a whole disk, as `MAJOR:MINOR`.
fn disk() -> Option<(u32, u32)> {
    let disks = fs::read_dir("/sys/block").ok()?.flatten();
    let numbers = disks.filter_map(|disk| {
        let text = fs::read_to_string(disk.path().join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    // Never one in memory: those have no queue to throttle.
    numbers.filter(|(major, _)| *major != 1).min()
}

#[test]
fn block_devices_are_throttled_as_declared() {
    requires_root!();
    let (Some((major, minor)), Some(_)) = (disk(), host().of("blkio").or(host().of("io"))) else {
        return skip("blkio controller with a disk");
    };
    let ceiling = |rate: u32| format!(r#"[{{"major":{major},"minor":{minor},"rate":{rate}}}]"#);
    let container = Container::prepare(&format!(
        r#"{{"blockIO":{{"throttleReadBpsDevice":{},"throttleWriteBpsDevice":{},
            "throttleReadIOPSDevice":{},"throttleWriteIOPSDevice":{}}}}}"#,
        ceiling(1_048_576),
        ceiling(2_097_152),
        ceiling(300),
        ceiling(400)
    ));
    let controller = if host().of("blkio").is_some() {
        "blkio"
    } else {
        "io"
    };
    let text = container.file(controller, "blkio.throttle.read_bps_device", "io.max");
    assert!(
        text.contains(&format!("{major}:{minor} ")) && text.contains("1048576"),
        "{text}"
    );
    assert_all_match(&container);
}

#[test]
fn a_weight_of_block_devices_is_set_or_refused_by_name() {
    requires_root!();
    if host().of("blkio").or(host().of("io")).is_none() {
        return skip("blkio controller");
    }
    let parent = format!("/tepui-test-cg-{}-weight", std::process::id());
    let mut container = Container::below(&parent, "box", r#"{"blockIO":{"weight":500}}"#);
    match container.prepare_all() {
        Ok(info) => {
            container.info = info;
            assert_all_match(&container);
        }
        Err(error) => assert!(error.to_string().contains("blockIO.weight"), "{error}"),
    }
    let error = refused(r#"{"blockIO":{"leafWeight":500}}"#);
    assert!(error.contains("leafWeight"), "{error}");
}

#[test]
fn huge_pages_are_limited_by_the_sizes_that_there_are() {
    requires_root!();
    let limit = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#;
    if host().of("hugetlb").is_none() {
        let error = refused(limit);
        assert!(error.contains("cgroups/hugetlb needs"), "{error}");
        return;
    }
    let container = Container::prepare(limit);
    let file = container.file("hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max");
    assert_eq!(file, "4194304");
    assert_all_match(&container);
    let error = refused(r#"{"hugepageLimits":[{"pageSize":"3MB","limit":1}]}"#);
    assert!(error.contains("2MB"), "{error}");
    assert!(refused(r#"{"hugepageLimits":[{"pageSize":"/../../2MB","limit":1}]}"#).contains("2MB"));
}

#[test]
fn packets_have_a_class_and_a_priority() {
    requires_root!();
    let class = r#"{"network":{"classID":1048577}}"#;
    let priority = r#"{"network":{"priorities":[{"name":"lo","priority":3}]}}"#;
    for (controller, resources) in [("net_cls", class), ("net_prio", priority)] {
        if host().of(controller).is_none() {
            let error = refused(resources);
            assert!(
                error.contains(&format!("cgroups/{controller} needs")),
                "{error}"
            );
            continue;
        }
        assert_all_match(&Container::prepare(resources));
    }
}

#[test]
fn files_of_v2_are_written_by_name_or_refused_by_name() {
    requires_root!();
    let Some(unified) = host().unified() else {
        return skip("cgroup v2");
    };
    for (key, word) in [
        ("nonsense.max", "no controller"),
        ("cgroup.nonsense", "no such file"),
        ("nodot", "no controller"),
        ("cgroup./../../x", "one file"),
    ] {
        let error = refused(&format!(r#"{{"unified":{{"{key}":"1"}}}}"#));
        assert!(error.contains(key) && error.contains(word), "{error}");
    }
    let container = Container::prepare(r#"{"unified":{"cgroup.max.depth":"3"}}"#);
    let directory = container.info.cgroup_v2.clone().expect("a directory");
    let depth = fs::read_to_string(directory.join("cgroup.max.depth")).expect("a number");
    assert_eq!(depth.trim(), "3");
    assert_all_match(&container);
    drop(container);

    for (key, value) in [
        ("memory.high", "67108864"),
        ("pids.max", "99"),
        ("cpu.max", "50000"),
        ("cpuset.cpus", "0"),
        ("io.max", ""),
        ("hugetlb.2MB.max", "4194304"),
        ("misc.max", ""),
    ] {
        let controller = key.split('.').next().unwrap_or_default();
        let resources = format!(r#"{{"unified":{{"{key}":"{value}"}}}}"#);
        if !unified.controllers.iter().any(|name| name == controller) {
            let error = refused(&resources);
            assert!(error.contains(key), "{error}");
            continue;
        }
        let container = Container::prepare(&resources);
        if !value.is_empty() {
            let text = container.directory(controller).read(key).expect(key);
            assert!(text.starts_with(value), "{key}: {text}");
        }
        assert_all_match(&container);
    }
}
