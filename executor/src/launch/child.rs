//! The child side of a launch as code: an interpreter of the plan, from the clone to execve(2).
//!
//! Straight-line system calls: no allocation, lock, log, panic or exit handler. The first failure ends the child, which
//! reports the step's index and errno. Paths of the image are never trusted: each is resolved by openat2(2) with
//! RESOLVE_IN_ROOT and used through the descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::report::Record;
use super::step::{Create, Execute, Ids, MountSource, MountStep, Step};
use super::sys;

/// Runs the plan and never returns.
pub fn run(steps: &[Step], socket: BorrowedFd<'_>) -> ! {
    for (index, step) in steps.iter().enumerate() {
        if let Err(errno) = apply(step, socket) {
            let record = match step {
                Step::Execute(_) => Record::ExecuteFailed(errno.raw_os_error()),
                _ => Record::StepFailed {
                    index: index as u16,
                    errno: errno.raw_os_error() as u16,
                },
            };
            // Nobody is left to tell when this fails too: the launcher then reads end-of-file and a dead child.
            let _ = rustix::io::write(socket, &record.encode());
            break;
        }
    }
    sys::exit_now(127)
}

fn apply(step: &Step, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    match step {
        Step::NotDumpable => {
            sys::set_umask(0o022);
            sys::process_control(libc::PR_SET_DUMPABLE, 0, 0)
        }
        Step::DefaultSignals(mask) => (1..=64)
            .filter(|signal| mask & (1 << (signal - 1)) != 0)
            .try_for_each(sys::default_signal),
        Step::NewSession => rustix::process::setsid().map(drop),
        Step::JoinCgroup { tasks, .. } => rustix::io::write(tasks, b"0").map(drop),
        Step::CgroupNamespace => sys::unshare_cgroup_namespace(),
        Step::Loopback => sys::loopback_up(),
        Step::Hostname(name) => rustix::system::sethostname(name.to_bytes()),
        Step::OomScoreAdjustment(value) => {
            write_file(c"/proc/self/oom_score_adj", value.to_bytes())
        }
        Step::RootPropagation => rustix::mount::mount_change(
            c"/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        ),
        Step::MountOverlay {
            layers,
            target,
            options,
            flags,
        } => {
            rustix::process::chdir(layers.as_c_str())?;
            let flags = MountFlags::from_bits_retain(*flags as u32);
            let (target, options) = (target.as_c_str(), options.as_c_str());
            rustix::mount::mount(c"overlay", target, c"overlay", flags, options)
        }
        Step::AttachRoot { tree, target, .. } => {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(tree, c"", CWD, target.as_c_str(), flags)
        }
        Step::EnterRoot(path) => rustix::process::chdir(path.as_c_str()),
        Step::Mount(mount) => mount_inside(mount),
        Step::Mask { path, null } => mask(path, null.as_fd()),
        Step::ReadonlyPath(path) => make_readonly(path),
        Step::PivotRoot => pivot_root(),
        Step::MakeDirectory(path) => {
            resolve_or_make(path, Create::Directory, ResolveFlags::IN_ROOT).map(drop)
        }
        Step::ReadonlyRoot => readonly_root(),
        Step::Stdio { from, number } => sys::duplicate_to(from.as_fd(), *number),
        Step::ResourceLimit(limit) => sys::set_rlimit(limit),
        Step::Seccomp(filter) => sys::set_seccomp_filter(filter),
        Step::BoundingSet(sets) => drop_bounding_set(sets.bounding),
        Step::Ids(ids) => become_user(ids),
        Step::Capabilities(sets) => set_capabilities(sets),
        Step::WorkingDirectory(path) => {
            rustix::process::chdir(path.as_c_str())?;
            match sys::working_directory_is_inside_root()? {
                true => Ok(()),
                false => Err(Errno::NOENT),
            }
        }
        Step::NoNewPrivileges => sys::process_control(libc::PR_SET_NO_NEW_PRIVS, 1, 0),
        Step::CloseOnExec => sys::close_on_exec_from(3),
        Step::AwaitStart { init } => await_start(socket, *init),
        Step::Execute(execute) => Err(execute_workload(execute)),
    }
}

fn write_file(path: &CStr, content: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, content).map(drop)
}

/// Opens an absolute path of the container as a place, never leaving the root (the working directory until the
/// pivot, `/` after it).
fn resolve(path: &CStr, extra: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(
        CWD,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS | extra,
    )
}

/// As [`resolve`], and makes what is missing, part by part, each inside the directory that the part before led to.
fn resolve_or_make(path: &CStr, create: Create, extra: ResolveFlags) -> Result<OwnedFd, Errno> {
    match resolve(path, ResolveFlags::IN_ROOT | extra) {
        Err(Errno::NOENT) if create != Create::Nothing => {}
        other => return other,
    }
    let bytes = path.to_bytes();
    let mut parent = resolve(c".", ResolveFlags::IN_ROOT)?;
    let mut end = 0;
    while end < bytes.len() {
        let start = end + bytes[end..].iter().take_while(|b| **b == b'/').count();
        end = start + bytes[start..].iter().take_while(|b| **b != b'/').count();
        if start == end {
            break;
        }
        let mut prefix = [0u8; libc::PATH_MAX as usize];
        let mut name = [0u8; 256];
        let prefix = c_string(&mut prefix, &bytes[..end])?;
        let name = c_string(&mut name, &bytes[start..end])?;
        let rest_is_empty = bytes[end..].iter().all(|b| *b == b'/');
        parent = match resolve(prefix, ResolveFlags::IN_ROOT | extra) {
            Err(Errno::NOENT) => {
                if rest_is_empty && create == Create::File {
                    let flags = OFlags::CREATE
                        | OFlags::EXCL
                        | OFlags::WRONLY
                        | OFlags::NOFOLLOW
                        | OFlags::CLOEXEC;
                    rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
                } else {
                    rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                }
                resolve(prefix, ResolveFlags::IN_ROOT | extra)?
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// Copies `bytes` into `buffer` as a C string.
fn c_string<'a>(buffer: &'a mut [u8], bytes: &[u8]) -> Result<&'a CStr, Errno> {
    let room = buffer.get_mut(..=bytes.len()).ok_or(Errno::NAMETOOLONG)?;
    room[..bytes.len()].copy_from_slice(bytes);
    room[bytes.len()] = 0;
    CStr::from_bytes_with_nul(room).map_err(|_| Errno::INVAL)
}

/// Puts a detached mount on a place that was resolved before.
fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", place, c"", flags)
}

/// EXDEV for a place in procfs, sysfs or a cgroup file system, EBUSY for the root itself.
fn refuse_kernel_places(place: BorrowedFd<'_>) -> Result<(), Errno> {
    const KERNEL: [u64; 4] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270];
    if KERNEL.contains(&(rustix::fs::fstatfs(place)?.f_type as u64)) {
        return Err(Errno::XDEV);
    }
    let (root, target) = (rustix::fs::stat(c".")?, rustix::fs::fstat(place)?);
    match (root.st_dev, root.st_ino) == (target.st_dev, target.st_ino) {
        true => Err(Errno::BUSY),
        false => Ok(()),
    }
}

fn mount_inside(mount: &MountStep) -> Result<(), Errno> {
    let extra = if mount.plain_target {
        ResolveFlags::NO_SYMLINKS
    } else {
        ResolveFlags::empty()
    };
    let place = resolve_or_make(&mount.target, mount.create, extra)?;
    if !mount.may_cover_kernel {
        refuse_kernel_places(place.as_fd())?;
    }
    match &mount.source {
        MountSource::Tree { tree, .. } => {
            if mount.attributes != 0 {
                sys::set_mount_attributes(tree.as_fd(), mount.attributes, mount.recursive)?;
            }
            if mount.propagation != 0 {
                sys::set_mount_propagation(tree.as_fd(), mount.propagation)?;
            }
            attach(tree.as_fd(), place.as_fd())
        }
        MountSource::New {
            fstype,
            source,
            options,
        } => {
            let context = rustix::mount::fsopen(fstype.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_set_string(&context, c"source", source.as_c_str())?;
            for (key, value) in options {
                match value {
                    Some(value) => {
                        rustix::mount::fsconfig_set_string(
                            &context,
                            key.as_c_str(),
                            value.as_c_str(),
                        )?;
                    }
                    None => rustix::mount::fsconfig_set_flag(&context, key.as_c_str())?,
                }
            }
            rustix::mount::fsconfig_create(&context)?;
            let attributes = MountAttrFlags::from_bits_retain(mount.attributes as u32);
            let made = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
            if mount.propagation != 0 {
                sys::set_mount_propagation(made.as_fd(), mount.propagation)?;
            }
            attach(made.as_fd(), place.as_fd())
        }
    }
}

/// Hides a path; one that does not exist needs no hiding.
fn mask(path: &CStr, null: BorrowedFd<'_>) -> Result<(), Errno> {
    let place = match resolve(path, ResolveFlags::IN_ROOT) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
    if kind != FileType::Directory {
        return attach(null, place.as_fd());
    }
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"nr_blocks", c"1")?;
    rustix::mount::fsconfig_set_string(&context, c"nr_inodes", c"1")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let empty = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    attach(empty.as_fd(), place.as_fd())
}

/// Covers a path with a read-only view of itself; one that does not exist cannot be written.
fn make_readonly(path: &CStr) -> Result<(), Errno> {
    let place = match resolve(path, ResolveFlags::IN_ROOT) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let flags = flags | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let view = rustix::mount::open_tree(&place, c"", flags)?;
    sys::set_mount_attributes(view.as_fd(), libc::MOUNT_ATTR_RDONLY, true)?;
    attach(view.as_fd(), place.as_fd())
}

/// The working directory becomes `/`, and what was `/` is gone from this mount namespace.
fn pivot_root() -> Result<(), Errno> {
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

fn readonly_root() -> Result<(), Errno> {
    let root = resolve(c"/", ResolveFlags::IN_ROOT)?;
    sys::set_mount_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY, false)
}

/// Capability numbers that this kernel knows end with the first EINVAL.
fn drop_bounding_set(keep: u64) -> Result<(), Errno> {
    for capability in 0..64u64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        match sys::process_control(libc::PR_CAPBSET_DROP, capability, 0) {
            Err(Errno::INVAL) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

fn become_user(ids: &Ids) -> Result<(), Errno> {
    // The permitted set must survive the change of the user; the sets are set right afterwards.
    sys::process_control(libc::PR_SET_KEEPCAPS, 1, 0)?;
    sys::set_groups(&ids.groups)?;
    sys::set_gid(ids.gid)?;
    sys::set_uid(ids.uid)
}

fn set_capabilities(sets: &tepui_isolators::launch_info::CapabilitySets) -> Result<(), Errno> {
    const PR_CAP_AMBIENT: i32 = 47;
    const PR_CAP_AMBIENT_RAISE: u64 = 2;
    sys::set_capabilities(sets)?;
    for capability in (0..64u64).filter(|c| sets.ambient & (1 << c) != 0) {
        sys::process_control(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)?;
    }
    Ok(())
}

fn await_start(socket: BorrowedFd<'_>, init: bool) -> Result<(), Errno> {
    if init {
        // Signals stay blocked: init takes over the full mask and loses none.
        sys::keep_on_exec(socket)?;
    } else {
        sys::unblock_signals()?;
    }
    rustix::io::write(socket, &Record::Ready.encode())?;
    let mut word = [0u8; 1];
    match rustix::io::read(socket, &mut word)? {
        // The launcher is gone.
        0 => sys::exit_now(127),
        _ => Ok(()),
    }
}

fn execute_workload(execute: &Execute) -> Errno {
    if let Some(init) = &execute.init {
        return sys::execute_descriptor(init.as_fd(), &execute.arguments, &execute.environment);
    }
    let mut failure = Errno::NOENT;
    for candidate in &execute.candidates {
        match sys::execute(candidate, &execute.arguments, &execute.environment) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => failure = Errno::ACCESS,
            other => return other,
        }
    }
    failure
}
