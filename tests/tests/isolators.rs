//! For each isolator: without its line in the plan, `observe` finds the container weaker than declared, in what this
//! isolator answers for and in nothing else but what follows from it. `scripts/check` fails for an isolator that has
//! no test here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tepui_isolators::cgroups::hierarchy::{Hierarchies, Version};
use tepui_isolators::{Declaration, Target, Verdict, registry};
use tepui_tests::{Ground, Image, host, requires, wait};

/// Isolator and item of what is less than was declared, when the container runs with `isolation`.
fn weaker_with(isolation: Option<&str>) -> BTreeSet<(&'static str, String)> {
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let mut command = ground.tepui("run");
    if let Some(names) = isolation {
        command.args(["--isolation", names]);
    }
    // Everything that an isolator could answer for is asked of it.
    command.args([
        "--rm",
        "--network",
        "none",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "40",
    ]);
    command.args(["--ulimit", "nofile=256:256"]);
    let mut child = command
        .args([&image, "sleep", "1000"])
        .spawn()
        .expect("it starts");
    let container = ground.container();
    let declaration = fs::read(container.directory.join("declaration.json")).expect("it is there");
    let declaration: Declaration = serde_json::from_slice(&declaration).expect("a declaration");
    let target = wait::until("the workload runs", Duration::from_secs(10), || {
        // By its arguments, not its file: without the image's root it is the host's sleep.
        let is_it = |process: &host::Process| {
            process.pid == container.pid && process.arguments == ["sleep", "1000"]
        };
        let process = host::processes().into_iter().find(is_it)?;
        Some(Target {
            pid: process.pid.cast_unsigned(),
        })
    });
    let findings =
        registry::verify(&registry::all(), &target, &declaration).expect("it can be looked at");
    child.kill().expect("it runs");
    child.wait().expect("it is our child");
    assert!(!findings.is_empty());
    for finding in findings
        .iter()
        .filter(|finding| finding.verdict != Verdict::Match)
    {
        println!("{finding:?}");
    }
    let weaker = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Weaker);
    weaker
        .map(|finding| (finding.isolator, finding.item.clone()))
        .collect()
}

/// What else a container loses with one boundary, because another is built on it.
fn follows(removed: &str, isolator: &str, item: &str) -> bool {
    match removed {
        // Where it has no cgroup of its own, the file system of cgroups shows it the host's.
        "namespaces/cgroup" => (isolator, item) == ("filesystem/linux", "mount /sys/fs/cgroup"),
        _ if removed.starts_with("cgroups/") => {
            (isolator, item) == ("filesystem/linux", "mount /sys/fs/cgroup")
        }
        // Without file systems of its own it has the host's /proc.
        "filesystem/linux" => (isolator, item) == ("namespaces/pid", "/proc"),
        _ => false,
    }
}

#[test]
fn with_all_isolators_nothing_is_weaker() {
    requires!(root(), busybox());
    assert_eq!(weaker_with(None), BTreeSet::new());
}

/// Whether this host has the controller in a hierarchy of cgroup v1.
fn is_v1(controller: &str) -> bool {
    let host = Hierarchies::of_this_host().expect("a layout");
    host.of(controller)
        .is_some_and(|hierarchy| hierarchy.version == Version::V1)
}

fn removed(name: &str) {
    let all: Vec<_> = registry::all()
        .iter()
        .map(|isolator| isolator.name())
        .collect();
    assert!(all.contains(&name), "there is no isolator {name}");
    // Nothing is declared for these: what they give is a cgroup of its own in their hierarchy, where there is one.
    let only_a_cgroup = [
        "blkio",
        "cpuset",
        "hugetlb",
        "net_cls",
        "net_prio",
        "perf_event",
        "rdma",
    ];
    if let Some(controller) = name.strip_prefix("cgroups/")
        && only_a_cgroup.contains(&controller)
        && !is_v1(controller)
    {
        eprintln!("skipped: {controller} has no hierarchy of v1 here");
        return;
    }
    // One directory serves all controllers of a hierarchy: a container loses it only with the last of them.
    let shares_with_it = |other: &str| match name {
        "cgroups/freezer" if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => {
            other.starts_with("cgroups/")
        }
        _ => match (
            name.strip_prefix("cgroups/"),
            other.strip_prefix("cgroups/"),
        ) {
            (Some(ours), Some(theirs)) if only_a_cgroup.contains(&ours) => {
                let host = Hierarchies::of_this_host().expect("a layout");
                host.of(ours).is_some() && host.of(ours) == host.of(theirs)
            }
            _ => false,
        },
    };
    let with_it = |other: &str| other == name || shares_with_it(other);
    let (gone, others): (BTreeSet<&str>, BTreeSet<&str>) =
        all.into_iter().partition(|other| with_it(other));
    let isolation = others.into_iter().collect::<Vec<_>>().join(",");
    let weaker = weaker_with(Some(&isolation));
    let isolators: BTreeSet<&str> = weaker
        .iter()
        .filter(|(isolator, item)| !follows(name, isolator, item))
        .map(|(isolator, _)| *isolator)
        .collect();
    // What declares nothing shows nothing but its hierarchy of v1.
    let shows = |name: &&str| match name.strip_prefix("cgroups/") {
        Some(controller) => !only_a_cgroup.contains(&controller) || is_v1(controller),
        None => true,
    };
    let gone: BTreeSet<&str> = gone.into_iter().filter(shows).collect();
    assert_eq!(isolators, gone, "{weaker:?}");
}

/// What the kernel shows to the process alone: tests/process.rs asks from inside.
const NOT_SHOWN: [&str; 2] = ["linux/keyring", "linux/landlock"];

/// What no flag of `tepui run` asks for is declared, and its isolator left out, in tests/process.rs.
fn is_removed_from_a_bundle(name: &str) -> bool {
    let text: String = include_str!("process.rs").split_whitespace().collect();
    ["enforced_and_observed", "missing_without"]
        .iter()
        .any(|function| text.contains(&format!("{function}({name:?}")))
}

/// One test for each name: `without_…`.
macro_rules! removal_is_observed {
    ($($test:ident: $name:literal,)+) => {
        $(
            #[test]
            fn $test() {
                requires!(root(), busybox());
                removed($name);
            }
        )+

        #[test]
        fn every_isolator_of_the_registry_has_its_test() {
            let mut here = BTreeSet::from([$($name),+]);
            here.extend(NOT_SHOWN);
            let all: BTreeSet<_> = registry::all().iter().map(|isolator| isolator.name()).collect();
            here.extend(all.iter().filter(|name| is_removed_from_a_bundle(name)));
            assert_eq!(here, all);
        }
    };
}

removal_is_observed! {
    without_filesystem_linux: "filesystem/linux",
    without_namespaces_pid: "namespaces/pid",
    without_namespaces_ipc: "namespaces/ipc",
    without_namespaces_uts: "namespaces/uts",
    without_namespaces_net: "namespaces/net",
    without_namespaces_cgroup: "namespaces/cgroup",
    without_cgroups_cpu: "cgroups/cpu",
    without_cgroups_mem: "cgroups/mem",
    without_cgroups_pids: "cgroups/pids",
    without_cgroups_devices: "cgroups/devices",
    without_cgroups_cpuset: "cgroups/cpuset",
    without_cgroups_blkio: "cgroups/blkio",
    without_cgroups_hugetlb: "cgroups/hugetlb",
    without_cgroups_net_cls: "cgroups/net_cls",
    without_cgroups_net_prio: "cgroups/net_prio",
    without_cgroups_perf_event: "cgroups/perf_event",
    without_cgroups_rdma: "cgroups/rdma",
    without_cgroups_freezer: "cgroups/freezer",
    without_linux_capabilities: "linux/capabilities",
    without_linux_seccomp: "linux/seccomp",
    without_linux_nnp: "linux/nnp",
    without_posix_rlimits: "posix/rlimits",
}
