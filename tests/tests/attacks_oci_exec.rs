//! Attacks by what is asked of the runtime: users, capabilities, annotations, very long lists.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use tepui_tests::attack::{never_works, works_only_without};
use tepui_tests::requires;

/// CVE-2022-29162, CVE-2022-27650, CVE-2025-27612: an inheritable capability is passed on to programs whose file has it.
#[test]
fn exec_gives_no_inheritable_capability() {
    requires!(root(), busybox());
    works_only_without("empty-inheritable", |attempt| {
        let bundle = attempt.bundle("c").args(&["sleep", "1000"]);
        bundle.run_detached().success();
        let script = "grep -q 'CapInh:.*[1-9a-f]' /proc/self/status && echo taken >/reports/marker; grep Cap /proc/self/status";
        let mut exec = bundle.command(&["exec", "--cap", "CAP_NET_RAW", bundle.id()]);
        let exec = attempt.finish(exec.args(["sh", "-c", script])).success();
        // CAP_NET_RAW is number 13: it was given, else this would show nothing.
        assert!(exec.stdout.contains("CapEff:\t0000000020002420"), "{exec}");
        bundle.delete().success();
    });
}

/// CVE-2026-30892: a user that is not understood must not become another one, least of all root.
#[test]
fn exec_runs_as_nobody_else_than_it_was_told() {
    requires!(root(), busybox());
    let users = [
        "4294967296",
        "4294968296",
        "18446744073709551616",
        "-1",
        "1000x",
        "1000 ",
        " 1000",
        "+1000",
        "0x3e8",
        "1000:1000:0",
        "1000:1000x",
        "1000:4294967296",
        ":",
        "1000:",
        "1000\n0",
    ];
    works_only_without("strict-user", |attempt| {
        let bundle = attempt.bundle("c").args(&["sleep", "1000"]);
        bundle.run_detached().success();
        for user in users {
            let user = format!("--user={user}");
            let script = "echo \"$(id -u):$(id -g)\" >/reports/marker";
            let mut exec = bundle.command(&["exec", &user, bundle.id()]);
            attempt.finish(exec.args(["sh", "-c", script]));
        }
        bundle.delete().success();
    });
}

/// CVE-2026-30892: and what is understood is meant. No control: there is nothing to refuse.
#[test]
fn exec_runs_as_whom_it_was_told() {
    requires!(root(), busybox());
    never_works(|attempt| {
        let bundle = attempt.bundle("c").args(&["sleep", "1000"]);
        bundle.run_detached().success();
        for (user, ids) in [
            ("0", "0:0"),
            ("1000", "1000:0"),
            ("1000:7", "1000:7"),
            ("4294967294:4294967294", "4294967294:4294967294"),
        ] {
            let exec = bundle.exec(&["--user", user], &["sh", "-c", "echo $(id -u):$(id -g)"]);
            assert_eq!(exec.success().stdout.trim(), ids, "{user}");
        }
        bundle.delete().success();
    });
}

/// CVE-2021-43784: there is no message between two programs here whose length could overflow, so there is no control. What
/// can be seen is that a configuration beyond 64 KiB of each kind is carried out to its last word.
#[test]
fn nothing_of_a_very_long_configuration_is_lost() {
    requires!(root(), busybox());
    never_works(|attempt| {
        let mut masked: Vec<String> = (0..3000).map(|n| format!("/none/{n:060}")).collect();
        masked.push("/secret".into());
        let mut readonly = masked.clone();
        readonly.push("/kept".into());
        let environment: Vec<String> = (0..3000).map(|n| format!("VARIABLE{n}={n:060}")).collect();
        let script = "test -z \"$(cat /secret)\" && ! touch /kept/file 2>/dev/null && echo ${#0} $VARIABLE2999";
        let long = "x".repeat(100_000);
        let mut bundle = attempt
            .bundle("c")
            .file("secret", "secret\n")
            .file("kept/here", "")
            .args(&["/bin/sh", "-c", script, &long])
            .with("/linux/maskedPaths", json!(masked))
            .with("/linux/readonlyPaths", json!(readonly));
        let list = bundle.config["process"]["env"].as_array_mut();
        list.expect("a list")
            .extend(environment.into_iter().map(Value::from));
        let run = attempt.run(&bundle).success();
        assert_eq!(run.stdout, format!("100000 {:060}\n", 2999));
    });
}

/// CVE-2024-3154: annotations give no power here, which is why there is no control: `features` names those that do, and
/// what other runtimes hand on to systemd does nothing.
#[test]
fn annotations_have_no_power() {
    requires!(root(), busybox());
    never_works(|attempt| {
        let victim = attempt.outside().join("taken");
        let command = format!("['/bin/touch', '{}']", victim.display());
        let bundle = attempt.bundle("c").args(&["true"]).with(
            "/annotations",
            json!({"org.systemd.property.ExecStartPre": command, "run.oci.handler": "krun",
                "run.oci.hooks.stdout": victim, "run.oci.keep_original_groups": "1"}),
        );
        attempt.run(&bundle).success();
        let features = attempt.finish(&mut bundle.command(&["features"])).success();
        let features: Value = serde_json::from_str(&features.stdout).expect("JSON");
        let unsafe_ones = &features["potentiallyUnsafeConfigAnnotations"];
        assert_eq!(unsafe_ones.as_array().map(Vec::len), Some(0), "{features}");
    });
}

/// The state holds what a container was given, secrets of its environment included.
#[test]
fn the_state_is_readable_by_its_owner_only() {
    requires!(root(), busybox());
    never_works(|attempt| {
        let bundle = attempt.bundle("c").args(&["sleep", "1000"]);
        bundle.run_detached().success();
        let directory = attempt.ground.path("state");
        let mode = fs::metadata(directory)
            .expect("the state")
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        bundle.delete().success();
    });
}
