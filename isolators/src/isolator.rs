//! The interface of an isolator, after Mesos' `mesos/slave/isolator.hpp`.

use std::os::fd::BorrowedFd;

use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target};

/// One limit or boundary around a container.
///
/// Isolators hold no state: what they acquire on the host has a name derived from the container's id and the
/// declaration, so that another process can release it after a crash. `prepare` runs in configured order before the
/// clone, `cleanup` in reverse order once the last process is gone. `cleanup` also follows a failed `prepare`, and
/// may name an id this isolator never saw.
pub trait Isolator: Send + Sync {
    /// What an operator configures, e.g. `cgroups/mem`.
    fn name(&self) -> &'static str;

    /// Acquires host resources and says what the launch must do. Runs nothing in the container.
    ///
    /// # Errors
    /// When the declaration asks for what cannot be honoured, or the host refuses.
    fn prepare(
        &self,
        _id: &ContainerId,
        _declaration: &Declaration,
    ) -> Result<ContainerLaunchInfo> {
        Ok(ContainerLaunchInfo::default())
    }

    /// Something that becomes ready when a limit was hit. Called after `prepare`, before the clone.
    ///
    /// # Errors
    /// When the kernel refuses the notification.
    fn watch(
        &self,
        _id: &ContainerId,
        _declaration: &Declaration,
    ) -> Result<Option<Box<dyn Watch>>> {
        Ok(None)
    }

    /// Reads from the kernel what any process, ours or not, really has of this boundary.
    ///
    /// `declaration` only says which names to look for (masked paths); it never changes what is reported.
    ///
    /// # Errors
    /// When the process is gone or may not be looked at.
    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()>;

    /// Compares this isolator's two halves: one finding for each thing that was declared.
    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding>;

    /// Changes limits of a running container in place, to what `declaration` now says; what it leaves out stays.
    ///
    /// # Errors
    /// When the declaration asks for what cannot be honoured, or the host refuses; the limits before it are written.
    fn update(&self, _id: &ContainerId, _declaration: &Declaration) -> Result<()> {
        Ok(())
    }

    /// Frees what `prepare` acquired; already gone counts as done.
    ///
    /// # Errors
    /// When something is left.
    fn cleanup(&self, _id: &ContainerId, _declaration: &Declaration) -> Result<()> {
        Ok(())
    }
}

/// A limit being watched.
pub trait Watch: Send {
    /// The descriptor to poll.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Whether it reports by `POLLPRI` (kernfs files) and not by `POLLIN` (eventfds).
    fn is_priority(&self) -> bool;

    /// Called when the descriptor is ready. Clears the readiness; `None` is a false alarm.
    ///
    /// # Errors
    /// When the counters cannot be read.
    fn check(&mut self) -> Result<Option<LimitEvent>>;

    /// Called once after the last process is gone and before `cleanup`: whatever happened since the last `check`.
    ///
    /// # Errors
    /// When the counters cannot be read.
    fn at_exit(&mut self) -> Result<Option<LimitEvent>>;
}

/// A limit that was hit.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LimitEvent {
    /// The container's own memory limit made the kernel kill.
    Memory {
        /// The limit in bytes.
        limit: u64,
        /// Highest use in bytes.
        peak: u64,
        /// An extract of `memory.stat`, one `key value` a line.
        statistics: String,
    },
    /// A process of the container was killed because memory ran out above it: its executor's or the node's.
    OutsideMemory {
        /// How many processes.
        killed: u64,
    },
}
