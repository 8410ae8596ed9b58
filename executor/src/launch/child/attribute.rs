//! The attributes of a process that one call sets each, from inside. Nothing here allocates.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use tepui_isolators::Attribute;

use crate::launch::sys;

/// Gives this process one attribute. `proc` is a procfs of the container's namespaces.
pub(super) fn apply(attribute: &Attribute, _proc: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    match attribute {
        Attribute::Personality(domain) => sys::set_personality(*domain),
    }
}
