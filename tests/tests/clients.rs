//! Container engines on `tepui-runtime`: podman with conmon, and containerd with its shim. What their users see, and
//! that nothing of it is left.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tepui_tests::output::{Finished, finish};
use tepui_tests::{Containerd, Ground, Podman, requires, wait};

const LIMIT: Duration = Duration::from_secs(60);

/// A workload that ends with 3 when it is asked to, and says when it is ready for that.
const ENDS_WITH_3: [&str; 3] = [
    "sh",
    "-c",
    "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
];

/// Where in a container the size of its terminal is waited for: the engines set it when it runs already.
const SHOW_TERMINAL: &str =
    "until [ \"$(stty size)\" = '33 77' ]; do sleep 0.05; done; tty; stty size; exit 5";

/// Runs a command on a terminal of 33 rows and 77 columns, to its end.
#[track_caller]
fn on_a_terminal(ground: &Ground, command: &Command) -> Finished {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quote = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
    let words: Vec<String> = words.map(|word| quote(&word.to_string_lossy())).collect();
    let mut script = ground.command("script");
    for (name, value) in command.get_envs() {
        script.env(name, value.expect("a variable that is set"));
    }
    let line = format!("stty rows 33 cols 77 && exec {}", words.join(" "));
    finish(script.args(["-q", "-e", "-c", &line, "/dev/null"]), LIMIT)
}

/// Runs a command with this as its standard input.
#[track_caller]
fn with_input(ground: &Ground, command: &mut Command, text: &str) -> Finished {
    let output = ground.path("with-input");
    let file = fs::File::create(&output).expect("a file of the test");
    let errors = file.try_clone().expect("a file of the test");
    command.stdin(Stdio::piped()).stdout(file).stderr(errors);
    let mut child = command.spawn().expect("the client starts");
    let mut input = child.stdin.take().expect("it is a pipe");
    input.write_all(text.as_bytes()).expect("it reads");
    drop(input);
    let status = wait::within(LIMIT, || child.try_wait().expect("it is our child"));
    let stdout = fs::read_to_string(output).expect("the client's words");
    let Some(status) = status else {
        child.kill().expect("it runs");
        panic!("it did not end: {stdout}");
    };
    Finished {
        status: status.code().unwrap_or(-1),
        stdout,
        stderr: String::new(),
    }
}

/// A file of a cgroup of this ground, by its v1 controller and file or its v2 file.
fn cgroup_file(ground: &Ground, child: &str, v1: (&str, &str), v2: &str) -> String {
    let below = PathBuf::from(ground.name()).join(child);
    let of_v1 = Path::new("/sys/fs/cgroup").join(v1.0).join(&below);
    let file = match of_v1.is_dir() {
        true => of_v1.join(v1.1),
        false => Path::new("/sys/fs/cgroup").join(&below).join(v2),
    };
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.trim().to_owned()
}

#[test]
fn podman_runs_a_container_to_its_end() {
    requires!(root(), busybox(), podman());
    let ground = Ground::new();
    let podman = Podman::new(&ground);
    let ran = podman.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(ran.status, 7, "{ran}");
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("out\n", "err\n")
    );

    // docker's and podman's own statuses, which they take from the runtime's words.
    let missing = podman.run(&["--rm"], &["no-such-program"]);
    assert_eq!(missing.status, 127, "{missing}");
    assert!(missing.stderr.contains("no-such-program"), "{missing}");
    let not_executable = podman.run(&["--rm"], &["/etc/passwd"]);
    assert_eq!(not_executable.status, 126, "{not_executable}");

    podman.remove_all();
    ground.assert_clean();
}

#[test]
fn podman_limits_what_a_container_may_do() {
    requires!(root(), busybox(), podman());
    let ground = Ground::new();
    let podman = Podman::new(&ground);
    let said = |flags: &[&str], script: &str| {
        let flags = [&["--rm"], flags].concat();
        podman.run(&flags, &["sh", "-c", script]).success().stdout
    };
    let killed = podman.run(
        &["--name", "hungry", "--memory", "16m"],
        &["tail", "/dev/zero"],
    );
    assert_eq!(killed.status, 137, "{killed}");

    assert_eq!(
        said(&["--user", "web"], "id -u; id -g; pwd"),
        "1000\n1000\n/\n"
    );
    assert_eq!(said(&["--user", "5:7"], "id -u; id -g"), "5\n7\n");
    let read_only = said(
        &["--read-only"],
        "touch /file || touch /tmp/file && echo only there",
    );
    assert_eq!(read_only, "only there\n");
    let sets = said(&["--cap-drop", "all"], "grep ^Cap /proc/self/status");
    assert_eq!(sets.matches("0000000000000000").count(), 5, "{sets}");
    // One given here takes the place of all configured ones.
    let limits = ["--ulimit", "nofile=123:456", "--ulimit", "nproc=1024:1024"];
    let limited = "grep -c 'open files *123 *456' /proc/self/limits";
    assert_eq!(said(&limits, limited), "1\n");

    // The default profile knows the personalities that programs have, and addresses without randomness are of none.
    let personality = "grep ^Seccomp: /proc/self/status; linux64 -R echo done || echo refused";
    let confined = said(&[], personality);
    assert_eq!(confined, "Seccomp:\t2\nrefused\n");
    let unconfined = said(&["--security-opt", "seccomp=unconfined"], personality);
    assert_eq!(unconfined, "Seccomp:\t0\ndone\n");

    let volume = ground.path("volume");
    fs::create_dir(&volume).expect("a new directory");
    fs::write(volume.join("in"), "from the host\n").expect("a file of the test");
    let volume_flag = format!("{}:/volume", volume.display());
    let read = said(
        &["--volume", &volume_flag],
        "cat /volume/in; echo from inside > /volume/out",
    );
    assert_eq!(read, "from the host\n");
    let out = fs::read_to_string(volume.join("out")).expect("the container wrote it");
    assert_eq!(out, "from inside\n");
    let read_only = format!("{volume_flag}:ro");
    let refused = said(
        &["--volume", &read_only],
        "touch /volume/more 2>/dev/null || echo refused",
    );
    assert_eq!(refused, "refused\n");

    podman.remove_all();
    ground.assert_clean();
}

#[test]
fn podman_enters_watches_pauses_and_stops_a_container() {
    requires!(root(), busybox(), podman());
    let ground = Ground::new();
    let podman = Podman::new(&ground);
    podman
        .run(&["--detach", "--name", "one"], &ENDS_WITH_3)
        .success();

    let exec = podman.call(&["exec", "one", "sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!(exec.status, 5, "{exec}");
    assert_eq!(
        (exec.stdout.as_str(), exec.stderr.as_str()),
        ("out\n", "err\n")
    );
    let missing = podman.call(&["exec", "one", "no-such-program"]);
    assert_eq!(missing.status, 127, "{missing}");
    let flags = [
        "exec",
        "--user",
        "web",
        "--workdir",
        "/tmp",
        "--env",
        "A=b",
        "one",
    ];
    let user = podman.call(&[&flags[..], &["sh", "-c", "id -u; pwd; echo $A"]].concat());
    assert_eq!(user.success().stdout, "1000\n/tmp\nb\n");
    let mut cat = podman.command(&["exec", "--interactive", "one", "cat"]);
    let cat = with_input(&ground, &mut cat, "to and fro\n");
    assert_eq!((cat.status, cat.stdout.as_str()), (0, "to and fro\n"));
    podman
        .call(&["exec", "--detach", "one", "touch", "/tmp/flag"])
        .success();
    let flag = || podman.call(&["exec", "one", "test", "-e", "/tmp/flag"]);
    wait::until("the detached process's file", LIMIT, || {
        (flag().status == 0).then_some(())
    });

    let statistics = podman.call(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.Name}} {{.PIDs}}",
        "one",
    ]);
    let statistics = statistics.success().stdout;
    let processes = statistics.trim().strip_prefix("one ").map(str::parse);
    assert!(matches!(processes, Some(Ok(1u32..))), "{statistics}");
    let top = podman.call(&["top", "one", "pid", "args"]).success().stdout;
    assert!(top.contains("trap"), "{top}");

    podman.call(&["pause", "one"]).success();
    assert_eq!(podman.inspect("one", ".State.Status"), "paused");
    podman.call(&["unpause", "one"]).success();
    assert_eq!(podman.inspect("one", ".State.Status"), "running");

    let ready = || {
        podman
            .call(&["logs", "one"])
            .success()
            .stdout
            .contains("ready")
    };
    wait::until("the workload's first words", LIMIT, || {
        ready().then_some(())
    });
    podman.call(&["stop", "--time", "60", "one"]).success();
    assert_eq!(podman.inspect("one", ".State.ExitCode"), "3");
    assert_eq!(
        podman.call(&["logs", "one"]).success().stdout,
        "ready\nasked\n"
    );

    podman.call(&["start", "one"]).success();
    podman
        .call(&["rm", "--force", "--time", "0", "one"])
        .success();
    ground.assert_clean();
}

#[test]
fn podman_kills_what_does_not_stop() {
    requires!(root(), busybox(), podman());
    let ground = Ground::new();
    let podman = Podman::new(&ground);
    // As the first process of its pid namespace it is not ended by a signal that it does not handle.
    let sleeper = ["sleep", "1000"];
    podman
        .run(&["--detach", "--name", "deaf"], &sleeper)
        .success();
    podman.call(&["stop", "--time", "1", "deaf"]).success();
    assert_eq!(podman.inspect("deaf", ".State.ExitCode"), "137");
    podman.call(&["start", "deaf"]).success();
    podman.call(&["kill", "--signal", "KILL", "deaf"]).success();
    let waited = podman.call(&["wait", "deaf"]).success();
    assert_eq!(waited.stdout.trim(), "137");
    podman.call(&["start", "deaf"]).success();
    podman.call(&["pause", "deaf"]).success();
    podman.remove_all();
    ground.assert_clean();
}

#[test]
fn podman_gives_a_terminal() {
    requires!(root(), busybox(), podman());
    let ground = Ground::new();
    let podman = Podman::new(&ground);
    let run = podman.run_command(&["--rm", "--tty"], &["sh", "-c", SHOW_TERMINAL]);
    let run = on_a_terminal(&ground, &run);
    assert_eq!(run.status, 5, "{run}");
    assert!(run.stdout.contains("/dev/pts/0\r\n33 77\r\n"), "{run}");

    podman
        .run(
            &["--detach", "--tty", "--name", "one"],
            &["sh", "-c", "tty; sleep 1000"],
        )
        .success();
    let exec = podman.command(&["exec", "--tty", "one", "sh", "-c", SHOW_TERMINAL]);
    let exec = on_a_terminal(&ground, &exec);
    assert_eq!(exec.status, 5, "{exec}");
    assert!(exec.stdout.contains("\r\n33 77\r\n"), "{exec}");
    let logs = || podman.call(&["logs", "one"]).success().stdout;
    wait::until("its terminal's name", LIMIT, || {
        logs().contains("/dev/pts/0").then_some(())
    });
    podman.remove_all();
    ground.assert_clean();
}

#[test]
fn containerd_runs_a_container_to_its_end() {
    requires!(root(), busybox(), containerd());
    let ground = Ground::new();
    let containerd = Containerd::new(&ground);
    let script = "echo out; echo err >&2; exit 7";
    let ran = containerd.run("one", &["--rm"], &["sh", "-c", script]);
    assert_eq!(ran.status, 7, "{ran}");
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("out\n", "err\n")
    );
    // The shim reads this in the runtime's log.
    let missing = containerd.run("two", &["--rm"], &["no-such-program"]);
    assert_eq!(missing.status, 1, "{missing}");
    assert!(
        missing.stderr.contains("OCI runtime create failed"),
        "{missing}"
    );
    assert!(missing.stderr.contains("no-such-program"), "{missing}");

    let limit = ["--rm", "--memory-limit", "16777216"];
    let killed = containerd.run("hungry", &limit, &["tail", "/dev/zero"]);
    assert_eq!(killed.status, 137, "{killed}");
    let script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; touch /file || echo refused";
    let flags = ["--rm", "--seccomp", "--read-only"];
    let confined = containerd.run("confined", &flags, &["sh", "-c", script]);
    let expected = "NoNewPrivs:\t1\nSeccomp:\t2\nrefused\n";
    assert_eq!(confined.success().stdout, expected);
    let maps = [
        "--rm",
        "--uidmap",
        "0:100000:65536",
        "--gidmap",
        "0:100000:65536",
    ];
    let mapped = containerd.run("mapped", &maps, &["cat", "/proc/self/uid_map"]);
    let mapped = mapped.success().stdout;
    let words: Vec<&str> = mapped.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536"]);
    containerd.end();
    ground.assert_clean();
}

#[test]
fn containerd_enters_watches_pauses_and_kills_a_container() {
    requires!(root(), busybox(), containerd());
    let ground = Ground::new();
    let containerd = Containerd::new(&ground);
    let flags = ["--detach", "--null-io"];
    let workload = [
        "sh",
        "-c",
        "trap 'exit 3' TERM; touch /ready; while :; do sleep 0.05; done",
    ];
    containerd.run("one", &flags, &workload).success();
    let status = || containerd.task("one").expect("a task");
    assert_eq!(status(), "RUNNING");

    let exec = containerd.exec(
        "one",
        &["--exec-id", "a"],
        &["sh", "-c", "echo out; exit 5"],
    );
    assert_eq!((exec.status, exec.stdout.as_str()), (5, "out\n"), "{exec}");
    let missing = containerd.exec("one", &["--exec-id", "b"], &["no-such-program"]);
    assert_eq!(missing.status, 1, "{missing}");
    assert!(
        missing.stderr.contains("OCI runtime exec failed"),
        "{missing}"
    );
    let flags = ["--exec-id", "c", "--user", "1000", "--cwd", "/tmp"];
    let user = containerd.exec("one", &flags, &["sh", "-c", "id -u; pwd"]);
    assert_eq!(user.success().stdout, "1000\n/tmp\n");
    let mut cat = containerd.command(&["task", "exec", "--exec-id", "d", "one", "cat"]);
    let cat = with_input(&ground, &mut cat, "to and fro\n");
    assert_eq!((cat.status, cat.stdout.as_str()), (0, "to and fro\n"));
    let flags = ["--detach", "--exec-id", "sleeper"];
    containerd.exec("one", &flags, &["sleep", "1000"]).success();
    let list = containerd.call(&["task", "ps", "one"]).success().stdout;
    assert!(list.contains("ExecID:sleeper"), "{list}");
    let kill = [
        "task",
        "kill",
        "--exec-id",
        "sleeper",
        "--signal",
        "KILL",
        "one",
    ];
    containerd.call(&kill).success();
    wait::until("the end of the process", LIMIT, || {
        let list = containerd.call(&["task", "ps", "one"]).success().stdout;
        (!list.contains("sleeper")).then_some(())
    });

    let metrics = containerd
        .call(&["task", "metrics", "one"])
        .success()
        .stdout;
    let count = metrics
        .lines()
        .find_map(|line| line.strip_prefix("pids.current"));
    let count = count.and_then(|count| count.trim().parse::<u32>().ok());
    assert!(count.is_some_and(|count| count >= 1), "{metrics}");

    containerd.call(&["task", "pause", "one"]).success();
    assert_eq!(status(), "PAUSED");
    let (freezer, v2) = (("freezer", "freezer.state"), "cgroup.freeze");
    let frozen = cgroup_file(&ground, "one", freezer, v2);
    assert!(["FROZEN", "1"].contains(&frozen.as_str()), "{frozen}");
    containerd.call(&["task", "resume", "one"]).success();
    assert_eq!(status(), "RUNNING");

    wait::until("the workload to be ready", LIMIT, || {
        let ready = containerd.exec("one", &["--exec-id", "e"], &["test", "-e", "/ready"]);
        (ready.status == 0).then_some(())
    });
    containerd
        .call(&["task", "kill", "--signal", "TERM", "one"])
        .success();
    wait::until("the end of the task", LIMIT, || {
        (status() == "STOPPED").then_some(())
    });
    let deleted = containerd.call(&["task", "delete", "one"]);
    assert!(deleted.stderr.contains("exit code 3"), "{deleted}");
    containerd
        .call(&["task", "start", "--detach", "--null-io", "one"])
        .success();
    let refused = containerd.call(&["task", "delete", "one"]);
    assert_eq!(refused.status, 1, "{refused}");
    containerd.delete("one");
    containerd.end();
    ground.assert_clean();
}

#[test]
fn containerd_gives_a_terminal() {
    requires!(root(), busybox(), containerd());
    let ground = Ground::new();
    let containerd = Containerd::new(&ground);
    let show = ["sh", "-c", SHOW_TERMINAL];
    let run = containerd.run_command("one", &["--rm", "--tty"], &show);
    let run = on_a_terminal(&ground, &run);
    assert_eq!(run.status, 5, "{run}");
    assert!(run.stdout.contains("33 77"), "{run}");
    assert!(run.stdout.contains("/dev/pts/0"), "{run}");
    containerd
        .run("two", &["--detach", "--null-io"], &["sleep", "1000"])
        .success();
    let exec = ["task", "exec", "--tty", "--exec-id", "a", "two"];
    let exec = containerd.command(&[&exec[..], &show].concat());
    let exec = on_a_terminal(&ground, &exec);
    assert_eq!(exec.status, 5, "{exec}");
    assert!(exec.stdout.contains("33 77"), "{exec}");
    containerd.delete("two");
    containerd.end();
    ground.assert_clean();
}

#[test]
fn containerd_cleans_up_after_a_shim_that_was_killed() {
    requires!(root(), busybox(), containerd());
    let ground = Ground::new();
    let containerd = Containerd::new(&ground);
    containerd
        .run("one", &["--detach", "--null-io"], &["sleep", "1000"])
        .success();
    let is_shim = |arguments: &[String]| arguments.iter().any(|word| word.contains("-shim-"));
    let shim = ground
        .processes()
        .into_iter()
        .find(|p| is_shim(&p.arguments));
    let shim = nix::unistd::Pid::from_raw(shim.expect("a shim").pid);
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    wait::until("containerd to notice", LIMIT, || {
        containerd.task("one").is_none().then_some(())
    });
    containerd.call(&["container", "delete", "one"]).success();
    containerd.end();
    ground.assert_clean();
}
