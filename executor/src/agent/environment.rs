//! What the agent says through the environment of the executor: who we are, where it is, how patient it is.
//!
//! Mesos, docs/executor-http-api.md; `MESOS_CHECKPOINT` is `1` or `0`, not `true` as written there.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The variable that holds the token. It must be removed from our environment before a child of ours could see it.
pub const TOKEN_VARIABLE: &str = "MESOS_EXECUTOR_AUTHENTICATION_TOKEN";

/// A variable is absent or makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Without it we are not started by an agent.
    #[error(
        "{name} is not set: this command is for a Mesos agent to start; to run a task here: tepui local TASK.json"
    )]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// It does not have the form that it must have.
    #[error("{name} is {value:?}, but must be {expected}")]
    Invalid {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// The form.
        expected: &'static str,
    },
    /// The agent speaks TLS only.
    #[error(
        "the agent's executor API uses TLS ({name} is set), which is not supported; start the agent with \
         --http_executor_domain_sockets"
    )]
    Tls {
        /// The variable that says so.
        name: &'static str,
    },
}

/// What the agent says through the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `MESOS_FRAMEWORK_ID`.
    pub framework_id: String,
    /// `MESOS_EXECUTOR_ID`.
    pub executor_id: String,
    /// `MESOS_SLAVE_ID`.
    pub agent_id: String,
    /// Path prefix of the agent's API, e.g. `slave(1)`: what stands before the `@` of `MESOS_SLAVE_PID`.
    pub prefix: String,
    /// Where the agent listens: what stands behind it.
    pub address: SocketAddr,
    /// `MESOS_DOMAIN_SOCKET`: where it listens too.
    pub domain_socket: Option<PathBuf>,
    /// `MESOS_SANDBOX`, else `MESOS_DIRECTORY`.
    pub sandbox: PathBuf,
    /// `MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD`: how long after SHUTDOWN the agent kills us.
    pub shutdown_grace: Duration,
    /// When the framework has checkpointing on: we outlive a restart of the agent.
    pub checkpoint: Option<Checkpoint>,
    /// `MESOS_EXECUTOR_AUTHENTICATION_TOKEN`.
    pub token: Option<Token>,
}

/// What holds with `MESOS_CHECKPOINT=1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// `MESOS_RECOVERY_TIMEOUT`: how long to wait for the agent before ending everything.
    pub recovery_timeout: Duration,
    /// `MESOS_SUBSCRIPTION_BACKOFF_MAX`: how long a restarted agent waits for us.
    pub backoff: Duration,
}

/// Proof of who we are, which nobody else may see.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// For the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Token {
    fn from(token: String) -> Self {
        Token(token)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Environment {
    /// Reads it from variables.
    ///
    /// # Errors
    /// When one that the agent always sets is absent, or one is malformed.
    pub fn from_variables(variables: &HashMap<String, String>) -> Result<Self, Error> {
        let get = |name: &'static str| variables.get(name).map(String::as_str);
        let require = |name| {
            get(name)
                .filter(|value| !value.is_empty())
                .ok_or(Error::Missing { name })
        };
        let (prefix, address) = agent_pid("MESOS_SLAVE_PID", require("MESOS_SLAVE_PID")?)?;
        let domain_socket = get("MESOS_DOMAIN_SOCKET").map(PathBuf::from);
        let tls = ["LIBPROCESS_SSL_ENABLED", "SSL_ENABLED"]
            .into_iter()
            .find(|name| matches!(get(name), Some("1" | "true")));
        if let (Some(name), None) = (tls, &domain_socket) {
            return Err(Error::Tls { name });
        }
        // The agent's own numbers, should a variable that only helps be absent.
        let duration = |name, default: Duration| {
            get(name).map_or(Ok(default), |value| parse_duration(name, value))
        };
        let checkpoint = match require("MESOS_CHECKPOINT")? {
            "1" => Some(Checkpoint {
                recovery_timeout: duration("MESOS_RECOVERY_TIMEOUT", Duration::from_secs(900))?,
                backoff: duration("MESOS_SUBSCRIPTION_BACKOFF_MAX", Duration::from_secs(2))?,
            }),
            "0" => None,
            other => return Err(invalid("MESOS_CHECKPOINT", other, "0 or 1")),
        };
        let sandbox = get("MESOS_SANDBOX").map_or_else(|| require("MESOS_DIRECTORY"), Ok)?;
        Ok(Environment {
            framework_id: require("MESOS_FRAMEWORK_ID")?.to_owned(),
            executor_id: require("MESOS_EXECUTOR_ID")?.to_owned(),
            agent_id: require("MESOS_SLAVE_ID")?.to_owned(),
            prefix,
            address,
            domain_socket,
            sandbox: sandbox.into(),
            shutdown_grace: duration(
                "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD",
                Duration::from_secs(5),
            )?,
            checkpoint,
            token: get(TOKEN_VARIABLE).map(token).transpose()?,
        })
    }
}

fn invalid(name: &'static str, value: &str, expected: &'static str) -> Error {
    Error::Invalid {
        name,
        value: value.to_owned(),
        expected,
    }
}

/// Its value must never be shown, not even in an error.
fn token(value: &str) -> Result<Token, Error> {
    match !value.is_empty() && value.chars().all(|c| c.is_ascii_graphic()) {
        true => Ok(Token(value.to_owned())),
        false => Err(invalid(
            TOKEN_VARIABLE,
            "(not shown)",
            "visible ASCII characters",
        )),
    }
}

/// `slave(1)@IP:PORT`. A host name is refused: nothing here asks a name service.
fn agent_pid(name: &'static str, value: &str) -> Result<(String, SocketAddr), Error> {
    let expected = "NAME@IP:PORT, with an IP address and no host name";
    let parts = value.split_once('@').and_then(|(prefix, address)| {
        let clean = prefix
            .chars()
            .all(|c| c.is_ascii_graphic() && !"/?#%".contains(c));
        (clean && !prefix.is_empty()).then_some((prefix.to_owned(), address.parse().ok()?))
    });
    parts.ok_or_else(|| invalid(name, value, expected))
}

/// Mesos' durations, e.g. `1.5secs`.
fn parse_duration(name: &'static str, value: &str) -> Result<Duration, Error> {
    let expected = "a number and one of ns, us, ms, secs, mins, hrs, days, weeks, as in 1.5secs";
    let units = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("ms", 1e-3),
        ("secs", 1.0),
        ("mins", 60.0),
        ("hrs", 3600.0),
        ("days", 86400.0),
        ("weeks", 604_800.0),
    ];
    let split = value
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(value.len());
    let (number, unit) = value.split_at(split);
    let factor = units
        .iter()
        .find(|(known, _)| *known == unit)
        .map(|(_, factor)| factor);
    let seconds = factor.and_then(|factor| Some(number.parse::<f64>().ok()? * factor));
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| invalid(name, value, expected))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn variables(changes: &[(&str, Option<&str>)]) -> HashMap<String, String> {
        let all = [
            ("MESOS_FRAMEWORK_ID", "F"),
            ("MESOS_EXECUTOR_ID", "E"),
            ("MESOS_SLAVE_ID", "S"),
            ("MESOS_SLAVE_PID", "slave(1)@127.0.0.1:5051"),
            ("MESOS_DIRECTORY", "/sandbox"),
            ("MESOS_CHECKPOINT", "1"),
            ("MESOS_RECOVERY_TIMEOUT", "15mins"),
            ("MESOS_SUBSCRIPTION_BACKOFF_MAX", "1.5secs"),
            ("MESOS_EXECUTOR_AUTHENTICATION_TOKEN", "hush"),
        ];
        let mut variables: HashMap<_, _> = all
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        for (name, value) in changes {
            match value {
                Some(value) => variables.insert((*name).to_owned(), (*value).to_owned()),
                None => variables.remove(*name),
            };
        }
        variables
    }

    fn read(changes: &[(&str, Option<&str>)]) -> Result<Environment, Error> {
        Environment::from_variables(&variables(changes))
    }

    #[test]
    fn what_an_agent_sets_is_understood() {
        let environment = read(&[]).unwrap();
        assert_eq!(environment.prefix, "slave(1)");
        assert_eq!(environment.address, "127.0.0.1:5051".parse().unwrap());
        assert_eq!(environment.sandbox, PathBuf::from("/sandbox"));
        assert_eq!(environment.shutdown_grace, Duration::from_secs(5));
        let checkpoint = environment.checkpoint.unwrap();
        assert_eq!(checkpoint.recovery_timeout, Duration::from_secs(900));
        assert_eq!(checkpoint.backoff, Duration::from_millis(1500));
        assert!(!format!("{environment:?}").contains("hush"));
        assert_eq!(environment.token.unwrap().reveal(), "hush");
        assert_eq!(
            read(&[("MESOS_CHECKPOINT", Some("0"))]).unwrap().checkpoint,
            None
        );
        let sandbox = read(&[("MESOS_SANDBOX", Some("/mnt/mesos/sandbox"))])
            .unwrap()
            .sandbox;
        assert_eq!(sandbox, PathBuf::from("/mnt/mesos/sandbox"));
    }

    #[test]
    fn what_is_missing_or_bad_is_named() {
        for name in [
            "MESOS_FRAMEWORK_ID",
            "MESOS_EXECUTOR_ID",
            "MESOS_SLAVE_PID",
            "MESOS_DIRECTORY",
        ] {
            assert_eq!(read(&[(name, None)]), Err(Error::Missing { name }));
        }
        for (name, value) in [
            ("MESOS_SLAVE_PID", "slave(1)@agent.example:5051"),
            ("MESOS_SLAVE_PID", "127.0.0.1:5051"),
            ("MESOS_SLAVE_PID", "a/b@127.0.0.1:5051"),
            ("MESOS_SLAVE_PID", "a b@127.0.0.1:5051"),
            ("MESOS_CHECKPOINT", "true"),
            ("MESOS_RECOVERY_TIMEOUT", "15"),
            ("MESOS_RECOVERY_TIMEOUT", "15m"),
            ("MESOS_RECOVERY_TIMEOUT", "-1secs"),
            ("MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", "infsecs"),
        ] {
            let error = read(&[(name, Some(value))]).unwrap_err();
            assert!(
                matches!(&error, Error::Invalid { name: n, value: v, .. } if *n == name && v == value)
            );
        }
    }

    #[test]
    fn an_agent_with_tls_needs_its_domain_socket() {
        let tls = ("SSL_ENABLED", Some("true"));
        assert_eq!(
            read(&[tls]),
            Err(Error::Tls {
                name: "SSL_ENABLED"
            })
        );
        assert!(read(&[tls, ("MESOS_DOMAIN_SOCKET", Some("/run/agent.sock"))]).is_ok());
    }

    #[test]
    fn every_unit_of_a_duration_is_known() {
        for (text, nanoseconds) in [
            ("1ns", 1),
            ("2us", 2_000),
            ("250ms", 250_000_000),
            ("1secs", 1_000_000_000),
            ("1mins", 60_000_000_000),
            ("1hrs", 3_600_000_000_000),
            ("1days", 86_400_000_000_000),
            ("1weeks", 604_800_000_000_000),
        ] {
            assert_eq!(
                parse_duration("D", text).unwrap(),
                Duration::from_nanos(nanoseconds),
                "{text}"
            );
        }
    }
}
