//! What happens between clone and execve(2): system calls only, in the order that keeps a container tight.

use std::collections::HashMap;
use std::time::Duration;

use tepui_tests::{Ground, Image, output, requires};

/// The system calls of one process, in order, from its first to the execution that ends its set-up.
fn set_up_of_the_container(trace: &str) -> Vec<String> {
    let mut calls: HashMap<&str, Vec<String>> = HashMap::new();
    for line in trace.lines() {
        let Some((pid, call)) = line.trim_start().split_once(' ') else {
            continue;
        };
        calls
            .entry(pid)
            .or_default()
            .push(call.trim_start().to_owned());
    }
    // Only the container's process makes a session and then pivots.
    let mut with_pivot = calls
        .into_values()
        .filter(|calls| calls.iter().any(|call| call.starts_with("pivot_root(")));
    let calls = with_pivot.next().expect("a process that pivots");
    assert!(with_pivot.next().is_none(), "more than one process pivots");
    let end = calls
        .iter()
        .position(|call| call.starts_with("execveat("))
        .expect("it executes init");
    calls[..=end].to_vec()
}

#[test]
fn between_clone_and_exec_there_is_no_allocation_and_no_lock_and_the_order_holds() {
    requires!(root(), busybox(), strace());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let trace = ground.path("trace");
    let mut tepui = ground.tepui("run");
    tepui.args([
        "--init",
        "--network",
        "none",
        "--ulimit",
        "nofile=100:100",
        "--user",
        "1:1",
        &image,
        "true",
    ]);
    let mut command = ground.command("strace");
    command
        .args(["-f", "-s", "16", "-o"])
        .arg(&trace)
        .arg(tepui.get_program())
        .args(tepui.get_args());
    output::finish(&mut command, Duration::from_secs(60)).success();

    let trace = std::fs::read_to_string(&trace).expect("strace wrote it");
    let calls = set_up_of_the_container(&trace);
    for forbidden in ["brk(", "mmap(", "futex("] {
        let found: Vec<_> = calls
            .iter()
            .filter(|call| call.starts_with(forbidden))
            .collect();
        assert!(found.is_empty(), "{found:?}");
    }
    let at = |wanted: &str| {
        let found = calls.iter().position(|call| call.contains(wanted));
        found.unwrap_or_else(|| panic!("no {wanted:?} in {calls:#?}"))
    };
    // style.md, section 3: each needs what a later one gives up, or what an earlier one made.
    let order = [
        "PR_SET_DUMPABLE",
        "setsid(",
        "unshare(CLONE_NEWCGROUP",
        "MS_REC|MS_SLAVE",
        "\"overlay\"",
        "mount(\"proc\"",
        "pivot_root(",
        "umount2(\".\", MNT_DETACH",
        "dup3(",
        "RLIMIT_NOFILE",
        "PR_CAPBSET_DROP",
        "setgroups(",
        "setresgid(",
        "setresuid(",
        "capset(",
        "getcwd(",
        "PR_SET_NO_NEW_PRIVS",
        "close_range(3",
        "seccomp(",
        "execveat(",
    ];
    for pair in order.windows(2) {
        assert!(
            at(pair[0]) < at(pair[1]),
            "{} comes after {}",
            pair[0],
            pair[1]
        );
    }
    ground.assert_clean();
}
