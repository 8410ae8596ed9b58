//! `cgroups/rdma`: how many handles and objects of each RDMA device a container may have.
//!
//! runtime-spec config-linux "RDMA"; the kernel's cgroup-v1/rdma and cgroup-v2 "RDMA". The file has one name in both.

use oci_spec::runtime::LinuxRdma;

use super::directory::Directory;
use super::observation::{self, Item, limit, upper};
use super::unified;
use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};

const NAME: &str = "cgroups/rdma";
const CONTROLLER: &str = "rdma";
const MAX: &str = "rdma.max";

/// The isolator `cgroups/rdma`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RdmaIsolator;

/// The limits of each declared device, in the words of the kernel.
fn declared(declaration: &Declaration) -> Vec<(&str, Vec<(&'static str, u32)>)> {
    let all = super::resources(declaration).and_then(|all| all.rdma().as_ref());
    let words = |limits: &LinuxRdma| {
        let of = |name, number: Option<u32>| number.map(|number| (name, number));
        [
            of("hca_handle", limits.hca_handles()),
            of("hca_object", limits.hca_objects()),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
    };
    let mut devices: Vec<_> = all
        .into_iter()
        .flatten()
        .map(|(device, limits)| (device.as_str(), words(limits)))
        .filter(|(_, limits)| !limits.is_empty())
        .collect();
    devices.sort_unstable();
    devices
}

fn write(directory: &Directory, declaration: &Declaration) -> Result<()> {
    for (device, limits) in declared(declaration) {
        let mut line = device.to_owned();
        for (name, number) in limits {
            line.push_str(&format!(" {name}={number}"));
        }
        directory.write(MAX, &line)?;
    }
    unified::write(directory, CONTROLLER, declaration)
}

impl Isolator for RdmaIsolator {
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

    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()> {
        observation::locate_own(CONTROLLER, target, live)?;
        observation::read_files(CONTROLLER, target, &[MAX], &[MAX], live)?;
        unified::observe(CONTROLLER, target, declaration, live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (device, limits) in declared(declaration) {
            for (name, number) in limits {
                let item = Item {
                    isolator: NAME,
                    controller: CONTROLLER,
                    name: &format!("{name} of {device}"),
                    declared: number.to_string(),
                };
                let judge = |content: &str| judge(content, device, name, number.into());
                findings.push(item.compare(live, &[(MAX, &judge)]));
            }
        }
        findings.extend(unified::compare(NAME, declaration, CONTROLLER, live));
        findings.extend(observation::own_cgroup(NAME, CONTROLLER, declaration, live));
        findings
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        super::remove(CONTROLLER, id, declaration)
    }
}

/// Finds `DEVICE … NAME=NUMBER …` in the file.
fn judge(content: &str, device: &str, name: &str, number: u64) -> Verdict {
    let line = content
        .lines()
        .find_map(|line| line.strip_prefix(device)?.strip_prefix(' '));
    let live = line.and_then(|line| {
        let mut words = line.split(' ');
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    });
    upper(number, live.and_then(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_whole_name() {
        let content = "mlx4_01 hca_handle=1 hca_object=1\nmlx4_0 hca_handle=2 hca_object=max\n";
        assert_eq!(judge(content, "mlx4_0", "hca_handle", 2), Verdict::Match);
        assert_eq!(judge(content, "mlx4_0", "hca_handle", 3), Verdict::Stronger);
        assert_eq!(judge(content, "mlx4_0", "hca_object", 3), Verdict::Weaker);
        assert_eq!(judge(content, "mlx5_0", "hca_object", 3), Verdict::Weaker);
    }
}
