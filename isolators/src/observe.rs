//! Reading `/proc/PID`: the files that several isolators need, parsed once and here only.
//!
//! The formats are those of proc_pid_status(5), proc_pid_mountinfo(5) and proc_pid_limits(5). Kernel files are input:
//! the parsers take any text and answer with an error, never with a guess.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::launch_info::CapabilitySets;
use crate::live::{LiveMount, Target};

/// Room for most files of the kernel.
const ROOM: usize = 8 << 10;

/// Reads all of a file of the kernel. Its size is not known before, so asking for it would be in vain: with room enough
/// it takes one read(2), and one that finds the end.
///
/// # Errors
/// When it cannot be read.
pub fn whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(ROOM);
    fs::File::open(path)?
        .take(u64::MAX)
        .read_to_end(&mut content)?;
    Ok(content)
}

/// The same as text.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn whole_text(path: &Path) -> io::Result<String> {
    String::from_utf8(whole(path)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Reads a file of /proc that is one record, as `status` is: the kernel gives it in one piece, so that a read which does
/// not fill the room has found the end.
///
/// # Errors
/// When it cannot be read.
pub fn record(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut content = vec![0; ROOM];
    let length = file.read(&mut content)?;
    let is_whole = length < content.len();
    content.truncate(length);
    if !is_whole {
        file.read_to_end(&mut content)?;
    }
    // Command names may hold any byte.
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// Reads `/proc/PID/<name>`.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn read(target: &Target, name: &str) -> Result<String> {
    // Host names, mount points and command names may hold any byte.
    let bytes = whole(&target.proc_path(name)).map_err(|source| unseen(target, name, source))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An `Error::Observe` about `what` of the target.
pub fn unseen(target: &Target, what: &str, source: impl Into<io::Error>) -> Error {
    Error::Observe {
        what: what.to_owned(),
        pid: target.pid,
        source: source.into(),
    }
}

/// When the process started, in clock ticks after boot. With the pid it names one process for good, so that a reused
/// pid is noticed.
///
/// # Errors
/// When the process is gone.
pub fn start_time(target: &Target) -> Result<u64> {
    let text = read(target, "stat")?;
    parse_start_time(&text).ok_or_else(|| unseen(target, "stat", malformed(&text)))
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The command name is in parentheses and may itself hold spaces and parentheses: field 3 follows the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// What `/proc/PID/task/TID/status` says of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThreadStatus {
    /// `CapBnd`, `CapEff`, `CapPrm`, `CapInh`, `CapAmb`.
    pub capabilities: CapabilitySets,
    /// `NoNewPrivs`.
    pub no_new_privileges: bool,
    /// `Seccomp`: 0 none, 1 strict, 2 filter.
    pub seccomp_mode: u32,
    /// `Seccomp_filters`, where the kernel shows it (5.9).
    pub seccomp_filters: Option<u32>,
}

impl ThreadStatus {
    /// Parses the text of a `status` file.
    ///
    /// # Errors
    /// When one of the lines is missing or not a number.
    pub fn parse(text: &str) -> io::Result<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let set = |name| {
            field(name)
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .ok_or_else(|| malformed(&format!("no {name} line with a hexadecimal number")))
        };
        let number = |name| {
            field(name)
                .and_then(|digits| digits.parse::<u32>().ok())
                .ok_or_else(|| malformed(&format!("no {name} line with a number")))
        };
        Ok(Self {
            capabilities: CapabilitySets {
                bounding: set("CapBnd")?,
                effective: set("CapEff")?,
                permitted: set("CapPrm")?,
                inheritable: set("CapInh")?,
                ambient: set("CapAmb")?,
            },
            no_new_privileges: number("NoNewPrivs")? == 1,
            seccomp_mode: number("Seccomp")?,
            seccomp_filters: match field("Seccomp_filters") {
                Some(_) => Some(number("Seccomp_filters")?),
                None => None,
            },
        })
    }
}

/// The status of every thread: capabilities, no_new_privs and filters belong to threads, not to processes.
///
/// # Errors
/// When not a single thread could be read.
pub fn threads(target: &Target) -> Result<Vec<ThreadStatus>> {
    let directory = target.proc_path("task");
    let seen = |source: io::Error| unseen(target, "task", source);
    let mut threads = Vec::new();
    for entry in fs::read_dir(&directory).map_err(seen)? {
        let status = entry.map_err(seen)?.path().join("status");
        match whole(&status) {
            Ok(bytes) => {
                let parsed = ThreadStatus::parse(&String::from_utf8_lossy(&bytes));
                threads.push(parsed.map_err(|source| unseen(target, "status", source))?);
            }
            // This thread ended since the directory was listed.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(unseen(target, "status", error)),
        }
    }
    if threads.is_empty() {
        return Err(seen(io::Error::from_raw_os_error(libc::ESRCH)));
    }
    Ok(threads)
}

/// The status of the calling thread, which is what a process that it clones starts from.
///
/// # Errors
/// When /proc cannot be read.
pub fn own_thread() -> Result<ThreadStatus> {
    let path = Path::new("/proc/thread-self/status");
    let status = record(path).and_then(|text| ThreadStatus::parse(&text));
    status.map_err(|source| Error::file("read", path, source))
}

/// Whether an error of a `/proc/PID` file means that the process or thread ended.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// One line of mountinfo with the numbers that tie it to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Mount id, as `stx_mnt_id` of statx(2).
    pub id: u64,
    /// Id of the mount that it stands on.
    pub parent: u64,
    /// The rest.
    pub mount: LiveMount,
}

/// The mount table of a process, `self` for the caller's own.
///
/// # Errors
/// When it cannot be read.
pub fn mounts(target: &Target) -> Result<Vec<MountInfo>> {
    parse_mountinfo(&read(target, "mountinfo")?)
        .map_err(|source| unseen(target, "mountinfo", source))
}

/// Parses a mountinfo file.
///
/// # Errors
/// When a line has not the ten fields or more of proc_pid_mountinfo(5).
pub fn parse_mountinfo(text: &str) -> io::Result<Vec<MountInfo>> {
    let line = |line: &str| parse_mountinfo_line(line).ok_or_else(|| malformed(line));
    text.lines().map(line).collect()
}

fn parse_mountinfo_line(line: &str) -> Option<MountInfo> {
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    // Spaces inside fields are escaped, so a space always separates; an empty field (a source of "") keeps its place.
    let mut fields = line.split(' ');
    let id = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    let _device = fields.next()?;
    let root = unescape(fields.next()?);
    let target = unescape(fields.next()?);
    let options = list(fields.next()?);
    let mut propagation = Vec::new();
    loop {
        match fields.next()? {
            "-" => break,
            field => propagation.push(field.to_owned()),
        }
    }
    let fstype = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    let super_options = list(fields.next()?);
    Some(MountInfo {
        id,
        parent,
        mount: LiveMount {
            root,
            target,
            options,
            propagation,
            fstype,
            source,
            super_options,
        },
    })
}

/// Undoes the octal escapes (`\040` for a space) of mountinfo.
fn unescape(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = match &bytes[at..] {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        plain.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Resource limits by the name in a limits file (`Max open files`): soft and hard, `u64::MAX` for unlimited.
///
/// # Errors
/// When a line is not a name and two limits.
pub fn parse_limits(text: &str) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let limit = |word: &str| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    let line = |line: &str| {
        // The name is padded to 25 columns and always followed by a space, however long it is.
        let (name, rest) = line
            .split_once("  ")
            .or_else(|| line.split_at_checked(25))?;
        let mut words = rest.split_ascii_whitespace();
        let soft = limit(words.next()?)?;
        let hard = limit(words.next()?)?;
        Some((name.trim_end().to_owned(), (soft, hard)))
    };
    let lines = text.lines().skip(1);
    lines
        .map(|text| line(text).ok_or_else(|| malformed(text)))
        .collect()
}

fn malformed(text: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("unexpected text {text:?}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATUS: &str = "Name:\tCapEff: 1\nCapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t0000000000000001\n\
        CapBnd:\t000001fffeffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    #[test]
    fn a_status_file_is_read_by_whole_names() {
        let status = ThreadStatus::parse(STATUS).expect("a status file");
        assert_eq!(status.capabilities.effective, 1);
        assert_eq!(status.capabilities.permitted, 0xa804_25fb);
        assert_eq!(status.capabilities.bounding, 0x1ff_feff_ffff);
        assert!(status.no_new_privileges);
        assert_eq!((status.seccomp_mode, status.seccomp_filters), (2, None));
        let with_count = format!("{STATUS}Seccomp_filters:\t3\n");
        let status = ThreadStatus::parse(&with_count).expect("a status file");
        assert_eq!((status.seccomp_mode, status.seccomp_filters), (2, Some(3)));
        let without = STATUS.replace("CapBnd", "CapXxx");
        let error = ThreadStatus::parse(&without).expect_err("a line is missing");
        assert!(error.to_string().contains("CapBnd"), "{error}");
    }

    #[test]
    fn mountinfo_keeps_escaped_names_optional_fields_and_empty_sources() {
        let text = "36 35 98:0 /a\\040b /mnt/x\\134y rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\n\
                    37 36 0:5 / / ro - tmpfs  rw\n";
        let table = parse_mountinfo(text).expect("two lines");
        assert_eq!((table[0].id, table[0].parent), (36, 35));
        let first = &table[0].mount;
        assert_eq!(
            (first.root.as_str(), first.target.as_str()),
            ("/a b", "/mnt/x\\y")
        );
        assert_eq!(first.propagation, ["shared:1", "master:2"]);
        assert_eq!(first.super_options, ["rw", "errors=continue"]);
        assert_eq!(
            (
                table[1].mount.fstype.as_str(),
                table[1].mount.source.as_str()
            ),
            ("tmpfs", "")
        );
        assert!(parse_mountinfo("36 35 98:0 / /").is_err());
        assert!(parse_mountinfo("36 35 98:0 / / rw shared:1").is_err());
    }

    #[test]
    fn the_kernel_files_of_this_process_are_understood() {
        let own = Target {
            pid: std::process::id(),
        };
        assert!(threads(&own).is_ok_and(|all| !all.is_empty()));
        assert!(mounts(&own).is_ok_and(|all| all.iter().any(|m| m.mount.target == "/")));
        let limits = parse_limits(&read(&own, "limits").expect("limits")).expect("limits");
        assert_eq!(limits.len(), 16, "{limits:?}");
        assert!(limits["Max open files"].0 > 0);
        assert!(start_time(&own).is_ok_and(|ticks| ticks > 0));
    }

    #[test]
    fn the_start_time_is_found_behind_any_command_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_start_time(&format!("7 (a) b) {tail}")), Some(4242));
        assert_eq!(parse_start_time("7 (a) S 1"), None);
    }

    #[test]
    fn limits_have_names_of_several_words() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max realtime priority     0                    99                   \n\
                    Max open files            1024                 unlimited            files     \n";
        let limits = parse_limits(text).expect("limits");
        assert_eq!(limits["Max realtime priority"], (0, 99));
        assert_eq!(limits["Max open files"], (1024, u64::MAX));
        assert!(parse_limits("h\nMax open files  many few\n").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "(\\PC|[ \\n\\t\\\\,:0-9-]){0,200}") {
            let status = ThreadStatus::parse(&text);
            prop_assert!(status.is_err());
            drop(parse_mountinfo(&text));
            drop(parse_limits(&text));
            parse_start_time(&text);
        }

        #[test]
        fn what_the_kernel_escapes_comes_back(name in "[ -~\\n\\t]{0,40}") {
            let mut escaped = String::new();
            for c in name.chars() {
                match c {
                    ' ' | '\t' | '\n' | '\\' => escaped.push_str(&format!("\\{:03o}", c as u32)),
                    _ => escaped.push(c),
                }
            }
            prop_assert_eq!(unescape(&escaped), name);
        }
    }
}
