//! What a process of an OCI container finds: its user's rights, its mounts, and the hooks around it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tepui_tests::output::finish;
use tepui_tests::{Bundle, Ground, Runtime, requires};

const LIMIT: Duration = Duration::from_secs(60);

fn bundle(ground: &Ground) -> Bundle<'_> {
    Bundle::new(ground, &Runtime::under_test(), "c")
}

fn user() -> Value {
    json!({ "uid": 1000, "gid": 1000 })
}

#[test]
fn a_user_has_its_umask_and_can_open_its_own_output() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let bundle = bundle(&ground)
        .with("/process/user", user())
        .with("/process/user/umask", json!(0o27))
        .shell("umask; echo said >/dev/stdout");
    assert_eq!(bundle.run().success().stdout, "0027\nsaid\n");
}

#[test]
fn the_mount_table_is_in_the_configured_order() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let bundle = bundle(&ground).args(&["cut", "-d", " ", "-f", "5", "/proc/self/mountinfo"]);
    let output = bundle.run().success().stdout;
    let expected = [
        "/",
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/sys",
    ];
    let seen: Vec<&str> = output
        .lines()
        .filter(|path| expected.contains(path))
        .collect();
    assert_eq!(seen[..expected.len()], expected, "{output}");
}

#[test]
fn a_profile_may_refuse_getcwd_and_the_working_directory_still_has_to_be_the_users() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let refuse = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["getcwd"], "action": "SCMP_ACT_ERRNO" }] });
    let bundle = bundle(&ground)
        .with("/process/noNewPrivileges", json!(false))
        .with("/process/user", user())
        .with("/linux/seccomp", refuse)
        .with("/process/cwd", json!("/tmp"))
        .args(&["readlink", "/proc/self/cwd"]);
    assert_eq!(bundle.run().success().stdout, "/tmp\n");

    let closed = bundle.with("/process/cwd", json!("/root"));
    let mode = fs::Permissions::from_mode(0o700);
    fs::set_permissions(closed.rootfs("root"), mode).expect("a directory of the bundle");
    let refused = closed.run();
    assert_ne!(refused.status, 0);
    assert!(
        refused.stderr.contains("working directory"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_user_namespace_without_maps_has_its_maker_as_root() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let bundle = bundle(&ground);
    let namespaces = json!([{ "type": "user" }, { "type": "pid" }, { "type": "network" },
        { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }]);
    let bundle = bundle
        .with("/linux/namespaces", namespaces)
        .without_mount("/dev/pts")
        .shell("set -- $(cat /proc/self/uid_map /proc/self/gid_map); echo $*");
    assert_eq!(bundle.run().success().stdout, "0 0 1 0 0 1\n");
}

#[test]
fn every_poststop_hook_runs_and_a_failed_poststart_hook_ends_the_container() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let told = ground.path("told");
    let say = format!("cat >>{}; echo >>{0}", told.display());
    let say = json!({ "path": "/bin/sh", "args": ["sh", "-c", say] });
    let fails = json!({ "path": "/bin/false" });
    let hooks = json!({ "createRuntime": [say], "poststart": [fails], "poststop": [fails, say] });
    let bundle = bundle(&ground)
        .with("/hooks", hooks)
        .args(&["sleep", "1000"]);
    bundle.create().success();
    let started = bundle.call("start", &[]);
    assert_ne!(started.status, 0);
    assert!(
        started.stderr.contains("poststart hook #0"),
        "{}",
        started.stderr
    );
    assert_eq!(bundle.status(), None, "it is still there");
    let told = fs::read_to_string(&told).expect("two hooks wrote to it");
    let status = |line: &str| {
        let state: Value = serde_json::from_str(line).expect("a hook reads JSON");
        state["status"].as_str().map(str::to_owned)
    };
    let statuses: Vec<_> = told.lines().filter_map(status).collect();
    assert_eq!(statuses, ["created", "stopped"]);
}

#[test]
fn what_is_open_is_passed_and_none_of_the_runtimes_own_descriptors() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let list = ["ls", "/proc/self/fd"];
    let bundle = bundle(&ground).args(&list);
    let mut run = bundle.start_command("run", &["--preserve-fds", "40"]);
    let inside = finish(&mut run, LIMIT).success().stdout;
    // Whoever runs the tests may have left us some.
    let outside = finish(Command::new(list[0]).arg(list[1]), LIMIT).success();
    let passed = |text: &str| {
        let numbers = text
            .split_whitespace()
            .map(|n| n.parse().expect("a number"));
        let mut numbers: Vec<u32> = numbers.filter(|number| *number < 43).collect();
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(passed(&inside), passed(&outside.stdout));
}
