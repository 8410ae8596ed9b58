//! System call numbers of the architectures that programs are compiled for, after the kernel's `syscall.tbl` files.
//!
//! The numbers stand in `syscalls.txt`; here are the ABIs, the look-ups, and the calls that i386 also reaches through
//! socketcall(2) and ipc(2).

use oci_spec::runtime::Arch;

/// One way into the kernel with numbers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Abi {
    /// 64-bit programs on x86_64.
    X86_64,
    /// 32-bit programs on x86_64, or `int 0x80` from any program.
    I386,
    /// 64-bit registers with 32-bit pointers: x86_64's audit architecture with bit 30 set in the number.
    X32,
    /// 64-bit programs on aarch64.
    Aarch64,
}

/// The bit in a number by which the kernel tells x32 from x86_64.
pub const X32_BIT: u32 = 0x4000_0000;

/// Where x32's own numbers start; they are older than their value suggests.
pub const X32_OWN: std::ops::RangeInclusive<u32> = 512..=547;

impl Abi {
    /// All of them, in the order of the columns of the table.
    pub const ALL: [Self; 4] = [Self::X86_64, Self::I386, Self::X32, Self::Aarch64];

    /// The ABI that this program itself uses.
    pub const fn native() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Aarch64
        } else {
            Self::X86_64
        }
    }

    /// `AUDIT_ARCH_*` of linux/audit.h, as in `seccomp_data.arch`.
    pub const fn audit_arch(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// What the runtime-spec's architecture means on this machine. `None`: this kernel can never see it, or there is
    /// no table for it.
    pub fn from_oci(arch: Arch) -> Option<Self> {
        let native = Self::native();
        let abi = match arch {
            Arch::ScmpArchNative => native,
            Arch::ScmpArchX86_64 => Self::X86_64,
            Arch::ScmpArchX86 => Self::I386,
            Arch::ScmpArchX32 => Self::X32,
            Arch::ScmpArchAarch64 => Self::Aarch64,
            _ => return None,
        };
        ((abi == Self::Aarch64) == (native == Self::Aarch64)).then_some(abi)
    }

    /// Added to a number of the table to get `seccomp_data.nr`.
    const fn offset(self) -> u32 {
        match self {
            Self::X32 => X32_BIT,
            _ => 0,
        }
    }

    /// `seccomp_data.nr` of a call, if this ABI has it.
    pub fn number(self, name: &str) -> Option<u32> {
        self.number_in(row(name)?)
    }

    /// The same for a row that is at hand.
    pub fn number_in(self, row: &Row) -> Option<u32> {
        let number = row.numbers[self as usize];
        (number != NONE).then(|| u32::from(number) + self.offset())
    }

    /// Every call of this ABI with its `seccomp_data.nr`.
    pub fn calls(self) -> impl Iterator<Item = (&'static str, u32)> {
        let row = move |row: &'static Row| Some((row.name, self.number_in(row)?));
        TABLE.iter().filter_map(row)
    }
}

/// Whether Linux has, or had, a call of this name on an architecture without a table, or as part of another.
pub fn is_known_elsewhere(name: &str) -> bool {
    ELSEWHERE.contains(&name) || MULTIPLEXED.iter().any(|call| call.name == name)
}

/// Calls that only architectures without a table have.
const ELSEWHERE: [&str; 25] = [
    "arm_fadvise64_64",
    "arm_sync_file_range",
    "breakpoint",
    "cacheflush",
    "cachectl",
    "get_tls",
    "multiplexer",
    "pciconfig_iobase",
    "pciconfig_read",
    "pciconfig_write",
    "riscv_flush_icache",
    "riscv_hwprobe",
    "rtas",
    "s390_guarded_storage",
    "s390_pci_mmio_read",
    "s390_pci_mmio_write",
    "s390_runtime_instr",
    "s390_sthyi",
    "set_tls",
    "swapcontext",
    "switch_endian",
    "sync_file_range2",
    "syscall",
    "sysmips",
    "timerfd",
];

/// A call that i386 also reaches as a sub-call of another.
pub struct Multiplexed {
    /// Its own name.
    pub name: &'static str,
    /// The call that carries it.
    pub carrier: &'static str,
    /// Which bits of the carrier's first argument select it: ipc(2) takes a version in the upper 16.
    pub mask: u64,
    /// Their value.
    pub selector: u64,
}

const fn socketcall(name: &'static str, selector: u64) -> Multiplexed {
    let carrier = "socketcall";
    Multiplexed {
        name,
        carrier,
        mask: 0xffff_ffff,
        selector,
    }
}

const fn ipc(name: &'static str, selector: u64) -> Multiplexed {
    let carrier = "ipc";
    Multiplexed {
        name,
        carrier,
        mask: 0xffff,
        selector,
    }
}

/// linux/net.h `SYS_*` and linux/ipc.h.
pub const MULTIPLEXED: [Multiplexed; 32] = [
    socketcall("socket", 1),
    socketcall("bind", 2),
    socketcall("connect", 3),
    socketcall("listen", 4),
    socketcall("accept", 5),
    socketcall("getsockname", 6),
    socketcall("getpeername", 7),
    socketcall("socketpair", 8),
    socketcall("send", 9),
    socketcall("recv", 10),
    socketcall("sendto", 11),
    socketcall("recvfrom", 12),
    socketcall("shutdown", 13),
    socketcall("setsockopt", 14),
    socketcall("getsockopt", 15),
    socketcall("sendmsg", 16),
    socketcall("recvmsg", 17),
    socketcall("accept4", 18),
    socketcall("recvmmsg", 19),
    socketcall("sendmmsg", 20),
    ipc("semop", 1),
    ipc("semget", 2),
    ipc("semctl", 3),
    ipc("semtimedop", 4),
    ipc("msgsnd", 11),
    ipc("msgrcv", 12),
    ipc("msgget", 13),
    ipc("msgctl", 14),
    ipc("shmat", 21),
    ipc("shmdt", 22),
    ipc("shmget", 23),
    ipc("shmctl", 24),
];

/// Arguments that the kernel declares as `int`, `unsigned int` or another 32-bit type (its `SYSCALL_DEFINE`s), so
/// that it never looks at the upper half of the register. Only calls that profiles put conditions on.
const INT_ARGUMENTS: [(&str, &[u8]); 53] = [
    ("accept4", &[0, 3]),
    ("arch_prctl", &[0]),
    ("bpf", &[0, 2]),
    ("clock_settime", &[0]),
    ("dup3", &[0, 1, 2]),
    ("epoll_create1", &[0]),
    ("eventfd2", &[0, 1]),
    ("fallocate", &[0, 1]),
    ("fcntl", &[0, 1]),
    ("fsconfig", &[0, 1, 4]),
    ("futex", &[1, 2, 5]),
    ("getrandom", &[2]),
    ("getsockopt", &[0, 1, 2]),
    ("inotify_init1", &[0]),
    ("io_uring_enter", &[0, 1, 2, 3]),
    ("io_uring_register", &[0, 1, 3]),
    ("io_uring_setup", &[0]),
    ("ioctl", &[0, 1]),
    ("iopl", &[0]),
    ("ipc", &[0, 1]),
    ("kcmp", &[0, 1, 2]),
    ("keyctl", &[0]),
    ("kill", &[0, 1]),
    ("madvise", &[2]),
    ("membarrier", &[0, 1, 2]),
    ("memfd_create", &[1]),
    ("memfd_secret", &[0]),
    ("mlockall", &[0]),
    ("open", &[1]),
    ("openat", &[0, 2]),
    ("perf_event_open", &[1, 2, 3]),
    ("personality", &[0]),
    ("pidfd_open", &[0, 1]),
    ("pipe2", &[1]),
    ("prctl", &[0]),
    ("prlimit64", &[0, 1]),
    ("process_madvise", &[0, 3, 4]),
    ("quotactl", &[0, 2]),
    ("reboot", &[0, 1, 2]),
    ("renameat2", &[0, 2, 4]),
    ("sched_setscheduler", &[0, 1]),
    ("seccomp", &[0, 1]),
    ("semget", &[0, 1, 2]),
    ("setns", &[0, 1]),
    ("setpriority", &[0, 1, 2]),
    ("setsockopt", &[0, 1, 2, 4]),
    ("shmget", &[0, 2]),
    ("socket", &[0, 1, 2]),
    ("socketcall", &[0]),
    ("socketpair", &[0, 1, 2]),
    ("syslog", &[0, 2]),
    ("umount2", &[1]),
    ("userfaultfd", &[0]),
];

/// Whether the kernel takes only the lower 32 bits of this argument.
pub fn is_int(abi: Abi, name: &str, argument: usize) -> bool {
    abi == Abi::I386
        || INT_ARGUMENTS.iter().any(|(call, arguments)| {
            *call == name && arguments.iter().any(|a| usize::from(*a) == argument)
        })
}

/// A call's numbers by ABI.
#[derive(Clone, Copy)]
pub struct Row {
    name: &'static str,
    numbers: [u16; Abi::ALL.len()],
}

/// No call of this ABI.
const NONE: u16 = u16::MAX;

const TEXT: &[u8] = include_bytes!("syscalls.txt");

/// Read when this is compiled: a start of a container has no time for it. In the order of names, which a test checks.
static TABLE: [Row; count_rows()] = parse();

/// The row of a call, if any ABI has it.
pub fn row(name: &str) -> Option<&'static Row> {
    let index = TABLE.binary_search_by(|row| row.name.cmp(name)).ok()?;
    Some(&TABLE[index])
}

const fn count_rows() -> usize {
    let (mut rows, mut at) = (0, 0);
    while at < TEXT.len() {
        if TEXT[at] != b'#' {
            rows += 1;
        }
        at = end_of(at, b'\n') + 1;
    }
    rows
}

/// Where the next `stop` from `at` on is, or the end of the text.
const fn end_of(mut at: usize, stop: u8) -> usize {
    while at < TEXT.len() && TEXT[at] != stop {
        at += 1;
    }
    at
}

const fn parse() -> [Row; count_rows()] {
    let empty = Row {
        name: "",
        numbers: [NONE; Abi::ALL.len()],
    };
    let mut rows = [empty; count_rows()];
    let (mut index, mut at) = (0, 0);
    while at < TEXT.len() {
        let end = end_of(at, b'\n');
        if TEXT[at] != b'#' {
            rows[index] = parse_row(at, end);
            index += 1;
        }
        at = end + 1;
    }
    rows
}

const fn parse_row(start: usize, end: usize) -> Row {
    let mut at = end_of(start, b' ');
    let (name, _) = TEXT.split_at(start).1.split_at(at - start);
    let Ok(name) = std::str::from_utf8(name) else {
        panic!("a name is no text");
    };
    let mut numbers = [NONE; Abi::ALL.len()];
    let mut column = 0;
    while at < end {
        at += 1;
        if TEXT[at] == b'-' {
            at += 1;
        } else {
            let mut number = 0;
            while at < end && TEXT[at] != b' ' {
                assert!(TEXT[at].is_ascii_digit());
                number = number * 10 + (TEXT[at] - b'0') as u16;
                at += 1;
            }
            numbers[column] = number;
        }
        column += 1;
    }
    assert!(column == Abi::ALL.len());
    Row { name, numbers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole_and_agrees_with_libc() {
        let text = include_str!("syscalls.txt");
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        for row in &TABLE {
            let number = |number: u16| match number {
                NONE => "-".to_owned(),
                number => number.to_string(),
            };
            let line = format!("{} {}", row.name, row.numbers.map(number).join(" "));
            assert_eq!(lines.next(), Some(line.as_str()));
        }
        assert_eq!(lines.next(), None);
        assert!(
            TABLE.is_sorted_by(|a, b| a.name < b.name),
            "look-ups bisect"
        );
        for abi in Abi::ALL {
            let mut numbers: Vec<_> = abi.calls().map(|(_, number)| number).collect();
            let all = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), all, "{abi:?}: a number stands twice");
            assert!(all > 300, "{abi:?}");
        }
        #[cfg(target_arch = "x86_64")]
        for (name, number) in [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("keyctl", libc::SYS_keyctl),
            ("openat2", libc::SYS_openat2),
            ("set_mempolicy_home_node", libc::SYS_set_mempolicy_home_node),
            ("mseal", libc::SYS_mseal),
        ] {
            assert_eq!(
                Abi::X86_64.number(name).map(i64::from),
                Some(number),
                "{name}"
            );
        }
    }

    #[test]
    fn x32_numbers_carry_their_bit() {
        assert_eq!(Abi::X32.number("read"), Some(0x4000_0000));
        assert_eq!(Abi::X32.number("execve"), Some(0x4000_0000 + 520));
        assert_eq!(Abi::I386.number("read"), Some(3));
        assert_eq!(Abi::Aarch64.number("read"), Some(63));
        assert_eq!(Abi::X86_64.number("mmap2"), None);
    }

    #[test]
    fn every_name_of_the_small_lists_is_a_call() {
        for (name, _) in INT_ARGUMENTS {
            assert!(row(name).is_some(), "{name}");
        }
        for name in ELSEWHERE {
            assert!(row(name).is_none(), "{name}");
        }
    }
}
