//! `namespaces/uts`: a host name of the container's own, uts_namespaces(7).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};
use crate::observe::unseen;

/// `namespaces/uts`.
#[derive(Debug, Clone, Copy, Default)]
pub struct UtsNamespace;

const KIND: LinuxNamespaceType = LinuxNamespaceType::Uts;

/// `__NEW_UTS_LEN`: the longest host name, in bytes.
const LONGEST: usize = 64;

impl Isolator for UtsNamespace {
    fn name(&self) -> &'static str {
        "namespaces/uts"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let info = super::prepare(declaration, KIND)?;
        let own = !info.namespaces.is_empty();
        if let Some(name) = declaration
            .spec
            .domainname()
            .as_ref()
            .filter(|n| !n.is_empty())
        {
            return Err(Error::Config {
                field: "domainname",
                value: name.clone(),
                rule: "this version sets no domain name; leave it out".to_owned(),
            });
        }
        Ok(ContainerLaunchInfo {
            hostname: declared_name(declaration)
                .map(|name| check(name, own))
                .transpose()?,
            ..info
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        super::observe(target, "uts", live)?;
        live.hostname = match hostname(target) {
            // Entering the namespace takes CAP_SYS_ADMIN; without it the name stays unknown, and the finding says so.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            name => Some(name.map_err(|source| unseen(target, "host name", source))?),
        };
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let declared_new = declaration.has_new_namespace(KIND);
        let mut findings = vec![super::compare(self.name(), "uts", declared_new, live)];
        if let Some(declared) = declared_name(declaration) {
            let verdict = match live.hostname.as_deref() {
                None => Verdict::Unknown,
                Some(live) if live == declared => Verdict::Match,
                Some(_) => Verdict::Weaker,
            };
            findings.push(Finding {
                isolator: self.name(),
                item: "host name".to_owned(),
                declared: declared.to_owned(),
                live: live
                    .hostname
                    .clone()
                    .unwrap_or_else(|| "not seen".to_owned()),
                verdict,
                read_from: "ns/uts".to_owned(),
            });
        }
        findings
    }
}

fn declared_name(declaration: &Declaration) -> Option<&str> {
    let name = declaration.spec.hostname().as_deref();
    name.filter(|name| !name.is_empty())
}

fn check(name: &str, own_namespace: bool) -> Result<CString> {
    let refused = |rule: String| Error::Config {
        field: "hostname",
        value: name.to_owned(),
        rule,
    };
    if !own_namespace {
        return Err(refused(
            "without a new uts namespace it would rename the host; list one in linux.namespaces"
                .to_owned(),
        ));
    }
    if name.len() > LONGEST {
        return Err(refused(format!("the kernel takes at most {LONGEST} bytes")));
    }
    CString::new(name).map_err(|_| refused("a host name has no NUL byte".to_owned()))
}

/// The host name that the target sees: uname(2) in its namespace. A thread of its own goes there and ends, so that
/// the caller stays where it is.
fn hostname(target: &Target) -> io::Result<String> {
    let namespace = File::open(target.proc_path("ns/uts"))?;
    let visit = || -> io::Result<String> {
        let kind = LinkNameSpaceType::HostNameAndNISDomainName;
        move_into_link_name_space(namespace.as_fd(), Some(kind))?;
        let name = rustix::system::uname();
        Ok(name.nodename().to_string_lossy().into_owned())
    };
    std::thread::scope(|scope| {
        let visitor = std::thread::Builder::new().spawn_scoped(scope, visit)?;
        let visited = visitor.join();
        visited.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_that_would_rename_the_host_is_refused() {
        let error = check("web", false).unwrap_err().to_string();
        assert!(error.starts_with("hostname is web, but"), "{error}");
        assert!(check(&"x".repeat(65), true).is_err());
        assert!(check("a\0b", true).is_err());
        assert_eq!(check("web", true).unwrap().as_c_str(), c"web");
    }
}
