//! What a container executes: a command of the task and the image's Entrypoint and Cmd, put together.
//!
//! The table is that of Mesos' `docker/runtime` isolator; `tepui run` follows Docker.

use tepui_oci::ImageConfig;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `/bin/sh -c TEXT`.
    Shell(String),
    /// Mesos' `shell: false`: a program and the whole argument vector, `argv[0]` included, either of which the image
    /// may supply.
    Exec {
        /// The program.
        value: Option<String>,
        /// The argument vector.
        arguments: Vec<String>,
    },
    /// Docker's: these in the place of the image's Cmd; empty for Cmd itself.
    Image(Vec<String>),
}

/// A program with its argument vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The program, when it is not `arguments[0]`.
    pub executable: Option<String>,
    /// The argument vector, never empty.
    pub arguments: Vec<String>,
}

/// Neither the task nor the image says what to execute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is nothing to execute: the image has neither Entrypoint nor Cmd; name a command")]
pub struct NoCommand;

impl Command {
    /// Puts the command and the image's configuration together.
    ///
    /// # Errors
    /// [`NoCommand`] when nothing is left to execute.
    pub fn resolve(&self, image: Option<&ImageConfig>) -> Result<Resolved, NoCommand> {
        let entrypoint = image.map_or(&[][..], |config| &config.entrypoint);
        let cmd = image.map_or(&[][..], |config| &config.cmd);
        let plain = |arguments: Vec<String>| Resolved {
            executable: None,
            arguments,
        };
        let resolved = match self {
            Self::Shell(text) => plain(vec!["/bin/sh".into(), "-c".into(), text.clone()]),
            // An empty vector would leave the program without a name of its own.
            Self::Exec {
                value: Some(value),
                arguments,
            } if arguments.is_empty() => plain(vec![value.clone()]),
            Self::Exec {
                value: Some(value),
                arguments,
            } => Resolved {
                executable: Some(value.clone()),
                arguments: arguments.clone(),
            },
            Self::Exec {
                value: None,
                arguments,
            } if !entrypoint.is_empty() => {
                let rest = if arguments.is_empty() { cmd } else { arguments };
                plain([entrypoint, rest].concat())
            }
            Self::Exec {
                value: None,
                arguments,
            } if arguments.is_empty() => plain(cmd.to_vec()),
            Self::Exec {
                value: None,
                arguments,
            } => plain([cmd.get(..1).unwrap_or_default(), arguments].concat()),
            Self::Image(arguments) => {
                let rest = if arguments.is_empty() { cmd } else { arguments };
                plain([entrypoint, rest].concat())
            }
        };
        let without_program = matches!(self, Self::Exec { value: None, .. })
            && entrypoint.is_empty()
            && cmd.is_empty();
        if resolved.arguments.is_empty() || without_program {
            return Err(NoCommand);
        }
        Ok(resolved)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn strings(words: &str) -> Vec<String> {
        words.split_whitespace().map(Into::into).collect()
    }

    fn image(entrypoint: &str, cmd: &str) -> ImageConfig {
        let mut config = ImageConfig::default();
        config.entrypoint = strings(entrypoint);
        config.cmd = strings(cmd);
        config
    }

    #[test]
    fn the_table_of_mesos() {
        let exec = |value: &str, arguments: &str| Command::Exec {
            value: (!value.is_empty()).then(|| value.to_owned()),
            arguments: strings(arguments),
        };
        let cases = [
            (
                Command::Shell("exit 3".into()),
                "e",
                "c",
                Some(("", "/bin/sh|-c|exit 3")),
            ),
            (exec("/bin/a", "x y"), "e", "c", Some(("/bin/a", "x|y"))),
            (exec("/bin/a", ""), "e", "c", Some(("", "/bin/a"))),
            (exec("", ""), "e f", "c d", Some(("", "e|f|c|d"))),
            (exec("", "x"), "e f", "c d", Some(("", "e|f|x"))),
            (exec("", ""), "", "c d", Some(("", "c|d"))),
            (exec("", "x y"), "", "c d", Some(("", "c|x|y"))),
            (exec("", "x"), "", "", None),
            (exec("", ""), "", "", None),
            (Command::Image(vec![]), "e", "c d", Some(("", "e|c|d"))),
            (Command::Image(strings("x")), "e", "c d", Some(("", "e|x"))),
            (Command::Image(strings("x")), "", "c", Some(("", "x"))),
            (Command::Image(vec![]), "", "", None),
        ];
        for (command, entrypoint, cmd, expected) in cases {
            let resolved = command.resolve(Some(&image(entrypoint, cmd))).ok();
            let expected = expected.map(|(executable, arguments)| Resolved {
                executable: (!executable.is_empty()).then(|| executable.to_owned()),
                arguments: arguments.split('|').map(Into::into).collect(),
            });
            assert_eq!(
                resolved, expected,
                "{command:?} with {entrypoint:?} and {cmd:?}"
            );
        }
    }
}
