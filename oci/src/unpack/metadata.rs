//! Owner, mode, extended attributes and times of what was just created, in the order in which they do not undo each
//! other: chown(2) clears setuid bits and file capabilities, and everything changes the times.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::tree::Fault;
use crate::tar::Entry;

/// What an entry of a layer, or a file of a lower layer, says about itself.
pub(crate) struct Metadata {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub mtime: (i64, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    pub fn of_entry(entry: &Entry) -> Self {
        let kept = entry.xattrs.iter().filter(|(name, _)| is_kept(name));
        Self {
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            mtime: entry.mtime,
            xattrs: kept.cloned().collect(),
        }
    }

    /// Of a file in a lower layer; the handle may be O_PATH.
    pub fn of_file(handle: impl AsFd, stat: &Stat) -> Result<Self, Fault> {
        let (seconds, nanoseconds) = (stat.st_mtime, stat.st_mtime_nsec);
        Ok(Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            mtime: (seconds, u32::try_from(nanoseconds).unwrap_or(0)),
            xattrs: xattrs(handle).map_err(Fault::kernel("read the attributes of"))?,
        })
    }

    /// A directory that no entry describes: of the user we are, which is root in production.
    pub fn implied_directory() -> Self {
        let (uid, gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        Self {
            uid,
            gid,
            mode: 0o755,
            mtime: (0, 0),
            xattrs: Vec::new(),
        }
    }

    fn timestamps(mtime: (i64, u32)) -> Timestamps {
        let time = Timespec {
            tv_sec: mtime.0,
            tv_nsec: mtime.1.into(),
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }

    /// To an open file or directory, but not the times.
    pub fn apply_to_open(&self, handle: impl AsFd) -> Result<(), Fault> {
        let handle = handle.as_fd();
        rustix::fs::fchown(
            handle,
            Some(Uid::from_raw(self.uid)),
            Some(Gid::from_raw(self.gid)),
        )
        .map_err(Fault::kernel("set the owner of"))?;
        rustix::fs::fchmod(handle, Mode::from_raw_mode(self.mode))
            .map_err(Fault::kernel("set the mode of"))?;
        self.xattrs.iter().try_for_each(|(name, value)| {
            let key = attribute_name(name)?;
            attribute_result(
                name,
                rustix::fs::fsetxattr(handle, &key, value, XattrFlags::empty()),
            )
        })
    }

    /// The times of an open file or directory.
    pub fn apply_times(mtime: (i64, u32), handle: impl AsFd) -> Result<(), Fault> {
        rustix::fs::futimens(handle, &Self::timestamps(mtime))
            .map_err(Fault::kernel("set the times of"))
    }

    /// Everything to a link, device or fifo that cannot be opened; a link has no mode of its own.
    pub fn apply_by_name(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        is_link: bool,
    ) -> Result<(), Fault> {
        let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(Fault::kernel("set the owner of"))?;
        if !is_link {
            rustix::fs::chmodat(
                parent,
                name,
                Mode::from_raw_mode(self.mode),
                AtFlags::empty(),
            )
            .map_err(Fault::kernel("set the mode of"))?;
        }
        // There is no setxattrat(2) before Linux 6.13; the magic link of our own handle is as good.
        let path = [
            format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(),
            name.as_bytes(),
        ]
        .concat();
        for (attribute, value) in &self.xattrs {
            let key = attribute_name(attribute)?;
            let result = rustix::fs::lsetxattr(path.as_slice(), &key, value, XattrFlags::empty());
            attribute_result(attribute, result)?;
        }
        rustix::fs::utimensat(
            parent,
            name,
            &Self::timestamps(self.mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(Fault::kernel("set the times of"))
    }
}

/// Attributes of an image that a container may have. Not those with which a layer could speak to overlayfs, nor
/// labels that mean something only on the machine where the image was built.
fn is_kept(name: &[u8]) -> bool {
    let overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    let wanted = [
        &b"user."[..],
        b"trusted.",
        b"security.capability",
        b"system.posix_acl_",
    ];
    !overlay && wanted.iter().any(|prefix| name.starts_with(prefix))
}

fn attribute_name(name: &[u8]) -> Result<CString, Fault> {
    CString::new(name)
        .map_err(|_| Fault::Rule("an extended attribute has a NUL in its name".into()))
}

/// A file system without such attributes loses notes, but never a capability.
fn attribute_result(name: &[u8], result: Result<(), Errno>) -> Result<(), Fault> {
    match result {
        Err(Errno::OPNOTSUPP) if name != b"security.capability" => {
            tracing::debug!(attribute = %String::from_utf8_lossy(name), "the store's file system cannot hold it");
            Ok(())
        }
        other => other.map_err(Fault::kernel("set an extended attribute of")),
    }
}

fn xattrs(handle: impl AsFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
    let mut out = Vec::new();
    for name in names(&path)? {
        let size = rustix::fs::getxattr(&path, &name, &mut [0u8; 0][..])?;
        let mut value = vec![0; size];
        let length = rustix::fs::getxattr(&path, &name, value.as_mut_slice())?;
        value.truncate(length);
        out.push((name.into_bytes(), value));
    }
    Ok(out)
}

fn names(path: &str) -> io::Result<Vec<CString>> {
    let size = match rustix::fs::listxattr(path, &mut [0u8; 0][..]) {
        Ok(size) => size,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut list = vec![0; size];
    if size > 0 {
        let length = rustix::fs::listxattr(path, list.as_mut_slice())?;
        list.truncate(length);
    }
    let names = list.split(|byte| *byte == 0).filter(|name| is_kept(name));
    Ok(names.filter_map(|name| CString::new(name).ok()).collect())
}

/// Takes all attributes of an image off a directory that is described once more.
pub(crate) fn clear_xattrs(handle: impl AsFd) -> Result<(), Fault> {
    let path = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
    let list = names(&path).map_err(Fault::kernel("read the attributes of"))?;
    list.iter().try_for_each(|name| {
        rustix::fs::removexattr(&path, name)
            .map_err(Fault::kernel("remove an extended attribute of"))
    })
}
