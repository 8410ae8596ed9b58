//! `linux/scheduling`: when the process gets CPU and disk, sched(7), ioprio_set(2); runtime-spec config "scheduler",
//! "ioPriority" and "execCPUAffinity".

use oci_spec::runtime::{IOPriorityClass, LinuxIOPriority, Process};

use super::{id_list, scheduler};
use crate::attribute::{Attribute, Scheduler};
use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};
use crate::observe::unseen;
use crate::sys;

/// `linux/scheduling`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scheduling;

/// More CPUs than Linux can have.
const ALL_CPUS: [u64; 128] = [u64::MAX; 128];

/// The CPUs of a process that enters a running container, as bit masks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecAffinity {
    /// Before it enters the container's cgroup.
    pub initial: Option<Vec<u64>>,
    /// After that.
    pub last: Option<Vec<u64>>,
}

/// What `execCPUAffinity` says: it concerns processes that enter later, and not the first one.
///
/// # Errors
/// `Error::Config` for a list that is none.
pub fn exec_affinity(process: &Process) -> Result<ExecAffinity> {
    let mask = |list: &Option<String>| match list.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => id_list::parse(text)
            .map(Some)
            .map_err(|rule| Error::Config {
                field: "process.execCPUAffinity",
                value: text.to_owned(),
                rule,
            }),
    };
    let Some(affinity) = process.exec_cpu_affinity() else {
        return Ok(ExecAffinity::default());
    };
    Ok(ExecAffinity {
        initial: mask(affinity.initial())?,
        last: mask(affinity.cpu_affinity_final())?,
    })
}

/// What `scheduler` and `ioPriority` of a process say, in the order in which they can be set.
///
/// # Errors
/// `Error::Config` for what the kernel would refuse without a word.
pub fn attributes(process: &Process) -> Result<Vec<Attribute>> {
    let scheduler = scheduler::declared(process)?.map(Attribute::Scheduler);
    let priority = process.io_priority().as_ref();
    let priority = priority.map(io_priority).transpose()?;
    Ok(scheduler
        .into_iter()
        .chain(priority.map(Attribute::IoPriority))
        .collect())
}

impl Isolator for Scheduling {
    fn name(&self) -> &'static str {
        "linux/scheduling"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let Some(process) = declaration.spec.process() else {
            return Ok(ContainerLaunchInfo::default());
        };
        exec_affinity(process)?;
        check_cpus(declaration, scheduler::declared(process)?)?;
        // A deadline needs all CPUs, so this is first.
        let reset = declaration.reset_cpu_affinity;
        let mut all: Vec<_> = reset
            .then(|| Attribute::CpuAffinity(ALL_CPUS.to_vec()))
            .into_iter()
            .collect();
        all.extend(attributes(process)?);
        Ok(ContainerLaunchInfo {
            attributes: all,
            ..Default::default()
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        let failed = |what| move |source| unseen(target, what, source);
        live.scheduler = Some(sys::scheduler(target.pid).map_err(failed("the scheduler"))?);
        live.io_priority = Some(sys::io_priority(target.pid).map_err(failed("the I/O priority"))?);
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let Some(process) = declaration.spec.process() else {
            return Vec::new();
        };
        let finding = |item: &str, declared, seen: Option<String>, call: &str| Finding {
            isolator: self.name(),
            item: item.to_owned(),
            verdict: match &seen {
                None => Verdict::Unknown,
                Some(seen) if *seen == declared => Verdict::Match,
                Some(_) => Verdict::Weaker,
            },
            declared,
            live: seen.unwrap_or_else(|| "not seen".to_owned()),
            read_from: call.to_owned(),
        };
        let scheduler = scheduler::declared(process).ok().flatten().map(|declared| {
            let seen = live.scheduler.map(scheduler::in_words);
            let declared = scheduler::in_words(declared);
            finding("scheduler", declared, seen, "sched_getattr(2)")
        });
        let priority = process.io_priority().as_ref();
        let priority = priority.and_then(|declared| io_priority(declared).ok());
        let priority = priority.map(|declared| {
            let seen = live.io_priority.map(priority_in_words);
            let declared = priority_in_words(declared);
            finding("I/O priority", declared, seen, "ioprio_get(2)")
        });
        scheduler.into_iter().chain(priority).collect()
    }
}

/// sched_setattr(2): a deadline is refused to a process that may not use every CPU.
fn check_cpus(declaration: &Declaration, scheduler: Option<Scheduler>) -> Result<()> {
    let linux = declaration.spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let cpus = resources
        .and_then(|resources| resources.cpu().as_ref())
        .and_then(|cpu| cpu.cpus().as_deref())
        .filter(|cpus| !cpus.is_empty());
    let is_deadline = scheduler.is_some_and(|scheduler| scheduler.policy == scheduler::DEADLINE);
    let (Some(cpus), true) = (cpus, is_deadline) else {
        return Ok(());
    };
    let path = "/sys/devices/system/cpu/online";
    let online =
        std::fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    let all = id_list::parse(online.trim()).unwrap_or_default();
    match id_list::parse(cpus).is_ok_and(|cpus| id_list::contains(&cpus, &all)) {
        true => Ok(()),
        false => Err(Error::Config {
            field: "process.scheduler.policy",
            value: "SCHED_DEADLINE".to_owned(),
            rule: format!(
                "such a process scheduler can't be used together with AllowedCPUs: linux.resources.cpu.cpus is \
                 {cpus}, and a deadline needs every CPU"
            ),
        }),
    }
}

/// Class and level in one number, linux/ioprio.h.
fn io_priority(declared: &LinuxIOPriority) -> Result<u16> {
    let level = u16::try_from(declared.priority())
        .ok()
        .filter(|level| *level < 8)
        .ok_or_else(|| Error::Config {
            field: "process.ioPriority.priority",
            value: declared.priority().to_string(),
            rule: "it has to be from 0 to 7".to_owned(),
        })?;
    let class = match declared.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    Ok(class << 13 | level)
}

fn priority_in_words(number: u16) -> String {
    let level = number & 7;
    match number >> 13 {
        1 => format!("real time {level}"),
        2 => format!("best effort {level}"),
        // It has no levels.
        3 => "idle".to_owned(),
        _ => "none".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn io_priorities_are_class_and_level() {
        let number = |declared: Value| {
            io_priority(&serde_json::from_value(declared).unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(
            number(json!({ "class": "IOPRIO_CLASS_BE", "priority": 4 })),
            Ok(0x4004)
        );
        assert_eq!(number(json!({ "class": "IOPRIO_CLASS_IDLE" })), Ok(0x6000));
        for bad in [-1, 8, 65_536] {
            let error = number(json!({ "class": "IOPRIO_CLASS_RT", "priority": bad }));
            assert!(error.unwrap_err().contains("ioPriority"), "{bad}");
        }
    }

    #[test]
    fn affinity_is_for_those_who_enter_later() {
        let process = json!({ "user": {}, "cwd": "/",
            "execCPUAffinity": { "initial": "0-1,3", "final": "2" } });
        let process: Process = serde_json::from_value(process).unwrap();
        let affinity = exec_affinity(&process).unwrap();
        assert_eq!(affinity.initial, Some(vec![0b1011]));
        assert_eq!(affinity.last, Some(vec![0b100]));
        assert_eq!(attributes(&process).unwrap(), []);
    }
}
