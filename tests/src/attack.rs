//! Attacks with their control: each is tried on the runtime under test, where it must fail, and on a build that lacks
//! the one defence against it, where it must succeed. An attack that fails there as well proves nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::output::{Finished, finish};
use crate::{Bundle, Ground, Runtime};

/// How long one command of an attack may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What a file of the host is like: mode, owner, and content or what it points at.
type Look = (u32, u32, Vec<u8>);

/// One try of an attack, on one runtime.
///
/// It has succeeded when a directory outside of all containers is not as it was, or when a workload wrote
/// `/reports/marker`, which it does when it got what it must not have.
#[derive(Debug)]
pub struct Attempt {
    /// Where it happens.
    pub ground: Ground,
    /// What is attacked.
    pub runtime: Runtime,
    before: RefCell<BTreeMap<PathBuf, Look>>,
    log: RefCell<Vec<String>>,
}

impl Attempt {
    fn new(runtime: Runtime) -> Self {
        let attempt = Self {
            ground: Ground::new(),
            runtime,
            before: RefCell::default(),
            log: RefCell::default(),
        };
        for directory in [attempt.outside(), attempt.reports()] {
            fs::create_dir(directory).expect("a directory of the test");
        }
        attempt.place("victim", b"untouched\n");
        attempt
    }

    /// A directory of the host that no container is given. There is a file `victim` in it.
    pub fn outside(&self) -> PathBuf {
        self.ground.path("outside")
    }

    /// Puts a file into [`Self::outside`].
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn place(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.outside().join(name);
        fs::write(&path, content).expect("a file of the test");
        self.remember();
        path
    }

    /// From now on, what is outside must stay as it is.
    pub fn remember(&self) {
        self.before.replace(look_at(&self.outside()));
    }

    /// The directory that every bundle of the attempt has at `/reports`.
    pub fn reports(&self) -> PathBuf {
        self.ground.path("reports")
    }

    /// A bundle whose workload can report.
    pub fn bundle(&self, id: &str) -> Bundle<'_> {
        let mut bundle = Bundle::new(&self.ground, &self.runtime, id);
        let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
        let reports = json!({"destination": "/reports", "type": "bind", "source": self.reports(), "options": ["rbind", "rw"]});
        // First, so that other mounts can be led into it.
        mounts.insert(0, reports);
        bundle
    }

    /// `run` of a bundle, to its end, whatever that is.
    #[track_caller]
    pub fn run(&self, bundle: &Bundle<'_>) -> Finished {
        self.finish(&mut bundle.start_command("run", &[]))
    }

    /// Runs a command to its end, whatever that is.
    #[track_caller]
    pub fn finish(&self, command: &mut Command) -> Finished {
        let finished = finish(command, LIMIT);
        self.log
            .borrow_mut()
            .push(format!("{command:?}: {finished}"));
        finished
    }

    /// `command` as the shell script says with `"$@"`, e.g. from a namespace that stands for the host. The script is given
    /// `$OUTSIDE` and `$REPORTS`.
    #[track_caller]
    pub fn finish_by(&self, program: &[&str], script: &str, command: &Command) -> Finished {
        let words = [program, &["sh", "-c", script, "sh"]].concat();
        let mut shell = self.ground.command(words[0]);
        shell.args(&words[1..]);
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.env("OUTSIDE", self.outside());
        shell.env("REPORTS", self.reports());
        self.finish(&mut shell)
    }

    /// Whether it has succeeded.
    pub fn succeeded(&self) -> bool {
        self.reports().join("marker").exists() || look_at(&self.outside()) != *self.before.borrow()
    }

    /// The last things that were said, for the message of a failed test.
    fn story(&self) -> String {
        let log = self.log.borrow();
        log[log.len().saturating_sub(3)..].join("\n")
    }
}

/// Tries an attack on the runtime under test and on one without the `defences` (names separated by commas).
///
/// # Panics
/// When it succeeds on the first, or fails on the second, or anything is left behind.
#[track_caller]
pub fn works_only_without(defences: &str, attack: impl Fn(&Attempt)) {
    for runtime in [Runtime::without(defences), Runtime::under_test()] {
        let is_defended = runtime.is_defended();
        let attempt = Attempt::new(runtime);
        attack(&attempt);
        let succeeded = attempt.succeeded();
        assert!(
            !(succeeded && is_defended),
            "the attack succeeds\n{}",
            attempt.story()
        );
        assert!(
            succeeded || is_defended,
            "the attack fails even without {defences}, so it shows nothing\n{}",
            attempt.story()
        );
        attempt.ground.assert_clean();
    }
}

/// Tries an attack for which no defence can be taken away: the test says why. It returns what became of it.
///
/// # Panics
/// When it succeeds, or anything is left behind.
#[track_caller]
pub fn never_works(attack: impl Fn(&Attempt)) {
    let attempt = Attempt::new(Runtime::under_test());
    attack(&attempt);
    assert!(
        !attempt.succeeded(),
        "the attack succeeds\n{}",
        attempt.story()
    );
    attempt.ground.assert_clean();
}

fn look_at(directory: &Path) -> BTreeMap<PathBuf, Look> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(path) = waiting.pop() {
        let status = path.symlink_metadata().expect("it was just listed");
        let content = if status.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory of the test");
            waiting.extend(entries.flatten().map(|entry| entry.path()));
            Vec::new()
        } else if status.is_file() {
            fs::read(&path).expect("a file of the test")
        } else {
            fs::read_link(&path).map_or_else(
                |_| Vec::new(),
                |to| to.into_os_string().into_encoded_bytes(),
            )
        };
        found.insert(path, (status.mode(), status.uid(), content));
    }
    found
}
