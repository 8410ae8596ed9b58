//! Rules to classic BPF (seccomp(2), Linux' Documentation/networking/filter.rst).
//!
//! The program is built as a graph of nodes, equal nodes only once: a switch over architectures, below it a balanced
//! tree over ranges of numbers with equal decisions, below that the conditions on arguments. `layout` puts it in
//! order. No argument is loaded before the number is known, so that the kernel's bitmap of calls that are allowed
//! whatever their arguments works.

use libc::{
    SECCOMP_FILTER_FLAG_LOG, SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

use super::layout::{Graph, Node, NodeId, Test};
use super::rules::{Clause, Comparison, Condition, Decision, Rules, UNLISTED, Unused};
use super::symbolic;
use super::tables::{Abi, X32_BIT};
use crate::error::{Error, Result};
use crate::launch_info::{SeccompFilter, SeccompListener};

/// Offset of `seccomp_data.nr`.
pub const NUMBER: u32 = 0;
/// Offset of `seccomp_data.arch`.
pub const ARCH: u32 = 4;
/// Offset of `seccomp_data.args`.
pub const ARGUMENTS: u32 = 16;
/// The kernel's BPF_MAXINSNS.
pub const MOST_INSTRUCTIONS: usize = 4096;

/// A program with what its profile said in vain.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Ready for seccomp(2).
    pub filter: SeccompFilter,
    /// What of the profile has no meaning here.
    pub unused: Unused,
}

/// Compiles a resolved profile for this machine and proves the program equal to the rules.
///
/// # Errors
/// `Error::Config` for a field that cannot be honoured, `Error::Seccomp` for a profile that is too long.
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Compiled> {
    let (rules, unused) = Rules::new(seccomp)?;
    let listener = listener(seccomp)?;
    let flags = flags(seccomp, listener.is_some())?;
    let fail = |reason: String| Error::Seccomp {
        profile: "linux.seccomp".to_owned(),
        reason,
    };
    let program = emit(&rules).ok_or_else(|| {
        fail(format!(
            "it needs more than the {MOST_INSTRUCTIONS} instructions that the kernel takes; \
             use fewer conditions on arguments or fewer architectures"
        ))
    })?;
    symbolic::verify(&program, &rules).map_err(|e| {
        fail(format!(
            "the compiled program is wrong and was not used: {e}"
        ))
    })?;
    let filter = SeccompFilter {
        program,
        flags,
        listener,
    };
    Ok(Compiled { filter, unused })
}

/// Who listens, if any rule hands calls over; else the path has no meaning.
fn listener(seccomp: &LinuxSeccomp) -> Result<Option<SeccompListener>> {
    let mut rules = seccomp.syscalls().iter().flatten();
    if !rules.any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify) {
        return Ok(None);
    }
    let path = seccomp.listener_path().as_ref();
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let path = path.ok_or_else(|| Error::Seccomp {
        profile: "linux.seccomp".to_owned(),
        reason: "seccomp listenerPath is not set, which SCMP_ACT_NOTIFY needs".to_owned(),
    })?;
    Ok(Some(SeccompListener {
        path: path.clone(),
        metadata: seccomp.listener_metadata().clone(),
    }))
}

fn flags(seccomp: &LinuxSeccomp, listens: bool) -> Result<u64> {
    use LinuxSeccompFilterFlag::*;
    let mut bits = match listens {
        true => SECCOMP_FILTER_FLAG_NEW_LISTENER,
        false => 0,
    };
    let Some(flags) = seccomp.flags() else {
        // As runc: who says nothing does not pay for the mitigation of speculative store bypass.
        return Ok(bits | SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    };
    for flag in flags {
        bits |= match flag {
            SeccompFilterFlagLog => SECCOMP_FILTER_FLAG_LOG,
            SeccompFilterFlagSpecAllow => SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            // The process that loads the filter has one thread, and the kernel refuses this beside a listener.
            SeccompFilterFlagTsync => 0,
            SeccompFilterFlagWaitKillableRecv if listens => SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
            SeccompFilterFlagWaitKillableRecv => {
                return Err(Error::Config {
                    field: "linux.seccomp.flags",
                    value: flag.to_string(),
                    rule: "no rule has SCMP_ACT_NOTIFY, for which it is".to_owned(),
                });
            }
        };
    }
    Ok(bits)
}

/// `None`: too long.
pub(super) fn emit(rules: &Rules) -> Option<Vec<libc::sock_filter>> {
    let mut graph = Graph::default();
    let mut archs: Vec<u32> = rules.abis().map(Abi::audit_arch).collect();
    // The native one first: it is the common case.
    archs.sort_by_key(|arch| *arch != Abi::native().audit_arch());
    archs.dedup();
    let mut root = graph.add(Node::Return(UNLISTED));
    for arch in archs.into_iter().rev() {
        let tree = numbers(&mut graph, rules, arch)?;
        let tree = graph.add(Node::Load(NUMBER, tree));
        root = graph.add(Node::Branch(Test::Equal, arch, tree, root));
    }
    let root = graph.add(Node::Load(ARCH, root));
    graph.layout(root, MOST_INSTRUCTIONS)
}

/// The numbers from `first` to the next one's.
#[derive(Clone, Copy)]
struct Range {
    first: u32,
    node: NodeId,
}

/// The decisions of one architecture, the accumulator holding the number.
fn numbers(graph: &mut Graph, rules: &Rules, arch: u32) -> Option<NodeId> {
    // A profile has few kinds of decisions.
    let mut blocks: Vec<(Decision, NodeId)> = Vec::new();
    let mut ranges: Vec<Range> = Vec::new();
    let mut before = None;
    for first in rules.breakpoints(arch) {
        let decision = rules.decision(arch, first);
        if before.as_ref() == Some(&decision) && first != X32_BIT {
            continue;
        }
        let known = blocks.iter().find(|(known, _)| *known == decision);
        let node = match known {
            Some((_, node)) => *node,
            None => {
                let node = arguments(graph, &decision)?;
                blocks.push((decision.clone(), node));
                node
            }
        };
        before = Some(decision);
        // The range at x32's first number starts a tree of its own, see below.
        if first == X32_BIT || ranges.last().is_none_or(|last| last.node != node) {
            ranges.push(Range { first, node });
        }
    }
    // x32 first apart: its numbers are far from the others, and most programs have none.
    let split = ranges.partition_point(|range| range.first < X32_BIT);
    let (low, high) = ranges.split_at(split);
    let (low, high) = (
        fold_single_numbers(graph, low),
        fold_single_numbers(graph, high),
    );
    Some(match (tree(graph, &low), tree(graph, &high)) {
        (Some(low), Some(high)) => {
            graph.add(Node::Branch(Test::GreaterOrEqual, X32_BIT, high, low))
        }
        (Some(only), None) | (None, Some(only)) => only,
        (None, None) => return None,
    })
}

/// A single number in the middle of a range that is otherwise alike costs one test as an exception, two as a range.
fn fold_single_numbers(graph: &mut Graph, ranges: &[Range]) -> Vec<Range> {
    // More would make the path to the last of them longer than the tree is deep.
    const MOST_EXCEPTIONS: usize = 2;
    let mut folded = Vec::new();
    let mut rest = ranges;
    while let [range, others @ ..] = rest {
        let mut exceptions = Vec::new();
        let mut tail = others;
        while let [single, again, ..] = tail
            && exceptions.len() < MOST_EXCEPTIONS
            && again.first == single.first + 1
            && again.node == range.node
        {
            exceptions.push(*single);
            tail = &tail[2..];
        }
        let node = exceptions
            .iter()
            .rev()
            .fold(range.node, |otherwise, single| {
                graph.add(Node::Branch(
                    Test::Equal,
                    single.first,
                    single.node,
                    otherwise,
                ))
            });
        folded.push(Range {
            first: range.first,
            node,
        });
        rest = tail;
    }
    folded
}

fn tree(graph: &mut Graph, ranges: &[Range]) -> Option<NodeId> {
    if let [] | [_] = ranges {
        return ranges.first().map(|only| only.node);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (left, right) = (tree(graph, low)?, tree(graph, high)?);
    Some(graph.add(Node::Branch(
        Test::GreaterOrEqual,
        high.first()?.first,
        right,
        left,
    )))
}

/// The clauses of one call, in order. `None` when there are more than any program can hold.
fn arguments(graph: &mut Graph, decision: &Decision) -> Option<NodeId> {
    let conditions: usize = decision.clauses.iter().map(|c| c.conditions.len()).sum();
    if conditions > MOST_INSTRUCTIONS {
        return None;
    }
    let otherwise = graph.add(Node::Return(decision.otherwise));
    Some(
        decision
            .clauses
            .iter()
            .rev()
            .fold(otherwise, |otherwise, clause| {
                let Clause {
                    conditions,
                    verdict,
                } = clause;
                let matched = graph.add(Node::Return(*verdict));
                conditions.iter().rev().fold(matched, |yes, condition| {
                    test(graph, condition, yes, otherwise)
                })
            }),
    )
}

/// One condition on a 64-bit argument, of which BPF sees one half at a time: the upper half decides unless it is equal.
fn test(graph: &mut Graph, condition: &Condition, yes: NodeId, no: NodeId) -> NodeId {
    let Condition {
        argument,
        mask,
        comparison,
        value,
    } = *condition;
    // Turned around, three comparisons are left.
    let (test, yes, no) = match comparison {
        Comparison::Equal => (Test::Equal, yes, no),
        Comparison::NotEqual => (Test::Equal, no, yes),
        Comparison::Greater => (Test::Greater, yes, no),
        Comparison::LessOrEqual => (Test::Greater, no, yes),
        Comparison::GreaterOrEqual => (Test::GreaterOrEqual, yes, no),
        Comparison::Less => (Test::GreaterOrEqual, no, yes),
    };
    let low = half(graph, Half::Low, argument, mask, value, test, yes, no);
    match test {
        Test::Equal => half(
            graph,
            Half::High,
            argument,
            mask,
            value,
            Test::Equal,
            low,
            no,
        ),
        _ => {
            let equal = half(
                graph,
                Half::High,
                argument,
                mask,
                value,
                Test::Equal,
                low,
                no,
            );
            half(
                graph,
                Half::High,
                argument,
                mask,
                value,
                Test::Greater,
                yes,
                equal,
            )
        }
    }
}

#[derive(Clone, Copy)]
enum Half {
    Low,
    High,
}

#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one comparison, all plain numbers"
)]
fn half(
    graph: &mut Graph,
    half: Half,
    argument: usize,
    mask: u64,
    value: u64,
    test: Test,
    yes: NodeId,
    no: NodeId,
) -> NodeId {
    let big_endian = cfg!(target_endian = "big");
    let (mask, value, second) = match half {
        Half::Low => (mask as u32, value as u32, big_endian),
        Half::High => ((mask >> 32) as u32, (value >> 32) as u32, !big_endian),
    };
    if mask == 0 {
        return if test.holds(0, value) { yes } else { no };
    }
    let offset = ARGUMENTS + 8 * argument as u32 + if second { 4 } else { 0 };
    if mask == u32::MAX {
        let branch = graph.branch_on(offset, test, value, yes, no);
        return graph.add(Node::Load(offset, branch));
    }
    let tested = match (test, value) {
        // One instruction instead of two.
        (Test::Equal, 0) => graph.branch_on(offset, Test::AnyBit, mask, no, yes),
        _ => {
            let branch = graph.add(Node::Branch(test, value, yes, no));
            graph.add(Node::And(mask, branch))
        }
    };
    graph.add(Node::Load(offset, tested))
}
