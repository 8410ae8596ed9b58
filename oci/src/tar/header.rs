//! One 512-byte header block: pax/ustar (POSIX.1-2001 pax "ustar Interchange Format"), GNU, star, v7.

use super::{Entry, Kind, pax, until_nul};

/// Everything in a tar stream comes in blocks of this size.
pub const BLOCK: usize = 512;

/// A header block whose sum is right.
pub struct Header([u8; BLOCK]);

impl Header {
    pub fn new(block: [u8; BLOCK]) -> Result<Self, String> {
        let stated = number(&block[148..156])?;
        let counted = |byte: fn(u8) -> i64| -> i64 {
            let sum = |range: &[u8]| range.iter().map(|value| byte(*value)).sum::<i64>();
            sum(&block[..148]) + 8 * i64::from(b' ') + sum(&block[156..])
        };
        // Old writers summed signed bytes.
        if stated != counted(i64::from) && stated != counted(|value| i64::from(value.cast_signed()))
        {
            return Err("the sum of a header is wrong".into());
        }
        Ok(Self(block))
    }

    pub fn kind(&self) -> u8 {
        self.0[156]
    }

    /// Does data follow a header of this type?
    pub fn has_data(&self) -> bool {
        matches!(self.kind(), 0 | b'0' | b'7' | b'S')
    }

    pub fn bytes(&self) -> &[u8; BLOCK] {
        &self.0
    }

    pub fn size(&self) -> Result<u64, String> {
        u64::try_from(number(&self.0[124..136])?).map_err(|_| "its size is negative".into())
    }

    /// The entry as this header and the extensions before it describe it; its size is not looked at.
    pub fn entry(&self, extension: &pax::Records) -> Result<Entry, String> {
        let block = &self.0;
        let path = extension
            .path
            .as_ref()
            .or(extension.long_name.as_ref())
            .cloned();
        let link = extension
            .link
            .as_ref()
            .or(extension.long_link.as_ref())
            .cloned();
        let path = path.unwrap_or_else(|| self.name());
        let kind = match self.kind() {
            // Before there was a type for directories they had a slash at the end.
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => self.device(|major, minor| Kind::CharDevice { major, minor })?,
            b'4' => self.device(|major, minor| Kind::BlockDevice { major, minor })?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(format!("the entry type {:?} is unknown", char::from(other))),
        };
        let id = |given: Option<u64>, field: &[u8], which: &str| {
            let value = match given {
                Some(value) => value,
                None => {
                    u64::try_from(number(field)?).map_err(|_| format!("its {which} is negative"))?
                }
            };
            // 2^32-1 is (uid_t)-1, "leave as it is" for chown(2); more would be cut to another id.
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or(format!("its {which} {value} is out of range"))
        };
        Ok(Entry {
            path,
            link: link.unwrap_or_else(|| until_nul(&block[157..257]).to_vec()),
            kind,
            mode: u32::try_from(number(&block[100..108])? & 0o7777)
                .map_err(|_| "its mode is bad")?,
            uid: id(extension.uid, &block[108..116], "uid")?,
            gid: id(extension.gid, &block[116..124], "gid")?,
            mtime: match extension.mtime {
                Some(time) => time,
                None => (number(&block[136..148])?, 0),
            },
            size: 0,
            xattrs: extension.xattrs.clone(),
            pieces: None,
        })
    }

    fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        // GNU's magic has a space instead; its bytes from 345 on are times and sparse pieces.
        if self.0[257..263] != *b"ustar\0" {
            return name.to_vec();
        }
        let end = if self.0[508..512] == *b"tar\0" {
            476
        } else {
            500
        };
        match until_nul(&self.0[345..end]) {
            [] => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    fn device(&self, make: fn(u32, u32) -> Kind) -> Result<Kind, String> {
        let part = |field: &[u8]| {
            u32::try_from(number(field)?)
                .map_err(|_| "its device number is out of range".to_owned())
        };
        let (major, minor) = (part(&self.0[329..337])?, part(&self.0[337..345])?);
        // The kernel keeps 12 and 20 bits and cuts the rest off: 4096:0 would become 0:0, which is a whiteout.
        match major < 1 << 12 && minor < 1 << 20 {
            true => Ok(make(major, minor)),
            false => Err(format!("there is no device {major}:{minor}")),
        }
    }
}

/// A numeric field: octal digits among spaces and NULs, or GNU's base-256 (two's complement after the first bit).
pub fn number(field: &[u8]) -> Result<i64, String> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value = if negative { -1i128 } else { 0 };
        for byte in std::iter::once(first).chain(field[1..].iter().copied()) {
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| "a number in a header is too large".into());
    }
    let digits = field.trim_ascii_start();
    let end = digits
        .iter()
        .position(|byte| matches!(byte, b' ' | 0))
        .unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    let octal = digits.iter().all(|digit| matches!(digit, b'0'..=b'7'));
    if !octal || !rest.iter().all(|byte| matches!(byte, b' ' | 0)) {
        return Err("a number in a header is not octal".into());
    }
    // At most twelve digits: 36 bits.
    Ok(digits
        .iter()
        .fold(0, |value, digit| value << 3 | i64::from(digit - b'0')))
}
