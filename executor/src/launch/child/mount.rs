//! The mounts of a launch, from inside: places are resolved in the new root, and what was prepared is put on them.
//!
//! Nothing here allocates.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use super::place::{Place, leave_open, resolve, resolve_or_make};
use super::{copy, naive};
use tepui_isolators::undefended;

use crate::launch::step::{Create, MountSource, MountStep, OpenTree, Tree, Whole};
use crate::launch::{sys, tree};

/// Puts a detached mount on a place that was resolved before.
pub(super) fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", place, c"", flags)
}

pub(super) fn attach_root(tree: &Tree, target: &CStr) -> Result<(), Errno> {
    let opened;
    let tree = match tree {
        Tree::Ready(tree) => tree,
        Tree::Parked(tree) => tree.as_ref(),
        Tree::OfHost(open) | Tree::Inside(open) => {
            opened = open_of_host(open)?;
            &opened
        }
    };
    park(tree.as_fd(), target)
}

/// Puts a detached mount on a path of the host.
pub(super) fn park(tree: BorrowedFd<'_>, target: &CStr) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", CWD, target, flags)
}

/// Until the pivot an absolute path is the host's.
fn open_of_host(open: &OpenTree) -> Result<OwnedFd, Errno> {
    let tree = tree::open(&open.path, open.recursive, open.plain)?;
    tree::change(tree.as_fd(), &open.changes)?;
    Ok(tree)
}

fn open_inside(open: &OpenTree) -> Result<OwnedFd, Errno> {
    let place = resolve(&open.path, ResolveFlags::empty())?;
    let tree = tree::copy(place.as_fd(), open.recursive)?;
    tree::change(tree.as_fd(), &open.changes)?;
    Ok(tree)
}

/// EXDEV for a place in procfs, sysfs or a cgroup file system, EBUSY for the root itself.
pub(super) fn refuse_kernel_places(place: BorrowedFd<'_>) -> Result<(), Errno> {
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

fn is_directory(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mode = rustix::fs::fstat(file)?.st_mode;
    Ok(FileType::from_raw_mode(mode) == FileType::Directory)
}

/// Where a mount goes.
fn place_of(mount: &MountStep, directory: bool) -> Result<Place, Errno> {
    let create = match (mount.create, directory) {
        (false, _) => Create::Nothing,
        (true, true) => Create::Directory,
        (true, false) => Create::File,
    };
    let plain = mount.plain_target && !undefended("plain-targets");
    // Without a link it leads where it says.
    let straight = match mount.may_cover_kernel || undefended("plain-targets") {
        true => None,
        false => resolve(&mount.target, ResolveFlags::NO_SYMLINKS).ok(),
    };
    let mut place = match straight {
        Some(file) => Place {
            file,
            existed: true,
        },
        None => {
            let place = resolve_or_make(&mount.target, create, plain)?;
            if !mount.may_cover_kernel && !undefended("kernel-places") {
                refuse_kernel_places(place.file.as_fd())?;
            }
            place
        }
    };
    if undefended("mount-by-descriptor") {
        place.file = naive::open(&mount.target)?;
    }
    Ok(place)
}

/// Where mounts are put.
#[derive(Default)]
pub(super) struct Places<'a> {
    /// The new root, where it is a tree that was opened before the clone.
    pub(super) root: Option<&'a OwnedFd>,
    /// The tree of ours that was mounted last, as far as it was made here.
    pub(super) own: Option<OwnedFd>,
}

/// Mounts one. A tree that we have filled is handed out, so that it can be entered.
pub(super) fn mount_inside(mount: &MountStep, places: &mut Places<'_>) -> Result<(), Errno> {
    match &mount.source {
        MountSource::Tree { tree, .. } => {
            let opened = match tree {
                Tree::Ready(_) => None,
                Tree::Parked(tree) => Some(tree::copy(tree.as_fd(), false)?),
                Tree::OfHost(open) => Some(open_of_host(open)?),
                Tree::Inside(open) => Some(open_inside(open)?),
            };
            let tree = match (tree, &opened) {
                (_, Some(tree)) | (Tree::Ready(tree), None) => tree,
                _ => return Err(Errno::BADF),
            };
            let is_directory = !mount.filled_with.is_empty() || is_directory(tree.as_fd())?;
            let place = place_of(mount, is_directory)?;
            attach(tree.as_fd(), place.file.as_fd())?;
            leave_open(place.file);
            places.own = opened.filter(|_| !mount.filled_with.is_empty());
            Ok(())
        }
        MountSource::New {
            fstype,
            source,
            options,
            attributes,
            propagation,
            inherit_mode,
            copy_up,
        } => {
            let place = place_of(mount, true)?;
            let context = rustix::mount::fsopen(fstype.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_set_string(&context, c"source", source.as_c_str())?;
            if *inherit_mode && place.existed {
                let mode = rustix::fs::fstat(&place.file)?.st_mode;
                let text = octal(mode & 0o7777);
                let text = CStr::from_bytes_with_nul(&text).map_err(|_| Errno::INVAL)?;
                rustix::mount::fsconfig_set_string(&context, c"mode", text)?;
            }
            configure(context.as_fd(), options)?;
            rustix::mount::fsconfig_create(&context)?;
            let flags = MountAttrFlags::from_bits_retain(*attributes as u32);
            // Read-only only after it is filled.
            let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
            let at_first = if *copy_up { flags - read_only } else { flags };
            let made = FsMountFlags::FSMOUNT_CLOEXEC;
            let made = rustix::mount::fsmount(&context, made, at_first)?;
            if *copy_up {
                copy::directory(place.file.as_fd(), made.as_fd())?;
                sys::set_mount_attributes(made.as_fd(), *attributes, false)?;
            }
            if *propagation != 0 {
                sys::set_mount_propagation(made.as_fd(), *propagation)?;
            }
            attach(made.as_fd(), place.file.as_fd())?;
            [context, made, place.file].into_iter().for_each(leave_open);
            Ok(())
        }
        MountSource::Whole(whole) => {
            let place = place_of(mount, true)?;
            let opened = match places.root {
                Some(_) => None,
                None => Some(resolve(c"/", ResolveFlags::empty())?),
            };
            // mount(2) knows paths only, and this one cannot be led astray.
            rustix::process::fchdir(&place.file)?;
            let mounted = mount_on(c".", whole);
            if let Some(root) = places.root.or(opened.as_ref()) {
                rustix::process::fchdir(root)?;
            }
            leave_open(place.file);
            opened.into_iter().for_each(leave_open);
            mounted
        }
    }
}

/// Mounts a file system on a directory by its name in the working directory.
pub(super) fn mount_on(name: &CStr, whole: &Whole) -> Result<(), Errno> {
    let flags = MountFlags::from_bits_retain(whole.flags as u32);
    let (source, fstype) = (whole.source.as_c_str(), whole.fstype.as_c_str());
    rustix::mount::mount(source, name, fstype, flags, whole.options.as_c_str())
}

fn configure(context: BorrowedFd<'_>, options: &[(CString, Option<CString>)]) -> Result<(), Errno> {
    for (key, value) in options {
        let key = key.as_c_str();
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(context, key, value.as_c_str())?,
            None => rustix::mount::fsconfig_set_flag(context, key)?,
        }
    }
    Ok(())
}

/// Four octal digits and a NUL byte.
fn octal(mode: u32) -> [u8; 5] {
    let digit = |shift: u32| b'0' + (mode >> shift & 7) as u8;
    [digit(9), digit(6), digit(3), digit(0), 0]
}

/// What hides paths: one mount of each kind. It is moved to the first path and copied from there to the others.
#[derive(Default)]
pub(super) struct Masks<'a> {
    null: Mask<'a>,
    empty: Mask<'a>,
}

#[derive(Default)]
struct Mask<'a> {
    given: Option<&'a OwnedFd>,
    made: Option<OwnedFd>,
    is_attached: bool,
}

impl Mask<'_> {
    fn put(&mut self, place: BorrowedFd<'_>) -> Result<(), Errno> {
        let mount = self.given.or(self.made.as_ref()).ok_or(Errno::BADF)?;
        if self.is_attached {
            let copy = tree::copy(mount.as_fd(), false)?;
            attach(copy.as_fd(), place)?;
            leave_open(copy);
            return Ok(());
        }
        attach(mount.as_fd(), place)?;
        self.is_attached = true;
        Ok(())
    }
}

impl<'a> Masks<'a> {
    /// Keeps the null device of the host and an empty directory, or gets them.
    pub(super) fn hold(
        &mut self,
        null: Option<&'a OwnedFd>,
        empty: Option<&'a OwnedFd>,
    ) -> Result<(), Errno> {
        (self.null.given, self.empty.given) = (null, empty);
        if null.is_none() {
            self.null.made = Some(tree::null_device()?);
        }
        if empty.is_none() {
            self.empty.made = Some(tree::empty_directory()?);
        }
        Ok(())
    }

    /// Hides a path; one that does not exist needs no hiding.
    pub(super) fn mask(&mut self, path: &CStr) -> Result<(), Errno> {
        let place = match resolve(path, ResolveFlags::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        match is_directory(place.as_fd())? {
            true => self.empty.put(place.as_fd())?,
            false if undefended("own-null-device") => {
                let null = tree::open(c"/dev/null", false, false)?;
                attach(null.as_fd(), place.as_fd())?;
            }
            false => self.null.put(place.as_fd())?,
        }
        leave_open(place);
        Ok(())
    }
}

/// Covers a path with a read-only view of itself; one that does not exist cannot be written. Other flags, locked ones
/// too, stay as they are.
pub(super) fn make_readonly(path: &CStr) -> Result<(), Errno> {
    let place = match resolve(path, ResolveFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let view = tree::readonly_copy(place.as_fd())?;
    let place = match undefended("one-descriptor") {
        false => place,
        true => naive::open(path)?,
    };
    attach(view.as_fd(), place.as_fd())?;
    [view, place].into_iter().for_each(leave_open);
    Ok(())
}

/// The mount whose root is at a path becomes read-only.
pub(super) fn make_mount_readonly(path: &CStr) -> Result<(), Errno> {
    let mount = resolve(path, ResolveFlags::empty())?;
    sys::set_mount_attributes(mount.as_fd(), libc::MOUNT_ATTR_RDONLY, false)
}

/// The working directory becomes `/`, and what was `/` is gone from this mount namespace.
pub(super) fn pivot_root() -> Result<(), Errno> {
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// After the pivot: before it a shared root could not be moved.
pub(super) fn set_own_propagation(propagation: u64) -> Result<(), Errno> {
    let root = resolve(c"/", ResolveFlags::empty())?;
    sys::set_mount_propagation(root.as_fd(), propagation)
}

/// The working directory is the root, since the pivot.
pub(super) fn readonly_root() -> Result<(), Errno> {
    sys::set_mount_attributes(CWD, libc::MOUNT_ATTR_RDONLY, false)
}
