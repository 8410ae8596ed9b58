//! `cgroups/mem`: how much memory, and how much memory and swap together, a container may use.
//!
//! runtime-spec config-linux "Memory"; the kernel's cgroup-v1/memory and cgroup-v2 "Memory". The declaration carries
//! the numbers of v1: `swap` is memory plus swap. Limits are written before anything is in the cgroup; lowering them
//! below what is used is then no question.
//! `kernel` and `kernelTCP` are not enforced, with a warning: since Linux 5.16 kernel memory counts as memory and has no
//! limit apart. `useHierarchy` is what every kernel since 5.11 does; false is a warning.

use super::directory::{Directory, ignore_absent};
use super::hierarchy::Version;
use super::observation::{self, Item, limit, upper_in_pages};
use super::{memory_watch, unified};
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::{Isolator, Watch};
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};

const NAME: &str = "cgroups/mem";
pub(super) const CONTROLLER: &str = "memory";

pub(super) const LIMIT_V1: &str = "memory.limit_in_bytes";
pub(super) const LIMIT_V2: &str = "memory.max";
const WITH_SWAP_V1: &str = "memory.memsw.limit_in_bytes";
const SWAP_V2: &str = "memory.swap.max";
const SOFT_V1: &str = "memory.soft_limit_in_bytes";
const SOFT_V2: &str = "memory.low";
const SWAPPINESS_V1: &str = "memory.swappiness";
const OOM_CONTROL_V1: &str = "memory.oom_control";
const USAGE_V1: &str = "memory.usage_in_bytes";
const LIMIT: &str = "linux.resources.memory.limit";

/// The isolator `cgroups/mem`.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemIsolator;

/// An amount of bytes, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Amount {
    Bytes(u64),
    Unlimited,
}

impl Amount {
    /// The runtime-spec's number: negative is unlimited; zero is "not set", as every runtime takes it.
    fn of(number: Option<i64>) -> Option<Self> {
        match number? {
            0 => None,
            negative if negative < 0 => Some(Self::Unlimited),
            bytes => Some(Self::Bytes(bytes.unsigned_abs())),
        }
    }

    fn text(self, unlimited: &str) -> String {
        match self {
            Self::Bytes(bytes) => bytes.to_string(),
            Self::Unlimited => unlimited.to_owned(),
        }
    }
}

/// The declared numbers.
#[derive(Debug, Default)]
struct Declared {
    limit: Option<Amount>,
    reservation: Option<Amount>,
    /// Memory and swap together.
    with_swap: Option<Amount>,
    swappiness: Option<u64>,
    disable_oom_killer: bool,
    use_hierarchy: Option<bool>,
    check_before_update: bool,
}

impl Declared {
    fn of(declaration: &Declaration) -> Self {
        let memory = super::resources(declaration).and_then(|all| all.memory().as_ref());
        memory.map_or_else(Self::default, |memory| Self {
            limit: Amount::of(memory.limit()),
            reservation: Amount::of(memory.reservation()),
            with_swap: Amount::of(memory.swap()),
            // Some write "not set" as -1.
            swappiness: memory.swappiness().filter(|n| *n != u64::MAX),
            disable_oom_killer: memory.disable_oom_killer() == Some(true),
            use_hierarchy: memory.use_hierarchy(),
            check_before_update: memory.check_before_update() == Some(true),
        })
    }

    fn is_any(&self) -> bool {
        let amounts = [self.limit, self.reservation, self.with_swap];
        amounts.iter().any(Option::is_some)
            || self.swappiness.is_some()
            || self.disable_oom_killer
            || self.use_hierarchy == Some(true)
    }

    /// Memory and swap together, where memory without a limit is to have swap without one, unless that is declared.
    fn sum(&self) -> Option<Amount> {
        let unlimited = self.limit.filter(|limit| *limit == Amount::Unlimited);
        self.with_swap.or(unlimited)
    }

    /// `memory.swap.max`, which is swap alone, for a memory of `limit`.
    fn swap_alone(&self, limit: Option<Amount>) -> Result<Option<Amount>> {
        let refuse = |value: u64, rule: &str| Error::Config {
            field: "linux.resources.memory.swap",
            value: value.to_string(),
            rule: rule.to_owned(),
        };
        match (self.sum(), limit) {
            (None, _) => Ok(None),
            (Some(Amount::Unlimited), _) => Ok(Some(Amount::Unlimited)),
            (Some(Amount::Bytes(both)), Some(Amount::Bytes(memory))) => {
                let swap = both.checked_sub(memory).ok_or_else(|| {
                    refuse(
                        both,
                        "it is memory and swap together and cannot be less than the limit",
                    )
                })?;
                Ok(Some(Amount::Bytes(swap)))
            }
            // There is nothing to subtract: as other runtimes do, it is taken for the swap.
            (Some(both), Some(Amount::Unlimited)) => Ok(Some(both)),
            (Some(Amount::Bytes(both)), None) => Err(refuse(
                both,
                "it is memory and swap together and needs a limit of the memory",
            )),
        }
    }
}

fn warn_of_kernel_memory(declaration: &Declaration) {
    let memory = super::resources(declaration).and_then(|all| all.memory().as_ref());
    if memory.is_some_and(|memory| memory.kernel().is_some() || memory.kernel_tcp().is_some()) {
        tracing::warn!(
            "linux.resources.memory.kernel and kernelTCP are ignored: the kernel has no such limits any more"
        );
    }
}

impl MemIsolator {
    fn write(directory: &Directory, declared: &Declared) -> Result<()> {
        if declared.use_hierarchy == Some(false) {
            tracing::warn!(
                "linux.resources.memory.useHierarchy is false, but the kernel always counts cgroups below too"
            );
        }
        match directory.version() {
            Version::V1 => Self::write_v1(directory, declared),
            Version::V2 => Self::write_v2(directory, declared),
        }
    }

    fn write_v1(directory: &Directory, declared: &Declared) -> Result<()> {
        let mut values = Vec::new();
        if let Some(limit) = declared.limit {
            values.push((LIMIT_V1, limit.text("-1")));
        }
        // At every moment memory <= memory + swap must hold; `write_settled` finds the order.
        match (declared.sum(), directory.has(WITH_SWAP_V1)) {
            (Some(sum), true) => values.push((WITH_SWAP_V1, sum.text("-1"))),
            // `compare` reports it as weaker; a host without swap loses nothing by it.
            (Some(Amount::Bytes(_)), false) => tracing::warn!(
                "this kernel does not limit swap (no {WITH_SWAP_V1}): boot it with swapaccount=1"
            ),
            _ => {}
        }
        super::write_settled(directory, values)
            .map_err(|error| too_low(directory, declared, error))?;
        if let Some(reservation) = declared.reservation {
            directory.write(SOFT_V1, &reservation.text("-1"))?;
        }
        if let Some(swappiness) = declared.swappiness {
            if swappiness > 100 {
                return Err(Error::Config {
                    field: "linux.resources.memory.swappiness",
                    value: swappiness.to_string(),
                    rule: "it is a number from 0 to 100".into(),
                });
            }
            directory.write(SWAPPINESS_V1, &swappiness.to_string())?;
        }
        if declared.disable_oom_killer {
            directory.write(OOM_CONTROL_V1, "1")?;
        }
        if declared.use_hierarchy == Some(true) {
            ignore_absent(directory.write("memory.use_hierarchy", "1"))?;
        }
        Ok(())
    }

    fn write_v2(directory: &Directory, declared: &Declared) -> Result<()> {
        let only_v1 = [
            (declared.swappiness.is_some(), "swappiness"),
            (declared.disable_oom_killer, "disableOOMKiller"),
        ];
        if let Some((_, field)) = only_v1.iter().find(|(is_set, _)| *is_set) {
            return Err(Error::Unsupported {
                isolator: NAME,
                feature: format!("cgroup v1 for linux.resources.memory.{field}"),
            });
        }
        let limit = match (declared.limit, declared.with_swap) {
            // An update may declare the sum alone; then it is of the memory that there is.
            (None, Some(Amount::Bytes(_))) => present_limit(directory)?,
            (limit, _) => limit,
        };
        let swap = declared.swap_alone(limit)?;
        if let Some(limit) = declared.limit {
            directory.write(LIMIT_V2, &limit.text("max"))?;
        }
        match swap {
            Some(swap) if directory.has(SWAP_V2) => directory.write(SWAP_V2, &swap.text("max"))?,
            Some(Amount::Bytes(_)) => {
                tracing::warn!("this kernel does not limit swap (no {SWAP_V2})");
            }
            Some(Amount::Unlimited) | None => {}
        }
        if let Some(reservation) = declared.reservation {
            directory.write(SOFT_V2, &reservation.text("max"))?;
        }
        Ok(())
    }

    /// Refuses limits that the container is above already: the kernel would kill in it.
    fn check_usage(directory: &Directory, declared: &Declared) -> Result<()> {
        let usage = match directory.version() {
            Version::V1 => [USAGE_V1, "memory.memsw.usage_in_bytes"],
            Version::V2 => ["memory.current", "memory.current"],
        };
        let amounts = [("limit", declared.limit), ("swap", declared.with_swap)];
        for ((name, amount), file) in amounts.into_iter().zip(usage) {
            let Some(Amount::Bytes(bytes)) = amount else {
                continue;
            };
            if !directory.has(file) {
                continue;
            }
            let used = limit(&directory.read(file)?).unwrap_or(0);
            if bytes <= used {
                return Err(Error::Config {
                    field: match name {
                        "limit" => LIMIT,
                        _ => "linux.resources.memory.swap",
                    },
                    value: bytes.to_string(),
                    rule: format!("the container uses {used} bytes, and checkBeforeUpdate is set"),
                });
            }
        }
        Ok(())
    }
}

/// The limit that a v2 cgroup has now.
fn present_limit(directory: &Directory) -> Result<Option<Amount>> {
    let present = directory.read(LIMIT_V2)?;
    // Before anything was written there is none to speak of.
    Ok(limit(&present).map(Amount::Bytes))
}

/// EBUSY is the kernel's word for a limit that it cannot get the container's memory below.
fn too_low(directory: &Directory, declared: &Declared, error: Error) -> Error {
    let number = |file| directory.read(file).ok().and_then(|text| limit(&text));
    let used = number(USAGE_V1).zip(number("memory.max_usage_in_bytes"));
    match (declared.limit, used) {
        (Some(Amount::Bytes(bytes)), Some((usage, peak)))
            if error.is_kind(std::io::ErrorKind::ResourceBusy) =>
        {
            Error::Config {
                field: LIMIT,
                value: bytes.to_string(),
                rule: format!("the container uses {usage} bytes ({peak} at most up to now)"),
            }
        }
        _ => error,
    }
}

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
            Self::write(directory, &declared)?;
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
            Self::check_usage(&directory, &declared)?;
        }
        Self::write(&directory, &declared)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn swap(limit: i64, with_swap: i64) -> Result<Option<Amount>> {
        let declared = Declared {
            limit: Amount::of(Some(limit)),
            with_swap: Amount::of(Some(with_swap)),
            ..Declared::default()
        };
        declared.swap_alone(declared.limit)
    }

    #[test]
    fn swap_of_v2_is_the_sum_less_the_memory() {
        assert_eq!(swap(100, 150).expect("valid"), Some(Amount::Bytes(50)));
        assert_eq!(swap(100, 100).expect("valid"), Some(Amount::Bytes(0)));
        assert_eq!(swap(100, -1).expect("valid"), Some(Amount::Unlimited));
        assert_eq!(swap(100, 0).expect("valid"), None);
        assert_eq!(swap(-1, 0).expect("valid"), Some(Amount::Unlimited));
        assert_eq!(swap(-1, 50).expect("valid"), Some(Amount::Bytes(50)));
    }

    #[test]
    fn a_sum_below_the_memory_or_without_it_is_refused_by_name() {
        for (limit, with_swap) in [(100, 99), (0, 50)] {
            let error = swap(limit, with_swap).expect_err("refused").to_string();
            assert!(error.contains("linux.resources.memory.swap"), "{error}");
        }
    }

    #[test]
    fn amounts_are_written_in_the_words_of_each_version() {
        assert_eq!(
            Amount::of(Some(-1)).map(|a| a.text("max")),
            Some("max".into())
        );
        assert_eq!(
            Amount::of(Some(4096)).map(|a| a.text("-1")),
            Some("4096".into())
        );
        assert_eq!(Amount::of(Some(0)), None);
    }
}
