//! What a process gets by one system call of its own, in a form that needs no allocation to apply.

use std::fmt;

/// One attribute of the container's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// personality(2): the execution domain.
    Personality(u64),
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
    pub fn stage(&self, _no_new_privileges: bool) -> Stage {
        Stage::Privileged
    }

    /// Whether it is written to a file of procfs.
    pub fn needs_proc(&self) -> bool {
        false
    }
}

/// Reads after "could not".
impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Personality(domain) => write!(f, "set the personality {domain:#x}"),
        }
    }
}
