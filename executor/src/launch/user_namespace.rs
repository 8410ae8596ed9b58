//! User namespaces that exist only to be referred to: as the id map of a mount, and as the owner of a mount namespace in
//! which the host's mounts are locked. user_namespaces(7), mount_namespaces(7).
//!
//! Each is made by a helper process that does nothing but wait until it is looked at.

use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{WaitId, WaitIdOptions};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use tepui_isolators::launch_info::{IdMap, IdMaps};

use super::error::{Error, Result};
use super::process::host_pid;
use super::sys;

/// A user namespace with these maps.
///
/// # Errors
/// When it cannot be made, or the kernel refuses the maps.
pub fn with_maps(maps: &IdMaps) -> Result<OwnedFd> {
    let helper = Helper::start(libc::CLONE_NEWUSER as u64, None)?;
    for (file, lines) in [("uid_map", &maps.users), ("gid_map", &maps.groups)] {
        let mut text = String::new();
        for map in lines {
            let _infallible = writeln!(text, "{} {} {}", map.inside, map.outside, map.count);
        }
        // The kernel takes a map in one write only.
        std::fs::write(helper.proc_path(file), text)
            .map_err(failed("write the id map of a mount"))?;
    }
    helper.open("ns/user")
}

/// The maps of an existing user namespace, with ids outside as we know them.
///
/// # Errors
/// When it cannot be entered, or its maps cannot be read.
pub fn maps_of(namespace: &OwnedFd) -> Result<IdMaps> {
    let helper = Helper::start(0, Some(namespace))?;
    let read = |file: &str| {
        let text = std::fs::read_to_string(helper.proc_path(file))
            .map_err(failed("read the maps of a user namespace"))?;
        Ok::<_, Error>(text.lines().filter_map(line).collect())
    };
    Ok(IdMaps {
        users: read("uid_map")?,
        groups: read("gid_map")?,
    })
}

fn line(line: &str) -> Option<IdMap> {
    let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
    Some(IdMap {
        inside: numbers.next()??,
        outside: numbers.next()??,
        count: numbers.next()??,
    })
}

/// A copy of our mount namespace that belongs to a user namespace below ours. A tree that is opened in it has its flags
/// (`ro`, `nosuid` …) locked, so that root of a container cannot clear what the host has set.
#[derive(Debug)]
pub struct LockedMounts {
    helper: Helper,
    own: OwnedFd,
    root: OwnedFd,
    directory: OwnedFd,
}

impl LockedMounts {
    /// Makes the copy.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        let flags = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as u64;
        let open = |path: &str, flags: OFlags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
                Error::Open {
                    path: path.into(),
                    source: errno.into(),
                }
            })
        };
        Ok(Self {
            helper: Helper::start(flags, None)?,
            own: open("/proc/self/ns/mnt", OFlags::RDONLY)?,
            root: open("/", OFlags::PATH | OFlags::DIRECTORY)?,
            directory: open(".", OFlags::PATH | OFlags::DIRECTORY)?,
        })
    }

    /// Runs `open` in it. This process must have one thread only.
    ///
    /// # Errors
    /// What `open` says, or when the namespace cannot be entered.
    pub fn within<T>(&self, open: impl FnOnce() -> Result<T>) -> Result<T> {
        let mount = ThreadNameSpaceType::MOUNT;
        move_into_thread_name_spaces(self.helper.pidfd.as_fd(), mount)
            .map_err(|errno| failed("enter a mount namespace")(errno.into()))?;
        let result = open();
        // setns(2) leaves one at the root of the namespace.
        move_into_thread_name_spaces(self.own.as_fd(), mount)
            .and_then(|()| rustix::process::fchdir(&self.root))
            .and_then(|()| rustix::process::chroot(c"."))
            .and_then(|()| rustix::process::fchdir(&self.directory))
            .map_err(|errno| failed("come back from a mount namespace")(errno.into()))?;
        result
    }
}

fn failed(action: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Channel { action, source }
}

/// A process that waits for the end of a pipe.
#[derive(Debug)]
struct Helper {
    pidfd: OwnedFd,
    pid: u32,
    /// Its end is the process' end, also when we die.
    pipe: Option<OwnedFd>,
}

impl Helper {
    /// Starts one with new namespaces, or in an existing user namespace.
    fn start(flags: u64, join: Option<&OwnedFd>) -> Result<Self> {
        let action = "make a user namespace";
        let errno = |errno: Errno| failed(action)(errno.into());
        let (theirs, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(errno)?;
        let (ready, told) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(errno)?;
        let mask = sys::block_signals().map_err(errno)?;
        let cloned = sys::clone_process(flags, None);
        let cloned = match cloned {
            Ok(sys::Cloned::Child) => {
                // Else it would hold the pipe open itself. It cannot fail.
                let _ = sys::close_in_child(pipe.as_fd());
                let user = ThreadNameSpaceType::USER;
                let joined = join.map_or(Ok(()), |namespace| {
                    move_into_thread_name_spaces(namespace.as_fd(), user)
                });
                if joined.is_ok() {
                    let _ = rustix::io::write(&told, b"!");
                    let _ = rustix::io::read(&theirs, &mut [0u8]);
                }
                sys::exit_now(0)
            }
            Ok(sys::Cloned::Parent { pidfd }) => Ok(pidfd),
            Err(refused) => Err(errno(refused)),
        };
        sys::restore_signals(mask).map_err(errno)?;
        drop(told);
        let mut helper = Self {
            pidfd: cloned?,
            pid: 0,
            pipe: Some(pipe),
        };
        helper.pid = host_pid(&helper.pidfd).map_err(failed(action))?;
        match rustix::io::read(&ready, &mut [0u8]).map_err(errno)? {
            0 => Err(errno(Errno::PERM)),
            _ => Ok(helper),
        }
    }

    fn proc_path(&self, name: &str) -> std::path::PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(name)
    }

    fn open(&self, name: &str) -> Result<OwnedFd> {
        let path = self.proc_path(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, &path, flags, Mode::empty()).map_err(|source| Error::Open {
            path,
            source: source.into(),
        })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let id = WaitId::PidFd(self.pidfd.as_fd());
        // Nothing keeps it; a failure means that it is gone.
        while let Err(Errno::INTR) = rustix::process::waitid(id.clone(), WaitIdOptions::EXITED) {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::launch::tree;

    fn is_root() -> bool {
        let is_root = rustix::process::geteuid().is_root();
        assert!(is_root || std::env::var_os("REQUIRE_ALL").is_none());
        is_root
    }

    #[test]
    fn the_maps_of_a_namespace_are_those_it_was_made_with() {
        if !is_root() {
            return;
        }
        let map = |inside, outside, count| IdMap {
            inside,
            outside,
            count,
        };
        let maps = IdMaps {
            users: vec![map(0, 100_000, 10), map(100, 7, 1)],
            groups: vec![map(0, 200_000, 65_536)],
        };
        assert_eq!(maps_of(&with_maps(&maps).unwrap()).unwrap(), maps);
        let overlapping = IdMaps {
            users: vec![map(0, 0, 10), map(5, 20, 10)],
            ..maps
        };
        assert!(with_maps(&overlapping).is_err());
    }

    #[test]
    fn flags_of_a_tree_that_is_opened_there_cannot_be_cleared() {
        if !is_root() {
            return;
        }
        // setns(2) wants a thread that shares its directories with no other.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
        let here = std::env::current_dir().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let path = std::ffi::CString::new(path).unwrap();
        let flags = rustix::mount::MountFlags::NOSUID;
        rustix::mount::mount(c"none", &path, c"tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
        let locked = LockedMounts::new().unwrap();
        let open = || tree::open(&path, false, false).unwrap();
        let (free, tree) = (open(), locked.within(|| Ok(open())).unwrap());
        assert_eq!(std::env::current_dir().unwrap(), here);
        let nosuid = libc::MOUNT_ATTR_NOSUID;
        for tree in [&free, &tree] {
            let flags = rustix::fs::fstatvfs(tree).unwrap().f_flag;
            assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOSUID));
        }
        let clear = |tree: &OwnedFd| sys::change_mount_attributes(tree.as_fd(), 0, nosuid, false);
        assert_eq!(clear(&tree), Err(Errno::PERM));
        assert_eq!(clear(&free), Ok(()));
        // Those that nobody asked for stay, and others can be added.
        let attributes = |set, clear, reset| tree::Changes {
            attributes: tepui_isolators::launch_info::MountAttributes { set, clear, reset },
            ..Default::default()
        };
        let read_only = libc::MOUNT_ATTR_RDONLY;
        tree::change(tree.as_fd(), &attributes(read_only, 0, nosuid)).unwrap();
        let flags = rustix::fs::fstatvfs(&tree).unwrap().f_flag;
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOSUID));
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        let explicit = attributes(read_only, nosuid, 0);
        assert_eq!(tree::change(tree.as_fd(), &explicit), Err(Errno::PERM));
    }
}
