//! `linux/nnp`: no_new_privs, after which execve(2) grants nothing that the process did not have.
//!
//! Kernel documentation userspace-api/no_new_privs; runtime-spec config "noNewPrivileges". It belongs to a thread.

use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};
use crate::observe;

/// `linux/nnp`.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNewPrivileges;

impl Isolator for NoNewPrivileges {
    fn name(&self) -> &'static str {
        "linux/nnp"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        Ok(ContainerLaunchInfo {
            no_new_privileges: declared(declaration),
            ..Default::default()
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        let threads = observe::threads(target)?;
        live.no_new_privileges = Some(threads.iter().all(|thread| thread.no_new_privileges));
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let declared = declared(declaration);
        let verdict = match live.no_new_privileges {
            None => Verdict::Unknown,
            Some(live) if live == declared => Verdict::Match,
            Some(true) => Verdict::Stronger,
            Some(false) => Verdict::Weaker,
        };
        let live = live.no_new_privileges;
        vec![Finding {
            isolator: self.name(),
            item: "no_new_privs".to_owned(),
            declared: declared.to_string(),
            live: live.map_or_else(|| "not seen".to_owned(), |on| on.to_string()),
            verdict,
            read_from: "task/*/status".to_owned(),
        }]
    }
}

fn declared(declaration: &Declaration) -> bool {
    let process = declaration.spec.process().as_ref();
    process.is_some_and(|process| process.no_new_privileges() == Some(true))
}
