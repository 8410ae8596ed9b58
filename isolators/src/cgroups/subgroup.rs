//! The cgroups below a container's own that a person names for another process of it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// Takes a runtime's `--cgroup` arguments apart: `PATH`, or `CONTROLLER[,CONTROLLER…]:PATH` any number of times.
///
/// # Errors
/// When a controller is empty or named twice, or one of several arguments names none.
pub fn subgroups(arguments: &[String]) -> Result<BTreeMap<String, String>> {
    let mut subgroups = BTreeMap::new();
    for argument in arguments {
        let (controllers, path) = match argument.split_once(':') {
            Some((controllers, path)) => (controllers.split(',').collect(), path),
            None if arguments.len() == 1 => (vec![""], argument.as_str()),
            None => {
                let rule = "with several of them each must name its controllers: CONTROLLER:PATH";
                return Err(refuse(argument, rule));
            }
        };
        for controller in controllers {
            if controller.is_empty() && argument.contains(':') {
                return Err(refuse(argument, "a controller's name is missing"));
            }
            let earlier = subgroups.insert(controller.to_owned(), path.to_owned());
            if earlier.is_some() {
                return Err(refuse(argument, "a controller is named twice"));
            }
        }
    }
    Ok(subgroups)
}

pub(super) fn refuse(value: &str, rule: &str) -> Error {
    Error::Config {
        field: "--cgroup",
        value: format!("{value:?}"),
        rule: rule.to_owned(),
    }
}

/// A cgroup below another that a person named.
pub(super) fn below(directory: &Path, subgroup: &str) -> Result<PathBuf> {
    let mut path = directory.to_owned();
    for component in Path::new(subgroup).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let rule = "it must lie below the container's own cgroup, without `..`";
                return Err(refuse(subgroup, rule));
            }
        }
    }
    match path.is_dir() {
        true => Ok(path),
        false => {
            let rule = format!("there is no cgroup {}", path.display());
            Err(refuse(subgroup, &rule))
        }
    }
}
