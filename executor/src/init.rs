//! The init of tasks: a tiny program that this one carries and executes as process 1 of a container.
//!
//! Its source is `executor/init/main.rs`; it is executed from a sealed descriptor of its own, so that what a container
//! sees as `/proc/1/exe` is these few KiB and not the program on the host.

use std::io;
use std::os::fd::OwnedFd;

/// The program, an ELF file without a library.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tepui-init"));

/// A sealed copy of it, ready for execveat(2).
///
/// # Errors
/// When no sealed file can be made.
pub fn sealed() -> io::Result<OwnedFd> {
    crate::seal::sealed_file(c"tepui-init", &mut &PROGRAM[..])
}
