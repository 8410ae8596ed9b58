//! Places in the new root: found, and made where they are missing.
//!
//! Paths of the image are never trusted: each is resolved by openat2(2) with RESOLVE_IN_ROOT and used through the
//! descriptor. Nothing here allocates.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use tepui_isolators::undefended;

use super::naive;
use crate::launch::step::Create;

/// As many links as the kernel follows.
const MOST_LINKS: u32 = 40;

const PATH_MAX: usize = libc::PATH_MAX as usize;

/// A place, and whether it was there before.
pub(super) struct Place {
    pub(super) file: OwnedFd,
    pub(super) existed: bool,
}

/// Opens an absolute path of the container as a place, never leaving the root (the working directory until the
/// pivot, `/` after it).
pub(super) fn resolve(path: &CStr, extra: ResolveFlags) -> Result<OwnedFd, Errno> {
    if undefended("in-root") {
        return naive::open(path);
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS | ResolveFlags::IN_ROOT | extra;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
}

/// The highest number of descriptors that are left open: below any limit that a launch gets this far with.
const FEW: i32 = 48;

/// Lets go of a descriptor without a system call, as long as there are few: execve(2) closes all at once.
pub(super) fn leave_open(file: OwnedFd) {
    if file.as_raw_fd() <= FEW {
        let _ = file.into_raw_fd();
    }
}

/// As [`resolve`], and makes what is missing. Links are followed inside the root, also those that lead to what is not
/// there yet; a plain path has none.
pub(super) fn resolve_or_make(path: &CStr, create: Create, plain: bool) -> Result<Place, Errno> {
    let extra = match plain {
        true => ResolveFlags::NO_SYMLINKS,
        false => ResolveFlags::empty(),
    };
    match resolve(path, extra) {
        Err(Errno::NOENT) if create != Create::Nothing => Ok(Place {
            file: match undefended("in-root") || undefended("make-by-descriptor") {
                false => make(path, create, plain)?,
                true => naive::open_or_make(path, create)?,
            },
            existed: false,
        }),
        other => Ok(Place {
            file: other?,
            existed: true,
        }),
    }
}

/// Walks part by part, each inside the directory that the part before led to, and makes the parts that are missing.
fn make(path: &CStr, create: Create, plain: bool) -> Result<OwnedFd, Errno> {
    // The way that is done, without links; and the way that is left.
    let mut done = Path::new();
    let mut left = Path::new();
    left.push(path.to_bytes())?;
    let mut links = 0;
    let mut parent = directory(&mut done)?;
    loop {
        let mut name = [0u8; 256];
        let Some(name) = left.take_first(&mut name)? else {
            return Ok(parent);
        };
        match name.to_bytes() {
            b"." => continue,
            b".." => {
                done.pop();
                parent = directory(&mut done)?;
                continue;
            }
            _ => {}
        }
        let mut target = [0u8; PATH_MAX];
        match rustix::fs::readlinkat_raw(&parent, name, &mut target[..]) {
            Ok(length) => {
                let target = &target[..length];
                links += 1;
                if plain || links > MOST_LINKS {
                    return Err(Errno::LOOP);
                }
                if target.first() == Some(&b'/') {
                    done = Path::new();
                }
                left.prepend(target)?;
                parent = directory(&mut done)?;
                continue;
            }
            // It is no link.
            Err(Errno::INVAL) => {}
            Err(Errno::NOENT) => {
                if left.is_empty() && create == Create::File {
                    return make_file(&parent, name);
                }
                match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    // Somebody was faster; what he made is looked at next.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
        done.push(name.to_bytes())?;
        parent = directory(&mut done)?;
    }
}

/// Open for reading: a writer left open would keep the mount from becoming read-only.
fn make_file(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644))
}

/// The place that a way without links leads to.
fn directory(way: &mut Path) -> Result<OwnedFd, Errno> {
    resolve(way.c_str()?, ResolveFlags::NO_SYMLINKS)
}

/// The directory that a path lies in, made when missing, and the path's last part.
pub(super) fn parent_of<'a>(
    path: &CStr,
    name: &'a mut [u8; 256],
) -> Result<(OwnedFd, &'a CStr), Errno> {
    let bytes = path.to_bytes();
    let slash = bytes.iter().rposition(|byte| *byte == b'/');
    let (parent, last) = bytes.split_at(slash.map_or(0, |slash| slash + 1));
    let mut buffer = Path::new();
    buffer.push(parent)?;
    let parent = resolve_or_make(buffer.c_str()?, Create::Directory, false)?;
    Ok((parent.file, c_string(name, last)?))
}

/// Copies `bytes` into `buffer` as a C string.
pub(super) fn c_string<'a>(buffer: &'a mut [u8], bytes: &[u8]) -> Result<&'a CStr, Errno> {
    let room = buffer.get_mut(..=bytes.len()).ok_or(Errno::NAMETOOLONG)?;
    room[..bytes.len()].copy_from_slice(bytes);
    room[bytes.len()] = 0;
    CStr::from_bytes_with_nul(room).map_err(|_| Errno::INVAL)
}

/// A path in a buffer of its own.
struct Path {
    bytes: [u8; PATH_MAX],
    length: usize,
}

impl Path {
    fn new() -> Self {
        Self {
            bytes: [0; PATH_MAX],
            length: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes[..self.length].iter().all(|byte| *byte == b'/')
    }

    /// Appends a slash and `part`.
    fn push(&mut self, part: &[u8]) -> Result<(), Errno> {
        let end = self.length + 1 + part.len();
        let room = self.bytes.get_mut(self.length..end);
        let room = room.ok_or(Errno::NAMETOOLONG)?;
        room[0] = b'/';
        room[1..].copy_from_slice(part);
        self.length = end;
        Ok(())
    }

    /// Takes the last part away.
    fn pop(&mut self) {
        let slash = self.bytes[..self.length].iter().rposition(|b| *b == b'/');
        self.length = slash.unwrap_or(0);
    }

    /// Takes the first part away; `None` when nothing is left.
    fn take_first<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Option<&'a CStr>, Errno> {
        let way = &self.bytes[..self.length];
        let start = way.iter().take_while(|byte| **byte == b'/').count();
        let length = way[start..]
            .iter()
            .take_while(|byte| **byte != b'/')
            .count();
        if length == 0 {
            return Ok(None);
        }
        let end = start + length;
        let name = c_string(buffer, &self.bytes[start..end])?;
        self.bytes.copy_within(end..self.length, 0);
        self.length -= end;
        Ok(Some(name))
    }

    /// Puts `path` and a slash in front.
    fn prepend(&mut self, path: &[u8]) -> Result<(), Errno> {
        let shift = path.len() + 1;
        if self.length + shift > PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes.copy_within(..self.length, shift);
        self.bytes[..path.len()].copy_from_slice(path);
        self.bytes[path.len()] = b'/';
        self.length += shift;
        Ok(())
    }

    /// As a C string; an empty path is the root.
    fn c_str(&mut self) -> Result<&CStr, Errno> {
        if self.length == 0 {
            return Ok(c"/");
        }
        let room = self.bytes.get_mut(..=self.length);
        let room = room.ok_or(Errno::NAMETOOLONG)?;
        room[self.length] = 0;
        CStr::from_bytes_with_nul(room).map_err(|_| Errno::INVAL)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_apart_and_put_together() {
        let mut path = Path::new();
        path.push(b"/a//b/").unwrap();
        let mut buffer = [0; 256];
        assert_eq!(path.take_first(&mut buffer).unwrap(), Some(c"a"));
        path.prepend(b"x/y").unwrap();
        for part in [c"x", c"y", c"b"] {
            assert_eq!(path.take_first(&mut buffer).unwrap(), Some(part));
        }
        assert!(path.is_empty());
        assert_eq!(path.take_first(&mut buffer).unwrap(), None);
        let mut done = Path::new();
        assert_eq!(done.c_str().unwrap(), c"/");
        done.push(b"a").unwrap();
        done.push(b"b").unwrap();
        assert_eq!(done.c_str().unwrap(), c"/a/b");
        done.pop();
        assert_eq!(done.c_str().unwrap(), c"/a");
        done.pop();
        done.pop();
        assert_eq!(done.c_str().unwrap(), c"/");
        assert_eq!(done.push(&[b'x'; PATH_MAX]), Err(Errno::NAMETOOLONG));
        let mut name = [0; 256];
        assert_eq!(c_string(&mut name, &[b'x'; 256]), Err(Errno::NAMETOOLONG));
    }
}
