//! The declared mounts, checked and sorted into kinds; runtime-spec config "mounts".
//!
//! This is a pure function of the declaration, so that comparing uses the very same reading of it as preparing.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;

use super::devices;
use super::options::Options;
use crate::declaration::{Declaration, RootFilesystem};
use crate::error::{Error, Result};
use crate::launch_info::{IdMap, IdMaps, Mount, MountAttributes, MountIdMap, MountKind};
use crate::undefended::undefended;

/// One declared mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    /// An ordinary one.
    Mount(Mount),
    /// The container's own cgroups; what that means depends on the host's hierarchies.
    Cgroups(Cgroups),
}

/// A declared mount of type `cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// Where.
    pub target: CString,
    /// Whether `rw` was written out.
    pub read_write: bool,
    /// Whether `ro` was.
    pub read_only: bool,
    /// Whether the container has a cgroup namespace of its own.
    pub own_namespace: bool,
}

impl Cgroups {
    /// Whether a single cgroup v2 mount is writable: as any other mount, but only where the container's own cgroup is its
    /// root.
    pub fn is_writable_on_v2(&self) -> bool {
        !self.read_only && self.own_namespace
    }
}

impl Declared {
    /// Whether a later mount is made at this one's place or above it, and so hides it.
    pub fn is_hidden_by(&self, later: &Declared) -> bool {
        let (path, above) = (self.target().as_bytes(), later.target().as_bytes());
        let rest = path.strip_prefix(above);
        rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }

    /// Its mount point, absolute and without `.` and `..`.
    pub fn target(&self) -> &CString {
        match self {
            Declared::Mount(mount) => &mount.target,
            Declared::Cgroups(cgroups) => &cgroups.target,
        }
    }
}

const FIELD: &str = "mounts";

/// Single procfs files that may be covered by a bind mount: they only inform (or, for the last two, are what a restored
/// or certified program is shown). Anything else below /proc is how a write of ours, or of a program in the container,
/// gets diverted to a harmless file (CVE-2019-16884, CVE-2025-52881).
const PROC_FILES: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
];

/// All declared mounts in order.
///
/// # Errors
/// `Error::Config` naming the mount and what cannot be honoured of it.
pub fn declared(declaration: &Declaration) -> Result<Vec<Declared>> {
    let spec = &declaration.spec;
    let mounts = spec.mounts().as_ref().map_or(&[][..], Vec::as_slice);
    let declared: Vec<_> = mounts
        .iter()
        .map(|mount| one(declaration, mount))
        .collect::<Result<_>>()?;
    Ok(declared)
}

fn one(declaration: &Declaration, mount: &oci_spec::runtime::Mount) -> Result<Declared> {
    let destination = mount.destination();
    let refused = |value: &str, rule: &str| Error::Config {
        field: FIELD,
        value: format!("{} {value}", destination.display()),
        rule: rule.to_owned(),
    };
    let target = inside(declaration, destination).unwrap_or_else(|| destination.clone());
    let target = normal(&target)
        .ok_or_else(|| refused("as a destination", "it has to be a path below the root"))?;
    let words = mount.options().as_ref().map_or(&[][..], Vec::as_slice);
    let options = Options::parse(words)
        .map_err(|(word, rule)| refused(&format!("with option {word:?}"), rule))?;
    let typ = mount.typ().as_deref().unwrap_or_default();
    let bind = options.bind || matches!(typ, "bind" | "rbind");

    let text = target.to_string_lossy();
    let plain_target = matches!(text.as_ref(), "/proc" | "/sys" | "/dev")
        || !bind && matches!(typ, "proc" | "sysfs");
    // That the source is a procfs is checked when it is open.
    if text == "/proc" && !undefended("proc-mounts") && typ != "proc" && !bind {
        return Err(refused(
            "cannot be mounted because it is not of type proc",
            "only procfs may be there",
        ));
    }
    if text.starts_with("/proc/")
        && !undefended("proc-mounts")
        && !(bind && PROC_FILES.contains(&text.as_ref()))
    {
        return Err(refused(
            "cannot be mounted because it is inside /proc",
            "nothing may be mounted there but binds over its informative files (cpuinfo, meminfo, uptime …)",
        ));
    }
    if typ == "cgroup" && !bind {
        return Ok(Declared::Cgroups(Cgroups {
            target,
            read_write: options.read_write,
            read_only: options.of_new_mount().set & libc::MOUNT_ATTR_RDONLY != 0,
            own_namespace: declaration.has_new_namespace(LinuxNamespaceType::Cgroup),
        }));
    }
    let id_map = id_map(mount, &options).map_err(|rule| refused("with id mappings", rule))?;
    if !bind && id_map.is_some() {
        return Err(refused("with id mappings", "only bind mounts have them"));
    }
    if options.copy_up && (bind || typ != "tmpfs" || text == "/dev") {
        return Err(refused(
            "with option \"tmpcopyup\"",
            "only a tmpfs outside of /dev has it",
        ));
    }
    let attributes = match bind {
        true => options.of_bind_mount(),
        false => options.of_new_mount(),
    };
    let recursive_attributes = match bind {
        true => options.recursive_attributes,
        false => MountAttributes::default(),
    };
    let propagation = options.propagation;
    let kind = if bind {
        bind_kind(declaration, mount, options, id_map)
            .map_err(|(value, rule)| refused(&value, rule))?
    } else {
        let superblock = options.superblock.into_iter().map(|flag| (flag, None));
        let filesystem: Vec<_> = superblock.chain(options.filesystem).collect();
        let source = mount
            .source()
            .as_deref()
            .map_or(typ.as_bytes(), |source| source.as_os_str().as_bytes());
        let c_string = |text: &[u8]| {
            CString::new(text).map_err(|_| refused("with its type or source", "it has a NUL byte"))
        };
        match typ {
            "" => return Err(refused("without a type", "only a bind mount has none")),
            "tmpfs" if text == "/dev" => devices::directory(declaration, filesystem)?,
            _ => MountKind::Filesystem {
                fstype: c_string(typ.as_bytes())?,
                source: c_string(source)?,
                options: filesystem,
                copy_up: options.copy_up,
            },
        }
    };
    Ok(Declared::Mount(Mount {
        plain_target,
        target,
        kind,
        attributes,
        recursive_attributes,
        propagation,
    }))
}

fn bind_kind(
    declaration: &Declaration,
    mount: &oci_spec::runtime::Mount,
    options: Options,
    id_map: Option<MountIdMap>,
) -> Result<MountKind, (String, &'static str)> {
    if let Some((key, _)) = options.filesystem.first() {
        return Err((
            format!("with option {key:?}"),
            "a bind mount has no such option (the options of a file system stay those of the source)",
        ));
    }
    let source = mount.source().as_deref().filter(|path| path.is_absolute());
    let source = source.ok_or_else(|| {
        let rule = "its source has to be an absolute path";
        ("as a bind mount".to_owned(), rule)
    })?;
    let recursive = options.recursive_bind || mount.typ().as_deref() == Some("rbind");
    // Seen from the host that directory has none of the mounts before this one.
    if let Some(source) = inside(declaration, source).as_deref().and_then(normal) {
        return Ok(MountKind::BindInside {
            source,
            recursive,
            id_map,
        });
    }
    let is_shared = options.propagation & libc::MS_SHARED != 0;
    Ok(MountKind::Bind {
        source: source.to_owned(),
        recursive,
        plain_source: options.plain_source,
        id_map,
        // Both have to say so: each of them alone is common where nobody means the host.
        keeps_peers: is_shared && root_propagation(declaration) & libc::MS_SHARED != 0,
    })
}

/// The id map of a mount: its own maps, or by `idmap` alone those of the container's user namespace.
fn id_map(
    mount: &oci_spec::runtime::Mount,
    options: &Options,
) -> Result<Option<MountIdMap>, &'static str> {
    let maps = |maps: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>| -> Vec<IdMap> {
        let map = |map: &oci_spec::runtime::LinuxIdMapping| IdMap {
            inside: map.container_id(),
            outside: map.host_id(),
            count: map.size(),
        };
        maps.iter().flatten().map(map).collect()
    };
    let maps = IdMaps {
        users: maps(mount.uid_mappings()),
        groups: maps(mount.gid_mappings()),
    };
    let recursive = options.id_map.unwrap_or(false);
    match (maps.users.is_empty(), maps.groups.is_empty()) {
        (true, true) if options.id_map.is_none() => Ok(None),
        (true, true) => Ok(Some(MountIdMap {
            maps: None,
            recursive,
        })),
        (false, false) => Ok(Some(MountIdMap {
            maps: Some(maps),
            recursive,
        })),
        _ => Err("id-mapped mounts must have both uid and gid mappings specified"),
    }
}

/// A path below the directory that becomes the root, as the container knows it.
fn inside(declaration: &Declaration, path: &Path) -> Option<PathBuf> {
    let RootFilesystem::Directory(root) = &declaration.rootfs else {
        return None;
    };
    // The host's own root has everything below it.
    if root == Path::new("/") {
        return None;
    }
    let below = path.strip_prefix(root).ok()?;
    Some(Path::new("/").join(below))
}

/// `linux.rootfsPropagation` as `MS_*`; what is no such word counts as none, and is refused elsewhere.
pub fn root_propagation(declaration: &Declaration) -> u64 {
    let linux = declaration.spec.linux().as_ref();
    let word = linux.and_then(|linux| linux.rootfs_propagation().clone());
    let options = Options::parse(word.as_slice());
    options.map_or(0, |options| options.propagation)
}

/// A path from the root without `.`, `..` and doubled slashes (a relative one starts there too, runtime-spec 1.2);
/// `None` for the root itself.
pub fn normal(path: &Path) -> Option<CString> {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if normal == Path::new("/") {
        return None;
    }
    CString::new(normal.into_os_string().as_bytes()).ok()
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
