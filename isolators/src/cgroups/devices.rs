//! `cgroups/devices`: which devices a container may open and make nodes of.
//!
//! runtime-spec config-linux "Allowed Device list". v1 has a controller (cgroup-v1/devices); v2 has none, but runs a
//! program of the type BPF_CGROUP_DEVICE at each open(2) and mknod(2) (cgroup-v2 "Device controller"). The proof that
//! the right program is attached is the kernel's fingerprint of it, compared with that of the declared rules.

use std::fs::File;
use std::os::fd::AsFd;

use super::device_rules::{Rule, Table, parse, program};
use super::directory::Directory;
use super::hierarchy::{Hierarchies, Version};
use super::observation::{self, Item};
use crate::bpf;
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};

const NAME: &str = "cgroups/devices";
const CONTROLLER: &str = "devices";
const LIST: &str = "devices.list";

/// The entry of `Live::cgroup` for the programs of v2, which no file shows: their fingerprints, or `none`.
pub const PROGRAMS: &str = "bpf cgroup_device programs";

/// The isolator `cgroups/devices`.
#[derive(Debug, Clone, Copy, Default)]
pub struct DevicesIsolator;

/// The declared rules; `None` when there are none, which declares nothing.
fn declared(declaration: &Declaration) -> Result<Option<Vec<Rule>>> {
    let rules = super::resources(declaration).and_then(|all| all.devices().as_ref());
    rules
        .filter(|rules| !rules.is_empty())
        .map(|rules| parse(rules))
        .transpose()
}

/// The container's directory for this controller: v1's own hierarchy, else the unified one.
fn directory(id: &ContainerId, declaration: &Declaration) -> Result<Option<Directory>> {
    match Directory::of(CONTROLLER, id, &declaration.cgroups)? {
        Some(v1) => Ok(Some(v1)),
        None => Directory::unified(id, &declaration.cgroups),
    }
}

fn write_v1(directory: &Directory, rules: &[Rule]) -> Result<()> {
    let table = Table::of(rules)?;
    let (first, file) = match table.allow {
        false => ("devices.deny", "devices.allow"),
        true => ("devices.allow", "devices.deny"),
    };
    // Sets the default and forgets all exceptions.
    directory.write(first, "a")?;
    let exceptions = table.exceptions.iter();
    let exceptions = exceptions.map(|(devices, access)| format!("{devices} {access}"));
    directory.write_each(file, &exceptions.collect::<Vec<_>>())
}

fn attach_v2(directory: &Directory, rules: &[Rule]) -> Result<()> {
    let failed = |action: &str, error| Error::file(action, directory.path(), error);
    let loaded = bpf::load_device_program(&program(rules))
        .map_err(|error| failed("load the device program for", error))?;
    let cgroup = File::open(directory.path()).map_err(|error| failed("open", error))?;
    bpf::attach_device_program(cgroup.as_fd(), loaded.as_fd())
        .map_err(|error| failed("attach the device program to", error))
}

/// The kernel's fingerprint of the program for these rules; it needs the right to load it.
fn expected_tag(rules: &[Rule]) -> std::io::Result<String> {
    let loaded = bpf::load_device_program(&program(rules))?;
    Ok(hex(bpf::tag(loaded.as_fd())?))
}

fn hex(tag: bpf::Tag) -> String {
    tag.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Isolator for DevicesIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let Some(rules) = declared(declaration)? else {
            // On v1 it is still in a cgroup of its own.
            let v1 =
                Directory::of(CONTROLLER, id, &declaration.cgroups)?.filter(Directory::is_writable);
            v1.iter().try_for_each(|directory| directory.create(None))?;
            return Ok(super::join_all(&v1));
        };
        let directory = directory(id, declaration)?.ok_or_else(|| Error::Unsupported {
            isolator: NAME,
            feature: "a devices hierarchy or cgroup v2, and neither is mounted".into(),
        })?;
        directory.create(None)?;
        match directory.version() {
            Version::V1 => write_v1(&directory, &rules)?,
            Version::V2 => attach_v2(&directory, &rules)?,
        }
        Ok(super::join_all([&directory]))
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        if Hierarchies::of_this_host()?.of(CONTROLLER).is_some() {
            return observation::read_files(CONTROLLER, target, &[LIST], &[], live);
        }
        let Some(seen) = observation::locate("", target, live)? else {
            return Ok(());
        };
        let failed = |error| Error::Observe {
            what: format!("the device programs of {}", seen.directory.display()),
            pid: target.pid,
            source: error,
        };
        let cgroup = File::open(&seen.directory).map_err(failed)?;
        match bpf::device_program_tags(cgroup.as_fd()) {
            Ok(tags) if tags.is_empty() => {
                live.cgroup.insert(PROGRAMS.into(), "none".into());
            }
            Ok(tags) => {
                let tags: Vec<String> = tags.into_iter().map(hex).collect();
                live.cgroup.insert(PROGRAMS.into(), tags.join(" "));
            }
            // Without CAP_BPF or CAP_SYS_ADMIN they cannot be seen, which `compare` reports as unknown.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        // `prepare` refuses rules that cannot be read; here they leave nothing to compare with.
        let Ok(Some(rules)) = declared(declaration) else {
            return Vec::new();
        };
        let item = Item {
            isolator: NAME,
            controller: CONTROLLER,
            name: "allowed devices",
            declared: format!("{} rules", rules.len()),
        };
        let by_list = |content: &str| match (Table::of(&rules), Table::parse_list(content)) {
            (Ok(declared), Some(live)) => compare_tables(&declared, &live),
            _ => Verdict::Unknown,
        };
        let by_program = |content: &str| match (content, expected_tag(&rules)) {
            ("none", _) => Verdict::Weaker,
            // Every attached program must allow an access, so more of them only refuse more.
            (tags, Ok(expected)) if tags.split(' ').any(|tag| tag == expected) => Verdict::Match,
            // Somebody else's program: it may allow more or less.
            (_, _) => Verdict::Unknown,
        };
        vec![item.compare(live, &[(LIST, &by_list), (PROGRAMS, &by_program)])]
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        match directory(id, declaration)? {
            Some(directory) => directory.remove(id, &declaration.cgroups),
            None => Ok(()),
        }
    }
}

fn compare_tables(declared: &Table, live: &Table) -> Verdict {
    match (declared.allow, live.allow) {
        (false, true) => Verdict::Weaker,
        (true, false) => Verdict::Stronger,
        // The list does not show what is refused.
        (true, true) if declared.exceptions.is_empty() => Verdict::Match,
        (true, true) => Verdict::Unknown,
        (false, false) if declared.set() == live.set() => Verdict::Match,
        (false, false) if live.set().is_subset(&declared.set()) => Verdict::Stronger,
        (false, false) => Verdict::Weaker,
    }
}
