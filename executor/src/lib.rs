//! tepui: a container executor for Apache Mesos agents.
//!
//! A task becomes a container in five steps: its description becomes an image reference and a `Declaration` (`task`,
//! `spec`); the image is pulled and unpacked (`tepui_oci`); each isolator says what the launch must do
//! (`tepui_isolators`); the launcher process clones and executes the plan (`launcher`, `launch`); its end comes back as
//! an event (`supervise`) and goes out as a status update (`core`, `driver`, `agent`).

pub mod agent;
pub mod beneath;
pub mod commands;
pub mod container;
pub mod core;
pub mod driver;
pub mod init;
pub mod launch;
pub mod launcher;
pub mod local_agent;
pub mod pidfd;
pub mod report;
pub mod runtime;
pub mod seal;
pub mod settings;
pub mod spec;
pub mod supervise;
pub mod task;
