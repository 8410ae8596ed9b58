//! `tepui run`: one container from a command line, with Docker's flags where the meaning is the same.

use std::path::PathBuf;

use tepui_isolators::{ContainerId, LimitEvent, cgroups, fault};
use tepui_oci::{ImageReference, Store};
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use crate::core::describe_exit;
use crate::launcher::handle::Launcher;
use crate::seal;
use crate::settings::{Placement, Settings};
use crate::spec::{Bind, Capabilities, Command, Options, Seccomp, defaults};
use crate::supervise::request::{Request, Stdio};
use crate::supervise::supervisor::{Place, Supervisor, release_orphans, sweep};
use crate::supervise::{ContainerEvent, Containers};

/// Runs a container and exits as its command does
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tepui run oci:busybox sh -c 'id; cat /proc/self/status'
  tepui run --memory 64m --cpus 0.5 --network none docker-archive:web.tar")]
pub struct Run {
    #[command(flatten)]
    settings: Settings,
    /// Number of CPUs that it may use
    #[arg(long, value_name = "NUMBER", value_parser = positive)]
    cpus: Option<f64>,
    /// Memory limit: bytes, or with the suffix k, m or g
    #[arg(long, short, value_name = "BYTES", value_parser = bytes)]
    memory: Option<i64>,
    /// Number of processes; -1 for no limit
    #[arg(long, value_name = "NUMBER", default_value_t = defaults::PIDS, allow_negative_numbers = true)]
    pids_limit: i64,
    /// Environment variable; without a value it is taken over from here
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Directory or file of the host
    #[arg(long, short, value_name = "HOST:CONTAINER[:ro]", value_parser = volume)]
    volume: Vec<Bind>,
    /// Working directory in the container
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// User in the container
    #[arg(long, short, value_name = "NAME|UID[:GROUP|GID]")]
    user: Option<String>,
    /// Host name in the container
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Network: that of the host, or one with a loopback device only
    #[arg(long, value_enum, default_value_t)]
    network: Network,
    /// Makes the container's root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Resource limit of its processes, as in getrlimit(2)
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit)]
    ulimit: Vec<(String, u64, u64)>,
    /// Puts an init before the command, which forwards signals and reaps
    #[arg(long)]
    init: bool,
    /// Removes the container when it ends; tepui always does
    #[arg(long)]
    rm: bool,
    /// Passes standard input on
    #[arg(long, short)]
    interactive: bool,
    /// Image: NAME[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]
    image: String,
    /// Command and arguments, in the place of the image's Cmd
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Network {
    #[default]
    Host,
    None,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if f64::is_finite(number) && number > 0.0 => Ok(number),
        _ => Err("it must be a number above 0".to_owned()),
    }
}

fn bytes(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        _ => (lower, 0),
    };
    let number = digits.parse::<i64>().ok().filter(|number| *number > 0);
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "it must be a whole number above 0, with k, m or g or without".to_owned())
}

fn volume(text: &str) -> Result<Bind, String> {
    let form = || {
        "it must be HOST:CONTAINER or HOST:CONTAINER:ro, both absolute or HOST relative to here"
            .to_owned()
    };
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(form());
    };
    let readonly = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(form()),
    };
    if !target.starts_with('/') || source.is_empty() {
        return Err(form());
    }
    let source = std::path::absolute(PathBuf::from(source)).map_err(|error| error.to_string())?;
    match source.exists() {
        true => Ok(Bind {
            source,
            target: target.to_owned(),
            readonly,
            plain: false,
        }),
        false => Err(format!("{} does not exist on the host", source.display())),
    }
}

fn ulimit(text: &str) -> Result<(String, u64, u64), String> {
    let form = || {
        "it must be NAME=SOFT[:HARD], e.g. nofile=1024:4096, with numbers or unlimited".to_owned()
    };
    let (name, limits) = text.split_once('=').ok_or_else(form)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        digits => digits.parse().map_err(|_| form()),
    };
    Ok((
        format!("RLIMIT_{}", name.to_ascii_uppercase()),
        number(soft)?,
        number(hard)?,
    ))
}

impl Run {
    /// Runs it; the exit status is the workload's own, or 125 to 127.
    ///
    /// # Errors
    /// When tepui itself failed, before anything ran.
    pub fn run(mut self) -> Result<i32, Failure> {
        self.settings.make_absolute()?;
        if let Some(refusal) = super::refusal(&self.settings) {
            return Err(refusal.into());
        }
        seal::protect_own_program(seal::Method::View)?;
        // After the program executed itself again, so that it is said once.
        super::warn_of_what_is_left_out(&self.settings)?;
        release_orphans(&self.settings.state_dir);
        fault::point("run: released orphans")?;
        let launcher = Launcher::start()?;
        fault::point("run: started the launcher")?;
        let runtime = super::runtime()?;
        let store = Store::open(&self.settings.store_dir)?;
        let layers = store.writable_layers();
        let result = runtime.block_on(self.run_with(launcher, store));
        // A pull that was given up must not hold us.
        runtime.shutdown_background();
        sweep(&layers);
        result
    }

    async fn run_with(self, launcher: Launcher, store: Store) -> Result<i32, Failure> {
        let default = self.settings.default_registry()?;
        let here = std::env::current_dir()?;
        let image = ImageReference::parse(&self.image, default.as_ref())?.relative_to(&here);
        let place = Place {
            state_dir: self.settings.state_dir.clone(),
            isolation: self.settings.isolation.clone(),
        };
        let stdio = Stdio {
            input: self.interactive,
            output: None,
        };
        let options = self.options()?;
        let mut containers = Supervisor::new(launcher, store, place)?;
        let request = Request {
            options,
            image: Some(image),
            always_pull: false,
            stdio,
            sandbox: None,
        };
        containers.launch("run", request);
        fault::point("run: asked")?;

        let mut stops = 0;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        loop {
            tokio::select! {
                (_, event) = containers.next_event() => match event {
                    ContainerEvent::Running { .. } => fault::point("run: running")?,
                    ContainerEvent::LaunchFailed { message } => {
                        eprintln!("tepui: {message}");
                        return Ok(containers.failure_status);
                    }
                    ContainerEvent::Aborted => return Ok(128 + libc::SIGTERM),
                    ContainerEvent::Exited { status, limit } => {
                        fault::point("run: ended")?;
                        return Ok(exit_status(status, limit));
                    }
                },
                _ = interrupt.recv() => stops += stop(&mut containers, stops, libc::SIGINT),
                _ = terminate.recv() => stops += stop(&mut containers, stops, libc::SIGTERM),
            }
        }
    }

    fn options(self) -> Result<Options, Failure> {
        let take_over = |entry: String| match entry.contains('=') {
            true => Some(entry),
            false => std::env::var(&entry)
                .ok()
                .map(|value| format!("{entry}={value}")),
        };
        let nested = match self.settings.cgroup_placement {
            Placement::Nested => Some(true),
            Placement::Separate | Placement::Auto => Some(false),
        };
        Ok(Options {
            id: new_id()?,
            command: Command::Image(self.command),
            environment: self.env.into_iter().filter_map(take_over).collect(),
            working_directory: self.workdir,
            user: self.user,
            hostname: self.hostname,
            memory: self.memory,
            memory_reservation: None,
            cpu_request: None,
            cpu_limit: self.cpus,
            pids: self.pids_limit,
            host_network: self.network == Network::Host,
            readonly_root: self.read_only,
            binds: self.volume,
            rlimits: self.ulimit,
            capabilities: Capabilities::default(),
            seccomp: Seccomp::Default,
            init: self.init,
            sandbox: None,
            shm_size: None,
            cgroups: cgroups::placement::placement(nested, &self.settings.cgroup_parent, None)?,
        })
    }
}

/// The first signal is passed on. A program that is process 1 ignores what it has no handler for (pid_namespaces(7)), so
/// the second kills.
fn stop(containers: &mut Supervisor, before: u32, signal: i32) -> u32 {
    match before {
        0 => containers.stop("run", signal),
        _ => containers.destroy("run"),
    }
    1
}

/// Six random bytes: an id is never used twice, so that what is left of one is never taken for another.
fn new_id() -> Result<ContainerId, Failure> {
    let mut bytes = [0u8; 6];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(text.parse()?)
}

/// As a shell has it; a limit that was hit is told.
fn exit_status(status: i32, limit: Option<LimitEvent>) -> i32 {
    match limit {
        Some(LimitEvent::Memory { limit, .. }) => eprintln!(
            "tepui: the container was killed: it needed more than its memory limit of {limit} bytes; raise --memory"
        ),
        Some(LimitEvent::OutsideMemory { .. }) => {
            eprintln!(
                "tepui: a process of the container was killed because the node ran out of memory"
            );
        }
        None => {}
    }
    match (libc::WIFEXITED(status), libc::WIFSIGNALED(status)) {
        (true, _) => libc::WEXITSTATUS(status),
        (_, true) => {
            tracing::info!("{}", describe_exit(status));
            128 + libc::WTERMSIG(status)
        }
        _ => 125,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_limits_and_volumes_are_read_as_docker_reads_them() {
        for (text, expected) in [
            ("64m", 64 << 20),
            ("1g", 1 << 30),
            ("4096", 4096),
            ("512kb", 512 << 10),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for bad in ["", "0", "-1", "1.5g", "m", "9999999999g"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(
            ulimit("nofile=10:20").unwrap(),
            ("RLIMIT_NOFILE".to_owned(), 10, 20)
        );
        assert_eq!(ulimit("core=unlimited").unwrap().1, u64::MAX);
        assert!(ulimit("nofile").is_err());
        let bind = volume("/tmp:/data:ro").unwrap();
        assert_eq!((bind.target.as_str(), bind.readonly), ("/data", true));
        for bad in [
            "/tmp",
            "/tmp:data",
            ":/data",
            "/tmp:/data:x",
            "/no/such/directory:/data",
        ] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }
}
