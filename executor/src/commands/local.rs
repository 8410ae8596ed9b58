//! `tepui local`: runs a task as production would, without an agent. The executor is a process of its own and speaks to
//! us as it would to an agent.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::ValueEnum;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, interval, sleep_until};

use crate::agent::messages::{
    Event, EventType, Json as _, Kill, Reason, Source, TaskId, TaskState, TaskStatus,
};
use crate::beneath;
use crate::core::exit_status_of_message;
use crate::local_agent::{LocalAgent, TaskFile, TaskFileError};
use crate::settings::{ContentType, Settings};

/// What an agent gives an executor by default to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How often the task's output is shown.
const OUTPUT_INTERVAL: Duration = Duration::from_millis(50);
/// Where tepui itself failed.
const FAILED: i32 = 125;
/// Variables of ours that concern the pull of images and our logs; an agent passes them if it is told to.
const PASSED: [&str; 9] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "RUST_LOG",
];

/// Why a task could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Its description.
    #[error(transparent)]
    TaskFile(#[from] TaskFileError),
    /// Words in it that mean nothing.
    #[error("{}: a TaskInfo has no field {fields}; correct or remove it", file.display())]
    UnknownFields {
        /// The file.
        file: PathBuf,
        /// Their paths, comma separated.
        fields: String,
    },
    /// Files and processes around it.
    #[error("could not {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Run a task here as a Mesos agent would, and show what becomes of it
///
/// Prints one JSON line per status update; what the task writes goes to stderr. Ends with the exit status of the
/// command, 128+n if signal n ended it, or 125 if it could not be run.
#[derive(Debug, clap::Args)]
pub struct Local {
    /// A TaskInfo in Mesos' JSON form, or {"tasks": [...]} for a group
    #[arg(value_name = "TASK.json")]
    task: PathBuf,
    /// Directory for the task's files, kept afterwards; the default is a fresh one that is removed
    #[arg(long, value_name = "DIR")]
    sandbox: Option<PathBuf>,
    /// Where what the task writes is shown
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Encoding of the messages between agent and executor
    #[arg(long, value_enum, default_value_t)]
    content_type: ContentType,
    #[command(flatten)]
    settings: Settings,
}

/// What happens to the output of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Output {
    /// It is shown on stderr.
    #[default]
    Stderr,
    /// It stays in the sandbox.
    None,
}

impl Local {
    /// Runs the task; returns the exit status.
    ///
    /// # Errors
    /// When the file describes no task, or the executor cannot be started.
    pub fn run(self) -> Result<i32, Error> {
        let file = TaskFile::read(&self.task)?;
        let unknown: Vec<&str> = file.unknown_fields().iter().map(AsRef::as_ref).collect();
        if !unknown.is_empty() {
            // Somebody wrote it by hand, and what is misspelt would not happen.
            return Err(Error::UnknownFields {
                file: self.task.clone(),
                fields: unknown.join(", "),
            });
        }
        let runtime = super::runtime().map_err(failed("start", "a runtime"))?;
        runtime.block_on(self.run_tasks(file))
    }

    async fn run_tasks(self, file: TaskFile) -> Result<i32, Error> {
        let temporary = Temporary::new()?;
        let sandbox = match &self.sandbox {
            Some(sandbox) => std::path::absolute(sandbox).map_err(failed("find", sandbox))?,
            None => temporary.0.join("sandbox"),
        };
        DirBuilder::new()
            .mode(0o750)
            .recursive(self.sandbox.is_some())
            .create(&sandbox)
            .map_err(failed("make", &sandbox))?;
        let mut agent =
            LocalAgent::listen(&temporary.0).map_err(failed("listen in", &temporary.0))?;
        let mut outputs = Vec::new();
        let mut executor = self.start_executor(&agent, &sandbox, &mut outputs)?;
        let mut tasks = Tasks(file.ids().into_iter().map(|id| (id.value, None)).collect());
        agent.send(file.launch());

        let listen = |kind| signal(kind).map_err(failed("listen for", "signals"));
        let (mut interrupt, mut terminate) = (
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
        );
        let mut output_tick = interval(OUTPUT_INTERVAL);
        let mut signals = 0;
        let mut kill_executor_at: Option<Instant> = None;
        let ended = loop {
            tokio::select! {
                status = agent.next_status() => {
                    tasks.take(status)?;
                    if tasks.have_ended() {
                        kill_executor_at.get_or_insert(Instant::now() + 2 * SHUTDOWN_GRACE);
                    }
                }
                ended = executor.wait() => break ended.map_err(failed("wait for", "the executor"))?,
                _ = interrupt.recv() => signals += tasks.interrupt(&agent, signals, &mut kill_executor_at),
                _ = terminate.recv() => signals += tasks.interrupt(&agent, signals, &mut kill_executor_at),
                _ = output_tick.tick() => outputs.iter_mut().try_for_each(Tail::show)?,
                () = sleep_until(kill_executor_at.unwrap_or_else(Instant::now)), if kill_executor_at.is_some() => {
                    executor.start_kill().map_err(failed("kill", "the executor"))?;
                    kill_executor_at = None;
                }
            }
        };
        while let Some(status) = agent.try_next_status() {
            tasks.take(status)?;
        }
        outputs.iter_mut().try_for_each(Tail::show)?;
        tasks.lose(&format!("Executor terminated: {ended}"))?;
        Ok(tasks.exit_status())
    }

    fn start_executor(
        &self,
        agent: &LocalAgent,
        sandbox: &Path,
        outputs: &mut Vec<Tail>,
    ) -> Result<Child, Error> {
        let sandbox = &sandbox.canonicalize().map_err(failed("find", sandbox))?;
        let directory =
            beneath::make_directory(sandbox, Path::new("")).map_err(failed("open", sandbox))?;
        let mut output = |name: &str| {
            let path = sandbox.join(name);
            // A task of an earlier run in this sandbox may have put anything there.
            let file = beneath::append(&directory, name).map_err(failed("append to", &path))?;
            if self.output == Output::Stderr {
                outputs.push(Tail::at_end(path)?);
            }
            Ok::<_, Error>(file)
        };
        let (stdout, stderr) = (output("stdout")?, output("stderr")?);
        let executable = Path::new("/proc/self/exe");
        let content_type = self.content_type.to_possible_value();
        Command::new(executable)
            .arg("executor")
            .args(self.absolute_settings()?.to_arguments())
            .arg("--content-type")
            .args(content_type.map(|value| value.get_name().to_owned()))
            .env_clear()
            .envs(
                PASSED
                    .iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .envs(agent.environment(sandbox, SHUTDOWN_GRACE))
            .current_dir(sandbox)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            // What is typed at the terminal is for us: we tell the executor in the agent's words.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed("start", executable))
    }

    /// The executor runs in another directory.
    fn absolute_settings(&self) -> Result<Settings, Error> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(failed("find", path));
        let mut settings = self.settings.clone();
        settings.store_dir = absolute(&settings.store_dir)?;
        settings.state_dir = absolute(&settings.state_dir)?;
        if let Some(directory) = &mut settings.seccomp_config_dir {
            *directory = absolute(directory)?;
        }
        if let Some(registry) = settings
            .docker_registry
            .as_mut()
            .filter(|registry| Path::new(registry).is_dir())
        {
            *registry = absolute(Path::new(registry))?.display().to_string();
        }
        Ok(settings)
    }
}

/// The tasks and the last that was said of each.
struct Tasks(BTreeMap<String, Option<TaskStatus>>);

impl Tasks {
    /// Prints a status and keeps it.
    fn take(&mut self, status: TaskStatus) -> Result<(), Error> {
        let line = status
            .write()
            .map(|value| value.to_string())
            .unwrap_or_default();
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{line}")
            .and_then(|()| stdout.flush())
            .map_err(failed("write to", "stdout"))?;
        self.0.insert(status.task_id.value.clone(), Some(status));
        Ok(())
    }

    fn have_ended(&self) -> bool {
        self.0.values().all(has_ended)
    }

    /// The first signal kills the tasks, the second one everything. Returns the number of signals this counts for.
    fn interrupt(
        &self,
        agent: &LocalAgent,
        earlier: u32,
        kill_executor_at: &mut Option<Instant>,
    ) -> u32 {
        if earlier == 0 {
            for (id, _) in self.0.iter().filter(|(_, status)| !has_ended(status)) {
                let kill = Kill {
                    task_id: TaskId { value: id.clone() },
                    kill_policy: None,
                };
                agent.send(Event {
                    kill: Some(kill),
                    ..Event::of(EventType::Kill)
                });
            }
        } else {
            agent.send(Event::of(EventType::Shutdown));
            kill_executor_at.get_or_insert(Instant::now() + SHUTDOWN_GRACE);
        }
        1
    }

    /// What an agent says of the tasks of an executor that is gone.
    fn lose(&mut self, message: &str) -> Result<(), Error> {
        let lost: Vec<String> = self
            .0
            .iter()
            .filter(|(_, status)| !has_ended(status))
            .map(|(id, _)| id.clone())
            .collect();
        for id in lost {
            self.take(TaskStatus {
                task_id: TaskId { value: id },
                state: TaskState::Failed.into(),
                reason: Some(Reason::ExecutorTerminated.into()),
                source: Some(Source::Agent.into()),
                message: Some(message.to_owned()),
                ..Default::default()
            })?;
        }
        Ok(())
    }

    /// That of the first task that did not end well.
    fn exit_status(&self) -> i32 {
        let mut statuses = self.0.values().flatten().map(exit_status);
        statuses.find(|status| *status != 0).unwrap_or(0)
    }
}

fn has_ended(status: &Option<TaskStatus>) -> bool {
    let state = status
        .as_ref()
        .and_then(|status| TaskState::try_from(status.state).ok());
    state.is_some_and(TaskState::is_terminal)
}

fn exit_status(status: &TaskStatus) -> i32 {
    let reason = status
        .reason
        .and_then(|reason| Reason::try_from(reason).ok());
    match reason {
        // Only the kernel's SIGKILL ends a task for that.
        Some(Reason::ContainerLimitationMemory) => 128 + 9,
        Some(_) => FAILED,
        None => exit_status_of_message(status.message()).unwrap_or(FAILED),
    }
}

/// A file that grows, shown on stderr as it does.
struct Tail {
    path: PathBuf,
    file: File,
}

impl Tail {
    fn at_end(path: PathBuf) -> Result<Self, Error> {
        let mut file = File::open(&path).map_err(failed("open", &path))?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))
            .map_err(failed("seek in", &path))?;
        Ok(Tail { path, file })
    }

    fn show(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 8192];
        loop {
            let count = self
                .file
                .read(&mut buffer)
                .map_err(failed("read", &self.path))?;
            if count == 0 {
                return Ok(());
            }
            std::io::stderr()
                .write_all(&buffer[..count])
                .map_err(failed("write to", "stderr"))?;
        }
    }
}

/// A directory that goes away with this.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self, Error> {
        let template = std::env::temp_dir().join("tepui-local-XXXXXX");
        let made = nix::unistd::mkdtemp(&template);
        made.map(Temporary)
            .map_err(|errno| failed("make", &template)(errno.into()))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("tepui: could not remove {}: {error}", self.0.display());
        }
    }
}

fn failed<P: AsRef<Path>>(action: &'static str, path: P) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.as_ref().to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}
