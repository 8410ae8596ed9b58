//! The writable layer of an overlay: made before the clone, removed after the last process.
//!
//! What is in it was written by the workload, so removing it takes nothing for granted: symbolic links are removed and
//! not followed, a mount in it is an error and is not entered (RESOLVE_NO_XDEV), and a tree of any depth takes two
//! descriptors and no recursion, because directories are moved up before they are emptied.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, flock,
    openat, openat2, renameat_with, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// The writable layer's name in its directory.
pub const UPPER: &str = "upper";
/// overlayfs' own directory beside it.
pub const WORK: &str = "work";

/// Makes `upper` and `work` in `directory`, which is made too. The container's root shows owner and mode of `upper`, so
/// they are those of the topmost layer's root.
///
/// # Errors
/// When one of the two is there already: it has the files of another container.
pub fn make(directory: &Path, topmost: Option<&Path>) -> Result<()> {
    let failed = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Error::file(action, path, source)
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("make the directory", directory))?;
    // Set after it is made, whatever our umask is.
    for (name, mode) in [(UPPER, 0o755), (WORK, 0o700)] {
        let path = directory.join(name);
        DirBuilder::new()
            .mode(mode)
            .create(&path)
            .map_err(failed("make a new writable layer", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))
            .map_err(failed("set the mode of", &path))?;
    }
    if let Some(layer) = topmost {
        let root = fs::metadata(layer).map_err(failed("look at the layer", layer))?;
        let upper = directory.join(UPPER);
        // First the owner: a change of it would clear the setgid bit.
        chown(&upper, Some(root.uid()), Some(root.gid()))
            .map_err(failed("set the owner of", &upper))?;
        let mode = Permissions::from_mode(root.mode() & 0o7777);
        fs::set_permissions(&upper, mode).map_err(failed("set the mode of", &upper))?;
    }
    Ok(())
}

/// How many names are removed at once; what has more is set aside. About 50 ms.
const AT_ONCE: u64 = 2_000;
/// The start of names of layers that were set aside.
const ASIDE: &str = ".gone-";

/// Gives `directory` up: removed at once if it is small, else renamed for [`sweep`] to remove, so that whoever starts and
/// ends containers never waits for a workload's million files. A missing one counts as removed.
///
/// # Errors
/// When something cannot be removed, e.g. because it is a mount point.
pub fn discard(directory: &Path) -> Result<()> {
    let failed = |errno: Errno| Error::file("remove", directory, errno);
    let Some(top) = open_top(directory).map_err(failed)? else {
        return Ok(());
    };
    if empty(&top, &mut { AT_ONCE }).map_err(failed)? {
        return remove_top(directory).map_err(failed);
    }
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let mut number = 0u64;
    loop {
        let aside = directory.with_file_name(format!("{ASIDE}{name}-{number}"));
        match renameat_with(CWD, directory, CWD, &aside, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => number += 1,
            Err(Errno::NOENT) => return Ok(()),
            other => return other.map_err(failed),
        }
    }
}

/// Removes the layers in `parent` that were set aside, however long it takes. Others may do so at the same time.
///
/// # Errors
/// The first that could not be removed; the rest are tried all the same.
pub fn sweep(parent: &Path) -> Result<()> {
    let failed = |path: &Path, source: io::Error| Error::file("remove", path, source);
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| failed(parent, error))?,
    };
    let mut result = Ok(());
    for entry in entries.flatten() {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(ASIDE.as_bytes())
        {
            let path = entry.path();
            result = result.and(remove_aside(&path).map_err(|errno| failed(&path, errno.into())));
        }
    }
    result
}

fn remove_aside(directory: &Path) -> Result<(), Errno> {
    let Some(top) = open_top(directory)? else {
        return Ok(());
    };
    match flock(&top, FlockOperation::NonBlockingLockExclusive) {
        // Somebody else is at it.
        Err(Errno::WOULDBLOCK) => return Ok(()),
        other => other?,
    }
    empty(&top, &mut { u64::MAX })?;
    remove_top(directory)
}

fn open_top(directory: &Path) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(CWD, directory, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        other => other.map(Some),
    }
}

fn remove_top(directory: &Path) -> Result<(), Errno> {
    match unlinkat(CWD, directory, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Empties it; false when `budget` names were removed and some are left.
fn empty(top: &OwnedFd, budget: &mut u64) -> Result<bool, Errno> {
    let mut moved = 0u64;
    loop {
        let entries = list(top)?;
        if entries.is_empty() {
            return Ok(true);
        }
        for (name, is_directory) in entries {
            if *budget == 0 {
                return Ok(false);
            }
            *budget -= 1;
            if !is_directory {
                unlinkat(top, &name, AtFlags::empty())?;
                continue;
            }
            let directory = open_here(top, &name)?;
            for (inner, is_directory) in list(&directory)? {
                if *budget == 0 {
                    return Ok(false);
                }
                *budget -= 1;
                if !is_directory {
                    unlinkat(&directory, &inner, AtFlags::empty())?;
                } else if let Err(errno) = unlinkat(&directory, &inner, AtFlags::REMOVEDIR) {
                    // Only a directory that has something in it is moved; EBUSY, a mount point, stays an error.
                    if errno != Errno::NOTEMPTY && errno != Errno::EXIST {
                        return Err(errno);
                    }
                    move_up(&directory, &inner, top, &mut moved)?;
                }
            }
            unlinkat(top, &name, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Moves a directory into `top` under a name that is free there.
fn move_up(
    from: &OwnedFd,
    name: &std::ffi::CStr,
    top: &OwnedFd,
    moved: &mut u64,
) -> Result<(), Errno> {
    loop {
        *moved += 1;
        let free = format!("removed-{moved}");
        match renameat_with(from, name, top, free, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            result => return result,
        }
    }
}

fn open_here(directory: &OwnedFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(directory, name, flags, Mode::empty(), how)
}

/// All names in a directory, and which are directories.
fn list(directory: &OwnedFd) -> Result<Vec<(std::ffi::CString, bool)>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = openat(directory.as_fd(), c".", flags, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in Dir::new(File::from(listing))? {
        let entry = entry?;
        let name = entry.file_name().to_owned();
        if matches!(name.as_bytes(), b"." | b"..") {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            kind => kind == FileType::Directory,
        };
        entries.push((name, is_directory));
    }
    Ok(entries)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_large_layer_is_set_aside_and_swept() {
        let store = tempfile::tempdir().unwrap();
        let layer = store.path().join("web.1");
        for directory in 0..30 {
            let directory = layer.join(format!("upper/{directory}"));
            fs::create_dir_all(&directory).unwrap();
            for file in 0..100 {
                fs::write(directory.join(file.to_string()), "").unwrap();
            }
        }
        discard(&layer).unwrap();
        assert!(!layer.exists());
        // The name is free again at once, and another large layer of it finds a place too.
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 1);
        sweep(store.path()).unwrap();
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 0);
        sweep(&store.path().join("nowhere")).unwrap();
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let store = tempfile::tempdir().unwrap();
        let writable = store.path().join("web.1");
        make(&writable, None).unwrap();
        let mode = |name: &str| {
            let metadata = fs::metadata(writable.join(name)).unwrap();
            metadata.permissions().mode() & 0o7777
        };
        assert_eq!((mode(UPPER), mode(WORK)), (0o755, 0o700));
        let inner = writable.join("upper/a/b/c");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("file"), "x").unwrap();
        symlink(outside.path(), inner.join("out")).unwrap();
        symlink(outside.path(), writable.join("upper/out")).unwrap();
        discard(&writable).unwrap();
        assert!(!writable.exists());
        assert!(outside.path().join("precious").exists());
        discard(&writable).unwrap();
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_directory_is_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let store = tempfile::tempdir().unwrap();
        let writable = store.path().join("web.1");
        symlink(outside.path(), &writable).unwrap();
        assert!(discard(&writable).is_err());
        assert!(outside.path().join("precious").exists());
    }

    #[test]
    fn a_half_made_layer_is_removed_and_a_used_one_is_not_taken_over() {
        let store = tempfile::tempdir().unwrap();
        let writable = store.path().join("web.1");
        fs::create_dir_all(writable.join(UPPER)).unwrap();
        let error = make(&writable, None).unwrap_err().to_string();
        assert!(error.contains("upper"), "{error}");
        discard(&writable).unwrap();
        make(&writable, None).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_the_longest_path_is_removed() {
        let store = tempfile::tempdir().unwrap();
        let writable = store.path().join("web.1");
        make(&writable, None).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = openat(CWD, writable.join(UPPER), flags, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, c"removed-1", Mode::RWXU).unwrap();
            at = openat(&at, c"removed-1", flags, Mode::empty()).unwrap();
        }
        drop(at);
        discard(&writable).unwrap();
        assert!(!writable.exists());
    }
}
