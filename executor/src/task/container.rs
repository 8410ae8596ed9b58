//! `TaskInfo.container`: network, volumes, rights and limits of the container.

use std::path::{Path, PathBuf};

use tepui_isolators::linux::seccomp;

use super::{below, invalid};
use crate::agent::messages::{
    Capability, CapabilityInfo, ContainerInfo, ContainerType, DockerInfo, DockerNetwork, IpcMode,
    LinuxInfo, MountPropagationMode, Named, RlimitInfo, RlimitType, SandboxPathType, SeccompInfo,
    Volume, VolumeMode, VolumeSourceType,
};
use crate::beneath;
use crate::core::TaskProblem;
use crate::report;
use crate::settings::Settings;
use crate::spec::{Bind, Capabilities, Options, Seccomp};

/// Whether the image is asked for at its source each time.
pub fn always_pulls(container: &ContainerInfo) -> bool {
    let docker = container
        .docker
        .as_ref()
        .is_some_and(|docker| docker.force_pull_image());
    let image = container
        .mesos
        .as_ref()
        .and_then(|mesos| mesos.image.as_ref());
    docker || image.is_some_and(|image| !image.cached())
}

/// Adds what the container asks for to `options`.
///
/// # Errors
/// With the field that cannot be honoured.
pub fn apply(
    container: &ContainerInfo,
    options: &mut Options,
    sandbox: &Path,
    has_image: bool,
    settings: &Settings,
) -> Result<(), TaskProblem> {
    if container.tty_info.is_some() {
        return Err(invalid(
            "container.tty_info",
            "this version makes no terminals for tasks; leave it out",
        ));
    }
    if container
        .network_infos
        .iter()
        .any(|network| network.name.is_some())
    {
        return Err(invalid(
            "container.network_infos",
            "named networks are not supported; use the host's",
        ));
    }
    if container.r#type == i32::from(ContainerType::Docker)
        && let Some(docker) = &container.docker
    {
        apply_docker(docker, options)?;
    }
    for (index, volume) in container.volumes.iter().enumerate() {
        let bind = bind(volume, sandbox, options.sandbox.as_deref(), has_image)
            .map_err(|rule| invalid(&format!("container.volumes[{index}]"), &rule))?;
        options.binds.push(bind);
    }
    if let Some(linux) = &container.linux_info {
        apply_linux(linux, options, settings)?;
    }
    if let Some(limits) = &container.rlimit_info {
        options.rlimits = rlimits(limits)?;
    }
    Ok(())
}

fn apply_docker(docker: &DockerInfo, options: &mut Options) -> Result<(), TaskProblem> {
    if docker.privileged() {
        return Err(invalid(
            "container.docker.privileged",
            "privileged containers are not run",
        ));
    }
    if let Some(parameter) = docker.parameters.first() {
        let rule = "parameters of docker run are not supported by this version; leave them out";
        return Err(invalid(
            &format!("container.docker.parameters[{}]", parameter.key),
            rule,
        ));
    }
    if !docker.port_mappings.is_empty() {
        return Err(invalid(
            "container.docker.port_mappings",
            "there is no bridge network; use network HOST",
        ));
    }
    if docker.volume_driver.is_some() {
        return Err(invalid(
            "container.docker.volume_driver",
            "volume drivers are not supported",
        ));
    }
    match docker.network() {
        DockerNetwork::Host => options.host_network = true,
        DockerNetwork::None => options.host_network = false,
        other => {
            return Err(invalid(
                "container.docker.network",
                &format!("{other:?} is not supported; use HOST or NONE"),
            ));
        }
    }
    Ok(())
}

fn bind(
    volume: &Volume,
    sandbox: &Path,
    inside: Option<&str>,
    has_image: bool,
) -> Result<Bind, String> {
    let (source, plain) = volume_source(volume, sandbox)?;
    let path = Path::new(&volume.container_path);
    let target = match (path.is_absolute(), inside) {
        (true, _) => path.to_owned(),
        (false, Some(inside)) => {
            below(Path::new(inside), &volume.container_path).ok_or_else(|| {
                "container_path must stay below the sandbox, without \"..\"".to_owned()
            })?
        }
        (false, None) => return Err("container_path must be absolute".to_owned()),
    };
    if !has_image && !target.exists() {
        return Err(format!(
            "{} does not exist on the host, and there is no image to make it in",
            target.display()
        ));
    }
    let readonly = match VolumeMode::try_from(volume.mode) {
        Ok(VolumeMode::Rw) => false,
        Ok(VolumeMode::Ro) => true,
        Err(_) => return Err("mode is neither RW nor RO".to_owned()),
    };
    Ok(Bind {
        source,
        target: target.display().to_string(),
        readonly,
        plain,
    })
}

/// The source, and whether it lies in the sandbox, where earlier tasks may have planted links.
fn volume_source(volume: &Volume, sandbox: &Path) -> Result<(PathBuf, bool), String> {
    let in_sandbox = |path: &str| {
        let directory =
            below(sandbox, path).ok_or_else(|| format!("{path:?} must stay below the sandbox"))?;
        beneath::make_directory(sandbox, Path::new(path)).map_err(|error| {
            format!(
                "could not make {} without following links: {error}",
                directory.display()
            )
        })?;
        Ok((directory, true))
    };
    let on_host = |path: &str| match Path::new(path) {
        absolute if absolute.is_absolute() && absolute.exists() => Ok((absolute.to_owned(), false)),
        absolute if absolute.is_absolute() => Err(format!("{path:?} does not exist on the host")),
        _ => Err(format!("{path:?} must be absolute")),
    };
    match (&volume.host_path, &volume.source, &volume.image) {
        (Some(path), None, None) if Path::new(path).is_absolute() => on_host(path),
        (Some(path), None, None) => in_sandbox(path),
        (None, Some(source), None) => match source
            .r#type
            .and_then(|kind| VolumeSourceType::try_from(kind).ok())
        {
            Some(VolumeSourceType::HostPath) => {
                let host = source
                    .host_path
                    .as_ref()
                    .ok_or("source.host_path is missing")?;
                let mode = host
                    .mount_propagation
                    .as_ref()
                    .and_then(|propagation| propagation.mode);
                if mode == Some(MountPropagationMode::Bidirectional.into()) {
                    return Err(
                        "mount_propagation BIDIRECTIONAL is not supported by this version"
                            .to_owned(),
                    );
                }
                on_host(&host.path)
            }
            Some(VolumeSourceType::SandboxPath) => {
                let path = source
                    .sandbox_path
                    .as_ref()
                    .ok_or("source.sandbox_path is missing")?;
                match path
                    .r#type
                    .and_then(|kind| SandboxPathType::try_from(kind).ok())
                {
                    Some(SandboxPathType::Self_) => in_sandbox(&path.path),
                    _ => Err("source.sandbox_path.type must be SELF in this version".to_owned()),
                }
            }
            _ => Err("source.type must be HOST_PATH or SANDBOX_PATH in this version".to_owned()),
        },
        (None, None, Some(_)) => Err("image volumes are not supported by this version".to_owned()),
        _ => Err("it needs exactly one of host_path, source and image".to_owned()),
    }
}

fn apply_linux(
    linux: &LinuxInfo,
    options: &mut Options,
    settings: &Settings,
) -> Result<(), TaskProblem> {
    if linux.share_pid_namespace == Some(true) {
        return Err(invalid(
            "container.linux_info.share_pid_namespace",
            "tasks always have a pid namespace of their own",
        ));
    }
    let ipc = linux.ipc_mode.and_then(|mode| IpcMode::try_from(mode).ok());
    if ipc == Some(IpcMode::ShareParent) {
        return Err(invalid(
            "container.linux_info.ipc_mode",
            "SHARE_PARENT is not supported by this version",
        ));
    }
    if let Some(megabytes) = linux.shm_size {
        if ipc != Some(IpcMode::Private) {
            return Err(invalid(
                "container.linux_info.shm_size",
                "it can be set only with ipc_mode PRIVATE",
            ));
        }
        options.shm_size = Some(u64::from(megabytes) << 20);
    }
    if linux.capability_info.is_some() && linux.effective_capabilities.is_some() {
        let rule = "capability_info is its old name; set only one of the two";
        return Err(invalid("container.linux_info.effective_capabilities", rule));
    }
    let effective = linux
        .effective_capabilities
        .as_ref()
        .or(linux.capability_info.as_ref());
    options.capabilities = capabilities(effective, linux.bounding_capabilities.as_ref())?;
    if let Some(info) = &linux.seccomp {
        options.seccomp = seccomp_profile(info, settings)?;
    }
    Ok(())
}

/// Mesos' rules: an absent set is the default, an empty one is none; bounding follows effective.
fn capabilities(
    effective: Option<&CapabilityInfo>,
    bounding: Option<&CapabilityInfo>,
) -> Result<Capabilities, TaskProblem> {
    let names = |info: &CapabilityInfo| -> Result<Vec<String>, TaskProblem> {
        let name = |number: &i32| {
            let field = "container.linux_info.effective_capabilities";
            let known = Capability::try_from(*number)
                .ok()
                .filter(|capability| *capability != Capability::Unknown);
            known
                .map(|capability| format!("CAP_{}", capability.name()))
                .ok_or_else(|| invalid(field, &format!("there is no capability {number}")))
        };
        info.capabilities.iter().map(name).collect()
    };
    let default = Capabilities::default();
    let asked = effective.map(names).transpose()?;
    let named = asked.is_some();
    let bounding = match (bounding.map(names).transpose()?, &asked) {
        (Some(bounding), _) => bounding,
        (None, Some(effective)) => effective.clone(),
        (None, None) => default.bounding,
    };
    let effective = asked.unwrap_or_else(|| {
        // Only bounding given: what is left of the default.
        default
            .effective
            .into_iter()
            .filter(|name| bounding.contains(name))
            .collect()
    });
    match effective.iter().find(|name| !bounding.contains(name)) {
        Some(name) => Err(invalid(
            "container.linux_info.effective_capabilities",
            &format!("{name} is not in bounding_capabilities"),
        )),
        None => Ok(Capabilities {
            effective,
            bounding,
            named,
        }),
    }
}

fn seccomp_profile(info: &SeccompInfo, settings: &Settings) -> Result<Seccomp, TaskProblem> {
    let field = "container.linux_info.seccomp";
    match (&info.profile_name, info.unconfined()) {
        (Some(_), true) => Err(invalid(
            field,
            "profile_name and unconfined exclude each other",
        )),
        (None, true) => Ok(Seccomp::Unconfined),
        (None, false) => Err(invalid(field, "Missing Seccomp profile name")),
        (Some(name), false) => {
            let directory = settings.seccomp_config_dir.as_deref();
            let directory = directory
                .ok_or_else(|| invalid(field, "the executor has no --seccomp-config-dir"))?;
            let path = below(directory, name).ok_or_else(|| {
                invalid(
                    field,
                    &format!("profile_name {name:?} must stay below the profile directory"),
                )
            })?;
            let text = std::fs::read_to_string(&path).map_err(|error| {
                super::failed(format!(
                    "could not read the seccomp profile {}: {error}",
                    path.display()
                ))
            })?;
            let profile = seccomp::Profile::parse(name, &text)
                .map_err(|error| super::failed(report::chain(&error)))?;
            Ok(Seccomp::Profile(Box::new(profile)))
        }
    }
}

/// Both limits or neither, which is unlimited.
fn rlimits(info: &RlimitInfo) -> Result<Vec<(String, u64, u64)>, TaskProblem> {
    let one = |limit: &crate::agent::messages::Rlimit| {
        let field = "container.rlimit_info";
        let kind = limit
            .r#type
            .and_then(|kind| RlimitType::try_from(kind).ok());
        let kind = kind.filter(|kind| *kind != RlimitType::Unknown);
        let kind = kind.ok_or_else(|| invalid(field, "a limit has no type that is known"))?;
        let name = kind.name().replacen("RLMT_", "RLIMIT_", 1);
        match (limit.soft, limit.hard) {
            (Some(soft), Some(hard)) if soft <= hard => Ok((name, soft, hard)),
            (None, None) => Ok((name, u64::MAX, u64::MAX)),
            (Some(_), Some(_)) => Err(invalid(field, &format!("{name}: soft is above hard"))),
            _ => Err(invalid(
                field,
                &format!("{name}: set both soft and hard, or neither for unlimited"),
            )),
        }
    };
    info.rlimits.iter().map(one).collect()
}
