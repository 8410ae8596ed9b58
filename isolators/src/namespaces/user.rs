//! `namespaces/user`: ids and privileges of a container's own, user_namespaces(7); runtime-spec config-linux
//! "uidMappings" and "gidMappings".
//!
//! The maps are written by the parent. A namespace that is joined has its maps already: those declared beside its path
//! are what it is expected to have.

use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType};

use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::{ContainerLaunchInfo, IdMap, IdMaps};
use crate::live::{Finding, Live, Target, Verdict};
use crate::observe;

/// `namespaces/user`.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserNamespace;

const KIND: LinuxNamespaceType = LinuxNamespaceType::User;
const USERS: &str = "linux.uidMappings";
const GROUPS: &str = "linux.gidMappings";

/// `UID_GID_MAP_MAX_EXTENTS`: lines of one map.
const LINES: usize = 340;

/// A map is taken in one write(2) of less than a page.
const PAGE: usize = 4096;

impl Isolator for UserNamespace {
    fn name(&self) -> &'static str {
        "namespaces/user"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let info = super::prepare(declaration, KIND)?;
        let maps = declared(declaration);
        let is_new = !info.namespaces.is_empty();
        if !is_new && info.join_namespaces.is_empty() {
            return match maps.users.is_empty() && maps.groups.is_empty() {
                true => Ok(info),
                false => Err(Error::Config {
                    field: USERS,
                    value: in_words(&maps.users),
                    rule: "there is no user namespace to map them in; list one in linux.namespaces"
                        .to_owned(),
                }),
            };
        }
        // Beside a path they may be left out.
        if is_new || !maps.users.is_empty() || !maps.groups.is_empty() {
            check(USERS, &maps.users)?;
            check(GROUPS, &maps.groups)?;
            check_ids(declaration, &maps)?;
        }
        if let Some((_, path)) = info.join_namespaces.first() {
            check_joined(path, &maps)?;
        }
        Ok(ContainerLaunchInfo {
            id_maps: is_new.then_some(maps),
            ..info
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        super::observe(target, super::name(KIND), live)?;
        live.id_maps = Some(IdMaps {
            users: observed(target, "uid_map")?,
            groups: observed(target, "gid_map")?,
        });
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let mut findings = vec![super::compare_declared(
            self.name(),
            declaration,
            KIND,
            live,
        )];
        let declared = declared(declaration);
        let seen = live.id_maps.as_ref();
        let rows = [
            ("uid_map", &declared.users, seen.map(|maps| &maps.users)),
            ("gid_map", &declared.groups, seen.map(|maps| &maps.groups)),
        ];
        let mapped = rows.into_iter().filter(|(_, maps, _)| !maps.is_empty());
        findings.extend(mapped.map(|(file, declared, seen)| Finding {
            isolator: self.name(),
            item: file.replace('_', " "),
            declared: in_words(declared),
            live: seen.map_or_else(|| "not seen".to_owned(), |maps| in_words(maps)),
            verdict: match seen {
                None => Verdict::Unknown,
                Some(seen) if in_order(seen) == in_order(declared) => Verdict::Match,
                Some(_) => Verdict::Weaker,
            },
            read_from: file.to_owned(),
        }));
        findings
    }
}

/// The maps as declared, whether or not there is a namespace for them.
pub fn declared(declaration: &Declaration) -> IdMaps {
    let linux = declaration.spec.linux().as_ref();
    let map = |map: &LinuxIdMapping| IdMap {
        inside: map.container_id(),
        outside: map.host_id(),
        count: map.size(),
    };
    let maps = |maps: &Option<Vec<LinuxIdMapping>>| maps.iter().flatten().map(map).collect();
    linux.map_or_else(IdMaps::default, |linux| IdMaps {
        users: maps(linux.uid_mappings()),
        groups: maps(linux.gid_mappings()),
    })
}

/// The rules of user_namespaces(7), said before the kernel says EINVAL.
fn check(field: &'static str, maps: &[IdMap]) -> Result<()> {
    let refused = |rule: &str| Error::Config {
        field,
        value: in_words(maps),
        rule: rule.to_owned(),
    };
    if maps.is_empty() {
        return Err(refused(
            "a new user namespace needs a map; without one it has no ids at all",
        ));
    }
    if maps.len() > LINES {
        return Err(Error::Config {
            field,
            value: format!("{} lines", maps.len()),
            rule: format!("the kernel takes at most {LINES}"),
        });
    }
    // The kernel's ranges end below the number that means "no id".
    let fits = |first: u32, count: u32| count > 0 && first.checked_add(count).is_some();
    if maps
        .iter()
        .any(|map| !fits(map.inside, map.count) || !fits(map.outside, map.count))
    {
        return Err(refused(
            "a range has to have at least one id and to end below 4294967295",
        ));
    }
    let overlap = |first: fn(&IdMap) -> u32| {
        let mut ranges: Vec<_> = maps.iter().map(|map| (first(map), map.count)).collect();
        ranges.sort_unstable();
        ranges.windows(2).any(|two| two[0].0 + two[0].1 > two[1].0)
    };
    if overlap(|map| map.inside) || overlap(|map| map.outside) {
        return Err(refused("the ranges may not overlap, inside or outside"));
    }
    if text(maps).len() >= PAGE {
        return Err(refused(
            "written out it has to be shorter than 4096 bytes (user_namespaces(7))",
        ));
    }
    Ok(())
}

/// Whom the process runs as must be somebody.
fn check_ids(declaration: &Declaration, maps: &IdMaps) -> Result<()> {
    let Some(process) = declaration.spec.process() else {
        return Ok(());
    };
    let user = process.user();
    let more = user.additional_gids().iter().flatten();
    let groups = std::iter::once(("process.user.gid", user.gid()))
        .chain(more.map(|gid| ("process.user.additionalGids", *gid)))
        .map(|(field, gid)| (field, gid, maps.group(gid)));
    let all = std::iter::once(("process.user.uid", user.uid(), maps.user(user.uid())));
    match all.chain(groups).find(|(_, _, outside)| outside.is_none()) {
        None => Ok(()),
        Some((field, id, _)) => Err(Error::Config {
            field,
            value: id.to_string(),
            rule: "it is not mapped in linux.uidMappings and linux.gidMappings".to_owned(),
        }),
    }
}

/// Maps beside the path of a process' namespace have to be the maps of that process.
fn check_joined(path: &Path, maps: &IdMaps) -> Result<()> {
    let pid = path.strip_prefix("/proc").ok().and_then(|rest| {
        let pid = rest.to_str()?.strip_suffix("/ns/user")?;
        pid.parse::<u32>().ok()
    });
    let Some(target) = pid.map(|pid| Target { pid }) else {
        // A namespace that is only a file shows its maps to its own processes; `compare` looks at them.
        return Ok(());
    };
    for (field, file, declared) in [
        (USERS, "uid_map", &maps.users),
        (GROUPS, "gid_map", &maps.groups),
    ] {
        let live = observed(&target, file)?;
        if !declared.is_empty() && in_order(&live) != in_order(declared) {
            return Err(Error::Config {
                field,
                value: in_words(declared),
                rule: format!("the namespace {} has {}", path.display(), in_words(&live)),
            });
        }
    }
    Ok(())
}

fn observed(target: &Target, file: &str) -> Result<Vec<IdMap>> {
    let text = observe::read(target, file)?;
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|word| word.parse().ok());
        Some(IdMap {
            inside: numbers.next()??,
            outside: numbers.next()??,
            count: numbers.next()??,
        })
    };
    let maps: Option<Vec<_>> = text.lines().map(line).collect();
    maps.ok_or_else(|| observe::unseen(target, file, std::io::ErrorKind::InvalidData))
}

/// What is written to `/proc/PID/uid_map` or `gid_map`, in one write(2).
pub fn text(maps: &[IdMap]) -> String {
    let line = |map: &IdMap| format!("{} {} {}\n", map.inside, map.outside, map.count);
    maps.iter().map(line).collect()
}

/// The kernel may show them in another order.
fn in_order(maps: &[IdMap]) -> Vec<IdMap> {
    let mut maps = maps.to_vec();
    maps.sort_unstable_by_key(|map| map.inside);
    maps
}

fn in_words(maps: &[IdMap]) -> String {
    let word = |map: &IdMap| format!("{}:{}:{}", map.inside, map.outside, map.count);
    match maps {
        [] => "empty".to_owned(),
        maps => maps.iter().map(word).collect::<Vec<_>>().join(" "),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn map(inside: u32, outside: u32, count: u32) -> IdMap {
        IdMap {
            inside,
            outside,
            count,
        }
    }

    #[test]
    fn maps_that_the_kernel_would_refuse_are_refused_by_name() {
        check(USERS, &[map(0, 100_000, 65_536), map(65_536, 0, 1)]).unwrap();
        let many: Vec<_> = (0..=LINES as u32).map(|n| map(n, n, 1)).collect();
        check(USERS, &many[..LINES]).unwrap();
        let long: Vec<_> = (0..300)
            .map(|n| map(4_000_000_000 + n, 4_100_000_000 + n, 1))
            .collect();
        let cases = [
            (vec![], "needs a map"),
            (many, "at most 340"),
            (vec![map(0, 0, 0)], "at least one"),
            (vec![map(u32::MAX, 0, 1)], "below 4294967295"),
            (vec![map(0, u32::MAX - 1, 2)], "below 4294967295"),
            (vec![map(0, 10, 5), map(4, 20, 5)], "overlap"),
            (vec![map(0, 10, 5), map(5, 14, 5)], "overlap"),
            (long, "4096 bytes"),
        ];
        for (maps, word) in cases {
            let error = check(USERS, &maps).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn the_text_is_what_the_kernel_shows_again() {
        let maps = [map(0, 100_000, 10), map(10, 0, 1)];
        assert_eq!(text(&maps), "0 100000 10\n10 0 1\n");
    }
}
