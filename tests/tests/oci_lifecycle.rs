//! The life of an OCI container from its user's side: the verbs of runc's command line, one after the other.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tepui_tests::output::finish;
use tepui_tests::{Bundle, Ground, Runtime, requires, wait};

const LIMIT: Duration = Duration::from_secs(60);

/// A container that stays until it is killed.
fn sleeper(ground: &Ground) -> Bundle<'_> {
    Bundle::new(ground, &Runtime::under_test(), "c").args(&["sleep", "1000"])
}

#[track_caller]
fn await_status(bundle: &Bundle<'_>, status: &str) {
    wait::until(status, Duration::from_secs(10), || {
        (bundle.status()? == status).then_some(())
    });
}

#[test]
fn a_container_is_created_started_killed_and_deleted() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let output = ground.path("output");
    fs::create_dir(&output).expect("a directory");
    let bundle = Bundle::new(&ground, &Runtime::under_test(), "c")
        .shell(
            "echo started >/output/log; trap 'exit 5' TERM; while :; do sleep 1000 & wait $!; done",
        )
        .bind(&output, "/output");
    bundle.create().success();
    assert_eq!(bundle.status().as_deref(), Some("created"));
    assert!(!output.join("log").exists(), "it ran before it was started");

    let state = bundle.call("state", &[]).success();
    let state: Value = serde_json::from_str(&state.stdout).expect("the state is JSON");
    assert_eq!(state["id"], "c");
    assert_eq!(state["pid"], bundle.pid());
    assert_eq!(state["bundle"], bundle.directory().to_str().expect("ours"));
    assert!(state["ociVersion"].is_string(), "{state}");

    bundle.call("start", &[]).success();
    assert_eq!(bundle.status().as_deref(), Some("running"));
    wait::until("its output", Duration::from_secs(10), || {
        output.join("log").exists().then_some(())
    });
    assert_ne!(bundle.call("start", &[]).status, 0, "it runs already");
    assert_ne!(bundle.call("delete", &[]).status, 0, "it runs still");
    assert_ne!(bundle.create().status, 0, "the id is taken");

    bundle.call("kill", &["KILL"]).success();
    await_status(&bundle, "stopped");
    bundle.call("delete", &[]).success();
    assert_eq!(bundle.status(), None);
    assert_ne!(bundle.call("delete", &[]).status, 0, "it is gone");
    ground.assert_clean();
}

#[test]
fn run_ends_as_the_container_did_and_leaves_nothing() {
    requires!(root(), busybox());
    let ground = Ground::new();
    for (script, status) in [
        ("exit 0", 0),
        ("exit 42", 42),
        ("kill -TERM $$; kill -KILL $$", 137),
    ] {
        // Process 1 cannot kill itself: a child does, and the shell passes it on.
        let script = format!("sh -c '{script}'");
        let bundle = Bundle::new(&ground, &Runtime::under_test(), &format!("c{status}"));
        let run = bundle.shell(&format!("{script}; exit $?")).run();
        let expected = if status == 137 {
            [137, 143]
        } else {
            [status; 2]
        };
        assert!(expected.contains(&run.status), "{script}: {run}");
    }
    let bundle = Bundle::new(&ground, &Runtime::under_test(), "none");
    let run = bundle.args(&["/no/such/program"]).run();
    assert_ne!(run.status, 0);
    assert!(run.stderr.contains("no/such/program"), "{run}");
    ground.assert_clean();
}

#[test]
fn exec_joins_the_container_as_whom_it_is_told() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let bundle = sleeper(&ground);
    bundle.run_detached().success();
    let pids = bundle.exec(&[], &["cat", "/proc/1/cmdline"]).success();
    assert_eq!(pids.stdout, "sleep\u{0}1000\u{0}");
    let run = bundle.exec(
        &["--user", "1000:1000", "--cwd", "/tmp", "--env", "A=b"],
        &["sh", "-c", "id -u; id -g; pwd; echo $A; exit 7"],
    );
    assert_eq!(run.status, 7, "{run}");
    assert_eq!(run.stdout, "1000\n1000\n/tmp\nb\n");

    for name in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let link = format!("/proc/self/ns/{name}");
        let inside = bundle.exec(&[], &["readlink", &link]).success().stdout;
        let init = fs::read_link(format!("/proc/{}/ns/{name}", bundle.pid())).expect("procfs");
        assert_eq!(inside.trim_end(), init.to_str().expect("ASCII"));
    }

    let process = json!({"args": ["sh", "-c", "echo $FROM; exit 3"], "cwd": "/", "env": ["PATH=/bin", "FROM=file"],
        "user": {"uid": 0, "gid": 0}});
    let file = ground.write("process.json", process.to_string());
    let file = file.to_str().expect("ours");
    let run = finish(
        &mut bundle.command(&["exec", "--process", file, bundle.id()]),
        LIMIT,
    );
    assert_eq!((run.status, run.stdout.as_str()), (3, "file\n"), "{run}");

    let run = bundle.exec(&[], &["/no/such/program"]);
    assert_ne!(run.status, 0, "{run}");
    bundle.delete().success();
    ground.assert_clean();
}

#[test]
fn a_paused_container_is_resumed_or_deleted() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let bundle = sleeper(&ground);
    bundle.run_detached().success();
    bundle.call("pause", &[]).success();
    assert_eq!(bundle.status().as_deref(), Some("paused"));
    assert_ne!(bundle.exec(&[], &["true"]).status, 0, "it is paused");
    bundle.call("resume", &[]).success();
    assert_eq!(bundle.status().as_deref(), Some("running"));
    bundle.exec(&[], &["true"]).success();
    bundle.call("pause", &[]).success();
    // What is frozen does not die of a signal.
    bundle.delete().success();
    ground.assert_clean();
}

#[test]
fn hooks_run_in_the_order_of_the_specification() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let log = ground.path("log");
    fs::create_dir(&log).expect("a directory");
    let hook = |name: &str, directory: &str| {
        // Each is told the state of the container.
        let script = format!(
            "grep -q '\"id\": *\"c\"' && echo {name} >>{directory}/order || echo {name}: no state >>{directory}/order"
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    let here = log.to_str().expect("ours");
    let bundle = sleeper(&ground).bind(&log, "/log").with(
        "/hooks",
        json!({
            "poststop": hook("poststop", here),
            "poststart": hook("poststart", here),
            "startContainer": hook("startContainer", "/log"),
            "createContainer": hook("createContainer", here),
            "createRuntime": hook("createRuntime", here),
            "prestart": hook("prestart", here),
        }),
    );
    let order = || fs::read_to_string(log.join("order")).unwrap_or_default();
    bundle.create().success();
    assert_eq!(order(), "prestart\ncreateRuntime\ncreateContainer\n");
    bundle.call("start", &[]).success();
    wait::until("the hooks of a start", Duration::from_secs(10), || {
        order().contains("poststart").then_some(())
    });
    assert!(
        order().ends_with("startContainer\npoststart\n"),
        "{}",
        order()
    );
    bundle.delete().success();
    assert!(order().ends_with("poststart\npoststop\n"), "{}", order());
    ground.assert_clean();
}

#[test]
fn a_failing_hook_ends_the_start() {
    requires!(root(), busybox());
    let hooks =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo from the hook >&2; exit 3"]}]);
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let ground = Ground::new();
        let bundle = sleeper(&ground).with("/hooks", json!({kind: hooks}));
        assert_ne!(bundle.create().status, 0, "{kind}");
        assert_eq!(bundle.status(), None, "{kind}");
        ground.assert_clean();
    }
}

#[test]
fn descriptors_are_passed_on_only_when_asked_for() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let kept = ground.write("kept", "kept\n");
    let script = "cat <&3 2>/dev/null || echo none; ls /proc/self/fd | grep -c .";
    for (id, flags, expected) in [
        ("with", &["--preserve-fds", "1"][..], "kept\n"),
        ("without", &[], "none\n"),
    ] {
        let bundle = Bundle::new(&ground, &Runtime::under_test(), id).shell(script);
        let start = bundle.start_command("run", flags);
        let mut command = ground.command("sh");
        command
            .args(["-c", "exec 3<\"$0\" 9</; exec \"$@\""])
            .arg(&kept)
            .arg(start.get_program())
            .args(start.get_args());
        let run = finish(&mut command, LIMIT).success();
        assert!(run.stdout.starts_with(expected), "{id}: {run}");
        // Standard ones, the directory that ls reads, and the kept one.
        let count: u32 = run
            .stdout
            .lines()
            .last()
            .expect("a line")
            .parse()
            .expect("a number");
        assert_eq!(count, if flags.is_empty() { 4 } else { 5 }, "{id}: {run}");
    }
    ground.assert_clean();
}

#[test]
fn list_and_ps_show_what_there_is() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let bundle = sleeper(&ground);
    bundle.run_detached().success();
    let list = finish(&mut bundle.command(&["list", "--format", "json"]), LIMIT).success();
    let list: Value = serde_json::from_str(&list.stdout).expect("JSON");
    assert_eq!(list[0]["id"], "c");
    assert_eq!(list[0]["status"], "running");
    assert_eq!(list[0]["pid"], bundle.pid());
    assert_eq!(list.as_array().map(Vec::len), Some(1));
    let quiet = finish(&mut bundle.command(&["list", "--quiet"]), LIMIT).success();
    assert_eq!(quiet.stdout, "c\n");
    let table = finish(&mut bundle.command(&["list"]), LIMIT).success();
    assert!(table.stdout.starts_with("ID "), "{table}");

    let ps = finish(
        &mut bundle.command(&["ps", "--format", "json", bundle.id()]),
        LIMIT,
    );
    assert_eq!(ps.success().stdout.trim(), format!("[{}]", bundle.pid()));
    let ps = bundle.call("ps", &[]).success();
    assert!(ps.stdout.contains("sleep 1000"), "{ps}");
    bundle.delete().success();
    let list = finish(&mut bundle.command(&["list", "--quiet"]), LIMIT).success();
    assert_eq!(list.stdout, "");
    ground.assert_clean();
}

#[test]
fn a_container_has_the_cgroup_and_the_limits_of_its_configuration() {
    requires!(root(), busybox(), cgroup_v1());
    let ground = Ground::new();
    let bundle = sleeper(&ground)
        .with("/linux/resources/memory", json!({"limit": 64 << 20}))
        .with("/linux/resources/pids", json!({"limit": 7}));
    bundle.run_detached().success();
    let directory = format!("{}/c", ground.name());
    let read = |hierarchy: &str, file: &str| {
        fs::read_to_string(format!("/sys/fs/cgroup/{hierarchy}/{directory}/{file}"))
            .map(|text| text.trim().to_owned())
            .expect("its cgroup")
    };
    assert_eq!(read("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(read("pids", "pids.max"), "7");
    assert_eq!(read("memory", "cgroup.procs"), bundle.pid().to_string());
    finish(
        &mut bundle.command(&["update", "--pids-limit", "9", bundle.id()]),
        LIMIT,
    )
    .success();
    assert_eq!(read("pids", "pids.max"), "9");
    bundle.delete().success();
    ground.assert_clean();
}

#[test]
fn the_rootfs_is_left_as_it_was() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let bundle = Bundle::new(&ground, &Runtime::under_test(), "c").args(&["true"]);
    let listing = || {
        let find = Command::new("find").arg(bundle.rootfs("")).output();
        let mut paths: Vec<_> = String::from_utf8_lossy(&find.expect("find").stdout)
            .lines()
            .map(|path| {
                let status = fs::symlink_metadata(path).expect("it is there");
                (path.to_owned(), status.mode(), status.uid())
            })
            .collect();
        paths.sort();
        paths
    };
    let before = listing();
    bundle.run().success();
    assert_eq!(listing(), before);
    ground.assert_clean();
}
