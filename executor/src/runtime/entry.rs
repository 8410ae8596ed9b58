//! One container's state directory: what stands in it, and what the container is doing.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tepui_isolators::cgroups::group::Group;
use tepui_isolators::{ContainerId, Declaration, RootFilesystem};

use super::files::{file_error, remove_by_rename, replace};
use super::lock;
use super::state::{State, Status};
use super::store::Result;

/// One container.
#[derive(Debug)]
pub struct Entry {
    /// What is written down about it.
    pub state: State,
    /// Its state directory.
    pub directory: PathBuf,
    /// The lock, while we are making it.
    own_lock: Option<OwnedFd>,
}

impl Entry {
    pub(super) fn new(state: State, directory: PathBuf, own_lock: Option<OwnedFd>) -> Self {
        Self {
            state,
            directory,
            own_lock,
        }
    }

    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.state.identity.id
    }

    /// What was asked for.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn declaration(&self) -> Result<Declaration> {
        let path = self.directory.join("declaration.json");
        let text = std::fs::read(&path).map_err(file_error("read", &path))?;
        serde_json::from_slice(&text).map_err(file_error("understand", &path))
    }

    /// What is to be released: the declaration, or where that cannot be understood, as when another version wrote it, at
    /// least the cgroups.
    pub fn declaration_to_release(&self) -> Declaration {
        self.declaration().unwrap_or_else(|error| {
            tracing::warn!(
                "releasing only the cgroups: {}",
                crate::report::chain(&error)
            );
            Declaration {
                spec: oci_spec::runtime::Spec::default(),
                rootfs: RootFilesystem::Host,
                cgroups: self.state.identity.cgroups.clone(),
                init: false,
                executable: None,
                keep_keyring: false,
                reset_cpu_affinity: false,
            }
        })
    }

    /// Replaces what was asked for, as an update does.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_declaration(&self, declaration: &Declaration) -> Result<()> {
        replace(&self.directory, "declaration.json", declaration)
    }

    /// Writes down the container's first process.
    ///
    /// # Errors
    /// When the process is gone already or the disk refuses.
    pub fn set_process(&mut self, pid: u32) -> Result<()> {
        let described = self.state.identity.set_process(pid);
        described.map_err(file_error("describe the process of", &self.directory))?;
        replace(&self.directory, "state.json", &self.state)
    }

    /// What the container is doing now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn status(&self) -> Result<Status> {
        let identity = &self.state.identity;
        let alive = identity.is_alive();
        if !alive.map_err(file_error("look at the process of", &self.directory))? {
            // Whoever makes it holds the lock; a command that was killed while making it does not.
            let is_made =
                identity.pid == 0 && (self.own_lock.is_some() || lock::is_locked(&self.directory)?);
            return Ok(match is_made {
                true => Status::Creating,
                false => Status::Stopped,
            });
        }
        if Group::of(&identity.id, &identity.cgroups)?.is_frozen()? {
            return Ok(Status::Paused);
        }
        Ok(match self.start_socket().symlink_metadata() {
            Ok(_) => Status::Created,
            Err(_) => Status::Running,
        })
    }

    /// The first process, by a descriptor that stands for it and for no other; `None` when it has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn init(&self) -> Result<Option<OwnedFd>> {
        let opened = self.state.identity.open();
        opened.map_err(file_error("open the process of", &self.directory))
    }

    /// The lock of who changes the container, held until the descriptor is closed. It belongs to this process: a clone
    /// of it does not hold it. Not to be asked for again while it is held (fcntl(2): closing any descriptor of the file
    /// gives the lock up), nor on an entry that `create` returned, which has it already.
    ///
    /// # Errors
    /// `Busy` when another command holds it for more than a second.
    pub fn lock(&self) -> Result<OwnedFd> {
        lock::lock(&self.directory, self.id())
    }

    /// Where the container waits for `start`.
    pub fn start_socket(&self) -> PathBuf {
        self.directory.join("start.sock")
    }

    /// Removes the directory, after everything that it names was released.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(self) -> Result<()> {
        let root = self.directory.parent().unwrap_or(Path::new("/"));
        remove_by_rename(root, &self.directory)
    }
}
