//! `run`: create and start in one, and in the foreground wait and clean up.

use super::arguments::Run;
use super::command_line::Globals;
use super::create::{Lifetime, Made, UnlessFrozen};
use super::error::{Error, Result};
use super::{foreground, start};
use crate::seal::{self, Method};

/// Runs a container. The exit status is its own, 128 + n where signal n ended it.
///
/// # Errors
/// What cannot be honoured or what failed; nothing of the container is left then.
pub fn run(globals: &Globals, arguments: Run) -> Result<u8> {
    seal::protect_own_program(Method::View)?;
    let lifetime = match arguments.detach {
        true => Lifetime::Detached,
        false => Lifetime::Foreground,
    };
    let mut guest = foreground::Guest::default();
    if lifetime == Lifetime::Foreground {
        // Before anything is made: a signal that comes meanwhile ends it, too, once it runs.
        guest.hold_signals()?;
    }
    let made = Made::new(globals, &arguments.id, &arguments.bundle, lifetime)?;
    let (process, made) = {
        let mut made = made;
        if let Some(terminal) = &made.terminal
            && let Err(error) = foreground::adopt(terminal)
        {
            return Err(made.undo(error));
        }
        let Some(waiting) = made.waiting.take() else {
            return Err(Error::refused("the container has no process"));
        };
        let started = waiting
            .start(&mut UnlessFrozen(&made.entry))
            .map_err(Error::from);
        let started = started.and_then(|process| {
            Error::at("started")?;
            start::after_start(&made.entry, &made.declaration)?;
            Ok(process)
        });
        match started {
            Ok(process) => (process, made),
            Err(error) => {
                // What a hook has said in there.
                foreground::show_rest(made.terminal.as_ref());
                return Err(made.undo(error));
            }
        }
    };
    if lifetime == Lifetime::Detached {
        process.release();
        return Ok(0);
    }
    let status = guest.attend(&process, made.terminal.as_ref());
    let status = status.and_then(|status| Error::at("ended").map(|()| status));
    if !arguments.keep {
        super::delete::release(made.entry, &made.declaration)?;
    }
    status
}
