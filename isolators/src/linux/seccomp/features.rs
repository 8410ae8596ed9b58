//! What this build and this kernel know of seccomp, as `features` lists it (runtime-spec features-linux "seccomp").

use libc::{
    SECCOMP_FILTER_FLAG_LOG, SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    SECCOMP_FILTER_FLAG_TSYNC, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
};
use oci_spec::runtime::{Arch, LinuxSeccompAction, Seccomp, SeccompBuilder};

use crate::sys;

/// The flags that a profile may have, with what the kernel is asked about each. Waiting killably is refused without a
/// listener, so it is asked for with one.
const FLAGS: [(&str, u64); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", SECCOMP_FILTER_FLAG_TSYNC),
    (
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    ),
    ("SECCOMP_FILTER_FLAG_LOG", SECCOMP_FILTER_FLAG_LOG),
    (
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV | SECCOMP_FILTER_FLAG_NEW_LISTENER,
    ),
];

/// The operators of conditions on arguments.
const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// The field `seccomp` of `features`.
pub fn features() -> Seccomp {
    SeccompBuilder::default()
        .enabled(true)
        .actions(known_actions())
        .operators(OPERATORS.map(str::to_owned))
        .archs(known_architectures())
        .known_flags(FLAGS.map(|(name, _)| name.to_owned()))
        .supported_flags(supported_flags())
        .build()
        .expect("every field of it has a default")
}

/// The actions that a profile may have, by name.
pub fn known_actions() -> Vec<LinuxSeccompAction> {
    use LinuxSeccompAction::*;
    vec![
        ScmpActAllow,
        ScmpActErrno,
        ScmpActKill,
        ScmpActKillProcess,
        ScmpActKillThread,
        ScmpActLog,
        ScmpActNotify,
        ScmpActTrace,
        ScmpActTrap,
    ]
}

/// The architectures that a profile may list, by name. Those that this machine cannot run have no effect.
pub fn known_architectures() -> Vec<Arch> {
    use Arch::*;
    vec![
        ScmpArchAarch64,
        ScmpArchArm,
        ScmpArchLoongarch64,
        ScmpArchM68k,
        ScmpArchMips,
        ScmpArchMips64,
        ScmpArchMips64n32,
        ScmpArchMipsel,
        ScmpArchMipsel64,
        ScmpArchMipsel64n32,
        ScmpArchParisc,
        ScmpArchParisc64,
        ScmpArchPpc,
        ScmpArchPpc64,
        ScmpArchPpc64le,
        ScmpArchRiscv64,
        ScmpArchS390,
        ScmpArchS390x,
        ScmpArchSh,
        ScmpArchSheb,
        ScmpArchX32,
        ScmpArchX86,
        ScmpArchX86_64,
    ]
}

/// The known flags that the running kernel takes.
pub fn supported_flags() -> Vec<String> {
    let supported = FLAGS
        .iter()
        .filter(|(_, bits)| sys::takes_seccomp_flags(*bits));
    supported.map(|(name, _)| (*name).to_owned()).collect()
}

/// The flags among `bits` that the running kernel does not take, by name.
pub fn missing_flags(bits: u64) -> Vec<&'static str> {
    let asked = FLAGS.iter().filter(|(_, flag)| bits & flag == *flag);
    let missing = asked.filter(|(_, flag)| !sys::takes_seccomp_flags(*flag));
    missing.map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use oci_spec::runtime::LinuxSeccomp;

    use super::*;

    #[test]
    fn every_name_that_is_listed_is_read() {
        let listed = serde_json::to_value(features()).unwrap();
        let list = |key: &str| listed[key].as_array().unwrap().clone();
        for key in ["actions", "operators", "archs", "knownFlags"] {
            let names = list(key);
            assert!(
                names.is_sorted_by_key(|n| n.to_string()) || key == "knownFlags",
                "{key}"
            );
            for name in names {
                let json = match key {
                    "actions" => format!(r#"{{"defaultAction": {name}}}"#),
                    "archs" => format!(
                        r#"{{"defaultAction": "SCMP_ACT_KILL", "architectures": [{name}]}}"#
                    ),
                    "knownFlags" => {
                        format!(r#"{{"defaultAction": "SCMP_ACT_KILL", "flags": [{name}]}}"#)
                    }
                    _ => format!(
                        r#"{{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{{"names": ["read"], "action": "SCMP_ACT_LOG",
                            "args": [{{"index": 0, "value": 1, "op": {name}}}]}}]}}"#
                    ),
                };
                assert!(
                    serde_json::from_str::<LinuxSeccomp>(&json).is_ok(),
                    "{json}"
                );
            }
        }
    }

    #[test]
    fn the_kernel_says_which_flags_it_takes() {
        // All but the last are older than the oldest kernel that we run on; the last is of 5.19.
        let supported = supported_flags();
        for (name, _) in &FLAGS[..3] {
            assert!(supported.iter().any(|flag| flag == name), "{name}");
        }
        assert!(!sys::takes_seccomp_flags(1 << 30));
        assert!(
            missing_flags(SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_NEW_LISTENER).is_empty()
        );
    }
}
