//! The mounts of a launch, from outside: every source of the host is opened and every tree is filled before the clone.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use tepui_isolators::Overlay;
use tepui_isolators::launch_info::{DeviceNode, Mount, MountKind, RootMount};

use super::{c_path, c_string};
use crate::launch::error::{Error, Result};
use crate::launch::step::{Create, MountSource, MountStep, Step};
use crate::launch::sys;

/// The longest option string that mount(2) takes: one page, with its end mark.
const MOUNT_OPTIONS_LIMIT: usize = 4095;

/// A detached copy of a tree of the host. It is a slave of the original from the start: where the host's mounts are
/// shared, nothing that is mounted on the copy may appear on the host.
pub(super) fn open_tree(path: &Path, recursive: bool, plain: bool) -> Result<OwnedFd> {
    let failed = |errno: rustix::io::Errno| Error::Open {
        path: path.to_owned(),
        source: errno.into(),
    };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = match plain {
        false => rustix::mount::open_tree(CWD, path, flags),
        // A workload may have put a link there since it was looked at.
        true => {
            let open = OFlags::PATH | OFlags::CLOEXEC;
            let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            rustix::fs::openat2(CWD, path, open, Mode::empty(), resolve).and_then(|place| {
                rustix::mount::open_tree(place, c"", flags | OpenTreeFlags::AT_EMPTY_PATH)
            })
        }
    };
    let tree = tree.map_err(failed)?;
    sys::set_mount_propagation(tree.as_fd(), libc::MS_SLAVE | libc::MS_REC).map_err(failed)?;
    Ok(tree)
}

pub(super) fn root_step(root: RootMount, target: &CString) -> Result<Step> {
    match root {
        RootMount::Bind { source, attributes } => {
            let tree = open_tree(&source, true, false)?;
            if attributes != 0 {
                sys::set_mount_attributes(tree.as_fd(), attributes, true).map_err(|errno| {
                    Error::Open {
                        path: source.clone(),
                        source: errno.into(),
                    }
                })?;
            }
            Ok(Step::AttachRoot {
                source: c_path(&source)?,
                tree,
                target: target.clone(),
            })
        }
        RootMount::Overlay { overlay, flags } => {
            let escape = |path: &Path| {
                let text = path.as_os_str().to_string_lossy();
                text.replace('\\', "\\\\").replace(',', "\\,")
            };
            let writable = relative_to_layers(&overlay);
            let options = format!(
                "lowerdir={},upperdir={},workdir={}",
                overlay.lower.join(":"),
                escape(&writable.join("upper")),
                escape(&writable.join("work"))
            );
            if options.len() > MOUNT_OPTIONS_LIMIT {
                return Err(Error::TooManyLayers {
                    count: overlay.lower.len(),
                    length: options.len(),
                });
            }
            Ok(Step::MountOverlay {
                layers: c_path(&overlay.layers)?,
                target: target.clone(),
                options: c_string(OsStr::new(&options))?,
                flags,
            })
        }
    }
}

/// The mount table of the container shows these options: `../containers/<id>` tells it nothing of the host's paths, and
/// is shorter.
fn relative_to_layers(overlay: &Overlay) -> PathBuf {
    let store = |path: &Path| path.parent().map(Path::to_owned);
    let above = overlay.writable.parent().and_then(store);
    match (above, overlay.layers.parent()) {
        (Some(above), Some(store)) if above == store => {
            let below = overlay
                .writable
                .strip_prefix(store)
                .expect("it is two levels below");
            Path::new("..").join(below)
        }
        _ => overlay.writable.clone(),
    }
}

pub(super) fn mount_step(mount: Mount, own_root: bool) -> Result<MountStep> {
    let mut create = if own_root {
        Create::Directory
    } else {
        Create::Nothing
    };
    let source = match mount.kind {
        MountKind::Filesystem {
            fstype,
            source,
            options,
        } => MountSource::New {
            fstype,
            source,
            options,
        },
        MountKind::Bind {
            source,
            recursive,
            plain_source,
        } => {
            let tree = open_tree(&source, recursive, plain_source)?;
            let status = rustix::fs::fstat(&tree).map_err(|errno| Error::Open {
                path: source.clone(),
                source: errno.into(),
            })?;
            if own_root && FileType::from_raw_mode(status.st_mode) != FileType::Directory {
                create = Create::File;
            }
            MountSource::Tree {
                name: c_path(&source)?,
                tree,
            }
        }
        MountKind::Devices {
            nodes,
            links,
            directories,
            options,
        } => {
            let tree = device_tree(&nodes, &links, &directories, &options, mount.attributes)
                .map_err(|source| Error::Devices {
                    source: source.into(),
                })?;
            MountSource::Tree {
                name: c"devices".into(),
                tree,
            }
        }
    };
    let text = mount.target.as_bytes();
    let in_kernel = [&b"/proc"[..], b"/sys"]
        .iter()
        .any(|top| text.starts_with(top));
    Ok(MountStep {
        may_cover_kernel: in_kernel,
        target: mount.target,
        source,
        attributes: mount.attributes,
        recursive: mount.recursive_attributes,
        propagation: mount.propagation,
        plain_target: mount.plain_target,
        create,
    })
}

/// A detached tmpfs with its nodes: made here since mknod(2) is refused inside a strict devices cgroup.
fn device_tree(
    nodes: &[DeviceNode],
    links: &[(CString, CString)],
    directories: &[CString],
    options: &[(CString, Option<CString>)],
    attributes: u64,
) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"source", c"tmpfs")?;
    for (key, value) in options {
        match value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(&context, key.as_c_str(), value.as_c_str())?
            }
            None => rustix::mount::fsconfig_set_flag(&context, key.as_c_str())?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    // Read-only comes when it is attached, after it was filled.
    let attributes =
        MountAttrFlags::from_bits_retain(attributes as u32) - MountAttrFlags::MOUNT_ATTR_RDONLY;
    let tree = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    for node in nodes {
        let name = node.name.as_c_str();
        let device = rustix::fs::makedev(node.major, node.minor);
        let (kind, mode) = (
            FileType::from_raw_mode(node.mode),
            Mode::from_raw_mode(node.mode & 0o7777),
        );
        rustix::fs::mknodat(&tree, name, kind, mode, device)?;
        // mknod(2) takes the umask away.
        rustix::fs::chmodat(&tree, name, mode, rustix::fs::AtFlags::empty())?;
        let owner = Some(rustix::fs::Uid::from_raw(node.uid));
        let group = Some(rustix::fs::Gid::from_raw(node.gid));
        rustix::fs::chownat(
            &tree,
            name,
            owner,
            group,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    for directory in directories {
        rustix::fs::mkdirat(&tree, directory.as_c_str(), Mode::from_raw_mode(0o755))?;
    }
    for (name, points_at) in links {
        rustix::fs::symlinkat(points_at.as_c_str(), &tree, name.as_c_str())?;
    }
    Ok(tree)
}
