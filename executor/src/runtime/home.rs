//! What is added to a process' environment: `HOME` of its user, and the descriptors of socket activation.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::descriptors::Passed;
use super::error::{Error, Result};

/// The longest passwd file that is read.
const LIMIT: u64 = 16 << 20;

/// Completes the environment of `process`, which runs in the file system at `root`. Of a variable that is given twice
/// the last counts.
///
/// # Errors
/// When a variable is none.
pub fn complete_environment(
    process: &mut Process,
    passed: &Passed,
    root: Option<&Path>,
) -> Result<()> {
    let mut environment: Vec<String> = Vec::new();
    for variable in process.env().iter().flatten() {
        let Some((name, _)) = variable
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
        else {
            let reason =
                format!("invalid environment variable {variable:?}: it has to be NAME=VALUE");
            return Err(Error::bundle(reason));
        };
        let same = |other: &String| {
            other
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        };
        match environment.iter_mut().find(|other| same(other)) {
            Some(earlier) => earlier.clone_from(variable),
            None => environment.push(variable.clone()),
        }
    }
    if passed.listening > 0 {
        environment.push(format!("LISTEN_FDS={}", passed.listening));
        environment.push("LISTEN_PID=1".to_owned());
    }
    let home = environment.iter().find_map(|v| v.strip_prefix("HOME="));
    if home.is_none_or(str::is_empty) {
        environment.retain(|variable| !variable.starts_with("HOME="));
        let uid = process.user().uid();
        let home = root.and_then(|root| home_of(root, uid));
        environment.push(format!("HOME={}", home.as_deref().unwrap_or("/")));
    }
    process.set_env(Some(environment));
    Ok(())
}

/// The home directory of a user in the passwd file of a root file system, whose links are followed inside it only.
fn home_of(root: &Path, uid: u32) -> Option<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).ok()?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // A pipe or a device of the image must not be opened for reading.
    let seen = rustix::fs::openat2(
        &root,
        "/etc/passwd",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )
    .ok()?;
    let status = rustix::fs::fstat(&seen).ok()?;
    if rustix::fs::FileType::from_raw_mode(status.st_mode) != rustix::fs::FileType::RegularFile {
        return None;
    }
    let read = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat2(&root, "/etc/passwd", read, Mode::empty(), resolve).ok()?;
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(LIMIT)
        .read_to_end(&mut text)
        .ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_user = fields.nth(2)?.parse() == Ok(uid);
        fields
            .nth(2)
            .filter(|home| is_user && !home.is_empty())
            .map(str::to_owned)
    })
}
