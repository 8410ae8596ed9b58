//! The launcher, and the executor before it, fail and are killed once at each of their points, and while the container's
//! process is at any of its steps. No process outlives them, and the next start of any tepui leaves nothing else of it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tepui_tests::faults::{self, Hold, List};
use tepui_tests::output;
use tepui_tests::{Ground, Image, binary, host, requires, wait};

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Executor,
    Launcher,
}

/// A ground with an image, and what a start of it can fail at.
struct Stage {
    ground: Ground,
    image: String,
    list: List,
}

impl Stage {
    #[track_caller]
    fn new() -> Self {
        let ground = Ground::new();
        let image = ground.layout(&Image::busybox());
        let list = List::of(&ground, |fault| {
            faults::run(&ground, command(&ground, &image), fault)
        });
        assert!(!list.steps.is_empty(), "the launcher lists its plan");
        Self {
            ground,
            image,
            list,
        }
    }

    fn command(&self) -> Command {
        command(&self.ground, &self.image)
    }

    /// The next start, after which nothing is left.
    #[track_caller]
    fn recover(&self, what: &str) {
        let next = faults::run(&self.ground, self.command(), "");
        assert_eq!(
            (next.status, next.stderr.as_str()),
            (0, ""),
            "after {what}: {next}"
        );
        self.ground.assert_clean();
    }

    /// Starts a container whose launch waits at a place, kills somebody meanwhile and lets it go on.
    #[track_caller]
    fn kill_at(&self, what: &str, fault: impl Fn(&Hold) -> String, victim: Victim) {
        let what = format!("{victim:?} killed at {what}");
        let mut hold = Hold::new(&self.ground);
        let mut executor = self.start(&fault(&hold));
        hold.wait();
        let killed = match victim {
            Victim::Executor => Some(executor.id().cast_signed()),
            Victim::Launcher => launcher(&executor),
        };
        if let Some(pid) = killed {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
        }
        hold.release();
        let ended = wait::within(Duration::from_secs(10), || {
            executor.try_wait().expect("our child")
        });
        let Some(status) = ended else {
            // Fails only if it has just ended.
            let _ = executor.kill();
            panic!("{what}: the executor does not end");
        };
        if victim == Victim::Launcher && killed.is_some() {
            // Where the container had already ended, its status is known.
            assert!(
                matches!(status.code(), Some(0 | 125 | 137)),
                "{what}: {status}"
            );
        }
        let none = || self.ground.processes().is_empty().then_some(());
        let gone = wait::within(Duration::from_secs(2), none);
        assert!(gone.is_some(), "{what}: {:?}", self.ground.processes());
        self.recover(&what);
    }

    fn start(&self, fault: &str) -> Child {
        let mut command = self.command();
        command.env(faults::VARIABLE, fault);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().expect("tepui starts")
    }

    #[track_caller]
    fn killed_at_every_point(&self, victim: Victim) {
        for point in &self.list.points {
            self.kill_at(point, |hold| hold.at_point(point), victim);
        }
        output::say(&format!(
            "{victim:?} killed at {} points",
            self.list.points.len()
        ));
    }

    #[track_caller]
    fn killed_at_every_step(&self, victim: Victim) {
        for step in &self.list.steps {
            self.kill_at(&step.words, |hold| hold.at_step(step.number), victim);
        }
        output::say(&format!(
            "{victim:?} killed at {} steps",
            self.list.steps.len()
        ));
    }
}

fn command(ground: &Ground, image: &str) -> Command {
    let mut command = ground.command(binary::undefended_tepui());
    command.arg("run").args(ground.settings());
    command.args(["--init", "--network=none", "--read-only", image, "true"]);
    command
}

/// The launcher of an executor that has one.
fn launcher(executor: &Child) -> Option<i32> {
    let parent = executor.id().cast_signed();
    let found = host::processes().into_iter();
    let mut found = found.filter(|process| process.parent == parent);
    found.next().map(|process| process.pid)
}

#[test]
fn every_point_fails_cleanly() {
    requires!(root(), busybox());
    let stage = Stage::new();
    for point in &stage.list.points {
        let failed = faults::run(&stage.ground, stage.command(), &format!("fail:{point}"));
        let expected = format!("a fault on purpose at the point \"{point}\"");
        let lines: Vec<&str> = failed.stderr.lines().collect();
        assert!(
            matches!(*lines, [line] if line.replace('\\', "").contains(&expected)),
            "{expected:?} is not the one line: {failed}"
        );
        if point.starts_with("cleaned up") {
            // The workload has ended by then, as it should.
            assert_eq!(failed.status, 0, "{failed}");
            stage.recover(point);
        } else {
            assert_eq!(failed.status, 125, "{failed}");
            stage.ground.assert_clean();
        }
    }
}

#[test]
fn nothing_survives_the_executor_killed_at_any_point() {
    requires!(root(), busybox());
    Stage::new().killed_at_every_point(Victim::Executor);
}

#[test]
fn nothing_survives_the_executor_killed_at_any_step() {
    requires!(root(), busybox());
    Stage::new().killed_at_every_step(Victim::Executor);
}

#[test]
fn nothing_survives_the_launcher_killed_at_any_point() {
    requires!(root(), busybox());
    Stage::new().killed_at_every_point(Victim::Launcher);
}

#[test]
fn nothing_survives_the_launcher_killed_at_any_step() {
    requires!(root(), busybox());
    Stage::new().killed_at_every_step(Victim::Launcher);
}
