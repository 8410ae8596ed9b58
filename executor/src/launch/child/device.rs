//! Device nodes and links in the new root itself. Everything is made inside the directory that its path leads to within
//! the root, under a name that nobody follows (CVE-2026-41579). Nothing here allocates.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::mount::{attach, refuse_kernel_places};
use super::place::parent_of;
use crate::launch::step::{DeviceStep, OWN_UMASK};
use crate::launch::{sys, tree};

/// Makes a node; what has its name already stays. Where mknod(2) is refused the host's node is bound.
pub(super) fn make(device: &DeviceStep) -> Result<(), Errno> {
    let mut name = [0; 256];
    let (parent, name) = parent_of(&device.path, &mut name)?;
    let kind = FileType::from_raw_mode(device.mode);
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    // No chmod(2) afterwards: by then the name may be another file's.
    sys::set_umask(0);
    let made = rustix::fs::mknodat(&parent, name, kind, mode, device.device);
    sys::set_umask(OWN_UMASK);
    match made {
        Err(Errno::EXIST) => Ok(()),
        Err(Errno::PERM) if kind != FileType::Fifo => bind(parent.as_fd(), name, device),
        Ok(()) => give(parent.as_fd(), name, device),
        Err(errno) => Err(errno),
    }
}

fn give(parent: BorrowedFd<'_>, name: &CStr, device: &DeviceStep) -> Result<(), Errno> {
    if (device.uid, device.gid) == (0, 0) {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    check(&node, device)?;
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    rustix::fs::chownat(&node, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

/// ENODEV when it is not the device.
fn check(node: &OwnedFd, device: &DeviceStep) -> Result<(), Errno> {
    let status = rustix::fs::fstat(node)?;
    let same = (status.st_mode ^ device.mode) & libc::S_IFMT == 0;
    match same && (status.st_rdev == device.device || device.mode & libc::S_IFMT == libc::S_IFIFO) {
        true => Ok(()),
        false => Err(Errno::NODEV),
    }
}

fn bind(parent: BorrowedFd<'_>, name: &CStr, device: &DeviceStep) -> Result<(), Errno> {
    // Until the pivot an absolute path is the host's.
    let node = tree::open(&device.path, false, false)?;
    check(&node, device)?;
    tree::change(node.as_fd(), &tree::Changes::default())?;
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::EXIST) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::empty())?
        }
        other => other?,
    };
    refuse_kernel_places(place.as_fd())?;
    attach(node.as_fd(), place.as_fd())
}

/// Makes a link; what has its name already stays, or goes.
pub(super) fn link(path: &CStr, to: &CStr, replace: bool) -> Result<(), Errno> {
    let mut name = [0; 256];
    let (parent, name) = parent_of(path, &mut name)?;
    if replace {
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    match rustix::fs::symlinkat(to, &parent, name) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}
