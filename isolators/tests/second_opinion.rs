//! The limits that our cgroup isolators set, read back by somebody else's code: the `cgroups-rs` library.

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, MaxValue, hierarchies};
use tepui_isolators::{CgroupPlacement, ContainerId, Declaration, RootFilesystem, registry};

#[test]
fn cgroups_rs_reads_the_limits_that_were_declared() {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("REQUIRE_ALL").is_none(),
            "limits need root"
        );
        eprintln!("SKIP second_opinion::cgroups_rs_reads_the_limits_that_were_declared: not root");
        return;
    }
    let parent = format!("tepui-test-second-{}", std::process::id());
    let resources = r#"{"memory": {"limit": 67108864}, "cpu": {"quota": 50000, "period": 100000}, "pids": {"limit": 40}}"#;
    let spec = format!(r#"{{"ociVersion": "1.2.0", "linux": {{"resources": {resources}}}}}"#);
    let declaration = Declaration {
        spec: serde_json::from_str(&spec).expect("a spec"),
        rootfs: RootFilesystem::Host,
        cgroups: CgroupPlacement {
            parent: format!("/{parent}").into(),
            nested: Default::default(),
            name: None,
        },
        init: false,
        executable: None,
        keep_keyring: false,
        reset_cpu_affinity: false,
    };
    let id: ContainerId = "box".parse().expect("an id");
    let isolators =
        registry::select(Some("cgroups/cpu,cgroups/mem,cgroups/pids")).expect("their names");
    registry::prepare(&isolators, &id, &declaration).expect("root can");

    let read = Cgroup::load(hierarchies::auto(), format!("{parent}/{id}"));
    let memory: &MemController = read.controller_of().expect("memory");
    let cpu: &CpuController = read.controller_of().expect("cpu");
    let pids: &PidController = read.controller_of().expect("pids");
    let seen = (
        memory.memory_stat().limit_in_bytes,
        cpu.cfs_quota().ok(),
        cpu.cfs_period().ok(),
        pids.get_pid_max().ok(),
    );
    registry::cleanup(&isolators, &id, &declaration).expect("they are empty");
    assert_eq!(
        seen,
        (
            67_108_864,
            Some(50_000),
            Some(100_000),
            Some(MaxValue::Value(40))
        )
    );
}
