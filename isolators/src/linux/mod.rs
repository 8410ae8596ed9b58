//! Rights of a process that Linux alone knows.

pub mod capabilities;
pub mod nnp;
