//! The settings of everything that runs containers: the same flags for `executor`, `local` and `run`, each with an
//! environment variable of the same name.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ValueEnum;
use tepui_oci::DefaultRegistry;

/// Where the cgroups of tasks go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Placement {
    /// Below the executor's own cgroup.
    Nested,
    /// Below `--cgroup-parent`.
    Separate,
    /// Nested on cgroup v1 in the hierarchies where the agent gave the executor a cgroup of its own, separate elsewhere.
    #[default]
    Auto,
}

/// What to do where we are not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Rootless {
    /// Refuse every container: without root some of the isolation cannot be built.
    #[default]
    Deny,
    /// Run with what a user namespace gives.
    Allow,
}

/// How messages to and from the agent are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ContentType {
    /// `application/x-protobuf`.
    #[default]
    Protobuf,
    /// `application/json`.
    Json,
}

/// Flags shared by the commands that run containers.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Image store, shared by all executors of the node
    #[arg(
        long,
        env = "TEPUI_STORE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/tepui"
    )]
    pub store_dir: PathBuf,
    /// State of running containers
    #[arg(
        long,
        env = "TEPUI_STATE_DIR",
        value_name = "DIR",
        default_value = "/run/tepui"
    )]
    pub state_dir: PathBuf,
    /// Default registry for image names without one, or a directory of `NAME[:TAG].tar` archives
    #[arg(long, env = "TEPUI_DOCKER_REGISTRY", value_name = "URL|DIR")]
    pub docker_registry: Option<String>,
    /// Cgroup that the containers' own cgroups are made in, from the root of each hierarchy
    #[arg(
        long,
        env = "TEPUI_CGROUP_PARENT",
        value_name = "PATH",
        default_value = "/tepui"
    )]
    pub cgroup_parent: PathBuf,
    /// Whether cgroups nest below the executor's own
    #[arg(long, env = "TEPUI_CGROUP_PLACEMENT", value_enum, default_value_t)]
    pub cgroup_placement: Placement,
    /// Isolators to use, comma separated; the default is all of them
    #[arg(long, env = "TEPUI_ISOLATION", value_name = "NAMES")]
    pub isolation: Option<String>,
    /// Directory of seccomp profiles that tasks may name
    #[arg(long, env = "TEPUI_SECCOMP_CONFIG_DIR", value_name = "DIR")]
    pub seccomp_config_dir: Option<PathBuf>,
    /// Whether containers may run without root
    #[arg(long, env = "TEPUI_ROOTLESS", value_enum, default_value_t)]
    pub rootless: Rootless,
}

impl Settings {
    /// Makes the directories absolute: they are used after the working directory has changed.
    ///
    /// # Errors
    /// When there is no working directory, or the cgroup parent is not a path from the root.
    pub fn make_absolute(&mut self) -> std::io::Result<()> {
        for directory in [&mut self.store_dir, &mut self.state_dir] {
            *directory = std::path::absolute(&directory)?;
        }
        let parent = self.cgroup_parent.components();
        let plain = parent
            .skip(1)
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if !self.cgroup_parent.is_absolute() || !plain {
            let rule = format!(
                "--cgroup-parent {} must begin with / and have no ..",
                self.cgroup_parent.display()
            );
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, rule));
        }
        // An empty variable is one that is not set.
        self.isolation = self
            .isolation
            .take()
            .filter(|names| !names.trim().is_empty());
        Ok(())
    }

    /// Where image names without a registry are looked up; none is Docker's.
    ///
    /// # Errors
    /// When `--docker-registry` is neither a registry nor a directory.
    pub fn default_registry(&self) -> tepui_oci::Result<Option<DefaultRegistry>> {
        self.docker_registry.as_deref().map(str::parse).transpose()
    }

    /// The same settings as a command line, for a child process of ours.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
            value().map(|v| v.get_name().to_owned()).unwrap_or_default()
        };
        let mut arguments: Vec<OsString> = vec![
            "--store-dir".into(),
            self.store_dir.clone().into(),
            "--state-dir".into(),
            self.state_dir.clone().into(),
            "--cgroup-parent".into(),
            self.cgroup_parent.clone().into(),
            "--cgroup-placement".into(),
            name(&|| self.cgroup_placement.to_possible_value()).into(),
            "--rootless".into(),
            name(&|| self.rootless.to_possible_value()).into(),
        ];
        let optional = [
            (
                "--docker-registry",
                self.docker_registry.as_ref().map(OsString::from),
            ),
            ("--isolation", self.isolation.as_ref().map(OsString::from)),
            (
                "--seccomp-config-dir",
                self.seccomp_config_dir.clone().map(OsString::from),
            ),
        ];
        for (flag, value) in optional {
            if let Some(value) = value {
                arguments.extend([flag.into(), value]);
            }
        }
        arguments
    }
}
