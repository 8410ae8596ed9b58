//! The state directory of a container: `<state dir>/<id>`, whose lock says that its owner lives.
//!
//! | file | content |
//! |---|---|
//! | `lock` | locked by the launcher for as long as the container belongs to it (fcntl(2), F_SETLK) |
//! | `declaration.json` | what was asked for, enough to release everything by name |
//! | `state.json` | runtime-spec state, with the boot id and start time that identify the process |
//! | `rootfs` | an empty directory: where the root is mounted, in the container's own mount namespace |
//!
//! The directory appears under its name complete and locked, by rename, so that a recovery running at the same time
//! never takes it for an orphan.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tepui_isolators::{ContainerId, Declaration, registry};

use crate::pidfd;

/// Version of the files, raised when an older reader could misunderstand them.
pub const STATE_VERSION: u32 = 1;

/// How long recovery waits for a killed process to be gone.
const GRACE: Duration = Duration::from_secs(2);

/// The start of names of directories that are being made.
const UNFINISHED: &str = ".new-";

/// A state directory could not be made, read or released.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// The id is taken.
    #[error("container {id} exists already; choose another name, or remove it")]
    Exists {
        /// The id.
        id: ContainerId,
    },
    /// Something of it could not be released.
    #[error(transparent)]
    Isolator(#[from] tepui_isolators::Error),
}

type Result<T> = std::result::Result<T, Error>;

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}

/// `state.json`: the runtime-spec's state and ours.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the runtime-spec.
    pub oci_version: String,
    /// The container.
    pub id: ContainerId,
    /// `creating`, `running` or `stopped`.
    pub status: String,
    /// Pid of its first process on the host; 0 while there is none.
    pub pid: u32,
    /// The state directory.
    pub bundle: PathBuf,
    /// Version of this file.
    pub state_version: u32,
    /// `executor`: live while its owner holds the lock.
    pub owner: String,
    /// `/proc/sys/kernel/random/boot_id` when it was written.
    pub boot_id: String,
    /// Start time of the process in clock ticks since boot (proc(5), stat field 22): a pid alone may be reused.
    pub start_time: u64,
}

/// A state directory of ours, locked.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    state: State,
    /// Held, never read: its lock is the point.
    _lock: OwnedFd,
}

impl StateDirectory {
    /// Makes `<root>/<id>`, locked.
    ///
    /// # Errors
    /// When the id is taken or the disk refuses.
    pub fn create(root: &Path, id: &ContainerId, declaration: &Declaration) -> Result<Self> {
        make_private(root)?;
        let path = root.join(id.as_str());
        let mut random = [0u8; 8];
        getrandom::fill(&mut random)
            .map_err(|error| io::Error::other(error.to_string()))
            .map_err(file_error("name", &path))?;
        let unfinished = root.join(format!(
            "{UNFINISHED}{id}-{:016x}",
            u64::from_ne_bytes(random)
        ));
        std::fs::create_dir(&unfinished).map_err(file_error("make", &unfinished))?;
        let made = Self::fill(&unfinished, &path, id, declaration);
        if made.is_err() {
            remove_directory(&unfinished)?;
        }
        made
    }

    fn fill(
        unfinished: &Path,
        path: &Path,
        id: &ContainerId,
        declaration: &Declaration,
    ) -> Result<Self> {
        let lock = try_lock(unfinished)?.ok_or_else(|| Error::Exists { id: id.clone() })?;
        let text = serde_json::to_vec(declaration).map_err(io::Error::other);
        write(
            &unfinished.join("declaration.json"),
            &text.map_err(file_error("write", unfinished))?,
        )?;
        let rootfs = unfinished.join("rootfs");
        std::fs::create_dir(&rootfs).map_err(file_error("make", &rootfs))?;
        let state = State {
            oci_version: "1.2.0".into(),
            id: id.clone(),
            status: "creating".into(),
            pid: 0,
            bundle: path.to_owned(),
            state_version: STATE_VERSION,
            owner: "executor".into(),
            boot_id: boot_id()?,
            start_time: 0,
        };
        write_state(unfinished, &state)?;
        match rustix::fs::renameat_with(
            rustix::fs::CWD,
            unfinished,
            rustix::fs::CWD,
            path,
            rustix::fs::RenameFlags::NOREPLACE,
        ) {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                state,
                _lock: lock,
            }),
            Err(Errno::EXIST) => Err(Error::Exists { id: id.clone() }),
            Err(errno) => Err(file_error("make", path)(errno.into())),
        }
    }

    /// The empty directory for the root mount.
    pub fn mount_point(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Writes down the container's process.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_running(&mut self, pid: u32) -> Result<()> {
        self.state.status = "running".into();
        self.state.pid = pid;
        self.state.start_time = start_time(pid).unwrap_or_default();
        write_state(&self.path, &self.state)
    }

    /// Removes the directory, after everything that it names was released.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(self) -> Result<()> {
        remove_directory(&self.path)
    }
}

/// Releases what dead owners left under `root`: their processes, cgroups, writable layers and state directories.
/// Safe beside live owners, and idempotent. What could not be released is returned and stays for the next time.
pub fn recover(root: &Path) -> Vec<(String, Error)> {
    let mut left = Vec::new();
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return left,
        Err(error) => return vec![(root.display().to_string(), file_error("read", root)(error))],
    };
    for entry in entries.flatten() {
        if let Err(error) = release(&entry.path()) {
            left.push((entry.file_name().to_string_lossy().into_owned(), error));
        }
    }
    left
}

fn release(path: &Path) -> Result<()> {
    let is_unfinished = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()));
    if is_unfinished && made_lately(path) {
        // Its owner is about to lock it.
        return Ok(());
    }
    let Some(_lock) = try_lock(path)? else {
        return Ok(());
    };
    if let Some(header) = read::<Header>(path, "state.json")?
        && header.state_version != STATE_VERSION
    {
        tracing::warn!(id = %header.id, version = header.state_version, "left alone: another version of tepui made it");
        return Ok(());
    }
    let declaration: Option<Declaration> = read(path, "declaration.json")?;
    if let (Some(state), Some(declaration)) = (read::<State>(path, "state.json")?, declaration) {
        let left = end_process(&state)?;
        // This thaws and kills whatever is in its cgroups.
        registry::cleanup(&registry::all(), &state.id, &declaration)?;
        if let Some(pidfd) = left
            && !ended(&pidfd, &state)?
        {
            let error = io::Error::from(io::ErrorKind::TimedOut);
            return Err(file_error("end the process of", path)(error));
        }
        tracing::info!(id = %state.id, "released a container whose owner died");
    }
    remove_directory(path)
}

fn made_lately(path: &Path) -> bool {
    let age = path
        .symlink_metadata()
        .and_then(|status| status.modified())
        .ok()
        .and_then(|at| at.elapsed().ok());
    age.is_none_or(|age| age < Duration::from_secs(60))
}

/// What every version of `state.json` has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    id: String,
    state_version: u32,
}

/// A file of a state directory; `None` when it is missing, as it is when the directory was half removed.
///
/// What cannot be read is an error and stays: it may name what is still to be released.
fn read<T: serde::de::DeserializeOwned>(directory: &Path, name: &str) -> Result<Option<T>> {
    let path = directory.join(name);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(file_error("read", &path))?,
    };
    let parsed = serde_json::from_slice(&text).map_err(io::Error::other);
    parsed.map(Some).map_err(file_error("understand", &path))
}

/// Kills the container's first process if it is still the one that was written down. Returns it when it does not end:
/// it is frozen, most likely.
fn end_process(state: &State) -> Result<Option<OwnedFd>> {
    let pid = i32::try_from(state.pid).ok().and_then(Pid::from_raw);
    let (Some(pid), true) = (pid, state.boot_id == boot_id()?) else {
        return Ok(None);
    };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(None);
    };
    // Looked at after it was opened: the pidfd then stands for exactly this process.
    if start_time(state.pid) != Some(state.start_time) {
        return Ok(None);
    }
    // ESRCH: it has just ended.
    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    Ok((!ended(&pidfd, state)?).then_some(pidfd))
}

fn ended(pidfd: &OwnedFd, state: &State) -> Result<bool> {
    pidfd::ended_within(pidfd, GRACE).map_err(file_error("wait for a process of", &state.bundle))
}

/// The lock of a state directory, or `None` while its owner lives or when it has just gone.
fn try_lock(directory: &Path) -> Result<Option<OwnedFd>> {
    let path = directory.join("lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = match rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)) {
        Ok(lock) => lock,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(file_error("open", &path)(errno.into())),
    };
    // A record lock belongs to the process: a container's process that is still being set up, perhaps frozen, has a copy
    // of the descriptor but not the lock (fcntl(2)).
    match rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
        // Its owner may have removed it while we waited, and another made the same name again.
        Ok(()) if is_still(&lock, &path) => Ok(Some(lock)),
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(file_error("lock", &path)(errno.into())),
    }
}

fn is_still(lock: &OwnedFd, path: &Path) -> bool {
    let (Ok(ours), Ok(theirs)) = (rustix::fs::fstat(lock), rustix::fs::stat(path)) else {
        return false;
    };
    (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).map_err(file_error("write", path))
}

/// Replaced by rename: a reader sees the old state or the new one.
fn write_state(directory: &Path, state: &State) -> Result<()> {
    let (new, path) = (
        directory.join("state.json.new"),
        directory.join("state.json"),
    );
    let text = serde_json::to_vec(state)
        .map_err(io::Error::other)
        .map_err(file_error("write", &path))?;
    write(&new, &text)?;
    std::fs::rename(&new, &path).map_err(file_error("replace", &path))
}

fn remove_directory(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(file_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a directory that only its owner can enter: state says what secrets a task may hold.
pub fn make_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(file_error("make", path))
}

fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(file_error("read", path))?;
    Ok(text.trim().to_owned())
}

/// Field 22 of `/proc/PID/stat`; the command in field 2 may hold spaces and brackets.
pub fn start_time(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.get(text.rfind(')')? + 1..)?
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()
}
