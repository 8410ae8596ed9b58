//! `tmpcopyup`: what a tmpfs covers is copied into it first, with modes, owners and times as they are. Links are copied and
//! never followed. Nothing here allocates.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

/// A tree deeper than this is not copied: each level takes some of the stack.
const MOST_LEVELS: u32 = 128;

/// Copies all that is in the directory `from` into the directory `to`, and what is known of itself.
pub(super) fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let (from, to) = (open(from, c".")?, open(to, c".")?);
    contents(from.as_fd(), to.as_fd(), MOST_LEVELS)
}

fn open(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn contents(from: BorrowedFd<'_>, to: BorrowedFd<'_>, levels: u32) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(from, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            one(from, to, name, levels)?;
        }
    }
    Ok(())
}

fn one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, levels: u32) -> Result<(), Errno> {
    let status = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(status.st_mode & 0o7777);
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => {
            let levels = levels.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let (below, copy) = (open(from, name)?, open(to, name)?);
            contents(below.as_fd(), copy.as_fd(), levels)?;
        }
        FileType::RegularFile => file(from, to, name)?,
        FileType::Symlink => {
            let mut target = [0u8; libc::PATH_MAX as usize];
            let mut buffer = [0u8; libc::PATH_MAX as usize];
            let length = rustix::fs::readlinkat_raw(from, name, &mut target[..])?;
            let target = super::place::c_string(&mut buffer, &target[..length])?;
            rustix::fs::symlinkat(target, to, name)?;
        }
        // A socket has nothing behind it any more, and a node that may not be made would be of no use either.
        FileType::Socket => return Ok(()),
        kind => match rustix::fs::mknodat(to, name, kind, mode, status.st_rdev) {
            Err(Errno::PERM) => return Ok(()),
            other => other?,
        },
    }
    keep(to, name, &status)
}

fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // A FIFO in place of the file must not stop us.
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let source = rustix::fs::openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(to, name, flags, Mode::RWXU)?;
    loop {
        match rustix::fs::sendfile(&copy, &source, None, 1 << 20) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Owner, mode and times of the original. The copy is in a file system that nobody else has seen.
fn keep(to: BorrowedFd<'_>, name: &CStr, status: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    match rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        // Nobody in this user namespace.
        Ok(()) | Err(Errno::INVAL | Errno::OVERFLOW) => {}
        Err(errno) => return Err(errno),
    }
    if FileType::from_raw_mode(status.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(status.st_mode & 0o7777);
        rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
    }
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as _,
    };
    let times = Timestamps {
        last_access: time(status.st_atime, status.st_atime_nsec),
        last_modification: time(status.st_mtime, status.st_mtime_nsec),
    };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
