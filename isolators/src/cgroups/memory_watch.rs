//! Tells when a container's memory limit was hit, and whose limit it was.
//!
//! The kernel may kill a process of a container because the container's own limit was hit, or because memory ran out
//! above it: in its parent's cgroup or on the whole host. Only the first is a limitation of the container.
//!
//! v1 (cgroup-v1/memory, section 10): an eventfd on `memory.oom_control` is signalled for the cgroup whose limit was hit
//! *and for every cgroup below it*, parents first. So a second one on the parent tells them apart: our own limit was
//! hit as many times as we were signalled more often than our parent. `oom_kill` counts the victims where they were.
//!
//! v2 (cgroup-v2, memory.events): `oom` of `memory.events.local` counts the times our own limit was hit; `oom_kill` and
//! `oom` of `memory.events` count for us and all below us.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::directory::{self, Directory, ignore_absent};
use super::hierarchy::Version;
use super::mem_limits::{LIMIT_V1, LIMIT_V2};
use crate::error::{Error, Result};
use crate::isolator::{LimitEvent, Watch};

const OOM_CONTROL: &str = "memory.oom_control";

/// The lines of `memory.stat` that say where the memory of a cgroup and all below it went: v1's names, then v2's.
const TELLING: [&str; 12] = [
    "total_rss",
    "total_cache",
    "total_shmem",
    "total_mapped_file",
    "total_swap",
    "anon",
    "file",
    "kernel",
    "shmem",
    "file_mapped",
    "slab",
    "pagetables",
];

/// Begins to watch a cgroup that exists and has no process yet.
pub(super) fn watch(cgroup: &Directory) -> Result<Box<dyn Watch>> {
    Ok(match cgroup.version() {
        Version::V1 => Box::new(WatchV1::new(cgroup)?),
        Version::V2 => Box::new(WatchV2::new(cgroup)?),
    })
}

/// What has been told so far; the same for both versions.
#[derive(Debug, Default)]
struct Told {
    own: u64,
    killed: u64,
}

impl Told {
    /// The news in the counters: how often our own limit was hit, and how many were killed.
    fn news(
        &mut self,
        cgroup: &Path,
        files: (&str, &str),
        own: u64,
        killed_from_above: u64,
    ) -> Result<Option<LimitEvent>> {
        if own > self.own {
            let event = own_limit(cgroup, files)?;
            self.own = own;
            return Ok(event);
        }
        // Once our own limit was hit the victims were most likely its.
        if own == 0 && killed_from_above > self.killed {
            let killed = killed_from_above - self.killed;
            self.killed = killed_from_above;
            return Ok(Some(LimitEvent::OutsideMemory { killed }));
        }
        Ok(None)
    }
}

/// The event for our own limit. `None`: the cgroup has been removed, which v1 signals like an event.
fn own_limit(cgroup: &Path, (limit, peak): (&str, &str)) -> Result<Option<LimitEvent>> {
    let Some(limit) = number(cgroup, limit)? else {
        return Ok(None);
    };
    let peak = match number(cgroup, peak)? {
        Some(peak) => peak,
        // Before 5.19 v2 knows only the present use.
        None => number(cgroup, "memory.current")?.unwrap_or(0),
    };
    let statistics = match directory::read(cgroup, "memory.stat") {
        Ok(text) => extract(&text),
        Err(Error::File { source, .. }) if directory::is_gone(&source) => String::new(),
        Err(error) => return Err(error),
    };
    Ok(Some(LimitEvent::Memory {
        limit,
        peak,
        statistics,
    }))
}

/// The telling lines of `memory.stat`.
fn extract(stat: &str) -> String {
    let telling = |line: &&str| {
        line.split_once(' ')
            .is_some_and(|(key, _)| TELLING.contains(&key))
    };
    let lines: Vec<&str> = stat.lines().filter(telling).collect();
    lines.join("\n")
}

/// A file of one number; `max` is the greatest. `None` when it does not exist.
pub(super) fn number(cgroup: &Path, file: &str) -> Result<Option<u64>> {
    match directory::read(cgroup, file) {
        Ok(text) => match text.as_str() {
            "max" => Ok(Some(u64::MAX)),
            text => text.parse().map(Some).map_err(|error| {
                let error = io::Error::new(ErrorKind::InvalidData, error);
                Error::file("read a number from", cgroup.join(file), error)
            }),
        },
        Err(Error::File { source, .. }) if directory::is_gone(&source) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The value of one key in a file of `key value` lines; 0 when it is not there.
fn value_of(key: &str, text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find_map(|(name, value)| (name == key).then(|| value.parse().ok())?)
        .unwrap_or(0)
}

/// An eventfd that counts the out-of-memory events of one v1 cgroup.
#[derive(Debug)]
struct Counter {
    events: OwnedFd,
    count: u64,
}

impl Counter {
    fn on(cgroup: &Path) -> Result<Self> {
        let path = cgroup.join(OOM_CONTROL);
        let events = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::file("make an eventfd for", &path, error))?;
        let control = File::open(&path).map_err(|error| Error::file("open", &path, error))?;
        let line = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
        directory::write(cgroup, "cgroup.event_control", &line)?;
        Ok(Self { events, count: 0 })
    }

    /// Takes what has been signalled; returns the count since the start.
    fn take(&mut self) -> Result<u64> {
        let mut new = [0; 8];
        match rustix::io::read(&self.events, &mut new) {
            Ok(_) => self.count += u64::from_ne_bytes(new),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(Error::file("read the eventfd of", OOM_CONTROL, error)),
        }
        Ok(self.count)
    }
}

#[derive(Debug)]
struct WatchV1 {
    cgroup: PathBuf,
    own: Counter,
    parent: Option<Counter>,
    /// Own events less the parent's when the watch began.
    start: i64,
    told: Told,
}

impl WatchV1 {
    fn new(cgroup: &Directory) -> Result<Self> {
        // The parent first, as the kernel signals it first: an event in between is then never taken for ours.
        let parent = cgroup.parent_path();
        let parent = parent.as_deref().map(Counter::on).transpose()?;
        let mut watch = Self {
            cgroup: cgroup.path().to_owned(),
            own: Counter::on(cgroup.path())?,
            parent,
            start: 0,
            told: Told::default(),
        };
        // Nothing runs in the cgroup yet: whatever came until now was the parent's.
        watch.start = watch.difference()?;
        watch.told.killed = watch.killed()?;
        Ok(watch)
    }

    fn difference(&mut self) -> Result<i64> {
        // Our own first: what the parent gets in between must not be missing from its count.
        let own = self.own.take()?;
        let parent = match &mut self.parent {
            Some(parent) => parent.take()?,
            None => 0,
        };
        Ok(own.cast_signed() - parent.cast_signed())
    }

    /// Victims in our cgroup and below it. A cgroup below with a lower limit of its own is the workload's own affair.
    fn killed(&self) -> Result<u64> {
        let ours = number(&self.cgroup, LIMIT_V1)?.unwrap_or(u64::MAX);
        let mut killed = 0;
        for cgroup in directory::tree(&self.cgroup)? {
            if number(&cgroup, LIMIT_V1)?.is_some_and(|limit| limit < ours) {
                continue;
            }
            let read = directory::read(&cgroup, OOM_CONTROL).map(|text| {
                killed += value_of("oom_kill", &text);
            });
            ignore_absent(read)?;
        }
        Ok(killed)
    }

    fn look(&mut self) -> Result<Option<LimitEvent>> {
        // The victims first: the kernel signals before it kills, so whoever is counted here has its event below.
        let killed = self.killed()?;
        let own = u64::try_from(self.difference()? - self.start).unwrap_or(0);
        let files = (LIMIT_V1, "memory.max_usage_in_bytes");
        self.told.news(&self.cgroup, files, own, killed)
    }
}

impl Watch for WatchV1 {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.own.events.as_fd()
    }

    fn is_priority(&self) -> bool {
        false
    }

    fn check(&mut self) -> Result<Option<LimitEvent>> {
        self.look()
    }

    fn at_exit(&mut self) -> Result<Option<LimitEvent>> {
        self.look()
    }
}

#[derive(Debug)]
struct WatchV2 {
    cgroup: PathBuf,
    /// `memory.events.local`; before 5.2 there is only `memory.events`.
    local: File,
    /// Counters when the watch began: `oom` of ours, `oom` and `oom_kill` of us and all below.
    start: Counts,
    told: Told,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    own: u64,
    all: u64,
    killed: u64,
}

impl WatchV2 {
    fn new(cgroup: &Directory) -> Result<Self> {
        let file = match cgroup.has("memory.events.local") {
            true => "memory.events.local",
            false => "memory.events",
        };
        let path = cgroup.path().join(file);
        let local = File::open(&path).map_err(|error| Error::file("open", path, error))?;
        let mut watch = Self {
            cgroup: cgroup.path().to_owned(),
            local,
            start: Counts::default(),
            told: Told::default(),
        };
        watch.start = watch.counts()?.unwrap_or_default();
        Ok(watch)
    }

    /// Reads the counters, which also arms the next notification. `None`: the cgroup is gone.
    fn counts(&self) -> Result<Option<Counts>> {
        // The victims first: `oom` is counted before anything is killed, so their cause is in the second file by then.
        let all = match directory::read(&self.cgroup, "memory.events") {
            Ok(text) => text,
            Err(Error::File { source, .. }) if directory::is_gone(&source) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = [0; 1024];
        let local = match self.local.read_at(&mut text, 0) {
            Ok(length) => String::from_utf8_lossy(&text[..length]).into_owned(),
            Err(error) if directory::is_gone(&error) => return Ok(None),
            Err(error) => {
                let path = self.cgroup.join("memory.events.local");
                return Err(Error::file("read", path, error));
            }
        };
        Ok(Some(Counts {
            own: value_of("oom", &local),
            all: value_of("oom", &all),
            killed: value_of("oom_kill", &all),
        }))
    }

    fn look(&mut self) -> Result<Option<LimitEvent>> {
        let Some(now) = self.counts()? else {
            return Ok(None);
        };
        // `oom` below us and not ours: the workload limits a cgroup of its own, and its victims are its own affair.
        let killed = match now.all - self.start.all {
            0 => now.killed - self.start.killed,
            _ => 0,
        };
        let files = (LIMIT_V2, "memory.peak");
        self.told
            .news(&self.cgroup, files, now.own - self.start.own, killed)
    }
}

impl Watch for WatchV2 {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.local.as_fd()
    }

    fn is_priority(&self) -> bool {
        true
    }

    fn check(&mut self) -> Result<Option<LimitEvent>> {
        self.look()
    }

    fn at_exit(&mut self) -> Result<Option<LimitEvent>> {
        self.look()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_is_not_taken_for_another() {
        let text = "oom_kill_disable 0\nunder_oom 1\noom_kill 7\n";
        assert_eq!(value_of("oom_kill", text), 7);
        assert_eq!(value_of("oom", "low 1\noom_group_kill 5\noom 2\n"), 2);
        assert_eq!(value_of("oom", ""), 0);
    }

    #[test]
    fn the_extract_keeps_only_telling_lines() {
        let stat =
            "rss 0\npgfault 17\nhierarchical_memory_limit 5\ntotal_rss 4096\ntotal_cache 0\n";
        assert_eq!(extract(stat), "total_rss 4096\ntotal_cache 0");
    }
}
