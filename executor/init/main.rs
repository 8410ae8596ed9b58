//! Process 1 of a Mesos task: starts the workload, forwards signals to it, reaps what is orphaned, ends as it did.
//!
//! Without it the workload would be process 1, which ignores every signal that it has no handler for (pid_namespaces(7)),
//! and each kill would take the whole grace period. It has no allocator and no C library, so that it costs a few
//! pages per task. It is compiled by the build script, carried inside the main program and executed from a sealed
//! descriptor. It runs under the task's own limits: capabilities, user, seccomp.
//!
//! Arguments: the number of the socket to the launcher, the program (searched in `PATH` when it has no slash), then
//! the workload's argument vector. On the socket it writes records of two 32-bit numbers, kind and value:
//! 1 = the workload was executed, 2 = execve(2) failed with errno, 3 = it ended with this wait status.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the init of tasks is written for x86_64");

global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "mov %rsp, %rdi",
    "and $-16, %rsp",
    "call {start}",
    "ud2",
    start = sym start,
    options(att_syntax)
);

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const SYS_WRITE: usize = 1;
const SYS_RT_SIGPROCMASK: usize = 14;
const SYS_VFORK: usize = 58;
const SYS_EXECVE: usize = 59;
const SYS_WAIT4: usize = 61;
const SYS_KILL: usize = 62;
const SYS_FCNTL: usize = 72;
const SYS_RT_SIGTIMEDWAIT: usize = 128;
const SYS_PRCTL: usize = 157;
const SYS_EXIT_GROUP: usize = 231;

const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EACCES: i32 = 13;
const ENOTDIR: i32 = 20;
const ENAMETOOLONG: i32 = 36;

const SIGCHLD: i32 = 17;
const WNOHANG: usize = 1;
const PR_SET_DUMPABLE: usize = 4;
const F_SETFD: usize = 2;
const FD_CLOEXEC: usize = 1;

const EXECUTED: u32 = 1;
const EXEC_FAILED: u32 = 2;
const ENDED: u32 = 3;

/// A system call; negative results are `-errno`.
fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: every caller passes pointers to live memory of the size that the call documents.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

fn exit(status: i32) -> ! {
    loop {
        call(SYS_EXIT_GROUP, status as usize, 0, 0, 0);
    }
}

fn report(socket: usize, kind: u32, value: i32) {
    let record = [kind, value as u32];
    // The launcher may be gone; then the kernel ends us in a moment.
    call(SYS_WRITE, socket, record.as_ptr() as usize, 8, 0);
}

/// A string of the argument or environment vector, without its end mark.
///
/// # Safety
/// `text` points at a NUL-terminated string that lives as long as the process.
unsafe fn bytes(text: *const u8) -> &'static [u8] {
    let mut length = 0;
    // SAFETY: the string ends with NUL, says the caller. Volatile keeps the compiler from calling strlen(3).
    unsafe {
        while core::ptr::read_volatile(text.add(length)) != 0 {
            length += 1;
        }
        core::slice::from_raw_parts(text, length)
    }
}

/// What the new process needs; it shares our memory until it executes (vfork(2)).
struct Workload {
    program: *const u8,
    arguments: *const *const u8,
    environment: *const *const u8,
    path: &'static [u8],
    /// errno of the last attempt, written by the new process.
    failure: i32,
}

/// Copies `from` into `to` at `at`; `None` when it does not fit.
fn put(to: &mut [u8], at: usize, from: &[u8]) -> Option<usize> {
    let end = at.checked_add(from.len())?;
    let mut slot = to.get_mut(at..end)?.iter_mut();
    for byte in from {
        *slot.next()? = *byte;
    }
    Some(end)
}

/// execve(2) with a search of `PATH` as execvp(3) does it. Returns only after a failure, with errno.
fn execute(workload: &Workload) -> i32 {
    // SAFETY: argument strings of the process live as long as it does.
    let name = unsafe { bytes(workload.program) };
    let attempt = |path: *const u8| {
        -call(
            SYS_EXECVE,
            path as usize,
            workload.arguments as usize,
            workload.environment as usize,
            0,
        ) as i32
    };
    if name.contains(&b'/') {
        return attempt(workload.program);
    }
    let mut failure = ENOENT;
    for directory in workload.path.split(|byte| *byte == b':') {
        let directory: &[u8] = if directory.is_empty() {
            b"."
        } else {
            directory
        };
        let mut path = [0u8; 4096];
        let length = put(&mut path, 0, directory)
            .and_then(|end| put(&mut path, end, b"/"))
            .and_then(|end| put(&mut path, end, name))
            .and_then(|end| put(&mut path, end, b"\0"));
        let error = if length.is_some() {
            attempt(path.as_ptr())
        } else {
            ENAMETOOLONG
        };
        match error {
            ENOENT | ENOTDIR => {}
            EACCES => failure = EACCES,
            other => return other,
        }
    }
    failure
}

extern "C" fn workload_main(workload: *mut Workload) -> ! {
    let none: u64 = 0;
    call(SYS_RT_SIGPROCMASK, 2, &raw const none as usize, 0, 8);
    // SAFETY: our parent is suspended and keeps its `Workload` on its stack until we execute or exit.
    let workload = unsafe { &mut *workload };
    workload.failure = execute(workload);
    exit(127)
}

/// Room for the new process until it executes: the path buffer above and a few frames.
#[repr(align(16))]
struct Stack([u8; 16384]);

/// Starts the workload and waits until it was executed or failed to. The process id, or a negative errno.
fn spawn(workload: &mut Workload, stack: &mut Stack) -> isize {
    let top = stack.0.as_mut_ptr() as usize + stack.0.len();
    let result: isize;
    // SAFETY: the new process leaves our stack at once for its own and never returns from `workload_main`; we are
    // suspended for as long as it uses our memory (vfork(2)). vfork and not clone: profiles look at clone's flags.
    unsafe {
        asm!(
            "syscall",
            "test %rax, %rax",
            "jnz 2f",
            "mov %r14, %rsp",
            "xor %ebp, %ebp",
            "mov %r12, %rdi",
            "call *%r13",
            "ud2",
            "2:",
            inlateout("rax") SYS_VFORK as isize => result,
            in("r12") workload as *mut Workload,
            in("r13") workload_main as *const (),
            in("r14") top,
            lateout("rcx") _, lateout("r11") _,
            options(att_syntax)
        );
    }
    result
}

/// Exit status as a shell shows a wait status.
fn exit_status(status: i32) -> i32 {
    match status & 0x7f {
        0 => (status >> 8) & 0xff,
        signal => 128 + signal,
    }
}

fn environment_path(mut variable: *const *const u8) -> &'static [u8] {
    // SAFETY: the environment vector ends with a null pointer.
    unsafe {
        while !(*variable).is_null() {
            if let Some(value) = bytes(*variable).strip_prefix(b"PATH=") {
                return value;
            }
            variable = variable.add(1);
        }
    }
    DEFAULT_PATH
}

fn number(text: &[u8]) -> usize {
    text.iter().fold(0, |sum: usize, digit| {
        sum.wrapping_mul(10)
            .wrapping_add(digit.wrapping_sub(b'0') as usize)
    })
}

extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: at entry the stack holds argc, argv, a null pointer, the environment (System V ABI, x86-64).
    let (count, arguments) = unsafe { (*stack, stack.add(1) as *const *const u8) };
    if count < 4 {
        exit(125);
    }
    // SAFETY: there are at least four arguments, and the environment follows the null pointer after the last.
    let (socket, program, rest, environment) = unsafe {
        (
            number(bytes(*arguments.add(1))),
            *arguments.add(2),
            arguments.add(3),
            arguments.add(count + 1),
        )
    };
    // Nobody in the container may look into us or take our socket (ptrace(2), pidfd_getfd(2)).
    call(SYS_PRCTL, PR_SET_DUMPABLE, 0, 0, 0);
    call(SYS_FCNTL, socket, F_SETFD, FD_CLOEXEC, 0);
    // All signals stay blocked for us; they are taken with rt_sigtimedwait.
    let all: u64 = u64::MAX;
    call(SYS_RT_SIGPROCMASK, 2, &raw const all as usize, 0, 8);

    let mut workload = Workload {
        program,
        arguments: rest,
        environment,
        path: environment_path(environment),
        failure: 0,
    };
    let mut memory = Stack([0; 16384]);
    let child = spawn(&mut workload, &mut memory);
    // SAFETY: the new process wrote it while we were suspended; volatile, since the compiler cannot see that.
    let failure = unsafe { core::ptr::read_volatile(&raw const workload.failure) };
    if child < 0 || failure != 0 {
        report(
            socket,
            EXEC_FAILED,
            if child < 0 { -child as i32 } else { failure },
        );
        exit(127);
    }
    report(socket, EXECUTED, 0);
    supervise(socket, child)
}

fn supervise(socket: usize, child: isize) -> ! {
    let all: u64 = u64::MAX;
    loop {
        let signal = call(SYS_RT_SIGTIMEDWAIT, &raw const all as usize, 0, 0, 8) as i32;
        if signal == SIGCHLD {
            reap(socket, child);
        } else if signal > 0 {
            call(SYS_KILL, child as usize, signal as usize, 0, 0);
        } else if signal != -EINTR {
            // Without signals we can do no more than wait.
            reap_blocking(socket, child);
        }
    }
}

fn reap(socket: usize, child: isize) {
    loop {
        let mut status: i32 = 0;
        let pid = call(SYS_WAIT4, usize::MAX, &raw mut status as usize, WNOHANG, 0);
        if pid == child {
            end(socket, status);
        }
        if pid <= 0 {
            return;
        }
    }
}

fn reap_blocking(socket: usize, child: isize) {
    let mut status: i32 = 0;
    if call(SYS_WAIT4, usize::MAX, &raw mut status as usize, 0, 0) == child {
        end(socket, status);
    }
}

fn end(socket: usize, status: i32) -> ! {
    report(socket, ENDED, status);
    exit(exit_status(status))
}

/// The compiler calls this for copies; there is no C library to have it.
///
/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the regions are valid for `length` bytes, says the caller.
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack));
    }
    to
}

/// The compiler calls this to clear memory.
///
/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, length: usize) -> *mut u8 {
    // SAFETY: the region is valid for `length` bytes, says the caller.
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") value as u8, options(nostack));
    }
    to
}

/// The compiler calls this to compare memory.
///
/// # Safety
/// As memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
    for at in 0..length {
        // SAFETY: both regions are valid for `length` bytes, says the caller.
        let (x, y) = unsafe {
            (
                core::ptr::read_volatile(a.add(at)),
                core::ptr::read_volatile(b.add(at)),
            )
        };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// As memcmp(3), for equality only; newer compilers call it.
///
/// # Safety
/// As memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, length) }
}

/// The core library was compiled with unwinding and names this; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(125)
}
