//! `linux/lsm`: what AppArmor or SELinux make of the workload; runtime-spec config "apparmorProfile", "selinuxLabel" and
//! config-linux "mountLabel".
//!
//! The label is given to the kernel for the coming execve(2) (apparmor(7), selinux(8)), through a procfs that nothing of
//! the image can have covered (CVE-2019-16884). A label that this kernel cannot honour is an error and never dropped.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use crate::attribute::Attribute;
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};

/// `linux/lsm`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lsm;

const PROFILE: &str = "process.apparmorProfile";
const LABEL: &str = "process.selinuxLabel";
const MOUNT_LABEL: &str = "linux.mountLabel";

/// The module whose label is in `attr/current`: SELinux, or AppArmor on an older kernel.
const SHARED: &str = "first";

/// The name of no profile.
const UNCONFINED: &str = "unconfined";

/// What the declaration asks of the security modules; empty texts are none.
#[derive(Debug, Clone, Copy, Default)]
struct Declared<'a> {
    profile: Option<&'a str>,
    label: Option<&'a str>,
    mount_label: Option<&'a str>,
}

/// Which modules this kernel runs.
#[derive(Debug, Clone, Copy)]
struct Modules {
    apparmor: bool,
    selinux: bool,
}

impl Modules {
    fn of_this_kernel() -> Self {
        let enabled = fs::read("/sys/module/apparmor/parameters/enabled");
        Self {
            apparmor: enabled.is_ok_and(|text| text.starts_with(b"Y")),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        }
    }
}

impl Isolator for Lsm {
    fn name(&self) -> &'static str {
        "linux/lsm"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        match declared(declaration) {
            Declared {
                profile: None,
                label: None,
                mount_label: None,
            } => Ok(ContainerLaunchInfo::default()),
            declared => labels(declared, Modules::of_this_kernel()),
        }
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        // The directory of one's own came with Linux 5.8; the shared file belongs to the first module.
        for (module, file) in [
            ("apparmor", "attr/apparmor/current"),
            (SHARED, "attr/current"),
        ] {
            let label = match std::fs::read(target.proc_path(file)) {
                Ok(text) => String::from_utf8_lossy(&text).into_owned(),
                // A kernel without such a module: nothing has a label.
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINVAL | libc::ENOENT) if module == SHARED => String::new(),
                    _ => continue,
                },
            };
            let label = label.trim_end_matches(['\n', '\0']).to_owned();
            live.security_labels.insert(module.to_owned(), label);
        }
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let declared = declared(declaration);
        let seen = |module: &str| live.security_labels.get(module);
        let finding = |item: &str, declared: &str, seen: Option<&String>, same: bool| Finding {
            isolator: self.name(),
            item: item.to_owned(),
            declared: declared.to_owned(),
            live: seen.cloned().unwrap_or_else(|| "not seen".to_owned()),
            verdict: match (seen, same) {
                (None, _) => Verdict::Unknown,
                (Some(_), true) => Verdict::Match,
                (Some(_), false) => Verdict::Weaker,
            },
            read_from: "attr/current".to_owned(),
        };
        let profile = declared.profile.filter(|profile| *profile != UNCONFINED);
        let profile = profile.map(|profile| {
            let seen = seen("apparmor").or(seen(SHARED));
            // `name (enforce)`.
            let name = seen.map(|label| label.split_once(" (").map_or(label.as_str(), |(n, _)| n));
            finding("AppArmor profile", profile, seen, name == Some(profile))
        });
        let label = declared.label.map(|label| {
            let seen = seen(SHARED);
            finding(
                "SELinux label",
                label,
                seen,
                seen.is_some_and(|seen| seen == label),
            )
        });
        profile.into_iter().chain(label).collect()
    }
}

fn declared(declaration: &Declaration) -> Declared<'_> {
    fn some(text: &Option<String>) -> Option<&str> {
        text.as_deref().filter(|text| !text.is_empty())
    }
    let process = declaration.spec.process().as_ref();
    let linux = declaration.spec.linux().as_ref();
    Declared {
        profile: process.and_then(|process| some(process.apparmor_profile())),
        label: process.and_then(|process| some(process.selinux_label())),
        mount_label: linux.and_then(|linux| some(linux.mount_label())),
    }
}

fn labels(declared: Declared<'_>, modules: Modules) -> Result<ContainerLaunchInfo> {
    let mut info = ContainerLaunchInfo::default();
    let missing = |field, value: &str, module| Error::Config {
        field,
        value: value.to_owned(),
        rule: format!(
            "{module} is not enabled in this kernel; leave it out, or start a kernel with it"
        ),
    };
    let text = |field, text: String| {
        let plain = !text.contains(char::is_control);
        let refused = || Error::Config {
            field,
            value: format!("{text:?}"),
            rule: "a label has no control characters".to_owned(),
        };
        CString::new(text.as_str())
            .ok()
            .filter(|_| plain)
            .ok_or_else(refused)
    };
    if let Some(profile) = declared.profile {
        if modules.apparmor {
            let own = Path::new("/proc/self/attr/apparmor/exec").exists();
            let path = if own {
                c"thread-self/attr/apparmor/exec"
            } else {
                c"thread-self/attr/exec"
            };
            info.attributes.push(Attribute::ExecLabel {
                path: path.into(),
                label: text(PROFILE, format!("exec {profile}"))?,
            });
        } else if profile != UNCONFINED {
            return Err(missing(PROFILE, profile, "AppArmor"));
        }
    }
    if let Some(label) = declared.label {
        if !modules.selinux {
            return Err(missing(LABEL, label, "SELinux"));
        }
        info.attributes.push(Attribute::ExecLabel {
            path: c"thread-self/attr/exec".into(),
            label: text(LABEL, label.to_owned())?,
        });
    }
    if let Some(label) = declared.mount_label {
        if !modules.selinux {
            return Err(missing(MOUNT_LABEL, label, "SELinux"));
        }
        info.mount_label = Some(text(MOUNT_LABEL, label.to_owned())?);
    }
    Ok(info)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NONE: Modules = Modules {
        apparmor: false,
        selinux: false,
    };
    const BOTH: Modules = Modules {
        apparmor: true,
        selinux: true,
    };

    #[test]
    fn a_label_that_the_kernel_cannot_honour_is_an_error() {
        let none = Declared::default();
        let cases = [
            (
                Declared {
                    profile: Some("web"),
                    ..none
                },
                "process.apparmorProfile is web",
            ),
            (
                Declared {
                    label: Some("a:b:c:s0"),
                    ..none
                },
                "process.selinuxLabel is a:b:c:s0",
            ),
            (
                Declared {
                    mount_label: Some("a:b:c:s0"),
                    ..none
                },
                "linux.mountLabel is a:b:c:s0",
            ),
        ];
        for (declared, start) in cases {
            let error = labels(declared, NONE).unwrap_err().to_string();
            assert!(
                error.starts_with(start) && error.contains("not enabled"),
                "{error}"
            );
            labels(declared, BOTH).unwrap();
        }
        let unconfined = Declared {
            profile: Some(UNCONFINED),
            ..none
        };
        assert_eq!(labels(unconfined, NONE).unwrap().attributes, []);
        let smuggled = Declared {
            profile: Some("web\nexec other"),
            ..none
        };
        assert!(labels(smuggled, BOTH).is_err());
    }

    #[test]
    fn labels_are_written_for_the_next_execution() {
        let declared = Declared {
            profile: Some("web"),
            label: Some("a:b:c:s0"),
            mount_label: Some("a:b:d:s0"),
        };
        let info = labels(declared, BOTH).unwrap();
        let [
            Attribute::ExecLabel { label: first, .. },
            Attribute::ExecLabel { path, label },
        ] = info.attributes.as_slice()
        else {
            panic!("{:?}", info.attributes);
        };
        assert_eq!(first.as_c_str(), c"exec web");
        assert_eq!(path.as_c_str(), c"thread-self/attr/exec");
        assert_eq!(label.as_c_str(), c"a:b:c:s0");
        assert_eq!(info.mount_label.as_deref(), Some(c"a:b:d:s0"));
    }
}
