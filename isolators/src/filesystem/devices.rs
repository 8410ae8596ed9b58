//! `/dev` of a container: a tmpfs with the device nodes of runtime-spec config-linux "Default Devices" and those that
//! the declaration adds, and the links of "Dev symbolic links". It is filled before the clone, because mknod(2) is
//! refused inside a strict devices cgroup.

use std::ffi::{CStr, CString};
use std::path::Path;

use libc::{S_IFBLK, S_IFCHR};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

use crate::error::{Error, Result};
use crate::launch_info::{DeviceNode, MountKind};

/// Character devices every container has, all of mode 0666 and owned by root: name, major, minor.
const DEFAULT: [(&CStr, u32, u32); 6] = [
    (c"null", 1, 3),
    (c"zero", 1, 5),
    (c"full", 1, 7),
    (c"random", 1, 8),
    (c"urandom", 1, 9),
    (c"tty", 5, 0),
];

const LINKS: [(&CStr, &CStr); 5] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];

/// Mount points of what usually follows; made here, so that a read-only /dev has them.
const DIRECTORIES: [&CStr; 3] = [c"pts", c"shm", c"mqueue"];

/// The tmpfs at `/dev`, with these options for it.
///
/// # Errors
/// `Error::Config` for a device that cannot be made in it.
pub fn directory(spec: &Spec, options: Vec<(CString, Option<CString>)>) -> Result<MountKind> {
    let mut nodes: Vec<DeviceNode> = DEFAULT
        .iter()
        .map(|&(name, major, minor)| DeviceNode {
            name: name.to_owned(),
            mode: S_IFCHR | 0o666,
            major,
            minor,
            uid: 0,
            gid: 0,
        })
        .collect();
    let linux = spec.linux().as_ref();
    let declared = linux.and_then(|linux| linux.devices().as_ref());
    for device in declared.into_iter().flatten() {
        let node = node(device)?;
        // A declared device replaces a default one of its name.
        nodes.retain(|earlier| earlier.name != node.name);
        nodes.push(node);
    }
    Ok(MountKind::Devices {
        nodes,
        links: LINKS
            .map(|(name, to)| (name.to_owned(), to.to_owned()))
            .to_vec(),
        directories: DIRECTORIES.map(CStr::to_owned).to_vec(),
        options,
    })
}

fn node(device: &LinuxDevice) -> Result<DeviceNode> {
    let refused = |rule: &str| Error::Config {
        field: "linux.devices",
        value: device.path().display().to_string(),
        rule: rule.to_owned(),
    };
    let is_direct = device.path().parent() == Some(Path::new("/dev"));
    let name = device.path().file_name().filter(|_| is_direct);
    let name = name.ok_or_else(|| refused("this version makes devices directly in /dev only"))?;
    let name =
        CString::new(name.as_encoded_bytes()).map_err(|_| refused("its name has a NUL byte"))?;
    let taken = |other: &&CStr| **other == *name;
    if DIRECTORIES.iter().any(taken) || LINKS.iter().any(|(link, _)| taken(link)) {
        return Err(refused("that name in /dev is a link or a directory"));
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => S_IFCHR,
        LinuxDeviceType::B => S_IFBLK,
        LinuxDeviceType::A | LinuxDeviceType::P => {
            return Err(refused("its type has to be c, u or b"));
        }
    };
    // 12 and 20 bits: the kernel's dev_t.
    let number = |number: i64, most: u32, rule: &str| {
        let number = u32::try_from(number).ok().filter(|number| *number <= most);
        number.ok_or_else(|| refused(rule))
    };
    Ok(DeviceNode {
        name,
        mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
        major: number(
            device.major(),
            0xfff,
            "its major number has to be 0 to 4095",
        )?,
        minor: number(
            device.minor(),
            0xf_ffff,
            "its minor number has to be 0 to 1048575",
        )?,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}
