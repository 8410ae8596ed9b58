//! Compiled programs against their rules, and against another compiler.
#![allow(clippy::unwrap_used)]

use caps::Capability;
use libc::{
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_USER_NOTIF,
};
use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompOperator, LinuxSyscall};
use proptest::prelude::*;

use super::profile::argument;
use super::rules::Rules;
use super::*;
use crate::launch_info::SeccompListener;

const X86: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;
const EPERM: u32 = SECCOMP_RET_ERRNO | 1;
const ENOSYS: u32 = SECCOMP_RET_ERRNO | 38;

/// The 14 that Docker gives.
fn docker_caps() -> u64 {
    use Capability::*;
    let all = [
        CAP_CHOWN,
        CAP_DAC_OVERRIDE,
        CAP_FSETID,
        CAP_FOWNER,
        CAP_MKNOD,
        CAP_NET_RAW,
        CAP_SETGID,
        CAP_SETUID,
        CAP_SETFCAP,
        CAP_SETPCAP,
        CAP_NET_BIND_SERVICE,
        CAP_SYS_CHROOT,
        CAP_KILL,
        CAP_AUDIT_WRITE,
    ];
    all.iter()
        .fold(0, |bits, capability| bits | capability.bitmask())
}

fn docker(caps: u64) -> LinuxSeccomp {
    resolve(docker_default(), caps, (6, 1))
}

fn from_json(json: &str) -> LinuxSeccomp {
    resolve(&Profile::parse("test", json).unwrap(), 0, (6, 1))
}

fn allow_list(names: &[&str]) -> LinuxSeccomp {
    let names = serde_json::to_string(names).unwrap();
    from_json(&format!(
        r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": {names}, "action": "SCMP_ACT_ALLOW"}}]}}"#
    ))
}

fn ask(program: &[libc::sock_filter], arch: u32, number: u32, first: u64) -> u32 {
    run(program, arch, number, &[first, 0, 0, 0, 0, 0]).unwrap()
}

#[test]
fn dockers_profile_is_what_it_says_on_all_three_abis() {
    let compiled = compile(&docker(docker_caps())).unwrap();
    assert_eq!(compiled.unused, Unused::default());
    let program = &compiled.filter.program;
    let call = |name: &str, first| {
        let answer = |abi: Abi| Some(ask(program, abi.audit_arch(), abi.number(name)?, first));
        [Abi::X86_64, Abi::I386, Abi::X32].map(answer)
    };
    let all = |verdict| [Some(verdict); 3];
    assert_eq!(call("read", 0), all(SECCOMP_RET_ALLOW));
    assert_eq!(call("chroot", 0), all(SECCOMP_RET_ALLOW));
    assert_eq!(call("execveat", 0), all(SECCOMP_RET_ALLOW));
    assert_eq!(call("keyctl", 0), all(EPERM));
    assert_eq!(call("unshare", 0), all(EPERM));
    assert_eq!(call("io_uring_setup", 0), all(EPERM));
    assert_eq!(call("clone3", 0), all(ENOSYS));
    assert_eq!(call("clone", 0x11), all(SECCOMP_RET_ALLOW));
    assert_eq!(call("clone", 0x1000_0011), all(EPERM));
    assert_eq!(call("socket", 2), all(SECCOMP_RET_ALLOW));
    assert_eq!(call("socket", 38), all(EPERM));
    assert_eq!(call("socket", 40 | 1 << 32), all(EPERM));
    assert_eq!(call("personality", 8), all(SECCOMP_RET_ALLOW));
    assert_eq!(call("personality", 0x4_0000), all(EPERM));
    assert_eq!(call("personality", u64::MAX), all(SECCOMP_RET_ALLOW));
    for number in [471, 0x3fff_ffff, 0x8000_0000, u32::MAX] {
        assert_eq!(ask(program, X86, number, 0), ENOSYS, "{number:#x}");
    }
    assert_eq!(ask(program, X86, X32_BIT + 511, 0), ENOSYS);
    assert_eq!(ask(program, 0xc000_00b7, 63, 0), SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn a_capability_opens_its_calls() {
    let open = |caps, call| {
        let compiled = compile(&docker(caps)).unwrap();
        missing_calls(&compiled.filter, &[call]).is_empty()
    };
    let admin = docker_caps() | Capability::CAP_SYS_ADMIN.bitmask();
    for call in ["mount", "clone3", "setns"] {
        assert!(!open(docker_caps(), call), "{call}");
        assert!(open(admin, call), "{call}");
    }
    // Some arguments pass.
    assert!(open(docker_caps(), "clone"));
    assert!(!open(0, "chroot"));
}

#[test]
fn every_call_of_the_tables_gets_what_the_rules_say() {
    for caps in [0, docker_caps(), u64::MAX] {
        let seccomp = docker(caps);
        let (rules, _) = Rules::new(&seccomp).unwrap();
        let program = compile(&seccomp).unwrap().filter.program;
        for abi in Abi::ALL {
            for (name, number) in abi.calls() {
                for first in [0, 8, 38, 39, 40, 41, 0x1000_0000, u64::MAX] {
                    let arguments = [first, first, first, first, first, first];
                    let expected = rules.decision(abi.audit_arch(), number).verdict(&arguments);
                    let found = run(&program, abi.audit_arch(), number, &arguments);
                    assert_eq!(found, Ok(expected), "{abi:?} {name} {first:#x}");
                }
            }
        }
    }
}

/// The proof is worth as much as the faults that it finds: each verdict, constant and target of the program is changed
/// in turn.
#[test]
fn a_fault_in_any_instruction_is_found() {
    let seccomp = docker(docker_caps());
    let (rules, _) = Rules::new(&seccomp).unwrap();
    let program = compile(&seccomp).unwrap().filter.program;
    let mut tried = 0;
    for pc in 0..program.len() {
        let mut change = |what: &str, change: &dyn Fn(&mut libc::sock_filter)| {
            let mut broken = program.clone();
            change(&mut broken[pc]);
            if same(&broken[pc], &program[pc])
                || equal_branch(&broken[pc]) && equal_branch(&program[pc])
            {
                return;
            }
            tried += 1;
            assert!(
                symbolic::verify(&broken, &rules).is_err(),
                "{what} of instruction {pc}: {:?}",
                program[pc]
            );
        };
        let is_branch = u32::from(program[pc].code) & 7 == libc::BPF_JMP && program[pc].code != 5;
        change("the constant", &|i| i.k ^= 1);
        if is_branch {
            change("the targets", &|i| std::mem::swap(&mut i.jt, &mut i.jf));
        }
    }
    assert!(tried > program.len(), "only {tried} faults were tried");
}

fn same(a: &libc::sock_filter, b: &libc::sock_filter) -> bool {
    (a.code, a.jt, a.jf, a.k) == (b.code, b.jt, b.jf, b.k)
}

fn equal_branch(i: &libc::sock_filter) -> bool {
    u32::from(i.code) & 7 == libc::BPF_JMP && i.jt == i.jf
}

#[test]
fn unknown_names_and_foreign_architectures_are_reported() {
    let seccomp = from_json(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_MIPS"],
            "syscalls": [{"names": ["read", "raed", "s390_sthyi", "send"], "action": "SCMP_ACT_ALLOW"}]}"#,
    );
    let unused = compile(&seccomp).unwrap().unused;
    assert_eq!(unused.names.into_iter().collect::<Vec<_>>(), ["raed"]);
    assert_eq!(
        unused.architectures.into_iter().collect::<Vec<_>>(),
        ["SCMP_ARCH_MIPS"]
    );
}

#[test]
fn calls_that_are_not_open_are_named() {
    let filter = compile(&allow_list(&["read", "execve"])).unwrap().filter;
    let missing = missing_calls(&filter, &["read", "capset", "execve", "no_such_call"]);
    assert_eq!(missing, ["capset", "no_such_call"]);
}

/// `count` conditions on one argument: as many branches, in a chain.
fn many_values(count: u64) -> LinuxSeccomp {
    let equal = LinuxSeccompOperator::ScmpCmpEq;
    let rules = (0..count).map(|value| {
        let mut rule = LinuxSyscall::default();
        rule.set_names(vec!["lseek".to_owned()]);
        rule.set_action(LinuxSeccompAction::ScmpActAllow);
        rule.set_args(Some(vec![
            argument(1, equal, value * 3, None),
            argument(2, equal, value, None),
        ]));
        rule
    });
    let mut seccomp = allow_list(&["read"]);
    seccomp.set_syscalls(Some(rules.collect()));
    seccomp
}

#[test]
fn branches_reach_farther_than_255_and_what_cannot_load_is_refused() {
    let long = compile(&many_values(300)).unwrap().filter.program;
    assert!(long.len() > 1500, "{}", long.len());
    let text = compile(&many_values(1200)).unwrap_err().to_string();
    assert!(text.contains("4096 instructions"), "{text}");
    let text = compile(&many_values(100_000)).unwrap_err().to_string();
    assert!(text.contains("4096 instructions"), "{text}");
}

#[test]
fn flags_become_bits_as_in_runc() {
    let flags = |flags: &str, rest: &str| {
        let json = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW" {flags} {rest}}}"#);
        compile(&from_json(&json)).map(|compiled| compiled.filter.flags)
    };
    let listener = r#", "listenerPath": "/run/x", "syscalls": [{"name": "mkdir", "action": "SCMP_ACT_NOTIFY"}]"#;
    for (given, plain, listening) in [
        ("", 4, 12),
        (r#", "flags": []"#, 0, 8),
        (
            r#", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]"#,
            6,
            14,
        ),
        (
            r#", "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"]"#,
            2,
            10,
        ),
    ] {
        assert_eq!(flags(given, "").unwrap(), plain, "{given}");
        assert_eq!(flags(given, listener).unwrap(), listening, "{given}");
    }
    let killable = r#", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#;
    assert_eq!(flags(killable, listener).unwrap(), 40);
    let text = flags(killable, "").unwrap_err().to_string();
    assert!(text.contains("linux.seccomp.flags"), "{text}");
    let unknown = r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NO"]}"#;
    let text = serde_json::from_str::<LinuxSeccomp>(unknown).unwrap_err();
    assert!(
        text.to_string().contains("SECCOMP_FILTER_FLAG_NO"),
        "{text}"
    );
}

#[test]
fn a_listener_is_there_exactly_when_a_rule_needs_it() {
    let profile = |rest: &str, action: &str| {
        compile(&from_json(&format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO" {rest}, "syscalls": [
                {{"name": "mkdir", "action": "SCMP_ACT_{action}"}}, {{"name": "read", "action": "SCMP_ACT_ALLOW"}}]}}"#
        )))
    };
    let path = r#", "listenerPath": "/run/agent", "listenerMetadata": "who""#;
    let filter = profile(path, "NOTIFY").unwrap().filter;
    let expected = SeccompListener {
        path: "/run/agent".into(),
        metadata: Some("who".to_owned()),
    };
    assert_eq!(filter.listener, Some(expected));
    assert_eq!(ask(&filter.program, X86, 83, 0), SECCOMP_RET_USER_NOTIF);
    // What becomes of it is the listener's to say.
    assert!(missing_calls(&filter, &["mkdir", "read"]).is_empty());
    let unused = profile(path, "LOG").unwrap().filter;
    assert_eq!((unused.listener, unused.flags), (None, 4));
    for missing in ["", r#", "listenerPath": """#] {
        let text = profile(missing, "NOTIFY").unwrap_err().to_string();
        assert!(text.contains("seccomp listenerPath is not set"), "{text}");
    }
}

#[test]
fn a_profile_is_compiled_once() {
    let seccomp = docker(docker_caps());
    let first = compile_cached(&seccomp).unwrap();
    assert!(Arc::ptr_eq(
        &first,
        &compile_cached(&seccomp.clone()).unwrap()
    ));
    assert!(!Arc::ptr_eq(&first, &compile_cached(&docker(0)).unwrap()));
}

/// seccompiler, an independent compiler, on what it can express: one architecture, one errno. Neither the bound for
/// newer calls nor x32 exist there.
#[test]
#[cfg(target_arch = "x86_64")]
fn another_compiler_agrees_on_an_allow_list() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter as Other, TargetArch};
    let names: Vec<_> = Abi::X86_64.calls().filter(|(_, n)| n % 3 != 1).collect();
    let rules = names
        .iter()
        .map(|(_, number)| (i64::from(*number), Vec::new()))
        .collect();
    let other = Other::new(
        rules,
        SeccompAction::Errno(1),
        SeccompAction::Allow,
        TargetArch::x86_64,
    );
    let other: BpfProgram = other.unwrap().try_into().unwrap();
    let other: Vec<_> = other
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jt,
            jf: i.jf,
            k: i.k,
        })
        .collect();
    let list: Vec<_> = names.iter().map(|(name, _)| *name).collect();
    let ours = compile(&allow_list(&list)).unwrap().filter.program;
    let newest = names.iter().map(|(_, number)| *number).max().unwrap();
    for number in (0..1000).chain([0x3fff_ffff, 0x8000_0000, u32::MAX]) {
        let expected = match ask(&other, X86, number, 0) {
            EPERM if number > newest => ENOSYS,
            verdict => verdict,
        };
        assert_eq!(ask(&ours, X86, number, 0), expected, "{number}");
    }
    assert_eq!(ask(&ours, I386, 3, 0), ask(&other, I386, 3, 0));
}

fn any_rule() -> impl Strategy<Value = LinuxSyscall> {
    use LinuxSeccompAction::*;
    use LinuxSeccompOperator::*;
    // Few calls, so that rules meet; socket and bind have ways around on i386, readv has two numbers on x32.
    let name = prop::sample::select(vec![
        "read", "lseek", "socket", "bind", "shmat", "readv", "listns", "ioctl",
    ]);
    let action = prop::sample::select(vec![
        ScmpActAllow,
        ScmpActErrno,
        ScmpActKill,
        ScmpActKillProcess,
        ScmpActTrap,
        ScmpActTrace,
        ScmpActLog,
        ScmpActNotify,
    ]);
    let op = prop::sample::select(vec![
        ScmpCmpNe,
        ScmpCmpLt,
        ScmpCmpLe,
        ScmpCmpEq,
        ScmpCmpGe,
        ScmpCmpGt,
        ScmpCmpMaskedEq,
    ]);
    let arg = (0..3_usize, op, any_value(), any_value())
        .prop_map(|(index, op, value, two)| argument(index, op, value, Some(two)));
    let args = prop::collection::vec(arg, 0..4);
    (prop::collection::vec(name, 1..4), action, 1..5_u32, args).prop_map(
        |(names, action, errno, args)| {
            let mut rule = LinuxSyscall::default();
            rule.set_names(names.into_iter().map(str::to_owned).collect());
            rule.set_action(action);
            rule.set_errno_ret(Some(errno));
            rule.set_args((!args.is_empty()).then_some(args));
            rule
        },
    )
}

/// Values that meet: small ones, with bits in the upper half, and negative ones.
fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..6_u64,
        (0..4_u64, 0..4_u64).prop_map(|(high, low)| high << 32 | low),
        (0..4_u64).prop_map(|n| u64::MAX - n),
        (0..4_u64).prop_map(|n| u64::from(u32::MAX) - n),
        any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    /// Against a direct reading of the profile, which shares no code with the rules: names, order, conditions.
    #[test]
    fn a_compiled_program_decides_as_its_profile_reads(
        rules in prop::collection::vec(any_rule(), 0..12),
        permissive in any::<bool>(),
        calls in prop::collection::vec((0..3_usize, 0..8_usize, [any_value(), any_value(), any_value()]), 40),
    ) {
        let mut seccomp = docker(0);
        let default = if permissive { LinuxSeccompAction::ScmpActAllow } else { LinuxSeccompAction::ScmpActErrno };
        seccomp.set_default_action(default);
        seccomp.set_default_errno_ret(None);
        seccomp.set_architectures(Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]));
        seccomp.set_syscalls(Some(rules.clone()));
        seccomp.set_listener_path(Some("/run/agent".into()));
        let filter = compile(&seccomp).unwrap().filter;
        prop_assert_eq!(filter.listener.is_some(), filter.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0);
        let program = &filter.program;
        let names = ["read", "lseek", "socket", "bind", "shmat", "readv", "listns", "ioctl"];
        for (abi, name, values) in calls {
            let (abi, name) = ([Abi::X86_64, Abi::I386, Abi::X32][abi], names[name]);
            // The kernel shows 32-bit programs' arguments so.
            let values = if abi == Abi::I386 { values.map(|v| v & 0xffff_ffff) } else { values };
            let arguments = [values[0], values[1], values[2], 7, 7, 7];
            let matching = rules.iter().find(|rule| {
                rule.names().iter().any(|n| n == name) && reads_as_match(rule, name, abi, &arguments)
            });
            let newest = rules.iter().flat_map(|rule| rule.names()).filter_map(|n| newest_number(abi, n)).max();
            let number = abi.number(name).unwrap();
            let expected = match matching {
                Some(rule) => rule.action().as_u32(rule.errno_ret()),
                None if permissive => SECCOMP_RET_ALLOW,
                None if newest.is_some_and(|n| newest_number(abi, name).is_some_and(|own| own > n)) => ENOSYS,
                None => EPERM,
            };
            let found = run(program, abi.audit_arch(), number, &arguments).unwrap();
            prop_assert_eq!(found, expected, "{:?} {} {:x?}", abi, name, arguments);
            let passes = [SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG, SECCOMP_RET_USER_NOTIF].contains(&found);
            if abi == Abi::native() && passes {
                prop_assert!(missing_calls(&filter, &[name]).is_empty(), "{} passes", name);
            }
        }
    }
}

/// Without x32's own numbers, which are not newer than others; with the carriers of what i386 multiplexes.
fn newest_number(abi: Abi, name: &str) -> Option<u32> {
    let number = abi.number(name)? & !X32_BIT;
    (abi != Abi::X32 || number < 512).then_some(number)
}

fn reads_as_match(rule: &LinuxSyscall, name: &str, abi: Abi, arguments: &[u64; 6]) -> bool {
    let args = rule.args().clone().unwrap_or_default();
    let holds = |arg: &oci_spec::runtime::LinuxSeccompArg| {
        let int = abi == Abi::I386
            || match name {
                "socket" => arg.index() <= 2,
                "ioctl" => arg.index() <= 1,
                _ => false,
            };
        let (left, value, two) = (
            arguments[arg.index()],
            arg.value(),
            arg.value_two().unwrap(),
        );
        let narrow = |v: u64| match v {
            0..=0xffff_ffff => Some(v as u32),
            0xffff_ffff_8000_0000.. => Some(v as u32),
            _ => None,
        };
        let compare = |left: u64, value: u64| match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => left != value,
            LinuxSeccompOperator::ScmpCmpLt => left < value,
            LinuxSeccompOperator::ScmpCmpLe => left <= value,
            LinuxSeccompOperator::ScmpCmpEq => left == value,
            LinuxSeccompOperator::ScmpCmpGe => left >= value,
            LinuxSeccompOperator::ScmpCmpGt => left > value,
            LinuxSeccompOperator::ScmpCmpMaskedEq => unreachable!("handled below"),
        };
        match arg.op() {
            LinuxSeccompOperator::ScmpCmpMaskedEq => match (int, narrow(two)) {
                (true, Some(two)) => left as u32 & value as u32 == two,
                _ => left & value == two,
            },
            _ => match (int, narrow(value)) {
                (true, Some(value)) => compare(u64::from(left as u32), u64::from(value)),
                _ => compare(left, value),
            },
        }
    };
    let mut indices: Vec<_> = args.iter().map(|arg| arg.index()).collect();
    indices.sort_unstable();
    let repeated = indices.windows(2).any(|pair| pair[0] == pair[1]);
    if repeated {
        args.iter().any(holds)
    } else {
        args.iter().all(holds)
    }
}
