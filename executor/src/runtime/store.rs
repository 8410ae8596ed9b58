//! The state directories of containers: `<root>/<id>`.
//!
//! | file | content |
//! |---|---|
//! | `state.json` | `State`: what identifies the process and releases the container |
//! | `declaration.json` | what was asked for |
//! | `start.sock` | where the container waits for `start`; gone once it was started |
//! | `lock` | locked by the one command that changes the container |
//!
//! A directory appears under its name complete and locked, by rename, and disappears by rename, so that nobody ever sees
//! half of one.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use tepui_isolators::ContainerId;

pub use super::entry::Entry;
use super::files::{
    UNFINISHED, file_error, is_absent, is_old, remove_by_rename, remove_directory, unfinished_in,
    write,
};
use super::lock;
pub use super::state::{Identity, LastSteps, NewContainer, State, Status};

/// A state directory could not be made, read, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an id.
    #[error("invalid container ID format: {0}")]
    InvalidId(#[from] tepui_isolators::declaration::InvalidContainerId),
    /// The id is taken.
    #[error("container with given ID already exists: {0}")]
    Exists(ContainerId),
    /// There is no such container.
    #[error("container does not exist: {0}")]
    DoesNotExist(String),
    /// Another command is changing it.
    #[error("container {0} is being changed by another command; try again when that has finished")]
    Busy(ContainerId),
    /// A file could not be used.
    #[error("could not {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Its cgroups could not be looked at.
    #[error(transparent)]
    Isolator(#[from] tepui_isolators::Error),
}

/// The result of everything about state directories.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// All containers below one root.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The containers below `root`, which need not exist yet.
    pub fn open(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Makes the state directory of a new container. It stays locked until the entry is dropped.
    ///
    /// # Errors
    /// When the id is taken or the disk refuses.
    pub fn create(&self, id: &ContainerId, new: NewContainer) -> Result<Entry> {
        let mut builder = std::fs::DirBuilder::new();
        // Sticky, so that what tidies $XDG_RUNTIME_DIR leaves it alone (XDG Base Directory Specification).
        builder.mode(0o1700);
        let made = match builder.create(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                builder.recursive(true).create(&self.root)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        };
        made.map_err(file_error("make", &self.root))?;
        builder.mode(0o700);
        let unfinished = unfinished_in(&self.root);
        builder
            .recursive(false)
            .create(&unfinished)
            .map_err(file_error("make", &unfinished))?;
        let made = self.fill(&unfinished, id, &new);
        if made.is_err() {
            remove_directory(&unfinished)?;
        }
        made
    }

    fn fill(&self, unfinished: &Path, id: &ContainerId, new: &NewContainer) -> Result<Entry> {
        let directory = self.root.join(id.as_str());
        let busy = || Error::Busy(id.clone());
        let lock = lock::lock_new(unfinished)?.ok_or_else(busy)?;
        let state = State::new(id.clone(), new).map_err(file_error("describe", &directory))?;
        write(unfinished, "declaration.json", &new.declaration)?;
        write(unfinished, "state.json", &state)?;
        match rustix::fs::renameat_with(CWD, unfinished, CWD, &directory, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Entry::new(state, directory, Some(lock))),
            Err(Errno::EXIST) => Err(Error::Exists(id.clone())),
            Err(errno) => Err(file_error("make", &directory)(errno)),
        }
    }

    /// An existing container.
    ///
    /// # Errors
    /// `DoesNotExist`, or when what is there cannot be understood.
    pub fn load(&self, id: &str) -> Result<Entry> {
        let id: ContainerId = id.parse()?;
        let directory = self.root.join(id.as_str());
        let path = directory.join("state.json");
        let text = match std::fs::read(&path) {
            Err(error) if is_absent(&error) => return Err(Error::DoesNotExist(id.to_string())),
            other => other.map_err(file_error("read", &path))?,
        };
        let state = State::parse(&text).map_err(file_error("understand", &path))?;
        if state.identity.id != id {
            let error = io::Error::other(format!("it belongs to container {}", state.identity.id));
            return Err(file_error("use", &path)(error));
        }
        Ok(Entry::new(state, directory, None))
    }

    /// Every container by name, sorted; one that cannot be read does not hide the others.
    ///
    /// # Errors
    /// When the root cannot be read, as when it does not exist.
    pub fn list(&self) -> Result<Vec<(String, Result<Entry>)>> {
        let mut names = self.names()?;
        names.retain(|name| !name.starts_with(UNFINISHED));
        names.sort_unstable();
        let entries = names.into_iter().map(|name| {
            let entry = self.load(&name);
            (name, entry)
        });
        // What was deleted meanwhile is no failure.
        let deleted = |entry: &(String, Result<Entry>)| {
            matches!(entry.1, Err(Error::DoesNotExist(_))) && !self.root.join(&entry.0).exists()
        };
        Ok(entries.filter(|entry| !deleted(entry)).collect())
    }

    /// Removes a directory that is in the way of a container although it is none: ours are never without their state.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn clear(&self, id: &str) -> Result<()> {
        let id: ContainerId = id.parse()?;
        match self.load(id.as_str()) {
            Err(Error::DoesNotExist(_)) => {
                remove_by_rename(&self.root, &self.root.join(id.as_str()))
            }
            _ => Ok(()),
        }
    }

    /// Removes what commands that were killed left half made or half removed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sweep(&self) -> Result<()> {
        for name in self.names()? {
            let directory = self.root.join(&name);
            if name.starts_with(UNFINISHED) && is_old(&directory) {
                remove_directory(&directory)?;
            }
        }
        Ok(())
    }

    /// The names of all directories in the root.
    fn names(&self) -> Result<Vec<String>> {
        let failed = |error| file_error("read", &self.root)(error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Ok(name)) = (is_directory, entry.file_name().into_string()) {
                names.push(name);
            }
        }
        Ok(names)
    }
}
