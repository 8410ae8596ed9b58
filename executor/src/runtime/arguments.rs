//! The options of each command, by the names that callers of OCI runtimes use.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `create`
#[derive(Debug, Clone, Args)]
pub struct Create {
    /// Name of the new container, unique on this host
    #[arg(value_name = "container-id")]
    pub id: String,
    /// The bundle and how its process is handed over.
    #[command(flatten)]
    pub bundle: Bundle,
}

/// What `create` and `run` have in common.
#[derive(Debug, Clone, Args)]
pub struct Bundle {
    /// Directory of the bundle, by default the current directory
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Name of the configuration in the bundle
    #[arg(long, short = 'f', value_name = "FILE", default_value = "config.json")]
    pub config: PathBuf,
    /// Unix socket that receives the master end of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that receives a descriptor of the first process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// File that receives the pid of the first process
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Do not use pivot_root(2), for a root file system on a ramdisk
    #[arg(long)]
    pub no_pivot: bool,
    /// Share the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass that many descriptors beyond standard ones and those of LISTEN_FDS
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

/// `run`
#[derive(Debug, Clone, Args)]
pub struct Run {
    /// Name of the new container, unique on this host
    #[arg(value_name = "container-id")]
    pub id: String,
    /// The bundle and how its process is handed over.
    #[command(flatten)]
    pub bundle: Bundle,
    /// Return when the container has started
    #[arg(long, short)]
    pub detach: bool,
    /// Do not delete the container when it has ended
    #[arg(long)]
    pub keep: bool,
    /// Do not reap what the container's processes leave behind
    #[arg(long)]
    pub no_subreaper: bool,
}

/// `start`, `state`, `pause`, `resume`: the id and nothing else.
#[derive(Debug, Clone, Args)]
pub struct Named {
    /// The container
    #[arg(value_name = "container-id")]
    pub id: String,
}

/// Everything from the first word that is no option on: a command with options of its own.
#[derive(Debug, Clone, Subcommand)]
pub enum Words {
    #[allow(missing_docs)]
    #[command(external_subcommand)]
    All(Vec<String>),
}

/// `exec`
#[derive(Debug, Clone, Args)]
pub struct Exec {
    /// Unix socket that receives the master end of the process' terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that receives a descriptor of the process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Environment variable, NAME=VALUE
    #[arg(long, short, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// Give the process a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// `UID[:GID]`
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// Additional group
    #[arg(long, short = 'g', value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File with the process, as `process` of a bundle
    #[arg(long, short, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Return when the process has started
    #[arg(long, short)]
    pub detach: bool,
    /// File that receives the pid
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability
    #[arg(long, short, value_name = "CAPABILITY")]
    pub cap: Vec<String>,
    /// Pass that many descriptors beyond standard ones and those of LISTEN_FDS
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Existing cgroup below the container's, `[CONTROLLERS:]PATH`
    #[arg(long, value_name = "CGROUP")]
    pub cgroup: Vec<String>,
    /// Also in a paused container
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container.
    #[arg(skip)]
    pub id: String,
    /// Program and arguments.
    #[arg(skip)]
    pub command: Vec<String>,
    #[command(subcommand)]
    pub(super) words: Option<Words>,
}

/// `kill`
#[derive(Debug, Clone, Args)]
pub struct Kill {
    /// To all processes of the container; no failure when it has ended
    #[arg(long, short)]
    pub all: bool,
    /// The container.
    #[arg(skip)]
    pub id: String,
    /// Name or number of the signal.
    #[arg(skip)]
    pub signal: Option<String>,
    #[command(subcommand)]
    pub(super) words: Option<Words>,
}

/// `delete`
#[derive(Debug, Clone, Args)]
pub struct Delete {
    /// The container
    #[arg(value_name = "container-id")]
    pub id: String,
    /// Kill it if it has not ended; no failure when it does not exist
    #[arg(long, short)]
    pub force: bool,
}

/// How a table can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// `list`
#[derive(Debug, Clone, Args)]
pub struct List {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Only ids
    #[arg(long, short)]
    pub quiet: bool,
}

/// `ps`
#[derive(Debug, Clone, Args)]
pub struct Ps {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// The container.
    #[arg(skip)]
    pub id: String,
    /// Options of ps(1).
    #[arg(skip)]
    pub options: Vec<String>,
    #[command(subcommand)]
    pub(super) words: Option<Words>,
}

/// `events`
#[derive(Debug, Clone, Args)]
pub struct Events {
    /// The container
    #[arg(value_name = "container-id")]
    pub id: String,
    /// Print the statistics once
    #[arg(long)]
    pub stats: bool,
    /// Between two statistics: 5s, 100ms, 1m30s
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub interval: String,
}

/// `update`
#[derive(Debug, Clone, Default, Args)]
pub struct Update {
    /// The container
    #[arg(value_name = "container-id")]
    pub id: String,
    /// File with `linux.resources`, - for standard input; then all other options are ignored
    #[arg(long, short, value_name = "FILE", allow_hyphen_values = true)]
    pub resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// Period of the CPU quota in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_period: Option<String>,
    /// CPU time in each period in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub cpu_quota: Option<String>,
    /// CPU time that can be saved up in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_burst: Option<String>,
    /// CPU shares against other containers
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<String>,
    /// Period of realtime CPU time in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_rt_period: Option<String>,
    /// Realtime CPU time in each period in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<String>,
    /// CPUs to run on, 0-2,5
    #[arg(long, value_name = "CPUS")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "NODES")]
    pub cpuset_mems: Option<String>,
    #[allow(missing_docs)]
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub kernel_memory: Option<String>,
    #[allow(missing_docs)]
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub kernel_memory_tcp: Option<String>,
    /// Memory in bytes; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// 1 for SCHED_IDLE, 0 for normal
    #[arg(long, value_name = "0|1")]
    pub cpu_idle: Option<String>,
    /// Memory in bytes that is kept when memory gets short
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together in bytes; -1 for unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Number of tasks; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Intel RDT: L3 cache schema
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// Intel RDT: memory bandwidth schema
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
}

/// `spec`
#[derive(Debug, Clone, Args)]
pub struct Spec {
    /// Directory of the bundle, by default the current directory
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// For a container that is made without root
    #[arg(long)]
    pub rootless: bool,
}

/// `features`: nothing.
#[derive(Debug, Clone, Args)]
pub struct Features {}

/// `checkpoint` and `restore`, whatever their options.
#[derive(Debug, Clone, Args)]
pub struct Unsupported {
    #[command(subcommand)]
    pub(super) words: Option<Words>,
}
