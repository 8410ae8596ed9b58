//! Boundaries and limits around a container: one file each, in both directions.
//!
//! A `Declaration` says what is wanted. Each `Isolator` turns its part of it into a `ContainerLaunchInfo`, plain data
//! that a launch carries out, and reads the same part back from the kernel into a `Live`, for any process. `registry`
//! is the table of all isolators under the names that Mesos' `--isolation` flag uses.
//!
//! This crate knows neither Mesos messages nor images, and runs nothing inside a container.

pub mod attribute;
mod bpf;
pub mod cgroups;
pub mod declaration;
pub mod error;
pub mod fault;
pub mod filesystem;
pub mod isolator;
pub mod launch_info;
pub mod linux;
pub mod live;
pub mod namespaces;
pub mod observe;
pub mod posix;
pub mod registry;
mod sys;
pub mod undefended;

pub use attribute::Attribute;
pub use declaration::{CgroupPlacement, ContainerId, Declaration, Overlay, RootFilesystem};
pub use error::{Error, Result};
pub use isolator::{Isolator, LimitEvent, Watch};
pub use launch_info::ContainerLaunchInfo;
pub use live::{Finding, Live, Target, Verdict};
pub use undefended::undefended;
