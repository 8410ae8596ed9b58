//! Namespaces, namespaces(7): one isolator for each type, and what they have in common.
//!
//! A declaration lists the namespaces that the container has for itself, new or by the path of one that exists; what it
//! does not list is shared with us. A namespace lives as long as its last process, so nothing is left to clean up. The mount namespace belongs to
//! `filesystem/linux`.

pub mod cgroup;
pub mod ipc;
pub mod net;
pub mod pid;
pub mod time;
pub mod user;
pub mod uts;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::fs::{Mode, OFlags, fstatfs, open};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::declaration::Declaration;
use crate::error::{Error, Result};
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, LiveNamespace, Target, Verdict};
use crate::observe::unseen;
use crate::sys;

/// What a declaration says of one namespace, as launch info: a new one, one to join, or nothing.
///
/// # Errors
/// `Error::Config` for a type that is listed twice, and for a path that is not such a namespace.
pub fn prepare(declaration: &Declaration, kind: LinuxNamespaceType) -> Result<ContainerLaunchInfo> {
    let mut info = ContainerLaunchInfo::default();
    let mut seen = false;
    for namespace in listed(declaration, kind) {
        let refused = |value: String, rule: &str| Error::Config {
            field: FIELD,
            value,
            rule: rule.to_owned(),
        };
        if seen {
            return Err(refused(
                format!("{kind} twice"),
                "each type may be listed once",
            ));
        }
        seen = true;
        match namespace.path() {
            None => info.namespaces.push(kind),
            Some(path) if kind == LinuxNamespaceType::Mount => {
                return Err(refused(
                    format!("{kind} with path {}", path.display()),
                    "a container's mounts are made in a mount namespace of its own; leave out `path`",
                ));
            }
            Some(path) => {
                check_path(path, kind)?;
                info.join_namespaces.push((kind, path.clone()));
            }
        }
    }
    Ok(info)
}

const FIELD: &str = "linux.namespaces";

/// The entries of one type; a good declaration has one at most.
fn listed(
    declaration: &Declaration,
    kind: LinuxNamespaceType,
) -> impl Iterator<Item = &LinuxNamespace> {
    let linux = declaration.spec.linux().as_ref();
    let all = linux.and_then(|linux| linux.namespaces().as_ref());
    let all = all.map_or(&[][..], Vec::as_slice);
    all.iter().filter(move |namespace| namespace.typ() == kind)
}

/// The path of the namespace that is to be joined, when one is.
pub fn joined(declaration: &Declaration, kind: LinuxNamespaceType) -> Option<&Path> {
    listed(declaration, kind).find_map(|namespace| namespace.path().as_deref())
}

/// Whether what the container does in this namespace stays off ours: it is a new one, or joined and not the one that
/// we are in.
pub fn is_apart(declaration: &Declaration, kind: LinuxNamespaceType) -> bool {
    match joined(declaration, kind) {
        None => declaration.has_new_namespace(kind),
        Some(path) => {
            let own = Path::new("/proc/self/ns").join(name(kind));
            matches!((inode(path), inode(&own)), (Ok(theirs), Ok(ours)) if theirs != ours)
        }
    }
}

/// The name of a type in `/proc/PID/ns`.
pub fn name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}

/// The flag of a type, as clone(2), setns(2) and ioctl_ns(2) have it.
fn link_type(kind: LinuxNamespaceType) -> LinkNameSpaceType {
    match kind {
        LinuxNamespaceType::Mount => LinkNameSpaceType::Mount,
        LinuxNamespaceType::Cgroup => LinkNameSpaceType::ControlGroup,
        LinuxNamespaceType::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        LinuxNamespaceType::Ipc => LinkNameSpaceType::InterProcessCommunication,
        LinuxNamespaceType::User => LinkNameSpaceType::User,
        LinuxNamespaceType::Pid => LinkNameSpaceType::ProcessID,
        LinuxNamespaceType::Network => LinkNameSpaceType::Network,
        LinuxNamespaceType::Time => LinkNameSpaceType::Time,
    }
}

/// A path has to be absolute and a namespace of its type: setns(2) would only say EINVAL.
fn check_path(path: &Path, kind: LinuxNamespaceType) -> Result<()> {
    let refused = |rule: String| Error::Config {
        field: FIELD,
        value: format!("{kind} with path {}", path.display()),
        rule,
    };
    if !path.is_absolute() {
        return Err(refused("the path has to be absolute".to_owned()));
    }
    let failed = |errno: Errno| Error::file("open the namespace", path, errno);
    // Looked at before it is opened: opening a device or a FIFO does things.
    let place = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    if fstatfs(&place).map_err(failed)?.f_type as u64 != NSFS_MAGIC {
        return Err(refused("that file is not a namespace".to_owned()));
    }
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let found = sys::namespace_type(file.as_fd())
        .map_err(|source| Error::file("ask for the type of", path, source))?;
    match found == link_type(kind) as u32 {
        true => Ok(()),
        false => Err(refused(format!(
            "that is a namespace of another type (flag {found:#x} of clone(2))"
        ))),
    }
}

/// The magic number of the file system of namespaces, linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Runs `look` in some namespaces of the target: a thread of its own goes there and ends, so that the caller stays
/// where it is. `None` without CAP_SYS_ADMIN over them. A user namespace cannot be entered by a thread.
///
/// # Errors
/// When the namespaces cannot be entered for another reason, or `look` fails.
pub fn visit<T: Send>(
    target: &Target,
    kinds: &[LinuxNamespaceType],
    look: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<Option<T>> {
    let open = |kind: &LinuxNamespaceType| {
        let file = File::open(target.proc_path(&format!("ns/{}", name(*kind))))?;
        Ok((file, link_type(*kind)))
    };
    let namespaces: Vec<_> = kinds.iter().map(open).collect::<io::Result<_>>()?;
    let go = || {
        for (file, kind) in &namespaces {
            match move_into_link_name_space(file.as_fd(), Some(*kind)) {
                Err(Errno::PERM) => return Ok(None),
                other => other?,
            }
        }
        look().map(Some)
    };
    std::thread::scope(|scope| {
        let visitor = std::thread::Builder::new().spawn_scoped(scope, go)?;
        let visited = visitor.join();
        visited.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Reads the identity of one namespace of the target into `live`.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn observe(target: &Target, name: &str, live: &mut Live) -> Result<()> {
    let file = format!("ns/{name}");
    let own = Path::new("/proc/self").join(&file);
    let own = match self::inode(&own) {
        // A kernel without such namespaces: there is nothing to see.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|source| Error::file("stat", own, source))?,
    };
    let inode = inode(&target.proc_path(&file)).map_err(|source| unseen(target, &file, source))?;
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

/// The finding for a namespace that the declaration has as a new one, by path, or not at all.
pub fn compare_declared(
    isolator: &'static str,
    declaration: &Declaration,
    kind: LinuxNamespaceType,
    live: &Live,
) -> Finding {
    let name = name(kind);
    let Some(path) = joined(declaration, kind) else {
        return compare(isolator, name, declaration.has_new_namespace(kind), live);
    };
    let seen = live.namespaces.get(name).map(|namespace| namespace.inode);
    let wanted = inode(path).ok();
    let words = |inode: Option<u64>| {
        inode.map_or_else(|| "not seen".to_owned(), |inode| format!("({inode})"))
    };
    Finding {
        isolator,
        item: format!("{name} namespace"),
        declared: format!("that of {} {}", path.display(), words(wanted)),
        live: words(seen),
        verdict: match (seen, wanted) {
            (Some(seen), Some(wanted)) if seen == wanted => Verdict::Match,
            (Some(_), Some(_)) => Verdict::Weaker,
            _ => Verdict::Unknown,
        },
        read_from: format!("ns/{name}"),
    }
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

/// Whether the container has a user namespace that is not ours, new or joined.
pub fn has_user_namespace(declaration: &Declaration) -> bool {
    let linux = declaration.spec.linux().as_ref();
    let mut listed = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten();
    listed.any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}
