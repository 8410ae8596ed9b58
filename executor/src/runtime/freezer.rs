//! Whether a container is paused.

use std::io::ErrorKind;

use tepui_isolators::cgroups::directory::Directory;
use tepui_isolators::{Error, Result};

use super::state::Identity;

/// Whether the container's cgroup is frozen, or about to be.
pub(super) fn is_frozen(identity: &Identity) -> Result<bool> {
    let (id, placement) = (&identity.id, &identity.cgroups);
    let (directory, file, thawed) = match Directory::of("freezer", id, placement)? {
        Some(directory) => (Some(directory), "freezer.state", "THAWED"),
        None => (Directory::unified(id, placement)?, "cgroup.freeze", "0"),
    };
    match directory.map(|directory| directory.read(file)) {
        Some(Ok(text)) => Ok(text != thawed),
        // There is no such cgroup (any more); ENODEV where it went between opening and reading.
        Some(Err(Error::File { source, .. }))
            if source.kind() == ErrorKind::NotFound
                || source.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(false)
        }
        Some(Err(error)) => Err(error),
        None => Ok(false),
    }
}
