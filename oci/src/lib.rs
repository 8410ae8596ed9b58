//! Container images for tepui.
#![forbid(unsafe_code)]

mod config;
mod digest;
mod error;
mod manifest;
mod reference;
mod tar;
mod unpack;

pub use config::ImageConfig;
pub use digest::Digest;
pub use error::{Error, Result};
pub use reference::{DefaultRegistry, ImageReference, RegistryReference};
pub use tar::TarError;
pub use unpack::{LayerError, Limits};
