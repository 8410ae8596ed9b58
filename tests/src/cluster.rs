//! A real Mesos master and agent (`mesos-testbed/`) on free ports of loopback.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::ground::Ground;
use crate::job::Job;
use crate::scheduler::{Event, Scheduler};
use crate::{binary, host, output};

/// How the agent starts executors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// `--launcher posix`.
    Posix,
    /// `--launcher linux --isolation cgroups/cpu`, in a cgroup root of the test's own.
    LinuxCpu,
}

/// A running cluster; it ends with this value.
#[derive(Debug)]
pub struct Cluster<'a> {
    ground: &'a Ground,
    master: String,
    agent: String,
    version: String,
}

impl<'a> Cluster<'a> {
    /// Starts one and prints the version that the agent reports.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(ground: &'a Ground, launcher: Launcher) -> Self {
        Self::start_with(ground, launcher, &[])
    }

    /// Starts one with more flags of `mesos-testbed/up`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with(ground: &'a Ground, launcher: Launcher, flags: &[&str]) -> Self {
        // Made before the start: a failed start must be taken down too.
        let mut cluster = Self {
            ground,
            master: String::new(),
            agent: String::new(),
            version: String::new(),
        };
        let mut up = cluster.script("up");
        if launcher == Launcher::LinuxCpu {
            up.args([
                "--launcher",
                "linux",
                "--isolation",
                "cgroups/cpu",
                "--cgroups-root",
            ]);
            up.arg(format!("{}mesos", ground.name()));
        }
        let up = output::finish(up.args(flags), Duration::from_secs(60)).success();
        let addresses: Value = serde_json::from_str(&up.stdout).expect("`up` prints JSON");
        let address = |of: &str| {
            addresses[of]["address"]
                .as_str()
                .expect("an address")
                .to_owned()
        };
        (cluster.master, cluster.agent) = (address("master"), address("agent"));
        let version: Value = serde_json::from_str(&cluster.get("/version")).expect("JSON");
        cluster.version = version["version"].as_str().expect("a version").to_owned();
        output::say(&format!(
            "agent {} ({launcher:?} launcher): Mesos {}",
            cluster.agent, cluster.version
        ));
        cluster
    }

    /// Version that the agent reports, e.g. `1.11.0`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Launches a job.
    pub fn scheduler(&self, job: &Job, flags: &[&str]) -> Scheduler {
        let program = binary::of_package("mesos-testbed/scheduler.py");
        Scheduler::start(self.ground, &program, &self.master, job, flags)
    }

    /// Runs a job to its end and says all that happened.
    #[track_caller]
    pub fn run(&self, job: &Job) -> Vec<Event> {
        self.scheduler(job, &[]).finish()
    }

    /// All that the agent has logged.
    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.directory().join("agent.log")).unwrap_or_default()
    }

    /// The id of the container that the agent started last, found in its log.
    ///
    /// # Panics
    /// When it started none.
    pub fn container_id(&self) -> String {
        let log = self.agent_log();
        let line = log
            .lines()
            .rev()
            .find(|line| line.contains("Starting container "));
        let line = line.unwrap_or_else(|| panic!("the agent started no container:\n{log}"));
        let (_, after) = line
            .split_once("Starting container ")
            .expect("it is in the line");
        after.split_whitespace().next().expect("an id").to_owned()
    }

    /// Kills the agent (SIGKILL); executors live on.
    ///
    /// # Panics
    /// When that fails.
    pub fn kill_agent(&self) {
        let mut down = self.script("down");
        down.args(["--only", "agent", "--signal", "KILL"]);
        output::finish(&mut down, Duration::from_secs(30)).success();
    }

    /// Starts the agent again with the flags it had, and waits until it has recovered.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_agent(&self) {
        let mut up = self.script("up");
        output::finish(up.args(["--only", "agent"]), Duration::from_secs(60)).success();
    }

    /// A file of the executors' sandboxes; all of them one after the other, when there are several.
    pub fn sandbox_file(&self, name: &str) -> String {
        self.sandboxes()
            .iter()
            .filter_map(|sandbox| fs::read_to_string(sandbox.join(name)).ok())
            .collect()
    }

    /// `…/executors/ID/runs/CONTAINER` of every executor that was started.
    pub fn sandboxes(&self) -> Vec<PathBuf> {
        let below = |paths: Vec<PathBuf>, name: &str| -> Vec<PathBuf> {
            paths
                .iter()
                .flat_map(|path| host::directories(&path.join(name)))
                .collect()
        };
        let slaves = below(vec![self.directory().join("agent")], "slaves");
        below(below(below(slaves, "frameworks"), "executors"), "runs")
    }

    /// The answer of the agent to a GET.
    ///
    /// # Panics
    /// When there is none.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.agent).expect("the agent listens");
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("the agent reads");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("the agent answers");
        answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .expect("an HTTP answer")
    }

    fn directory(&self) -> PathBuf {
        self.ground.path("mesos")
    }

    fn script(&self, name: &str) -> Command {
        let mut command = self
            .ground
            .command(binary::of_package("mesos-testbed").join(name));
        command.arg("--dir").arg(self.directory());
        command
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.agent_log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- agent.log\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
            eprintln!(
                "--- stdout\n{}\n--- stderr\n{}",
                self.sandbox_file("stdout"),
                self.sandbox_file("stderr")
            );
        }
        // The ground ends and removes what this cannot.
        let _ = self.script("down").output();
    }
}
