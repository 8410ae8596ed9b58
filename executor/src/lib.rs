//! tepui: a container executor for Apache Mesos agents.
//!
//! A task becomes a container in five steps: its description becomes an image reference and a `Declaration` (`spec`); the
//! image is pulled and unpacked (`tepui_oci`); each isolator says what the launch must do (`tepui_isolators`); the
//! launcher process clones and executes the plan (`launcher`, `launch`); its end comes back as an event.

pub mod container;
pub mod init;
pub mod launch;
pub mod launcher;
pub mod report;
pub mod seal;
pub mod agent;
pub mod commands;
pub mod core;
pub mod driver;
pub mod local_agent;
pub mod settings;
pub mod supervise;
