//! The harness of tepui's tests: a small real image, a registry, a Mesos master and agent, and a look at what is left.
//!
//! Every test stands on a `Ground` of its own: a directory, a cgroup parent and a name that all it starts carries, so
//! that tests run side by side and each can prove that it left nothing behind. The cases are in `tests/tests/`.

pub mod attack;
pub mod binary;
pub mod bundle;
pub mod cluster;
pub mod containerd;
pub mod faults;
pub mod ground;
pub mod host;
pub mod image;
pub mod job;
pub mod output;
pub mod podman;
pub mod registry;
pub mod requires;
pub mod results;
pub mod scheduler;
pub mod tarball;
pub mod wait;

pub use bundle::{Bundle, Runtime};
pub use cluster::{Cluster, Launcher};
pub use containerd::Containerd;
pub use ground::Ground;
pub use image::Image;
pub use job::Task;
pub use podman::Podman;
pub use registry::Registry;
pub use scheduler::{Event, Scheduler};
