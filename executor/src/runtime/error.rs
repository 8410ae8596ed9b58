//! What can go wrong in a command of the runtime.

use std::io;
use std::path::{Path, PathBuf};

/// The result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A command failed; nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bundle cannot be a container.
    #[error("{reason}")]
    Bundle {
        /// Field and rule.
        reason: String,
    },
    /// The container is not in a state for the command, or the command's options contradict each other.
    #[error("{0}")]
    Refused(String),
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
    /// A hook failed.
    #[error("error running {kind} hook #{index}: {reason}")]
    Hook {
        /// As runtime-spec names it.
        kind: &'static str,
        /// From 0, in the order of the configuration.
        index: usize,
        /// Exit status, signal or timeout, and what it said.
        reason: String,
    },
    /// The state directory.
    #[error(transparent)]
    Store(#[from] super::store::Error),
    /// An isolator refused.
    #[error(transparent)]
    Isolator(#[from] tepui_isolators::Error),
    /// The launch failed.
    #[error("unable to start container process{}", stage(.0))]
    Launch(#[source] crate::launch::Error),
    /// The program cannot be executed, in the words of other runtimes.
    #[error("unable to start container process: {0}")]
    Execute(String),
    /// The binary could not be protected.
    #[error(transparent)]
    Seal(#[from] crate::seal::SealError),
}

/// Callers know by these words what failed inside.
fn stage(error: &crate::launch::Error) -> &'static str {
    use crate::launch::Error::{Devices, Mount, Step};
    match error {
        Mount { .. } | Devices { .. } | Step { .. } => ": error during container init",
        _ => "",
    }
}

impl From<crate::launch::Error> for Error {
    fn from(error: crate::launch::Error) -> Self {
        let crate::launch::Error::Execute { program, source } = &error else {
            return Self::Launch(error);
        };
        Self::Execute(match source.raw_os_error() {
            Some(libc::ENOENT) if program.contains('/') => {
                format!("exec {program}: no such file or directory")
            }
            Some(libc::ENOENT) => format!("exec: {program:?}: executable file not found in $PATH"),
            Some(libc::EACCES) => format!("exec {program}: permission denied"),
            Some(libc::ENOEXEC) => format!("exec {program}: exec format error"),
            _ => format!("exec {program}: {source}"),
        })
    }
}

impl Error {
    /// For `map_err`: what was tried on which path.
    pub fn file<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source: source.into(),
        }
    }

    /// A point where a test may want the command to fail.
    ///
    /// # Errors
    /// When it does.
    pub fn at(point: &str) -> Result<()> {
        tepui_isolators::fault::point(point).map_err(Self::file("go on after", Path::new(point)))
    }

    /// A bundle that breaks a rule.
    pub fn bundle(reason: impl Into<String>) -> Self {
        Self::Bundle {
            reason: reason.into(),
        }
    }

    /// A command that cannot be carried out now, or so.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused(reason.into())
    }
}
