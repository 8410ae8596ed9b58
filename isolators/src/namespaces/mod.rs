//! Namespaces, namespaces(7): one isolator for each type, and what they have in common.
//!
//! A declaration lists the namespaces that the container has for itself; what it does not list is shared with us. A
//! namespace lives as long as its last process, so nothing is left to clean up. The mount namespace belongs to
//! `filesystem/linux`.

pub mod cgroup;
pub mod ipc;
pub mod net;
pub mod pid;
pub mod uts;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;

use crate::declaration::Declaration;
use crate::error::{Error, Result};
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, LiveNamespace, Target, Verdict};
use crate::observe::unseen;

/// What a declaration says of one namespace, as launch info. Joining one by path is refused, for any type.
///
/// # Errors
/// `Error::Config` for a path, and for a type that is listed twice.
pub fn prepare(declaration: &Declaration, kind: LinuxNamespaceType) -> Result<ContainerLaunchInfo> {
    let linux = declaration.spec.linux().as_ref();
    let listed = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .map_or(&[][..], Vec::as_slice);
    let mut info = ContainerLaunchInfo::default();
    for namespace in listed.iter().filter(|namespace| namespace.typ() == kind) {
        let refused = |value: String, rule: &str| Error::Config {
            field: "linux.namespaces",
            value,
            rule: rule.to_owned(),
        };
        if let Some(path) = namespace.path() {
            return Err(refused(
                format!("{kind} with path {}", path.display()),
                "this version only makes new namespaces; leave out `path`, or the entry to share the host's",
            ));
        }
        if !info.namespaces.is_empty() {
            return Err(refused(
                format!("{kind} twice"),
                "each type may be listed once",
            ));
        }
        info.namespaces.push(kind);
    }
    Ok(info)
}

/// Reads the identity of one namespace of the target into `live`.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn observe(target: &Target, name: &str, live: &mut Live) -> Result<()> {
    let file = format!("ns/{name}");
    let inode = inode(&target.proc_path(&file)).map_err(|source| unseen(target, &file, source))?;
    let own = Path::new("/proc/self").join(&file);
    let own = self::inode(&own).map_err(|source| Error::file("stat", own, source))?;
    // Pid 1 is in the namespaces that the node started with, which we may have left. It can be hidden from us (not
    // root, hidepid): then our own namespace is all there is to compare with.
    let first = self::inode(&Path::new("/proc/1").join(&file)).ok();
    let namespace = LiveNamespace {
        inode,
        shared_with_observer: inode == own || Some(inode) == first,
    };
    live.namespaces.insert(name.to_owned(), namespace);
    Ok(())
}

fn inode(link: &Path) -> io::Result<u64> {
    Ok(fs::metadata(link)?.ino())
}

/// The finding for one namespace.
pub fn compare(isolator: &'static str, name: &str, declared_new: bool, live: &Live) -> Finding {
    let seen = live.namespaces.get(name);
    let verdict = match seen.map(|namespace| namespace.shared_with_observer) {
        None => Verdict::Unknown,
        Some(shared) if shared != declared_new => Verdict::Match,
        Some(true) => Verdict::Weaker,
        Some(false) => Verdict::Stronger,
    };
    let words = |namespace: &LiveNamespace| match namespace.shared_with_observer {
        true => format!("shared with the host ({})", namespace.inode),
        false => format!("its own ({})", namespace.inode),
    };
    Finding {
        isolator,
        item: format!("{name} namespace"),
        declared: match declared_new {
            true => "its own".to_owned(),
            false => "shared with the host".to_owned(),
        },
        live: seen.map_or_else(|| "not seen".to_owned(), words),
        verdict,
        read_from: format!("ns/{name}"),
    }
}
