//! `namespaces/pid`: the container sees and signals only its own processes, pid_namespaces(7).
//!
//! The namespace is half of it: a `/proc` that was mounted outside still lists the host's processes, with their
//! environments and roots. So the procfs that the target sees is looked at too.

use std::os::unix::fs::MetadataExt;

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
        live.pid_namespace_first_is_outside = first_is_outside(target)?;
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let declared_new = declaration.has_new_namespace(KIND);
        let mut findings = vec![super::compare_declared(
            self.name(),
            declaration,
            KIND,
            live,
        )];
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
            let (words, verdict) = match live.pid_namespace_first_is_outside {
                Some(true) => ("a process outside of the container", Verdict::Weaker),
                Some(false) => ("a process of the container", Verdict::Match),
                // In the host's own there is no need to see it.
                None if live
                    .namespaces
                    .get("pid")
                    .is_some_and(|pid| pid.shared_with_observer) =>
                {
                    ("a process of the host", Verdict::Weaker)
                }
                None => ("not seen", Verdict::Unknown),
            };
            findings.push(Finding {
                isolator: self.name(),
                item: "first process of the pid namespace".to_owned(),
                declared: "a process of the container".to_owned(),
                live: words.to_owned(),
                verdict,
                read_from: "status NSpid, ns/pid, ns/mnt".to_owned(),
            });
        }
        findings
    }
}

/// Whether process 1 of the target's pid namespace belongs to another mount namespace than the target: then the
/// namespace is not the container's own but somebody's who started it, and others may be in it. `None` when process 1
/// cannot be seen from here.
fn first_is_outside(target: &Target) -> Result<Option<bool>> {
    let inode = |pid: u32, name: &str| {
        let path = Target { pid }.proc_path(&format!("ns/{name}"));
        std::fs::metadata(path).map(|status| status.ino())
    };
    let own = |name: &str| inode(target.pid, name).map_err(|source| unseen(target, name, source));
    let (namespace, mounts) = (own("pid")?, own("mnt")?);
    let entries = std::fs::read_dir("/proc").map_err(|source| unseen(target, "/proc", source))?;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // Processes that end meanwhile are none of the two.
    let mut of_namespace =
        pids.filter(|pid| inode(*pid, "pid").is_ok_and(|found| found == namespace));
    let first = of_namespace.find(|pid| {
        let status = std::fs::read_to_string(Target { pid: *pid }.proc_path("status"));
        let number = |text: &str| {
            text.lines()
                .find_map(|line| Some(line.strip_prefix("NSpid:")?.to_owned()))
        };
        status
            .ok()
            .and_then(|text| number(&text))
            .is_some_and(|line| line.split_whitespace().last() == Some("1"))
    });
    let Some(first) = first else { return Ok(None) };
    Ok(inode(first, "mnt").ok().map(|found| found != mounts))
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
