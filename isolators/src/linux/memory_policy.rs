//! `linux/memory_policy`: from which NUMA nodes memory is taken, set_mempolicy(2); runtime-spec config-linux
//! "memoryPolicy".

use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType, MemoryPolicyModeType};

use super::id_list;
use crate::attribute::Attribute;
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};
use crate::observe;

/// `linux/memory_policy`.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryPolicy;

impl Isolator for MemoryPolicy {
    fn name(&self) -> &'static str {
        "linux/memory_policy"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let Some(policy) = declared(declaration) else {
            return Ok(ContainerLaunchInfo::default());
        };
        let nodes = nodes(policy)?;
        if !std::path::Path::new("/proc/self/numa_maps").exists() {
            return Err(Error::Unsupported {
                isolator: self.name(),
                feature: "a kernel with NUMA (CONFIG_NUMA)".to_owned(),
            });
        }
        let mode = flags(policy).fold(mode(policy.mode()).0, |mode, (flag, _)| mode | flag);
        Ok(ContainerLaunchInfo {
            attributes: vec![Attribute::MemoryPolicy { mode, nodes }],
            ..Default::default()
        })
    }

    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()> {
        // The kernel walks all pages of a process for this file.
        if declared(declaration).is_some() {
            live.memory_policy = parse(&observe::read(target, "numa_maps")?);
        }
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let Some(policy) = declared(declaration) else {
            return Vec::new();
        };
        let seen = live.memory_policy.as_deref();
        let verdict = match seen {
            None => Verdict::Unknown,
            Some(seen) if is_as_declared(policy, seen) => Verdict::Match,
            Some(_) => Verdict::Weaker,
        };
        let nodes = policy.nodes().as_deref().unwrap_or_default();
        vec![Finding {
            isolator: self.name(),
            item: "memory policy".to_owned(),
            declared: format!("{}:{nodes}", in_kernel_words(policy)),
            live: seen.unwrap_or("not seen").to_owned(),
            verdict,
            read_from: "numa_maps".to_owned(),
        }]
    }
}

fn declared(declaration: &Declaration) -> Option<&LinuxMemoryPolicy> {
    declaration.spec.linux().as_ref()?.memory_policy().as_ref()
}

/// Number in linux/mempolicy.h, and name in numa_maps.
fn mode(mode: MemoryPolicyModeType) -> (i32, &'static str) {
    match mode {
        MemoryPolicyModeType::MpolDefault => (0, "default"),
        MemoryPolicyModeType::MpolPreferred => (1, "prefer"),
        MemoryPolicyModeType::MpolBind => (2, "bind"),
        MemoryPolicyModeType::MpolInterleave => (3, "interleave"),
        MemoryPolicyModeType::MpolLocal => (4, "local"),
        MemoryPolicyModeType::MpolPreferredMany => (5, "prefer (many)"),
        MemoryPolicyModeType::MpolWeightedInterleave => (6, "weighted interleave"),
    }
}

/// The flags in the order of numa_maps, each once.
fn flags(policy: &LinuxMemoryPolicy) -> impl Iterator<Item = (i32, &'static str)> {
    let all = [
        (MemoryPolicyFlagType::MpolFStaticNodes, 1 << 15, "static"),
        (
            MemoryPolicyFlagType::MpolFRelativeNodes,
            1 << 14,
            "relative",
        ),
        (
            MemoryPolicyFlagType::MpolFNumaBalancing,
            1 << 13,
            "balancing",
        ),
    ];
    let has = |flag: &MemoryPolicyFlagType| policy.flags().iter().flatten().any(|f| f == flag);
    all.into_iter()
        .filter(move |(flag, _, _)| has(flag))
        .map(|(_, number, name)| (number, name))
}

/// The nodes as a mask, checked against the mode.
fn nodes(policy: &LinuxMemoryPolicy) -> Result<Vec<u64>> {
    let text = policy.nodes().as_deref().unwrap_or_default();
    let refused = |rule: String| Error::Config {
        field: "linux.memoryPolicy",
        value: format!("{} with nodes {text:?}", policy.mode()),
        rule,
    };
    let nodes = id_list::parse(text)
        .map_err(|error| refused(format!("invalid memory policy nodes: {error}")))?;
    match (policy.mode(), id_list::count(&nodes)) {
        (MemoryPolicyModeType::MpolDefault | MemoryPolicyModeType::MpolLocal, count @ 1..) => Err(
            refused(format!("that mode requires 0 nodes but got {count}")),
        ),
        // Without nodes the preferred one is the local one.
        (
            MemoryPolicyModeType::MpolDefault
            | MemoryPolicyModeType::MpolLocal
            | MemoryPolicyModeType::MpolPreferred,
            _,
        )
        | (_, 1..) => Ok(nodes),
        (_, 0) => Err(refused(
            "that mode requires at least one node but got 0".to_owned(),
        )),
    }
}

/// Mode and flags as numa_maps has them, without nodes.
fn in_kernel_words(policy: &LinuxMemoryPolicy) -> String {
    let no_nodes = policy.nodes().as_deref().unwrap_or_default().is_empty();
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolPreferred if no_nodes => MemoryPolicyModeType::MpolLocal,
        mode => mode,
    };
    let flags: Vec<_> = flags(policy).map(|(_, name)| name).collect();
    match flags.is_empty() {
        true => self::mode(mode).1.to_owned(),
        false => format!("{}={}", self::mode(mode).1, flags.join("|")),
    }
}

/// The kernel drops nodes that it does not have, and counts relative ones anew.
fn is_as_declared(policy: &LinuxMemoryPolicy, seen: &str) -> bool {
    let (mode, seen_nodes) = seen.split_once(':').unwrap_or((seen, ""));
    let relative = flags(policy).any(|(_, name)| name == "relative");
    let declared = policy.nodes().as_deref().map(id_list::parse);
    let within = match (declared, id_list::parse(seen_nodes)) {
        (Some(Ok(declared)), Ok(seen)) => id_list::contains(&declared, &seen),
        (None, Ok(seen)) => seen.is_empty(),
        _ => false,
    };
    mode == in_kernel_words(policy) && (relative || within)
}

/// The policy in the first line of a numa_maps file, as the kernel words it: that of the process, since the program's
/// own text has none.
fn parse(text: &str) -> Option<String> {
    let (_, rest) = text.lines().next()?.split_once(' ')?;
    // Two of the names have a space.
    let named = ["prefer (many)", "weighted interleave"];
    let start = named
        .iter()
        .find(|name| rest.starts_with(*name))
        .map_or(0, |name| name.len());
    let end = rest[start..].find(' ').map_or(rest.len(), |at| start + at);
    Some(rest[..end].to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(mode: &str, nodes: &str, flags: Value) -> LinuxMemoryPolicy {
        serde_json::from_value(json!({ "mode": mode, "nodes": nodes, "flags": flags })).unwrap()
    }

    #[test]
    fn modes_say_how_many_nodes_they_need() {
        let cases = [
            ("MPOL_DEFAULT", "0-7", "mode requires 0 nodes but got 8"),
            ("MPOL_LOCAL", "1", "mode requires 0 nodes but got 1"),
            ("MPOL_BIND", "", "at least one node"),
            ("MPOL_INTERLEAVE", "", "at least one node"),
            ("MPOL_BIND", "0-9876543210", "invalid memory policy node"),
        ];
        for (mode, list, word) in cases {
            let error = nodes(&policy(mode, list, json!([])))
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
        }
        let none = nodes(&policy("MPOL_PREFERRED", "", json!([]))).unwrap();
        assert!(none.is_empty());
        assert_eq!(nodes(&policy("MPOL_BIND", "0,2", json!([]))).unwrap(), [5]);
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let line =
            |words: &str| parse(&format!("5581 {words} file=/bin/sleep mapped=3\n")).unwrap();
        assert_eq!(line("prefer (many):0-1"), "prefer (many):0-1");
        assert_eq!(line("bind=static:0"), "bind=static:0");
        assert_eq!(parse("5581 default\n").unwrap(), "default");

        let bind = policy("MPOL_BIND", "0-3", json!(["MPOL_F_STATIC_NODES"]));
        assert!(is_as_declared(&bind, "bind=static:0"));
        assert!(!is_as_declared(&bind, "bind=static:4"));
        assert!(!is_as_declared(&bind, "bind:0"));
        assert!(!is_as_declared(&bind, "default"));
        let relative = policy("MPOL_PREFERRED", "1", json!(["MPOL_F_RELATIVE_NODES"]));
        assert!(is_as_declared(&relative, "prefer=relative:0"));
        assert!(is_as_declared(
            &policy("MPOL_PREFERRED", "", json!([])),
            "local"
        ));
    }
}
