//! Attacks on what the kernel offers through files: procfs, sysctls, cgroups.
//!
//! What is changed belongs to a namespace that stands for the host: the one that the runtime itself is in.

use std::fs;

use serde_json::json;
use tepui_tests::attack::{never_works, works_only_without};
use tepui_tests::requires;

/// Runs the command, then looks whether the value of the "host" was changed.
const WATCH: &str =
    r#""$@"; grep -qx 0 /proc/sys/kernel/shm_rmid_forced || echo taken >"$REPORTS/marker""#;

const FORCED: &str = "kernel.shm_rmid_forced";

/// CVE-2022-0811: a value of the IPC namespace, which the container shares.
#[test]
fn a_sysctl_of_a_shared_namespace_is_not_set() {
    requires!(root(), busybox());
    works_only_without("namespaced-sysctls", |attempt| {
        let bundle = attempt
            .bundle("c")
            .args(&["true"])
            .without_namespace("ipc")
            .without_mount("/dev/mqueue")
            .with("/linux/sysctl", json!({FORCED: "1"}));
        attempt.finish_by(
            &["unshare", "--ipc"],
            WATCH,
            &bundle.start_command("run", &[]),
        );
    });
}

/// CVE-2022-0811: a name that starts as one of a namespace that the container has.
#[test]
fn the_name_of_a_sysctl_does_not_lead_elsewhere() {
    requires!(root(), busybox());
    for name in [
        "net/../kernel/shm_rmid_forced",
        "net/ipv4/../../kernel/shm_rmid_forced",
    ] {
        works_only_without("namespaced-sysctls", |attempt| {
            let bundle = attempt
                .bundle("c")
                .args(&["true"])
                .without_namespace("ipc")
                .without_mount("/dev/mqueue")
                .with("/linux/sysctl", json!({name: "1"}));
            attempt.finish_by(
                &["unshare", "--ipc"],
                WATCH,
                &bundle.start_command("run", &[]),
            );
        });
    }
}

/// CVE-2022-0811: a value of the network namespace, which the container shares.
#[test]
fn a_sysctl_of_a_shared_network_is_not_set() {
    requires!(root(), busybox());
    works_only_without("namespaced-sysctls", |attempt| {
        let bundle = attempt
            .bundle("c")
            .args(&["true"])
            .without_namespace("network")
            .with("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
        attempt.finish_by(
            &["unshare", "--net"],
            r#"echo 0 >/proc/sys/net/ipv4/ip_forward; "$@"
               grep -qx 0 /proc/sys/net/ipv4/ip_forward || echo taken >"$REPORTS/marker""#,
            &bundle.start_command("run", &[]),
        );
    });
}

/// CVE-2022-0811: those of no namespace. No control: it would write to the host; the check is the one of the tests above.
#[test]
fn no_sysctl_of_the_host_is_set() {
    requires!(root(), busybox());
    let pattern = || fs::read("/proc/sys/kernel/core_pattern").expect("procfs");
    let before = pattern();
    for name in [
        "kernel.core_pattern",
        "kernel/core_pattern",
        "kernel.shm/../core_pattern",
        "/proc/sys/kernel/core_pattern",
        "fs.mqueue/../../kernel/core_pattern",
        "..kernel.core_pattern",
        "",
    ] {
        never_works(|attempt| {
            // The value that it has, were it ever written.
            let value = String::from_utf8_lossy(&before).trim_end().to_owned();
            let bundle = attempt
                .bundle("c")
                .args(&["true"])
                .with("/linux/sysctl", json!({name: value}));
            let run = attempt.run(&bundle);
            assert_ne!(run.status, 0, "{name:?}: {run}");
        });
    }
    assert_eq!(pattern(), before);
}

/// CVE-2019-16884, CVE-2025-52881: a volume over procfs, whose files would take what is written to procfs.
#[test]
fn a_volume_over_proc_takes_no_write() {
    requires!(root(), busybox());
    works_only_without("proc-mounts,private-proc", |attempt| {
        let volume = attempt.outside();
        fs::create_dir_all(volume.join("sys/kernel")).expect("a directory of the test");
        attempt.place("sys/kernel/shm_rmid_forced", b"0\n");
        let bundle = attempt
            .bundle("c")
            .args(&["true"])
            .bind(&volume, "/proc")
            .with("/linux/sysctl", json!({FORCED: "1"}))
            .with("/linux/maskedPaths", json!([]))
            .with("/linux/readonlyPaths", json!([]));
        attempt.run(&bundle);
    });
}

/// CVE-2025-52881: a link of the image leads a mount into procfs, where it would take what is written there.
#[test]
fn a_mount_that_is_led_into_proc_takes_no_write() {
    requires!(root(), busybox());
    for link in ["/proc/sys/kernel", "/proc/self/../sys/kernel"] {
        works_only_without("kernel-places,private-proc", |attempt| {
            let file = attempt.place("shm_rmid_forced", b"0\n");
            let bundle = attempt
                .bundle("c")
                .args(&["true"])
                .symlink("data", link)
                .bind(file.parent().expect("it has one"), "/data")
                .with("/linux/sysctl", json!({FORCED: "1"}))
                .with("/linux/readonlyPaths", json!([]));
            attempt.run(&bundle);
        });
    }
}

/// CVE-2023-25809: without a cgroup namespace the mount shows more than the container's own cgroup.
#[test]
fn cgroups_cannot_be_written_without_a_namespace_of_ones_own() {
    requires!(root(), busybox(), cgroup_v1());
    let script =
        "for each in /sys/fs/cgroup/*/; do mkdir $each/taken && echo $each >>/reports/marker; done";
    works_only_without("cgroup-readonly", |attempt| {
        let bundle = attempt
            .bundle("c")
            .without_namespace("cgroup")
            .shell(script);
        attempt.run(&bundle);
    });
}

/// CVE-2022-0492: `release_agent` and its like, from cgroups of the container's own.
#[test]
fn cgroups_of_version_1_cannot_be_written() {
    requires!(root(), busybox(), cgroup_v1());
    let script = "for each in /sys/fs/cgroup/*/notify_on_release; do echo 1 >$each && echo $each >>/reports/marker; done";
    works_only_without("cgroup-readonly", |attempt| {
        attempt.run(&attempt.bundle("c").shell(script));
    });
}

/// CVE-2022-0492: a hierarchy that the workload mounts itself. The kernel refuses `release_agent` to it (since 5.17), so
/// there is no control; what is seen here is that nothing of the host's tree comes into view.
#[test]
fn a_user_namespace_of_the_workload_mounts_no_cgroups_of_the_host() {
    requires!(root(), busybox(), cgroup_v1());
    let script = "unshare -r -m sh -c 'mkdir -p /tmp/cg && mount -t cgroup -o memory none /tmp/cg && echo 1 >/tmp/cg/release_agent' && echo taken >/reports/marker; true";
    never_works(|attempt| {
        attempt.run(&attempt.bundle("c").shell(script)).success();
    });
}
