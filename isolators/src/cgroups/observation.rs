//! The other direction, shared by the controllers: the files of the cgroup that a process really is in, and how one
//! number in them compares with the declared one.
//!
//! Only the process' own cgroup counts: a limit that merely an ancestor has is shared with whatever else is below it.

use std::fs;
use std::path::{Path, PathBuf};

use super::directory;
use super::hierarchy::{Hierarchies, Version, memberships};
use crate::declaration::Declaration;
use crate::error::{Error, Result};
use crate::live::{Finding, Live, Target, Verdict};

/// The content that stands in `Live::cgroup` for a file that the process' cgroup does not have, as the files of limits
/// are missing in the root of v2 and below a directory that does not pass the controller down.
pub const ABSENT: &str = "";

/// The cgroup that a process is in for one controller.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The interface of its hierarchy.
    pub version: Version,
    /// Its directory on this host.
    pub directory: PathBuf,
}

/// Finds the target's cgroup for `controller` and notes its path. `None`: no mounted hierarchy shows it to us.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn locate(controller: &str, target: &Target, live: &mut Live) -> Result<Option<Seen>> {
    let path = target.proc_path("cgroup");
    let text = fs::read_to_string(path).map_err(|source| Error::Observe {
        what: "the cgroups".into(),
        pid: target.pid,
        source,
    })?;
    let host = Hierarchies::of_this_host()?;
    let hierarchy = match controller {
        "" => host.unified(),
        name => host.of(name),
    };
    let Some(hierarchy) = hierarchy else {
        return Ok(None);
    };
    let key = match hierarchy.version {
        Version::V1 => controller,
        Version::V2 => "",
    };
    let member = memberships(&text).find(|member| match hierarchy.version {
        Version::V1 => member.controllers.iter().any(|name| name == controller),
        Version::V2 => member.version() == Version::V2,
    });
    let Some(member) = member else {
        return Ok(None);
    };
    let visible = hierarchy.visible(&member.path);
    let shown = visible.as_ref().unwrap_or(&member.path);
    live.cgroup_paths
        .insert(key.to_owned(), shown.display().to_string());
    Ok(visible.map(|cgroup| Seen {
        version: hierarchy.version,
        directory: hierarchy.directory(&cgroup),
    }))
}

/// Reads files of the target's cgroup for `controller`: `v1` or `v2`, whichever its hierarchy is.
///
/// # Errors
/// When the process is gone, or a file is there but cannot be read.
pub fn read_files(
    controller: &str,
    target: &Target,
    v1: &[&str],
    v2: &[&str],
    live: &mut Live,
) -> Result<()> {
    let Some(seen) = locate(controller, target, live)? else {
        return Ok(());
    };
    let files = match seen.version {
        Version::V1 => v1,
        Version::V2 => v2,
    };
    for file in files {
        let content = read_or_absent(&seen.directory, file)?;
        live.cgroup.insert((*file).to_owned(), content);
    }
    Ok(())
}

fn read_or_absent(cgroup: &Path, file: &str) -> Result<String> {
    match directory::read(cgroup, file) {
        Err(Error::File { source, .. }) if directory::is_gone(&source) => Ok(ABSENT.to_owned()),
        other => other,
    }
}

/// Says how the content of a file compares with what was declared.
pub type Judge<'a> = &'a dyn Fn(&str) -> Verdict;

/// One declared item and the files that could show it.
pub struct Item<'a> {
    /// The isolator that is answerable.
    pub isolator: &'static str,
    /// `/proc/PID/cgroup`'s name of the controller.
    pub controller: &'a str,
    /// What it is called in a report.
    pub name: &'a str,
    /// What was declared, for a person.
    pub declared: String,
}

impl Item<'_> {
    /// Compares with the first of `files` that was observed; `judge` gets the file's content.
    pub fn compare(&self, live: &Live, files: &[(&str, Judge<'_>)]) -> Finding {
        let seen = files
            .iter()
            .find_map(|(file, judge)| Some((file, judge, live.cgroup.get(*file)?)));
        let cgroup = live
            .cgroup_paths
            .get(self.controller)
            .or_else(|| live.cgroup_paths.get(""));
        let place = cgroup.map_or("cgroup not found", String::as_str);
        let (live, verdict, read_from) = match seen {
            None => ("not seen".to_owned(), Verdict::Unknown, place.to_owned()),
            Some((file, _, content)) if content == ABSENT => (
                "none: the cgroup has no such file".to_owned(),
                Verdict::Weaker,
                format!("{place}/{file}"),
            ),
            Some((file, judge, content)) => (
                content.clone(),
                judge(content),
                format!("{}/{file}", place.trim_end_matches('/')),
            ),
        };
        Finding {
            isolator: self.isolator,
            item: self.name.to_owned(),
            declared: self.declared.clone(),
            live,
            verdict,
            read_from,
        }
    }
}

/// A limit as a file shows it: `max` and -1 are none. A text that is neither is taken for none as well, since it
/// limits nothing that we know of.
pub fn limit(content: &str) -> Option<u64> {
    content.trim().parse().ok()
}

/// How a live upper limit compares with the declared one; `None` is no limit.
pub fn upper(declared: u64, live: Option<u64>) -> Verdict {
    match live {
        Some(live) if live == declared => Verdict::Match,
        Some(live) if live < declared => Verdict::Stronger,
        _ => Verdict::Weaker,
    }
}

/// The same for bytes: the kernel rounds down to whole pages, of 4, 16 or 64 KiB.
pub fn upper_in_pages(declared: u64, live: Option<u64>) -> Verdict {
    let rounded = |page| declared - declared % page;
    match live {
        Some(live) if [4096, 16_384, 65_536].map(rounded).contains(&live) => Verdict::Match,
        live => upper(declared, live),
    }
}

/// Notes the target's cgroup in the hierarchies of `controller`, if the container could be given one of its own there.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn locate_own(controller: &str, target: &Target, live: &mut Live) -> Result<()> {
    let host = Hierarchies::of_this_host()?;
    match host.of(controller).filter(|hierarchy| hierarchy.writable) {
        Some(_) => locate(controller, target, live).map(drop),
        None => Ok(()),
    }
}

/// Whether the target is in a cgroup of its own in the v1 hierarchy of `controller`. (On v2 `cgroups/freezer` says so
/// for all controllers.) Nothing when there is none.
pub fn own_cgroup(
    isolator: &'static str,
    controller: &str,
    declaration: &Declaration,
    live: &Live,
) -> Option<Finding> {
    let path = live.cgroup_paths.get(controller)?;
    let parent = declaration.cgroups.parent_of(controller);
    Some(Finding {
        isolator,
        item: match controller {
            "freezer" | "" => "cgroup of its own".into(),
            name => format!("{name} cgroup of its own"),
        },
        declared: format!("below {}", parent.display()),
        live: path.clone(),
        verdict: below(path, parent),
        read_from: "/proc/PID/cgroup".into(),
    })
}

/// Whether a cgroup, as /proc shows it, lies below a parent.
fn below(path: &str, parent: &Path) -> Verdict {
    // Outside what our mounts show.
    if path.starts_with("/..") {
        return Verdict::Unknown;
    }
    let below = Path::new(path).strip_prefix(parent);
    match below.is_ok_and(|rest| rest.components().next().is_some()) {
        true => Verdict::Match,
        false => Verdict::Weaker,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_and_a_higher_one_are_weaker() {
        assert_eq!(upper(10, limit("10\n")), Verdict::Match);
        assert_eq!(upper(10, limit("9")), Verdict::Stronger);
        for weaker in ["11", "max", "-1", "rubbish"] {
            assert_eq!(upper(10, limit(weaker)), Verdict::Weaker, "{weaker}");
        }
    }

    #[test]
    fn a_missing_file_is_weaker_and_an_unseen_one_unknown() {
        let item = Item {
            isolator: "cgroups/pids",
            controller: "pids",
            name: "pids limit",
            declared: "10".into(),
        };
        let judge = |content: &str| upper(10, limit(content));
        let mut live = Live::default();
        assert_eq!(
            item.compare(&live, &[("pids.max", &judge)]).verdict,
            Verdict::Unknown
        );
        live.cgroup.insert("pids.max".into(), ABSENT.into());
        assert_eq!(
            item.compare(&live, &[("pids.max", &judge)]).verdict,
            Verdict::Weaker
        );
        live.cgroup.insert("pids.max".into(), "10".into());
        live.cgroup_paths.insert("pids".into(), "/tepui/x".into());
        let finding = item.compare(&live, &[("pids.max", &judge)]);
        assert_eq!(finding.verdict, Verdict::Match);
        assert_eq!(finding.read_from, "/tepui/x/pids.max");
    }
}
