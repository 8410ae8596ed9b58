//! `cgroups/blkio`: a share of block devices under contention, and ceilings on bytes and operations a second.
//!
//! runtime-spec config-linux "Block IO"; the kernel's cgroup-v1/blkio-controller and cgroup-v2 "IO". The declaration
//! carries the numbers of v1: weights from 10 to 1000. v2 takes them as they are where the BFQ scheduler has its own file
//! for them, else stretched to 1 to 10000.

use super::blkio_limits::{
    CONTROLLER_V1, CONTROLLER_V2, Ceiling, Declared, KINDS, MAX_V2, NAME, WEIGHT_OF_DEVICE_V1,
    WEIGHT_V1, WEIGHT_V2, io_weight,
};
use super::hierarchy::Hierarchies;
use super::observation::{self, Item, limit, upper};
use super::unified;
use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target};

/// The isolator `cgroups/blkio`.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlkioIsolator;

/// The name that the controller has on this host.
fn controller() -> Result<&'static str> {
    let host = Hierarchies::of_this_host()?;
    Ok(match host.of(CONTROLLER_V1) {
        None if host.of(CONTROLLER_V2).is_some() => CONTROLLER_V2,
        _ => CONTROLLER_V1,
    })
}

impl Isolator for BlkioIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let declared = Declared::of(declaration);
        unified::check(declaration, CONTROLLER_V2)?;
        let directory = super::create(NAME, controller()?, id, declaration, declared.is_any())?;
        if let Some(directory) = &directory {
            declared.write(directory, declaration)?;
        }
        Ok(super::join_all(&directory))
    }

    fn update(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        let declared = Declared::of(declaration);
        unified::check(declaration, CONTROLLER_V2)?;
        match super::existing(NAME, controller()?, id, declaration, declared.is_any())? {
            Some(directory) => declared.write(&directory, declaration),
            None => Ok(()),
        }
    }

    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()> {
        let controller = controller()?;
        observation::locate_own(controller, target, live)?;
        let ceilings = KINDS.iter().map(|kind| kind.v1);
        let weights = WEIGHT_V1.into_iter().chain(WEIGHT_OF_DEVICE_V1);
        let v1: Vec<&str> = weights.chain(ceilings).collect();
        let v2 = [WEIGHT_V2[0], WEIGHT_V2[1], MAX_V2];
        observation::read_files(controller, target, &v1, &v2, live)?;
        // A kernel has one file of each pair: only where it has neither, none is the answer.
        for [one, other] in [WEIGHT_V1, WEIGHT_OF_DEVICE_V1, WEIGHT_V2] {
            let is_there = |file| {
                live.cgroup
                    .get(file)
                    .is_some_and(|text| text != observation::ABSENT)
            };
            match (is_there(one), is_there(other)) {
                (true, false) => live.cgroup.remove(other),
                (false, true) => live.cgroup.remove(one),
                _ => None,
            };
        }
        unified::observe(CONTROLLER_V2, target, declaration, live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let declared = Declared::of(declaration);
        let mut findings = Vec::new();
        let by_device = declared.weights.iter();
        let by_device = by_device.map(|(device, weight)| (Some(device.as_str()), *weight));
        let weights = declared.weight.map(|weight| (None, weight));
        for (device, weight) in weights.into_iter().chain(by_device) {
            findings.push(compare_weight(device, weight, live));
        }
        for ceiling in declared.ceilings.iter().filter(|ceiling| ceiling.rate > 0) {
            let Ceiling { kind, device, rate } = ceiling;
            let name = format!("{} a second on {device}", kind.name);
            let v1 = |content: &str| upper(*rate, keyed(content, device));
            let v2 = |content: &str| upper(*rate, in_max(content, device, kind.v2));
            let files: [(&str, observation::Judge<'_>); 2] = [(kind.v1, &v1), (MAX_V2, &v2)];
            findings.push(item(&name, rate.to_string()).compare(live, &files));
        }
        findings.extend(unified::compare(NAME, declaration, CONTROLLER_V2, live));
        findings.extend(observation::own_cgroup(
            NAME,
            CONTROLLER_V1,
            declaration,
            live,
        ));
        findings
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        super::remove(controller()?, id, declaration)
    }
}

fn item(name: &str, declared: String) -> Item<'_> {
    Item {
        isolator: NAME,
        controller: CONTROLLER_V1,
        name,
        declared,
    }
}

/// The finding for the weight on one device, or on all.
fn compare_weight(device: Option<&str>, weight: u16, live: &Live) -> Finding {
    let (key, name) = match device {
        None => ("default", "block io weight".to_owned()),
        Some(device) => (device, format!("block io weight on {device}")),
    };
    let judge = |number: u64| move |content: &str| upper(number, keyed(content, key));
    let (plain, stretched) = (judge(weight.into()), judge(io_weight(weight)));
    let v1 = match device {
        None => WEIGHT_V1,
        Some(_) => WEIGHT_OF_DEVICE_V1,
    };
    item(&name, weight.to_string()).compare(
        live,
        &[
            (v1[0], &plain),
            (v1[1], &plain),
            (WEIGHT_V2[0], &plain),
            (WEIGHT_V2[1], &stretched),
        ],
    )
}

/// The number beside a key, as in `8:0 1024`. `default` is also a number that stands alone.
fn keyed(content: &str, key: &str) -> Option<u64> {
    let alone = || {
        content
            .lines()
            .next()
            .filter(|_| key == "default")
            .and_then(limit)
    };
    let value = |line: &str| limit(line.strip_prefix(key)?.strip_prefix(' ')?);
    content.lines().find_map(value).or_else(alone)
}

/// The number in `8:0 rbps=1024 wbps=max …`.
fn in_max(content: &str, device: &str, word: &str) -> Option<u64> {
    let mut lines = content.lines();
    let line = lines.find_map(|line| line.strip_prefix(device)?.strip_prefix(' '))?;
    let mut words = line.split(' ');
    limit(words.find_map(|found| found.strip_prefix(word)?.strip_prefix('='))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_beside_their_device() {
        assert_eq!(keyed("8:0 1024\n8:16 5\n", "8:16"), Some(5));
        assert_eq!(keyed("8:0 1024\n", "8:1"), None);
        assert_eq!(keyed("500\n", "default"), Some(500));
        assert_eq!(keyed("default 500\n8:0 7\n", "default"), Some(500));
        let max = "8:10 rbps=1 wbps=2 riops=max wiops=max\n8:1 rbps=max wbps=9 riops=3 wiops=max\n";
        assert_eq!(in_max(max, "8:1", "wbps"), Some(9));
        assert_eq!(in_max(max, "8:1", "rbps"), None);
        assert_eq!(in_max(max, "8:2", "riops"), None);
    }
}
