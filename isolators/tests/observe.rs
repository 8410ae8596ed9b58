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
    let kinds =
        ["pid", "ipc", "uts", "network", "cgroup", "time"].map(|kind| json!({ "type": kind }));
    let declared = declaration(json!({
        "hostname": "tepui-test", "domainname": "tepui-domain",
        "linux": { "namespaces": kinds, "timeOffsets": { "boottime": { "secs": 7 } } }
    }));
    let undeclared = declaration(json!({}));
    let names = ["pid", "ipc", "uts", "net", "cgroup", "time"];
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
            "--time",
            "--boottime=7",
        ],
        "hostname tepui-test && echo tepui-domain >/proc/sys/kernel/domainname",
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
fn namespaces_that_are_joined() {
    if !is_root() {
        return;
    }
    let owner = Process::start(
        &["unshare", "--ipc", "--uts", "--net", "--cgroup"],
        "",
        false,
    );
    let other = Process::start(
        &["unshare", "--ipc", "--uts", "--net", "--cgroup"],
        "",
        false,
    );
    let path = |name: &str| owner.target.proc_path(&format!("ns/{name}"));
    let kinds = [
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("network", "net"),
        ("cgroup", "cgroup"),
    ];
    for (kind, name) in kinds {
        let declared = declaration(
            json!({ "linux": { "namespaces": [{ "type": kind, "path": path(name) }] } }),
        );
        let isolator = format!("namespaces/{name}");
        assert_all(&verify(&isolator, &owner, &declared), Verdict::Match);
        assert_all(&verify(&isolator, &other, &declared), Verdict::Weaker);
        let isolators = registry::select(Some(&isolator)).unwrap();
        let info = registry::prepare(&isolators, &"joins".parse().unwrap(), &declared).unwrap();
        assert_eq!(info.join_namespaces.len(), 1);
        assert!(info.namespaces.is_empty() && !info.loopback);
    }
}

#[test]
fn user_namespaces_and_their_maps() {
    if !is_root() {
        return;
    }
    let maps = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    let namespace = |namespace| {
        declaration(json!({ "linux": {
            "namespaces": [namespace], "uidMappings": maps, "gidMappings": maps
        }}))
    };
    let declared = namespace(json!({ "type": "user" }));
    let own = Process::start(&["unshare", "--user", "--map-root-user"], "", false);
    let findings = verify("namespaces/user", &own, &declared);
    assert_eq!(findings.len(), 3);
    assert_all(&findings, Verdict::Match);
    let unmapped = Process::start(&["unshare", "--user"], "", false);
    let findings = verify("namespaces/user", &unmapped, &declared);
    assert_eq!(item(&findings, "user namespace").verdict, Verdict::Match);
    assert_eq!(item(&findings, "uid map").verdict, Verdict::Weaker);
    let shared = Process::start(&[], "", false);
    assert_all(
        &verify("namespaces/user", &shared, &declared),
        Verdict::Weaker,
    );
    assert_all(
        &verify("namespaces/user", &shared, &declaration(json!({}))),
        Verdict::Match,
    );

    // Beside a path, maps are what the namespace is expected to have.
    let isolators = registry::select(Some("namespaces/user")).unwrap();
    let prepare = |process: &Process| {
        let path = process.target.proc_path("ns/user");
        let declared = namespace(json!({ "type": "user", "path": path }));
        registry::prepare(&isolators, &"joins".parse().unwrap(), &declared)
    };
    let info = prepare(&own).unwrap();
    assert!(info.id_maps.is_none() && info.join_namespaces.len() == 1);
    let error = prepare(&unmapped).unwrap_err().to_string();
    assert!(
        error.starts_with("linux.uidMappings is 0:0:1, but"),
        "{error}"
    );
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
