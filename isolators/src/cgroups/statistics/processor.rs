//! Processor time: cgroup-v1/cpuacct and cgroup-v2 "CPU" (`cpu.stat`); sched-bwc for throttling.

use std::path::Path;

use serde::Serialize;

use super::{Pressure, is_default, is_zero, keyed, text};
use crate::cgroups::cpuset::numbers;
use crate::cgroups::directory::Directory;
use crate::cgroups::hierarchy::Version;
use crate::cgroups::memory_watch::number;
use crate::error::Result;

/// `cpuacct.stat` counts in ticks, of which every Linux tells user space a hundred a second.
const NANOSECONDS_OF_A_TICK: u64 = 10_000_000;

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Processor {
    /// Time used.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: Usage,
    /// Time denied by the quota.
    #[serde(skip_serializing_if = "is_default")]
    pub throttling: Throttling,
    /// Pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Time used, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// In all.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
    /// On each processor, v1 only, as the next two.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// In the kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// Outside it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// Outside it.
    pub user: u64,
}

/// What the quota did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Throttling {
    /// Periods that passed.
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    /// Those in which the quota ran out.
    #[serde(rename = "throttledPeriods", skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    /// Nanoseconds spent waiting.
    #[serde(rename = "throttledTime", skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

/// The settings of a v1 cpuset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are the files `cpuset.…` of cgroup-v1/cpusets"
)]
pub struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// Processor time: v1's two controllers, or the unified directory, whose `cpu.stat` needs no controller.
pub(super) fn read(
    cpu: Option<Directory>,
    accounting: Option<Directory>,
    unified: Option<&Path>,
) -> Result<Processor> {
    let mut processor = Processor::default();
    match &accounting {
        Some(accounting) => processor.usage = usage_v1(accounting.path())?,
        None => {
            if let Some(unified) = unified {
                let stat = keyed(unified, "cpu.stat")?;
                let nanoseconds = |key: &str| stat.get(key).map_or(0, |n| n.saturating_mul(1000));
                processor.usage.total = nanoseconds("usage_usec");
                processor.usage.kernel = nanoseconds("system_usec");
                processor.usage.user = nanoseconds("user_usec");
            }
        }
    }
    if let Some(cpu) = cpu {
        let stat = keyed(cpu.path(), "cpu.stat")?;
        let of = |key: &str| stat.get(key).copied().unwrap_or(0);
        processor.throttling = Throttling {
            periods: of("nr_periods"),
            throttled_periods: of("nr_throttled"),
            throttled_time: match cpu.version() {
                Version::V1 => of("throttled_time"),
                Version::V2 => of("throttled_usec").saturating_mul(1000),
            },
        };
    }
    Ok(processor)
}

fn usage_v1(directory: &Path) -> Result<Usage> {
    let stat = keyed(directory, "cpuacct.stat")?;
    let ticks = |key: &str| stat.get(key).copied().unwrap_or(0);
    let percpu = text(directory, "cpuacct.usage_percpu")?.unwrap_or_default();
    let (percpu_user, percpu_kernel) =
        text(directory, "cpuacct.usage_all")?.map_or_else(Default::default, |text| by_mode(&text));
    Ok(Usage {
        total: number(directory, "cpuacct.usage")?.unwrap_or(0),
        percpu: percpu
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect(),
        percpu_kernel,
        percpu_user,
        kernel: ticks("system").saturating_mul(NANOSECONDS_OF_A_TICK),
        user: ticks("user").saturating_mul(NANOSECONDS_OF_A_TICK),
    })
}

/// User and kernel time of each processor, from lines `processor user system` below a head.
fn by_mode(text: &str) -> (Vec<u64>, Vec<u64>) {
    let times = |line: &str| -> Option<(u64, u64)> {
        let mut words = line.split_whitespace().skip(1);
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    text.lines().skip(1).filter_map(times).unzip()
}

pub(super) fn cpuset(directory: &Directory) -> Result<Cpuset> {
    if directory.version() == Version::V2 {
        return Ok(Cpuset::default());
    }
    let path = directory.path();
    let of = |name: &str| Ok(number(path, &format!("cpuset.{name}"))?.unwrap_or(0));
    let list = |name: &str| -> Result<Vec<u16>> {
        let list = text(path, name)?.and_then(|list| numbers(&list));
        Ok(list.unwrap_or_default().into_iter().collect())
    };
    let level = text(path, "cpuset.sched_relax_domain_level")?;
    Ok(Cpuset {
        cpus: list("cpuset.cpus")?,
        cpu_exclusive: of("cpu_exclusive")?,
        mems: list("cpuset.mems")?,
        mem_hardwall: of("mem_hardwall")?,
        mem_exclusive: of("mem_exclusive")?,
        memory_migrate: of("memory_migrate")?,
        memory_spread_page: of("memory_spread_page")?,
        memory_spread_slab: of("memory_spread_slab")?,
        memory_pressure: of("memory_pressure")?,
        sched_load_balance: of("sched_load_balance")?,
        sched_relax_domain_level: level.and_then(|text| text.parse().ok()).unwrap_or(0),
    })
}
