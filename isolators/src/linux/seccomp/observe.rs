//! Which seccomp filters a process really has: `/proc/PID/task/*/status` (proc_pid_status(5)) and ptrace(2).
//!
//! Filters belong to threads. What is reported is the least filtered one: a process is as open as that.

use std::io;
use std::time::{Duration, Instant};

use libc::sock_filter;

use crate::error::{Error, Result};
use crate::live::{LiveSeccomp, Target};
use crate::sys;

/// How long one thread may take to stop. One that waits in the kernel where no signal reaches it (vfork(2), a dead
/// network file system) would make us wait for ever.
const STOP_WITHIN: Duration = Duration::from_millis(200);

/// A chain of programs as `Live` has it, the newest first.
type Programs = Vec<Vec<(u16, u8, u8, u32)>>;

/// What the kernel shows of the target.
///
/// The programs are given only if all of the least filtered threads have the same ones. Reading them stops each of
/// these threads for about a tenth of a millisecond, which interrupts a few blocking calls as SIGSTOP with SIGCONT
/// does (signal(7)); it needs CAP_SYS_ADMIN and an observer without filters of its own.
///
/// # Errors
/// When the target is gone.
pub fn observe(target: &Target) -> Result<LiveSeccomp> {
    let mut threads = Vec::new();
    for tid in threads_of(target)? {
        // A thread that has ended since is no longer part of the process.
        if let Some(seccomp) = thread_status(target, tid)? {
            threads.push((openness(&seccomp), tid, seccomp));
        }
    }
    let Some(least) = threads.iter().map(|(openness, ..)| *openness).min() else {
        return Err(Error::Observe {
            what: "seccomp".to_owned(),
            pid: target.pid,
            source: io::Error::from_raw_os_error(libc::ESRCH),
        });
    };
    threads.retain(|(openness, ..)| *openness == least);
    let mut seccomp = threads[0].2.clone();
    if seccomp.mode == 2 {
        let tids = threads.iter().map(|(_, tid, _)| *tid).collect();
        seccomp.programs = common_programs(tids, target.pid);
    }
    Ok(seccomp)
}

/// Orders threads: no filter at all, then by the number of filters, then strict mode, which is left almost nothing.
fn openness(seccomp: &LiveSeccomp) -> (u32, u32) {
    match seccomp.mode {
        0 => (0, 0),
        2 => (1, seccomp.filters.unwrap_or(0)),
        _ => (2, 0),
    }
}

fn threads_of(target: &Target) -> Result<Vec<i32>> {
    let path = target.proc_path("task");
    let fail = |e| Error::file("list", &path, e);
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        threads.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(threads)
}

/// `None` for a thread that is gone, or has ended and only waits to be collected.
fn thread_status(target: &Target, tid: i32) -> Result<Option<LiveSeccomp>> {
    let path = target
        .proc_path("task")
        .join(tid.to_string())
        .join("status");
    match std::fs::read_to_string(&path) {
        Ok(text) if has_ended(&text) => Ok(None),
        Ok(text) => match parse_status(&text) {
            Some(seccomp) => Ok(Some(seccomp)),
            None => Err(Error::Observe {
                what: "Seccomp in status (a kernel without CONFIG_SECCOMP?)".to_owned(),
                pid: target.pid,
                source: io::Error::from(io::ErrorKind::InvalidData),
            }),
        },
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) || e.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(e) => Err(Error::file("read", path, e)),
    }
}

/// A zombie's filters are already released, and it runs nothing.
fn has_ended(text: &str) -> bool {
    let state = text.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| state.trim_start().starts_with(['Z', 'X']))
}

fn parse_status(text: &str) -> Option<LiveSeccomp> {
    let number = |key: &str| -> Option<u32> {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.trim().parse().ok()
    };
    Some(LiveSeccomp {
        mode: number("Seccomp")?,
        filters: number("Seccomp_filters"),
        programs: None,
    })
}

/// The programs of all these threads, if they are the same and can be read.
fn common_programs(tids: Vec<i32>, pid: u32) -> Option<Programs> {
    // Tracing belongs to a thread. When this one ends, however it does, the kernel lets go of all that it traced,
    // so that no target is ever left stopped.
    let reader = std::thread::Builder::new().name("seccomp-reader".to_owned());
    let handle = reader.spawn(move || -> io::Result<Option<Programs>> {
        let mut common = None;
        for tid in tids {
            let programs = read_programs(tid)?;
            if *common.get_or_insert_with(|| programs.clone()) != programs {
                return Ok(None);
            }
        }
        Ok(common)
    });
    match handle.map(|handle| handle.join()) {
        Ok(Ok(Ok(programs))) => programs,
        Ok(Ok(Err(e))) | Err(e) => {
            tracing::debug!(pid, "could not read the seccomp programs: {e}");
            None
        }
        Ok(Err(_)) => {
            tracing::debug!(
                pid,
                "could not read the seccomp programs: the reader panicked"
            );
            None
        }
    }
}

fn read_programs(tid: i32) -> io::Result<Programs> {
    sys::seize(tid)?;
    sys::interrupt(tid)?;
    let signal = wait_for_stop(tid)?;
    let mut programs = Vec::new();
    let read = loop {
        match sys::seccomp_filter(tid, programs.len()) {
            Ok(Some(program)) => programs.push(program),
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    sys::detach(tid, signal)?;
    read?;
    Ok(programs.iter().map(|program| plain(program)).collect())
}

/// Waits until the thread is stopped. The signal that was just on its way to it, and must go on, or 0.
fn wait_for_stop(tid: i32) -> io::Result<i32> {
    let give_up = Instant::now() + STOP_WITHIN;
    loop {
        match sys::try_wait(tid)? {
            // PTRACE_EVENT_STOP: by our request, or because the whole process is stopped.
            Some(status) if libc::WIFSTOPPED(status) && status >> 16 == libc::PTRACE_EVENT_STOP => {
                return Ok(0);
            }
            Some(status) if libc::WIFSTOPPED(status) => return Ok(libc::WSTOPSIG(status)),
            Some(_) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            None if Instant::now() > give_up => return Err(io::ErrorKind::TimedOut.into()),
            // No descriptor reports the stop of a traced thread, so it is polled for.
            None => std::thread::sleep(Duration::from_micros(20)),
        }
    }
}

/// A program as `Live` has it.
pub fn plain(program: &[sock_filter]) -> Vec<(u16, u8, u8, u32)> {
    program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_file_is_read_by_whole_keys() {
        let text = "Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n";
        let seccomp = parse_status(text).expect("it has a Seccomp line");
        assert_eq!((seccomp.mode, seccomp.filters), (2, Some(3)));
        let old = parse_status("Seccomp:\t0\n").expect("before 5.9 there is no count");
        assert_eq!((old.mode, old.filters), (0, None));
        assert_eq!(parse_status("Name:\tx\n"), None);
    }

    #[test]
    fn an_unfiltered_thread_is_the_most_open_and_strict_mode_the_least() {
        let thread = |mode, filters| {
            openness(&LiveSeccomp {
                mode,
                filters,
                programs: None,
            })
        };
        assert!(thread(0, Some(0)) < thread(2, Some(1)));
        assert!(thread(2, Some(1)) < thread(2, Some(2)));
        assert!(thread(2, Some(2)) < thread(1, None));
    }

    #[test]
    fn a_process_that_has_ended_has_no_filters_to_speak_of() {
        let mut child = std::process::Command::new("/bin/true")
            .spawn()
            .expect("it starts");
        let options =
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let id = rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&child));
        rustix::process::waitid(id, options).expect("it ends");
        let target = Target { pid: child.id() };
        let text = observe(&target).expect_err("it is a zombie").to_string();
        assert!(text.contains("could not observe seccomp"), "{text}");
        child.wait().expect("it is collected");
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let target = Target { pid: u32::MAX >> 1 };
        let text = observe(&target).expect_err("no such process").to_string();
        assert!(text.contains("/proc/2147483647/task"), "{text}");
    }
}
