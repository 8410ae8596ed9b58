//! The program: parses the command line, runs it, prints the error chain, sets the exit status.

fn main() {
    if std::env::args_os()
        .next()
        .is_some_and(|name| name.as_encoded_bytes() == tepui::launcher::PROGRAM_NAME.to_bytes())
    {
        tepui::launcher::run().unwrap();
    }
}
