//! The node's image store, shared by every executor on the node:
//!
//! ```text
//! DIR/blobs/sha256/HEX    manifests and configurations, by digest
//! DIR/layers/NAME         unpacked layers in overlayfs' form; NAME is 24 characters of the chain id
//! DIR/layers/.unpack-NAME a layer on its way, under its lock; removed by whoever finds it without
//! DIR/chains/NAME         the whole chain id of the layer, and whether it hides all layers below
//! DIR/images/HEX          which digest a name meant last, by the digest of the name
//! DIR/containers/ID       for the executor: upper and work directories of a container
//! DIR/locks/NAME          flock(2): one unpack of a layer at a time, across processes
//! ```
//!
//! All of it is 0700: images hold setuid files that host users must not reach (CVE-2021-41103). Blobs of layers are
//! not kept; while they are downloaded they have no name (O_TMPFILE), so nothing of them outlives the process.

mod layers;
mod lock;

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
pub use layers::LayerName;
pub(crate) use layers::{LayerRecord, chain_ids};
pub(crate) use lock::Lock;

const DIRECTORIES: [&str; 7] = [
    "blobs",
    "blobs/sha256",
    "layers",
    "chains",
    "images",
    "containers",
    "locks",
];

/// The lock of small documents; layers have theirs.
const DOCUMENTS: &str = "documents";

/// The image store of this node.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// Which image a name meant when it was pulled last.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The reference, for people.
    pub name: String,
    /// The digest of what the name led to first: an index or a manifest.
    pub digest: Digest,
    /// The digest of this node's image.
    pub manifest: Digest,
}

impl Store {
    /// Opens the store, creating it where there is none, and removes what a killed process left half-done.
    pub fn open(dir: &Path) -> Result<Self> {
        let dir = std::path::absolute(dir).map_err(Error::file("find", dir))?;
        let parents = dir.parent().unwrap_or(&dir);
        std::fs::create_dir_all(parents).map_err(Error::file("create", parents))?;
        create_private(&dir)?;
        for name in DIRECTORIES {
            let path = dir.join(name);
            create_private(&path)?;
            check_ours(&path)?;
        }
        let store = Self { dir };
        store.spread_layers();
        store.remove_unfinished()?;
        Ok(store)
    }

    /// Where the layers are that [`crate::Image::layers`] names.
    pub fn layers_directory(&self) -> PathBuf {
        self.dir.join("layers")
    }

    /// Where the writable layers of containers lie, one directory each.
    pub fn writable_layers(&self) -> PathBuf {
        self.writable("")
    }

    /// Where a container has its upper and work directories, on the file system of the layers. Not created.
    pub fn writable(&self, container: &str) -> PathBuf {
        self.dir.join("containers").join(container)
    }

    pub(crate) fn path(&self, kind: &str, name: &str) -> PathBuf {
        self.dir.join(kind).join(name)
    }

    /// ext4's allocator steps over every inode freed lately; with this flag each layer starts in a block group of its
    /// own and an unpack after deletions stays fast. Other file systems do not know it, and do not need it.
    fn spread_layers(&self) {
        let set = || -> io::Result<()> {
            let directory = File::open(self.layers_directory())?;
            let flags = ioctl_getflags(&directory)?;
            if !flags.contains(IFlags::TOPDIR) {
                ioctl_setflags(&directory, flags | IFlags::TOPDIR)?;
            }
            Ok(())
        };
        if let Err(error) = set() {
            tracing::debug!(%error, "the layers' directory cannot have the top-directory flag");
        }
    }

    /// A small document by digest; one that is damaged counts as absent.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path("blobs/sha256", &digest.hex())).ok()?;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    pub(crate) fn put_blob(&self, bytes: &[u8]) -> Result<()> {
        let digest = Digest::of(bytes);
        match self.blob(&digest) {
            Some(_) => Ok(()),
            None => self.write("blobs/sha256", &digest.hex(), bytes),
        }
    }

    pub(crate) fn known(&self, name: &str) -> Option<Known> {
        let path = self.path("images", &Digest::of(name.as_bytes()).hex());
        let known: Known = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (known.name == name).then_some(known)
    }

    pub(crate) fn remember(&self, known: &Known) -> Result<()> {
        let file = Digest::of(known.name.as_bytes()).hex();
        let old = self.known(&known.name);
        if old.is_some_and(|old| old.digest == known.digest && old.manifest == known.manifest) {
            return Ok(());
        }
        let text = serde_json::to_vec(known).map_err(io::Error::other);
        self.write("images", &file, &text.map_err(Error::file("write", &file))?)
    }

    /// Writes a small document so that readers see it whole or not at all. Not synced: after a crash of the machine a
    /// damaged one counts as absent, and the records of layers are synced with the layers.
    pub(crate) fn write(&self, kind: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let _lock = Lock::wait(self, DOCUMENTS)?;
        // One name for all, under the lock: a killed writer leaves at most one such file, which the next one reuses.
        let temporary = self.path(kind, ".new");
        let path = self.path(kind, name);
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
            file.write_all(bytes)?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(Error::file("write", &path))
    }

    /// A file without a name, for a download: it is gone with its last handle.
    pub(crate) fn unnamed_file(&self) -> Result<File> {
        let directory = self.path("blobs", ".");
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&directory, flags, Mode::RUSR | Mode::WUSR) {
            // A file system without O_TMPFILE: take the name away at once instead.
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => self.unlinked_file(),
            other => other.map_err(io::Error::from),
        };
        file.map(File::from)
            .map_err(Error::file("create a file in", &directory))
    }

    fn unlinked_file(&self) -> io::Result<OwnedFd> {
        let path = self.path(
            "blobs",
            &format!(
                ".download-{}-{}",
                std::process::id(),
                getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?
            ),
        );
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }
}

fn create_private(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(Error::file("create", path)),
    }
}

/// A directory that somebody else planted, or that others may enter, is not used.
fn check_ours(path: &Path) -> Result<()> {
    let metadata = std::fs::symlink_metadata(path).map_err(Error::file("look at", path))?;
    let what = || format!("the store directory {}", path.display());
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::refused(
            what(),
            "it must be a directory that belongs to the user of this process",
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(Error::refused(
            what(),
            "others can enter it, and images hold setuid files; chmod it to 0700",
        ));
    }
    Ok(())
}
