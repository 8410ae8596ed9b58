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
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use tepui_isolators::cgroups::group::Group;
use tepui_isolators::{ContainerId, Declaration, RootFilesystem};

use super::lock;
pub use super::state::{Identity, NewContainer, State, Status};

/// The start of names of directories that are being made or removed; no id starts with a dot.
const UNFINISHED: &str = ".new-";

/// How long a directory without its name can belong to somebody who is making or removing it.
const UNFINISHED_FOR: Duration = Duration::from_secs(60);

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

pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

pub(super) fn file_error<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source: source.into(),
    }
}

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
        builder.mode(0o700).recursive(true);
        builder
            .create(&self.root)
            .map_err(file_error("make", &self.root))?;
        let unfinished = self.unfinished()?;
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
        let lock = lock::try_lock(unfinished)?.ok_or_else(busy)?;
        let state = State::new(id.clone(), new).map_err(file_error("describe", &directory))?;
        write(unfinished, "declaration.json", &new.declaration)?;
        write(unfinished, "state.json", &state)?;
        match rustix::fs::renameat_with(CWD, unfinished, CWD, &directory, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Entry {
                state,
                directory,
                own_lock: Some(lock),
            }),
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
        Ok(Entry {
            state,
            directory,
            own_lock: None,
        })
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

    fn unfinished(&self) -> Result<PathBuf> {
        unfinished_in(&self.root)
    }
}

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
        let unfinished = unfinished_in(root)?;
        match std::fs::rename(&self.directory, &unfinished) {
            Ok(()) => remove_directory(&unfinished),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(file_error("remove", &self.directory)(error)),
        }
    }
}

fn unfinished_in(root: &Path) -> Result<PathBuf> {
    let mut random = [0u8; 8];
    getrandom::fill(&mut random)
        .map_err(|error| io::Error::other(error.to_string()))
        .map_err(file_error("name a directory in", root))?;
    let name = format!("{UNFINISHED}{:016x}", u64::from_ne_bytes(random));
    Ok(root.join(name))
}

fn is_old(directory: &Path) -> bool {
    let modified = directory
        .symlink_metadata()
        .and_then(|status| status.modified());
    let age = modified.ok().and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age > UNFINISHED_FOR)
}

/// Whether a file or the directory that it is in is not there (any more).
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn write(directory: &Path, name: &str, content: &impl serde::Serialize) -> Result<()> {
    let path = directory.join(name);
    let text = serde_json::to_vec(content).map_err(file_error("describe", &path))?;
    std::fs::write(&path, text).map_err(file_error("write", &path))
}

/// Replaced by rename: a reader sees the old content or the new one.
fn replace(directory: &Path, name: &str, content: &impl serde::Serialize) -> Result<()> {
    let new = format!("{name}.new");
    write(directory, &new, content)?;
    let path = directory.join(name);
    std::fs::rename(directory.join(new), &path).map_err(file_error("replace", &path))
}

fn remove_directory(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if !is_absent(&error) => Err(file_error("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::process::{Command, Stdio};
    use tepui_isolators::CgroupPlacement;

    fn new_container() -> NewContainer {
        let spec = serde_json::json!({ "ociVersion": "1.2.0", "annotations": { "a": "b" } });
        NewContainer {
            bundle: "/bundle".into(),
            rootfs: "/bundle/rootfs".into(),
            declaration: Declaration {
                spec: serde_json::from_value(spec).unwrap(),
                rootfs: RootFilesystem::Directory("/bundle/rootfs".into()),
                cgroups: CgroupPlacement {
                    parent: "/tepui-test-runtime-store".into(),
                    nested: BTreeMap::new(),
                    name: None,
                },
                init: false,
                executable: None,
                keep_keyring: false,
                reset_cpu_affinity: false,
            },
            no_new_keyring: false,
            systemd_cgroup: false,
        }
    }

    fn create(store: &Store, id: &str) -> Result<Entry> {
        store.create(&id.parse().unwrap(), new_container())
    }

    #[test]
    fn the_status_follows_the_process_and_the_socket() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("new"));
        let mut entry = create(&store, "web").unwrap();
        assert_eq!(entry.status().unwrap(), Status::Creating);
        let mut process = Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(entry.start_socket(), "").unwrap();
        entry.set_process(process.id()).unwrap();
        drop(entry);

        let entry = store.load("web").unwrap();
        assert_eq!(entry.status().unwrap(), Status::Created);
        assert_eq!(entry.state.annotations["a"], "b");
        assert_eq!(
            entry.declaration().unwrap().cgroups,
            entry.state.identity.cgroups
        );
        std::fs::remove_file(entry.start_socket()).unwrap();
        assert_eq!(entry.status().unwrap(), Status::Running);
        let init = entry.init().unwrap().unwrap();
        rustix::process::pidfd_send_signal(&init, rustix::process::Signal::KILL).unwrap();
        assert!(crate::pidfd::ended_within(&init, Duration::from_secs(5)).unwrap());
        // It is a zombie, which has ended.
        assert_eq!(entry.status().unwrap(), Status::Stopped);
        assert!(entry.init().unwrap().is_none());
        process.wait().unwrap();
        assert_eq!(entry.status().unwrap(), Status::Stopped);
    }

    #[test]
    fn an_id_is_taken_until_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path());
        let entry = create(&store, "web+1").unwrap();
        let again = create(&store, "web+1").unwrap_err();
        assert!(again.to_string().contains("already exists"), "{again}");
        drop(entry);
        let entry = store.load("web+1").unwrap();
        assert_eq!(
            entry.status().unwrap(),
            Status::Stopped,
            "its maker is gone"
        );
        let names: Vec<_> = store
            .list()
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["web+1"]);
        entry.remove().unwrap();
        let gone = store.load("web+1").unwrap_err();
        assert!(gone.to_string().contains("does not exist"), "{gone}");
        assert!(root.path().read_dir().unwrap().next().is_none());
        for bad in ["..", "a/b", "", ".new-x"] {
            assert!(matches!(store.load(bad), Err(Error::InvalidId(_))), "{bad}");
        }
    }

    #[test]
    fn what_another_version_wrote_can_be_released() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path());
        drop(create(&store, "old").unwrap());
        let path = root.path().join("old/state.json");
        let text = std::fs::read(&path).unwrap();
        let mut state: serde_json::Value = serde_json::from_slice(&text).unwrap();
        state["stateVersion"] = 99.into();
        state["annotations"] = "changed".into();
        std::fs::write(&path, state.to_string()).unwrap();
        std::fs::write(root.path().join("old/declaration.json"), "{}").unwrap();
        let entry = store.load("old").unwrap();
        let cgroups = entry.declaration_to_release().cgroups;
        assert_eq!(cgroups.parent, Path::new("/tepui-test-runtime-store"));
        entry.remove().unwrap();
    }

    #[test]
    fn a_lock_that_another_process_holds_is_given_up_on() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path());
        drop(create(&store, "web").unwrap());
        let entry = store.load("web").unwrap();
        drop(entry.lock().unwrap());
        // flock(1) knows another kind of lock; Python has record locks.
        let program = "import fcntl,sys;f=open(sys.argv[1],'r+');fcntl.lockf(f,fcntl.LOCK_EX);print(1,flush=True);sys.stdin.read()";
        let mut other = Command::new("python3")
            .args(["-c", program])
            .arg(entry.directory.join("lock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0u8; 2];
        io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert_eq!(entry.status().unwrap(), Status::Creating);
        assert!(matches!(entry.lock(), Err(Error::Busy(_))));
        drop(other.stdin.take());
        other.wait().unwrap();
        drop(entry.lock().unwrap());
    }
}
