//! What a runtime without our defences does: the controls of the tests of attacks. Each is called where a defence is
//! switched off, which no installed program can do.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::place::c_string;
use crate::launch::step::Create;
use crate::launch::sys;

/// A path of the container from the working directory, which until the pivot is where the new root is.
fn from_here(path: &CStr) -> &CStr {
    let slashes = path.to_bytes().iter().take_while(|byte| **byte == b'/');
    let slashes = slashes.count();
    match &path[slashes..] {
        path if path.is_empty() => c".",
        path => path,
    }
}

/// Opens a path wherever its links lead.
pub(super) fn open(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(from_here(path), flags, Mode::empty())
}

/// Makes the container's `/dev/null` a standard stream, whatever it is.
pub(super) fn open_stream(number: i32) -> Result<(), Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let stream = rustix::fs::open(c"/dev/null", flags, Mode::empty())?;
    sys::duplicate_to(stream.as_fd(), number)
}

/// Opens a path wherever its links lead, and makes what is missing there.
pub(super) fn open_or_make(path: &CStr, create: Create) -> Result<OwnedFd, Errno> {
    let bytes = from_here(path).to_bytes();
    let ends = (1..=bytes.len()).filter(|end| bytes.get(*end).is_none_or(|byte| *byte == b'/'));
    for end in ends {
        let mut prefix = [0; libc::PATH_MAX as usize];
        let prefix = c_string(&mut prefix, &bytes[..end])?;
        if end == bytes.len() && create == Create::File {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::open(prefix, flags, Mode::from_raw_mode(0o644)).map(drop)?;
            continue;
        }
        match rustix::fs::mkdirat(CWD, prefix, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    open(path)
}
