//! One step of the child's side of a launch: what it needs, and how its failure is worded.
//!
//! `plan.rs` puts them in order before the clone; `child.rs` carries them out, one small arm each.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use tepui_isolators::Attribute;
use tepui_isolators::launch_info::{CapabilitySets, Rlimit, SeccompFilter};

use super::Terminal;
use super::report::Point;
use super::sys::StringArray;
use super::tree::Changes;

/// umask(2) while the container is set up, and of a workload that wants no other.
pub const OWN_UMASK: u32 = 0o022;

/// One thing that the child does.
#[derive(Debug)]
pub enum Step {
    /// Tells the parent and waits for its answer.
    Rendezvous(Point),
    /// setresgid(2) and setresuid(2) to root of the user namespace that this process came into.
    BecomeRoot,
    /// A hook that runs inside.
    Hook(HookStep),
    /// A terminal of the container's own devpts becomes its standard input, output and error; the other end goes to the
    /// parent.
    Terminal {
        /// What the caller wants of it.
        terminal: Terminal,
        /// Who owns it.
        uid: u32,
    },
    /// prctl(PR_SET_DUMPABLE, 0): nobody else looks into the half-made container.
    NotDumpable,
    /// umask(2) of 022, whatever ours is.
    UsualUmask,
    /// prctl(PR_SET_DUMPABLE): whether those with our rights may look into it, as a parent without root must to take a
    /// descriptor out of it.
    Dumpable(bool),
    /// rt_sigaction(2): these signals are ignored by us and shall not be by the workload (bit n-1 is signal n).
    DefaultSignals(u64),
    /// rt_sigaction(2): the signals that ask a program to end do so while it waits for its start, also the first of a pid
    /// namespace, which the kernel spares otherwise.
    EndOnSignals,
    /// umask(2) of the workload.
    FileModeMask(u32),
    /// setsid(2): no terminal of ours.
    NewSession,
    /// cgroup v1: writes `0` into an opened `tasks` file.
    JoinCgroup {
        /// For the wording.
        path: CString,
        /// The file.
        tasks: OwnedFd,
    },
    /// unshare(2) of the cgroup namespace, whose root is the cgroup that one is in.
    CgroupNamespace,
    /// setns(2) into an existing cgroup namespace, after the move into the cgroups.
    EnterCgroupNamespace(OwnedFd),
    /// unshare(2) of the time namespace, which nobody is in yet.
    TimeNamespace,
    /// setns(2) into that one, when its clocks are set.
    EnterTimeNamespace,
    /// The loopback device of a new network namespace.
    Loopback,
    /// sethostname(2).
    Hostname(CString),
    /// setdomainname(2).
    Domainname(CString),
    /// `/` recursively slave: no mount event of ours reaches the host.
    RootPropagation,
    /// mount(2) of an overlay, from the directory of its layers.
    MountOverlay {
        /// Working directory of the mount, which `lowerdir` is relative to.
        layers: CString,
        /// Where.
        target: CString,
        /// `lowerdir=…,upperdir=…,workdir=…`.
        options: CString,
        /// `MS_*`.
        flags: u64,
    },
    /// Puts a tree where the root is about to cover it: only of one that is in this mount namespace can a copy be made.
    Park {
        /// The tree.
        tree: Arc<OwnedFd>,
        /// Where.
        target: CString,
    },
    /// Moves a bound tree to where the root is to be.
    AttachRoot {
        /// For the wording.
        source: CString,
        /// The tree.
        tree: Tree,
        /// Where.
        target: CString,
    },
    /// chdir(2) into the new root: from here on all paths are resolved inside it.
    EnterRoot(CString),
    /// One mount inside the new root.
    Mount(MountStep),
    /// chdir(2) into a mount that we have made and filled, up to [`Step::EnterRoot`].
    EnterMount(CString),
    /// mount(2) on a directory that we have made in there: its name is all it takes.
    MountHere {
        /// Its absolute path in the container, for the wording.
        target: CString,
        /// Its name.
        name: CString,
        /// What is mounted.
        file_system: Whole,
    },
    /// One device node inside the new root.
    Device(DeviceStep),
    /// A symbolic link inside the new root.
    Link {
        /// Its absolute path in the container.
        path: CString,
        /// What it points at.
        to: CString,
        /// Whether it takes the place of what is there; else that stays.
        replace: bool,
    },
    /// A mount that had to be writable for what was put on it.
    ReadonlyMount(CString),
    /// Gets hold of what hides paths: detached mounts, or `None` where they are to be made here.
    Covers {
        /// The host's null device.
        null: Option<OwnedFd>,
        /// An empty directory.
        empty: Option<OwnedFd>,
    },
    /// Hides a path.
    Mask(CString),
    /// What the root mount's propagation becomes, `MS_*`.
    OwnPropagation(u64),
    /// Makes a path read-only.
    ReadonlyPath(CString),
    /// pivot_root(".", ".") and the detachment of the old root.
    PivotRoot,
    /// Makes the working directory where it is missing.
    MakeDirectory(CString),
    /// The root mount read-only.
    ReadonlyRoot,
    /// A detached procfs of the container's own namespaces, for the writes that follow.
    PrivateProc,
    /// A kernel parameter of the container's own namespaces.
    Sysctl {
        /// From procfs: `sys/net/…`.
        path: CString,
        /// What is written.
        value: CString,
    },
    /// One of the attributes that isolators ask for.
    Attribute(Attribute),
    /// A standard descriptor.
    Stdio {
        /// What it becomes.
        from: OwnedFd,
        /// 0, 1 or 2.
        number: i32,
    },
    /// A session keyring of the container's own.
    SessionKeyring {
        /// Its name.
        name: CString,
        /// `KEY_*` permissions that it gets beside the possessor's; none for one that is there already.
        permissions: Option<u32>,
    },
    /// A resource limit.
    ResourceLimit(Rlimit),
    /// seccomp(2).
    Seccomp(SeccompFilter),
    /// Drops these capabilities (as bits) from the bounding set.
    BoundingSet(u64),
    /// Supplementary groups, group and user.
    Ids(Ids),
    /// The other four capability sets.
    Capabilities(CapabilitySets),
    /// Fails as the execution would when none of these files is there. Whether the user may execute them is not asked.
    FindProgram(Vec<CString>),
    /// chdir(2) to the working directory, which must be inside the root.
    WorkingDirectory(CString),
    /// chdir(".") as the user, who must have the right to be where root went.
    StayInDirectory,
    /// prctl(PR_SET_NO_NEW_PRIVS).
    NoNewPrivileges,
    /// Marks every descriptor from a number on, and where the process is to wait long, closes all but a few.
    CloseOnExec {
        /// The first that the workload does not inherit.
        first: u32,
        /// What is kept until execve(2), where the rest is closed.
        keeps: Option<Vec<RawFd>>,
    },
    /// chdir(2) to the working directory as long as that takes a privilege which goes next; the user's own right may do
    /// instead.
    EarlyWorkingDirectory(CString),
    /// Reports that all is set up and waits for the launcher's word. What the last steps need is done here, so that a
    /// seccomp profile need not allow it.
    AwaitStart {
        /// Whether our init is executed, which keeps the socket.
        init: bool,
        /// Where the word comes from when the parent is gone.
        listener: Option<OwnedFd>,
    },
    /// The end: our init, or the workload itself.
    Execute(Execute),
}

/// The parts of one mount.
#[derive(Debug)]
pub struct MountStep {
    /// Absolute path in the container.
    pub target: CString,
    /// What is mounted.
    pub source: MountSource,
    /// Whether the target must be reached without any symbolic link.
    pub plain_target: bool,
    /// Whether it may lie in a file system of the kernel, as the declared name says. A link of the image must not lead
    /// another mount there, nor over the root.
    pub may_cover_kernel: bool,
    /// Whether a missing target is made; the host's file system is not ours to add to.
    pub create: bool,
    /// The directories in its root, when it is a tree that we have filled.
    pub filled_with: Vec<CString>,
}

/// What a missing mount target becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// An error: the host's file system is not ours to add to.
    Nothing,
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// What is mounted.
#[derive(Debug)]
pub enum MountSource {
    /// A tree that exists already.
    Tree {
        /// For the wording.
        name: CString,
        /// The tree.
        tree: Tree,
    },
    /// A new file system, which shows its maker's namespaces and so is made by the child.
    New {
        /// File system type.
        fstype: CString,
        /// Its source in the mount table.
        source: CString,
        /// Options.
        options: Vec<(CString, Option<CString>)>,
        /// `MOUNT_ATTR_*`.
        attributes: u64,
        /// `MS_*` propagation, 0 for as it is.
        propagation: u64,
        /// Whether its root has the mode of the directory that it covers, when there is one.
        inherit_mode: bool,
        /// Whether it starts with a copy of what it covers.
        copy_up: bool,
    },
    /// A new file system by mount(2).
    Whole(Whole),
}

/// A new file system that one call makes and mounts; also the way for an option too long for fsconfig(2).
#[derive(Debug)]
pub struct Whole {
    /// File system type.
    pub fstype: CString,
    /// Its source in the mount table.
    pub source: CString,
    /// All options.
    pub options: CString,
    /// `MS_*` flags.
    pub flags: u64,
}

/// A tree of mounts.
#[derive(Debug)]
pub enum Tree {
    /// Detached, opened and changed before the clone.
    Ready(OwnedFd),
    /// Made before the clone and parked: mounted is a copy of it. Mount tables are in the order in which mounts were made,
    /// and this one shall stand in its place in the configured order.
    Parked(Arc<OwnedFd>),
    /// Opened by the child, while the host's tree is still there: by one that has privileges in its own user namespace
    /// only.
    OfHost(OpenTree),
    /// Opened by the child in the new root.
    Inside(OpenTree),
}

/// How a tree is opened.
#[derive(Debug)]
pub struct OpenTree {
    /// Absolute path.
    pub path: CString,
    /// Whether the mounts below it come along.
    pub recursive: bool,
    /// Whether the path must have no symbolic link.
    pub plain: bool,
    /// What it becomes.
    pub changes: Changes,
}

/// A device node or FIFO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStep {
    /// Absolute path in the container.
    pub path: CString,
    /// `S_IF*` and permission bits.
    pub mode: u32,
    /// As of makedev(3).
    pub device: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Whom the process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups; `None` where the user namespace does not let them be set.
    pub groups: Option<Vec<u32>>,
}

/// A program that runs inside the container while it is set up, with the container's state on its standard input.
#[derive(Debug)]
pub struct HookStep {
    /// Whether it is a `startContainer` hook, and not a `createContainer` one.
    pub at_start: bool,
    /// Its place among those of its kind, from 0.
    pub number: u16,
    /// The program.
    pub path: CString,
    /// Argument vector.
    pub arguments: StringArray,
    /// Environment.
    pub environment: StringArray,
    /// Where it runs: a directory of the host, until the pivot.
    pub directory: Option<CString>,
    /// How long it may take, in seconds.
    pub timeout: Option<u32>,
    /// A file with the state, which the parent fills before the hook runs.
    pub state: OwnedFd,
}

/// What is executed in the end.
#[derive(Debug)]
pub struct Execute {
    /// Our init, which starts the workload itself.
    pub init: Option<OwnedFd>,
    /// Without init: the files to try, in order.
    pub candidates: Vec<CString>,
    /// Argument vector.
    pub arguments: StringArray,
    /// Environment.
    pub environment: StringArray,
}

impl Step {
    /// Gives up the descriptors that most launches have many of; others are closed with the step.
    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        match self {
            Self::JoinCgroup { tasks, .. } => vec![tasks],
            Self::Stdio { from, .. } => vec![from],
            Self::Covers { null, empty } => null.into_iter().chain(empty).collect(),
            Self::Park { tree, .. } => Arc::into_inner(tree).into_iter().collect(),
            Self::AttachRoot { tree, .. } => tree.into_descriptor().into_iter().collect(),
            Self::Mount(MountStep {
                source: MountSource::Tree { tree, .. },
                ..
            }) => tree.into_descriptor().into_iter().collect(),
            _ => Vec::new(),
        }
    }
}

impl Tree {
    fn into_descriptor(self) -> Option<OwnedFd> {
        match self {
            Self::Ready(tree) => Some(tree),
            Self::Parked(tree) => Arc::into_inner(tree),
            Self::OfHost(_) | Self::Inside(_) => None,
        }
    }
}

fn text(string: &CStr) -> String {
    format!("{:?}", string.to_string_lossy())
}

/// Reads after "could not".
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rendezvous(Point::IdMaps) => f.write_str("wait for the id maps"),
            Self::Rendezvous(Point::TimeOffsets) => {
                f.write_str("wait for the clocks of the time namespace")
            }
            Self::Rendezvous(Point::Mounted) => f.write_str("wait for the hooks of the host"),
            Self::BecomeRoot => f.write_str("become root of the user namespace"),
            Self::Hook(hook) => write!(f, "run the hook {}", text(&hook.path)),
            Self::Terminal { .. } => f.write_str("open a terminal of the container"),
            Self::UsualUmask => f.write_str("set the umask"),
            Self::NotDumpable | Self::Dumpable(_) => f.write_str("set PR_SET_DUMPABLE"),
            Self::DefaultSignals(_) => f.write_str("reset ignored signals"),
            Self::EndOnSignals => f.write_str("handle signals"),
            Self::FileModeMask(mask) => write!(f, "set the umask {mask:03o}"),
            Self::NewSession => f.write_str("make a session"),
            Self::JoinCgroup { path, .. } => write!(f, "join cgroup {}", text(path)),
            Self::CgroupNamespace => f.write_str("make a cgroup namespace"),
            Self::EnterCgroupNamespace(_) => f.write_str("enter the cgroup namespace"),
            Self::TimeNamespace => f.write_str("make a time namespace"),
            Self::EnterTimeNamespace => f.write_str("enter the time namespace"),
            Self::Loopback => f.write_str("set the loopback device up"),
            Self::Hostname(name) => write!(f, "set the host name {}", text(name)),
            Self::Domainname(name) => write!(f, "set the domain name {}", text(name)),
            Self::RootPropagation => f.write_str("stop mount events to the host"),
            Self::MountOverlay { options, .. } => write!(f, "mount the overlay {}", text(options)),
            Self::Park { target, .. } => write!(f, "park a prepared mount on {}", text(target)),
            Self::AttachRoot { source, .. } => {
                write!(f, "bind the root file system {}", text(source))
            }
            Self::EnterRoot(path) => write!(f, "enter the root file system {}", text(path)),
            Self::Mount(mount) => {
                let rule = match mount.plain_target {
                    true => ", where a filesystem must be mounted on ordinary directory",
                    false => "",
                };
                let what = match &mount.source {
                    MountSource::Tree { name, .. } => name,
                    MountSource::New { fstype, .. } | MountSource::Whole(Whole { fstype, .. }) => {
                        fstype
                    }
                };
                write!(f, "mount {} on {}{rule}", text(what), text(&mount.target))
            }
            Self::EnterMount(path) => write!(f, "enter the mount on {}", text(path)),
            Self::MountHere {
                target,
                file_system,
                ..
            } => write!(f, "mount {} on {}", text(&file_system.fstype), text(target)),
            Self::Device(device) => write!(f, "make the device {}", text(&device.path)),
            Self::Link { path, to, .. } => write!(f, "link {} to {}", text(path), text(to)),
            Self::ReadonlyMount(path) => write!(f, "make the mount on {} read-only", text(path)),
            Self::Covers { .. } => f.write_str("get hold of the host's null device"),
            Self::OwnPropagation(_) => f.write_str("set the propagation of the root mount"),
            Self::Mask(path) => write!(f, "mask {}", text(path)),
            Self::ReadonlyPath(path) => write!(f, "make {} read-only", text(path)),
            Self::PivotRoot => f.write_str("pivot into the root file system"),
            Self::MakeDirectory(path) => write!(f, "make the working directory {}", text(path)),
            Self::ReadonlyRoot => f.write_str("make the root file system read-only"),
            Self::PrivateProc => f.write_str("open a procfs of its own"),
            Self::Sysctl { path, value } => {
                write!(
                    f,
                    "write {} to /proc/{}",
                    text(value),
                    path.to_string_lossy()
                )
            }
            Self::Attribute(one) => write!(f, "{one}"),
            Self::Stdio { number, .. } => write!(f, "set up standard descriptor {number}"),
            Self::SessionKeyring { name, .. } => {
                write!(f, "make the session keyring {}", text(name))
            }
            Self::ResourceLimit(limit) => {
                write!(
                    f,
                    "set resource limit {} to {}:{}",
                    limit.resource, limit.soft, limit.hard
                )
            }
            Self::Seccomp(filter) => write!(
                f,
                "load the seccomp filter ({} instructions)",
                filter.program.len()
            ),
            Self::BoundingSet(_) => f.write_str("drop capabilities from the bounding set"),
            Self::Ids(ids) => write!(f, "become user {} and group {}", ids.uid, ids.gid),
            Self::Capabilities(_) => f.write_str("set the capabilities"),
            Self::FindProgram(_) => f.write_str("find the program"),
            Self::WorkingDirectory(path) => write!(f, "enter the working directory {}", text(path)),
            Self::StayInDirectory => f.write_str("stay in the working directory as its user"),
            Self::NoNewPrivileges => f.write_str("set no_new_privs"),
            Self::EarlyWorkingDirectory(path) => {
                write!(f, "enter the working directory {}", text(path))
            }
            Self::CloseOnExec { .. } => f.write_str("mark descriptors close-on-exec"),
            Self::AwaitStart { .. } => f.write_str("wait for the start"),
            Self::Execute(execute) => {
                let skip = if execute.init.is_some() { 2 } else { 0 };
                let name = execute.arguments.strings().get(skip).map(|s| text(s));
                write!(f, "execute {}", name.unwrap_or_default())
            }
        }
    }
}
