//! `namespaces/pid`: the container sees and signals only its own processes, pid_namespaces(7).
//!
//! The namespace is half of it: a `/proc` that was mounted outside still lists the host's processes, with their
//! environments and roots. So the procfs that the target sees is looked at too.

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{PROC_SUPER_MAGIC, fstatfs, readlinkat};
use rustix::io::Errno;

use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::filesystem::look::Root;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target, Verdict};
use crate::observe::unseen;

/// `namespaces/pid`.
#[derive(Debug, Clone, Copy, Default)]
pub struct PidNamespace;

const KIND: LinuxNamespaceType = LinuxNamespaceType::Pid;

impl Isolator for PidNamespace {
    fn name(&self) -> &'static str {
        "namespaces/pid"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        super::prepare(declaration, KIND)
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        super::observe(target, "pid", live)?;
        live.proc_shows_observer = proc_shows_observer(target)?;
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let declared_new = declaration.has_new_namespace(KIND);
        let mut findings = vec![super::compare(self.name(), "pid", declared_new, live)];
        if declared_new {
            let (words, verdict) = match live.proc_shows_observer {
                Some(true) => ("it lists the host's processes", Verdict::Weaker),
                Some(false) => ("only its own processes", Verdict::Match),
                None => ("no procfs is mounted there", Verdict::Match),
            };
            findings.push(Finding {
                isolator: self.name(),
                item: "/proc".to_owned(),
                declared: "only its own processes".to_owned(),
                live: words.to_owned(),
                verdict,
                read_from: "root/proc/self".to_owned(),
            });
        }
        findings
    }
}

/// Whether the procfs at the target's `/proc` has a number for the observer; `None` when there is no procfs.
fn proc_shows_observer(target: &Target) -> Result<Option<bool>> {
    let failed = |errno: Errno| unseen(target, "root/proc", errno);
    let Some(proc) = Root::of(target)?.open("/proc")? else {
        return Ok(None);
    };
    if fstatfs(&proc).map_err(failed)?.f_type != PROC_SUPER_MAGIC {
        return Ok(None);
    }
    // `self` is the reader's number in the pid namespace of that mount; a reader who is not in there has none.
    match readlinkat(&proc, c"self", Vec::new()) {
        Ok(_) => Ok(Some(true)),
        Err(Errno::NOENT) => Ok(Some(false)),
        Err(errno) => Err(failed(errno)),
    }
}
