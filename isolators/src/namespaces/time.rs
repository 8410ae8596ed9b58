//! `namespaces/time`: clocks of a container's own, time_namespaces(7); runtime-spec config-linux "timeOffsets".
//!
//! The offsets can be set only while nobody is in the namespace yet, so the child makes it by unshare(2), writes them,
//! and enters it then.

use std::collections::BTreeMap;
use std::ffi::CString;

use oci_spec::runtime::LinuxNamespaceType;

use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};
use crate::observe;

/// `namespaces/time`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TimeNamespace;

const KIND: LinuxNamespaceType = LinuxNamespaceType::Time;
const FIELD: &str = "linux.timeOffsets";

/// The clocks that have an offset, as `timens_offsets` names them.
const CLOCKS: [&str; 2] = ["monotonic", "boottime"];

/// Seconds and nanoseconds.
type Offset = (i64, u32);

impl Isolator for TimeNamespace {
    fn name(&self) -> &'static str {
        "namespaces/time"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let info = super::prepare(declaration, KIND)?;
        let offsets = check(declared(declaration), !info.namespaces.is_empty())?;
        let line = |(clock, (seconds, nanoseconds)): (&str, Offset)| {
            let line = format!("{clock} {seconds} {nanoseconds}");
            CString::new(line).expect("names of clocks and digits hold no NUL byte")
        };
        Ok(ContainerLaunchInfo {
            time_offsets: offsets.into_iter().map(line).collect(),
            ..info
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        super::observe(target, super::name(KIND), live)?;
        if !live.namespaces.contains_key(super::name(KIND)) {
            return Ok(());
        }
        let text = observe::read(target, "timens_offsets")?;
        live.time_offsets = parse(&text).ok_or_else(|| {
            let malformed = std::io::ErrorKind::InvalidData;
            observe::unseen(target, "timens_offsets", malformed)
        })?;
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let own = super::compare_declared(self.name(), declaration, KIND, live);
        let offset = |(clock, declared): (&str, Offset)| {
            let seen = live.time_offsets.get(clock).copied();
            let words = |(seconds, nanoseconds): Offset| format!("{seconds} s {nanoseconds} ns");
            Finding {
                isolator: self.name(),
                item: format!("offset of the {clock} clock"),
                declared: words(declared),
                live: seen.map_or_else(|| "not seen".to_owned(), words),
                verdict: match seen {
                    None => Verdict::Unknown,
                    Some(seen) if seen == declared => Verdict::Match,
                    Some(_) => Verdict::Weaker,
                },
                read_from: "timens_offsets".to_owned(),
            }
        };
        let declared = declared(declaration);
        let known = declared
            .into_iter()
            .filter(|(clock, _)| CLOCKS.contains(clock));
        std::iter::once(own).chain(known.map(offset)).collect()
    }
}

fn declared(declaration: &Declaration) -> BTreeMap<&str, Offset> {
    let linux = declaration.spec.linux().as_ref();
    let offsets = linux.and_then(|linux| linux.time_offsets().as_ref());
    let all = offsets.into_iter().flatten();
    all.map(|(clock, offset)| {
        let seconds = offset.secs().unwrap_or_default();
        let nanoseconds = offset.nanosecs().unwrap_or_default();
        (clock.as_str(), (seconds, nanoseconds))
    })
    .collect()
}

fn check(declared: BTreeMap<&str, Offset>, is_new: bool) -> Result<BTreeMap<&str, Offset>> {
    for (clock, (seconds, nanoseconds)) in &declared {
        let refused = |rule: &str| Error::Config {
            field: FIELD,
            value: format!("{clock} {seconds} s {nanoseconds} ns"),
            rule: rule.to_owned(),
        };
        if !is_new {
            return Err(refused(
                "only a new time namespace can have offsets; list one without path in linux.namespaces",
            ));
        }
        if !CLOCKS.contains(clock) {
            return Err(refused("only monotonic and boottime have offsets"));
        }
        if *nanoseconds >= 1_000_000_000 {
            return Err(refused("nanosecs has to be below 1000000000"));
        }
    }
    Ok(declared)
}

/// `timens_offsets`: lines of a clock, seconds and nanoseconds.
fn parse(text: &str) -> Option<BTreeMap<String, Offset>> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let clock = words.next()?.to_owned();
        Some((
            clock,
            (words.next()?.parse().ok()?, words.next()?.parse().ok()?),
        ))
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_lines_for_the_kernel() {
        let declared = BTreeMap::from([("boottime", (1, 2)), ("monotonic", (-5, 0))]);
        assert_eq!(check(declared.clone(), true).unwrap(), declared);
        let cases = [
            (("monotonic", (0, 0)), false, "linux.namespaces"),
            (("realtime", (0, 0)), true, "only monotonic"),
            (("boottime", (0, 1_000_000_000)), true, "nanosecs"),
        ];
        for (bad, is_new, word) in cases {
            let error = check(BTreeMap::from([bad]), is_new)
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("linux.timeOffsets is ") && error.contains(word),
                "{error}"
            );
        }
    }

    #[test]
    fn the_kernels_file_is_understood() {
        let text = "monotonic        7881   2718281\nboottime           -3         0\n";
        let offsets = parse(text).unwrap();
        assert_eq!(offsets["monotonic"], (7881, 2_718_281));
        assert_eq!(offsets["boottime"], (-3, 0));
        assert_eq!(parse("monotonic x 0"), None);
    }
}
