//! `cgroups/net_prio`: the priority of a container's packets on each network interface.
//!
//! runtime-spec config-linux "Network"; the kernel's cgroup-v1/net_prio. v1 only. The kernel looks the names up among the
//! interfaces of whoever writes them, which are the host's.

use oci_spec::runtime::LinuxInterfacePriority;

use super::directory::Directory;
use super::observation::{self, Item};
use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};

const NAME: &str = "cgroups/net_prio";
const CONTROLLER: &str = "net_prio";
const MAP: &str = "net_prio.ifpriomap";

/// The isolator `cgroups/net_prio`.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetPrioIsolator;

fn declared(declaration: &Declaration) -> &[LinuxInterfacePriority] {
    let network = super::resources(declaration).and_then(|all| all.network().as_ref());
    let priorities = network.and_then(|network| network.priorities().as_deref());
    priorities.unwrap_or_default()
}

/// A line of the map.
fn line(priority: &LinuxInterfacePriority) -> String {
    format!("{} {}", priority.name(), priority.priority())
}

fn write(directory: &Directory, declaration: &Declaration) -> Result<()> {
    let mut all = declared(declaration).iter();
    all.try_for_each(|priority| directory.write(MAP, &line(priority)))
}

impl Isolator for NetPrioIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let is_declared = !declared(declaration).is_empty();
        let directory = super::create(NAME, CONTROLLER, id, declaration, is_declared)?;
        if let Some(directory) = &directory {
            write(directory, declaration)?;
        }
        Ok(super::join_all(&directory))
    }

    fn update(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        let is_declared = !declared(declaration).is_empty();
        match super::existing(NAME, CONTROLLER, id, declaration, is_declared)? {
            Some(directory) => write(&directory, declaration),
            None => Ok(()),
        }
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        observation::locate_own(CONTROLLER, target, live)?;
        observation::read_files(CONTROLLER, target, &[MAP], &[], live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let compare = |priority: &LinuxInterfacePriority| {
            let declared = line(priority);
            let item = Item {
                isolator: NAME,
                controller: CONTROLLER,
                name: &format!("priority on {}", priority.name()),
                declared: priority.priority().to_string(),
            };
            let judge = |content: &str| match content.lines().any(|live| live == declared) {
                true => Verdict::Match,
                false => Verdict::Weaker,
            };
            item.compare(live, &[(MAP, &judge)])
        };
        let mut findings: Vec<Finding> = declared(declaration).iter().map(compare).collect();
        findings.extend(observation::own_cgroup(NAME, CONTROLLER, declaration, live));
        findings
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        super::remove(CONTROLLER, id, declaration)
    }
}
