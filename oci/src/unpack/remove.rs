//! Removes a tree that a layer made: of any depth, links not followed (openat2(2) RESOLVE_NO_SYMLINKS).

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, OFlags, unlinkat};
use rustix::io::Errno;

use super::name::Parts;
use super::view::{join, open_beneath};

/// Removes a directory and all below it, links not followed, at most two handles open however deep it is.
pub(crate) fn remove_tree(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    let parent = parent.as_fd();
    let mut todo: Vec<Parts> = vec![vec![name.into()]];
    while let Some(path) = todo.last().cloned() {
        let handle = open_beneath(
            parent,
            &join(&path),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
        )?;
        let before = todo.len();
        for entry in rustix::fs::Dir::read_from(&handle)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if matches!(name.as_encoded_bytes(), b"." | b"..") {
                continue;
            }
            match unlinkat(&handle, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => {
                    let mut child = path.clone();
                    child.push(name.into());
                    todo.push(child);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if todo.len() == before {
            let (name, above) = path.split_last().ok_or(Errno::INVAL)?;
            let above = open_beneath(
                parent,
                &join(above),
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            )?;
            unlinkat(&above, name.as_os_str(), AtFlags::REMOVEDIR)?;
            todo.pop();
        }
    }
    Ok(())
}
