//! Compiles the init of tasks, a program without C library and allocator, so that the main program can carry it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=init/main.rs");
    let output =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("tepui-init");
    let status = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"))
        .args([
            "--edition=2024",
            "--crate-type=bin",
            "--crate-name=tepui_init",
        ])
        .arg(format!(
            "--target={}",
            env::var("TARGET").expect("cargo sets TARGET")
        ))
        .args([
            "-Cpanic=abort",
            "-Copt-level=s",
            "-Crelocation-model=static",
            "-Cstrip=symbols",
        ])
        .arg("-Ctarget-feature=+crt-static")
        .args([
            "-Clink-arg=-nostartfiles",
            "-Clink-arg=-nostdlib",
            "-Clink-arg=-static",
        ])
        .arg("-Clink-arg=-Wl,--build-id=none,-z,noexecstack")
        .arg("-o")
        .arg(&output)
        .arg("init/main.rs")
        .status()
        .expect("the Rust compiler starts");
    assert!(
        status.success(),
        "the init of tasks does not compile: {status}"
    );
}
