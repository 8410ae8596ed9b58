//! Stops all processes of a cgroup and lets them go on: cgroup-v1/freezer-subsystem, and cgroup-v2 "cgroup.freeze".
//!
//! Never stuck: whoever asks gets either a cgroup that is frozen, or, after a second, an error and a thawed one.

use std::time::{Duration, Instant};

use super::directory::{self, Directory, ignore_absent, is_gone, wait_for_event};
use super::hierarchy::Version;
use crate::declaration::ContainerId;
use crate::error::{Error, Result};

/// How long a freeze may take.
const PATIENCE: Duration = Duration::from_secs(1);

const STATE_V1: &str = "freezer.state";
const SWITCH_V2: &str = "cgroup.freeze";

/// Freezes a cgroup: a v1 freezer's or a v2 one.
pub(super) fn freeze(directory: &Directory, id: &ContainerId) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let frozen = match directory.version() {
        Version::V1 => freeze_v1(directory, deadline),
        Version::V2 => freeze_v2(directory, deadline),
    };
    if matches!(frozen, Ok(true)) {
        return Ok(());
    }
    // Half frozen, some of its processes would stand still for ever.
    let thawed = thaw(directory);
    frozen.and(thawed)?;
    Err(Error::NotFrozen {
        id: id.clone(),
        path: directory.path().to_owned(),
        limit: PATIENCE,
    })
}

/// Lets a cgroup go on; one that is gone counts as thawed.
pub(super) fn thaw(directory: &Directory) -> Result<()> {
    ignore_absent(match directory.version() {
        Version::V1 => directory.write(STATE_V1, "THAWED"),
        Version::V2 => directory.write(SWITCH_V2, "0"),
    })
}

/// Whether a cgroup is frozen, or on its way there, by its own switch: one above it is somebody else's affair.
pub(super) fn is_frozen(directory: &Directory) -> Result<bool> {
    let (file, frozen) = match directory.version() {
        Version::V1 => ("freezer.self_freezing", "1"),
        Version::V2 => (SWITCH_V2, "1"),
    };
    match directory::read(directory.path(), file) {
        Ok(text) => Ok(text == frozen),
        Err(Error::File { source, .. }) if is_gone(&source) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A fork or a newcomer leaves a v1 cgroup FREEZING; writing again takes those in too.
fn freeze_v1(directory: &Directory, deadline: Instant) -> Result<bool> {
    for attempt in 1u32.. {
        directory.write(STATE_V1, "FROZEN")?;
        // Reading is what makes the kernel look again whether all have stopped.
        if directory.read(STATE_V1)? == "FROZEN" {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        // Those that keep it from freezing need the processor to get to where they stop, and some a short thaw.
        if attempt.is_multiple_of(50) {
            directory.write(STATE_V1, "THAWED")?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(false)
}

fn freeze_v2(directory: &Directory, deadline: Instant) -> Result<bool> {
    directory.write(SWITCH_V2, "1")?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if wait_for_event(directory.path(), "frozen 1", left)? {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}
