//! An image's files without mounting it: through its layers as a container would see them.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::error::{Error, Result};
use crate::pull::Image;
use crate::store::Store;
use crate::unpack::view::View;

/// The longest file that is read into memory.
const FILE_LIMIT: u64 = 16 << 20;

/// Whom a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub additional_gids: Vec<u32>,
    /// The home directory, where the image's passwd has the user.
    pub home: Option<PathBuf>,
}

/// Reads a file of the image, links followed inside its root; none if it has no such file. Up to 16 MiB.
pub fn read_file(store: &Store, image: &Image, path: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
    let path = path.as_ref();
    let layers = image
        .layers
        .iter()
        .map(|name| store.open_layer(name))
        .collect::<Result<Vec<_>>>()?;
    let view = View::new(layers);
    let failed = |action| Error::file::<std::io::Error>(action, path);
    let Some((parts, found)) = view.resolve(path).map_err(failed("find in the image"))? else {
        return Ok(None);
    };
    let what = || format!("{} in the image", path.display());
    if found.kind() != FileType::RegularFile {
        return Err(Error::refused(what(), "it is not a regular file"));
    }
    let file = view
        .open(&found, &parts)
        .map_err(failed("open in the image"))?;
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("read in the image"))?;
    match bytes.len() as u64 > FILE_LIMIT {
        true => Err(Error::refused(
            what(),
            format!("it is longer than {FILE_LIMIT} bytes"),
        )),
        false => Ok(Some(bytes)),
    }
}

/// Resolves `name|uid[:group|gid]` by the image's own passwd and group files, as Docker's USER means it. Without a group
/// the user's own and supplementary ones count; with one, only that.
pub fn resolve_user(store: &Store, image: &Image, user: &str) -> Result<Ids> {
    let table = |path: &str| read_file(store, image, path).map(Option::unwrap_or_default);
    resolve_user_in(&table("etc/passwd")?, &table("etc/group")?, user)
}

/// As [`resolve_user`], by the content of a passwd and a group file.
///
/// # Errors
/// When the files do not have the user or group, or their ids are out of range.
pub fn resolve_user_in(passwd: &[u8], group: &[u8], user: &str) -> Result<Ids> {
    resolve(user, passwd, group).map_err(|rule| Error::User {
        user: user.into(),
        rule,
    })
}

fn resolve(text: &str, passwd: &[u8], group: &[u8]) -> std::result::Result<Ids, String> {
    let (user, group_name) = match text.split_once(':') {
        Some((user, name)) => (user, Some(name)),
        None => (text, None),
    };
    if group_name.is_some_and(|name| name.is_empty() || name.contains(':')) {
        return Err("it must be name|uid[:group|gid]".into());
    }
    let user = if user.is_empty() { "0" } else { user };
    let uid = number(user)?;
    let row = rows(passwd, 7).find(|row| row[0] == user.as_bytes());
    let row = row.or_else(|| rows(passwd, 7).find(|row| uid.is_some() && field(row[2]) == uid));
    let mut ids = Ids::default();
    match (&row, uid) {
        (Some(row), _) => {
            let of =
                |at: usize| field(row[at]).ok_or("its line in the image's passwd has no valid ids");
            (ids.uid, ids.gid) = (of(2)?, of(3)?);
            ids.home =
                (!row[5].is_empty()).then(|| Path::new(std::ffi::OsStr::from_bytes(row[5])).into());
        }
        (None, Some(uid)) => ids.uid = uid,
        (None, None) => return Err("the image's passwd has no such user".into()),
    }
    if let Some(name) = group_name {
        let gid = number(name)?;
        let found = rows(group, 4)
            .find(|row| row[0] == name.as_bytes())
            .map(|row| field(row[2]));
        ids.gid = match (found, gid) {
            (Some(found), _) => {
                found.ok_or("its group's line in the image's group file has no valid id")?
            }
            (None, Some(gid)) => gid,
            (None, None) => return Err(format!("the image's group file has no group {name:?}")),
        };
    } else if let Some(row) = row {
        let member = |list: &[u8]| list.split(|byte| *byte == b',').any(|name| name == row[0]);
        let groups = rows(group, 4)
            .filter(|group| member(group[3]))
            .filter_map(|group| field(group[2]));
        ids.additional_gids = groups.collect();
        ids.additional_gids.sort_unstable();
        ids.additional_gids.dedup();
    }
    Ok(ids)
}

/// Lines with exactly this many fields; others are comments or damage (passwd(5), group(5)).
fn rows(table: &[u8], fields: usize) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = table
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.starts_with(b"#"));
    lines
        .map(|line| line.split(|byte| *byte == b':').collect::<Vec<_>>())
        .filter(move |row| row.len() == fields && !row[0].is_empty())
}

fn field(text: &[u8]) -> Option<u32> {
    number(std::str::from_utf8(text).ok()?).ok().flatten()
}

/// An id if the text is one; an error if it would be one but is out of range (CVE-2024-40635: never cut, never negative).
fn number(text: &str) -> std::result::Result<Option<u32>, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.starts_with(['-', '+']) {
            true => Err(format!("{text:?} is neither a name nor an id")),
            false => Ok(None),
        };
    }
    // 2^32-1 means "leave as it is" to setresuid(2).
    let id = text.parse().ok().filter(|id| *id != u32::MAX);
    id.map(Some)
        .ok_or_else(|| format!("the id {text} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n#off:x:9:9::/:\nweb:x:33:44::/var/www:/bin/sh\n1000:x:7:8::/seven:\nbad:x:-1:0::/:\nbroken\n";
    const GROUP: &[u8] =
        b"root:x:0:\nwww:x:44:\nlog:x:50:web,root\nvideo:x:60:x,web\nhuge:x:4294967296:web\n";

    fn of(text: &str) -> std::result::Result<(u32, u32, Vec<u32>), String> {
        resolve(text, PASSWD, GROUP).map(|ids| (ids.uid, ids.gid, ids.additional_gids))
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        for (text, wanted) in [
            ("", (0, 0, vec![50])),
            ("0", (0, 0, vec![50])),
            ("root", (0, 0, vec![50])),
            ("web", (33, 44, vec![50, 60])),
            ("33", (33, 44, vec![50, 60])),
            ("web:log", (33, 50, vec![])),
            ("web:77", (33, 77, vec![])),
            ("12345", (12345, 0, vec![])),
            ("12345:www", (12345, 44, vec![])),
            // A name wins over the number that it looks like.
            ("1000", (7, 8, vec![])),
            ("4294967294", (u32::MAX - 1, 0, vec![])),
        ] {
            assert_eq!(of(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn ids_are_never_cut_to_another_user() {
        for text in [
            "4294967295",
            "4294967296",
            "-1",
            "+5",
            "99999999999999999999",
            "0:4294967296",
            "0:-1",
            "nobody",
            "web:",
            "web:a:b",
            "web:none",
            "bad",
            "0:huge",
            "#off",
        ] {
            assert!(of(text).is_err(), "{text}: {:?}", of(text));
        }
    }

    #[test]
    fn an_image_without_passwd_still_has_numbers() {
        let ids = resolve("5:6", b"", b"").map(|ids| (ids.uid, ids.gid));
        assert_eq!(ids, Ok((5, 6)));
        assert!(resolve("root", b"", b"").is_err());
    }
}
