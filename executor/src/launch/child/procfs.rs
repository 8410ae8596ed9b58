//! What the child writes to procfs: kernel parameters, labels. Nothing here allocates.
//!
//! Except for the very first ones, all writes go through a procfs that is mounted nowhere, so that neither the image nor
//! another container can have covered a file of it (CVE-2025-52881).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tepui_isolators::undefended;

/// A procfs that shows this process' namespaces and that is mounted nowhere. Where the kernel gives none (in a user
/// namespace that shares the host's pid or mount namespace) it is the host's own, which the container has not touched yet.
pub(super) fn private() -> Result<OwnedFd, Errno> {
    if undefended("private-proc") {
        return rustix::fs::open(c"proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    }
    match detached() {
        Err(Errno::PERM) => {}
        other => return other,
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = rustix::fs::open(c"/proc", flags, Mode::empty())?;
    match rustix::fs::fstatfs(&proc)?.f_type == PROC_SUPER_MAGIC {
        true => Ok(proc),
        false => Err(Errno::PERM),
    }
}

fn detached() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Writes to a file of `proc`, never leaving its mount. `ENOENT` when there is no procfs at all.
pub(super) fn write(
    proc: Option<BorrowedFd<'_>>,
    path: &CStr,
    content: &CStr,
) -> Result<(), Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // `thread-self` is the one link that is meant.
    let how = match path.to_bytes().starts_with(b"thread-self/") {
        true => how,
        false if undefended("private-proc") => ResolveFlags::empty(),
        false => how | ResolveFlags::NO_SYMLINKS,
    };
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let proc = proc.ok_or(Errno::NOENT)?;
    let file = rustix::fs::openat2(proc, path, flags, Mode::empty(), how)?;
    rustix::io::write(&file, content.to_bytes()).map(drop)
}

/// Enters the time namespace that was made for our children.
pub(super) fn enter_time_namespace() -> Result<(), Errno> {
    let path = c"/proc/self/ns/time_for_children";
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Time))
}
