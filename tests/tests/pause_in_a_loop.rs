//! A container that is paused and resumed without end, by commands and by whoever writes to the freezer: no command about
//! it hangs, and it can be ended at any moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tepui_tests::host::{Process, processes_of};
use tepui_tests::output::{self, Finished};
use tepui_tests::{Bundle, Ground, Runtime, requires, wait};

/// A second, and what starting a program takes on a loaded machine.
const LIMIT: Duration = Duration::from_millis(1500);

/// How long the container is paused and resumed.
const LONG: Duration = Duration::from_secs(12);

/// What is seen in `ps` of a process that `exec` starts.
const MARK: &str = "1077";

fn sleeper<'a>(ground: &'a Ground, id: &str) -> Bundle<'a> {
    Bundle::new(ground, &Runtime::under_test(), id).args(&["sleep", "1000"])
}

/// Freezes and thaws a container's cgroup, of either version.
struct Freezer {
    file: PathBuf,
    frozen: &'static str,
    thawed: &'static str,
}

impl Freezer {
    fn of(ground: &Ground, id: &str) -> Self {
        let below = |hierarchy: &str| Path::new(hierarchy).join(ground.name()).join(id);
        let v1 = below("/sys/fs/cgroup/freezer").join("freezer.state");
        match v1.exists() {
            true => Self {
                file: v1,
                frozen: "FROZEN",
                thawed: "THAWED",
            },
            false => Self {
                file: below("/sys/fs/cgroup").join("cgroup.freeze"),
                frozen: "1",
                thawed: "0",
            },
        }
    }

    /// Fails when the container is gone.
    fn set(&self, frozen: bool) -> std::io::Result<()> {
        fs::write(&self.file, if frozen { self.frozen } else { self.thawed })
    }
}

/// Runs a command and fails when it takes too long.
#[track_caller]
fn timely(
    bundle: &Bundle<'_>,
    arguments: &[&str],
    slowest: &mut Vec<(Duration, String)>,
) -> Finished {
    let begin = Instant::now();
    let finished = output::finish(&mut bundle.command(arguments), Duration::from_secs(20));
    let took = begin.elapsed();
    assert!(took < LIMIT, "{arguments:?} took {took:?}: {finished}");
    slowest.push((took, arguments.join(" ")));
    finished
}

/// Whether a command did its work, or said why it could not now.
#[track_caller]
fn done_or_told(finished: &Finished, arguments: &[&str]) {
    if finished.status != 0 {
        let said = finished.stderr.lines().count();
        assert_eq!(said, 1, "{arguments:?}: {finished}");
    }
}

fn paused_in_a_loop(by_file: bool) {
    let ground = Ground::new();
    let bundle = sleeper(&ground, "c");
    bundle.run_detached().success();
    let freezer = Freezer::of(&ground, "c");
    let over = AtomicBool::new(false);
    let mut slowest = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for frozen in [true, false] {
                    if by_file {
                        // A container that is gone cannot be paused.
                        let _ = freezer.set(frozen);
                        std::thread::sleep(Duration::from_millis(3));
                    } else {
                        let verb = if frozen { "pause" } else { "resume" };
                        let begin = Instant::now();
                        // It fails when it is paused, or busy, already.
                        bundle.call(verb, &[]);
                        assert!(begin.elapsed() < LIMIT, "{verb} took {:?}", begin.elapsed());
                    }
                }
            }
        });
        // Whatever fails here, the other ends too.
        let _end = End(&over);
        let (begin, mut entered) = (Instant::now(), 0);
        while begin.elapsed() < LONG {
            for arguments in [
                &["exec", "c", "true"][..],
                &["exec", "--detach", "c", "sleep", "0.1"],
                &["update", "--pids-limit", "50", "c"],
                &["state", "c"],
                &["ps", "c"],
                &["events", "--stats", "c"],
                &["kill", "c", "0"],
                &["list"],
            ] {
                let finished = timely(&bundle, arguments, &mut slowest);
                done_or_told(&finished, arguments);
                entered += u32::from(arguments[0] == "exec" && finished.status == 0);
            }
        }
        assert!(entered > 0, "it was always paused");
        // A pid namespace ends when all in it have been reaped, and what `exec --detach` left is somebody else's to reap.
        wait::until("the last to be reaped", LONG, || {
            (in_cgroups_of(&ground) == 1).then_some(())
        });
        for arguments in [&["kill", "c", "KILL"][..], &["delete", "--force", "c"]] {
            timely(&bundle, arguments, &mut slowest).success();
        }
    });
    slowest.sort();
    let (took, what) = slowest.last().expect("some commands ran");
    output::say(&format!(
        "{} commands; the slowest, {what}, took {took:?}",
        slowest.len()
    ));
    ground.assert_clean();
}

/// How many processes there are in the test's cgroups, zombies too.
fn in_cgroups_of(ground: &Ground) -> usize {
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    let cgroups = processes.filter_map(|one| fs::read_to_string(one.path().join("cgroup")).ok());
    cgroups.filter(|text| text.contains(ground.name())).count()
}

/// Ends the loop, also when a test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_command_hangs_while_others_pause_and_resume() {
    requires!(root(), busybox());
    paused_in_a_loop(false);
}

#[test]
fn no_command_hangs_while_the_freezer_is_written() {
    requires!(root(), busybox());
    paused_in_a_loop(true);
}

/// A container can be ended while it is frozen again and again.
#[test]
fn containers_are_killed_and_deleted_while_they_are_frozen() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let mut slowest = Vec::new();
    for number in 0..15 {
        let id = format!("c{number}");
        let bundle = sleeper(&ground, &id);
        bundle.run_detached().success();
        let freezer = Freezer::of(&ground, &id);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // What is gone cannot be frozen.
                    let _ = freezer.set(true);
                    std::thread::sleep(Duration::from_micros(100 * number));
                    let _ = freezer.set(number % 2 == 0);
                }
            });
            let _end = End(&over);
            if number % 3 == 0 {
                timely(&bundle, &["kill", &id, "KILL"], &mut slowest).success();
            }
            timely(&bundle, &["delete", "--force", &id], &mut slowest).success();
        });
    }
    ground.assert_clean();
}

/// The process that `exec` cloned into a container that was frozen just then.
fn frozen_newcomers(ground: &Ground, bundle: &Bundle<'_>) -> Vec<Process> {
    let mut found = processes_of(ground.name());
    let first = bundle.pid();
    found.retain(|process| process.cgroups.contains("/c\n") && process.pid != first);
    found
}

/// `exec` looks whether the container is paused before it clones. One that is paused after that keeps the process: exec
/// gives it up, and it dies once it is thawed, without a trace of the program.
#[test]
fn an_exec_that_was_overtaken_by_a_pause_leaves_nothing() {
    requires!(root(), busybox());
    let ground = Ground::new();
    let control = Bundle::new(&ground, &Runtime::without(""), "c").args(&["sleep", "1000"]);
    control.run_detached().success();
    let freezer = Freezer::of(&ground, "c");
    let trace = control.rootfs("tmp/trace");
    let list = tepui_tests::faults::List::of(&ground, |fault| {
        let exec = control.command(&["exec", "c", "true"]);
        tepui_tests::faults::run(&ground, exec, fault)
    });
    for point in ["found", "planned", "cloned", "made"] {
        assert!(list.points.iter().any(|known| known == point), "{list:?}");
        let mut hold = tepui_tests::faults::Hold::new(&ground);
        let mut exec = control.command(&["exec", "c", "touch", "/tmp/trace", MARK]);
        exec.env(tepui_tests::faults::VARIABLE, hold.at_point(point));
        let waiting = std::thread::scope(|scope| {
            // Into files: of a pipe the end would come only with that of the frozen process.
            let files = ground.path("exec");
            let limit = Duration::from_secs(20);
            let exec = scope.spawn(move || output::finish_into_files(&mut exec, limit, &files));
            hold.wait();
            freezer.set(true).expect("it is there");
            let begin = Instant::now();
            hold.release();
            (exec.join().expect("it does not panic"), begin.elapsed())
        });
        let (finished, took) = waiting;
        assert!(
            took < LIMIT,
            "held at {point}: it took {took:?}: {finished}"
        );
        let line = tepui_tests::faults::only_line(&finished);
        assert!(line.contains("was paused meanwhile"), "{finished}");
        output::say(&format!("overtaken at {point}: it took {took:?}"));
        freezer.set(false).expect("it is there");
        let gone = || frozen_newcomers(&ground, &control).is_empty().then_some(());
        wait::until("the frozen process ends", Duration::from_secs(2), gone);
        assert!(
            !trace.exists(),
            "held at {point}: it ran after it was given up"
        );
        assert_eq!(control.status().as_deref(), Some("running"));
    }
    control.delete().success();
    ground.assert_clean();
}
