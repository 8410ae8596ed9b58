//! `/dev` as a detached tmpfs with its nodes: made here since mknod(2) is refused inside a strict devices cgroup and in a
//! user namespace.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::{Errno, Result};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use tepui_isolators::launch_info::{DeviceNode, IdMaps};

type FilesystemOptions = Vec<(CString, Option<CString>)>;

/// The tmpfs. Everything in it belongs to whom `maps` map its owner to. For a process without a umask.
pub(super) fn tree(
    nodes: &[DeviceNode],
    links: &[(CString, CString)],
    directories: &[CString],
    options: FilesystemOptions,
    maps: Option<&IdMaps>,
) -> Result<OwnedFd> {
    let owner = Owner { maps };
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"source", c"tmpfs")?;
    let options = with_mode(options);
    let names_owner = options
        .iter()
        .any(|(key, _)| matches!(key.to_bytes(), b"uid" | b"gid"));
    for (key, value) in options {
        match value {
            Some(value) => {
                let value = owner.option(&key, value)?;
                rustix::mount::fsconfig_set_string(&context, key.as_c_str(), value.as_c_str())?;
            }
            None => rustix::mount::fsconfig_set_flag(&context, key.as_c_str())?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let tree = rustix::mount::fsmount(&context, flags, MountAttrFlags::empty())?;
    if !names_owner {
        owner.give(tree.as_fd(), c".", 0, 0)?;
    }
    for directory in directories {
        make_directory(tree.as_fd(), directory, &owner)?;
    }
    for node in nodes {
        let (above, name) = split(&node.path);
        let made = match above.is_empty() {
            true => None,
            false => Some(make_directories(tree.as_fd(), &above, &owner)?),
        };
        let parent = made.as_ref().unwrap_or(&tree);
        let device = rustix::fs::makedev(node.major, node.minor);
        let (kind, mode) = (
            FileType::from_raw_mode(node.mode),
            Mode::from_raw_mode(node.mode & 0o7777),
        );
        rustix::fs::mknodat(parent, &name, kind, mode, device)?;
        owner.give(parent.as_fd(), &name, node.uid, node.gid)?;
        // chown(2) takes these away.
        if mode.intersects(Mode::SUID | Mode::SGID) {
            rustix::fs::chmodat(parent, &name, mode, AtFlags::empty())?;
        }
    }
    for (name, points_at) in links {
        rustix::fs::symlinkat(points_at.as_c_str(), &tree, name.as_c_str())?;
        owner.give(tree.as_fd(), name, 0, 0)?;
    }
    Ok(tree)
}

/// The options with a mode: the default of a tmpfs lets everybody write.
pub(super) fn with_mode(mut options: FilesystemOptions) -> FilesystemOptions {
    if !options.iter().any(|(key, _)| key.as_c_str() == c"mode") {
        options.push((c"mode".into(), Some(c"755".into())));
    }
    options
}

/// Nodes with absolute paths in place of paths below `directory`.
pub(super) fn below(directory: &CStr, nodes: Vec<DeviceNode>) -> Vec<DeviceNode> {
    let absolute = |node: DeviceNode| DeviceNode {
        path: join(directory, &node.path),
        ..node
    };
    nodes.into_iter().map(absolute).collect()
}

/// The same for links.
pub(super) fn links_below(
    directory: &CStr,
    links: Vec<(CString, CString)>,
) -> Vec<(CString, CString)> {
    let absolute = |(name, to): (CString, CString)| (join(directory, &name), to);
    links.into_iter().map(absolute).collect()
}

fn join(directory: &CStr, name: &CStr) -> CString {
    let path = [directory.to_bytes(), b"/", name.to_bytes()].concat();
    CString::new(path).expect("both parts come from C strings")
}

struct Owner<'a> {
    maps: Option<&'a IdMaps>,
}

impl Owner<'_> {
    fn user(&self, id: u32) -> Result<u32> {
        let mapped = self.maps.map_or(Some(id), |maps| maps.user(id));
        mapped.ok_or(Errno::OVERFLOW)
    }

    fn group(&self, id: u32) -> Result<u32> {
        let mapped = self.maps.map_or(Some(id), |maps| maps.group(id));
        mapped.ok_or(Errno::OVERFLOW)
    }

    /// Gives a file to a user of the container.
    fn give(&self, directory: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (self.user(uid)?, self.group(gid)?);
        // As it was made.
        if self.maps.is_none() && (uid, gid) == (0, 0) {
            return Ok(());
        }
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The value of `uid=` and `gid=` as we know the ids.
    fn option(&self, key: &CStr, value: CString) -> Result<CString> {
        let id = || value.to_str().ok().and_then(|text| text.parse().ok());
        let mapped = match (key.to_bytes(), id()) {
            (b"uid", Some(id)) => self.user(id)?,
            (b"gid", Some(id)) => self.group(id)?,
            _ => return Ok(value),
        };
        Ok(CString::new(mapped.to_string()).expect("digits hold no NUL byte"))
    }
}

fn split(path: &CStr) -> (Vec<CString>, CString) {
    let parts = path.to_bytes().split(|byte| *byte == b'/');
    let part = |part: &[u8]| CString::new(part).expect("it is part of a C string");
    let mut parts: Vec<_> = parts.filter(|part| !part.is_empty()).map(part).collect();
    let name = parts.pop().unwrap_or_default();
    (parts, name)
}

fn make_directories(tree: BorrowedFd<'_>, parts: &[CString], owner: &Owner<'_>) -> Result<OwnedFd> {
    let mut directory = open_directory(tree, c".")?;
    for part in parts {
        make_directory(directory.as_fd(), part, owner)?;
        directory = open_directory(directory.as_fd(), part)?;
    }
    Ok(directory)
}

fn make_directory(directory: BorrowedFd<'_>, name: &CStr, owner: &Owner<'_>) -> Result<()> {
    let mode = Mode::from_raw_mode(0o755);
    match rustix::fs::mkdirat(directory, name, mode) {
        Err(Errno::EXIST) => return Ok(()),
        other => other?,
    }
    owner.give(directory, name, 0, 0)
}

/// While it lives, what this process makes has the mode that is asked for.
pub(super) struct WithoutUmask(Mode);

impl WithoutUmask {
    pub(super) fn new() -> Self {
        Self(rustix::process::umask(Mode::empty()))
    }
}

impl Drop for WithoutUmask {
    fn drop(&mut self) {
        rustix::process::umask(self.0);
    }
}

fn open_directory(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::fs::{major, minor, statat};
    use tepui_isolators::launch_info::IdMap;

    #[test]
    fn everything_belongs_to_root_of_the_container() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("REQUIRE_ALL").is_none());
            return;
        }
        let map = |outside| {
            vec![IdMap {
                inside: 0,
                outside,
                count: 10,
            }]
        };
        let maps = IdMaps {
            users: map(100_000),
            groups: map(200_000),
        };
        let node = |path: &CStr, uid| DeviceNode {
            path: path.to_owned(),
            mode: libc::S_IFCHR | 0o620,
            major: 10,
            minor: 200,
            uid,
            gid: 3,
        };
        let _as_given = WithoutUmask::new();
        let make = |nodes: &[DeviceNode], options| {
            let links = [(c"fd".to_owned(), c"/proc/self/fd".to_owned())];
            tree(nodes, &links, &[c"pts".to_owned()], options, Some(&maps))
        };
        let nodes = [node(c"net/tun", 2), node(c"net/tap", 0)];
        let made = make(&nodes, Vec::new()).unwrap();
        let of = |path: &CStr| statat(&made, path, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        for path in [c".", c"pts", c"net", c"fd"] {
            assert_eq!((of(path).st_uid, of(path).st_gid), (100_000, 200_000));
        }
        assert_eq!(of(c".").st_mode & 0o7777, 0o755);
        let tun = of(c"net/tun");
        assert_eq!((tun.st_uid, tun.st_gid), (100_002, 200_003));
        assert_eq!(tun.st_mode, libc::S_IFCHR | 0o620);
        assert_eq!((major(tun.st_rdev), minor(tun.st_rdev)), (10, 200));
        // Options of the file system name ids as the container knows them.
        let options = vec![(c"uid".to_owned(), Some(c"5".to_owned()))];
        let made = make(&[], options).unwrap();
        let root = statat(&made, c".", AtFlags::empty()).unwrap();
        assert_eq!(root.st_uid, 100_005);
        assert_eq!(
            make(&[node(c"x", 10)], Vec::new()).unwrap_err(),
            Errno::OVERFLOW
        );
    }
}
