//! OCI bundles: a directory with busybox as its root file system and a config.json, and a runtime to hand it to.
//!
//! runtime-spec "bundle" and "config"; the command line is runc's. Everything is in the test's [`Ground`], which kills
//! what a failed test leaves and proves that a passed one leaves nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::image::BUSYBOX;
use crate::output::{Finished, finish, finish_into_files};
use crate::{Ground, binary};

/// How long one command of a runtime may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A program with runc's command line.
#[derive(Debug, Clone)]
pub struct Runtime {
    program: PathBuf,
    undefended: Option<String>,
}

impl Runtime {
    /// The one under test.
    pub fn under_test() -> Self {
        Self {
            program: binary::runtime(),
            undefended: None,
        }
    }

    /// The build whose defences can be switched off, with these off (names separated by commas).
    pub fn without(defences: &str) -> Self {
        Self {
            program: binary::undefended_runtime(),
            undefended: Some(defences.to_owned()),
        }
    }

    /// The same runtime, from another file.
    pub fn copied_to(&self, program: &Path) -> Self {
        fs::copy(&self.program, program).expect("the runtime can be copied");
        Self {
            program: program.to_owned(),
            undefended: self.undefended.clone(),
        }
    }

    /// Its file.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The defences that are off.
    pub fn undefended(&self) -> Option<&str> {
        self.undefended.as_deref()
    }

    /// Whether its defences are all on.
    pub fn is_defended(&self) -> bool {
        self.undefended.is_none()
    }

    /// A command of it, with its state in the test's directory.
    pub fn command(&self, ground: &Ground, arguments: &[&str]) -> Command {
        let mut command = ground.command(&self.program);
        command.arg("--root").arg(ground.path("state"));
        command.args(arguments);
        match &self.undefended {
            Some(defences) => command.env("TEPUI_UNDEFENDED", defences),
            None => command.env_remove("TEPUI_UNDEFENDED"),
        };
        command
    }
}

/// A bundle that is being made, and the container that is made of it.
#[derive(Debug)]
pub struct Bundle<'a> {
    ground: &'a Ground,
    runtime: Runtime,
    id: String,
    /// What its config.json will hold.
    pub config: Value,
}

impl<'a> Bundle<'a> {
    /// A bundle named `id`, of `runc spec`'s defaults without the terminal, and with a writable root.
    ///
    /// # Panics
    /// When busybox is not there or the directory cannot be written.
    pub fn new(ground: &'a Ground, runtime: &Runtime, id: &str) -> Self {
        let mut config: Value =
            serde_json::from_str(include_str!("bundle.json")).expect("a file of ours");
        config["linux"]["cgroupsPath"] = format!("/{}/{id}", ground.name()).into();
        // What it starts carries the test's name, for the look at what is left.
        let environment = config["process"]["env"].as_array_mut();
        let name = format!("TEPUI_TEST={}", ground.name());
        environment.expect("a list").push(name.into());
        let bundle = Self {
            ground,
            runtime: runtime.clone(),
            id: id.to_owned(),
            config,
        };
        bundle.fill();
        bundle
    }

    /// busybox, a link for each of its commands, and the usual empty directories.
    fn fill(&self) {
        for directory in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
            fs::create_dir_all(self.rootfs(directory)).expect("a directory of the bundle");
        }
        if self.rootfs("bin/busybox").exists() {
            return;
        }
        fs::copy(BUSYBOX, self.rootfs("bin/busybox")).expect("/bin/busybox of busybox-static");
        let list = Command::new(BUSYBOX).arg("--list").output();
        let list = list.expect("busybox lists its commands").stdout;
        let commands = String::from_utf8_lossy(&list).into_owned();
        for name in commands.lines().filter(|name| *name != "busybox") {
            symlink("busybox", self.rootfs("bin").join(name)).expect("a link of the bundle");
        }
        fs::write(
            self.rootfs("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/tmp:/bin/sh\n",
        )
        .expect("a file of the bundle");
        fs::write(self.rootfs("etc/group"), "root:x:0:\nweb:x:1000:\n")
            .expect("a file of the bundle");
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its directory.
    pub fn directory(&self) -> PathBuf {
        self.ground.path(&format!("bundle-{}", self.id))
    }

    /// A path in its root file system, as the host sees it.
    pub fn rootfs(&self, path: &str) -> PathBuf {
        self.directory().join("rootfs").join(path)
    }

    /// What it is to run.
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.config["process"]["args"] = json!(arguments);
        self
    }

    /// As [`Self::args`], by busybox' shell.
    pub fn shell(self, script: &str) -> Self {
        self.args(&["/bin/sh", "-c", script])
    }

    /// Sets a value of the configuration by its JSON pointer (RFC 6901), e.g. `/process/cwd`.
    ///
    /// # Panics
    /// When what should hold it is missing.
    #[track_caller]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        if let Some(place) = self.config.pointer_mut(pointer) {
            *place = value;
            return self;
        }
        let (parent, name) = pointer.rsplit_once('/').expect("a JSON pointer");
        let parent = self.config.pointer_mut(parent);
        let parent = parent.unwrap_or_else(|| panic!("nothing to hold {pointer}"));
        parent[name] = value;
        self
    }

    /// Adds one more mount, after all others.
    pub fn mount(mut self, mount: Value) -> Self {
        self.mounts().push(mount);
        self
    }

    /// Adds a bind mount of a path of the host, after all others.
    pub fn bind(self, source: &Path, destination: &str) -> Self {
        let options = ["rbind", "rw"];
        self.mount(json!({"destination": destination, "type": "bind", "source": source, "options": options}))
    }

    /// Takes away the mounts at and below a destination.
    pub fn without_mount(mut self, destination: &str) -> Self {
        let below = format!("{destination}/");
        self.mounts().retain(|mount| {
            let at = mount["destination"].as_str().unwrap_or_default();
            at != destination && !at.starts_with(&below)
        });
        self
    }

    /// Takes away a namespace: the container shares the runtime's.
    pub fn without_namespace(mut self, kind: &str) -> Self {
        let namespaces = self.config["linux"]["namespaces"].as_array_mut();
        namespaces
            .expect("a list")
            .retain(|namespace| namespace["type"] != kind);
        self
    }

    /// Adds a new namespace.
    pub fn and_namespace(mut self, kind: &str) -> Self {
        let namespaces = self.config["linux"]["namespaces"].as_array_mut();
        namespaces.expect("a list").push(json!({ "type": kind }));
        self
    }

    fn mounts(&mut self) -> &mut Vec<Value> {
        self.config["mounts"].as_array_mut().expect("a list")
    }

    /// Puts a symbolic link into the root file system, in place of what is there.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn symlink(self, path: &str, to: impl AsRef<Path>) -> Self {
        let path = self.rootfs(path);
        match path.symlink_metadata() {
            Ok(status) if status.is_dir() => fs::remove_dir_all(&path).expect("it is ours"),
            Ok(_) => fs::remove_file(&path).expect("it is ours"),
            Err(_) => {}
        }
        symlink(to, &path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        self
    }

    /// Writes a file into the root file system, with its directories.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn file(self, path: &str, content: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = self.rootfs(path);
        fs::create_dir_all(path.parent().expect("it is in the bundle")).expect("a directory");
        fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        self
    }

    /// Writes config.json.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self) -> &Self {
        let file = self.directory().join("config.json");
        fs::write(file, self.config.to_string()).expect("the bundle's configuration");
        self
    }

    /// A command of the runtime.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.runtime.command(self.ground, arguments)
    }

    /// A command of the runtime about this container, to its end: `call("kill", &["KILL"])` is `kill ID KILL`.
    #[track_caller]
    pub fn call(&self, verb: &str, arguments: &[&str]) -> Finished {
        let mut command = self.command(&[verb, &self.id]);
        finish(command.args(arguments), LIMIT)
    }

    /// `create` or `run` with flags, for the caller to start.
    pub fn start_command(&self, verb: &str, flags: &[&str]) -> Command {
        self.write();
        let mut command = self.command(&[verb, "--bundle"]);
        command.arg(self.directory()).args(flags).arg(&self.id);
        command
    }

    /// `run`, to its end.
    #[track_caller]
    pub fn run(&self) -> Finished {
        finish(&mut self.start_command("run", &[]), LIMIT)
    }

    /// `run --detach`. What the container writes goes to a file: see [`Self::output`].
    #[track_caller]
    pub fn run_detached(&self) -> Finished {
        self.start("run", &["--detach"])
    }

    /// `create`. What the container writes goes to a file: see [`Self::output`].
    #[track_caller]
    pub fn create(&self) -> Finished {
        self.start("create", &[])
    }

    /// A start that leaves a container behind, whose namespaces must be gone at the end of the test. It keeps the standard
    /// streams: of a pipe the end would come with its own, so they are files.
    #[track_caller]
    fn start(&self, verb: &str, flags: &[&str]) -> Finished {
        let pid_file = self.ground.path(&format!("{}.pid", self.id));
        let pid_flag = ["--pid-file", pid_file.to_str().expect("a path of ours")];
        let mut command = self.start_command(verb, &[flags, &pid_flag].concat());
        let finished = finish_into_files(&mut command, LIMIT, &self.ground.path(&self.id));
        if finished.status == 0 {
            self.ground.remember_namespaces(self.pid());
        }
        finished
    }

    /// The pid of a container that was started with [`Self::create`] or [`Self::run_detached`].
    ///
    /// # Panics
    /// When the runtime wrote none.
    pub fn pid(&self) -> i32 {
        let file = self.ground.path(&format!("{}.pid", self.id));
        let text = fs::read_to_string(&file).expect("the runtime wrote the pid file");
        text.trim().parse().expect("a pid file holds a number")
    }

    /// What such a container, and the runtime, wrote to standard output so far.
    pub fn output(&self) -> String {
        let file = self.ground.path(&format!("{}.stdout", self.id));
        fs::read_to_string(file).unwrap_or_default()
    }

    /// `exec` with flags, to its end.
    #[track_caller]
    pub fn exec(&self, flags: &[&str], arguments: &[&str]) -> Finished {
        let mut command = self.command(&["exec"]);
        finish(command.args(flags).arg(&self.id).args(arguments), LIMIT)
    }

    /// The `status` that `state` prints; `None` when it knows no such container.
    pub fn status(&self) -> Option<String> {
        let state = self.call("state", &[]);
        let state: Value = serde_json::from_str(&state.stdout).ok()?;
        state["status"].as_str().map(str::to_owned)
    }

    /// `delete --force`.
    #[track_caller]
    pub fn delete(&self) -> Finished {
        finish(&mut self.command(&["delete", "--force", &self.id]), LIMIT)
    }
}
