//! `cgroups/pids`: how many tasks (processes and threads) a container may have.
//!
//! runtime-spec config-linux "PIDs"; the kernel's cgroup-v1/pids and cgroup-v2 "PID". The file has one name in both.

use super::directory::Directory;
use super::observation::{self, Item, limit, upper};
use super::unified;
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

/// The declared limit, `Some(None)` for no limit: that is what negative numbers are. Zero would leave room for nothing;
/// every runtime makes it one.
fn declared(declaration: &Declaration) -> Option<Option<u64>> {
    let pids = super::resources(declaration)?.pids().as_ref()?;
    Some(u64::try_from(pids.limit()).ok().map(|limit| limit.max(1)))
}

fn write(directory: &Directory, declaration: &Declaration) -> Result<()> {
    if let Some(limit) = declared(declaration) {
        let text = limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
        directory.write(MAX, &text)?;
    }
    unified::write(directory, CONTROLLER, declaration)
}

impl Isolator for PidsIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let is_declared = declared(declaration).is_some_and(|limit| limit.is_some());
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

    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()> {
        observation::read_files(CONTROLLER, target, &[MAX], &[MAX], live)?;
        unified::observe(CONTROLLER, target, declaration, live)
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
        let limit = declared(declaration).flatten();
        let mut findings: Vec<Finding> = limit.map(compare).into_iter().collect();
        findings.extend(unified::compare(NAME, declaration, CONTROLLER, live));
        findings
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        super::remove(CONTROLLER, id, declaration)
    }
}
