//! `cgroups/cpu`: a share of the processors under contention, and a ceiling.
//!
//! runtime-spec config-linux "CPU"; the kernel's scheduler/sched-design-CFS and sched-bwc (v1), cgroup-v2 "CPU". The
//! declaration carries the numbers of v1. Where v2's `cpu.weight` is declared too, as for Mesos tasks (100 × cpus), it
//! is taken as it is; else it is computed from the shares.

use super::cpu_limits::{
    ACCOUNTING, BURST_V1, BURST_V2, CONTROLLER, DEFAULT_PERIOD, Declared, MAX_V2, NAME, SHARES,
};
use super::observation::{self, Item, limit, upper};
use super::unified;
use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};

/// The isolator `cgroups/cpu`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuIsolator;

impl Isolator for CpuIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let declared = Declared::of(declaration);
        let directory = super::create(NAME, CONTROLLER, id, declaration, declared.is_any())?;
        if let Some(directory) = &directory {
            declared.write(directory)?;
            unified::write(directory, CONTROLLER, declaration)?;
        }
        let accounting = super::create(NAME, ACCOUNTING, id, declaration, false)?;
        Ok(super::join_all(directory.iter().chain(&accounting)))
    }

    fn update(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        let declared = Declared::of(declaration);
        let is_any = declared.is_any();
        let Some(directory) = super::existing(NAME, CONTROLLER, id, declaration, is_any)? else {
            return Ok(());
        };
        declared.write(&directory)?;
        unified::write(&directory, CONTROLLER, declaration)
    }

    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()> {
        let v1 = [
            "cpu.shares",
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            BURST_V1,
            "cpu.idle",
            "cpu.rt_runtime_us",
            "cpu.rt_period_us",
        ];
        let v2 = ["cpu.weight", MAX_V2, BURST_V2, "cpu.idle"];
        observation::read_files(CONTROLLER, target, &v1, &v2, live)?;
        observation::locate_own(ACCOUNTING, target, live)?;
        unified::observe(CONTROLLER, target, declaration, live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let declared = Declared::of(declaration);
        let item = |name, declared| Item {
            isolator: NAME,
            controller: CONTROLLER,
            name,
            declared,
        };
        let mut findings = Vec::new();
        if let Some(weight) = declared
            .expected_weight()
            .filter(|_| declared.takes_weight())
        {
            let shares = declared
                .shares
                .map(|n| n.clamp(*SHARES.start(), *SHARES.end()));
            let by_shares = |content: &str| match shares {
                Some(shares) => upper(shares, limit(content)),
                None => Verdict::Unknown,
            };
            let by_weight = |content: &str| upper(weight, limit(content));
            let text = match declared.shares {
                Some(shares) => format!("shares {shares} (weight {weight})"),
                None => format!("weight {weight}"),
            };
            findings.push(item("cpu weight", text).compare(
                live,
                &[("cpu.shares", &by_shares), ("cpu.weight", &by_weight)],
            ));
        }
        if let Some(Some(quota)) = declared.quota {
            let period = declared.period.unwrap_or(DEFAULT_PERIOD);
            let judge = |live_quota: Option<u64>, live_period: Option<u64>| {
                let scaled = live_quota
                    .zip(live_period)
                    .map(|(q, p)| (u128::from(q) * u128::from(period), u128::from(p)));
                match scaled {
                    Some((live, p)) => match live.cmp(&(u128::from(quota) * p)) {
                        std::cmp::Ordering::Equal => Verdict::Match,
                        std::cmp::Ordering::Less => Verdict::Stronger,
                        std::cmp::Ordering::Greater => Verdict::Weaker,
                    },
                    None => Verdict::Weaker,
                }
            };
            let live_period = live.cgroup.get("cpu.cfs_period_us").map(String::as_str);
            let v1 = |content: &str| judge(limit(content), live_period.and_then(limit));
            let v2 = |content: &str| {
                let (quota, period) = content.split_once(' ').unwrap_or((content, ""));
                judge(limit(quota), limit(period))
            };
            findings.push(
                item("cpu quota", format!("{quota} of every {period} µs"))
                    .compare(live, &[("cpu.cfs_quota_us", &v1), ("cpu.max", &v2)]),
            );
        }
        // Written as they are; more of a burst or of realtime is less isolation, and so is being idle no longer.
        let as_they_are = [
            ("cpu burst", declared.burst, BURST_V1, BURST_V2),
            (
                "cpu idle",
                declared.idle.and_then(|idle| idle.try_into().ok()),
                "cpu.idle",
                "cpu.idle",
            ),
            (
                "cpu realtime runtime",
                declared.realtime_runtime.and_then(|n| n.try_into().ok()),
                "cpu.rt_runtime_us",
                "",
            ),
            (
                "cpu realtime period",
                declared.realtime_period,
                "cpu.rt_period_us",
                "",
            ),
        ];
        for (name, number, v1, v2) in as_they_are {
            let Some(number) = number else { continue };
            let judge = |content: &str| match upper(number, limit(content)) {
                // A kernel bug of 2024 shows the burst in milliseconds.
                Verdict::Stronger if v2 == BURST_V2 && limit(content) == Some(number / 1000) => {
                    Verdict::Match
                }
                verdict if name == "cpu idle" => verdict.reversed(),
                verdict => verdict,
            };
            findings
                .push(item(name, number.to_string()).compare(live, &[(v1, &judge), (v2, &judge)]));
        }
        findings.extend(unified::compare(NAME, declaration, CONTROLLER, live));
        findings.extend(observation::own_cgroup(NAME, ACCOUNTING, declaration, live));
        findings
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        let accounting = super::remove(ACCOUNTING, id, declaration);
        super::remove(CONTROLLER, id, declaration).and(accounting)
    }
}
