//! The numbers of `cgroups/mem`, and how they are written: `mem` says what they mean.

use super::directory::{Directory, ignore_absent};
use super::hierarchy::Version;
use super::observation::limit;
use crate::declaration::Declaration;
use crate::error::{Error, Result};

pub(super) const NAME: &str = "cgroups/mem";
pub(super) const CONTROLLER: &str = "memory";

pub(super) const LIMIT_V1: &str = "memory.limit_in_bytes";
pub(super) const LIMIT_V2: &str = "memory.max";
pub(super) const WITH_SWAP_V1: &str = "memory.memsw.limit_in_bytes";
pub(super) const SWAP_V2: &str = "memory.swap.max";
pub(super) const SOFT_V1: &str = "memory.soft_limit_in_bytes";
pub(super) const SOFT_V2: &str = "memory.low";
pub(super) const SWAPPINESS_V1: &str = "memory.swappiness";
pub(super) const OOM_CONTROL_V1: &str = "memory.oom_control";
pub(super) const USAGE_V1: &str = "memory.usage_in_bytes";
pub(super) const LIMIT: &str = "linux.resources.memory.limit";

/// An amount of bytes, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Amount {
    Bytes(u64),
    Unlimited,
}

impl Amount {
    /// The runtime-spec's number: negative is unlimited; zero is "not set", as every runtime takes it.
    pub(super) fn of(number: Option<i64>) -> Option<Self> {
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
pub(super) struct Declared {
    pub(super) limit: Option<Amount>,
    pub(super) reservation: Option<Amount>,
    /// Memory and swap together.
    pub(super) with_swap: Option<Amount>,
    pub(super) swappiness: Option<u64>,
    pub(super) disable_oom_killer: bool,
    pub(super) use_hierarchy: Option<bool>,
    pub(super) check_before_update: bool,
}

impl Declared {
    pub(super) fn of(declaration: &Declaration) -> Self {
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

    pub(super) fn is_any(&self) -> bool {
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
    pub(super) fn swap_alone(&self, limit: Option<Amount>) -> Result<Option<Amount>> {
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

pub(super) fn warn_of_kernel_memory(declaration: &Declaration) {
    let memory = super::resources(declaration).and_then(|all| all.memory().as_ref());
    if memory.is_some_and(|memory| memory.kernel().is_some() || memory.kernel_tcp().is_some()) {
        tracing::warn!(
            "linux.resources.memory.kernel and kernelTCP are ignored: the kernel has no such limits any more"
        );
    }
}

impl Declared {
    pub(super) fn write(&self, directory: &Directory) -> Result<()> {
        if self.use_hierarchy == Some(false) {
            tracing::warn!(
                "linux.resources.memory.useHierarchy is false, but the kernel always counts cgroups below too"
            );
        }
        match directory.version() {
            Version::V1 => self.write_v1(directory),
            Version::V2 => self.write_v2(directory),
        }
    }

    fn write_v1(&self, directory: &Directory) -> Result<()> {
        let mut values = Vec::new();
        if let Some(limit) = self.limit {
            values.push((LIMIT_V1, limit.text("-1")));
        }
        // At every moment memory <= memory + swap must hold; `write_settled` finds the order.
        match (self.sum(), directory.has(WITH_SWAP_V1)) {
            (Some(sum), true) => values.push((WITH_SWAP_V1, sum.text("-1"))),
            // `compare` reports it as weaker; a host without swap loses nothing by it.
            (Some(Amount::Bytes(_)), false) => tracing::warn!(
                "this kernel does not limit swap (no {WITH_SWAP_V1}): boot it with swapaccount=1"
            ),
            _ => {}
        }
        super::write_settled(directory, values).map_err(|error| too_low(directory, self, error))?;
        if let Some(reservation) = self.reservation {
            directory.write(SOFT_V1, &reservation.text("-1"))?;
        }
        if let Some(swappiness) = self.swappiness {
            if swappiness > 100 {
                return Err(Error::Config {
                    field: "linux.resources.memory.swappiness",
                    value: swappiness.to_string(),
                    rule: "it is a number from 0 to 100".into(),
                });
            }
            directory.write(SWAPPINESS_V1, &swappiness.to_string())?;
        }
        if self.disable_oom_killer {
            directory.write(OOM_CONTROL_V1, "1")?;
        }
        if self.use_hierarchy == Some(true) {
            ignore_absent(directory.write("memory.use_hierarchy", "1"))?;
        }
        Ok(())
    }

    fn write_v2(&self, directory: &Directory) -> Result<()> {
        let only_v1 = [
            (self.swappiness.is_some(), "swappiness"),
            (self.disable_oom_killer, "disableOOMKiller"),
        ];
        if let Some((_, field)) = only_v1.iter().find(|(is_set, _)| *is_set) {
            return Err(Error::Unsupported {
                isolator: NAME,
                feature: format!("cgroup v1 for linux.resources.memory.{field}"),
            });
        }
        let limit = match (self.limit, self.with_swap) {
            // An update may declare the sum alone; then it is of the memory that there is.
            (None, Some(Amount::Bytes(_))) => present_limit(directory)?,
            (limit, _) => limit,
        };
        let swap = self.swap_alone(limit)?;
        if let Some(limit) = self.limit {
            directory.write(LIMIT_V2, &limit.text("max"))?;
        }
        match swap {
            Some(swap) if directory.has(SWAP_V2) => directory.write(SWAP_V2, &swap.text("max"))?,
            Some(Amount::Bytes(_)) => {
                tracing::warn!("this kernel does not limit swap (no {SWAP_V2})");
            }
            Some(Amount::Unlimited) | None => {}
        }
        if let Some(reservation) = self.reservation {
            directory.write(SOFT_V2, &reservation.text("max"))?;
        }
        Ok(())
    }

    /// Refuses limits that the container is above already: the kernel would kill in it.
    pub(super) fn check_usage(&self, directory: &Directory) -> Result<()> {
        let usage = match directory.version() {
            Version::V1 => [USAGE_V1, "memory.memsw.usage_in_bytes"],
            Version::V2 => ["memory.current", "memory.current"],
        };
        let amounts = [("limit", self.limit), ("swap", self.with_swap)];
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
