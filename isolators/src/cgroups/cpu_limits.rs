//! The numbers of `cgroups/cpu`, and how they are written: `cpu` says what they mean.

use super::directory::Directory;
use super::hierarchy::Version;
use super::observation::limit;
use super::unified;
use crate::declaration::Declaration;
use crate::error::{Error, Result};

pub(super) const NAME: &str = "cgroups/cpu";
pub(super) const CONTROLLER: &str = "cpu";

/// v1 counts the time used in a controller of its own, mostly in the same hierarchy.
pub(super) const ACCOUNTING: &str = "cpuacct";

/// The kernel's period where none is declared, in microseconds.
pub(super) const DEFAULT_PERIOD: u64 = 100_000;

pub(super) const MAX_V2: &str = "cpu.max";
pub(super) const BURST_V1: &str = "cpu.cfs_burst_us";
pub(super) const BURST_V2: &str = "cpu.max.burst";

/// `cpu.shares` that the kernel takes; it moves others to the nearer end.
pub(super) const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// The declared numbers, without those that mean "not set".
#[derive(Debug, Default)]
pub(super) struct Declared {
    pub(super) shares: Option<u64>,
    pub(super) weight: Option<u64>,
    /// Microseconds in each period; `None` within is no ceiling.
    pub(super) quota: Option<Option<u64>>,
    pub(super) period: Option<u64>,
    pub(super) burst: Option<u64>,
    pub(super) idle: Option<i64>,
    pub(super) realtime_runtime: Option<i64>,
    pub(super) realtime_period: Option<u64>,
}

impl Declared {
    pub(super) fn of(declaration: &Declaration) -> Self {
        let weight = unified::of(declaration, CONTROLLER)
            .into_iter()
            .find_map(|(file, value)| (file == "cpu.weight").then(|| value.parse().ok())?);
        let Some(cpu) = super::resources(declaration).and_then(|all| all.cpu().as_ref()) else {
            return Self {
                weight,
                ..Self::default()
            };
        };
        Self {
            shares: cpu.shares().filter(|shares| *shares != 0),
            weight,
            // Zero is "not set", negative is "no ceiling".
            quota: cpu
                .quota()
                .filter(|quota| *quota != 0)
                .map(|quota| u64::try_from(quota).ok()),
            period: cpu.period().filter(|period| *period != 0),
            burst: cpu.burst(),
            idle: cpu.idle(),
            realtime_runtime: cpu.realtime_runtime().filter(|runtime| *runtime != 0),
            realtime_period: cpu.realtime_period().filter(|period| *period != 0),
        }
    }

    pub(super) fn is_any(&self) -> bool {
        let quota = self.quota.is_some() || self.period.is_some() || self.burst.is_some();
        let realtime = self.realtime_runtime.is_some() || self.realtime_period.is_some();
        quota || realtime || self.expected_weight().is_some() || self.idle.is_some()
    }

    /// An idle cgroup has the least weight and takes no other.
    pub(super) fn takes_weight(&self) -> bool {
        self.idle.is_none_or(|idle| idle == 0)
    }

    /// File and value for each declared number.
    fn values_v1(&self) -> Vec<(&'static str, String)> {
        let mut values = Vec::new();
        let mut add = |file, value: Option<String>| values.extend(value.map(|value| (file, value)));
        let shares = self.shares.filter(|_| self.takes_weight());
        add("cpu.shares", shares.map(|n| n.to_string()));
        add("cpu.cfs_period_us", self.period.map(|n| n.to_string()));
        let quota = |quota: Option<u64>| quota.map_or_else(|| "-1".to_owned(), |n| n.to_string());
        // Before the quota: one that is below the present burst is refused.
        add(BURST_V1, self.burst.map(|n| n.to_string()));
        add("cpu.cfs_quota_us", self.quota.map(quota));
        add("cpu.idle", self.idle.map(|n| n.to_string()));
        let (period, runtime) = (self.realtime_period, self.realtime_runtime);
        add("cpu.rt_period_us", period.map(|n| n.to_string()));
        add("cpu.rt_runtime_us", runtime.map(|n| n.to_string()));
        values
    }

    /// The same for v2, where `present` is what `cpu.max` has: quota and period share it, and each can be declared
    /// without the other.
    fn values_v2(&self, present: &str) -> Result<Vec<(&'static str, String)>> {
        if self.realtime_period.is_some() || self.realtime_runtime.is_some() {
            return Err(Error::Unsupported {
                isolator: NAME,
                feature: "cgroup v1 for linux.resources.cpu.realtimeRuntime and realtimePeriod"
                    .into(),
            });
        }
        let mut values = Vec::new();
        if let Some(weight) = self.expected_weight().filter(|_| self.takes_weight()) {
            values.push(("cpu.weight", weight.to_string()));
        }
        if let Some(burst) = self.burst {
            values.push((BURST_V2, burst.to_string()));
        }
        if self.quota.is_some() || self.period.is_some() {
            let (quota, period) = present.split_once(' ').unwrap_or(("max", ""));
            let quota = match self.quota {
                Some(Some(quota)) => quota.to_string(),
                Some(None) => "max".to_owned(),
                None => quota.to_owned(),
            };
            let period = self
                .period
                .or_else(|| limit(period))
                .unwrap_or(DEFAULT_PERIOD);
            values.push((MAX_V2, format!("{quota} {period}")));
        }
        if let Some(idle) = self.idle {
            values.push(("cpu.idle", idle.to_string()));
        }
        Ok(values)
    }

    pub(super) fn write(&self, directory: &Directory) -> Result<()> {
        let (mut values, burst) = match directory.version() {
            Version::V1 => (self.values_v1(), BURST_V1),
            Version::V2 => {
                let is_half = self.quota.is_some() != self.period.is_some();
                let present = match is_half {
                    true => directory.read(MAX_V2)?,
                    false => String::new(),
                };
                (self.values_v2(&present)?, BURST_V2)
            }
        };
        // Before 5.14 there is no burst: none is all there can be.
        if self.burst == Some(0) && !directory.has(burst) {
            values.retain(|(file, _)| *file != burst);
        }
        super::write_settled(directory, values)
    }

    pub(super) fn expected_weight(&self) -> Option<u64> {
        self.weight.or_else(|| self.shares.map(weight_of_shares))
    }
}

/// `cpu.weight` (1 to 10000) for `cpu.shares` (2 to 262144): both ends and the two defaults, 1024 and 100, meet, with a
/// smooth curve between. This is the conversion that OCI runtimes agreed on in 2025; the older linear one gave a
/// container with default shares 39, less than half of what every other cgroup of the host has.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_and_the_defaults_of_shares_and_weight_meet() {
        for (shares, weight) in [
            (0, 1),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        let all: Vec<u64> = (1..300_000).step_by(97).map(weight_of_shares).collect();
        assert!(all.is_sorted());
    }

    #[test]
    fn zero_is_not_set_and_a_negative_quota_is_no_ceiling() {
        let declared = Declared {
            quota: Some(None),
            ..Declared::default()
        };
        assert_eq!(
            declared.values_v1(),
            [("cpu.cfs_quota_us", "-1".to_owned())]
        );
        let v2 = declared.values_v2("").expect("supported");
        assert_eq!(v2, [("cpu.max", "max 100000".to_owned())]);
        assert!(Declared::default().values_v1().is_empty());
    }

    #[test]
    fn a_declared_weight_goes_before_the_shares() {
        let declared = Declared {
            shares: Some(512),
            weight: Some(50),
            quota: Some(Some(25_000)),
            period: Some(50_000),
            ..Declared::default()
        };
        let v2 = declared.values_v2("").expect("supported");
        assert_eq!(
            v2,
            [
                ("cpu.weight", "50".to_owned()),
                ("cpu.max", "25000 50000".to_owned())
            ]
        );
    }
}
