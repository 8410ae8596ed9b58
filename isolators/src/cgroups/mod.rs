//! `cgroups/*`: limits on what the processes of a container use together, and the directories that hold them.
//!
//! `hierarchy` knows the host's layout (v1, hybrid, v2), `placement` where the containers of an executor go, `directory`
//! makes and removes a container's directory; then one file for each isolator. Limits are written by `prepare`, before
//! any process is in the cgroup, so that there is no moment without them and even a limit below the size of our own
//! child takes effect.

pub mod cpu;
pub mod device_rules;
pub mod devices;
pub mod directory;
mod freeze;
pub mod freezer;
pub mod group;
pub mod hierarchy;
pub mod mem;
mod members;
pub mod memory_watch;
pub mod observation;
pub mod pids;
pub mod placement;

pub use cpu::CpuIsolator;
pub use devices::DevicesIsolator;
pub use freezer::FreezerIsolator;
pub use group::Group;
pub use mem::MemIsolator;
pub use pids::PidsIsolator;
pub use placement::placement;

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

/// The keys of `linux.resources.unified` that belong to one controller, as file and value.
fn unified<'a>(declaration: &'a Declaration, controller: &str) -> Vec<(&'a str, &'a str)> {
    let all = resources(declaration).and_then(|resources| resources.unified().as_ref());
    let mut own: Vec<(&str, &str)> = all
        .into_iter()
        .flatten()
        .filter(|(file, _)| file.split_once('.').is_some_and(|(c, _)| c == controller))
        .map(|(file, value)| (file.as_str(), value.as_str()))
        .collect();
    own.sort_unstable();
    own
}

/// Makes the container's directory for a controller.
fn create(
    isolator: &'static str,
    controller: &str,
    id: &ContainerId,
    declaration: &Declaration,
) -> Result<Directory> {
    let directory =
        Directory::of(controller, id, &declaration.cgroups)?.ok_or_else(|| Error::Unsupported {
            isolator,
            feature: format!("the {controller} controller, which no mounted cgroup hierarchy has"),
        })?;
    directory.create(Some(controller))?;
    Ok(directory)
}

/// Writes the keys of `linux.resources.unified` for one controller.
fn write_unified(directory: &Directory, controller: &str, declaration: &Declaration) -> Result<()> {
    for (file, value) in unified(declaration, controller) {
        let refuse = |rule: &str| Error::Config {
            field: "linux.resources.unified",
            value: format!("{file}={value}"),
            rule: rule.to_owned(),
        };
        if directory.version() == Version::V1 {
            let rule = format!("the {controller} controller is on cgroup v1 on this host");
            return Err(refuse(&rule));
        }
        if file.contains('/') {
            return Err(refuse("a key is the name of one file"));
        }
        directory.write(file, value)?;
    }
    Ok(())
}

/// What a launch must do so that the container ends up in this directory.
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
