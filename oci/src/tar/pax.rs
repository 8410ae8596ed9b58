//! The records of pax extended headers (POSIX.1-2001 pax "pax Extended Header"), and GNU's long names, which do the same.

/// What stands before an entry and overrides its header block. Unknown keys are ignored, as POSIX asks.
#[derive(Default)]
pub struct Records {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub long_name: Option<Vec<u8>>,
    pub long_link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*` in order of appearance, without the prefix.
    pub sparse: Vec<(String, Vec<u8>)>,
}

impl Records {
    /// Takes the records of one extended header: `LENGTH KEY=VALUE\n`, LENGTH counting all of it.
    pub fn parse(&mut self, mut body: &[u8]) -> Result<(), String> {
        while !body.is_empty() {
            let space = body.iter().take(20).position(|byte| *byte == b' ');
            let length = space
                .and_then(|end| decimal(&body[..end]))
                .and_then(|length| usize::try_from(length).ok());
            let (Some(space), Some(length)) = (space, length) else {
                return Err("an extended header has a record without a length".into());
            };
            if length <= space + 1 || length > body.len() || body[length - 1] != b'\n' {
                return Err("an extended header has a record of a wrong length".into());
            }
            let record = &body[space + 1..length - 1];
            body = &body[length..];
            let equals = record.iter().position(|byte| *byte == b'=');
            let equals = equals.ok_or("an extended header has a record without =")?;
            self.take(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        // An empty value takes an earlier record back, so that the header block counts again.
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        let count = || match value.is_empty() {
            true => Ok(None),
            false => decimal(value).map(Some).ok_or_else(|| {
                format!(
                    "{} is not a number in an extended header",
                    String::from_utf8_lossy(key)
                )
            }),
        };
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = count()?,
            b"uid" => self.uid = count()?,
            b"gid" => self.gid = count()?,
            b"mtime" => {
                self.mtime = match bytes() {
                    Some(value) => {
                        Some(time(&value).ok_or("mtime is not a time in an extended header")?)
                    }
                    None => None,
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) {
                        return Err("an extended attribute has no usable name".into());
                    }
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse
                        .push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn text(value: &[u8]) -> Result<Option<Vec<u8>>, String> {
    match value.contains(&0) {
        true => Err("a name in an extended header has a NUL in it".into()),
        false => Ok((!value.is_empty()).then(|| value.to_vec())),
    }
}

/// Digits only: no sign, no space, no overflow.
pub fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits
        .then(|| std::str::from_utf8(text).ok()?.parse().ok())
        .flatten()
}

/// `[-]seconds[.fraction]`, rounded down to nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text
        .iter()
        .position(|byte| *byte == b'.')
        .unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..point])?).ok()?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0, |value, at| {
        value * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'))
    });
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_fractions_are_kept() {
        for (text, wanted) in [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("7.1234567899", Some((7, 123_456_789))),
            ("", None),
            ("-", None),
            ("1e9", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        for body in [
            "5 a=b\n", "99 a=b\n", "x a=b\n", "4 a\n", "0 a=b\n", "6 a=bc", "-6 a=b\n", "+6 a=b\n",
            " 6 a=b\n",
        ] {
            assert!(
                Records::default().parse(body.as_bytes()).is_err(),
                "{body:?}"
            );
        }
        let mut records = Records::default();
        records
            .parse(b"14 path=a=b c\n14 comment=ab\n")
            .expect("both are well formed");
        assert_eq!(records.path.as_deref(), Some(&b"a=b c"[..]));
        records
            .parse(b"8 path=\n")
            .expect("an empty value is well formed");
        assert_eq!(records.path, None);
    }
}
