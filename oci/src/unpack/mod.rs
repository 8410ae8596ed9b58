//! From a layer's blob to a directory that overlayfs can use: read, hash, inflate, hash, tar, files, in one pass.

mod decompress;
mod metadata;
mod name;
mod remove;
mod tree;
pub(crate) mod view;

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::digest::{Digest, HashingReader};
use crate::tar::{Entry, Reader, TarError};
pub(crate) use decompress::Decoder;
use name::Name;
pub(crate) use remove::remove_tree;
use tree::{Fault, Tree};
use view::View;

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The stream is no tar stream, or is damaged.
    #[error("its archive cannot be read")]
    Tar(#[source] TarError),
    /// An entry breaks a rule.
    #[error("its entry {name:?} is refused: {rule}")]
    Entry {
        /// The entry's name, as far as it is text.
        name: String,
        /// Which rule.
        rule: String,
    },
    /// The kernel refused.
    #[error("could not {action} its entry {name:?}")]
    File {
        /// E.g. "create".
        action: &'static str,
        /// The entry's name, as far as it is text.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The blob, or what it uncompresses to, is not what was promised.
    #[error("its {what} has the digest {found}, but {expected} was promised")]
    Digest {
        /// "blob" or "content".
        what: &'static str,
        /// What was promised.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The blob is longer or shorter than promised.
    #[error("its blob has {found} bytes, but {expected} were promised")]
    Size {
        /// What was promised.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// It asks for more than a layer may.
    #[error("it has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
}

/// What a layer may ask for; far above honest layers, far below what would fill or stall a node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of all files of one layer, holes of sparse files included.
    pub bytes: u64,
    /// Bytes of all names of one layer.
    pub names: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4 << 20,
            bytes: 256 << 30,
            names: 64 << 20,
        }
    }
}

/// Set when nobody waits for the result any more.
pub(crate) type Cancel = Arc<AtomicBool>;

/// What is promised about a layer.
pub(crate) struct Promise {
    /// Digest and size of the blob as it is stored; docker archives promise none.
    pub blob: Option<(Digest, u64)>,
    /// Digest of the uncompressed stream.
    pub diff_id: Digest,
    pub limits: Limits,
}

/// Unpacks a layer into the empty directory `root`. True if it hides all layers below.
pub(crate) fn unpack(
    blob: impl Read,
    promise: &Promise,
    root: Arc<OwnedFd>,
    lower: View,
    cancel: &Cancel,
) -> Result<bool, LayerError> {
    let mut packed = HashingReader::new(Cancellable {
        inner: blob,
        cancel,
    });
    let result = unpack_stream(&mut packed, promise, root, lower);
    let check_blob = |packed: HashingReader<_>| -> Result<(), LayerError> {
        let (found, length) = packed.finish();
        match promise.blob {
            Some((_, size)) if size != length => Err(LayerError::Size {
                expected: size,
                found: length,
            }),
            Some((expected, _)) if expected != found => Err(LayerError::Digest {
                what: "blob",
                expected,
                found,
            }),
            _ => Ok(()),
        }
    };
    match result {
        Err(LayerError::Tar(error)) => {
            // A damaged blob breaks the formats inside first; that it is not what was promised says more.
            drain(&mut packed).map_err(|source| LayerError::Tar(TarError::Read(source)))?;
            check_blob(packed)?;
            Err(LayerError::Tar(error))
        }
        Err(error) => Err(error),
        Ok(hides_lower) => {
            drain(&mut packed).map_err(|source| LayerError::Tar(TarError::Read(source)))?;
            check_blob(packed)?;
            Ok(hides_lower)
        }
    }
}

fn unpack_stream(
    packed: impl Read,
    promise: &Promise,
    root: Arc<OwnedFd>,
    lower: View,
) -> Result<bool, LayerError> {
    let stream = |source| LayerError::Tar(TarError::Read(source));
    let packed = BufReader::with_capacity(64 << 10, packed);
    let mut plain = HashingReader::new(Decoder::new(packed).map_err(stream)?);
    let mut reader = Reader::new(BufReader::with_capacity(128 << 10, &mut plain));
    let tree = Tree::new(root, lower).map_err(|fault| worded(fault, b"/"))?;
    let hides_lower = fill_tree(&mut reader, tree, promise.limits)?;
    drain(reader.into_inner()).map_err(stream)?;
    let (found, _) = plain.finish();
    match found == promise.diff_id {
        true => Ok(hides_lower),
        false => Err(LayerError::Digest {
            what: "content",
            expected: promise.diff_id,
            found,
        }),
    }
}

fn fill_tree<R: BufRead>(
    reader: &mut Reader<R>,
    mut tree: Tree,
    limits: Limits,
) -> Result<bool, LayerError> {
    let (mut entries, mut bytes, mut names) = (0, 0u64, 0);
    let mut buffer = vec![0; 128 << 10];
    while let Some(entry) = reader.next().map_err(LayerError::Tar)? {
        entries += 1;
        bytes = bytes.saturating_add(entry.size);
        for (what, count, limit) in [
            ("entries", entries, limits.entries),
            ("bytes", bytes, limits.bytes),
            ("bytes of names", names, limits.names),
        ] {
            if count > limit {
                return Err(LayerError::Limit { what, limit });
            }
        }
        let result = match Name::parse(&entry.path) {
            Err(rule) => Err(Fault::Rule(rule)),
            Ok(Name::Bookkeeping) => Ok(0),
            Ok(Name::Root) => tree.put_root(&entry).map(|()| 0),
            Ok(Name::Whiteout { parent, name }) => {
                tree.whiteout(&parent, &name).map(|()| entry.path.len())
            }
            Ok(Name::Opaque { parent }) => tree.opaque(&parent).map(|()| entry.path.len()),
            Ok(Name::Entry { parent, name }) => {
                let mut fill = |file: &OwnedFd| write_data(reader, &entry, file, &mut buffer);
                tree.put(&entry, &parent, &name, &mut fill)
            }
        };
        names += result.map_err(|fault| worded(fault, &entry.path))? as u64;
    }
    tree.finish().map_err(|fault| worded(fault, b"/"))
}

/// Writes an entry's data, a sparse file's to where it belongs.
fn write_data<R: Read>(
    reader: &mut Reader<R>,
    entry: &Entry,
    file: &OwnedFd,
    buffer: &mut [u8],
) -> Result<(), Fault> {
    let whole = [(0, entry.size)];
    if entry.pieces.is_some() {
        rustix::fs::ftruncate(file, entry.size).map_err(Fault::kernel("write"))?;
    }
    for (offset, length) in entry.pieces.as_deref().unwrap_or(&whole) {
        let (mut at, end) = (*offset, offset + length);
        while at < end {
            let wanted = buffer
                .len()
                .min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let read = reader
                .read_data(&mut buffer[..wanted])
                .map_err(Fault::Stream)?;
            if read == 0 {
                return Err(Fault::Rule("its data is shorter than it says".into()));
            }
            let mut data = &buffer[..read];
            while !data.is_empty() {
                let written =
                    rustix::io::retry_on_intr(|| rustix::io::pwrite(file.as_fd(), data, at));
                let written = written.map_err(Fault::kernel("write"))?;
                data = &data[written..];
                at += written as u64;
            }
        }
    }
    Ok(())
}

fn worded(fault: Fault, path: &[u8]) -> LayerError {
    let name = String::from_utf8_lossy(&path[..path.len().min(500)]).into_owned();
    match fault {
        Fault::Rule(rule) => LayerError::Entry { name, rule },
        Fault::Kernel { action, source } => LayerError::File {
            action,
            name,
            source,
        },
        Fault::Stream(error) => LayerError::Tar(error),
    }
}

fn drain(mut stream: impl Read) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Fails as soon as nobody waits any more: unpacking ends within one buffer.
struct Cancellable<'a, R> {
    inner: R,
    cancel: &'a Cancel,
}

impl<R: Read> Read for Cancellable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.cancel.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the pull was cancelled")),
            false => self.inner.read(buffer),
        }
    }
}
