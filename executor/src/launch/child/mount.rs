//! The mounts of a launch, from inside: places are resolved in the new root, and what was prepared is put on them.
//!
//! Paths of the image are never trusted: each is resolved by openat2(2) with RESOLVE_IN_ROOT and used through the
//! descriptor. Nothing here allocates.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::launch::step::{Create, MountSource, MountStep};
use crate::launch::sys;

/// Opens an absolute path of the container as a place, never leaving the root (the working directory until the
/// pivot, `/` after it).
fn resolve(path: &CStr, extra: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(
        CWD,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS | extra,
    )
}

/// As [`resolve`], and makes what is missing, part by part, each inside the directory that the part before led to.
pub(super) fn resolve_or_make(
    path: &CStr,
    create: Create,
    extra: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    match resolve(path, ResolveFlags::IN_ROOT | extra) {
        Err(Errno::NOENT) if create != Create::Nothing => {}
        other => return other,
    }
    let bytes = path.to_bytes();
    let mut parent = resolve(c".", ResolveFlags::IN_ROOT)?;
    let mut end = 0;
    while end < bytes.len() {
        let start = end + bytes[end..].iter().take_while(|b| **b == b'/').count();
        end = start + bytes[start..].iter().take_while(|b| **b != b'/').count();
        if start == end {
            break;
        }
        let mut prefix = [0u8; libc::PATH_MAX as usize];
        let mut name = [0u8; 256];
        let prefix = c_string(&mut prefix, &bytes[..end])?;
        let name = c_string(&mut name, &bytes[start..end])?;
        let rest_is_empty = bytes[end..].iter().all(|b| *b == b'/');
        parent = match resolve(prefix, ResolveFlags::IN_ROOT | extra) {
            Err(Errno::NOENT) => {
                if rest_is_empty && create == Create::File {
                    let flags = OFlags::CREATE
                        | OFlags::EXCL
                        | OFlags::WRONLY
                        | OFlags::NOFOLLOW
                        | OFlags::CLOEXEC;
                    rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
                } else {
                    rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                }
                resolve(prefix, ResolveFlags::IN_ROOT | extra)?
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// Copies `bytes` into `buffer` as a C string.
fn c_string<'a>(buffer: &'a mut [u8], bytes: &[u8]) -> Result<&'a CStr, Errno> {
    let room = buffer.get_mut(..=bytes.len()).ok_or(Errno::NAMETOOLONG)?;
    room[..bytes.len()].copy_from_slice(bytes);
    room[bytes.len()] = 0;
    CStr::from_bytes_with_nul(room).map_err(|_| Errno::INVAL)
}

/// Puts a detached mount on a place that was resolved before.
pub(super) fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", place, c"", flags)
}

/// EXDEV for a place in procfs, sysfs or a cgroup file system, EBUSY for the root itself.
fn refuse_kernel_places(place: BorrowedFd<'_>) -> Result<(), Errno> {
    const KERNEL: [u64; 4] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270];
    if KERNEL.contains(&(rustix::fs::fstatfs(place)?.f_type as u64)) {
        return Err(Errno::XDEV);
    }
    let (root, target) = (rustix::fs::stat(c".")?, rustix::fs::fstat(place)?);
    match (root.st_dev, root.st_ino) == (target.st_dev, target.st_ino) {
        true => Err(Errno::BUSY),
        false => Ok(()),
    }
}

pub(super) fn mount_inside(mount: &MountStep) -> Result<(), Errno> {
    let extra = if mount.plain_target {
        ResolveFlags::NO_SYMLINKS
    } else {
        ResolveFlags::empty()
    };
    let place = resolve_or_make(&mount.target, mount.create, extra)?;
    if !mount.may_cover_kernel {
        refuse_kernel_places(place.as_fd())?;
    }
    match &mount.source {
        MountSource::Tree { tree, .. } => {
            if mount.attributes != 0 {
                sys::set_mount_attributes(tree.as_fd(), mount.attributes, mount.recursive)?;
            }
            if mount.propagation != 0 {
                sys::set_mount_propagation(tree.as_fd(), mount.propagation)?;
            }
            attach(tree.as_fd(), place.as_fd())
        }
        MountSource::New {
            fstype,
            source,
            options,
        } => {
            let context = rustix::mount::fsopen(fstype.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_set_string(&context, c"source", source.as_c_str())?;
            for (key, value) in options {
                match value {
                    Some(value) => {
                        rustix::mount::fsconfig_set_string(
                            &context,
                            key.as_c_str(),
                            value.as_c_str(),
                        )?;
                    }
                    None => rustix::mount::fsconfig_set_flag(&context, key.as_c_str())?,
                }
            }
            rustix::mount::fsconfig_create(&context)?;
            let attributes = MountAttrFlags::from_bits_retain(mount.attributes as u32);
            let made = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
            if mount.propagation != 0 {
                sys::set_mount_propagation(made.as_fd(), mount.propagation)?;
            }
            attach(made.as_fd(), place.as_fd())
        }
    }
}

/// Hides a path; one that does not exist needs no hiding.
pub(super) fn mask(path: &CStr, null: BorrowedFd<'_>) -> Result<(), Errno> {
    let place = match resolve(path, ResolveFlags::IN_ROOT) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
    if kind != FileType::Directory {
        return attach(null, place.as_fd());
    }
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"nr_blocks", c"1")?;
    rustix::mount::fsconfig_set_string(&context, c"nr_inodes", c"1")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let empty = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    attach(empty.as_fd(), place.as_fd())
}

/// Covers a path with a read-only view of itself; one that does not exist cannot be written.
pub(super) fn make_readonly(path: &CStr) -> Result<(), Errno> {
    let place = match resolve(path, ResolveFlags::IN_ROOT) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let flags = flags | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let view = rustix::mount::open_tree(&place, c"", flags)?;
    sys::set_mount_attributes(view.as_fd(), libc::MOUNT_ATTR_RDONLY, true)?;
    attach(view.as_fd(), place.as_fd())
}

/// The working directory becomes `/`, and what was `/` is gone from this mount namespace.
pub(super) fn pivot_root() -> Result<(), Errno> {
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

pub(super) fn readonly_root() -> Result<(), Errno> {
    let root = resolve(c"/", ResolveFlags::IN_ROOT)?;
    sys::set_mount_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY, false)
}
