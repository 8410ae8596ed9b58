//! The cgroup isolators against the running kernel, whichever of v1, hybrid or v2 it has.
//!
//! Needs root and /bin/sh. Every test has cgroups of its own below `/tepui-test-cg-<pid>-<number>`, which must be gone at
//! its end. The workloads are shells that move themselves into the cgroups, as a launch would.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tepui_isolators::cgroups::directory::Directory;
use tepui_isolators::cgroups::hierarchy::{Hierarchies, Version};
use tepui_isolators::cgroups::{
    CpuIsolator, DevicesIsolator, FreezerIsolator, MemIsolator, PidsIsolator,
};
use tepui_isolators::{
    CgroupPlacement, ContainerId, ContainerLaunchInfo, Declaration, Isolator, LimitEvent, Live,
    RootFilesystem, Target, Verdict, Watch,
};

/// Ends a test that needs root and does not have it; with REQUIRE_ALL=1, as in CI, it fails instead.
macro_rules! requires_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            let required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1");
            assert!(!required, "this test needs root");
            eprintln!("skipped: this test needs root");
            return;
        }
    };
}

const MIB: u64 = 1 << 20;

/// A spec with these `linux.resources`.
fn spec(resources: &str) -> Spec {
    let text = format!(r#"{{"ociVersion":"1.2.0","linux":{{"resources":{resources}}}}}"#);
    serde_json::from_str(&text).expect("a spec")
}

/// One container with the five isolators; whatever is left of it goes when it is dropped.
struct Container {
    id: ContainerId,
    declaration: Declaration,
    info: ContainerLaunchInfo,
}

impl Container {
    /// Prepares a container with these `linux.resources`, below a parent of its own.
    fn prepare(resources: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let parent = format!("/tepui-test-cg-{}-{number}", std::process::id());
        let mut container = Self::below(&parent, "box", resources);
        container.info = container.prepare_all().expect("prepare");
        container
    }

    /// A container that is not prepared yet.
    fn below(parent: &str, id: &str, resources: &str) -> Self {
        Self {
            id: id.parse().expect("an id"),
            declaration: Declaration {
                spec: spec(resources),
                rootfs: RootFilesystem::Host,
                cgroups: CgroupPlacement {
                    parent: parent.into(),
                    nested: Default::default(),
                    name: None,
                },
                init: false,
                executable: None,
            },
            info: ContainerLaunchInfo::default(),
        }
    }

    fn isolators() -> [Box<dyn Isolator>; 5] {
        [
            Box::new(FreezerIsolator),
            Box::new(CpuIsolator),
            Box::new(MemIsolator),
            Box::new(PidsIsolator),
            Box::new(DevicesIsolator),
        ]
    }

    fn prepare_all(&self) -> tepui_isolators::Result<ContainerLaunchInfo> {
        let mut merged = ContainerLaunchInfo::default();
        let mut set_by = Vec::new();
        for isolator in Self::isolators() {
            let info = isolator.prepare(&self.id, &self.declaration)?;
            merged.merge(isolator.name(), info, &mut set_by)?;
        }
        Ok(merged)
    }

    fn directory(&self, controller: &str) -> Directory {
        Directory::of(controller, &self.id, &self.declaration.cgroups)
            .expect("a layout")
            .expect("the controller")
    }

    /// The content of the file that the controller's version has.
    fn file(&self, controller: &str, v1: &str, v2: &str) -> String {
        let directory = self.directory(controller);
        let file = match directory.version() {
            Version::V1 => v1,
            Version::V2 => v2,
        };
        directory.read(file).expect(file)
    }

    /// The files by which a process moves itself into the container.
    fn doors(&self) -> Vec<PathBuf> {
        let v1 = self.info.cgroup_v1.iter().map(|path| path.join("tasks"));
        let v2 = self
            .info
            .cgroup_v2
            .iter()
            .map(|path| path.join("cgroup.procs"));
        v1.chain(v2).collect()
    }

    /// Starts a shell inside. It says "ready" when it is in, then waits for a line before it goes on with `script`.
    fn start(&self, script: &str) -> Workload {
        let whole = format!(
            "for door in \"$@\"; do echo 0 > $door || exit 99; done; echo ready; read go; {script}"
        );
        let mut child = Command::new("/bin/sh")
            .args(["-c", &whole, "sh"])
            .args(self.doors())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut workload = Workload {
            child,
            input,
            output,
        };
        assert_eq!(workload.line(), "ready");
        workload
    }

    /// Runs a script inside to its end; returns what it printed.
    fn run(&self, script: &str) -> String {
        let mut workload = self.start(script);
        workload.go();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut workload.output, &mut text).expect("output");
        workload.child.wait().expect("its end");
        text
    }

    fn watch(&self) -> Box<dyn Watch> {
        let watch = MemIsolator.watch(&self.id, &self.declaration);
        watch.expect("a watch").expect("of memory")
    }

    fn findings(&self, pid: u32) -> Vec<(String, Verdict)> {
        let mut live = Live::default();
        let mut findings = Vec::new();
        for isolator in Self::isolators() {
            isolator
                .observe(&Target { pid }, &self.declaration, &mut live)
                .expect("observe");
            findings.extend(isolator.compare(&self.declaration, &live));
        }
        findings.into_iter().map(|f| (f.item, f.verdict)).collect()
    }

    fn cleanup(&self) -> tepui_isolators::Result<()> {
        let mut result = Ok(());
        for isolator in Self::isolators().iter().rev() {
            result = result.and(isolator.cleanup(&self.id, &self.declaration));
        }
        result
    }

    /// Every directory of the container or its parent that exists.
    fn left(&self) -> Vec<PathBuf> {
        let host = Hierarchies::of_this_host().expect("a layout");
        let parent = &self.declaration.cgroups.parent;
        let all = host.all().iter().map(|h| h.directory(parent));
        all.filter(|path| path.exists()).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let cleaned = self.cleanup();
        if !std::thread::panicking() {
            cleaned.expect("cleanup");
            assert_eq!(self.left(), Vec::<PathBuf>::new(), "left behind");
        }
    }
}

/// A process inside a container; killed when it is dropped.
struct Workload {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
}

impl Workload {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("output");
        line.trim_end().to_owned()
    }

    fn go(&mut self) {
        // Its end-of-file is what `read` waits for.
        self.input.take();
    }

    fn signal(&mut self) -> Option<i32> {
        self.child.wait().expect("its end").signal()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // It may have ended long ago; reaping it is all that counts.
        let _ = self.child.kill();
        self.child.wait().expect("reaped");
    }
}

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
    assert_eq!(inside.len(), 8, "{inside:?}");
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
        if item != "cgroup of its own" {
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
    let container = Container::prepare(r#"{"pids":{"limit":0}}"#);
    assert_eq!(container.file("pids", "pids.max", "pids.max"), "max");
}

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

#[test]
fn only_the_allowed_devices_can_be_opened_and_made() {
    requires_root!();
    let container = Container::prepare(
        r#"{"devices":[{"allow":false,"access":"rwm"},
                       {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},
                       {"allow":true,"type":"c","major":1,"minor":5,"access":"r"}]}"#,
    );
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path().display();
    let made_before = |name: &str, kind: &str, major: u32, minor: u32| {
        let status = Command::new("mknod")
            .arg(directory.path().join(name))
            .args([kind, &major.to_string(), &minor.to_string()])
            .status();
        assert!(status.expect("mknod").success(), "{name}");
    };
    made_before("mem", "c", 1, 1);
    made_before("loop", "b", 7, 0);
    made_before("null", "c", 1, 3);
    made_before("zero", "c", 1, 5);
    let text = container.run(&format!(
        "cd {at}; exec 2>&1
        try() {{ if \"$@\"; then echo \"$name yes\"; else echo \"$name no\"; fi; }}
        read_from() {{ (: < $1); }}
        write_to() {{ (: > $1); }}
        name=read-mem try read_from mem
        name=read-loop try read_from loop
        name=read-null try read_from null
        name=write-null try write_to null
        name=read-zero try read_from zero
        name=write-zero try write_to zero
        name=make-null try mknod null2 c 1 3
        name=make-mem try mknod mem2 c 1 1
        name=make-loop try mknod loop2 b 7 0"
    ));
    for expected in [
        "read-mem no",
        "read-loop no",
        "read-null yes",
        "write-null yes",
        "read-zero yes",
        "write-zero no",
        "make-null yes",
        "make-mem no",
        "make-loop no",
    ] {
        assert!(
            text.lines().any(|line| line == expected),
            "{expected}: {text}"
        );
    }
}

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
fn a_refused_value_names_file_and_value() {
    requires_root!();
    let parent = format!("/tepui-test-cg-{}-refused", std::process::id());
    let container = Container::below(&parent, "box", r#"{"cpu":{"quota":5,"period":100000}}"#);
    let error = container.prepare_all().expect_err("a quota below 1 ms");
    let text = error.to_string();
    assert!(text.starts_with("could not write \"5"), "{text}");
    assert!(text.contains("/box/cpu."), "{text}");
}

#[test]
fn other_device_rules_are_not_taken_for_the_declared_ones() {
    requires_root!();
    let rules = |minor: u32| {
        format!(
            r#"{{"devices":[{{"allow":false,"access":"rwm"}},
                {{"allow":true,"type":"c","major":1,"minor":{minor},"access":"rwm"}}]}}"#
        )
    };
    let mut container = Container::prepare(&rules(3));
    let workload = container.start("true");
    let verdict = |container: &Container| {
        let findings = container.findings(workload.child.id());
        let devices = findings.iter().find(|(item, _)| item == "allowed devices");
        devices.expect("a finding").1
    };
    assert_eq!(verdict(&container), Verdict::Match);
    container.declaration.spec = spec(&rules(5));
    assert_ne!(verdict(&container), Verdict::Match);
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
