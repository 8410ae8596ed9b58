//! `cgroups/pids`: how many tasks (processes and threads) a container may have.
//!
//! runtime-spec config-linux "PIDs"; the kernel's cgroup-v1/pids and cgroup-v2 "PID". The file has one name in both.

use super::observation::{self, Item, limit, upper};
use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target};

const NAME: &str = "cgroups/pids";
const CONTROLLER: &str = "pids";
const MAX: &str = "pids.max";

/// The isolator `cgroups/pids`.
#[derive(Debug, Clone, Copy, Default)]
pub struct PidsIsolator;

/// The declared limit; zero and negative numbers are none.
fn declared(declaration: &Declaration) -> Option<u64> {
    let pids = super::resources(declaration)?.pids().as_ref()?;
    u64::try_from(pids.limit()).ok().filter(|limit| *limit > 0)
}

impl Isolator for PidsIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let directory = super::create(NAME, CONTROLLER, id, declaration)?;
        if let Some(limit) = declared(declaration) {
            directory.write(MAX, &limit.to_string())?;
        }
        super::write_unified(&directory, CONTROLLER, declaration)?;
        Ok(super::join(&directory))
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        observation::read_files(CONTROLLER, target, &[MAX], &[MAX], live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let compare = |declared: u64| {
            let item = Item {
                isolator: NAME,
                controller: CONTROLLER,
                name: "pids limit",
                declared: declared.to_string(),
            };
            item.compare(live, &[(MAX, &|content| upper(declared, limit(content)))])
        };
        declared(declaration).map(compare).into_iter().collect()
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        super::remove(CONTROLLER, id, declaration)
    }
}
