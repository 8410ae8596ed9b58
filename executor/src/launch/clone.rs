//! The one place that clones: directly, or through a helper that enters existing namespaces first.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::LinuxNamespaceType;
use rustix::io::Errno;

use super::error::{Error, Result};
use super::step::Step;
use super::{child, sys};

/// Clones the process that carries out `steps`, with new namespaces by `flags`, in the cgroup v2 directory `cgroup`.
///
/// `joins` are entered first. A process that is in a new user namespace already may not enter one that the host made
/// (setns(2): EPERM), and this process stays where it is: so a short-lived helper enters them and clones a sibling of its
/// own (CLONE_PARENT).
///
/// # Errors
/// When the kernel refuses the clone or a namespace.
pub(super) fn clone_container(
    steps: &[Step],
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    joins: &[(LinuxNamespaceType, OwnedFd)],
    ours: BorrowedFd<'_>,
    theirs: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let clone_error = |errno: Errno| Error::Clone {
        source: errno.into(),
    };
    if joins.is_empty() {
        return match sys::clone_process(flags, cgroup).map_err(clone_error)? {
            sys::Cloned::Child => run_child(steps, ours, theirs),
            sys::Cloned::Parent { pidfd } => Ok(pidfd),
        };
    }
    let (read, write) = rustix::pipe::pipe_with(
        rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
    )
    .map_err(clone_error)?;
    let helper = match sys::clone_helper().map_err(clone_error)? {
        sys::Cloned::Parent { pidfd } => pidfd,
        sys::Cloned::Child => {
            let answer = match enter_all(joins) {
                Err((index, errno)) => [-2, index as i32, errno.raw_os_error()],
                Ok(()) => match sys::clone_sibling(flags, cgroup) {
                    Ok(sys::Sibling::Child) => run_child(steps, ours, theirs),
                    Ok(sys::Sibling::Helper { pidfd }) => [pidfd, 0, 0],
                    Err(errno) => [-1, 0, errno.raw_os_error()],
                },
            };
            let mut bytes = [0u8; 12];
            for (place, number) in bytes.chunks_exact_mut(4).zip(answer) {
                place.copy_from_slice(&number.to_ne_bytes());
            }
            // Nobody is left to tell when this fails too: the parent then reads end-of-file.
            let _ = rustix::io::write(&write, &bytes);
            sys::exit_now(0)
        }
    };
    let waited = rustix::io::retry_on_intr(|| {
        let options = rustix::process::WaitIdOptions::EXITED;
        rustix::process::waitid(rustix::process::WaitId::PidFd(helper.as_fd()), options)
    });
    waited.map_err(clone_error)?;
    let mut bytes = [0u8; 12];
    // It has ended, so the answer is there or never comes (EAGAIN).
    match rustix::io::read(&read, &mut bytes) {
        Ok(length) if length == bytes.len() => {}
        _ => return Err(Error::Died),
    }
    let number = |index: usize| {
        let part = &bytes[index * 4..][..4];
        i32::from_ne_bytes([part[0], part[1], part[2], part[3]])
    };
    match number(0) {
        -1 => Err(clone_error(Errno::from_raw_os_error(number(2)))),
        -2 => Err(Error::Join {
            kind: joins
                .get(number(1) as usize)
                .map(|(kind, _)| kind.to_string())
                .unwrap_or_default(),
            source: std::io::Error::from_raw_os_error(number(2)),
        }),
        // The helper shared our table of descriptors.
        pidfd => Ok(sys::adopt_descriptor(pidfd)),
    }
}

fn run_child(steps: &[Step], ours: BorrowedFd<'_>, theirs: BorrowedFd<'_>) -> ! {
    // Else the child would hold our end open itself and never read end-of-file. It cannot fail.
    let _ = sys::close_in_child(ours);
    child::run(steps, theirs)
}

/// Enters all of `joins`. Those that this process may not enter yet wait until the user namespace that owns them is
/// entered; the mount namespace is last, since it changes the root. Nothing here allocates.
fn enter_all(joins: &[(LinuxNamespaceType, OwnedFd)]) -> Result<(), (usize, Errno)> {
    let is_mount = |kind: &LinuxNamespaceType| *kind == LinuxNamespaceType::Mount;
    let is_user = |kind: &LinuxNamespaceType| *kind == LinuxNamespaceType::User;
    let mut postponed = 0u64;
    for (index, (kind, namespace)) in joins.iter().enumerate() {
        if is_user(kind) || is_mount(kind) {
            continue;
        }
        match sys::enter_namespace(namespace.as_fd()) {
            Err(Errno::PERM) => postponed |= 1 << index,
            other => other.map_err(|errno| (index, errno))?,
        }
    }
    for (index, (kind, namespace)) in joins.iter().enumerate() {
        if is_user(kind) {
            sys::enter_namespace(namespace.as_fd()).map_err(|errno| (index, errno))?;
        }
    }
    for (index, (kind, namespace)) in joins.iter().enumerate() {
        if postponed & (1 << index) != 0 || is_mount(kind) {
            sys::enter_namespace(namespace.as_fd()).map_err(|errno| (index, errno))?;
        }
    }
    Ok(())
}
