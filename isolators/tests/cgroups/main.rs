//! The cgroup isolators against the running kernel, whichever of v1, hybrid or v2 it has.
//!
//! Needs root and /bin/sh. Every test has cgroups of its own below `/tepui-test-cg-<pid>-<number>`, which must be gone at
//! its end. The workloads are shells that move themselves into the cgroups, as a launch would.

/// Ends a test that needs root and does not have it; with REQUIRE_ALL=1, as in CI, it fails instead.
macro_rules! requires_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            let required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1");
            assert!(!required, "this test needs root");
            eprintln!("skipped: this test needs root");
            return;
        }
    };
}

mod container;
mod controllers;
mod devices;
mod group;
mod limits;
mod memory;
mod removal;
mod statistics;
mod update;
