//! System calls without a safe wrapper: ptrace(2), seccomp(2), and what asks the kernel for attributes of a process. The only unsafe
//! code of this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_long, c_uint, pid_t, sock_filter};

use crate::attribute::Scheduler;

/// `PTRACE_SECCOMP_GET_FILTER` of linux/ptrace.h (4.4, with CONFIG_CHECKPOINT_RESTORE).
const PTRACE_SECCOMP_GET_FILTER: c_uint = 0x420c;

/// Begins to trace a thread without stopping it.
pub fn seize(tid: pid_t) -> io::Result<()> {
    plain(libc::PTRACE_SEIZE, tid, 0)
}

/// Asks a seized thread to stop.
pub fn interrupt(tid: pid_t) -> io::Result<()> {
    plain(libc::PTRACE_INTERRUPT, tid, 0)
}

/// Ends the tracing of a stopped thread, which goes on with `signal` (0: none).
pub fn detach(tid: pid_t, signal: c_int) -> io::Result<()> {
    plain(libc::PTRACE_DETACH, tid, c_long::from(signal))
}

fn plain(request: c_uint, tid: pid_t, data: c_long) -> io::Result<()> {
    // SAFETY: these requests ignore the address and take `data` as a number, so no memory is touched.
    let result = unsafe { libc::ptrace(request, tid, 0 as c_long, data) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The wait status of a thread that this thread traces, if it has one now.
pub fn try_wait(tid: pid_t) -> io::Result<Option<c_int>> {
    let mut status = 0;
    let options = libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: `status` is a valid place for the one int that waitpid(2) writes.
    let result = unsafe { libc::waitpid(tid, &raw mut status, options) };
    match result {
        0 => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(Some(status)),
    }
}

/// The seccomp program number `index` of a stopped thread, 0 the newest; `None` past the last.
pub fn seccomp_filter(tid: pid_t, index: usize) -> io::Result<Option<Vec<sock_filter>>> {
    let absent = |e: io::Error| match e.raw_os_error() {
        Some(libc::ENOENT) => Ok(None),
        _ => Err(e),
    };
    // SAFETY: with a null pointer the kernel only answers with the length.
    let length = unsafe {
        libc::ptrace(
            PTRACE_SECCOMP_GET_FILTER,
            tid,
            index,
            std::ptr::null_mut::<sock_filter>(),
        )
    };
    let Ok(length) = usize::try_from(length) else {
        return absent(io::Error::last_os_error());
    };
    let mut program = vec![
        sock_filter {
            code: 0,
            jt: 0,
            jf: 0,
            k: 0
        };
        length
    ];
    // SAFETY: `program` has room for `length` instructions. The target is stopped, so that its chain of filters can
    // neither grow nor shrink, and the kernel writes as many as it just said.
    let copied =
        unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr()) };
    if copied < 0 {
        absent(io::Error::last_os_error())
    } else {
        Ok(Some(program))
    }
}

/// Of which type a namespace is, as a flag of clone(2): ioctl_ns(2) NS_GET_NSTYPE. The descriptor must be one of nsfs.
pub fn namespace_type(namespace: BorrowedFd<'_>) -> io::Result<u32> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this request takes no argument, so no memory is touched.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE as _) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether seccomp(2) takes all of these `SECCOMP_FILTER_FLAG_*`. Asked with a null pointer, so that nothing is loaded:
/// a kernel that knows the flags gets as far as reading the program.
pub fn takes_seccomp_flags(flags: u64) -> bool {
    let program = std::ptr::null::<libc::sock_fprog>();
    let (call, mode) = (libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER);
    // SAFETY: the kernel answers EFAULT to a null pointer, before it changes anything.
    let result = unsafe { libc::syscall(call, mode, flags, program) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// `struct sched_attr` in its first version, 48 bytes.
#[repr(C)]
#[derive(Default)]
struct SchedulerAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The scheduler of a process: sched_getattr(2).
pub fn scheduler(pid: u32) -> io::Result<Scheduler> {
    let mut found = SchedulerAttributes::default();
    let size = size_of::<SchedulerAttributes>();
    // SAFETY: `found` is valid for the `size` bytes that the kernel writes at most.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, pid, &raw mut found, size, 0) };
    match result {
        0 => Ok(Scheduler {
            policy: found.policy,
            flags: found.flags,
            nice: found.nice,
            priority: found.priority,
            runtime: found.runtime,
            deadline: found.deadline,
            period: found.period,
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The I/O priority of a process, class and level in one number: ioprio_get(2).
pub fn io_priority(pid: u32) -> io::Result<u16> {
    const IOPRIO_WHO_PROCESS: c_int = 1;
    // SAFETY: the call takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, pid) };
    u16::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The version of Landlock that this kernel has: landlock_create_ruleset(2).
pub fn landlock_version() -> io::Result<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let nothing = std::ptr::null::<u8>();
    let flags = LANDLOCK_CREATE_RULESET_VERSION;
    // SAFETY: with this flag there is no ruleset to read, and the pointer has to be null.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, flags) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}
