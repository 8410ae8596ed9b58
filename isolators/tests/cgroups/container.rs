//! A container with the cgroup isolators, and processes inside it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use oci_spec::runtime::Spec;
use tepui_isolators::cgroups::MemIsolator;
use tepui_isolators::cgroups::directory::Directory;
use tepui_isolators::cgroups::hierarchy::{Hierarchies, Version};
use tepui_isolators::{
    CgroupPlacement, ContainerId, ContainerLaunchInfo, Declaration, Isolator, Live, RootFilesystem,
    Target, Verdict, Watch, registry,
};

/// A spec with these `linux.resources`.
pub fn spec(resources: &str) -> Spec {
    let text = format!(r#"{{"ociVersion":"1.2.0","linux":{{"resources":{resources}}}}}"#);
    serde_json::from_str(&text).expect("a spec")
}

/// One container with the cgroup isolators; whatever is left of it goes when it is dropped.
pub struct Container {
    pub id: ContainerId,
    pub declaration: Declaration,
    pub info: ContainerLaunchInfo,
}

impl Container {
    /// Prepares a container with these `linux.resources`, below a parent of its own.
    pub fn prepare(resources: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let parent = format!("/tepui-test-cg-{}-{number}", std::process::id());
        let mut container = Self::below(&parent, "box", resources);
        container.info = container.prepare_all().expect("prepare");
        container
    }

    /// A container that is not prepared yet.
    pub fn below(parent: &str, id: &str, resources: &str) -> Self {
        Self {
            id: id.parse().expect("an id"),
            declaration: Declaration {
                spec: spec(resources),
                rootfs: RootFilesystem::Host,
                cgroups: CgroupPlacement {
                    parent: parent.into(),
                    nested: Default::default(),
                    name: None,
                },
                init: false,
                executable: None,
                keep_keyring: false,
                reset_cpu_affinity: false,
            },
            info: ContainerLaunchInfo::default(),
        }
    }

    pub fn isolators() -> Vec<Box<dyn Isolator>> {
        let all = registry::all().into_iter();
        all.filter(|isolator| isolator.name().starts_with("cgroups/"))
            .collect()
    }

    pub fn prepare_all(&self) -> tepui_isolators::Result<ContainerLaunchInfo> {
        let mut merged = ContainerLaunchInfo::default();
        let mut set_by = Vec::new();
        for isolator in Self::isolators() {
            let info = isolator.prepare(&self.id, &self.declaration)?;
            merged.merge(isolator.name(), info, &mut set_by)?;
        }
        Ok(merged)
    }

    pub fn directory(&self, controller: &str) -> Directory {
        Directory::of(controller, &self.id, &self.declaration.cgroups)
            .expect("a layout")
            .expect("the controller")
    }

    /// The content of the file that the controller's version has.
    pub fn file(&self, controller: &str, v1: &str, v2: &str) -> String {
        let directory = self.directory(controller);
        let file = match directory.version() {
            Version::V1 => v1,
            Version::V2 => v2,
        };
        directory.read(file).expect(file)
    }

    /// The files by which a process moves itself into the container.
    pub fn doors(&self) -> Vec<PathBuf> {
        let v1 = self.info.cgroup_v1.iter().map(|path| path.join("tasks"));
        let v2 = self
            .info
            .cgroup_v2
            .iter()
            .map(|path| path.join("cgroup.procs"));
        v1.chain(v2).collect()
    }

    /// Starts a shell inside. It says "ready" when it is in, then waits for a line before it goes on with `script`.
    pub fn start(&self, script: &str) -> Workload {
        let whole = format!(
            "for door in \"$@\"; do echo 0 > $door || exit 99; done; echo ready; read go; {script}"
        );
        let mut child = Command::new("/bin/sh")
            .args(["-c", &whole, "sh"])
            .args(self.doors())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut workload = Workload {
            child,
            input,
            output,
        };
        assert_eq!(workload.line(), "ready");
        workload
    }

    /// Runs a script inside to its end; returns what it printed.
    pub fn run(&self, script: &str) -> String {
        let mut workload = self.start(script);
        workload.go();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut workload.output, &mut text).expect("output");
        workload.child.wait().expect("its end");
        text
    }

    pub fn watch(&self) -> Box<dyn Watch> {
        let watch = MemIsolator.watch(&self.id, &self.declaration);
        watch.expect("a watch").expect("of memory")
    }

    pub fn findings(&self, pid: u32) -> Vec<(String, Verdict)> {
        let mut live = Live::default();
        let mut findings = Vec::new();
        for isolator in Self::isolators() {
            isolator
                .observe(&Target { pid }, &self.declaration, &mut live)
                .expect("observe");
            findings.extend(isolator.compare(&self.declaration, &live));
        }
        findings.into_iter().map(|f| (f.item, f.verdict)).collect()
    }

    pub fn cleanup(&self) -> tepui_isolators::Result<()> {
        let mut result = Ok(());
        for isolator in Self::isolators().iter().rev() {
            result = result.and(isolator.cleanup(&self.id, &self.declaration));
        }
        result
    }

    /// Every directory of the container or its parent that exists.
    pub fn left(&self) -> Vec<PathBuf> {
        let host = Hierarchies::of_this_host().expect("a layout");
        let parent = &self.declaration.cgroups.parent;
        let all = host.all().iter().map(|h| h.directory(parent));
        all.filter(|path| path.exists()).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let cleaned = self.cleanup();
        if !std::thread::panicking() {
            cleaned.expect("cleanup");
            assert_eq!(self.left(), Vec::<PathBuf>::new(), "left behind");
        }
    }
}

/// A process inside a container; killed when it is dropped.
pub struct Workload {
    pub child: Child,
    pub input: Option<ChildStdin>,
    pub output: BufReader<std::process::ChildStdout>,
}

impl Workload {
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("output");
        line.trim_end().to_owned()
    }

    /// Gives it a line and leaves its input open.
    pub fn write(&mut self, text: &str) {
        let input = self.input.as_mut().expect("an open input");
        input.write_all(text.as_bytes()).expect("it reads");
    }

    pub fn go(&mut self) {
        // Its end-of-file is what `read` waits for.
        self.input.take();
    }

    pub fn signal(&mut self) -> Option<i32> {
        self.child.wait().expect("its end").signal()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // It may have ended long ago; reaping it is all that counts.
        let _ = self.child.kill();
        self.child.wait().expect("reaped");
    }
}
