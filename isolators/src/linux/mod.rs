//! Rights of a process that Linux alone knows: what Mesos groups under `linux/`.

pub mod capabilities;
pub mod nnp;
pub mod seccomp;
pub mod sysctl;
