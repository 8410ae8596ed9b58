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
    if text == "/proc" && typ != "proc" && !bind {
        return Err(refused(
            "cannot be mounted because it is not of type proc",
            "only procfs may be there",
        ));
    }
    if text.starts_with("/proc/") && !(bind && PROC_FILES.contains(&text.as_ref())) {
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::declaration::CgroupPlacement;
    use crate::launch_info::DeviceNode;
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
            read_only: true,
            own_namespace: true,
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
                id_map: None,
                keeps_peers: false,
            }
        );
        assert_eq!(
            bind.attributes.set,
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
                id_map: None,
                keeps_peers: false,
            }
        );
    }

    #[test]
    fn mounts_that_cannot_be_honoured_or_are_dangerous_are_refused() {
        let cases = [
            json!({ "destination": "/", "type": "tmpfs" }),
            json!({ "destination": "/a/..", "type": "tmpfs" }),
            json!({ "destination": "/d" }),
            json!({ "destination": "/d", "type": "bind", "source": "relative" }),
            json!({ "destination": "/d", "type": "bind" }),
            json!({ "destination": "/d", "source": "/s", "options": ["bind", "size=1m"] }),
            json!({ "destination": "/d", "source": "/s", "options": ["bind", "rslave", "private"] }),
            json!({ "destination": "/proc", "type": "tmpfs" }),
            json!({ "destination": "/x/../proc/./", "type": "tmpfs" }),
            json!({ "destination": "/proc/self/attr", "type": "tmpfs" }),
            json!({ "destination": "/proc/sys", "source": "/s", "options": ["bind"] }),
            json!({ "destination": "/d", "type": "proc", "options": ["tmpcopyup"] }),
            json!({ "destination": "/d", "source": "/s", "options": ["bind", "tmpcopyup"] }),
            json!({ "destination": "/d", "type": "tmpfs", "options": ["idmap"] }),
            json!({
                "destination": "/d", "source": "/s", "options": ["bind"],
                "uidMappings": [{ "containerID": 0, "hostID": 1, "size": 1 }]
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
        // Its source is looked at when it is open.
        parse(json!({ "destination": "/proc", "source": "/p", "options": ["bind"] })).unwrap();
    }

    #[test]
    fn a_relative_destination_starts_at_the_root() {
        let relative = mount(json!({ "destination": "tmp/../data", "type": "tmpfs" }));
        assert_eq!(relative.target.as_c_str(), c"/data");
    }

    #[test]
    fn paths_in_the_root_directory_are_the_containers_own() {
        let spec = json!({ "mounts": [
            { "destination": "/r/root/mnt/x", "source": "/r/root/mnt", "options": ["rbind"] },
            { "destination": "/y", "source": "/r/rootless", "options": ["bind"] }
        ] });
        let declaration = Declaration {
            rootfs: RootFilesystem::Directory("/r/root".into()),
            ..declaration(serde_json::from_value(spec).unwrap())
        };
        let declared = declared(&declaration).unwrap();
        assert_eq!(declared[0].target().as_c_str(), c"/mnt/x");
        let Declared::Mount(mount) = &declared[0] else {
            panic!("no cgroup was declared");
        };
        let inside = MountKind::BindInside {
            source: c"/mnt".into(),
            recursive: true,
            id_map: None,
        };
        assert_eq!(mount.kind, inside);
        let Declared::Mount(mount) = &declared[1] else {
            panic!("no cgroup was declared");
        };
        assert!(matches!(mount.kind, MountKind::Bind { .. }));
    }

    #[test]
    fn id_maps_are_the_mounts_own_or_the_containers() {
        let map = |value: Value| match mount(value).kind {
            MountKind::Bind { id_map, .. } => id_map,
            other => panic!("{other:?}"),
        };
        let bind =
            |options: &[&str]| json!({ "destination": "/d", "source": "/s", "options": options });
        assert_eq!(map(bind(&["bind"])), None);
        let implied = MountIdMap {
            maps: None,
            recursive: true,
        };
        assert_eq!(map(bind(&["rbind", "ridmap"])), Some(implied));
        let mut own = bind(&["bind"]);
        let line = json!([{ "containerID": 0, "hostID": 100_000, "size": 10 }]);
        own["uidMappings"] = line.clone();
        own["gidMappings"] = line;
        let line = IdMap {
            inside: 0,
            outside: 100_000,
            count: 10,
        };
        let maps = IdMaps {
            users: vec![line],
            groups: vec![line],
        };
        let expected = MountIdMap {
            maps: Some(maps),
            recursive: false,
        };
        assert_eq!(map(own), Some(expected));
    }

    #[test]
    fn the_host_is_a_peer_only_when_root_and_mount_say_so() {
        let keeps = |root: &str, mount: &str| {
            let spec = json!({
                "mounts": [{ "destination": "/d", "source": "/s", "options": ["rbind", mount] }],
                "linux": { "rootfsPropagation": root }
            });
            let declaration = declaration(serde_json::from_value(spec).unwrap());
            let declared = declared(&declaration).unwrap();
            matches!(
                &declared[0],
                Declared::Mount(Mount {
                    kind: MountKind::Bind {
                        keeps_peers: true,
                        ..
                    },
                    ..
                })
            )
        };
        assert!(keeps("rshared", "rshared"));
        assert!(
            !keeps("rshared", "rslave") && !keeps("rslave", "rshared") && !keeps("", "rshared")
        );
    }

    fn devices(device: Value, mounts: Value) -> Result<(Vec<DeviceNode>, Vec<DeviceNode>)> {
        let spec = json!({ "mounts": mounts, "linux": { "devices": [device] } });
        let declaration = Declaration {
            rootfs: RootFilesystem::Directory("/r/root".into()),
            ..declaration(serde_json::from_value(spec).unwrap())
        };
        let declared = declared(&declaration)?;
        let (in_place, _) = devices::in_place(&declaration, &declared)?;
        let in_dev = declared.into_iter().find_map(|declared| match declared {
            Declared::Mount(Mount {
                kind: MountKind::Devices { nodes, .. },
                ..
            }) => Some(nodes),
            _ => None,
        });
        Ok((in_dev.unwrap_or_default(), in_place))
    }

    #[test]
    fn devices_are_made_in_the_tmpfs_and_replace_the_default_ones() {
        let parse = |device: Value| {
            let mounts = json!([{ "destination": "/dev", "type": "tmpfs" }]);
            devices(device, mounts)
        };
        let fuse = json!({ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 384, "uid": 5 });
        let (nodes, in_place) = parse(fuse).unwrap();
        assert_eq!((nodes.len(), in_place.len()), (7, 0));
        let fuse = &nodes[6];
        assert_eq!(
            (
                fuse.path.as_c_str(),
                fuse.major,
                fuse.minor,
                fuse.mode,
                fuse.uid
            ),
            (c"fuse", 10, 229, libc::S_IFCHR | 0o600, 5)
        );
        let null = json!({ "path": "/dev/null", "type": "c", "major": 1, "minor": 5 });
        assert_eq!(parse(null).unwrap().0.len(), 6);
        let tun = json!({ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200 });
        assert_eq!(parse(tun).unwrap().0[6].path.as_c_str(), c"net/tun");
        let fifo = json!({ "path": "/dev/x", "type": "p", "major": 0, "minor": 0 });
        assert_eq!(parse(fifo).unwrap().0[6].mode, libc::S_IFIFO | 0o666);
        // The link to the container's own devpts stays.
        let ptmx = json!({ "path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2 });
        assert_eq!(parse(ptmx).unwrap().0.len(), 6);
        let elsewhere = json!({ "path": "/etc/x", "type": "c", "major": 10, "minor": 200 });
        assert_eq!(parse(elsewhere).unwrap().1[0].path.as_c_str(), c"/etc/x");
        let bad: [Result<_>; 3] = [
            parse(json!({ "path": "x", "type": "c", "major": 10, "minor": 200 })),
            parse(json!({ "path": "/dev/x", "type": "c", "major": -1, "minor": 0 })),
            parse(json!({ "path": "/dev/pts", "type": "c", "major": 1, "minor": 1 })),
        ];
        for nodes in bad {
            let error = nodes.unwrap_err().to_string();
            assert!(error.starts_with("linux.devices is "), "{error}");
        }
    }

    #[test]
    fn without_a_tmpfs_at_dev_devices_are_made_in_place() {
        let tun = || json!({ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200 });
        let (in_dev, in_place) = devices(tun(), json!([])).unwrap();
        assert_eq!((in_dev.len(), in_place.len()), (0, 7));
        assert_eq!(in_place[6].path.as_c_str(), c"/dev/net/tun");
        // A /dev of the host's has what it has.
        let bound = json!([{ "destination": "/dev", "source": "/dev", "options": ["rbind"] }]);
        assert!(devices(tun(), bound).unwrap().1.is_empty());
        // A mount over the directory hides what is made below it.
        let covered = json!([
            { "destination": "/dev", "type": "tmpfs" },
            { "destination": "/dev/net", "type": "tmpfs" }
        ]);
        assert_eq!(devices(tun(), covered).unwrap().1.len(), 1);
        let spec = json!({ "linux": { "devices": [tun()] } });
        let host = declaration(serde_json::from_value(spec).unwrap());
        assert!(devices::in_place(&host, &[]).is_err());
    }
}
