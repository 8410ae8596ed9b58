//! `spec`: writes an example `config.json` to begin a bundle with, the one that callers of OCI runtimes expect.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use tepui_isolators::cgroups::hierarchy::Hierarchies;

use super::Failure;
use super::arguments::Spec;

const FILE: &str = "config.json";

/// The example for root on a host with cgroup v1. It is changed as text, so that a person finds it in the order in
/// which runtime-spec explains it.
const EXAMPLE: &str = include_str!("example.json");

/// Runs the command.
pub(super) fn run(arguments: &Spec) -> Result<(), Failure> {
    let path = match &arguments.bundle {
        Some(bundle) => bundle.join(FILE),
        None => Path::new(FILE).to_owned(),
    };
    let has_v1 = Hierarchies::of_this_host()?.has_v1_controllers();
    let text = example(!has_v1, arguments.rootless);
    // A bundle that somebody worked on is never overwritten.
    match File::create_new(&path) {
        Ok(mut file) => Ok(file.write_all(text.as_bytes())?),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Err(format!("File {} exists. Remove it first", path.display()).into())
        }
        Err(error) => Err(format!("could not make {}: {error}", path.display()).into()),
    }
}

fn example(cgroup_namespace: bool, rootless: bool) -> String {
    let mut text = EXAMPLE.to_owned();
    if cgroup_namespace {
        text = add_namespace(&text, "cgroup");
    }
    match rootless {
        true => for_rootless(&text),
        false => text,
    }
}

const LAST_BRACKET: &str = " }\n\t\t],\n\t\t\"maskedPaths\"";

fn add_namespace(text: &str, kind: &str) -> String {
    let added = format!(" }},\n\t\t\t{{ \"type\": \"{kind}\"{LAST_BRACKET}");
    text.replace(LAST_BRACKET, &added)
}

/// For somebody without root: a user namespace with themselves in it, the host's network and `/sys` (a new sysfs needs
/// a network namespace of one's own), no groups that the namespace does not have, no cgroup settings.
fn for_rootless(text: &str) -> String {
    let map = |id: u32| format!("[{{ \"containerID\": 0, \"hostID\": {id}, \"size\": 1 }}]");
    let maps = format!(
        "\"uidMappings\": {},\n\t\t\"gidMappings\": {},",
        map(rustix::process::geteuid().as_raw()),
        map(rustix::process::getegid().as_raw()),
    );
    add_namespace(text, "user")
        .replace("{ \"type\": \"network\" },\n\t\t\t", "")
        .replace(
            "\"resources\": { \"devices\": [{ \"allow\": false, \"access\": \"rwm\" }] },",
            &maps,
        )
        .replace(", \"gid=5\"", "")
        .replace("\"type\": \"sysfs\"", "\"type\": \"none\"")
        .replace("\"source\": \"sysfs\"", "\"source\": \"/sys\"")
        .replace(
            "[\"nosuid\", \"noexec\", \"nodev\", \"ro\"]",
            "[\"rbind\", \"nosuid\", \"noexec\", \"nodev\", \"ro\"]",
        )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_example_is_a_configuration() {
        for (cgroup, rootless) in [(false, false), (true, false), (true, true)] {
            let text = example(cgroup, rootless);
            let spec: oci_spec::runtime::Spec = serde_json::from_str(&text).unwrap();
            let namespaces = spec.linux().as_ref().unwrap().namespaces();
            // A rootless one has a user namespace in place of one for the network.
            let count = 5 + usize::from(cgroup);
            assert_eq!(namespaces.as_ref().unwrap().len(), count, "{text}");
            assert_eq!(spec.process().as_ref().unwrap().terminal(), Some(true));
        }
    }

    #[test]
    fn a_bundle_is_made_once() {
        let bundle = tempfile::tempdir().unwrap();
        let arguments = Spec {
            bundle: Some(bundle.path().to_owned()),
            rootless: true,
        };
        run(&arguments).unwrap();
        let text = std::fs::read_to_string(bundle.path().join(FILE)).unwrap();
        let written: Value = serde_json::from_str(&text).unwrap();
        let namespaces = written["linux"]["namespaces"].as_array().unwrap();
        assert_eq!(namespaces.last().unwrap()["type"], "user");
        assert!(!namespaces.contains(&json!({ "type": "network" })));
        assert!(!text.contains("gid="), "{text}");
        let mounts = written["mounts"].as_array().unwrap();
        let sys = mounts.iter().find(|mount| mount["destination"] == "/sys");
        assert_eq!(sys.unwrap()["type"], "none");
        assert_eq!(sys.unwrap()["options"][0], "rbind");
        assert!(written["linux"].get("resources").is_none());
        assert_eq!(written["linux"]["uidMappings"][0]["size"], 1);
        let again = run(&arguments).unwrap_err().to_string();
        assert!(again.contains("Remove it first"), "{again}");
    }
}
