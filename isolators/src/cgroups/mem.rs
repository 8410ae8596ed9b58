//! `cgroups/mem`: how much memory, and how much memory and swap together, a container may use.
//!
//! runtime-spec config-linux "Memory"; the kernel's cgroup-v1/memory and cgroup-v2 "Memory". The declaration carries
//! the numbers of v1: `swap` is memory plus swap. Limits are written before anything is in the cgroup; lowering them
//! below what is used is then no question.
//! `kernel` and `kernelTCP` are not enforced, with a warning: since Linux 5.16 kernel memory counts as memory and has no
//! limit apart. `useHierarchy` is what every kernel since 5.11 does; false is a warning.

use super::directory::Directory;
use super::mem_limits::{
    Amount, CONTROLLER, Declared, LIMIT_V1, LIMIT_V2, NAME, OOM_CONTROL_V1, SOFT_V1, SOFT_V2,
    SWAP_V2, SWAPPINESS_V1, WITH_SWAP_V1, warn_of_kernel_memory,
};
use super::observation::{self, Item, limit, upper_in_pages};
use super::{memory_watch, unified};
use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::{Isolator, Watch};
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};

/// The isolator `cgroups/mem`.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemIsolator;

impl Isolator for MemIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let declared = Declared::of(declaration);
        warn_of_kernel_memory(declaration);
        // Refused with the field's name, where v1 would only say EINVAL.
        declared.swap_alone(declared.limit)?;
        let directory = super::create(NAME, CONTROLLER, id, declaration, declared.is_any())?;
        if let Some(directory) = &directory {
            declared.write(directory)?;
            unified::write(directory, CONTROLLER, declaration)?;
        }
        Ok(super::join_all(&directory))
    }

    fn update(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        let declared = Declared::of(declaration);
        warn_of_kernel_memory(declaration);
        let is_any = declared.is_any();
        let Some(directory) = super::existing(NAME, CONTROLLER, id, declaration, is_any)? else {
            return Ok(());
        };
        if declared.check_before_update {
            declared.check_usage(&directory)?;
        }
        declared.write(&directory)?;
        unified::write(&directory, CONTROLLER, declaration)
    }

    fn watch(&self, id: &ContainerId, declaration: &Declaration) -> Result<Option<Box<dyn Watch>>> {
        match Directory::of(CONTROLLER, id, &declaration.cgroups)? {
            Some(directory) => memory_watch::watch(&directory).map(Some),
            None => Ok(None),
        }
    }

    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()> {
        let v1 = [
            LIMIT_V1,
            WITH_SWAP_V1,
            SOFT_V1,
            SWAPPINESS_V1,
            OOM_CONTROL_V1,
        ];
        let v2 = [LIMIT_V2, SWAP_V2, SOFT_V2];
        observation::read_files(CONTROLLER, target, &v1, &v2, live)?;
        unified::observe(CONTROLLER, target, declaration, live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let declared = Declared::of(declaration);
        let item = |name, bytes: u64| Item {
            isolator: NAME,
            controller: CONTROLLER,
            name,
            declared: bytes.to_string(),
        };
        let mut findings = Vec::new();
        if let Some(Amount::Bytes(bytes)) = declared.limit {
            let judge = |content: &str| upper_in_pages(bytes, limit(content));
            findings.push(
                item("memory limit", bytes)
                    .compare(live, &[(LIMIT_V1, &judge), (LIMIT_V2, &judge)]),
            );
        }
        if let (Some(Amount::Bytes(both)), Ok(Some(Amount::Bytes(swap)))) =
            (declared.with_swap, declared.swap_alone(declared.limit))
        {
            let v1 = |content: &str| upper_in_pages(both, limit(content));
            let v2 = |content: &str| upper_in_pages(swap, limit(content));
            findings.push(
                item("memory and swap limit", both)
                    .compare(live, &[(WITH_SWAP_V1, &v1), (SWAP_V2, &v2)]),
            );
        }
        if let Some(Amount::Bytes(bytes)) = declared.reservation {
            // v1's soft limit is an upper one; v2's memory.low protects from reclaim: less is weaker.
            let v1 = |content: &str| upper_in_pages(bytes, limit(content));
            let v2 = |content: &str| match upper_in_pages(bytes, limit(content)) {
                Verdict::Stronger => Verdict::Weaker,
                Verdict::Weaker => Verdict::Stronger,
                same => same,
            };
            findings.push(
                item("memory reservation", bytes).compare(live, &[(SOFT_V1, &v1), (SOFT_V2, &v2)]),
            );
        }
        if let Some(swappiness) = declared.swappiness {
            // More or less of it isolates neither more nor less.
            let judge = |content: &str| match limit(content) == Some(swappiness) {
                true => Verdict::Match,
                false => Verdict::Unknown,
            };
            findings.push(item("swappiness", swappiness).compare(live, &[(SWAPPINESS_V1, &judge)]));
        }
        if declared.disable_oom_killer {
            let judge = |content: &str| match content.lines().any(|l| l == "oom_kill_disable 1") {
                true => Verdict::Match,
                false => Verdict::Weaker,
            };
            findings
                .push(item("oom killer disabled", 1).compare(live, &[(OOM_CONTROL_V1, &judge)]));
        }
        findings.extend(unified::compare(NAME, declaration, CONTROLLER, live));
        findings
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        super::remove(CONTROLLER, id, declaration)
    }
}
