//! Images on this machine: where their documents and layers are, whatever the form (one face for layouts and archives).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// A piece of a file: a blob of a layout, or a member of an archive.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub file: Arc<File>,
    pub offset: u64,
    pub length: u64,
}

impl Blob {
    /// A whole file; a fifo or device in its place is refused instead of waited for.
    pub fn open(path: &Path) -> Result<Self> {
        let file = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let file = File::from(file.map_err(Error::file("open", path))?);
        let metadata = file.metadata().map_err(Error::file("look at", path))?;
        match metadata.is_file() {
            true => Ok(Self {
                file: Arc::new(file),
                offset: 0,
                length: metadata.len(),
            }),
            false => Err(Error::refused(
                format!("{}", path.display()),
                "it is not a regular file",
            )),
        }
    }

    /// Reads it from its start.
    pub fn reader(&self) -> BlobReader {
        BlobReader {
            blob: self.clone(),
            position: 0,
        }
    }

    /// All of a small document.
    pub fn document(&self, what: &str, limit: u64) -> Result<Vec<u8>> {
        if self.length > limit {
            return Err(Error::refused(
                what,
                format!("it is longer than {limit} bytes"),
            ));
        }
        let mut bytes = Vec::new();
        self.reader()
            .read_to_end(&mut bytes)
            .map_err(Error::file("read", what))?;
        Ok(bytes)
    }
}

/// Has a position of its own, so that layers of one archive can be read side by side.
pub(crate) struct BlobReader {
    blob: Blob,
    position: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left =
            usize::try_from(self.blob.length.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let length = self
            .blob
            .file
            .read_at(&mut buffer[..wanted], self.blob.offset + self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(step) => self.position.checked_add_signed(step),
            SeekFrom::End(step) => self.blob.length.checked_add_signed(step),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// One image of a layout or archive, resolved.
pub(crate) struct LocalImage {
    /// Identifies the image: its manifest's digest, or that of its configuration where there is no manifest.
    pub digest: Digest,
    pub config: Vec<u8>,
    pub layers: Vec<LocalLayer>,
}

/// Where one layer is, and what is promised about it.
pub(crate) struct LocalLayer {
    pub promise: Option<(Digest, u64)>,
    pub open: Box<dyn Fn() -> Result<Blob> + Send>,
}
