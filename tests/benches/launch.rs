//! Launch times: of a task to TASK_RUNNING, and of a container to its first output beside runc and crun, interleaved.
//!
//! `scripts/bench [ROUNDS]` runs it. The table goes into RESULTS.md, between its two marks.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tepui_tests::job::Job;
use tepui_tests::{Cluster, Ground, Image, Launcher, Scheduler, Task, host, output, results};

/// Milliseconds of one way to launch.
struct Row {
    what: &'static str,
    times: Vec<f64>,
}

fn main() {
    // `cargo bench` adds --bench.
    let rounds = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(100);
    let ground = Ground::new();
    let image = ground.layout(&Image::busybox());
    let bundle = bundle(&ground);
    let cluster = Cluster::start_with(
        &ground,
        Launcher::Posix,
        &["--master-flag", "allocation_interval=50ms"],
    );
    let mut agent = Agent::start(&ground, &cluster, &image);
    let task = ground.write(
        "task.json",
        Task::new("t").image(&image).shell("true").local_json(),
    );
    let row = |what| Row {
        what,
        times: Vec::new(),
    };
    let mut rows = [
        row("agent, running executor: ACCEPT to TASK_RUNNING at the scheduler"),
        row("`tepui local`: start to TASK_RUNNING"),
        row("`tepui run`: start to first output"),
        row("`runc run`: start to first output"),
        row("`crun run`: start to first output"),
    ];
    for round in 0..=rounds {
        let runtime = |name: &str| {
            let mut command = Command::new(name);
            command
                .arg("--root")
                .arg(ground.path(name))
                .arg("run")
                .arg("--bundle")
                .arg(&bundle);
            command.arg(format!("{}{round}", ground.name()));
            command
        };
        let mut local = ground.tepui("local");
        local
            .arg(&task)
            .arg("--sandbox")
            .arg(ground.path("sandbox"));
        let mut run = ground.tepui("run");
        run.args([
            "--rm",
            "--memory",
            "256m",
            "--cpus",
            "1",
            "--pids-limit",
            "100",
            &image,
        ]);
        run.args(["sh", "-c", "echo up"]);
        let times = [
            agent.launch(&ground, round),
            until_line(&mut local, "TASK_RUNNING"),
            until_line(&mut run, "up"),
            until_line(&mut runtime("runc"), "up"),
            until_line(&mut runtime("crun"), "up"),
        ];
        // The first round fills caches and unpacks the image.
        if round > 0 {
            rows.iter_mut()
                .zip(times)
                .for_each(|(row, time)| row.times.push(time));
        }
    }
    results::write("launch", "Launch", &table(&mut rows, &cluster));
}

/// Milliseconds from the start of `command` to a line with `wanted` on its standard output. Waits for its end.
fn until_line(command: &mut Command, wanted: &str) -> f64 {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let lines = BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines();
    let mut time = None;
    for line in lines.map_while(Result::ok) {
        if time.is_none() && line.contains(wanted) {
            time = Some(start.elapsed());
        }
    }
    let end = child.wait_with_output().expect("it ends");
    let time =
        time.unwrap_or_else(|| panic!("{command:?}: {}", String::from_utf8_lossy(&end.stderr)));
    time.as_secs_f64() * 1e3
}

/// A framework whose executor stays up because one task of it does.
struct Agent {
    scheduler: Scheduler,
    image: String,
}

impl Agent {
    fn start(ground: &Ground, cluster: &Cluster, image: &str) -> Self {
        let job = Job::new(
            ground,
            &[Task::new("stay").image(image).shell("exec sleep 100000")],
        );
        let mut scheduler = cluster.scheduler(&job, &["--stay", "--timeout", "3600"]);
        scheduler.update("stay", "TASK_RUNNING");
        Self {
            scheduler,
            image: image.to_owned(),
        }
    }

    /// Milliseconds from ACCEPT to TASK_RUNNING, by the scheduler's clock.
    fn launch(&mut self, ground: &Ground, round: u32) -> f64 {
        let id = format!("t{round}");
        let job = Job::new(ground, &[Task::new(&id).image(&self.image).shell("true")]);
        let file = ground.write("next.json", job.text());
        self.scheduler
            .command(&format!("launch {}", file.display()));
        let accepts = |event: &tepui_tests::Event| {
            event.text("event") == "ACCEPT" && event.field("tasks")[0] == id.as_str()
        };
        let accept = self.scheduler.wait_for("ACCEPT", accepts);
        let running = self.scheduler.update(&id, "TASK_RUNNING");
        self.scheduler.update(&id, "TASK_FINISHED");
        (running.time() - accept.time()) * 1e3
    }
}

/// A bundle for runc and crun: the same root file system and limits, the host's network, no seccomp.
fn bundle(ground: &Ground) -> PathBuf {
    let bundle = ground.path("bundle");
    fs::create_dir(&bundle).expect("a directory");
    Image::busybox().write_rootfs(&bundle.join("rootfs"));
    output::finish(
        Command::new("runc").arg("spec").current_dir(&bundle),
        Duration::from_secs(10),
    )
    .success();
    let file = bundle.join("config.json");
    let mut config: Value =
        serde_json::from_slice(&fs::read(&file).expect("runc wrote it")).expect("JSON");
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sh", "-c", "echo up"]);
    config["process"]["env"] = json!(["PATH=/bin"]);
    config["linux"]["resources"]["memory"] = json!({"limit": 256 << 20});
    config["linux"]["resources"]["cpu"] = json!({"quota": 100_000, "period": 100_000});
    config["linux"]["resources"]["pids"] = json!({"limit": 100});
    let namespaces = config["linux"]["namespaces"]
        .as_array_mut()
        .expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "network");
    fs::write(file, config.to_string()).expect("it is ours");
    bundle
}

fn table(rows: &mut [Row], cluster: &Cluster) -> String {
    let version = |name: &str| {
        let run = output::finish(Command::new(name).arg("--version"), Duration::from_secs(10));
        run.stdout.lines().next().unwrap_or_default().to_owned()
    };
    let layout = match host::hierarchies().len() {
        1 => "cgroup v2",
        _ if Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() => "hybrid cgroups",
        _ => "cgroup v1",
    };
    let mut text = format!(
        "{} launches of each, interleaved, busybox image, {layout}, Mesos {}, {}, {}.\n\
         runc and crun start from an unpacked directory and without seccomp; tepui mounts an overlay and filters.\n\n\
         | milliseconds | median | p99 | least |\n|---|---|---|---|\n",
        rows[0].times.len(),
        cluster.version(),
        version("runc"),
        version("crun"),
    );
    for row in rows {
        text += &results::row(row.what, &mut row.times);
    }
    text
}
