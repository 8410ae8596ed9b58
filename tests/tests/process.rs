//! What the process of a container gets beside its boundaries, as an OCI bundle declares it: each is enforced by the
//! launch and found by its isolator, and without the isolator it is found missing.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;

use serde_json::{Value, json};
use tepui::launch::{self, Handover, Patient, Process};
use tepui_isolators::{
    CgroupPlacement, ContainerId, Declaration, Finding, Isolator, RootFilesystem, Target, Verdict,
    registry,
};
use tepui_tests::{Ground, requires};

/// A configuration: `process` and `linux` are added to what every container here has.
fn spec(process: Value, linux: Value) -> Value {
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/sleep", "1000"],
            "capabilities": {}, "noNewPrivileges": true
        },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "mount" }, { "type": "pid" }] }
    });
    for (name, added) in [("process", process), ("linux", linux)] {
        for (key, value) in added.as_object().expect("an object") {
            spec[name][key] = value.clone();
        }
    }
    spec
}

/// A running container on the host's files, without cgroups.
struct Container {
    ground: Ground,
    declaration: Declaration,
    process: Process,
    /// What it writes.
    output: OwnedFd,
}

impl Container {
    /// Starts it with all isolators but those in `without`.
    fn start(spec: &Value, without: &[&str]) -> Result<Self, String> {
        let ground = Ground::new();
        let declaration = Declaration {
            spec: serde_json::from_value(spec.clone()).expect("a configuration"),
            rootfs: RootFilesystem::Host,
            cgroups: CgroupPlacement {
                parent: format!("/{}", ground.name()).into(),
                nested: Default::default(),
                name: None,
            },
            init: false,
            executable: None,
            keep_keyring: false,
            reset_cpu_affinity: true,
        };
        // Session keyrings are found by name: no two tests may have the same.
        let id: ContainerId = ground.name().trim_end_matches('.').parse().expect("an id");
        let mut isolators = isolators();
        isolators.retain(|isolator| !without.contains(&isolator.name()));
        let words = |error: &dyn std::error::Error| match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let info =
            registry::prepare(&isolators, &id, &declaration).map_err(|error| words(&error))?;
        let mount_point = ground.path("rootfs");
        fs::create_dir(&mount_point).expect("a new directory");
        let null = || {
            let file = fs::File::options().read(true).write(true).open("/dev/null");
            OwnedFd::from(file.expect("/dev/null"))
        };
        let (output, theirs) = rustix::pipe::pipe().expect("a pipe");
        let handover = Handover::new([null(), theirs, null()], mount_point, None);
        let waiting = launch::prepare(&declaration, info, handover, &mut Patient);
        let process = waiting
            .and_then(|waiting| waiting.start(&mut Patient))
            .map_err(|error| words(&error))?;
        Ok(Self {
            ground,
            declaration,
            process,
            output,
        })
    }

    /// What the isolators say of it that is not as declared.
    fn not_as_declared(&self) -> Vec<Finding> {
        let target = Target {
            pid: self.process.host_pid,
        };
        let findings = registry::verify(&isolators(), &target, &self.declaration);
        let mut findings = findings.expect("it can be looked at");
        assert!(!findings.is_empty());
        findings.retain(|finding| finding.verdict != Verdict::Match);
        findings
    }

    /// What it wrote until its end.
    fn finish(self) -> String {
        let mut text = String::new();
        let mut output = fs::File::from(self.output);
        output.read_to_string(&mut text).expect("text");
        self.process.reap().expect("our child");
        drop(self.process);
        self.ground.assert_clean();
        text
    }

    fn end(self) {
        self.process.kill();
        self.finish();
    }
}

/// All but the cgroups, which have tests of their own.
fn isolators() -> Vec<Box<dyn Isolator>> {
    let mut all = registry::all();
    all.retain(|isolator| !isolator.name().starts_with("cgroups/"));
    all
}

/// The output of a shell script that runs with `process` and `linux`.
fn output_of(script: &str, process: Value, linux: Value) -> String {
    let mut spec = spec(process, linux);
    spec["process"]["args"] = json!(["/bin/sh", "-ec", script]);
    Container::start(&spec, &[])
        .unwrap_or_else(|error| panic!("{error}"))
        .finish()
}

/// With its isolator all is as declared; without it, `items` and nothing else are weaker.
#[track_caller]
fn enforced_and_observed(isolator: &str, spec: &Value, items: &[&str]) {
    let with = Container::start(spec, &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(with.not_as_declared(), []);
    with.end();
    missing_without(isolator, spec, items);
}

/// Without its isolator, `items` and nothing else are weaker.
#[track_caller]
fn missing_without(isolator: &str, spec: &Value, items: &[&str]) {
    let without = Container::start(spec, &[isolator]).unwrap_or_else(|error| panic!("{error}"));
    let findings = without.not_as_declared();
    let mut found: Vec<_> = findings.iter().map(|f| f.item.as_str()).collect();
    found.sort_unstable();
    assert_eq!(found, items, "{findings:#?}");
    for finding in &findings {
        assert_eq!(finding.isolator, isolator);
        assert_eq!(finding.verdict, Verdict::Weaker, "{finding:?}");
    }
    without.end();
}

#[test]
fn time_namespace() {
    requires!(root());
    let linux = json!({
        "namespaces": [{ "type": "mount" }, { "type": "pid" }, { "type": "time" }],
        "timeOffsets": {
            "monotonic": { "secs": 7881, "nanosecs": 2_718_281 }, "boottime": { "secs": 1_000_000 }
        }
    });
    let items = [
        "offset of the boottime clock",
        "offset of the monotonic clock",
        "time namespace",
    ];
    enforced_and_observed("namespaces/time", &spec(json!({}), linux.clone()), &items);
    let uptime = output_of("cut -d. -f1 /proc/uptime", json!({}), linux);
    assert!(
        uptime.trim().parse::<u64>().is_ok_and(|s| s >= 1_000_000),
        "{uptime}"
    );
}

#[test]
fn user_namespace() {
    requires!(root());
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
    let linux = json!({
        "namespaces": [{ "type": "mount" }, { "type": "user" }],
        "uidMappings": maps, "gidMappings": maps
    });
    let items = ["gid map", "uid map", "user namespace"];
    missing_without("namespaces/user", &spec(json!({}), linux), &items);
}

#[test]
fn host_and_domain_names() {
    requires!(root());
    let kinds =
        json!({ "namespaces": [{ "type": "mount" }, { "type": "pid" }, { "type": "uts" }] });
    let mut spec = spec(json!({}), kinds);
    spec["hostname"] = json!("tepui-test");
    spec["domainname"] = json!("tepui-domain");
    let items = ["domain name", "host name", "uts namespace"];
    enforced_and_observed("namespaces/uts", &spec, &items);
}

#[test]
fn sysctls_of_every_namespace() {
    requires!(root());
    let kinds = ["mount", "pid", "ipc", "network", "uts"].map(|kind| json!({ "type": kind }));
    let linux = json!({ "namespaces": kinds, "sysctl": {
        "kernel.sem": "251 32001 33 129",
        "fs.mqueue.msg_max": "11",
        "net/ipv4/ip_unprivileged_port_start": "79",
        "kernel.domainname": "tepui-domain"
    }});
    let items = [
        "sysctl fs.mqueue.msg_max",
        "sysctl kernel.domainname",
        "sysctl kernel.sem",
        "sysctl net/ipv4/ip_unprivileged_port_start",
    ];
    enforced_and_observed("linux/sysctl", &spec(json!({}), linux), &items);
    let own = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    assert_ne!(own.expect("procfs").trim(), "79", "it was set for the host");

    let kinds = json!([{ "type": "mount" }, { "type": "network" }]);
    let linux = json!({ "namespaces": kinds, "sysctl": { "net.ipv4.no_such_thing": "1" } });
    let error = Container::start(&spec(json!({}), linux), &[]).err();
    let error = error.expect("there is none such");
    assert!(
        error.contains(r#"could not write "1" to /proc/sys/net/ipv4/no_such_thing"#),
        "{error}"
    );
}

#[test]
fn scheduler_and_io_priority() {
    requires!(root());
    let best_effort = json!({ "class": "IOPRIO_CLASS_BE", "priority": 2 });
    for scheduler in [
        json!({ "policy": "SCHED_BATCH", "nice": 19 }),
        json!({ "policy": "SCHED_FIFO", "priority": 7, "flags": ["SCHED_RESET_ON_FORK"] }),
        json!({ "policy": "SCHED_IDLE" }),
        json!({ "policy": "SCHED_DEADLINE", "nice": 19, "runtime": 42000, "deadline": 100_000,
                "period": 1_000_000, "flags": ["SCHED_RESET_ON_FORK"] }),
    ] {
        let process = json!({ "scheduler": scheduler, "ioPriority": best_effort });
        let items = ["I/O priority", "scheduler"];
        enforced_and_observed("linux/scheduling", &spec(process, json!({})), &items);
    }
    let idle = json!({ "ioPriority": { "class": "IOPRIO_CLASS_IDLE" } });
    enforced_and_observed(
        "linux/scheduling",
        &spec(idle, json!({})),
        &["I/O priority"],
    );
}

#[test]
fn the_container_is_not_bound_to_the_cpus_of_its_starter() {
    requires!(root());
    let own = || {
        let status = fs::read_to_string("/proc/thread-self/status").expect("procfs");
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        list.expect("a line").trim().to_owned()
    };
    let before = own();
    let all = rustix::thread::sched_getaffinity(None).expect("our own");
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu));
    let mut one = rustix::thread::CpuSet::new();
    one.set(first.expect("we run on one"));
    // Of this thread alone, which is the one that clones.
    rustix::thread::sched_setaffinity(None, &one).expect("our own");
    assert_eq!(own(), first.expect("we run on one").to_string());
    let script = "grep Cpus_allowed_list /proc/self/status | cut -f 2";
    assert_eq!(output_of(script, json!({}), json!({})).trim(), before);
}

#[test]
fn memory_policy() {
    requires!(root(), numa());
    for policy in [
        json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0" }),
        json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] }),
        json!({ "mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"] }),
        json!({ "mode": "MPOL_PREFERRED_MANY", "nodes": "0" }),
        json!({ "mode": "MPOL_PREFERRED" }),
        json!({ "mode": "MPOL_LOCAL" }),
    ] {
        let linux = json!({ "memoryPolicy": policy });
        let spec = spec(json!({}), linux);
        enforced_and_observed("linux/memory_policy", &spec, &["memory policy"]);
    }
    let policy = output_of(
        "head -n 1 /proc/self/numa_maps | cut -d ' ' -f 2",
        json!({}),
        json!({ "memoryPolicy": { "mode": "MPOL_INTERLEAVE", "nodes": "0" } }),
    );
    assert_eq!(policy.trim(), "interleave:0");
}

#[test]
fn personality() {
    requires!(root());
    let linux = json!({ "personality": { "domain": "LINUX32" } });
    enforced_and_observed(
        "linux/personality",
        &spec(json!({}), linux.clone()),
        &["personality"],
    );
    assert_eq!(output_of("uname -m", json!({}), linux).trim(), "i686");
    let linux = json!({ "personality": { "domain": "LINUX" } });
    assert_eq!(output_of("uname -m", json!({}), linux).trim(), "x86_64");
}

#[test]
fn oom_score() {
    requires!(root());
    let process = json!({ "oomScoreAdj": 321 });
    let declared = spec(process.clone(), json!({}));
    enforced_and_observed("linux/oom_score", &declared, &["oom_score_adj"]);
    let score = output_of("cat /proc/self/oom_score_adj", process.clone(), json!({}));
    assert_eq!(score.trim(), "321");
    // Without a mount namespace of its own, too.
    let container = Container::start(&declared, &["filesystem/linux"]).expect("it starts");
    let path = format!("/proc/{}/oom_score_adj", container.process.host_pid);
    assert_eq!(fs::read_to_string(path).expect("procfs").trim(), "321");
    container.end();
}

#[test]
fn session_keyring() {
    requires!(root());
    let linux = json!({ "maskedPaths": [] });
    let mut spec = spec(json!({}), linux);
    spec["process"]["args"] = json!(["/bin/cat", "/proc/keys"]);
    let keys_seen = |without: &[&str]| {
        let container = Container::start(&spec, without).expect("it starts");
        let name = format!(" _ses.{}:", container.ground.name().trim_end_matches('.'));
        let keys = container.finish();
        let line = keys.lines().find(|line| line.contains(&name));
        line.map(str::to_owned)
    };
    let line = keys_seen(&[]).expect("a keyring of its own");
    // Its owner may search it.
    assert!(line.contains(" 3f1b0000 "), "{line}");
    assert_eq!(keys_seen(&["linux/keyring"]), None);
}

#[test]
fn a_label_that_no_module_of_this_kernel_honours_is_refused() {
    requires!(root(), no_security_labels());
    for (process, linux, word) in [
        (
            json!({ "apparmorProfile": "web" }),
            json!({}),
            "AppArmor is not enabled",
        ),
        (
            json!({ "selinuxLabel": "a:b:c:s0" }),
            json!({}),
            "SELinux is not enabled",
        ),
        (
            json!({}),
            json!({ "mountLabel": "a:b:c:s0" }),
            "SELinux is not enabled",
        ),
    ] {
        let error = Container::start(&spec(process, linux), &[]).err();
        assert!(
            error.as_ref().is_some_and(|error| error.contains(word)),
            "{error:?}"
        );
    }
    let process = json!({ "apparmorProfile": "web", "selinuxLabel": "a:b:c:s0" });
    let declared = spec(process, json!({}));
    missing_without(
        "linux/lsm",
        &declared,
        &["AppArmor profile", "SELinux label"],
    );
    let unconfined = spec(json!({ "apparmorProfile": "unconfined" }), json!({}));
    Container::start(&unconfined, &[])
        .expect("nothing is asked")
        .end();
}

/// The answers of a script in a Landlock sandbox: `name=open` or `name=shut`.
fn in_sandbox(rules: &Value, no_new_privileges: bool, script: &str) -> Vec<String> {
    let capabilities = json!(["CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
    let process = json!({
        "noNewPrivileges": no_new_privileges,
        "capabilities": { "bounding": capabilities, "permitted": capabilities, "effective": capabilities }
    });
    let mut spec = spec(process, json!({}));
    spec["annotations"] = json!({ "org.tepui.landlock": rules.to_string() });
    spec["mounts"] = json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/mnt", "type": "tmpfs", "source": "tmpfs" }
    ]);
    let attempt =
        "try() { name=$1; shift; if \"$@\"; then echo $name=open; else echo $name=shut; fi; }";
    let script = format!("{attempt}\n{script}");
    spec["process"]["args"] = json!(["/bin/busybox", "sh", "-c", script]);
    let container = Container::start(&spec, &[]).unwrap_or_else(|error| panic!("{error}"));
    container.finish().lines().map(str::to_owned).collect()
}

#[test]
fn landlock_keeps_the_workload_to_its_paths() {
    requires!(root(), busybox(), landlock());
    let rules = json!({ "readOnly": ["/usr", "/etc/passwd"], "readWrite": ["/tmp"], "execute": ["/bin/busybox"] });
    let script = "
        try read_passwd busybox head -c 0 /etc/passwd
        try read_group busybox head -c 0 /etc/group
        try write_tmp busybox touch /tmp/x
        try write_mnt busybox touch /mnt/x
        try copied busybox cp /bin/busybox /tmp/other
        try execute_copy /tmp/other true
        try execute_busybox /bin/busybox true
        try list_usr busybox test -n \"$(busybox ls /usr)\"
        try list_root busybox test -n \"$(busybox ls /)\"
    ";
    let expected = [
        "read_passwd=open",
        "read_group=shut",
        "write_tmp=open",
        "write_mnt=shut",
        "copied=open",
        "execute_copy=shut",
        "execute_busybox=open",
        "list_usr=open",
        "list_root=shut",
    ];
    for no_new_privileges in [true, false] {
        assert_eq!(in_sandbox(&rules, no_new_privileges, script), expected);
    }
    let nothing_there = json!({ "execute": ["/bin"], "readOnly": ["/no/such"] });
    let mut spec = spec(json!({}), json!({}));
    spec["annotations"] = json!({ "org.tepui.landlock": nothing_there.to_string() });
    let error = Container::start(&spec, &[])
        .err()
        .expect("the path is missing");
    assert!(
        error.contains(r#"could not make a Landlock rule for "/no/such""#),
        "{error}"
    );
}

#[test]
fn landlock_keeps_the_workload_to_its_ports() {
    requires!(root(), busybox(), landlock());
    let listen = "timeout 1 busybox nc -l -p";
    let script = format!(
        "
        {listen} 4242 </dev/null; busybox test $? = 1 && echo other=shut
        {listen} 4243 </dev/null; busybox test $? = 1 || echo own=open
        "
    );
    let answers = in_sandbox(
        &json!({ "bindTcp": [4243], "connectTcp": [] }),
        true,
        &script,
    );
    assert_eq!(answers, ["other=shut", "own=open"]);
}
