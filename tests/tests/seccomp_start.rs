//! Filters between `create` and `start`: who holds the listener when, and what the container's own hooks run under.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use oci_spec::runtime::LinuxNamespaceType;
use serde_json::{Value, json};
use tempfile::TempDir;
use tepui::launch::start::{self, Started};
use tepui::launch::step::HookStep;
use tepui::launch::sys::StringArray;
use tepui::launch::{self, Error, Handover, Patient, Waiting};
use tepui_isolators::launch_info::{IdMap, IdMaps};
use tepui_isolators::linux::seccomp::{compile, docker_default, resolve, running_kernel};
use tepui_isolators::{CgroupPlacement, ContainerLaunchInfo, Declaration, RootFilesystem};
use tepui_tests::requires;

const LIMIT: Duration = Duration::from_secs(20);

/// The 14 capabilities that Docker gives, as a bounding set.
const DOCKER_CAPS: u64 = 0xa804_25fb;

fn docker() -> Value {
    let kernel = running_kernel().expect("a version");
    serde_json::to_value(resolve(docker_default(), DOCKER_CAPS, kernel)).expect("plain data")
}

fn without(action: &str, call: &str) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": [call, "mkdirat"], "action": action}],
    })
}

/// A hook of the container.
fn hook(script: &str) -> HookStep {
    let string = |text: &str| std::ffi::CString::new(text).expect("no NUL byte");
    HookStep {
        at_start: true,
        number: 0,
        path: string("/bin/sh"),
        arguments: StringArray::new(["sh", "-c", script].map(string).into()),
        environment: StringArray::new(vec![string("PATH=/usr/bin:/bin")]),
        directory: None,
        timeout: Some(20),
        state: tempfile::tempfile().expect("a file").into(),
    }
}

/// A container that is nothing but a filter around `script`, on the host's file system.
fn prepare(
    profile: &Value,
    no_new_privileges: bool,
    script: &str,
    change: impl FnOnce(&mut Handover),
) -> Result<Waiting, Error> {
    let seccomp = serde_json::from_value(profile.clone()).expect("a profile");
    let user = json!({"uid": 0, "gid": 0});
    let process = json!({"cwd": "/", "user": user, "args": ["/bin/sh", "-c", script]});
    let spec = json!({"ociVersion": "1.2.0", "process": process});
    let declaration = Declaration {
        spec: serde_json::from_value(spec).expect("a spec"),
        rootfs: RootFilesystem::Host,
        cgroups: CgroupPlacement {
            parent: "/".into(),
            nested: Default::default(),
            name: None,
        },
        init: false,
        executable: None,
        keep_keyring: false,
        reset_cpu_affinity: false,
    };
    let rootless = !rustix::process::geteuid().is_root();
    let one = |outside| {
        vec![IdMap {
            inside: 0,
            outside,
            count: 1,
        }]
    };
    let maps = || IdMaps {
        users: one(rustix::process::geteuid().as_raw()),
        groups: one(rustix::process::getegid().as_raw()),
    };
    let info = ContainerLaunchInfo {
        namespaces: rootless
            .then_some(LinuxNamespaceType::User)
            .into_iter()
            .collect(),
        id_maps: rootless.then(maps),
        no_new_privileges,
        seccomp: Some(compile(&seccomp).expect("it compiles").filter),
        ..Default::default()
    };
    let file = || OwnedFd::from(tempfile::tempfile().expect("a file"));
    let mut handover = Handover::new([file(), file(), file()], "/".into(), None);
    change(&mut handover);
    launch::prepare(&declaration, info, handover, &mut Patient)
}

#[test]
fn the_containers_own_hooks_run_under_its_filter() {
    requires!(root());
    for no_new_privileges in [true, false] {
        let with_hook = |profile: &Value, script: &str| {
            let hooks = vec![hook(script)];
            prepare(profile, no_new_privileges, "exit 3", |handover| {
                handover.start_hooks = hooks
            })
            .and_then(|waiting| waiting.start(&mut Patient))
        };
        // clone3 is ENOSYS there.
        let process = with_hook(&docker(), "true").expect("a hook that succeeds");
        assert_eq!(process.reap().expect("our child"), 3 << 8);
        let kill = without("SCMP_ACT_KILL_PROCESS", "mkdir");
        with_hook(&kill, "true").expect("a hook that makes no directory");
        let failure = with_hook(&kill, "mkdir /nobody/has/this").expect_err("it is killed");
        assert!(matches!(failure, Error::Hook { .. }), "{failure}");
    }
}

#[test]
fn an_agent_has_its_listener_before_the_start() {
    requires!(root());
    for no_new_privileges in [true, false] {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("agent");
        let agent = UnixListener::bind(&path).expect("a socket");
        agent.set_nonblocking(true).expect("a socket");
        let mut profile = without("SCMP_ACT_NOTIFY", "mkdir");
        profile["listenerPath"] = json!(path);
        let socket = start::listen(directory.path(), "start").expect("a socket");
        let waiting = prepare(
            &profile,
            no_new_privileges,
            "mkdir /nobody/has/this",
            |handover| {
                handover.start = Some(socket);
                handover.state.set_id("box".to_owned());
            },
        );
        let waiting = waiting.expect("it waits");
        let (connection, _) = agent.accept().expect("the listener was delivered");
        let pidfd = waiting.process().pidfd.try_clone().expect("a descriptor");
        waiting.leave().expect("it lives");
        // Nobody answers from here on: without our copy of the listener, which goes with the connection, the call fails.
        drop(connection);
        let starter = start::connect(directory.path(), "start").expect("it listens");
        start::say(&starter).expect("it hears");
        assert_eq!(
            start::outcome(&starter, LIMIT).expect("an answer"),
            Started::Executed
        );
        assert!(
            tepui::pidfd::ended_within(&pidfd, LIMIT).expect("a descriptor"),
            "its call hangs"
        );
        let options = rustix::process::WaitIdOptions::EXITED;
        let id = rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd));
        let status = rustix::process::waitid(id, options)
            .expect("our child")
            .expect("a status");
        // mkdir says ENOSYS, which is its failure.
        assert_eq!(status.exit_status(), Some(1));
    }
}

/// As another user in a user namespace, whose kernel objects we have no power over but by being its owner.
#[test]
fn an_agent_has_its_listener_without_root() {
    const USER: u32 = 1000;
    if !rustix::process::geteuid().is_root() {
        return without_root();
    }
    requires!(root());
    let me = std::env::current_exe().expect("our own path");
    let mut again = std::process::Command::new(me);
    again.args(["--exact", "an_agent_has_its_listener_without_root"]);
    let output = again.uid(USER).gid(USER).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn without_root() {
    for no_new_privileges in [true, false] {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("agent");
        let agent = UnixListener::bind(&path).expect("a socket");
        agent.set_nonblocking(true).expect("a socket");
        let mut profile = without("SCMP_ACT_NOTIFY", "mkdir");
        profile["listenerPath"] = json!(path);
        let waiting = prepare(&profile, no_new_privileges, "exit 3", |_| {}).expect("it waits");
        agent.accept().expect("the listener was delivered");
        let process = waiting.start(&mut Patient).expect("it starts");
        assert_eq!(process.reap().expect("our child"), 3 << 8);
    }
}
