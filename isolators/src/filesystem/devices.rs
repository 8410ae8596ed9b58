//! Device nodes of a container: those of runtime-spec config-linux "Default Devices" and those that the declaration
//! adds, and the links of "Dev symbolic links".
//!
//! Where a tmpfs is mounted at `/dev` it is filled before the clone, because mknod(2) is refused inside a strict devices
//! cgroup. What lies elsewhere, or in the `/dev` of the root file system itself, is made in place after all mounts.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use libc::{S_IFBLK, S_IFCHR, S_IFIFO};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::mounts::{Declared, normal};
use crate::declaration::{Declaration, RootFilesystem};
use crate::error::{Error, Result};
use crate::launch_info::{DeviceNode, MountKind};

/// Character devices every container has, all of mode 0666 and owned by root: path, major, minor.
const DEFAULT: [(&CStr, u32, u32); 6] = [
    (c"/dev/null", 1, 3),
    (c"/dev/zero", 1, 5),
    (c"/dev/full", 1, 7),
    (c"/dev/random", 1, 8),
    (c"/dev/urandom", 1, 9),
    (c"/dev/tty", 5, 0),
];

/// The multiplexer of the container's own devpts; it takes the place of what is there.
pub const PTMX: &CStr = c"/dev/ptmx";

const LINKS: [(&CStr, &CStr); 6] = [
    (c"/dev/fd", c"/proc/self/fd"),
    (c"/dev/stdin", c"/proc/self/fd/0"),
    (c"/dev/stdout", c"/proc/self/fd/1"),
    (c"/dev/stderr", c"/proc/self/fd/2"),
    (PTMX, c"pts/ptmx"),
    (c"/dev/core", c"/proc/kcore"),
];

/// Mount points of what usually follows; made here, so that a read-only /dev has them.
const DIRECTORIES: [&CStr; 3] = [c"pts", c"shm", c"mqueue"];

type Links = Vec<(CString, CString)>;

/// The tmpfs at `/dev`, with these options for it.
///
/// # Errors
/// `Error::Config` for a device that cannot be made.
pub fn directory(
    declaration: &Declaration,
    options: Vec<(CString, Option<CString>)>,
) -> Result<MountKind> {
    let mut nodes = all(declaration)?;
    nodes.retain(|node| is_in_dev(&node.path));
    for node in &mut nodes {
        node.path = below_dev(&node.path);
    }
    Ok(MountKind::Devices {
        nodes,
        links: links()
            .into_iter()
            .map(|(link, to)| (below_dev(&link), to))
            .collect(),
        directories: DIRECTORIES.map(CStr::to_owned).to_vec(),
        options,
    })
}

/// The nodes and links that are made in place, by absolute path.
///
/// # Errors
/// `Error::Config` for a device that cannot be made, and for one in a root file system that is not the container's.
pub fn in_place(
    declaration: &Declaration,
    mounts: &[Declared],
) -> Result<(Vec<DeviceNode>, Links)> {
    let dev = mounts
        .iter()
        .rfind(|mount| mount.target().as_c_str() == c"/dev");
    let kind = dev.map(|dev| match dev {
        Declared::Mount(mount) => Some(&mount.kind),
        Declared::Cgroups(_) => None,
    });
    let mut nodes = all(declaration)?;
    let mut links = links();
    match kind {
        // Somebody else's /dev is complete, and nothing of ours belongs into it.
        Some(Some(MountKind::Bind { .. } | MountKind::BindInside { .. })) => {
            return Ok((Vec::new(), Vec::new()));
        }
        // Those that a later mount in /dev would hide are made in that one.
        Some(Some(MountKind::Devices { .. })) => {
            let is_hidden = |path: &CStr| {
                let covers = |mount: &Declared| {
                    let rest = path.to_bytes().strip_prefix(mount.target().as_bytes());
                    rest.is_some_and(|rest| rest.starts_with(b"/"))
                };
                mounts
                    .iter()
                    .any(|mount| mount.target().as_bytes().starts_with(b"/dev/") && covers(mount))
            };
            nodes.retain(|node| !is_in_dev(&node.path) || is_hidden(&node.path));
            links.clear();
        }
        _ => {}
    }
    let declared = declared(declaration);
    if declaration.rootfs == RootFilesystem::Host
        || matches!(declaration.rootfs, RootFilesystem::Overlay(_))
    {
        // The host's tree has devices, and the nodes of an overlay are dead.
        return match (nodes.is_empty(), declared.first()) {
            (false, Some(device)) => Err(refused(
                device,
                "with this root devices are made in a tmpfs at /dev only; add one to mounts",
            )),
            _ => Ok((Vec::new(), Vec::new())),
        };
    }
    Ok((nodes, links))
}

fn declared(declaration: &Declaration) -> &[LinuxDevice] {
    let linux = declaration.spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.devices().as_ref());
    devices.map_or(&[], Vec::as_slice)
}

fn links() -> Links {
    let mut links: Links = LINKS
        .map(|(link, to)| (link.to_owned(), to.to_owned()))
        .to_vec();
    static HAS_CORE: OnceLock<bool> = OnceLock::new();
    // A kernel may be built without it.
    if !HAS_CORE.get_or_init(|| Path::new("/proc/kcore").exists()) {
        links.retain(|(_, to)| to.as_c_str() != c"/proc/kcore");
    }
    links
}

fn is_in_dev(path: &CStr) -> bool {
    path.to_bytes().starts_with(b"/dev/")
}

fn below_dev(path: &CStr) -> CString {
    let bytes = path.to_bytes().strip_prefix(b"/dev/");
    CString::new(bytes.unwrap_or(path.to_bytes())).expect("it comes from a C string")
}

/// The default devices and the declared ones, by absolute path.
fn all(declaration: &Declaration) -> Result<Vec<DeviceNode>> {
    let mut nodes: Vec<DeviceNode> = DEFAULT
        .iter()
        .map(|&(path, major, minor)| DeviceNode {
            path: path.to_owned(),
            mode: S_IFCHR | 0o666,
            major,
            minor,
            uid: 0,
            gid: 0,
        })
        .collect();
    for device in declared(declaration) {
        let node = node(device)?;
        // It is a link into the container's own devpts, whatever is declared.
        if node.path.as_c_str() == PTMX {
            continue;
        }
        // A declared device replaces a default one of its name.
        nodes.retain(|earlier| earlier.path != node.path);
        nodes.push(node);
    }
    Ok(nodes)
}

fn refused(device: &LinuxDevice, rule: &str) -> Error {
    Error::Config {
        field: "linux.devices",
        value: device.path().display().to_string(),
        rule: rule.to_owned(),
    }
}

fn node(device: &LinuxDevice) -> Result<DeviceNode> {
    let refused = |rule: &str| refused(device, rule);
    let path = device.path();
    let is_text = path.is_absolute() && !path.as_os_str().as_bytes().contains(&0);
    let path = normal(path).filter(|_| is_text);
    let path = path.ok_or_else(|| refused("its path has to be an absolute one"))?;
    let name = below_dev(&path);
    let is_link = |&(link, _): &(&CStr, &CStr)| link != PTMX && *link == *path;
    if DIRECTORIES.iter().any(|directory| **directory == *name) || LINKS.iter().any(is_link) {
        return Err(refused("that name in /dev is a link or a directory"));
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => S_IFCHR,
        LinuxDeviceType::B => S_IFBLK,
        LinuxDeviceType::P => S_IFIFO,
        LinuxDeviceType::A => return Err(refused("its type has to be c, u, b or p")),
    };
    // 12 and 20 bits: the kernel's dev_t.
    let number = |number: i64, most: u32, rule: &str| {
        let number = u32::try_from(number).ok().filter(|number| *number <= most);
        number.ok_or_else(|| refused(rule))
    };
    let (major, minor) = match kind {
        S_IFIFO => (0, 0),
        _ => (
            number(
                device.major(),
                0xfff,
                "its major number has to be 0 to 4095",
            )?,
            number(
                device.minor(),
                0xf_ffff,
                "its minor number has to be 0 to 1048575",
            )?,
        ),
    };
    Ok(DeviceNode {
        path,
        mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
        major,
        minor,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}
