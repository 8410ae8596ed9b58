//! Bundles that ask for everything, so that together their plans have every step there is.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;

use crate::{Bundle, Ground, Runtime, requires};
use serde_json::{Value, json};

/// The id of every container.
pub const ID: &str = "c";

/// One that shares nothing with the host but its user namespace.
pub fn rich(ground: &Ground) -> Bundle<'_> {
    let hook = |path: &str| json!([{ "path": path }]);
    let hooks = json!({
        "prestart": hook("/bin/true"), "createRuntime": hook("/bin/true"), "createContainer": hook("/bin/true"),
        "startContainer": hook("/bin/true"), "poststart": hook("/bin/true"), "poststop": hook("/bin/true"),
    });
    let landlock = json!({ "readOnly": ["/"], "readWrite": ["/tmp", "/dev"], "execute": ["/"], "bindTcp": [80] });
    let source = ground.path("source");
    std::fs::create_dir_all(&source).expect("a directory of the test");
    // Too long for fsconfig(2).
    let lower = ["a", "b"].map(|name| source.join(name.repeat(150)));
    for directory in &lower {
        std::fs::create_dir_all(directory).expect("a directory of the test");
    }
    let long = format!("lowerdir={}:{}", lower[0].display(), lower[1].display());
    let mut bundle = Bundle::new(ground, &Runtime::without(""), ID);
    if requires::numa().is_ok() {
        let policy = json!({ "mode": "MPOL_BIND", "nodes": "0" });
        bundle = bundle.with("/linux/memoryPolicy", policy);
    }
    if requires::no_security_labels().is_err() {
        bundle = bundle.with("/process/apparmorProfile", json!("unconfined"));
    }
    let inside = bundle.rootfs("tmp");
    bundle
        .args(&["true"])
        .with("/process/cwd", json!("/work/new"))
        .with("/process/user", json!({ "uid": 7, "gid": 8, "additionalGids": [9] }))
        .with("/process/oomScoreAdj", json!(900))
        .with("/process/scheduler", json!({ "policy": "SCHED_BATCH", "nice": 3 }))
        .with("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 5 }))
        .with("/process/execCPUAffinity", json!({ "initial": "0", "final": "0" }))
        .with("/domainname", json!("example"))
        .with("/hooks", hooks)
        .with("/root/readonly", json!(true))
        .with("/annotations", json!({ "org.tepui.landlock": landlock.to_string() }))
        .with("/linux/rootfsPropagation", json!("shared"))
        .with("/linux/sysctl", json!({ "net.ipv4.ip_unprivileged_port_start": "80" }))
        .with("/linux/personality", json!({ "domain": "LINUX" }))
        .with("/linux/seccomp", seccomp(json!([{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }])))
        .with("/linux/timeOffsets", json!({ "monotonic": { "secs": 60 } }))
        .with("/linux/resources/memory", json!({ "limit": 100 << 20 }))
        .with("/linux/resources/pids", json!({ "limit": 100 }))
        .with("/linux/resources/cpu", json!({ "shares": 100 }))
        .with("/linux/devices", json!([{ "path": "/dev/pipe", "type": "p", "fileMode": 0o600 }]))
        .and_namespace("time")
        .bind(&source, "/bound")
        .mount(json!({ "destination": "/bound-ro", "type": "bind", "source": source, "options": ["bind", "ro"] }))
        .mount(json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "size=1m"] }))
        .bind(&source, "/scratch/below")
        .mount(json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }))
        .mount(json!({ "destination": "/long", "type": "overlay", "source": "overlay", "options": [long] }))
        .mount(json!({ "destination": "/inside", "type": "bind", "source": inside, "options": ["bind"] }))
}

/// One in a user namespace, with a terminal, an early seccomp filter and an agent that takes its listener.
pub fn in_a_user_namespace(ground: &Ground) -> Bundle<'_> {
    in_a_user_namespace_of(ground, 200_000, 1000)
}

fn in_a_user_namespace_of(ground: &Ground, first: u32, count: u32) -> Bundle<'_> {
    let ids = json!([{ "containerID": 0, "hostID": first, "size": count }]);
    let source = ground.path("source");
    std::fs::create_dir_all(&source).expect("a directory of the test");
    let bundle = Bundle::new(ground, &Runtime::without(""), ID)
        .args(&["true"])
        .with("/process/terminal", json!(true))
        .with("/process/noNewPrivileges", json!(false))
        .with("/linux/uidMappings", ids.clone())
        .with("/linux/gidMappings", ids)
        .with(
            "/linux/seccomp",
            seccomp(json!([
                { "names": ["swapon"], "action": "SCMP_ACT_NOTIFY" },
                { "names": ["getcwd"], "action": "SCMP_ACT_ERRNO" },
            ])),
        )
        .with(
            "/linux/seccomp/listenerPath",
            json!(ground.path("agent.sock")),
        )
        .and_namespace("user")
        .bind(&source, "/bound");
    std::process::Command::new("chown")
        .args(["-R", &format!("{first}:{first}")])
        .arg(bundle.directory())
        .status()
        .expect("chown");
    bundle
}

/// One that is made by somebody who is not root, though with all capabilities: the user namespace has one id.
pub fn by_another_user(ground: &Ground) -> Bundle<'_> {
    // Of which the one of `gid` is none.
    let pts = json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts" });
    in_a_user_namespace_of(ground, 65534, 1)
        .without_mount("/dev/pts")
        .mount(pts)
        .with("/process/terminal", json!(false))
}

/// What it takes to make a container.
const CAPABILITIES: [&str; 10] = [
    "chown",
    "dac_override",
    "fowner",
    "kill",
    "mknod",
    "net_admin",
    "setgid",
    "setpcap",
    "setuid",
    "sys_admin",
];

/// `command`, by that user, whose files are nobody else's business.
pub fn as_another_user(ground: &Ground, command: &Command) -> Command {
    let mut setpriv = ground.command("sh");
    setpriv.args(["-c", "umask 077 && exec \"$@\"", "sh", "setpriv"]);
    setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let capabilities: String = CAPABILITIES.map(|name| format!(",+{name}")).concat();
    setpriv.arg(format!("--inh-caps=-all{capabilities}"));
    setpriv
        .arg(format!("--ambient-caps=-all{capabilities}"))
        .arg("--");
    setpriv.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            setpriv.env(name, value);
        }
    }
    setpriv
}

fn seccomp(rules: Value) -> Value {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules })
}

/// Takes the listeners of seccomp filters and lets go of them, until the test's process ends.
pub fn start_agent(ground: &Ground) -> (PathBuf, JoinHandle<()>) {
    use std::io::Read;
    let path = ground.path("agent.sock");
    let listener = UnixListener::bind(&path).expect("a socket of the test");
    let serve = move || {
        for connection in listener.incoming().flatten() {
            let mut connection = connection;
            // The descriptor in it is closed with the connection's message, which is all that is wanted.
            let _ = connection.read(&mut [0; 4096]);
        }
    };
    (path, std::thread::spawn(serve))
}
