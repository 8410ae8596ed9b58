//! Faults on purpose: a command of the control build with the variable `TEPUI_FAULT` (isolators/src/fault.rs).
//!
//! What can go wrong is not written down here: a run without a fault lists the steps of its plans and the points that it
//! passes, and each of these is then made to fail.

pub mod bundles;

use std::fs;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::output::{Finished, finish_into_files};
use crate::{Ground, wait};

/// The variable.
pub const VARIABLE: &str = "TEPUI_FAULT";

/// How long one command may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);

/// One step of a plan.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number, from 1, as in an error's "(step N of M)".
    pub number: usize,
    /// How an error words it, after "could not".
    pub words: String,
    /// What it is made of.
    pub debug: String,
}

/// What a command can be made to fail at.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// The steps of the container's process, in order.
    pub steps: Vec<Step>,
    /// The points of its parents, in order, each once.
    pub points: Vec<String>,
}

impl List {
    /// Runs a command without a fault and lists what it can be made to fail at.
    ///
    /// # Panics
    /// When it fails, or has nothing to list: then it is no control build.
    #[track_caller]
    pub fn of(ground: &Ground, run: impl FnOnce(&str) -> Finished) -> Self {
        let file = ground.path("faults");
        // It is missing at the first time.
        let _ = fs::remove_file(&file);
        run(&format!("list:{}", file.display())).success();
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut list = Self::default();
        for line in text.lines() {
            match *line.split('\t').collect::<Vec<_>>() {
                ["step", number, words, debug] => list.steps.push(Step {
                    number: number.parse().expect("a number"),
                    words: words.to_owned(),
                    debug: debug.to_owned(),
                }),
                ["point", name] if !list.points.iter().any(|known| known == name) => {
                    list.points.push(name.to_owned());
                }
                ["point", _] => {}
                _ => panic!("not a line of the list: {line:?}"),
            }
        }
        assert!(
            !list.points.is_empty(),
            "the build under test has no faults"
        );
        let numbers: Vec<_> = list.steps.iter().map(|step| step.number).collect();
        assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>(), "one plan");
        list
    }
}

/// Runs a command with a fault, to its end. What its container writes goes to a file, since it may live on.
#[track_caller]
pub fn run(ground: &Ground, mut command: Command, fault: &str) -> Finished {
    command.env(VARIABLE, fault);
    finish_into_files(&mut command, LIMIT, &ground.path("faulty"))
}

/// The one line that a command said when it failed.
///
/// # Panics
/// When it did not fail, or said less or more.
#[track_caller]
pub fn only_line(finished: &Finished) -> String {
    assert_ne!(finished.status, 0, "it does not fail: {finished}");
    let lines: Vec<&str> = finished.stderr.lines().collect();
    match *lines {
        [line] => line.replace('\\', ""),
        _ => panic!("not one line: {finished}"),
    }
}

/// A process that waits at a point or a step, until this is dropped.
#[derive(Debug)]
pub struct Hold {
    listener: Option<UnixListener>,
    path: PathBuf,
    held: Option<UnixStream>,
}

impl Hold {
    /// Where it will wait.
    ///
    /// # Panics
    /// When the socket cannot be made.
    pub fn new(ground: &Ground) -> Self {
        let path = ground.path("hold.sock");
        // It is missing at the first time.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket of the test");
        listener.set_nonblocking(true).expect("a socket");
        Self {
            listener: Some(listener),
            path,
            held: None,
        }
    }

    /// The fault that makes it wait at a point.
    pub fn at_point(&self, point: &str) -> String {
        format!("hold:{}:{point}", self.path.display())
    }

    /// The fault that makes it wait before a step.
    pub fn at_step(&self, number: usize) -> String {
        format!("hold-step:{}:{number}", self.path.display())
    }

    /// Waits until it is there.
    ///
    /// # Panics
    /// When it never comes.
    #[track_caller]
    pub fn wait(&mut self) {
        let listener = self.listener.take().expect("it is waited for once");
        let (mut held, _) = wait::until("it is held", LIMIT, || listener.accept().ok());
        // Whoever else comes as far as that goes on.
        drop(listener);
        held.set_nonblocking(false).expect("a socket");
        held.set_read_timeout(Some(LIMIT)).expect("a socket");
        let read = held.read(&mut [0]).expect("it comes as far as that");
        assert_eq!(read, 1, "it ended before it came as far as that");
        self.held = Some(held);
    }

    /// Lets it go on.
    pub fn release(&mut self) {
        self.held = None;
    }
}
