//! Limits of a running container, changed in place.

use tepui_isolators::cgroups::hierarchy::{Hierarchies, Version};
use tepui_isolators::registry;

use crate::container::{Container, spec};

fn update(container: &Container, resources: &str) -> tepui_isolators::Result<()> {
    let mut declaration = container.declaration.clone();
    declaration.spec = spec(resources);
    registry::update(&Container::isolators(), &container.id, &declaration)
}

/// Two files of a controller, `v1` or `v2`.
fn files(container: &Container, controller: &str, v1: [&str; 2], v2: [&str; 2]) -> [String; 2] {
    let read = |at: usize| container.file(controller, v1[at], v2[at]);
    [read(0), read(1)]
}

fn is_v2(container: &Container, controller: &str) -> bool {
    container.directory(controller).version() == Version::V2
}

const MIB: i64 = 1 << 20;

#[test]
fn memory_and_swap_go_up_and_down_together() {
    requires_root!();
    let resources =
        |limit: i64, swap: i64| format!(r#"{{"memory":{{"limit":{limit},"swap":{swap}}}}}"#);
    let container = Container::prepare(&resources(64 * MIB, 128 * MIB));
    let _running = container.start("read end");
    let v2 = is_v2(&container, "memory");
    let seen = || {
        files(
            &container,
            "memory",
            ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
            ["memory.max", "memory.swap.max"],
        )
    };
    for (limit, swap) in [
        (256, 300),
        (300, 300),
        (40, 50),
        (60, 600),
        (10, 10),
        (128, 256),
    ] {
        update(&container, &resources(limit * MIB, swap * MIB)).expect("update");
        let second = if v2 { swap - limit } else { swap };
        assert_eq!(
            seen(),
            [limit, second].map(|n| (n * MIB).to_string()),
            "{limit} {swap}"
        );
    }
    // The sum alone, of the memory that there is.
    update(
        &container,
        &format!(r#"{{"memory":{{"swap":{}}}}}"#, 130 * MIB),
    )
    .expect("update");
    let second = if v2 { 2 } else { 130 };
    assert_eq!(seen(), [128, second].map(|n| (n * MIB).to_string()));

    update(&container, r#"{"memory":{"limit":-1}}"#).expect("update");
    let unlimited = match v2 {
        true => "max".to_owned(),
        // Whole pages below the greatest number.
        false => (i64::MAX - 4095).to_string(),
    };
    assert_eq!(seen(), [unlimited.clone(), unlimited]);
    update(&container, &resources(64 * MIB, -1)).expect("update");
    assert_eq!(seen()[0], (64 * MIB).to_string());
}

#[test]
fn a_limit_below_what_is_used_is_refused_when_that_is_asked() {
    requires_root!();
    // Without swap, where it could be put.
    let both = 256 * MIB;
    let resources = format!(r#"{{"memory":{{"limit":{both},"swap":{both}}}}}"#);
    let container = Container::prepare(&resources);
    // A variable of some 32 MiB.
    let mut running =
        container.start("a=$(head -c 33554432 /dev/zero | tr '\\0' x); echo full; read end");
    running.write("go\n");
    assert_eq!(running.line(), "full");
    let resources = format!(
        r#"{{"memory":{{"limit":{},"checkBeforeUpdate":true}}}}"#,
        16 * MIB
    );
    let error = update(&container, &resources)
        .expect_err("refused")
        .to_string();
    assert!(error.contains("linux.resources.memory.limit"), "{error}");
    assert!(error.contains("uses"), "{error}");
    if !is_v2(&container, "memory") {
        // Without the question v1 tries, and finds nothing that it could take back. (v2 would kill.)
        let resources = format!(r#"{{"memory":{{"limit":{}}}}}"#, 16 * MIB);
        let error = update(&container, &resources)
            .expect_err("refused")
            .to_string();
        assert!(
            error.contains("16777216") && error.contains("uses"),
            "{error}"
        );
    }
    let limit = container.file("memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, (256 * MIB).to_string());
    assert!(running.child.try_wait().expect("a state").is_none());
}

#[test]
fn the_processor_quota_moves_in_any_order() {
    requires_root!();
    let container = Container::prepare(r#"{"cpu":{"quota":20000,"period":50000}}"#);
    let _running = container.start("read end");
    let v2 = is_v2(&container, "cpu");
    let seen = || match v2 {
        true => container.file("cpu", "", "cpu.max"),
        false => files(
            &container,
            "cpu",
            ["cpu.cfs_quota_us", "cpu.cfs_period_us"],
            ["", ""],
        )
        .join(" "),
    };
    let none = if v2 { "max" } else { "-1" };
    for (cpu, expected) in [
        (r#"{"quota":30000}"#, "30000 50000".to_owned()),
        (r#"{"period":100000}"#, "30000 100000".to_owned()),
        (
            r#"{"quota":400000,"period":200000}"#,
            "400000 200000".to_owned(),
        ),
        (r#"{"quota":5000,"period":10000}"#, "5000 10000".to_owned()),
        (r#"{"quota":-1}"#, format!("{none} 10000")),
        (r#"{"quota":1000,"period":1000}"#, "1000 1000".to_owned()),
        (r#"{"shares":512}"#, "1000 1000".to_owned()),
    ] {
        update(&container, &format!(r#"{{"cpu":{cpu}}}"#)).expect(cpu);
        assert_eq!(seen(), expected, "{cpu}");
    }
    let directory = container.directory("cpu");
    let burst = if v2 {
        "cpu.max.burst"
    } else {
        "cpu.cfs_burst_us"
    };
    if !directory.has(burst) {
        eprintln!("skipped: this kernel has no burst");
        return;
    }
    for (cpu, expected) in [
        (r#"{"quota":50000,"period":100000,"burst":40000}"#, "40000"),
        // The burst may not be above the quota at any moment.
        (r#"{"quota":10000,"burst":5000}"#, "5000"),
        (r#"{"quota":90000,"burst":80000}"#, "80000"),
        (r#"{"burst":0}"#, "0"),
    ] {
        update(&container, &format!(r#"{{"cpu":{cpu}}}"#)).expect(cpu);
        let shown = directory.read(burst).expect("a number");
        // Some kernels show v2's in milliseconds.
        let is_it = shown == expected || format!("{shown}000") == expected;
        assert!(is_it, "{cpu}: {shown}");
    }
    let error =
        update(&container, r#"{"cpu":{"quota":10000,"burst":50000}}"#).expect_err("refused");
    assert!(error.to_string().contains("/box/cpu."), "{error}");
}

#[test]
fn an_idle_container_is_busy_again_with_the_declared_shares() {
    requires_root!();
    let container = Container::prepare(r#"{"cpu":{"idle":1,"shares":2048}}"#);
    let directory = container.directory("cpu");
    if !directory.has("cpu.idle") {
        eprintln!("skipped: this kernel has no cpu.idle");
        return;
    }
    assert_eq!(directory.read("cpu.idle").expect("a number"), "1");
    update(&container, r#"{"cpu":{"idle":0,"shares":512}}"#).expect("update");
    assert_eq!(directory.read("cpu.idle").expect("a number"), "0");
    let weight = container.file("cpu", "cpu.shares", "cpu.weight");
    let expected = if is_v2(&container, "cpu") {
        "59"
    } else {
        "512"
    };
    assert_eq!(weight, expected);
    assert!(update(&container, r#"{"cpu":{"idle":2}}"#).is_err());
}

#[test]
fn what_an_update_leaves_out_stays() {
    requires_root!();
    let container = Container::prepare(
        r#"{"pids":{"limit":20},"memory":{"limit":67108864},"cpu":{"shares":512,"cpus":"0"}}"#,
    );
    update(&container, r#"{"pids":{"limit":10}}"#).expect("update");
    assert_eq!(container.file("pids", "pids.max", "pids.max"), "10");
    update(&container, "{}").expect("nothing");
    assert_eq!(container.file("pids", "pids.max", "pids.max"), "10");
    let memory = container.file("memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, "67108864");
    assert_eq!(container.file("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    update(&container, r#"{"pids":{"limit":-1}}"#).expect("update");
    assert_eq!(container.file("pids", "pids.max", "pids.max"), "max");
    let all = container
        .directory("cpuset")
        .parent_path()
        .expect("a parent");
    if !is_v2(&container, "cpuset") {
        let all = std::fs::read_to_string(all.join("cpuset.cpus")).expect("a list");
        update(
            &container,
            &format!(r#"{{"cpu":{{"cpus":"{}"}}}}"#, all.trim()),
        )
        .expect("update");
        assert_eq!(container.file("cpuset", "cpuset.cpus", ""), all.trim());
    }
}

#[test]
fn files_of_v2_are_updated_by_name() {
    requires_root!();
    let host = Hierarchies::of_this_host().expect("a layout");
    if host.unified().is_none() {
        eprintln!("skipped: this host has no cgroup v2");
        return;
    }
    let container = Container::prepare("{}");
    update(&container, r#"{"unified":{"cgroup.max.depth":"4"}}"#).expect("update");
    let directory = container.info.cgroup_v2.clone().expect("a directory");
    let depth = std::fs::read_to_string(directory.join("cgroup.max.depth")).expect("a number");
    assert_eq!(depth.trim(), "4");
    let pids = update(&container, r#"{"unified":{"pids.max":"10"}}"#);
    match host.of("pids").expect("pids").version {
        Version::V2 => {
            pids.expect("update");
            assert_eq!(container.file("pids", "", "pids.max"), "10");
        }
        Version::V1 => {
            let error = pids.expect_err("refused").to_string();
            assert!(error.contains("pids.max"), "{error}");
        }
    }
}
