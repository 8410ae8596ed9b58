//! The other cgroup layouts: the test programs that look into containers, run again in a virtual machine.
//!
//! One boot for each layout. What the programs print goes straight through, so that their tests are counted too.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tepui_tests::{binary, output, requires};

/// Test programs, by the names that cargo gives them: `isolators/tests/cgroups.rs` and four of this package's.
const PROGRAMS: [&str; 5] = ["cgroups", "inside", "isolators", "local", "run"];

/// The newest build of a test program, beside this one.
fn built(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().expect("procfs");
    let directory = own.parent().expect("a file has a directory");
    let is_it = |path: &Path| {
        let file = path
            .file_name()
            .and_then(|file| file.to_str())
            .unwrap_or_default();
        let hash = file
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('-'));
        hash.is_some_and(|hash| hash.chars().all(|c| c.is_ascii_hexdigit()))
    };
    let entries = std::fs::read_dir(directory)
        .expect("readable")
        .flatten()
        .map(|entry| entry.path());
    entries
        .filter(|path| is_it(path))
        .max_by_key(|path| path.metadata().and_then(|m| m.modified()).ok())
}

fn in_the_machine(layout: &str, kernel: &str) {
    let hint = "build all tests first: scripts/cargo test --workspace --no-run";
    let find =
        |name: &&str| built(name).unwrap_or_else(|| panic!("no test program {name}; {hint}"));
    let programs: Vec<PathBuf> = PROGRAMS.iter().map(find).collect();
    let mut script = String::from("failed=0\n");
    for program in &programs {
        // Each with a limit of its own: a hang must not take the others' results with it.
        let run = format!("timeout 180 {} --test-threads=2", program.display());
        script.push_str(&format!("{run} 2>&1 || failed=1\n"));
    }
    script.push_str("exit $failed\n");

    let target = programs[0].parent().expect("a file has a directory");
    let tepui = binary::tepui().canonicalize().expect("it is there");
    let mut machine = Command::new(binary::of_package("vm/run-in-vm"));
    machine.args(["--cgroup", layout, "--kernel", kernel]);
    machine
        .args(["--time-limit", "600"])
        .arg("--env")
        .arg(format!("TEPUI_BIN={}", tepui.display()));
    machine.args(["--env", "REQUIRE_ALL", "--env", "RUST_BACKTRACE=0"]);
    machine
        .arg("--share")
        .arg(tepui.parent().expect("a file has a directory"));
    machine
        .args(["--", "sh", "-c", &script])
        .current_dir(target);
    let run = output::finish(&mut machine, Duration::from_secs(900));
    // The counts inside belong to the whole.
    let title = format!("--- in the virtual machine, cgroup {layout}, {kernel} kernel");
    output::say(&format!("{title}\n{}--- end", run.stdout));
    // Its output is above; repeated here, it would be counted twice.
    assert_eq!(
        run.status, 0,
        "a test failed in the virtual machine: {}",
        run.stderr
    );
    let results = run.stdout.matches("test result: ok. ").count();
    assert_eq!(
        results,
        PROGRAMS.len(),
        "a test program gave no result: {}",
        run.stderr
    );
}

#[test]
fn on_cgroup_v2() {
    requires!(root(), virtual_machine());
    in_the_machine("v2", "stable");
}

#[test]
fn on_a_hybrid_host() {
    requires!(root(), virtual_machine());
    in_the_machine("hybrid", "stable");
}

#[test]
fn on_cgroup_v1_alone() {
    requires!(root(), virtual_machine(), long());
    in_the_machine("v1", "stable");
}

#[test]
fn on_a_newer_kernel() {
    requires!(root(), virtual_machine(), long());
    in_the_machine("v2", "backports");
}
