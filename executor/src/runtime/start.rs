//! `start`: a created container executes its program.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tepui_isolators::Declaration;

use super::arguments::Named;
use super::command_line::Globals;
use super::create::START_SOCKET;
use super::error::{Error, Result};
use super::hooks;
use super::store::{Entry, LastSteps, Status, Store};
use crate::launch;
use crate::launch::start::{self, Started};
use crate::report::chain;

/// Starts a created container.
///
/// # Errors
/// When it is not created, or its program cannot be executed.
pub fn run(globals: &Globals, arguments: Named) -> Result<u8> {
    let entry = Store::open(&globals.root).load(&arguments.id)?;
    let _lock = entry.lock()?;
    match entry.status()? {
        Status::Created => {}
        Status::Stopped => {
            return Err(Error::refused("cannot start a container that has stopped"));
        }
        Status::Running => {
            return Err(Error::refused("cannot start an already running container"));
        }
        other => {
            return Err(Error::refused(format!(
                "cannot start a container in the {other} state"
            )));
        }
    }
    let connected = start::connect(&entry.directory, START_SOCKET);
    let connection =
        connected.map_err(Error::file("reach the container at", &entry.start_socket()))?;
    Error::at("connected")?;
    // Before the word: whoever looks from now on sees a container that is no longer created. Were we to die in between,
    // the container reads our end and ends.
    std::fs::remove_file(entry.start_socket())
        .map_err(Error::file("remove", &entry.start_socket()))?;
    Error::at("closed to others")?;
    start::say(&connection).map_err(Error::file(
        "speak to the container at",
        &entry.start_socket(),
    ))?;
    Error::at("said")?;
    await_outcome(&entry, &connection)?;
    Error::at("started")?;
    let declaration = entry.declaration();
    let declaration = declaration.map_err(Error::from);
    if let Err(error) = declaration.and_then(|declaration| after_start(&entry, &declaration)) {
        // The lifecycle goes on at its destruction, without a `delete` (runtime-spec runtime.md "Lifecycle").
        let declaration = entry.declaration_to_release();
        if let Err(left) = super::delete::release(entry, &declaration) {
            tracing::error!("left behind after a failed start: {}", chain(&left));
        }
        return Err(error);
    }
    Ok(0)
}

fn await_outcome(entry: &Entry, connection: &OwnedFd) -> Result<()> {
    loop {
        let outcome = start::outcome(connection, launch::PATIENCE);
        match outcome.map_err(Error::file("hear from", &entry.start_socket()))? {
            Started::Executed => return Ok(()),
            Started::Waiting => {
                let frozen = super::create::refuse_frozen(entry);
                frozen.map_err(|reason| Error::refused(reason.to_string()))?;
            }
            Started::ExecuteFailed(errno) => {
                let declaration = entry.declaration()?;
                let process = declaration.spec.process().as_ref();
                let program = process.and_then(|process| process.args().as_ref()?.first());
                return Err(Error::from(launch::Error::Execute {
                    program: program.cloned().unwrap_or_default(),
                    source: std::io::Error::from_raw_os_error(errno),
                }));
            }
            Started::HookFailed(number, status) => {
                return Err(launch::Error::hook(true, number, status).into());
            }
            Started::StepFailed(index, errno) => {
                let LastSteps { first, steps } = &entry.state.last_steps;
                let number = usize::from(index) + 1;
                let step = number
                    .checked_sub(*first)
                    .and_then(|index| steps.get(index));
                let unknown = || "carry out the last steps before the program".to_owned();
                return Err(Error::Launch(launch::Error::Step {
                    step: step.cloned().unwrap_or_else(unknown),
                    index: number,
                    count: (first + steps.len()).saturating_sub(1).max(number),
                    source: std::io::Error::from_raw_os_error(errno.into()),
                }));
            }
        }
    }
}

/// Runs the `poststart` hooks; where one fails the container is ended (runtime-spec runtime.md "Lifecycle").
///
/// # Errors
/// That of the hook.
pub fn after_start(entry: &Entry, declaration: &Declaration) -> Result<()> {
    let Some(list) = declaration
        .spec
        .hooks()
        .as_ref()
        .and_then(|all| all.poststart().clone())
    else {
        return Ok(());
    };
    let state = hooks::state(&entry.state, "running", entry.state.identity.pid);
    let run = hooks::run_host("poststart", &list, &state, &entry.state.bundle);
    if run.is_err()
        && let Some(init) = entry.init()?
    {
        // ESRCH: it has ended by itself.
        let _ = rustix::process::pidfd_send_signal(&init, rustix::process::Signal::KILL);
        crate::pidfd::ended_within(&init, Duration::from_secs(1))
            .map_err(Error::file("wait for the process of", &entry.directory))?;
    }
    run
}
