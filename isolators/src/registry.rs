//! The table of all isolators, and what is done with a set of them.
//!
//! The order of the table is the order of `prepare`; an operator's selection does not change it.

use std::path::Path;

use crate::cgroups::{
    BlkioIsolator, CpuIsolator, CpusetIsolator, DevicesIsolator, FreezerIsolator, HugetlbIsolator,
    MemIsolator, NetClsIsolator, NetPrioIsolator, PerfEventIsolator, PidsIsolator, RdmaIsolator,
};
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::fault;
use crate::filesystem::linux::LinuxFilesystem;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::linux::capabilities::Capabilities;
use crate::linux::keyring::Keyring;
use crate::linux::landlock::LandlockIsolator;
use crate::linux::lsm::Lsm;
use crate::linux::memory_policy::MemoryPolicy;
use crate::linux::nnp::NoNewPrivileges;
use crate::linux::oom_score::OomScore;
use crate::linux::personality::Personality;
use crate::linux::scheduling::Scheduling;
use crate::linux::seccomp::SeccompIsolator;
use crate::linux::sysctl::Sysctl;
use crate::live::{Finding, Live, Target};
use crate::namespaces::cgroup::CgroupNamespace;
use crate::namespaces::ipc::IpcNamespace;
use crate::namespaces::net::NetNamespace;
use crate::namespaces::pid::PidNamespace;
use crate::namespaces::time::TimeNamespace;
use crate::namespaces::user::UserNamespace;
use crate::namespaces::uts::UtsNamespace;
use crate::observe;
use crate::posix::rlimits::Rlimits;

/// Every isolator of this build, in order.
pub fn all() -> Vec<Box<dyn Isolator>> {
    vec![
        Box::new(LinuxFilesystem),
        Box::new(UserNamespace),
        Box::new(PidNamespace),
        Box::new(IpcNamespace),
        Box::new(UtsNamespace),
        Box::new(NetNamespace),
        Box::new(CgroupNamespace),
        Box::new(TimeNamespace),
        Box::new(Sysctl),
        Box::new(CpuIsolator),
        Box::new(MemIsolator),
        Box::new(PidsIsolator),
        Box::new(CpusetIsolator),
        Box::new(BlkioIsolator),
        Box::new(HugetlbIsolator),
        Box::new(NetClsIsolator),
        Box::new(NetPrioIsolator),
        Box::new(PerfEventIsolator),
        Box::new(RdmaIsolator),
        Box::new(DevicesIsolator),
        Box::new(FreezerIsolator),
        Box::new(Capabilities),
        Box::new(NoNewPrivileges),
        Box::new(Rlimits),
        Box::new(Keyring),
        Box::new(OomScore),
        Box::new(Scheduling),
        Box::new(MemoryPolicy),
        Box::new(Personality),
        Box::new(Lsm),
        // After all that opens a file.
        Box::new(LandlockIsolator),
        Box::new(SeccompIsolator),
    ]
}

/// The isolators of a comma-separated list of names, as Mesos' `--isolation` flag has it; `None` is all of them.
///
/// # Errors
/// `Error::UnknownIsolator` for a name that this build does not have.
pub fn select(names: Option<&str>) -> Result<Vec<Box<dyn Isolator>>> {
    let all = all();
    let Some(names) = names else { return Ok(all) };
    let wanted: Vec<&str> = names
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    let is_known = |name: &&str| all.iter().any(|isolator| isolator.name() == *name);
    if let Some(unknown) = wanted.iter().find(|name| !is_known(name)) {
        let known: Vec<_> = all.iter().map(|isolator| isolator.name()).collect();
        return Err(Error::UnknownIsolator {
            name: (*unknown).to_owned(),
            known: known.join(", "),
        });
    }
    let selected = all
        .into_iter()
        .filter(|isolator| wanted.contains(&isolator.name()));
    Ok(selected.collect())
}

/// Prepares all of `isolators` in order and merges their launch infos.
///
/// # Errors
/// The first failure, after what was prepared is cleaned up again in reverse order.
pub fn prepare(
    isolators: &[Box<dyn Isolator>],
    id: &ContainerId,
    declaration: &Declaration,
) -> Result<ContainerLaunchInfo> {
    refuse_unhandled(declaration)?;
    let mut merged = ContainerLaunchInfo::default();
    let mut set_by = Vec::new();
    for (index, isolator) in isolators.iter().enumerate() {
        let prepared = isolator
            .prepare(id, declaration)
            .and_then(|info| merged.merge(isolator.name(), info, &mut set_by))
            .and_then(|()| fail_on_purpose("prepared", isolator.as_ref()));
        if let Err(error) = prepared {
            // The one that failed may have got half-way.
            if let Err(left) = cleanup(&isolators[..=index], id, declaration) {
                tracing::error!(container = %id, error = %left, "left behind after a failed start");
            }
            return Err(error);
        }
    }
    merged.label_mounts();
    Ok(merged)
}

/// Changes the limits of a running container, isolator by isolator, to what `declaration` now says; what it leaves out
/// stays as it is.
///
/// # Errors
/// The first failure; what was changed before it stays changed.
pub fn update(
    isolators: &[Box<dyn Isolator>],
    id: &ContainerId,
    declaration: &Declaration,
) -> Result<()> {
    isolators
        .iter()
        .try_for_each(|isolator| isolator.update(id, declaration))
}

/// Cleans up all of `isolators` in reverse order, whichever of them fail.
///
/// # Errors
/// The first failure.
pub fn cleanup(
    isolators: &[Box<dyn Isolator>],
    id: &ContainerId,
    declaration: &Declaration,
) -> Result<()> {
    let mut result = Ok(());
    for isolator in isolators.iter().rev() {
        let cleaned = isolator
            .cleanup(id, declaration)
            .and_then(|()| fail_on_purpose("cleaned up", isolator.as_ref()));
        match (&result, cleaned) {
            (Ok(()), cleaned) => result = cleaned,
            (Err(_), Ok(())) => {}
            (Err(_), Err(error)) => {
                tracing::error!(container = %id, isolator = isolator.name(), %error, "could not clean up");
            }
        }
    }
    result
}

/// After one of them has done its work: a test may want it to fail.
fn fail_on_purpose(did: &str, isolator: &dyn Isolator) -> Result<()> {
    let failed = |source| Error::file("go on after", isolator.name(), source);
    fault::point(format_args!("{did} {}", isolator.name())).map_err(failed)
}

/// Looks at a process and compares what it really has with what was declared.
///
/// # Errors
/// When the process cannot be looked at, or was another one at the end than at the beginning.
pub fn verify(
    isolators: &[Box<dyn Isolator>],
    target: &Target,
    declaration: &Declaration,
) -> Result<Vec<Finding>> {
    let started = observe::start_time(target)?;
    let mut live = Live::default();
    for isolator in isolators {
        isolator.observe(target, declaration, &mut live)?;
    }
    if observe::start_time(target)? != started {
        let gone = std::io::Error::from_raw_os_error(libc::ESRCH);
        return Err(observe::unseen(target, "one and the same process", gone));
    }
    let findings = isolators
        .iter()
        .flat_map(|isolator| isolator.compare(declaration, &live));
    Ok(findings.collect())
}

/// Refuses what runtime-spec can say and no isolator of this build does: it would be dropped in silence.
fn refuse_unhandled(declaration: &Declaration) -> Result<()> {
    let refused = |field, value: String, rule: &str| {
        Err(Error::Config {
            field,
            value,
            rule: rule.to_owned(),
        })
    };
    let linux = declaration.spec.linux().as_ref();
    if let Some(rdt) = linux.and_then(|linux| linux.intel_rdt().as_ref()) {
        let group = rdt.clos_id().clone().unwrap_or_default();
        let rule = match Path::new("/sys/fs/resctrl/schemata").exists() {
            true => "this version puts no container in a resctrl group; leave it out",
            false => {
                "Intel RDT is not enabled: the kernel has no resctrl file system at /sys/fs/resctrl; leave it out"
            }
        };
        return refused("linux.intelRdt", format!("{group:?}"), rule);
    }
    let devices = linux.and_then(|linux| linux.net_devices().as_ref());
    if let Some(name) = devices.and_then(|devices| devices.keys().min()) {
        let rule =
            "this version moves no network device of the host into a container; leave it out";
        return refused("linux.netDevices", name.clone(), rule);
    }
    if let Some(machine) = declaration.spec.vm() {
        let kernel = machine.kernel().path().display().to_string();
        let rule = "a container of this runtime is no virtual machine, and Linux has no hardware for it; leave `vm` out";
        return refused("vm.kernel", kernel, rule);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::declaration::{CgroupPlacement, Overlay, RootFilesystem};
    use oci_spec::runtime::LinuxNamespaceType;

    fn declaration(spec: serde_json::Value, writable: &Path) -> Declaration {
        Declaration {
            spec: serde_json::from_value(spec).unwrap(),
            rootfs: RootFilesystem::Overlay(Overlay {
                layers: writable.parent().unwrap().to_owned(),
                lower: vec![".".to_owned()],
                writable: writable.to_owned(),
            }),
            cgroups: CgroupPlacement {
                parent: "/tepui-test-registry".into(),
                nested: Default::default(),
                name: None,
            },
            init: false,
            executable: None,
            keep_keyring: false,
            reset_cpu_affinity: false,
        }
    }

    #[test]
    fn a_selection_keeps_the_order_of_the_table_and_names_what_it_does_not_know() {
        let selected = select(Some("posix/rlimits, namespaces/pid,filesystem/linux")).unwrap();
        let names: Vec<_> = selected.iter().map(|isolator| isolator.name()).collect();
        assert_eq!(
            names,
            ["filesystem/linux", "namespaces/pid", "posix/rlimits"]
        );
        assert_eq!(select(None).unwrap().len(), all().len());
        let error = select(Some("namespaces/pid,gpu/nvidia"))
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("\"gpu/nvidia\"") && error.contains("linux/nnp"),
            "{error}"
        );
    }

    #[test]
    fn every_isolator_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = all().iter().map(|i| i.name()).collect();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn what_was_prepared_before_a_failure_is_gone_after_it() {
        let store = tempfile::tempdir().unwrap();
        let writable = store.path().join("web.1");
        let id = "web.1".parse().unwrap();
        // filesystem/linux makes the writable layer first, namespaces/uts refuses then.
        let bad = declaration(serde_json::json!({ "hostname": "web" }), &writable);
        let isolators = all();
        let error = prepare(&isolators, &id, &bad).unwrap_err().to_string();
        assert!(error.contains("hostname"), "{error}");
        assert!(!writable.exists());

        let good = declaration(serde_json::json!({}), &writable);
        let info = prepare(&isolators, &id, &good).unwrap();
        assert_eq!(info.namespaces, [LinuxNamespaceType::Mount]);
        assert!(writable.join("upper").is_dir());
        cleanup(&isolators, &id, &good).unwrap();
        cleanup(&isolators, &id, &good).unwrap();
        assert!(!writable.exists());
    }

    #[test]
    fn nothing_that_is_declared_is_dropped_in_silence() {
        let cases = [
            (
                serde_json::json!({ "linux": { "namespaces": [{ "type": "user" }] } }),
                "linux.uidMappings is empty",
            ),
            (
                serde_json::json!({ "linux": { "uidMappings": [{ "containerID": 0, "hostID": 1, "size": 1 }] } }),
                "linux.uidMappings is 0:1:1",
            ),
            (
                serde_json::json!({ "linux": { "timeOffsets": { "boottime": { "secs": 1 } } } }),
                "linux.timeOffsets",
            ),
            (serde_json::json!({ "domainname": "d" }), "domainname is d"),
            (
                serde_json::json!({ "linux": { "sysctl": { "kernel.x": "1" } } }),
                "kernel.x",
            ),
            (
                serde_json::json!({ "linux": { "mountLabel": "x" } }),
                "linux.mountLabel",
            ),
            (
                serde_json::json!({ "linux": { "intelRdt": { "closID": "gold" } } }),
                "linux.intelRdt is \"gold\"",
            ),
            (
                serde_json::json!({ "linux": { "netDevices": { "eth1": {} } } }),
                "linux.netDevices is eth1",
            ),
            (
                serde_json::json!({ "vm": { "kernel": { "path": "/boot/k" } } }),
                "vm.kernel is /boot/k",
            ),
            (
                serde_json::json!({ "process": { "user": {}, "cwd": "/", "apparmorProfile": "web" } }),
                "process.apparmorProfile is web",
            ),
            (
                serde_json::json!({ "linux": { "namespaces": [{ "type": "pid", "path": "/proc/self/ns/net" }] } }),
                "another type",
            ),
            (
                serde_json::json!({ "linux": { "namespaces": [{ "type": "ipc", "path": "ns/ipc" }] } }),
                "ipc with path ns/ipc, but the path has to be absolute",
            ),
            (
                serde_json::json!({ "linux": { "namespaces": [{ "type": "uts", "path": "/dev/null" }] } }),
                "not a namespace",
            ),
            (
                serde_json::json!({ "linux": { "namespaces": [{ "type": "network", "path": "/no/such" }] } }),
                "could not open the namespace /no/such",
            ),
            (
                serde_json::json!({ "linux": { "namespaces": [{ "type": "mount", "path": "/proc/self/ns/mnt" }] } }),
                "mnt with path",
            ),
            (
                // Joined, but our own.
                serde_json::json!({ "hostname": "x", "linux": { "namespaces": [{ "type": "uts", "path": "/proc/self/ns/uts" }] } }),
                "rename the host",
            ),
            (
                serde_json::json!({ "linux": { "namespaces": [{ "type": "ipc" }, { "type": "ipc" }] } }),
                "ipc twice",
            ),
        ];
        let store = tempfile::tempdir().unwrap();
        for (spec, word) in cases {
            let declaration = declaration(spec, &store.path().join("web.1"));
            let error = prepare(&all(), &"web.1".parse().unwrap(), &declaration).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
