//! `namespaces/uts`: a host name and an NIS domain name of the container's own, uts_namespaces(7).

use std::ffi::{CStr, CString};

use oci_spec::runtime::LinuxNamespaceType;

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

/// `__NEW_UTS_LEN`: the longest of the names, in bytes.
const LONGEST: usize = 64;

impl Isolator for UtsNamespace {
    fn name(&self) -> &'static str {
        "namespaces/uts"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let info = super::prepare(declaration, KIND)?;
        let apart = super::is_apart(declaration, KIND);
        let checked = |(field, name): (&'static str, Option<&str>)| {
            name.map(|name| check(field, name, apart)).transpose()
        };
        let [hostname, domainname] = names(declaration).map(checked);
        Ok(ContainerLaunchInfo {
            hostname: hostname?,
            domainname: domainname?,
            ..info
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        super::observe(target, "uts", live)?;
        let names = || {
            let names = rustix::system::uname();
            let text = |name: &CStr| name.to_string_lossy().into_owned();
            Ok((text(names.nodename()), text(names.domainname())))
        };
        let names = super::visit(target, &[KIND], names)
            .map_err(|source| unseen(target, "host name", source))?;
        // Without CAP_SYS_ADMIN they stay unknown, and the findings say so.
        (live.hostname, live.domainname) = names.unzip();
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let own = super::compare_declared(self.name(), declaration, KIND, live);
        let finding = |item: &str, declared: &str, live: &Option<String>| Finding {
            isolator: self.name(),
            item: item.to_owned(),
            declared: declared.to_owned(),
            live: live.clone().unwrap_or_else(|| "not seen".to_owned()),
            verdict: match live.as_deref() {
                None => Verdict::Unknown,
                Some(live) if live == declared => Verdict::Match,
                Some(_) => Verdict::Weaker,
            },
            read_from: "ns/uts".to_owned(),
        };
        let [(_, host), (_, domain)] = names(declaration);
        let host = host.map(|name| finding("host name", name, &live.hostname));
        let domain = domain.map(|name| finding("domain name", name, &live.domainname));
        [Some(own), host, domain].into_iter().flatten().collect()
    }
}

/// Host name and domain name with their fields; an empty one is none.
fn names(declaration: &Declaration) -> [(&'static str, Option<&str>); 2] {
    let spec = &declaration.spec;
    [
        ("hostname", spec.hostname().as_deref()),
        ("domainname", spec.domainname().as_deref()),
    ]
    .map(|(field, name)| (field, name.filter(|name| !name.is_empty())))
}

fn check(field: &'static str, name: &str, apart: bool) -> Result<CString> {
    let refused = |rule: String| Error::Config {
        field,
        value: name.to_owned(),
        rule,
    };
    if !apart {
        return Err(refused(
            "without a uts namespace of its own it would rename the host; list one in linux.namespaces"
                .to_owned(),
        ));
    }
    if name.len() > LONGEST {
        return Err(refused(format!("the kernel takes at most {LONGEST} bytes")));
    }
    CString::new(name).map_err(|_| refused("such a name has no NUL byte".to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_rename_the_host_is_refused() {
        for field in ["hostname", "domainname"] {
            let error = check(field, "web", false).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{field} is web, but")),
                "{error}"
            );
        }
        assert!(check("hostname", &"x".repeat(65), true).is_err());
        assert!(check("hostname", "a\0b", true).is_err());
        assert_eq!(check("hostname", "web", true).unwrap().as_c_str(), c"web");
    }
}
