//! Block devices: cgroup-v1/blkio-controller and cgroup-v2 "IO" (`io.stat`).

use std::path::Path;

use serde::Serialize;

use super::{Pressure, is_zero, text};
use crate::cgroups::directory::Directory;
use crate::cgroups::hierarchy::Version;
use crate::error::Result;

/// Block devices. v2 has the first two alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlockEntry>,
    /// Operations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlockEntry>,
    /// Operations that wait.
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub io_queued_recursive: Vec<BlockEntry>,
    /// Nanoseconds from dispatch to completion.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlockEntry>,
    /// Nanoseconds of waiting.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlockEntry>,
    /// Operations merged into others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlockEntry>,
    /// Milliseconds of the disk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlockEntry>,
    /// Sectors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlockEntry>,
    /// Pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One number of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BlockEntry {
    /// The device's major number.
    #[serde(skip_serializing_if = "is_zero")]
    pub major: u64,
    /// The device's minor number.
    #[serde(skip_serializing_if = "is_zero")]
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, `Async`, `Discard` or `Total`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// The number.
    #[serde(skip_serializing_if = "is_zero")]
    pub value: u64,
}

pub(super) fn read(directory: &Directory) -> Result<Block> {
    let path = directory.path();
    match directory.version() {
        Version::V1 => read_v1(path),
        Version::V2 => Ok(parse_v2(&text(path, "io.stat")?.unwrap_or_default())),
    }
}

/// The numbers of the first source that has any: the BFQ scheduler, CFQ before Linux 5.0, or the throttle, which counts
/// for every scheduler but knows only bytes and operations.
fn read_v1(path: &Path) -> Result<Block> {
    let of = |name: String| -> Result<Vec<BlockEntry>> {
        Ok(text(path, &name)?.map_or_else(Vec::new, |text| parse_v1(&text)))
    };
    let sources = [
        ("blkio.bfq", "_recursive"),
        ("blkio", "_recursive"),
        ("blkio.throttle", "_recursive"),
        ("blkio.throttle", ""),
    ];
    for (prefix, suffix) in sources {
        let file = |name: &str| of(format!("{prefix}.{name}{suffix}"));
        let operations = file("io_serviced")?;
        if operations.is_empty() {
            continue;
        }
        return Ok(Block {
            io_service_bytes_recursive: file("io_service_bytes")?,
            io_serviced_recursive: operations,
            io_queued_recursive: file("io_queued")?,
            io_service_time_recursive: file("io_service_time")?,
            io_wait_time_recursive: file("io_wait_time")?,
            io_merged_recursive: file("io_merged")?,
            io_time_recursive: file("time")?,
            sectors_recursive: file("sectors")?,
            psi: None,
        });
    }
    Ok(Block::default())
}

/// Lines `8:0 Read 1282048` or `8:0 6792`; the sum over all devices is left out.
fn parse_v1(text: &str) -> Vec<BlockEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = device(words.next()?)?;
        let (first, second) = (words.next()?, words.next());
        let (op, value) = second.map_or(("", first), |second| (first, second));
        Some(BlockEntry {
            major,
            minor,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

/// Lines `8:0 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0`.
fn parse_v2(text: &str) -> Block {
    let mut block = Block::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(device) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (table, op) = match key {
                "rbytes" => (&mut block.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut block.io_service_bytes_recursive, "Write"),
                "rios" => (&mut block.io_serviced_recursive, "Read"),
                "wios" => (&mut block.io_serviced_recursive, "Write"),
                _ => continue,
            };
            table.push(BlockEntry {
                major,
                minor,
                op: op.to_owned(),
                value: value.parse().unwrap_or(0),
            });
        }
    }
    block
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_versions_end_in_the_same_tables() {
        let v1 = parse_v1("8:0 Read 5\n8:0 Write 0\n8:16 7\nTotal 12\n");
        let written = serde_json::to_value(&v1).unwrap();
        let expected = json!([
            { "major": 8, "op": "Read", "value": 5 },
            { "major": 8, "op": "Write" },
            { "major": 8, "minor": 16, "value": 7 }
        ]);
        assert_eq!(written, expected);
        let v2 = parse_v2("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:0\n");
        let written = serde_json::to_value(&v2).unwrap();
        let entry =
            |op: &str, value: u64| json!({ "major": 8, "minor": 16, "op": op, "value": value });
        let expected = json!({
            "ioServiceBytesRecursive": [entry("Read", 1), entry("Write", 2)],
            "ioServicedRecursive": [entry("Read", 3), entry("Write", 4)]
        });
        assert_eq!(written, expected);
    }
}
