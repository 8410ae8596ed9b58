//! Every point of every command of the runtime fails once, and the command is killed there once: a failure is told in one
//! line and leaves nothing, and what a killed command leaves is gone after a `delete --force`. The same where a command is
//! killed while the container's process is at any of its steps.
//!
//! The points and steps are those that the command itself passes when nothing goes wrong.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tepui_tests::faults::bundles::{self, ID};
use tepui_tests::faults::{self, Hold, List, only_line};
use tepui_tests::output::{self, Finished};
use tepui_tests::{Bundle, Ground, requires, wait};

/// A command, what must have happened before it, and what it leaves when it fails.
struct Case {
    bundle: fn(&Ground) -> Bundle<'_>,
    before: fn(&Bundle<'_>),
    command: fn(&Bundle<'_>) -> Command,
    leaves: Leaves,
}

/// What a command leaves that fails.
#[derive(Clone, Copy, PartialEq)]
enum Leaves {
    /// Nothing; but where the clean-up itself fails, what is named by the state for another attempt.
    Nothing,
    /// The container, which may have ended.
    Container,
    /// The container, with its first process and no other.
    RunningContainer,
}

const CREATE: Case = Case {
    bundle: bundles::rich,
    before: |_| {},
    command: |bundle| bundle.start_command("create", &[]),
    leaves: Leaves::Nothing,
};

const RUN_DETACHED: Case = Case {
    command: |bundle| bundle.start_command("run", &["--detach"]),
    ..CREATE
};

const RUN: Case = Case {
    bundle: bundles::in_a_user_namespace,
    command: |bundle| bundle.start_command("run", &[]),
    ..CREATE
};

const START: Case = Case {
    before: |bundle| drop(bundle.create().success()),
    command: |bundle| bundle.command(&["start", ID]),
    leaves: Leaves::Container,
    ..CREATE
};

const EXEC: Case = Case {
    bundle: |ground| bundles::rich(ground).args(&["sleep", "1000"]),
    before: |bundle| drop(bundle.run_detached().success()),
    command: |bundle| bundle.command(&["exec", ID, "true"]),
    leaves: Leaves::RunningContainer,
};

const DELETE: Case = Case {
    command: |bundle| bundle.command(&["delete", "--force", ID]),
    leaves: Leaves::Container,
    ..EXEC
};

impl Case {
    fn run(&self, ground: &Ground, fault: &str) -> Finished {
        let bundle = (self.bundle)(ground);
        (self.before)(&bundle);
        faults::run(ground, (self.command)(&bundle), fault)
    }

    /// What is left is what may be left, and goes with the container.
    #[track_caller]
    fn check(&self, ground: &Ground, fault: &str, leaves: Leaves) {
        let bundle = (self.bundle)(ground);
        match leaves {
            Leaves::Nothing => return ground.assert_clean(),
            Leaves::Container => {}
            Leaves::RunningContainer => {
                let expected = format!("[{}]", bundle.pid());
                let alone = || {
                    let mut ps = bundle.command(&["ps", "--format=json", ID]);
                    let ps = output::finish(&mut ps, Duration::from_secs(20)).success();
                    (ps.stdout.trim() == expected).then_some(())
                };
                wait::until(
                    &format!("alone after {fault}"),
                    Duration::from_secs(2),
                    alone,
                );
                assert_eq!(bundle.status().as_deref(), Some("running"), "{fault}");
            }
        }
        let deleted = bundle.delete();
        assert_eq!(
            (deleted.status, deleted.stderr.as_str()),
            (0, ""),
            "{fault}"
        );
        ground.assert_clean();
    }

    #[track_caller]
    fn list(&self, ground: &Ground) -> List {
        bundles::start_agent(ground);
        let list = List::of(ground, |fault| self.run(ground, fault));
        (self.bundle)(ground).delete().success();
        list
    }

    #[track_caller]
    fn every_point_fails(&self) {
        let ground = Ground::new();
        let points = self.list(&ground).points;
        for point in &points {
            let fault = format!("fail:{point}");
            let line = only_line(&self.run(&ground, &fault));
            let expected = format!("a fault on purpose at the point \"{point}\"");
            assert!(line.contains(&expected), "{expected:?} is not in {line}");
            let in_cleanup = ["cleaned up", "released", "removed"];
            let leaves = match in_cleanup.iter().any(|start| point.starts_with(start)) {
                true => Leaves::Container,
                false => self.leaves,
            };
            self.check(&ground, &fault, leaves);
        }
        output::say(&format!(
            "{} points failed: {}",
            points.len(),
            points.join(", ")
        ));
    }

    #[track_caller]
    fn killed_at_every_point(&self) {
        let ground = Ground::new();
        let points = self.list(&ground).points;
        for point in &points {
            let fault = format!("kill:{point}");
            let killed = self.run(&ground, &fault);
            assert_eq!(
                (killed.status, killed.stderr.as_str()),
                (137, ""),
                "{fault}: {killed}"
            );
            self.check(&ground, &fault, self.leaves_when_killed());
        }
        output::say(&format!("killed at {} points", points.len()));
    }

    /// While the container's process is at a step, the command is killed. That process then either ends by itself or with
    /// the container.
    #[track_caller]
    fn killed_at_every_step(&self, released: bool) {
        let ground = Ground::new();
        let steps = self.list(&ground).steps;
        for step in &steps {
            let mut hold = Hold::new(&ground);
            let bundle = (self.bundle)(&ground);
            (self.before)(&bundle);
            let mut command = start(&mut (self.command)(&bundle), &hold.at_step(step.number));
            hold.wait();
            command.kill().expect("it is our child");
            command.wait().expect("it is our child");
            if released {
                hold.release();
            }
            let what = format!("killed at step {}: {}", step.number, step.words);
            self.check(&ground, &what, self.leaves_when_killed());
        }
        output::say(&format!("killed at {} steps", steps.len()));
    }

    fn leaves_when_killed(&self) -> Leaves {
        match self.leaves {
            Leaves::Nothing => Leaves::Container,
            other => other,
        }
    }
}

fn start(command: &mut Command, fault: &str) -> Child {
    command.env(faults::VARIABLE, fault);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().expect("the runtime starts")
}

#[test]
fn create_fails_cleanly_at_every_point() {
    requires!(root(), busybox());
    CREATE.every_point_fails();
}

#[test]
fn create_is_killed_at_every_point() {
    requires!(root(), busybox());
    CREATE.killed_at_every_point();
}

#[test]
fn start_fails_cleanly_at_every_point() {
    requires!(root(), busybox());
    START.every_point_fails();
}

#[test]
fn start_is_killed_at_every_point() {
    requires!(root(), busybox());
    START.killed_at_every_point();
}

#[test]
fn run_detached_fails_cleanly_at_every_point() {
    requires!(root(), busybox());
    RUN_DETACHED.every_point_fails();
}

#[test]
fn run_detached_is_killed_at_every_point() {
    requires!(root(), busybox());
    RUN_DETACHED.killed_at_every_point();
}

#[test]
fn run_fails_cleanly_at_every_point() {
    requires!(root(), busybox());
    RUN.every_point_fails();
}

#[test]
fn run_is_killed_at_every_point() {
    requires!(root(), busybox());
    RUN.killed_at_every_point();
}

#[test]
fn exec_fails_cleanly_at_every_point() {
    requires!(root(), busybox());
    EXEC.every_point_fails();
}

#[test]
fn exec_is_killed_at_every_point() {
    requires!(root(), busybox());
    EXEC.killed_at_every_point();
}

#[test]
fn delete_fails_cleanly_at_every_point() {
    requires!(root(), busybox());
    DELETE.every_point_fails();
}

#[test]
fn delete_is_killed_at_every_point() {
    requires!(root(), busybox());
    DELETE.killed_at_every_point();
}

#[test]
fn run_detached_is_killed_while_its_process_is_at_any_step() {
    requires!(root(), busybox());
    RUN_DETACHED.killed_at_every_step(true);
}

#[test]
fn exec_is_killed_while_its_process_is_at_any_step() {
    requires!(root(), busybox());
    EXEC.killed_at_every_step(true);
}

#[test]
fn run_is_killed_while_its_process_is_at_any_step() {
    requires!(root(), busybox());
    RUN.killed_at_every_step(true);
}

#[test]
fn a_process_that_stands_at_any_step_is_deleted() {
    requires!(root(), busybox());
    RUN_DETACHED.killed_at_every_step(false);
}
