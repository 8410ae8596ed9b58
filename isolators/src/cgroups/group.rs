//! A container's cgroups as one thing: what a runtime's commands list, stop, kill and join.
//!
//! The processes are those of the freezer hierarchy where there is one, else those of the unified one: a container has
//! them all in one directory there, or below it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

use super::directory::{self, Directory, ignore_absent, tree};
use super::freeze;
use super::hierarchy::{Hierarchies, Version, memberships};
use super::members::{members, signal_members};
use super::subgroup;
pub use super::subgroup::subgroups;
use crate::declaration::{CgroupPlacement, ContainerId};
use crate::error::{Error, Result};

/// How often the processes are listed again when they could not be frozen and keep forking.
const ROUNDS: usize = 100;

/// All cgroups of one container.
#[derive(Debug, Clone)]
pub struct Group {
    id: ContainerId,
    directories: Vec<Directory>,
}

/// Where another process of a container goes, in the words of `ContainerLaunchInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joins {
    /// cgroup v1: directories whose `tasks` file the process writes itself into.
    pub cgroup_v1: Vec<PathBuf>,
    /// cgroup v2: the directory that it is cloned into.
    pub cgroup_v2: Option<PathBuf>,
}

impl Group {
    /// The cgroups of a container, whether they exist or not.
    ///
    /// # Errors
    /// When the host's layout cannot be read.
    pub fn of(id: &ContainerId, placement: &CgroupPlacement) -> Result<Self> {
        Ok(Self {
            id: id.clone(),
            directories: Directory::all(id, placement)?,
        })
    }

    /// Whether any of them exists.
    pub fn exists(&self) -> bool {
        self.directories.iter().any(Directory::exists)
    }

    /// The directories that exist, by controller (`name=systemd` for a v1 hierarchy without one); `""` is v2's.
    pub fn paths(&self) -> BTreeMap<String, PathBuf> {
        let mut paths = BTreeMap::new();
        for directory in self.directories.iter().filter(|one| one.exists()) {
            let path = directory.path();
            match directory.version() {
                Version::V1 => paths.extend(
                    directory
                        .controllers()
                        .iter()
                        .map(|name| (name.clone(), path.to_owned())),
                ),
                Version::V2 => {
                    paths.insert(String::new(), path.to_owned());
                }
            }
        }
        paths
    }

    /// Its processes: those in its own directory, or with `all` those in the cgroups below too.
    ///
    /// # Errors
    /// When they cannot be listed; a container without cgroups has none.
    pub fn processes(&self, all: bool) -> Result<Vec<u32>> {
        let Some(main) = self.main() else {
            return Ok(Vec::new());
        };
        let found = match all {
            true => all_members(main.path())?,
            false => members(main.path())?,
        };
        let number = |pid: Pid| pid.as_raw_nonzero().get().cast_unsigned();
        Ok(found.into_iter().map(number).collect())
    }

    /// Stops all its processes.
    ///
    /// # Errors
    /// `NotFrozen` when they do not all stop within a second: they go on then.
    pub fn freeze(&self) -> Result<()> {
        let directory = self.freezer().ok_or_else(|| Error::Unsupported {
            isolator: "cgroups/freezer",
            feature: format!(
                "a freezer cgroup or a cgroup v2 of container {}, and it has neither",
                self.id
            ),
        })?;
        freeze::freeze(directory, &self.id)
    }

    /// Lets its processes go on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&self) -> Result<()> {
        self.freezer().map_or(Ok(()), freeze::thaw)
    }

    /// Whether it is frozen, or on its way there.
    ///
    /// # Errors
    /// When its state cannot be read.
    pub fn is_frozen(&self) -> Result<bool> {
        self.freezer().map_or(Ok(false), freeze::is_frozen)
    }

    /// SIGKILL to all its processes, frozen or not, those in cgroups below too. They are thawed then, so that they can
    /// die. It does not wait for their end.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill_all(&self) -> Result<()> {
        let unified = self.unified();
        if let Some(unified) = unified {
            // No fork outruns it (5.14). On a hybrid host it may exist beside the v1 directories.
            ignore_absent(unified.write("cgroup.kill", "1"))?;
        }
        let killed_by_kernel = self
            .main()
            .is_some_and(|main| main.version() == Version::V2 && main.has("cgroup.kill"));
        let killed = match killed_by_kernel {
            true => Ok(()),
            false => self.signal_stopped(Signal::KILL),
        };
        killed.and(self.thaw_everything())
    }

    /// A signal to all its processes, those in cgroups below too. One that is frozen stays so.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        if signal == Signal::KILL {
            return self.kill_all();
        }
        let was_frozen = self.is_frozen()?;
        let signalled = self.signal_stopped(signal);
        match was_frozen {
            true => signalled,
            false => signalled.and(self.thaw()),
        }
    }

    /// Signals all processes while they stand still; the caller thaws.
    fn signal_stopped(&self, signal: Signal) -> Result<()> {
        let Some(main) = self.main() else {
            return Ok(());
        };
        // While frozen none can fork away from being listed.
        match self.freezer().map(|one| freeze::freeze(one, &self.id)) {
            Some(Ok(())) => return signal_new(main.path(), signal, &mut HashSet::new()).map(drop),
            Some(Err(Error::NotFrozen { .. })) | None => {}
            Some(Err(error)) => return ignore_absent(Err(error)),
        }
        let mut signalled = HashSet::new();
        for _ in 0..ROUNDS {
            if !signal_new(main.path(), signal, &mut signalled)? {
                break;
            }
        }
        Ok(())
    }

    /// Thaws every cgroup of the container, whoever froze it.
    fn thaw_everything(&self) -> Result<()> {
        let Some(freezer) = self.freezer() else {
            return Ok(());
        };
        let (file, value) = match freezer.version() {
            Version::V1 => ("freezer.state", "THAWED"),
            Version::V2 => ("cgroup.freeze", "0"),
        };
        tree(freezer.path())?
            .iter()
            .map(|below| ignore_absent(directory::write(below, file, value)))
            .fold(Ok(()), Result::and)
    }

    /// What another process of the container must join: the container's own directories, or those that `subgroups` names
    /// below them, by controller (`""` for all of them).
    ///
    /// `init` is the container's first process. On v2 a cgroup that passes controllers down takes no process (EBUSY,
    /// "no internal processes"): where init has moved on into a cgroup below, as systemd does, its own one is joined.
    ///
    /// # Errors
    /// When a subgroup is not below the container or not there, or names a controller that the container has not.
    pub fn join_steps(
        &self,
        subgroups: &BTreeMap<String, String>,
        init: Option<u32>,
    ) -> Result<Joins> {
        let known = self.paths();
        if let Some(unknown) = subgroups
            .keys()
            .find(|name| !name.is_empty() && !known.contains_key(*name))
        {
            return Err(subgroup::refuse(
                unknown,
                "the container has no cgroup of this controller",
            ));
        }
        let mut joins = Joins::default();
        for directory in self.directories.iter().filter(|one| one.exists()) {
            let named = directory
                .controllers()
                .iter()
                .find_map(|name| subgroups.get(name))
                .or_else(|| subgroups.get(""));
            let path = match named {
                Some(named) => subgroup::below(directory.path(), named)?,
                None => directory.path().to_owned(),
            };
            match directory.version() {
                Version::V1 => joins.cgroup_v1.push(path),
                Version::V2 if named.is_none() && passes_down(&path)? => {
                    joins.cgroup_v2 = Some(init.map_or(Ok(None), unified_of)?.unwrap_or(path));
                }
                Version::V2 => joins.cgroup_v2 = Some(path),
            }
        }
        Ok(joins)
    }

    /// The directory that holds the processes.
    fn main(&self) -> Option<&Directory> {
        let existing = || self.directories.iter().find(|one| one.exists());
        self.freezer().or_else(existing)
    }

    /// The directory that can be frozen.
    fn freezer(&self) -> Option<&Directory> {
        let is_v1 = |one: &&Directory| {
            one.version() == Version::V1 && one.controllers().iter().any(|name| name == "freezer")
        };
        let v1 = self.directories.iter().find(is_v1);
        v1.filter(|one| one.exists()).or_else(|| self.unified())
    }

    fn unified(&self) -> Option<&Directory> {
        let mut all = self.directories.iter();
        all.find(|one| one.version() == Version::V2 && one.exists())
    }
}

/// Whether a v2 cgroup passes controllers down and so takes no processes itself.
fn passes_down(cgroup: &Path) -> Result<bool> {
    Ok(!directory::read(cgroup, "cgroup.subtree_control")?.is_empty())
}

/// The directory of a process' v2 cgroup; `None` when our mounts do not show it.
fn unified_of(pid: u32) -> Result<Option<PathBuf>> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|source| Error::Observe {
            what: "the cgroups".into(),
            pid,
            source,
        })?;
    let unified = Hierarchies::of_this_host()?.unified();
    let member = memberships(&text).find(|member| member.version() == Version::V2);
    Ok(unified.zip(member).and_then(|(hierarchy, member)| {
        let cgroup = hierarchy.visible(&member.path)?;
        Some(hierarchy.directory(&cgroup))
    }))
}

fn all_members(top: &Path) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for directory in tree(top)? {
        found.extend(members(&directory)?);
    }
    Ok(found)
}

/// Signals those that have not been signalled yet. Whether there were any.
fn signal_new(top: &Path, signal: Signal, signalled: &mut HashSet<Pid>) -> Result<bool> {
    let mut any = false;
    for directory in tree(top)? {
        for pid in signal_members(&directory, signal, signalled)? {
            any |= signalled.insert(pid);
        }
    }
    Ok(any)
}
