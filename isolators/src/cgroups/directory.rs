//! One container's directory in one hierarchy: made, written to, read, and removed with everything in it.
//!
//! cgroups(7) for v1; the kernel's admin-guide/cgroup-v2.rst for v2. All names derive from the container's id and the
//! declaration, so that any process can remove what another one made.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;

use super::hierarchy::{Hierarchies, Hierarchy, Version};
use super::members::signal_members;
use crate::declaration::{CgroupPlacement, ContainerId};
use crate::error::{Error, Result};
use crate::observe::whole_text;

/// How long a removal waits for killed processes to go.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(2);

/// How often directories are made again because another container's removal took their empty parent away.
const CREATION_ATTEMPTS: usize = 64;

/// The mark of parents that we made ourselves, merely to hold containers (xattr(7); cgroup file systems keep them).
const MADE_HERE: &str = "trusted.tepui";

/// A container's directory in one hierarchy, whether it exists or not.
#[derive(Debug, Clone)]
pub struct Directory {
    hierarchy: &'static Hierarchy,
    parent: PathBuf,
    path: PathBuf,
}

impl Directory {
    /// The container's directory in the hierarchy of `controller`; `None` when no hierarchy has that controller.
    ///
    /// # Errors
    /// When the host's layout cannot be read.
    pub fn of(
        controller: &str,
        id: &ContainerId,
        placement: &CgroupPlacement,
    ) -> Result<Option<Self>> {
        let hierarchy = Hierarchies::of_this_host()?.of(controller);
        Ok(hierarchy.map(|hierarchy| Self::inside(hierarchy, controller, id, placement)))
    }

    /// The container's directory in the unified hierarchy, also where that has no controllers.
    ///
    /// # Errors
    /// When the host's layout cannot be read.
    pub fn unified(id: &ContainerId, placement: &CgroupPlacement) -> Result<Option<Self>> {
        let hierarchy = Hierarchies::of_this_host()?.unified();
        Ok(hierarchy.map(|hierarchy| Self::inside(hierarchy, "", id, placement)))
    }

    /// The container's directory in every hierarchy of this host, whether it exists or not.
    ///
    /// # Errors
    /// When the host's layout cannot be read.
    pub fn all(id: &ContainerId, placement: &CgroupPlacement) -> Result<Vec<Self>> {
        let all = Hierarchies::of_this_host()?.all().iter().map(|hierarchy| {
            let controller = hierarchy.controllers.first().map_or("", String::as_str);
            Self::inside(hierarchy, controller, id, placement)
        });
        Ok(all.collect())
    }

    fn inside(
        hierarchy: &'static Hierarchy,
        controller: &str,
        id: &ContainerId,
        placement: &CgroupPlacement,
    ) -> Self {
        // In the unified hierarchy all controllers share one directory.
        let controller = match hierarchy.version {
            Version::V1 => controller,
            Version::V2 => "",
        };
        let parent = placement.parent_of(controller);
        Self {
            hierarchy,
            parent: parent.to_owned(),
            path: hierarchy
                .directory(&parent.join(placement.name.as_deref().unwrap_or(id.as_str()))),
        }
    }

    /// Its path on this host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directories from its hierarchy's root to itself.
    pub(super) fn lineage(&self) -> Vec<&Path> {
        let mut all = self.above();
        all.push(&self.path);
        all
    }

    /// The parent's path on this host; `None` when the parent is the root of the hierarchy.
    pub fn parent_path(&self) -> Option<PathBuf> {
        let path = self.hierarchy.directory(&self.parent);
        (path != self.hierarchy.directory(Path::new("/"))).then_some(path)
    }

    /// The controllers of its hierarchy, as `Hierarchy::controllers` has them.
    pub fn controllers(&self) -> &[String] {
        &self.hierarchy.controllers
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// The interface of its hierarchy.
    pub fn version(&self) -> Version {
        self.hierarchy.version
    }

    /// Whether the hierarchy lets directories be made.
    pub fn is_writable(&self) -> bool {
        self.hierarchy.writable
    }

    /// Makes it and its parents; on v2 also passes `controller` down to it.
    ///
    /// # Errors
    /// When the kernel refuses a directory or a controller.
    pub fn create(&self, controller: Option<&str>) -> Result<()> {
        let mut attempt = 1;
        loop {
            match self.create_all() {
                Ok(()) => break,
                // The last container below the same parent was removed between two steps of ours.
                Err(error)
                    if (is_gone(&error) || error.kind() == ErrorKind::AlreadyExists)
                        && attempt < CREATION_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(Error::file("create the cgroup", &self.path, error)),
            }
        }
        match (self.version(), controller) {
            // Only now that the directory keeps its parents from being removed.
            (Version::V2, Some(controller)) => self.pass_down(controller),
            _ => Ok(()),
        }
    }

    /// Makes what is missing and marks parents that are made here, so that only those go with the last container: an
    /// operator's own, which may hold limits, stays.
    fn create_all(&self) -> std::io::Result<()> {
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists && self.path.is_dir() => {
                return Ok(());
            }
            other => return other,
        }
        let above: Vec<&Path> = self
            .path
            .ancestors()
            .skip(1)
            .take_while(|path| !path.exists())
            .collect();
        for parent in above.into_iter().rev() {
            match fs::create_dir(parent) {
                Ok(()) => {
                    // Without extended attributes it merely stays.
                    let _ = rustix::fs::setxattr(
                        parent,
                        MADE_HERE,
                        b"1",
                        rustix::fs::XattrFlags::empty(),
                    );
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        fs::create_dir(&self.path)
    }

    /// Passes a v2 controller down to it if the directories above let it: nothing is declared for it.
    pub(super) fn offer(&self, controller: &str) {
        if self.version() == Version::V1 {
            return;
        }
        let mut above = self.above();
        above.retain(|directory| !passes(directory, controller).unwrap_or(true));
        for directory in above {
            let enabled = write(
                directory,
                "cgroup.subtree_control",
                &format!("+{controller}"),
            );
            if let Err(error) = enabled {
                tracing::debug!(%error, "containers below have no {controller} controller");
                return;
            }
        }
    }

    /// The directories of its hierarchy above it, from the top.
    fn above(&self) -> Vec<&Path> {
        let mut above: Vec<&Path> = self
            .path
            .ancestors()
            .skip(1)
            .take_while(|path| path.starts_with(&self.hierarchy.mount_point))
            .collect();
        above.reverse();
        above
    }

    /// Enables a v2 controller in every directory above the container's, from the top.
    pub(super) fn pass_down(&self, controller: &str) -> Result<()> {
        for directory in self.above() {
            let is_enabled = passes(directory, controller)?;
            // The kernel shows a controller as enabled before its files exist below. Writing it once more, right above
            // the container, changes nothing but waits until whoever else is enabling it has finished.
            if !is_enabled || Some(directory) == self.path.parent() {
                write(
                    directory,
                    "cgroup.subtree_control",
                    &format!("+{controller}"),
                )?;
            }
        }
        Ok(())
    }

    /// Writes one value.
    ///
    /// # Errors
    /// When the file does not exist or the kernel refuses the value.
    pub fn write(&self, file: &str, value: &str) -> Result<()> {
        write(&self.path, file, value)
    }

    /// Writes several values to one file, each with a write(2) of its own.
    ///
    /// # Errors
    /// When the file does not exist or the kernel refuses a value.
    pub fn write_each(&self, file: &str, values: &[String]) -> Result<()> {
        let Some(first) = values.first() else {
            return Ok(());
        };
        let path = self.path.join(file);
        let failed = |value: &str, error| Error::file(format!("write {value:?} to"), &path, error);
        let opened = OpenOptions::new().write(true).open(&path);
        let mut opened = opened.map_err(|error| failed(first, error))?;
        values.iter().try_for_each(|value| {
            let written = opened.write_all(value.as_bytes());
            written.map_err(|error| failed(value, error))
        })
    }

    /// Whether the directory has this file.
    pub fn has(&self, file: &str) -> bool {
        self.path.join(file).exists()
    }

    /// Reads a file without its last newline.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, file: &str) -> Result<String> {
        read(&self.path, file)
    }

    /// Kills what is left in it and removes it, the cgroups that the workload made in it, and the parent if that is
    /// empty now and ours. A directory that does not exist counts as removed.
    ///
    /// # Errors
    /// `CgroupBusy` when processes are left after two seconds; else what the kernel refused.
    pub fn remove(&self, id: &ContainerId, placement: &CgroupPlacement) -> Result<()> {
        let deadline = Instant::now() + REMOVAL_PATIENCE;
        while !remove_tree(&self.path)? {
            if Instant::now() >= deadline {
                return Err(Error::CgroupBusy {
                    id: id.clone(),
                    path: self.path.clone(),
                });
            }
            self.kill(id, placement)?;
            self.wait_until_empty()?;
        }
        let root = self.hierarchy.mount_point.as_path();
        for parent in self.path.ancestors().skip(1) {
            if parent == root || !was_made_here(parent) || !remove_if_empty(parent)? {
                break;
            }
        }
        Ok(())
    }

    /// One round of SIGKILL to everything in it.
    fn kill(&self, id: &ContainerId, placement: &CgroupPlacement) -> Result<()> {
        // Frozen tasks cannot fork on while they are counted; and SIGKILL takes a v1 task only once it is thawed, so
        // thawing also undoes a freeze that somebody else left.
        let freezer = Self::of("freezer", id, placement)?;
        if let Some(freezer) = &freezer {
            ignore_absent(freezer.write("freezer.state", "FROZEN"))?;
        }
        // cgroup.kill (5.14) reaches also what forks meanwhile; on a hybrid host it may exist beside the v1 directories.
        if let Some(unified) = Self::unified(id, placement)? {
            ignore_absent(unified.write("cgroup.kill", "1"))?;
        }
        let killed = match self.version() == Version::V1 || !self.has("cgroup.kill") {
            true => tree(&self.path)?.iter().try_for_each(|directory| {
                signal_members(directory, Signal::KILL, &HashSet::new()).map(drop)
            }),
            false => Ok(()),
        };
        // Thawed in any case: frozen tasks could not be killed by anybody.
        if let Some(freezer) = &freezer {
            for directory in tree(&freezer.path)? {
                ignore_absent(write(&directory, "freezer.state", "THAWED"))?;
            }
        }
        killed
    }

    /// Waits, for a short while, until no process is left in it.
    fn wait_until_empty(&self) -> Result<()> {
        if self.version() == Version::V1 {
            // v1 has nothing to wait on; the next attempt to remove the directory is the test.
            std::thread::sleep(Duration::from_millis(1));
            return Ok(());
        }
        let pause = Duration::from_millis(100);
        if wait_for_event(&self.path, "populated 0", pause)? {
            // Empty of processes, but the kernel has not let go of a dying one yet.
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Waits at most `patience` until `cgroup.events` of a v2 cgroup changes, unless it has this line already. Whether it
/// has the line, or the cgroup is gone.
pub(super) fn wait_for_event(directory: &Path, line: &str, patience: Duration) -> Result<bool> {
    let path = directory.join("cgroup.events");
    let failed = |error: io::Error| Error::file("wait for", &path, error);
    let events = match File::open(&path) {
        Ok(events) => events,
        Err(error) if is_gone(&error) => return Ok(true),
        Err(error) => return Err(failed(error)),
    };
    let has_line = || {
        let (mut reader, mut text) = (&events, String::new());
        // Reading arms the notification: kernfs reports a change since the last read by POLLPRI.
        match reader
            .rewind()
            .and_then(|()| reader.read_to_string(&mut text))
        {
            Ok(_) => Ok(text.lines().any(|found| found == line)),
            Err(error) if is_gone(&error) => Ok(true),
            Err(error) => Err(failed(error)),
        }
    };
    if has_line()? {
        return Ok(true);
    }
    let pause = Timespec::try_from(patience).unwrap_or(Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    });
    match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&pause)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(failed(error.into())),
    }
    has_line()
}

/// Whether a v2 cgroup passes a controller down.
fn passes(directory: &Path, controller: &str) -> Result<bool> {
    let enabled = read(directory, "cgroup.subtree_control")?;
    Ok(enabled.split_whitespace().any(|name| name == controller))
}

/// Writes one value to a file of a cgroup.
pub(super) fn write(directory: &Path, file: &str, value: &str) -> Result<()> {
    let path = directory.join(file);
    // One write(2), and never O_CREAT: cgroupfs answers that with EACCES, which would hide that the file is missing.
    let written = OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| Error::file(format!("write {value:?} to"), path, error))
}

/// Reads a file of a cgroup without its last newline.
pub(super) fn read(directory: &Path, file: &str) -> Result<String> {
    let path = directory.join(file);
    match whole_text(&path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(error) => Err(Error::file("read", path, error)),
    }
}

/// Reads a file that holds one line, without its newline: the kernel gives that in one piece.
pub(super) fn read_line(directory: &Path, file: &str) -> Result<String> {
    let path = directory.join(file);
    let mut line = vec![0; 4096];
    match File::open(&path).and_then(|mut opened| opened.read(&mut line)) {
        Ok(length) if length < line.len() => Ok(String::from_utf8_lossy(&line[..length])
            .trim_end()
            .to_owned()),
        Ok(_) => read(directory, file),
        Err(error) => Err(Error::file("read", path, error)),
    }
}

/// Passes over files and cgroups that are not there (any more).
pub(super) fn ignore_absent(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::File { source, .. }) if is_gone(&source) => Ok(()),
        other => other,
    }
}

/// Whether an error says that the cgroup or its file does not exist (any more): kernfs answers ENODEV for a file that
/// was open when its directory went.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// A cgroup and all below it, parents first; nothing when it does not exist.
pub(super) fn tree(top: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![top.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let directory = found[at].clone();
        let failed = |error| Error::file("list", &directory, error);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => {
                found.remove(at);
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            match entry {
                Ok(entry) if entry.file_type().map_err(failed)?.is_dir() => {
                    found.push(entry.path())
                }
                Ok(_) => {}
                Err(error) if is_gone(&error) => break,
                Err(error) => return Err(failed(error)),
            }
        }
        at += 1;
    }
    Ok(found)
}

/// Removes a cgroup and all below it. `false`: something in it is still in use.
fn remove_tree(top: &Path) -> Result<bool> {
    // Few workloads make cgroups of their own; only then is it worth a look what is in there.
    match fs::remove_dir(top) {
        Err(error) if is_in_use(&error) => {}
        Err(error) if !is_gone(&error) => {
            return Err(Error::file("remove the cgroup", top, error));
        }
        _ => return Ok(true),
    }
    for directory in tree(top)?.iter().rev() {
        match fs::remove_dir(directory) {
            Ok(()) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) if is_in_use(&error) => return Ok(false),
            Err(error) => return Err(Error::file("remove the cgroup", directory, error)),
        }
    }
    Ok(true)
}

fn was_made_here(directory: &Path) -> bool {
    let mut value = [0u8; 1];
    rustix::fs::getxattr(directory, MADE_HERE, &mut value).is_ok()
}

/// Removes a parent directory unless another container is in it; whether it is gone.
fn remove_if_empty(parent: &Path) -> Result<bool> {
    match fs::remove_dir(parent) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(true),
        Err(error) if is_in_use(&error) => Ok(false),
        Err(error) => Err(Error::file("remove the empty cgroup", parent, error)),
    }
}

fn is_in_use(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ResourceBusy | ErrorKind::DirectoryNotEmpty
    )
}
