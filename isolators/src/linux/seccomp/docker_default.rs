//! Docker's default profile, rebuilt from its facts: which calls a container may make, and under which conditions.
//!
//! Everything else fails with EPERM. What is left out on purpose: kernel keyrings, io_uring, userfaultfd, loading
//! modules, raw I/O, setting clocks, and whatever makes or enters namespaces.

use std::sync::OnceLock;

use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompOperator};

use super::profile::{Architectures, Filter, Profile, Rule, argument};

/// Open to every container, on every architecture that has them.
const ALWAYS: &str = "
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset
    chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range
    connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl
    epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve
    execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark
    fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr
    flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync
    ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
    futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid
    getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid
    getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
    ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
    mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget
    msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open
    openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
    pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
    process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr
    removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list
    set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
    setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid
    setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd
    signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64
    statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat
    uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write
    writev";

/// Reading another process' memory went around seccomp before 4.8 (ptrace(2) changed calls after the filter).
const SINCE_4_8: &str = "process_vm_readv process_vm_writev ptrace";

/// Calls that one capability opens.
const WITH_CAPABILITY: [(caps::Capability, &str); 14] = {
    use caps::Capability::*;
    [
        (CAP_BPF, "bpf"),
        (CAP_DAC_READ_SEARCH, "open_by_handle_at"),
        (CAP_PERFMON, "perf_event_open"),
        (
            CAP_SYS_ADMIN,
            "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
             lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl
             quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
        ),
        (CAP_SYS_BOOT, "reboot"),
        (CAP_SYS_CHROOT, "chroot"),
        (CAP_SYS_MODULE, "delete_module finit_module init_module"),
        (CAP_SYS_NICE, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
        (CAP_SYS_PACCT, "acct"),
        (
            CAP_SYS_PTRACE,
            "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
        ),
        (CAP_SYS_RAWIO, "ioperm iopl"),
        (CAP_SYS_TIME, "clock_settime clock_settime64 settimeofday stime"),
        (CAP_SYS_TTY_CONFIG, "vhangup"),
        (CAP_SYSLOG, "syslog"),
    ]
};

/// Calls of single architectures, by Go name.
const ON_ARCHITECTURE: [(&str, &str); 6] = [
    ("amd64 x32", "arch_prctl"),
    ("amd64 x32 x86", "modify_ldt"),
    (
        "arm arm64",
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
    ("ppc64le", "swapcontext sync_file_range2"),
    ("riscv64", "riscv_flush_icache"),
    (
        "s390 s390x",
        "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    ),
];

/// All socket families but AF_ALG (38) and AF_VSOCK (40), which are not in any namespace.
const SOCKET_FAMILIES: [(LinuxSeccompOperator, u64); 3] = [
    (LinuxSeccompOperator::ScmpCmpLt, 38),
    (LinuxSeccompOperator::ScmpCmpEq, 39),
    (LinuxSeccompOperator::ScmpCmpGt, 40),
];

/// PER_LINUX, PER_LINUX32, each with and without UNAME26, and the question for the present one.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Every `CLONE_NEW*` that clone(2) takes in its flags.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// clone3(2) takes its flags behind a pointer, so libraries are told to use clone(2).
const ENOSYS: u32 = 38;

/// An architecture with the ones that its kernel also runs.
const ARCHITECTURES: [(Arch, &[Arch]); 9] = {
    use Arch::*;
    [
        (ScmpArchX86_64, &[ScmpArchX86, ScmpArchX32]),
        (ScmpArchAarch64, &[ScmpArchArm]),
        (ScmpArchMips64, &[ScmpArchMips, ScmpArchMips64n32]),
        (ScmpArchMips64n32, &[ScmpArchMips, ScmpArchMips64]),
        (ScmpArchMipsel64, &[ScmpArchMipsel, ScmpArchMipsel64n32]),
        (ScmpArchMipsel64n32, &[ScmpArchMipsel, ScmpArchMipsel64]),
        (ScmpArchS390x, &[ScmpArchS390]),
        (ScmpArchRiscv64, &[]),
        (ScmpArchLoongarch64, &[]),
    ]
};

/// Docker's default profile (of June 2026).
pub fn docker_default() -> &'static Profile {
    static PROFILE: OnceLock<Profile> = OnceLock::new();
    PROFILE.get_or_init(build)
}

fn build() -> Profile {
    let mut rules = vec![
        allow(ALWAYS),
        Rule {
            includes: Filter {
                min_kernel: Some((4, 8)),
                ..Filter::default()
            },
            ..allow(SINCE_4_8)
        },
    ];
    let with_argument = |name, index, op, value, value_two| Rule {
        args: vec![argument(index, op, value, value_two)],
        ..allow(name)
    };
    let families = SOCKET_FAMILIES.iter();
    rules.extend(families.map(|(op, value)| with_argument("socket", 0, *op, *value, None)));
    let equal = LinuxSeccompOperator::ScmpCmpEq;
    let personalities = PERSONALITIES.iter();
    rules.extend(personalities.map(|value| with_argument("personality", 0, equal, *value, None)));
    rules.extend(ON_ARCHITECTURE.iter().map(|(arches, names)| Rule {
        includes: on(arches),
        ..allow(names)
    }));
    rules.extend(WITH_CAPABILITY.iter().map(|(capability, names)| Rule {
        includes: Filter {
            capabilities: capability.bitmask(),
            ..Filter::default()
        },
        ..allow(names)
    }));
    // Without CAP_SYS_ADMIN. s390 takes the flags of clone(2) second.
    let masked = LinuxSeccompOperator::ScmpCmpMaskedEq;
    let admin = caps::Capability::CAP_SYS_ADMIN.bitmask();
    let not_admin = Filter {
        capabilities: admin,
        ..Filter::default()
    };
    rules.push(Rule {
        excludes: Filter {
            capabilities: admin,
            ..on("s390 s390x")
        },
        ..with_argument("clone", 0, masked, CLONE_NAMESPACES, Some(0))
    });
    rules.push(Rule {
        includes: on("s390 s390x"),
        excludes: not_admin.clone(),
        ..with_argument("clone", 1, masked, CLONE_NAMESPACES, Some(0))
    });
    rules.push(Rule {
        action: LinuxSeccompAction::ScmpActErrno,
        errno: Some(ENOSYS),
        excludes: not_admin,
        ..allow("clone3")
    });
    let map = ARCHITECTURES.iter();
    Profile {
        default_action: LinuxSeccompAction::ScmpActErrno,
        default_errno: Some(1),
        architectures: Architectures::Map(map.map(|(arch, sub)| (*arch, sub.to_vec())).collect()),
        flags: None,
        listener_path: None,
        listener_metadata: None,
        rules,
    }
}

fn allow(names: &str) -> Rule {
    Rule {
        names: names.split_whitespace().map(str::to_owned).collect(),
        action: LinuxSeccompAction::ScmpActAllow,
        errno: None,
        args: Vec::new(),
        includes: Filter::default(),
        excludes: Filter::default(),
    }
}

fn on(arches: &str) -> Filter {
    Filter {
        arches: arches.split(' ').map(str::to_owned).collect(),
        ..Filter::default()
    }
}
