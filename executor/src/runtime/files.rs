//! Files and directories of the store, made and removed so that nobody sees half of one.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::store::{Error, Result};

/// The start of names of directories that are being made or removed; no id starts with a dot.
pub(super) const UNFINISHED: &str = ".new-";

/// How long a directory without its name can belong to somebody who is making or removing it.
const UNFINISHED_FOR: Duration = Duration::from_secs(60);

/// What was tried on which path, for `map_err`.
pub(super) fn file_error<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source: source.into(),
    }
}

/// Takes a directory out of the way at once, then removes it.
pub(super) fn remove_by_rename(root: &Path, directory: &Path) -> Result<()> {
    let unfinished = unfinished_in(root);
    match std::fs::rename(directory, &unfinished) {
        Ok(()) => remove_directory(&unfinished),
        Err(error) if is_absent(&error) => Ok(()),
        Err(error) => Err(file_error("remove", directory)(error)),
    }
}

/// A name that nobody has.
pub(super) fn unfinished_in(root: &Path) -> PathBuf {
    // The keys of a hash map are random and cost nothing more. Whoever takes the name finds out that it is taken.
    let random = RandomState::new().hash_one(root);
    root.join(format!("{UNFINISHED}{random:016x}"))
}

/// Whether a directory without its name has been left: nobody makes or removes one for so long.
pub(super) fn is_old(directory: &Path) -> bool {
    let modified = directory
        .symlink_metadata()
        .and_then(|status| status.modified());
    let age = modified.ok().and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age > UNFINISHED_FOR)
}

/// Whether a file or the directory that it is in is not there (any more).
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

pub(super) fn write(directory: &Path, name: &str, content: &impl serde::Serialize) -> Result<()> {
    let path = directory.join(name);
    let text = serde_json::to_vec(content).map_err(file_error("describe", &path))?;
    std::fs::write(&path, text).map_err(file_error("write", &path))
}

/// Replaced by rename: a reader sees the old content or the new one.
pub(super) fn replace(directory: &Path, name: &str, content: &impl serde::Serialize) -> Result<()> {
    let new = format!("{name}.new");
    write(directory, &new, content)?;
    let path = directory.join(name);
    std::fs::rename(directory.join(new), &path).map_err(file_error("replace", &path))
}

pub(super) fn remove_directory(path: &Path) -> Result<()> {
    // What is in one of ours mostly; only where there is more has it to be listed.
    for name in ["lock", "state.json", "declaration.json"] {
        let _ = std::fs::remove_file(path.join(name));
    }
    if std::fs::remove_dir(path).is_ok() {
        return Ok(());
    }
    match std::fs::remove_dir_all(path) {
        Err(error) if !is_absent(&error) => Err(file_error("remove", path)(error)),
        _ => Ok(()),
    }
}
