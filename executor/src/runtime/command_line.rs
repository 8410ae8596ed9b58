//! The command line of an OCI runtime: global options, a command, its options.
//!
//! The two halves are parsed one after the other, so that only the options of the one command are ever built: the whole
//! tree would cost more than most commands do.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, FromArgMatches, Parser};

use super::arguments::{
    Create, Delete, Events, Exec, Features, Kill, List, Named, Ps, Run, Spec, Unsupported, Update,
    Words,
};
use super::help::{COMMANDS, command_list, dress, version};

/// What every command knows.
#[derive(Debug, Clone)]
pub struct Globals {
    /// The name that we were called by: `runc` where we stand in for it.
    pub program: String,
    /// Where the state directories are.
    pub root: PathBuf,
    /// Whether `--root` was given.
    pub root_is_chosen: bool,
    /// Whether systemd is to make the cgroups.
    pub systemd_cgroup: bool,
    /// `--rootless`: whether refusals of cgroups are passed over; `None` is for us to find out.
    pub rootless: Option<bool>,
}

/// Where messages go.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// The file, standard error without.
    pub file: Option<PathBuf>,
    /// JSON and not text.
    pub json: bool,
    /// Also what only helps to find faults.
    pub debug: bool,
}

/// A command and its options.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Command {
    Checkpoint(Unsupported),
    Create(Create),
    Delete(Delete),
    Events(Events),
    Exec(Box<Exec>),
    Features(Features),
    Kill(Kill),
    List(List),
    Pause(Named),
    Ps(Ps),
    Restore(Unsupported),
    Resume(Named),
    Run(Run),
    Spec(Spec),
    Start(Named),
    State(Named),
    Update(Box<Update>),
}

/// Why there is nothing to run.
#[derive(Debug)]
pub enum Stop {
    /// A text that was asked for: help or version.
    Text(String),
    /// What is wrong with the command line.
    Misuse(String),
}

/// Everything that the command line says.
#[derive(Debug)]
pub struct Line {
    /// For every command.
    pub globals: Globals,
    /// Known before anything can fail.
    pub log: LogOptions,
    /// The command, or what to say.
    pub command: Result<Command, Stop>,
}

#[derive(Debug, Parser)]
#[command(disable_version_flag = true, disable_help_subcommand = true)]
#[command(args_override_self = true)]
struct GlobalOptions {
    /// Also log what only helps to find faults
    #[arg(long)]
    debug: bool,
    /// File to log to, by default standard error
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Form of the log: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: String,
    /// Ignored; see --debug
    #[arg(long, hide = true)]
    log_level: Option<String>,
    /// Directory of the containers' state, best on a tmpfs
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Let systemd make the cgroups
    #[arg(long)]
    systemd_cgroup: bool,
    /// Who makes the cgroups: cgroupfs, systemd
    #[arg(long, value_name = "MANAGER", hide = true)]
    cgroup_manager: Option<String>,
    /// Pass over refusals of cgroups: true, false or auto
    #[arg(long, value_name = "MODE", default_value = "auto")]
    rootless: String,
    /// Ignored: there is no checkpoint
    #[arg(long, hide = true)]
    criu: Option<String>,
    /// Print the version
    #[arg(long, short)]
    version: bool,
    #[command(subcommand)]
    words: Option<Words>,
}

/// Understands a command line, the program's name first.
pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Line {
    let program = arguments.next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default();
    let program = program.to_string_lossy().into_owned();
    let mut globals = Globals {
        root: PathBuf::new(),
        root_is_chosen: false,
        systemd_cgroup: false,
        rootless: None,
        program,
    };
    let mut log = LogOptions::default();
    let command = parse_all(arguments, &mut globals, &mut log);
    Line {
        globals,
        log,
        command,
    }
}

fn parse_all(
    arguments: impl Iterator<Item = OsString>,
    globals: &mut Globals,
    log: &mut LogOptions,
) -> Result<Command, Stop> {
    let program = globals.program.clone();
    let about = "Open Container Initiative runtime";
    let usage = "[global options] <command> [options] [arguments]";
    let command = <GlobalOptions as clap::CommandFactory>::command();
    let command = dress(command, &program, about, usage).after_help(command_list());
    let options: GlobalOptions = read(command, arguments)?;
    let root = options.root.filter(|root| !root.as_os_str().is_empty());
    globals.root_is_chosen = root.is_some();
    globals.root = match root {
        Some(root) => std::path::absolute(&root)
            .map_err(|error| Stop::Misuse(format!("--root {}: {error}", root.display())))?,
        None => default_root(),
    };
    log.debug = options.debug;
    log.file = options.log.filter(|file| !file.as_os_str().is_empty());
    log.json = match options.log_format.as_str() {
        "" | "text" => false,
        "json" => true,
        other => return Err(Stop::Misuse(format!("invalid log-format: {other}"))),
    };
    globals.systemd_cgroup =
        options.systemd_cgroup || options.cgroup_manager.as_deref() == Some("systemd");
    globals.rootless = match options.rootless.as_str() {
        "auto" => None,
        "true" => Some(true),
        "false" => Some(false),
        other => return Err(Stop::Misuse(format!("invalid --rootless: {other}"))),
    };
    if options.version {
        return Err(Stop::Text(version(&program)));
    }
    match options.words {
        Some(Words::All(mut words)) if !words.is_empty() => {
            let name = words.remove(0);
            parse_command(&program, &name, words)
        }
        _ => Err(Stop::Misuse(format!(
            "there is no command; see {program} --help"
        ))),
    }
}

fn parse_command(program: &str, name: &str, words: Vec<String>) -> Result<Command, Stop> {
    let Some((name, usage, about)) = COMMANDS.iter().find(|command| command.0 == name) else {
        return Err(Stop::Misuse(format!(
            "No help topic for '{name}': there is no such command; see {program} --help"
        )));
    };
    let full_name = format!("{program} {name}");
    let usage = format!("[options] {usage}");
    let of = Of {
        name: &full_name,
        about,
        usage: &usage,
        words,
    };
    Ok(match *name {
        "checkpoint" => Command::Checkpoint(of.parse()?),
        "create" => Command::Create(of.parse()?),
        "delete" => Command::Delete(of.parse()?),
        "events" => Command::Events(of.parse()?),
        "exec" => {
            let mut exec: Exec = of.parse()?;
            (exec.id, exec.command) = split(&full_name, exec.words.take(), usize::MAX)?;
            Command::Exec(Box::new(exec))
        }
        "features" => Command::Features(of.parse()?),
        "kill" => {
            let mut kill: Kill = of.parse()?;
            let (id, signal) = split(&full_name, kill.words.take(), 1)?;
            (kill.id, kill.signal) = (id, signal.into_iter().next());
            Command::Kill(kill)
        }
        "list" => Command::List(of.parse()?),
        "pause" => Command::Pause(of.parse()?),
        "ps" => {
            let mut ps: Ps = of.parse()?;
            (ps.id, ps.options) = split(&full_name, ps.words.take(), usize::MAX)?;
            Command::Ps(ps)
        }
        "restore" => Command::Restore(of.parse()?),
        "resume" => Command::Resume(of.parse()?),
        "run" => Command::Run(of.parse()?),
        "spec" => Command::Spec(of.parse()?),
        "start" => Command::Start(of.parse()?),
        "state" => Command::State(of.parse()?),
        _ => Command::Update(Box::new(of.parse()?)),
    })
}

/// The options of one command, to be understood.
struct Of<'a> {
    name: &'a str,
    about: &'static str,
    usage: &'a str,
    words: Vec<String>,
}

impl Of<'_> {
    fn parse<T: Args>(self) -> Result<T, Stop> {
        let command = T::augment_args(clap::Command::new("command"))
            .disable_help_subcommand(true)
            .args_override_self(true);
        let command = dress(command, self.name, self.about, self.usage);
        read(command, self.words.into_iter().map(OsString::from))
    }
}

/// The id, and what follows it.
fn split(name: &str, words: Option<Words>, most: usize) -> Result<(String, Vec<String>), Stop> {
    let Some(Words::All(mut words)) = words.filter(|Words::All(words)| !words.is_empty()) else {
        return Err(Stop::Misuse(format!(
            "{name}: requires a minimum of 1 argument(s), the container's id"
        )));
    };
    let id = words.remove(0);
    match words.len() <= most {
        true => Ok((id, words)),
        false => Err(Stop::Misuse(format!(
            "{name}: requires a maximum of {} argument(s)",
            most + 1
        ))),
    }
}

fn read<T: FromArgMatches>(
    command: clap::Command,
    words: impl Iterator<Item = OsString>,
) -> Result<T, Stop> {
    let matches = command.no_binary_name(true).try_get_matches_from(words);
    matches
        .and_then(|mut matches| T::from_arg_matches_mut(&mut matches))
        .map_err(|error| match error.use_stderr() {
            true => Stop::Misuse(error.to_string().trim_end().to_owned()),
            false => Stop::Text(error.to_string()),
        })
}

/// Root's containers are in one place; others have theirs where their session has its files.
fn default_root() -> PathBuf {
    let session = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
    match session {
        Some(session) if !rustix::process::geteuid().is_root() => {
            PathBuf::from(session).join("tepui-runtime")
        }
        _ => PathBuf::from("/run/tepui-runtime"),
    }
}
