//! Races: a second container that shares a volume exchanges a directory for a symbolic link, without end, while
//! containers are started whose configuration names a path in that volume.
//!
//! Each attack has 1,000 starts. With the defence against it taken away, a few are enough.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tepui_tests::attack::{Attempt, works_only_without};
use tepui_tests::{Bundle, output, requires};

const STARTS: u32 = 1000;

/// The volume in which `a` and `b` change places: a directory, and a link to `to`.
fn exchanged(attempt: &Attempt, to: &Path) -> PathBuf {
    let volume = attempt.ground.path("volume");
    fs::create_dir_all(volume.join("a")).expect("a directory of the test");
    symlink(to, volume.join("b")).expect("a link of the test");
    volume
}

/// Starts the container that exchanges the two.
fn start_exchanger<'a>(attempt: &'a Attempt, volume: &Path, seed: u64) -> Bundle<'a> {
    let program = env!("CARGO_BIN_EXE_exchanger");
    let bundle = attempt.bundle("exchanger").bind(volume, "/v").args(&[
        "/bin/exchanger",
        "/v",
        &seed.to_string(),
    ]);
    fs::copy(program, bundle.rootfs("bin/exchanger")).expect("a program of the test");
    bundle.run_detached().success();
    bundle
}

/// Starts the victim again and again; `prepare` changes its configuration before each start.
fn race(
    attempt: &Attempt,
    volume: &Path,
    victim: &mut Bundle<'_>,
    prepare: impl Fn(&mut Value, u32),
) {
    let exchanger = start_exchanger(attempt, volume, 7);
    let (mut starts, mut started) = (0, 0);
    for number in 0..STARTS {
        starts += 1;
        prepare(&mut victim.config, number);
        let run = attempt.run(victim);
        started += u32::from(run.status == 0);
        if run.status == TAKEN {
            fs::write(attempt.reports().join("marker"), "taken").expect("a file of the test");
        }
        if attempt.succeeded() {
            break;
        }
    }
    let taken = if attempt.succeeded() {
        ", the last one taken"
    } else {
        ""
    };
    let without = attempt.runtime.undefended().unwrap_or("nothing");
    output::say(&format!(
        "race without {without}: {starts} starts{taken}, {started} to the end"
    ));
    // Else there was no race: nothing was exchanged, or no container got as far as its workload.
    assert_eq!(
        exchanger.status().as_deref(),
        Some("running"),
        "{}",
        exchanger.output()
    );
    assert!(
        started > 0 || attempt.succeeded(),
        "not one of the containers started"
    );
    exchanger.delete().success();
}

/// How a workload ends that cannot report otherwise.
const TAKEN: i32 = 77;

/// A directory in the root file system for the link to lead to as well, so that a start need not fail for its lack.
fn with_twin<'a>(bundle: Bundle<'a>, outside: &Path) -> Bundle<'a> {
    let inside = outside.strip_prefix("/").expect("it is absolute");
    fs::create_dir_all(bundle.rootfs("").join(inside)).expect("a directory of the bundle");
    bundle
}

/// CVE-2021-30465: the target is a link by the time of the mount.
#[test]
fn a_mount_lands_where_its_target_was_found() {
    requires!(root(), busybox());
    works_only_without("mount-by-descriptor", |attempt| {
        let volume = exchanged(attempt, &attempt.outside());
        let script = format!("grep -q ' - tmpfs racer ' /proc/self/mountinfo || exit {TAKEN}");
        let mut victim = with_twin(attempt.bundle("victim"), &attempt.outside())
            .bind(&volume, "/v")
            .mount(json!({"destination": "/v/a", "type": "tmpfs", "source": "racer"}))
            .shell(&script);
        race(attempt, &volume, &mut victim, |_, _| {});
    });
}

/// CVE-2024-45310: a part of the target is a link by the time that the next one is made.
#[test]
fn a_missing_target_is_made_where_its_parent_was_found() {
    requires!(root(), busybox());
    works_only_without("make-by-descriptor", |attempt| {
        let volume = exchanged(attempt, &attempt.outside());
        let mut victim = with_twin(attempt.bundle("victim"), &attempt.outside())
            .bind(&volume, "/v")
            .mount(json!({"type": "tmpfs", "source": "racer"}))
            .args(&["true"]);
        race(attempt, &volume, &mut victim, |config, number| {
            let mounts = config["mounts"].as_array_mut().expect("a list");
            let last = mounts.last_mut().expect("the one of above");
            last["destination"] = format!("/v/a/made{number}").into();
        });
    });
}

/// GHSA-3q8j-pf29-vwv8: what covers a protected path is a view of another.
#[test]
fn a_readonly_path_is_covered_by_itself() {
    requires!(root(), busybox());
    works_only_without("one-descriptor", |attempt| {
        let volume = exchanged(attempt, Path::new("/reports"));
        // Root and place of a mount, in one line: the volume's on `/reports`, or the other way round.
        let script = format!(
            "! grep -qE '/reports /v/|/volume/[^ ]* /reports ' /proc/self/mountinfo || exit {TAKEN}"
        );
        let mut victim = attempt
            .bundle("victim")
            .bind(&volume, "/v")
            .with("/linux/readonlyPaths", json!(["/v/a"]))
            .shell(&script);
        race(attempt, &volume, &mut victim, |_, _| {});
    });
}

/// CVE-2024-42472: the source is a link by the time that it is mounted; asked for with `x-tepui-plain-source`.
#[test]
fn a_plain_source_is_never_a_link() {
    requires!(root(), busybox());
    works_only_without("plain-sources", |attempt| {
        let volume = exchanged(attempt, &attempt.outside());
        let options = ["rbind", "x-tepui-plain-source"];
        let mut victim = attempt
            .bundle("victim")
            .mount(json!({"destination": "/data", "type": "bind", "source": volume.join("a"), "options": options}))
            .shell("test ! -e /data/victim || echo taken >/reports/marker");
        race(attempt, &volume, &mut victim, |_, _| {});
    });
}
