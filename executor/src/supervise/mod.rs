//! Containers as the executor's loop sees them: started, ended, and what becomes of them.

pub mod request;
pub mod supervisor;

use tepui_isolators::LimitEvent;

/// Everything that runs containers for the executor, each under a key of the caller's.
///
/// A container that was launched ends with exactly one of `LaunchFailed`, `Aborted` and `Exited`, once nothing of it
/// is left; `Running` comes at most once, before `Exited`.
pub trait Containers {
    /// All that is needed to launch one.
    type Request;

    /// Starts one.
    fn launch(&mut self, key: &str, request: Self::Request);

    /// Sends the workload its stop signal. While the image is being pulled it aborts, which ends in `Aborted`.
    fn terminate(&mut self, key: &str);

    /// SIGKILLs everything in it.
    fn destroy(&mut self, key: &str);

    /// What happened next, and in which container. It pends while there is nothing, and may be dropped at any await
    /// without an event being lost.
    fn next_event(&mut self) -> impl Future<Output = (String, ContainerEvent)>;
}

/// What happens to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// The workload was executed.
    Running {
        /// Of its first process, on the host.
        pid: u32,
    },
    /// There is no container.
    LaunchFailed {
        /// For the scheduler's eyes: what was tried, and what to do.
        message: String,
    },
    /// `terminate` came before the workload did.
    Aborted,
    /// It is over and nothing is left of it.
    Exited {
        /// As from wait(2).
        status: i32,
        /// What was hit before it ended.
        limit: Option<LimitEvent>,
    },
}
