//! `tepui local`: an embedded agent around the same executor.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tepui_tests::output::{Finished, finish};
use tepui_tests::{Ground, Image, Task, requires, wait};

fn local(ground: &Ground, task: &Task, flags: &[&str]) -> Finished {
    ground.write("task.json", task.local_json());
    finish(
        ground.tepui("local").arg("task.json").args(flags),
        Duration::from_secs(60),
    )
}

/// The statuses of the stream: one JSON object a line.
fn statuses(run: &Finished) -> Vec<Value> {
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}\n{run}"));
    run.stdout.lines().map(parse).collect()
}

fn states(run: &Finished) -> Vec<String> {
    let state = |status: &Value| status["state"].as_str().unwrap_or_default().to_owned();
    statuses(run).iter().map(state).collect()
}

#[test]
fn the_stream_and_the_exit_status_tell_how_it_went() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let good = local(&ground, &Task::new("t1").image(&image).shell("true"), &[]);
    assert_eq!(
        states(&good),
        ["TASK_STARTING", "TASK_RUNNING", "TASK_FINISHED"],
        "{good}"
    );
    assert_eq!(good.status, 0, "{good}");

    let bad = local(&ground, &Task::new("t1").image(&image).shell("exit 3"), &[]);
    assert_eq!(
        states(&bad),
        ["TASK_STARTING", "TASK_RUNNING", "TASK_FAILED"],
        "{bad}"
    );
    assert_eq!(statuses(&bad)[2]["message"], "Command exited with status 3");
    assert_eq!(bad.status, 3, "{bad}");
    ground.assert_clean();
}

#[test]
fn json_to_the_executor_gives_the_same_stream() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let task = Task::new("t1").image(&image).shell("exit 3");
    let run = local(&ground, &task, &["--content-type", "json"]);
    assert_eq!(
        states(&run),
        ["TASK_STARTING", "TASK_RUNNING", "TASK_FAILED"],
        "{run}"
    );
    ground.assert_clean();
}

#[test]
fn a_relative_image_path_is_relative_to_where_one_stands() {
    requires!(root(), busybox());
    let ground = Ground::new();
    ground.layout(&Image::busybox());
    let run = local(
        &ground,
        &Task::new("t1").image("oci:layout").shell("true"),
        &[],
    );
    assert_eq!(run.status, 0, "{run}");
    ground.assert_clean();
}

#[test]
fn the_sandbox_has_the_output_and_is_mapped() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let sandbox = ground.path("sandbox");
    let script = "echo out; echo err >&2; echo kept >\"$MESOS_SANDBOX/file\"";
    let task = Task::new("t1").image(&image).shell(script);
    let run = local(
        &ground,
        &task,
        &["--sandbox", &sandbox.display().to_string()],
    );
    assert_eq!(run.status, 0, "{run}");
    for (file, content) in [("stdout", "out\n"), ("stderr", "err\n"), ("file", "kept\n")] {
        let found = std::fs::read_to_string(sandbox.join(file)).unwrap_or_default();
        assert!(found.contains(content), "{file}: {found:?} {run}");
    }
    ground.assert_clean();
}

#[test]
fn its_pid_one_is_our_init_and_its_privileges_are_dockers() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let sandbox = ground.path("sandbox");
    let script = "echo pid=$$; grep -E 'Seccomp:|NoNewPrivs|CapBnd' /proc/self/status; \
                  grep -E 'VmRSS|RssAnon' /proc/1/status; \
                  if echo >/proc/1/exe; then echo writable; fi; env";
    let task = Task::new("t1").image(&image).shell(script);
    let run = local(
        &ground,
        &task,
        &["--sandbox", &sandbox.display().to_string()],
    );
    assert_eq!(run.status, 0, "{run}");
    let out = std::fs::read_to_string(sandbox.join("stdout")).expect("its output");
    assert!(!out.contains("pid=1\n"), "{out}");
    assert!(out.contains("CapBnd:\t00000000a80425fb"), "{out}");
    assert!(
        out.contains("NoNewPrivs:\t1") && out.contains("Seccomp:\t2"),
        "{out}"
    );
    let anonymous = out
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
    let kilobytes: u32 = anonymous
        .expect("RssAnon of init")
        .parse()
        .expect("a number");
    assert!(
        kilobytes <= 64,
        "init has {kilobytes} KiB of private memory"
    );
    assert!(!out.contains("writable"), "{out}");
    for name in [
        "LIBPROCESS_",
        "MESOS_DOMAIN_SOCKET",
        "MESOS_EXECUTOR_AUTHENTICATION_TOKEN",
        "TEPUI_",
    ] {
        assert!(!out.contains(name), "{name} leaked: {out}");
    }
    ground.assert_clean();
}

#[test]
fn over_its_memory_the_reason_is_that_limit() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    for script in ["exec tail /dev/zero", "tail /dev/zero; exec sleep 1000"] {
        let task = Task::new("t1")
            .image(&image)
            .resources(0.5, 48)
            .shell(script);
        let run = local(&ground, &task, &[]);
        let statuses = statuses(&run);
        let last = statuses.last().expect("a status");
        assert_eq!(last["state"], "TASK_FAILED", "{script}: {run}");
        assert_eq!(
            last["reason"], "REASON_CONTAINER_LIMITATION_MEMORY",
            "{script}: {run}"
        );
        assert_eq!(
            last["limitation"]["resources"][0]["name"], "mem",
            "{script}: {run}"
        );
        assert_ne!(run.status, 0, "{run}");
    }
    ground.assert_clean();
}

#[test]
fn sigterm_kills_the_task_and_leaves_nothing() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    ground.write(
        "task.json",
        Task::new("t1")
            .image(&image)
            .shell("exec sleep 1000")
            .local_json(),
    );
    let output = std::fs::File::create(ground.path("out")).expect("a file");
    let mut child = ground
        .tepui("local")
        .arg("task.json")
        .stdout(output)
        .spawn()
        .expect("it starts");
    ground.container();
    wait::until("TASK_RUNNING", Duration::from_secs(20), || {
        let text = std::fs::read_to_string(ground.path("out")).expect("the file");
        text.contains("TASK_RUNNING").then_some(())
    });
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    wait::until("it ends", Duration::from_secs(20), || {
        child.try_wait().expect("our child")
    });
    let text = std::fs::read_to_string(ground.path("out")).expect("the file");
    assert!(text.contains("TASK_KILLED"), "{text}");
    ground.assert_clean();
}

#[test]
fn not_root_fails_each_task_and_says_what_to_do() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    for name in ["store", "state", "sandbox"] {
        std::fs::create_dir(ground.path(name)).expect("a directory");
        chown(ground.path(name), Some(65534), Some(65534)).expect("root may chown");
    }
    ground.write(
        "task.json",
        Task::new("t1").image(&image).shell("true").local_json(),
    );
    let mut command = ground.tepui("local");
    command
        .arg("task.json")
        .arg("--sandbox")
        .arg(ground.path("sandbox"))
        .uid(65534)
        .gid(65534);
    let run = finish(&mut command, Duration::from_secs(60));
    let statuses = statuses(&run);
    let last = statuses.last().unwrap_or(&json!(null)).clone();
    assert_eq!(last["state"], "TASK_FAILED", "{run}");
    let message = last["message"].as_str().unwrap_or_default();
    for hint in ["command.user", "root", "--rootless=allow"] {
        assert!(message.contains(hint), "{hint} is not in {message:?}");
    }
    assert_ne!(run.status, 0, "{run}");
}
