//! Writes the id maps of a container's new user namespace, user_namespaces(7).

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tepui_isolators::launch_info::{IdMap, IdMaps};

use super::error::{Error, Result};

/// Writes both maps of the process `pid`, which waits for them.
///
/// As root directly. Without root: one line that maps ourselves is written directly, after setgroups(2) was given up
/// for it; anything more is done by newuidmap(1) and newgidmap(1), which know what /etc/subuid grants.
///
/// # Errors
/// When the kernel or the helper program refuses.
pub(super) fn write(pid: u32, maps: &IdMaps) -> Result<()> {
    let path = |file: &str| PathBuf::from(format!("/proc/{pid}/{file}"));
    let failed = |path: PathBuf| {
        move |source| Error::IdMap {
            path: path.clone(),
            source,
        }
    };
    let direct = |file: &str, map: &[IdMap]| {
        let lines: String = map
            .iter()
            .map(|m| format!("{} {} {}\n", m.inside, m.outside, m.count))
            .collect();
        // One write(2): the kernel takes a map once and whole.
        std::fs::write(path(file), lines).map_err(failed(path(file)))
    };
    if rustix::process::geteuid().is_root() {
        direct("gid_map", &maps.groups)?;
        return direct("uid_map", &maps.users);
    }
    if denies_setgroups(maps) {
        std::fs::write(path("setgroups"), "deny").map_err(failed(path("setgroups")))?;
        direct("gid_map", &maps.groups)?;
    } else {
        by_program("newgidmap", pid, &maps.groups).map_err(failed(path("gid_map")))?;
    }
    match is_ourselves(&maps.users, rustix::process::geteuid().as_raw()) {
        true => direct("uid_map", &maps.users),
        false => by_program("newuidmap", pid, &maps.users).map_err(failed(path("uid_map"))),
    }
}

/// Whether the groups of the container's processes can no longer be changed: the price of a map without root.
pub(super) fn denies_setgroups(maps: &IdMaps) -> bool {
    let group = rustix::process::getegid().as_raw();
    !rustix::process::geteuid().is_root() && is_ourselves(&maps.groups, group)
}

fn is_ourselves(map: &[IdMap], id: u32) -> bool {
    matches!(map, [one] if one.outside == id && one.count == 1)
}

fn by_program(program: &str, pid: u32, map: &[IdMap]) -> io::Result<()> {
    let mut command = Command::new(program);
    command.arg(pid.to_string()).stdin(Stdio::null());
    for line in map {
        command.args([line.inside, line.outside, line.count].map(|number| number.to_string()));
    }
    let output = command.output().map_err(|error| {
        io::Error::new(error.kind(), format!("{program} (package uidmap): {error}"))
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(io::Error::other(format!("{program}: {}", text.trim())))
        }
    }
}
