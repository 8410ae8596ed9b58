//! Files below a directory where a workload may have planted links: found and made part by part, never through a
//! symbolic link and never into another mount (openat2(2), Linux 5.6).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens the directory `relative` below `base`, an absolute path without links, and makes what is missing of it.
///
/// # Errors
/// ELOOP where a part is a symbolic link, EXDEV where it is a mount, `InvalidInput` where the path is not plainly below.
pub fn make_directory(base: &Path, relative: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let plain = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut directory = rustix::fs::openat2(CWD, base, flags, Mode::empty(), plain)?;
    for part in relative.components() {
        let Component::Normal(name) = part else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        directory = match rustix::fs::openat2(&directory, name, flags, Mode::empty(), STRICT) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
                rustix::fs::openat2(&directory, name, flags, Mode::empty(), STRICT)?
            }
            other => other?,
        };
    }
    Ok(directory)
}

/// Opens a regular file for appending, and makes it where it is missing. What is there is looked at before it is opened:
/// opening a pipe blocks, and opening a device may do anything.
///
/// # Errors
/// ELOOP for a symbolic link, `InvalidInput` for anything that is not a regular file of this name alone: a second name
/// may lie anywhere.
pub fn append(directory: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
    let new = flags | OFlags::CREATE | OFlags::EXCL;
    let mode = Mode::from_raw_mode(0o644);
    match rustix::fs::openat2(&directory, name, new, mode, STRICT) {
        Err(Errno::EXIST) => {}
        other => return Ok(other?),
    }
    let seen = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat2(&directory, name, seen, Mode::empty(), STRICT)?;
    let status = rustix::fs::fstat(&place)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile || status.st_nlink != 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file with one name",
        ));
    }
    // Through the descriptor: the name may mean something else by now.
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn planted_links_pipes_and_second_names_are_refused() {
        let sandbox = tempfile::tempdir().unwrap();
        let victim = tempfile::tempdir().unwrap();
        let base = sandbox.path();
        symlink(victim.path(), base.join("data")).unwrap();
        for path in ["data", "data/new", "../x", "/etc", "a/../../x"] {
            assert!(make_directory(base, Path::new(path)).is_err(), "{path}");
        }
        assert!(victim.path().read_dir().unwrap().next().is_none());

        let directory = make_directory(base, Path::new("tasks/t1")).unwrap();
        append(&directory, "stdout").unwrap();
        append(&directory, "stdout").unwrap();
        let inside = base.join("tasks/t1");
        std::fs::write(victim.path().join("log"), "").unwrap();
        symlink(victim.path().join("log"), inside.join("link")).unwrap();
        std::fs::hard_link(inside.join("stdout"), inside.join("second")).unwrap();
        rustix::fs::mkfifoat(CWD, inside.join("pipe"), Mode::from_raw_mode(0o600)).unwrap();
        for name in ["link", "second", "pipe", "stdout"] {
            assert!(append(&directory, name).is_err(), "{name}");
        }
    }
}
