//! The launcher: a small single-threaded process that starts the containers of one executor and watches them.
//!
//! It is our own program, executed once from its sealed copy as process 1 of a pid namespace of its own. Every
//! container's pid namespace nests in that one, so that the kernel kills every task when the launcher dies, whatever
//! the workload did to escape. The launcher ends when its socket to the executor does.

pub mod handle;
pub mod protocol;
mod serve;

pub use serve::{PROGRAM_NAME, run};

use std::process::ExitCode;

/// The whole life of a launcher process.
pub fn main() -> ExitCode {
    crate::commands::start_log();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the launcher ends");
            ExitCode::FAILURE
        }
    }
}
