//! What can go wrong in an isolator.

use std::io;
use std::path::PathBuf;

use crate::declaration::ContainerId;

/// The result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An isolator could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the kernel or the disk refused something.
    #[error("could not {action} {}", path.display())]
    File {
        /// What was tried, e.g. `write "128" to`.
        action: String,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The declaration asks for something that cannot be honoured.
    #[error("{field} is {value}, but {rule}")]
    Config {
        /// The field, as runtime-spec writes it.
        field: &'static str,
        /// Its value.
        value: String,
        /// The rule that it breaks.
        rule: String,
    },
    /// The kernel lacks what was asked for.
    #[error("{isolator} needs {feature}; remove it from --isolation, or use a kernel that has it")]
    Unsupported {
        /// The isolator's name.
        isolator: &'static str,
        /// What is missing.
        feature: String,
    },
    /// Two isolators set one single-valued field.
    #[error("both {first} and {second} set {field}; remove one of them from --isolation")]
    Conflict {
        /// The field of the launch info.
        field: &'static str,
        /// Who set it first.
        first: &'static str,
        /// Who set it again.
        second: &'static str,
    },
    /// A seccomp profile that cannot be read or compiled.
    #[error("seccomp profile {profile}: {reason}")]
    Seccomp {
        /// Its name or path.
        profile: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An isolator name that this build does not have.
    #[error("there is no isolator {name:?}; this build has {known}")]
    UnknownIsolator {
        /// The name asked for.
        name: String,
        /// All names, comma separated.
        known: String,
    },
    /// A process could not be looked at.
    #[error("could not observe {what} of pid {pid}")]
    Observe {
        /// What was to be read.
        what: String,
        /// The process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// A container's cgroups could not be emptied in time.
    #[error("container {id}: processes are left in {} after SIGKILL", path.display())]
    CgroupBusy {
        /// The container.
        id: ContainerId,
        /// The directory.
        path: PathBuf,
    },
    /// A container's processes could not all be stopped in time.
    #[error(
        "container {id}: {} did not freeze within {limit:?} and was thawed again; a process in it cannot be stopped now, try again",
        path.display()
    )]
    NotFrozen {
        /// The container.
        id: ContainerId,
        /// The directory.
        path: PathBuf,
        /// How long was waited.
        limit: std::time::Duration,
    },
}

impl Error {
    /// Whether a file refused with an answer of this kind.
    pub fn is_kind(&self, kind: io::ErrorKind) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == kind)
    }

    /// A `File` error; `action` reads before the path.
    pub fn file(
        action: impl Into<String>,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::File {
            action: action.into(),
            path: path.into(),
            source: source.into(),
        }
    }
}
