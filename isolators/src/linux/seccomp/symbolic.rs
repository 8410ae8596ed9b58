//! What a BPF program does, read from its instructions: the proof that a compiled program equals its rules.
//!
//! For one architecture a program is run once with an unknown number: each comparison splits the interval of numbers,
//! so all 2^32 are covered by a few hundred steps. Where the verdict depends on arguments the program is run on
//! witnesses: values at, next to and one bit off each value of the conditions, in each half, in all combinations.
//!
//! Only the instructions that filters use are understood; another one is an error, never a guess.

use std::collections::BTreeSet;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD,
    BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_LOG, SECCOMP_RET_USER_NOTIF, sock_filter,
};

use super::compile::{ARCH, ARGUMENTS, NUMBER};
use super::layout::Test;
use super::rules::{Condition, Decision, Rules, Verdict};
use super::tables::Abi;
use crate::launch_info::SeccompFilter;

/// Why a program could not be understood, or is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An instruction that filters do not need.
    #[error("instruction {pc} (code {code:#x}) is not understood")]
    Instruction {
        /// Its index.
        pc: usize,
        /// Its code.
        code: u16,
    },
    /// A jump or a last instruction that leads out.
    #[error("instruction {pc} is past the end of the program")]
    End {
        /// The index that was reached.
        pc: usize,
    },
    /// It decides otherwise than its rules.
    #[error(
        "for architecture {arch:#x}, call {number:#x}, arguments {arguments:x?} it returns {found:#x} \
         where the rules say {expected:#x}"
    )]
    Differs {
        /// `seccomp_data.arch`
        arch: u32,
        /// `seccomp_data.nr`
        number: u32,
        /// `seccomp_data.args`
        arguments: [u64; 6],
        /// What the program returns.
        found: Verdict,
        /// What the rules say.
        expected: Verdict,
    },
    /// It looks at arguments where the rules do not, or for calls whose rules differ.
    #[error(
        "for architecture {arch:#x}, call {number:#x} it looks at arguments where the rules do not"
    )]
    LooksAtArguments {
        /// `seccomp_data.arch`
        arch: u32,
        /// `seccomp_data.nr`
        number: u32,
    },
}

/// What becomes of an interval of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The same whatever the arguments.
    Always(Verdict),
    /// The program goes on to look at arguments (or the instruction pointer).
    Depends,
}

/// The numbers from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
    /// What becomes of them.
    pub outcome: Outcome,
}

/// One instruction, decoded.
enum Instruction {
    Load(u32),
    And(u32),
    Jump(usize),
    Branch(Test, u32, usize, usize),
    Return(Verdict),
}

fn decode(program: &[sock_filter], pc: usize) -> Result<Instruction, Fault> {
    let instruction = program.get(pc).ok_or(Fault::End { pc })?;
    let sock_filter { code, jt, jf, k } = *instruction;
    let test =
        |test| Instruction::Branch(test, k, pc + 1 + usize::from(jt), pc + 1 + usize::from(jf));
    const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
    const KEEP: u32 = BPF_ALU | BPF_AND | BPF_K;
    const JUMP: u32 = BPF_JMP | BPF_JA;
    const EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
    const GREATER: u32 = BPF_JMP | BPF_JGT | BPF_K;
    const GREATER_OR_EQUAL: u32 = BPF_JMP | BPF_JGE | BPF_K;
    const ANY_BIT: u32 = BPF_JMP | BPF_JSET | BPF_K;
    const RETURN: u32 = BPF_RET | BPF_K;
    Ok(match u32::from(code) {
        LOAD if k.is_multiple_of(4) && k < 64 => Instruction::Load(k),
        KEEP => Instruction::And(k),
        JUMP => Instruction::Jump(pc + 1 + k as usize),
        EQUAL => test(Test::Equal),
        GREATER => test(Test::Greater),
        GREATER_OR_EQUAL => test(Test::GreaterOrEqual),
        ANY_BIT => test(Test::AnyBit),
        RETURN => Instruction::Return(k),
        _ => return Err(Fault::Instruction { pc, code }),
    })
}

/// Runs a program on one call.
///
/// # Errors
/// `Fault` when the program cannot be understood.
pub fn run(
    program: &[sock_filter],
    arch: u32,
    number: u32,
    arguments: &[u64; 6],
) -> Result<Verdict, Fault> {
    let word = |offset: u32| match offset {
        NUMBER => number,
        ARCH => arch,
        // The instruction pointer, which no rule can name.
        8 | 12 => 0,
        _ => {
            let value = arguments[(offset - ARGUMENTS) as usize / 8];
            let upper = offset.is_multiple_of(8) == cfg!(target_endian = "big");
            if upper {
                (value >> 32) as u32
            } else {
                value as u32
            }
        }
    };
    let (mut pc, mut accumulator) = (0, 0);
    loop {
        pc = match decode(program, pc)? {
            Instruction::Load(offset) => {
                accumulator = word(offset);
                pc + 1
            }
            Instruction::And(mask) => {
                accumulator &= mask;
                pc + 1
            }
            Instruction::Jump(to) => to,
            Instruction::Branch(test, constant, yes, no) => {
                if test.holds(accumulator, constant) {
                    yes
                } else {
                    no
                }
            }
            Instruction::Return(verdict) => return Ok(verdict),
        };
    }
}

#[derive(Clone, Copy)]
enum Value {
    Known(u32),
    Number,
}

/// What a program does with every number of one architecture, in order.
///
/// # Errors
/// `Fault` when the program cannot be understood.
pub fn intervals(program: &[sock_filter], arch: u32) -> Result<Vec<Interval>, Fault> {
    let mut done: Vec<Interval> = Vec::new();
    // The lowest interval is on top, so that they end in order.
    let mut paths = vec![(0, Value::Known(0), 0, u32::MAX)];
    while let Some((pc, value, first, last)) = paths.pop() {
        // A number that is known is as good as a constant.
        let value = match value {
            Value::Number if first == last => Value::Known(first),
            other => other,
        };
        let mut end = |outcome| match done.last_mut() {
            Some(before) if before.outcome == outcome => before.last = last,
            _ => done.push(Interval {
                first,
                last,
                outcome,
            }),
        };
        match (decode(program, pc)?, value) {
            (Instruction::Load(NUMBER), _) => paths.push((pc + 1, Value::Number, first, last)),
            (Instruction::Load(ARCH), _) => paths.push((pc + 1, Value::Known(arch), first, last)),
            (Instruction::Load(_), _) => end(Outcome::Depends),
            (Instruction::Return(verdict), _) => end(Outcome::Always(verdict)),
            (Instruction::Jump(to), _) => paths.push((to, value, first, last)),
            (Instruction::And(mask), Value::Known(known)) => {
                paths.push((pc + 1, Value::Known(known & mask), first, last));
            }
            (Instruction::Branch(test, constant, yes, no), Value::Known(known)) => {
                let to = if test.holds(known, constant) { yes } else { no };
                paths.push((to, value, first, last));
            }
            (Instruction::Branch(test, constant, yes, no), Value::Number)
                if test != Test::AnyBit =>
            {
                // Below the constant, at it, above it.
                let target = |number: u32| {
                    if test.holds(number, constant) {
                        yes
                    } else {
                        no
                    }
                };
                if last > constant {
                    let above = constant + 1;
                    paths.push((target(above), value, first.max(above), last));
                }
                if (first..=last).contains(&constant) {
                    paths.push((target(constant), value, constant, constant));
                }
                if first < constant {
                    paths.push((target(constant - 1), value, first, last.min(constant - 1)));
                }
            }
            (Instruction::And(_) | Instruction::Branch(..), Value::Number) => {
                return Err(Fault::Instruction {
                    pc,
                    code: program[pc].code,
                });
            }
        }
    }
    Ok(done)
}

/// Proves that a program decides as its rules.
///
/// # Errors
/// The first call for which it does not.
pub fn verify(program: &[sock_filter], rules: &Rules) -> Result<(), Fault> {
    for arch in architectures(program)? {
        let intervals = intervals(program, arch)?;
        let breakpoints = rules.breakpoints(arch);
        let mut rest = &breakpoints[..];
        for Interval {
            first,
            last,
            outcome,
        } in intervals
        {
            // Both sides are constant between these numbers.
            let inside = rest.partition_point(|number| *number <= last);
            let (points, after) = rest.split_at(inside);
            rest = after;
            for number in std::iter::once(first).chain(points.iter().copied()) {
                let decision = rules.decision(arch, number);
                verify_call(program, arch, number, &decision, outcome)?;
            }
        }
    }
    Ok(())
}

fn verify_call(
    program: &[sock_filter],
    arch: u32,
    number: u32,
    decision: &Decision,
    outcome: Outcome,
) -> Result<(), Fault> {
    if decision.clauses.is_empty() {
        let expected = decision.otherwise;
        return match outcome {
            Outcome::Depends => Err(Fault::LooksAtArguments { arch, number }),
            Outcome::Always(found) if found == expected => Ok(()),
            Outcome::Always(found) => Err(Fault::Differs {
                arch,
                number,
                arguments: [0; 6],
                found,
                expected,
            }),
        };
    }
    witnesses(decision, |arguments| {
        let expected = decision.verdict(arguments);
        let found = match outcome {
            Outcome::Always(verdict) => verdict,
            Outcome::Depends => run(program, arch, number, arguments)?,
        };
        match found == expected {
            true => Ok(()),
            false => Err(Fault::Differs {
                arch,
                number,
                arguments: *arguments,
                found,
                expected,
            }),
        }
    })
}

/// One of each kind of architecture that a program can tell apart: those at and beside what it compares them with, the
/// ones that we know, and the ends.
fn architectures(program: &[sock_filter]) -> Result<BTreeSet<u32>, Fault> {
    let mut kinds: BTreeSet<u32> = Abi::ALL.map(Abi::audit_arch).into();
    kinds.extend([0, u32::MAX]);
    // Where the accumulator may hold the architecture. Jumps only go forward, so one pass finds all.
    let mut holds = vec![false; program.len()];
    for pc in 0..program.len() {
        let (mut next, mut held) = ([pc + 1, pc + 1], holds[pc]);
        match decode(program, pc)? {
            Instruction::Load(offset) => held = offset == ARCH,
            Instruction::And(_) | Instruction::Branch(Test::AnyBit, ..) if held => {
                let code = program[pc].code;
                return Err(Fault::Instruction { pc, code });
            }
            Instruction::And(_) => {}
            Instruction::Jump(to) => next = [to, to],
            Instruction::Branch(_, constant, yes, no) => {
                next = [yes, no];
                if held {
                    let beside = [constant.wrapping_sub(1), constant, constant.wrapping_add(1)];
                    kinds.extend(beside);
                }
            }
            Instruction::Return(_) => continue,
        }
        for to in next {
            *holds.get_mut(to).ok_or(Fault::End { pc: to })? |= held;
        }
    }
    Ok(kinds)
}

/// Most combinations of arguments that are tried for one call.
const MOST_COMBINATIONS: usize = 4096;

/// Calls `check` with arguments that tell the clauses of `decision` apart.
fn witnesses(
    decision: &Decision,
    mut check: impl FnMut(&[u64; 6]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let candidates: [Vec<u64>; 6] = std::array::from_fn(|argument| candidates(decision, argument));
    let combinations = candidates
        .iter()
        .try_fold(1_usize, |product, list| product.checked_mul(list.len()))
        .filter(|product| *product <= MOST_COMBINATIONS);
    let pick = |mut index: usize| {
        candidates.each_ref().map(|list| {
            let value = list[index % list.len()];
            index /= list.len();
            value
        })
    };
    if let Some(all) = combinations {
        return (0..all).try_for_each(|index| check(&pick(index)));
    }
    // Too many: each clause is met in full, then missed in one argument after the other; and some of the rest.
    for clause in &decision.clauses {
        let alone = Decision {
            clauses: vec![clause.clone()],
            otherwise: decision.otherwise,
        };
        let near = |condition: &Condition| self::candidates(&alone, condition.argument);
        let mut base = [0; 6];
        for condition in &clause.conditions {
            let mut values = near(condition).into_iter();
            let meets = |value: &u64| {
                let mut arguments = [0; 6];
                arguments[condition.argument] = *value;
                condition.holds(&arguments)
            };
            base[condition.argument] = values.find(meets).unwrap_or_default();
        }
        check(&base)?;
        for condition in &clause.conditions {
            for value in near(condition) {
                let mut arguments = base;
                arguments[condition.argument] = value;
                check(&arguments)?;
            }
        }
    }
    // A multiplicative congruential generator: the same calls in each run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..MOST_COMBINATIONS {
        let arguments = candidates.each_ref().map(|list| {
            state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
            list[(state >> 33) as usize % list.len()]
        });
        check(&arguments)?;
    }
    Ok(())
}

/// Values of one argument: for each half those at, beside and one bit off what it is compared with.
fn candidates(decision: &Decision, argument: usize) -> Vec<u64> {
    let on_this = |condition: &&Condition| condition.argument == argument;
    let all = decision
        .clauses
        .iter()
        .flat_map(|clause| &clause.conditions);
    let mut conditions = all.filter(on_this).peekable();
    if conditions.peek().is_none() {
        // Not looked at: junk must not matter.
        return vec![0xdead_beef_dead_beef];
    }
    let (mut low, mut high) = (BTreeSet::from([0, u32::MAX]), BTreeSet::from([0, u32::MAX]));
    for condition in conditions {
        let halves = [
            (condition.value as u32, condition.mask as u32, &mut low),
            (
                (condition.value >> 32) as u32,
                (condition.mask >> 32) as u32,
                &mut high,
            ),
        ];
        for (value, mask, set) in halves {
            set.extend([
                value,
                value.wrapping_sub(1),
                value.wrapping_add(1),
                value | !mask,
                !value,
            ]);
            if mask != u32::MAX {
                let bits = (0..32)
                    .map(|bit| 1_u32 << bit)
                    .filter(|bit| mask & bit != 0);
                set.extend(bits.map(|bit| value ^ bit));
            }
        }
    }
    let high: Vec<u64> = high.into_iter().map(|high| u64::from(high) << 32).collect();
    low.into_iter()
        .flat_map(|low| high.iter().map(move |high| high | u64::from(low)))
        .collect()
}

/// Which of these calls the filter lets through with no arguments at all, natively. A name that is no call of this
/// architecture is one of them, and all are if the program cannot be understood. A call that goes to a listener counts
/// as let through: what becomes of it is the listener's to say.
pub fn missing_calls(filter: &SeccompFilter, calls: &[&str]) -> Vec<String> {
    let native = Abi::native();
    let is_open = |name: &str| match native.number(name) {
        Some(number) => may_pass(&filter.program, native.audit_arch(), number).unwrap_or_default(),
        None => false,
    };
    let missing = calls.iter().filter(|name| !is_open(name));
    missing.map(|name| (*name).to_owned()).collect()
}

/// Whether some path through the program, whatever the arguments, lets this call through.
fn may_pass(program: &[sock_filter], arch: u32, number: u32) -> Result<bool, Fault> {
    // Programs only go forward, and a state that was seen need not be seen again: this ends.
    let mut seen = BTreeSet::new();
    let mut paths = vec![(0, Some(0))];
    while let Some((pc, accumulator)) = paths.pop() {
        if !seen.insert((pc, accumulator)) {
            continue;
        }
        match (decode(program, pc)?, accumulator) {
            (Instruction::Return(verdict), _) => {
                let action = verdict & libc::SECCOMP_RET_ACTION_FULL;
                if matches!(
                    action,
                    SECCOMP_RET_ALLOW | SECCOMP_RET_LOG | SECCOMP_RET_USER_NOTIF
                ) {
                    return Ok(true);
                }
            }
            (Instruction::Load(NUMBER), _) => paths.push((pc + 1, Some(number))),
            (Instruction::Load(ARCH), _) => paths.push((pc + 1, Some(arch))),
            (Instruction::Load(_), _) => paths.push((pc + 1, None)),
            (Instruction::And(mask), known) => {
                paths.push((pc + 1, known.map(|known| known & mask)))
            }
            (Instruction::Jump(to), known) => paths.push((to, known)),
            (Instruction::Branch(test, constant, yes, no), Some(known)) => {
                let to = if test.holds(known, constant) { yes } else { no };
                paths.push((to, accumulator));
            }
            (Instruction::Branch(_, _, yes, no), None) => {
                paths.extend([(yes, accumulator), (no, accumulator)]);
            }
        }
    }
    Ok(false)
}
