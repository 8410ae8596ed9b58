//! Docker's default profile in the real kernel: what a filtered thread is refused, and what `linux/seccomp` reads back.
//!
//! Filters belong to threads, so a thread of this process is enough to be refused things, and any child to be looked at.
#![allow(unsafe_code, clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxBuilder, LinuxSeccomp, SpecBuilder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tepui_isolators::launch_info::SeccompFilter;
use tepui_isolators::linux::seccomp::{
    Abi, Outcome, SeccompIsolator, docker_default, intervals, resolve, running_kernel,
    supported_flags,
};
use tepui_isolators::live::LiveSeccomp;
use tepui_isolators::{
    CgroupPlacement, Declaration, Isolator, Live, RootFilesystem, Target, Verdict,
};

/// The 14 capabilities that Docker gives, as a bounding set.
const DOCKER_CAPS: u64 = 0xa804_25fb;
const CAP_SYS_ADMIN: u64 = 1 << 21;

fn profile(caps: u64) -> LinuxSeccomp {
    resolve(docker_default(), caps, running_kernel().unwrap())
}

fn declaration(seccomp: LinuxSeccomp) -> Declaration {
    let linux = LinuxBuilder::default().seccomp(seccomp).build().unwrap();
    Declaration {
        spec: SpecBuilder::default().linux(linux).build().unwrap(),
        rootfs: RootFilesystem::Host,
        cgroups: CgroupPlacement {
            parent: "/".into(),
            nested: BTreeMap::new(),
            name: None,
        },
        init: false,
        executable: None,
        keep_keyring: false,
        reset_cpu_affinity: false,
    }
}

fn prepared(declaration: &Declaration) -> SeccompFilter {
    let id = "seccomp-test".parse().unwrap();
    let info = SeccompIsolator.prepare(&id, declaration).unwrap();
    info.seccomp.unwrap()
}

/// Puts the calling thread under a filter for good.
fn load(filter: &SeccompFilter) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.program.len() as u16,
        filter: filter.program.as_ptr().cast_mut(),
    };
    // SAFETY: only numbers go in.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (call, mode) = (libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER);
    // SAFETY: `program` points at as many instructions as it says, which live until the call returns.
    match unsafe { libc::syscall(call, mode, filter.flags, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The errno of a raw call, 0 for none. Descriptors that it makes are closed with the process.
fn errno(number: i64, arguments: [u64; 3]) -> i32 {
    let [a, b, c] = arguments;
    // SAFETY: the calls made here take numbers, or a null pointer that the kernel refuses.
    match unsafe { libc::syscall(number, a, b, c) } {
        -1 => io::Error::last_os_error().raw_os_error().unwrap(),
        _ => 0,
    }
}

/// What a thread is told, filtered or not.
fn probe(filter: Option<SeccompFilter>) -> Vec<(&'static str, i32)> {
    const AF_VSOCK: u64 = 40;
    const OPEN_TREE_ATTR: i64 = 467;
    let probes = move || {
        if let Some(filter) = filter {
            load(&filter).unwrap();
        }
        vec![
            ("getpid", errno(libc::SYS_getpid, [0; 3])),
            // KEYCTL_GET_KEYRING_ID of the session keyring, without making one.
            ("keyctl", errno(libc::SYS_keyctl, [0, -3_i64 as u64, 0])),
            ("clone3", errno(libc::SYS_clone3, [0; 3])),
            ("unknown", errno(50_000, [0; 3])),
            ("newer", errno(OPEN_TREE_ATTR, [u64::MAX; 3])),
            ("AF_UNIX", errno(libc::SYS_socket, [1, 1, 0])),
            ("AF_VSOCK", errno(libc::SYS_socket, [AF_VSOCK, 1, 0])),
            (
                "AF_VSOCK with stray bits",
                errno(libc::SYS_socket, [AF_VSOCK | 1 << 32, 1, 0]),
            ),
            ("personality(8)", errno(libc::SYS_personality, [8, 0, 0])),
            (
                "personality(ADDR_NO_RANDOMIZE)",
                errno(libc::SYS_personality, [0x4_0000, 0, 0]),
            ),
            (
                "personality(-1)",
                errno(libc::SYS_personality, [u64::MAX, 0, 0]),
            ),
        ]
    };
    std::thread::spawn(probes).join().unwrap()
}

#[test]
fn dockers_profile_refuses_and_permits_what_it_says() {
    let filter = prepared(&declaration(profile(DOCKER_CAPS)));
    let expected = [
        ("getpid", 0),
        ("keyctl", libc::EPERM),
        ("clone3", libc::ENOSYS),
        ("unknown", libc::ENOSYS),
        ("newer", libc::ENOSYS),
        ("AF_UNIX", 0),
        ("AF_VSOCK", libc::EPERM),
        ("AF_VSOCK with stray bits", libc::EPERM),
        ("personality(8)", 0),
        ("personality(ADDR_NO_RANDOMIZE)", libc::EPERM),
        ("personality(-1)", 0),
    ];
    assert_eq!(probe(Some(filter)), expected);
    // The control: it is the filter that refuses, not the kernel.
    let refused = |(name, errno): &(&'static str, i32)| (*errno == libc::EPERM).then_some(*name);
    let unfiltered = probe(None);
    assert_eq!(unfiltered.iter().find_map(refused), None);
    let clone3 = unfiltered
        .iter()
        .find(|(name, _)| *name == "clone3")
        .unwrap();
    assert_eq!(clone3.1, libc::EINVAL);
}

/// Every number of x86_64 and x32 that the evaluator says is refused, so that nothing is ever run: the kernel asks the
/// filter about x32 numbers whether it has x32 or not.
#[test]
fn the_kernel_reads_the_program_as_the_evaluator_does() {
    const X32_BIT: u32 = 0x4000_0000;
    let filter = prepared(&declaration(profile(DOCKER_CAPS)));
    let intervals = intervals(&filter.program, Abi::X86_64.audit_arch()).unwrap();
    let refused = |number: u32| {
        let interval = intervals
            .iter()
            .find(|i| (i.first..=i.last).contains(&number))
            .unwrap();
        match interval.outcome {
            Outcome::Always(verdict) if verdict >> 16 == libc::SECCOMP_RET_ERRNO >> 16 => {
                Some((number, (verdict & libc::SECCOMP_RET_DATA) as i32))
            }
            _ => None,
        }
    };
    // The kernel lets these two past every filter, since it puts them into programs itself (uprobes; 6.11 and 6.18).
    let exempt = ["uretprobe", "uprobe"].map(|name| Abi::X86_64.number(name).unwrap());
    let numbers = (0..600).chain(X32_BIT..X32_BIT + 600);
    let numbers = numbers.filter(|number| !exempt.contains(number));
    let expected: Vec<_> = numbers.filter_map(refused).collect();
    assert!(expected.len() > 400, "{}", expected.len());
    let calls = expected.clone();
    let found = std::thread::spawn(move || {
        load(&filter).unwrap();
        let ask = |(number, _)| (number, errno(i64::from(number), [u64::MAX; 3]));
        calls.into_iter().map(ask).collect::<Vec<_>>()
    });
    assert_eq!(found.join().unwrap(), expected);
}

/// A child that answers each line with the same line.
struct Echo(Child);

impl Echo {
    fn start(filters: Vec<SeccompFilter>) -> Self {
        let mut command = Command::new("/bin/cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: `load` makes two system calls and allocates nothing.
        unsafe { command.pre_exec(move || filters.iter().try_for_each(load)) };
        Self(command.spawn().unwrap())
    }

    fn target(&self) -> Target {
        Target { pid: self.0.id() }
    }

    fn say(&mut self, line: &str) -> String {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        let stdout = self.0.stdout.as_mut().unwrap();
        let mut ready = [PollFd::new(&*stdout, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        assert_eq!(
            poll(&mut ready, Some(&limit)).unwrap(),
            1,
            "no answer: is it stopped?"
        );
        let mut answer = String::new();
        BufReader::new(stdout).read_line(&mut answer).unwrap();
        answer
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn verdicts(declaration: &Declaration, target: &Target) -> Vec<(String, Verdict)> {
    let mut live = Live::default();
    SeccompIsolator
        .observe(target, declaration, &mut live)
        .unwrap();
    let findings = SeccompIsolator.compare(declaration, &live);
    findings
        .into_iter()
        .map(|finding| (finding.item, finding.verdict))
        .collect()
}

fn three(mode: Verdict, filters: Verdict, program: Verdict) -> Vec<(String, Verdict)> {
    let items = ["seccomp mode", "seccomp filters", "seccomp program"].map(str::to_owned);
    items.into_iter().zip([mode, filters, program]).collect()
}

/// Reading programs needs CAP_SYS_ADMIN. With REQUIRE_ALL=1 a test that cannot run fails.
fn can_read_programs() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(
        root || std::env::var_os("REQUIRE_ALL").is_none(),
        "this test needs root"
    );
    if !root {
        eprintln!("skipped: reading programs needs root");
    }
    root
}

#[test]
fn what_was_enforced_is_read_back_and_the_target_runs_on() {
    if !can_read_programs() {
        return;
    }
    use Verdict::{Match, Stronger, Weaker};
    let declared = declaration(profile(DOCKER_CAPS));
    let looser = declaration(profile(DOCKER_CAPS | CAP_SYS_ADMIN));
    let filter = || prepared(&declared);

    let mut echo = Echo::start(vec![filter()]);
    assert_eq!(echo.say("before"), "before\n");
    for _ in 0..20 {
        assert_eq!(
            verdicts(&declared, &echo.target()),
            three(Match, Match, Match)
        );
    }
    assert_eq!(echo.say("after"), "after\n");
    assert_eq!(
        verdicts(&looser, &echo.target()),
        three(Match, Match, Weaker)
    );

    let twice = Echo::start(vec![filter(), prepared(&looser)]);
    assert_eq!(
        verdicts(&declared, &twice.target()),
        three(Match, Stronger, Match)
    );

    let open = Echo::start(vec![]);
    assert_eq!(
        verdicts(&declared, &open.target()),
        three(Weaker, Weaker, Weaker)
    );
}

#[test]
fn a_stopped_target_stays_stopped() {
    use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
    if !can_read_programs() {
        return;
    }
    let declared = declaration(profile(DOCKER_CAPS));
    let mut echo = Echo::start(vec![prepared(&declared)]);
    let pid = Pid::from_child(&echo.0);
    kill_process(pid, Signal::STOP).unwrap();
    waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
    let all = three(Verdict::Match, Verdict::Match, Verdict::Match);
    assert_eq!(verdicts(&declared, &echo.target()), all);
    // On its way from the tracer's stop back into its own it counts as running. One that were let go would end in S.
    let limit = Instant::now() + Duration::from_secs(10);
    let is_stopped = || {
        let status = std::fs::read_to_string(echo.target().proc_path("status")).unwrap();
        status.contains("State:\tT (stopped)")
    };
    while !is_stopped() {
        assert!(Instant::now() < limit, "it was let go");
        std::thread::yield_now();
    }
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(echo.say("on"), "on\n");
}

#[test]
fn an_observer_that_may_not_read_the_programs_does_not_know() {
    let declared = declaration(profile(DOCKER_CAPS));
    let filter = prepared(&declared);
    let echo = Echo::start(vec![filter.clone()]);
    let target = echo.target();
    // The kernel shows programs to nobody who is filtered.
    let observer = std::thread::spawn(move || {
        load(&filter).unwrap();
        verdicts(&declared, &target)
    });
    let expected = three(Verdict::Match, Verdict::Match, Verdict::Unknown);
    assert_eq!(observer.join().unwrap(), expected);
}

#[test]
fn the_least_filtered_thread_counts() {
    let declared = declaration(profile(DOCKER_CAPS));
    let filter = prepared(&declared);
    let (loaded, is_loaded) = mpsc::channel();
    let (done, is_done) = mpsc::channel::<()>();
    let filtered = std::thread::spawn(move || {
        load(&filter).unwrap();
        loaded.send(()).unwrap();
        // An error is the end of the test.
        is_done.recv().unwrap_err();
    });
    is_loaded.recv().unwrap();
    let mut live = Live::default();
    let target = Target {
        pid: std::process::id(),
    };
    SeccompIsolator
        .observe(&target, &declared, &mut live)
        .unwrap();
    drop(done);
    filtered.join().unwrap();
    assert!(
        matches!(live.seccomp, Some(LiveSeccomp { mode: 0, .. })),
        "{:?}",
        live.seccomp
    );
}

/// Loads a filter with a listener into the calling thread.
fn load_listening(filter: &SeccompFilter) -> OwnedFd {
    let program = libc::sock_fprog {
        len: filter.program.len() as u16,
        filter: filter.program.as_ptr().cast_mut(),
    };
    // SAFETY: only numbers go in.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(privileges, 0);
    let (call, mode) = (libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER);
    // SAFETY: `program` points at as many instructions as it says, which live until the call returns.
    let number = unsafe { libc::syscall(call, mode, filter.flags, &raw const program) };
    assert!(number >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(number as i32) }
}

/// The next call that waits for an answer.
fn receive(listener: &OwnedFd) -> libc::seccomp_notif {
    let mut ready = [PollFd::new(listener, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut ready, Some(&limit)).unwrap(), 1, "no call came");
    // SAFETY: plain numbers, which the kernel wants to be zero.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the kernel writes one such struct.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut call) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    call
}

fn answer(listener: &OwnedFd, id: u64, val: i64, error: i32, flags: u32) {
    let mut answer = libc::seccomp_notif_resp {
        id,
        val,
        error,
        flags,
    };
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: the kernel reads one such struct.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut answer) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_notified_call_waits_for_its_listener_and_fails_without_one() {
    const ASKED: u64 = 0o712;
    let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM"],
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY",
                      "args": [{"index": 1, "value": 458, "op": "SCMP_CMP_EQ"}]}]}"#;
    let mut seccomp: LinuxSeccomp = serde_json::from_str(json).unwrap();
    // All that this kernel has: beside a listener TSYNC must not reach it.
    let flags = serde_json::to_value(supported_flags()).unwrap();
    seccomp.set_flags(serde_json::from_value(flags).unwrap());
    let filter = prepared(&declaration(seccomp));
    let (loaded, is_loaded) = mpsc::channel();
    let filtered = std::thread::spawn(move || {
        let listener = load_listening(&filter);
        loaded.send(listener).unwrap();
        let mkdir = |mode: u64| {
            let path = c"/nobody/has/this/directory".as_ptr();
            // SAFETY: a constant string; the directory cannot be made.
            match unsafe { libc::syscall(libc::SYS_mkdir, path, mode) } {
                -1 => -i64::from(io::Error::last_os_error().raw_os_error().unwrap()),
                value => value,
            }
        };
        [ASKED, 0o711, ASKED, ASKED, ASKED].map(mkdir)
    });
    let listener = is_loaded.recv().unwrap();
    let call = receive(&listener);
    assert_eq!(i64::from(call.data.nr), libc::SYS_mkdir);
    assert_eq!(
        (call.data.arch, call.data.args[1]),
        (Abi::X86_64.audit_arch(), ASKED)
    );
    answer(&listener, call.id, 7, 0, 0);
    let call = receive(&listener);
    answer(&listener, call.id, 0, -libc::ENOMEDIUM, 0);
    let call = receive(&listener);
    answer(
        &listener,
        call.id,
        0,
        0,
        libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    );
    receive(&listener);
    drop(listener);
    let (missing, no_medium, nobody) = (libc::ENOENT, libc::ENOMEDIUM, libc::ENOSYS);
    let expected = [7, -missing, -no_medium, -missing, -nobody].map(i64::from);
    assert_eq!(filtered.join().unwrap(), expected);
}
