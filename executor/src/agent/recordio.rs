//! RecordIO: each record is its length in decimal digits, a newline, and that many bytes.
//!
//! Where the chunks of HTTP end means nothing: a length or a record may be split over several, and one may hold several.

use bytes::{Buf, Bytes, BytesMut};

/// Records above this are refused. A LAUNCH carries the whole task, so it can be large.
pub const MAXIMUM: usize = 64 << 20;

/// The stream is not RecordIO: nothing after this can be trusted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Something else than digits where a length must be.
    #[error("the event stream has byte {byte:#04x} in the length of a record")]
    Length {
        /// The byte.
        byte: u8,
    },
    /// A length that cannot be meant.
    #[error("the event stream announces a record of {length} bytes, more than {MAXIMUM}")]
    TooLong {
        /// The length, as far as it was read.
        length: usize,
    },
}

/// Cuts a stream of bytes into records.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// Of the record that is being received, once its length line is complete.
    length: Option<usize>,
}

impl Decoder {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole record.
    ///
    /// # Errors
    /// When the stream is not RecordIO or a record is too long; the stream is then of no more use.
    pub fn next_record(&mut self) -> Result<Option<Bytes>, Error> {
        let length = match self.length {
            Some(length) => length,
            None => match self.length_line()? {
                None => return Ok(None),
                Some(length) => length,
            },
        };
        self.length = Some(length);
        if self.buffer.len() < length {
            return Ok(None);
        }
        self.length = None;
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    fn length_line(&mut self) -> Result<Option<usize>, Error> {
        let mut length = 0;
        for (index, &byte) in self.buffer.iter().enumerate() {
            match byte {
                b'0'..=b'9' => length = length * 10 + usize::from(byte - b'0'),
                b'\n' if index > 0 => {
                    self.buffer.advance(index + 1);
                    return Ok(Some(length));
                }
                _ => return Err(Error::Length { byte }),
            }
            // Checked digit by digit: this also bounds how long the line can get, but for leading zeros.
            if length > MAXIMUM || index > 20 {
                return Err(Error::TooLong { length });
            }
        }
        Ok(None)
    }
}

/// A record of these bytes.
pub fn encode(record: &[u8]) -> Bytes {
    let mut encoded = BytesMut::from(format!("{}\n", record.len()).as_bytes());
    encoded.extend_from_slice(record);
    encoded.freeze()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn decode(chunks: &[&[u8]]) -> Result<Vec<Bytes>, Error> {
        let (mut decoder, mut records) = (Decoder::default(), Vec::new());
        for chunk in chunks {
            decoder.push(chunk);
            while let Some(record) = decoder.next_record()? {
                records.push(record);
            }
        }
        Ok(records)
    }

    proptest! {
        #[test]
        fn records_come_out_whole_whatever_the_chunks(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let stream: Vec<u8> = records.iter().flat_map(|record| encode(record)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            prop_assert_eq!(decode(&chunks).unwrap(), records);
        }

        #[test]
        fn arbitrary_bytes_never_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let _ = decode(&chunks);
        }
    }

    #[test]
    fn a_record_may_be_empty() {
        assert_eq!(decode(&[b"0\n1\nx"]).unwrap(), [&b""[..], b"x"]);
    }

    #[test]
    fn what_is_no_length_ends_the_stream() {
        assert_eq!(decode(&[b"1x\n"]), Err(Error::Length { byte: b'x' }));
        assert_eq!(decode(&[b"\n"]), Err(Error::Length { byte: b'\n' }));
        assert_eq!(decode(&[b"-1\n"]), Err(Error::Length { byte: b'-' }));
    }

    #[test]
    fn a_record_beyond_the_bound_is_refused_before_it_is_received() {
        assert!(
            decode(&[format!("{MAXIMUM}\n").as_bytes()])
                .unwrap()
                .is_empty()
        );
        let above = format!("{}\n", MAXIMUM + 1);
        assert_eq!(
            decode(&[above.as_bytes()]),
            Err(Error::TooLong {
                length: MAXIMUM + 1
            })
        );
        assert!(matches!(
            decode(&[&[b'0'; 100]]),
            Err(Error::TooLong { .. })
        ));
    }
}
