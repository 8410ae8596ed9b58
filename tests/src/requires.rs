//! What a test needs of the machine. A test that cannot run says so and counts as skipped, never as passed.
//!
//! With `REQUIRE_ALL=1`, as in CI, a test that skips fails, unless `skips.txt` lists it with the reason.

use std::fs;
use std::path::Path;

use crate::{image, output};

/// Why a test cannot run here.
pub type Requirement = Result<(), String>;

/// Leaves the test, saying why, unless all its requirements are met.
#[macro_export]
macro_rules! requires {
    ($($requirement:ident()),+ $(,)?) => {
        let test = {
            fn here() {}
            std::any::type_name_of_val(&here)
        };
        if !$crate::requires::met(test, &[$($crate::requires::$requirement()),+]) {
            return;
        }
    };
}

/// Whether the test goes on. `here` is the path of an item inside the test's function.
///
/// # Panics
/// With `REQUIRE_ALL=1`, when it cannot and `skips.txt` does not list it.
pub fn met(here: &str, requirements: &[Requirement]) -> bool {
    let test = here.strip_suffix("::here").unwrap_or(here);
    let Some(why) = requirements.iter().find_map(|r| r.as_ref().err()) else {
        return true;
    };
    let listed = include_str!("../skips.txt")
        .lines()
        .any(|line| line.split('#').next().map(str::trim) == Some(test));
    let all = std::env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(listed || !all, "{test} was skipped: {why}");
    output::say(&format!("SKIP {test}: {why}"));
    false
}

fn check(met: bool, why: &str) -> Requirement {
    if met { Ok(()) } else { Err(why.to_owned()) }
}

/// We are root.
pub fn root() -> Requirement {
    check(nix::unistd::geteuid().is_root(), "needs root")
}

/// The kernel knows memory nodes.
pub fn numa() -> Requirement {
    check(
        Path::new("/proc/self/numa_maps").exists(),
        "needs a kernel with NUMA",
    )
}

/// The kernel has Landlock with rules for files and ports.
pub fn landlock() -> Requirement {
    check(
        tepui_isolators::linux::landlock::version() >= 4,
        "needs version 4 of Landlock",
    )
}

/// Neither AppArmor nor SELinux runs.
pub fn no_security_labels() -> Requirement {
    let apparmor = fs::read("/sys/module/apparmor/parameters/enabled");
    let runs = apparmor.is_ok_and(|text| text.starts_with(b"Y"))
        || Path::new("/sys/fs/selinux/enforce").exists();
    check(!runs, "a security module of this kernel honours labels")
}

/// The memory controller is on cgroup v1 (hybrid hosts included).
pub fn cgroup_v1() -> Requirement {
    check(
        Path::new("/sys/fs/cgroup/memory").is_dir(),
        "needs the cgroup v1 memory controller",
    )
}

/// The freezer and cpu hierarchies, which the agent's linux launcher with cgroups/cpu uses.
pub fn linux_launcher() -> Requirement {
    let there = ["freezer", "cpu"]
        .iter()
        .all(|c| Path::new("/sys/fs/cgroup").join(c).is_dir());
    check(there, "the agent's linux launcher needs cgroup v1")
}

/// A busybox that runs in an image without any library.
pub fn busybox() -> Requirement {
    let program = fs::read(image::BUSYBOX).unwrap_or_default();
    check(
        is_static_program(&program),
        "needs /bin/busybox of Debian's busybox-static",
    )
}

/// Whether this is a 64-bit ELF program without an interpreter (elf(5), `PT_INTERP`).
pub fn is_static_program(program: &[u8]) -> bool {
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = program.get(at..at + length)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
        )
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let Some((start, size, count)) = headers().filter(|_| program.starts_with(b"\x7fELF\x02"))
    else {
        return false;
    };
    (0..count).all(|n| number(start + n * size, 4).is_some_and(|kind| kind != 3))
}

/// docker-registry and skopeo.
pub fn registry() -> Requirement {
    program("docker-registry")?;
    program("skopeo")
}

/// The Mesos test bed is built.
pub fn mesos() -> Requirement {
    let built = cache().join("mesos/stamp").is_file();
    check(
        built,
        "needs the Mesos test bed: tests/mesos-testbed/up --build-only --apt",
    )
}

/// The virtual machine's kernel is there.
pub fn virtual_machine() -> Requirement {
    program("qemu-system-x86_64")?;
    let ready = cache().join("vm/kernel-stable/ready").is_file();
    check(
        ready,
        "needs the virtual machine: tests/vm/run-in-vm --prepare",
    )
}

/// podman, and a terminal to run it on.
pub fn podman() -> Requirement {
    ["podman", "conmon", "script"]
        .into_iter()
        .try_for_each(program)
}

/// containerd, its shim and its client, and a terminal to run that on.
pub fn containerd() -> Requirement {
    let shim = "containerd-shim-runc-v2";
    ["containerd", shim, "ctr", "unshare", "nsenter", "script"]
        .into_iter()
        .try_for_each(program)
}

/// strace.
pub fn strace() -> Requirement {
    program("strace")
}

/// A long run was asked for (`scripts/test --long`).
pub fn long() -> Requirement {
    let asked = std::env::var_os("TEPUI_TEST_LONG").is_some();
    check(asked, "only in a long run: scripts/test --long")
}

fn program(name: &str) -> Requirement {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    check(found, &format!("needs the program {name}"))
}

/// Where the test bed and the virtual machine keep what they downloaded and built.
pub fn cache() -> std::path::PathBuf {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let under = || {
        std::env::var_os("XDG_CACHE_HOME")
            .map(Into::into)
            .or_else(home)
    };
    match std::env::var_os("TEPUI_TEST_CACHE") {
        Some(directory) => directory.into(),
        None => under().unwrap_or_default().join("tepui-tests"),
    }
}
