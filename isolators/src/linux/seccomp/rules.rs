//! What a resolved profile means: the one definition that the compiler follows and the proof checks against.
//!
//! runtime-spec config-linux "seccomp", with these decisions:
//! - The first rule that matches decides, as in libseccomp. A rule that names one argument twice is one rule for each
//!   of its conditions, as in runc.
//! - An argument that the kernel takes as a 32-bit int is compared on 32 bits: whoever sets stray upper bits cannot
//!   make it look like another value. A value of the profile that fits in no 32-bit int is compared on 64.
//! - On i386 a rule for, say, `socket` also holds for socketcall(2) with that sub-call. There the arguments are out of
//!   sight: a rule with conditions then holds whatever they are if it restricts, and not at all if it permits.
//! - A call newer than the newest one that the profile names fails with ENOSYS (unless the default permits it), so
//!   that libraries fall back to what the profile's author knew.
//! - A call for the listener must not be `write`, nor what no rule names: the launch still writes who listens.
//! - The native architecture always counts as listed. A call of an architecture that is not kills the process.

use std::collections::{BTreeMap, BTreeSet};

use libc::{
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD,
    SECCOMP_RET_LOG, SECCOMP_RET_TRACE, SECCOMP_RET_TRAP, SECCOMP_RET_USER_NOTIF,
};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::tables::{self, Abi, X32_BIT, X32_OWN};
use crate::error::{Error, Result};

/// What the kernel is told to do with a call: a value of `SECCOMP_RET_*` with its data.
pub type Verdict = u32;

/// For calls that the profile's author cannot have known.
pub const NEWER: Verdict = SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// For architectures that are not listed.
pub const UNLISTED: Verdict = SECCOMP_RET_KILL_PROCESS;

/// A profile, resolved and with names turned into numbers.
#[derive(Debug)]
pub struct Rules {
    default: Verdict,
    spaces: BTreeMap<Abi, Space>,
}

/// The rules of one ABI.
#[derive(Debug, Default)]
struct Space {
    /// By number, without x32's bit.
    calls: Vec<Call>,
    /// The newest number that the profile names, without x32's bit and its own range.
    newest: Option<u32>,
}

/// The rules for one call.
#[derive(Debug, Clone, Default)]
struct Call {
    /// Those with conditions, in the profile's order, up to the first without.
    clauses: Vec<Clause>,
    /// The first without.
    always: Option<Verdict>,
}

/// One rule for one call: a verdict if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Clause {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Then this happens.
    pub verdict: Verdict,
}

/// `(argument & mask) <comparison> value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub argument: usize,
    /// The bits that are looked at; the lower half alone for a 32-bit argument.
    pub mask: u64,
    /// How.
    pub comparison: Comparison,
    /// With what.
    pub value: u64,
}

/// Unsigned comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Condition {
    /// Whether it holds for these arguments.
    pub fn holds(&self, arguments: &[u64; 6]) -> bool {
        let left = arguments[self.argument] & self.mask;
        match self.comparison {
            Comparison::Equal => left == self.value,
            Comparison::NotEqual => left != self.value,
            Comparison::Less => left < self.value,
            Comparison::LessOrEqual => left <= self.value,
            Comparison::Greater => left > self.value,
            Comparison::GreaterOrEqual => left >= self.value,
        }
    }
}

/// What happens to one call, whatever its arguments or depending on them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decision {
    /// The first that holds decides.
    pub clauses: Vec<Clause>,
    /// Else this.
    pub otherwise: Verdict,
}

impl Decision {
    /// For these arguments.
    pub fn verdict(&self, arguments: &[u64; 6]) -> Verdict {
        let holds = |clause: &&Clause| clause.conditions.iter().all(|c| c.holds(arguments));
        self.clauses
            .iter()
            .find(holds)
            .map_or(self.otherwise, |clause| clause.verdict)
    }
}

/// Names and architectures of a profile that mean nothing here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unused {
    /// Names that no architecture's system call has: perhaps mistyped, perhaps newer than our table.
    pub names: BTreeSet<String>,
    /// Architectures that this machine's kernel cannot run, or that we have no table for.
    pub architectures: BTreeSet<String>,
}

impl Rules {
    /// Reads the rules for this machine.
    ///
    /// # Errors
    /// `Error::Config` naming the field that cannot be honoured.
    pub fn new(seccomp: &LinuxSeccomp) -> Result<(Self, Unused)> {
        let mut unused = Unused::default();
        let default = verdict(seccomp.default_action(), seccomp.default_errno_ret())?;
        if default == SECCOMP_RET_USER_NOTIF {
            return Err(Error::Config {
                field: "linux.seccomp.defaultAction",
                value: seccomp.default_action().to_string(),
                rule: "SCMP_ACT_NOTIFY cannot be used as default action".to_owned(),
            });
        }
        let mut spaces = BTreeMap::from([(Abi::native(), Space::default())]);
        for arch in seccomp.architectures().iter().flatten() {
            match Abi::from_oci(*arch) {
                Some(abi) => drop(spaces.insert(abi, Space::default())),
                None => drop(unused.architectures.insert(arch.to_string())),
            }
        }
        let mut rules = Self { default, spaces };
        for syscall in seccomp.syscalls().iter().flatten() {
            rules.add(syscall, &mut unused)?;
        }
        Ok((rules, unused))
    }

    fn add(&mut self, syscall: &LinuxSyscall, unused: &mut Unused) -> Result<()> {
        let verdict = verdict(syscall.action(), syscall.errno_ret())?;
        let args = syscall.args().as_deref().unwrap_or_default();
        if let Some(arg) = args.iter().find(|arg| arg.index() > 5) {
            return Err(Error::Config {
                field: "linux.seccomp.syscalls[].args[].index",
                value: arg.index().to_string(),
                rule: "a call has arguments 0 to 5".to_owned(),
            });
        }
        if verdict == SECCOMP_RET_USER_NOTIF && syscall.names().iter().any(|name| name == "write") {
            return Err(Error::Config {
                field: "linux.seccomp.syscalls[].names",
                value: "write".to_owned(),
                rule: "SCMP_ACT_NOTIFY cannot be used for the write syscall".to_owned(),
            });
        }
        let restricts = rank(verdict) < rank(self.default);
        for name in syscall.names() {
            let row = tables::row(name);
            if row.is_none() && !tables::is_known_elsewhere(name) {
                unused.names.insert(name.clone());
            }
            for (abi, space) in &mut self.spaces {
                if let Some(number) = row.and_then(|row| abi.number_in(row)) {
                    let conditions = args.iter().map(|arg| condition(*abi, name, arg)).collect();
                    space.add(*abi, number, conditions, verdict);
                }
                if *abi == Abi::I386 && (args.is_empty() || restricts) {
                    space.add_multiplexed(name, verdict);
                }
            }
        }
        Ok(())
    }

    /// The ABIs that the rules are for.
    pub fn abis(&self) -> impl Iterator<Item = Abi> {
        self.spaces.keys().copied()
    }

    /// What happens to a call with this `seccomp_data.arch` and `.nr`.
    pub fn decision(&self, arch: u32, number: u32) -> Decision {
        let always = |otherwise| Decision {
            clauses: Vec::new(),
            otherwise,
        };
        let Some((abi, space)) = self.space_of(arch, number) else {
            return always(UNLISTED);
        };
        let otherwise =
            match space.is_newer(abi, number) && rank(self.default) < rank(SECCOMP_RET_TRACE) {
                true => NEWER,
                false => self.default,
            };
        let Some(call) = space.calls.get(plain(abi, number) as usize) else {
            return always(otherwise);
        };
        let mut decision = Decision {
            clauses: call.clauses.clone(),
            otherwise: call.always.unwrap_or(otherwise),
        };
        // Clauses at the end that change nothing: kept apart they would cost instructions and hide equal calls.
        while decision
            .clauses
            .last()
            .is_some_and(|last| last.verdict == decision.otherwise)
        {
            decision.clauses.pop();
        }
        decision
    }

    /// Every number at which the decision may differ from that of the number before, and 0; in order.
    pub fn breakpoints(&self, arch: u32) -> Vec<u32> {
        let mut points = vec![0];
        for (abi, space) in &self.spaces {
            if abi.audit_arch() != arch {
                continue;
            }
            let offset = if *abi == Abi::X32 { X32_BIT } else { 0 };
            for (number, call) in (offset..).zip(&space.calls) {
                if call.always.is_some() || !call.clauses.is_empty() {
                    points.extend([number, number + 1]);
                }
            }
            points.extend(space.newest.map(|newest| offset + newest + 1));
            points.extend([X32_OWN.start() + offset, X32_OWN.end() + 1 + offset]);
        }
        if arch == Abi::X86_64.audit_arch() {
            points.extend([X32_BIT, 2 * X32_BIT]);
        }
        // Stable, because it is quick where most is in order already.
        points.sort();
        points.dedup();
        points
    }

    /// The ABI that the kernel takes a call for, if it is listed, and its rules.
    fn space_of(&self, arch: u32, number: u32) -> Option<(Abi, &Space)> {
        let is_x32 = (X32_BIT..2 * X32_BIT).contains(&number);
        let mut listed = self.spaces.iter().map(|(abi, space)| (*abi, space));
        listed.find(|(abi, _)| {
            abi.audit_arch() == arch
                && (arch != Abi::X86_64.audit_arch() || (*abi == Abi::X32) == is_x32)
        })
    }
}

impl Space {
    fn add(&mut self, abi: Abi, number: u32, conditions: Vec<Condition>, verdict: Verdict) {
        let plain = plain(abi, number);
        if abi != Abi::X32 || !X32_OWN.contains(&plain) {
            self.newest = self.newest.max(Some(plain));
        }
        let index = plain as usize;
        if self.calls.len() <= index {
            self.calls.resize_with(index + 1, Call::default);
        }
        let Call { clauses, always } = &mut self.calls[index];
        if always.is_some() {
            return;
        }
        if conditions.is_empty() {
            *always = Some(verdict);
            return;
        }
        let mut arguments: Vec<_> = conditions.iter().map(|c| c.argument).collect();
        arguments.sort_unstable();
        if arguments.windows(2).any(|pair| pair[0] == pair[1]) {
            let each = conditions.into_iter().map(|c| Clause {
                conditions: vec![c],
                verdict,
            });
            clauses.extend(each);
        } else {
            clauses.push(Clause {
                conditions,
                verdict,
            });
        }
    }

    fn add_multiplexed(&mut self, name: &str, verdict: Verdict) {
        for call in tables::MULTIPLEXED.iter().filter(|call| call.name == name) {
            if let Some(number) = Abi::I386.number(call.carrier) {
                let selected = Condition {
                    argument: 0,
                    mask: call.mask,
                    comparison: Comparison::Equal,
                    value: call.selector,
                };
                self.add(Abi::I386, number, vec![selected], verdict);
            }
        }
    }

    fn is_newer(&self, abi: Abi, number: u32) -> bool {
        let plain = plain(abi, number);
        let own = abi == Abi::X32 && X32_OWN.contains(&plain);
        self.newest.is_some_and(|newest| plain > newest && !own)
    }
}

/// A number without x32's bit.
fn plain(abi: Abi, number: u32) -> u32 {
    match abi {
        Abi::X32 => number & !X32_BIT,
        _ => number,
    }
}

/// How much a verdict permits: the kernel's order of precedence (seccomp(2)), least permissive first.
fn rank(verdict: Verdict) -> usize {
    const ORDER: [u32; 8] = [
        SECCOMP_RET_KILL_PROCESS,
        SECCOMP_RET_KILL_THREAD,
        SECCOMP_RET_TRAP,
        SECCOMP_RET_ERRNO,
        SECCOMP_RET_USER_NOTIF,
        SECCOMP_RET_TRACE,
        SECCOMP_RET_LOG,
        SECCOMP_RET_ALLOW,
    ];
    let action = verdict & libc::SECCOMP_RET_ACTION_FULL;
    ORDER.iter().position(|known| *known == action).unwrap_or(0)
}

fn condition(abi: Abi, name: &str, arg: &LinuxSeccompArg) -> Condition {
    use Comparison::*;
    use LinuxSeccompOperator::*;
    let (mut mask, comparison, mut value) = match arg.op() {
        ScmpCmpNe => (u64::MAX, NotEqual, arg.value()),
        ScmpCmpLt => (u64::MAX, Less, arg.value()),
        ScmpCmpLe => (u64::MAX, LessOrEqual, arg.value()),
        ScmpCmpEq => (u64::MAX, Equal, arg.value()),
        ScmpCmpGe => (u64::MAX, GreaterOrEqual, arg.value()),
        ScmpCmpGt => (u64::MAX, Greater, arg.value()),
        ScmpCmpMaskedEq => (arg.value(), Equal, arg.value_two().unwrap_or(0)),
    };
    if tables::is_int(abi, name, arg.index()) {
        const LOW: u64 = u32::MAX as u64;
        let negative = value as i64 == i64::from(value as i32);
        if value <= LOW || negative {
            mask &= LOW;
            value &= LOW;
        }
    }
    Condition {
        argument: arg.index(),
        mask,
        comparison,
        value,
    }
}

fn verdict(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Verdict> {
    // EPERM where none is given, as runc and libseccomp's users have it.
    let data = errno.unwrap_or(libc::EPERM as u32);
    let refuse = |most: u32| Error::Config {
        field: "linux.seccomp errnoRet",
        value: data.to_string(),
        rule: format!("with {action} it is at most {most}"),
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            SECCOMP_RET_KILL_THREAD
        }
        LinuxSeccompAction::ScmpActKillProcess => SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => SECCOMP_RET_TRAP,
        // The kernel's MAX_ERRNO.
        LinuxSeccompAction::ScmpActErrno if data > 4095 => return Err(refuse(4095)),
        LinuxSeccompAction::ScmpActErrno => SECCOMP_RET_ERRNO | data,
        LinuxSeccompAction::ScmpActTrace if data > 0xffff => return Err(refuse(0xffff)),
        LinuxSeccompAction::ScmpActTrace => SECCOMP_RET_TRACE | data,
        LinuxSeccompAction::ScmpActLog => SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => SECCOMP_RET_USER_NOTIF,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::linux::seccomp::profile::{Profile, resolve};

    const X86: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;
    const EPERM: u32 = SECCOMP_RET_ERRNO | 1;

    fn rules(default: &str, architectures: &str, syscalls: &str) -> Rules {
        let json = format!(
            r#"{{"defaultAction": "SCMP_ACT_{default}", "architectures": [{architectures}], "syscalls": [{syscalls}]}}"#
        );
        let profile = Profile::parse("test", &json).unwrap();
        Rules::new(&resolve(&profile, 0, (6, 1))).unwrap().0
    }

    fn ask(rules: &Rules, arch: u32, number: u32, first: u64) -> Verdict {
        rules
            .decision(arch, number)
            .verdict(&[first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = rules(
            "ERRNO",
            "",
            r#"{"name": "lseek", "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}]},
               {"name": "lseek", "action": "SCMP_ACT_ALLOW"}, {"name": "lseek", "action": "SCMP_ACT_TRAP"}"#,
        );
        assert_eq!(ask(&rules, X86, 8, 7), SECCOMP_RET_KILL_THREAD);
        assert_eq!(ask(&rules, X86, 8, 8), SECCOMP_RET_ALLOW);
    }

    #[test]
    fn stray_upper_bits_of_an_int_do_not_make_another_value() {
        let rules = rules(
            "ALLOW",
            "",
            r#"{"name": "socket", "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]},
               {"name": "mmap", "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]}"#,
        );
        assert_eq!(ask(&rules, X86, 41, 40), EPERM);
        assert_eq!(ask(&rules, X86, 41, 40 | 1 << 32), EPERM);
        assert_eq!(ask(&rules, X86, 9, 40), EPERM);
        assert_eq!(ask(&rules, X86, 9, 40 | 1 << 32), SECCOMP_RET_ALLOW);
    }

    #[test]
    fn newer_calls_get_enosys_on_each_abi_unless_the_default_permits() {
        let abis = r#""SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32""#;
        let named = r#"{"names": ["readv", "openat2"], "action": "SCMP_ACT_ALLOW"}"#;
        let strict = rules("ERRNO", abis, named);
        for arch in [X86, I386] {
            assert_eq!(ask(&strict, arch, 437, 0), SECCOMP_RET_ALLOW);
            assert_eq!(ask(&strict, arch, 438, 0), NEWER);
            assert_eq!(ask(&strict, arch, u32::MAX, 0), NEWER);
            assert_eq!(ask(&strict, arch, 436, 0), EPERM);
        }
        let x32 = |number| ask(&strict, X86, X32_BIT | number, 0);
        assert_eq!(
            [x32(437), x32(438), x32(511)],
            [SECCOMP_RET_ALLOW, NEWER, NEWER]
        );
        assert_eq!(
            [x32(512), x32(515), x32(547), x32(548)],
            [EPERM, SECCOMP_RET_ALLOW, EPERM, NEWER]
        );
        let loose = rules("LOG", abis, named);
        assert_eq!(ask(&loose, X86, 5000, 0), SECCOMP_RET_LOG);
    }

    #[test]
    fn what_is_not_listed_kills_and_the_native_one_always_is() {
        let rules = rules(
            "ERRNO",
            r#""SCMP_ARCH_X86""#,
            r#"{"name": "read", "action": "SCMP_ACT_ALLOW"}"#,
        );
        assert_eq!(ask(&rules, X86, 0, 0), SECCOMP_RET_ALLOW);
        assert_eq!(ask(&rules, I386, 3, 0), SECCOMP_RET_ALLOW);
        assert_eq!(ask(&rules, X86, X32_BIT, 0), UNLISTED);
        assert_eq!(ask(&rules, 0xc000_00b7, 63, 0), UNLISTED);
    }

    #[test]
    fn a_32_bit_program_cannot_go_around_by_socketcall_or_ipc() {
        let deny = rules(
            "ALLOW",
            r#""SCMP_ARCH_X86""#,
            r#"{"name": "shmat", "action": "SCMP_ACT_ERRNO"},
               {"name": "socket", "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]}"#,
        );
        assert_eq!(ask(&deny, I386, 102, 1), EPERM);
        assert_eq!(ask(&deny, I386, 102, 2), SECCOMP_RET_ALLOW);
        assert_eq!(ask(&deny, I386, 117, 0x1_0015), EPERM);
        let allow = rules(
            "ERRNO",
            r#""SCMP_ARCH_X86""#,
            r#"{"name": "bind", "action": "SCMP_ACT_ALLOW"},
               {"name": "socket", "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}"#,
        );
        assert_eq!(ask(&allow, I386, 102, 2), SECCOMP_RET_ALLOW);
        assert_eq!(ask(&allow, I386, 102, 1), EPERM);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_field() {
        let refuse = |default: &str, rest: &str| {
            let json = format!(r#"{{"defaultAction": "SCMP_ACT_{default}" {rest}}}"#);
            let profile = Profile::parse("test", &json).unwrap();
            Rules::new(&resolve(&profile, 0, (6, 1)))
                .unwrap_err()
                .to_string()
        };
        assert!(refuse("NOTIFY", "").contains("linux.seccomp.defaultAction is SCMP_ACT_NOTIFY"));
        let rule = r#", "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"}]"#;
        let text = refuse("ALLOW", rule);
        assert!(
            text.contains("SCMP_ACT_NOTIFY cannot be used for the write syscall"),
            "{text}"
        );
        assert!(refuse("ERRNO", r#", "defaultErrnoRet": 4096"#).contains("at most 4095"));
    }
}
