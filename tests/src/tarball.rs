//! A writer of small tar archives: POSIX ustar headers (pax(1), "ustar Interchange Format"), always the same bytes.

/// One member of an archive. Paths have no leading slash and at most 100 bytes.
#[derive(Debug, Clone)]
pub struct Entry {
    path: String,
    mode: u32,
    owner: u32,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    HardLink(String),
}

impl Entry {
    fn new(path: &str, mode: u32, kind: Kind) -> Self {
        Self {
            path: path.trim_start_matches('/').to_owned(),
            mode,
            owner: 0,
            kind,
        }
    }

    /// A directory.
    pub fn directory(path: &str, mode: u32) -> Self {
        Self::new(path, mode, Kind::Directory)
    }

    /// A regular file.
    pub fn file(path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path, mode, Kind::File(content.into()))
    }

    /// A symbolic link.
    pub fn symlink(path: &str, target: &str) -> Self {
        Self::new(path, 0o777, Kind::Symlink(target.to_owned()))
    }

    /// A hard link to an earlier member.
    pub fn hard_link(path: &str, target: &str) -> Self {
        Self::new(
            path,
            0o644,
            Kind::HardLink(target.trim_start_matches('/').to_owned()),
        )
    }

    /// The same, owned by another user and group of this number.
    pub fn owned_by(mut self, owner: u32) -> Self {
        self.owner = owner;
        self
    }
}

/// The archive of `entries`, in their order.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let (kind, link, content): (u8, &str, &[u8]) = match &entry.kind {
            Kind::Directory => (b'5', "", &[]),
            Kind::File(content) => (b'0', "", content),
            Kind::Symlink(target) => (b'2', target, &[]),
            Kind::HardLink(target) => (b'1', target, &[]),
        };
        out.extend(header(entry, kind, link, content.len()));
        out.extend(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn header(entry: &Entry, kind: u8, link: &str, size: usize) -> [u8; 512] {
    let mut header = [0u8; 512];
    let mut put = |at: usize, length: usize, text: &str| {
        assert!(
            text.len() <= length,
            "{text:?} is too long for a ustar header"
        );
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, 100, &entry.path);
    put(100, 8, &format!("{:07o}", entry.mode));
    put(108, 8, &format!("{:07o}", entry.owner));
    put(116, 8, &format!("{:07o}", entry.owner));
    put(124, 12, &format!("{size:011o}"));
    put(136, 12, &format!("{:011o}", 0)); // a fixed time makes fixed digests
    put(148, 8, "        "); // the checksum counts as spaces
    put(157, 100, link);
    put(257, 8, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_tar_reads_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a.tar");
        let entries = [
            Entry::directory("d", 0o1777),
            Entry::file("d/f", 0o640, "twelve bytes").owned_by(7),
            Entry::hard_link("d/h", "d/f"),
            Entry::symlink("d/s", "f"),
        ];
        std::fs::write(&file, archive(&entries)).expect("written");
        let mut tar = std::process::Command::new("tar");
        let list = tar
            .arg("-tvf")
            .arg(&file)
            .arg("--numeric-owner")
            .output()
            .expect("tar runs");
        assert!(list.status.success(), "{list:?}");
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let lines: Vec<&str> = list.lines().collect();
        assert!(lines[0].starts_with("drwxrwxrwt 0/0"), "{list}");
        assert!(lines[1].starts_with("-rw-r----- 7/7"), "{list}");
        assert!(lines[1].contains(" 12 "), "{list}");
        assert!(lines[2].ends_with("d/h link to d/f"), "{list}");
        assert!(lines[3].ends_with("d/s -> f"), "{list}");
    }
}
