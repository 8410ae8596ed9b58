//! Unpacked layers: their names, what is known of them, how they become visible.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::{Lock, Store};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::unpack::remove_tree;

const UNFINISHED: &str = ".unpack-";

/// The directory of a layer in the store: 24 characters, since overlayfs' options hold only so many.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerName(String);

impl LayerName {
    /// The first 120 bits of the chain id in base 32. The record keeps the whole id, so that a collision is noticed.
    pub(crate) fn of_chain(chain: &Digest) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut name = String::with_capacity(24);
        for group in chain.bytes()[..15].chunks_exact(5) {
            let bits = group
                .iter()
                .fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            for at in (0..8).rev() {
                name.push(char::from(ALPHABET[(bits >> (5 * at)) as usize & 31]));
            }
        }
        Self(name)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn unfinished(&self) -> String {
        format!("{UNFINISHED}{}", self.0)
    }
}

impl AsRef<Path> for LayerName {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Chain ids of layers, lowest first (image-spec config.md "Layer ChainID").
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Option<Digest> = None;
    let next = diff_ids.iter().map(|diff_id| {
        let id = match chain {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain = Some(id);
        id
    });
    next.collect()
}

/// What the store knows of a published layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub chain: Digest,
    /// The layer's root is opaque: overlayfs gets none of the layers below it.
    pub hides_lower: bool,
}

impl Store {
    /// The record of a layer, if it is published.
    pub(crate) fn layer(&self, chain: &Digest) -> Result<Option<LayerRecord>> {
        let name = LayerName::of_chain(chain);
        if !self.layers_directory().join(&name).is_dir() {
            return Ok(None);
        }
        let path = self.path("chains", name.as_str());
        let text = std::fs::read(&path).map_err(Error::file("read", &path))?;
        let record: LayerRecord = serde_json::from_slice(&text).map_err(|error| {
            Error::refused(format!("the record {}", path.display()), error.to_string())
        })?;
        match record.chain == *chain {
            true => Ok(Some(record)),
            false => Err(Error::refused(
                format!("the layer {chain}"),
                format!("its short name {name} is taken by {}", record.chain),
            )),
        }
    }

    /// A handle of a published layer.
    pub(crate) fn open_layer(&self, name: &LayerName) -> Result<Arc<OwnedFd>> {
        self.open_directory(name.as_str())
    }

    fn open_directory(&self, name: &str) -> Result<Arc<OwnedFd>> {
        let path = self.layers_directory().join(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&path, flags, Mode::empty());
        handle.map(Arc::new).map_err(Error::file("open", path))
    }

    /// An empty directory to unpack the layer into; its lock must be held.
    pub(crate) fn begin_layer(&self, name: &LayerName) -> Result<Arc<OwnedFd>> {
        self.discard_layer(name)?;
        let unfinished = name.unfinished();
        let path = self.layers_directory().join(&unfinished);
        rustix::fs::mkdir(&path, Mode::RWXU).map_err(Error::file("create", path))?;
        self.open_directory(&unfinished)
    }

    /// Removes a layer that is not published.
    pub(crate) fn discard_layer(&self, name: &LayerName) -> Result<()> {
        let layers = self.layers_directory();
        let handle = File::open(&layers).map_err(Error::file("open", &layers))?;
        match remove_tree(&handle, name.unfinished().as_ref()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(Error::file("remove", layers.join(name.unfinished()))),
        }
    }

    /// Makes unpacked layers visible: their data first, then their names.
    pub(crate) fn publish_layers(&self, layers: &[(LayerName, LayerRecord)]) -> Result<()> {
        let directory = self.layers_directory();
        for (name, record) in layers {
            let text = serde_json::to_vec(record).map_err(std::io::Error::other);
            let text = text.map_err(Error::file("write", self.path("chains", name.as_str())))?;
            self.write("chains", name.as_str(), &text)?;
        }
        let handle = File::open(&directory).map_err(Error::file("open", &directory))?;
        // One for all files, instead of an fsync for each.
        rustix::fs::syncfs(&handle).map_err(Error::file("write out", &directory))?;
        for (name, _) in layers {
            let target = directory.join(name);
            std::fs::rename(directory.join(name.unfinished()), &target)
                .map_err(Error::file("publish", target))?;
        }
        // A crash that loses the names costs another unpack, so they are not synced.
        Ok(())
    }

    /// Removes layers whose unpacker has gone; its lock is free then.
    pub(crate) fn remove_unfinished(&self) -> Result<()> {
        let directory = self.layers_directory();
        for entry in std::fs::read_dir(&directory).map_err(Error::file("read", &directory))? {
            let entry = entry.map_err(Error::file("read", &directory))?.file_name();
            let Some(name) = entry
                .to_str()
                .and_then(|name| name.strip_prefix(UNFINISHED))
            else {
                continue;
            };
            let name = LayerName(name.into());
            if let Some(_lock) = Lock::try_take(self, name.as_str())? {
                self.discard_layer(&name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let chains = chain_ids(&[a, b]);
        assert_eq!(chains, [a, Digest::of(format!("{a} {b}").as_bytes())]);
    }

    #[test]
    fn short_names_are_safe_and_differ() {
        let name = LayerName::of_chain(&Digest::of(b"a"));
        assert_eq!(name.as_str().len(), 24);
        assert!(
            name.as_str()
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        );
        assert_ne!(name, LayerName::of_chain(&Digest::of(b"b")));
    }
}
