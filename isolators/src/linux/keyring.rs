//! `linux/keyring`: a session keyring of the container's own, session-keyring(7).
//!
//! Without it the workload would possess the keys of whoever started us. It is named after the container, so that a
//! process that enters later can join the same one. It goes with its last process.
//!
//! The kernel shows a process' session keyring to that process alone, so `observe` has nothing to look at; a test from
//! inside stands in for it.

use std::ffi::CString;

use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target};

/// `linux/keyring`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keyring;

impl Isolator for Keyring {
    fn name(&self) -> &'static str {
        "linux/keyring"
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let name = || CString::new(format!("_ses.{id}")).expect("an id holds no NUL byte");
        Ok(ContainerLaunchInfo {
            session_keyring: (!declaration.keep_keyring).then(name),
            ..Default::default()
        })
    }

    fn observe(&self, _: &Target, _: &Declaration, _: &mut Live) -> Result<()> {
        Ok(())
    }

    fn compare(&self, _: &Declaration, _: &Live) -> Vec<Finding> {
        Vec::new()
    }
}
