//! `linux/capabilities`: the five capability sets of a thread, capabilities(7); runtime-spec config "capabilities".
//!
//! What is not declared is empty: a declaration without `capabilities` has none at all. Nothing is added on its own,
//! so the inheritable set stays empty unless asked for.
//!
//! What the node itself lacks: a capability that is declared in the bounding set only is left out with a warning (the
//! container gets less than it may have, never more, and profiles name capabilities that an older kernel has not). In
//! any other set it is an error, because the workload was promised to hold it.

use std::str::FromStr;

use caps::Capability;
use oci_spec::runtime::{Capabilities as OciSet, Capability as OciCapability};

use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::{CapabilitySets, ContainerLaunchInfo};
use crate::live::{Finding, Live, Target, Verdict};
use crate::{namespaces, observe};

/// `linux/capabilities`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Capabilities;

impl Isolator for Capabilities {
    fn name(&self) -> &'static str {
        "linux/capabilities"
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let (declared, left_out) = possible(declared(declaration)?);
        for (set, capability) in left_out.into_iter().flat_map(|(set, all)| {
            let single = (0..u64::BITS).map(|bit| 1 << bit);
            single
                .filter(move |bit| all & bit != 0)
                .map(move |bit| (set, bit))
        }) {
            tracing::warn!(
                container = %id,
                "can't raise {set} capability {}: it is not in the sets that this one depends on",
                names(capability)
            );
        }
        // In a user namespace its first process has all of them, whatever we have.
        if namespaces::has_user_namespace(declaration) {
            return Ok(ContainerLaunchInfo {
                capabilities: Some(declared),
                ..Default::default()
            });
        }
        let own = observe::own_thread()?.capabilities;
        let held = own.permitted & own.bounding;
        let dropped = declared.bounding & !own.bounding;
        if dropped != 0 {
            tracing::warn!(
                container = %id,
                capabilities = names(dropped),
                "left out of the bounding set, because tepui itself does not have them"
            );
        }
        Ok(ContainerLaunchInfo {
            capabilities: Some(check(declared, own.bounding, held)?),
            ..Default::default()
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        live.capabilities = Some(union(&observe::threads(target)?));
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let finding = |item: &str, declared: String, live: String, verdict| Finding {
            isolator: self.name(),
            item: format!("{item} capabilities"),
            declared,
            live,
            verdict,
            read_from: "task/*/status".to_owned(),
        };
        let declared = match declared(declaration) {
            Ok(sets) => sets,
            Err(error) => {
                let verdict = Verdict::Unknown;
                return vec![finding(
                    "all",
                    error.to_string(),
                    "not compared".to_owned(),
                    verdict,
                )];
            }
        };
        let Some(live) = live.capabilities else {
            let live = "not seen".to_owned();
            return vec![finding(
                "all",
                names(declared.bounding),
                live,
                Verdict::Unknown,
            )];
        };
        let rows = by_name(&declared).into_iter().zip(by_name(&live));
        rows.map(|((item, declared), (_, live))| {
            let (extra, missing) = (live & !declared, declared & !live);
            let verdict = match (extra, missing) {
                (0, 0) => Verdict::Match,
                (0, _) => Verdict::Stronger,
                _ => Verdict::Weaker,
            };
            let mut words = names(live);
            if extra != 0 {
                words.push_str(&format!("; not declared: {}", names(extra)));
            }
            if missing != 0 {
                words.push_str(&format!("; missing: {}", names(missing)));
            }
            finding(item, names(declared), words, verdict)
        })
        .collect()
    }
}

/// The five sets with their names, in the order in which they limit each other.
fn by_name(sets: &CapabilitySets) -> [(&'static str, u64); 5] {
    [
        ("bounding", sets.bounding),
        ("effective", sets.effective),
        ("permitted", sets.permitted),
        ("inheritable", sets.inheritable),
        ("ambient", sets.ambient),
    ]
}

/// The sets as declared, whether or not this node can give them.
fn declared(declaration: &Declaration) -> Result<CapabilitySets> {
    let process = declaration.spec.process().as_ref();
    let Some(declared) = process.and_then(|process| process.capabilities().as_ref()) else {
        return Ok(CapabilitySets::default());
    };
    Ok(CapabilitySets {
        bounding: bits("process.capabilities.bounding", declared.bounding())?,
        effective: bits("process.capabilities.effective", declared.effective())?,
        permitted: bits("process.capabilities.permitted", declared.permitted())?,
        inheritable: bits("process.capabilities.inheritable", declared.inheritable())?,
        ambient: bits("process.capabilities.ambient", declared.ambient())?,
    })
}

/// The bits of capabilities by their runtime-spec names (`CAP_CHOWN`).
///
/// # Errors
/// `Error::Config` for a name that there is not.
pub fn mask(names: &[String]) -> Result<u64> {
    names.iter().try_fold(0, |bits, name| {
        let capability = Capability::from_str(name).map_err(|_| Error::Config {
            field: "process.capabilities",
            value: name.clone(),
            rule: "there is no such capability".to_owned(),
        })?;
        Ok(bits | capability.bitmask())
    })
}

/// Whether there is a capability of this name (`CAP_CHOWN`). The types of runtime-spec have no room for another one, so
/// a `config.json` has to be asked before it is parsed.
pub fn is_known(name: &str) -> bool {
    let known = name.strip_prefix("CAP_").map(OciCapability::from_str);
    Capability::from_str(name).is_ok() && known.is_some_and(|known| known.is_ok())
}

fn bits(field: &'static str, set: &Option<OciSet>) -> Result<u64> {
    let mut bits = 0;
    for capability in set.iter().flatten() {
        let name = format!("CAP_{capability}");
        let known = Capability::from_str(&name).map_err(|_| Error::Config {
            field,
            value: name,
            rule: "this build knows no such capability".to_owned(),
        })?;
        bits |= known.bitmask();
    }
    Ok(bits)
}

/// Leaves out what no process can have: an effective capability that is not permitted, an ambient one that is not also
/// inheritable (capset(2), PR_CAP_AMBIENT). Many bundles ask for such ambient ones; the sets, and what was left out of
/// them by name.
fn possible(mut sets: CapabilitySets) -> (CapabilitySets, Vec<(&'static str, u64)>) {
    let (effective, ambient) = (sets.effective, sets.ambient);
    sets.effective &= sets.permitted;
    sets.ambient &= sets.permitted & sets.inheritable;
    let left_out = [
        ("effective", effective & !sets.effective),
        ("ambient", ambient & !sets.ambient),
    ];
    (
        sets,
        left_out.into_iter().filter(|(_, set)| *set != 0).collect(),
    )
}

/// What this process does not have it cannot give. `available` is what it has in its bounding set, `held` what it has
/// in its permitted set too.
fn check(mut sets: CapabilitySets, available: u64, held: u64) -> Result<CapabilitySets> {
    for (field, set) in [
        ("process.capabilities.permitted", sets.permitted),
        ("process.capabilities.inheritable", sets.inheritable),
    ] {
        let extra = set & !held;
        if extra != 0 {
            let rule =
                "tepui itself does not have all of them (remove them or start tepui with them):";
            return Err(Error::Config {
                field,
                value: names(set),
                rule: format!("{rule} {}", names(extra)),
            });
        }
    }
    sets.bounding &= available;
    Ok(sets)
}

/// What any thread has counts: the union of all threads.
fn union(threads: &[observe::ThreadStatus]) -> CapabilitySets {
    let empty = CapabilitySets::default();
    threads.iter().fold(empty, |all, thread| CapabilitySets {
        bounding: all.bounding | thread.capabilities.bounding,
        effective: all.effective | thread.capabilities.effective,
        permitted: all.permitted | thread.capabilities.permitted,
        inheritable: all.inheritable | thread.capabilities.inheritable,
        ambient: all.ambient | thread.capabilities.ambient,
    })
}

/// The names of a set, those this build does not know by number.
fn names(set: u64) -> String {
    let known = caps::all();
    let name = |bit: u32| {
        let capability = known.iter().find(|c| u32::from(c.index()) == bit);
        capability.map_or_else(|| format!("capability {bit}"), ToString::to_string)
    };
    let bits = (0..u64::BITS).filter(|bit| set & (1 << bit) != 0);
    let names: Vec<_> = bits.map(name).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(" "),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const A: u64 = 1;
    const B: u64 = 1 << 1;
    const ALL: u64 = A | B;

    fn sets(permitted: u64, effective: u64, inheritable: u64, ambient: u64) -> CapabilitySets {
        CapabilitySets {
            bounding: ALL,
            effective,
            permitted,
            inheritable,
            ambient,
        }
    }

    #[test]
    fn the_sets_limit_each_other_as_in_the_kernel() {
        for (good, available) in [
            (sets(ALL, A, 0, 0), ALL),
            (sets(0, 0, 0, 0), 0),
            (sets(A, A, A, A), ALL),
        ] {
            check(good, available, available).unwrap();
        }
        let cases = [
            (sets(ALL, 0, 0, 0), A, "permitted", "CAP_DAC_OVERRIDE"),
            (sets(0, 0, B, 0), A, "inheritable", "CAP_DAC_OVERRIDE"),
        ];
        for (bad, available, field, culprit) in cases {
            let error = check(bad, available, available).unwrap_err().to_string();
            assert!(error.contains(field) && error.ends_with(culprit), "{error}");
        }
    }

    #[test]
    fn what_no_process_can_have_is_left_out_and_named() {
        let (effective, left_out) = possible(sets(A, ALL, 0, 0));
        assert_eq!((effective.effective, left_out), (A, vec![("effective", B)]));
        let (ambient, left_out) = possible(sets(ALL, 0, B, ALL));
        assert_eq!((ambient.ambient, left_out), (B, vec![("ambient", A)]));
        assert!(possible(sets(ALL, A, B, B)).1.is_empty());
    }

    #[test]
    fn the_bounding_set_is_cut_to_what_we_have() {
        assert_eq!(check(sets(0, 0, 0, 0), A, A).unwrap().bounding, A);
    }

    #[test]
    fn names_that_this_build_does_not_know_are_told_apart() {
        assert!(is_known("CAP_CHOWN") && is_known("CAP_CHECKPOINT_RESTORE"));
        for unknown in ["CAP_UNKNOWN", "UNKNOWN_CAP", "", "CAP_"] {
            assert!(!is_known(unknown), "{unknown}");
        }
    }

    #[test]
    fn every_capability_of_the_spec_has_the_kernels_number() {
        let all: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
        let text = serde_json::to_string(&all).unwrap();
        let set: OciSet = serde_json::from_str(&text).unwrap();
        assert_eq!(set.len(), 41);
        assert_eq!(bits("x", &Some(set)).unwrap(), (1 << 41) - 1);
        assert_eq!(names(1 << 21 | 1 << 63), "CAP_SYS_ADMIN capability 63");
    }

    #[test]
    fn an_extra_right_of_one_thread_is_a_right_of_the_process() {
        let mut threads = [observe::ThreadStatus::default(); 3];
        threads[1].capabilities.effective = B;
        threads[2].capabilities.ambient = A;
        let union = union(&threads);
        assert_eq!((union.effective, union.ambient), (B, A));
    }
}
