//! What is on this host of one test: found by the name that everything of the test carries.
//!
//! Other tests and other people's processes come and go meanwhile. So nothing is compared that they could change: a
//! mount, a cgroup, a path or a process counts when the name is in it, a namespace when a process of the test was
//! seen in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A process, from proc(5).
#[derive(Debug, Clone)]
pub struct Process {
    /// Its pid here.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// `NSpid:` of its status: its pid in each pid namespace, the innermost last.
    pub nspid: Vec<i32>,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its cgroups: `/proc/PID/cgroup`.
    pub cgroups: String,
    environment: Vec<u8>,
}

impl Process {
    /// Reads one; `None` when it is gone, or a zombie, which holds nothing but its number.
    pub fn read(pid: i32) -> Option<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(directory.join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        if field("State:")?.trim().starts_with(['Z', 'X']) {
            return None;
        }
        let arguments = fs::read(directory.join("cmdline")).ok()?;
        Some(Self {
            pid,
            parent: field("PPid:")?.trim().parse().ok()?,
            nspid: field("NSpid:")?
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect(),
            arguments: String::from_utf8_lossy(&arguments)
                .split_terminator('\0')
                .map(str::to_owned)
                .collect(),
            cgroups: fs::read_to_string(directory.join("cgroup")).unwrap_or_default(),
            environment: fs::read(directory.join("environ")).unwrap_or_default(),
        })
    }

    /// Whether an argument, a cgroup or a variable has `name` in it.
    pub fn carries(&self, name: &str) -> bool {
        self.cgroups.contains(name)
            || self
                .arguments
                .iter()
                .any(|argument| argument.contains(name))
            || self
                .environment
                .windows(name.len())
                .any(|part| part == name.as_bytes())
    }
}

/// All processes but our own.
pub fn processes() -> Vec<Process> {
    let own = std::process::id().cast_signed();
    let entries = fs::read_dir("/proc").expect("procfs");
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    names
        .filter(|pid| *pid != own)
        .filter_map(Process::read)
        .collect()
}

/// The processes that carry `name`.
pub fn processes_of(name: &str) -> Vec<Process> {
    processes()
        .into_iter()
        .filter(|process| process.carries(name))
        .collect()
}

/// The namespaces of a process that are not ours, as `pid:[4026532000]`.
pub fn namespaces(pid: i32) -> BTreeSet<String> {
    let read = |pid: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(format!("/proc/{pid}/ns"))
            .into_iter()
            .flatten()
            .flatten();
        let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        links
            .filter_map(|link| link.to_str().map(str::to_owned))
            .collect()
    };
    let own = read("self");
    read(&pid.to_string())
        .into_iter()
        .filter(|namespace| !own.contains(namespace))
        .collect()
}

/// Lines of our mount table with `name` in them.
pub fn mounts_of(name: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("procfs");
    table
        .lines()
        .filter(|line| line.contains(name))
        .map(str::to_owned)
        .collect()
}

/// Where cgroup hierarchies, v1 and v2, are mounted.
pub fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/mounts").expect("procfs");
    let mount = |line: &str| -> Option<PathBuf> {
        let words: Vec<&str> = line.split(' ').collect();
        matches!(*words.get(2)?, "cgroup" | "cgroup2").then(|| PathBuf::from(words[1]))
    };
    table.lines().filter_map(mount).collect()
}

/// Cgroups with `name` at the top of each hierarchy, and all below them, children before parents.
pub fn cgroups_of(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        for top in directories(&hierarchy) {
            if top
                .file_name()
                .is_some_and(|n| n.to_string_lossy().contains(name))
            {
                collect_bottom_up(&top, &mut found);
            }
        }
    }
    found
}

/// Thaws the cgroups with `name`, of either version.
pub fn thaw(name: &str) {
    for cgroup in cgroups_of(name) {
        for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            let file = cgroup.join(file);
            if file.exists() {
                // Fails when the cgroup has just gone.
                let _ = fs::write(file, word);
            }
        }
    }
}

/// Paths with `name` in them where programs keep state, two levels deep.
pub fn paths_of(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in ["/run", "/var/lib", "/var/tmp", "/tmp", "/dev/shm"] {
        for first in entries(Path::new(root)) {
            let second = entries(&first);
            found.extend(std::iter::once(first).chain(second).filter(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().contains(name))
            }));
        }
    }
    found
}

/// The directories in `directory`; none when it is gone.
pub fn directories(directory: &Path) -> Vec<PathBuf> {
    let mut found = entries(directory);
    found.retain(|path| path.symlink_metadata().is_ok_and(|m| m.is_dir()));
    found
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

fn collect_bottom_up(directory: &Path, found: &mut Vec<PathBuf>) {
    for child in directories(directory) {
        collect_bottom_up(&child, found);
    }
    found.push(directory.to_owned());
}
