//! The life of a container of `tepui-runtime`: its states, signals, pauses, limits, and that nothing of it is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tepui_tests::output::{self, Finished};
use tepui_tests::{Ground, Image, binary, requires, wait};

const ID: &str = "c1";

/// A bundle and the runtime's commands on it.
struct Bundle {
    ground: Ground,
}

impl Bundle {
    /// A container that sleeps; `change` edits its configuration.
    fn new(change: impl FnOnce(&mut Value)) -> Self {
        let ground = Ground::new();
        Image::busybox().write_rootfs(&ground.path("rootfs"));
        let bundle = Self { ground };
        bundle.runtime(&["spec"]).success();
        let text = fs::read(bundle.ground.path("config.json")).expect("spec wrote it");
        let mut config: Value = serde_json::from_slice(&text).expect("it is JSON");
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = json!(["sleep", "1000"]);
        config["linux"]["cgroupsPath"] = format!("/{}/{ID}", bundle.ground.name()).into();
        let mounts = config["mounts"].as_array_mut().expect("a list");
        mounts.retain(|mount| mount["type"] != "cgroup");
        change(&mut config);
        bundle.ground.write("config.json", config.to_string());
        bundle
    }

    fn runtime(&self, arguments: &[&str]) -> Finished {
        let mut command = self.ground.command(binary::runtime());
        command.arg("--root").arg(self.ground.path("state"));
        output::finish(command.args(arguments), Duration::from_secs(20))
    }

    /// A command that leaves a process behind, which keeps what it is given open.
    fn leave(&self, arguments: &[&str]) {
        let mut command = self.ground.command(binary::runtime());
        command.arg("--root").arg(self.ground.path("state"));
        let nothing = || Stdio::null();
        let errors = fs::File::create(self.ground.path("errors")).expect("a file");
        command
            .args(arguments)
            .stdin(nothing())
            .stdout(nothing())
            .stderr(errors);
        let status = command.status().expect("the runtime starts");
        let said = fs::read_to_string(self.ground.path("errors")).unwrap_or_default();
        assert!(status.success(), "{arguments:?}: {said}");
    }

    fn state(&self) -> Value {
        let state = self.runtime(&["state", ID]).success();
        serde_json::from_str(&state.stdout).expect("state prints JSON")
    }

    #[track_caller]
    fn assert_status(&self, expected: &str) {
        let seen = || (self.state()["status"] == expected).then_some(());
        let seen = wait::within(Duration::from_secs(2), seen);
        assert!(
            seen.is_some(),
            "{} and not {expected}",
            self.state()["status"]
        );
    }

    fn pids(&self) -> Vec<u64> {
        let listed = self.runtime(&["ps", "-f", "json", ID]).success();
        serde_json::from_str(&listed.stdout).expect("ps prints JSON")
    }

    /// A file of the container's cgroup.
    fn cgroup(&self, v1: &str, v2: &str) -> String {
        let below = format!("{}/{ID}", self.ground.name());
        let (controller, file) = v1.split_once('/').expect("CONTROLLER/FILE");
        let of_v1 = Path::new("/sys/fs/cgroup").join(controller).join(&below);
        let directory = match of_v1.is_dir() {
            true => of_v1.join(file),
            false => Path::new("/sys/fs/cgroup").join(&below).join(v2),
        };
        let text = fs::read_to_string(&directory).expect("a file of the cgroup");
        text.trim_end().to_owned()
    }

    fn delete(&self, options: &[&str]) {
        self.runtime(&[&["delete"], options, &[ID]].concat())
            .success();
        let gone = self.runtime(&["state", ID]);
        assert!(gone.stderr.contains("does not exist"), "{gone}");
        self.ground.assert_clean();
    }
}

impl Drop for Bundle {
    /// A test that failed leaves a container, whose processes do not carry the ground's name.
    fn drop(&mut self) {
        self.runtime(&["delete", "--force", ID]);
    }
}

#[test]
fn a_container_goes_from_created_to_stopped_and_leaves_nothing() {
    requires!(root(), busybox());
    let bundle = Bundle::new(|config| config["annotations"] = json!({ "a": "b" }));
    bundle.leave(&["create", ID]);
    bundle.assert_status("created");
    bundle.runtime(&["start", ID]).success();
    bundle.assert_status("running");
    let state = bundle.state();
    assert_eq!(state["annotations"]["a"], "b");
    assert_eq!(bundle.pids(), [state["pid"].as_u64().expect("a number")]);
    let listed = bundle.runtime(&["list"]).success().stdout;
    assert!(
        listed
            .lines()
            .nth(1)
            .is_some_and(|line| line.starts_with(ID)),
        "{listed}"
    );

    let refused = bundle.runtime(&["delete", ID]);
    assert!(
        refused.stderr.contains("that is not stopped: running"),
        "{refused}"
    );
    bundle.runtime(&["kill", ID, "KILL"]).success();
    bundle.assert_status("stopped");
    assert_eq!(bundle.state()["pid"], 0);
    let refused = bundle.runtime(&["kill", ID, "0"]);
    assert!(
        refused.stderr.contains("container not running"),
        "{refused}"
    );
    bundle.runtime(&["kill", "--all", ID, "0"]).success();
    bundle.delete(&[]);
}

#[test]
fn a_paused_container_is_killed_and_deleted_without_delay() {
    requires!(root(), busybox());
    let bundle = Bundle::new(|_| ());
    bundle.leave(&["run", "-d", ID]);
    bundle.runtime(&["pause", ID]).success();
    bundle.assert_status("paused");
    assert_eq!(bundle.runtime(&["pause", ID]).status, 1);
    bundle.runtime(&["resume", ID]).success();
    bundle.assert_status("running");
    assert_eq!(bundle.runtime(&["resume", ID]).status, 1);
    bundle.runtime(&["pause", ID]).success();
    bundle.runtime(&["kill", ID, "KILL"]).success();
    bundle.assert_status("stopped");
    bundle.delete(&[]);

    let bundle = Bundle::new(|_| ());
    bundle.leave(&["run", "-d", ID]);
    bundle.runtime(&["pause", ID]).success();
    bundle.delete(&["--force"]);
}

#[test]
fn a_process_that_somebody_froze_elsewhere_is_brought_home_to_die() {
    requires!(root(), busybox(), cgroup_v1());
    let bundle = Bundle::new(|_| ());
    bundle.leave(&["run", "-d", ID]);
    // Its name is the ground's, so that it is removed with that.
    let name = format!("{}frozen", bundle.ground.name());
    let theirs: PathBuf = Path::new("/sys/fs/cgroup/freezer").join(name);
    fs::create_dir(&theirs).expect("a freezer cgroup");
    let pid = bundle.state()["pid"].to_string();
    fs::write(theirs.join("cgroup.procs"), pid).expect("it is moved");
    fs::write(theirs.join("freezer.state"), "FROZEN").expect("it is frozen");
    bundle.runtime(&["delete", "--force", ID]).success();
    let state = fs::read_to_string(theirs.join("freezer.state")).expect("it is there");
    assert_eq!(
        state.trim_end(),
        "FROZEN",
        "their cgroup is not ours to thaw"
    );
    fs::remove_dir(&theirs).expect("it is empty");
    bundle.ground.assert_clean();
}

#[test]
fn without_a_pid_namespace_all_processes_are_killed_also_when_the_first_has_gone() {
    requires!(root(), busybox());
    let shares_pids = |config: &mut Value| {
        let namespaces = config["linux"]["namespaces"]
            .as_array_mut()
            .expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "pid");
    };
    let bundle = Bundle::new(shares_pids);
    bundle.leave(&["run", "-d", ID]);
    bundle.leave(&["exec", "-d", ID, "sleep", "1001"]);
    assert_eq!(bundle.pids().len(), 2);
    let first = bundle.state()["pid"].as_i64().expect("a number");
    let first = nix::unistd::Pid::from_raw(i32::try_from(first).expect("a pid"));
    nix::sys::signal::kill(first, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    bundle.assert_status("stopped");
    assert_eq!(bundle.pids().len(), 1);
    bundle.runtime(&["kill", ID, "KILL"]).success();
    let none = || bundle.pids().is_empty().then_some(());
    wait::until("all to end", Duration::from_secs(2), none);
    bundle.delete(&[]);
}

#[test]
fn limits_are_changed_and_remembered() {
    requires!(root(), busybox());
    let bundle = Bundle::new(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 33_554_432 });
        config["linux"]["resources"]["pids"] = json!({ "limit": 20 });
    });
    bundle.leave(&["run", "-d", ID]);
    let memory = || bundle.cgroup("memory/memory.limit_in_bytes", "memory.max");
    let pids = || bundle.cgroup("pids/pids.max", "pids.max");
    bundle.runtime(&["update", ID, "--memory", "50M"]).success();
    assert_eq!((memory().as_str(), pids().as_str()), ("52428800", "20"));
    bundle
        .ground
        .write("limits.json", r#"{ "pids": { "limit": 10 } }"#);
    bundle
        .runtime(&["update", "-r", "limits.json", ID])
        .success();
    assert_eq!((memory().as_str(), pids().as_str()), ("52428800", "10"));
    let refused = bundle.runtime(&["update", ID, "--memory", "1x"]);
    assert!(
        refused.stderr.contains("invalid value for memory"),
        "{refused}"
    );

    let statistics = bundle.runtime(&["events", "--stats", ID]).success().stdout;
    let statistics: Value = serde_json::from_str(&statistics).expect("events prints JSON");
    assert_eq!(statistics["data"]["memory"]["usage"]["limit"], 52_428_800);
    assert_eq!(statistics["data"]["pids"]["limit"], 10);
    bundle.delete(&["--force"]);
}
