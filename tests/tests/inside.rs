//! What the workload itself sees of its isolation. Runs on the host and, for the other cgroup layouts, in the virtual
//! machine (`vm.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use tepui_tests::{Ground, Image, requires};

/// What Docker gives: moby's default list, as the kernel prints it.
const DOCKER_CAPABILITIES: &str = "00000000a80425fb";

const LIMITS: [&str; 6] = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "40"];

/// Runs a script in a container with limits and reads its `name=value` lines.
fn facts(ground: &Ground, flags: &[&str], script: &str) -> BTreeMap<String, String> {
    let image = ground.layout(&Image::busybox());
    let run = ground
        .run(&[&LIMITS, flags, &[image.as_str(), "sh", "-c", script]].concat())
        .success();
    let pair = |line: &str| {
        line.split_once('=')
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    run.stdout.lines().filter_map(pair).collect()
}

#[test]
fn it_is_process_one_in_a_world_of_its_own() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let script = "
        echo self=$$
        echo processes=$(ls -d /proc/[0-9]* | wc -l)
        echo hostname=$(hostname)
        for ns in pid uts ipc mnt cgroup; do echo $ns=$(readlink /proc/self/ns/$ns); done
    ";
    let facts = facts(&ground, &[], script);
    assert_eq!(facts["self"], "1");
    // The shell, and the ls and wc that counted.
    assert!(
        facts["processes"].parse::<u32>().expect("a number") <= 4,
        "{facts:?}"
    );
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("procfs");
    assert_ne!(facts["hostname"], host.trim());
    for name in ["pid", "uts", "ipc", "mnt", "cgroup"] {
        let own = fs::read_link(format!("/proc/self/ns/{name}")).expect("procfs");
        assert_ne!(
            facts[name],
            own.to_string_lossy(),
            "it shares the host's {name} namespace"
        );
    }
    ground.assert_clean();
}

#[test]
fn privileges_are_dockers_defaults() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let script = "tr -d '\\t' </proc/self/status | sed s/:/=/";
    let root = facts(&ground, &[], script);
    assert_eq!(root["Seccomp"], "2");
    assert_eq!(root["NoNewPrivs"], "1");
    for set in ["CapBnd", "CapPrm", "CapEff"] {
        assert_eq!(root[set], DOCKER_CAPABILITIES, "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(root[set], "0000000000000000", "{set}");
    }
    let user = facts(&ground, &["-u", "1000:1000"], script);
    assert_eq!(user["CapBnd"], DOCKER_CAPABILITIES);
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(user[set], "0000000000000000", "{set} of an ordinary user");
    }
    ground.assert_clean();
}

#[test]
fn its_limits_are_in_its_cgroup_files() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let script = "
        cd /sys/fs/cgroup
        for f in memory.max cpu.max pids.max memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us pids/pids.max
        do test -e $f && echo $f=$(cat $f); done
        echo paths=$(cut -d: -f3 /proc/self/cgroup | sort -u)
        echo 1 2>/dev/null >cgroup.procs && echo writable=1
        mkdir new memory/new 2>/dev/null && echo writable=1
        echo end=
    ";
    let facts = facts(&ground, &[], script);
    let expected: &[(&str, &str)] = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        &[
            ("memory.max", "67108864"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "40"),
        ]
    } else {
        &[
            ("memory/memory.limit_in_bytes", "67108864"),
            ("cpu/cpu.cfs_quota_us", "50000"),
            ("cpu/cpu.cfs_period_us", "100000"),
            ("pids/pids.max", "40"),
        ]
    };
    for (file, value) in expected {
        assert_eq!(
            facts.get(*file).map(String::as_str),
            Some(*value),
            "{file} of {facts:#?}"
        );
    }
    assert_eq!(
        facts["paths"], "/",
        "its cgroup namespace begins at its own cgroup"
    );
    assert!(
        !facts.contains_key("writable"),
        "it can change its own cgroups"
    );
    ground.assert_clean();
}

#[test]
fn no_descriptor_path_or_variable_of_the_host_is_visible() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let script = "
        echo descriptors=$(ls /proc/self/fd | tr '\\n' ' ')
        echo root=$(ls -A / | tr '\\n' ' ')
        echo devices=$(ls /dev | tr '\\n' ' ')
        echo variables=$(env | cut -d= -f1 | sort | tr '\\n' ' ')
        awk '{print \"mount \" $5 \"=\" $0}' /proc/self/mountinfo
    ";
    let facts = facts(&ground, &[], script);
    // The fourth is the directory that ls itself has open.
    assert_eq!(facts["descriptors"].trim(), "0 1 2 3");
    let words = |name: &str| -> BTreeSet<&str> { facts[name].split_whitespace().collect() };
    let allowed = |name: &str, allowed: &str| {
        let allowed: BTreeSet<&str> = allowed.split_whitespace().collect();
        let found = words(name);
        let more: Vec<_> = found.difference(&allowed).collect();
        assert!(more.is_empty(), "{name} has {more:?}");
    };
    allowed("root", "bin dev etc home proc root sys tmp");
    allowed(
        "devices",
        "console core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
    );
    allowed("variables", "HOME HOSTNAME OLDPWD PATH PWD SHLVL TERM _");
    let mounts: Vec<_> = facts
        .iter()
        .filter(|(name, _)| name.starts_with("mount "))
        .collect();
    assert!(mounts.len() > 3, "{facts:#?}");
    for (target, line) in mounts {
        assert!(
            !line.contains(ground.name()),
            "{target} shows a path of the host: {line}"
        );
    }
    ground.assert_clean();
}

#[test]
fn the_kernels_doors_are_shut() {
    requires!(root(), busybox());
    let ground = Ground::new();
    // Each line names what must be refused and tries it.
    let script = "
        try() { name=$1; shift; if \"$@\" >/dev/null 2>&1; then echo $name=open; else echo $name=shut; fi; }
        try mount mount -t tmpfs none /tmp
        try remount mount -o remount,rw /sys
        try unshare unshare -U true
        try sysctl sh -c 'echo 1 >/proc/sys/kernel/panic'
        try sysrq sh -c 'echo h >/proc/sysrq-trigger'
        try kcore test -s /proc/kcore
        try timer_list test -s /proc/timer_list
        try firmware sh -c 'ls /sys/firmware | grep .'
        try disk sh -c 'mknod /tmp/disk b 7 0 && head -c 1 /tmp/disk'
        try kmsg sh -c 'mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg'
        try hostname hostname other
        try setuid sh -c 'chmod 4755 /bin/busybox && su web -c \"id -u\" | grep -x 0'
        try init sh -c 'echo >/proc/1/exe'
        try chroot_out sh -c 'ls /proc/1/root/usr/bin'
    ";
    let facts = facts(&ground, &[], script);
    assert_eq!(facts.len(), 14);
    let open: Vec<_> = facts
        .iter()
        .filter(|(_, answer)| *answer != "shut")
        .collect();
    assert!(open.is_empty(), "{open:?}");
    ground.assert_clean();
}

#[test]
fn its_resource_limits_are_not_above_the_hosts() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let facts = facts(
        &ground,
        &[],
        "echo core=$(ulimit -c); echo files=$(ulimit -n)",
    );
    assert!(
        facts["files"]
            .parse::<u64>()
            .is_ok_and(|files| files >= 1024),
        "{facts:?}"
    );
    ground.assert_clean();
}
