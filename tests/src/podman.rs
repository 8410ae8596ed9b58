//! podman with all its directories in a test's ground, and the runtime under test below it.
//!
//! containers.conf(5) and containers-storage.conf(5). Whatever podman would share with others by default (locks in
//! /dev/shm, networks in /etc, the runtime's state in /run) is led into the ground.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use crate::output::{Finished, finish};
use crate::{Ground, Image, binary};

/// How long one command may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(90);

/// The name of the image that every podman here has.
pub const IMAGE: &str = "localhost/busybox:latest";

/// podman, with the image [`IMAGE`].
#[derive(Debug)]
pub struct Podman<'a> {
    ground: &'a Ground,
}

impl<'a> Podman<'a> {
    /// One with its directories in the ground.
    ///
    /// # Panics
    /// When podman does not take the image.
    #[track_caller]
    pub fn new(ground: &'a Ground) -> Self {
        let at = |name: &str| ground.path(name).display().to_string();
        // podman's cleanup at the end of a container knows the runtime's file, but no flags for it.
        let wrapper = format!(
            "#!/bin/sh\nexec '{}' --root '{}' \"$@\"\n",
            binary::runtime().display(),
            at("state")
        );
        let wrapper = ground.write("tepui-runtime", wrapper);
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&wrapper, executable).expect("a file of ours");
        // The usual limits are above what root without CAP_SYS_RESOURCE may set; conmon would keep a cgroup of its own.
        let configuration = format!(
            r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
cgroups = "no-conmon"
[engine]
lock_type = "file"
num_locks = 16
events_logger = "file"
static_dir = "{root}/libpod"
volume_path = "{root}/volumes"
image_copy_tmp_dir = "{copy}"
[network]
network_backend = "cni"
network_config_dir = "{cni}"
cni_plugin_dirs = ["{cni}"]
"#,
            root = at("podman-root"),
            copy = at("podman-copy"),
            cni = at("podman-cni")
        );
        ground.write("containers.conf", configuration);
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            at("podman-root"),
            at("podman-run")
        );
        ground.write("storage.conf", storage);
        for directory in ["podman-copy", "podman-cni"] {
            std::fs::create_dir(ground.path(directory)).expect("a new directory");
        }
        let podman = Self { ground };
        let archive = ground.path("image.tar");
        Image::busybox().write_docker_archive(&archive, IMAGE);
        podman
            .call(&["load", "--quiet", "--input", &at("image.tar")])
            .success();
        podman
    }

    /// `podman ARGUMENTS…`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.ground.command("podman");
        for (flag, name) in [
            ("--root", "podman-root"),
            ("--runroot", "podman-run"),
            ("--tmpdir", "podman-tmp"),
            ("--runtime", "tepui-runtime"),
        ] {
            command.arg(flag).arg(self.ground.path(name));
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        command.env("CONTAINERS_CONF", self.ground.path("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.ground.path("storage.conf"));
        command.args(arguments);
        command
    }

    /// `podman ARGUMENTS…` to its end.
    #[track_caller]
    pub fn call(&self, arguments: &[&str]) -> Finished {
        finish(&mut self.command(arguments), LIMIT)
    }

    /// `podman run FLAGS… IMAGE ARGUMENTS…`, for the caller to start.
    pub fn run_command(&self, flags: &[&str], arguments: &[&str]) -> Command {
        let mut command = self.command(&["run", "--network", "none", "--pull", "never"]);
        command.arg(format!("--cgroup-parent=/{}", self.ground.name()));
        command.args(flags).arg(IMAGE).args(arguments);
        command
    }

    /// `podman run FLAGS… IMAGE ARGUMENTS…` to its end.
    #[track_caller]
    pub fn run(&self, flags: &[&str], arguments: &[&str]) -> Finished {
        finish(&mut self.run_command(flags, arguments), LIMIT)
    }

    /// A field of `podman inspect`, as a Go template: `.State.Status`.
    #[track_caller]
    pub fn inspect(&self, name: &str, field: &str) -> String {
        let format = format!("{{{{{field}}}}}");
        let found = self.call(&["inspect", "--format", &format, name]);
        found.success().stdout.trim().to_owned()
    }

    /// Removes all containers.
    #[track_caller]
    pub fn remove_all(&self) {
        self.call(&["rm", "--force", "--all", "--time", "0"])
            .success();
    }
}
