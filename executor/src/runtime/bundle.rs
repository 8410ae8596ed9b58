//! An OCI bundle on disk, as a declaration: runtime-spec bundle.md and config.md.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, MemoryPolicyFlagType,
    MemoryPolicyModeType, Process, Spec,
};
use serde_json::Value;
use tepui_isolators::cgroups::device_rules::usual_rules;
use tepui_isolators::linux::capabilities;
use tepui_isolators::observe::whole;
use tepui_isolators::posix::rlimits;
use tepui_isolators::{CgroupPlacement, ContainerId, Declaration, RootFilesystem};

use super::error::{Error, Result};

/// Where the cgroups of containers go that name none.
const CGROUP_PARENT: &str = "/tepui";

/// A bundle that was read and checked.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its directory, absolute.
    pub path: PathBuf,
    /// Its root file system, absolute.
    pub rootfs: PathBuf,
    /// `config.json`, all paths of the host made absolute.
    pub spec: Spec,
}

impl Bundle {
    /// Reads the bundle in `path`.
    ///
    /// # Errors
    /// When the file is missing or says what no container can be.
    pub fn load(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(Error::file("find the bundle", path))?;
        let file = path.join("config.json");
        let text = match whole(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::bundle(format!(
                    "JSON specification file config.json not found in {}",
                    path.display()
                )));
            }
            other => other.map_err(Error::file("read", &file))?,
        };
        let mut spec: Spec = parse(&text).map_err(Error::file("understand", &file))?;
        check(&spec)?;
        forget_unset_pids(&mut spec, &text);
        forget_empty_paths(&mut spec);
        let root = spec.root().as_ref().map(|root| path.join(root.path()));
        let rootfs = root.ok_or_else(|| Error::bundle("root must be specified"))?;
        // As the mounts spell it: some are sources inside of it.
        let rootfs = std::path::absolute(&rootfs)
            .map_err(Error::file("use the root file system", &rootfs))?;
        if !rootfs.is_dir() {
            let reason = format!(
                "rootfs ({}) does not exist or is not a directory",
                rootfs.display()
            );
            return Err(Error::bundle(reason));
        }
        for mount in spec.mounts_mut().iter_mut().flatten() {
            let options = mount.options().iter().flatten();
            let mut words = options.map(String::as_str).chain(mount.typ().as_deref());
            let is_bind = words.any(|word| matches!(word, "bind" | "rbind"));
            if let (true, Some(source)) = (is_bind, mount.source().clone()) {
                mount.set_source(Some(path.join(source)));
            }
        }
        Ok(Self { path, rootfs, spec })
    }

    /// What is to be made of it.
    ///
    /// # Errors
    /// When `linux.cgroupsPath` is no path of a cgroup.
    pub fn declaration(&self, id: &ContainerId) -> Result<Declaration> {
        let mut spec = self.spec.clone();
        allow_usual_devices(&mut spec);
        map_the_caller(&mut spec);
        Ok(Declaration {
            cgroups: cgroups(&spec, id)?,
            spec,
            rootfs: RootFilesystem::Directory(self.rootfs.clone()),
            init: false,
            executable: None,
            keep_keyring: false,
            reset_cpu_affinity: true,
        })
    }
}

/// Reads a `config.json` or a part of it.
///
/// # Errors
/// What is wrong with the text, with line and column.
pub fn parse<T: serde::de::DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(text).or_else(|error| {
        // The library refuses capabilities that it does not know and spells two scheduler flags its own way.
        let mut value: Value = serde_json::from_slice(text)?;
        check_names(&value)?;
        match adapt(&mut value) {
            true => serde_json::from_value(value),
            false => Err(error),
        }
    })
}

/// Names that the library has no room for, said in our words.
fn check_names(value: &Value) -> serde_json::Result<()> {
    let process = value.get("process").unwrap_or(value);
    let limits = process.get("rlimits").and_then(Value::as_array);
    for name in limits
        .into_iter()
        .flatten()
        .filter_map(|limit| limit["type"].as_str())
    {
        rlimits::check_type(name).map_err(serde::de::Error::custom)?;
    }
    let Some(policy) = value.pointer("/linux/memoryPolicy") else {
        return Ok(());
    };
    let known = |name: &Value, what: &str, kind: fn(Value) -> bool| match kind(name.clone()) {
        true => Ok(()),
        false => Err(serde::de::Error::custom(format!(
            "invalid memory policy {what} {name}"
        ))),
    };
    known(&policy["mode"], "mode", |name| {
        serde_json::from_value::<MemoryPolicyModeType>(name).is_ok()
    })?;
    for flag in policy["flags"].as_array().into_iter().flatten() {
        known(flag, "flag", |name| {
            serde_json::from_value::<MemoryPolicyFlagType>(name).is_ok()
        })?;
    }
    Ok(())
}

/// Rewrites what the library reads otherwise than runtime-spec has it; whether there was anything.
fn adapt(value: &mut Value) -> bool {
    let mut changed = false;
    let process = match value.get_mut("process") {
        Some(process) => process,
        None => value,
    };
    for set in process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(|sets| sets.values_mut())
        .filter_map(Value::as_array_mut)
    {
        let is_known = |name: &Value| name.as_str().is_some_and(capabilities::is_known);
        let (known, unknown): (Vec<Value>, Vec<Value>) = set.drain(..).partition(is_known);
        if !unknown.is_empty() {
            let names: Vec<String> = unknown.iter().map(Value::to_string).collect();
            tracing::warn!(
                "ignoring unknown or unavailable capabilities: [{}]",
                names.join(" ")
            );
            changed = true;
        }
        *set = known;
    }
    let flags = process
        .pointer_mut("/scheduler/flags")
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        let spelt = match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => "SCHED_RESET_ON_FORK",
            Some("SCHED_FLAG_DL_OVERRUN") => "SCHED_FLAG_D_L_OVERRUN",
            _ => continue,
        };
        *flag = spelt.into();
        changed = true;
    }
    if let Some(process) = process.as_object_mut()
        && process.contains_key("cwd")
        && process.get("user").is_none_or(Value::is_null)
    {
        process.insert("user".to_owned(), serde_json::json!({ "uid": 0, "gid": 0 }));
        changed = true;
    }
    changed
}

fn check(spec: &Spec) -> Result<()> {
    let version = spec.version();
    if version.is_empty() {
        return Err(Error::bundle("ociVersion must be specified"));
    }
    if !version.starts_with("1.") {
        let reason = format!("ociVersion {version} is not supported: only 1.x is");
        return Err(Error::bundle(reason));
    }
    if spec.linux().is_none() {
        return Err(Error::bundle("linux must be specified"));
    }
    if let Some(process) = spec.process() {
        check_process(process)?;
    }
    for hook in spec.hooks().iter().flat_map(super::hooks::all) {
        if !hook.path().is_absolute() {
            let reason = format!("hook path {} must be absolute", hook.path().display());
            return Err(Error::bundle(reason));
        }
    }
    Ok(())
}

/// What every process of a container must have.
///
/// # Errors
/// The property that is missing.
pub fn check_process(process: &Process) -> Result<()> {
    if process.cwd().as_os_str().is_empty() {
        return Err(Error::bundle("Cwd property must not be empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(Error::bundle("Cwd must be an absolute path"));
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::bundle("args must not be empty"));
    }
    Ok(())
}

/// The library reads a `pids` without `limit` as a limit of zero, which it does not say.
fn forget_unset_pids(spec: &mut Spec, text: &[u8]) {
    let resources = spec
        .linux_mut()
        .as_mut()
        .and_then(|linux| linux.resources_mut().as_mut());
    let Some(resources) = resources else { return };
    if resources
        .pids()
        .as_ref()
        .is_some_and(|pids| pids.limit() == 0)
    {
        let value: Value = serde_json::from_slice(text).unwrap_or_default();
        if value
            .pointer("/linux/resources/pids/limit")
            .is_none_or(Value::is_null)
        {
            resources.set_pids(None);
        }
    }
}

/// A namespace with an empty path is a new one, as it is without.
fn forget_empty_paths(spec: &mut Spec) {
    let linux = spec.linux_mut().as_mut();
    let namespaces = linux.and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        if namespace
            .path()
            .as_ref()
            .is_some_and(|path| path.as_os_str().is_empty())
        {
            namespace.set_path(None);
        }
    }
}

/// Every container may use the devices that every program expects, after what its own rules say; without rules of its
/// own it may use nothing else.
fn allow_usual_devices(spec: &mut Spec) {
    let mut usual = usual_rules();
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let mut resources = linux.resources().clone().unwrap_or_default();
    let rules = match resources
        .devices()
        .clone()
        .filter(|rules| !rules.is_empty())
    {
        None => usual,
        Some(mut rules) => {
            // The first denies everything.
            rules.extend(usual.drain(1..));
            rules
        }
    };
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
}

/// A new user namespace without any map gets the least one: its root is the caller, and there is nobody else.
fn map_the_caller(spec: &mut Spec) {
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let is_new = |namespace: &LinuxNamespace| {
        namespace.typ() == LinuxNamespaceType::User && namespace.path().is_none()
    };
    let mut namespaces = linux.namespaces().iter().flatten();
    let is_mapped = [linux.uid_mappings(), linux.gid_mappings()]
        .into_iter()
        .flatten()
        .any(|maps| !maps.is_empty());
    if is_mapped || !namespaces.any(is_new) {
        return;
    }
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    tracing::debug!(
        "linux.uidMappings and linux.gidMappings are empty: root of the container is user {uid} and group {gid}"
    );
    let map = |id: u32| {
        let map = LinuxIdMappingBuilder::default().host_id(id);
        let map = map.container_id(0u32).size(1u32).build();
        vec![map.expect("all its fields are set")]
    };
    linux
        .set_uid_mappings(Some(map(uid.as_raw())))
        .set_gid_mappings(Some(map(gid.as_raw())));
}

fn cgroups(spec: &Spec, id: &ContainerId) -> Result<CgroupPlacement> {
    let path = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().clone());
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let path = path.unwrap_or_else(|| Path::new(CGROUP_PARENT).join(id.as_str()));
    // A relative one is below a place of ours (runtime-spec config-linux "Cgroups Path").
    let mut clean = PathBuf::from("/");
    for part in Path::new(CGROUP_PARENT).join(path).components() {
        match part {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    let name = clean.file_name().and_then(|name| name.to_str());
    match (clean.parent(), name) {
        (Some(parent), Some(name)) => Ok(CgroupPlacement {
            parent: parent.to_owned(),
            nested: Default::default(),
            name: Some(name.to_owned()),
        }),
        _ => Err(Error::bundle(
            "linux.cgroupsPath must name a cgroup below the root, in UTF-8",
        )),
    }
}
