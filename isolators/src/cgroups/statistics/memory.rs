//! Memory and huge pages: cgroup-v1/memory, cgroup-v1/hugetlb and cgroup-v2 "Memory", "HugeTLB".

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::{Pressure, is_default, is_zero, keyed};
use crate::cgroups::directory::Directory;
use crate::cgroups::hierarchy::Version;
use crate::cgroups::hugetlb::page_sizes;
use crate::cgroups::memory_watch::number;
use crate::error::Result;

/// Memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Bytes of files.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    /// Memory.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: MemoryEntry,
    /// Memory and swap together.
    #[serde(skip_serializing_if = "is_default")]
    pub swap: MemoryEntry,
    /// The kernel's part, v1 only, as the next.
    #[serde(skip_serializing_if = "is_default")]
    pub kernel: MemoryEntry,
    /// The part of TCP buffers.
    #[serde(rename = "kernelTCP", skip_serializing_if = "is_default")]
    pub kernel_tcp: MemoryEntry,
    /// All of `memory.stat`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One kind of memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEntry {
    /// The limit; the greatest number, or on v1 one near it, is none.
    pub limit: u64,
    /// In use.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// In use at most.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// In use.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// In use at most, v1 only.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

pub(super) fn read(directory: &Directory) -> Result<Memory> {
    let path = directory.path();
    let raw = keyed(path, "memory.stat")?;
    let of = |key: &str| raw.get(key).copied().unwrap_or(0);
    match directory.version() {
        Version::V1 => Ok(Memory {
            cache: of("cache"),
            usage: entry_v1(path, "memory")?,
            swap: entry_v1(path, "memory.memsw")?,
            kernel: entry_v1(path, "memory.kmem")?,
            kernel_tcp: entry_v1(path, "memory.kmem.tcp")?,
            raw,
            psi: None,
        }),
        Version::V2 => {
            let usage = entry_v2(path, "memory")?;
            let swap = entry_v2(path, "memory.swap")?;
            Ok(Memory {
                cache: of("file"),
                usage,
                // In the words of v1: both together, of which no peak is known.
                swap: MemoryEntry {
                    limit: swap.limit.saturating_add(usage.limit),
                    usage: swap.usage.saturating_add(usage.usage),
                    max: 0,
                    failcnt: 0,
                },
                raw,
                ..Memory::default()
            })
        }
    }
}

fn entry_v1(path: &Path, name: &str) -> Result<MemoryEntry> {
    let of = |what: &str| Ok(number(path, &format!("{name}.{what}"))?.unwrap_or(0));
    Ok(MemoryEntry {
        limit: of("limit_in_bytes")?,
        usage: of("usage_in_bytes")?,
        max: of("max_usage_in_bytes")?,
        failcnt: of("failcnt")?,
    })
}

fn entry_v2(path: &Path, name: &str) -> Result<MemoryEntry> {
    let of = |what: &str| Ok(number(path, &format!("{name}.{what}"))?.unwrap_or(0));
    Ok(MemoryEntry {
        limit: of("max")?,
        usage: of("current")?,
        max: of("peak")?,
        failcnt: 0,
    })
}

/// By the size of the page. Reservations where the kernel counts them (5.7), else what is in use.
pub(super) fn huge_pages(directory: &Directory) -> Result<BTreeMap<String, HugePages>> {
    let path = directory.path();
    let mut all = BTreeMap::new();
    for size in page_sizes() {
        let plain = format!("hugetlb.{size}");
        let reserved = format!("{plain}.rsvd");
        let usage_file = match directory.version() {
            Version::V1 => "usage_in_bytes",
            Version::V2 => "current",
        };
        let (name, usage) = match number(path, &format!("{reserved}.{usage_file}"))? {
            Some(usage) => (&reserved, Some(usage)),
            None => (&plain, number(path, &format!("{plain}.{usage_file}"))?),
        };
        let Some(usage) = usage else { continue };
        let pages = match directory.version() {
            Version::V1 => HugePages {
                usage,
                max: number(path, &format!("{name}.max_usage_in_bytes"))?.unwrap_or(0),
                failcnt: number(path, &format!("{name}.failcnt"))?.unwrap_or(0),
            },
            Version::V2 => HugePages {
                usage,
                max: 0,
                failcnt: keyed(path, &format!("{plain}.events"))?
                    .get("max")
                    .copied()
                    .unwrap_or(0),
            },
        };
        all.insert(size, pages);
    }
    Ok(all)
}
