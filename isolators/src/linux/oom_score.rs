//! `linux/oom_score`: how early the kernel kills the process when memory runs out, proc_pid_oom_score_adj(5);
//! runtime-spec config "oomScoreAdj".
//!
//! The parent sets it from outside: lowering it takes CAP_SYS_RESOURCE on the host, which a process in a user namespace
//! does not have, and its own file of procfs is not its own there.

use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};
use crate::observe;

/// `linux/oom_score`.
#[derive(Debug, Clone, Copy, Default)]
pub struct OomScore;

impl Isolator for OomScore {
    fn name(&self) -> &'static str {
        "linux/oom_score"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let oom_score_adj = declared(declaration);
        match oom_score_adj {
            Some(value) if !(-1000..=1000).contains(&value) => Err(Error::Config {
                field: "process.oomScoreAdj",
                value: value.to_string(),
                rule: "it has to be from -1000 to 1000".to_owned(),
            }),
            _ => Ok(ContainerLaunchInfo {
                oom_score_adj,
                ..Default::default()
            }),
        }
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        let text = observe::read(target, "oom_score_adj")?;
        let malformed = std::io::ErrorKind::InvalidData;
        let number = text.trim().parse();
        live.oom_score_adj =
            Some(number.map_err(|_| observe::unseen(target, "oom_score_adj", malformed))?);
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let finding = |declared: i32| Finding {
            isolator: self.name(),
            item: "oom_score_adj".to_owned(),
            declared: declared.to_string(),
            live: live
                .oom_score_adj
                .map_or_else(|| "not seen".to_owned(), |live| live.to_string()),
            // A higher one is killed earlier: it protects the others.
            verdict: match live.oom_score_adj {
                None => Verdict::Unknown,
                Some(live) if live == declared => Verdict::Match,
                Some(live) if live > declared => Verdict::Stronger,
                Some(_) => Verdict::Weaker,
            },
            read_from: "oom_score_adj".to_owned(),
        };
        declared(declaration).map(finding).into_iter().collect()
    }
}

fn declared(declaration: &Declaration) -> Option<i32> {
    let process = declaration.spec.process().as_ref();
    process.and_then(|process| process.oom_score_adj())
}
