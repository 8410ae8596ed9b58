//! Looking at paths as another process sees them, through `/proc/PID/root`.
//!
//! The target's file system is not trusted: a path is resolved by openat2(2) with RESOLVE_IN_ROOT, so that a symbolic
//! link leads where it leads for the target and never to a file of ours, and everything is then asked of that one
//! descriptor. Magic links of procfs, which would lead out, are refused.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxAttributes,
    StatxFlags, fstat, fstatvfs, major, minor, openat, openat2, statat, statx,
};
use rustix::io::Errno;

use crate::error::Result;
use crate::live::{LiveMask, Target};
use crate::observe::unseen;

/// The root directory of a process.
#[derive(Debug)]
pub struct Root<'a> {
    target: &'a Target,
    directory: OwnedFd,
}

impl<'a> Root<'a> {
    /// Opens it.
    ///
    /// # Errors
    /// When the process is gone or may not be looked at.
    pub fn of(target: &'a Target) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, target.proc_path("root"), flags, Mode::empty())
            .map_err(|errno| unseen(target, "root", errno))?;
        Ok(Self { target, directory })
    }

    /// A path of the target as an `O_PATH` descriptor; `None` when it does not exist there.
    ///
    /// # Errors
    /// When it cannot be reached for another reason.
    pub fn open(&self, path: &str) -> Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.directory, path, flags, Mode::empty(), how) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(self.failed(path, errno)),
        }
    }

    /// Whether this is the directory that is `/` for us.
    ///
    /// # Errors
    /// When one of the two cannot be looked at.
    pub fn is_ours(&self) -> Result<bool> {
        let theirs = fstat(&self.directory).map_err(|errno| self.failed("/", errno))?;
        let ours = statat(CWD, c"/", AtFlags::empty()).map_err(|errno| self.failed("/", errno))?;
        Ok((theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino))
    }

    /// The id of the mount whose root a path is (topmost, where mounts are stacked); `None` when the path does not
    /// exist or nothing is mounted there.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn mount_at(&self, path: &str) -> Result<Option<u64>> {
        let Some(file) = self.open(path)? else {
            return Ok(None);
        };
        let found = statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
            .map_err(|errno| self.failed(path, errno))?;
        let is_root = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        Ok(is_root.then_some(found.stx_mnt_id))
    }

    /// What hides or protects a path.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn mask(&self, path: &str) -> Result<LiveMask> {
        let Some(file) = self.open(path)? else {
            return Ok(LiveMask::Absent);
        };
        let failed = |errno| self.failed(path, errno);
        let stat = fstat(&file).map_err(failed)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        // The device itself counts, not that something is mounted: a mask that binds a replaced /dev/null hides nothing.
        if kind == FileType::CharacterDevice && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3)
        {
            return Ok(LiveMask::NullDevice);
        }
        let flags = fstatvfs(&file).map_err(failed)?.f_flag;
        if !flags.contains(StatVfsMountFlags::RDONLY) {
            return Ok(LiveMask::Open);
        }
        if kind == FileType::Directory && is_empty(&file).map_err(failed)? {
            return Ok(LiveMask::EmptyReadOnlyDirectory);
        }
        Ok(LiveMask::ReadOnly)
    }

    fn failed(&self, path: &str, errno: Errno) -> crate::error::Error {
        unseen(self.target, &format!("root{path}"), errno)
    }
}

/// Whether a path of procfs means another file for every reader, so that we cannot see what the target sees there.
pub fn depends_on_the_reader(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    let first = (parts.next(), parts.next());
    // `net` and `mounts` are links to `self/net` and `self/mounts`.
    let links = ["self", "thread-self", "net", "mounts"];
    matches!(first, (Some("proc"), Some(name)) if links.contains(&name))
}

fn is_empty(directory: &OwnedFd) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = openat(directory, c".", flags, Mode::empty())?;
    for entry in Dir::new(File::from(listing))? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}
