//! The way of a seccomp listener from the container's process to the agent that answers for it: runtime-spec
//! config-linux "The Container Process State".

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{ContainerProcessState, ContainerProcessStateBuilder, State};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::process::PidfdGetfdFlags;
use tepui_isolators::launch_info::SeccompListener;

use super::error::{Error, Result};

/// How long an agent may take to accept us, and then to read: nobody waits for ever for one that is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// What runtime-spec calls the one descriptor that goes along.
const DESCRIPTOR: &str = "seccompFd";

/// Who gets a listener, and what it is told.
#[derive(Debug, Clone)]
pub struct ListenerRequest {
    /// The agent's socket, and what the profile has for it.
    pub listener: SeccompListener,
    /// The container. Without a pid the process that loads the filter is its first.
    pub state: State,
}

/// Takes the listener that is descriptor `number` of a process, and gives it to the agent.
///
/// The process must wait meanwhile and close its own descriptor afterwards. `pid` is its pid as we see it.
///
/// # Errors
/// When it cannot be taken (pidfd_getfd(2), Linux 5.6), or the agent is not there, or does not read.
pub fn deliver(
    process: BorrowedFd<'_>,
    pid: u32,
    number: RawFd,
    request: &ListenerRequest,
) -> Result<()> {
    let taken = rustix::process::pidfd_getfd(process, number, PidfdGetfdFlags::empty());
    let descriptor = taken.map_err(|errno| Error::Channel {
        action: "take the seccomp listener from the container's process",
        source: errno.into(),
    })?;
    let path = &request.listener.path;
    let failed = |action| {
        move |source| Error::Agent {
            action,
            path: path.clone(),
            source,
        }
    };
    let socket = connect(path).map_err(failed("connect with"))?;
    let message = serde_json::to_vec(&told(pid, request)).map_err(io::Error::other);
    let message = message.map_err(failed("describe the container to"))?;
    send(&socket, &message, descriptor.as_fd()).map_err(failed("send the listener to"))
}

fn told(pid: u32, request: &ListenerRequest) -> ContainerProcessState {
    // Pids are below 2^22.
    let pid = pid as i32;
    let mut state = request.state.clone();
    if state.pid().is_none() {
        state.set_pid(Some(pid));
    }
    let builder = ContainerProcessStateBuilder::default()
        .version(state.version().clone())
        .fds([DESCRIPTOR.to_owned()])
        .pid(pid)
        .state(state);
    let builder = match &request.listener.metadata {
        Some(metadata) => builder.metadata(metadata.clone()),
        None => builder,
    };
    builder.build().expect("every field of it has a default")
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    let (_long, address) = address(path)?;
    match rustix::net::connect(&socket, &address) {
        // What a timeout of a socket is called.
        Err(Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
        other => Ok(other.map(|()| socket)?),
    }
}

/// Where `path` is. An address has room for 107 bytes: a longer one goes by a descriptor, which must stay open.
fn address(path: &Path) -> io::Result<(Option<OwnedFd>, SocketAddrUnix)> {
    if let Some(name) = path.as_os_str().as_bytes().strip_prefix(b"@") {
        return Ok((None, SocketAddrUnix::new_abstract_name(name)?));
    }
    match SocketAddrUnix::new(path) {
        Err(Errno::NAMETOOLONG) => {
            let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            let short = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            Ok((Some(file), SocketAddrUnix::new(short)?))
        }
        other => Ok((None, other?)),
    }
}

/// The descriptor goes with the first byte; agents read once, so all goes in one piece unless the kernel splits it.
fn send(socket: &OwnedFd, message: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let flags = SendFlags::NOSIGNAL;
    let mut sent = rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut control, flags)?;
    while sent < message.len() {
        sent += rustix::net::send(socket, &message[sent..], flags)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::File;
    use std::io::{IoSliceMut, Read, Write};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;

    use oci_spec::runtime::{ContainerState, StateBuilder};
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
    use serde_json::{Value, json};

    use super::*;

    fn request(path: &Path, metadata: Option<&str>) -> ListenerRequest {
        ListenerRequest {
            listener: SeccompListener {
                path: path.to_owned(),
                metadata: metadata.map(str::to_owned),
            },
            state: StateBuilder::default()
                .version("1.2.0")
                .id("box")
                .status(ContainerState::Creating)
                .bundle("/bundle")
                .build()
                .unwrap(),
        }
    }

    /// Gives a file of this process away and says what arrives.
    fn round_trip(path: &Path, agent: &UnixListener, metadata: Option<&str>) -> Value {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"mine").unwrap();
        let pid = getpid();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let number = file.as_raw_fd();
        let host_pid = Pid::as_raw(Some(pid)) as u32;
        deliver(pidfd.as_fd(), host_pid, number, &request(path, metadata)).unwrap();

        let (mut connection, _) = agent.accept().unwrap();
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = rustix::net::recvmsg(&connection, buffers, &mut control, flags);
        let length = length.unwrap().bytes;
        let rights = control.drain().filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let files: Vec<File> = rights.flatten().map(File::from).collect();
        assert_eq!(files.len(), 1);
        let inode = |file: &File| file.metadata().unwrap().ino();
        assert_eq!(inode(&files[0]), inode(&file));
        let mut rest = Vec::new();
        connection.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "agents read once");
        serde_json::from_slice(&bytes[..length]).unwrap()
    }

    #[test]
    fn an_agent_gets_the_descriptor_and_the_state_of_runtime_spec() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        let agent = UnixListener::bind(&path).unwrap();
        let pid = std::process::id();
        let state = json!({"ociVersion": "1.2.0", "id": "box", "status": "creating", "pid": pid, "bundle": "/bundle"});
        let mut expected =
            json!({"ociVersion": "1.2.0", "fds": ["seccompFd"], "pid": pid, "state": state});
        assert_eq!(round_trip(&path, &agent, None), expected);
        expected["metadata"] = json!("who");
        assert_eq!(round_trip(&path, &agent, Some("who")), expected);
    }

    #[test]
    fn a_path_may_be_longer_than_an_address_or_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let short = directory.path().join("s");
        let agent = UnixListener::bind(&short).unwrap();
        let path = deep.join("a".repeat(120));
        std::fs::rename(&short, &path).unwrap();
        assert_eq!(round_trip(&path, &agent, None)["state"]["id"], "box");

        let name = format!("tepui-test-{}", directory.path().display());
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        let path = PathBuf::from(format!("@{name}"));
        assert_eq!(
            round_trip(&path, &socket.into(), None)["state"]["id"],
            "box"
        );
    }

    #[test]
    fn an_agent_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        let file = tempfile::tempfile().unwrap();
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let attempt = |path: &Path| {
            let request = request(path, None);
            let failure = deliver(pidfd.as_fd(), 1, file.as_raw_fd(), &request).unwrap_err();
            failure.to_string()
        };
        let expected = format!("failed to connect with seccomp agent {}", path.display());
        assert_eq!(attempt(&path), expected);
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(attempt(&path), expected);
        assert!(
            attempt(Path::new("@tepui-test-nobody"))
                .contains("failed to connect with seccomp agent")
        );
    }
}
