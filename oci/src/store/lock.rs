//! Locks between processes: flock(2) on files that stay. The kernel frees them with the process, however it ends.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Store;
use crate::error::{Error, Result};
use crate::unpack::Cancel;

/// How often a lock that somebody else holds is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    fn open(store: &Store, name: &str) -> Result<File> {
        let path = store.path("locks", name);
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::file("open the lock", &path))
    }

    fn operate(store: &Store, name: &str, operation: FlockOperation) -> Result<Option<Self>> {
        let file = Self::open(store, name)?;
        match rustix::io::retry_on_intr(|| flock(&file, operation)) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Error::file("lock", store.path("locks", name))(error)),
        }
    }

    /// Takes the lock if nobody has it.
    pub fn try_take(store: &Store, name: &str) -> Result<Option<Self>> {
        Self::operate(store, name, FlockOperation::NonBlockingLockExclusive)
    }

    /// Waits for a lock that is held for moments only.
    pub fn wait(store: &Store, name: &str) -> Result<Self> {
        Self::operate(store, name, FlockOperation::LockExclusive)?.ok_or(Error::Cancelled)
    }

    /// Waits for a lock that may be held for as long as a download takes, unless cancelled.
    pub fn take(store: &Store, name: &str, cancel: &Cancel) -> Result<Self> {
        let mut said = false;
        loop {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            if let Some(lock) = Self::try_take(store, name)? {
                return Ok(lock);
            }
            if !said {
                tracing::info!(
                    layer = name,
                    "another process is unpacking this layer; waiting for it"
                );
                said = true;
            }
            std::thread::sleep(RETRY);
        }
    }
}
