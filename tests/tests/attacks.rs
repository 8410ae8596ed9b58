//! What a hostile workload, image or neighbour tries; each was possible once.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tepui_tests::output::{Finished, finish};
use tepui_tests::tarball::Entry;
use tepui_tests::{Ground, Image, Task, requires, wait};

const LIMIT: Duration = Duration::from_secs(60);

/// `tepui local` of one task in a sandbox that is kept between runs.
fn local(ground: &Ground, task: &Task) -> Finished {
    let file = ground.write("task.json", task.local_json());
    let mut tepui = ground.tepui("local");
    tepui.arg(file).arg("--sandbox").arg(ground.path("sandbox"));
    finish(&mut tepui, LIMIT)
}

/// A command of ours inside a mount namespace where everything is shared, as on hosts with systemd.
fn in_shared_mounts(ground: &Ground, prepare: &str, tepui: &Command) -> Finished {
    let words = std::iter::once(tepui.get_program()).chain(tepui.get_args());
    let words: Vec<_> = words
        .map(|word| word.to_string_lossy().replace('\'', r"'\''"))
        .collect();
    let script = format!(
        "mount --make-rshared / && {prepare}; cat /proc/self/mountinfo >{here}/before; '{}'; status=$?
         cat /proc/self/mountinfo >{here}/after; cmp {here}/before {here}/after && exit $status",
        words.join("' '"),
        here = ground.path("").display(),
    );
    finish(
        ground.command("unshare").args(["-m", "sh", "-c", &script]),
        LIMIT,
    )
}

#[test]
fn nothing_is_mounted_on_a_host_whose_mounts_are_shared() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let file = ground.write(
        "task.json",
        Task::new("t")
            .shell("test -e /etc/passwd && ls /proc/1")
            .local_json(),
    );
    let mut tepui = ground.tepui("local");
    tepui.arg(file);
    in_shared_mounts(&ground, "true", &tepui).success();

    let image = ground.layout(&Image::busybox());
    let mut tepui = ground.tepui("run");
    tepui.args([
        "-v",
        &format!("{}:/v", ground.path("").display()),
        &image,
        "true",
    ]);
    in_shared_mounts(&ground, "true", &tepui).success();
    ground.assert_clean();
}

#[test]
fn a_read_only_volume_is_so_below_its_mounts_too() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let volume = ground.path("volume");
    std::fs::create_dir_all(volume.join("sub")).expect("a directory");
    let mount = format!("mount -t tmpfs none {}", volume.join("sub").display());
    let mut tepui = ground.tepui("run");
    tepui.args(["-v", &format!("{}:/v:ro", volume.display()), &image]);
    tepui.args([
        "sh",
        "-c",
        "test -d /v/sub && ! touch /v/sub/a 2>/dev/null && ! mknod /v/sub/n c 1 3 2>/dev/null",
    ]);
    in_shared_mounts(&ground, &mount, &tepui).success();
    ground.assert_clean();
}

#[test]
fn the_hosts_null_device_keeps_its_mode() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let mode = || {
        std::fs::metadata("/dev/null")
            .expect("it is there")
            .permissions()
            .mode()
    };
    let before = mode();
    let script =
        "for f in /proc/keys /proc/timer_list /proc/interrupts /proc/self/fd/0 /proc/self/fd/1
                  do chmod 667 $f 2>/dev/null && test ! -d $f && echo changed $f >&2; done; true";
    let mut tepui = ground.tepui("run");
    tepui.args([&image, "sh", "-c", script]);
    // Its standard output is the host's null device as well.
    let null = || {
        std::process::Stdio::from(
            std::fs::File::options()
                .write(true)
                .open("/dev/null")
                .expect("null"),
        )
    };
    let status = tepui
        .stdin(std::process::Stdio::null())
        .stdout(null())
        .stderr(null())
        .status()
        .expect("it runs");
    let after = mode();
    // Mended before anything else needs it.
    std::fs::set_permissions("/dev/null", std::fs::Permissions::from_mode(before))
        .expect("it is ours");
    assert!(status.success());
    assert_eq!(after, before);
    ground.assert_clean();
}

#[test]
fn links_that_a_task_leaves_in_the_sandbox_lead_nowhere() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let victim = ground.path("victim");
    std::fs::create_dir(&victim).expect("a directory");
    std::fs::write(victim.join("log"), "").expect("a file");
    let here = victim.display();
    let plant = format!(
        "cd $MESOS_SANDBOX; ln -s {here} data; ln -s {here} tasks; rm stdout stderr; ln -s {here}/log stdout; mkfifo stderr"
    );
    assert_eq!(
        local(&ground, &Task::new("t1").image(&image).shell(&plant)).status,
        0
    );

    let volume = |path: &str| {
        json!({"type": "MESOS", "mesos": {"image": {"type": "DOCKER", "docker": {"name": image.as_str()}}},
               "volumes": [{"mode": "RW", "container_path": "/v", "host_path": path}]})
    };
    for path in ["data", "data/new"] {
        let task = Task::new("t2")
            .shell("echo taken >/v/file")
            .with("container", volume(path));
        let run = local(&ground, &task);
        assert_ne!(run.status, 0, "{run}");
    }
    let run = local(&ground, &Task::new("t3").image(&image).shell("echo taken"));
    assert_ne!(run.status, 0, "{run}");
    assert_eq!(
        std::fs::read_to_string(victim.join("log")).expect("it is there"),
        ""
    );
    let names: Vec<_> = victim
        .read_dir()
        .expect("it is there")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(names, ["log"]);
    ground.assert_clean();
}

#[test]
fn links_of_an_image_lead_no_mount_over_the_root_or_the_kernels_files() {
    requires!(root(), busybox());
    let ground = Ground::new();
    for target in ["/proc", "/proc/sys", "/sys", "/"] {
        let image = Image::busybox().layer(vec![Entry::symlink("data", target)]);
        let directory = ground.path(&format!("image{}", target.len()));
        image.write_layout(&directory, "latest");
        let volume = format!("{}:/data", ground.path("").display());
        let run = ground.run(&[
            "-v",
            &volume,
            &format!("oci:{}", directory.display()),
            "true",
        ]);
        assert_eq!(run.status, 125, "{target}: {run}");
        std::fs::remove_dir_all(directory).expect("it is ours");
    }
    ground.assert_clean();
}

#[test]
fn signals_that_we_ignore_are_not_ignored_by_the_workload() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    for flags in [&[][..], &["--init"]] {
        let command = ["grep", "-E", "^Sig(Ign|Blk):", "/proc/self/status"];
        let run = ground
            .run(&[flags, &[image.as_str()], &command].concat())
            .success();
        for line in run.stdout.lines() {
            assert!(line.ends_with("0000000000000000"), "{flags:?}: {line}");
        }
        assert_eq!(run.stdout.lines().count(), 2);
    }
    ground.assert_clean();
}

#[test]
fn a_cgroup_parent_that_the_operator_made_stays() {
    requires!(root(), busybox(), cgroup_v1());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let parent = Path::new("/sys/fs/cgroup/memory").join(format!("{}-own", ground.name()));
    std::fs::create_dir(&parent).expect("root can");
    std::fs::write(parent.join("memory.limit_in_bytes"), "134217728").expect("root can");
    let inode = || std::fs::metadata(&parent).map(|status| status.ino()).ok();
    let before = inode();
    let mut tepui = ground.tepui("run");
    let own = format!("/{}-own", ground.name());
    // The last one of a flag counts.
    tepui.env("TEPUI_CGROUP_PARENT", &own);
    let mut arguments: Vec<String> = tepui
        .get_args()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if let Some(at) = arguments.iter().position(|word| word == "--cgroup-parent") {
        arguments[at + 1].clone_from(&own);
    }
    let mut command = ground.command(tepui.get_program());
    command.args(&arguments).args([&image, "true"]);
    let run = finish(&mut command, LIMIT);
    let after = inode();
    std::fs::remove_dir(&parent).expect("it is empty");
    run.success();
    assert_eq!(after, before);
    ground.assert_clean();
}

#[test]
fn a_frozen_container_ends_with_its_owner_all_the_same() {
    requires!(root(), busybox(), cgroup_v1());
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let mut tepui = ground
        .tepui("run")
        .args([&image, "sleep", "100000"])
        .spawn()
        .expect("it starts");
    let container = ground.container();
    let lines = std::fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).expect("procfs");
    let path = lines
        .lines()
        .find_map(|line| line.split_once(":freezer:"))
        .expect("a freezer")
        .1;
    let state = Path::new("/sys/fs/cgroup/freezer")
        .join(path.trim_start_matches('/'))
        .join("freezer.state");
    std::fs::write(&state, "FROZEN").expect("root can");
    tepui.kill().expect("it is ours");
    tepui.wait().expect("it is ours");
    // The launcher thaws what it kills; where it was killed too, the next start does.
    ground.run(&[&image, "true"]).success();
    let process = format!("/proc/{}", container.pid);
    wait::until("the frozen process is gone", Duration::from_secs(5), || {
        (!Path::new(&process).exists()).then_some(())
    });
    ground.assert_clean();
}
