//! The few system calls that a launch needs and that have no safe wrapper made for the time between clone and exec.
//!
//! They make the call and nothing else: no lock, no allocation, no thread list (the C library's setuid would signal
//! threads that do not exist in the child). All of the crate's unsafe code on the start path is here.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use tepui_isolators::attribute::Scheduler;
use tepui_isolators::launch_info::{CapabilitySets, Rlimit, SeccompFilter};

/// A result whose error is the kernel's number.
pub type Result<T> = std::result::Result<T, Errno>;

fn check(result: i64) -> Result<i64> {
    // `libc::syscall` returns -1 and sets errno, which is thread-local memory: the child has its own copy.
    if result == -1 {
        return Err(Errno::from_raw_os_error(
            std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        ));
    }
    Ok(result)
}

macro_rules! system_call {
    ($reason:literal, $number:expr $(, $argument:expr)* $(,)?) => {{
        // SAFETY: (see the reason at the call) pointers stay valid for the call and have the size the kernel expects.
        check(unsafe { libc::syscall($number $(, $argument)*) })
    }};
}

/// `struct clone_args` of clone3(2), Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which side of a clone we are on.
pub enum Cloned {
    /// The new process.
    Child,
    /// The old one, with a descriptor of the new.
    Parent {
        /// Its process descriptor.
        pidfd: OwnedFd,
    },
}

/// clone3(2): a new process with the namespaces in `flags`, all handled signals reset (ignored ones stay ignored), a
/// process descriptor, and directly in the cgroup v2 directory `cgroup` when there is one.
///
/// The caller must be single-threaded: the child goes on with a copy of this thread alone.
pub fn clone_process(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let (arguments, pidfd) = &mut (CloneArguments::default(), -1);
    match clone_with(arguments, pidfd, flags, libc::SIGCHLD as u64, cgroup)? {
        0 => Ok(Cloned::Child),
        _ => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(*pidfd) };
            Ok(Cloned::Parent { pidfd })
        }
    }
}

fn clone_with(
    arguments: &mut CloneArguments,
    pidfd: &mut RawFd,
    flags: u64,
    exit_signal: u64,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<i64> {
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    *arguments = CloneArguments {
        flags: flags | CLONE_CLEAR_SIGHAND | libc::CLONE_PIDFD as u64,
        pidfd: std::ptr::from_mut(pidfd) as u64,
        exit_signal,
        ..CloneArguments::default()
    };
    if let Some(directory) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = directory.as_raw_fd() as u64;
    }
    let size = size_of::<CloneArguments>();
    system_call!(
        "own struct",
        libc::SYS_clone3,
        std::ptr::from_mut(arguments),
        size
    )
}

/// clone3(2): a helper that shares our descriptors and shall exit at once.
///
/// The caller must be single-threaded.
pub fn clone_helper() -> Result<Cloned> {
    clone_process(libc::CLONE_FILES as u64, None)
}

/// clone(2): a new process with a descriptor and nothing else of its own, by the older call. Profiles refuse clone3(2),
/// whose flags they cannot see.
///
/// The caller must be single-threaded.
pub fn clone_plainly() -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
    let none = std::ptr::null::<u8>();
    match system_call!(
        "own variable",
        libc::SYS_clone,
        flags,
        none,
        &raw mut pidfd,
        0,
        0
    )? {
        0 => Ok(Cloned::Child),
        _ => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pidfd })
        }
    }
}

/// Which side of a helper's clone we are on.
pub enum Sibling {
    /// The new process, a child of the helper's parent.
    Child,
    /// The helper; the new process' descriptor is open in the table that it shares with its parent.
    Helper {
        /// Its number.
        pidfd: RawFd,
    },
}

/// clone3(2) as [`clone_process`] does it, but the new process is a child of our parent (CLONE_PARENT).
pub fn clone_sibling(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Sibling> {
    let (arguments, pidfd) = &mut (CloneArguments::default(), -1);
    match clone_with(
        arguments,
        pidfd,
        flags | libc::CLONE_PARENT as u64,
        0,
        cgroup,
    )? {
        0 => Ok(Sibling::Child),
        _ => Ok(Sibling::Helper { pidfd: *pidfd }),
    }
}

/// setns(2) of any namespace.
pub fn enter_namespace(namespace: BorrowedFd<'_>) -> Result<()> {
    system_call!("no pointers", libc::SYS_setns, namespace.as_raw_fd(), 0)?;
    Ok(())
}

/// `struct mount_attr` of mount_setattr(2), Linux 5.12.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// mount_setattr(2) on the mount behind a descriptor: clears, then sets `MOUNT_ATTR_*`, there alone or on all mounts
/// below too.
pub fn change_mount_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    recursive: bool,
) -> Result<()> {
    let attributes = MountAttributes {
        set,
        clear: access_time_too(set, clear),
        propagation: 0,
        userns: 0,
    };
    change_mount(mount, &attributes, recursive)
}

/// Sets `MOUNT_ATTR_*`, see [`change_mount_attributes`].
pub fn set_mount_attributes(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> Result<()> {
    change_mount_attributes(mount, set, 0, recursive)
}

/// mount_setattr(2) with MOUNT_ATTR_IDMAP (5.12): the maps of a user namespace for the owners of the files.
pub fn set_mount_id_map(
    mount: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
    recursive: bool,
) -> Result<()> {
    let attributes = MountAttributes {
        set: libc::MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        userns: namespace.as_raw_fd() as u64,
    };
    change_mount(mount, &attributes, recursive)
}

/// mount_setattr(2) on the mount behind a descriptor: its propagation, `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or
/// `MS_UNBINDABLE`, with `MS_REC` for all mounts below too.
pub fn set_mount_propagation(mount: BorrowedFd<'_>, propagation: u64) -> Result<()> {
    let propagation_only = propagation & !libc::MS_REC;
    let attributes = MountAttributes {
        set: 0,
        clear: 0,
        propagation: propagation_only,
        userns: 0,
    };
    change_mount(mount, &attributes, propagation & libc::MS_REC != 0)
}

/// Sets and clears `MOUNT_ATTR_*` of a mount and all below it, and makes them slaves, at once.
pub fn enslave_mounts(mount: BorrowedFd<'_>, set: u64, clear: u64) -> Result<()> {
    let attributes = MountAttributes {
        set,
        clear: access_time_too(set, clear),
        propagation: libc::MS_SLAVE,
        userns: 0,
    };
    change_mount(mount, &attributes, true)
}

/// The access-time modes are one field: setting one needs the whole field cleared.
fn access_time_too(set: u64, clear: u64) -> u64 {
    match set & libc::MOUNT_ATTR__ATIME {
        0 => clear,
        _ => clear | libc::MOUNT_ATTR__ATIME,
    }
}

/// open_tree_attr(2), Linux 6.15: a detached copy of the tree at a place, read-only.
pub fn open_readonly_tree(place: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SYS_OPEN_TREE_ATTR: libc::c_long = 467;
    let attributes = MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as u32;
    let tree = system_call!(
        "own struct",
        SYS_OPEN_TREE_ATTR,
        place.as_raw_fd(),
        c"".as_ptr(),
        flags,
        &raw const attributes,
        size_of::<MountAttributes>()
    )?;
    Ok(adopt_descriptor(tree as RawFd))
}

fn change_mount(
    mount: BorrowedFd<'_>,
    attributes: &MountAttributes,
    recursive: bool,
) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    system_call!(
        "own struct",
        libc::SYS_mount_setattr,
        mount.as_raw_fd(),
        c"".as_ptr(),
        flags,
        std::ptr::from_ref(attributes),
        size_of::<MountAttributes>()
    )?;
    Ok(())
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC (5.11): marks every descriptor from `first` on.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    system_call!(
        "no pointers",
        libc::SYS_close_range,
        first,
        u32::MAX,
        CLOSE_RANGE_CLOEXEC
    )?;
    Ok(())
}

/// close_range(2) of the descriptors from `first` to `last`, which others in this process may still count as theirs: only
/// for a child that is about to execute.
pub fn close_range(first: u32, last: u32) -> Result<()> {
    system_call!("no pointers", libc::SYS_close_range, first, last, 0)?;
    Ok(())
}

/// Clears the close-on-exec mark of one descriptor.
pub fn keep_on_exec(descriptor: BorrowedFd<'_>) -> Result<()> {
    system_call!(
        "no pointers",
        libc::SYS_fcntl,
        descriptor.as_raw_fd(),
        libc::F_SETFD,
        0
    )?;
    Ok(())
}

/// dup2(2) of `from` to the standard descriptor `to`.
pub fn duplicate_to(from: BorrowedFd<'_>, to: RawFd) -> Result<()> {
    system_call!("no pointers", libc::SYS_dup3, from.as_raw_fd(), to, 0)?;
    Ok(())
}

/// seccomp(2), SECCOMP_SET_MODE_FILTER; the listener, when the filter has one.
pub fn set_seccomp_filter(filter: &SeccompFilter) -> Result<Option<OwnedFd>> {
    let program = libc::sock_fprog {
        len: filter.program.len() as u16,
        filter: filter.program.as_ptr().cast_mut(),
    };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    let result = system_call!(
        "the kernel only reads it",
        libc::SYS_seccomp,
        operation,
        filter.flags,
        &raw const program
    )?;
    if filter.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(result as RawFd) }))
}

/// prctl(2) with number arguments.
pub fn process_control(option: i32, a: u64, b: u64) -> Result<()> {
    system_call!("no pointers", libc::SYS_prctl, option, a, b, 0, 0)?;
    Ok(())
}

/// setgroups(2) of this thread.
pub fn set_groups(groups: &[u32]) -> Result<()> {
    system_call!(
        "length and array agree",
        libc::SYS_setgroups,
        groups.len(),
        groups.as_ptr()
    )?;
    Ok(())
}

/// setresgid(2) and setresuid(2) of this thread, all three ids at once.
pub fn set_gid(gid: u32) -> Result<()> {
    system_call!("no pointers", libc::SYS_setresgid, gid, gid, gid)?;
    Ok(())
}

/// See [`set_gid`].
pub fn set_uid(uid: u32) -> Result<()> {
    system_call!("no pointers", libc::SYS_setresuid, uid, uid, uid)?;
    Ok(())
}

/// capset(2) of this thread, version 3 (64 bits in two halves).
pub fn set_capabilities(sets: &CapabilitySets) -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let low = |set: u64| set as u32;
    let high = |set: u64| (set >> 32) as u32;
    let data: [[u32; 3]; 2] = [
        [
            low(sets.effective),
            low(sets.permitted),
            low(sets.inheritable),
        ],
        [
            high(sets.effective),
            high(sets.permitted),
            high(sets.inheritable),
        ],
    ];
    system_call!(
        "the kernel only reads them",
        libc::SYS_capset,
        header.as_ptr(),
        data.as_ptr()
    )?;
    Ok(())
}

/// prlimit(2) of this process.
pub fn set_rlimit(limit: &Rlimit) -> Result<()> {
    let values = [limit.soft, limit.hard];
    system_call!(
        "the kernel only reads it",
        libc::SYS_prlimit64,
        0,
        limit.resource,
        values.as_ptr(),
        std::ptr::null::<u64>()
    )?;
    Ok(())
}

/// umask(2).
pub fn set_umask(mask: u32) {
    // It cannot fail; the old mask is of no interest.
    let _ = system_call!("no pointers", libc::SYS_umask, mask);
}

/// personality(2) of this process.
pub fn set_personality(domain: u64) -> Result<()> {
    system_call!("no pointers", libc::SYS_personality, domain)?;
    Ok(())
}

/// unshare(2) of the cgroup namespace.
pub fn unshare_cgroup_namespace() -> Result<()> {
    system_call!("no pointers", libc::SYS_unshare, libc::CLONE_NEWCGROUP)?;
    Ok(())
}

/// rt_sigaction(2): the default action for one signal.
pub fn default_signal(signal: i32) -> Result<()> {
    set_action(signal, libc::SIG_DFL)
}

/// rt_sigaction(2): one signal is ignored.
pub fn ignore_signal(signal: i32) -> Result<()> {
    set_action(signal, libc::SIG_IGN)
}

fn set_action(signal: i32, handler: libc::sighandler_t) -> Result<()> {
    // The kernel's own struct: handler, flags, restorer, mask.
    let action = [handler as u64, 0, 0, 0];
    system_call!(
        "32 bytes, as the kernel's struct sigaction",
        libc::SYS_rt_sigaction,
        signal,
        action.as_ptr(),
        std::ptr::null::<u64>(),
        size_of::<u64>()
    )?;
    Ok(())
}

/// rt_sigaction(2): the signal ends this process, as it does without a handler, but also where it is the first of a pid
/// namespace (pid_namespaces(7)). execve(2) puts the default back.
pub fn end_on_signal(signal: i32) -> Result<()> {
    const SA_RESTORER: u64 = 0x0400_0000;
    extern "C" fn end(signal: i32) {
        exit_now(128 + signal)
    }
    let handler = end as extern "C" fn(i32) as usize as u64;
    // Some kernels want a place to return to, and the handler never returns.
    let action = [handler, SA_RESTORER, handler, 0];
    system_call!(
        "32 bytes, as the kernel's struct sigaction; the handler is a function that touches nothing",
        libc::SYS_rt_sigaction,
        signal,
        action.as_ptr(),
        std::ptr::null::<u64>(),
        size_of::<u64>()
    )?;
    Ok(())
}

/// Closes descriptors, those with numbers in a row at once (close_range(2), 5.9).
pub fn close_all(mut descriptors: Vec<OwnedFd>) {
    descriptors.sort_unstable_by_key(AsRawFd::as_raw_fd);
    let mut numbers = descriptors
        .into_iter()
        .map(IntoRawFd::into_raw_fd)
        .peekable();
    while let Some(first) = numbers.next() {
        let mut last = first;
        while let Some(next) = numbers.next_if_eq(&(last + 1)) {
            last = next;
        }
        // It cannot fail: all of them are open and ours.
        let _ = system_call!("no pointers", libc::SYS_close_range, first, last, 0);
    }
}

/// close(2) of a descriptor that somebody else in this process still counts as his: only for a child that is about to
/// execute.
pub fn close_in_child(descriptor: BorrowedFd<'_>) -> Result<()> {
    system_call!("no pointers", libc::SYS_close, descriptor.as_raw_fd())?;
    Ok(())
}

/// pidfd_send_signal(2), real-time signals included.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let information = std::ptr::null::<libc::siginfo_t>();
    system_call!(
        "no information is passed",
        libc::SYS_pidfd_send_signal,
        pidfd.as_raw_fd(),
        signal,
        information,
        0
    )?;
    Ok(())
}

/// Empties this thread's signal mask.
pub fn unblock_signals() -> Result<()> {
    let none: u64 = 0;
    let set = libc::SIG_SETMASK;
    system_call!(
        "the kernel only reads it",
        libc::SYS_rt_sigprocmask,
        set,
        &raw const none,
        std::ptr::null::<u64>(),
        size_of::<u64>()
    )?;
    Ok(())
}

/// Blocks every signal; the returned mask is the one before.
pub fn block_signals() -> Result<u64> {
    let all: u64 = u64::MAX;
    let mut before: u64 = 0;
    let set = libc::SIG_SETMASK;
    system_call!(
        "both are 8 bytes",
        libc::SYS_rt_sigprocmask,
        set,
        &raw const all,
        &raw mut before,
        size_of::<u64>()
    )?;
    Ok(before)
}

/// Restores a mask from [`block_signals`].
pub fn restore_signals(mask: u64) -> Result<()> {
    let set = libc::SIG_SETMASK;
    system_call!(
        "the kernel only reads it",
        libc::SYS_rt_sigprocmask,
        set,
        &raw const mask,
        std::ptr::null::<u64>(),
        size_of::<u64>()
    )?;
    Ok(())
}

/// Whether the working directory can be reached from the root directory: getcwd(2) of the kernel says
/// `(unreachable)` where it cannot, which is how a leaked descriptor of the host shows (CVE-2024-21626).
pub fn working_directory_is_inside_root() -> Result<bool> {
    let mut buffer = [0u8; 4096];
    system_call!(
        "buffer and length agree",
        libc::SYS_getcwd,
        buffer.as_mut_ptr(),
        buffer.len()
    )?;
    Ok(buffer[0] == b'/')
}

/// Sets the interface `lo` of the current network namespace up.
pub fn loopback_up() -> Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // `struct ifreq`: 16 bytes of name, then a union of 24 bytes whose first two are the flags.
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: 0,
        rest: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    request.flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    system_call!(
        "own struct",
        libc::SYS_ioctl,
        socket.as_raw_fd(),
        libc::SIOCSIFFLAGS,
        &raw mut request
    )?;
    // execve(2) closes it.
    let _ = socket.into_raw_fd();
    Ok(())
}

/// Strings for execve(2), with the pointers that it wants, made before the clone.
#[derive(Debug)]
pub struct StringArray {
    strings: Vec<std::ffi::CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    /// Takes the strings and lays out their pointers, with the null pointer at the end.
    pub fn new(strings: Vec<std::ffi::CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        Self { strings, pointers }
    }

    /// The strings.
    pub fn strings(&self) -> &[std::ffi::CString] {
        &self.strings
    }
}

/// execve(2). Returns only after a failure.
pub fn execute(path: &CStr, arguments: &StringArray, environment: &StringArray) -> Errno {
    let (argv, envp) = (arguments.pointers.as_ptr(), environment.pointers.as_ptr());
    match system_call!(
        "arrays end with null",
        libc::SYS_execve,
        path.as_ptr(),
        argv,
        envp
    ) {
        Ok(_) => Errno::IO,
        Err(errno) => errno,
    }
}

/// execveat(2) of the file behind a descriptor. Returns only after a failure.
pub fn execute_descriptor(
    file: BorrowedFd<'_>,
    arguments: &StringArray,
    environment: &StringArray,
) -> Errno {
    let (argv, envp) = (arguments.pointers.as_ptr(), environment.pointers.as_ptr());
    let flags = libc::AT_EMPTY_PATH;
    match system_call!(
        "arrays end with null",
        libc::SYS_execveat,
        file.as_raw_fd(),
        c"".as_ptr(),
        argv,
        envp,
        flags
    ) {
        Ok(_) => Errno::IO,
        Err(errno) => errno,
    }
}

/// Ends the child without running anything of the parent's (exit handlers, destructors, flushes).
pub fn exit_now(status: i32) -> ! {
    loop {
        let _ = system_call!("no pointers", libc::SYS_exit_group, status);
    }
}

/// Puts a descriptor of ours beside a number that came through a socket or the environment.
pub fn adopt_descriptor(number: RawFd) -> OwnedFd {
    // SAFETY: the caller was told that this number is its own, at start, before anything else was opened.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// ioctl(2) TIOCSPTLCK: lets the other end of a terminal be opened.
pub fn unlock_terminal(master: BorrowedFd<'_>) -> Result<()> {
    let unlocked: i32 = 0;
    let request = libc::TIOCSPTLCK;
    system_call!(
        "the kernel only reads it",
        libc::SYS_ioctl,
        master.as_raw_fd(),
        request,
        &raw const unlocked
    )?;
    Ok(())
}

/// Lets a terminal hand on line ends as they are: without ONLCR (termios(3)) `\\n` stays `\\n`.
pub fn keep_line_ends(master: BorrowedFd<'_>) -> Result<()> {
    // The kernel's `struct termios` of TCGETS: four flags, a line discipline and 19 control characters.
    let mut modes = [0u32; 16];
    let fd = master.as_raw_fd();
    system_call!(
        "room for 36 bytes",
        libc::SYS_ioctl,
        fd,
        libc::TCGETS,
        modes.as_mut_ptr()
    )?;
    modes[1] &= !libc::ONLCR;
    system_call!(
        "the kernel only reads it",
        libc::SYS_ioctl,
        fd,
        libc::TCSETS,
        modes.as_ptr()
    )?;
    Ok(())
}

/// ioctl(2) TIOCGPTPEER (Linux 4.13): the other end of a terminal, without looking up its name.
pub fn terminal_peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let number = system_call!(
        "no pointers",
        libc::SYS_ioctl,
        master.as_raw_fd(),
        libc::TIOCGPTPEER,
        flags
    )?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// ioctl(2) TIOCSWINSZ: rows and columns of a terminal.
pub fn set_terminal_size(master: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<()> {
    let size = [rows, columns, 0, 0];
    system_call!(
        "struct winsize",
        libc::SYS_ioctl,
        master.as_raw_fd(),
        libc::TIOCSWINSZ,
        size.as_ptr()
    )?;
    Ok(())
}

/// ioctl(2) TIOCSCTTY: the terminal becomes that of this session.
pub fn make_controlling_terminal(peer: BorrowedFd<'_>) -> Result<()> {
    system_call!(
        "no pointers",
        libc::SYS_ioctl,
        peer.as_raw_fd(),
        libc::TIOCSCTTY,
        0
    )?;
    Ok(())
}

/// unshare(2) of the time namespace: for children, and for whoever enters it.
pub fn unshare_time_namespace() -> Result<()> {
    const CLONE_NEWTIME: i32 = 0x80;
    system_call!("no pointers", libc::SYS_unshare, CLONE_NEWTIME)?;
    Ok(())
}

/// sched_setaffinity(2) of this thread; the kernel leaves out the CPUs that there are not.
pub fn set_affinity(cpus: &[u64]) -> Result<()> {
    system_call!(
        "length and array agree",
        libc::SYS_sched_setaffinity,
        0,
        size_of_val(cpus),
        cpus.as_ptr()
    )?;
    Ok(())
}

/// sched_setattr(2) of this thread.
pub fn set_scheduler(scheduler: &Scheduler) -> Result<()> {
    /// `struct sched_attr` of Linux 5.3, with the two values of utilisation clamping at the end.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
        utilization: [u32; 2],
    }
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
        utilization: [0; 2],
    };
    system_call!(
        "own struct, which says its size",
        libc::SYS_sched_setattr,
        0,
        &raw const attributes,
        0
    )?;
    Ok(())
}

/// ioprio_set(2) of this thread: class and level in one number.
pub fn set_io_priority(number: u16) -> Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    system_call!(
        "no pointers",
        libc::SYS_ioprio_set,
        IOPRIO_WHO_PROCESS,
        0,
        i32::from(number)
    )?;
    Ok(())
}

/// set_mempolicy(2) of this thread.
pub fn set_memory_policy(mode: i32, nodes: &[u64]) -> Result<()> {
    let (mask, bits) = match nodes {
        [] => (std::ptr::null(), 0),
        // The kernel takes one bit less than it is told.
        nodes => (nodes.as_ptr(), nodes.len() * u64::BITS as usize + 1),
    };
    system_call!(
        "length and array agree",
        libc::SYS_set_mempolicy,
        mode,
        mask,
        bits
    )?;
    Ok(())
}

/// keyctl(2): joins the session keyring of this name, made if need be, and adds `permissions` to what the kernel gives
/// a new one; without them it stays as it is. A kernel without keyrings has none to protect.
pub fn join_keyring(name: &CStr, permissions: Option<u32>) -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    const KEYCTL_SETPERM: i32 = 5;
    /// The possessor everything, the user view, read and link: what join_session_keyring of the kernel gives.
    const NEW: u32 = 0x3f13_0000;
    let joined = system_call!(
        "ends with NUL",
        libc::SYS_keyctl,
        KEYCTL_JOIN_SESSION_KEYRING,
        name.as_ptr()
    );
    let serial = match joined {
        Err(Errno::NOSYS) => return Ok(()),
        other => other?,
    };
    let Some(permissions) = permissions else {
        return Ok(());
    };
    system_call!(
        "no pointers",
        libc::SYS_keyctl,
        KEYCTL_SETPERM,
        serial,
        NEW | permissions
    )?;
    Ok(())
}

/// landlock_create_ruleset(2).
pub fn landlock_ruleset(files: u64, network: u64, scoped: u64) -> Result<OwnedFd> {
    // `struct landlock_ruleset_attr` of version 6; an older kernel takes it as long as what it does not know is zero.
    let attributes = [files, network, scoped];
    let ruleset = system_call!(
        "length and array agree",
        libc::SYS_landlock_create_ruleset,
        attributes.as_ptr(),
        size_of_val(&attributes),
        0
    )?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(ruleset as RawFd) })
}

/// landlock_add_rule(2), LANDLOCK_RULE_PATH_BENEATH.
pub fn landlock_path(ruleset: BorrowedFd<'_>, place: BorrowedFd<'_>, access: u64) -> Result<()> {
    #[repr(C, packed)]
    struct PathBeneath {
        access: u64,
        parent: RawFd,
    }
    let rule = PathBeneath {
        access,
        parent: place.as_raw_fd(),
    };
    add_landlock_rule(ruleset, 1, (&raw const rule).cast())
}

/// landlock_add_rule(2), LANDLOCK_RULE_NET_PORT.
pub fn landlock_port(ruleset: BorrowedFd<'_>, port: u16, access: u64) -> Result<()> {
    let rule = [access, u64::from(port)];
    add_landlock_rule(ruleset, 2, rule.as_ptr().cast())
}

fn add_landlock_rule(ruleset: BorrowedFd<'_>, kind: i32, rule: *const u8) -> Result<()> {
    system_call!(
        "the two callers pass the struct of their kind",
        libc::SYS_landlock_add_rule,
        ruleset.as_raw_fd(),
        kind,
        rule,
        0
    )?;
    Ok(())
}

/// landlock_restrict_self(2).
pub fn landlock_restrict(ruleset: BorrowedFd<'_>, flags: u32) -> Result<()> {
    system_call!(
        "no pointers",
        libc::SYS_landlock_restrict_self,
        ruleset.as_raw_fd(),
        flags
    )?;
    Ok(())
}
