//! Files that no container can write through `/proc/PID/exe` (CVE-2019-5736).
//!
//! A process that enters a container, or whose image is seen from inside one, runs from a sealed copy: a memfd with all
//! seals (memfd_create(2)), or where `vm.memfd_noexec=2` forbids executing those, a file on a detached read-only tmpfs
//! that no path leads to. Short-lived commands use a detached read-only view of their own file, which costs no copy.

use std::ffi::{CStr, CString, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use tepui_isolators::undefended;

use crate::launch::sys::{self, StringArray};

/// How a program protects its own file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A copy in memory: for processes that live long, so that the file on disk can be replaced meanwhile.
    Copy,
    /// A read-only view of the file: for short-lived commands.
    View,
}

/// The program could not protect its own file.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not protect the program's own file from containers ({action}); run tepui as root on Linux 5.12 or later"
)]
pub struct SealError {
    action: &'static str,
    source: io::Error,
}

/// Makes sure that this process runs from a protected file, by executing itself once more where it does not.
///
/// # Errors
/// When neither way works here. It never returns with an unprotected process.
pub fn protect_own_program(method: Method) -> Result<(), SealError> {
    let failed = |action| {
        move |errno: Errno| SealError {
            action,
            source: errno.into(),
        }
    };
    if undefended("sealed-program") || is_protected().map_err(failed("look at /proc/self/exe"))? {
        return Ok(());
    }
    let program = match method {
        Method::Copy => {
            let mut file = std::fs::File::open("/proc/self/exe").map_err(|source| SealError {
                action: "open /proc/self/exe",
                source,
            })?;
            sealed_file(c"tepui", &mut file).map_err(|source| SealError {
                action: "copy it",
                source,
            })?
        }
        Method::View => readonly_view().map_err(failed("make a read-only view"))?,
    };
    let c_string =
        |text: OsString| CString::new(text.into_vec()).expect("the kernel ends arguments with NUL");
    let arguments = StringArray::new(std::env::args_os().map(c_string).collect());
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        c_string(name)
    });
    let environment = StringArray::new(environment.collect());
    let errno = sys::execute_descriptor(program.as_fd(), &arguments, &environment);
    Err(SealError {
        action: "execute the protected file",
        source: errno.into(),
    })
}

/// The running program's own file, for another process of ours.
///
/// # Errors
/// When /proc is not there.
pub fn own_program() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        c"/proc/self/exe",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn is_protected() -> Result<bool, Errno> {
    let mount = rustix::fs::statvfs(c"/proc/self/exe")?;
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    let file = rustix::fs::open(
        c"/proc/self/exe",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

fn readonly_view() -> Result<OwnedFd, Errno> {
    let path = std::fs::read_link("/proc/self/exe").map_err(|_| Errno::NOENT)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = rustix::mount::open_tree(CWD, &path, flags)?;
    sys::set_mount_attributes(view.as_fd(), libc::MOUNT_ATTR_RDONLY, false)?;
    Ok(view)
}

/// A copy of `content` that nobody can change, open for execution.
///
/// # Errors
/// When neither a sealed memfd nor a detached tmpfs can be made.
pub fn sealed_file(name: &CStr, content: &mut dyn Read) -> io::Result<OwnedFd> {
    // Linux before 6.3 does not know MFD_EXEC.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    };
    match memfd {
        Ok(memfd) => seal(memfd, content),
        // vm.memfd_noexec=2
        Err(Errno::ACCESS | Errno::PERM) => detached_file(name, content),
        Err(errno) => Err(errno.into()),
    }
}

fn seal(memfd: OwnedFd, content: &mut dyn Read) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(memfd);
    io::copy(content, &mut file)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(reopen_readonly(file.as_fd())?)
}

/// A descriptor open for writing cannot be executed (ETXTBSY).
fn reopen_readonly(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn detached_file(name: &CStr, content: &mut dyn Read) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let tree = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&tree, name, flags, Mode::from_raw_mode(0o555))?;
    let mut file = std::fs::File::from(file);
    io::copy(content, &mut file)?;
    file.flush()?;
    drop(file);
    sys::set_mount_attributes(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, false)?;
    Ok(rustix::fs::openat(
        &tree,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_sealed_file_cannot_be_opened_for_writing_and_changed() {
        let file = sealed_file(c"test", &mut &b"#!/bin/true\n"[..]).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let changed = std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut f| f.write_all(b"x"));
        assert!(changed.is_err());
    }
}
