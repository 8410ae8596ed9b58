//! The order of a launch: the merged launch info becomes one list of steps, complete before the clone.
//!
//! After this nothing is looked up by name any more: bind sources are detached trees, cgroup files are open, strings are
//! laid out for execve(2). The list can be printed, asserted on without root, and made to fail at any step.

mod devices;
mod file_system;
mod mount;

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use tepui_isolators::attribute::{Attribute, Stage};
use tepui_isolators::launch_info::{CapabilitySets, SeccompFilter};
use tepui_isolators::linux::seccomp::missing_calls;
use tepui_isolators::observe::record;
use tepui_isolators::{ContainerLaunchInfo, Declaration, RootFilesystem, undefended};

use super::error::{Error, Result};
use super::report::Point;
use super::step::{Execute, Ids, Step};
use super::sys::StringArray;
use super::tree;
use super::{Handover, Stdio, id_maps};

/// What a launch has beside the declaration.
#[derive(Debug)]
pub struct Attachments {
    /// What the caller gives.
    pub handover: Handover,
    /// Number of the child's end of the socket to the parent, which init goes on using.
    pub socket: RawFd,
}

/// All steps of one launch.
///
/// # Errors
/// When a source cannot be opened or a string cannot be one of the kernel's.
pub fn steps(
    declaration: &Declaration,
    info: ContainerLaunchInfo,
    attachments: Attachments,
) -> Result<Vec<Step>> {
    let process = declaration
        .spec
        .process()
        .as_ref()
        .ok_or(Error::Missing { field: "process" })?;
    let Attachments { handover, socket } = attachments;
    let own_root = declaration.rootfs != RootFilesystem::Host;
    let target = c_path(&handover.mount_point)?;
    let init = handover.init.is_some();
    let user_namespace = oci_spec::runtime::LinuxNamespaceType::User;
    let has_user_namespace = info.namespaces.contains(&user_namespace);
    let joins_user_namespace = info
        .join_namespaces
        .iter()
        .any(|(kind, _)| *kind == user_namespace);
    let ground = mount::Ground::new(declaration, &info);
    let inherited = Inherited::of_this_thread()?;

    let mut steps = Vec::with_capacity(64);
    // In a new user namespace nobody is yet who could look. Root needs no leave.
    let shows_itself = has_user_namespace && !rustix::process::geteuid().is_root();
    let show = |on| shows_itself.then_some(Step::Dumpable(on));
    // Before anything that needs an id.
    steps.extend(has_user_namespace.then_some(Step::Rendezvous(Point::IdMaps)));
    let sets_up = info.rootfs.is_some();
    steps.extend(
        (has_user_namespace || joins_user_namespace && sets_up).then_some(Step::BecomeRoot),
    );
    steps.extend((inherited.umask != 0o022).then_some(Step::UsualUmask));
    steps.extend([
        Step::NotDumpable,
        Step::DefaultSignals(inherited.ignored_signals),
        Step::NewSession,
    ]);
    // Who waits for another's word may be asked to end meanwhile. Our init takes over the blocked signals.
    let waits_long = handover.start.is_some() && !init;
    steps.extend(waits_long.then_some(Step::EndOnSignals));
    // Before anything is charged to the wrong cgroup.
    for directory in &info.cgroup_v1 {
        steps.push(join_cgroup(directory)?);
    }
    // Its root is the cgroup that one is in, so it follows the move.
    if info.namespaces.contains(&LinuxNamespaceType::Cgroup) {
        steps.push(Step::CgroupNamespace);
    }
    let cgroup = oci_spec::runtime::LinuxNamespaceType::Cgroup;
    for (_, path) in info
        .join_namespaces
        .iter()
        .filter(|(kind, _)| *kind == cgroup)
    {
        steps.push(Step::EnterCgroupNamespace(open_file(path)?));
    }
    // The host's /proc is still there. The parent sets the clocks: nobody but root of the host may write to the procfs
    // files of a process that is not dumpable.
    if info.namespaces.contains(&LinuxNamespaceType::Time) {
        steps.push(Step::TimeNamespace);
        if !info.time_offsets.is_empty() {
            steps.extend(show(true));
            steps.push(Step::Rendezvous(Point::TimeOffsets));
            steps.extend(show(false));
        }
        steps.push(Step::EnterTimeNamespace);
    }
    steps.extend(info.loopback.then_some(Step::Loopback));
    steps.extend(info.hostname.map(Step::Hostname));
    steps.extend(info.domainname.map(Step::Domainname));
    // Before the container's mounts: in a user namespace procfs is given only while a whole one is to be seen.
    let mut writes = Vec::new();
    if !info.sysctls.is_empty() || info.attributes.iter().any(Attribute::needs_proc) {
        writes.push(Step::PrivateProc);
    }
    for (name, value) in info.sysctls {
        let path = c_path(&Path::new("sys").join(OsStr::from_bytes(name.as_bytes())))?;
        writes.push(Step::Sysctl { path, value });
    }
    let late_writes = match undefended("private-proc") {
        false => Vec::new(),
        true => std::mem::take(&mut writes),
    };
    steps.extend(writes);
    let directory = c_string(process.cwd().as_os_str())?;
    let user = process.user();
    let uid = user.uid();
    let terminal = match &handover.stdio {
        Stdio::Terminal(terminal) => Some(*terminal),
        Stdio::Descriptors(_) => None,
    };
    let mut open_terminal = terminal.map(|terminal| Step::Terminal { terminal, uid });
    // Without `filesystem/linux` the container stays on the host's mounts.
    if let Some(root) = info.rootfs {
        steps.push(Step::RootPropagation);
        // The order of the configuration counts (runtime-spec "mounts").
        let mut mounts = Vec::new();
        let has_console = terminal.is_some_and(|terminal| terminal.is_console);
        let nodes = &info.device_nodes;
        let late = ground.mount_steps(info.mounts, nodes, has_console, &mut mounts)?;
        steps.extend(mount::parking(&mounts, &target));
        steps.push(ground.root_step(root, &target)?);
        steps.push(Step::EnterRoot(target.clone()));
        steps.extend(mount::by_directory(mounts, &target));
        ground.device_steps(info.device_nodes, info.device_links, &mut steps);
        steps.extend(late_writes);
        // The host's device is gone after the pivot.
        if !info.masked_paths.is_empty() {
            steps.push(ground.covers()?);
        }
        let waits = handover.waits_when_mounted || !handover.create_hooks.is_empty();
        steps.extend(waits.then_some(Step::Rendezvous(Point::Mounted)));
        steps.extend(handover.create_hooks.into_iter().map(Step::Hook));
        steps.push(Step::PivotRoot);
        steps.extend(mount::own_propagation(info.root_propagation));
        if own_root && directory.as_c_str() != c"/" {
            steps.push(Step::MakeDirectory(directory.clone()));
        }
        // It makes `/dev/console`.
        steps.extend(open_terminal.take());
        steps.extend(late);
        // After all mounts, and in one way with those: nothing is covered that is not seen.
        steps.extend(info.masked_paths.into_iter().map(Step::Mask));
        steps.extend(info.readonly_paths.into_iter().map(Step::ReadonlyPath));
    }
    steps.extend(open_terminal);
    // After everything that writes.
    steps.extend(info.readonly_root.then_some(Step::ReadonlyRoot));
    if let Stdio::Descriptors(descriptors) = handover.stdio {
        for (from, number) in descriptors.into_iter().zip(0..) {
            let from = without_host_null(from)?;
            if is_pipe(&from)
                && let Some((uid, gid)) = ground.outside(uid, user.gid())?
            {
                give(&from, uid, gid)?;
            }
            steps.push(Step::Stdio { from, number });
        }
    }
    steps.extend(info.session_keyring.map(|name| {
        Step::SessionKeyring {
            name,
            // One that enters a container is not the owner of the keyring there, which has them already.
            permissions: (sets_up || !joins_user_namespace)
                .then(|| keyring_permissions(&info.namespaces, &info.join_namespaces)),
        }
    }));
    let (early_attributes, late_attributes): (Vec<_>, Vec<_>) = info
        .attributes
        .into_iter()
        .partition(|attribute| attribute.stage() == Stage::Privileged);
    steps.extend(early_attributes.into_iter().map(Step::Attribute));
    steps.push(Step::EarlyWorkingDirectory(directory.clone()));
    // After everything that makes a file.
    steps.extend(user.umask().map(Step::FileModeMask));
    // Raising a hard limit needs a capability that goes next.
    steps.extend(info.rlimits.into_iter().map(Step::ResourceLimit));
    let execute = execute(declaration, process, handover.init, socket)?;
    // Whoever only creates hears of a mistyped program now, and not from a start much later. Before any filter.
    if handover.start.is_some() && !init {
        steps.push(Step::FindProgram(below(
            process.cwd(),
            &execute.candidates,
        )?));
    }
    // Without no_new_privs the filter needs CAP_SYS_ADMIN, which goes below (seccomp(2)).
    let (early, late) = match info.no_new_privileges {
        true => (None, info.seccomp),
        false => (info.seccomp, None),
    };
    // Marks and does not close: the report must work until execve(2). Before any filter, which need not allow it.
    // One that waits for `start` may wait for long, and keeps nothing of the host open.
    let keeps = handover.start.as_ref().map(|listener| {
        let states = handover
            .start_hooks
            .iter()
            .map(|hook| hook.state.as_raw_fd());
        states.chain([socket, listener.as_raw_fd()]).collect()
    });
    let close_on_exec = Step::CloseOnExec {
        first: 3 + handover.preserved,
        keeps,
    };
    let (marks_early, marks_late) = match early.is_some() {
        true => (Some(close_on_exec), None),
        false => (None, Some(close_on_exec)),
    };
    steps.extend(marks_early);
    // Where it is can be asked only while the filter is not there; the user's right to be there is asked below.
    let is_entered_early = early
        .as_ref()
        .is_some_and(|filter| !missing_calls(filter, &["getcwd"]).is_empty());
    steps.extend(is_entered_early.then(|| Step::WorkingDirectory(directory.clone())));
    steps.extend(
        early
            .into_iter()
            .flat_map(|early| filter(early, shows_itself)),
    );
    // A user namespace gives all capabilities anew.
    let bounding = match has_user_namespace || joins_user_namespace {
        true => u64::MAX,
        false => inherited.bounding,
    };
    // Dropping the bounding set after the change of user is EPERM.
    let drop = |sets: CapabilitySets| Step::BoundingSet(bounding & !sets.bounding);
    steps.extend(info.capabilities.map(drop));
    let groups = user.additional_gids().clone().unwrap_or_default();
    let may_set_groups = !info.id_maps.as_ref().is_some_and(id_maps::denies_setgroups);
    let ids = Ids {
        uid,
        gid: user.gid(),
        groups: (may_set_groups || !groups.is_empty()).then_some(groups),
    };
    if has_user_namespace || joins_user_namespace || !inherited.is(&ids) {
        steps.push(Step::Ids(ids));
    }
    steps.extend(info.capabilities.map(Step::Capabilities));
    // As the user, who may lack the right to enter it.
    steps.push(match is_entered_early {
        true => Step::StayInDirectory,
        false => Step::WorkingDirectory(directory),
    });
    steps.extend(info.no_new_privileges.then_some(Step::NoNewPrivileges));
    steps.extend(late_attributes.into_iter().map(Step::Attribute));
    steps.extend(marks_late);
    // Who answers for it must have it before the start, as others' runtimes do it.
    let (listening, last) = match late {
        Some(filter) if filter.listener.is_some() => (Some(filter), None),
        other => (None, other),
    };
    steps.extend(
        listening
            .into_iter()
            .flat_map(|filter| self::filter(filter, shows_itself)),
    );
    steps.push(Step::AwaitStart {
        init,
        listener: handover.start,
    });
    // As late as can be, so that a profile need not allow our set-up; but it holds for the container's own hooks.
    steps.extend(last.map(Step::Seccomp));
    steps.extend(handover.start_hooks.into_iter().map(Step::Hook));
    steps.push(Step::Execute(execute));
    Ok(steps)
}

/// The paths as they are found from a directory.
fn below(directory: &Path, paths: &[CString]) -> Result<Vec<CString>> {
    let join = |path: &CString| c_path(&directory.join(OsStr::from_bytes(path.to_bytes())));
    paths.iter().map(join).collect()
}

/// A filter, and around one with a listener what lets the parent take it (pidfd_getfd(2)).
fn filter(filter: SeccompFilter, shows_itself: bool) -> impl Iterator<Item = Step> {
    let shows_itself = shows_itself && filter.listener.is_some();
    let show = |on| shows_itself.then_some(Step::Dumpable(on));
    let all = [show(true), Some(Step::Seccomp(filter)), show(false)];
    all.into_iter().flatten()
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Error::NulByte {
        text: text.to_string_lossy().into_owned(),
    })
}

fn c_path(path: &Path) -> Result<CString> {
    c_string(path.as_os_str())
}

/// What a clone of this process starts with.
struct Inherited {
    /// Real, effective, saved and file system user, then the same of the group.
    ids: [u32; 8],
    groups: Vec<u32>,
    umask: u64,
    /// The ignored signals as a mask (bit n-1 is signal n): CLONE_CLEAR_SIGHAND leaves those ignored, and so does
    /// execve(2).
    ignored_signals: u64,
    /// The capabilities of the bounding set.
    bounding: u64,
}

impl Inherited {
    /// Whether the process is this user already.
    fn is(&self, wanted: &Ids) -> bool {
        let (users, groups) = self.ids.split_at(4);
        let are = |ids: &[u32], wanted: u32| ids.iter().all(|id| *id == wanted);
        let others = wanted.groups.as_ref().is_none_or(|all| *all == self.groups);
        are(users, wanted.uid) && are(groups, wanted.gid) && others
    }

    fn of_this_thread() -> Result<Self> {
        let path = Path::new("/proc/thread-self/status");
        let failed = |source| Error::Open {
            path: path.to_owned(),
            source,
        };
        let status = record(path).map_err(failed)?;
        let number = |name: &str, radix| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|text| u64::from_str_radix(text.trim(), radix).ok());
            number.ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))
        };
        let ids = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let words = line.unwrap_or_default().split_ascii_whitespace();
            words
                .map_while(|word| word.parse().ok())
                .collect::<Vec<u32>>()
        };
        let own = [ids("Uid:"), ids("Gid:")].concat();
        Ok(Self {
            ids: own
                .try_into()
                .map_err(|_| failed(std::io::ErrorKind::InvalidData.into()))?,
            groups: ids("Groups:"),
            umask: number("Umask:", 8)?,
            ignored_signals: number("SigIgn:", 16)?,
            bounding: number("CapBnd:", 16)?,
        })
    }
}

fn c_number(value: i32) -> CString {
    CString::new(value.to_string()).expect("digits hold no NUL byte")
}

fn open_file(path: &Path) -> Result<OwnedFd> {
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    opened.map_err(|source| Error::Open {
        path: path.to_owned(),
        source: source.into(),
    })
}

fn join_cgroup(directory: &Path) -> Result<Step> {
    let path = directory.join("tasks");
    let tasks = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(
        |source| Error::Open {
            path: path.clone(),
            source: source.into(),
        },
    )?;
    Ok(Step::JoinCgroup {
        path: c_path(&path)?,
        tasks,
    })
}

fn null_device() -> Result<OwnedFd> {
    tree::null_device().map_err(|errno| match errno {
        rustix::io::Errno::NODEV => Error::NotTheNullDevice,
        errno => Error::Open {
            path: "/dev/null".into(),
            source: errno.into(),
        },
    })
}

/// A standard descriptor that is the host's null device becomes one through a read-only mount: through the other anybody
/// inside could change the node's mode for the whole host (fchmod(2)).
fn without_host_null(descriptor: OwnedFd) -> Result<OwnedFd> {
    let failed = |errno: rustix::io::Errno| Error::Open {
        path: "/dev/null".into(),
        source: errno.into(),
    };
    let status = rustix::fs::fstat(&descriptor).map_err(failed)?;
    if !tree::is_null_device(&status) {
        return Ok(descriptor);
    }
    let mode = rustix::fs::fcntl_getfl(&descriptor).map_err(failed)? & OFlags::RWMODE;
    let tree = null_device()?;
    let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
    rustix::fs::open(path, mode | OFlags::CLOEXEC, Mode::empty()).map_err(failed)
}

/// Whether a descriptor is a pipe without a name, which only those know who have it.
fn is_pipe(descriptor: &OwnedFd) -> bool {
    const PIPEFS: u64 = 0x5049_5045;
    let status = rustix::fs::fstatfs(descriptor);
    status.is_ok_and(|status| status.f_type as u64 == PIPEFS)
}

/// The user must be able to open `/dev/stdout`, as images do whose log files are links to it: a pipe is its maker's.
fn give(pipe: &OwnedFd, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    match rustix::fs::fchown(pipe, Some(uid), Some(gid)) {
        // Its maker has no id in our own user namespace.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(errno) => Err(Error::Open {
            path: format!("/proc/self/fd/{} for its user", pipe.as_raw_fd()).into(),
            source: errno.into(),
        }),
    }
}

/// Who may find the session keyring beside those who have it, so that a process that enters later can join it: in a
/// user namespace such a process is another user first (keyrings(7), linux/key.h).
fn keyring_permissions(
    new: &[LinuxNamespaceType],
    joined: &[(LinuxNamespaceType, PathBuf)],
) -> u32 {
    const KEY_USR_SEARCH: u32 = 0x8_0000;
    const KEY_OTH_SEARCH: u32 = 0x8;
    let mut kinds = new.iter().chain(joined.iter().map(|(kind, _)| kind));
    match kinds.any(|kind| *kind == LinuxNamespaceType::User) {
        true => KEY_OTH_SEARCH,
        false => KEY_USR_SEARCH,
    }
}

/// The directories of `PATH` that execvp(3) would search when there is none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn execute(
    declaration: &Declaration,
    process: &oci_spec::runtime::Process,
    init: Option<OwnedFd>,
    socket: RawFd,
) -> Result<Execute> {
    let arguments = process.args().clone().unwrap_or_default();
    let environment = process.env().clone().unwrap_or_default();
    let first = arguments.first().ok_or(Error::Missing {
        field: "process.args",
    })?;
    let program = declaration.executable.as_ref().unwrap_or(first);
    if program.is_empty() {
        return Err(Error::Missing {
            field: "process.args[0]",
        });
    }
    let strings = |texts: &[String]| {
        texts
            .iter()
            .map(|t| c_string(OsStr::new(t)))
            .collect::<Result<Vec<_>>>()
    };
    let mut all = strings(&arguments)?;
    let mut candidates = Vec::new();
    if init.is_some() {
        all.splice(
            0..0,
            [
                c"tepui-init".into(),
                c_number(socket),
                c_string(OsStr::new(program))?,
            ],
        );
    } else {
        let path = environment
            .iter()
            .find_map(|v| v.strip_prefix("PATH="))
            .unwrap_or(DEFAULT_PATH);
        candidates = match program.contains('/') {
            true => vec![c_string(OsStr::new(program))?],
            // An empty directory is the working directory, as for execvp(3).
            false => std::env::split_paths(path)
                .map(|directory| c_path(&directory.join(program)))
                .collect::<Result<_>>()?,
        };
    }
    Ok(Execute {
        init,
        candidates,
        arguments: StringArray::new(all),
        environment: StringArray::new(strings(&environment)?),
    })
}
