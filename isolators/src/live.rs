//! What is: the state of a running process' isolation, as read from the kernel.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::attribute::Scheduler;
use crate::launch_info::{CapabilitySets, IdMaps};

/// The process that is looked at: any process, ours or not, seen from the observer's `/proc`.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its pid in the observer's pid namespace.
    pub pid: u32,
}

impl Target {
    /// The calling process, by the number that the mounted `/proc` knows it by: a launcher has a pid namespace of its
    /// own, and getpid(2) would name another process there.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn own() -> std::io::Result<Self> {
        let link = std::fs::read_link("/proc/self")?;
        let pid = link.to_str().and_then(|text| text.parse().ok());
        pid.map(|pid| Self { pid })
            .ok_or_else(|| std::io::ErrorKind::InvalidData.into())
    }

    /// `/proc/PID/<name>`.
    pub fn proc_path(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(name)
    }
}

/// One namespace of the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LiveNamespace {
    /// Inode number of `/proc/PID/ns/<name>`: equal numbers mean the same namespace.
    pub inode: u64,
    /// Whether the observer is in the same one.
    pub shared_with_observer: bool,
}

/// One line of `/proc/PID/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LiveMount {
    /// Root of the mount within its file system.
    pub root: String,
    /// Mount point as the target sees it.
    pub target: String,
    /// Per-mount options: `ro`, `nosuid` …
    pub options: Vec<String>,
    /// Optional fields: `shared:N`, `master:N` …
    pub propagation: Vec<String>,
    /// File system type.
    pub fstype: String,
    /// Its source.
    pub source: String,
    /// Options of the file system itself.
    pub super_options: Vec<String>,
}

impl LiveMount {
    /// Whether a path lies below this mount's. Below `/` counts as no: everything does.
    pub fn has_below(&self, path: &str) -> bool {
        let rest = path.strip_prefix(&self.target);
        rest.is_some_and(|rest| rest.starts_with('/'))
    }
}

/// A thing that hides or covers a path of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LiveMask {
    /// The path does not exist.
    Absent,
    /// The null device (character 1:3).
    NullDevice,
    /// An empty, read-only directory.
    EmptyReadOnlyDirectory,
    /// It can be read but not written.
    ReadOnly,
    /// Nothing hides it.
    Open,
}

/// One instruction of classic BPF: `code`, `jt`, `jf`, `k`.
pub type Instruction = (u16, u8, u8, u32);

/// seccomp of one thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LiveSeccomp {
    /// `Seccomp:` of status: 0 none, 1 strict, 2 filter.
    pub mode: u32,
    /// `Seccomp_filters:` of status, where the kernel shows it (5.9).
    pub filters: Option<u32>,
    /// The programs, most recently installed first, each instruction as `code jt jf k`; `None` when they could not be read.
    pub programs: Option<Vec<Vec<Instruction>>>,
}

/// All that isolators observed of one target. `None` and empty mean: not looked at or not to be seen.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Live {
    /// By the name in `/proc/PID/ns`.
    pub namespaces: BTreeMap<String, LiveNamespace>,
    /// Whether its `/proc` shows the pids of the observer's pid namespace (or of one above it), and not only its own.
    pub proc_shows_observer: Option<bool>,
    /// Whether process 1 of its pid namespace lives outside of its mount namespace.
    pub pid_namespace_first_is_outside: Option<bool>,
    /// Whether its `/` is the very directory that is the observer's `/`.
    pub root_is_observers: Option<bool>,
    /// Host name in its UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name in its UTS namespace.
    pub domainname: Option<String>,
    /// The id maps of its user namespace, to ids of the observer's.
    pub id_maps: Option<IdMaps>,
    /// Offsets of its time namespace by clock, in seconds and nanoseconds.
    pub time_offsets: BTreeMap<String, (i64, u32)>,
    /// The sysctls of the declaration, by path below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
    /// Its scheduler.
    pub scheduler: Option<Scheduler>,
    /// Its I/O priority: class and level in one number (ioprio_set(2)).
    pub io_priority: Option<u16>,
    /// Its execution domain with flags.
    pub personality: Option<u64>,
    /// Its NUMA policy as numa_maps words it; looked at when one is declared.
    pub memory_policy: Option<String>,
    /// `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// What security modules call it: `apparmor`, or `first` for the first module, to label. Empty where there is none.
    pub security_labels: BTreeMap<String, String>,
    /// Capability sets of the weakest thread (the union over threads, so that no thread's extra right is missed).
    pub capabilities: Option<CapabilitySets>,
    /// True only when every thread has it.
    pub no_new_privileges: Option<bool>,
    /// Of the least filtered thread.
    pub seccomp: Option<LiveSeccomp>,
    /// Its mount table.
    pub mounts: Vec<LiveMount>,
    /// The mounts that the target really meets at `/` and at or below the mount targets of the declaration, by path.
    /// (`mounts` has those too that others cover.)
    pub mounted: BTreeMap<String, LiveMount>,
    /// The masked and read-only paths of the declaration, as the target finds them.
    pub masks: BTreeMap<String, LiveMask>,
    /// Files of the target's cgroups: file name (`memory.max`, `cpu.shares` …) to content.
    pub cgroup: BTreeMap<String, String>,
    /// Its cgroup paths: controller (or `""` for v2) to path.
    pub cgroup_paths: BTreeMap<String, String>,
    /// Soft and hard limit by OCI name (`RLIMIT_NOFILE`); `u64::MAX` is unlimited.
    pub rlimits: BTreeMap<String, (u64, u64)>,
}

/// How a live item compares with the declared one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As declared.
    Match,
    /// Less isolated than declared.
    Weaker,
    /// More isolated than declared.
    Stronger,
    /// Could not be seen.
    Unknown,
}

impl Verdict {
    /// The verdict where more of the item isolates less.
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Self::Weaker => Self::Stronger,
            Self::Stronger => Self::Weaker,
            same => same,
        }
    }
}

/// One compared item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The isolator that is answerable for it.
    pub isolator: &'static str,
    /// The item, e.g. `memory limit` or `mask /proc/kcore`.
    pub item: String,
    /// What was declared.
    pub declared: String,
    /// What the kernel says.
    pub live: String,
    /// How the two compare.
    pub verdict: Verdict,
    /// The file that was read.
    pub read_from: String,
}
