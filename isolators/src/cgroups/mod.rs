//! `cgroups/*`: limits on what the processes of a container use together, and the directories that hold them.
//!
//! `hierarchy` knows the host's layout (v1, hybrid, v2), `placement` where the containers of an executor go, `directory`
//! makes and removes a container's directory; then one file for each isolator. Limits are written by `prepare`, before
//! any process is in the cgroup, so that there is no moment without them and even a limit below the size of our own
//! child takes effect.

pub mod blkio;
mod blkio_limits;
pub mod cpu;
mod cpu_limits;
pub mod cpuset;
pub mod device_rules;
pub mod devices;
pub mod directory;
mod freeze;
pub mod freezer;
pub mod group;
pub mod hierarchy;
pub mod hugetlb;
pub mod mem;
mod mem_limits;
mod members;
pub mod memory_watch;
pub mod net_cls;
pub mod net_prio;
pub mod observation;
pub mod perf_event;
pub mod pids;
pub mod placement;
pub mod rdma;
pub mod statistics;
mod subgroup;
mod unified;

pub use blkio::BlkioIsolator;
pub use cpu::CpuIsolator;
pub use cpuset::CpusetIsolator;
pub use devices::DevicesIsolator;
pub use freezer::FreezerIsolator;
pub use group::Group;
pub use hugetlb::HugetlbIsolator;
pub use mem::MemIsolator;
pub use net_cls::NetClsIsolator;
pub use net_prio::NetPrioIsolator;
pub use perf_event::PerfEventIsolator;
pub use pids::PidsIsolator;
pub use placement::placement;
pub use rdma::RdmaIsolator;

use std::io::ErrorKind;

use oci_spec::runtime::LinuxResources;

use self::directory::Directory;
use self::hierarchy::Version;
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::launch_info::ContainerLaunchInfo;

/// The declared resources.
fn resources(declaration: &Declaration) -> Option<&LinuxResources> {
    declaration.spec.linux().as_ref()?.resources().as_ref()
}

/// Controllers that an isolator of their own answers for; `cgroups/freezer` takes what is left.
const WITH_ISOLATOR: [&str; 14] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "io",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// Makes the container's directory for a controller, also where nothing is declared: there it is contained and
/// accounted. `None`: no hierarchy has the controller, or it cannot be written, and nothing asks for it.
fn create(
    isolator: &'static str,
    controller: &str,
    id: &ContainerId,
    declaration: &Declaration,
    is_declared: bool,
) -> Result<Option<Directory>> {
    unified::check(declaration, controller)?;
    let is_declared = is_declared || !unified::of(declaration, controller).is_empty();
    match Directory::of(controller, id, &declaration.cgroups)? {
        None if is_declared => Err(no_controller(isolator, controller)),
        None => Ok(None),
        Some(directory) if is_declared => {
            directory.create(Some(controller))?;
            Ok(Some(directory))
        }
        Some(directory) if !directory.is_writable() => Ok(None),
        Some(directory) => {
            directory.create(None)?;
            directory.offer(controller);
            Ok(Some(directory))
        }
    }
}

/// The running container's directory for a controller that something is declared for.
fn existing(
    isolator: &'static str,
    controller: &str,
    id: &ContainerId,
    declaration: &Declaration,
    is_declared: bool,
) -> Result<Option<Directory>> {
    unified::check(declaration, controller)?;
    if !is_declared && unified::of(declaration, controller).is_empty() {
        return Ok(None);
    }
    let directory = Directory::of(controller, id, &declaration.cgroups)?
        .ok_or_else(|| no_controller(isolator, controller))?;
    if directory.version() == Version::V2 {
        directory.pass_down(controller)?;
    }
    Ok(Some(directory))
}

fn no_controller(isolator: &'static str, controller: &str) -> Error {
    Error::Unsupported {
        isolator,
        feature: format!("the {controller} controller, which no mounted cgroup hierarchy has"),
    }
}

/// Writes values that the kernel checks against each other, in whichever order it takes them: one that it refuses as
/// invalid is written again after the others, as long as that helps.
fn write_settled(directory: &Directory, mut values: Vec<(&str, String)>) -> Result<()> {
    loop {
        let (before, mut refused, mut first) = (values.len(), Vec::new(), None);
        for (file, value) in values {
            match directory.write(file, &value) {
                Err(error) if error.is_kind(ErrorKind::InvalidInput) => {
                    first.get_or_insert(error);
                    refused.push((file, value));
                }
                other => other?,
            }
        }
        match first {
            None => return Ok(()),
            Some(error) if refused.len() == before => return Err(error),
            Some(_) => values = refused,
        }
    }
}

/// What a launch must do so that the container ends up in these directories.
fn join_all<'a>(directories: impl IntoIterator<Item = &'a Directory>) -> ContainerLaunchInfo {
    let mut info = ContainerLaunchInfo::default();
    for directory in directories {
        let join = join(directory);
        info.cgroup_v1.extend(join.cgroup_v1);
        info.cgroup_v2 = info.cgroup_v2.or(join.cgroup_v2);
    }
    info
}

fn join(directory: &Directory) -> ContainerLaunchInfo {
    let path = directory.path().to_owned();
    match directory.version() {
        Version::V1 => ContainerLaunchInfo {
            cgroup_v1: vec![path],
            ..Default::default()
        },
        Version::V2 => ContainerLaunchInfo {
            cgroup_v2: Some(path),
            ..Default::default()
        },
    }
}

/// Removes the container's directory for a controller.
fn remove(controller: &str, id: &ContainerId, declaration: &Declaration) -> Result<()> {
    match Directory::of(controller, id, &declaration.cgroups)? {
        Some(directory) => directory.remove(id, &declaration.cgroups),
        None => Ok(()),
    }
}
