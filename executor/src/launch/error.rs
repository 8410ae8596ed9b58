//! What can go wrong in a launch.

use std::io;
use std::path::PathBuf;

use super::report::Record;

/// The result of everything fallible here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A launch failed; nothing of it is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field that no container can be without.
    #[error("the declaration has no {field}")]
    Missing {
        /// As runtime-spec names it.
        field: &'static str,
    },
    /// A text that cannot be passed to the kernel.
    #[error("{text:?} holds a NUL byte")]
    NulByte {
        /// The text.
        text: String,
    },
    /// A source of the launch could not be opened.
    #[error("could not open {}", path.display())]
    Open {
        /// What.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// `/dev` could not be made.
    #[error("could not make the container's device nodes")]
    Devices {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The host's null device is something else.
    #[error(
        "/dev/null of the host is not the null device (character 1:3); repair it, it is what hides masked files"
    )]
    NotTheNullDevice,
    /// A mount could not be prepared.
    #[error("error mounting {what:?} to rootfs at {target:?}{rule}")]
    Mount {
        /// Its source.
        what: String,
        /// Its place in the container.
        target: String,
        /// What it broke, with its punctuation; empty when the kernel's answer says it.
        rule: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The overlay's options do not fit one page.
    #[error(
        "the image has {count} layers; their mount options are {length} bytes, and the kernel takes 4095"
    )]
    TooManyLayers {
        /// Layers.
        count: usize,
        /// Length of the options in bytes.
        length: usize,
    },
    /// A seccomp profile that denies what is still to be done after it is loaded.
    #[error(
        "the seccomp profile does not allow {calls}, which the container's start still needs; allow them, or start with no_new_privs"
    )]
    ProfileTooStrict {
        /// Names, comma separated.
        calls: String,
    },
    /// The agent of a seccomp filter with `SCMP_ACT_NOTIFY` did not get its listener.
    #[error("failed to {action} seccomp agent {}", path.display())]
    Agent {
        /// What was tried.
        action: &'static str,
        /// Where it listens.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused the clone.
    #[error("could not clone the container's process")]
    Clone {
        /// The kernel's answer.
        source: io::Error,
    },
    /// A namespace that could not be entered.
    #[error("could not enter the {kind} namespace")]
    Join {
        /// As runtime-spec names it.
        kind: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An id map that could not be written.
    #[error("could not write the id map {}", path.display())]
    IdMap {
        /// The file.
        path: PathBuf,
        /// The answer of the kernel or of newuidmap(1).
        source: io::Error,
    },
    /// The clocks of a time namespace could not be set.
    #[error("could not set the offsets of the container's clocks in {}", path.display())]
    Clocks {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A hook inside the container failed.
    #[error("error running {kind} hook #{number}: {reason}")]
    Hook {
        /// As runtime-spec names it.
        kind: &'static str,
        /// Its place among those of its kind, from 0.
        number: u16,
        /// How it ended.
        reason: String,
    },
    /// What the caller had to do while the container waited.
    #[error(transparent)]
    Caller(Box<dyn std::error::Error + Send + Sync>),
    /// The kernel refused how early it is to kill the container.
    #[error("could not set oom_score_adj to {value} (lowering it takes CAP_SYS_RESOURCE)")]
    OomScore {
        /// The value.
        value: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step in the child failed.
    #[error("could not {step} (step {index} of {count})")]
    Step {
        /// The step in words.
        step: String,
        /// From 1.
        index: usize,
        /// All steps.
        count: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The workload could not be executed: exit status 126 or 127.
    #[error("Failed to execute '{program}'")]
    Execute {
        /// The program.
        program: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The child died without a word.
    #[error(
        "the container's process died while it was set up (killed, or out of memory: is the memory limit too small?)"
    )]
    Died,
    /// An isolator refused.
    #[error(transparent)]
    Isolator(#[from] tepui_isolators::Error),
    /// Talking to the child failed.
    #[error("could not {action}")]
    Channel {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// A hook that failed, from its record's fields.
    pub fn hook(at_start: bool, number: u16, status: u16) -> Self {
        let signal = i32::from(status & 0x7f);
        let reason = match (status, signal) {
            (Record::TIMED_OUT, _) => "it took too long and was killed".to_owned(),
            (_, 0) => format!("exit status {}", status >> 8),
            // The one that a seccomp profile causes.
            (_, libc::SIGSYS) => "signal: bad system call".to_owned(),
            _ => format!("signal: {signal}"),
        };
        Self::Hook {
            kind: match at_start {
                true => "startContainer",
                false => "createContainer",
            },
            number,
            reason,
        }
    }

    /// The exit status that `docker run` and shells use for this failure.
    pub fn exit_status(&self) -> i32 {
        match self {
            Self::Execute { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Execute { .. } => 126,
            _ => 125,
        }
    }
}
