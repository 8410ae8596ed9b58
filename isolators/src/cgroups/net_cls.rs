//! `cgroups/net_cls`: the class that tc(8) and the packet filter find a container's packets by.
//!
//! runtime-spec config-linux "Network"; the kernel's cgroup-v1/net_cls. v1 only: on v2 packets are matched by cgroup path.

use super::directory::Directory;
use super::observation::{self, Item, limit};
use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};

const NAME: &str = "cgroups/net_cls";
const CONTROLLER: &str = "net_cls";
const CLASS: &str = "net_cls.classid";

/// The isolator `cgroups/net_cls`.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetClsIsolator;

/// The declared class; zero is "not set".
fn declared(declaration: &Declaration) -> Option<u32> {
    let network = super::resources(declaration)?.network().as_ref()?;
    network.class_id().filter(|class| *class != 0)
}

fn write(directory: &Directory, declaration: &Declaration) -> Result<()> {
    match declared(declaration) {
        Some(class) => directory.write(CLASS, &class.to_string()),
        None => Ok(()),
    }
}

impl Isolator for NetClsIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let is_declared = declared(declaration).is_some();
        let directory = super::create(NAME, CONTROLLER, id, declaration, is_declared)?;
        if let Some(directory) = &directory {
            write(directory, declaration)?;
        }
        Ok(super::join_all(&directory))
    }

    fn update(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        let is_declared = declared(declaration).is_some();
        match super::existing(NAME, CONTROLLER, id, declaration, is_declared)? {
            Some(directory) => write(&directory, declaration),
            None => Ok(()),
        }
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        observation::locate_own(CONTROLLER, target, live)?;
        observation::read_files(CONTROLLER, target, &[CLASS], &[], live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let compare = |class: u32| {
            let item = Item {
                isolator: NAME,
                controller: CONTROLLER,
                name: "network class",
                declared: class.to_string(),
            };
            // Whatever is filtered by the class is not filtered by another.
            let judge = |content: &str| match limit(content) == Some(u64::from(class)) {
                true => Verdict::Match,
                false => Verdict::Weaker,
            };
            item.compare(live, &[(CLASS, &judge)])
        };
        let mut findings: Vec<Finding> = declared(declaration).map(compare).into_iter().collect();
        findings.extend(observation::own_cgroup(NAME, CONTROLLER, declaration, live));
        findings
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        super::remove(CONTROLLER, id, declaration)
    }
}
