//! What the isolators see of real processes: with each boundary there, and with each left out.
//!
//! Most of it needs root; without it a test says so and ends, with REQUIRE_ALL=1 it fails.

#![allow(clippy::unwrap_used)]

mod process;

use process::{Process, assert_all, declaration, is_root, item, verify};
use serde_json::json;
use tepui_isolators::Verdict;
use tepui_isolators::registry;

#[test]
fn capabilities() {
    if !is_root() {
        return;
    }
    let two = json!(["CAP_CHOWN", "CAP_KILL"]);
    let declared = declaration(
        json!({ "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "capabilities": {
            "bounding": two, "effective": two, "permitted": two
        }}}),
    );
    let drop = |set| {
        [
            "setpriv",
            "--inh-caps=-all",
            "--ambient-caps=-all",
            "--bounding-set",
            set,
        ]
    };
    let as_declared = Process::start(&drop("-all,+chown,+kill"), "", false);
    let findings = verify("linux/capabilities", &as_declared, &declared);
    assert_eq!(findings.len(), 5);
    assert_all(&findings, Verdict::Match);

    let with_more = Process::start(&drop("-all,+chown,+kill,+net_raw"), "", false);
    let findings = verify("linux/capabilities", &with_more, &declared);
    for set in ["bounding", "effective", "permitted"] {
        let finding = item(&findings, &format!("{set} capabilities"));
        assert_eq!(finding.verdict, Verdict::Weaker);
        assert!(
            finding.live.contains("not declared: CAP_NET_RAW"),
            "{finding:?}"
        );
    }

    let with_less = Process::start(&drop("-all,+chown"), "", false);
    let finding = &verify("linux/capabilities", &with_less, &declared)[0];
    assert_eq!(finding.verdict, Verdict::Stronger);
    assert!(finding.live.contains("missing: CAP_KILL"), "{finding:?}");

    let left_out = Process::start(&[], "", false);
    let findings = verify("linux/capabilities", &left_out, &declared);
    assert_eq!(
        item(&findings, "bounding capabilities").verdict,
        Verdict::Weaker
    );
}

#[test]
fn no_new_privileges() {
    let declared = declaration(json!({
        "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "noNewPrivileges": true }
    }));
    let undeclared = declaration(json!({}));
    let with = Process::start(&["setpriv", "--no-new-privs"], "", false);
    assert_all(&verify("linux/nnp", &with, &declared), Verdict::Match);
    assert_all(&verify("linux/nnp", &with, &undeclared), Verdict::Stronger);
    let without = Process::start(&[], "", false);
    assert_all(&verify("linux/nnp", &without, &declared), Verdict::Weaker);
    assert_all(&verify("linux/nnp", &without, &undeclared), Verdict::Match);
}

#[test]
fn resource_limits() {
    let declared = declaration(
        json!({ "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "rlimits": [
            { "type": "RLIMIT_NOFILE", "soft": 64, "hard": 128 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }
        ]}}),
    );
    let limited = |files: &str| Process::start(&["prlimit", files, "--core=0:0"], "", false);
    let verdict = |process: &Process| {
        let findings = verify("posix/rlimits", process, &declared);
        assert_eq!(findings.len(), 2);
        assert_eq!(item(&findings, "RLIMIT_CORE").verdict, Verdict::Match);
        item(&findings, "RLIMIT_NOFILE").verdict
    };
    assert_eq!(verdict(&limited("--nofile=64:128")), Verdict::Match);
    assert_eq!(verdict(&limited("--nofile=65:128")), Verdict::Weaker);
    assert_eq!(verdict(&limited("--nofile=64:129")), Verdict::Weaker);
    assert_eq!(verdict(&limited("--nofile=64:100")), Verdict::Stronger);
    let left_out = Process::start(&["prlimit", "--core=0:0"], "", false);
    assert_eq!(verdict(&left_out), Verdict::Weaker);
}

#[test]
fn namespaces() {
    if !is_root() {
        return;
    }
    let kinds = ["pid", "ipc", "uts", "network", "cgroup"].map(|kind| json!({ "type": kind }));
    let declared =
        declaration(json!({ "hostname": "tepui-test", "linux": { "namespaces": kinds } }));
    let undeclared = declaration(json!({}));
    let names = ["pid", "ipc", "uts", "net", "cgroup"];
    let own = Process::start(
        &[
            "unshare",
            "--fork",
            "--mount-proc",
            "--pid",
            "--ipc",
            "--uts",
            "--net",
            "--cgroup",
        ],
        "hostname tepui-test",
        true,
    );
    let shared = Process::start(&[], "", false);
    for name in names {
        let isolator = format!("namespaces/{name}");
        assert_all(&verify(&isolator, &own, &declared), Verdict::Match);
        let findings = verify(&isolator, &own, &undeclared);
        assert_all(&findings, Verdict::Stronger);
        assert_all(&verify(&isolator, &shared, &undeclared), Verdict::Match);
        assert_all(&verify(&isolator, &shared, &declared), Verdict::Weaker);
    }

    let hosts_proc = Process::start(&["unshare", "--fork", "--pid", "--mount"], "", true);
    let findings = verify("namespaces/pid", &hosts_proc, &declared);
    assert_eq!(item(&findings, "pid namespace").verdict, Verdict::Match);
    assert_eq!(item(&findings, "/proc").verdict, Verdict::Weaker);
}

#[test]
fn a_process_that_is_gone_is_an_error_and_not_a_clean_report() {
    let process = Process::start(&[], "", false);
    let target = process.target.clone();
    drop(process);
    for isolator in registry::all() {
        let isolators = [isolator];
        let declared = declaration(json!({}));
        let error = registry::verify(&isolators, &target, &declared).unwrap_err();
        assert!(error.to_string().contains("could not observe"), "{error}");
    }
}
