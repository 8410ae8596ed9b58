//! What to do: the data that isolators return and that a launch turns into its list of steps.
//!
//! Isolators never act inside a container. They say here what the launch must do; `merge` puts their answers
//! together in configured order and refuses two of them that set the same single-valued field.

use std::ffi::{CStr, CString};
use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType;

use crate::attribute::Attribute;
use crate::declaration::Overlay;
use crate::error::{Error, Result};

/// What one isolator, or all of them merged, ask of a launch.
#[derive(Debug, Clone, Default)]
pub struct ContainerLaunchInfo {
    /// New namespaces. The cgroup namespace is made after the move into the cgroups, all others by clone3(2).
    pub namespaces: Vec<LinuxNamespaceType>,
    /// cgroup v1: directories whose `tasks` file the child writes itself into before anything else.
    pub cgroup_v1: Vec<PathBuf>,
    /// cgroup v2 (also the v2 side of a hybrid host): the directory that the child is cloned into.
    pub cgroup_v2: Option<PathBuf>,
    /// Existing namespaces that are entered before the new ones are made.
    pub join_namespaces: Vec<(LinuxNamespaceType, PathBuf)>,
    /// The id maps of a new user namespace.
    pub id_maps: Option<IdMaps>,
    /// Lines for `/proc/PID/timens_offsets` of a new time namespace.
    pub time_offsets: Vec<CString>,
    /// Host name in a new UTS namespace.
    pub hostname: Option<CString>,
    /// NIS domain name in a new UTS namespace.
    pub domainname: Option<CString>,
    /// Kernel parameters of the container's own namespaces: path below `/proc/sys`, and value.
    pub sysctls: Vec<(CString, CString)>,
    /// Whether the loopback device of a new network namespace is to be set up.
    pub loopback: bool,
    /// The root file system.
    pub rootfs: Option<RootMount>,
    /// Mounts inside the root file system, in order.
    pub mounts: Vec<Mount>,
    /// Device nodes that lie in the root file system itself or in what is mounted there, by absolute path; made after all mounts.
    pub device_nodes: Vec<DeviceNode>,
    /// Symbolic links beside them: absolute path and what it points at.
    pub device_links: Vec<(CString, CString)>,
    /// What the root mount's propagation becomes at the end: `MS_SHARED` or `MS_UNBINDABLE`, with `MS_REC` or not; 0
    /// leaves it. It has no peers on the host.
    pub root_propagation: u64,
    /// Paths inside the container that are hidden: files by the host's null device, directories by an empty read-only tmpfs.
    pub masked_paths: Vec<CString>,
    /// Paths inside the container that become read-only.
    pub readonly_paths: Vec<CString>,
    /// Whether the root mount becomes read-only at the end.
    pub readonly_root: bool,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// What else the process gets.
    pub attributes: Vec<Attribute>,
    /// `/proc/PID/oom_score_adj`, which the parent writes.
    pub oom_score_adj: Option<i32>,
    /// The name of the session keyring that is made.
    pub session_keyring: Option<CString>,
    /// The security context of the container's own file systems, mount(8) "context".
    pub mount_label: Option<CString>,
    /// The five capability sets.
    pub capabilities: Option<CapabilitySets>,
    /// Whether execve(2) may no longer grant privileges.
    pub no_new_privileges: bool,
    /// The compiled seccomp program.
    pub seccomp: Option<SeccompFilter>,
}

/// The maps of a new user namespace, user_namespaces(7).
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct IdMaps {
    /// Users.
    pub users: Vec<IdMap>,
    /// Groups.
    pub groups: Vec<IdMap>,
}

/// One line of an id map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub inside: u32,
    /// First id outside, in our own user namespace.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdMaps {
    /// The user outside that `id` inside is; `None` when it is not mapped.
    pub fn user(&self, id: u32) -> Option<u32> {
        outside(&self.users, id)
    }

    /// The group outside that `id` inside is; `None` when it is not mapped.
    pub fn group(&self, id: u32) -> Option<u32> {
        outside(&self.groups, id)
    }
}

fn outside(maps: &[IdMap], id: u32) -> Option<u32> {
    let within = |map: &&IdMap| id.checked_sub(map.inside).is_some_and(|n| n < map.count);
    let map = maps.iter().find(within)?;
    map.outside.checked_add(id - map.inside)
}

/// How the root file system is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootMount {
    /// A recursive bind of this directory (`/` for the host's file system). `attributes` go on all of its mounts.
    Bind {
        /// Directory on the host.
        source: PathBuf,
        /// `MOUNT_ATTR_*` to set.
        attributes: u64,
        /// Whether later mounts of the host below the directory stay away (private) or appear (slave).
        private: bool,
    },
    /// An overlay; `MS_*` flags in `flags`.
    Overlay {
        /// The layers.
        overlay: Overlay,
        /// `MS_*` flags, e.g. `MS_NODEV`.
        flags: u64,
    },
}

/// One mount inside the container. Targets are resolved inside the root, never by a path on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where, an absolute path in the container. It is made when missing: a file for a bind of a file, else a directory.
    pub target: CString,
    /// What.
    pub kind: MountKind,
    /// What changes on it alone (mount_setattr(2)).
    pub attributes: MountAttributes,
    /// What changes on it and on all mounts below it, after that (`rro`, `rnosuid` …).
    pub recursive_attributes: MountAttributes,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE`, with `MS_REC` or not; 0 leaves it as it is.
    pub propagation: u64,
    /// Whether the target must be a real directory, reached without any symbolic link (`/proc`, `/sys`).
    pub plain_target: bool,
}

/// A change of a mount's `MOUNT_ATTR_*`. The access-time modes are one field: choosing one has the whole field in `clear`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountAttributes {
    /// Those to set.
    pub set: u64,
    /// Those that must be gone.
    pub clear: u64,
    /// Those that nobody asked for: they go too, unless they are locked because the source comes from a more privileged
    /// user namespace (mount_namespaces(7)).
    pub reset: u64,
}

impl MountAttributes {
    /// Sets `set` and leaves everything else.
    pub const fn setting(set: u64) -> Self {
        Self {
            set,
            clear: 0,
            reset: 0,
        }
    }

    /// Whether nothing is to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Who owns what in a bind mount, mount_setattr(2) `MOUNT_ATTR_IDMAP`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountIdMap {
    /// The maps (`inside`: ids as the file system has them); `None` for those of the container's user namespace.
    pub maps: Option<IdMaps>,
    /// Whether the mounts below are mapped too (`ridmap`).
    pub recursive: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A new file system, made inside the container's namespaces.
    Filesystem {
        /// `proc`, `tmpfs`, `mqueue` …
        fstype: CString,
        /// What the mount table calls its source.
        source: CString,
        /// fsconfig(2) options: a key with a value, or a flag alone.
        options: Vec<(CString, Option<CString>)>,
        /// Whether it starts with a copy of what is at the target (`tmpcopyup`).
        copy_up: bool,
    },
    /// A tree of the host, opened before the clone.
    Bind {
        /// Path on the host.
        source: PathBuf,
        /// Whether the mounts below it come along (`rbind`).
        recursive: bool,
        /// Whether the source must be reached without any symbolic link.
        plain_source: bool,
        /// Other owners for its files.
        id_map: Option<MountIdMap>,
        /// Whether its mount events may reach the host, where the source is shared there.
        keeps_peers: bool,
    },
    /// The container's own cgroup in one hierarchy, without a cgroup namespace. Left out when no isolator put the
    /// container into it.
    Cgroup {
        /// Its directory on the host.
        directory: PathBuf,
    },
    /// A part of the container's own tree as far as it is mounted by then.
    BindInside {
        /// Absolute path in the container.
        source: CString,
        /// Whether the mounts below it come along (`rbind`).
        recursive: bool,
        /// Other owners for its files.
        id_map: Option<MountIdMap>,
    },
    /// A tmpfs with device nodes, links and directories, filled before the clone. (Without nodes: the directory above
    /// the cgroup v1 hierarchies.)
    Devices {
        /// The nodes, by paths below it.
        nodes: Vec<DeviceNode>,
        /// Symbolic links, name in the directory and what they point at.
        links: Vec<(CString, CString)>,
        /// Empty directories that later mounts need.
        directories: Vec<CString>,
        /// tmpfs options.
        options: Vec<(CString, Option<CString>)>,
    },
}

/// A device node or FIFO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Its path: below `/dev` without a slash in front, or an absolute one.
    pub path: CString,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO` with the permission bits.
    pub mode: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Owner, as the container knows him.
    pub uid: u32,
    /// Group, as the container knows it.
    pub gid: u32,
}

/// One setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_*` of the kernel.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// The five capability sets, bit n = capability number n (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct CapabilitySets {
    /// What execve(2) can ever give.
    pub bounding: u64,
    /// What counts in a permission check.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What stays through execve(2) of a file that names it.
    pub inheritable: u64,
    /// What stays through execve(2) of an ordinary file.
    pub ambient: u64,
}

/// A seccomp program ready for seccomp(2).
#[derive(Clone)]
pub struct SeccompFilter {
    /// Classic BPF, at most 4096 instructions.
    pub program: Vec<libc::sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*`; with `NEW_LISTENER` exactly when there is a listener.
    pub flags: u64,
    /// Who answers the calls that the program hands over (seccomp_unotify(2)).
    pub listener: Option<SeccompListener>,
}

/// The agent of a filter with `SCMP_ACT_NOTIFY`, runtime-spec config-linux "seccomp".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompListener {
    /// The socket that it listens at; with `@` in front, its abstract name.
    pub path: PathBuf,
    /// What it is told beside the container's state.
    pub metadata: Option<String>,
}

impl std::fmt::Debug for SeccompFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "SeccompFilter({} instructions, flags {:#x})",
            self.program.len(),
            self.flags
        )
    }
}

impl ContainerLaunchInfo {
    /// Adds what `isolator` asks: lists append, single values may be set by one isolator only.
    ///
    /// # Errors
    /// `Error::Conflict` with the field when it was set before; the caller knows by whom from `set_by`.
    pub fn merge(
        &mut self,
        isolator: &'static str,
        other: ContainerLaunchInfo,
        set_by: &mut Vec<(&'static str, &'static str)>,
    ) -> Result<()> {
        let mut single = |field: &'static str, is_set: bool| -> Result<bool> {
            if !is_set {
                return Ok(false);
            }
            if let Some((_, first)) = set_by.iter().find(|(name, _)| *name == field) {
                return Err(Error::Conflict {
                    field,
                    first,
                    second: isolator,
                });
            }
            set_by.push((field, isolator));
            Ok(true)
        };
        macro_rules! take {
            ($($field:ident),*) => {$(
                if single(stringify!($field), other.$field.is_some())? {
                    self.$field = other.$field;
                }
            )*};
        }
        take!(
            hostname,
            domainname,
            id_maps,
            rootfs,
            oom_score_adj,
            session_keyring,
            mount_label,
            capabilities,
            seccomp
        );
        // On cgroup v2 every controller names the same directory.
        if let (Some(ours), Some(theirs)) = (&self.cgroup_v2, &other.cgroup_v2)
            && ours != theirs
        {
            return Err(Error::Conflict {
                field: "cgroup_v2",
                first: "another cgroups isolator",
                second: isolator,
            });
        }
        self.cgroup_v2 = self.cgroup_v2.take().or(other.cgroup_v2);
        for directory in other.cgroup_v1 {
            // Controllers mounted together (cpu,cpuacct) name the same directory.
            if !self.cgroup_v1.contains(&directory) {
                self.cgroup_v1.push(directory);
            }
        }
        self.loopback |= other.loopback;
        self.readonly_root |= other.readonly_root;
        self.no_new_privileges |= other.no_new_privileges;
        self.namespaces.extend(other.namespaces);
        self.join_namespaces.extend(other.join_namespaces);
        self.time_offsets.extend(other.time_offsets);
        self.sysctls.extend(other.sysctls);
        self.attributes.extend(other.attributes);
        self.mounts.extend(other.mounts);
        self.device_nodes.extend(other.device_nodes);
        self.device_links.extend(other.device_links);
        self.root_propagation |= other.root_propagation;
        self.masked_paths.extend(other.masked_paths);
        self.readonly_paths.extend(other.readonly_paths);
        self.rlimits.extend(other.rlimits);
        Ok(())
    }

    /// Gives every file system that is made for the container the `mount_label`, where there is one. procfs, sysfs and
    /// the kernel's other views have labels of their own.
    pub fn label_mounts(&mut self) {
        const OWN_LABELS: [&CStr; 5] = [c"proc", c"sysfs", c"mqueue", c"cgroup", c"cgroup2"];
        let Some(label) = &self.mount_label else {
            return;
        };
        for mount in &mut self.mounts {
            match &mut mount.kind {
                MountKind::Filesystem {
                    fstype, options, ..
                } if !OWN_LABELS.contains(&fstype.as_c_str()) => {
                    options.push((c"context".into(), Some(label.clone())));
                }
                MountKind::Devices { options, .. } => {
                    options.push((c"context".into(), Some(label.clone())));
                }
                MountKind::Filesystem { .. }
                | MountKind::Bind { .. }
                | MountKind::BindInside { .. }
                | MountKind::Cgroup { .. } => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_isolators_cannot_set_one_single_value() {
        let mut merged = ContainerLaunchInfo::default();
        let mut set_by = Vec::new();
        let with_name = || ContainerLaunchInfo {
            hostname: Some(c"web".into()),
            ..Default::default()
        };
        merged
            .merge("namespaces/uts", with_name(), &mut set_by)
            .expect("the first one");
        let error = merged
            .merge("other/one", with_name(), &mut set_by)
            .expect_err("the second one");
        let text = error.to_string();
        assert!(
            text.contains("namespaces/uts")
                && text.contains("other/one")
                && text.contains("hostname"),
            "{text}"
        );
    }

    #[test]
    fn the_mount_label_goes_on_what_is_made_for_the_container() {
        let mount = |fstype: &CStr| Mount {
            target: c"/x".into(),
            kind: MountKind::Filesystem {
                fstype: fstype.into(),
                source: fstype.into(),
                options: Vec::new(),
                copy_up: false,
            },
            attributes: MountAttributes::default(),
            recursive_attributes: MountAttributes::default(),
            propagation: 0,
            plain_target: false,
        };
        let mut info = ContainerLaunchInfo {
            mounts: vec![mount(c"proc"), mount(c"tmpfs")],
            mount_label: Some(c"a:b:c:s0".into()),
            ..Default::default()
        };
        info.label_mounts();
        let options = |index: usize| match &info.mounts[index].kind {
            MountKind::Filesystem { options, .. } => options.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(options(0), []);
        assert_eq!(options(1), [(c"context".into(), Some(c"a:b:c:s0".into()))]);
    }

    #[test]
    fn lists_append_in_configured_order_and_a_shared_cgroup_is_joined_once() {
        let mut merged = ContainerLaunchInfo::default();
        let mut set_by = Vec::new();
        for (name, path) in [
            ("cgroups/cpu", "/c"),
            ("cgroups/cpuacct", "/c"),
            ("cgroups/mem", "/m"),
        ] {
            let info = ContainerLaunchInfo {
                cgroup_v1: vec![path.into()],
                masked_paths: vec![c"/x".into()],
                ..Default::default()
            };
            merged.merge(name, info, &mut set_by).expect("no conflict");
        }
        assert_eq!(merged.cgroup_v1, [PathBuf::from("/c"), PathBuf::from("/m")]);
        assert_eq!(merged.masked_paths.len(), 3);
    }
}
