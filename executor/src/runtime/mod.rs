//! `tepui-runtime`: the OCI runtime's command line. One file for each command, over the same launch and isolators as a
//! task of an agent.
//!
//! Each invocation is a short-lived process of one thread. What outlives it stands in the state directory (`store`).

pub mod arguments;
pub mod bundle;
pub mod clock;
pub mod command_line;
mod console;
pub mod create;
pub mod delete;
pub mod features {
    #![allow(missing_docs)]
    pub const SPEC_VERSION: &str = "1.3.0";
}
mod descriptors;
pub mod error;
pub mod exec;
mod foreground;
mod freezer;
mod home;
mod hooks;
mod lock;
pub mod run;
pub mod start;
pub mod state;
pub mod store;
