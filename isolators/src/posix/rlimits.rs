//! `posix/rlimits`: resource limits of the process, getrlimit(2); runtime-spec config "rlimits".
//!
//! runtime-spec calls them `RLIMIT_NOFILE`, proc_pid_limits(5) `Max open files`, the kernel 7: `RESOURCES` is the table
//! of the three.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::PosixRlimit;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::declaration::{ContainerId, Declaration};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::{ContainerLaunchInfo, Rlimit};
use crate::live::{Finding, Live, Target, Verdict};
use crate::observe;

/// `posix/rlimits`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rlimits;

/// Name of runtime-spec, name in a limits file; the place in the table is the kernel's number (the same on every
/// architecture but alpha, mips and sparc, where 5 to 9 are permuted).
const RESOURCES: [(&str, &str); 16] = [
    ("RLIMIT_CPU", "Max cpu time"),
    ("RLIMIT_FSIZE", "Max file size"),
    ("RLIMIT_DATA", "Max data size"),
    ("RLIMIT_STACK", "Max stack size"),
    ("RLIMIT_CORE", "Max core file size"),
    ("RLIMIT_RSS", "Max resident set"),
    ("RLIMIT_NPROC", "Max processes"),
    ("RLIMIT_NOFILE", "Max open files"),
    ("RLIMIT_MEMLOCK", "Max locked memory"),
    ("RLIMIT_AS", "Max address space"),
    ("RLIMIT_LOCKS", "Max file locks"),
    ("RLIMIT_SIGPENDING", "Max pending signals"),
    ("RLIMIT_MSGQUEUE", "Max msgqueue size"),
    ("RLIMIT_NICE", "Max nice priority"),
    ("RLIMIT_RTPRIO", "Max realtime priority"),
    ("RLIMIT_RTTIME", "Max realtime timeout"),
];

const NOFILE: u32 = 7;

const INVALID_TYPE: &str = "invalid rlimit type: Linux has no such limit";

/// Refuses the name of a limit that there is not. A `config.json` has to be asked before it is parsed: the types of
/// runtime-spec have no room for another name.
///
/// # Errors
/// `Error::Config` with the name.
pub fn check_type(name: &str) -> Result<()> {
    match RESOURCES.iter().any(|(known, _)| *known == name) {
        true => Ok(()),
        false => Err(Error::Config {
            field: "process.rlimits.type",
            value: format!("{name:?}"),
            rule: INVALID_TYPE.to_owned(),
        }),
    }
}

/// The same for getrlimit(2).
const BY_NUMBER: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

/// What the kernel lets this process set.
struct Ceiling {
    /// Own hard limits, by number.
    hard: [u64; 16],
    /// Whether hard limits may be raised.
    may_raise: bool,
    /// `fs.nr_open`, which nobody may exceed.
    nr_open: u64,
}

impl Ceiling {
    /// As far as it concerns these limits.
    fn of_this_process(declared: &[PosixRlimit]) -> Result<Self> {
        let mut hard = [u64::MAX; 16];
        let mut is_raised = false;
        for ((slot, (name, _)), resource) in hard.iter_mut().zip(RESOURCES).zip(BY_NUMBER) {
            let limit = declared
                .iter()
                .find(|limit| limit.typ().to_string() == name);
            if let Some(limit) = limit {
                *slot = getrlimit(resource).maximum.unwrap_or(u64::MAX);
                is_raised |= limit.hard() > *slot;
            }
        }
        // Whoever asks for less than there is needs no leave.
        if !is_raised {
            return Ok(Self {
                hard,
                may_raise: false,
                nr_open: u64::MAX,
            });
        }
        let capabilities = capabilities(None)
            .map_err(|errno| Error::file("read the capabilities of", "tepui itself", errno))?;
        Ok(Self {
            hard,
            may_raise: capabilities.effective.contains(CapabilitySet::SYS_RESOURCE),
            nr_open: nr_open()?,
        })
    }
}

/// What no limit of descriptors exceeds.
fn nr_open() -> Result<u64> {
    let path = Path::new("/proc/sys/fs/nr_open");
    let text = observe::whole_text(path).map_err(|source| Error::file("read", path, source))?;
    let number = text.trim().parse();
    number.map_err(|_| Error::file("find a number in", path, std::io::ErrorKind::InvalidData))
}

impl Isolator for Rlimits {
    fn name(&self) -> &'static str {
        "posix/rlimits"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let declared = declared(declaration);
        if declared.is_empty() {
            return Ok(ContainerLaunchInfo::default());
        }
        Ok(ContainerLaunchInfo {
            rlimits: check(declared, &Ceiling::of_this_process(declared)?)?,
            ..Default::default()
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        live.rlimits = observed(target)?;
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let finding = |limit: &PosixRlimit| {
            let name = limit.typ().to_string();
            let declared = (limit.soft(), limit.hard());
            let live = live.rlimits.get(&name).copied();
            let verdict = match live {
                None => Verdict::Unknown,
                Some((soft, hard)) if soft > declared.0 || hard > declared.1 => Verdict::Weaker,
                Some(live) if live == declared => Verdict::Match,
                Some(_) => Verdict::Stronger,
            };
            Finding {
                isolator: "posix/rlimits",
                item: name,
                declared: in_words(declared),
                live: live.map_or_else(|| "not seen".to_owned(), in_words),
                verdict,
                read_from: "limits".to_owned(),
            }
        };
        declared(declaration).iter().map(finding).collect()
    }
}

fn declared(declaration: &Declaration) -> &[PosixRlimit] {
    let process = declaration.spec.process().as_ref();
    let limits = process.and_then(|process| process.rlimits().as_ref());
    limits.map_or(&[], Vec::as_slice)
}

/// The limits of a process by the names of runtime-spec.
fn observed(target: &Target) -> Result<BTreeMap<String, (u64, u64)>> {
    let limits = observe::parse_limits(&observe::read(target, "limits")?)
        .map_err(|source| observe::unseen(target, "limits", source))?;
    let named = RESOURCES
        .iter()
        .filter_map(|(name, title)| Some(((*name).to_owned(), *limits.get(*title)?)));
    Ok(named.collect())
}

fn check(declared: &[PosixRlimit], ceiling: &Ceiling) -> Result<Vec<Rlimit>> {
    let mut limits: Vec<Rlimit> = Vec::with_capacity(declared.len());
    for limit in declared {
        let name = limit.typ().to_string();
        let (soft, hard) = (limit.soft(), limit.hard());
        let refused = |rule: String| Error::Config {
            field: "process.rlimits",
            value: format!("{name} {}", in_words((soft, hard))),
            rule,
        };
        let number = RESOURCES.iter().position(|(known, _)| *known == name);
        let Some(number) = number else {
            return Err(refused(INVALID_TYPE.to_owned()));
        };
        let own = ceiling.hard[number];
        let resource = number as u32;
        if limits.iter().any(|earlier| earlier.resource == resource) {
            return Err(refused("each limit may be given once".to_owned()));
        }
        if soft > hard {
            return Err(refused("soft may not exceed hard".to_owned()));
        }
        if hard > own && !ceiling.may_raise {
            return Err(refused(format!(
                "tepui's own hard limit is {own} and raising it takes CAP_SYS_RESOURCE; lower the limit or start tepui \
                 with a higher one"
            )));
        }
        if resource == NOFILE && hard > ceiling.nr_open {
            return Err(refused(format!(
                "the kernel allows at most {} (fs.nr_open)",
                ceiling.nr_open
            )));
        }
        limits.push(Rlimit {
            resource,
            soft,
            hard,
        });
    }
    Ok(limits)
}

fn in_words((soft, hard): (u64, u64)) -> String {
    let word = |limit| match limit {
        u64::MAX => "unlimited".to_owned(),
        number => number.to_string(),
    };
    format!("soft {}, hard {}", word(soft), word(hard))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use oci_spec::runtime::{PosixRlimitBuilder, PosixRlimitType};

    fn limit(typ: PosixRlimitType, soft: u64, hard: u64) -> PosixRlimit {
        PosixRlimitBuilder::default()
            .typ(typ)
            .soft(soft)
            .hard(hard)
            .build()
            .unwrap()
    }

    fn ceiling(may_raise: bool) -> Ceiling {
        Ceiling {
            hard: [100; 16],
            may_raise,
            nr_open: 1000,
        }
    }

    #[test]
    fn what_cannot_be_set_is_refused_by_name() {
        use PosixRlimitType::{RlimitCore, RlimitNofile};
        let cases = [
            (vec![limit(RlimitCore, 2, 1)], true, "soft"),
            (
                vec![limit(RlimitCore, 1, 1), limit(RlimitCore, 1, 1)],
                true,
                "once",
            ),
            (vec![limit(RlimitCore, 0, 101)], false, "CAP_SYS_RESOURCE"),
            (vec![limit(RlimitNofile, 0, 1001)], true, "nr_open"),
        ];
        for (limits, may_raise, word) in cases {
            let error = check(&limits, &ceiling(may_raise)).unwrap_err().to_string();
            assert!(
                error.contains(word) && error.contains("process.rlimits is RLIMIT_"),
                "{error}"
            );
        }
        let limits = [limit(RlimitCore, 0, u64::MAX), limit(RlimitNofile, 10, 20)];
        let set = check(&limits, &ceiling(true)).unwrap();
        assert_eq!(
            set[0],
            Rlimit {
                resource: libc::RLIMIT_CORE,
                soft: 0,
                hard: u64::MAX
            }
        );
        assert_eq!(
            set[1],
            Rlimit {
                resource: libc::RLIMIT_NOFILE,
                soft: 10,
                hard: 20
            }
        );
    }

    #[test]
    fn a_limit_that_there_is_not_is_named() {
        let error = check_type("RLIMIT_FILES").unwrap_err().to_string();
        assert!(
            error.contains("\"RLIMIT_FILES\", but invalid rlimit type"),
            "{error}"
        );
    }

    #[test]
    fn every_limit_of_the_spec_has_its_kernel_number() {
        use PosixRlimitType::*;
        let all = [
            (RlimitCpu, libc::RLIMIT_CPU),
            (RlimitFsize, libc::RLIMIT_FSIZE),
            (RlimitData, libc::RLIMIT_DATA),
            (RlimitStack, libc::RLIMIT_STACK),
            (RlimitCore, libc::RLIMIT_CORE),
            (RlimitRss, libc::RLIMIT_RSS),
            (RlimitNproc, libc::RLIMIT_NPROC),
            (RlimitNofile, libc::RLIMIT_NOFILE),
            (RlimitMemlock, libc::RLIMIT_MEMLOCK),
            (RlimitAs, libc::RLIMIT_AS),
            (RlimitLocks, libc::RLIMIT_LOCKS),
            (RlimitSigpending, libc::RLIMIT_SIGPENDING),
            (RlimitMsgqueue, libc::RLIMIT_MSGQUEUE),
            (RlimitNice, libc::RLIMIT_NICE),
            (RlimitRtprio, libc::RLIMIT_RTPRIO),
            (RlimitRttime, libc::RLIMIT_RTTIME),
        ];
        for (typ, number) in all {
            check_type(&typ.to_string()).unwrap();
            let set = check(&[limit(typ, 1, 1)], &ceiling(false)).unwrap();
            assert_eq!(set[0].resource, number, "{typ}");
        }
    }
}
