//! Attacks by symbolic links of the image: nothing may be made, mounted or changed where they lead.

use std::fs;

use nix::sys::stat::Mode;
use serde_json::json;
use tepui_tests::attack::{Attempt, never_works, works_only_without};
use tepui_tests::{Bundle, requires};

/// A bundle whose `path` leads outside, in the words of the host.
fn leading_outside<'a>(attempt: &'a Attempt, path: &str) -> Bundle<'a> {
    attempt.bundle("c").symlink(path, attempt.outside())
}

fn tmpfs(destination: &str) -> serde_json::Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"})
}

/// CVE-2019-18837: a directory as the target.
#[test]
fn a_missing_mount_target_is_not_made_outside() {
    requires!(root(), busybox());
    works_only_without("in-root", |attempt| {
        let bundle = leading_outside(attempt, "data");
        attempt.run(&bundle.mount(tmpfs("/data/made/here")).args(&["true"]));
    });
}

/// CVE-2025-24965: a file, by the same way.
#[test]
fn a_missing_file_to_mount_on_is_not_made_outside() {
    requires!(root(), busybox());
    works_only_without("in-root", |attempt| {
        let source = attempt.ground.write("source", "content\n");
        let bundle = leading_outside(attempt, "data").bind(&source, "/data/file");
        attempt.run(&bundle.args(&["true"]));
    });
}

/// CVE-2019-18837: an existing place; what is mounted there is then not in the container.
#[test]
fn a_mount_does_not_land_outside() {
    requires!(root(), busybox());
    let script = "grep -q ' - tmpfs data ' /proc/self/mountinfo || echo taken >/reports/marker";
    works_only_without("in-root", |attempt| {
        let mount = json!({"destination": "/data", "type": "tmpfs", "source": "data"});
        attempt.run(&leading_outside(attempt, "data").mount(mount).shell(script));
    });
}

/// CVE-2019-18837, with dots in place of an absolute path.
#[test]
fn dots_in_a_link_do_not_lead_outside() {
    requires!(root(), busybox());
    works_only_without("in-root", |attempt| {
        // From the root file system, far beyond the top.
        let outside = attempt.outside();
        let outside = outside.strip_prefix("/").expect("it is absolute");
        let dots = std::path::Path::new(&"../".repeat(64)).join(outside);
        let bundle = attempt.bundle("c").symlink("data", dots);
        attempt.run(&bundle.mount(tmpfs("/data/made")).args(&["true"]));
    });
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-54867: whoever chooses where procfs and sysfs are can move
/// them from under their masks.
#[test]
fn proc_and_sys_are_where_they_belong_or_nowhere() {
    requires!(root(), busybox());
    for (name, file) in [("proc", "self/mountinfo"), ("sys", "kernel/mm")] {
        works_only_without("plain-targets", |attempt| {
            fs::create_dir(attempt.reports().join("place")).expect("a directory of the test");
            let bundle = attempt.bundle("c").symlink(name, "/reports/place");
            let script = format!("test -e /reports/place/{file} && echo taken >/reports/marker");
            attempt.run(&bundle.shell(&script));
        });
    }
}

/// CVE-2026-41579, CVE-2026-47766: `/dev` of the image leads outside, and nothing is mounted there.
#[test]
fn devices_are_not_made_outside() {
    requires!(root(), busybox());
    works_only_without("in-root", |attempt| {
        let bundle = leading_outside(attempt, "dev").without_mount("/dev");
        attempt.run(&bundle.args(&["true"]));
    });
}

/// CVE-2026-41579: what the directory held already stays, a node of the container's names above all.
#[test]
fn devices_outside_are_not_replaced() {
    requires!(root(), busybox());
    works_only_without("in-root", |attempt| {
        attempt.place("ptmx", b"untouched\n");
        attempt.place("console", b"untouched\n");
        let bundle = leading_outside(attempt, "dev").without_mount("/dev");
        attempt.run(&bundle.args(&["true"]));
    });
}

/// A link of the image over a protected path leads only inside, and a pipe there stops no start. No control: the tests
/// above have one for each way of resolving.
#[test]
fn odd_files_of_an_image_stop_no_start() {
    requires!(root(), busybox());
    never_works(|attempt| {
        let paths = json!(["/pipe", "/data", "/data/victim", "/none", "/none/below"]);
        let bundle = leading_outside(attempt, "data")
            .args(&["true"])
            .with("/linux/maskedPaths", paths.clone())
            .with("/linux/readonlyPaths", paths);
        nix::unistd::mkfifo(&bundle.rootfs("pipe"), Mode::S_IRWXU).expect("a pipe of the bundle");
        attempt.run(&bundle).success();
    });
}
