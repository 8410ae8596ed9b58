//! Images from every source, run for a real master and agent.

use tepui_tests::job::Job;
use tepui_tests::scheduler::{states, update};
use tepui_tests::{Cluster, Event, Ground, Image, Launcher, Registry, Task, output, requires};

const FINISHED: [&str; 3] = ["TASK_STARTING", "TASK_RUNNING", "TASK_FINISHED"];

/// The agent's update manager took each update over, and the scheduler's acknowledgement of the same uuid closed it.
fn assert_acknowledged(cluster: &Cluster, events: &[Event], task: &str) {
    let updates = events
        .iter()
        .filter(|e| e.text("event") == "UPDATE" && e.text("task") == task);
    for event in updates {
        assert_eq!(event.field("acked"), true, "{event:?}");
    }
    let log = cluster.agent_log();
    for state in FINISHED {
        let start = format!("Received task status update {state} (Status UUID: ");
        let end = format!(") for task {task} ");
        let uuid = log
            .lines()
            .find_map(|line| Some(line.split_once(&start)?.1.split_once(&end)?.0));
        let uuid =
            uuid.unwrap_or_else(|| panic!("the agent took over no {state} of {task}:\n{log}"));
        let acknowledged = format!("Received task status update acknowledgement (UUID: {uuid})");
        assert!(
            log.contains(&acknowledged),
            "{state} of {task} was not acknowledged:\n{log}"
        );
    }
}

fn images_of_every_source(launcher: Launcher) {
    let ground = Ground::new();
    let registry = Registry::start(&ground);
    let image = Image::busybox();
    let archive = ground.path("busybox.tar");
    image.write_docker_archive(&archive, "busybox:latest");
    let oci_archive = ground.path("busybox-oci.tar");
    image.write_oci_archive(&oci_archive, "latest");
    let sources = [
        ("registry", registry.push(&image, "team/busybox")),
        ("layout", ground.layout(&image)),
        (
            "docker-archive",
            format!("docker-archive:{}", archive.display()),
        ),
        (
            "oci-archive",
            format!("oci-archive:{}", oci_archive.display()),
        ),
    ];
    let cluster = Cluster::start(&ground, launcher);
    assert_eq!(cluster.version(), "1.11.0");
    let script = "test -L /bin/sh && grep -q ^web: /etc/passwd && test ! -e /usr/bin";
    let tasks: Vec<Task> = sources
        .iter()
        .map(|(id, image)| Task::new(id).image(image).shell(script))
        .collect();
    let events = cluster.run(&Job::new(&ground, &tasks));
    output::say(&format!(
        "container {} is in the agent's log",
        cluster.container_id()
    ));
    for (id, image) in &sources {
        assert_eq!(states(&events, id), FINISHED, "{image}");
        assert_acknowledged(&cluster, &events, id);
    }
    drop((cluster, registry));
    ground.assert_clean();
}

#[test]
fn images_of_every_source_run_under_the_posix_launcher() {
    requires!(root(), busybox(), registry(), mesos());
    images_of_every_source(Launcher::Posix);
}

#[test]
fn images_of_every_source_run_under_the_linux_launcher() {
    requires!(root(), busybox(), registry(), mesos(), linux_launcher());
    images_of_every_source(Launcher::LinuxCpu);
}

#[test]
fn an_unknown_image_fails_with_its_name_and_the_registrys_answer() {
    requires!(root(), busybox(), registry(), mesos());
    let ground = Ground::new();
    let registry = Registry::start(&ground);
    let image = format!("{}/team/nothing:7", registry.address());
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let events = cluster.run(&Job::new(
        &ground,
        &[Task::new("t1").image(&image).shell("true")],
    ));
    let failed = update(&events, "t1", "TASK_FAILED");
    assert_eq!(failed.text("reason"), "REASON_CONTAINER_LAUNCH_FAILED");
    let message = failed.text("message");
    assert!(message.contains(&image), "{message}");
    assert!(
        message.contains("404") && message.to_lowercase().contains("manifest unknown"),
        "{message}"
    );
    drop((cluster, registry));
    ground.assert_clean();
}

#[test]
fn the_default_registry_may_be_a_directory_of_archives() {
    requires!(root(), busybox(), mesos());
    let ground = Ground::new();
    std::fs::create_dir(ground.path("archives")).expect("a directory");
    Image::busybox().write_docker_archive(&ground.path("archives/busybox:1.tar"), "busybox:1");
    let archives = ground.path("archives").display().to_string();
    let cluster = Cluster::start(&ground, Launcher::Posix);
    let task = Task::new("t1").image("busybox:1").shell("true");
    let job = Job::with_flags(&ground, &[task], &["--docker-registry", &archives]);
    assert_eq!(states(&cluster.run(&job), "t1"), FINISHED);
}

#[test]
fn a_task_without_an_image_sees_the_hosts_files() {
    requires!(root(), busybox(), mesos());
    let ground = Ground::new();
    let cluster = Cluster::start(&ground, Launcher::Posix);
    // Its own pid namespace even so: /proc holds the two processes of the container and nothing else.
    let script = "test -e /etc/debian_version && test \"$(ls -d /proc/[0-9]* | wc -l)\" -le 6";
    let events = cluster.run(&Job::new(&ground, &[Task::new("t1").shell(script)]));
    assert_eq!(states(&events, "t1"), FINISHED);
    drop(cluster);
    ground.assert_clean();
}
