//! Mounts of a bundle as the container sees them, started by `launch` itself.
//!
//! Needs root; without it a test says so and ends, with REQUIRE_ALL=1 it fails.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::RenameFlags;
use serde_json::{Value, json};
use tepui::launch::{self, Handover, Patient, user_namespace};
use tepui_isolators::filesystem::linux::LinuxFilesystem;
use tepui_isolators::launch_info::{IdMap, IdMaps};
use tepui_isolators::{
    CgroupPlacement, Declaration, Isolator, Live, RootFilesystem, Target, Verdict, registry,
};

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(
        is_root || std::env::var_os("REQUIRE_ALL").is_none(),
        "this test needs root"
    );
    is_root
}

/// A bundle with busybox in its root.
struct Bundle {
    directory: tempfile::TempDir,
}

impl Bundle {
    fn new() -> Self {
        let bundle = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        for name in ["rootfs/bin", "rootfs/etc", "rootfs/tmp", "mount", "source"] {
            fs::create_dir_all(bundle.path(name)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"];
        let busybox = busybox.iter().find(|path| Path::new(path).exists());
        fs::copy(busybox.unwrap(), bundle.path("rootfs/bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "stat", "ls", "readlink", "grep", "awk", "mount", "touch", "sleep",
        ] {
            symlink("busybox", bundle.path("rootfs/bin").join(name)).unwrap();
        }
        bundle
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn declaration(&self, mounts: Value, linux: Value, script: &str) -> Declaration {
        let mut all = vec![json!({ "destination": "/proc", "type": "proc" })];
        all.extend(mounts.as_array().unwrap().iter().cloned());
        let mut linux = linux;
        linux["namespaces"] = json!([{ "type": "mount" }, { "type": "pid" }]);
        let spec = json!({
            "root": { "path": "" },
            "process": { "cwd": "/", "args": ["sh", "-c", script], "env": ["PATH=/bin"], "user": {} },
            "mounts": all,
            "linux": linux
        });
        Declaration {
            spec: serde_json::from_value(spec).unwrap(),
            rootfs: RootFilesystem::Directory(self.path("rootfs")),
            cgroups: CgroupPlacement {
                parent: "/tepui-test-mounts".into(),
                nested: Default::default(),
                name: None,
            },
            init: false,
            executable: None,
            keep_keyring: false,
            reset_cpu_affinity: false,
        }
    }

    fn start(&self, declaration: &Declaration) -> launch::Result<launch::Process> {
        let isolators = registry::select(Some("filesystem/linux,namespaces/pid")).unwrap();
        self.start_with(&isolators, declaration)
    }

    fn start_with(
        &self,
        isolators: &[Box<dyn Isolator>],
        declaration: &Declaration,
    ) -> launch::Result<launch::Process> {
        let id = "mounts.1".parse().unwrap();
        let info = registry::prepare(isolators, &id, declaration)?;
        let output = fs::File::create(self.path("output")).unwrap();
        let stdio = [
            fs::File::open("/dev/null").unwrap().into(),
            output.try_clone().unwrap().into(),
            output.into(),
        ];
        let handover = Handover::new(stdio, self.path("mount"), None);
        launch::prepare(declaration, info, handover, &mut Patient)?.start(&mut Patient)
    }

    fn output(&self) -> String {
        fs::read_to_string(self.path("output")).unwrap()
    }

    /// Runs a script to its end and says what it wrote; the host's mounts are what they were.
    #[track_caller]
    fn run(&self, mounts: Value, linux: Value, script: &str) -> String {
        let before = host_mounts(self.directory.path());
        let declaration = self.declaration(mounts, linux, script);
        let process = self.start(&declaration).unwrap_or_else(|error| {
            panic!("{}", chain(&error));
        });
        let status = process.reap().unwrap();
        assert_eq!(status, 0, "{}", self.output());
        assert_eq!(before, host_mounts(self.directory.path()));
        self.output()
    }

    #[track_caller]
    fn refused(&self, mounts: Value, linux: Value) -> String {
        let declaration = self.declaration(mounts, linux, "true");
        chain(&self.start(&declaration).map(drop).unwrap_err())
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// The host's mounts below a directory: other tests mount and unmount elsewhere.
fn host_mounts(below: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_below = |line: &&str| line.contains(below.to_str().unwrap());
    table.lines().filter(is_below).map(str::to_owned).collect()
}

/// A tmpfs of the host, unmounted in the end.
struct HostMount(PathBuf);

impl HostMount {
    fn new(path: PathBuf, options: &str) -> Self {
        let mount = |arguments: &[&str]| {
            let mut command = Command::new("mount");
            assert!(
                command
                    .args(arguments)
                    .arg(&path)
                    .status()
                    .unwrap()
                    .success()
            );
        };
        fs::create_dir_all(&path).unwrap();
        mount(&["-t", "tmpfs", "-o", "strictatime", "none"]);
        if !options.is_empty() {
            mount(&["-o", &format!("remount,bind,{options}")]);
        }
        Self(path)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-R").arg(&self.0).status();
        assert!(unmounted.unwrap().success());
        fs::remove_dir(&self.0).unwrap();
    }
}

/// A script that prints the mount options of `/mnt`.
const OPTIONS: &str = "awk '$2 == \"/mnt\" { print $4 }' /proc/self/mounts";

fn flags_of(bundle: &Bundle, source: &Path, options: &[&str]) -> Vec<String> {
    let mounts = json!([{ "destination": "/mnt", "source": source, "options": options }]);
    let output = bundle.run(mounts, json!({}), OPTIONS);
    output.trim().split(',').map(str::to_owned).collect()
}

#[test]
fn flags_of_a_bind_are_the_sources_or_those_asked_for() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let source = HostMount::new(bundle.path("host"), "ro,nosuid,noexec,nodiratime");
    let flags = |options: &[&str]| {
        let flags = flags_of(&bundle, &source.0, options);
        move |name: &str| flags.iter().any(|flag| flag == name)
    };
    let kept = flags(&["bind"]);
    assert!(kept("ro") && kept("nosuid") && kept("noexec") && kept("nodiratime"));
    let cleared = flags(&["bind", "dev"]);
    assert!(cleared("rw") && !cleared("nosuid") && !cleared("noexec") && cleared("nodiratime"));
    let added = flags(&["bind", "remount", "nodev"]);
    assert!(added("ro") && added("nosuid") && added("nodev"));
    let timed = flags(&["bind", "relatime"]);
    assert!(timed("relatime") && !timed("nodiratime"));
}

#[test]
fn recursive_flags_reach_the_mounts_below() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let top = HostMount::new(bundle.path("host"), "");
    let _below = HostMount::new(bundle.path("host/sub"), "nosuid,nodev");
    let script =
        "for m in /mnt /mnt/sub; do awk -v m=$m '$2 == m { print $4 }' /proc/self/mounts; done";
    let of = |options: &[&str]| {
        let mounts = json!([{ "destination": "/mnt", "source": top.0, "options": options }]);
        let output = bundle.run(mounts, json!({}), script);
        let lines = output.lines().map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    let plain = of(&["rbind", "ro"]);
    assert!(
        plain[0].starts_with("ro") && plain[1].starts_with("rw,"),
        "{plain:?}"
    );
    let both = of(&["rbind", "nosuid", "rro", "rdev"]);
    assert!(
        both[0].starts_with("ro,nosuid") && both[1].starts_with("ro,nosuid"),
        "{both:?}"
    );
    assert!(!both[1].contains("nodev"), "{both:?}");
    let times = of(&["rbind", "ratime"]);
    assert!(
        times.iter().all(|line| line.contains("relatime")),
        "{times:?}"
    );
    let times = of(&["rbind", "rnoatime"]);
    assert!(
        times.iter().all(|line| line.contains("noatime")),
        "{times:?}"
    );
}

#[test]
fn an_id_map_changes_the_owners() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    bundle.write("source/file", "x");
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 10 }]);
    let mounts = json!([{
        "destination": "/mnt", "source": bundle.text("source"), "options": ["bind"],
        "uidMappings": map, "gidMappings": map
    }]);
    let script = "stat -c %u:%g /mnt/file; stat -c %u /mnt; exec sleep 1000";
    let declaration = bundle.declaration(mounts.clone(), json!({}), script);
    let process = bundle.start(&declaration).unwrap();
    while bundle.output().lines().count() < 2 {
        std::thread::yield_now();
    }
    assert_eq!(bundle.output(), "100000:100000\n100000\n");
    // And the audit sees that it is one.
    assert_eq!(verdict(&process, &declaration), Verdict::Match);
    process.kill();
    process.reap().unwrap();
    let mut plain = mounts[0].clone();
    for key in ["uidMappings", "gidMappings"] {
        plain.as_object_mut().unwrap().remove(key);
    }
    let plain = bundle.declaration(json!([plain]), json!({}), "exec sleep 1000");
    let process = bundle.start(&plain).unwrap();
    assert_eq!(verdict(&process, &declaration), Verdict::Weaker);
    process.kill();
    process.reap().unwrap();
}

/// How the mount at /mnt compares with a declaration.
fn verdict(process: &launch::Process, declaration: &Declaration) -> Verdict {
    let isolator = LinuxFilesystem;
    let target = Target {
        pid: process.host_pid,
    };
    let mut live = Live::default();
    isolator.observe(&target, declaration, &mut live).unwrap();
    let findings = isolator.compare(declaration, &live);
    let mut findings = findings.iter();
    findings
        .find(|finding| finding.item == "mount /mnt")
        .unwrap()
        .verdict
}

#[test]
fn sources_in_the_root_directory_show_the_mounts_made_before() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    bundle.write("source/file", "inner");
    let mounts = json!([
        { "destination": "/mnt", "type": "tmpfs" },
        { "destination": "/mnt/x", "source": bundle.text("source"), "options": ["bind"] },
        { "destination": bundle.text("rootfs/final"), "source": bundle.text("rootfs/mnt"), "options": ["rbind", "ro"] }
    ]);
    assert_eq!(bundle.run(mounts, json!({}), "cat /final/x/file"), "inner");
}

#[test]
fn a_tmpfs_starts_with_what_it_covers() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    bundle.write("rootfs/data/sub/file", "content");
    let sub = bundle.path("rootfs/data/sub");
    fs::set_permissions(&sub, fs::Permissions::from_mode(0o2777)).unwrap();
    std::os::unix::fs::chown(sub.join("file"), Some(5), Some(6)).unwrap();
    // Copied as a link, wherever it leads.
    symlink("/etc/passwd", bundle.path("rootfs/data/link")).unwrap();
    let mounts = json!([{ "destination": "/data", "type": "tmpfs", "options": ["tmpcopyup", "ro", "size=1m"] }]);
    let script = "stat -c %a /data/sub; stat -c %u:%g /data/sub/file; cat /data/sub/file; readlink /data/link; touch /data/new || echo ' ro'";
    let output = bundle.run(mounts, json!({}), script);
    assert!(
        output.starts_with("2777\n5:6\ncontent/etc/passwd\n"),
        "{output}"
    );
    assert!(output.ends_with(" ro\n"), "{output}");
}

#[test]
fn missing_targets_are_made_where_links_lead_inside_the_root() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    bundle.write("source/file", "bound");
    symlink("/tmp/foo/bar", bundle.path("rootfs/jump")).unwrap();
    symlink(
        "/jump/../../../../baz/hosts",
        bundle.path("rootfs/etc/hosts"),
    )
    .unwrap();
    let mounts = json!([{ "destination": "/etc/hosts", "source": bundle.text("source/file"), "options": ["bind"] }]);
    // `..` at the top stays there.
    assert_eq!(bundle.run(mounts, json!({}), "cat /baz/hosts"), "bound");
    symlink("/loop", bundle.path("rootfs/loop")).unwrap();
    let mounts = json!([{ "destination": "/loop/x", "type": "tmpfs" }]);
    let error = bundle.refused(mounts, json!({}));
    assert!(error.contains("symbolic links"), "{error}");
}

#[test]
fn modes_of_new_directories_and_file_systems() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let set = |name: &str, mode| {
        fs::create_dir(bundle.path(name)).unwrap();
        fs::set_permissions(bundle.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    set("rootfs/inherit", 0o710);
    set("rootfs/setgid", 0o7755);
    let mounts = json!([
        { "destination": "/inherit", "type": "tmpfs" },
        { "destination": "/setgid/a/b", "type": "tmpfs", "options": ["ro"] },
        { "destination": "/own", "type": "tmpfs", "options": ["mode=1500"] }
    ]);
    let output = bundle.run(
        mounts,
        json!({}),
        "stat -c %a /inherit /setgid/a /setgid/a/b /own",
    );
    assert_eq!(output, "710\n2755\n1777\n1500\n");
    let mode = |name: &str| fs::metadata(bundle.path(name)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("rootfs/own"), mode("rootfs/setgid/a/b")),
        (0o755, 0o2755)
    );
    assert_eq!(mode("rootfs/inherit"), 0o710);
}

#[test]
fn a_readonly_file_system_is_filled_first() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let mounts = json!([
        { "destination": "/mnt", "type": "tmpfs", "options": ["ro"] },
        { "destination": "/mnt/sub/dir", "type": "tmpfs" },
        { "destination": "/dev", "type": "tmpfs", "options": ["ro", "nosuid"] },
        { "destination": "/dev/shm", "type": "tmpfs" },
        { "destination": "/dev/own", "type": "tmpfs" }
    ]);
    let script = "touch /mnt/sub/dir/x /dev/own/x; grep -E ' /(mnt|dev) ' /proc/self/mounts";
    let output = bundle.run(mounts, json!({}), script);
    assert_eq!(output.matches(" ro,").count(), 2, "{output}");
}

#[test]
fn options_longer_than_the_new_mount_calls_take() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let long = "d".repeat(200);
    for name in ["a", "b"] {
        bundle.write(&format!("{long}/{name}/{name}"), name);
    }
    let lower = |name: &str| bundle.text(&format!("{long}/{name}"));
    let lowerdir = format!("lowerdir={}:{}", lower("a"), lower("b"));
    let mounts = json!([{ "destination": "/mnt", "type": "overlay", "source": "overlay", "options": [lowerdir, "nosuid"] }]);
    let output = bundle.run(
        mounts,
        json!({}),
        "ls /mnt; awk '$2 == \"/mnt\" { print $4 }' /proc/self/mounts",
    );
    assert!(output.starts_with("a\nb\nro,nosuid,"), "{output}");
}

#[test]
fn only_a_procfs_and_ordinary_directories_are_right_for_proc() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let bind =
        |source: &str| json!([{ "destination": "/proc", "source": source, "options": ["rbind"] }]);
    let error = bundle.refused(bind(&bundle.text("source")), json!({}));
    assert!(
        error.contains("cannot be mounted because it is not of type proc"),
        "{error}"
    );
    bundle.run(bind("/proc"), json!({}), "cat /proc/uptime");
    fs::remove_dir(bundle.path("rootfs/proc")).unwrap();
    symlink("/tmp", bundle.path("rootfs/proc")).unwrap();
    let error = bundle.refused(json!([]), json!({}));
    assert!(
        error.contains("must be mounted on ordinary directory"),
        "{error}"
    );
}

#[test]
fn masks_share_one_file_system_each() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    for name in ["one/x", "two/x", "file", "other"] {
        bundle.write(&format!("rootfs/{name}"), "secret");
    }
    // A node of the image is not what hides.
    fs::create_dir(bundle.path("rootfs/dev")).unwrap();
    symlink(
        "/proc/sys/kernel/core_pattern",
        bundle.path("rootfs/dev/null"),
    )
    .unwrap();
    let linux = json!({ "maskedPaths": ["/one", "/two", "/one/", "/file", "/other", "/absent"] });
    let script = "set -- $(stat -c %d /one /two); [ $1 = $2 ] && ls /one /two; cat /file /other;
        touch /one/x /two/x 2>/tmp/error || echo readonly; grep -c ' /one ' /proc/self/mounts";
    let output = bundle.run(json!([]), linux, script);
    assert_eq!(output, "/one:\n\n/two:\nreadonly\n1\n");
}

#[test]
fn without_a_tmpfs_at_dev_devices_stay_in_the_root_whatever_the_image_has_there() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let outside = bundle.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("ptmx"), "precious").unwrap();
    // Seen from the host it leads out; seen from inside to a directory that is not there yet.
    symlink(&outside, bundle.path("rootfs/dev")).unwrap();
    let devices = json!({ "devices": [
        { "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o600, "uid": 7 },
        { "path": "/run/pipe", "type": "p", "major": 0, "minor": 0 }
    ] });
    let script =
        "echo x >/dev/null; readlink /dev/ptmx; stat -c %a:%u /dev/net/tun; stat -c %F /run/pipe";
    let output = bundle.run(json!([]), devices, script);
    assert_eq!(output, "pts/ptmx\n600:7\nfifo\n");
    let names: Vec<_> = fs::read_dir(&outside).unwrap().collect();
    assert_eq!(names.len(), 1, "something was made on the host");
    assert_eq!(
        fs::read_to_string(outside.join("ptmx")).unwrap(),
        "precious"
    );

    // What the image has under a device's name stays, and is not followed.
    let bundle = Bundle::new();
    bundle.write("rootfs/dev/x", "");
    symlink("/outside", bundle.path("rootfs/dev/null")).unwrap();
    bundle.run(json!([]), json!({}), "true");
    assert!(
        bundle
            .path("rootfs/dev/null")
            .symlink_metadata()
            .unwrap()
            .is_symlink()
    );
    assert!(!bundle.path("rootfs/outside").exists());
    let zero = fs::symlink_metadata(bundle.path("rootfs/dev/zero")).unwrap();
    assert!(zero.file_type().is_char_device());

    // Nothing is made in the host's.
    let bundle = Bundle::new();
    fs::create_dir(bundle.path("host-dev")).unwrap();
    let bind =
        json!([{ "destination": "/dev", "source": bundle.text("host-dev"), "options": ["rbind"] }]);
    bundle.run(bind, json!({}), "true");
    assert_eq!(fs::read_dir(bundle.path("host-dev")).unwrap().count(), 0);
}

#[test]
fn nested_devices_are_made_in_the_tmpfs() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let devices =
        json!({ "devices": [{ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200 }] });
    let dev = json!([{ "destination": "/dev", "type": "tmpfs" }]);
    let script =
        "stat -c %a:%t:%T /dev/net/tun; stat -c %a /dev /dev/net; readlink /dev/core || true";
    let output = bundle.run(dev, devices, script);
    let core = if Path::new("/proc/kcore").exists() {
        "/proc/kcore\n"
    } else {
        ""
    };
    assert_eq!(output, format!("666:a:c8\n755\n755\n{core}"));
}

#[test]
fn propagation_of_the_root() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let script = "awk '$5 == \"/\" { print $7 }' /proc/self/mountinfo";
    for (propagation, expected) in [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("private", "-"),
        ("unbindable", "unbindable"),
    ] {
        let output = bundle.run(
            json!([]),
            json!({ "rootfsPropagation": propagation }),
            script,
        );
        assert!(output.starts_with(expected), "{propagation}: {output}");
    }
    let error = bundle.refused(json!([]), json!({ "rootfsPropagation": "sharde" }));
    assert!(error.contains("linux.rootfsPropagation"), "{error}");
}

#[test]
fn a_root_on_a_shared_mount_stays_apart_and_shares_only_what_both_sides_name() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let host = HostMount::new(bundle.path("host"), "nosuid");
    let run = |command: &mut Command| assert!(command.status().unwrap().success());
    run(Command::new("mount").arg("--make-shared").arg(&host.0));
    run(Command::new("cp")
        .arg("-a")
        .arg(bundle.path("rootfs"))
        .arg(&host.0));
    fs::create_dir_all(host.0.join("data/sub")).unwrap();
    let start = |root: &str, propagation: &str| {
        let mounts = json!([
            { "destination": "/tmp/x", "type": "tmpfs" },
            { "destination": "/mnt", "source": host.0.join("data"), "options": ["rbind", propagation] }
        ]);
        let script = "mount -t tmpfs none /tmp/x && mount -t tmpfs none /mnt/sub && grep ' / ' /proc/self/mounts";
        let linux = json!({ "rootfsPropagation": root });
        let mut declaration = bundle.declaration(mounts, linux, script);
        declaration.rootfs = RootFilesystem::Directory(host.0.join("rootfs"));
        let process = bundle
            .start(&declaration)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(process.reap().unwrap(), 0, "{}", bundle.output());
        assert!(bundle.output().contains("nosuid"), "{}", bundle.output());
        // Beside the mount itself.
        host_mounts(bundle.directory.path()).len() - 1
    };
    assert_eq!(start("", "rshared"), 0);
    assert_eq!(start("rshared", "rslave"), 0);
    assert_eq!(start("rslave", "rshared"), 0);
    assert_eq!(start("rshared", "rshared"), 1);
}

#[test]
fn without_a_cgroup_namespace_the_containers_own_cgroups_are_shown() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    let mounts = json!([{ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" }]);
    let script = "grep -c ' /sys/fs/cgroup[ /]' /proc/self/mounts; grep ' /sys/fs/cgroup[ /]' /proc/self/mounts | grep -vc ' ro,';
        cat /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/pids/cgroup.procs 2>/dev/null | grep -c .";
    let declaration = bundle.declaration(mounts, json!({}), script);
    let names = registry::all();
    let names: Vec<_> = names.iter().map(|isolator| isolator.name()).collect();
    let names: Vec<_> = names
        .into_iter()
        .filter(|name| name.starts_with("cgroups/"))
        .collect();
    let names = format!("filesystem/linux,namespaces/pid,{}", names.join(","));
    let isolators = registry::select(Some(&names)).unwrap();
    let id = "mounts.1".parse().unwrap();
    let process = bundle.start_with(&isolators, &declaration);
    let status = process.map(|process| process.reap().unwrap());
    registry::cleanup(&isolators, &id, &declaration).unwrap();
    let status = status.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let output = bundle.output();
    let lines: Vec<u32> = output.lines().map(|line| line.parse().unwrap()).collect();
    // Its own processes only: this shell, and those of the last line.
    assert!(
        lines[0] > 0 && lines[1] == 0 && lines[2] > 0,
        "{status} {output}"
    );
}

#[test]
fn a_race_between_a_directory_and_a_link_reaches_nothing_outside() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::new();
    for name in ["outside", "rootfs/volume/place"] {
        fs::create_dir_all(bundle.path(name)).unwrap();
    }
    symlink(bundle.path("outside"), bundle.path("rootfs/volume/link")).unwrap();
    let volume = fs::File::open(bundle.path("rootfs/volume")).unwrap();
    let is_over = AtomicBool::new(false);
    let mounts = json!([
        { "destination": "/volume/place/a", "type": "tmpfs" },
        { "destination": "/volume/place/b", "source": bundle.text("rootfs/bin/busybox"), "options": ["bind"] }
    ]);
    let linux = json!({
        "devices": [{ "path": "/volume/place/dev/x", "type": "c", "major": 1, "minor": 3 }],
        "maskedPaths": ["/volume/place"], "readonlyPaths": ["/volume/place"]
    });
    let declaration = bundle.declaration(mounts, linux, "true");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let exchange = RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&volume, "place", &volume, "link", exchange).unwrap();
            }
        });
        let mut started = 0;
        for _ in 0..200 {
            // A race that we lose may well fail.
            if let Ok(process) = bundle.start(&declaration) {
                started += 1;
                process.reap().unwrap();
            }
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(started > 0, "none of them started");
    });
    let made: Vec<_> = fs::read_dir(bundle.path("outside")).unwrap().collect();
    assert!(made.is_empty(), "{made:?}");
    assert!(host_mounts(bundle.directory.path()).is_empty());
}

/// Runs one test again as root of a user namespace, as a rootless runtime is.
fn again_in_a_user_namespace(test: &str) -> bool {
    const MARK: &str = "IN_A_USER_NAMESPACE";
    if std::env::var_os(MARK).is_some() {
        return false;
    }
    let all = vec![IdMap {
        inside: 0,
        outside: 0,
        count: 65_536,
    }];
    let maps = IdMaps {
        users: all.clone(),
        groups: all,
    };
    let namespace = user_namespace::with_maps(&maps).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let mut command = Command::new("nsenter");
    command.arg(format!("--user={path}"));
    command.args(["unshare", "--mount", "--"]);
    command.arg(std::env::current_exe().unwrap());
    let output = command
        .args([test, "--exact", "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{error}"
    );
    true
}

#[test]
fn in_a_user_namespace_nodes_are_bound_and_locked_flags_stay() {
    if !is_root() {
        return;
    }
    let locked = Path::new("/tmp/tepui-test-mounts-locked");
    if std::env::var_os("IN_A_USER_NAMESPACE").is_none() {
        let _host = HostMount::new(locked.to_owned(), "nosuid,nodev,nosymfollow");
        again_in_a_user_namespace("in_a_user_namespace_nodes_are_bound_and_locked_flags_stay");
        return;
    }
    let bundle = Bundle::new();
    let devices =
        json!({ "devices": [{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 }] });
    let dev = json!([{ "destination": "/dev", "type": "tmpfs", "options": ["ro", "nosuid"] }]);
    let script = "stat -c %t:%T /dev/null /dev/zero; readlink /dev/fd; echo x >/dev/null; touch /dev/x 2>/dev/null || echo readonly";
    let output = bundle.run(dev, devices, script);
    assert_eq!(output, "1:3\n1:5\n/proc/self/fd\nreadonly\n");
    // In the root's own /dev too.
    let output = bundle.run(
        json!([]),
        json!({}),
        "stat -c %t:%T /dev/full; echo x >/dev/null",
    );
    assert_eq!(output, "1:7\n");

    let flags = flags_of(&bundle, locked, &["bind", "ro"]);
    let has = |name: &str| flags.iter().any(|flag| flag == name);
    assert!(
        has("ro") && has("nosuid") && has("nodev") && !has("nosymfollow"),
        "{flags:?}"
    );
    let mounts = |option: &str| json!([{ "destination": "/mnt", "source": locked, "options": ["bind", option] }]);
    for option in ["suid", "noatime"] {
        let error = bundle.refused(mounts(option), json!({}));
        assert!(
            error.contains("error mounting") && error.contains("operation not permitted"),
            "{error}"
        );
    }
}
