//! The child side of a launch as code: an interpreter of the plan, from the clone to execve(2).
//!
//! Straight-line system calls: no allocation, lock, log, panic or exit handler. The first failure ends the child, which
//! reports the step's index and errno. Paths of the image are never trusted: each is resolved by openat2(2) with
//! RESOLVE_IN_ROOT and used through the descriptor.

mod attribute;
mod copy;
mod device;
mod hook;
mod mount;
mod naive;
mod place;
mod procfs;
pub mod seccomp;
mod terminal;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::ResolveFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{MountFlags, MountPropagationFlags};

use tepui_isolators::{fault, undefended};

use super::report::Record;
use super::step::{Create, Execute, HookStep, Ids, OWN_UMASK, Step, Tree};
use super::sys;

/// What the steps hand on to each other.
struct Context<'a> {
    /// To the parent.
    socket: BorrowedFd<'a>,
    /// Whoever said the word to start, when it was not the parent.
    starter: Option<OwnedFd>,
    /// A detached procfs of the container's own namespaces, which no mount of the image or of another container can
    /// cover: every write to /proc/sys and /proc/self goes there.
    proc: Option<OwnedFd>,
    /// Where mounts are put.
    places: mount::Places<'a>,
    /// What hides paths.
    masks: mount::Masks<'a>,
    /// The Landlock ruleset that is being made.
    landlock: Option<OwnedFd>,
    /// Whether the root was changed, and is the working directory.
    is_at_root: bool,
    /// Whether the working directory was entered while we still had every right to.
    is_in_working_directory: bool,
    /// How a hook ended that did not end well.
    hook_status: u16,
}

impl Context<'_> {
    /// Who hears of a failure.
    fn report_to(&self) -> BorrowedFd<'_> {
        self.starter.as_ref().map_or(self.socket, AsFd::as_fd)
    }
}

/// Runs the plan and never returns.
pub fn run(steps: &[Step], socket: BorrowedFd<'_>) -> ! {
    let mut context = Context {
        socket,
        starter: None,
        proc: None,
        places: mount::Places::default(),
        masks: mount::Masks::default(),
        landlock: None,
        is_at_root: false,
        is_in_working_directory: false,
        hook_status: 0,
    };
    for (index, step) in steps.iter().enumerate() {
        let done = fault::at_step(index).and_then(|()| apply(step, &mut context));
        if let Err(errno) = done {
            let record = match step {
                Step::Hook(hook) if context.hook_status != 0 => Record::HookFailed {
                    at_start: hook.at_start,
                    number: hook.number,
                    status: context.hook_status,
                },
                Step::FindProgram(_) | Step::Execute(_) => {
                    Record::ExecuteFailed(errno.raw_os_error())
                }
                _ => Record::StepFailed {
                    index: index as u16,
                    errno: errno.raw_os_error() as u16,
                },
            };
            // Nobody is left to tell when this fails too: the launcher then reads end-of-file and a dead child.
            let _ = rustix::io::write(context.report_to(), &record.encode());
            break;
        }
    }
    sys::exit_now(127)
}

fn apply<'a>(step: &'a Step, context: &mut Context<'a>) -> Result<(), Errno> {
    match step {
        Step::Rendezvous(point) => rendezvous(context.socket, Record::Reached(*point)),
        Step::BecomeRoot => {
            sys::set_gid(0)?;
            sys::set_uid(0)
        }
        Step::Hook(step) => run_hook(step, context),
        Step::Terminal { terminal, uid } => terminal::open(*terminal, *uid, context.socket),
        Step::UsualUmask => {
            sys::set_umask(OWN_UMASK);
            Ok(())
        }
        Step::NotDumpable => sys::process_control(libc::PR_SET_DUMPABLE, 0, 0),
        Step::Dumpable(on) => sys::process_control(libc::PR_SET_DUMPABLE, u64::from(*on), 0),
        Step::DefaultSignals(mask) => (1..=64)
            .filter(|signal| mask & (1 << (signal - 1)) != 0)
            .try_for_each(sys::default_signal),
        Step::EndOnSignals => [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM]
            .into_iter()
            .try_for_each(sys::end_on_signal),
        Step::FileModeMask(mask) => {
            sys::set_umask(*mask);
            Ok(())
        }
        Step::NewSession => rustix::process::setsid().map(drop),
        Step::JoinCgroup { tasks, .. } => rustix::io::write(tasks, b"0").map(drop),
        Step::CgroupNamespace => sys::unshare_cgroup_namespace(),
        Step::EnterCgroupNamespace(namespace) => sys::enter_namespace(namespace.as_fd()),
        Step::TimeNamespace => sys::unshare_time_namespace(),
        Step::EnterTimeNamespace => procfs::enter_time_namespace(),
        Step::Loopback => sys::loopback_up(),
        Step::Hostname(name) => rustix::system::sethostname(name.to_bytes()),
        Step::Domainname(name) => rustix::system::setdomainname(name.to_bytes()),
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
        Step::Park { tree, target } => mount::park(tree.as_fd(), target),
        Step::AttachRoot { tree, target, .. } => {
            if let Tree::Ready(tree) = tree {
                context.places.root = Some(tree);
            }
            mount::attach_root(tree, target)
        }
        Step::EnterRoot(path) => rustix::process::chdir(path.as_c_str()),
        Step::Mount(mount) => mount::mount_inside(mount, &mut context.places),
        Step::EnterMount(path) => {
            let tree = match context.places.own.take() {
                Some(tree) => tree,
                None => place::resolve(path, ResolveFlags::empty())?,
            };
            rustix::process::fchdir(&tree)?;
            place::leave_open(tree);
            Ok(())
        }
        Step::MountHere {
            name, file_system, ..
        } => mount::mount_on(name, file_system),
        Step::Device(one) => device::make(one),
        Step::Link { path, to, replace } => device::link(path, to, *replace),
        Step::ReadonlyMount(path) => mount::make_mount_readonly(path),
        Step::Covers { null, empty } => context.masks.hold(null.as_ref(), empty.as_ref()),
        Step::Mask(path) => context.masks.mask(path),
        Step::OwnPropagation(flags) => mount::set_own_propagation(*flags),
        Step::ReadonlyPath(path) => mount::make_readonly(path),
        Step::PivotRoot => {
            context.is_at_root = true;
            mount::pivot_root()
        }
        Step::MakeDirectory(path) => {
            place::resolve_or_make(path, Create::Directory, false).map(drop)
        }
        Step::ReadonlyRoot => mount::readonly_root(),
        Step::PrivateProc => {
            context.proc = Some(procfs::private()?);
            Ok(())
        }
        Step::Sysctl { path, value } => {
            procfs::write(context.proc.as_ref().map(AsFd::as_fd), path, value)
        }
        Step::Attribute(one) => attribute::apply(one, context),
        Step::Stdio { number, .. } if undefended("early-streams") => naive::open_stream(*number),
        Step::Stdio { from, number } => sys::duplicate_to(from.as_fd(), *number),
        Step::SessionKeyring { name, permissions } => sys::join_keyring(name, *permissions),
        Step::ResourceLimit(limit) => sys::set_rlimit(limit),
        Step::Seccomp(filter) => seccomp::load(filter, context.socket),
        Step::BoundingSet(drop) => drop_bounding_set(*drop),
        Step::Ids(ids) => become_user(ids),
        Step::Capabilities(sets) => set_capabilities(sets),
        Step::FindProgram(candidates) => find_program(candidates),
        Step::WorkingDirectory(path) => {
            if !context.is_in_working_directory {
                rustix::process::chdir(path.as_c_str())?;
            }
            match undefended("working-directory") || sys::working_directory_is_inside_root()? {
                true => Ok(()),
                false => Err(Errno::NOENT),
            }
        }
        Step::StayInDirectory => rustix::process::chdir(c"."),
        Step::NoNewPrivileges => sys::process_control(libc::PR_SET_NO_NEW_PRIVS, 1, 0),
        Step::CloseOnExec { .. } if undefended("close-descriptors") => Ok(()),
        Step::CloseOnExec { first, keeps } => {
            sys::close_on_exec_from(*first)?;
            keeps
                .as_ref()
                .map_or(Ok(()), |keeps| close_others(*first, keeps, context))
        }
        // Where we are since the pivot.
        Step::EarlyWorkingDirectory(path) if context.is_at_root && path.as_c_str() == c"/" => {
            context.is_in_working_directory = true;
            Ok(())
        }
        Step::EarlyWorkingDirectory(path) => {
            context.is_in_working_directory = match rustix::process::chdir(path.as_c_str()) {
                Err(Errno::ACCESS | Errno::PERM) => false,
                other => other.map(|()| true)?,
            };
            Ok(())
        }
        Step::AwaitStart { init, listener } => {
            await_start(context, *init, listener.as_ref().map(AsFd::as_fd))
        }
        Step::Execute(execute) => Err(execute_workload(execute)),
    }
}

/// Capability numbers that this kernel knows end with the first EINVAL.
fn drop_bounding_set(drop: u64) -> Result<(), Errno> {
    for capability in 0..64u64 {
        if drop & (1 << capability) == 0 {
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
    if ids.uid != 0 {
        // The permitted set must survive the change of the user; the sets are set right afterwards.
        sys::process_control(libc::PR_SET_KEEPCAPS, 1, 0)?;
    }
    if let Some(groups) = &ids.groups {
        sys::set_groups(groups)?;
    }
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

/// Closes every descriptor from `first` on that is needed no more.
fn close_others(first: u32, keeps: &[RawFd], context: &Context<'_>) -> Result<(), Errno> {
    // More than any plan keeps: hooks that run at the start each have one.
    let mut kept = [RawFd::MAX; 64];
    let own = [&context.proc, &context.landlock];
    let own = own.into_iter().flatten().map(AsRawFd::as_raw_fd);
    let all = keeps.iter().copied().chain(own);
    let mut count = 0;
    for number in all {
        *kept.get_mut(count).ok_or(Errno::MFILE)? = number;
        count += 1;
    }
    kept.sort_unstable();
    let mut next = first;
    for number in kept
        .into_iter()
        .take(count)
        .filter_map(|number| u32::try_from(number).ok())
    {
        if number > next {
            sys::close_range(next, number - 1)?;
        }
        next = next.max(number + 1);
    }
    sys::close_range(next, u32::MAX)
}

fn run_hook(hook: &HookStep, context: &mut Context<'_>) -> Result<(), Errno> {
    context.hook_status = hook::run(hook)?;
    match context.hook_status {
        0 => Ok(()),
        _ => Err(Errno::CANCELED),
    }
}

fn await_start(
    context: &mut Context<'_>,
    init: bool,
    listener: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    if init {
        // Signals stay blocked: init takes over the full mask and loses none.
        sys::keep_on_exec(context.socket)?;
    } else {
        sys::unblock_signals()?;
    }
    rendezvous(context.socket, Record::Ready)?;
    if let Some(listener) = listener {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let starter = retry_on_intr(|| rustix::net::accept_with(listener, flags))?;
        await_word(starter.as_fd())?;
        context.starter = Some(starter);
    }
    Ok(())
}

/// Says where we are and waits for the answer.
fn rendezvous(socket: BorrowedFd<'_>, record: Record) -> Result<(), Errno> {
    rustix::io::write(socket, &record.encode())?;
    await_word(socket)
}

fn await_word(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut word = [0u8; 1];
    match retry_on_intr(|| rustix::io::read(socket, &mut word))? {
        // Whoever was to say it is gone.
        0 => sys::exit_now(127),
        _ => Ok(()),
    }
}

/// Whatever else keeps us from looking may be different for the user: the execution tells.
fn find_program(candidates: &[CString]) -> Result<(), Errno> {
    let is_missing = |path: &CString| {
        let found = rustix::fs::access(path.as_c_str(), rustix::fs::Access::EXISTS);
        matches!(found, Err(Errno::NOENT | Errno::NOTDIR))
    };
    match candidates.iter().all(is_missing) {
        true => Err(Errno::NOENT),
        false => Ok(()),
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
