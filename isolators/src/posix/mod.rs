//! Limits that POSIX knows.

pub mod rlimits;
