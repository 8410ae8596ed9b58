//! What the process of a container gets beside its boundaries, as an OCI bundle declares it: each is enforced by the
//! launch and found by its isolator, and without the isolator it is found missing.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;

use serde_json::{Value, json};
use tepui::launch::{self, Handover, Process};
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
        };
        let id: ContainerId = "process.1".parse().expect("an id");
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
        let handover = Handover {
            stdio: [null(), theirs, null()],
            mount_point,
            init: None,
        };
        let waiting = launch::prepare(&declaration, info, handover);
        let process = waiting
            .and_then(launch::Waiting::start)
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
