//! What is written down about a container: `state.json`, and how the process it names is found again.
//!
//! runtime-spec runtime.md "State" plus what identifies the process (a pid alone may be reused) and what releases the
//! container by name. Every version of the file has the fields of `Identity`, so that any version can kill and delete
//! what another one made.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};
use tepui_isolators::{CgroupPlacement, ContainerId, Declaration};

/// Version of the files of a state directory, raised when an older reader could misunderstand them.
pub const STATE_VERSION: u32 = 1;

/// What `create` knows about a new container.
#[derive(Debug, Clone)]
pub struct NewContainer {
    /// The bundle, an absolute path.
    pub bundle: PathBuf,
    /// The root file system, an absolute path.
    pub rootfs: PathBuf,
    /// What was asked for.
    pub declaration: Declaration,
    /// `--no-new-keyring`, which holds for later `exec`s too.
    pub no_new_keyring: bool,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
}

/// What finds and releases a container again: in every version of `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The container.
    pub id: ContainerId,
    /// Version of this file.
    pub state_version: u32,
    /// Pid of its first process on the host; 0 while there is none.
    pub pid: u32,
    /// Start time of that process in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id` when it was written.
    pub boot_id: String,
    /// Which cgroups the container's own directories are in.
    pub cgroups: CgroupPlacement,
}

/// `state.json`. Its `status` is not in the file: it is what the kernel says now.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// What finds and releases it.
    #[serde(flatten)]
    pub identity: Identity,
    /// Version of the runtime-spec, as the bundle has it.
    #[serde(default)]
    pub oci_version: String,
    /// The bundle.
    #[serde(default)]
    pub bundle: PathBuf,
    /// The root file system.
    #[serde(default)]
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    #[serde(default)]
    pub created: String,
    /// Of the bundle.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// `caller`: live until it is deleted, whatever its processes do.
    #[serde(default)]
    pub owner: String,
    /// Whether the container shares the session keyring of who created it.
    #[serde(default)]
    pub no_new_keyring: bool,
    /// Whether systemd made its cgroups.
    #[serde(default)]
    pub systemd_cgroup: bool,
    /// What is left of the launch for `start`.
    #[serde(default)]
    pub last_steps: LastSteps,
}

/// The steps of a launch that follow the word to start: `start` has no plan to name them from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LastSteps {
    /// The number of the first one, from 1.
    pub first: usize,
    /// All of them in words.
    pub steps: Vec<String>,
}

impl State {
    /// The state of a container that has no process yet.
    pub(super) fn new(id: ContainerId, new: &NewContainer) -> io::Result<Self> {
        let spec = &new.declaration.spec;
        let annotations = spec.annotations().iter().flatten();
        Ok(Self {
            identity: Identity {
                id,
                state_version: STATE_VERSION,
                pid: 0,
                start_time: 0,
                boot_id: boot_id()?,
                cgroups: new.declaration.cgroups.clone(),
            },
            oci_version: spec.version().clone(),
            bundle: new.bundle.clone(),
            rootfs: new.rootfs.clone(),
            created: super::clock::now_nanoseconds(),
            annotations: annotations.map(|(k, v)| (k.clone(), v.clone())).collect(),
            owner: "caller".into(),
            no_new_keyring: new.no_new_keyring,
            systemd_cgroup: new.systemd_cgroup,
            last_steps: LastSteps::default(),
        })
    }

    /// Reads the state that this or another version wrote.
    pub(super) fn parse(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text).or_else(|error| {
            // What another version wrote differently is not needed to release the container.
            let identity: Identity = serde_json::from_slice(text).map_err(|_| error)?;
            Ok(Self {
                identity,
                oci_version: String::new(),
                bundle: PathBuf::new(),
                rootfs: PathBuf::new(),
                created: String::new(),
                annotations: BTreeMap::new(),
                owner: "caller".into(),
                no_new_keyring: false,
                systemd_cgroup: false,
                last_steps: LastSteps::default(),
            })
        })
    }
}

impl Identity {
    /// Writes down the first process.
    pub(super) fn set_process(&mut self, pid: u32) -> io::Result<()> {
        let (_, start_time) = look(pid)?.ok_or(Errno::SRCH)?;
        (self.pid, self.start_time, self.boot_id) = (pid, start_time, boot_id()?);
        Ok(())
    }

    /// Whether the first process is there and has not ended.
    pub(super) fn is_alive(&self) -> io::Result<bool> {
        if self.pid == 0 {
            return Ok(false);
        }
        let found = look(self.pid)?;
        let is_same =
            found.is_some_and(|(alive, start_time)| alive && start_time == self.start_time);
        Ok(is_same && self.boot_id == boot_id()?)
    }

    /// The first process; `None` when it has ended.
    pub(super) fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // EINVAL: the number belongs to a thread now.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Looked at after it was opened: the descriptor then stands for exactly this process.
        Ok(self.is_alive()?.then_some(pidfd))
    }
}

/// What a container is doing (runtime-spec runtime.md "State"; `paused` is ours and every other runtime's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is being made.
    Creating,
    /// It waits for `start`.
    Created,
    /// Its program runs.
    Running,
    /// It is frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// Whether a process has not ended, and its start time; `None` when there is no such process.
fn look(pid: u32) -> io::Result<Option<(bool, u64)>> {
    let text = match read_short(&format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // It ended between open and read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(parse_stat(&text))
}

/// Fields 3 and 22 of `/proc/PID/stat`; the command in field 2 may hold spaces and brackets.
fn parse_stat(text: &str) -> Option<(bool, u64)> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let is_alive = !matches!(fields.next()?, "Z" | "X");
    Some((is_alive, fields.nth(18)?.parse().ok()?))
}

/// It does not change while we live.
fn boot_id() -> io::Result<String> {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let text = read_short("/proc/sys/kernel/random/boot_id")?;
    Ok(KNOWN.get_or_init(|| text.trim_end().to_owned()).clone())
}

/// A file of `/proc` that one read(2) returns whole: `std` would begin with 32 bytes, as such files have no size.
fn read_short(path: &str) -> io::Result<String> {
    let mut text = vec![0; 4096];
    let length = io::Read::read(&mut std::fs::File::open(path)?, &mut text)?;
    text.truncate(length);
    // The name of a command may be any bytes.
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_brackets_does_not_confuse_the_reader() {
        let line = "42 (a) Z 9) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 100 200";
        assert_eq!(parse_stat(line), Some((true, 777)));
        assert_eq!(parse_stat(&line.replace(" S ", " Z ")), Some((false, 777)));
        assert_eq!(parse_stat("42 (x"), None);
    }

    #[test]
    fn a_number_that_another_process_has_now_is_not_the_container() {
        let mut identity = Identity {
            id: "web".parse().unwrap(),
            state_version: STATE_VERSION,
            pid: 0,
            start_time: 0,
            boot_id: String::new(),
            cgroups: CgroupPlacement {
                parent: "/x".into(),
                nested: BTreeMap::new(),
                name: None,
            },
        };
        assert!(!identity.is_alive().unwrap());
        identity.set_process(std::process::id()).unwrap();
        assert!(identity.is_alive().unwrap());
        assert!(identity.open().unwrap().is_some());
        for wrong in [
            Identity {
                start_time: 1,
                ..identity.clone()
            },
            Identity {
                boot_id: "another".into(),
                ..identity.clone()
            },
        ] {
            assert!(!wrong.is_alive().unwrap());
            assert!(wrong.open().unwrap().is_none());
        }
    }
}
