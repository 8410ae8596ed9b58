//! Seccomp profiles as Docker and Mesos write them: runtime-spec `linux.seccomp` plus conditions on capabilities,
//! architectures and kernel.
//!
//! The grammar is the union of both: a key that is missing or null is empty, where Mesos' own parser insists on it.
//! A key that nobody knows is an error, because a mistyped `includes` would make a rule unconditional.

use std::path::PathBuf;
use std::str::FromStr;

use caps::Capability;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use serde::{Deserialize, Deserializer};

use super::tables::Abi;
use crate::error::{Error, Result};

/// A profile as read, its conditions still open.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// What happens to a call that no rule matches.
    pub default_action: LinuxSeccompAction,
    /// Its errno, for `SCMP_ACT_ERRNO` and `SCMP_ACT_TRACE`.
    pub default_errno: Option<u32>,
    /// Which architectures the rules hold for.
    pub architectures: Architectures,
    /// `SECCOMP_FILTER_FLAG_*`; `None` where the profile has no such key.
    pub flags: Option<Vec<LinuxSeccompFilterFlag>>,
    /// Where the listener of `SCMP_ACT_NOTIFY` goes.
    pub listener_path: Option<PathBuf>,
    /// What that listener is told.
    pub listener_metadata: Option<String>,
    /// The rules; the first that matches decides.
    pub rules: Vec<Rule>,
}

/// The two ways of naming architectures.
#[derive(Debug, Clone, PartialEq)]
pub enum Architectures {
    /// `architectures`: these (none named: the native one).
    Listed(Vec<Arch>),
    /// `archMap`: the native one with its sub-architectures.
    Map(Vec<(Arch, Vec<Arch>)>),
}

/// One entry of `syscalls`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Names of calls.
    pub names: Vec<String>,
    /// What happens to them.
    pub action: LinuxSeccompAction,
    /// The errno, for `SCMP_ACT_ERRNO` and `SCMP_ACT_TRACE`.
    pub errno: Option<u32>,
    /// Conditions on arguments, all of which must hold.
    pub args: Vec<LinuxSeccompArg>,
    /// The rule is used only where all of this holds.
    pub includes: Filter,
    /// The rule is not used where any of this holds.
    pub excludes: Filter,
}

/// When a rule is used, or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Capabilities, bit n = capability number n.
    pub capabilities: u64,
    /// Architectures by their Go names (`amd64`); of the native one only.
    pub arches: Vec<String>,
    /// The oldest kernel.
    pub min_kernel: Option<(u32, u32)>,
}

impl Profile {
    /// Reads a profile from its JSON text. `name` stands in messages.
    ///
    /// # Errors
    /// `Error::Seccomp` with line and column, or the path of the entry, of what cannot be understood.
    pub fn parse(name: &str, json: &str) -> Result<Self> {
        let fail = |reason: String| Error::Seccomp {
            profile: name.to_owned(),
            reason,
        };
        let raw: RawProfile = serde_json::from_str(json).map_err(|e| fail(e.to_string()))?;
        raw.check().map_err(fail)
    }
}

/// Decides the conditions of `profile` for a container with this bounding set (bit n = capability number n) on this
/// kernel (major, minor), natively.
///
/// As Docker does: `excludes` goes before `includes`, an exclude holds with any of its capabilities, an include
/// needs all of them, and the rules that stay hold for every architecture.
pub fn resolve(profile: &Profile, bounding_caps: u64, kernel: (u32, u32)) -> LinuxSeccomp {
    let (native, go_name) = match Abi::native() {
        Abi::Aarch64 => (Arch::ScmpArchAarch64, "arm64"),
        _ => (Arch::ScmpArchX86_64, "amd64"),
    };
    let architectures = match &profile.architectures {
        Architectures::Listed(listed) => listed.clone(),
        Architectures::Map(map) => map
            .iter()
            .filter(|(arch, _)| *arch == native)
            .flat_map(|(arch, sub)| std::iter::once(*arch).chain(sub.iter().copied()))
            .collect(),
    };
    let used = |rule: &&Rule| {
        let (with, without) = (&rule.includes, &rule.excludes);
        let here = |names: &[String]| names.iter().any(|name| name == go_name);
        let excluded = without.capabilities & bounding_caps != 0
            || here(&without.arches)
            || without.min_kernel.is_some_and(|oldest| kernel >= oldest);
        let included = with.capabilities & bounding_caps == with.capabilities
            && (with.arches.is_empty() || here(&with.arches))
            && with.min_kernel.is_none_or(|oldest| kernel >= oldest);
        included && !excluded
    };
    let rules = profile.rules.iter().filter(used).map(|rule| {
        let mut syscall = LinuxSyscall::default();
        syscall.set_names(rule.names.clone());
        syscall.set_action(rule.action);
        syscall.set_errno_ret(rule.errno);
        syscall.set_args((!rule.args.is_empty()).then(|| rule.args.clone()));
        syscall
    });
    let mut seccomp = LinuxSeccomp::default();
    seccomp.set_default_action(profile.default_action);
    seccomp.set_default_errno_ret(profile.default_errno);
    seccomp.set_architectures((!architectures.is_empty()).then_some(architectures));
    seccomp.set_flags(profile.flags.clone());
    seccomp.set_listener_path(profile.listener_path.clone());
    seccomp.set_listener_metadata(profile.listener_metadata.clone());
    seccomp.set_syscalls(Some(rules.collect()));
    seccomp
}

/// Major and minor number of the running kernel, for `resolve`.
///
/// # Errors
/// When uname(2) answers with something that does not start like `6.1`.
pub fn running_kernel() -> Result<(u32, u32)> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    parse_kernel(&release).ok_or_else(|| Error::Config {
        field: "kernel release",
        value: format!("{release:?}"),
        rule: "it must start with two numbers, like 6.1".to_owned(),
    })
}

/// `4.8`, `6.1.0-13-amd64`, `5.10-rc1`: the first two numbers.
fn parse_kernel(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..end].parse().ok()?))
}

/// A condition on an argument in the runtime-spec's form.
pub(super) fn argument(
    index: usize,
    op: LinuxSeccompOperator,
    value: u64,
    value_two: Option<u64>,
) -> LinuxSeccompArg {
    let mut builder = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value);
    if let Some(value_two) = value_two {
        builder = builder.value_two(value_two);
    }
    builder.build().expect("every field of it has a default")
}

/// Null counts as missing: other programs write their empty lists so.
fn or_null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawProfile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_null")]
    architectures: Vec<Arch>,
    #[serde(default, deserialize_with = "or_null")]
    arch_map: Vec<RawArch>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    #[serde(default, deserialize_with = "or_null")]
    syscalls: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawArch {
    architecture: Arch,
    #[serde(default, deserialize_with = "or_null")]
    sub_architectures: Vec<Arch>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawRule {
    #[serde(default, deserialize_with = "or_null")]
    name: String,
    #[serde(default, deserialize_with = "or_null")]
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_null")]
    args: Vec<RawArg>,
    #[serde(default, deserialize_with = "or_null")]
    includes: RawFilter,
    #[serde(default, deserialize_with = "or_null")]
    excludes: RawFilter,
    #[serde(rename = "comment")]
    _comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawArg {
    index: usize,
    value: u64,
    value_two: Option<u64>,
    op: LinuxSeccompOperator,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFilter {
    #[serde(default, deserialize_with = "or_null")]
    caps: Vec<String>,
    #[serde(default, deserialize_with = "or_null")]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

impl RawProfile {
    fn check(self) -> Result<Profile, String> {
        let architectures = match (self.architectures.is_empty(), self.arch_map.is_empty()) {
            (false, false) => return Err("it has both architectures and archMap; use one".into()),
            (_, true) => Architectures::Listed(self.architectures),
            (true, false) => {
                let entry = |raw: RawArch| (raw.architecture, raw.sub_architectures);
                Architectures::Map(self.arch_map.into_iter().map(entry).collect())
            }
        };
        let rules = self.syscalls.into_iter().enumerate();
        Ok(Profile {
            default_action: self.default_action,
            default_errno: self.default_errno_ret,
            architectures,
            flags: self.flags,
            listener_path: self.listener_path,
            listener_metadata: self.listener_metadata,
            rules: rules
                .map(|(index, rule)| rule.check().map_err(|e| format!("syscalls[{index}]{e}")))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl RawRule {
    fn check(self) -> Result<Rule, String> {
        let names = match (self.name.is_empty(), self.names.is_empty()) {
            (false, false) => return Err(" has both name and names; use one".into()),
            (true, true) => return Err(" names no system call".into()),
            (false, true) => vec![self.name],
            (true, false) => self.names,
        };
        if names.iter().any(String::is_empty) {
            return Err(".names has an empty name".into());
        }
        let args = self.args.into_iter().enumerate().map(|(index, raw)| {
            if raw.index > 5 {
                return Err(format!(
                    ".args[{index}].index is {}, but a call has arguments 0 to 5",
                    raw.index
                ));
            }
            Ok(argument(raw.index, raw.op, raw.value, raw.value_two))
        });
        Ok(Rule {
            names,
            action: self.action,
            errno: self.errno_ret,
            args: args.collect::<Result<_, _>>()?,
            includes: self
                .includes
                .check()
                .map_err(|e| format!(".includes.{e}"))?,
            excludes: self
                .excludes
                .check()
                .map_err(|e| format!(".excludes.{e}"))?,
        })
    }
}

impl RawFilter {
    fn check(self) -> Result<Filter, String> {
        let mut capabilities = 0;
        for (index, name) in self.caps.iter().enumerate() {
            let capability = Capability::from_str(name)
                .map_err(|_| format!("caps[{index}] is {name:?}, which is no capability"))?;
            capabilities |= capability.bitmask();
        }
        let min_kernel = match self.min_kernel.as_deref() {
            None | Some("") => None,
            Some(text) => Some(parse_kernel(text).ok_or_else(|| {
                format!("minKernel is {text:?}, but it must start with two numbers, like 4.8")
            })?),
        };
        Ok(Filter {
            capabilities,
            arches: self.arches,
            min_kernel,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn reason(json: &str) -> String {
        Profile::parse("p", json).unwrap_err().to_string()
    }

    #[test]
    fn an_error_says_where() {
        let text = reason("{\n  \"defaultAction\": \"SCMP_ACT_NO\"\n}");
        assert!(
            text.contains("line 2 column") && text.contains("SCMP_ACT_NO"),
            "{text}"
        );
        let rule = |inside: &str| {
            reason(&format!(
                r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"name": "read", "action": "SCMP_ACT_ALLOW"}}, {inside}]}}"#
            ))
        };
        for (inside, expected) in [
            (
                r#"{"action": "SCMP_ACT_ALLOW"}"#,
                "syscalls[1] names no system call",
            ),
            (
                r#"{"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"}"#,
                "both name and names",
            ),
            (
                r#"{"name": "a", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN", "CAP_NO"]}}"#,
                r#"syscalls[1].includes.caps[1] is "CAP_NO""#,
            ),
            (
                r#"{"name": "a", "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "new"}}"#,
                "syscalls[1].excludes.minKernel",
            ),
            (
                r#"{"name": "a", "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#,
                "syscalls[1].args[0].index is 6",
            ),
            (
                r#"{"name": "a", "action": "SCMP_ACT_ALLOW", "include": {}}"#,
                "unknown field `include`",
            ),
        ] {
            let text = rule(inside);
            assert!(text.contains(expected), "{text}");
        }
        let both = r#"{"defaultAction": "SCMP_ACT_LOG", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}"#;
        assert!(reason(both).contains("both architectures and archMap"));
    }

    #[test]
    fn missing_and_null_keys_are_empty() {
        let mesos = r#"{"defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": null}],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "",
                "includes": {}, "excludes": {"caps": null, "arches": []}}]}"#;
        let short = r#"{"defaultAction": "SCMP_ACT_ERRNO", "archMap": [{"architecture": "SCMP_ARCH_X86_64"}],
            "syscalls": [{"name": "read", "action": "SCMP_ACT_ALLOW"}]}"#;
        assert_eq!(
            Profile::parse("m", mesos).unwrap(),
            Profile::parse("s", short).unwrap()
        );
    }

    #[test]
    fn every_action_and_operator_is_read() {
        for action in "KILL KILL_THREAD KILL_PROCESS TRAP ERRNO TRACE LOG ALLOW NOTIFY".split(' ') {
            let json = format!(r#"{{"defaultAction": "SCMP_ACT_{action}"}}"#);
            assert!(Profile::parse("a", &json).is_ok(), "{action}");
        }
        for op in "NE LT LE EQ GE GT MASKED_EQ".split(' ') {
            let json = format!(
                r#"{{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{{"name": "a", "action": "SCMP_ACT_KILL",
                    "args": [{{"index": 5, "value": 18446744073709551615, "valueTwo": 1, "op": "SCMP_CMP_{op}"}}]}}]}}"#
            );
            assert!(Profile::parse("o", &json).is_ok(), "{op}");
        }
    }

    #[test]
    fn conditions_are_decided_as_docker_does() {
        let rule = |name: &str, conditions: &str| {
            format!(r#"{{"name": "{name}", "action": "SCMP_ACT_ALLOW", {conditions}}}"#)
        };
        let rules = [
            rule("both", r#""includes": {"caps": ["CAP_CHOWN", "CAP_KILL"]}"#),
            rule("any", r#""excludes": {"caps": ["CAP_CHOWN", "CAP_KILL"]}"#),
            rule("new", r#""includes": {"minKernel": "5.10"}"#),
            rule("old", r#""excludes": {"minKernel": "5.10"}"#),
            rule("x86", r#""includes": {"arches": ["amd64", "arm64"]}"#),
            rule("s390", r#""includes": {"arches": ["s390x"]}"#),
            rule("no86", r#""excludes": {"arches": ["amd64", "arm64"]}"#),
        ];
        let json = format!(
            r#"{{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{}]}}"#,
            rules.join(",")
        );
        let profile = Profile::parse("c", &json).unwrap();
        let names = |caps, kernel| {
            let seccomp = resolve(&profile, caps, kernel);
            let rules = seccomp.syscalls().clone().unwrap();
            rules
                .iter()
                .map(|r| r.names()[0].clone())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let (chown, kill) = (
            Capability::CAP_CHOWN.bitmask(),
            Capability::CAP_KILL.bitmask(),
        );
        assert_eq!(names(0, (5, 9)), "any old x86");
        assert_eq!(names(chown, (5, 10)), "new x86");
        assert_eq!(names(chown | kill, (6, 1)), "both new x86");
    }

    #[test]
    fn the_running_kernel_has_a_version() {
        assert!(running_kernel().unwrap() >= (4, 8));
        assert_eq!(parse_kernel("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(parse_kernel("5.10-rc1"), Some((5, 10)));
        assert_eq!(parse_kernel("six"), None);
    }
}
