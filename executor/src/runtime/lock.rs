//! The lock of a state directory: one command at a time changes a container.
//!
//! A record lock belongs to the process: the container's process that waits for `start` has a copy of the descriptor but
//! not the lock (fcntl(2)).

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tepui_isolators::ContainerId;

use super::files::file_error;
use super::store::{Error, Result};

/// How long a command waits for another one.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two attempts: there is nothing to wait on with a deadline, and commands take a few milliseconds.
const PAUSE: Duration = Duration::from_millis(2);

/// The lock, waited for.
pub(super) fn lock(directory: &Path, id: &ContainerId) -> Result<OwnedFd> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = try_lock(directory)? {
            return Ok(lock);
        }
        if !directory.join("state.json").exists() {
            return Err(Error::DoesNotExist(id.to_string()));
        }
        if Instant::now() >= deadline {
            return Err(Error::Busy(id.clone()));
        }
        std::thread::sleep(PAUSE);
    }
}

/// The lock, if nobody has it and the directory still has its name.
pub(super) fn try_lock(directory: &Path) -> Result<Option<OwnedFd>> {
    let lock = lock_new(directory)?;
    // It may have been removed while we waited, and another may have the same name now.
    Ok(lock.filter(|lock| is_still(lock, &directory.join("lock"))))
}

/// The lock of a directory that nobody removes meanwhile, if nobody has it.
pub(super) fn lock_new(directory: &Path) -> Result<Option<OwnedFd>> {
    let path = directory.join("lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = match rustix::fs::openat(CWD, &path, flags, Mode::from_raw_mode(0o600)) {
        Ok(lock) => lock,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(file_error("open", &path)(errno)),
    };
    match rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(file_error("lock", &path)(errno)),
    }
}

/// Whether another process holds the lock.
pub(super) fn is_locked(directory: &Path) -> Result<bool> {
    Ok(try_lock(directory)?.is_none())
}

fn is_still(lock: &OwnedFd, path: &Path) -> bool {
    let (Ok(ours), Ok(named)) = (rustix::fs::fstat(lock), rustix::fs::stat(path)) else {
        return false;
    };
    (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)
}
