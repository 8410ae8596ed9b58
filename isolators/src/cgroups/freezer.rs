//! `cgroups/freezer`: a cgroup that holds all processes of a container, by which they can be stopped and killed as one.
//!
//! On v1 it is the freezer hierarchy: a Mesos agent destroys an executor by freezing and killing what is below the
//! executor's freezer cgroup, so tasks placed there die with it, whatever they do. On v2 every cgroup can be frozen and
//! killed; it needs nothing but the directory. A hybrid host gets both: the v2 one adds cgroup.kill, which no fork can
//! outrun, and entry at the clone.

use super::directory::Directory;
use super::hierarchy::Hierarchies;
use super::observation;
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
        let mut info = ContainerLaunchInfo::default();
        let v1 = Directory::of(CONTROLLER, id, &declaration.cgroups)?;
        let v2 = Directory::unified(id, &declaration.cgroups)?;
        if v1.is_none() && v2.is_none() {
            return Err(Error::Unsupported {
                isolator: NAME,
                feature: "a freezer hierarchy or cgroup v2, and neither is mounted".into(),
            });
        }
        // Beside a freezer of v1 the v2 directory is a gain but no need: a host may mount it read-only.
        let v2 = v2.filter(|directory| v1.is_none() || directory.is_writable());
        for directory in v1.iter().chain(&v2) {
            directory.create(None)?;
            let join = super::join(directory);
            info.cgroup_v1.extend(join.cgroup_v1);
            info.cgroup_v2 = info.cgroup_v2.or(join.cgroup_v2);
        }
        Ok(info)
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        let controller = match Hierarchies::of_this_host()?.of(CONTROLLER) {
            Some(_) => CONTROLLER,
            None => "",
        };
        observation::locate(controller, target, live).map(drop)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let observed = [CONTROLLER, ""]
            .into_iter()
            .find_map(|name| Some((name, live.cgroup_paths.get(name)?)));
        let parent = declaration
            .cgroups
            .parent_of(observed.map_or("", |(name, _)| name));
        let verdict = match observed {
            None => Verdict::Unknown,
            // Outside what our mounts show.
            Some((_, path)) if path.starts_with("/..") => Verdict::Unknown,
            Some((_, path)) => {
                let below = std::path::Path::new(path).strip_prefix(parent);
                match below.is_ok_and(|rest| rest.components().next().is_some()) {
                    true => Verdict::Match,
                    false => Verdict::Weaker,
                }
            }
        };
        vec![Finding {
            isolator: NAME,
            item: "cgroup of its own".into(),
            declared: format!("below {}", parent.display()),
            live: observed.map_or("not seen".into(), |(_, path)| path.clone()),
            verdict,
            read_from: "/proc/PID/cgroup".into(),
        }]
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        let directories = [
            Directory::unified(id, &declaration.cgroups)?,
            Directory::of(CONTROLLER, id, &declaration.cgroups)?,
        ];
        // A failure of one does not keep the other.
        directories
            .iter()
            .flatten()
            .map(|directory| directory.remove(id, &declaration.cgroups))
            .fold(Ok(()), Result::and)
    }
}
