//! A task's description becomes a request for a container. Every wish is honoured or refused by name: nothing that a
//! task asks for is passed over.

mod container;
mod resources;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tepui_isolators::{ContainerId, cgroups};
use tepui_oci::{DefaultRegistry, ImageReference};

use crate::agent::Environment;
use crate::agent::messages::{
    CommandInfo, ContainerInfo, ContainerType, ImageType, Reason, SecretType, TaskInfo,
    VariableType, read_json,
};
use crate::beneath;
use crate::core::TaskProblem;
use crate::report;
use crate::settings::{Placement, Settings};
use crate::spec::{Capabilities, Command, Options, Seccomp, defaults};
use crate::supervise::request::{Request, Stdio};

/// The sandbox as tasks with an image see it.
pub const SANDBOX: &str = "/mnt/mesos/sandbox";

/// What the executor knows before any task comes.
#[derive(Debug, Clone)]
pub struct Context {
    /// The command line.
    pub settings: Settings,
    /// Where plain image names are looked up.
    pub default_registry: Option<DefaultRegistry>,
    /// `tepui executor -- CMD ARGS`.
    pub command: Vec<String>,
    /// The executor's sandbox on the host.
    pub sandbox: PathBuf,
    /// Why no container can be run here at all.
    pub refusal: Option<String>,
    framework_id: String,
    executor_id: String,
}

impl Context {
    /// From what the agent and the command line say.
    pub fn new(
        settings: Settings,
        default_registry: Option<DefaultRegistry>,
        command: Vec<String>,
        environment: &Environment,
        refusal: Option<String>,
    ) -> Self {
        Self {
            settings,
            default_registry,
            command,
            // Its own path is the agent's affair and may have links; below it there are to be none.
            sandbox: environment
                .sandbox
                .canonicalize()
                .unwrap_or_else(|_| environment.sandbox.clone()),
            refusal,
            framework_id: environment.framework_id.clone(),
            executor_id: environment.executor_id.clone(),
        }
    }

    /// The executor's container: the last part of its sandbox, which the agent names after it.
    fn own_container(&self) -> Option<&str> {
        self.sandbox.file_name().and_then(|name| name.to_str())
    }

    /// What to run for a task. `in_group` tasks have sandboxes of their own below the executor's.
    ///
    /// # Errors
    /// With the field that cannot be honoured.
    pub fn request(&self, task: &TaskInfo, in_group: bool) -> Result<Request, TaskProblem> {
        if let Some(refusal) = &self.refusal {
            return Err(failed(refusal.clone()));
        }
        refuse_what_is_missing(task)?;
        let container = task.container.as_ref();
        let command = self.command_info(task)?;
        let image = self.image(container)?;
        let resources = resources::read(task)?;
        let sandbox = self.task_sandbox(task, in_group)?;
        let inside = if image.is_some() {
            SANDBOX.to_owned()
        } else {
            sandbox.display().to_string()
        };
        let id = self.container_id(&task.task_id.value);
        let mut options = Options {
            id,
            command: self.resolve_command(command.as_ref())?,
            environment: self.environment(task, command.as_ref(), &inside)?,
            working_directory: None,
            user: command.as_ref().and_then(|command| command.user.clone()),
            hostname: container.and_then(|container| container.hostname.clone()),
            memory: resources.memory_limit,
            memory_reservation: resources.memory_request,
            cpu_request: resources.cpu_request,
            cpu_limit: resources.cpu_limit,
            pids: defaults::PIDS,
            host_network: true,
            readonly_root: false,
            binds: Vec::new(),
            rlimits: Vec::new(),
            capabilities: Capabilities::default(),
            seccomp: Seccomp::Default,
            init: true,
            sandbox: Some(inside.clone()),
            shm_size: None,
            cgroups: self.cgroups()?,
        };
        if image.is_some() {
            options.binds.push(crate::spec::Bind {
                source: sandbox.clone(),
                target: inside,
                readonly: false,
                plain: true,
            });
        }
        if let Some(container) = container {
            container::apply(
                container,
                &mut options,
                &sandbox,
                image.is_some(),
                &self.settings,
            )?;
        }
        let always_pull = container.is_some_and(container::always_pulls);
        let output = in_group.then(|| sandbox.clone());
        Ok(Request {
            options,
            image,
            always_pull,
            stdio: Stdio {
                input: false,
                output,
            },
            sandbox: Some(sandbox),
        })
    }

    /// From `data`, from our command line, from the task itself: see the README.
    fn command_info(&self, task: &TaskInfo) -> Result<Option<CommandInfo>, TaskProblem> {
        if task.command.is_some() {
            return Ok(task.command.clone());
        }
        let Some(data) = task.data.as_ref() else {
            return Ok(None);
        };
        // Data of any other kind is the framework's own business.
        let Ok(serde_json::Value::Object(mut object)) = serde_json::from_slice(data) else {
            return Ok(None);
        };
        let Some(command) = object.remove("command") else {
            return Ok(None);
        };
        let bad = |reason: String| invalid("data.command", &reason);
        let text = serde_json::to_vec(&command).map_err(|error| bad(error.to_string()))?;
        let (command, unknown) =
            read_json::<CommandInfo>(&text).map_err(|error| bad(report::chain(&error)))?;
        match unknown.is_empty() {
            true => Ok(Some(command)),
            // Here it is a person who writes, and a misspelt field would be passed over.
            false => Err(bad(format!(
                "CommandInfo has no field {}",
                unknown.join(", ")
            ))),
        }
    }

    fn resolve_command(&self, command: Option<&CommandInfo>) -> Result<Command, TaskProblem> {
        let Some(command) = command else {
            return Ok(match self.command.first() {
                Some(program) => Command::Exec {
                    value: Some(program.clone()),
                    arguments: self.command.clone(),
                },
                None => Command::Image(Vec::new()),
            });
        };
        if !command.uris.is_empty() {
            return Err(invalid(
                "command.uris",
                "this version fetches none; put the files into the image or a volume",
            ));
        }
        match (command.shell(), &command.value) {
            (true, Some(value)) => Ok(Command::Shell(value.clone())),
            (true, None) => Err(invalid(
                "command.value",
                "it is not set, and shell is true (the default); set it, or set shell to false to use the image's Entrypoint",
            )),
            (false, value) => Ok(Command::Exec {
                value: value.clone(),
                arguments: command.arguments.clone(),
            }),
        }
    }

    fn image(
        &self,
        container: Option<&ContainerInfo>,
    ) -> Result<Option<ImageReference>, TaskProblem> {
        let Some(container) = container else {
            return Ok(None);
        };
        let name = match ContainerType::try_from(container.r#type) {
            Ok(ContainerType::Docker) => container
                .docker
                .as_ref()
                .map(|docker| docker.image.as_str()),
            Ok(ContainerType::Mesos) => {
                let image = container
                    .mesos
                    .as_ref()
                    .and_then(|mesos| mesos.image.as_ref());
                match image.map(|image| (ImageType::try_from(image.r#type), &image.docker)) {
                    None => None,
                    Some((Ok(ImageType::Docker), Some(docker))) => {
                        if docker.config.is_some() {
                            let rule = "this version pulls without credentials; leave it out, or use an OCI layout";
                            return Err(invalid("container.mesos.image.docker.config", rule));
                        }
                        Some(docker.name.as_str())
                    }
                    Some(_) => {
                        return Err(invalid(
                            "container.mesos.image.type",
                            "only DOCKER images can be run",
                        ));
                    }
                }
            }
            Err(_) => return Err(invalid("container.type", "it is neither MESOS nor DOCKER")),
        };
        let Some(name) = name else { return Ok(None) };
        let reference = ImageReference::parse(name, self.default_registry.as_ref())
            .map_err(|error| failed(report::chain(&error)))?;
        Ok(Some(reference.relative_to(&self.sandbox)))
    }

    fn task_sandbox(&self, task: &TaskInfo, in_group: bool) -> Result<PathBuf, TaskProblem> {
        if !in_group {
            return Ok(self.sandbox.clone());
        }
        let relative = Path::new("tasks").join(self.container_id(&task.task_id.value).as_str());
        let directory = self.sandbox.join(&relative);
        beneath::make_directory(&self.sandbox, &relative).map_err(|error| {
            failed(format!(
                "could not make the sandbox {} without following links: {error}",
                directory.display()
            ))
        })?;
        Ok(directory)
    }

    /// A name that is unique on the node, fit for paths, and still tells a person which task it is.
    fn container_id(&self, task: &str) -> ContainerId {
        let mut hash = Sha256::new();
        for part in [
            &self.framework_id,
            &self.executor_id,
            self.own_container().unwrap_or_default(),
            task,
        ] {
            hash.update(part);
            hash.update([0]);
        }
        let hash: String = hash.finalize()[..6]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() || c == '_' || c == '.' {
                c
            } else {
                '-'
            }
        };
        let readable: String = task.chars().map(safe).take(48).collect();
        let readable = readable.trim_start_matches(['.', '-']);
        let start = if readable.is_empty() {
            "task"
        } else {
            readable
        };
        format!("{start}-{hash}")
            .parse()
            .expect("the name is made of letters that an id may have")
    }

    fn environment(
        &self,
        task: &TaskInfo,
        command: Option<&CommandInfo>,
        sandbox: &str,
    ) -> Result<Vec<String>, TaskProblem> {
        let mut all = vec![
            format!("MESOS_SANDBOX={sandbox}"),
            format!("MESOS_TASK_ID={}", task.task_id.value),
            format!("MESOS_FRAMEWORK_ID={}", self.framework_id),
            format!("MESOS_EXECUTOR_ID={}", self.executor_id),
        ];
        let allocation = task
            .resources
            .first()
            .and_then(|first| first.allocation_info.as_ref());
        if let Some(role) = allocation.and_then(|info| info.role.as_ref()) {
            all.push(format!("MESOS_ALLOCATION_ROLE={role}"));
        }
        let variables = command.and_then(|command| command.environment.as_ref());
        for variable in variables
            .iter()
            .flat_map(|environment| &environment.variables)
        {
            let name = &variable.name;
            let refuse =
                |rule: &str| invalid(&format!("command.environment.variables[{name}]"), rule);
            let value = match variable.r#type() {
                VariableType::Secret => {
                    let secret = variable
                        .secret
                        .as_ref()
                        .ok_or_else(|| refuse("it has no secret"))?;
                    match (
                        secret
                            .r#type
                            .and_then(|kind| SecretType::try_from(kind).ok()),
                        &secret.value,
                    ) {
                        (Some(SecretType::Value), Some(value)) => {
                            String::from_utf8(value.data.to_vec())
                                .map_err(|_| refuse("its secret is not UTF-8 text"))?
                        }
                        _ => return Err(refuse("only secrets of type VALUE can be resolved")),
                    }
                }
                _ => variable
                    .value
                    .clone()
                    .ok_or_else(|| refuse("it has no value"))?,
            };
            if value.contains('\0') || name.contains(['\0', '=']) || name.is_empty() {
                return Err(refuse(
                    "a name or value with NUL, or a name with '=', cannot be set",
                ));
            }
            all.push(format!("{name}={value}"));
        }
        Ok(all)
    }

    fn cgroups(&self) -> Result<tepui_isolators::CgroupPlacement, TaskProblem> {
        let nested = match self.settings.cgroup_placement {
            Placement::Nested => Some(true),
            Placement::Separate => Some(false),
            Placement::Auto => None,
        };
        cgroups::placement::placement(nested, &self.settings.cgroup_parent, self.own_container())
            .map_err(|error| failed(report::chain(&error)))
    }
}

/// What a task can ask for and this version does not do, so that nobody believes that it does.
fn refuse_what_is_missing(task: &TaskInfo) -> Result<(), TaskProblem> {
    let later = "this version does not do it; leave it out";
    let asked = [
        ("health_check", task.health_check.is_some()),
        ("check", task.check.is_some()),
        ("max_completion_time", task.max_completion_time.is_some()),
    ];
    match asked.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(invalid(field, later)),
        None => Ok(()),
    }
}

/// The description is at fault.
pub(super) fn invalid(field: &str, rule: &str) -> TaskProblem {
    TaskProblem {
        reason: Reason::TaskInvalid,
        message: format!("{field}: {rule}"),
    }
}

/// The launch is.
pub(super) fn failed(message: String) -> TaskProblem {
    TaskProblem {
        reason: Reason::ContainerLaunchFailed,
        message,
    }
}

/// A path of the sandbox, where a volume may lie: relative, and never upwards.
pub(super) fn below(sandbox: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let plain = path
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    (path.is_relative() && plain).then(|| sandbox.join(path))
}
