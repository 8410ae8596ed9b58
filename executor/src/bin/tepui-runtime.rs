//! The OCI runtime's command line, over the same library as the executor.

use std::process::ExitCode;

fn main() -> ExitCode {
    tepui::runtime::main()
}
