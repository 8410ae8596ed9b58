//! The ground that one test stands on: a directory, a cgroup parent and a name of its own, and the proof at the end
//! that nothing of it is left.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::{self, Process};
use crate::image::Image;
use crate::output::{self, Finished};
use crate::{binary, wait};

/// How long after the end of a container something of it may still be seen.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// One test's own name and directory. Dropping it ends and removes all that carries the name.
#[derive(Debug)]
pub struct Ground {
    name: String,
    directory: PathBuf,
    /// Open, so that their numbers are not given to others' namespaces before we looked.
    namespaces: Mutex<BTreeMap<String, File>>,
}

/// A container of a test, from its `state.json`.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Pid of its first process, here.
    pub pid: i32,
    /// Its state directory.
    pub directory: PathBuf,
}

impl Ground {
    /// A new one.
    ///
    /// # Panics
    /// When its directory cannot be made.
    #[allow(clippy::new_without_default)] // making one has effects
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // The dot keeps `tepui-test-7-1.` from being found in `tepui-test-7-11.`.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tepui-test-{}-{count}.", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        Self {
            name,
            directory,
            namespaces: Mutex::default(),
        }
    }

    /// The name that all of this test carries.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file into the test's directory.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// A command whose process, and what it starts, carries the name.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("TEPUI_TEST", &self.name)
            .current_dir(&self.directory);
        command
    }

    /// `tepui COMMAND` with this ground's directories.
    pub fn tepui(&self, subcommand: &str) -> Command {
        let mut command = self.command(binary::tepui());
        command.arg(subcommand).args(self.settings());
        command
    }

    /// `tepui run --rm ARGUMENTS…` to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        output::finish(
            self.tepui("run").arg("--rm").args(arguments),
            Duration::from_secs(60),
        )
    }

    /// The flags for this ground's directories.
    pub fn settings(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        [
            ("--store-dir", path("store")),
            ("--state-dir", path("state")),
            ("--cgroup-parent", format!("/{}", self.name)),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// Writes `image` as an OCI layout and says its IMAGE form.
    pub fn layout(&self, image: &Image) -> String {
        image.write_layout(&self.path("layout"), "latest");
        format!("oci:{}", self.path("layout").display())
    }

    /// The containers that have a first process. Their namespaces must be gone at the end.
    pub fn containers(&self) -> Vec<Container> {
        let mut found = Vec::new();
        for directory in host::directories(&self.path("state")) {
            let state = fs::read(directory.join("state.json")).unwrap_or_default();
            let state: Value = serde_json::from_slice(&state).unwrap_or_default();
            let (Some(id), Some(pid)) = (state["id"].as_str(), state["pid"].as_i64()) else {
                continue;
            };
            let Ok(pid @ 1..) = i32::try_from(pid) else {
                continue;
            };
            self.remember_namespaces(pid);
            // Its parent is the launcher, whose outer pid namespace must go too.
            if let Some(process) = Process::read(pid) {
                self.remember_namespaces(process.parent);
            }
            found.push(Container {
                id: id.to_owned(),
                pid,
                directory,
            });
        }
        found
    }

    /// Waits for the only container.
    #[track_caller]
    pub fn container(&self) -> Container {
        wait::until(
            "a container in the state directory",
            Duration::from_secs(20),
            || self.containers().pop(),
        )
    }

    /// From now on, no process may be left in a namespace of this one's at the end.
    pub fn remember_namespaces(&self, pid: i32) {
        let mut namespaces = self.namespaces.lock().expect("no test panics holding it");
        for name in host::namespaces(pid) {
            let kind = name.split(':').next().unwrap_or_default();
            // That of mounts would keep them all.
            if kind != "mnt"
                && let Ok(file) = File::open(format!("/proc/{pid}/ns/{kind}"))
            {
                namespaces.insert(name, file);
            }
        }
    }

    /// The processes of this test.
    pub fn processes(&self) -> Vec<Process> {
        host::processes_of(&self.name)
    }

    /// All that tepui left of this test's containers. The store, and the roots themselves, may stay.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = host::mounts_of(&self.name);
        let top = Path::new(&self.name);
        let is_root = |path: &PathBuf| path.ends_with(top);
        let paths = host::paths_of(&self.name)
            .into_iter()
            .filter(|path| *path != self.directory);
        let cgroups = host::cgroups_of(&self.name)
            .into_iter()
            .filter(|path| !is_root(path));
        let states = host::directories(&self.path("state"));
        left.extend(
            paths
                .chain(cgroups)
                .chain(states)
                .chain(self.writable_layers())
                .map(|p| p.display().to_string()),
        );
        let processes = host::processes();
        let namespaces = self.namespaces.lock().expect("no test panics holding it");
        for process in processes {
            let mut shared = host::namespaces(process.pid);
            shared.retain(|name| namespaces.contains_key(name));
            if process.carries(&self.name) || !shared.is_empty() {
                left.push(format!(
                    "process {} {:?} {shared:?}",
                    process.pid, process.arguments
                ));
            }
        }
        left
    }

    /// Directories in the store that hold the two that overlayfs writes to.
    fn writable_layers(&self) -> Vec<PathBuf> {
        let kinds = host::directories(&self.path("store"));
        let mut found: Vec<PathBuf> = kinds
            .iter()
            .flat_map(|kind| host::directories(kind))
            .collect();
        found.retain(|path| path.join("upper").is_dir() && path.join("work").is_dir());
        found
    }

    /// Proves that nothing is left.
    ///
    /// # Panics
    /// When something is, naming it.
    #[track_caller]
    pub fn assert_clean(&self) {
        let clean = wait::within(GONE_WITHIN, || self.leftovers().is_empty().then_some(()));
        assert!(
            clean.is_some(),
            "left behind:\n{}",
            self.leftovers().join("\n")
        );
        let mut namespaces = self.namespaces.lock().expect("no test panics holding it");
        namespaces.clear();
    }
}

impl Drop for Ground {
    /// Whatever the test proved or not, the machine is left as it was. What fails here fails for a thing already gone.
    fn drop(&mut self) {
        let _ = wait::within(Duration::from_secs(5), || {
            // What is frozen does not die.
            host::thaw(&self.name);
            let processes = self.processes();
            for process in &processes {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            processes.is_empty().then_some(())
        });
        for line in host::mounts_of(&self.name) {
            if let Some(target) = line.split(' ').nth(4) {
                let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        let _ = wait::within(Duration::from_secs(2), || {
            let cgroups = host::cgroups_of(&self.name);
            for cgroup in &cgroups {
                let _ = fs::remove_dir(cgroup);
            }
            cgroups.is_empty().then_some(())
        });
        let _ = fs::remove_dir_all(&self.directory);
    }
}
