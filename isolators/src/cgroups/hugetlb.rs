//! `cgroups/hugetlb`: how much memory in huge pages of each size a container may use.
//!
//! runtime-spec config-linux "Huge page limits"; the kernel's cgroup-v1/hugetlb and cgroup-v2 "HugeTLB". Where the kernel
//! limits reservations too (5.7), they get the same limit: a fault beyond the limit is SIGBUS, a reservation an error.

use std::fs;

use super::directory::Directory;
use super::hierarchy::Version;
use super::observation::{self, Item, limit, upper};
use super::unified;
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target};

const NAME: &str = "cgroups/hugetlb";
const CONTROLLER: &str = "hugetlb";

/// The isolator `cgroups/hugetlb`.
#[derive(Debug, Clone, Copy, Default)]
pub struct HugetlbIsolator;

/// Page size and limit; a negative limit is none.
fn declared(declaration: &Declaration) -> Vec<(&str, Option<u64>)> {
    let limits = super::resources(declaration).and_then(|all| all.hugepage_limits().as_ref());
    limits
        .into_iter()
        .flatten()
        .map(|limit| {
            (
                limit.page_size().as_str(),
                u64::try_from(limit.limit()).ok(),
            )
        })
        .collect()
}

/// The names that the kernel has for the limits of a page size: `hugetlb.2MB.max`, and the one for reservations.
fn files(version: Version, size: &str) -> [String; 2] {
    let suffix = match version {
        Version::V1 => "limit_in_bytes",
        Version::V2 => "max",
    };
    [
        format!("hugetlb.{size}.{suffix}"),
        format!("hugetlb.{size}.rsvd.{suffix}"),
    ]
}

/// The page sizes of this kernel, as cgroups name them.
pub(super) fn page_sizes() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let name = |entry: fs::DirEntry| page_size(entry.file_name().to_str()?);
    let mut sizes: Vec<String> = entries.flatten().filter_map(name).collect();
    sizes.sort_unstable();
    sizes
}

/// `hugepages-2048kB` is `2MB`.
fn page_size(directory: &str) -> Option<String> {
    let kilobytes = directory.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    let kilobytes: u64 = kilobytes.parse().ok()?;
    Some(match kilobytes {
        0..1024 => format!("{kilobytes}KB"),
        1024..1_048_576 => format!("{}MB", kilobytes >> 10),
        _ => format!("{}GB", kilobytes >> 20),
    })
}

fn write(directory: &Directory, declaration: &Declaration) -> Result<()> {
    let known = page_sizes();
    for (size, limit) in declared(declaration) {
        if !known.iter().any(|known| known == size) {
            return Err(Error::Config {
                field: "linux.resources.hugepageLimits.pageSize",
                value: format!("{size:?}"),
                rule: format!("this kernel has huge pages of {}", known.join(", ")),
            });
        }
        let text = match (limit, directory.version()) {
            (Some(limit), _) => limit.to_string(),
            (None, Version::V1) => "-1".to_owned(),
            (None, Version::V2) => "max".to_owned(),
        };
        let [used, reserved] = files(directory.version(), size);
        directory.write(&used, &text)?;
        if directory.has(&reserved) {
            directory.write(&reserved, &text)?;
        }
    }
    unified::write(directory, CONTROLLER, declaration)
}

impl Isolator for HugetlbIsolator {
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
        let known = page_sizes();
        let names = |version| {
            let files = known.iter().map(|size| files(version, size));
            files.map(|[used, _]| used).collect::<Vec<String>>()
        };
        let (v1, v2) = (names(Version::V1), names(Version::V2));
        let v1: Vec<&str> = v1.iter().map(String::as_str).collect();
        let v2: Vec<&str> = v2.iter().map(String::as_str).collect();
        observation::read_files(CONTROLLER, target, &v1, &v2, live)?;
        unified::observe(CONTROLLER, target, declaration, live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let compare = |(size, number): (&str, Option<u64>)| {
            let number = number?;
            let item = Item {
                isolator: NAME,
                controller: CONTROLLER,
                name: &format!("huge pages of {size}"),
                declared: number.to_string(),
            };
            // The kernel rounds down to whole pages of that size.
            let page = bytes(size)?;
            let judge = |content: &str| upper(number - number % page, limit(content));
            let [v1, _] = files(Version::V1, size);
            let [v2, _] = files(Version::V2, size);
            Some(item.compare(live, &[(v1.as_str(), &judge), (v2.as_str(), &judge)]))
        };
        let mut findings: Vec<Finding> = declared(declaration)
            .into_iter()
            .filter_map(compare)
            .collect();
        findings.extend(unified::compare(NAME, declaration, CONTROLLER, live));
        findings.extend(observation::own_cgroup(NAME, CONTROLLER, declaration, live));
        findings
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        super::remove(CONTROLLER, id, declaration)
    }
}

/// The bytes of a page of this size.
fn bytes(size: &str) -> Option<u64> {
    let (number, unit) = size.split_at_checked(size.len().checked_sub(2)?)?;
    let shift = match unit {
        "KB" => 10,
        "MB" => 20,
        "GB" => 30,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (bytes > 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_named_as_the_kernel_names_them() {
        for (directory, name, size) in [
            ("hugepages-64kB", "64KB", 1 << 16),
            ("hugepages-2048kB", "2MB", 2 << 20),
            ("hugepages-1048576kB", "1GB", 1 << 30),
        ] {
            assert_eq!(page_size(directory).as_deref(), Some(name));
            assert_eq!(bytes(name), Some(size));
        }
        assert_eq!(page_size("hugepages-2MB"), None);
        assert_eq!(bytes("B"), None);
    }
}
