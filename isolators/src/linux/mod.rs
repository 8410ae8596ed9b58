//! Rights of a process that Linux alone knows: what Mesos groups under `linux/`.

pub mod capabilities;
pub mod id_list;
pub mod keyring;
pub mod landlock;
pub mod lsm;
pub mod memory_policy;
pub mod nnp;
pub mod oom_score;
pub mod personality;
mod scheduler;
pub mod scheduling;
pub mod seccomp;
pub mod sysctl;
