//! The commands of the program, one file each, and what they share.

mod executor;
pub mod local;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tepui_isolators::registry;

use crate::settings::{Rootless, Settings};

/// What a command that could not be carried out returns.
pub type Failure = Box<dyn std::error::Error>;

/// Runs container images with the isolation that was asked for, and says so: as the executor of an Apache Mesos agent,
/// or by hand.
#[derive(Debug, Parser)]
#[command(name = "tepui", version, max_term_width = 100)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Executor(executor::Executor),
    Local(local::Local),
    Run(run::Run),
}

/// Parses the command line and runs it. The exit status is the workload's own, 125 when tepui itself failed.
pub fn main() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => {
            // Nothing can be done where even this cannot be printed.
            let _ = error.print();
            // Help that was asked for is no failure; what cannot be understood is one of ours.
            return if error.use_stderr() {
                ExitCode::from(125)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    start_log();
    let result = match line.command {
        Command::Executor(command) => command.run(),
        Command::Local(command) => command.run().map_err(Failure::from),
        Command::Run(command) => command.run(),
    };
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(125)),
        Err(error) => {
            eprintln!("tepui: {}", crate::report::chain(error.as_ref()));
            ExitCode::from(125)
        }
    }
}

/// Logs go to standard error; `TEPUI_LOG` filters them in tracing's form (`debug`, `tepui::launch=trace`).
pub fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TEPUI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

/// Why no container can be run by this process, if so: without root some of the isolation cannot be built, and a
/// container is never silently weaker.
fn refusal(settings: &Settings) -> Option<String> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    Some(match settings.rootless {
        Rootless::Deny => "tepui does not run as root and cannot build the isolation of this container: set \
                           ExecutorInfo.command.user to root, or run rootless with --rootless=allow (not possible \
                           in this version)"
            .to_owned(),
        Rootless::Allow => "--rootless=allow: this version cannot run containers without root; run it as root, for a \
                            task by setting ExecutorInfo.command.user to root"
            .to_owned(),
    })
}

/// Says which isolators were left out: that is asked for by name, and shall not be overlooked.
fn warn_of_what_is_left_out(settings: &Settings) -> Result<(), tepui_isolators::Error> {
    let used = registry::select(settings.isolation.as_deref())?;
    let is_used = |name: &str| used.iter().any(|isolator| isolator.name() == name);
    let all = registry::all();
    let left_out: Vec<&str> = all
        .iter()
        .map(|isolator| isolator.name())
        .filter(|name| !is_used(name))
        .collect();
    if !left_out.is_empty() {
        tracing::warn!(
            "--isolation leaves out {}: what depends on them has no effect",
            left_out.join(", ")
        );
    }
    Ok(())
}

/// The runtime of everything asynchronous: one thread, and others for blocking work.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
