//! Unpacked layers seen as one tree, as overlayfs would show them (Documentation/filesystems/overlayfs.rst): upper
//! names hide lower ones, a 0:0 character device is a whiteout, an opaque directory hides what is below it.
//!
//! Nothing here follows a link inside the kernel: every path is opened relative to a layer's directory handle with
//! openat2(2) RESOLVE_NO_SYMLINKS, and links are read and followed by [`View::resolve`], which cannot leave the root.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat};
use rustix::io::Errno;

use super::name::{PATH_LIMIT, Parts};

/// The name of overlayfs' mark of an opaque directory.
pub(crate) const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";

/// Links followed for one name: Linux' own number (path_resolution(7)).
pub(crate) const LINK_LIMIT: usize = 40;

/// Layers, uppermost first.
#[derive(Clone, Default)]
pub(crate) struct View {
    layers: Vec<Arc<OwnedFd>>,
}

/// Something in a view: in which layer, and an O_PATH handle of it.
pub(crate) struct Found {
    pub layer: usize,
    pub handle: OwnedFd,
    pub stat: Stat,
}

impl Found {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }
}

impl View {
    pub fn new(layers: Vec<Arc<OwnedFd>>) -> Self {
        Self { layers }
    }

    /// Adds a layer on top of the others.
    pub fn push_upper(&mut self, layer: Arc<OwnedFd>) {
        self.layers.insert(0, layer);
    }

    /// Hides all layers: what an opaque root does.
    pub fn clear(&mut self) {
        self.layers.clear();
    }

    /// What the merged tree has at this path, whose parents are directories; a link at its end is not followed.
    pub fn lookup(&self, parts: &[OsString]) -> io::Result<Option<Found>> {
        let path = join(parts);
        for (layer, root) in self.layers.iter().enumerate() {
            match open_beneath(root.as_fd(), &path, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(handle) => {
                    let stat = fstat(&handle)?;
                    let found = Found {
                        layer,
                        handle,
                        stat,
                    };
                    return Ok((!is_whiteout(&found.stat)).then_some(found));
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    if hides_lower(root.as_fd(), parts)? {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Follows all links of a path inside the merged root; the result has none, and `..` at the root stays there.
    pub fn resolve(&self, path: &Path) -> io::Result<Option<(Parts, Found)>> {
        let mut todo = components(path.as_os_str().as_bytes());
        let mut done = Parts::new();
        let mut links = 0;
        let Some(mut found) = self.lookup(&done)? else {
            return Ok(None);
        };
        while let Some(part) = todo.pop_front() {
            if part == ".." {
                done.pop();
            } else {
                done.push(part);
            }
            found = match self.lookup(&done)? {
                Some(found) => found,
                None => return Ok(None),
            };
            match found.kind() {
                FileType::Symlink => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(Errno::LOOP.into());
                    }
                    follow(&found.handle, &mut done, &mut todo)?;
                    found = match self.lookup(&done)? {
                        Some(found) => found,
                        None => return Ok(None),
                    };
                }
                FileType::Directory => {}
                _ if todo.is_empty() => {}
                _ => return Ok(None),
            }
        }
        Ok(Some((done, found)))
    }

    /// Opens for reading what [`View::lookup`] or [`View::resolve`] found.
    pub fn open(&self, found: &Found, parts: &[OsString]) -> io::Result<OwnedFd> {
        let root = self.layers[found.layer].as_fd();
        // O_NONBLOCK: a fifo must not make us wait.
        Ok(open_beneath(
            root,
            &join(parts),
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK,
        )?)
    }
}

/// Puts a link's target in front of what is still to walk; `done` ends with the link.
pub(crate) fn follow(
    link: impl AsFd,
    done: &mut Parts,
    todo: &mut VecDeque<OsString>,
) -> io::Result<()> {
    let target = readlinkat(link, "", Vec::new())?.into_bytes();
    match target.starts_with(b"/") {
        true => done.clear(),
        false => drop(done.pop()),
    }
    for part in components(&target).into_iter().rev() {
        todo.push_front(part);
    }
    match todo.iter().map(|part| part.len() + 1).sum::<usize>() > PATH_LIMIT {
        true => Err(Errno::NAMETOOLONG.into()),
        false => Ok(()),
    }
}

/// The parts of a path as a link has it: with `..`, without `.` and empty ones.
pub(crate) fn components(path: &[u8]) -> VecDeque<OsString> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .map(|part| OsString::from_vec(part.to_vec()))
        .collect()
}

/// The parts as one relative path; `.` for none.
pub(crate) fn join(parts: &[OsString]) -> PathBuf {
    match parts {
        [] => ".".into(),
        parts => parts.iter().collect(),
    }
}

/// Opens below a directory, through real directories only.
pub(crate) fn open_beneath(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // openat2(2): a rename elsewhere raced with the walk.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// A whiteout of overlayfs.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Is the directory marked opaque?
pub(crate) fn is_opaque(directory: impl AsFd) -> io::Result<bool> {
    let mut value = [0u8; 1];
    // Through /proc: an O_PATH handle has no attributes of its own (open(2)).
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&directory.as_fd())
    );
    match rustix::fs::getxattr(path, OPAQUE_ATTRIBUTE, &mut value[..]) {
        Ok(length) => Ok(length == 1 && value[0] == b'y'),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// In this layer the path is not there; does it also hide the path in the layers below?
fn hides_lower(root: BorrowedFd<'_>, parts: &[OsString]) -> io::Result<bool> {
    for end in 0..parts.len() {
        let handle = match open_beneath(root, &join(&parts[..end]), OFlags::PATH | OFlags::NOFOLLOW)
        {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let kind = FileType::from_raw_mode(fstat(&handle)?.st_mode);
        if kind != FileType::Directory || (end > 0 && is_opaque(&handle)?) {
            return Ok(true);
        }
    }
    Ok(false)
}
