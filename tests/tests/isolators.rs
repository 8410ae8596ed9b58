//! For each isolator: without its line in the plan, `observe` finds the container weaker than declared, in what this
//! isolator answers for and in nothing else. `scripts/check` fails for an isolator that has no test here.

use std::collections::BTreeSet;
use std::fs;

use tepui_isolators::{Declaration, Target, Verdict, registry};
use tepui_tests::{Ground, Image, requires};

/// The isolators that find less than was declared, when the container runs with `isolation`.
fn weaker_with(isolation: Option<&str>) -> BTreeSet<&'static str> {
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let mut command = ground.tepui("run");
    if let Some(names) = isolation {
        command.args(["--isolation", names]);
    }
    // Everything that an isolator could answer for is asked of it.
    command.args(["--rm", "--network", "none", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "40"]);
    let mut child = command.args([&image, "sleep", "1000"]).spawn().expect("it starts");
    let container = ground.container();
    let declaration = fs::read(container.directory.join("declaration.json")).expect("it is there");
    let declaration: Declaration = serde_json::from_slice(&declaration).expect("a declaration");
    let target = Target { pid: container.pid.cast_unsigned() };
    tepui_tests::wait::until("the workload runs", std::time::Duration::from_secs(10), || {
        // Its name, not its file: without the image's root it is the host's sleep.
        let name = fs::read_to_string(target.proc_path("comm")).ok()?;
        (name.trim() == "sleep").then_some(())
    });
    let findings = registry::verify(&registry::all(), &target, &declaration).expect("it can be looked at");
    child.kill().expect("it runs");
    child.wait().expect("it is our child");
    assert!(!findings.is_empty());
    for finding in findings.iter().filter(|finding| finding.verdict != Verdict::Match) {
        println!("{finding:?}");
    }
    let weaker = findings.iter().filter(|finding| finding.verdict == Verdict::Weaker);
    weaker.map(|finding| finding.isolator).collect()
}

#[test]
fn with_all_isolators_nothing_is_weaker() {
    requires!(root(), busybox());
    assert_eq!(weaker_with(None), BTreeSet::new());
}

fn removed(name: &str) {
    let all = registry::all();
    let others: Vec<_> = all.iter().map(|isolator| isolator.name()).filter(|other| *other != name).collect();
    assert_eq!(others.len() + 1, all.len(), "there is no isolator {name}");
    assert_eq!(weaker_with(Some(&others.join(","))).into_iter().collect::<Vec<_>>(), [name]);
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
            let here = BTreeSet::from([$($name),+]);
            let all: BTreeSet<_> = registry::all().iter().map(|isolator| isolator.name()).collect();
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
    without_cgroups_freezer: "cgroups/freezer",
    without_linux_capabilities: "linux/capabilities",
    without_linux_seccomp: "linux/seccomp",
    without_linux_nnp: "linux/nnp",
    without_posix_rlimits: "posix/rlimits",
}
