//! Every step of every kind of plan fails once: each time there is one clear error, and nothing of the container is left.

use std::collections::BTreeSet;
use std::time::Duration;

use tepui_tests::faults::{self, List, only_line};
use tepui_tests::output::{self, Finished};
use tepui_tests::{Ground, Image, binary, requires};

use tepui_tests::faults::bundles::{self, ID, rich};

/// A way to start a process: it takes a fault and returns how the command ended in which it happened.
type Way<'a> = dyn Fn(&Ground, &str) -> Finished + 'a;

/// All ways, by name.
const WAYS: [(&str, &Way<'static>); 7] = [
    ("create and start", &create_and_start),
    ("run", &run),
    ("run --detach", &run_detached),
    ("exec", &exec),
    ("run in a user namespace", &run_in_a_user_namespace),
    ("run by another user", &run_by_another_user),
    ("tepui run", &tepui_run),
];

fn create_and_start(ground: &Ground, fault: &str) -> Finished {
    let bundle = rich(ground);
    let created = faults::run(ground, bundle.start_command("create", &[]), fault);
    if created.status != 0 {
        return created;
    }
    let started = faults::run(ground, bundle.command(&["start", ID]), "");
    // What has failed after it was made is there until it is deleted.
    bundle.delete().success();
    started
}

fn run(ground: &Ground, fault: &str) -> Finished {
    faults::run(ground, rich(ground).start_command("run", &[]), fault)
}

fn run_detached(ground: &Ground, fault: &str) -> Finished {
    let bundle = rich(ground);
    let ran = faults::run(ground, bundle.start_command("run", &["--detach"]), fault);
    if ran.status == 0 {
        bundle.delete().success();
    }
    ran
}

fn exec(ground: &Ground, fault: &str) -> Finished {
    let bundle = rich(ground).args(&["sleep", "1000"]);
    bundle.run_detached().success();
    let exec = faults::run(ground, bundle.command(&["exec", ID, "true"]), fault);
    let mut ps = bundle.command(&["ps", "--format=json", ID]);
    let left = output::finish(&mut ps, Duration::from_secs(20)).success();
    assert_eq!(left.stdout.trim(), format!("[{}]", bundle.pid()), "{fault}");
    bundle.delete().success();
    exec
}

fn run_in_a_user_namespace(ground: &Ground, fault: &str) -> Finished {
    let bundle = bundles::in_a_user_namespace(ground);
    faults::run(ground, bundle.start_command("run", &[]), fault)
}

fn run_by_another_user(ground: &Ground, fault: &str) -> Finished {
    let bundle = bundles::by_another_user(ground);
    let command = bundle.start_command("run", &[]);
    faults::run(ground, bundles::as_another_user(ground, &command), fault)
}

fn tepui_run(ground: &Ground, fault: &str) -> Finished {
    let mut command = ground.command(binary::undefended_tepui());
    command.arg("run").args(ground.settings());
    command.args([
        "--init",
        "--network=none",
        "--read-only",
        "--ulimit=nofile=100:100",
    ]);
    command.arg(ground.layout(&Image::busybox())).arg("true");
    faults::run(ground, command, fault)
}

fn prepare(ground: &Ground) {
    bundles::start_agent(ground);
}

/// `tepui run` makes up an id, twelve hexadecimal digits, which is another one each time.
fn without_id(text: &str) -> String {
    let is_id = |word: &&str| word.len() == 12 && word.chars().all(|c| c.is_ascii_hexdigit());
    let words = text.split(['/', '"', '.']);
    words
        .filter(|word| !is_id(word))
        .collect::<Vec<_>>()
        .join(" ")
}

#[track_caller]
fn every_step_fails(name: &str) {
    let (_, way) = WAYS
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a way");
    let ground = Ground::new();
    prepare(&ground);
    let list = List::of(&ground, |fault| way(&ground, fault));
    let count = list.steps.len();
    for step in &list.steps {
        let failed = way(&ground, &format!("step:{}", step.number));
        let line = without_id(&only_line(&failed));
        let program = ["Execute(", "FindProgram("];
        let expected = match program.iter().any(|start| step.debug.starts_with(start)) {
            // It is told as any failure to execute it is.
            true => "true".to_owned(),
            false => format!("could not {} (step {} of {count})", step.words, step.number)
                .replace('\\', ""),
        };
        assert!(
            line.contains(&without_id(&expected)) && line.contains("(os error 5)"),
            "{expected:?} is not in {line}"
        );
        ground.assert_clean();
    }
    output::say(&format!(
        "{name}: {count} steps failed, one after the other"
    ));
}

#[test]
fn every_step_of_create_and_start_fails_cleanly() {
    requires!(root(), busybox());
    every_step_fails("create and start");
}

#[test]
fn every_step_of_run_fails_cleanly() {
    requires!(root(), busybox());
    every_step_fails("run");
}

#[test]
fn every_step_of_run_detached_fails_cleanly() {
    requires!(root(), busybox());
    every_step_fails("run --detach");
}

#[test]
fn every_step_of_exec_fails_cleanly() {
    requires!(root(), busybox());
    every_step_fails("exec");
}

#[test]
fn every_step_of_run_in_a_user_namespace_fails_cleanly() {
    requires!(root(), busybox());
    every_step_fails("run in a user namespace");
}

#[test]
fn every_step_of_run_by_another_user_fails_cleanly() {
    requires!(root(), busybox());
    every_step_fails("run by another user");
}

#[test]
fn every_step_of_tepui_run_fails_cleanly() {
    requires!(root(), busybox());
    every_step_fails("tepui run");
}

/// The names of an enumeration's variants, from its source.
fn variants(source: &str, name: &str) -> BTreeSet<String> {
    let start = source
        .find(&format!("pub enum {name} {{\n"))
        .expect("the enumeration");
    let body = source[start..]
        .lines()
        .skip(1)
        .take_while(|line| *line != "}");
    let variants = body.filter_map(|line| {
        let name = line.strip_prefix("    ")?;
        let end = name
            .find(|c: char| !c.is_alphanumeric())
            .unwrap_or(name.len());
        name.starts_with(|c: char| c.is_ascii_uppercase())
            .then(|| name[..end].to_owned())
    });
    variants.collect()
}

/// Else a new kind of step would fail in no test.
#[test]
fn together_the_plans_have_every_kind_of_step() {
    requires!(root(), busybox(), landlock());
    let mut seen = String::new();
    for (_, way) in WAYS {
        let ground = Ground::new();
        prepare(&ground);
        let list = List::of(&ground, |fault| way(&ground, fault));
        seen.extend(list.steps.into_iter().map(|step| step.debug + "\n"));
        ground.assert_clean();
    }
    let step = include_str!("../../executor/src/launch/step.rs");
    let attribute = include_str!("../../isolators/src/attribute.rs");
    let starts_with = |name: &str| {
        seen.lines().any(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
        })
    };
    let mut missing: Vec<String> = variants(step, "Step")
        .into_iter()
        .filter(|name| !starts_with(name))
        .collect();
    let kinds = [
        (step, "MountSource", "source: "),
        (step, "Tree", "tree: "),
        (attribute, "Attribute", "Attribute("),
    ];
    for (source, name, before) in kinds {
        let all = variants(source, name);
        missing.extend(
            all.into_iter()
                .filter(|name| !seen.contains(&format!("{before}{name}"))),
        );
    }
    // What this kernel does not have.
    missing.retain(|name| match name.as_str() {
        "MemoryPolicy" => requires::numa().is_ok(),
        "ExecLabel" => requires::no_security_labels().is_err(),
        _ => true,
    });
    assert!(missing.is_empty(), "in no plan: {missing:?}");
}
