//! `mesos-testbed/scheduler.py` at work: its events as they come, commands to it, and how it ended.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ground::Ground;
use crate::job::Job;

/// One line of the scheduler: `t` (seconds since its start), `event`, and what belongs to it.
#[derive(Debug, Clone)]
pub struct Event(Value);

impl Event {
    /// Seconds since the scheduler's start.
    pub fn time(&self) -> f64 {
        self.0["t"].as_f64().expect("every event has a time")
    }

    /// A field; null when it is absent.
    pub fn field(&self, name: &str) -> &Value {
        &self.0[name]
    }

    /// A field of text; empty when it is absent.
    pub fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    /// Whether this is a status update of `task` to `state`.
    pub fn is_update(&self, task: &str, state: &str) -> bool {
        self.text("event") == "UPDATE" && self.text("task") == task && self.text("state") == state
    }
}

/// A running scheduler.
#[derive(Debug)]
pub struct Scheduler {
    process: Child,
    commands: Option<ChildStdin>,
    lines: Receiver<Event>,
    seen: Vec<Event>,
}

impl Scheduler {
    /// Launches `job` at the master.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(
        ground: &Ground,
        program: &std::path::Path,
        master: &str,
        job: &Job,
        flags: &[&str],
    ) -> Self {
        let file = ground.write("job.json", job.text());
        let mut process = ground
            .command("python3")
            .arg(program)
            .args([
                "--commands",
                "--user",
                "root",
                "--timeout",
                "120",
                "--master",
                master,
            ])
            .arg("--wire")
            .arg(ground.path("wire"))
            .args(flags)
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let commands = process.stdin.take();
        let output = BufReader::new(process.stdout.take().expect("stdout is a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let event =
                    Event(serde_json::from_str(&line).expect("the scheduler prints JSON lines"));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Self {
            process,
            commands,
            lines,
            seen: Vec::new(),
        }
    }

    /// The first event, seen before or to come, that `wanted` accepts.
    ///
    /// # Panics
    /// When none comes within half a minute, with all that came.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        if let Some(event) = self.seen.iter().find(|event| wanted(event)) {
            return event.clone();
        }
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(event) => {
                    self.seen.push(event.clone());
                    if wanted(&event) {
                        return event;
                    }
                }
                Err(problem) => panic!("{what}: {problem}\n{}", self.log()),
            }
        }
    }

    /// Waits for a status update.
    #[track_caller]
    pub fn update(&mut self, task: &str, state: &str) -> Event {
        self.wait_for(&format!("{task} {state}"), |event| {
            event.is_update(task, state)
        })
    }

    /// Gives it a command (`scheduler.py --help` lists them).
    ///
    /// # Panics
    /// When it has ended.
    pub fn command(&mut self, text: &str) {
        let input = self.commands.as_mut().expect("open until it is finished");
        writeln!(input, "{text}").expect("the scheduler runs");
    }

    /// Waits for its end and says all that happened.
    ///
    /// # Panics
    /// When it does not end within two minutes and a half (its own limit is two).
    #[track_caller]
    pub fn finish(mut self) -> Vec<Event> {
        let end = Instant::now() + Duration::from_secs(150);
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(event) => self.seen.push(event),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(problem) => panic!("the scheduler goes on: {problem}\n{}", self.log()),
            }
        }
        self.process.wait().expect("it is our child");
        std::mem::take(&mut self.seen)
    }

    fn log(&self) -> String {
        self.seen
            .iter()
            .map(|event| format!("{}\n", event.0))
            .collect()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- events so far\n{}", self.log());
        }
        // Both fail only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The states of `task`, in order, repeated updates of one state counted once.
pub fn states(events: &[Event], task: &str) -> Vec<String> {
    let updates = events
        .iter()
        .filter(|e| e.text("event") == "UPDATE" && e.text("task") == task);
    let mut states: Vec<String> = updates.map(|e| e.text("state").to_owned()).collect();
    states.dedup();
    states
}

/// The update of `task` to `state`.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn update<'a>(events: &'a [Event], task: &str, state: &str) -> &'a Event {
    let found = events.iter().find(|event| event.is_update(task, state));
    found.unwrap_or_else(|| panic!("no {state} of {task} in {events:#?}"))
}
