//! Compressed streams, told apart by their first bytes: gzip with all its members, zstd with a bounded window, or plain.

use std::io::{self, BufRead, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

/// 2^27 = 128 MiB: the memory that a zstd frame may ask for, as much as `zstd --ultra --long` users produce.
const ZSTD_WINDOW_LOG: u32 = 27;

type Start<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// The uncompressed stream.
pub(crate) enum Decoder<R: BufRead> {
    Plain(Start<R>),
    Gzip(Box<MultiGzDecoder<Start<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Start<R>>>),
}

impl<R: BufRead> Decoder<R> {
    /// Looks at the first bytes; what the media type says is not asked, so that it cannot lie.
    pub fn new(mut stream: R) -> io::Result<Self> {
        let mut magic = Vec::new();
        stream.by_ref().take(6).read_to_end(&mut magic)?;
        let kind = magic.clone();
        let stream = Cursor::new(magic).chain(stream);
        Ok(match kind.as_slice() {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(stream))),
            // A frame, or a skippable frame before it (RFC 8878 section 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Self::Zstd(Box::new(decoder))
            }
            [b'B', b'Z', b'h', ..] => return Err(unsupported("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(unsupported("xz")),
            _ => Self::Plain(stream),
        })
    }

    /// Is the stream as it was, uncompressed?
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

fn unsupported(name: &str) -> io::Error {
    io::Error::other(format!(
        "it is compressed with {name}; gzip and zstd are supported"
    ))
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Gzip(stream) => stream.read(buffer),
            Self::Zstd(stream) => stream.read(buffer),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(data)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn members_and_frames_make_one_stream() {
        assert_eq!(
            read(&[gzip(b"a"), gzip(b""), gzip(b"b")].concat()).unwrap(),
            b"ab"
        );
        let frame = |data: &[u8]| zstd::encode_all(data, 1).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
        assert_eq!(
            read(&[&skippable[..], &frame(b"a"), &frame(b"b")].concat()).unwrap(),
            b"ab"
        );
        assert_eq!(read(b"plain").unwrap(), b"plain");
        assert_eq!(read(b"").unwrap(), b"");
    }

    #[test]
    fn damaged_streams_are_refused() {
        for whole in [
            gzip(b"some data"),
            zstd::encode_all(&b"some data"[..], 1).unwrap(),
        ] {
            assert!(read(&whole[..whole.len() - 1]).is_err());
            assert!(read(&[&whole[..], b"garbage"].concat()).is_err());
        }
        let mut flipped = gzip(b"some data");
        let at = flipped.len() - 6;
        flipped[at] ^= 1;
        assert!(read(&flipped).is_err());
        assert!(read(b"BZh91AY").is_err());
    }

    #[test]
    fn the_window_is_bounded() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(b"some data").unwrap();
        assert!(read(&encoder.finish().unwrap()).is_err());
    }
}
