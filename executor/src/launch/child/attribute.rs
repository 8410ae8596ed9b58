//! The attributes of a process that one call sets each, from inside. Nothing here allocates.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tepui_isolators::Attribute;
use tepui_isolators::linux::landlock::{Landlock, OF_A_FILE};

use super::{Context, procfs};
use crate::launch::sys;

/// Gives this process one attribute.
pub(super) fn apply(attribute: &Attribute, context: &mut Context<'_>) -> Result<(), Errno> {
    match attribute {
        Attribute::Personality(domain) => sys::set_personality(*domain),
        Attribute::CpuAffinity(cpus) => sys::set_affinity(cpus),
        Attribute::Scheduler(scheduler) => sys::set_scheduler(scheduler),
        Attribute::IoPriority(number) => sys::set_io_priority(*number),
        Attribute::MemoryPolicy { mode, nodes } => sys::set_memory_policy(*mode, nodes),
        Attribute::ExecLabel { path, label } => {
            procfs::write(context.proc.as_ref().map(AsFd::as_fd), path, label)
        }
        Attribute::LandlockRules(rules) => {
            context.landlock = Some(landlock_ruleset(rules)?);
            Ok(())
        }
        Attribute::LandlockPath { path, access } => {
            landlock_path(context.landlock.as_ref(), path, *access)
        }
        Attribute::LandlockRestrict { flags, .. } => {
            let ruleset = context.landlock.take().ok_or(Errno::BADF)?;
            sys::landlock_restrict(ruleset.as_fd(), *flags)
        }
    }
}

fn landlock_ruleset(rules: &Landlock) -> Result<OwnedFd, Errno> {
    let Landlock {
        handled_files,
        handled_network,
        scoped,
        ports,
    } = rules;
    let ruleset = sys::landlock_ruleset(*handled_files, *handled_network, *scoped)?;
    for (port, access) in ports {
        sys::landlock_port(ruleset.as_fd(), *port, *access)?;
    }
    Ok(ruleset)
}

/// After the pivot, so that the path is one of the container's.
fn landlock_path(ruleset: Option<&OwnedFd>, path: &CStr, access: u64) -> Result<(), Errno> {
    let ruleset = ruleset.ok_or(Errno::BADF)?;
    let (flags, how) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_MAGICLINKS);
    let place = rustix::fs::openat2(CWD, path, flags, Mode::empty(), how)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
    let access = match kind {
        FileType::Directory => access,
        _ => access & OF_A_FILE,
    };
    match access {
        // The kernel takes no rule that allows nothing.
        0 => Ok(()),
        access => sys::landlock_path(ruleset.as_fd(), place.as_fd(), access),
    }
}
