//! `spec`: writes an example `config.json` to begin a bundle with, the one that callers of OCI runtimes expect.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use oci_spec::runtime::{
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, Mount, Spec,
};
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::PrettyFormatter;
use tepui_isolators::cgroups::hierarchy::Hierarchies;

use super::Failure;
use super::arguments;

const FILE: &str = "config.json";

/// The example for root on a host with cgroup v1.
const EXAMPLE: &str = include_str!("example.json");

/// Runs the command.
pub(super) fn run(arguments: &arguments::Spec) -> Result<(), Failure> {
    let path = match &arguments.bundle {
        Some(bundle) => bundle.join(FILE),
        None => Path::new(FILE).to_owned(),
    };
    let mut spec: Spec = serde_json::from_str(EXAMPLE)?;
    if !Hierarchies::of_this_host()?.has_v1_controllers() {
        add_namespace(&mut spec, LinuxNamespaceType::Cgroup)?;
    }
    if arguments.rootless {
        make_rootless(&mut spec)?;
    }
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"\t");
    spec.serialize(&mut Serializer::with_formatter(&mut text, formatter))?;
    // A bundle that somebody worked on is never overwritten.
    match File::create_new(&path) {
        Ok(mut file) => Ok(file.write_all(&text)?),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Err(format!("File {} exists. Remove it first", path.display()).into())
        }
        Err(error) => Err(format!("could not make {}: {error}", path.display()).into()),
    }
}

fn namespaces(spec: &Spec) -> Vec<LinuxNamespace> {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().clone());
    namespaces.unwrap_or_default()
}

fn set_namespaces(spec: &mut Spec, namespaces: Vec<LinuxNamespace>) {
    if let Some(linux) = spec.linux_mut() {
        linux.set_namespaces(Some(namespaces));
    }
}

fn add_namespace(spec: &mut Spec, kind: LinuxNamespaceType) -> Result<(), Failure> {
    let mut all = namespaces(spec);
    all.push(LinuxNamespaceBuilder::default().typ(kind).build()?);
    set_namespaces(spec, all);
    Ok(())
}

/// For somebody without root: a user namespace with themselves in it, the host's network and `/sys`, no groups that the
/// namespace does not have, no cgroup settings.
fn make_rootless(spec: &mut Spec) -> Result<(), Failure> {
    use LinuxNamespaceType::{Network, User};
    let mut kept = namespaces(spec);
    kept.retain(|namespace| !matches!(namespace.typ(), Network | User));
    set_namespaces(spec, kept);
    add_namespace(spec, User)?;
    if let Some(linux) = spec.linux_mut() {
        let map = |host: u32| -> Result<LinuxIdMapping, Failure> {
            let map = LinuxIdMappingBuilder::default()
                .host_id(host)
                .container_id(0u32);
            Ok(map.size(1u32).build()?)
        };
        linux.set_uid_mappings(Some(vec![map(rustix::process::geteuid().as_raw())?]));
        linux.set_gid_mappings(Some(vec![map(rustix::process::getegid().as_raw())?]));
        linux.set_resources(None);
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.destination() == Path::new("/sys") {
            bind_sys(mount);
        }
        if let Some(options) = mount.options_mut() {
            options.retain(|option| !option.starts_with("gid=") && !option.starts_with("uid="));
        }
    }
    Ok(())
}

/// A new sysfs needs a network namespace of one's own.
fn bind_sys(mount: &mut Mount) {
    let options = ["rbind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned);
    mount.set_source(Some("/sys".into()));
    mount.set_typ(Some("none".into()));
    mount.set_options(Some(options.to_vec()));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_example_is_lost_or_added() {
        let spec: Spec = serde_json::from_str(EXAMPLE).unwrap();
        let before: serde_json::Value = serde_json::from_str(EXAMPLE).unwrap();
        assert_eq!(serde_json::to_value(&spec).unwrap(), before);
    }

    #[test]
    fn a_bundle_is_made_once() {
        let bundle = tempfile::tempdir().unwrap();
        let arguments = arguments::Spec {
            bundle: Some(bundle.path().to_owned()),
            rootless: true,
        };
        run(&arguments).unwrap();
        let text = std::fs::read_to_string(bundle.path().join(FILE)).unwrap();
        let written: serde_json::Value = serde_json::from_str(&text).unwrap();
        let namespaces = written["linux"]["namespaces"].as_array().unwrap();
        assert_eq!(namespaces.last().unwrap()["type"], "user");
        assert!(!namespaces.iter().any(|one| one["type"] == "network"));
        assert!(!text.contains("gid="), "{text}");
        assert!(written["linux"].get("resources").is_none());
        assert_eq!(written["linux"]["uidMappings"][0]["size"], 1);
        let again = run(&arguments).unwrap_err().to_string();
        assert!(again.contains("Remove it first"), "{again}");
    }
}
