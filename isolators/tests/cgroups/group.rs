//! A container's cgroups as one thing: listed, frozen, killed, joined.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::Signal;
use tepui_isolators::cgroups::Group;
use tepui_isolators::cgroups::directory::Directory;
use tepui_isolators::cgroups::group::subgroups;
use tepui_isolators::cgroups::hierarchy::{Hierarchies, Version};

use crate::container::Container;

fn group(container: &Container) -> Group {
    Group::of(&container.id, &container.declaration.cgroups).expect("a layout")
}

/// The directory that holds the processes.
fn main_directory(container: &Container) -> Directory {
    let cgroups = &container.declaration.cgroups;
    let v1 = Directory::of("freezer", &container.id, cgroups).expect("a layout");
    v1.or_else(|| Directory::unified(&container.id, cgroups).expect("a layout"))
        .expect("a cgroup")
}

/// A workload that counts as long as it can run, and the number it has reached.
const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n; done";

#[test]
fn its_processes_and_those_in_cgroups_below_are_listed() {
    requires_root!();
    let container = Container::prepare("{}");
    let sub = main_directory(&container).path().join("sub");
    let mut workload = container.start(&format!(
        "mkdir {0}; sh -c 'echo 0 > {0}/cgroup.procs; echo $$; exec sleep 1000' & wait",
        sub.display()
    ));
    let group = group(&container);
    assert_eq!(group.processes(true).expect("list"), [workload.child.id()]);
    workload.write("go\n");
    let inner: u32 = workload.line().parse().expect("a pid");
    assert_eq!(group.processes(false).expect("list"), [workload.child.id()]);
    let mut all = group.processes(true).expect("list");
    all.sort_unstable();
    let mut expected = [workload.child.id(), inner];
    expected.sort_unstable();
    assert_eq!(all, expected);
}

#[test]
fn a_frozen_container_stands_still_until_it_is_thawed() {
    requires_root!();
    let container = Container::prepare("{}");
    let group = group(&container);
    let mut workload = container.start(COUNT);
    workload.go();
    assert_eq!(workload.line(), "1");
    assert!(!group.is_frozen().expect("a state"));
    group.freeze().expect("freeze");
    assert!(group.is_frozen().expect("a state"));
    // What it wrote before is still in the pipe; after that nothing comes.
    let user_time = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        text.split(' ').skip(13).take(2).collect::<String>()
    };
    let pid = workload.child.id();
    let before = user_time(pid);
    let pause = std::process::Command::new("sleep").arg("0.2").status();
    assert!(pause.expect("sleep").success());
    assert_eq!(user_time(pid), before);
    group.freeze().expect("a second time");
    group.thaw().expect("thaw");
    assert!(!group.is_frozen().expect("a state"));
    // A pipe holds some ten thousand lines: this one was written after the thaw.
    while workload.line() != "100000" {}
}

#[test]
fn freezing_a_storm_of_forks_ends_frozen_or_thawed() {
    requires_root!();
    let container = Container::prepare(r#"{"pids":{"limit":30}}"#);
    let group = group(&container);
    let mut workload = container
        .start("exec 2>/dev/null; echo started; while :; do /bin/true & /bin/true & wait; done");
    workload.go();
    assert_eq!(workload.line(), "started");
    for _ in 0..20 {
        match group.freeze() {
            Ok(()) => assert!(group.is_frozen().expect("a state")),
            Err(error) => {
                assert!(error.to_string().contains("did not freeze"), "{error}");
                assert!(!group.is_frozen().expect("a state"));
            }
        }
        group.thaw().expect("thaw");
    }
}

#[test]
fn all_are_killed_frozen_or_not_and_in_cgroups_below() {
    requires_root!();
    for frozen in [false, true] {
        let container = Container::prepare("{}");
        let group = group(&container);
        let sub = main_directory(&container).path().join("sub");
        let mut workload = container.start(&format!(
            "trap '' TERM; mkdir {0}; sh -c 'echo 0 > {0}/cgroup.procs; echo in; exec sleep 1000' & wait",
            sub.display()
        ));
        workload.go();
        assert_eq!(workload.line(), "in");
        if frozen {
            group.freeze().expect("freeze");
        }
        group.kill_all().expect("kill");
        assert_eq!(workload.signal(), Some(9));
        // The end-of-file says that the inner one is dead too.
        assert_eq!(workload.line(), "");
        assert!(!group.is_frozen().expect("a state"));
    }
}

#[test]
fn a_signal_reaches_all_and_a_paused_container_stays_paused() {
    requires_root!();
    let container = Container::prepare("{}");
    let group = group(&container);
    let mut workload = container.start(
        "trap 'echo outer' USR1; sh -c \"trap 'echo inner; exit' USR1; echo in; while :; do sleep 0.01; done\" & \
         wait; wait; echo over",
    );
    workload.go();
    assert_eq!(workload.line(), "in");
    group.freeze().expect("freeze");
    group.signal_all(Signal::USR1).expect("signal");
    assert!(group.is_frozen().expect("a state"));
    group.thaw().expect("thaw");
    let mut said = [workload.line(), workload.line()];
    said.sort();
    assert_eq!(said, ["inner", "outer"]);
    assert_eq!(workload.line(), "over");
    group
        .signal_all(Signal::USR1)
        .expect("to nobody or to one that ends");
    assert!(!group.is_frozen().expect("a state"));
}

#[test]
fn a_container_that_is_gone_has_nothing_to_do() {
    requires_root!();
    let container = Container::prepare("{}");
    let group = group(&container);
    assert!(group.exists());
    assert!(!group.paths().is_empty());
    container.cleanup().expect("cleanup");
    assert!(!group.exists());
    assert!(group.paths().is_empty());
    assert_eq!(group.processes(true).expect("none"), Vec::<u32>::new());
    assert!(!group.is_frozen().expect("no"));
    group.thaw().expect("nothing");
    group.kill_all().expect("nobody");
    group.signal_all(Signal::TERM).expect("nobody");
    assert!(group.freeze().is_err());
}

#[test]
fn another_process_joins_where_the_container_is() {
    requires_root!();
    let container = Container::prepare("{}");
    let group = group(&container);
    let none = BTreeMap::new();
    let joins = group.join_steps(&none, None).expect("joins");
    assert_eq!(joins.cgroup_v2, container.info.cgroup_v2);
    for directory in &container.info.cgroup_v1 {
        assert!(joins.cgroup_v1.contains(directory), "{joins:?}");
    }
    let paths = group.paths();
    for directory in joins.cgroup_v1.iter().chain(&joins.cgroup_v2) {
        assert!(paths.values().any(|path| path == directory));
    }

    let main = main_directory(&container);
    fs::create_dir(main.path().join("sub")).expect("a cgroup below");
    let name = match main.version() {
        Version::V1 => "freezer",
        Version::V2 => "",
    };
    let named = BTreeMap::from([(name.to_owned(), "/sub".to_owned())]);
    let joins = group.join_steps(&named, None).expect("joins");
    let all: Vec<&Path> = joins
        .cgroup_v1
        .iter()
        .chain(&joins.cgroup_v2)
        .map(|p| p.as_path())
        .collect();
    assert!(all.contains(&main.path().join("sub").as_path()), "{all:?}");
    assert!(!all.contains(&main.path()), "{all:?}");

    for (controller, path, word) in [
        (name, "../box", ".."),
        (name, "missing", "there is no cgroup"),
        ("nonsense", "sub", "no cgroup of this controller"),
    ] {
        let bad = BTreeMap::from([(controller.to_owned(), path.to_owned())]);
        let error = group
            .join_steps(&bad, None)
            .expect_err("refused")
            .to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn where_init_has_passed_controllers_down_another_process_joins_init() {
    requires_root!();
    let host = Hierarchies::of_this_host().expect("a layout");
    if host.has_v1_controllers() {
        eprintln!("skipped: only cgroup v2 has no place for processes beside controllers");
        return;
    }
    let container = Container::prepare("{}");
    let group = group(&container);
    let own = main_directory(&container).path().to_owned();
    let mut workload = container.start(&format!(
        "mkdir {0}/init && echo 0 > {0}/init/cgroup.procs && echo +memory > {0}/cgroup.subtree_control && echo moved; \
         read end",
        own.display()
    ));
    workload.write("go\n");
    assert_eq!(workload.line(), "moved");
    let joins = group
        .join_steps(&BTreeMap::new(), Some(workload.child.id()))
        .expect("joins");
    assert_eq!(joins.cgroup_v2, Some(own.join("init")));
}

#[test]
fn the_cgroup_arguments_of_a_runtime_are_taken_apart() {
    let parse = |arguments: &[&str]| {
        let owned: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        subgroups(&owned)
    };
    let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    };
    assert_eq!(parse(&[]).expect("none"), of(&[]));
    assert_eq!(parse(&["/a"]).expect("one"), of(&[("", "/a")]));
    let several = parse(&["cpu,cpuacct:/a", "memory:b"]).expect("several");
    assert_eq!(
        several,
        of(&[("cpu", "/a"), ("cpuacct", "/a"), ("memory", "b")])
    );
    for bad in [
        &["/a", "cpu:/b"][..],
        &[":/a"],
        &["cpu,:/a"],
        &["cpu:/a", "cpu:/b"],
    ] {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
}
