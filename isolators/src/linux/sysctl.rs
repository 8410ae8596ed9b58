//! `linux/sysctl`: kernel parameters of the container's own namespaces, sysctl(8); runtime-spec config-linux "sysctl".
//!
//! Only what belongs to a namespace that the container has to itself may be set: anything else would be set for the
//! host. A name becomes exactly one path, and is made of plain letters only, so that nothing can be smuggled in with it
//! (CVE-2022-0811).

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;

use oci_spec::runtime::LinuxNamespaceType;

use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};
use crate::namespaces;
use crate::observe::unseen;
use crate::undefended::undefended;

/// `linux/sysctl`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sysctl;

/// Parameters below `kernel/` that belong to the IPC namespace.
const IPC: [&str; 8] = [
    "msgmax",
    "msgmnb",
    "msgmni",
    "sem",
    "shmall",
    "shmmax",
    "shmmni",
    "shm_rmid_forced",
];

impl Isolator for Sysctl {
    fn name(&self) -> &'static str {
        "linux/sysctl"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let apart = |kind| namespaces::is_apart(declaration, kind);
        let domain = declaration.spec.domainname().as_deref();
        let mut all = BTreeMap::new();
        for (name, value) in declared(declaration) {
            let path = check(name, value, apart)?;
            if path == "kernel/domainname" && domain.is_some_and(|domain| domain != value) {
                return Err(refused(
                    name,
                    "it conflicts with the field `domainname`; leave one of them out",
                ));
            }
            if all.insert(path, value).is_some() {
                return Err(refused(
                    name,
                    "it is given twice, once with `.` and once with `/`",
                ));
            }
        }
        let text = |text: &str| CString::new(text).expect("checked to hold no NUL byte");
        let pair = |(path, value): (String, &str)| (text(&path), text(value));
        Ok(ContainerLaunchInfo {
            sysctls: all.into_iter().map(pair).collect(),
            ..Default::default()
        })
    }

    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()> {
        use LinuxNamespaceType::{Ipc, Network, Uts};
        // Those of a user namespace show themselves to its own processes alone, and a thread cannot become one.
        let paths: Vec<_> = declared(declaration)
            .filter_map(|(name, _)| path(name))
            .filter(|path| !path.starts_with("user/"))
            .collect();
        if paths.is_empty() {
            return Ok(());
        }
        // In procfs a parameter is that of the reader's namespaces.
        let look = || {
            let mut values = BTreeMap::new();
            for path in paths {
                match std::fs::read_to_string(format!("/proc/sys/{path}")) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    value => {
                        values.insert(path, value?.trim_end().to_owned());
                    }
                }
            }
            Ok(values)
        };
        let seen = namespaces::visit(target, &[Ipc, Uts, Network], look);
        live.sysctls = seen
            .map_err(|source| unseen(target, "sysctls", source))?
            .unwrap_or_default();
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let finding = |(name, declared): (&str, &str)| {
            let seen = path(name).and_then(|path| live.sysctls.get(&path));
            // The kernel puts tabs between several numbers.
            let same = |seen: &String| {
                seen.split_ascii_whitespace()
                    .eq(declared.split_ascii_whitespace())
            };
            Finding {
                isolator: self.name(),
                item: format!("sysctl {name}"),
                declared: declared.to_owned(),
                live: seen.cloned().unwrap_or_else(|| "not seen".to_owned()),
                verdict: match seen {
                    None => Verdict::Unknown,
                    Some(seen) if same(seen) => Verdict::Match,
                    Some(_) => Verdict::Weaker,
                },
                read_from: path(name).map_or_else(String::new, |path| format!("/proc/sys/{path}")),
            }
        };
        let mut findings: Vec<_> = declared(declaration).map(finding).collect();
        findings.sort_by(|a, b| a.item.cmp(&b.item));
        findings
    }
}

fn declared(declaration: &Declaration) -> impl Iterator<Item = (&str, &str)> {
    let linux = declaration.spec.linux().as_ref();
    let all = linux.and_then(|linux| linux.sysctl().as_ref());
    let all = all.into_iter().flatten();
    all.map(|(name, value)| (name.as_str(), value.as_str()))
}

fn refused(name: &str, rule: &str) -> Error {
    Error::Config {
        field: "linux.sysctl",
        value: format!("{name:?}"),
        rule: rule.to_owned(),
    }
}

/// The path below `/proc/sys`: as sysctl(8), the first separator says which of `.` and `/` separates, and the other one
/// is part of a name (`net/ipv4/conf/eth0.100/rp_filter`, `net.ipv4.conf.eth0/100.rp_filter`). `None` for a name that
/// is none.
fn path(name: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let first = name.chars().find(|c| matches!(c, '.' | '/'));
    let path: String = match first {
        Some('.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    };
    let part = |part: &str| !part.is_empty() && !part.starts_with('.');
    let good = name.chars().all(allowed) && path.split('/').all(part);
    (good && first.is_some()).then_some(path)
}

/// The path of a parameter that may be set.
fn check(name: &str, value: &str, apart: impl Fn(LinuxNamespaceType) -> bool) -> Result<String> {
    if undefended("namespaced-sysctls") {
        return Ok(match name.contains('/') {
            true => name.to_owned(),
            false => name.replace('.', "/"),
        });
    }
    let path = path(name).ok_or_else(|| {
        refused(
            name,
            "a name has parts of letters, digits, `_` and `-`, separated by `.` or by `/`",
        )
    })?;
    if value.contains(|c: char| c.is_control() && c != '\t') {
        return Err(refused(name, "its value has a control character"));
    }
    let needs = |kind, rule| match apart(kind) {
        true => Ok(()),
        false => Err(refused(name, rule)),
    };
    let below = |prefix| path.strip_prefix(prefix);
    if below("kernel/").is_some_and(|rest| IPC.contains(&rest)) || below("fs/mqueue/").is_some() {
        needs(
            LinuxNamespaceType::Ipc,
            "it is not allowed in the host's ipc namespace; list one in linux.namespaces",
        )?;
    } else if below("net/").is_some() {
        needs(
            LinuxNamespaceType::Network,
            "it is not allowed in the host's network namespace; list one in linux.namespaces",
        )?;
    } else if path == "kernel/hostname" {
        return Err(refused(
            name,
            "it conflicts with the field `hostname`; use that",
        ));
    } else if path == "kernel/domainname" {
        needs(
            LinuxNamespaceType::Uts,
            "it is not allowed in the host's uts namespace; list one in linux.namespaces",
        )?;
    } else if below("user/").is_some() {
        needs(
            LinuxNamespaceType::User,
            "without a user namespace it would be set for the host; list one in linux.namespaces",
        )?;
    } else {
        return Err(refused(
            name,
            "it is not in a separate kernel namespace and would be set for the host",
        ));
    }
    Ok(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_separators_lead_to_one_path() {
        let cases = [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            (
                "net.ipv4.conf.eth0/100.rp_filter",
                "net/ipv4/conf/eth0.100/rp_filter",
            ),
            (
                "net/ipv4/conf/eth0.100/rp_filter",
                "net/ipv4/conf/eth0.100/rp_filter",
            ),
            ("kernel.sem", "kernel/sem"),
        ];
        for (name, expected) in cases {
            assert_eq!(path(name).as_deref(), Some(expected), "{name}");
        }
    }

    #[test]
    fn nothing_leads_out_of_a_namespace_or_carries_a_second_parameter() {
        let cases = [
            ("", "1"),
            ("net", "1"),
            ("net..x", "1"),
            ("net/../kernel/core_pattern", "1"),
            ("net.//.kernel.core_pattern", "1"),
            ("net/./x", "1"),
            ("/net/x", "1"),
            (".net.x", "1"),
            ("net/x/", "1"),
            ("net.x\n", "1"),
            ("net.x\0", "1"),
            ("net.x=1+kernel.core_pattern", "1"),
            ("net.x", "1\n2"),
            ("net.x", "1\0"),
            ("kernel.core_pattern", "|/x"),
            ("kernel.hostname", "x"),
            ("kernel/hostname", "x"),
            ("vm.swappiness", "1"),
            ("fs.mqueue", "1"),
            ("kernel.shmmax.x", "1"),
        ];
        for (name, value) in cases {
            let error = check(name, value, |_| true).unwrap_err().to_string();
            assert!(error.starts_with("linux.sysctl is "), "{error}");
        }
    }

    #[test]
    fn each_needs_its_own_namespace() {
        use LinuxNamespaceType::{Ipc, Network, User, Uts};
        let cases = [
            ("kernel.msgmax", Ipc),
            ("kernel.shm_rmid_forced", Ipc),
            ("fs.mqueue.msg_max", Ipc),
            ("net.core.somaxconn", Network),
            ("net/core/somaxconn", Network),
            ("kernel.domainname", Uts),
            ("user.max_user_namespaces", User),
        ];
        for (name, needed) in cases {
            check(name, "1", |kind| kind == needed).unwrap();
            let error = check(name, "1", |kind| kind != needed).unwrap_err();
            assert!(error.to_string().contains("list one"), "{error}");
        }
    }
}
