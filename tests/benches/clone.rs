//! What a launch costs when the executor is large: the launcher clones, so the executor's size does not matter. Beside
//! it a fork(2) of the large process itself, which is what a launch would cost without the launcher.
//!
//! `scripts/bench launch` runs it.

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::net::RecvFlags;
use serde_json::json;
use tepui::launcher::handle::Launcher;
use tepui::launcher::protocol::{self, Launch, Reply};
use tepui_isolators::{CgroupPlacement, Declaration, RootFilesystem};
use tepui_tests::{Ground, results};

/// Sizes in MiB.
const SIZES: [usize; 2] = [10, 500];

fn main() -> std::process::ExitCode {
    let first = std::env::args().next().unwrap_or_default();
    if first.as_bytes() == tepui::launcher::PROGRAM_NAME.to_bytes() {
        return tepui::launcher::main();
    }
    let rounds: u64 = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(100);
    tepui::seal::protect_own_program(tepui::seal::Method::View).expect("root");
    let ground = Ground::new();
    let mut table = String::from(
        "A process of this size starts `true` in mount and pid namespaces of its own, once through its launcher and once by \
         fork(2) and execve(2).\n\n| milliseconds | median | p99 | least |\n|---|---|---|---|\n",
    );
    for size in SIZES {
        // Touched, or it would not be copied.
        let ballast = vec![1u8; size << 20];
        let launcher = Launcher::start().expect("root");
        rustix::io::ioctl_fionbio(&launcher.socket, false).expect("a socket");
        let (mut launched, mut forked) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            let times = (
                launch(&launcher, &ground, size as u64 * 1_000_000 + round),
                fork(),
            );
            if round > 0 {
                launched.push(times.0);
                forked.push(times.1);
            }
        }
        table += &results::row(
            &format!("executor of {size} MiB: request to RUNNING through the launcher"),
            &mut launched,
        );
        table += &results::row(
            &format!("process of {size} MiB: fork, exec and wait"),
            &mut forked,
        );
        std::hint::black_box(&ballast);
    }
    results::write("clone", "Clone", &table);
    std::process::ExitCode::SUCCESS
}

/// Milliseconds from the request to RUNNING.
fn launch(launcher: &Launcher, ground: &Ground, number: u64) -> f64 {
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
    });
    let launch = Launch {
        id: format!("clone-{number}").parse().expect("an id"),
        declaration: Declaration {
            spec: serde_json::from_value(spec).expect("a configuration"),
            rootfs: RootFilesystem::Host,
            cgroups: CgroupPlacement {
                parent: format!("/{}", ground.name()).into(),
                nested: Default::default(),
                name: None,
            },
            init: false,
            executable: None,
            keep_keyring: false,
            reset_cpu_affinity: false,
        },
        state_dir: ground.path("state"),
        isolation: Some("filesystem/linux,namespaces/pid".into()),
    };
    let null = || {
        std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .expect("/dev/null")
            .into()
    };
    let stdio = [null(), null(), null()];
    let start = Instant::now();
    launcher
        .launch(number, &launch, &stdio)
        .expect("the launcher lives");
    let mut running = None;
    loop {
        let (reply, _) = protocol::receive::<Reply>(launcher.socket.as_fd(), RecvFlags::empty())
            .expect("the launcher lives")
            .expect("the launcher lives");
        match reply {
            Reply::Running { .. } => running = Some(start.elapsed().as_secs_f64() * 1e3),
            Reply::Exited { .. } => return running.expect("it ran"),
            Reply::Failed { message, .. } => panic!("{message}"),
        }
    }
}

/// Milliseconds of fork, execve of /bin/true, and wait.
#[allow(unsafe_code)]
fn fork() -> f64 {
    let start = Instant::now();
    // SAFETY: this process has one thread, and the child makes nothing but system calls.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        nix::unistd::ForkResult::Child => {
            let none: [&std::ffi::CStr; 0] = [];
            let _ = nix::unistd::execve(c"/bin/true", &[c"true"], &none);
            // SAFETY: it runs nothing of ours.
            unsafe { libc::_exit(127) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).expect("our child");
            start.elapsed().as_secs_f64() * 1e3
        }
    }
}
