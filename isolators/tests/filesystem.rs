//! What `filesystem/linux` sees of a real process' mounts: with each of them there, and with each left out.
//!
//! Needs root; without it a test says so and ends, with REQUIRE_ALL=1 it fails.

#![allow(clippy::unwrap_used)]

mod process;

use std::path::{Path, PathBuf};
use std::process::Command;

use process::{Process, assert_all, declaration, is_root, item, verify};
use serde_json::json;
use tepui_isolators::registry;
use tepui_isolators::{Declaration, Finding, Overlay, RootFilesystem, Target, Verdict, observe};

/// One line of a script that makes a root file system by hand.
struct Line {
    /// What `filesystem/linux` calls what it makes; empty for a line that is always there.
    item: &'static str,
    shell: &'static str,
    /// What stands in its place when it is left out.
    instead: &'static str,
}

const fn line(item: &'static str, shell: &'static str, instead: &'static str) -> Line {
    Line {
        item,
        shell,
        instead,
    }
}

const SET_UP: [Line; 14] = [
    line(
        "root file system",
        "mount -t overlay -o nodev,lowerdir=$T/layer,upperdir=$T/upper,workdir=$T/work none $T/root",
        "mount --bind $T/layer $T/root",
    ),
    line(
        "",
        "cd $T/root; mount --bind /usr usr; mount --bind /dev/null $T/null",
        "",
    ),
    // Not left out altogether: umount(8) reads it.
    line(
        "mount /proc",
        "mount -t proc -o nosuid,nodev,noexec proc proc",
        "mount -t proc proc proc",
    ),
    line(
        "mount /dev",
        "mount -t tmpfs -o nosuid,mode=755 tmpfs dev",
        "",
    ),
    line(
        "mount /data",
        "mount --bind data data; mount -o remount,bind,ro,nosuid,nodev data",
        "",
    ),
    line("mask /etc/secret", "mount --bind $T/null etc/secret", ""),
    line(
        "mask /etc/secrets",
        "mount -t tmpfs -o ro tmpfs etc/secrets",
        "",
    ),
    // A mask that hides nothing: something else than the null device is bound there.
    line(
        "mask /proc/interrupts",
        "mount --bind $T/null proc/interrupts",
        "mount --bind etc/file proc/interrupts",
    ),
    line(
        "read-only /proc/sys",
        "mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys",
        "",
    ),
    line("", "touch dev/file", ""),
    line(
        "read-only /dev/file",
        "mount --bind dev/file dev/file; mount -o remount,bind,ro dev/file",
        "",
    ),
    line("root read-only", "mount -o remount,bind,ro,nodev .", ""),
    line("", "pivot_root . old; umount -l /old", ""),
    line("root propagation", "", "mount --make-shared /"),
];

struct Rootfs {
    directory: tempfile::TempDir,
}

impl Rootfs {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        for name in [
            "upper",
            "work",
            "root",
            "layer/etc/secrets",
            "layer/data",
            "layer/proc/sys",
        ] {
            std::fs::create_dir_all(top.join(name)).unwrap();
        }
        for name in ["usr", "dev", "old"] {
            std::fs::create_dir(top.join("layer").join(name)).unwrap();
        }
        for name in [
            "null",
            "layer/etc/file",
            "layer/etc/secret",
            "layer/etc/secrets/key",
            "layer/proc/interrupts",
        ] {
            std::fs::write(top.join(name), "x").unwrap();
        }
        // A link of the image that leads to the host's files when it is followed out of the root.
        std::os::unix::fs::symlink("/etc/secret", top.join("layer/etc/link")).unwrap();
        for name in ["bin", "lib", "lib64"] {
            let (host, own) = (Path::new("/").join(name), top.join("layer").join(name));
            if let Ok(to) = std::fs::read_link(&host) {
                std::os::unix::fs::symlink(to, own).unwrap();
            }
        }
        Self { directory }
    }

    fn declaration(&self) -> Declaration {
        let spec = json!({
            "root": { "path": "", "readonly": true },
            "mounts": [
                { "destination": "/proc", "type": "proc", "options": ["nosuid", "nodev", "noexec"] },
                { "destination": "/dev", "type": "tmpfs", "options": ["nosuid", "mode=755"] },
                { "destination": "/data", "type": "bind", "source": "/srv", "options": ["ro", "nosuid", "nodev"] }
            ],
            "linux": {
                "namespaces": [{ "type": "mount" }, { "type": "pid" }],
                "maskedPaths": ["/etc/secret", "/etc/secrets", "/proc/interrupts", "/etc/link", "/etc/absent"],
                "readonlyPaths": ["/proc/sys", "/dev/file", "/etc/absent"]
            }
        });
        Declaration {
            rootfs: RootFilesystem::Overlay(Overlay {
                layers: self.directory.path().into(),
                lower: vec!["layer".to_owned()],
                writable: self.directory.path().into(),
            }),
            ..declaration(spec)
        }
    }

    /// Starts a process in it, without the line of one item.
    fn start(&self, without: &str) -> Process {
        let line = |line: &Line| match !line.item.is_empty() && line.item == without {
            true => line.instead,
            false => line.shell,
        };
        let lines: Vec<_> = SET_UP.iter().map(line).collect();
        let script = format!(
            "T={}\n{}",
            self.directory.path().display(),
            lines.join("\n")
        );
        let command = [
            "unshare",
            "--fork",
            "--kill-child",
            "--pid",
            "--mount",
            "--propagation",
            "private",
        ];
        Process::start(&command, &script, true)
    }
}

#[test]
fn file_systems() {
    if !is_root() {
        return;
    }
    let weaker = |findings: &[Finding]| -> Vec<String> {
        let weaker = findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Weaker);
        weaker.map(|finding| finding.item.clone()).collect()
    };
    let whole = Rootfs::new();
    let process = whole.start("none of them");
    let findings = verify("filesystem/linux", &process, &whole.declaration());
    assert_all(&findings, Verdict::Match);
    assert_eq!(item(&findings, "mask /etc/link").live, "the null device");
    assert_eq!(
        item(&findings, "mask /etc/absent").live,
        "it does not exist"
    );
    drop(process);

    for line in SET_UP.iter().filter(|line| !line.item.is_empty()) {
        let rootfs = Rootfs::new();
        let process = rootfs.start(line.item);
        let weaker = weaker(&verify("filesystem/linux", &process, &rootfs.declaration()));
        let expected: &[&str] = match line.item {
            // The link of the image leads to it.
            "mask /etc/secret" => &["mask /etc/secret", "mask /etc/link"],
            item => &[item],
        };
        assert_eq!(weaker, expected, "without the line for {}", line.item);
    }

    let outside = Process::start(&[], "", false);
    let weaker = weaker(&verify("filesystem/linux", &outside, &whole.declaration()));
    for item in [
        "mnt namespace",
        "root file system",
        "root read-only",
        "mount /data",
    ] {
        assert!(
            weaker.iter().any(|weaker| weaker == item),
            "{item} in {weaker:?}"
        );
    }
}

/// A cgroup of this test alone, in one hierarchy of the host.
struct Cgroup {
    directory: PathBuf,
    procs: &'static str,
    mount: String,
}

impl Cgroup {
    fn new() -> Option<Self> {
        let own = Target {
            pid: std::process::id(),
        };
        let table = observe::mounts(&own).unwrap();
        let has = |option: &str, words: &[String]| words.iter().any(|word| word == option);
        let found =
            table
                .iter()
                .map(|info| &info.mount)
                .find(|mount| match mount.fstype.as_str() {
                    "cgroup" => has("pids", &mount.super_options),
                    "cgroup2" => mount.target == "/sys/fs/cgroup",
                    _ => false,
                })?;
        let directory = Path::new(&found.target).join(format!("tepui-test-observe-{}", own.pid));
        std::fs::create_dir(&directory).unwrap();
        let (procs, mount) = match found.fstype.as_str() {
            "cgroup" => ("tasks", "mount -t cgroup -o pids"),
            _ => ("cgroup.procs", "mount -t cgroup2 -o "),
        };
        Some(Self {
            directory,
            procs,
            mount: mount.to_owned(),
        })
    }

    /// A process in it whose cgroup mount is made with `options`, in a cgroup namespace of its own or not.
    fn start(&self, namespace: &[&str], options: &str) -> Process {
        let command = [
            &["unshare", "--mount", "--propagation", "private"][..],
            namespace,
        ]
        .concat();
        // Into the cgroup first: the namespace's root is the cgroup that its maker is in.
        let enter = format!(
            "echo $$ > {}/{}; exec \"$@\"",
            self.directory.display(),
            self.procs
        );
        let command = [&["sh", "-c", &enter, "enter"][..], &command].concat();
        let mount = match self.mount.ends_with(' ') {
            true => format!("{}{options}", self.mount),
            false => format!("{},{options}", self.mount),
        };
        let script = format!(
            "mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/x && {mount} none /sys/fs/cgroup/x"
        );
        Process::start(&command, &script, false)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.directory).unwrap();
    }
}

#[test]
fn cgroup_mounts() {
    if !is_root() {
        return;
    }
    let Some(cgroup) = Cgroup::new() else {
        assert!(std::env::var_os("REQUIRE_ALL").is_none(), "no cgroups here");
        return;
    };
    let declared = declaration(json!({
        "mounts": [{ "destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"] }],
        "linux": { "namespaces": [{ "type": "cgroup" }] }
    }));
    let finding = |process: &Process| {
        let findings = verify("filesystem/linux", process, &declared);
        item(&findings, "mount /sys/fs/cgroup").clone()
    };
    let own = cgroup.start(&["--cgroup"], "ro,nosuid,nodev,noexec");
    assert_all(&[finding(&own)], Verdict::Match);
    let writable = finding(&cgroup.start(&["--cgroup"], "nosuid,nodev,noexec"));
    assert_eq!(writable.verdict, Verdict::Weaker);
    assert!(writable.live.contains("lacks ro"), "{writable:?}");
    let whole = finding(&cgroup.start(&[], "ro,nosuid,nodev,noexec"));
    assert_eq!(whole.verdict, Verdict::Weaker);
    assert!(whole.live.contains("whole hierarchy"), "{whole:?}");
    let left_out = Process::start(
        &["unshare", "--mount"],
        "mount -t tmpfs none /sys/fs/cgroup",
        false,
    );
    assert_eq!(finding(&left_out).verdict, Verdict::Weaker);
    drop(own);
}

#[test]
fn cleaning_up_does_not_go_into_a_mount_that_is_left_in_the_writable_layer() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("precious"), "x").unwrap();
    let store = tempfile::tempdir().unwrap();
    let writable = store.path().join("web.1");
    let data = writable.join("upper/a/data");
    std::fs::create_dir_all(&data).unwrap();
    let declared = Declaration {
        rootfs: RootFilesystem::Overlay(Overlay {
            layers: "/nowhere".into(),
            lower: Vec::new(),
            writable: writable.clone(),
        }),
        ..declaration(json!({}))
    };
    let id = "web.1".parse().unwrap();
    let isolators = registry::select(Some("filesystem/linux")).unwrap();
    let run = |command: &mut Command| assert!(command.status().unwrap().success());
    run(Command::new("mount")
        .arg("--bind")
        .arg(outside.path())
        .arg(&data));
    let refused = registry::cleanup(&isolators, &id, &declared);
    // A moved directory takes its mount along: find it again.
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let place = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    let ours = writable.to_str().unwrap();
    for path in table
        .lines()
        .filter_map(place)
        .filter(|path| path.starts_with(ours))
    {
        run(Command::new("umount").arg(path));
    }
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("could not remove"), "{error}");
    assert!(outside.path().join("precious").exists());
    registry::cleanup(&isolators, &id, &declared).unwrap();
    assert!(!writable.exists());
}
