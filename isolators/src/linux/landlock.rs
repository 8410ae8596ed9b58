//! `linux/landlock`: a sandbox of files and ports for the workload, landlock(7), asked for by the annotation
//! `org.tepui.landlock`:
//!
//! ```json
//! {"readOnly": ["/usr", "/etc"], "readWrite": ["/tmp"], "execute": ["/usr/bin", "/usr/lib"],
//!  "bindTcp": [80], "connectTcp": [443], "scope": ["signal", "abstractUnixSocket"], "log": true}
//! ```
//!
//! What is not named is not restricted: files once `readOnly` or `readWrite` is there, execution once `execute` is (whose
//! paths can be read too), ports once there is a list of them. Paths are those of the container and have to exist.
//!
//! What the kernel's version of Landlock lacks is an error. It shows nobody what a process is restricted to, so the
//! finding stays unknown; tests from inside stand in for it.

use std::ffi::CString;

use serde::Deserialize;

use crate::attribute::Attribute;
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};
use crate::sys;

/// `linux/landlock`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LandlockIsolator;

/// The annotation. It can only take rights away.
pub const ANNOTATION: &str = "org.tepui.landlock";

/// A ruleset in the kernel's numbers, linux/landlock.h.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Landlock {
    /// Accesses to files that are denied unless a rule allows them.
    pub handled_files: u64,
    /// The same for the network.
    pub handled_network: u64,
    /// What is confined to the sandbox.
    pub scoped: u64,
    /// TCP ports and what is allowed with them.
    pub ports: Vec<(u16, u64)>,
}

/// The accesses that a rule for a file, not a directory, may allow.
pub const OF_A_FILE: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// Removing and making entries of every kind (bits 4 to 12), REFER (ABI 2) and TRUNCATE (ABI 3).
const CHANGE: u64 = WRITE_FILE | 0x1ff0 | 1 << 13 | TRUNCATE;
const TRUNCATE: u64 = 1 << 14;
/// ABI 5.
const IOCTL_DEV: u64 = 1 << 15;
const READ: u64 = READ_FILE | READ_DIR;
const BIND_TCP: u64 = 1;
const CONNECT_TCP: u64 = 1 << 1;
/// `LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON`: refusals of the workload are in the audit log.
const LOG_NEW_EXEC: u32 = 1 << 1;

/// The annotation's text.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Rules {
    read_only: Option<Vec<String>>,
    read_write: Option<Vec<String>>,
    execute: Option<Vec<String>>,
    bind_tcp: Option<Vec<u16>>,
    connect_tcp: Option<Vec<u16>>,
    scope: Vec<Scope>,
    log: bool,
}

/// What may not reach out of the sandbox.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Scope {
    AbstractUnixSocket,
    Signal,
}

impl Isolator for LandlockIsolator {
    fn name(&self) -> &'static str {
        "linux/landlock"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let Some(text) = declared(declaration) else {
            return Ok(ContainerLaunchInfo::default());
        };
        let rules = parse(text)?;
        let (ruleset, paths) = ruleset(&rules, version())?;
        let process = declaration.spec.process().as_ref();
        let restrict = Attribute::LandlockRestrict {
            flags: if rules.log { LOG_NEW_EXEC } else { 0 },
            last: process.is_some_and(|process| process.no_new_privileges() == Some(true)),
        };
        let path = |(path, access)| Attribute::LandlockPath { path, access };
        let attributes =
            std::iter::once(Attribute::LandlockRules(ruleset)).chain(paths.into_iter().map(path));
        Ok(ContainerLaunchInfo {
            attributes: attributes.chain([restrict]).collect(),
            ..Default::default()
        })
    }

    fn observe(&self, _: &Target, _: &Declaration, _: &mut Live) -> Result<()> {
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, _: &Live) -> Vec<Finding> {
        let finding = |text: &str| Finding {
            isolator: self.name(),
            item: "Landlock rules".to_owned(),
            declared: text.to_owned(),
            live: "not shown by the kernel".to_owned(),
            verdict: Verdict::Unknown,
            read_from: "nowhere".to_owned(),
        };
        declared(declaration).map(finding).into_iter().collect()
    }
}

/// The version of Landlock that this kernel has; 0 for none.
pub fn version() -> u32 {
    sys::landlock_version().unwrap_or_default()
}

fn declared(declaration: &Declaration) -> Option<&str> {
    let annotations = declaration.spec.annotations().as_ref();
    annotations.and_then(|all| all.get(ANNOTATION).map(String::as_str))
}

fn refused(value: impl Into<String>, rule: impl Into<String>) -> Error {
    Error::Config {
        field: "annotations.org.tepui.landlock",
        value: value.into(),
        rule: rule.into(),
    }
}

fn parse(text: &str) -> Result<Rules> {
    serde_json::from_str(text).map_err(|error| refused(text, format!("it cannot be read: {error}")))
}

/// The rules as a version of Landlock understands them, and the paths with what is allowed beneath each.
fn ruleset(rules: &Rules, version: u32) -> Result<(Landlock, Vec<(CString, u64)>)> {
    let needs = |least: u32, what: &str| match version >= least {
        true => Ok(()),
        false => Err(refused(
            what,
            format!("it needs version {least} of Landlock and this kernel has {version} (0: none)"),
        )),
    };
    let mut landlock = Landlock::default();
    let mut allowed = Vec::new();
    let optional = if version >= 5 { IOCTL_DEV } else { 0 };
    if rules.read_only.is_some() || rules.read_write.is_some() {
        // Before version 3 a file that can only be read could still be emptied.
        needs(3, "readOnly or readWrite")?;
        landlock.handled_files |= READ | CHANGE | optional;
    }
    if rules.execute.is_some() {
        needs(1, "execute")?;
        landlock.handled_files |= EXECUTE;
    }
    let lists = [
        (&rules.read_only, READ),
        (&rules.read_write, READ | CHANGE | optional),
        (&rules.execute, READ | EXECUTE),
    ];
    for (paths, access) in lists {
        for path in paths.iter().flatten() {
            allowed.push((absolute(path)?, access & landlock.handled_files));
        }
    }
    for (ports, access, word) in [
        (&rules.bind_tcp, BIND_TCP, "bindTcp"),
        (&rules.connect_tcp, CONNECT_TCP, "connectTcp"),
    ] {
        if let Some(ports) = ports {
            needs(4, word)?;
            landlock.handled_network |= access;
            landlock
                .ports
                .extend(ports.iter().map(|port| (*port, access)));
        }
    }
    for scope in &rules.scope {
        needs(6, "scope")?;
        landlock.scoped |= match scope {
            Scope::AbstractUnixSocket => 1,
            Scope::Signal => 1 << 1,
        };
    }
    if rules.log {
        needs(7, "log")?;
    }
    match landlock.handled_files | landlock.handled_network | landlock.scoped {
        0 => Err(refused(
            "without any rule",
            "it would restrict nothing; leave it out",
        )),
        _ => Ok((landlock, allowed)),
    }
}

fn absolute(path: &str) -> Result<CString> {
    let good = CString::new(path).ok().filter(|_| path.starts_with('/'));
    good.ok_or_else(|| refused(format!("{path:?}"), "each path has to be absolute"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rules(text: &str, version: u32) -> Result<(Landlock, Vec<(CString, u64)>), String> {
        let rules = parse(text).and_then(|rules| ruleset(&rules, version));
        rules.map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_is_named_is_restricted() {
        let all = rules(
            r#"{"readOnly": ["/usr"], "readWrite": ["/tmp"], "execute": ["/bin"], "bindTcp": [80],
                "connectTcp": [], "scope": ["signal"], "log": true}"#,
            7,
        );
        let (all, paths) = all.unwrap();
        assert_eq!(
            (all.handled_files, all.handled_network, all.scoped),
            (0xffff, 3, 2)
        );
        assert_eq!(paths[0], (c"/usr".into(), 0xc));
        assert_eq!(paths[1], (c"/tmp".into(), 0xfffe));
        assert_eq!(paths[2], (c"/bin".into(), 0xd));
        assert_eq!(all.ports, [(80, 1)]);
        let (execute, paths) = rules(r#"{"execute": ["/bin"]}"#, 1).unwrap();
        assert_eq!((execute.handled_files, execute.handled_network), (1, 0));
        assert_eq!(paths, [(c"/bin".into(), 1)]);
        // Version 3 knows no ioctl(2) of devices.
        let (old, _) = rules(r#"{"readOnly": []}"#, 3).unwrap();
        assert_eq!(old.handled_files, 0x7ffe);
    }

    #[test]
    fn what_the_kernel_lacks_is_an_error() {
        let cases = [
            (r#"{"execute": []}"#, 0, "version 1"),
            (r#"{"readOnly": []}"#, 2, "version 3"),
            (r#"{"readWrite": []}"#, 2, "version 3"),
            (r#"{"bindTcp": []}"#, 3, "version 4"),
            (r#"{"connectTcp": [1]}"#, 3, "version 4"),
            (r#"{"scope": ["signal"]}"#, 5, "version 6"),
            (r#"{"execute": [], "log": true}"#, 6, "version 7"),
            (r#"{"execute": ["bin"]}"#, 7, "absolute"),
            (r#"{"write": []}"#, 7, "unknown field"),
            (r#"{"bindTcp": [65536]}"#, 7, "65536"),
            ("{}", 7, "restrict nothing"),
            ("", 7, "cannot be read"),
        ];
        for (text, version, word) in cases {
            let error = rules(text, version).unwrap_err();
            assert!(
                error.starts_with("annotations.org.tepui.landlock is "),
                "{error}"
            );
            assert!(error.contains(word), "{error}");
        }
    }
}
