//! TaskInfos, in Mesos' JSON form, and the job files of `mesos-testbed/scheduler.py`.

use serde_json::{Value, json};

use crate::binary;
use crate::ground::Ground;

/// One task.
#[derive(Debug, Clone)]
pub struct Task(Value);

impl Task {
    /// A task without image and command: 0.1 cpus and 32 MB.
    pub fn new(id: &str) -> Self {
        Self(json!({"task_id": {"value": id}, "name": id})).resources(0.1, 32)
    }

    /// Its resources: cpus, and memory in MB, which is also its limit.
    pub fn resources(mut self, cpus: f64, megabytes: u64) -> Self {
        let scalar = |name: &str, value: Value| json!({"name": name, "type": "SCALAR", "scalar": {"value": value}});
        self.0["resources"] = json!([scalar("cpus", json!(cpus)), scalar("mem", json!(megabytes))]);
        self
    }

    /// Runs in this image (MESOS container, docker image).
    pub fn image(mut self, reference: &str) -> Self {
        let image = json!({"type": "DOCKER", "docker": {"name": reference}});
        self.0["container"] = json!({"type": "MESOS", "mesos": {"image": image}});
        self
    }

    /// Runs this shell script. The master allows no TaskInfo.command beside a custom executor, so it travels in `data`.
    pub fn shell(self, script: &str) -> Self {
        self.command(json!({"shell": true, "value": script}))
    }

    /// Runs this CommandInfo.
    pub fn command(mut self, command: Value) -> Self {
        // "text" is what the scheduler turns into the bytes of `data`, and what `local` turns into them below.
        self.0["text"] = json!({"command": command});
        self
    }

    /// Seconds between SIGTERM and SIGKILL.
    pub fn grace(mut self, seconds: u64) -> Self {
        self.0["kill_policy"] = json!({"grace_period": {"nanoseconds": seconds * 1_000_000_000}});
        self
    }

    /// Sets any other field.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.0[field] = value;
        self
    }

    /// The TaskInfo for a job file.
    pub fn json(&self) -> Value {
        self.0.clone()
    }

    /// The TaskInfo for `tepui local`, where a command needs no detour.
    pub fn local_json(&self) -> String {
        let mut task = self.0.clone();
        let text = task
            .as_object_mut()
            .and_then(|fields| fields.remove("text"));
        if let Some(mut text) = text {
            task["command"] = text["command"].take();
        }
        task["agent_id"] = json!({"value": "local"});
        task.to_string()
    }
}

/// A job: what the scheduler launches on one executor.
#[derive(Debug, Clone)]
pub struct Job(Value);

impl Job {
    /// `tasks` on `tepui executor` with this ground's directories, as root.
    pub fn new(ground: &Ground, tasks: &[Task]) -> Self {
        Self::with_flags(ground, tasks, &[])
    }

    /// The same, with more flags for the executor.
    pub fn with_flags(ground: &Ground, tasks: &[Task], flags: &[&str]) -> Self {
        // exec: else a shell would stay between the agent's launcher and the executor.
        let command = format!(
            "exec {} executor {} {}",
            binary::tepui().display(),
            ground.settings().join(" "),
            flags.join(" ")
        );
        let name = json!([{"name": "TEPUI_TEST", "value": ground.name()}]);
        Self(json!({
            "executor": {
                "command": {"value": command, "user": "root", "environment": {"variables": name}},
                "shutdown_grace_period": {"nanoseconds": 5_000_000_000_u64},
            },
            "tasks": tasks.iter().map(Task::json).collect::<Vec<_>>(),
        }))
    }

    /// Does `action` (see `scheduler.py --help`) once `task` is in `state`.
    pub fn when(mut self, task: &str, state: &str, action: &str) -> Self {
        let step = json!({"when": {"task": task, "state": state}, "do": action});
        match self.0["script"].as_array_mut() {
            Some(script) => script.push(step),
            None => self.0["script"] = json!([step]),
        }
        self
    }

    /// Launches the tasks as one group.
    pub fn group(mut self) -> Self {
        self.0["task_group"] = self.0["tasks"].take();
        self.0.as_object_mut().expect("an object").remove("tasks");
        self
    }

    /// The job file.
    pub fn text(&self) -> String {
        self.0.to_string()
    }
}
