//! `features`: what this build can do, whatever the host can (runtime-spec features.md).

use serde_json::{Value, json};
use tepui_isolators::filesystem::options::Options;
use tepui_isolators::linux::seccomp;

use super::Failure;

/// The newest runtime-spec that bundles may be of.
pub const SPEC_VERSION: &str = "1.3.0";

const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// Options of mounts that are not left to the file system, as runtime-spec config "mounts" names them.
const MOUNT_OPTIONS: &str = "\
    async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand noatime nodev \
    nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime \
    rbind rdev rdiratime relatime remount rexec ridmap rnoatime rnodev rnodiratime rnoexec rnorelatime \
    rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid \
    rsymfollow runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable";

const CAPABILITIES: &str = "\
    CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID \
    CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW \
    CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT \
    CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE \
    CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM \
    CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE";

/// What fsconfig(2) takes for any file system, without the file system.
const FOR_ANY_FILE_SYSTEM: [&str; 4] = ["dirsync", "lazytime", "mand", "sync"];

/// Runs the command.
pub(super) fn run() -> Result<(), Failure> {
    super::print(&format!("{}\n", serde_json::to_string_pretty(&features())?))
}

fn features() -> Value {
    let mount_options: Vec<&str> = MOUNT_OPTIONS
        .split(' ')
        .filter(|one| is_known(one))
        .collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": HOOKS,
        "mountOptions": mount_options,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": CAPABILITIES.split(' ').collect::<Vec<_>>(),
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true },
            "seccomp": seccomp::features(),
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": false },
            "memoryPolicy": {
                "modes": [
                    "MPOL_BIND", "MPOL_DEFAULT", "MPOL_INTERLEAVE", "MPOL_LOCAL", "MPOL_PREFERRED",
                    "MPOL_PREFERRED_MANY", "MPOL_WEIGHTED_INTERLEAVE"
                ],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"]
            },
            "mountExtensions": { "idmap": { "enabled": is_known("idmap") } },
            "netDevices": { "enabled": true }
        },
        "annotations": { "org.opencontainers.runc.checkpoint.enabled": "false" },
        // No annotation changes what this runtime does.
        "potentiallyUnsafeConfigAnnotations": []
    })
}

/// Whether the mounts of this build act on an option: asked of the very code that will.
fn is_known(option: &str) -> bool {
    Options::parse(&[option.to_owned()])
        .is_ok_and(|parsed| parsed.filesystem.is_empty() || FOR_ANY_FILE_SYSTEM.contains(&option))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_build_acts_on_is_promised() {
        let features = features();
        let has = |option: &str| {
            features["mountOptions"]
                .to_string()
                .contains(&format!("{option:?}"))
        };
        assert!(has("rbind") && has("ro") && has("rslave"));
        assert!(!has("x-no-such-option"));
        let names: Vec<String> = CAPABILITIES.split(' ').map(str::to_owned).collect();
        let all = tepui_isolators::linux::capabilities::mask(&names);
        assert_eq!(all.ok(), Some((1 << names.len()) - 1));
    }
}
