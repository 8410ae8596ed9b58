//! `filesystem/linux`: the root file system, the mounts in it, and what is hidden or read-only there.

mod cgroup;
mod compare;
mod devices;
pub mod linux;
pub mod look;
mod mounts;
pub mod options;
pub mod writable;
