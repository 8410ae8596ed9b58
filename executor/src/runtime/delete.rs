//! `delete`: releases everything that a container holds, by name. `--force` ends it first.

use std::path::PathBuf;
use std::time::Duration;

use tepui_isolators::cgroups::directory::Directory;
use tepui_isolators::cgroups::group::Group;
use tepui_isolators::cgroups::hierarchy::Version;
use tepui_isolators::{Declaration, registry};

use super::arguments::Delete;
use super::command_line::Globals;
use super::error::{Error, Result};
use super::store::{self, Entry, State, Status, Store};
use super::{Failure, hooks, log};
use crate::pidfd::ended_within;
use crate::report::chain;

/// How long the end of a killed process may take before we look whether somebody froze it.
const FIRST_PATIENCE: Duration = Duration::from_millis(300);

/// How long it may take when nothing is wrong but its size.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command.
pub(super) fn run(globals: &Globals, arguments: &Delete) -> Result<(), Failure> {
    let store = Store::open(&globals.root);
    let entry = match store.load(&arguments.id) {
        Err(error @ store::Error::DoesNotExist(_)) => {
            store.clear(&arguments.id)?;
            return match arguments.force {
                true => Ok(()),
                false => Err(error.into()),
            };
        }
        other => other?,
    };
    let lock = match entry.lock() {
        // Whoever is making or changing it may hang, in a hook for example: what it works on ends now, and it with that.
        Err(store::Error::Busy(_)) if arguments.force => {
            end(&entry)?;
            entry.lock()
        }
        other => other,
    };
    let _lock = match lock {
        Err(store::Error::DoesNotExist(_)) if arguments.force => return Ok(()),
        other => other?,
    };
    Error::at("locked")?;
    // Read again: it may have changed before the lock was ours.
    let entry = store.load(&arguments.id)?;
    match entry.status()? {
        _ if arguments.force => end(&entry)?,
        Status::Stopped => {}
        Status::Created => end(&entry)?,
        status => {
            let id = entry.id();
            return Err(
                format!("cannot delete container {id} that is not stopped: {status}").into(),
            );
        }
    }
    Error::at("ended")?;
    let declaration = entry.declaration_to_release();
    release(entry, &declaration)?;
    Ok(store.sweep()?)
}

/// Kills the container's processes and waits for the end of the first one, by its descriptor.
fn end(entry: &Entry) -> Result<(), Failure> {
    let init = entry.init()?;
    super::kill::send(entry, libc::SIGKILL, false)?;
    let Some(init) = init else { return Ok(()) };
    if ended_within(&init, FIRST_PATIENCE)? {
        return Ok(());
    }
    let (id, pid) = (entry.id(), entry.state.identity.pid);
    if let Some(cgroup) = bring_home(entry)? {
        return match ended_within(&init, FIRST_PATIENCE)? {
            true => Ok(()),
            false => Err(format!(
                "container init still running: {id} is frozen by a cgroup above {}; thaw that one",
                cgroup.display()
            )
            .into()),
        };
    }
    match ended_within(&init, LAST_PATIENCE)? {
        true => Ok(()),
        false => Err(format!(
            "container init still running: pid {pid} of {id} does not end after SIGKILL; /proc/{pid}/stack may say why"
        )
        .into()),
    }
}

/// Moves the first process back into the container's own freezer cgroup and thaws that: somebody may have moved it into
/// a cgroup that is frozen, and a frozen process of v1 does not die. Their cgroup is left as it is.
///
/// Returns the cgroup that stays frozen although it was thawed.
fn bring_home(entry: &Entry) -> Result<Option<PathBuf>> {
    let identity = &entry.state.identity;
    let freezer = Directory::of("freezer", &identity.id, &identity.cgroups)?;
    let freezer = freezer.filter(|freezer| freezer.version() == Version::V1);
    if let Some(freezer) = &freezer {
        // It may have ended just now, and the cgroup may be gone; the wait that follows tells.
        if let Err(error) = freezer.write("cgroup.procs", &identity.pid.to_string()) {
            log::debug(format_args!("not moved: {}", chain(&error)));
        }
    }
    Group::of(&identity.id, &identity.cgroups)?.thaw()?;
    let is_frozen = |freezer: &Directory| {
        let state = freezer.read("freezer.state");
        state.is_ok_and(|state| state != "THAWED")
    };
    Ok(freezer
        .filter(is_frozen)
        .map(|freezer| freezer.path().to_owned()))
}

/// Releases everything that a container holds, by name, its state directory last, and runs the hooks for its end. For
/// whoever holds its lock.
///
/// # Errors
/// When something could not be released: the state stays, for another attempt.
pub fn release(entry: Entry, declaration: &Declaration) -> Result<()> {
    // This ends what is left in its cgroups.
    registry::cleanup(&registry::all(), entry.id(), declaration)?;
    Error::at("released")?;
    let state = entry.state.clone();
    entry.remove()?;
    Error::at("removed")?;
    run_poststop_hooks(declaration, &state);
    Ok(())
}

/// A failure of one of these hooks is told, but keeps neither the others from running nor anything from being deleted
/// (runtime-spec runtime.md "Lifecycle").
fn run_poststop_hooks(declaration: &Declaration, state: &State) {
    let hooks = declaration.spec.hooks().as_ref();
    let Some(hooks) = hooks.and_then(|hooks| hooks.poststop().as_deref()) else {
        return;
    };
    let stopped = hooks::state(state, &Status::Stopped.to_string(), 0);
    for error in hooks::run_all("poststop", hooks, &stopped, &state.bundle) {
        log::warning(format_args!(
            "a poststop hook failed with exit code, signal or timeout; the rest goes on: {}",
            chain(&error)
        ));
    }
}
