//! The hooks of a container, runtime-spec config "POSIX-platform Hooks" and runtime.md "Lifecycle".

use std::ffi::{CString, OsStr};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use oci_spec::runtime::{ContainerState, Hook, Hooks};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags};
use serde_json::{Value, json};

use super::error::{Error, Result};
use super::state::State;
use crate::launch::step::HookStep;
use crate::launch::sys::StringArray;
use crate::pidfd;

/// All hooks of a configuration.
pub fn all(hooks: &Hooks) -> impl Iterator<Item = &Hook> {
    let lists = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    lists.into_iter().flatten().flatten()
}

/// The state that a hook reads: runtime-spec runtime.md "State".
pub fn state(state: &State, status: &str, pid: u32) -> Value {
    let mut value = json!({
        "ociVersion": state.oci_version,
        "id": state.identity.id,
        "status": status,
        "bundle": state.bundle,
        "annotations": state.annotations,
    });
    if pid != 0 {
        value["pid"] = pid.into();
    }
    value
}

/// The same for whoever wants it in the library's words.
pub fn spec_state(of: &State, status: ContainerState) -> oci_spec::runtime::State {
    let mut state = oci_spec::runtime::State::default();
    state
        .set_version(of.oci_version.clone())
        .set_id(of.identity.id.to_string())
        .set_status(status)
        .set_bundle(of.bundle.clone())
        .set_annotations(Some(of.annotations.clone().into_iter().collect()));
    if of.identity.pid != 0 {
        state.set_pid(i32::try_from(of.identity.pid).ok());
    }
    state
}

/// Runs hooks of one kind in the host's namespaces, in order.
///
/// # Errors
/// The first that fails.
pub fn run_host(kind: &'static str, hooks: &[Hook], state: &Value, bundle: &Path) -> Result<()> {
    each(kind, hooks, state, bundle).collect()
}

/// Runs every hook of a kind, whatever becomes of the others.
pub fn run_all(kind: &'static str, hooks: &[Hook], state: &Value, bundle: &Path) -> Vec<Error> {
    let outcomes = each(kind, hooks, state, bundle);
    outcomes.filter_map(Result::err).collect()
}

fn each(
    kind: &'static str,
    hooks: &[Hook],
    state: &Value,
    bundle: &Path,
) -> impl Iterator<Item = Result<()>> {
    let text = state.to_string();
    hooks.iter().enumerate().map(move |(index, hook)| {
        tracing::debug!("running {kind} hook {}", hook.path().display());
        run(hook, &text, bundle).map_err(|reason| Error::Hook {
            kind,
            index,
            reason,
        })
    })
}

fn run(hook: &Hook, state: &str, bundle: &Path) -> Result<(), String> {
    let mut command = Command::new(hook.path());
    if let Some((first, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(first).args(rest);
    }
    if let Some(environment) = hook.env() {
        command.env_clear();
        command.envs(environment.iter().filter_map(|v| v.split_once('=')));
    }
    command.current_dir(bundle);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| format!("could not execute {}: {error}", hook.path().display()))?;
    if let Some(mut input) = child.stdin.take() {
        // It need not read it.
        let _ = input.write_all(state.as_bytes());
    }
    let timeout = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok());
    let timeout = timeout
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs);
    if let Some(timeout) = timeout {
        let raw = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let ended = raw
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()))
            .map_err(std::io::Error::from)
            .and_then(|pidfd| pidfd::ended_within(&pidfd, timeout));
        if !ended.map_err(|error| format!("could not wait for it: {error}"))? {
            // Dead or dying: nothing to learn from either call.
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!(
                "hook ran past specified timeout of {}.0s",
                timeout.as_secs()
            ));
        }
    }
    let status = child
        .wait()
        .map_err(|error| format!("could not wait for it: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let said = child.stderr.take().map(what_it_said).unwrap_or_default();
    Err(match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}, stderr: {said}"),
        (None, signal) => format!("signal {}, stderr: {said}", signal.unwrap_or_default()),
    })
}

/// What is in the pipe now: something that the hook left running may hold it open.
fn what_it_said(mut pipe: std::process::ChildStderr) -> String {
    let mut text = vec![0; 4096];
    let nonblocking = rustix::io::ioctl_fionbio(pipe.as_fd(), true);
    let length = nonblocking.map_or(Ok(0), |()| pipe.read(&mut text));
    text.truncate(length.unwrap_or(0));
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// A file that hooks inside the container read the state from; empty until the state is known.
///
/// # Errors
/// When memory is short.
pub fn state_file() -> Result<OwnedFd> {
    rustix::fs::memfd_create(c"state", MemfdFlags::CLOEXEC)
        .map_err(Error::file("make", Path::new("memfd:state")))
}

/// Fills the file of [`state_file`], in place of what was in it.
///
/// # Errors
/// When memory is short.
pub fn fill(file: &OwnedFd, state: &Value) -> Result<()> {
    let text = state.to_string();
    rustix::io::pwrite(file, text.as_bytes(), 0)
        .and_then(|_| rustix::fs::ftruncate(file, text.len() as u64))
        .map_err(Error::file("write", Path::new("memfd:state")))
}

/// Hooks that run inside the container, laid out for a process that cannot allocate. Those before the pivot run in the
/// bundle, as those of the host do.
///
/// # Errors
/// When a string holds a NUL byte, or descriptors run out.
pub fn inside(
    hooks: Option<&Vec<Hook>>,
    bundle: Option<&Path>,
    state: Option<&OwnedFd>,
) -> Result<Vec<HookStep>> {
    let Some(state) = state else {
        return Ok(Vec::new());
    };
    let text = |text: &OsStr| {
        CString::new(text.as_bytes())
            .map_err(|_| Error::bundle(format!("hook argument {text:?} holds a NUL byte")))
    };
    let strings = |all: &[String]| {
        let all: Result<Vec<CString>> = all.iter().map(|one| text(OsStr::new(one))).collect();
        Ok::<_, Error>(StringArray::new(all?))
    };
    let step = |(number, hook): (u16, &Hook)| {
        let path = hook.path();
        let default = [path.to_string_lossy().into_owned()];
        Ok(HookStep {
            at_start: bundle.is_none(),
            number,
            path: text(path.as_os_str())?,
            arguments: strings(hook.args().as_deref().unwrap_or(&default))?,
            environment: strings(hook.env().as_deref().unwrap_or_default())?,
            directory: bundle.map(|path| text(path.as_os_str())).transpose()?,
            timeout: hook
                .timeout()
                .and_then(|t| u32::try_from(t).ok())
                .filter(|t| *t > 0),
            state: state.try_clone().map_err(Error::file(
                "copy",
                Path::new(&format!("fd {}", state.as_raw_fd())),
            ))?,
        })
    };
    (0..).zip(hooks.into_iter().flatten()).map(step).collect()
}
