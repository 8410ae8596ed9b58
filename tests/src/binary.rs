//! Where the program under test is.

use std::path::{Path, PathBuf};

/// The `tepui` binary: `TEPUI_BIN`, else the workspace's release build.
///
/// # Panics
/// When there is none, saying how to build it.
pub fn tepui() -> PathBuf {
    let path = match std::env::var_os("TEPUI_BIN") {
        Some(path) => PathBuf::from(path),
        None => workspace().join("target/x86_64-unknown-linux-gnu/release/tepui"),
    };
    assert!(
        path.is_file(),
        "there is no {}: build it with `scripts/cargo build --release -p tepui`, or name one with TEPUI_BIN",
        path.display()
    );
    path
}

/// The `tepui-runtime` binary: `TEPUI_RUNTIME_BIN`, else the one beside `tepui`.
///
/// # Panics
/// When there is none, saying how to build it.
pub fn runtime() -> PathBuf {
    let path = match std::env::var_os("TEPUI_RUNTIME_BIN") {
        Some(path) => PathBuf::from(path),
        None => tepui().with_file_name("tepui-runtime"),
    };
    assert!(
        path.is_file(),
        "there is no {}: build it with `scripts/cargo build --release -p tepui`, or name one with TEPUI_RUNTIME_BIN",
        path.display()
    );
    path
}

/// The build of `tepui-runtime` whose defences a test can switch off: `TEPUI_RUNTIME_UNDEFENDED_BIN`, else the one that
/// `scripts/test` builds.
///
/// # Panics
/// When there is none, saying how to build it.
pub fn undefended_runtime() -> PathBuf {
    let path = match std::env::var_os("TEPUI_RUNTIME_UNDEFENDED_BIN") {
        Some(path) => PathBuf::from(path),
        None => workspace().join("target/undefended/x86_64-unknown-linux-gnu/debug/tepui-runtime"),
    };
    assert!(
        path.is_file(),
        "there is no {}: build it with `{UNDEFENDED_BUILD}`, or name one with TEPUI_RUNTIME_UNDEFENDED_BIN",
        path.display()
    );
    path
}

/// `tepui` of the same build, beside it.
///
/// # Panics
/// As [`undefended_runtime`].
pub fn undefended_tepui() -> PathBuf {
    let path = undefended_runtime().with_file_name("tepui");
    assert!(
        path.is_file(),
        "there is no {}: build it with `{UNDEFENDED_BUILD}`",
        path.display()
    );
    path
}

const UNDEFENDED_BUILD: &str =
    "scripts/cargo build -p tepui --features undefended --bins --target-dir target/undefended";

/// The top of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A file of this package, e.g. `mesos-testbed/up`.
pub fn of_package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
