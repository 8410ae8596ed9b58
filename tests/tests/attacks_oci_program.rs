//! Attacks on the runtime itself: on its file, on its descriptors, and by way of the working directory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::Mode;
use serde_json::json;
use tepui_tests::attack::{Attempt, works_only_without};
use tepui_tests::output::finish;
use tepui_tests::{Bundle, Runtime, requires, wait};

const LIMIT: Duration = Duration::from_secs(60);

/// Waits in the container for a process that is not busybox, holds its file, ends it and writes to the file.
const OVERWRITER: &str = r#"
while :; do
    for process in /proc/[0-9]*; do
        program=$(readlink $process/exe 2>/dev/null) || continue
        case $program in */busybox) continue ;; esac
        (
            exec 3<$process/exe
            kill -KILL ${process#/proc/}
            # Busy until the last process that runs it has ended.
            while said=$(echo taken 2>&1 >/proc/self/fd/3); case $said in *busy*) ;; *) false ;; esac; do :; done
        )
        exit
    done
done"#;

/// A container with the overwriter, and the runtime whose file is attacked.
fn overwriter(attempt: &Attempt) -> (Runtime, Bundle<'_>) {
    let file = attempt.outside().join("runtime");
    let runtime = attempt.runtime.copied_to(&file);
    attempt.remember();
    let attacker = Bundle::new(&attempt.ground, &runtime, "attacker").shell(OVERWRITER);
    attacker.run_detached().success();
    (runtime, attacker)
}

/// The arguments that make the runtime, executed in the container, wait for ever: its configuration is a pipe.
const WAITING: [&str; 6] = ["/evil", "--root", "/tmp/state", "run", "--bundle=/b", "x"];

/// Makes the container's `/evil` lead to the program that executes it, which will wait.
fn evil<'a>(bundle: Bundle<'a>, runtime: &Runtime) -> Bundle<'a> {
    fs::create_dir(bundle.rootfs("b")).expect("a directory of the bundle");
    let fifo = bundle.rootfs("b/config.json");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o644)).expect("a pipe of the bundle");
    let mut bundle = bundle.symlink("evil", "/proc/self/exe").args(&WAITING);
    // Inside, it is not to protect itself either.
    let environment = bundle.config["process"]["env"].as_array_mut();
    let switch = format!(
        "TEPUI_UNDEFENDED={}",
        runtime.undefended().unwrap_or_default()
    );
    environment.expect("a list").push(switch.into());
    bundle
}

/// Waits for the attacker's end and removes it, with a runtime that was not attacked.
fn await_the_end(attempt: &Attempt) {
    let call = |arguments| {
        finish(
            &mut attempt.runtime.command(&attempt.ground, arguments),
            LIMIT,
        )
    };
    // In vain where the runtime never ran inside: there was nothing to attack.
    let _ = wait::within(Duration::from_secs(10), || {
        let state = call(&["state", "attacker"]).stdout;
        state.contains("\"stopped\"").then_some(())
    });
    call(&["delete", "--force", "attacker"]).success();
}

/// CVE-2019-5736.
#[test]
fn a_process_that_is_executed_does_not_give_the_runtimes_file_away() {
    requires!(root(), busybox());
    works_only_without("sealed-program", |attempt| {
        let (runtime, attacker) = overwriter(attempt);
        let attacker = evil(attacker, &runtime);
        let environment = format!(
            "TEPUI_UNDEFENDED={}",
            runtime.undefended().unwrap_or_default()
        );
        let mut exec = attacker.command(&["exec", "--env", &environment, attacker.id()]);
        attempt.finish(exec.args(WAITING));
        await_the_end(attempt);
    });
}

/// CVE-2019-5736, with the attacker in the same pid namespace from the start.
#[test]
fn an_entrypoint_does_not_give_the_runtimes_file_away() {
    requires!(root(), busybox());
    works_only_without("sealed-program", |attempt| {
        let (runtime, attacker) = overwriter(attempt);
        let namespace = format!("/proc/{}/ns/pid", attacker.pid());
        let victim = evil(Bundle::new(&attempt.ground, &runtime, "victim"), &runtime);
        let victim = victim.with(
            "/linux/namespaces/0",
            json!({"type": "pid", "path": namespace}),
        );
        attempt.run(&victim);
        await_the_end(attempt);
    });
}

/// CVE-2019-5736, for a runtime with libraries: those of the image would run in it.
#[test]
fn the_runtime_loads_no_library() {
    requires!(root());
    let program = fs::read(Runtime::under_test().program()).expect("the runtime");
    assert!(requires::is_static_program(&program));
}

/// Leaves a descriptor of the outside open as number 9.
const LEAK: &str = r#"exec 9<"$OUTSIDE"; "$@""#;

/// CVE-2024-21626. The other descriptors are those that the runtime itself may have open.
#[test]
fn no_working_directory_leads_outside_through_a_descriptor() {
    requires!(root(), busybox());
    works_only_without("working-directory,in-root", |attempt| {
        for number in 3..=20 {
            let bundle = attempt
                .bundle(&format!("c{number}"))
                .shell("echo taken >marker")
                .with("/process/cwd", json!(format!("/proc/self/fd/{number}")));
            attempt.finish_by(&[], LEAK, &bundle.start_command("run", &[]));
            fs::remove_dir_all(bundle.directory()).expect("it is ours");
        }
    });
}

/// CVE-2024-21626, for a process that joins.
#[test]
fn no_working_directory_of_exec_leads_outside_through_a_descriptor() {
    requires!(root(), busybox());
    works_only_without("working-directory,in-root", |attempt| {
        let bundle = attempt.bundle("c").args(&["sleep", "1000"]);
        bundle.run_detached().success();
        for number in 3..=20 {
            let directory = format!("/proc/self/fd/{number}");
            let mut exec = bundle.command(&["exec", "--cwd", &directory, bundle.id()]);
            exec.args(["sh", "-c", "echo taken >marker"]);
            attempt.finish_by(&[], LEAK, &exec);
        }
        bundle.delete().success();
    });
}

/// CVE-2024-21626: what the caller leaks, or the runtime.
#[test]
fn no_descriptor_leads_outside() {
    requires!(root(), busybox());
    let script = "for n in $(seq 3 100); do echo taken 2>/dev/null >/proc/self/fd/$n/marker; done";
    works_only_without("close-descriptors", |attempt| {
        let bundle = attempt.bundle("c").shell(script);
        attempt.finish_by(&[], LEAK, &bundle.start_command("run", &[]));
    });
    works_only_without("close-descriptors", |attempt| {
        let bundle = attempt.bundle("c").args(&["sleep", "1000"]);
        bundle.run_detached().success();
        let mut exec = bundle.command(&["exec", bundle.id()]);
        attempt.finish_by(&[], LEAK, exec.args(["sh", "-c", script]));
        bundle.delete().success();
    });
}

/// The switches of the control must not be in what is installed.
#[test]
fn the_program_under_test_has_no_switch_for_its_defences() {
    requires!(root());
    let has_switch = |program: &Path| {
        let program = fs::read(program).expect("the runtime");
        let name = b"TEPUI_UNDEFENDED";
        program.windows(name.len()).any(|bytes| bytes == name)
    };
    assert!(!has_switch(Runtime::under_test().program()));
    assert!(has_switch(Runtime::without("").program()));
}

/// Nor can a release build have them.
#[test]
fn a_build_without_assertions_refuses_the_switches() {
    let source = tepui_tests::binary::workspace().join("isolators/src/undefended.rs");
    let ground = tepui_tests::Ground::new();
    for (assertions, accepted) in [("on", true), ("off", false)] {
        let rustc = ground
            .command(Path::new(env!("CARGO")).with_file_name("rustc"))
            .args([
                "--edition",
                "2024",
                "--crate-type",
                "lib",
                "--emit",
                "metadata",
            ])
            .args(["--cfg", "feature=\"undefended\"", "-C"])
            .arg(format!("debug-assertions={assertions}"))
            .arg(&source)
            .output()
            .expect("rustc");
        let said = String::from_utf8_lossy(&rustc.stderr);
        assert_eq!(rustc.status.success(), accepted, "{said}");
        assert!(accepted || said.contains("takes defences away"), "{said}");
    }
}
