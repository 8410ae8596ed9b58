//! The declared mounts, checked and sorted into kinds; runtime-spec config "mounts".
//!
//! This is a pure function of the declaration, so that comparing uses the very same reading of it as preparing.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;

use super::devices;
use super::options::Options;
use crate::declaration::Declaration;
use crate::error::{Error, Result};
use crate::launch_info::{Mount, MountKind};

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
    /// Whether `rw` was asked for.
    pub read_write: bool,
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

/// Single procfs files that may be covered by a bind mount: they only inform. Anything else below /proc is how a
/// write of ours, or of a program in the container, gets diverted to a harmless file (CVE-2019-16884, CVE-2025-52881).
const PROC_FILES: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
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
    let has_devices = declared
        .iter()
        .any(|d| matches!(d, Declared::Mount(m) if matches!(m.kind, MountKind::Devices { .. })));
    let linux = spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.devices().as_ref());
    if !has_devices && let Some(device) = devices.and_then(|devices| devices.first()) {
        return Err(Error::Config {
            field: "linux.devices",
            value: device.path().display().to_string(),
            rule: "devices are made in a tmpfs at /dev only; add one to mounts".to_owned(),
        });
    }
    Ok(declared)
}

fn one(declaration: &Declaration, mount: &oci_spec::runtime::Mount) -> Result<Declared> {
    let destination = mount.destination();
    let refused = |value: &str, rule: &str| Error::Config {
        field: FIELD,
        value: format!("{} {value}", destination.display()),
        rule: rule.to_owned(),
    };
    let target = normal(destination).ok_or_else(|| {
        refused(
            "as a destination",
            "it has to be an absolute path below the root",
        )
    })?;
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(refused(
            "with id mappings",
            "this version has no id-mapped mounts",
        ));
    }
    let words = mount.options().as_ref().map_or(&[][..], Vec::as_slice);
    let options = Options::parse(words)
        .map_err(|(word, rule)| refused(&format!("with option {word:?}"), rule))?;
    let typ = mount.typ().as_deref().unwrap_or_default();
    let source = mount.source().as_deref();
    let bind = options.bind || matches!(typ, "bind" | "rbind");

    let text = target.to_string_lossy();
    let plain_target = matches!(text.as_ref(), "/proc" | "/sys" | "/dev");
    if text == "/proc" && typ != "proc" && !(bind && source == Some(Path::new("/proc"))) {
        return Err(refused("with another type", "only procfs may be there"));
    }
    if text.starts_with("/proc/") && !(bind && PROC_FILES.contains(&text.as_ref())) {
        return Err(refused(
            "as a destination",
            "nothing may be mounted in /proc but binds over its informative files (cpuinfo, meminfo, uptime …)",
        ));
    }

    if typ == "cgroup" && !bind {
        if !declaration.has_new_namespace(LinuxNamespaceType::Cgroup) {
            return Err(refused(
                "with type cgroup",
                "without a new cgroup namespace it would show all cgroups of the host; list one in linux.namespaces",
            ));
        }
        let read_write = options.read_write;
        return Ok(Declared::Cgroups(Cgroups { target, read_write }));
    }

    let kind = if bind {
        if let Some((key, _)) = options.filesystem.first() {
            return Err(refused(
                &format!("with option {key:?}"),
                "a bind mount has no such option (the options of a file system stay those of the source)",
            ));
        }
        let source = source.filter(|source| source.is_absolute());
        let source = source
            .ok_or_else(|| refused("as a bind mount", "its source has to be an absolute path"))?;
        MountKind::Bind {
            source: source.to_owned(),
            recursive: options.recursive_bind || typ == "rbind",
            plain_source: options.plain_source,
        }
    } else if typ.is_empty() {
        return Err(refused("without a type", "only a bind mount has none"));
    } else if text == "/dev" && typ == "tmpfs" {
        devices::directory(&declaration.spec, options.filesystem)?
    } else {
        let fstype =
            CString::new(typ).map_err(|_| refused("with its type", "it has a NUL byte"))?;
        let source = source.map_or(typ.as_bytes(), |source| source.as_os_str().as_bytes());
        MountKind::Filesystem {
            fstype,
            source: CString::new(source)
                .map_err(|_| refused("with its source", "it has a NUL byte"))?,
            options: options.filesystem,
        }
    };
    Ok(Declared::Mount(Mount {
        plain_target,
        target,
        kind,
        attributes: options.attributes,
        recursive_attributes: options.recursive_attributes,
        propagation: options.propagation,
    }))
}

/// An absolute path without `.`, `..` and doubled slashes; `None` for the root itself and for what is no such path.
pub fn normal(path: &Path) -> Option<CString> {
    let mut normal = PathBuf::from("/");
    if !path.is_absolute() {
        return None;
    }
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::declaration::{CgroupPlacement, RootFilesystem};
    use oci_spec::runtime::Spec;
    use serde_json::{Value, json};

    fn declaration(spec: Spec) -> Declaration {
        Declaration {
            spec,
            rootfs: RootFilesystem::Host,
            cgroups: CgroupPlacement {
                parent: "/tepui".into(),
                nested: Default::default(),
                name: None,
            },
            init: false,
            executable: None,
        }
    }

    fn parse(mount: Value) -> Result<Declared> {
        let spec = json!({ "mounts": [mount] });
        let spec = serde_json::from_value(spec).unwrap();
        Ok(declared(&declaration(spec))?.remove(0))
    }

    fn mount(value: Value) -> Mount {
        match parse(value).unwrap() {
            Declared::Mount(mount) => mount,
            Declared::Cgroups(_) => panic!("no cgroup was declared"),
        }
    }

    #[test]
    fn the_usual_mounts_of_a_container_are_understood() {
        let declared = declared(&declaration(Spec::default())).unwrap();
        let targets: Vec<_> = declared
            .iter()
            .map(|d| d.target().to_str().unwrap())
            .collect();
        assert_eq!(
            targets,
            [
                "/proc",
                "/dev",
                "/dev/pts",
                "/dev/shm",
                "/dev/mqueue",
                "/sys",
                "/sys/fs/cgroup"
            ]
        );
        let plain = |d: &&Declared| matches!(d, Declared::Mount(mount) if mount.plain_target);
        assert_eq!(declared.iter().filter(plain).count(), 3);
        let Declared::Mount(Mount {
            kind: MountKind::Devices { nodes, options, .. },
            ..
        }) = &declared[1]
        else {
            panic!("/dev is a tmpfs with devices");
        };
        assert_eq!(nodes.len(), 6);
        let mode = (c"mode".into(), Some(c"755".into()));
        let size = (c"size".into(), Some(c"65536k".into()));
        assert_eq!(*options, [mode, size]);
        let read_only = Cgroups {
            target: c"/sys/fs/cgroup".into(),
            read_write: false,
        };
        assert_eq!(declared[6], Declared::Cgroups(read_only));
    }

    #[test]
    fn a_bind_mount_keeps_its_source_flags_and_propagation() {
        let bind = mount(json!({
            "destination": "/data/./x/../y", "type": "none", "source": "/srv/data",
            "options": ["rbind", "rslave", "ro", "nosuid"]
        }));
        assert_eq!(bind.target.as_c_str(), c"/data/y");
        assert_eq!(
            bind.kind,
            MountKind::Bind {
                source: "/srv/data".into(),
                recursive: true,
                plain_source: false,
            }
        );
        assert_eq!(
            bind.attributes,
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID
        );
        assert_eq!(bind.propagation, libc::MS_SLAVE | libc::MS_REC);
        let by_type = mount(json!({ "destination": "/d", "type": "bind", "source": "/s" }));
        assert_eq!(
            by_type.kind,
            MountKind::Bind {
                source: "/s".into(),
                recursive: false,
                plain_source: false,
            }
        );
    }

    #[test]
    fn mounts_that_cannot_be_honoured_or_are_dangerous_are_refused() {
        let cases = [
            json!({ "destination": "/", "type": "tmpfs" }),
            json!({ "destination": "/a/..", "type": "tmpfs" }),
            json!({ "destination": "data", "type": "tmpfs" }),
            json!({ "destination": "/d" }),
            json!({ "destination": "/d", "type": "bind", "source": "relative" }),
            json!({ "destination": "/d", "type": "bind" }),
            json!({ "destination": "/d", "source": "/s", "options": ["bind", "size=1m"] }),
            json!({ "destination": "/d", "source": "/s", "options": ["bind", "rslave", "private"] }),
            json!({ "destination": "/proc", "type": "tmpfs" }),
            json!({ "destination": "/x/../proc/./", "type": "tmpfs" }),
            json!({ "destination": "/proc/self/attr", "type": "tmpfs" }),
            json!({ "destination": "/proc/sys", "source": "/s", "options": ["bind"] }),
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup" }),
            json!({ "destination": "/d", "type": "tmpfs", "options": ["tmpcopyup"] }),
            json!({
                "destination": "/d", "source": "/s", "options": ["bind"],
                "uidMappings": [{ "containerID": 0, "hostID": 1, "size": 1 }],
                "gidMappings": [{ "containerID": 0, "hostID": 1, "size": 1 }]
            }),
        ];
        for case in cases {
            let error = parse(case.clone())
                .expect_err(&case.to_string())
                .to_string();
            assert!(
                error.starts_with("mounts is ") && error.contains(", but "),
                "{error}"
            );
        }
        parse(json!({ "destination": "/proc/uptime", "source": "/s", "options": ["bind"] }))
            .unwrap();
        parse(json!({ "destination": "/procfs", "type": "tmpfs" })).unwrap();
    }

    #[test]
    fn devices_are_made_directly_in_dev_and_replace_the_default_ones() {
        let parse = |device: Value| {
            let mounts = json!([{ "destination": "/dev", "type": "tmpfs" }]);
            let spec = json!({ "mounts": mounts, "linux": { "devices": [device] } });
            let spec = serde_json::from_value(spec).unwrap();
            let mut declared = declared(&declaration(spec))?;
            match declared.remove(0) {
                Declared::Mount(Mount {
                    kind: MountKind::Devices { nodes, .. },
                    ..
                }) => Ok(nodes),
                other => panic!("{other:?}"),
            }
        };
        let fuse = json!({ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 384, "uid": 5 });
        let nodes = parse(fuse).unwrap();
        assert_eq!(nodes.len(), 7);
        let fuse = &nodes[6];
        assert_eq!(
            (fuse.major, fuse.minor, fuse.mode, fuse.uid),
            (10, 229, libc::S_IFCHR | 0o600, 5)
        );
        let nodes =
            parse(json!({ "path": "/dev/null", "type": "c", "major": 1, "minor": 5 })).unwrap();
        assert_eq!(nodes.len(), 6);
        let bad: [Result<_>; 5] = [
            parse(json!({ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200 })),
            parse(json!({ "path": "/etc/x", "type": "c", "major": 10, "minor": 200 })),
            parse(json!({ "path": "/dev/x", "type": "p", "major": 0, "minor": 0 })),
            parse(json!({ "path": "/dev/x", "type": "c", "major": -1, "minor": 0 })),
            parse(json!({ "path": "/dev/pts", "type": "c", "major": 1, "minor": 1 })),
        ];
        for nodes in bad {
            let error = nodes.unwrap_err().to_string();
            assert!(error.starts_with("linux.devices is /"), "{error}");
        }
    }
}
