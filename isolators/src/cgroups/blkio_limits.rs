//! The numbers of `cgroups/blkio`, and how they are written: `blkio` says what they mean.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::directory::Directory;
use super::hierarchy::Version;
use super::unified;
use crate::declaration::Declaration;
use crate::error::{Error, Result};

pub(super) const NAME: &str = "cgroups/blkio";

/// The controller's names in v1 and v2.
pub(super) const CONTROLLER_V1: &str = "blkio";
pub(super) const CONTROLLER_V2: &str = "io";

pub(super) const WEIGHT_V1: [&str; 2] = ["blkio.weight", "blkio.bfq.weight"];
pub(super) const WEIGHT_OF_DEVICE_V1: [&str; 2] =
    ["blkio.weight_device", "blkio.bfq.weight_device"];
pub(super) const WEIGHT_V2: [&str; 2] = ["io.bfq.weight", "io.weight"];
const LEAF_WEIGHT: &str = "blkio.leaf_weight";
pub(super) const MAX_V2: &str = "io.max";

/// One kind of ceiling: what it is called here, in v1 and in v2's `io.max`.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) v1: &'static str,
    pub(super) v2: &'static str,
    pub(super) of: fn(&LinuxBlockIo) -> &Option<Vec<LinuxThrottleDevice>>,
}

pub(super) const KINDS: [Kind; 4] = [
    Kind {
        name: "read bytes",
        v1: "blkio.throttle.read_bps_device",
        v2: "rbps",
        of: LinuxBlockIo::throttle_read_bps_device,
    },
    Kind {
        name: "written bytes",
        v1: "blkio.throttle.write_bps_device",
        v2: "wbps",
        of: LinuxBlockIo::throttle_write_bps_device,
    },
    Kind {
        name: "reads",
        v1: "blkio.throttle.read_iops_device",
        v2: "riops",
        of: LinuxBlockIo::throttle_read_iops_device,
    },
    Kind {
        name: "writes",
        v1: "blkio.throttle.write_iops_device",
        v2: "wiops",
        of: LinuxBlockIo::throttle_write_iops_device,
    },
];

/// One ceiling.
pub(super) struct Ceiling {
    pub(super) kind: &'static Kind,
    pub(super) device: String,
    /// A second; zero takes an earlier ceiling away.
    pub(super) rate: u64,
}

/// The declared numbers. Zero is "not set" for weights.
#[derive(Default)]
pub(super) struct Declared {
    pub(super) weight: Option<u16>,
    pub(super) leaf_weight: Option<u16>,
    /// By device.
    pub(super) weights: Vec<(String, u16)>,
    pub(super) leaf_weights: Vec<(String, u16)>,
    pub(super) ceilings: Vec<Ceiling>,
}

impl Declared {
    pub(super) fn of(declaration: &Declaration) -> Self {
        let resources = super::resources(declaration);
        let Some(block) = resources.and_then(|all| all.block_io().as_ref()) else {
            return Self::default();
        };
        let set = |weight: Option<u16>| weight.filter(|weight| *weight != 0);
        let mut declared = Self {
            weight: set(block.weight()),
            leaf_weight: set(block.leaf_weight()),
            ..Self::default()
        };
        for of_device in block.weight_device().iter().flatten() {
            let device = format!("{}:{}", of_device.major(), of_device.minor());
            let pair = |weight| Some((device.clone(), set(weight)?));
            declared.weights.extend(pair(of_device.weight()));
            declared.leaf_weights.extend(pair(of_device.leaf_weight()));
        }
        for kind in &KINDS {
            let ceiling = |throttle: &LinuxThrottleDevice| Ceiling {
                kind,
                device: format!("{}:{}", throttle.major(), throttle.minor()),
                rate: throttle.rate(),
            };
            let all = (kind.of)(block).iter().flatten();
            declared.ceilings.extend(all.map(ceiling));
        }
        declared
    }

    pub(super) fn is_any(&self) -> bool {
        let weights = self.weight.is_some() || !self.weights.is_empty();
        let leaves = self.leaf_weight.is_some() || !self.leaf_weights.is_empty();
        weights || leaves || !self.ceilings.is_empty()
    }

    fn write_v1(&self, directory: &Directory) -> Result<()> {
        let has_weights = self.weight.is_some() || !self.weights.is_empty();
        let mut files = WEIGHT_V1.into_iter().filter(|_| has_weights);
        match files.find(|file| directory.has(file)) {
            Some(file) => {
                if let Some(weight) = self.weight {
                    directory.write(file, &weight.to_string())?;
                }
                let by_device = format!("{file}_device");
                for (device, weight) in &self.weights {
                    directory.write(&by_device, &format!("{device} {weight}"))?;
                }
            }
            None if has_weights => return Err(no_weights("blockIO.weight")),
            None => {}
        }
        let has_leaves = self.leaf_weight.is_some() || !self.leaf_weights.is_empty();
        if has_leaves && !directory.has(LEAF_WEIGHT) {
            return Err(no_leaves());
        }
        if let Some(weight) = self.leaf_weight {
            directory.write(LEAF_WEIGHT, &weight.to_string())?;
        }
        for (device, weight) in &self.leaf_weights {
            directory.write("blkio.leaf_weight_device", &format!("{device} {weight}"))?;
        }
        for ceiling in &self.ceilings {
            let line = format!("{} {}", ceiling.device, ceiling.rate);
            directory.write(ceiling.kind.v1, &line)?;
        }
        Ok(())
    }

    fn write_v2(&self, directory: &Directory) -> Result<()> {
        if self.leaf_weight.is_some() || !self.leaf_weights.is_empty() {
            return Err(no_leaves());
        }
        let has_weights = self.weight.is_some() || !self.weights.is_empty();
        let mut files = WEIGHT_V2.into_iter().filter(|_| has_weights);
        match files.find(|file| directory.has(file)) {
            Some(file) => {
                if let Some(weight) = self.weight {
                    directory.write(file, &weight_in(file, weight).to_string())?;
                }
                for (device, weight) in &self.weights {
                    directory.write(file, &format!("{device} {}", weight_in(file, *weight)))?;
                }
            }
            None if has_weights => return Err(no_weights("blockIO.weight")),
            None => {}
        }
        for ceiling in &self.ceilings {
            let rate = match ceiling.rate {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let line = format!("{} {}={rate}", ceiling.device, ceiling.kind.v2);
            directory.write(MAX_V2, &line)?;
        }
        Ok(())
    }

    pub(super) fn write(&self, directory: &Directory, declaration: &Declaration) -> Result<()> {
        match directory.version() {
            Version::V1 => self.write_v1(directory),
            Version::V2 => {
                self.write_v2(directory)?;
                unified::write(directory, CONTROLLER_V2, declaration)
            }
        }
    }
}

/// A weight in the numbers of a v2 file.
fn weight_in(file: &str, weight: u16) -> u64 {
    match file {
        "io.weight" => io_weight(weight),
        _ => weight.into(),
    }
}

/// `io.weight` (1 to 10000) for a weight of v1 (10 to 1000): a straight line, on which OCI runtimes agree.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight).saturating_sub(10) * 9999 / 990
}

fn no_weights(field: &str) -> Error {
    Error::Unsupported {
        isolator: NAME,
        feature: format!(
            "a kernel with weights for block devices (BFQ or io.cost) for linux.resources.{field}"
        ),
    }
}

fn no_leaves() -> Error {
    Error::Unsupported {
        isolator: NAME,
        feature: "cgroup v1 and a kernel before 5.0 for linux.resources.blockIO.leafWeight".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_weights_meet() {
        for (weight, v2) in [(0, 1), (10, 1), (500, 4950), (1000, 10_000)] {
            assert_eq!(io_weight(weight), v2);
        }
        assert_eq!(weight_in("io.bfq.weight", 500), 500);
    }
}
