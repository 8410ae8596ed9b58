//! `cgroups/mem`: how much memory, and how much memory and swap together, a container may use.
//!
//! runtime-spec config-linux "Memory"; the kernel's cgroup-v1/memory and cgroup-v2 "Memory". The declaration carries
//! the numbers of v1: `swap` is memory plus swap. Limits are written before anything is in the cgroup; lowering them
//! below what is used is then no question.
//! `kernel` and `kernelTCP` are not enforced: since Linux 5.16 kernel memory counts as memory and has no limit apart.

use super::directory::Directory;
use super::hierarchy::Version;
use super::memory_watch;
use super::observation::{self, Item, limit, upper};
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
}

impl Declared {
    fn of(declaration: &Declaration) -> Self {
        let memory = super::resources(declaration).and_then(|all| all.memory().as_ref());
        memory.map_or_else(Self::default, |memory| Self {
            limit: Amount::of(memory.limit()),
            reservation: Amount::of(memory.reservation()),
            with_swap: Amount::of(memory.swap()),
            swappiness: memory.swappiness(),
            disable_oom_killer: memory.disable_oom_killer() == Some(true),
        })
    }

    /// `memory.swap.max`, which is swap alone.
    fn swap_alone(&self) -> Result<Option<Amount>> {
        let refuse = |value: u64, rule: &str| Error::Config {
            field: "linux.resources.memory.swap",
            value: value.to_string(),
            rule: rule.to_owned(),
        };
        match (self.with_swap, self.limit) {
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
            (Some(Amount::Bytes(both)), _) => Err(refuse(
                both,
                "it is memory and swap together and needs a limit of the memory",
            )),
        }
    }
}

/// How a live limit compares with a declared one: the kernel rounds down to whole pages, of 4, 16 or 64 KiB.
fn upper_in_pages(declared: u64, live: Option<u64>) -> Verdict {
    let rounded = |page| declared - declared % page;
    match live {
        Some(live) if [4096, 16_384, 65_536].map(rounded).contains(&live) => Verdict::Match,
        live => upper(declared, live),
    }
}

impl MemIsolator {
    fn write_v1(directory: &Directory, declared: &Declared) -> Result<()> {
        // Refused with the field's name, where the kernel would only say EINVAL.
        declared.swap_alone()?;
        let has_swap_file = directory.has(WITH_SWAP_V1);
        // At every moment memory <= memory + swap must hold: when rising above the present sum, the sum goes first.
        let mut order = vec![
            (LIMIT_V1, declared.limit),
            (WITH_SWAP_V1, declared.with_swap),
        ];
        if has_swap_file && let Some(Amount::Bytes(memory)) = declared.limit {
            let present = directory.read(WITH_SWAP_V1)?;
            if limit(&present).is_some_and(|present| present < memory) {
                order.reverse();
            }
        }
        for (file, amount) in order {
            let Some(amount) = amount else { continue };
            if file == WITH_SWAP_V1 && !has_swap_file {
                // `compare` reports it as weaker; a host without swap loses nothing by it.
                tracing::warn!(
                    "this kernel does not limit swap (no {WITH_SWAP_V1}): boot it with swapaccount=1"
                );
                continue;
            }
            directory.write(file, &amount.text("-1"))?;
        }
        if let Some(reservation) = declared.reservation {
            directory.write(SOFT_V1, &reservation.text("-1"))?;
        }
        if let Some(swappiness) = declared.swappiness {
            directory.write("memory.swappiness", &swappiness.to_string())?;
        }
        if declared.disable_oom_killer {
            directory.write("memory.oom_control", "1")?;
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
        let swap = declared.swap_alone()?;
        if let Some(limit) = declared.limit {
            directory.write(LIMIT_V2, &limit.text("max"))?;
        }
        match swap {
            Some(swap) if directory.has(SWAP_V2) => directory.write(SWAP_V2, &swap.text("max"))?,
            Some(_) => tracing::warn!("this kernel does not limit swap (no {SWAP_V2})"),
            None => {}
        }
        if let Some(reservation) = declared.reservation {
            directory.write(SOFT_V2, &reservation.text("max"))?;
        }
        Ok(())
    }
}

impl Isolator for MemIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let declared = Declared::of(declaration);
        let directory = super::create(NAME, CONTROLLER, id, declaration)?;
        match directory.version() {
            Version::V1 => Self::write_v1(&directory, &declared)?,
            Version::V2 => Self::write_v2(&directory, &declared)?,
        }
        super::write_unified(&directory, CONTROLLER, declaration)?;
        Ok(super::join(&directory))
    }

    fn watch(&self, id: &ContainerId, declaration: &Declaration) -> Result<Option<Box<dyn Watch>>> {
        match Directory::of(CONTROLLER, id, &declaration.cgroups)? {
            Some(directory) => memory_watch::watch(&directory).map(Some),
            None => Ok(None),
        }
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        observation::read_files(
            CONTROLLER,
            target,
            &[LIMIT_V1, WITH_SWAP_V1, SOFT_V1],
            &[LIMIT_V2, SWAP_V2, SOFT_V2],
            live,
        )
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
            (declared.with_swap, declared.swap_alone())
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
        declared.swap_alone()
    }

    #[test]
    fn swap_of_v2_is_the_sum_less_the_memory() {
        assert_eq!(swap(100, 150).expect("valid"), Some(Amount::Bytes(50)));
        assert_eq!(swap(100, 100).expect("valid"), Some(Amount::Bytes(0)));
        assert_eq!(swap(100, -1).expect("valid"), Some(Amount::Unlimited));
        assert_eq!(swap(100, 0).expect("valid"), None);
    }

    #[test]
    fn a_sum_below_the_memory_or_without_it_is_refused_by_name() {
        for (limit, with_swap) in [(100, 99), (-1, 50), (0, 50)] {
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
