//! What a process gets by one system call of its own, in a form that needs no allocation to apply.

use std::ffi::CString;
use std::fmt;

use crate::linux::landlock::Landlock;

/// One attribute of the container's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// personality(2): the execution domain.
    Personality(u64),
    /// sched_setaffinity(2): bit n of the words is CPU n. More CPUs than there are stand for all of them.
    CpuAffinity(Vec<u64>),
    /// sched_setattr(2).
    Scheduler(Scheduler),
    /// ioprio_set(2): class and level in one number.
    IoPriority(u16),
    /// set_mempolicy(2).
    MemoryPolicy {
        /// `MPOL_*`, with `MPOL_F_*`.
        mode: i32,
        /// Bit n of the words is node n.
        nodes: Vec<u64>,
    },
    /// What a security module is to make of the process with the next execve(2): written to a file of procfs.
    ExecLabel {
        /// From procfs: `thread-self/attr/…`.
        path: CString,
        /// What is written.
        label: CString,
    },
    /// landlock_create_ruleset(2), with the rules for ports.
    LandlockRules(Landlock),
    /// landlock_add_rule(2): what is allowed beneath a path of the container.
    LandlockPath {
        /// The path.
        path: CString,
        /// `LANDLOCK_ACCESS_FS_*`; what cannot be done with a file is left out for one.
        access: u64,
    },
    /// landlock_restrict_self(2) by the rules made before, with `LANDLOCK_RESTRICT_SELF_*`.
    LandlockRestrict {
        /// The flags.
        flags: u32,
        /// Whether it is the last thing: no_new_privs allows it then.
        last: bool,
    },
}

/// `struct sched_attr` of sched_setattr(2), as far as runtime-spec has words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Scheduler {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub runtime: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub deadline: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub period: u64,
}

/// When an attribute is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// After the mounts, while the process still has all of its privileges.
    Privileged,
    /// As the container's user, after no_new_privs is set.
    Last,
}

impl Attribute {
    /// When it is to be set.
    pub fn stage(&self) -> Stage {
        match self {
            Self::LandlockRestrict { last: true, .. } => Stage::Last,
            _ => Stage::Privileged,
        }
    }

    /// Whether it is written to a file of procfs.
    pub fn needs_proc(&self) -> bool {
        matches!(self, Self::ExecLabel { .. })
    }
}

/// Reads after "could not".
impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Personality(domain) => write!(f, "set the personality {domain:#x}"),
            Self::CpuAffinity(_) => f.write_str("set the CPU affinity"),
            Self::Scheduler(scheduler) => {
                write!(f, "set the scheduler (policy {})", scheduler.policy)
            }
            Self::IoPriority(number) => write!(
                f,
                "set the I/O priority (class {}, level {})",
                number >> 13,
                number & 7
            ),
            Self::MemoryPolicy { mode, .. } => write!(f, "set the memory policy {mode:#x}"),
            Self::ExecLabel { path, label } => {
                write!(f, "write {label:?} to /proc/{}", path.to_string_lossy())
            }
            Self::LandlockRules(_) => f.write_str("make the Landlock ruleset"),
            Self::LandlockPath { path, .. } => write!(f, "make a Landlock rule for {path:?}"),
            Self::LandlockRestrict { .. } => f.write_str("restrict itself by Landlock"),
        }
    }
}
