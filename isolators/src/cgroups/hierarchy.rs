//! Which cgroup hierarchies this host has, where they are mounted, and where a process is in them.
//!
//! cgroups(7): version 1 has a hierarchy for each controller or group of controllers (`cpu,cpuacct` is one directory),
//! version 2 has one for all, a hybrid host has both. Nothing is assumed about `/sys/fs/cgroup`: the mounts stand in
//! /proc/self/mountinfo, the grouping of the controllers in /proc/self/cgroup.

use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::live::LiveMount;
use crate::observe::{parse_mountinfo, record, whole_text};

/// The interface of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its interface.
    pub version: Version,
    /// Its controllers; on v1 also the name of one without controllers, as `name=systemd`.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Whether the mount lets directories be made.
    pub writable: bool,
    /// The cgroup that is found at the mount point, in the words of /proc/self/cgroup.
    root: PathBuf,
}

impl Hierarchy {
    /// The directory of a cgroup given by its absolute path from the mount point.
    pub fn directory(&self, cgroup: &Path) -> PathBuf {
        let below = cgroup.components().filter(|c| *c != Component::RootDir);
        self.mount_point.join(below.collect::<PathBuf>())
    }

    /// Turns a path of /proc/PID/cgroup into an absolute one from the mount point. `None` when the mount does not show
    /// it: the process is above or beside our cgroup namespace or the mounted part (cgroup_namespaces(7)).
    pub fn visible(&self, proc_path: &Path) -> Option<PathBuf> {
        let below = proc_path.strip_prefix(&self.root).ok()?;
        let climbs = below.components().any(|c| c == Component::ParentDir);
        (!climbs).then(|| Path::new("/").join(below))
    }
}

/// All hierarchies of this host that can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    all: Vec<Hierarchy>,
    mounts: Vec<LiveMount>,
}

impl Hierarchies {
    /// The layout of this host, read once for the life of the process.
    ///
    /// # Errors
    /// When /proc or the root of the unified hierarchy cannot be read.
    pub fn of_this_host() -> Result<&'static Self> {
        static LAYOUT: OnceLock<Hierarchies> = OnceLock::new();
        if let Some(known) = LAYOUT.get() {
            return Ok(known);
        }
        let mountinfo = read(Path::new("/proc/self/mountinfo"))?;
        let path = Path::new("/proc/self/cgroup");
        let own = record(path).map_err(|error| Error::file("read", path, error))?;
        let table: Vec<Place<'_>> = mountinfo.lines().filter_map(Place::parse).collect();
        let mut found = Self::parse(&mountinfo, &own);
        let cgroups = mountinfo
            .lines()
            .filter(|line| line.contains(" - cgroup"))
            .flat_map(|line| [line, "\n"])
            .collect::<String>();
        found.mounts = parse_mountinfo(&cgroups)
            .map_err(|error| Error::file("understand", "/proc/self/mountinfo", error))?
            .into_iter()
            .map(|line| line.mount)
            .collect();
        // A mount that another one covers is in the table but cannot be reached.
        found.mounts.retain(|mount| {
            let point = Path::new(&mount.target);
            is_in_the_open(&mount.target, &table) || point.join("cgroup.procs").exists()
        });
        let mounts = &found.mounts;
        let is_reached =
            |point: &Path| mounts.iter().any(|mount| Path::new(&mount.target) == point);
        found
            .all
            .retain(|hierarchy| is_reached(&hierarchy.mount_point));
        for hierarchy in &mut found.all {
            if hierarchy.version == Version::V2 {
                let names = read(&hierarchy.mount_point.join("cgroup.controllers"))?;
                hierarchy.controllers = names.split_whitespace().map(str::to_owned).collect();
            }
        }
        Ok(LAYOUT.get_or_init(|| found))
    }

    /// The layout that these two files describe, without the controllers of v2.
    pub(super) fn parse(mountinfo: &str, own_cgroups: &str) -> Self {
        let mounts: Vec<CgroupMount> = mountinfo.lines().filter_map(CgroupMount::parse).collect();
        let mut all = Vec::new();
        for membership in memberships(own_cgroups) {
            let version = membership.version();
            let fits = |mount: &&CgroupMount| match version {
                Version::V2 => mount.version == Version::V2,
                Version::V1 => {
                    mount.version == Version::V1
                        && membership
                            .controllers
                            .iter()
                            .all(|name| mount.super_options.contains(name))
                }
            };
            // A hierarchy can be mounted in several places: prefer one that shows all of it, then one that can be
            // written, then the first.
            let best = mounts
                .iter()
                .filter(fits)
                .min_by_key(|mount| (mount.root != Path::new("/"), !mount.writable));
            if let Some(mount) = best {
                all.push(Hierarchy {
                    version,
                    controllers: membership.controllers,
                    mount_point: mount.point.clone(),
                    writable: mount.writable,
                    root: mount.root.clone(),
                });
            }
        }
        Self {
            all,
            mounts: Vec::new(),
        }
    }

    /// The mounts of cgroup file systems that this process reaches.
    pub fn mounts(&self) -> &[LiveMount] {
        &self.mounts
    }

    /// Every hierarchy, in the order of /proc/self/cgroup.
    pub fn all(&self) -> &[Hierarchy] {
        &self.all
    }

    /// The hierarchy that a controller is in.
    pub fn of(&self, controller: &str) -> Option<&Hierarchy> {
        self.all
            .iter()
            .find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }

    /// The unified hierarchy: the only one of a v2 host, a second one without (most) controllers of a hybrid host.
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.all.iter().find(|h| h.version == Version::V2)
    }

    /// Whether a hierarchy of version 1 carries any controller.
    pub fn has_v1_controllers(&self) -> bool {
        self.all.iter().any(|hierarchy| {
            hierarchy.version == Version::V1
                && hierarchy
                    .controllers
                    .iter()
                    .any(|n| !n.starts_with("name="))
        })
    }
}

/// Where a mount of the table is.
struct Place<'a> {
    id: &'a str,
    parent: &'a str,
    /// As the kernel escapes it.
    point: &'a str,
}

impl<'a> Place<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(' ');
        let (id, parent) = (fields.next()?, fields.next()?);
        let point = fields.nth(2)?;
        Some(Self { id, parent, point })
    }

    fn leads_to(&self, point: &str) -> bool {
        let rest = point.strip_prefix(self.point.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// Whether the table alone shows that a mount point is covered by no other mount: there is one mount on it, and on the
/// way to it are only those that it stands on. A point with escapes is not found, and looked at.
fn is_in_the_open(point: &str, table: &[Place<'_>]) -> bool {
    let mut here = table.iter().filter(|place| place.point == point);
    let (Some(mount), None) = (here.next(), here.next()) else {
        return false;
    };
    let mut below = vec![mount.id];
    let mut at = mount;
    while let Some(parent) = table.iter().find(|place| place.id == at.parent) {
        if below.contains(&parent.id) {
            break;
        }
        below.push(parent.id);
        at = parent;
    }
    let mut on_the_way = table.iter().filter(|place| place.leads_to(point));
    on_the_way.all(|place| below.contains(&place.id))
}

/// One line of /proc/PID/cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The controllers of a v1 hierarchy; empty for v2.
    pub controllers: Vec<String>,
    /// The path from the root of the reader's cgroup namespace.
    pub path: PathBuf,
}

impl Membership {
    /// The hierarchy's interface.
    pub fn version(&self) -> Version {
        match self.controllers.is_empty() {
            true => Version::V2,
            false => Version::V1,
        }
    }
}

/// The lines of a /proc/PID/cgroup file.
pub fn memberships(text: &str) -> impl Iterator<Item = Membership> + '_ {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Membership {
            controllers: controllers
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
            // The kernel appends this to a cgroup that was removed under the process.
            path: PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(path)),
        })
    })
}

/// A line of mountinfo that mounts a cgroup hierarchy.
struct CgroupMount {
    version: Version,
    root: PathBuf,
    point: PathBuf,
    writable: bool,
    super_options: Vec<String>,
}

impl CgroupMount {
    /// proc_pid_mountinfo(5): id, parent, device, root, mount point, options, optional fields, `-`, type, source,
    /// options of the file system.
    fn parse(line: &str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mount: Vec<&str> = mount.split(' ').collect();
        let mut filesystem = filesystem.split(' ');
        let version = match filesystem.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        let super_options = filesystem.nth(1)?.split(',').map(str::to_owned).collect();
        let is_rw = |options: &str| options.split(',').any(|option| option == "rw");
        Some(Self {
            version,
            root: unescape(mount.get(3)?),
            point: unescape(mount.get(4)?),
            writable: is_rw(mount.get(5)?) && is_rw(line.rsplit(' ').next()?),
            super_options,
        })
    }
}

/// Undoes the octal escapes (`\040` is a space) of mountinfo.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| text.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

fn read(path: &Path) -> Result<String> {
    whole_text(path).map_err(|error| Error::file("read", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup ro,relatime - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw,relatime shared:6 master:2 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
50 23 0:30 /a /mnt/with\\040space ro,relatime - cgroup cgroup rw,memory
";
    const HYBRID_OWN: &str = "\
9:name=systemd:/init.scope
5:net_cls:/
4:memory:/mesos/3f:1
1:cpu,cpuacct:/mesos/3f:1
0::/x
";

    fn point_of(layout: &Hierarchies, controller: &str) -> Option<PathBuf> {
        Some(layout.of(controller)?.mount_point.clone())
    }

    #[test]
    fn controllers_that_are_mounted_together_are_one_hierarchy() {
        let layout = Hierarchies::parse(HYBRID_MOUNTS, HYBRID_OWN);
        assert_eq!(
            point_of(&layout, "cpu"),
            Some("/sys/fs/cgroup/cpu,cpuacct".into())
        );
        assert_eq!(point_of(&layout, "cpu"), point_of(&layout, "cpuacct"));
        assert_eq!(point_of(&layout, "net_cls"), None, "it is mounted nowhere");
        assert_eq!(
            point_of(&layout, "name=systemd"),
            Some("/sys/fs/cgroup/systemd".into())
        );
        assert_eq!(
            layout.unified().map(|h| h.mount_point.as_path()),
            Some(Path::new("/sys/fs/cgroup/unified"))
        );
        assert!(layout.has_v1_controllers());
    }

    #[test]
    fn of_several_mounts_the_whole_and_writable_one_is_taken() {
        let layout = Hierarchies::parse(HYBRID_MOUNTS, HYBRID_OWN);
        assert_eq!(
            point_of(&layout, "memory"),
            Some("/sys/fs/cgroup/memory".into())
        );
        let only_a_part = HYBRID_MOUNTS.lines().last().expect("a line");
        let layout = Hierarchies::parse(only_a_part, HYBRID_OWN);
        let memory = layout.of("memory").expect("it is mounted");
        assert_eq!(memory.mount_point, Path::new("/mnt/with space"));
        assert!(!memory.writable);
        assert_eq!(memory.visible(Path::new("/a/b")), Some("/b".into()));
        assert_eq!(memory.visible(Path::new("/mesos/3f:1")), None);
    }

    #[test]
    fn a_mount_that_may_be_covered_is_looked_at() {
        let open = "1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / /sys rw - sysfs x rw\n\
            3 2 0:3 / /sys/fs/cgroup rw - tmpfs x rw\n4 3 0:4 / /sys/fs/cgroup/cpu rw - cgroup x rw,cpu\n";
        let is_open = |more: &str| {
            let text = format!("{open}{more}");
            let table: Vec<Place<'_>> = text.lines().filter_map(Place::parse).collect();
            is_in_the_open("/sys/fs/cgroup/cpu", &table)
        };
        assert!(is_open(""));
        assert!(is_open("5 1 0:5 / /sys2 rw - tmpfs x rw\n"));
        for covering in [
            "5 4 0:5 / /sys/fs/cgroup/cpu rw - tmpfs x rw\n",
            "5 3 0:5 / /sys/fs/cgroup rw - tmpfs x rw\n",
            "5 2 0:5 / /sys rw - tmpfs x rw\n",
            "5 1 0:5 / / rw - tmpfs x rw\n",
        ] {
            assert!(!is_open(covering), "{covering}");
        }
    }

    #[test]
    fn a_colon_and_a_removed_cgroup_do_not_confuse_the_path() {
        let all: Vec<Membership> =
            memberships("4:memory:/a:b (deleted)\n0::/x\nrubbish\n").collect();
        assert_eq!(all[0].path, Path::new("/a:b"));
        assert_eq!(all[1].version(), Version::V2);
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn a_path_above_our_namespace_is_not_visible() {
        let layout = Hierarchies::parse(HYBRID_MOUNTS, HYBRID_OWN);
        let memory = layout.of("memory").expect("it is mounted");
        assert_eq!(memory.visible(Path::new("/../other")), None);
        assert_eq!(
            memory.directory(Path::new("/tepui/x")),
            Path::new("/sys/fs/cgroup/memory/tepui/x")
        );
        assert_eq!(
            memory.directory(Path::new("/")),
            Path::new("/sys/fs/cgroup/memory/")
        );
    }
}
