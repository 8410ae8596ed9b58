//! What a list of device rules means, and the same thing in the two forms that the kernel takes.
//!
//! runtime-spec config-linux "Allowed Device list": rules in order, a later one overrides an earlier one, and nothing is
//! allowed at first. v1 keeps a default and exceptions to it and cannot say everything that a list can; what it cannot
//! say is refused. v2 runs a program, which can.

use std::collections::BTreeSet;
use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};

use crate::bpf::Instruction;
use crate::error::{Error, Result};

const FIELD: &str = "linux.resources.devices";

/// Character or block device; the numbers are those of `struct bpf_cgroup_dev_ctx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A block device.
    Block = 1,
    /// A character device.
    Character = 2,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Block, Self::Character];
}

/// What may be done with a device; the bits are those of `struct bpf_cgroup_dev_ctx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access(u8);

impl Access {
    const ALL: Self = Self(0b111);
    const LETTERS: [(char, u8); 3] = [('r', 2), ('w', 4), ('m', 1)];

    fn parse(text: &str) -> Option<Self> {
        let bit = |c| Self::LETTERS.iter().find(|(l, _)| *l == c).map(|(_, b)| b);
        text.chars()
            .try_fold(0, |bits, c| Some(bits | bit(c)?))
            .map(Self)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, bit) in Self::LETTERS {
            if self.0 & bit != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// A set of devices of one kind: one number, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Devices {
    /// Block or character.
    pub kind: Kind,
    /// Major number; `None` is any.
    pub major: Option<u32>,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
}

impl Devices {
    fn contains(&self, other: &Self) -> bool {
        let part = |ours: Option<u32>, theirs| ours.is_none() || ours == theirs;
        self.kind == other.kind && part(self.major, other.major) && part(self.minor, other.minor)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let part = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && part(self.major, other.major) && part(self.minor, other.minor)
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Block => 'b',
            Kind::Character => 'c',
        };
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(f, "{kind} {}:{}", number(self.major), number(self.minor))
    }
}

/// One rule, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    allow: bool,
    /// `None` is every device of every kind.
    devices: Option<Devices>,
    access: Access,
}

/// Checks the rules. Those of type `a` with numbers become one for each kind.
///
/// # Errors
/// For a type, number or access that no device has.
pub fn parse(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let mut parsed = Vec::new();
    for rule in rules {
        let refuse = |why: &str| Error::Config {
            field: FIELD,
            value: rule.to_string(),
            rule: why.to_owned(),
        };
        let number = |value: Option<i64>| match value {
            // The spec has no number for "all"; -1 is what Docker and others write.
            None | Some(-1) => Ok(None),
            Some(n) => u32::try_from(n)
                .map(Some)
                .map_err(|_| refuse("it is no device number")),
        };
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        let access = match rule.access().as_deref() {
            None | Some("") => Access::ALL,
            // A letter that others read over: it can deny, but nothing is allowed by it.
            Some(text) if !rule.allow() && text.contains('a') => Access::ALL,
            Some(text) => Access::parse(text)
                .ok_or_else(|| refuse("access is made of the letters r, w and m"))?,
        };
        let kinds: &[Kind] = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::A => &Kind::ALL,
            LinuxDeviceType::B => &[Kind::Block],
            LinuxDeviceType::C | LinuxDeviceType::U => &[Kind::Character],
            LinuxDeviceType::P => return Err(refuse("the kernel has no device rules for fifos")),
        };
        let allow = rule.allow();
        if kinds.len() == 2 && major.is_none() && minor.is_none() {
            parsed.push(Rule {
                allow,
                devices: None,
                access,
            });
            continue;
        }
        parsed.extend(kinds.iter().map(|&kind| Rule {
            allow,
            devices: Some(Devices { kind, major, minor }),
            access,
        }));
    }
    Ok(parsed)
}

/// A default and the exceptions to it: what v1 keeps.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Whether what no exception names is allowed.
    pub allow: bool,
    /// The exceptions, each once, in the order in which they were made.
    pub exceptions: Vec<(Devices, Access)>,
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.allow == other.allow && self.set() == other.set()
    }
}

impl Table {
    /// The meaning of a list of rules.
    ///
    /// # Errors
    /// When a rule takes a part out of an earlier, wider exception: v1 would not do it, and say nothing.
    pub fn of(rules: &[Rule]) -> Result<Self> {
        let mut table = Self::default();
        for rule in rules {
            match rule.devices {
                None if rule.access == Access::ALL => {
                    table.allow = rule.allow;
                    table.exceptions.clear();
                }
                None => {
                    for kind in Kind::ALL {
                        let all = Devices {
                            kind,
                            major: None,
                            minor: None,
                        };
                        table.apply(rule.allow, all, rule.access)?;
                    }
                }
                Some(devices) => table.apply(rule.allow, devices, rule.access)?,
            }
        }
        Ok(table)
    }

    fn apply(&mut self, allow: bool, devices: Devices, access: Access) -> Result<()> {
        let mut access = access;
        let mut left = Vec::new();
        for (other, theirs) in std::mem::take(&mut self.exceptions) {
            if allow != self.allow {
                // The kernel wants one exception to cover a whole access, so equal devices are joined.
                match other == devices {
                    true => access.0 |= theirs.0,
                    false => left.push((other, theirs)),
                }
            } else if devices.contains(&other) {
                let rest = Access(theirs.0 & !access.0);
                if rest.0 != 0 {
                    left.push((other, rest));
                }
            } else if devices.overlaps(&other) && theirs.0 & access.0 != 0 {
                let word = if allow { "allow" } else { "deny" };
                return Err(Error::Config {
                    field: FIELD,
                    value: format!("{word} {devices} {access} after {other} {theirs}"),
                    rule: "cgroup v1 cannot take a part out of a wider rule; name the devices one by one".into(),
                });
            } else {
                left.push((other, theirs));
            }
        }
        if allow != self.allow {
            left.push((devices, access));
        }
        self.exceptions = left;
        Ok(())
    }

    /// The content of v1's `devices.list`. It shows what is allowed: for a default of "allow" nothing but that.
    pub fn parse_list(text: &str) -> Option<Self> {
        let mut table = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
            let kind = match kind {
                "a" => {
                    table.allow = true;
                    continue;
                }
                "b" => Kind::Block,
                "c" => Kind::Character,
                _ => return None,
            };
            let number = |text: &str| match text {
                "*" => Some(None),
                digits => digits.parse().ok().map(Some),
            };
            let (major, minor) = numbers.split_once(':')?;
            let (major, minor) = (number(major)?, number(minor)?);
            table
                .exceptions
                .push((Devices { kind, major, minor }, Access::parse(access)?));
        }
        Some(table)
    }

    /// The exceptions without their order, which means nothing.
    pub fn set(&self) -> BTreeSet<(Devices, Access)> {
        self.exceptions.iter().copied().collect()
    }
}

/// The rules as a program of the type BPF_PROG_TYPE_CGROUP_DEVICE.
///
/// The last rule that names a device decides, so it walks them backwards and keeps what is still to be decided of the
/// access that is asked for: a deny rule that touches any of it refuses, an allow rule settles its part. What no rule
/// settles is refused.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    use asm::*;
    // The context holds access and kind in one number: access << 16 | kind.
    let mut code = vec![
        load(KIND, 0),
        load(MAJOR, 4),
        load(MINOR, 8),
        copy(LEFT, KIND),
        shift_right(LEFT, 16),
        and(KIND, 0xffff),
    ];
    for rule in rules.iter().rev() {
        let mut verdict = Vec::new();
        let all = rule.access == Access::ALL;
        let bits = i32::from(rule.access.0);
        if rule.allow && !all {
            verdict.push(and(LEFT, !bits));
            verdict.push(jump_unless_equal(LEFT, 0, 2));
        } else if !all {
            verdict.push(copy(RESULT, LEFT));
            verdict.push(and(RESULT, bits));
            verdict.push(jump_if_equal(RESULT, 0, 2));
        }
        verdict.push(set(RESULT, i32::from(rule.allow)));
        verdict.push(exit());

        let mut conditions = Vec::new();
        if let Some(devices) = rule.devices {
            conditions.push((KIND, devices.kind as i32));
            conditions.extend(devices.major.map(|n| (MAJOR, n.cast_signed())));
            conditions.extend(devices.minor.map(|n| (MINOR, n.cast_signed())));
        }
        let checks = conditions.len();
        for (at, (register, value)) in conditions.into_iter().enumerate() {
            let beyond = checks - at - 1 + verdict.len();
            // At most 2 + 5.
            code.push(jump_unless_equal(register, value, beyond as i16));
        }
        code.extend(verdict);
        if rule.devices.is_none() && all {
            // It decides everything; the verifier refuses code that cannot be reached.
            return code;
        }
    }
    code.extend([set(RESULT, 0), exit()]);
    code
}

/// The few instructions that are needed.
mod asm {
    use crate::bpf::Instruction;

    /// What the program returns: 1 allows.
    pub const RESULT: u8 = 0;
    /// Where the kernel passes the context.
    const CONTEXT: u8 = 1;
    pub const KIND: u8 = 2;
    /// The access that is still to be decided.
    pub const LEFT: u8 = 3;
    pub const MAJOR: u8 = 4;
    pub const MINOR: u8 = 5;

    const fn make(code: u8, to: u8, from: u8, offset: i16, constant: i32) -> Instruction {
        Instruction {
            code,
            registers: (from << 4) | to,
            offset,
            constant,
        }
    }

    /// BPF_LDX | BPF_MEM | BPF_W
    pub const fn load(to: u8, offset: i16) -> Instruction {
        make(0x61, to, CONTEXT, offset, 0)
    }

    /// BPF_ALU | BPF_MOV | BPF_X
    pub const fn copy(to: u8, from: u8) -> Instruction {
        make(0xbc, to, from, 0, 0)
    }

    /// BPF_ALU | BPF_MOV | BPF_K
    pub const fn set(to: u8, constant: i32) -> Instruction {
        make(0xb4, to, 0, 0, constant)
    }

    /// BPF_ALU | BPF_AND | BPF_K
    pub const fn and(to: u8, constant: i32) -> Instruction {
        make(0x54, to, 0, 0, constant)
    }

    /// BPF_ALU | BPF_RSH | BPF_K
    pub const fn shift_right(to: u8, constant: i32) -> Instruction {
        make(0x74, to, 0, 0, constant)
    }

    /// BPF_JMP32 | BPF_JEQ | BPF_K (5.1)
    pub const fn jump_if_equal(register: u8, constant: i32, beyond: i16) -> Instruction {
        make(0x16, register, 0, beyond, constant)
    }

    /// BPF_JMP32 | BPF_JNE | BPF_K (5.1)
    pub const fn jump_unless_equal(register: u8, constant: i32, beyond: i16) -> Instruction {
        make(0x56, register, 0, beyond, constant)
    }

    /// BPF_JMP | BPF_EXIT
    pub const fn exit() -> Instruction {
        make(0x95, 0, 0, 0, 0)
    }
}

/// The rules that Docker gives every container: nodes of any number may be made, and the harmless devices that every
/// program expects may be used. For declarations whose source leaves them to the runtime.
pub fn usual_rules() -> Vec<LinuxDeviceCgroup> {
    use LinuxDeviceType::{A, B, C};
    let rule = |allow, typ, numbers: (Option<i64>, Option<i64>), access: &str| {
        let mut builder = LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(typ)
            .access(access);
        if let Some(major) = numbers.0 {
            builder = builder.major(major);
        }
        if let Some(minor) = numbers.1 {
            builder = builder.minor(minor);
        }
        builder.build().expect("every field has a default")
    };
    let mut rules = vec![
        rule(false, A, (None, None), "rwm"),
        rule(true, C, (None, None), "m"),
        rule(true, B, (None, None), "m"),
        rule(true, C, (Some(136), None), "rwm"), // pseudo-terminals
    ];
    // null, zero, full, random, urandom, tty, ptmx
    let numbers = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];
    rules.extend(numbers.map(|(major, minor)| rule(true, C, (Some(major), Some(minor)), "rwm")));
    rules
}

#[cfg(test)]
#[path = "device_rules_tests.rs"]
mod tests;
