//! The scheduler of a process in the kernel's numbers, sched_setattr(2); runtime-spec config "scheduler".

use oci_spec::runtime::{LinuxSchedulerFlag, LinuxSchedulerPolicy, Process};

use crate::attribute::Scheduler;
use crate::error::{Error, Result};

const OTHER: u32 = 0;
const FIFO: u32 = 1;
const RR: u32 = 2;
const BATCH: u32 = 3;
const IDLE: u32 = 5;
/// SCHED_DEADLINE.
pub(super) const DEADLINE: u32 = 6;
const RESET_ON_FORK: u64 = 1;

/// The scheduler that is asked.
///
/// # Errors
/// `Error::Config` for what the kernel would refuse without a word.
pub(super) fn declared(process: &Process) -> Result<Option<Scheduler>> {
    let Some(asked) = process.scheduler() else {
        return Ok(None);
    };
    let nice = asked.nice().unwrap_or_default();
    let priority = asked.priority().unwrap_or_default();
    let number = |number: &Option<u64>| number.unwrap_or_default();
    let refused = |field, value: String, rule: &str| {
        Err(Error::Config {
            field,
            value: format!("{value} with {}", asked.policy()),
            rule: rule.to_owned(),
        })
    };
    let policy = match asked.policy() {
        LinuxSchedulerPolicy::SchedOther => OTHER,
        LinuxSchedulerPolicy::SchedFifo => FIFO,
        LinuxSchedulerPolicy::SchedRr => RR,
        LinuxSchedulerPolicy::SchedBatch => BATCH,
        LinuxSchedulerPolicy::SchedIdle => IDLE,
        LinuxSchedulerPolicy::SchedDeadline => DEADLINE,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(Error::Config {
                field: "process.scheduler.policy",
                value: asked.policy().to_string(),
                rule: "Linux has reserved that name and never made it".to_owned(),
            });
        }
    };
    if matches!(policy, OTHER | BATCH) && !(-20..=19).contains(&nice) {
        return refused(
            "process.scheduler.nice",
            nice.to_string(),
            "it has to be from -20 to 19",
        );
    }
    match policy {
        FIFO | RR if !(1..=99).contains(&priority) => {
            return refused(
                "process.scheduler.priority",
                priority.to_string(),
                "it has to be from 1 to 99",
            );
        }
        FIFO | RR => {}
        _ if priority != 0 => {
            return refused(
                "process.scheduler.priority",
                priority.to_string(),
                "only SCHED_FIFO and SCHED_RR have one",
            );
        }
        _ => {}
    }
    let times = [asked.runtime(), asked.deadline(), asked.period()].map(number);
    if policy != DEADLINE && times != [0; 3] {
        return refused(
            "process.scheduler.runtime",
            format!("{times:?} (runtime, deadline, period)"),
            "only SCHED_DEADLINE has them",
        );
    }
    if policy == DEADLINE {
        check_times(asked)?;
    }
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => RESET_ON_FORK,
        LinuxSchedulerFlag::SchedFlagReclaim => 2,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 4,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 8,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let flags = asked.flags().iter().flatten();
    Ok(Some(Scheduler {
        policy,
        flags: flags.map(flag).fold(0, |all, one| all | one),
        nice,
        priority: priority.unsigned_abs(),
        runtime: times[0],
        deadline: times[1],
        period: times[2],
    }))
}

/// The rules of sched(7) "SCHED_DEADLINE", by field; the kernel says EINVAL for each of them.
fn check_times(asked: &oci_spec::runtime::Scheduler) -> Result<()> {
    const LIMITS: (u64, u64) = (1024, 1 << 63);
    let fields = [
        ("process.scheduler.runtime", "runtime", *asked.runtime()),
        ("process.scheduler.deadline", "deadline", *asked.deadline()),
        // Without one it is the deadline.
        (
            "process.scheduler.period",
            "period",
            asked.period().filter(|period| *period != 0),
        ),
    ];
    let refused = |field, value: &dyn ToString, rule: String| {
        Err(Error::Config {
            field,
            value: value.to_string(),
            rule: format!("sched_setattr: `SCHED_DEADLINE` {rule}"),
        })
    };
    for (field, name, value) in &fields[..2] {
        match value {
            None => return refused(field, &"not set", format!("requires `{name}`")),
            Some(0) => return refused(field, &0, format!("{name} must be greater than 0")),
            Some(_) => {}
        }
    }
    let given = fields
        .iter()
        .filter_map(|(field, name, value)| Some((*field, *name, (*value)?)));
    let given: Vec<_> = given.collect();
    for pair in given.windows(2) {
        let [(field, name, value), (_, above, most)] = pair else {
            continue;
        };
        if value > most {
            return refused(field, value, format!("{name} must be <= {above} ({most})"));
        }
    }
    for (field, name, value) in given {
        let (least, most) = LIMITS;
        if !(least..most).contains(&value) {
            let rule = format!("{name} must be between {least} and {most} nanoseconds");
            return refused(field, &value, rule);
        }
    }
    Ok(())
}

/// Only what counts for the policy: the kernel answers with its own numbers for the rest.
pub(super) fn in_words(scheduler: Scheduler) -> String {
    let (name, numbers) = match scheduler.policy {
        OTHER => ("SCHED_OTHER", format!(" nice {}", scheduler.nice)),
        FIFO => ("SCHED_FIFO", format!(" priority {}", scheduler.priority)),
        RR => ("SCHED_RR", format!(" priority {}", scheduler.priority)),
        BATCH => ("SCHED_BATCH", format!(" nice {}", scheduler.nice)),
        IDLE => ("SCHED_IDLE", String::new()),
        DEADLINE => (
            "SCHED_DEADLINE",
            format!(
                " {}/{}/{}",
                scheduler.runtime,
                scheduler.deadline,
                match scheduler.period {
                    0 => scheduler.deadline,
                    period => period,
                }
            ),
        ),
        _ => ("an unknown policy", String::new()),
    };
    let reset = match scheduler.flags & RESET_ON_FORK {
        0 => "",
        _ => " reset on fork",
    };
    format!("{name}{numbers}{reset}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn process(scheduler: Value) -> Process {
        let process = json!({ "user": {}, "cwd": "/", "scheduler": scheduler });
        serde_json::from_value(process).unwrap()
    }

    #[test]
    fn every_policy_has_its_number_and_its_own_numbers() {
        let cases = [
            (
                json!({ "policy": "SCHED_OTHER", "nice": 5 }),
                "SCHED_OTHER nice 5",
            ),
            (
                json!({ "policy": "SCHED_BATCH", "nice": 19, "priority": 0 }),
                "SCHED_BATCH nice 19",
            ),
            (
                json!({ "policy": "SCHED_FIFO", "priority": 3 }),
                "SCHED_FIFO priority 3",
            ),
            (
                json!({ "policy": "SCHED_RR", "priority": 99 }),
                "SCHED_RR priority 99",
            ),
            (json!({ "policy": "SCHED_IDLE" }), "SCHED_IDLE"),
            (
                json!({ "policy": "SCHED_DEADLINE", "nice": 19, "runtime": 42000, "deadline": 100000,
                        "period": 1000000, "flags": ["SCHED_RESET_ON_FORK"] }),
                "SCHED_DEADLINE 42000/100000/1000000 reset on fork",
            ),
        ];
        for (declared, words) in cases {
            let scheduler = super::declared(&process(declared)).unwrap().unwrap();
            assert_eq!(in_words(scheduler), words);
        }
    }

    #[test]
    fn what_the_kernel_refuses_without_a_word_is_refused_by_field() {
        let cases = [
            (
                json!({ "policy": "SCHED_OTHER", "nice": 20 }),
                "scheduler.nice is 20",
            ),
            (json!({ "policy": "SCHED_FIFO" }), "scheduler.priority is 0"),
            (
                json!({ "policy": "SCHED_RR", "priority": 100 }),
                "scheduler.priority is 100",
            ),
            (
                json!({ "policy": "SCHED_BATCH", "priority": 1 }),
                "only SCHED_FIFO",
            ),
            (
                json!({ "policy": "SCHED_OTHER", "runtime": 1 }),
                "only SCHED_DEADLINE",
            ),
            (json!({ "policy": "SCHED_ISO" }), "SCHED_ISO"),
            (
                json!({ "policy": "SCHED_DEADLINE", "deadline": 2000 }),
                "requires `runtime`",
            ),
            (
                json!({ "policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 0 }),
                "deadline must be greater than 0",
            ),
            (
                json!({ "policy": "SCHED_DEADLINE", "runtime": 3000, "deadline": 2000 }),
                "runtime must be <= deadline (2000)",
            ),
            (
                json!({ "policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 3000, "period": 2500 }),
                "deadline must be <= period (2500)",
            ),
            (
                json!({ "policy": "SCHED_DEADLINE", "runtime": 100, "deadline": 3000 }),
                "runtime must be between 1024",
            ),
        ];
        for (declared, word) in cases {
            let error = super::declared(&process(declared)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
