//! What a mount of type `cgroup` becomes: the container's own cgroups, in the form that the host has them.
//!
//! cgroups(7). On v2 one cgroup2 mount. On v1 a small tmpfs with one mount for each hierarchy that our `cgroups/`
//! isolators give the container a directory in, which are those that can be written (of the others it would see the
//! host's tree), and links for controllers that share one; on a hybrid host `unified` is among them. Made in the
//! container's new cgroup namespace, each shows the container's own cgroup as its root.
//!
//! They are read-only unless the declaration says `rw`. With that, v2 still keeps the container's own limits from it
//! (nsdelegate); v1 does not: root in the container can then change them, as with every other runtime. `release_agent`,
//! which runs programs on the host (CVE-2022-0492), is in the root of a hierarchy alone and so never in there.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

use super::mounts::Cgroups;
use crate::error::{Error, Result};
use crate::launch_info::{Mount, MountAttributes, MountKind};
use crate::live::LiveMount;
use crate::undefended::undefended;

const RESTRICTED: u64 =
    MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_RDONLY;

/// The v1 controllers. The list is closed: new controllers come to v2 only.
const CONTROLLERS: [&str; 15] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// One v1 hierarchy of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Hierarchy {
    /// Name of its directory.
    directory: String,
    controllers: BTreeSet<String>,
    /// `name=`, for systemd's own and the like.
    name: Option<String>,
    /// Options that a second mount has to repeat.
    flags: BTreeSet<String>,
    /// Whether directories can be made in it.
    writable: bool,
}

impl Hierarchy {
    fn of(mount: &LiveMount) -> Option<Self> {
        let directory = Path::new(&mount.target).file_name()?.to_str()?.to_owned();
        let mut hierarchy = Self {
            directory,
            controllers: BTreeSet::new(),
            name: None,
            flags: BTreeSet::new(),
            writable: [&mount.options, &mount.super_options]
                .iter()
                .all(|options| options.iter().any(|option| option == "rw")),
        };
        for option in &mount.super_options {
            if let Some(name) = option.strip_prefix("name=") {
                hierarchy.name = Some(name.to_owned());
            } else if CONTROLLERS.contains(&option.as_str()) {
                hierarchy.controllers.insert(option.clone());
            } else if matches!(option.as_str(), "xattr" | "noprefix" | "cpuset_v2_mode") {
                hierarchy.flags.insert(option.clone());
            }
        }
        let is_known = !hierarchy.controllers.is_empty() || hierarchy.name.is_some();
        is_known.then_some(hierarchy)
    }

    /// A controller of it, or its name where it has none, as /proc/self/cgroup writes it.
    fn any_controller(&self) -> Option<String> {
        let named = || self.name.as_ref().map(|name| format!("name={name}"));
        self.controllers.first().cloned().or_else(named)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.controllers == other.controllers && self.name == other.name
    }

    fn options(&self) -> Result<Vec<(CString, Option<CString>)>> {
        let mut options = Vec::new();
        for flag in self.controllers.iter().chain(&self.flags) {
            options.push((text(flag)?, None));
        }
        if let Some(name) = &self.name {
            if self.controllers.is_empty() {
                options.push((c"none".into(), None));
            }
            options.push((c"name".into(), Some(text(name)?)));
        }
        Ok(options)
    }
}

/// Where the container's directory is: for one v1 controller, or (`None`) in the unified hierarchy.
pub type Place<'a> = dyn Fn(Option<&str>) -> Result<Option<PathBuf>> + 'a;

/// The mounts for `cgroups`, where `host` is the mount table of this process.
///
/// # Errors
/// When the host has no cgroups mounted.
pub fn mounts(cgroups: &Cgroups, host: &[LiveMount], place: &Place<'_>) -> Result<Vec<Mount>> {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    let of_type = |fstype: &'static str| host.iter().filter(move |mount| mount.fstype == fstype);
    for hierarchy in of_type("cgroup").filter_map(Hierarchy::of) {
        match hierarchies
            .iter_mut()
            .find(|known| known.is_same(&hierarchy))
        {
            Some(known) => known.writable |= hierarchy.writable,
            None => hierarchies.push(hierarchy),
        }
    }
    // One that another mount covers is in the table but cannot be reached.
    let has_v2 = of_type("cgroup2").next().is_some() && place(None)?.is_some();
    match (hierarchies.is_empty(), has_v2) {
        (true, true) => {
            let mut mount = unified(cgroups, cgroups.target.clone(), place)?;
            if cgroups.is_writable_on_v2() {
                mount.attributes.set &= !MOUNT_ATTR_RDONLY;
            }
            Ok(vec![mount])
        }
        (true, false) => Err(missing()),
        (false, _) => {
            hierarchies.retain(|hierarchy| hierarchy.writable);
            v1(cgroups, &hierarchies, has_v2, place)
        }
    }
}

fn v1(
    cgroups: &Cgroups,
    hierarchies: &[Hierarchy],
    has_v2: bool,
    place: &Place<'_>,
) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    let mut directories: Vec<CString> = Vec::new();
    let mut links = Vec::new();
    let below = |name: &CString| {
        let target = [cgroups.target.as_bytes(), b"/", name.as_bytes()].concat();
        // Both parts come from a CString.
        CString::new(target).map_err(|_| unreadable("a NUL byte"))
    };
    for hierarchy in hierarchies {
        let directory = text(&hierarchy.directory)?;
        if directories.contains(&directory) {
            return Err(unreadable(&hierarchy.directory));
        }
        let kind = match cgroups.own_namespace {
            true => filesystem(c"cgroup".into(), hierarchy.options()?),
            false => bound(place(hierarchy.any_controller().as_deref())?)?,
        };
        mounts.push(restricted(below(&directory)?, kind));
        directories.push(directory);
    }
    for hierarchy in hierarchies {
        for controller in &hierarchy.controllers {
            let link = text(controller)?;
            if !directories.contains(&link) {
                links.push((link, text(&hierarchy.directory)?));
            }
        }
    }
    if has_v2 {
        let name: CString = c"unified".into();
        mounts.push(unified(cgroups, below(&name)?, place)?);
        directories.push(name);
    }
    if cgroups.read_write && cgroups.own_namespace {
        for mount in &mut mounts {
            mount.attributes.set &= !MOUNT_ATTR_RDONLY;
        }
    }
    // Its directories and links are there before it is mounted, so it can be read-only from the start.
    let top = MountKind::Devices {
        nodes: Vec::new(),
        links,
        directories,
        options: vec![(c"mode".into(), Some(c"755".into()))],
    };
    mounts.insert(0, restricted(cgroups.target.clone(), top));
    Ok(mounts)
}

fn unified(cgroups: &Cgroups, target: CString, place: &Place<'_>) -> Result<Mount> {
    let kind = match cgroups.own_namespace {
        true => filesystem(c"cgroup2".into(), Vec::new()),
        false => bound(place(None)?)?,
    };
    Ok(restricted(target, kind))
}

fn filesystem(fstype: CString, options: Vec<(CString, Option<CString>)>) -> MountKind {
    MountKind::Filesystem {
        source: fstype.clone(),
        fstype,
        options,
        copy_up: false,
    }
}

fn bound(directory: Option<PathBuf>) -> Result<MountKind> {
    let directory = directory.ok_or_else(missing)?;
    Ok(MountKind::Cgroup { directory })
}

fn restricted(target: CString, kind: MountKind) -> Mount {
    Mount {
        target,
        kind,
        attributes: MountAttributes::setting(match undefended("cgroup-readonly") {
            false => RESTRICTED,
            true => RESTRICTED & !MOUNT_ATTR_RDONLY,
        }),
        recursive_attributes: MountAttributes::default(),
        propagation: 0,
        plain_target: false,
    }
}

fn missing() -> Error {
    Error::Unsupported {
        isolator: "filesystem/linux",
        feature: "a mounted cgroup hierarchy for the mount of type cgroup".to_owned(),
    }
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| unreadable(text))
}

fn unreadable(text: &str) -> Error {
    Error::Unsupported {
        isolator: "filesystem/linux",
        feature: format!("cgroup hierarchies with distinct names ({text:?} is none)"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::observe::parse_mountinfo;

    fn table(lines: &[&str]) -> Vec<LiveMount> {
        let text: String = lines
            .iter()
            .map(|line| format!("1 0 0:1 / {line}\n"))
            .collect();
        let parsed = parse_mountinfo(&text).unwrap();
        parsed.into_iter().map(|info| info.mount).collect()
    }

    fn wanted(read_write: bool) -> Cgroups {
        Cgroups {
            target: c"/sys/fs/cgroup".into(),
            read_write,
            read_only: !read_write,
            own_namespace: true,
        }
    }

    fn place(controller: Option<&str>) -> Result<Option<PathBuf>> {
        Ok(Some(Path::new("/cg").join(controller.unwrap_or("unified"))))
    }

    fn mounts(cgroups: &Cgroups, host: &[LiveMount]) -> Result<Vec<Mount>> {
        super::mounts(cgroups, host, &place)
    }

    const V2: &str = "/sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot";
    const CPU: &str = "/sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct";
    const SYSTEMD: &str = "/sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd";
    const UNIFIED: &str = "/sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn v2_is_one_mount_and_writable_only_when_asked() {
        let attributes = |cgroups: &Cgroups| {
            let mounts = mounts(cgroups, &table(&[V2])).unwrap();
            assert_eq!(mounts.len(), 1);
            mounts[0].attributes.set
        };
        assert_eq!(attributes(&wanted(false)), RESTRICTED);
        let writable = RESTRICTED & !MOUNT_ATTR_RDONLY;
        assert_eq!(attributes(&wanted(true)), writable);
        // As runtime-spec has it: what is not read-only is writable. But never without a namespace.
        let mut cgroups = Cgroups {
            read_write: false,
            ..wanted(true)
        };
        assert_eq!(attributes(&cgroups), writable);
        cgroups.own_namespace = false;
        assert_eq!(attributes(&cgroups), RESTRICTED);
        assert!(mounts(&wanted(false), &table(&["/ rw - ext4 /dev/a rw"])).is_err());
    }

    #[test]
    fn v1_and_hybrid_hosts_have_their_hierarchies_repeated() {
        // The second cpu line is the same hierarchy, mounted again elsewhere.
        let again = "/mnt/cpu rw - cgroup cgroup rw,cpu,cpuacct";
        let closed = "/sys/fs/cgroup/misc ro - cgroup cgroup rw,misc";
        let host = table(&[CPU, again, SYSTEMD, closed, UNIFIED]);
        let writable: Vec<bool> = mounts(&wanted(true), &host)
            .unwrap()
            .iter()
            .map(|mount| mount.attributes.set & MOUNT_ATTR_RDONLY == 0)
            .collect();
        assert_eq!(
            writable,
            [false, true, true, true],
            "the tmpfs above has no use for it"
        );
        let mounts = mounts(&wanted(false), &host).unwrap();
        assert!(
            mounts
                .iter()
                .all(|mount| mount.attributes.set == RESTRICTED)
        );
        let targets: Vec<_> = mounts.iter().map(|m| m.target.to_str().unwrap()).collect();
        assert_eq!(
            targets,
            [
                "/sys/fs/cgroup",
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/systemd",
                "/sys/fs/cgroup/unified"
            ]
        );
        let MountKind::Devices {
            links, directories, ..
        } = &mounts[0].kind
        else {
            panic!("the top is a filled tmpfs");
        };
        let link = |name: &str| (text(name).unwrap(), c"cpu,cpuacct".into());
        assert_eq!(*links, [link("cpu"), link("cpuacct")]);
        assert_eq!(directories.len(), 3);
        let options = |at: usize| match &mounts[at].kind {
            MountKind::Filesystem { options, .. } => options.clone(),
            _ => Vec::new(),
        };
        assert_eq!(
            options(1),
            [(c"cpu".into(), None), (c"cpuacct".into(), None)]
        );
        let named = [
            (c"none".into(), None),
            (c"name".into(), Some(c"systemd".into())),
        ];
        assert!(named.iter().all(|option| options(2).contains(option)));
        assert_eq!(options(3), []);
    }

    #[test]
    fn without_a_namespace_the_containers_own_directories_are_bound() {
        let cgroups = Cgroups {
            own_namespace: false,
            ..wanted(false)
        };
        let mounts = mounts(&cgroups, &table(&[CPU, SYSTEMD, UNIFIED])).unwrap();
        let sources: Vec<_> = mounts
            .iter()
            .filter_map(|mount| match &mount.kind {
                MountKind::Cgroup { directory } => Some(directory.to_str().unwrap()),
                _ => None,
            })
            .collect();
        assert_eq!(sources, ["/cg/cpu", "/cg/name=systemd", "/cg/unified"]);
        assert!(
            mounts
                .iter()
                .all(|mount| mount.attributes.set == RESTRICTED)
        );
    }
}
