//! Detached mount trees: opening and changing them. Used before the clone and, where we lack the privilege there, by the
//! child: nothing here allocates. open_tree(2), mount_setattr(2).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use tepui_isolators::launch_info::MountAttributes;
use tepui_isolators::undefended;

use super::sys;

/// What a tree becomes after it is opened.
#[derive(Debug, Default)]
pub struct Changes {
    /// Whether it stays a peer of where it is from. If not it is a slave: where the host's mounts are shared, nothing
    /// that is mounted on the copy may appear on the host.
    pub keeps_peers: bool,
    /// A user namespace whose maps are those of the files' owners, and whether the mounts below are mapped too.
    pub id_map: Option<(OwnedFd, bool)>,
    /// On the topmost mount.
    pub attributes: MountAttributes,
    /// On all mounts, after that.
    pub recursive: MountAttributes,
    /// `MS_*` propagation, 0 for as it is.
    pub propagation: u64,
}

/// Opens a detached copy of the tree at `path`. A plain path is one without any symbolic link.
pub fn open(path: &CStr, recursive: bool, plain: bool) -> Result<OwnedFd, Errno> {
    if !plain || undefended("plain-sources") {
        return rustix::mount::open_tree(CWD, path, flags(recursive));
    }
    // A workload may have put a link there since it was looked at.
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::openat2(CWD, path, open, Mode::empty(), resolve)?;
    copy(place.as_fd(), recursive)
}

/// A detached copy of the tree at a place.
pub fn copy(place: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let flags = flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(place, c"", flags)
}

fn flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match recursive {
        true => flags | OpenTreeFlags::AT_RECURSIVE,
        false => flags,
    }
}

/// Makes all changes.
pub fn change(tree: BorrowedFd<'_>, changes: &Changes) -> Result<(), Errno> {
    let below = changes.recursive;
    let has_plain_changes =
        changes.id_map.is_none() && changes.attributes.is_empty() && !below.is_empty();
    if !changes.keeps_peers && has_plain_changes && changes.propagation == 0 {
        let clear = below.clear & !below.set;
        return sys::enslave_mounts(tree, below.set, clear);
    }
    if !changes.keeps_peers {
        sys::set_mount_propagation(tree, libc::MS_SLAVE | libc::MS_REC)?;
    }
    if let Some((namespace, recursive)) = &changes.id_map {
        sys::set_mount_id_map(tree, namespace.as_fd(), *recursive)?;
    }
    set_attributes(tree, changes.attributes)?;
    if !below.is_empty() {
        sys::change_mount_attributes(tree, below.set, below.clear & !below.set, true)?;
    }
    match changes.propagation {
        0 => Ok(()),
        propagation => sys::set_mount_propagation(tree, propagation),
    }
}

/// Sets the attributes of one mount. Flags that the kernel has locked stay, unless their end was asked for: then it is
/// EPERM, as it is for an access-time mode other than a locked one.
fn set_attributes(tree: BorrowedFd<'_>, attributes: MountAttributes) -> Result<(), Errno> {
    const ACCESS_TIME: u64 = libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;
    if attributes.is_empty() {
        return Ok(());
    }
    let MountAttributes { set, clear, reset } = attributes;
    let all = (clear | reset) & (!set | libc::MOUNT_ATTR__ATIME);
    match sys::change_mount_attributes(tree, set, all, false) {
        Err(Errno::PERM) => {}
        other => return other,
    }
    let present = present(tree)?;
    if present & clear & !ACCESS_TIME != 0 {
        return Err(Errno::PERM);
    }
    let chooses_time = clear & libc::MOUNT_ATTR__ATIME != 0;
    if chooses_time && present & ACCESS_TIME != set & ACCESS_TIME {
        return Err(Errno::PERM);
    }
    // The one flag that is never locked.
    let clear = (clear | reset) & libc::MOUNT_ATTR_NOSYMFOLLOW & !set;
    sys::change_mount_attributes(tree, set & !ACCESS_TIME, clear, false)
}

/// The lockable `MOUNT_ATTR_*` of a mount.
fn present(tree: BorrowedFd<'_>) -> Result<u64, Errno> {
    use StatVfsMountFlags as Flag;
    let flags = rustix::fs::fstatvfs(tree)?.f_flag;
    let table = [
        (Flag::RDONLY, libc::MOUNT_ATTR_RDONLY),
        (Flag::NOSUID, libc::MOUNT_ATTR_NOSUID),
        (Flag::NODEV, libc::MOUNT_ATTR_NODEV),
        (Flag::NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (Flag::NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
        (Flag::NOATIME, libc::MOUNT_ATTR_NOATIME),
    ];
    let found = table.iter().filter(|(flag, _)| flags.contains(*flag));
    let found = found.fold(0, |all, (_, attribute)| all | attribute);
    // What is neither has no flag of its own.
    match flags.intersects(Flag::NOATIME | Flag::RELATIME) {
        true => Ok(found),
        false => Ok(found | libc::MOUNT_ATTR_STRICTATIME),
    }
}

/// The host's null device, checked to be one: what it hides must not become readable by somebody having put another file
/// there (CVE-2025-31133). Read-only, so that nobody inside changes the node's mode.
pub fn null_device() -> Result<OwnedFd, Errno> {
    let tree = open(c"/dev/null", false, false)?;
    if !is_null_device(&rustix::fs::fstat(&tree)?) && !undefended("null-device-check") {
        return Err(Errno::NODEV);
    }
    let restricted = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    let changes = Changes {
        recursive: MountAttributes::setting(restricted),
        ..Changes::default()
    };
    if !undefended("readonly-null-device") {
        change(tree.as_fd(), &changes)?;
    }
    Ok(tree)
}

/// A detached empty directory that nobody can write to: what hides directories.
pub fn empty_directory() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"nr_blocks", c"1")?;
    rustix::mount::fsconfig_set_string(&context, c"nr_inodes", c"1")?;
    // Of the file system, too: no mount of it will ever be writable.
    rustix::mount::fsconfig_set_flag(&context, c"ro")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A detached read-only copy of the tree at a place.
pub fn readonly_copy(place: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // One call since Linux 6.15.
    if let Ok(view) = sys::open_readonly_tree(place) {
        return Ok(view);
    }
    let view = copy(place, true)?;
    sys::set_mount_attributes(view.as_fd(), libc::MOUNT_ATTR_RDONLY, true)?;
    Ok(view)
}

/// Whether a file is character device 1:3.
pub fn is_null_device(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
        && status.st_rdev == rustix::fs::makedev(1, 3)
}
