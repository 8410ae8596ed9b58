//! `linux.resources.unified`: files of cgroup v2 by their own names, and what a process really has in them.
//!
//! runtime-spec config-linux "Unified". Each controller's isolator writes the keys of its controller after the numbers
//! that have fields of their own; `cgroups/freezer` writes those that no other isolator answers for.

use super::directory::Directory;
use super::hierarchy::{Hierarchies, Version};
use super::observation::{self, Item, limit, upper};
use crate::declaration::Declaration;
use crate::error::{Error, Result};
use crate::live::{Finding, Live, Target, Verdict};

/// The keys whose controller, the part before the first dot, `is_own` takes, as file and value.
pub(super) fn keys(declaration: &Declaration, is_own: impl Fn(&str) -> bool) -> Vec<(&str, &str)> {
    let all = super::resources(declaration).and_then(|resources| resources.unified().as_ref());
    let mut own: Vec<(&str, &str)> = all
        .into_iter()
        .flatten()
        .filter(|(file, _)| is_own(controller(file)))
        .map(|(file, value)| (file.as_str(), value.as_str()))
        .collect();
    own.sort_unstable();
    own
}

/// The keys of one controller.
pub(super) fn of<'a>(declaration: &'a Declaration, name: &str) -> Vec<(&'a str, &'a str)> {
    keys(declaration, |controller| controller == name)
}

/// The controller that a key names; a key without a dot names none.
pub(super) fn controller(file: &str) -> &str {
    file.split_once('.')
        .map_or("", |(controller, _)| controller)
}

pub(super) fn refuse(file: &str, value: &str, rule: String) -> Error {
    Error::Config {
        field: "linux.resources.unified",
        value: format!("{file}={value}"),
        rule,
    }
}

/// Refuses keys of a controller that is not on cgroup v2 here.
pub(super) fn check(declaration: &Declaration, controller: &str) -> Result<()> {
    let Some((file, value)) = of(declaration, controller).into_iter().next() else {
        return Ok(());
    };
    let hierarchy = Hierarchies::of_this_host()?.of(controller);
    match hierarchy.map(|hierarchy| hierarchy.version) {
        Some(Version::V2) => Ok(()),
        _ => Err(refuse(
            file,
            value,
            format!(
                "this is an invalid configuration: the {controller} controller is not on cgroup v2 on this host"
            ),
        )),
    }
}

/// Writes the keys of one controller.
pub(super) fn write(
    directory: &Directory,
    controller: &str,
    declaration: &Declaration,
) -> Result<()> {
    write_keys(directory, of(declaration, controller))
}

/// Writes keys into a directory of v2, each line of a value for itself.
pub(super) fn write_keys(directory: &Directory, keys: Vec<(&str, &str)>) -> Result<()> {
    for (file, value) in keys {
        if file.contains('/') {
            return Err(refuse(file, value, "a key is the name of one file".into()));
        }
        if !directory.has(file) {
            let rule = format!("there is no such file in {}", directory.path().display());
            return Err(refuse(file, value, rule));
        }
        for line in value.lines().filter(|line| !line.is_empty()) {
            directory.write(file, line)?;
        }
    }
    Ok(())
}

/// Reads the files that the keys of one controller name.
pub(super) fn observe(
    controller: &str,
    target: &Target,
    declaration: &Declaration,
    live: &mut Live,
) -> Result<()> {
    let files: Vec<&str> = of(declaration, controller)
        .into_iter()
        .map(|(file, _)| file)
        .filter(|file| !file.contains('/'))
        .collect();
    // `cgroup.max.depth` and its like are in every cgroup of v2.
    let place = if controller == "cgroup" {
        ""
    } else {
        controller
    };
    match files.is_empty() {
        true => Ok(()),
        false => observation::read_files(place, target, &[], &files, live),
    }
}

/// Compares the keys of one controller with what `observe` read.
pub(super) fn compare(
    isolator: &'static str,
    declaration: &Declaration,
    controller: &str,
    live: &Live,
) -> Vec<Finding> {
    let compare = |(file, value): (&str, &str)| {
        let item = Item {
            isolator,
            controller,
            name: file,
            declared: value.trim().to_owned(),
        };
        item.compare(live, &[(file, &|content| judge(file, value, content))])
    };
    of(declaration, controller)
        .into_iter()
        // Of an empty value nothing was written.
        .filter(|(_, value)| !value.trim().is_empty())
        .map(compare)
        .collect()
}

/// The kernel shows more than was written (`50000` becomes `50000 100000`), and memory in whole pages.
fn judge(file: &str, declared: &str, live: &str) -> Verdict {
    let is_shown = |line: &str| {
        live.lines().any(|shown| {
            let shown: Vec<&str> = shown.split_whitespace().collect();
            line.split_whitespace().all(|word| shown.contains(&word))
        })
    };
    if declared.lines().all(is_shown) {
        return Verdict::Match;
    }
    let Some(number) = limit(declared) else {
        return Verdict::Unknown;
    };
    let as_upper = match file.starts_with("memory.") {
        true => observation::upper_in_pages(number, limit(live)),
        false => upper(number, limit(live)),
    };
    match file.rsplit('.').next() {
        Some("max" | "high") => as_upper,
        Some("min" | "low") => as_upper.reversed(),
        // More of another thing may be more or less isolation.
        _ if as_upper == Verdict::Match => Verdict::Match,
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_shows_is_compared_in_its_own_words() {
        for (file, declared, live, verdict) in [
            ("pids.max", "99", "99", Verdict::Match),
            ("pids.max", "99", "max", Verdict::Weaker),
            ("pids.max", "99", "50", Verdict::Stronger),
            ("cpu.max", "50000", "50000 100000", Verdict::Match),
            ("memory.high", "5000", "4096", Verdict::Match),
            ("memory.low", "8192", "4096", Verdict::Weaker),
            (
                "io.max",
                "8:0 rbps=5\n8:16 wiops=7",
                "8:0 rbps=5 wbps=max\n8:16 rbps=max wiops=7",
                Verdict::Match,
            ),
            ("io.max", "8:0 rbps=5", "8:16 rbps=5", Verdict::Unknown),
            ("cpu.idle", "1", "0", Verdict::Unknown),
        ] {
            assert_eq!(judge(file, declared, live), verdict, "{file} {declared}");
        }
    }
}
