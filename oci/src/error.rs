//! What can go wrong with an image, worded for whoever has to act on it.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::unpack::LayerError;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure around an image; the chain of sources says the rest, none repeats another.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no image reference, or no default registry.
    #[error("{text:?} is not {wanted}: {rule}")]
    Reference {
        /// What was given.
        text: String,
        /// What it should be, e.g. "an image reference".
        wanted: &'static str,
        /// What is wrong with it.
        rule: String,
    },
    /// The text is no digest.
    #[error("{text:?} is not a digest: it must be sha256: and 64 lower-case hexadecimal digits")]
    Digest {
        /// What was given.
        text: String,
    },
    /// The registry answered, but not with what was asked for.
    #[error("image {image}: the registry answered {answer}")]
    Registry {
        /// The reference.
        image: String,
        /// Status, and the codes and messages of the answer's body (distribution-spec "Error Codes").
        answer: String,
    },
    /// The registry could not be reached, or broke off.
    #[error("image {image}: could not {action} {target}")]
    Connection {
        /// The reference.
        image: String,
        /// E.g. "connect to".
        action: &'static str,
        /// Host and port, or the address asked for.
        target: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Anything else that went wrong with one image.
    #[error("image {image}")]
    Image {
        /// The reference.
        image: String,
        /// What it was.
        source: Box<Error>,
    },
    /// There is no such image in the layout, archive or directory.
    #[error("{} has no image {wanted}{}", place.display(), choices(.present))]
    Missing {
        /// The layout, archive or directory.
        place: PathBuf,
        /// What was looked for.
        wanted: String,
        /// What there is instead.
        present: Vec<String>,
    },
    /// A document or archive of the image breaks a rule; it is not used.
    #[error("{what} is refused: {rule}")]
    Refused {
        /// E.g. "the manifest sha256:...".
        what: String,
        /// Which rule.
        rule: String,
    },
    /// The content is not what was promised.
    #[error("{what} has the digest {found}, but {expected} was promised")]
    Mismatch {
        /// What was checked.
        what: String,
        /// What was promised.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A layer could not be unpacked.
    #[error("layer {layer}")]
    Layer {
        /// Its digest or diff id.
        layer: String,
        /// Why.
        source: LayerError,
    },
    /// A file or directory of the store, or of an image on disk.
    #[error("could not {action} {}", path.display())]
    File {
        /// E.g. "open".
        action: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image's user cannot be resolved.
    #[error("user {user:?}: {rule}")]
    User {
        /// As asked for.
        user: String,
        /// What is wrong with it.
        rule: String,
    },
    /// Whoever asked for the image has gone.
    #[error("the pull was cancelled")]
    Cancelled,
}

impl Error {
    /// For `map_err` on what the kernel refused.
    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::File {
            action,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        }
    }

    pub(crate) fn refused(what: impl Into<String>, rule: impl Into<String>) -> Self {
        Self::Refused {
            what: what.into(),
            rule: rule.into(),
        }
    }

    /// Names the image, unless the error does so already.
    pub(crate) fn of_image(self, image: &str) -> Self {
        match self {
            Self::Registry { .. } | Self::Connection { .. } | Self::Image { .. } => self,
            other => Self::Image {
                image: image.into(),
                source: Box::new(other),
            },
        }
    }
}

fn choices(present: &[String]) -> String {
    match present {
        [] => String::new(),
        some => format!(" (it has {})", some.join(", ")),
    }
}
