//! `cgroups/freezer`: a cgroup that holds all processes of a container, by which they can be stopped and killed as one.
//!
//! On v1 it is the freezer hierarchy: a Mesos agent destroys an executor by freezing and killing what is below the
//! executor's freezer cgroup, so tasks placed there die with it, whatever they do. On v2 every cgroup can be frozen and
//! killed; it needs nothing but the directory. A hybrid host gets both: the v2 one adds cgroup.kill, which no fork can
//! outrun, and entry at the clone.
//!
//! It also takes what no other isolator answers for: v1 hierarchies without a controller, and keys of
//! `linux.resources.unified` for the cgroup itself or for controllers without an isolator.

use std::collections::BTreeSet;

use super::directory::Directory;
use super::hierarchy::{Hierarchies, Version};
use super::{WITH_ISOLATOR, observation, unified};
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};

const NAME: &str = "cgroups/freezer";
const CONTROLLER: &str = "freezer";

/// The isolator `cgroups/freezer`.
#[derive(Debug, Clone, Copy, Default)]
pub struct FreezerIsolator;

impl Isolator for FreezerIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let v1 = Directory::of(CONTROLLER, id, &declaration.cgroups)?;
        let v2 = Directory::unified(id, &declaration.cgroups)?;
        if v1.is_none() && v2.is_none() {
            return Err(Error::Unsupported {
                isolator: NAME,
                feature: "a freezer hierarchy or cgroup v2, and neither is mounted".into(),
            });
        }
        let is_declared = !others_keys(declaration).is_empty();
        // Beside a freezer of v1 the v2 directory is a gain but no need: a host may mount it read-only.
        let v2 = v2.filter(|directory| v1.is_none() || is_declared || directory.is_writable());
        let mut directories: Vec<Directory> = v1.into_iter().chain(v2).collect();
        directories.extend(nameless(id, declaration)?.filter(Directory::is_writable));
        for directory in &directories {
            directory.create(None)?;
            if directory.version() == Version::V2 {
                for controller in directory.controllers() {
                    if !WITH_ISOLATOR.contains(&controller.as_str()) {
                        directory.offer(controller);
                    }
                }
            }
        }
        write_others(id, declaration)?;
        Ok(super::join_all(&directories))
    }

    fn update(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        write_others(id, declaration)
    }

    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()> {
        let controller = match Hierarchies::of_this_host()?.of(CONTROLLER) {
            Some(_) => CONTROLLER,
            None => "",
        };
        observation::locate(controller, target, live)?;
        for controller in others(declaration) {
            unified::observe(controller, target, declaration, live)?;
        }
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let found = [CONTROLLER, ""]
            .into_iter()
            .find_map(|name| observation::own_cgroup(NAME, name, declaration, live));
        let own = found.unwrap_or_else(|| Finding {
            isolator: NAME,
            item: "cgroup of its own".into(),
            declared: format!("below {}", declaration.cgroups.parent_of("").display()),
            live: "not seen".into(),
            verdict: Verdict::Unknown,
            read_from: "/proc/PID/cgroup".into(),
        });
        let keys = others(declaration)
            .into_iter()
            .flat_map(|controller| unified::compare(NAME, declaration, controller, live));
        std::iter::once(own).chain(keys).collect()
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        let directories = [
            Directory::unified(id, &declaration.cgroups)?,
            Directory::of(CONTROLLER, id, &declaration.cgroups)?,
        ];
        // A failure of one does not keep the others.
        directories
            .into_iter()
            .flatten()
            .chain(nameless(id, declaration)?)
            .map(|directory| directory.remove(id, &declaration.cgroups))
            .fold(Ok(()), Result::and)
    }
}

/// The container's directories in the v1 hierarchies that no other isolator answers for: `name=systemd` and its like,
/// so that the container is below its own cgroup in every one.
fn nameless(
    id: &ContainerId,
    declaration: &Declaration,
) -> Result<impl Iterator<Item = Directory> + use<>> {
    let has_isolator = |directory: &Directory| {
        let mut all = directory.controllers().iter();
        all.any(|name| WITH_ISOLATOR.contains(&name.as_str()))
    };
    let all = Directory::all(id, &declaration.cgroups)?.into_iter();
    Ok(all.filter(move |one| one.version() == Version::V1 && !has_isolator(one)))
}

/// The keys of `linux.resources.unified` that no other isolator writes.
fn others_keys(declaration: &Declaration) -> Vec<(&str, &str)> {
    unified::keys(declaration, |controller| {
        !WITH_ISOLATOR.contains(&controller)
    })
}

/// The controllers of those keys; `cgroup` stands for the cgroup itself.
fn others(declaration: &Declaration) -> BTreeSet<&str> {
    let keys = others_keys(declaration).into_iter();
    keys.map(|(file, _)| unified::controller(file)).collect()
}

fn write_others(id: &ContainerId, declaration: &Declaration) -> Result<()> {
    let keys = others_keys(declaration);
    let Some((first, value)) = keys.first() else {
        return Ok(());
    };
    let refuse = |rule: &str| unified::refuse(first, value, rule.to_owned());
    let directory = Directory::unified(id, &declaration.cgroups)?
        .ok_or_else(|| refuse("there is no cgroup v2 on this host"))?;
    for (file, value) in &keys {
        match unified::controller(file) {
            "cgroup" => {}
            name if directory.controllers().iter().any(|known| known == name) => {
                directory.pass_down(name)?;
            }
            name => {
                let rule = format!("there is no controller {name:?} on cgroup v2 on this host");
                return Err(unified::refuse(file, value, rule));
            }
        }
    }
    unified::write_keys(&directory, keys)
}
