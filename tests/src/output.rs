//! Running a command to its end, within a limit, with its output in hand.

use std::io::Write;
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
