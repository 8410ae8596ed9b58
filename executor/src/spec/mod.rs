//! Options become a `Declaration`: the one place that says what a container of ours looks like.
//!
//! Every way in (`task`, `commands::run`) fills [`Options`]; here they meet the image's configuration and the defaults.

mod command;
pub mod defaults;
mod user;

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use tepui_isolators::cgroups::hierarchy::{Hierarchies, Version};
use tepui_isolators::linux::seccomp;
use tepui_isolators::{CgroupPlacement, ContainerId, Declaration, Overlay, RootFilesystem};
use tepui_oci::{Image, Store};

pub use command::{Command, NoCommand, Resolved};
pub use user::HostUserError;

/// What a container is asked to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name.
    pub id: ContainerId,
    /// What it executes.
    pub command: Command,
    /// `NAME=value`, over the image's.
    pub environment: Vec<String>,
    /// Working directory; else the image's, else `sandbox`, else `/`.
    pub working_directory: Option<String>,
    /// User in Docker's form; else the image's, else root.
    pub user: Option<String>,
    /// Host name; else the id.
    pub hostname: Option<String>,
    /// Hard memory limit in bytes.
    pub memory: Option<i64>,
    /// Soft memory limit in bytes.
    pub memory_reservation: Option<i64>,
    /// CPUs that it is weighed by.
    pub cpu_request: Option<f64>,
    /// CPUs that it may use at most.
    pub cpu_limit: Option<f64>,
    /// Processes; 0 or less for no limit.
    pub pids: i64,
    /// Whether it stays on the host's network.
    pub host_network: bool,
    /// Whether its root file system is read-only.
    pub readonly_root: bool,
    /// Binds, after the file systems of the kernel.
    pub binds: Vec<Bind>,
    /// `RLIMIT_*` with soft and hard limit.
    pub rlimits: Vec<(String, u64, u64)>,
    /// Capability sets.
    pub capabilities: Capabilities,
    /// Seccomp profile.
    pub seccomp: Seccomp,
    /// Whether pid 1 is our init.
    pub init: bool,
    /// The sandbox as the container sees it.
    pub sandbox: Option<String>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// Where its cgroups go.
    pub cgroups: CgroupPlacement,
}

/// A directory or file of the host in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: String,
    /// Whether it can only be read.
    pub readonly: bool,
    /// Whether the source lies where a workload may have planted links.
    pub plain: bool,
}

/// Capabilities by their runtime-spec names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Effective and permitted; ambient too for a user other than root.
    pub effective: Vec<String>,
    /// What execve(2) can ever give.
    pub bounding: Vec<String>,
    /// Whether `effective` was asked for by name: then a user other than root keeps it through execve(2) too.
    pub named: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        let all: Vec<String> = defaults::CAPABILITIES
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        Self {
            effective: all.clone(),
            bounding: all,
            named: false,
        }
    }
}

/// Which seccomp profile.
#[derive(Debug, Clone, Default)]
pub enum Seccomp {
    /// Docker's.
    #[default]
    Default,
    /// One of the operator's.
    Profile(Box<seccomp::Profile>),
    /// None, as was asked for by name.
    Unconfined,
}

/// Options that cannot be a container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing to execute.
    #[error(transparent)]
    Command(#[from] NoCommand),
    /// The user is not in the image.
    #[error("user {user:?}")]
    User {
        /// As it was asked for.
        user: String,
        /// Why not.
        source: Box<tepui_oci::Error>,
    },
    /// The user is not on the host.
    #[error(transparent)]
    HostUser(#[from] HostUserError),
    /// The seccomp profile cannot be used.
    #[error(transparent)]
    Isolator(#[from] tepui_isolators::Error),
    /// The options do not make a runtime-spec configuration.
    #[error("the container's configuration is not valid")]
    Spec(#[from] serde_json::Error),
}

/// Makes the declaration of a container from its options and its image, if it has one.
///
/// # Errors
/// When user, command or profile cannot be resolved.
pub fn declare(
    options: &Options,
    store: &Store,
    image: Option<&Image>,
) -> Result<Declaration, Error> {
    let config = image.map(|image| &image.config);
    let resolved = options.command.resolve(config)?;
    let user = user::resolve(options.user.as_deref(), store, image)?;
    let cpu = Hierarchies::of_this_host()?.of("cpu");
    let cpu_is_v2 = cpu.is_some_and(|hierarchy| hierarchy.version == Version::V2);
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "hostname": hostname(options),
        "root": {"path": "rootfs", "readonly": options.readonly_root},
        "mounts": mounts(options, image.is_some()),
        "process": {
            "terminal": false,
            "user": user.to_json(),
            "args": resolved.arguments,
            "env": environment(options, config.map_or(&[][..], |config| &config.env)),
            "cwd": working_directory(options, config.and_then(|config| config.working_dir.as_deref())),
            "capabilities": capabilities(options, user.uid),
            "noNewPrivileges": true,
            "rlimits": rlimits(options),
        },
        "linux": {
            "namespaces": namespaces(options),
            "resources": resources(options, cpu_is_v2),
            "maskedPaths": defaults::MASKED_PATHS,
            "readonlyPaths": defaults::READONLY_PATHS,
        },
    });
    if let Some(filter) = filter(options)? {
        spec["linux"]["seccomp"] = filter;
    }
    Ok(Declaration {
        spec: serde_json::from_value::<Spec>(spec)?,
        rootfs: root(options, store, image),
        cgroups: options.cgroups.clone(),
        init: options.init,
        executable: resolved.executable,
        keep_keyring: false,
        reset_cpu_affinity: false,
    })
}

fn root(options: &Options, store: &Store, image: Option<&Image>) -> RootFilesystem {
    let Some(image) = image else {
        return RootFilesystem::Host;
    };
    RootFilesystem::Overlay(Overlay {
        layers: store.layers_directory(),
        lower: image.layers.iter().map(ToString::to_string).collect(),
        writable: store.writable(options.id.as_str()),
    })
}

/// At most 63 bytes (RFC 1123), from the id when none is asked for.
fn hostname(options: &Options) -> String {
    let name = options.hostname.as_deref().unwrap_or(options.id.as_str());
    name.chars().take(63).collect()
}

/// Later entries of a name replace earlier ones, at the place of the first.
fn environment(options: &Options, image: &[String]) -> Vec<String> {
    let mut all: Vec<String> = vec![defaults::PATH.into()];
    let name = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned());
    for entry in image.iter().chain(&options.environment) {
        // An entry without `=` sets nothing.
        let Some(new) = name(entry) else { continue };
        match all
            .iter_mut()
            .find(|old| name(old).as_deref() == Some(&new))
        {
            Some(old) => entry.clone_into(old),
            None => all.push(entry.clone()),
        }
    }
    all
}

fn working_directory(options: &Options, image: Option<&str>) -> String {
    let asked = options
        .working_directory
        .as_deref()
        .or(image.filter(|directory| !directory.is_empty()));
    let directory = asked.or(options.sandbox.as_deref()).unwrap_or("/");
    // The image's may be relative, from its root.
    if directory.starts_with('/') {
        directory.to_owned()
    } else {
        format!("/{directory}")
    }
}

fn mounts(options: &Options, has_image: bool) -> Vec<Value> {
    let mut mounts = defaults::mounts(options.shm_size);
    // On the host's network the host's way to resolve names is the right one.
    if has_image && options.host_network {
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            if std::fs::metadata(file).is_ok_and(|status| status.is_file()) {
                let options = ["bind", "ro", "nosuid", "nodev", "noexec", "private"];
                mounts.push(json!({"destination": file, "type": "bind", "source": file, "options": options}));
            }
        }
    }
    for bind in &options.binds {
        // Device nodes come from /dev alone, on all mounts below too. Mounts of the host that appear later come along
        // where they may be written to, and none goes back.
        let mut words = vec!["rbind", "rnodev"];
        words.extend(match bind.readonly {
            // What the host mounts there later would be writable.
            true => ["rro", "rprivate"].as_slice(),
            false => &["rslave"],
        });
        words.extend(bind.plain.then_some("x-tepui-plain-source"));
        mounts.push(json!({
            "destination": bind.target, "type": "bind", "source": bind.source, "options": words,
        }));
    }
    mounts
}

fn namespaces(options: &Options) -> Value {
    let mut all = vec!["mount", "pid", "uts", "ipc", "cgroup"];
    if !options.host_network {
        all.push("network");
    }
    all.into_iter().map(|kind| json!({"type": kind})).collect()
}

fn resources(options: &Options, cpu_is_v2: bool) -> Value {
    let mut resources = json!({"devices": defaults::device_rules()});
    let mut memory = json!({});
    if let Some(limit) = options.memory {
        memory["limit"] = json!(limit);
        // No swap on top: a task over its memory must end, not crawl.
        memory["swap"] = json!(limit);
    }
    if let Some(reservation) = options.memory_reservation {
        memory["reservation"] = json!(reservation);
    }
    resources["memory"] = memory;
    let mut cpu = json!({});
    if let Some(cpus) = options.cpu_request {
        // Mesos' numbers: on v2 the weight is not the one that shares convert to.
        if cpu_is_v2 {
            let weight = ((cpus * 100.0) as u64).clamp(1, 10_000);
            resources["unified"] = json!({"cpu.weight": weight.to_string()});
        } else {
            cpu["shares"] = json!(((cpus * 1024.0) as u64).max(2));
        }
    }
    if let Some(cpus) = options.cpu_limit {
        cpu["quota"] = json!(((cpus * defaults::CPU_PERIOD as f64) as i64).max(1000));
        cpu["period"] = json!(defaults::CPU_PERIOD);
    }
    resources["cpu"] = cpu;
    if options.pids > 0 {
        resources["pids"] = json!({"limit": options.pids});
    }
    resources
}

fn capabilities(options: &Options, uid: u32) -> Value {
    let Capabilities {
        effective,
        bounding,
        named,
    } = &options.capabilities;
    let none: &[String] = &[];
    let (own, kept) = match (uid == 0, named) {
        (true, _) => (effective.as_slice(), none),
        // Only what is ambient, and so inheritable, survives execve(2) of a user other than root (capabilities(7)).
        (false, true) => (effective.as_slice(), effective.as_slice()),
        // The default is for root; such a user has none, as in Docker.
        (false, false) => (none, none),
    };
    json!({"bounding": bounding, "effective": own, "permitted": own, "inheritable": kept, "ambient": kept})
}

fn rlimits(options: &Options) -> Value {
    let one =
        |(name, soft, hard): &(String, u64, u64)| json!({"type": name, "soft": soft, "hard": hard});
    options.rlimits.iter().map(one).collect()
}

fn filter(options: &Options) -> Result<Option<Value>, Error> {
    let profile = match &options.seccomp {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::Default => seccomp::docker_default(),
        Seccomp::Profile(profile) => profile,
    };
    let bounding = tepui_isolators::linux::capabilities::mask(&options.capabilities.bounding)?;
    let resolved = seccomp::resolve(profile, bounding, seccomp::running_kernel()?);
    Ok(Some(serde_json::to_value(resolved)?))
}
