//! Processes to look at, made by util-linux, so that what is observed was made by somebody else than tepui.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tepui_isolators::registry;
use tepui_isolators::{CgroupPlacement, Declaration, Finding, RootFilesystem, Target, Verdict};

/// Whether this test can run here.
pub fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        assert!(
            std::env::var_os("REQUIRE_ALL").is_none(),
            "this test needs root"
        );
        eprintln!("skipped: needs root");
    }
    is_root
}

/// A process that does nothing until it is dropped.
pub struct Process {
    child: Child,
    pub target: Target,
}

impl Process {
    /// Runs `command`, whose last part is a shell that gets `script`; it has run when this returns. With `forks`, the
    /// command has the process to look at as its child.
    pub fn start(command: &[&str], script: &str, forks: bool) -> Self {
        let waiting = format!("{script}\necho ready && exec cat");
        let all = [command, &["sh", "-e", "-c", &waiting]].concat();
        let mut child = Command::new(all[0])
            .args(&all[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let mut pid = child.id();
        if line == "ready\n" && forks {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            pid = children.unwrap().trim().parse().unwrap();
        }
        let process = Self {
            child,
            target: Target { pid },
        };
        assert_eq!(line, "ready\n", "{all:?} did not come up");
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // `cat`, and with it the whole line of processes, ends with its input.
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

pub fn declaration(spec: Value) -> Declaration {
    Declaration {
        spec: serde_json::from_value(spec).unwrap(),
        rootfs: RootFilesystem::Host,
        cgroups: CgroupPlacement {
            parent: "/tepui".into(),
            nested: Default::default(),
            name: None,
        },
        init: false,
        executable: None,
        keep_keyring: false,
        reset_cpu_affinity: false,
    }
}

/// What one isolator says of a process.
pub fn verify(isolator: &str, process: &Process, declaration: &Declaration) -> Vec<Finding> {
    let isolators = registry::select(Some(isolator)).unwrap();
    assert_eq!(isolators.len(), 1);
    registry::verify(&isolators, &process.target, declaration).unwrap()
}

pub fn assert_all(findings: &[Finding], verdict: Verdict) {
    assert!(!findings.is_empty());
    for finding in findings {
        assert_eq!(finding.verdict, verdict, "{finding:#?}");
    }
}

pub fn item<'a>(findings: &'a [Finding], item: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.item == item);
    found.unwrap_or_else(|| panic!("no {item} in {findings:#?}"))
}
