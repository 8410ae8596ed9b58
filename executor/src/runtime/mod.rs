//! `tepui-runtime`: the OCI runtime's command line. One file for each command, over the same launch and isolators as a
//! task of an agent.
//!
//! Each invocation is a short-lived process of one thread. What outlives it stands in the state directory (`store`).

pub mod clock;
mod freezer;
mod lock;
pub mod state;
pub mod store;
