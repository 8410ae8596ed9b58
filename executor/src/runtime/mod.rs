//! `tepui-runtime`: the OCI runtime's command line. One file for each command, over the same launch and isolators as a
//! task of an agent.
//!
//! Each invocation is a short-lived process of one thread. What outlives it stands in the state directory (`store`).

pub mod arguments;
pub mod bundle;
pub mod clock;
pub mod command_line;
mod console;
pub mod create;
pub mod delete;
mod descriptors;
mod entry;
pub mod error;
pub mod events;
pub mod exec;
pub mod features;
mod files;
mod foreground;
mod help;
mod home;
mod hooks;
pub mod kill;
mod limits;
pub mod list;
mod lock;
pub mod log;
pub mod pause;
pub mod ps;
pub mod public_state;
pub mod run;
pub mod spec;
pub mod standard;
pub mod start;
pub mod state;
pub mod store;
#[cfg(test)]
mod store_tests;
pub mod update;

use std::io::Write;

use self::command_line::{Command, Globals, Stop};
use self::public_state::PublicState;
use self::store::{Entry, Store};
use crate::report::chain;

/// What a command that could not be carried out returns.
pub type Failure = Box<dyn std::error::Error>;

/// What a command that could not be carried out exits with.
const FAILURE: u8 = 1;

/// What `exec` exits with when nothing was executed; every other command exits with 1.
const EXEC_FAILED: u8 = 255;

/// Runs the command line of this process. The exit status is the workload's own where one was waited for.
pub fn main() -> u8 {
    let line = command_line::parse(std::env::args_os());
    if let Err(error) = log::start(&line.log) {
        let file = line.log.file.unwrap_or_default();
        log::failure(&format!(
            "could not open the log {}: {error}",
            file.display()
        ));
        return FAILURE;
    }
    let program = line.globals.program.clone();
    let command = match line.command {
        Ok(command) => command,
        Err(Stop::Text(text)) => return finish(print(&text).map(|()| 0)),
        Err(Stop::Misuse(text)) => return finish(Err(text.into())),
    };
    // A caller of these three looks for the command's name.
    let (name, status) = match command {
        Command::Create(_) => (Some("create"), 1),
        Command::Run(_) => (Some("run"), 1),
        Command::Exec(_) => (Some("exec"), EXEC_FAILED),
        _ => (None, 1),
    };
    match (run_command(&line.globals, command), name) {
        (Err(error), Some(name)) => {
            let program_failure = match error.downcast_ref() {
                Some(error::Error::Execute(words)) => Some(words.clone()),
                _ => None,
            };
            let error = chain(error.as_ref());
            match (name, program_failure) {
                ("exec", _) => log::failure(&format!("exec failed: {error}")),
                // Whoever runs a program is told of it as by a shell.
                ("run", Some(words)) => {
                    log::failure_in_words(&format!("{program} run failed: {error}"), &words);
                }
                (name, _) => log::failure(&format!("{program} {name} failed: {error}")),
            }
            status
        }
        (result, _) => finish(result),
    }
}

fn finish(result: Result<u8, Failure>) -> u8 {
    match result {
        Ok(status) => status,
        Err(error) => {
            log::failure(&chain(error.as_ref()));
            FAILURE
        }
    }
}

fn run_command(globals: &Globals, command: Command) -> Result<u8, Failure> {
    let done = match command {
        Command::Create(arguments) => return Ok(create::run(globals, arguments)?),
        Command::Run(arguments) => return Ok(run::run(globals, arguments)?),
        Command::Exec(arguments) => return Ok(exec::run(globals, *arguments)?),
        Command::Start(arguments) => return Ok(start::run(globals, arguments)?),
        Command::Checkpoint(_) | Command::Restore(_) => {
            Err("this runtime can neither checkpoint nor restore a container".into())
        }
        Command::Delete(arguments) => delete::run(globals, &arguments),
        Command::Events(arguments) => events::run(globals, &arguments),
        Command::Features(_) => features::run(),
        Command::Kill(arguments) => kill::run(globals, &arguments),
        Command::List(arguments) => list::run(globals, &arguments),
        Command::Pause(arguments) => pause::pause(globals, &arguments.id),
        Command::Resume(arguments) => pause::resume(globals, &arguments.id),
        Command::Ps(arguments) => ps::run(globals, &arguments),
        Command::Spec(arguments) => spec::run(&arguments),
        Command::State(arguments) => print_state(globals, &arguments.id),
        Command::Update(arguments) => update::run(globals, &arguments),
    };
    done.map(|()| 0)
}

/// `state`.
fn print_state(globals: &Globals, id: &str) -> Result<(), Failure> {
    let entry = load(globals, id)?;
    let text = serde_json::to_string_pretty(&PublicState::now(&entry)?)?;
    print(&format!("{text}\n"))
}

/// The container that a command names.
fn load(globals: &Globals, id: &str) -> store::Result<Entry> {
    Store::open(&globals.root).load(id)
}

/// To standard output. A reader that has seen enough is no failure of ours, any other is: `println!` would panic.
fn print(text: &str) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
