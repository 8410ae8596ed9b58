//! Only the declared devices can be used.

use std::process::Command;

use tepui_isolators::Verdict;

use crate::container::{Container, spec};

#[test]
fn only_the_allowed_devices_can_be_opened_and_made() {
    requires_root!();
    let container = Container::prepare(
        r#"{"devices":[{"allow":false,"access":"rwm"},
                       {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},
                       {"allow":true,"type":"c","major":1,"minor":5,"access":"r"}]}"#,
    );
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path().display();
    let made_before = |name: &str, kind: &str, major: u32, minor: u32| {
        let status = Command::new("mknod")
            .arg(directory.path().join(name))
            .args([kind, &major.to_string(), &minor.to_string()])
            .status();
        assert!(status.expect("mknod").success(), "{name}");
    };
    made_before("mem", "c", 1, 1);
    made_before("loop", "b", 7, 0);
    made_before("null", "c", 1, 3);
    made_before("zero", "c", 1, 5);
    let text = container.run(&format!(
        "cd {at}; exec 2>&1
        try() {{ if \"$@\"; then echo \"$name yes\"; else echo \"$name no\"; fi; }}
        read_from() {{ (: < $1); }}
        write_to() {{ (: > $1); }}
        name=read-mem try read_from mem
        name=read-loop try read_from loop
        name=read-null try read_from null
        name=write-null try write_to null
        name=read-zero try read_from zero
        name=write-zero try write_to zero
        name=make-null try mknod null2 c 1 3
        name=make-mem try mknod mem2 c 1 1
        name=make-loop try mknod loop2 b 7 0"
    ));
    for expected in [
        "read-mem no",
        "read-loop no",
        "read-null yes",
        "write-null yes",
        "read-zero yes",
        "write-zero no",
        "make-null yes",
        "make-mem no",
        "make-loop no",
    ] {
        assert!(
            text.lines().any(|line| line == expected),
            "{expected}: {text}"
        );
    }
}

#[test]
fn other_device_rules_are_not_taken_for_the_declared_ones() {
    requires_root!();
    let rules = |minor: u32| {
        format!(
            r#"{{"devices":[{{"allow":false,"access":"rwm"}},
                {{"allow":true,"type":"c","major":1,"minor":{minor},"access":"rwm"}}]}}"#
        )
    };
    let mut container = Container::prepare(&rules(3));
    let workload = container.start("true");
    let verdict = |container: &Container| {
        let findings = container.findings(workload.child.id());
        let devices = findings.iter().find(|(item, _)| item == "allowed devices");
        devices.expect("a finding").1
    };
    assert_eq!(verdict(&container), Verdict::Match);
    container.declaration.spec = spec(&rules(5));
    assert_ne!(verdict(&container), Verdict::Match);
}
