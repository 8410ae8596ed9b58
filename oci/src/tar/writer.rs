//! A tar writer for tests: every field under control, hostile ones too.

/// One entry, as the test wants it.
#[derive(Clone)]
pub struct Member {
    pub name: Vec<u8>,
    pub kind: u8,
    pub mode: u64,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub link: Vec<u8>,
    pub device: (u32, u32),
    pub data: Vec<u8>,
    /// pax records before it.
    pub records: Vec<(String, Vec<u8>)>,
}

impl Member {
    pub fn new(kind: u8, name: &str) -> Self {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        Self {
            name: name.into(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            link: Vec::new(),
            device: (0, 0),
            data: Vec::new(),
            records: Vec::new(),
        }
    }

    pub fn file(name: &str, data: &str) -> Self {
        Self {
            data: data.into(),
            ..Self::new(b'0', name)
        }
    }

    pub fn dir(name: &str) -> Self {
        Self::new(b'5', name)
    }

    pub fn symlink(name: &str, link: &str) -> Self {
        Self {
            link: link.into(),
            ..Self::new(b'2', name)
        }
    }

    pub fn hard_link(name: &str, link: &str) -> Self {
        Self {
            link: link.into(),
            ..Self::new(b'1', name)
        }
    }

    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn mode(mut self, mode: u64) -> Self {
        self.mode = mode;
        self
    }

    pub fn record(mut self, key: &str, value: &[u8]) -> Self {
        self.records.push((key.into(), value.to_vec()));
        self
    }

    /// The header block and what must precede and follow it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.records.is_empty() {
            let body: Vec<u8> = self
                .records
                .iter()
                .flat_map(|(key, value)| record(key, value))
                .collect();
            out.extend(
                Self {
                    data: body,
                    ..Self::new(b'x', "pax")
                }
                .bytes(),
            );
        }
        for (kind, text) in [(b'L', &self.name), (b'K', &self.link)] {
            if text.len() > 100 {
                let data = [&text[..], b"\0"].concat();
                out.extend(
                    Self {
                        data,
                        ..Self::new(kind, "long")
                    }
                    .bytes(),
                );
            }
        }
        let mut block = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, &field(self.mode as i64, 8));
        put(108, &field(self.uid as i64, 8));
        put(116, &field(self.gid as i64, 8));
        put(124, &field(self.data.len() as i64, 12));
        put(136, &field(self.mtime, 12));
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, &field(self.device.0.into(), 8));
        put(337, &field(self.device.1.into(), 8));
        seal(&mut block);
        out.extend(block);
        out.extend(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

/// Sets the sum of a header block.
pub fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Octal where it fits, else base-256.
fn field(value: i64, width: usize) -> Vec<u8> {
    let text = format!("{value:0width$o}\0", width = width - 1);
    if value >= 0 && text.len() == width {
        return text.into_bytes();
    }
    let mut bytes = i128::from(value).to_be_bytes()[16 - width..].to_vec();
    bytes[0] |= 0x80;
    bytes
}

/// One pax record; its length counts itself.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..20)
        .map(|digits| rest + digits)
        .find(|length| rest + length.to_string().len() == *length);
    let length = length.expect("some number of digits always fits");
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// The whole stream with its end mark.
pub fn tar(members: &[Member]) -> Vec<u8> {
    let mut out: Vec<u8> = members.iter().flat_map(Member::bytes).collect();
    out.resize(out.len() + 1024, 0);
    out
}
