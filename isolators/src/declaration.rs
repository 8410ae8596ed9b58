//! What is wanted: the one description of a container that every way in ends in.
//!
//! It is the OCI runtime-spec `Spec` plus the few things the runtime-spec has no words for. It is plain data and
//! survives a trip through JSON, because the executor process writes it and the launcher process acts on it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

/// The name of a container: also the name of its cgroup directories, state directory and writable layer.
///
/// One path component of 1 to 230 bytes from `[A-Za-z0-9_+.-]`, not starting with a dot or a dash: unfinished directories
/// start with a dot, and options of programs with a dash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// The longest id, in bytes; it leaves room for suffixes in a 255-byte file name.
    pub const MAX_LENGTH: usize = 230;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = InvalidContainerId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'+' | b'.' | b'-');
        let good_start = !text.starts_with(['.', '-']);
        if text.is_empty()
            || text.len() > Self::MAX_LENGTH
            || !good_start
            || !text.bytes().all(allowed)
        {
            return Err(InvalidContainerId(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ContainerId {
    type Error = InvalidContainerId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that cannot be a container id.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "invalid character, length or start of the container ID {0:?}: use 1 to 230 of A-Z a-z 0-9 _ + . - and do not start with a dot or a dash"
)]
pub struct InvalidContainerId(pub String);

/// What one container is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Declaration {
    /// runtime-spec `config.json`: process, mounts, namespaces, resources, seccomp and the rest. `root.path` is not
    /// used: see `rootfs`.
    pub spec: Spec,
    /// Where the root file system comes from.
    pub rootfs: RootFilesystem,
    /// Which cgroups the container's own directories are made in.
    pub cgroups: CgroupPlacement,
    /// Whether pid 1 is our init, which forwards signals and reaps, and not the workload itself.
    pub init: bool,
    /// The program to execute when it is not `process.args[0]`: Mesos' CommandInfo names the two apart.
    #[serde(default)]
    pub executable: Option<String>,
    /// Whether the container stays on the session keyring of who started it.
    #[serde(default)]
    pub keep_keyring: bool,
    /// Whether the container may use every CPU of its cgroup, whatever its starter is bound to (runc's way).
    #[serde(default)]
    pub reset_cpu_affinity: bool,
}

impl Declaration {
    /// Whether the container is to have a new namespace of this type of its own (not shared, not joined by path).
    pub fn has_new_namespace(&self, kind: LinuxNamespaceType) -> bool {
        let namespaces = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref());
        namespaces.is_some_and(|all| all.iter().any(|n| n.typ() == kind && n.path().is_none()))
    }
}

/// Where a container's `/` comes from. It is always mounted inside the container's own mount namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootFilesystem {
    /// The host's own file system, recursively bound.
    Host,
    /// A directory that is bound as it is.
    Directory(PathBuf),
    /// Read-only layers with a writable one on top (overlayfs).
    Overlay(Overlay),
}

/// An overlay of unpacked layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The directory that `lower` is relative to (short names keep the mount options below one page).
    pub layers: PathBuf,
    /// Layers, uppermost first, as names in `layers`.
    pub lower: Vec<String>,
    /// The directory that belongs to this container alone and holds `upper` (the writable layer) and `work`
    /// (overlayfs' own). It is made at `prepare` and removed at `cleanup`.
    pub writable: PathBuf,
}

/// Where a container's cgroup directories go: `<mount point><parent>/<container id>` in each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlacement {
    /// The parent in each hierarchy that `nested` does not name, from the hierarchy's root: `/tepui`.
    pub parent: PathBuf,
    /// Parents of single v1 controllers, by controller name (`freezer`, `cpu`, `memory` …): the executor's own
    /// cgroup where an agent must find the tasks below it.
    pub nested: BTreeMap<String, PathBuf>,
    /// The directory's name when it is not the container's id: an OCI bundle's `linux.cgroupsPath` names it.
    #[serde(default)]
    pub name: Option<String>,
}

impl CgroupPlacement {
    /// The parent cgroup for one controller, an absolute path from the hierarchy's root.
    pub fn parent_of(&self, controller: &str) -> &Path {
        self.nested.get(controller).unwrap_or(&self.parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_safe_path_component() {
        for good in ["a", "web.1-3fa92b11c0de", "A_b.c-9", "+a+b", "_x"] {
            assert_eq!(
                good.parse::<ContainerId>().expect("a good id").as_str(),
                good
            );
        }
        for bad in [
            "",
            ".",
            "..",
            "-x",
            ".x",
            "a/b",
            "a b",
            "a\n",
            "ä",
            &"x".repeat(231),
        ] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
    }
}
