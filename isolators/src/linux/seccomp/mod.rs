//! `linux/seccomp`: which system calls a container may make, seccomp(2), runtime-spec config-linux "seccomp".
//!
//! From profile to kernel: `profile` reads what Docker and Mesos write and decides its conditions, `rules` says what
//! the outcome means, `compile` and `layout` make a BPF program of it, `symbolic` proves that program before it is
//! used. From kernel to profile: `observe`. What can be asked for at all: `features`.
//!
//! Nothing on the host outlives the container, so `cleanup` stays empty.

mod compile;
mod docker_default;
mod features;
mod layout;
mod observe;
mod profile;
mod rules;
mod symbolic;
mod tables;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::LinuxSeccomp;

pub use compile::{Compiled, compile};
pub use docker_default::docker_default;
pub use features::{features, known_actions, known_architectures, supported_flags};
pub use profile::{Architectures, Filter, Profile, Rule, resolve, running_kernel};
pub use rules::Unused;
pub use symbolic::{Fault, Interval, Outcome, intervals, missing_calls, run};
pub use tables::Abi;

use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, LiveSeccomp, Target, Verdict};

const NAME: &str = "linux/seccomp";

/// The isolator `linux/seccomp`. The profile is `linux.seccomp` of the declaration, already resolved; without one
/// there is no filter.
#[derive(Debug, Clone, Copy, Default)]
pub struct SeccompIsolator;

impl Isolator for SeccompIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let Some(seccomp) = declared(declaration) else {
            return Ok(ContainerLaunchInfo::default());
        };
        let compiled = compile_cached(seccomp)?;
        for name in &compiled.unused.names {
            tracing::warn!(container = %id, "seccomp profile: there is no system call {name:?}");
        }
        if let Some(flag) = features::missing_flags(compiled.filter.flags).first() {
            return Err(Error::Config {
                field: "linux.seccomp.flags",
                value: (*flag).to_owned(),
                rule: "this kernel does not have it".to_owned(),
            });
        }
        // These very words are looked for by runc's tests.
        tracing::debug!("seccomp filter flags: {}", compiled.filter.flags);
        Ok(ContainerLaunchInfo {
            seccomp: Some(compiled.filter.clone()),
            ..Default::default()
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        live.seccomp = Some(observe::observe(target)?);
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let Some(seccomp) = declared(declaration) else {
            return Vec::new();
        };
        let live = live.seccomp.as_ref();
        vec![
            compare_mode(live),
            compare_count(live),
            compare_program(compile_cached(seccomp), live),
        ]
    }
}

fn declared(declaration: &Declaration) -> Option<&LinuxSeccomp> {
    declaration.spec.linux().as_ref()?.seccomp().as_ref()
}

/// Compiles and proves each profile once in a process' life.
///
/// # Errors
/// As `compile`.
pub fn compile_cached(seccomp: &LinuxSeccomp) -> Result<Arc<Compiled>> {
    /// A node runs with a handful of profiles; whoever makes more compiles again.
    const MOST_ENTRIES: usize = 64;
    static COMPILED: Mutex<Option<HashMap<String, Arc<Compiled>>>> = Mutex::new(None);
    let key = serde_json::to_string(seccomp).map_err(|e| Error::Seccomp {
        profile: "linux.seccomp".to_owned(),
        reason: e.to_string(),
    })?;
    // The map is whole after each statement below, so a panic elsewhere does not harm it.
    let lock = || COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = lock().get_or_insert_default().get(&key) {
        return Ok(found.clone());
    }
    let compiled = Arc::new(compile(seccomp)?);
    let mut guard = lock();
    let known = guard.get_or_insert_default();
    if known.len() >= MOST_ENTRIES {
        known.clear();
    }
    known.insert(key, compiled.clone());
    Ok(compiled)
}

fn finding(item: &str, declared: String, live: String, verdict: Verdict, from: &str) -> Finding {
    Finding {
        isolator: NAME,
        item: item.to_owned(),
        declared,
        live,
        verdict,
        read_from: from.to_owned(),
    }
}

const STATUS: &str = "/proc/PID/task/*/status";

fn compare_mode(live: Option<&LiveSeccomp>) -> Finding {
    let (text, verdict) = match live.map(|seccomp| seccomp.mode) {
        None => ("not seen".to_owned(), Verdict::Unknown),
        Some(0) => ("none (0)".to_owned(), Verdict::Weaker),
        Some(1) => ("strict (1)".to_owned(), Verdict::Stronger),
        Some(2) => ("filter (2)".to_owned(), Verdict::Match),
        Some(other) => (other.to_string(), Verdict::Unknown),
    };
    finding(
        "seccomp mode",
        "filter (2)".to_owned(),
        text,
        verdict,
        STATUS,
    )
}

fn compare_count(live: Option<&LiveSeccomp>) -> Finding {
    let count = live.and_then(|seccomp| seccomp.filters);
    // A filter more can only take away: the strictest answer wins.
    let verdict = match count {
        None => Verdict::Unknown,
        Some(0) => Verdict::Weaker,
        Some(1) => Verdict::Match,
        Some(_) => Verdict::Stronger,
    };
    let text = count.map_or_else(|| "not seen".to_owned(), |count| count.to_string());
    finding("seccomp filters", "1".to_owned(), text, verdict, STATUS)
}

fn compare_program(compiled: Result<Arc<Compiled>>, live: Option<&LiveSeccomp>) -> Finding {
    let programs = live.and_then(|seccomp| seccomp.programs.as_ref());
    let (declared, expected) = match &compiled {
        Ok(compiled) => {
            let program = &compiled.filter.program;
            (
                format!("{} instructions", program.len()),
                Some(observe::plain(program)),
            )
        }
        Err(e) => (format!("does not compile: {e}"), None),
    };
    let (text, verdict) = match (programs, expected) {
        // Mode 0 has no programs to read, and that is certain.
        (None, _) if live.is_some_and(|seccomp| seccomp.mode == 0) => {
            ("none".to_owned(), Verdict::Weaker)
        }
        (None, _) => ("could not be read".to_owned(), Verdict::Unknown),
        (Some(programs), None) => (lengths(programs), Verdict::Unknown),
        (Some(programs), Some(expected)) => match programs.contains(&expected) {
            true => ("the same program".to_owned(), Verdict::Match),
            false => (
                format!("other programs: {}", lengths(programs)),
                Verdict::Weaker,
            ),
        },
    };
    finding(
        "seccomp program",
        declared,
        text,
        verdict,
        "PTRACE_SECCOMP_GET_FILTER",
    )
}

fn lengths<T>(programs: &[Vec<T>]) -> String {
    let lengths: Vec<_> = programs
        .iter()
        .map(|program| program.len().to_string())
        .collect();
    format!("{} instructions", lengths.join(" + "))
}

#[cfg(test)]
mod tests;
