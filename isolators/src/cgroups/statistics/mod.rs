//! What a container has used, in the words of `runc events --stats`: that is what containerd, Docker and monitoring read.
//!
//! Names, units (bytes, nanoseconds) and what is left out when it is zero are those of runc's `types.Stats`; numbers that
//! a version or a kernel does not have are zero.

mod block;
mod memory;
mod processor;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

pub use self::block::{Block, BlockEntry};
pub use self::memory::{HugePages, Memory, MemoryEntry};
pub use self::processor::{Cpuset, Processor, Throttling, Usage};

use super::directory::{self, Directory, is_gone};
use super::group::Group;
use super::memory_watch::number;
use crate::declaration::{CgroupPlacement, ContainerId};
use crate::error::{Error, Result};

/// The `data` of a `stats` event.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// Processor time.
    pub cpu: Processor,
    /// Processors and memory nodes, v1 only.
    pub cpuset: Cpuset,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Block devices.
    pub blkio: Block,
    /// Huge pages, by the size of the page.
    pub hugetlb: BTreeMap<String, HugePages>,
    /// Cache and memory bandwidth of Intel's resource director.
    pub intel_rdt: IntelRdt,
    /// Always null: interfaces are their namespace's affair.
    pub network_interfaces: Option<()>,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pids {
    /// How many there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// How many there may be; zero is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

/// Nothing: the resource director is not read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct IntelRdt {}

/// Pressure stall information of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Some of the processes were waiting for it.
    #[serde(skip_serializing_if = "PressureLine::is_none")]
    pub some: PressureLine,
    /// All of them were.
    #[serde(skip_serializing_if = "PressureLine::is_none")]
    pub full: PressureLine,
}

/// Shares of time in per cent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PressureLine {
    /// Of the last ten seconds.
    pub avg10: f64,
    /// Of the last minute.
    pub avg60: f64,
    /// Of the last five minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

impl PressureLine {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What a container has used up to now.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn statistics(id: &ContainerId, placement: &CgroupPlacement) -> Result<Statistics> {
    let of = |controller: &str| -> Result<Option<Directory>> {
        Ok(Directory::of(controller, id, placement)?.filter(Directory::exists))
    };
    let unified = Directory::unified(id, placement)?.filter(Directory::exists);
    // On a hybrid host the controllers are v1's, but the pressure is in the unified hierarchy.
    let unified = unified.as_ref().map(Directory::path);
    let pressure = |file: &str| unified.map_or(Ok(None), |directory| pressure(directory, file));
    let mut statistics = Statistics {
        cpu: processor::read(of("cpu")?, of("cpuacct")?, unified)?,
        cpuset: of("cpuset")?.map_or(Ok(Cpuset::default()), |one| processor::cpuset(&one))?,
        memory: of("memory")?.map_or(Ok(Memory::default()), |one| memory::read(&one))?,
        pids: pids(of("pids")?.as_ref(), id, placement)?,
        blkio: match of("blkio")?.or(of("io")?) {
            Some(directory) => block::read(&directory)?,
            None => Block::default(),
        },
        hugetlb: of("hugetlb")?.map_or(Ok(BTreeMap::new()), |one| memory::huge_pages(&one))?,
        ..Statistics::default()
    };
    statistics.cpu.psi = pressure("cpu.pressure")?;
    statistics.memory.psi = pressure("memory.pressure")?;
    statistics.blkio.psi = pressure("io.pressure")?;
    Ok(statistics)
}

fn pids(
    directory: Option<&Directory>,
    id: &ContainerId,
    placement: &CgroupPlacement,
) -> Result<Pids> {
    if let Some(path) = directory.map(Directory::path)
        && let Some(current) = number(path, "pids.current")?
    {
        let limit = number(path, "pids.max")?.filter(|limit| *limit != u64::MAX);
        return Ok(Pids {
            current,
            limit: limit.unwrap_or(0),
        });
    }
    // Without the controller the processes can still be counted.
    let processes = Group::of(id, placement)?.processes(false)?;
    Ok(Pids {
        current: processes.len() as u64,
        limit: 0,
    })
}

/// A file's text; `None` when there is no such file, or the kernel does not fill it.
fn text(directory: &Path, file: &str) -> Result<Option<String>> {
    match directory::read(directory, file) {
        Ok(text) => Ok(Some(text)),
        Err(Error::File { source, .. }) if is_gone(&source) => Ok(None),
        // Pressure without `psi=1` on the kernel's command line.
        Err(error) if error.is_kind(std::io::ErrorKind::Unsupported) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file of lines `key number`.
fn keyed(directory: &Path, file: &str) -> Result<BTreeMap<String, u64>> {
    let text = text(directory, file)?.unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(pair).collect())
}

fn pressure(directory: &Path, file: &str) -> Result<Option<Pressure>> {
    Ok(text(directory, file)?.map(|text| parse_pressure(&text)))
}

fn parse_pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let part = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let share = value.parse().unwrap_or(0.0);
            match key {
                "avg10" => part.avg10 = share,
                "avg60" => part.avg60 = share,
                "avg300" => part.avg300 = share,
                "total" => part.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    pressure
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_zero_is_left_out_as_runc_leaves_it_out() {
        let written = serde_json::to_value(Statistics::default()).unwrap();
        let expected = json!({
            "cpu": {},
            "cpuset": {
                "cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0,
                "memory_spread_page": 0, "memory_spread_slab": 0, "memory_pressure": 0,
                "sched_load_balance": 0, "sched_relax_domain_level": 0
            },
            "memory": {}, "pids": {}, "blkio": {}, "hugetlb": {}, "intel_rdt": {},
            "network_interfaces": null
        });
        assert_eq!(written, expected);
    }

    #[test]
    fn pressure_is_read_line_by_line() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0";
        let written = serde_json::to_value(parse_pressure(text)).unwrap();
        let some = json!({ "avg10": 1.5, "avg60": 0.25, "avg300": 0.0, "total": 42 });
        assert_eq!(written, json!({ "some": some }));
    }
}
