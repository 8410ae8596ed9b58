//! Running a command to its end, within a limit, with its output in hand.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::wait;

/// What a finished command said.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status; 128+n after signal n.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// The same, if it exited 0.
    ///
    /// # Panics
    /// When it did not, with all that it said.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.status, 0, "{self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            status,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "exit status {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let signal = || output.status.signal().map(|n| 128 + n);
        Self {
            status: output.status.code().or_else(signal).unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Prints a line that is seen even when the test passes: what print! writes is captured then.
pub fn say(line: &str) {
    // Nothing to do where standard output is closed.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Runs `command` to its end without standard input.
///
/// # Panics
/// When it cannot be started, or does not end within `limit` (it is killed then).
#[track_caller]
pub fn finish(command: &mut Command, limit: Duration) -> Finished {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    // Read on a thread of its own: a full pipe must not stop the command.
    let reader = std::thread::spawn(move || child.wait_with_output());
    let late = wait::within(limit, || reader.is_finished().then_some(())).is_none();
    if late {
        // Fails only if it has just ended.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    let output = reader
        .join()
        .expect("the reader does not panic")
        .expect("its output can be read");
    let finished = Finished::from(output);
    assert!(
        !late,
        "{command:?} did not end within {limit:?}: {finished}"
    );
    finished
}

/// As [`finish`], with the output in the files `<prefix>.stdout` and `<prefix>.stderr`: for a command that leaves a
/// process behind which keeps them open.
///
/// # Panics
/// When it cannot be started, or does not end within `limit` (it is killed then).
#[track_caller]
pub fn finish_into_files(command: &mut Command, limit: Duration, prefix: &Path) -> Finished {
    let names =
        ["stdout", "stderr"].map(|name| PathBuf::from(format!("{}.{name}", prefix.display())));
    let file = |name: &PathBuf| File::create(name).expect("a file of the test");
    command
        .stdin(Stdio::null())
        .stdout(file(&names[0]))
        .stderr(file(&names[1]));
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let status = wait::within(limit, || child.try_wait().expect("it is our child"));
    if status.is_none() {
        // It is reaped below, whatever it did meanwhile.
        let _ = child.kill();
        let _ = child.wait();
    }
    let [stdout, stderr] = names.map(|name| std::fs::read(name).expect("a file of the test"));
    let finished = Finished::from(Output {
        status: status.unwrap_or_default(),
        stdout,
        stderr,
    });
    assert!(
        status.is_some(),
        "{command:?} did not end within {limit:?}: {finished}"
    );
    finished
}
