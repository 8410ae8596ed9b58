//! `tepui run`: exit status, streams, the flags, and nothing left.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tepui_tests::output::Finished;
use tepui_tests::tarball::Entry;
use tepui_tests::{Ground, Image, requires, wait};

#[test]
fn the_exit_status_is_the_workloads() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let status = |command: &[&str]| ground.run(&[&[image.as_str()], command].concat()).status;
    assert_eq!(status(&["true"]), 0);
    assert_eq!(status(&["sh", "-c", "exit 3"]), 3);
    assert_eq!(status(&["sh", "-c", "sh -c 'kill -KILL $$'; exit $?"]), 137);
    assert_eq!(status(&["/no/such/program"]), 127);
    assert_eq!(status(&["/etc/passwd"]), 126);
    ground.assert_clean();
}

#[test]
fn a_failure_of_ours_is_125_and_says_what_and_where() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let missing = format!("oci:{}", ground.path("nowhere").display());
    let run = ground.run(&[&missing, "true"]);
    assert_eq!(run.status, 125, "{run}");
    assert!(
        run.stderr
            .contains(&ground.path("nowhere").display().to_string()),
        "{run}"
    );
    assert_eq!(run.stdout, "");
    ground.assert_clean();
}

#[test]
fn output_and_errors_stay_apart_and_input_arrives_with_i() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let run = ground
        .run(&[&image, "sh", "-c", "echo one; echo two >&2"])
        .success();
    assert_eq!(
        (run.stdout.as_str(), run.stderr.as_str()),
        ("one\n", "two\n")
    );

    let mut child = ground
        .tepui("run")
        .args(["--rm", "-i", &image, "tr", "a-z", "A-Z"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = child.stdin.take().expect("stdin is a pipe");
    input
        .write_all(b"through the container\n")
        .expect("it reads");
    drop(input);
    let run = Finished::from(child.wait_with_output().expect("it ends")).success();
    assert_eq!(run.stdout, "THROUGH THE CONTAINER\n");
    ground.assert_clean();
}

#[test]
fn the_image_says_what_runs_and_the_command_line_overrides_it() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = Image::busybox()
        .with("Entrypoint", json!(["/bin/echo", "entry"]))
        .with("Cmd", json!(["default"]))
        .with("Env", json!(["PATH=/bin", "FROM=image"]))
        .with("User", json!("web"))
        .with("WorkingDir", json!("/home/web"));
    let image = ground.layout(&image);
    assert_eq!(ground.run(&[&image]).success().stdout, "entry default\n");
    assert_eq!(
        ground.run(&[&image, "given"]).success().stdout,
        "entry given\n"
    );
    ground.assert_clean();
}

#[test]
fn user_directory_and_environment() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = Image::busybox()
        .with("Env", json!(["PATH=/bin", "FROM=image"]))
        .with("User", json!("web"))
        .with("WorkingDir", json!("/home/web"));
    let image = ground.layout(&image);
    let script = "echo $(id -u):$(id -g) $(id -G) $PWD $FROM";
    let line = |flags: &[&str]| {
        ground
            .run(&[flags, &[image.as_str(), "sh", "-c", script]].concat())
            .success()
            .stdout
    };
    assert_eq!(line(&[]), "1000:1000 1000 2000 /home/web image\n");
    assert_eq!(
        line(&["-u", "0", "-w", "/tmp", "-e", "FROM=flag"]),
        "0:0 0 /tmp flag\n"
    );
    assert_eq!(line(&["-u", "7:8"]), "7:8 8 /home/web image\n");
    ground.assert_clean();
}

#[test]
fn a_volume_is_the_hosts_directory_and_may_be_read_only() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    std::fs::create_dir(ground.path("volume")).expect("a directory");
    let path = ground.path("volume").display().to_string();
    let _ = ground
        .run(&[
            "-v",
            &format!("{path}:/data"),
            &image,
            "sh",
            "-c",
            "echo in >/data/file",
        ])
        .success();
    assert_eq!(
        std::fs::read_to_string(ground.path("volume/file")).expect("written"),
        "in\n"
    );
    let volume = format!("{path}:/data:ro");
    let run = ground.run(&[
        "-v",
        &volume,
        &image,
        "sh",
        "-c",
        "cat /data/file; echo no >/data/file",
    ]);
    assert_ne!(run.status, 0, "{run}");
    assert!(
        run.stdout.contains("in") && run.stderr.contains("Read-only file system"),
        "{run}"
    );
    ground.assert_clean();
}

#[test]
fn a_read_only_root_still_has_its_own_mounts() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let run = ground.run(&[
        "--read-only",
        &image,
        "sh",
        "-c",
        "echo x >/dev/shm/x && echo x >/x",
    ]);
    assert_ne!(run.status, 0, "{run}");
    assert!(
        run.stderr
            .contains("can't create /x: Read-only file system"),
        "{run}"
    );
    ground.assert_clean();
}

#[test]
fn network_none_has_loopback_alone_and_up() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let script = "tail -n +3 /proc/net/dev | cut -d: -f1; cat /sys/class/net/lo/carrier";
    let run = ground
        .run(&["--network", "none", &image, "sh", "-c", script])
        .success();
    assert_eq!(
        run.stdout.split_whitespace().collect::<Vec<_>>(),
        ["lo", "1"]
    );
    let host = ground
        .run(&[&image, "readlink", "/proc/self/ns/net"])
        .success()
        .stdout;
    let own = std::fs::read_link("/proc/self/ns/net").expect("procfs");
    assert_eq!(
        host.trim(),
        own.to_string_lossy(),
        "host is the default, as in Mesos"
    );
    ground.assert_clean();
}

#[test]
fn over_its_memory_it_is_killed_and_says_so() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let run = ground.run(&["--memory", "32m", &image, "tail", "/dev/zero"]);
    assert_eq!(run.status, 137, "{run}");
    assert!(run.stderr.to_lowercase().contains("memory"), "{run}");
    ground.assert_clean();
}

#[test]
fn a_fork_beyond_the_pids_limit_fails() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; true";
    let run = ground.run(&["--pids-limit", "4", &image, "sh", "-c", script]);
    assert!(
        run.stderr
            .contains("can't fork: Resource temporarily unavailable"),
        "{run}"
    );
    ground.assert_clean();
}

#[test]
fn a_later_layer_takes_away_and_replaces() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = Image::busybox()
        .layer(vec![
            Entry::directory("data", 0o755),
            Entry::file("data/gone", 0o644, "1"),
            Entry::file("data/changed", 0o600, "1").owned_by(1000),
            Entry::hard_link("data/linked", "data/changed"),
            Entry::directory("hidden", 0o755),
            Entry::file("hidden/below", 0o644, "1"),
        ])
        .layer(vec![
            Entry::file("data/.wh.gone", 0o644, ""),
            Entry::file("data/new", 0o4755, "2"),
            Entry::directory("hidden", 0o700),
            Entry::file("hidden/.wh..wh..opq", 0o644, ""),
            Entry::file("hidden/above", 0o644, "2"),
        ]);
    let image = ground.layout(&image);
    let script = "cd /data; ls; stat -c '%n %a %u %h' *; cd /hidden; stat -c %a .; ls -A";
    let run = ground.run(&[&image, "sh", "-c", script]).success();
    let expected =
        "changed\nlinked\nnew\nchanged 600 1000 2\nlinked 600 1000 2\nnew 4755 0 1\n700\nabove\n";
    assert_eq!(run.stdout, expected);
    ground.assert_clean();
}

#[test]
fn what_it_writes_is_gone_for_the_next_one() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let script = "test ! -e /bin/new && rm /etc/group && echo x >/bin/new";
    for _ in 0..2 {
        ground.run(&[&image, "sh", "-c", script]).success();
    }
    ground.assert_clean();
}

#[test]
fn sigterm_ends_the_container_and_leaves_nothing() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let script = "trap 'echo caught; exit 9' TERM; echo ready; while true; do usleep 10000; done";
    let file = std::fs::File::create(ground.path("out")).expect("a file");
    let mut child = ground
        .tepui("run")
        .args(["--rm", &image, "sh", "-c", script])
        .stdout(file)
        .spawn()
        .expect("it starts");
    let output = || std::fs::read_to_string(ground.path("out")).expect("the file");
    wait::until("the workload runs", Duration::from_secs(20), || {
        output().contains("ready").then_some(())
    });
    ground.container();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    let status = wait::until("it ends", Duration::from_secs(20), || {
        child.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(9));
    assert_eq!(output(), "ready\ncaught\n");
    ground.assert_clean();
}

#[test]
fn sigkill_leaves_no_process_and_the_next_start_leaves_nothing() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let mut child = ground
        .tepui("run")
        .args(["--rm", &image, "sleep", "1000"])
        .spawn()
        .expect("it starts");
    let container = ground.container();
    child.kill().expect("it runs");
    child.wait().expect("it is our child");
    wait::until("the container is gone", Duration::from_secs(2), || {
        kill(Pid::from_raw(container.pid), None)
            .is_err()
            .then_some(())
    });
    ground.run(&[&image, "true"]).success();
    ground.assert_clean();
}
