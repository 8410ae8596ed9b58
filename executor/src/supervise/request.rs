//! One container to run, and what happens before the launcher hears of it: image, declaration, standard descriptors.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tepui_isolators::Declaration;
use tepui_oci::{Image, ImageReference, PullOptions, Store};

use crate::beneath;
use crate::spec::{self, Options};

/// A container to run.
#[derive(Debug)]
pub struct Request {
    /// What it is to be.
    pub options: Options,
    /// Its image; none for the host's file system.
    pub image: Option<ImageReference>,
    /// Whether the image is asked for at its source even when it is in the store.
    pub always_pull: bool,
    /// Standard descriptors.
    pub stdio: Stdio,
    /// A directory of the host that is given to the container's user.
    pub sandbox: Option<PathBuf>,
}

/// Where the standard descriptors of a workload come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stdio {
    /// Whether standard input is ours; else it is empty.
    pub input: bool,
    /// A directory for the files `stdout` and `stderr`; else both are ours.
    pub output: Option<PathBuf>,
}

/// All that the launcher needs.
#[derive(Debug)]
pub struct Prepared {
    /// What the container is to be.
    pub declaration: Declaration,
    /// Its standard descriptors.
    pub stdio: [OwnedFd; 3],
    /// The signal that asks the workload to stop.
    pub stop_signal: i32,
}

/// A container that could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// No image.
    #[error(transparent)]
    Image(#[from] tepui_oci::Error),
    /// No declaration.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// No standard descriptors.
    #[error("could not open {what}")]
    Stdio {
        /// Which.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The image asks for a signal that there is not.
    #[error(
        "the image's StopSignal is {signal:?}, which is no signal; use a name like SIGTERM or a number from 1 to 64"
    )]
    StopSignal {
        /// As the image has it.
        signal: String,
    },
}

impl Request {
    /// Pulls the image, makes the declaration, opens the descriptors. Nothing of it is left when it is dropped.
    ///
    /// # Errors
    /// The first thing that failed.
    pub async fn prepare(self, store: Arc<Store>) -> Result<Prepared, PrepareError> {
        let image: Option<Image> = match &self.image {
            Some(reference) => {
                let mut options = PullOptions::default();
                options.always = self.always_pull;
                Some(tepui_oci::pull(&store, reference, &options).await?)
            }
            None => None,
        };
        let declaration = spec::declare(&self.options, &store, image.as_ref())?;
        // Root needs no gift, and the directory may be somebody's.
        if let (Some(sandbox), Some(process)) = (&self.sandbox, declaration.spec.process())
            && process.user().uid() != 0
        {
            let user = process.user();
            give(sandbox, user.uid(), user.gid()).map_err(|source| PrepareError::Stdio {
                what: sandbox.display().to_string(),
                source,
            })?;
        }
        let stop_signal = match image
            .as_ref()
            .and_then(|image| image.config.stop_signal.as_deref())
        {
            None | Some("") => libc::SIGTERM,
            Some(name) => parse_signal(name).ok_or_else(|| PrepareError::StopSignal {
                signal: name.to_owned(),
            })?,
        };
        Ok(Prepared {
            declaration,
            stdio: self.stdio.open()?,
            stop_signal,
        })
    }
}

/// chown(2) of the directory itself, not of what a link there points at.
fn give(directory: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let opened = beneath::make_directory(directory, Path::new(""))?;
    std::os::unix::fs::fchown(opened, Some(uid), Some(gid))
}

impl Stdio {
    fn open(&self) -> Result<[OwnedFd; 3], PrepareError> {
        let own = |descriptor: std::os::fd::BorrowedFd<'_>, what: &str| {
            let copied = descriptor.try_clone_to_owned();
            copied.map_err(|source| PrepareError::Stdio {
                what: what.to_owned(),
                source,
            })
        };
        let open = |path: PathBuf, options: &std::fs::OpenOptions| {
            let file = options.open(&path).map(OwnedFd::from);
            file.map_err(|source| PrepareError::Stdio {
                what: path.display().to_string(),
                source,
            })
        };
        let input = match self.input {
            true => own(io::stdin().as_fd(), "standard input")?,
            false => open("/dev/null".into(), std::fs::OpenOptions::new().read(true))?,
        };
        let (output, error) = match &self.output {
            None => (
                own(io::stdout().as_fd(), "standard output")?,
                own(io::stderr().as_fd(), "standard error")?,
            ),
            Some(directory) => {
                let failed = |source| PrepareError::Stdio {
                    what: format!("stdout and stderr in {}", directory.display()),
                    source,
                };
                let opened = beneath::make_directory(directory, Path::new("")).map_err(failed)?;
                (
                    beneath::append(&opened, "stdout").map_err(failed)?,
                    beneath::append(&opened, "stderr").map_err(failed)?,
                )
            }
        };
        Ok([input, output, error])
    }
}

/// `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`, as Docker takes it.
pub fn parse_signal(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = name.to_ascii_uppercase();
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = short.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('+')?.parse().ok()?
        };
        // The first two real-time signals are the C library's own.
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    let signal: nix::sys::signal::Signal = format!("SIG{short}").parse().ok()?;
    Some(signal as i32)
}

#[cfg(test)]
mod tests {
    use super::parse_signal;

    #[test]
    fn signals_are_named_as_docker_names_them() {
        let cases = [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
        ];
        for (name, number) in cases {
            assert_eq!(parse_signal(name), Some(number), "{name}");
        }
        for bad in ["", "0", "65", "SIGNOPE", "SIGRTMIN+31", "-1"] {
            assert_eq!(parse_signal(bad), None, "{bad}");
        }
    }
}
