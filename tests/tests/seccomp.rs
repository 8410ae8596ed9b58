//! Seccomp profiles of tasks: calls that an agent answers, and the least that a profile must allow.
#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};
use tepui_isolators::linux::seccomp::Abi;
use tepui_tests::output::{Finished, finish};
use tepui_tests::{Ground, Image, Task, requires};

/// With and without no_new_privs: the filter is loaded late, or before privileges are dropped.
const BOTH_WAYS: [(&str, &str); 2] = [
    (
        "no_new_privs",
        "cgroups/pids,filesystem/linux,linux/capabilities,linux/nnp,linux/seccomp,namespaces/ipc,namespaces/pid",
    ),
    (
        "privileged",
        "cgroups/pids,filesystem/linux,linux/capabilities,linux/seccomp,namespaces/ipc,namespaces/pid",
    ),
];

/// A task in busybox under this profile.
fn run(ground: &Ground, isolation: &str, profile: &Value, script: &str) -> Finished {
    ground.write("profile.json", profile.to_string());
    let image = ground.layout(&Image::busybox());
    let image = json!({"type": "DOCKER", "docker": {"name": image}});
    let seccomp = json!({"seccomp": {"profile_name": "profile.json"}});
    let container = json!({"type": "MESOS", "mesos": {"image": image}, "linux_info": seccomp});
    let task = Task::new("t").with("container", container).shell(script);
    ground.write("task.json", task.local_json());
    let mut tepui = ground.tepui("local");
    tepui.args([
        "task.json",
        "--isolation",
        isolation,
        "--seccomp-config-dir",
    ]);
    finish(tepui.arg(ground.path("")), Duration::from_secs(60))
}

/// State and message of each status.
fn statuses(run: &Finished) -> Vec<(String, String)> {
    let parse = |line: &str| -> Value {
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}\n{run}"))
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let both = |status: Value| (text(&status["state"]), text(&status["message"]));
    run.stdout.lines().map(|line| both(parse(line))).collect()
}

/// What an agent saw: what it was told, and the numbers of the calls.
struct Seen {
    told: Value,
    calls: Vec<i64>,
}

/// An agent that refuses mkdir and lets all else go on, until nobody is left who could call.
fn agent(socket: UnixListener) -> JoinHandle<Seen> {
    std::thread::spawn(move || {
        let (connection, _) = socket.accept().expect("a runtime connects");
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = rustix::net::recvmsg(&connection, buffers, &mut control, flags);
        let length = message.expect("a message").bytes;
        let rights = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let listener = rights.expect("a descriptor");
        let told = serde_json::from_slice(&bytes[..length]).expect("JSON");
        let calls = std::iter::from_fn(|| serve(&listener)).collect();
        Seen { told, calls }
    })
}

/// Answers one call; `None` when the filter has no process left.
fn serve(listener: &OwnedFd) -> Option<i64> {
    let mut ready = [PollFd::new(listener, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut ready, Some(&limit)),
        Ok(1),
        "nobody calls or ends"
    );
    if !ready[0].revents().contains(PollFlags::IN) {
        return None;
    }
    // SAFETY: plain numbers, which the kernel wants to be zero.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the kernel writes one such struct.
    let received = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut call) };
    if received != 0 {
        // The caller was killed meanwhile.
        return Some(-1);
    }
    let number = i64::from(call.data.nr);
    let is_mkdir = number == libc::SYS_mkdir;
    let mut answer = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error: if is_mkdir { -libc::ENOMEDIUM } else { 0 },
        flags: if is_mkdir {
            0
        } else {
            libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32
        },
    };
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: the kernel reads one such struct.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut answer) };
    let gone = io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT);
    assert!(sent == 0 || gone, "{}", io::Error::last_os_error());
    Some(number)
}

#[test]
fn an_agent_answers_for_a_task_and_even_for_its_start() {
    requires!(root(), busybox());
    for (way, isolation) in BOTH_WAYS {
        let ground = Ground::new();
        let path = ground.path("agent");
        let agent = agent(UnixListener::bind(&path).expect("a socket"));
        // Calls that the start itself makes after the filter are among them.
        let names = json!([
            "capset",
            "chdir",
            "close",
            "execve",
            "execveat",
            "fcntl",
            "getcwd",
            "mkdir",
            "openat",
            "prctl",
            "read",
            "rt_sigprocmask",
            "setresuid",
            "vfork",
        ]);
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "who",
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
        });
        let script = "mkdir /tmp/x 2>&1 | grep -q 'No medium found'";
        let run = run(&ground, isolation, &profile, script).success();
        assert_eq!(statuses(&run).last().expect("a status").0, "TASK_FINISHED");
        let Seen { told, calls } = agent.join().expect("the agent");
        assert_eq!(told["fds"], json!(["seccompFd"]), "{way}");
        assert_eq!(told["metadata"], "who");
        assert_eq!(told["pid"], told["state"]["pid"]);
        assert_eq!(told["state"]["status"], "creating");
        assert!(told["pid"].as_u64() > Some(1), "{told}");
        assert!(told["state"]["id"].as_str() > Some(""), "{told}");
        let seen = |name: &str| calls.contains(&Abi::native().number(name).map_or(-2, i64::from));
        assert!(
            seen("mkdir") && seen("read") && seen("execveat"),
            "{way}: {calls:?}"
        );
        assert_eq!(seen("setresuid"), way == "privileged", "{calls:?}");
        ground.assert_clean();
    }
}

#[test]
fn an_agent_that_is_not_there_fails_the_task() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": ground.path("nobody"),
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let run = run(&ground, BOTH_WAYS[0].1, &profile, "true");
    let statuses = statuses(&run);
    let (state, message) = statuses.last().expect("a status");
    assert_eq!(state, "TASK_FAILED");
    assert!(
        message.contains("failed to connect with seccomp agent"),
        "{message}"
    );
    ground.assert_clean();
}

/// What the check of a profile asks for is what the start then uses: any other call would kill it.
#[test]
fn a_start_gets_by_with_the_calls_that_its_check_names() {
    requires!(root(), busybox());
    for (way, isolation) in BOTH_WAYS {
        let ground = Ground::new();
        let profile = |names: &[&str]| {
            json!({
                "defaultAction": "SCMP_ACT_KILL_PROCESS",
                "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
            })
        };
        let refused = run(&ground, isolation, &profile(&["getpid"]), "true");
        let refusal = statuses(&refused).pop().expect("a status").1;
        let names = refusal.split_once("does not allow ");
        let names = names.and_then(|(_, rest)| rest.split_once(", which"));
        let (names, _) = names.unwrap_or_else(|| panic!("{way}: {refusal}"));
        let names: Vec<&str> = names.split(", ").collect();
        assert_eq!(names.contains(&"capset"), way == "privileged", "{names:?}");

        let run = run(&ground, isolation, &profile(&names), "true");
        let statuses = statuses(&run);
        let states: Vec<&str> = statuses.iter().map(|(state, _)| state.as_str()).collect();
        // It is executed, and busybox then makes a call that nobody allowed it.
        assert_eq!(
            states,
            ["TASK_STARTING", "TASK_RUNNING", "TASK_FAILED"],
            "{way}: {run}"
        );
        let (_, message) = &statuses[2];
        assert!(message.contains("Bad system call"), "{way}: {message}");
        ground.assert_clean();
    }
}
