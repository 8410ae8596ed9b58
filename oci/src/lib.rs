//! Container images for tepui: a reference becomes unpacked layers on the node, ready for overlayfs.
//!
//! [`ImageReference`] says which image and where it is; [`pull`] brings it into the [`Store`], each layer verified by
//! its blob's digest and its content's diff id, and unpacked once; [`Image`] names the layers and carries the image's
//! configuration; [`rootfs`] reads files and users of it without a mount. After image-spec and distribution-spec 1.1.
//!
//! Images are not trusted. What they could do to the node is stopped where it would happen: [`unpack`](LayerError)
//! never leaves its directory, nothing has an owner or attribute that means something to the host, and every size,
//! count and depth is bounded.
#![forbid(unsafe_code)]

mod archive;
mod config;
mod digest;
mod error;
mod layout;
mod manifest;
mod pull;
mod reference;
mod registry;
pub mod rootfs;
mod source;
mod store;
mod tar;
mod unpack;

pub use config::ImageConfig;
pub use digest::Digest;
pub use error::{Error, Result};
pub use pull::{Image, PullOptions, pull};
pub use reference::{DefaultRegistry, ImageReference, RegistryReference};
pub use store::{LayerName, Store};
pub use tar::TarError;
pub use unpack::{LayerError, Limits};
