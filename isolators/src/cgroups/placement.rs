//! Below which cgroups the containers of an executor go.
//!
//! A Mesos agent on cgroup v1 destroys an executor by killing exactly what is below the executor's own freezer cgroup,
//! so the tasks belong there. On v2 they must not: the agent takes every directory below its own for a container when
//! it restarts, and an out-of-memory event below the executor's cgroup makes it destroy the whole executor.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::hierarchy::{Hierarchies, Membership, Version, memberships};
use crate::declaration::CgroupPlacement;
use crate::error::{Error, Result};

/// The directory between the executor's own cgroup and its containers. Any name but `mesos`, which the agent takes for
/// the parent of its own nested containers.
pub const NESTED_DIRECTORY: &str = "tepui";

/// Where containers go. `nested`: below our own cgroup (`Some(true)`), below `parent` (`Some(false)`), or by what is
/// found (`None`): below our own on v1 in those hierarchies where our cgroup is named like the executor's container,
/// as long as the freezer's is.
///
/// # Errors
/// When nesting is asked for on cgroup v2, `parent` is not an absolute path without `..`, or our own cgroup cannot be
/// seen.
pub fn placement(
    nested: Option<bool>,
    parent: &Path,
    executor_container_id: Option<&str>,
) -> Result<CgroupPlacement> {
    let host = Hierarchies::of_this_host()?;
    let own = fs::read_to_string("/proc/self/cgroup")
        .map_err(|error| Error::file("read", "/proc/self/cgroup", error))?;
    let own: Vec<Membership> = memberships(&own).collect();
    place(host, &own, nested, parent, executor_container_id)
}

fn place(
    host: &Hierarchies,
    own: &[Membership],
    nested: Option<bool>,
    parent: &Path,
    executor_container_id: Option<&str>,
) -> Result<CgroupPlacement> {
    let plain = parent
        .components()
        .all(|c| !matches!(c, std::path::Component::ParentDir));
    if !parent.is_absolute() || !plain {
        return Err(Error::Config {
            field: "--cgroup-parent",
            value: parent.display().to_string(),
            rule: "it must be an absolute path from the root of a hierarchy, without `..`".into(),
        });
    }
    if nested == Some(true) && !host.has_v1_controllers() {
        return Err(Error::Config {
            field: "--cgroup-placement",
            value: "nested".into(),
            rule: "this host has cgroup v2 only: a cgroup below an executor's own makes the recovery of its agent \
                   fail, and running out of memory in it destroys the executor; use separate"
                .into(),
        });
    }
    let mut placement = CgroupPlacement {
        parent: parent.to_owned(),
        nested: BTreeMap::new(),
        name: None,
    };
    if nested == Some(false) {
        return Ok(placement);
    }
    for membership in own.iter().filter(|m| m.version() == Version::V1) {
        let is_ours = executor_container_id.is_some_and(|id| membership.path.ends_with(id));
        if nested.is_none() && !is_ours {
            continue;
        }
        for controller in &membership.controllers {
            let Some(hierarchy) = host.of(controller) else {
                continue;
            };
            let below = hierarchy
                .visible(&membership.path)
                .ok_or_else(|| Error::Config {
                    field: "--cgroup-placement",
                    value: "nested".into(),
                    rule: format!(
                        "our own {controller} cgroup {} cannot be seen at {}; use separate",
                        membership.path.display(),
                        hierarchy.mount_point.display()
                    ),
                })?;
            placement
                .nested
                .insert(controller.clone(), below.join(NESTED_DIRECTORY));
        }
    }
    // The agent finds what to kill by the freezer alone: without it the other hierarchies gain nothing.
    if nested.is_none() && !placement.nested.contains_key("freezer") {
        placement.nested.clear();
    }
    Ok(placement)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cgroups: &str, v2_only: bool) -> (Hierarchies, Vec<Membership>) {
        let mounts = match v2_only {
            true => "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw".to_owned(),
            false => ["cpu,cpuacct", "memory", "freezer", "name=systemd"]
                .map(|name| format!("1 1 0:1 / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}"))
                .join("\n"),
        };
        (
            Hierarchies::parse(&mounts, cgroups),
            memberships(cgroups).collect(),
        )
    }

    fn nested_in(
        cgroups: &str,
        nested: Option<bool>,
        id: Option<&str>,
    ) -> BTreeMap<String, std::path::PathBuf> {
        let (host, own) = host(cgroups, false);
        place(&host, &own, nested, Path::new("/tepui"), id)
            .expect("a placement")
            .nested
    }

    const UNDER_AN_AGENT: &str =
        "3:cpu,cpuacct:/mesos/7f\n2:memory:/elsewhere\n1:freezer:/mesos/7f\n";

    #[test]
    fn auto_nests_where_our_cgroup_is_named_like_the_container() {
        let nested = nested_in(UNDER_AN_AGENT, None, Some("7f"));
        let names: Vec<&str> = nested.keys().map(String::as_str).collect();
        assert_eq!(names, ["cpu", "cpuacct", "freezer"]);
        assert_eq!(nested["freezer"], Path::new("/mesos/7f/tepui"));
    }

    #[test]
    fn auto_does_not_nest_without_the_freezer_or_the_id() {
        let no_freezer = "3:cpu,cpuacct:/mesos/7f\n1:freezer:/\n";
        assert!(nested_in(no_freezer, None, Some("7f")).is_empty());
        assert!(nested_in(UNDER_AN_AGENT, None, Some("f")).is_empty());
        assert!(nested_in(UNDER_AN_AGENT, None, None).is_empty());
        assert!(nested_in(UNDER_AN_AGENT, Some(false), Some("7f")).is_empty());
    }

    #[test]
    fn nested_takes_every_hierarchy() {
        let nested = nested_in(UNDER_AN_AGENT, Some(true), None);
        assert_eq!(nested["memory"], Path::new("/elsewhere/tepui"));
        assert_eq!(nested.len(), 4);
    }

    #[test]
    fn nested_is_refused_on_v2_with_the_reason_and_auto_is_separate() {
        let (host, own) = host("0::/mesos/7f/leaf\n", true);
        let parent = Path::new("/tepui");
        let error = place(&host, &own, Some(true), parent, Some("7f")).expect_err("refused");
        assert!(error.to_string().contains("use separate"), "{error}");
        let auto = place(&host, &own, None, parent, Some("leaf")).expect("a placement");
        assert_eq!(auto.parent_of("memory"), parent);
    }

    #[test]
    fn a_parent_that_climbs_is_refused() {
        let (host, own) = host(UNDER_AN_AGENT, false);
        for bad in ["tepui", "/a/../../b"] {
            assert!(place(&host, &own, None, Path::new(bad), None).is_err());
        }
    }
}
