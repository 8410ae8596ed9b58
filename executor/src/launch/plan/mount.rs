//! The mounts of a launch, from outside: every source of the host is opened and every tree is filled before the clone.
//!
//! Where we are not root of the host, what needs its privilege is left to the child, which has them in its own user
//! namespace.

use std::cell::OnceCell;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tepui_isolators::launch_info::{
    DeviceNode, IdMaps, Mount, MountAttributes, MountIdMap, MountKind, RootMount,
};
use tepui_isolators::observe::record;
use tepui_isolators::{ContainerLaunchInfo, Declaration, RootFilesystem, undefended};

use super::{c_path, null_device};
use super::{devices, file_system};
use crate::launch::error::{Error, Result};
use crate::launch::step::{DeviceStep, MountSource, MountStep, OpenTree, Step, Tree};
use crate::launch::tree::{self, Changes};
use crate::launch::user_namespace::{self, LockedMounts};

/// What the mounts of a container have in common.
#[derive(Debug)]
pub(super) struct Ground {
    /// Whether the root is not the host's.
    own_root: bool,
    /// Whether the container has a user namespace of its own.
    user_namespace: bool,
    /// The maps of a new one.
    id_maps: Option<IdMaps>,
    /// The path of one that is joined.
    joined: Option<PathBuf>,
    /// Whether its network namespace is made by it, so that its user namespace may mount a sysfs of it.
    own_network: bool,
    /// The cgroups that it is put into.
    cgroups: Vec<PathBuf>,
    locked: OnceCell<LockedMounts>,
    /// Whether we are root of the first user namespace, which alone may make devices.
    root_of_host: OnceCell<bool>,
}

impl Ground {
    pub(super) fn new(declaration: &Declaration, info: &ContainerLaunchInfo) -> Self {
        let is_user =
            |(kind, _): &&(LinuxNamespaceType, PathBuf)| *kind == LinuxNamespaceType::User;
        let joined = info.join_namespaces.iter().find(is_user);
        Self {
            own_root: declaration.rootfs != RootFilesystem::Host,
            user_namespace: joined.is_some()
                || info.id_maps.is_some()
                || info.namespaces.contains(&LinuxNamespaceType::User),
            id_maps: info.id_maps.clone(),
            joined: joined.map(|(_, path)| path.clone()),
            own_network: info.namespaces.contains(&LinuxNamespaceType::Network),
            cgroups: info
                .cgroup_v1
                .iter()
                .chain(&info.cgroup_v2)
                .cloned()
                .collect(),
            locked: OnceCell::new(),
            root_of_host: OnceCell::new(),
        }
    }

    pub(super) fn root_step(&self, root: RootMount, target: &CString) -> Result<Step> {
        match root {
            RootMount::Bind {
                source,
                attributes,
                private,
            } => {
                let changes = Changes {
                    recursive: MountAttributes::setting(attributes),
                    propagation: match private {
                        true => libc::MS_PRIVATE | libc::MS_REC,
                        false => 0,
                    },
                    ..Changes::default()
                };
                let source = c_path(&source)?;
                Ok(Step::AttachRoot {
                    tree: self.tree(OpenTree {
                        path: source.clone(),
                        recursive: true,
                        plain: false,
                        changes,
                    })?,
                    source,
                    target: target.clone(),
                })
            }
            RootMount::Overlay { overlay, flags } => file_system::overlay(&overlay, flags, target),
        }
    }

    /// A tree of the host; where the container has a user namespace, with the host's flags locked.
    fn tree(&self, open: OpenTree) -> Result<Tree> {
        if !is_privileged() {
            return Ok(Tree::OfHost(open));
        }
        let path = || PathBuf::from(OsStr::from_bytes(open.path.as_bytes()));
        let failed = |errno: Errno| Error::Open {
            path: path(),
            source: errno.into(),
        };
        let copy = || tree::open(&open.path, open.recursive, open.plain).map_err(failed);
        let copy = match self.user_namespace {
            true => self.locked()?.within(copy)?,
            false => copy()?,
        };
        tree::change(copy.as_fd(), &open.changes).map_err(failed)?;
        Ok(Tree::Ready(copy))
    }

    fn is_root_of_host(&self) -> bool {
        *self.root_of_host.get_or_init(is_root_of_host)
    }

    fn locked(&self) -> Result<&LockedMounts> {
        if self.locked.get().is_none() {
            let made = LockedMounts::new()?;
            return Ok(self.locked.get_or_init(|| made));
        }
        Ok(self.locked.get().expect("it was just looked at"))
    }

    /// The steps of all mounts, in order; returned are those that come after everything that writes.
    pub(super) fn mount_steps(
        &self,
        mounts: Vec<Mount>,
        nodes: &[DeviceNode],
        has_console: bool,
        steps: &mut Vec<Step>,
    ) -> Result<Vec<Step>> {
        let mut late = Vec::new();
        let _as_given = devices::WithoutUmask::new();
        let targets: Vec<_> = mounts.iter().map(|mount| mount.target.clone()).collect();
        for (index, mut mount) in mounts.into_iter().enumerate() {
            let later = targets[index + 1..].iter().map(CString::as_c_str);
            let later = later.chain(nodes.iter().map(|node| node.path.as_c_str()));
            let later = later.chain(has_console.then_some(c"/dev/console"));
            if let MountKind::Cgroup { directory } = &mount.kind
                && !self.cgroups.contains(directory)
            {
                continue;
            }
            let is_devices = matches!(mount.kind, MountKind::Devices { .. });
            let is_made_inside = is_devices && !self.is_root_of_host();
            let is_readonly = mount.attributes.set & libc::MOUNT_ATTR_RDONLY != 0;
            if is_readonly && (is_made_inside || is_filled_later(&mount, later)) {
                mount.attributes.set &= !libc::MOUNT_ATTR_RDONLY;
                // One that is covered is out of reach, and what covers it is another mount.
                let covers = |later: &CString| is_at_or_below(&mount.target, later);
                if !targets[index + 1..].iter().any(covers) {
                    late.push(Step::ReadonlyMount(mount.target.clone()));
                }
            }
            if let MountKind::Devices {
                nodes,
                links,
                options,
                ..
            } = &mut mount.kind
                && is_made_inside
            {
                // mknod(2) is not ours; the container makes its own tmpfs and binds the nodes into it.
                let (nodes, links) = (std::mem::take(nodes), std::mem::take(links));
                let options = std::mem::take(options);
                let dev = mount.target.clone();
                mount.kind = MountKind::Filesystem {
                    fstype: c"tmpfs".into(),
                    source: c"tmpfs".into(),
                    options: devices::with_mode(options),
                    copy_up: false,
                };
                steps.push(Step::Mount(self.mount_step(mount)?));
                self.device_steps(
                    devices::below(&dev, nodes),
                    devices::links_below(&dev, links),
                    steps,
                );
                continue;
            }
            steps.push(Step::Mount(self.mount_step(mount)?));
        }
        Ok(late)
    }

    pub(super) fn device_steps(
        &self,
        nodes: Vec<DeviceNode>,
        links: Vec<(CString, CString)>,
        steps: &mut Vec<Step>,
    ) {
        for node in nodes {
            steps.push(Step::Device(DeviceStep {
                device: rustix::fs::makedev(node.major, node.minor),
                path: node.path,
                mode: node.mode,
                uid: node.uid,
                gid: node.gid,
            }));
        }
        for (path, to) in links {
            // The one that belongs to the container's own devpts: another would be the host's.
            let replace = to.as_c_str() == c"pts/ptmx";
            steps.push(Step::Link { path, to, replace });
        }
    }

    pub(super) fn covers(&self) -> Result<Step> {
        let made = |empty: std::result::Result<OwnedFd, Errno>| {
            empty.map_err(|errno| Error::Devices {
                source: errno.into(),
            })
        };
        Ok(match is_privileged() {
            true => Step::Covers {
                null: Some(null_device()?),
                empty: Some(made(tree::empty_directory())?),
            },
            false => Step::Covers {
                null: None,
                empty: None,
            },
        })
    }

    fn mount_step(&self, mut mount: Mount) -> Result<MountStep> {
        self.without_foreign_sysfs(&mut mount);
        let kernels = [c"/proc", c"/sys"];
        let may_cover_kernel = kernels.iter().any(|top| is_at_or_below(&mount.target, top));
        let changes = Changes {
            attributes: mount.attributes,
            recursive: mount.recursive_attributes,
            propagation: mount.propagation,
            ..Changes::default()
        };
        let filled_with = match &mount.kind {
            MountKind::Devices { directories, .. } => directories.clone(),
            _ => Vec::new(),
        };
        let source = match mount.kind {
            MountKind::Filesystem {
                fstype,
                source,
                options,
                copy_up,
            } => {
                let attributes = mount.attributes.set;
                file_system::new(
                    fstype,
                    source,
                    options,
                    attributes,
                    mount.propagation,
                    copy_up,
                )?
            }
            MountKind::Bind {
                source,
                recursive,
                plain_source,
                id_map,
                keeps_peers,
            } => {
                let name = c_path(&source)?;
                let tree = self.tree(OpenTree {
                    path: name.clone(),
                    recursive,
                    plain: plain_source,
                    changes: Changes {
                        keeps_peers,
                        id_map: self.id_map(id_map)?,
                        ..changes
                    },
                });
                let tree = tree.map_err(|error| about(error, &name, &mount.target))?;
                if mount.target.as_c_str() == c"/proc" {
                    check_is_proc(&tree, &name)?;
                }
                MountSource::Tree { name, tree }
            }
            MountKind::Cgroup { directory } => {
                let name = c_path(&directory)?;
                let tree = self.tree(OpenTree {
                    path: name.clone(),
                    recursive: false,
                    plain: false,
                    changes,
                });
                let tree = tree.map_err(|error| about(error, &name, &mount.target))?;
                MountSource::Tree { name, tree }
            }
            MountKind::BindInside {
                source,
                recursive,
                id_map,
            } => MountSource::Tree {
                name: source.clone(),
                tree: Tree::Inside(OpenTree {
                    path: source,
                    recursive,
                    plain: false,
                    changes: Changes {
                        // As the root is.
                        keeps_peers: true,
                        id_map: self.id_map(id_map)?,
                        ..changes
                    },
                }),
            },
            MountKind::Devices {
                nodes,
                links,
                directories,
                options,
            } => {
                let maps = self.id_maps()?;
                let tree = devices::tree(&nodes, &links, &directories, options, maps.as_ref());
                let failed = |source: Errno| Error::Devices {
                    source: source.into(),
                };
                let tree = tree.map_err(failed)?;
                // It is new and has no peers.
                let changes = Changes {
                    keeps_peers: true,
                    ..changes
                };
                tree::change(tree.as_fd(), &changes).map_err(failed)?;
                MountSource::Tree {
                    name: c"devices".into(),
                    // A shared one would share what is put on top of it: the root.
                    tree: match changes.propagation {
                        0 => Tree::Parked(tree.into()),
                        _ => Tree::Ready(tree),
                    },
                }
            }
        };
        Ok(MountStep {
            target: mount.target,
            source,
            plain_target: mount.plain_target,
            may_cover_kernel,
            create: self.own_root,
            filled_with,
        })
    }

    /// A sysfs shows a network namespace, and only the user namespace that owns that one may mount it: the host's, not to
    /// be written to, takes its place.
    fn without_foreign_sysfs(&self, mount: &mut Mount) {
        let is_sysfs = matches!(&mount.kind, MountKind::Filesystem { fstype, .. } if fstype.as_c_str() == c"sysfs");
        if !is_sysfs || !self.user_namespace || self.own_network {
            return;
        }
        mount.kind = MountKind::Bind {
            source: "/sys".into(),
            recursive: true,
            plain_source: true,
            id_map: None,
            keeps_peers: false,
        };
        let restricted = libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC;
        mount.recursive_attributes = MountAttributes::setting(restricted);
    }

    /// The maps of the container's user namespace, new or joined.
    fn id_maps(&self) -> Result<Option<IdMaps>> {
        match (&self.id_maps, &self.joined) {
            (Some(maps), _) => Ok(Some(maps.clone())),
            (None, Some(path)) => Ok(Some(user_namespace::maps_of(&open_namespace(path)?)?)),
            (None, None) => Ok(None),
        }
    }

    /// Who a user and a group of the container are here; `None` for who is nobody, or where we may not act for others.
    pub(super) fn outside(&self, uid: u32, gid: u32) -> Result<Option<(u32, u32)>> {
        if !is_privileged() {
            return Ok(None);
        }
        Ok(match self.id_maps()? {
            None => Some((uid, gid)),
            Some(maps) => maps.user(uid).zip(maps.group(gid)),
        })
    }

    fn id_map(&self, map: Option<MountIdMap>) -> Result<Option<(OwnedFd, bool)>> {
        let Some(MountIdMap { maps, recursive }) = map else {
            return Ok(None);
        };
        let namespace = match (&maps, &self.id_maps, &self.joined) {
            (Some(maps), _, _) | (None, Some(maps), _) => user_namespace::with_maps(maps)?,
            (None, None, Some(path)) => open_namespace(path)?,
            (None, None, None) => {
                return Err(Error::Missing {
                    field: "user namespace whose id maps the option \"idmap\" of a mount could mean",
                });
            }
        };
        Ok(Some((namespace, recursive)))
    }
}

/// The same mounts, those on directories that we make together: nothing of the image is in such a tree, so that a name
/// leads where it says, and mount(2) needs no descriptor.
pub(super) fn by_directory(mounts: Vec<Step>, root: &CString) -> Vec<Step> {
    let mut steps = Vec::with_capacity(mounts.len());
    // The last tree that was filled, its directories, and whether we are in it.
    let mut own: Option<(CString, Vec<CString>)> = None;
    let mut is_inside = false;
    for step in mounts {
        let here = match &own {
            Some(own) => on_own_directory(step, own),
            None => Err(Box::new(step)),
        };
        let step = match here {
            Err(step) => *step,
            Ok((directory, here)) => {
                if !is_inside {
                    steps.push(Step::EnterMount(directory));
                    is_inside = true;
                }
                steps.push(here);
                continue;
            }
        };
        if std::mem::take(&mut is_inside) {
            steps.push(Step::EnterRoot(root.clone()));
        }
        own = match &step {
            Step::Mount(MountStep {
                target,
                filled_with,
                ..
            }) if !filled_with.is_empty() => Some((target.clone(), filled_with.clone())),
            _ => None,
        };
        steps.push(step);
    }
    steps.extend(is_inside.then(|| Step::EnterRoot(root.clone())));
    steps
}

/// A mount on one of the directories, as a step from inside.
fn on_own_directory(
    step: Step,
    (directory, names): &(CString, Vec<CString>),
) -> std::result::Result<(CString, Step), Box<Step>> {
    let name = match &step {
        Step::Mount(MountStep {
            target,
            source: MountSource::Whole(_),
            ..
        }) => {
            let below = target.to_bytes().strip_prefix(directory.to_bytes());
            let below = below.and_then(|below| below.strip_prefix(b"/"));
            names.iter().find(|name| below == Some(name.to_bytes()))
        }
        _ => None,
    };
    match (name, step) {
        (
            Some(name),
            Step::Mount(MountStep {
                target,
                source: MountSource::Whole(file_system),
                ..
            }),
        ) => Ok((
            directory.clone(),
            Step::MountHere {
                target,
                name: name.clone(),
                file_system,
            },
        )),
        (_, step) => Err(Box::new(step)),
    }
}

/// What parks the trees of these mounts where the root is to be.
pub(super) fn parking(mounts: &[Step], target: &CString) -> Vec<Step> {
    let parked = mounts.iter().filter_map(|step| match step {
        Step::Mount(MountStep {
            source:
                MountSource::Tree {
                    tree: Tree::Parked(tree),
                    ..
                },
            ..
        }) => Some(tree),
        _ => None,
    });
    let park = |tree: &Arc<OwnedFd>| Step::Park {
        tree: tree.clone(),
        target: target.clone(),
    };
    parked.map(park).collect()
}

/// The root mount's own propagation, when it is to have another than it has.
pub(super) fn own_propagation(propagation: u64) -> Option<Step> {
    (propagation != 0).then_some(Step::OwnPropagation(propagation))
}

/// Whether we have the privileges of root in our own user namespace.
fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether that is the first one, which alone may make devices.
fn is_root_of_host() -> bool {
    let map = record(Path::new("/proc/self/uid_map")).unwrap_or_default();
    is_privileged() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn open_namespace(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|source| Error::Open {
        path: path.to_owned(),
        source: source.into(),
    })
}

/// Names the mount that a tree was opened for.
fn about(error: Error, what: &CStr, target: &CStr) -> Error {
    let Error::Open { source, .. } = error else {
        return error;
    };
    Error::Mount {
        what: what.to_string_lossy().into_owned(),
        target: target.to_string_lossy().into_owned(),
        rule: match source.raw_os_error() == Some(Errno::PERM.raw_os_error()) {
            true => ": flags that the host has locked cannot be cleared: operation not permitted",
            false => "",
        },
        source,
    }
}

/// On /proc nothing but a procfs: what is written there must arrive.
fn check_is_proc(tree: &Tree, name: &CStr) -> Result<()> {
    /// `PROC_ROOT_INO`: a directory of a procfs could be any process' view.
    const ROOT_INODE: u64 = 1;
    let of_file = |tree: &OwnedFd| {
        rustix::fs::fstatfs(tree).and_then(|found| Ok((found, rustix::fs::fstat(tree)?)))
    };
    let seen = match tree {
        Tree::Ready(tree) => of_file(tree),
        Tree::Parked(tree) => of_file(tree),
        Tree::OfHost(open) | Tree::Inside(open) => rustix::fs::statfs(&open.path)
            .and_then(|found| Ok((found, rustix::fs::stat(&open.path)?))),
    };
    let wrong = |source: io::Error| Error::Mount {
        what: name.to_string_lossy().into_owned(),
        target: "/proc".to_owned(),
        rule: ": \"/proc\" cannot be mounted because it is not of type proc",
        source,
    };
    let is_proc = |(found, status): &(rustix::fs::StatFs, rustix::fs::Stat)| {
        found.f_type as u64 == 0x9fa0 && status.st_ino == ROOT_INODE
    };
    match seen {
        Ok(seen) if is_proc(&seen) || undefended("proc-mounts") => Ok(()),
        Ok(_) => Err(wrong(Errno::INVAL.into())),
        Err(errno) => Err(wrong(errno.into())),
    }
}

fn is_at_or_below(path: &CStr, top: &CStr) -> bool {
    let rest = path.to_bytes().strip_prefix(top.to_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Whether a new, read-only file system has to stay writable until something in it was made.
fn is_filled_later<'a>(mount: &Mount, mut later: impl Iterator<Item = &'a CStr>) -> bool {
    let prepared = match &mount.kind {
        MountKind::Devices { directories, .. } => directories.as_slice(),
        MountKind::Filesystem { fstype, .. } if fstype.as_c_str() == c"tmpfs" => &[],
        _ => return false,
    };
    let is_new = |path: &CStr| {
        let below = path.to_bytes().strip_prefix(mount.target.as_bytes());
        let below = below.and_then(|below| below.strip_prefix(b"/"));
        below.is_some_and(|below| prepared.iter().all(|made| made.as_bytes() != below))
    };
    later.any(is_new)
}
