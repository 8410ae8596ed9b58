//! A streaming tar reader: pax (POSIX.1-2001), ustar, GNU and v7, with bounds on everything that a header can ask for.
//! It reads what layers and image archives are made of; it never seeks and never trusts a length.

mod header;
mod pax;
mod sparse;
#[cfg(test)]
#[allow(dead_code)] // What the tests of whole layers use of it is not used here.
mod writer;

use std::io::{self, Read, Seek};

use header::{BLOCK, Header};

/// The most bytes that extended headers and long names before one entry may take.
const EXTENSION_LIMIT: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// One entry's header, all dialects put together.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    /// The twelve permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds (perhaps before 1970) and nanoseconds.
    pub mtime: (i64, u32),
    /// Length of the file once it is expanded.
    pub size: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of a sparse file: offset and length of each piece of data, in order.
    pub pieces: Option<Vec<(u64, u64)>>,
}

/// Why a tar stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream below failed.
    #[error("could not read the tar stream")]
    Read(#[source] io::Error),
    /// A rule of the format is broken.
    #[error("the tar stream breaks a rule near byte {offset}: {rule}")]
    Format {
        /// Where in the (uncompressed) stream.
        offset: u64,
        /// Which rule.
        rule: String,
    },
}

/// Reads entry after entry; the data of one is read before the next is asked for, or skipped.
pub(crate) struct Reader<R> {
    inner: R,
    offset: u64,
    /// Data of the current entry that is still to come, and the padding after it.
    remaining: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            offset: 0,
            remaining: 0,
            padding: 0,
        }
    }

    /// Bytes read so far: after `next`, where the entry's data starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that the current entry still takes in the stream.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The stream below, to drain what follows the end mark.
    pub fn into_inner(self) -> R {
        self.inner
    }

    fn error(&self, rule: impl Into<String>) -> TarError {
        TarError::Format {
            offset: self.offset,
            rule: rule.into(),
        }
    }

    /// The next entry, or none at the end mark (or at an end without one, as some writers leave it).
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extension = pax::Records::default();
        let mut extension_bytes = 0;
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return match extension_bytes {
                    0 => Ok(None),
                    _ => Err(self.error("an extended header has no entry after it")),
                };
            };
            let length = header.size().map_err(|rule| self.error(rule))?;
            match header.kind() {
                b'x' | b'g' | b'L' | b'K' => {
                    extension_bytes += length + BLOCK as u64;
                    if length > EXTENSION_LIMIT || extension_bytes > EXTENSION_LIMIT {
                        return Err(self.error("its extended headers are longer than 1 MiB"));
                    }
                    let body = self.extension(length)?;
                    match header.kind() {
                        b'x' => extension.parse(&body).map_err(|rule| self.error(rule))?,
                        b'L' => extension.long_name = Some(until_nul(&body).to_vec()),
                        b'K' => extension.long_link = Some(until_nul(&body).to_vec()),
                        // Defaults for all entries: nobody who makes layers means them (Go's reader ignores them too).
                        _ => {}
                    }
                }
                _ => return self.entry(header, extension).map(Some),
            }
        }
    }

    fn entry(&mut self, header: Header, extension: pax::Records) -> Result<Entry, TarError> {
        let stored = match extension.size {
            Some(size) => size,
            None => header.size().map_err(|rule| self.error(rule))?,
        };
        let mut entry = header.entry(&extension).map_err(|rule| self.error(rule))?;
        // Headers of all other kinds may carry a size, but no data follows them. What an old writer's slash at the end
        // makes a directory may have data, which nobody wants.
        let stored = if header.has_data() { stored } else { 0 };
        entry.size = if entry.kind == Kind::File { stored } else { 0 };
        let block = BLOCK as u64;
        let padded = stored
            .checked_next_multiple_of(block)
            .ok_or_else(|| self.error("its size is too large"))?;
        (self.remaining, self.padding) = (stored, padded - stored);
        if entry.kind == Kind::File {
            sparse::apply(self, &header, extension, &mut entry)?;
        }
        Ok(entry)
    }

    /// Reads data of the current entry; 0 at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let length = self.read(&mut buffer[..wanted])?;
        if length == 0 {
            return Err(self.error("it ends inside the data of an entry"));
        }
        self.remaining -= length as u64;
        Ok(length)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.inner.read(buffer) {
                Ok(length) => {
                    self.offset += length as u64;
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
    }

    /// Goes past the data of the current entry without reading it. Whoever calls it has checked that it is there.
    pub fn seek_past_data(&mut self) -> Result<(), TarError>
    where
        R: Seek,
    {
        let length = self.remaining + self.padding;
        let step = i64::try_from(length).map_err(|_| self.error("its size is too large"))?;
        self.inner.seek_relative(step).map_err(TarError::Read)?;
        self.offset += length;
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 16 << 10];
        self.remaining += std::mem::take(&mut self.padding);
        while self.read_data(&mut buffer)? > 0 {}
        Ok(())
    }

    /// Fills the block; false at the end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(self.error("it ends inside a block")),
                length => filled += length,
            }
        }
        Ok(true)
    }

    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0; BLOCK];
        if !self.block(&mut block)? {
            return Ok(None);
        }
        if block.iter().all(|byte| *byte == 0) {
            // The end mark is two blocks of zeros; nothing after it is looked at.
            return match self.block(&mut block)? && block.iter().any(|byte| *byte != 0) {
                true => Err(self.error("a block of zeros stands between its entries")),
                false => Ok(None),
            };
        }
        Header::new(block)
            .map(Some)
            .map_err(|rule| self.error(rule))
    }

    fn extension(&mut self, length: u64) -> Result<Vec<u8>, TarError> {
        self.remaining = length;
        self.padding = length.next_multiple_of(BLOCK as u64) - length;
        let mut body = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.read_data(&mut buffer)? {
                0 => return Ok(body),
                length => body.extend_from_slice(&buffer[..length]),
            }
        }
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
