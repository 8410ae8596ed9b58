//! Attacks by way of devices: the null device that hides paths, the standard streams, and terminals.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tepui_tests::attack::{Attempt, works_only_without};
use tepui_tests::{Bundle, requires, wait};

/// Writes where there must be nothing to write to.
const WRITE_TO_MASK: &str = "echo taken >/secret";

fn masking<'a>(bundle: Bundle<'a>) -> Bundle<'a> {
    bundle
        .file("secret", "secret\n")
        .with("/linux/maskedPaths", json!(["/secret"]))
        .shell(WRITE_TO_MASK)
}

/// CVE-2025-31133: the image's null device leads to a kernel parameter, which would cover the masked path, writable.
#[test]
fn what_hides_a_path_is_not_taken_from_the_image() {
    requires!(root(), busybox());
    works_only_without("own-null-device", |attempt| {
        // That of an IPC namespace, which stands for the host's.
        let bundle = masking(attempt.bundle("c"))
            .shell("echo 1 >/secret")
            .without_namespace("ipc")
            .without_mount("/dev")
            .symlink("dev/null", "/proc/sys/kernel/shm_rmid_forced");
        attempt.finish_by(
            &["unshare", "--ipc"],
            r#""$@"; grep -qx 0 /proc/sys/kernel/shm_rmid_forced || echo taken >"$REPORTS/marker""#,
            &bundle.start_command("run", &[]),
        );
    });
}

/// CVE-2025-31133: as the runtime sees it, too, the null device has to be one.
#[test]
fn what_hides_a_path_is_the_null_device() {
    requires!(root(), busybox());
    works_only_without("null-device-check,readonly-null-device", |attempt| {
        let bundle = masking(attempt.bundle("c"));
        attempt.finish_by(
            &["unshare", "--mount"],
            r#"mount --bind "$OUTSIDE/victim" /dev/null; "$@""#,
            &bundle.start_command("run", &[]),
        );
    });
}

/// CVE-2025-31133: and nobody changes it for the whole host. Its mode is what the attack would take; to show that with a
/// device of the host would harm everybody, so a copy of it, in a mount namespace that stands for the host, is attacked.
#[test]
fn what_hides_a_path_cannot_be_changed() {
    requires!(root(), busybox());
    works_only_without("readonly-null-device", |attempt| {
        let bundle = attempt
            .bundle("c")
            .file("secret", "secret\n")
            .with("/linux/maskedPaths", json!(["/secret"]))
            .args(&["chmod", "600", "/secret"]);
        attempt.finish_by(
            &["unshare", "--mount"],
            r#"mount -t tmpfs none /mnt && mknod -m 666 /mnt/null c 1 3 && mount --bind /mnt/null /dev/null
               "$@"; [ "$(stat -c %a /mnt/null)" = 666 ] || echo taken >"$REPORTS/marker""#,
            &bundle.start_command("run", &[]),
        );
    });
}

/// CVE-2026-88265: with its standard streams closed, a runtime opens others. Those must not be the image's, which would
/// take what the workload writes, and change their owner.
#[test]
fn closed_streams_are_not_opened_in_the_image() {
    requires!(root(), busybox());
    works_only_without("early-streams", |attempt| {
        let victim = attempt.reports().join("victim");
        fs::write(&victim, "").expect("a file of the test");
        let bundle = attempt
            .bundle("c")
            .shell("echo taken; echo taken >&2")
            .without_mount("/dev")
            .symlink("dev/null", "/reports/victim")
            .with("/process/user/uid", json!(1000));
        let closed = r#""$@" <&- >&- 2>&-"#;
        attempt.finish_by(&[], closed, &bundle.start_command("run", &[]));
        let status = fs::metadata(&victim).expect("it is there");
        if (status.len(), status.uid()) != (0, 0) {
            fs::write(attempt.reports().join("marker"), "taken").expect("a file of the test");
        }
    });
}

/// Runs a bundle with a terminal, whose other end is taken and closed.
fn run_with_terminal(attempt: &Attempt, bundle: &Bundle<'_>) {
    let socket = attempt.ground.path("console.sock");
    let _listener = UnixListener::bind(&socket).expect("a socket of the test");
    let mut run = bundle.start_command("run", &["--detach", "--console-socket"]);
    // The id is the last argument: flags come before it.
    let words: Vec<_> = run.get_args().map(ToOwned::to_owned).collect();
    let (id, flags) = words.split_last().expect("it has arguments");
    run = attempt.runtime.command(&attempt.ground, &[]);
    run.args(&flags[2..]).arg(&socket).arg(id);
    if attempt.finish(&mut run).status == 0 {
        wait::until("the end of the workload", Duration::from_secs(20), || {
            (bundle.status()? == "stopped").then_some(())
        });
    }
    bundle.delete();
}

/// A volume over `/dev/pts` that leads to a true devpts for `ptmx`, and somewhere else for the terminal.
fn with_false_terminal<'a>(attempt: &'a Attempt, target: &Path) -> Bundle<'a> {
    let volume = attempt.ground.path("volume");
    fs::create_dir(&volume).expect("a directory of the test");
    symlink("/devpts/ptmx", volume.join("ptmx")).expect("a link of the test");
    symlink(target, volume.join("0")).expect("a link of the test");
    attempt
        .bundle("c")
        .without_mount("/dev/pts")
        .mount(
            json!({"destination": "/devpts", "type": "devpts", "source": "devpts",
            "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}),
        )
        .bind(&volume, "/dev/pts")
        .with("/process/terminal", json!(true))
        .with("/process/user/uid", json!(1000))
}

/// CVE-2025-52565: the name of the terminal leads to another file, which would become the console, and the workload's own.
#[test]
fn a_terminal_is_not_found_by_its_name() {
    requires!(root(), busybox());
    works_only_without("terminal-by-descriptor", |attempt| {
        let victim = attempt.reports().join("victim");
        fs::write(&victim, "").expect("a file of the test");
        let bundle = with_false_terminal(attempt, Path::new("/reports/victim"));
        run_with_terminal(attempt, &bundle.args(&["true"]));
        if fs::metadata(&victim).expect("it is there").uid() != 0 {
            fs::write(attempt.reports().join("marker"), "taken").expect("a file of the test");
        }
    });
}

/// CVE-2026-88264: `/dev/console` of the image is a link, and nothing is mounted at `/dev`: what it leads to stays.
#[test]
fn a_console_is_not_made_where_a_link_leads() {
    requires!(root(), busybox());
    works_only_without("plain-console", |attempt| {
        fs::write(attempt.reports().join("victim"), "").expect("a file of the test");
        let bundle = attempt
            .bundle("c")
            .without_mount("/dev")
            .mount(
                json!({"destination": "/devpts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}),
            )
            .symlink("dev/pts", "/devpts")
            .symlink("dev/ptmx", "/devpts/ptmx")
            .symlink("dev/console", "/reports/victim")
            .with("/process/terminal", json!(true))
            .shell("test -c /reports/victim && echo taken >/reports/marker");
        run_with_terminal(attempt, &bundle);
    });
}
