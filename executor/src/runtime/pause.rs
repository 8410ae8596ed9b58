//! `pause` and `resume`: stop all processes of a container, and let them go on.

use tepui_isolators::cgroups::group::Group;

use super::Failure;
use super::command_line::Globals;
use super::store::Status;

/// Stops all processes. It ends within a second, with a container that is either frozen or runs on.
pub(super) fn pause(globals: &Globals, id: &str) -> Result<(), Failure> {
    let entry = super::load(globals, id)?;
    let _lock = entry.lock()?;
    match entry.status()? {
        Status::Running | Status::Created => {}
        status => return Err(format!("container not running: {id} is {status}").into()),
    }
    let identity = &entry.state.identity;
    Ok(Group::of(&identity.id, &identity.cgroups)?.freeze()?)
}

/// Lets them go on.
pub(super) fn resume(globals: &Globals, id: &str) -> Result<(), Failure> {
    let entry = super::load(globals, id)?;
    let _lock = entry.lock()?;
    match entry.status()? {
        Status::Paused => {}
        status => return Err(format!("container not paused: {id} is {status}").into()),
    }
    let identity = &entry.state.identity;
    Ok(Group::of(&identity.id, &identity.cgroups)?.thaw()?)
}
