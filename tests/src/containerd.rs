//! A containerd of a test's own, its shim with the runtime under test, and `ctr` to talk to it.
//!
//! Shims have their sockets in /run/containerd and `ctr` its pipes, whatever is configured: so all of it lives in a
//! mount namespace with a /run of its own, which goes with the last of them.

use std::fs::File;
use std::process::{Child, Command};
use std::time::Duration;

use crate::output::{Finished, finish};
use crate::{Ground, Image, binary, host, wait};

/// How long one command may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(90);

/// The name of the image that every containerd here has.
pub const IMAGE: &str = "localhost/busybox:latest";

/// containerd, with the image [`IMAGE`].
#[derive(Debug)]
pub struct Containerd<'a> {
    ground: &'a Ground,
    process: Child,
}

impl<'a> Containerd<'a> {
    /// Starts one with its directories in the ground.
    ///
    /// # Panics
    /// When it does not answer or does not take the image.
    #[track_caller]
    pub fn new(ground: &'a Ground) -> Self {
        let at = |name: &str| ground.path(name).display().to_string();
        let configuration = format!(
            r#"
version = 2
root = "{}"
state = "{}"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{}"
[plugins."io.containerd.internal.v1.opt"]
path = "{}"
"#,
            at("containerd-root"),
            at("containerd-state"),
            at("containerd.sock"),
            at("containerd-opt")
        );
        ground.write("containerd.toml", configuration);
        let log = || File::options().create(true).append(true).open(at("log"));
        let mut command = ground.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg("mount -t tmpfs none /run && exec containerd --config containerd.toml");
        command.stdin(std::process::Stdio::null());
        command.stdout(log().expect("a file of ours"));
        command.stderr(log().expect("a file of ours"));
        let process = command.spawn().expect("unshare of util-linux");
        let containerd = Self { ground, process };
        wait::until("containerd's answer", LIMIT, || {
            let answer = containerd.call(&["version"]);
            (answer.status == 0).then_some(())
        });
        let archive = ground.path("image.tar");
        Image::busybox().write_docker_archive(&archive, IMAGE);
        containerd
            .call(&["images", "import", "--no-unpack", &at("image.tar")])
            .success();
        containerd
    }

    /// `ctr ARGUMENTS…`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.ground.command("nsenter");
        command.arg(format!("--target={}", self.process.id()));
        command.arg("--mount").arg("ctr").arg("--address");
        command
            .arg(self.ground.path("containerd.sock"))
            .args(arguments);
        command
    }

    /// `ctr ARGUMENTS…` to its end.
    #[track_caller]
    pub fn call(&self, arguments: &[&str]) -> Finished {
        finish(&mut self.command(arguments), LIMIT)
    }

    /// `ctr run FLAGS… IMAGE ID ARGUMENTS…`, for the caller to start.
    pub fn run_command(&self, id: &str, flags: &[&str], arguments: &[&str]) -> Command {
        // Unlike overlayfs, plain copies work on any file system.
        let mut command = self.command(&["run", "--snapshotter", "native", "--runc-binary"]);
        command.arg(binary::runtime());
        command
            .arg("--runc-root")
            .arg(self.ground.path("runtime-root"));
        command.arg(format!("--cgroup=/{}/{id}", self.ground.name()));
        command.args(flags).args([IMAGE, id]).args(arguments);
        command
    }

    /// `ctr run FLAGS… IMAGE ID ARGUMENTS…` to its end.
    #[track_caller]
    pub fn run(&self, id: &str, flags: &[&str], arguments: &[&str]) -> Finished {
        finish(&mut self.run_command(id, flags, arguments), LIMIT)
    }

    /// `ctr task exec FLAGS… ID ARGUMENTS…` to its end.
    #[track_caller]
    pub fn exec(&self, id: &str, flags: &[&str], arguments: &[&str]) -> Finished {
        let command = [&["task", "exec"], flags, &[id], arguments].concat();
        self.call(&command)
    }

    /// The status of a container's task, as `ctr task ls` has it.
    #[track_caller]
    pub fn task(&self, id: &str) -> Option<String> {
        let list = self.call(&["task", "ls"]).success().stdout;
        let mut lines = list.lines().map(str::split_whitespace);
        let mut words = lines.find_map(|mut words| (words.next() == Some(id)).then_some(words))?;
        words.nth(1).map(str::to_owned)
    }

    /// Deletes a container, running or not.
    #[track_caller]
    pub fn delete(&self, id: &str) {
        self.call(&["task", "delete", "--force", id]).success();
        self.call(&["container", "delete", id]).success();
    }

    /// Ends it, when all its containers have been deleted.
    ///
    /// # Panics
    /// When the runtime keeps the state of one.
    #[track_caller]
    pub fn end(self) {
        // One directory for each of containerd's own namespaces.
        let root = self.ground.path("runtime-root");
        let namespaces = host::directories(&root).into_iter();
        let states: Vec<_> = namespaces.flat_map(|n| host::directories(&n)).collect();
        assert!(states.is_empty(), "left behind: {states:?}");
    }
}

impl Drop for Containerd<'_> {
    /// Shims that a failed test leaves go with the ground: their arguments carry its name.
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
