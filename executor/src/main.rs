//! The program: parses the command line, runs it, prints the error chain, sets the exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    let first = std::env::args_os().next().unwrap_or_default();
    if first.as_encoded_bytes() == tepui::launcher::PROGRAM_NAME.to_bytes() {
        return tepui::launcher::main();
    }
    tepui::commands::main()
}
