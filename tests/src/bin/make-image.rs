//! Writes the tests' busybox image as an OCI layout, for the demo: `make-image DIRECTORY`.

use std::path::PathBuf;
use std::process::ExitCode;

use tepui_tests::{Image, requires};

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: make-image DIRECTORY   writes a busybox image as an OCI layout");
        return ExitCode::from(2);
    };
    if let Err(why) = requires::busybox() {
        eprintln!("make-image: {why}");
        return ExitCode::FAILURE;
    }
    Image::busybox().write_layout(&directory, "latest");
    println!("oci:{}", directory.display());
    ExitCode::SUCCESS
}
