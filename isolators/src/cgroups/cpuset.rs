//! `cgroups/cpuset`: on which processors a container may run, and from which nodes it may take memory.
//!
//! runtime-spec config-linux "CPU" (`cpus`, `mems`); the kernel's cgroup-v1/cpusets and cgroup-v2 "Cpuset". A new cpuset of
//! v1 is empty and takes no process: it first gets what its parent has.

use std::collections::BTreeSet;
use std::path::Path;

use super::directory::{self, Directory};
use super::hierarchy::Version;
use super::observation::{self, Item};
use super::unified;
use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};

const NAME: &str = "cgroups/cpuset";
const CONTROLLER: &str = "cpuset";
const CPUS: &str = "cpuset.cpus";
const MEMS: &str = "cpuset.mems";

/// The isolator `cgroups/cpuset`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpusetIsolator;

/// File and declared list; an empty one is not set.
fn declared(declaration: &Declaration) -> Vec<(&'static str, &str)> {
    let Some(cpu) = super::resources(declaration).and_then(|all| all.cpu().as_ref()) else {
        return Vec::new();
    };
    [(CPUS, cpu.cpus()), (MEMS, cpu.mems())]
        .into_iter()
        .filter_map(|(file, list)| Some((file, list.as_deref().filter(|list| !list.is_empty())?)))
        .collect()
}

fn write(directory: &Directory, declaration: &Declaration) -> Result<()> {
    for (file, list) in declared(declaration) {
        directory.write(file, list)?;
    }
    unified::write(directory, CONTROLLER, declaration)
}

/// Gives a cpuset of v1 that is empty what its parent has; one that another container is filling now gets the same.
fn inherit(cpuset: &Path, parent: &Path) -> Result<()> {
    for file in [CPUS, MEMS] {
        if directory::read_line(cpuset, file)?.is_empty() {
            directory::write(cpuset, file, &directory::read_line(parent, file)?)?;
        }
    }
    Ok(())
}

impl Isolator for CpusetIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let is_declared = !declared(declaration).is_empty();
        let directory = super::create(NAME, CONTROLLER, id, declaration, is_declared)?;
        if let Some(directory) = &directory {
            let lineage = directory.lineage();
            let is_v1 = directory.version() == Version::V1;
            let mut empty: Vec<&[&Path]> = lineage.windows(2).filter(|_| is_v1).collect();
            let own = empty.pop();
            for pair in empty {
                inherit(pair[1], pair[0])?;
            }
            // Before it takes its parent's: beside a cpuset that is exclusive that would be refused.
            write(directory, declaration)?;
            if let Some(pair) = own {
                inherit(pair[1], pair[0])?;
            }
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

    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()> {
        observation::locate_own(CONTROLLER, target, live)?;
        let v2 = ["cpuset.cpus.effective", "cpuset.mems.effective"];
        observation::read_files(CONTROLLER, target, &[CPUS, MEMS], &v2, live)?;
        unified::observe(CONTROLLER, target, declaration, live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let compare = |(file, list): (&'static str, &str)| {
            let (name, effective) = match file {
                CPUS => ("cpus", "cpuset.cpus.effective"),
                _ => ("memory nodes", "cpuset.mems.effective"),
            };
            let item = Item {
                isolator: NAME,
                controller: CONTROLLER,
                name,
                declared: list.to_owned(),
            };
            let judge = |content: &str| judge(list, content);
            item.compare(live, &[(file, &judge), (effective, &judge)])
        };
        let mut findings: Vec<Finding> = declared(declaration).into_iter().map(compare).collect();
        findings.extend(unified::compare(NAME, declaration, CONTROLLER, live));
        findings.extend(observation::own_cgroup(NAME, CONTROLLER, declaration, live));
        findings
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        super::remove(CONTROLLER, id, declaration)
    }
}

/// How a live list of numbers compares with the declared one.
fn judge(declared: &str, live: &str) -> Verdict {
    match (numbers(declared), numbers(live)) {
        (Some(declared), Some(live)) if declared == live => Verdict::Match,
        (Some(declared), Some(live)) if live.is_subset(&declared) => Verdict::Stronger,
        (Some(_), Some(_)) => Verdict::Weaker,
        _ => Verdict::Unknown,
    }
}

/// The numbers of a list such as `0-2,7`; `None` for one in another form.
pub(super) fn numbers(list: &str) -> Option<BTreeSet<u16>> {
    let mut all = BTreeSet::new();
    for part in list.trim().split(',').map(str::trim) {
        match part.split_once('-') {
            Some((first, last)) => {
                let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
                all.extend(first..=last);
            }
            None => {
                all.insert(part.parse().ok()?);
            }
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_compared_by_their_numbers() {
        assert_eq!(judge("0,1,2", "0-2\n"), Verdict::Match);
        assert_eq!(judge("0-2", "1"), Verdict::Stronger);
        assert_eq!(judge("0", "0-1"), Verdict::Weaker);
        assert_eq!(judge("0-3:2/4", "0"), Verdict::Unknown);
        assert_eq!(judge("0", ""), Verdict::Unknown);
    }
}
