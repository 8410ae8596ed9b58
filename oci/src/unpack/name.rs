//! What the name of an entry means in a layer (image-spec layer.md "Whiteouts", "Opaque Whiteout"; AUFS' bookkeeping).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

const MARK: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The longest name of an entry after all links are followed: PATH_MAX with its NUL.
pub(crate) const PATH_LIMIT: usize = 4095;

/// A name relative to the root of the layer, in parts that are neither empty nor dots.
pub(crate) type Parts = Vec<OsString>;

/// A layer entry's name, understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// The layer's root itself.
    Root,
    /// Something that is there.
    Entry { parent: Parts, name: OsString },
    /// `.wh.NAME`: NAME of the layers below is gone.
    Whiteout { parent: Parts, name: OsString },
    /// `.wh..wh..opq`: everything of the layers below in this directory is gone.
    Opaque { parent: Parts },
    /// AUFS' own files (`.wh..wh.plnk`, ...) and what is below them: dropped, as everyone does.
    Bookkeeping,
}

impl Name {
    pub fn parse(path: &[u8]) -> Result<Self, String> {
        let mut parts = parts(path)?;
        if parts.iter().any(|part| is_bookkeeping(part)) {
            return Ok(Self::Bookkeeping);
        }
        let Some(name) = parts.pop() else {
            return Ok(Self::Root);
        };
        if parts.iter().any(|part| part.as_bytes().starts_with(MARK)) {
            return Err("a whiteout cannot be a directory".into());
        }
        if name.as_bytes() == OPAQUE {
            return Ok(Self::Opaque { parent: parts });
        }
        Ok(match name.as_bytes().strip_prefix(MARK) {
            None => Self::Entry {
                parent: parts,
                name,
            },
            Some(b"" | b"." | b"..") => return Err("a whiteout must name a file".into()),
            Some(hidden) => Self::Whiteout {
                parent: parts,
                name: OsStr::from_bytes(hidden).into(),
            },
        })
    }
}

fn is_bookkeeping(part: &OsStr) -> bool {
    let bytes = part.as_bytes();
    bytes.starts_with(b".wh..wh.") && bytes != OPAQUE
}

/// Cuts a name of an entry, or of a hard link's target, into its parts. A leading slash means the layer's root, as with
/// every tar that unpacks below a directory; `..` has no honest use and is refused.
pub(crate) fn parts(path: &[u8]) -> Result<Parts, String> {
    if path.is_empty() {
        return Err("it has no name".into());
    }
    if path.len() > PATH_LIMIT {
        return Err(format!("its name is longer than {PATH_LIMIT} bytes"));
    }
    if path.contains(&0) {
        return Err("its name has a NUL in it".into());
    }
    let parts = path
        .split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."));
    parts
        .map(|part| match part {
            b".." => Err("its name leads upwards with \"..\"".into()),
            part => Ok(OsStr::from_bytes(part).to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Result<String, String> {
        Name::parse(path.as_bytes()).map(|name| format!("{name:?}"))
    }

    #[test]
    fn names_say_what_they_mean() {
        for (path, wanted) in [
            ("./", "Root"),
            ("/", "Root"),
            (".", "Root"),
            ("a", r#"Entry { parent: [], name: "a" }"#),
            ("/a//b/./c/", r#"Entry { parent: ["a", "b"], name: "c" }"#),
            ("a/.wh.b", r#"Whiteout { parent: ["a"], name: "b" }"#),
            ("a/.wh..wh..opq", r#"Opaque { parent: ["a"] }"#),
            (".wh..wh..opq", "Opaque { parent: [] }"),
            (".wh..wh.plnk/12.34", "Bookkeeping"),
            ("a/.wh..wh.aufs", "Bookkeeping"),
            (
                "a/.wh.b.wh.c",
                r#"Whiteout { parent: ["a"], name: "b.wh.c" }"#,
            ),
        ] {
            assert_eq!(parse(path).as_deref(), Ok(wanted), "{path}");
        }
    }

    #[test]
    fn names_that_mean_harm_are_refused() {
        for path in [
            "",
            "..",
            "../a",
            "a/../../b",
            "a/..",
            ".wh.",
            ".wh..",
            ".wh...",
            "a/.wh../",
            ".wh.a/b",
            ".wh..wh..opq/a",
            "a\0b",
        ] {
            assert!(parse(path).is_err(), "{path:?}: {:?}", parse(path));
        }
        assert!(parse(&"a/".repeat(3000)).is_err());
    }
}
