//! One layer's directory while it is filled, in overlayfs' form. The safety rules live here:
//!
//! - Everything happens relative to directory handles, one name at a time, with O_NOFOLLOW and O_EXCL. Links in a
//!   parent are read and followed in here ([`Tree::directory`]), inside the root, never by the kernel.
//! - A name that exists is removed, never written through: it may be a hard link's brother, or a link.
//! - Handles of parents are kept only for directories reached without any link, and forgotten when one is replaced.
//!
//! The layers below are looked at, since a layer alone does not say enough: whether a whiteout hides anything (a mark
//! without anything below would be visible as a broken device), where a hard link points, what a parent really is.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, XattrFlags, makedev, mkdirat, mknodat, openat, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::metadata::{Metadata, clear_xattrs};
use super::name::{PATH_LIMIT, Parts, parts};
use super::remove::remove_tree;
use super::view::{
    Found, LINK_LIMIT, OPAQUE_ATTRIBUTE, View, follow, is_whiteout, join, open_beneath,
};
use crate::tar::{Entry, Kind};

/// Handles of parents that are kept open.
const KEPT_HANDLES: usize = 64;

/// Why an entry could not be unpacked; the caller knows its name.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It breaks a rule.
    Rule(String),
    /// The kernel refused.
    Kernel {
        action: &'static str,
        source: io::Error,
    },
    /// The stream it comes from failed.
    Stream(crate::tar::TarError),
}

impl Fault {
    pub fn kernel<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel {
            action,
            source: source.into(),
        }
    }

    fn rule<T>(rule: impl Into<String>) -> Result<T, Self> {
        Err(Self::Rule(rule.into()))
    }
}

/// Fills a new file with an entry's data.
pub(crate) type Fill<'a> = dyn FnMut(&OwnedFd) -> Result<(), Fault> + 'a;

/// A layer that is being unpacked.
pub(crate) struct Tree {
    root: Arc<OwnedFd>,
    lower: View,
    opaque_root: bool,
    kept: HashMap<Parts, Arc<OwnedFd>>,
    /// Times of directories, set at the end because every new name in one changes them.
    times: HashMap<Parts, (i64, u32)>,
    opaque: HashSet<Parts>,
    whiteouts: BTreeSet<Parts>,
}

/// A directory of this layer, by its real path.
struct Directory {
    handle: Arc<OwnedFd>,
    parts: Parts,
}

impl Directory {
    fn child(&self, name: &OsStr) -> Parts {
        let mut parts = self.parts.clone();
        parts.push(name.into());
        parts
    }
}

impl Tree {
    /// `root` is an empty directory of ours; `lower` are the layers below.
    pub fn new(root: Arc<OwnedFd>, lower: View) -> Result<Self, Fault> {
        let below = lower.lookup(&[]).map_err(Fault::kernel("look below"))?;
        let metadata = match &below {
            // The uppermost root is the one that overlayfs shows.
            Some(found) => Metadata::of_file(&found.handle, &found.stat)?,
            None => Metadata::implied_directory(),
        };
        metadata.apply_to_open(&root)?;
        let times = HashMap::from([(Parts::new(), metadata.mtime)]);
        Ok(Self {
            root,
            lower,
            opaque_root: false,
            kept: HashMap::new(),
            times,
            opaque: HashSet::new(),
            whiteouts: BTreeSet::new(),
        })
    }

    /// The root itself has an entry.
    pub fn put_root(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.kind != Kind::Directory {
            return Fault::rule("the root of a layer can only be a directory");
        }
        clear_xattrs(&self.root)?;
        Metadata::of_entry(entry).apply_to_open(&self.root)?;
        self.times.insert(Parts::new(), entry.mtime);
        Ok(())
    }

    /// Creates an entry, in place of whatever has its name. Returns the length of its real path.
    pub fn put(
        &mut self,
        entry: &Entry,
        parent: &[OsString],
        name: &OsStr,
        fill: &mut Fill<'_>,
    ) -> Result<usize, Fault> {
        let Some(parent) = self.directory(parent, true)? else {
            return Fault::rule("its parent is not there");
        };
        let path = parent.child(name);
        let length = path_length(&path)?;
        match entry.kind {
            Kind::Directory => {
                self.put_directory(&parent, name, path, &Metadata::of_entry(entry))?
            }
            Kind::HardLink => self.put_hard_link(&parent, name, path, &entry.link)?,
            kind => self.put_other(
                &parent,
                name,
                &path,
                kind,
                &entry.link,
                &Metadata::of_entry(entry),
                fill,
            )?,
        }
        Ok(length)
    }

    /// `.wh.NAME`: hides NAME of the layers below; what this layer itself has of that name stays.
    pub fn whiteout(&mut self, parent: &[OsString], name: &OsStr) -> Result<(), Fault> {
        let Some(parent) = self.directory(parent, false)? else {
            return Ok(());
        };
        let path = parent.child(name);
        let Some(below) = self.below(&path)? else {
            return Ok(());
        };
        match stat(&parent.handle, name)? {
            None => {
                let mode = Mode::empty();
                mknodat(
                    &parent.handle,
                    name,
                    FileType::CharacterDevice,
                    mode,
                    makedev(0, 0),
                )
                .map_err(Fault::kernel("create the whiteout of"))?;
                self.whiteouts.insert(path);
                Ok(())
            }
            // The layer replaces the directory: the mark may stand before or after it.
            Some(stat) if is_directory(&stat) && below.is_directory() => self.make_opaque(path),
            Some(_) => Ok(()),
        }
    }

    /// `.wh..wh..opq`: hides everything that the layers below have in this directory.
    pub fn opaque(&mut self, directory: &[OsString]) -> Result<(), Fault> {
        let Some(directory) = self.directory(directory, false)? else {
            return Ok(());
        };
        if directory.parts.is_empty() {
            // overlayfs knows no such attribute on the root: the image's list of layers ends here instead.
            self.opaque_root = true;
            return self.forget_whiteouts(&[]);
        }
        match self.below(&directory.parts)? {
            Some(below) if below.is_directory() => self.make_opaque(directory.parts),
            _ => Ok(()),
        }
    }

    /// Sets the times of directories. True if the layer hides all layers below it.
    pub fn finish(self) -> Result<bool, Fault> {
        for (path, mtime) in &self.times {
            match open_beneath(
                self.root.as_fd(),
                &join(path),
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            ) {
                Ok(handle) => Metadata::apply_times(*mtime, handle)?,
                // Replaced by something else since.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(Fault::kernel("open the directory of")(error)),
            }
        }
        Ok(self.opaque_root)
    }

    /// What the layers below show at this real path, if this layer lets them.
    fn below(&self, path: &[OsString]) -> Result<Option<Found>, Fault> {
        if self.opaque_root || (1..path.len()).any(|end| self.opaque.contains(&path[..end])) {
            return Ok(None);
        }
        self.lower
            .lookup(path)
            .map_err(Fault::kernel("look below for"))
    }

    /// The directory of this layer at this path, all links followed inside the root. A directory that only the layers
    /// below have is copied up without its content; one that nobody has is created, or else there is none.
    fn directory(&mut self, path: &[OsString], create: bool) -> Result<Option<Directory>, Fault> {
        let mut at = Directory {
            handle: self.root.clone(),
            parts: Parts::new(),
        };
        let mut todo: VecDeque<OsString> = path.iter().cloned().collect();
        for end in (1..=path.len()).rev() {
            if let Some(handle) = self.kept.get(&path[..end]) {
                at = Directory {
                    handle: handle.clone(),
                    parts: path[..end].to_vec(),
                };
                todo.drain(..end);
                break;
            }
        }
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == ".." {
                at.parts.pop();
                at.handle = self.reopen(&at.parts)?;
                continue;
            }
            let child = at.child(&part);
            let handle = match open_directory(&at.handle, &part) {
                Ok(handle) => handle,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => match self
                    .enter(&at, &part, &child, create)?
                {
                    Entered::Directory(handle) => handle,
                    Entered::Nothing => return Ok(None),
                    Entered::Link(link) => {
                        links += 1;
                        if links > LINK_LIMIT {
                            return Fault::rule("its parent goes through too many symbolic links");
                        }
                        let mut parts = child;
                        follow(&link, &mut parts, &mut todo)
                            .map_err(Fault::kernel("follow the parent of"))?;
                        if parts.len() < at.parts.len() {
                            at.handle = self.reopen(&parts)?;
                        }
                        at.parts = parts;
                        continue;
                    }
                },
                Err(error) => return Err(Fault::kernel("open the parent of")(error)),
            };
            at = Directory {
                handle: Arc::new(handle),
                parts: child,
            };
            if links == 0 {
                if self.kept.len() >= KEPT_HANDLES {
                    self.kept.clear();
                }
                self.kept.insert(at.parts.clone(), at.handle.clone());
            }
        }
        Ok(Some(at))
    }

    /// The name is no directory of this layer: what is it?
    fn enter(
        &mut self,
        at: &Directory,
        part: &OsStr,
        child: &Parts,
        create: bool,
    ) -> Result<Entered, Fault> {
        let here = stat(&at.handle, part)?;
        let below = match &here {
            Some(here) if is_whiteout(here) => None,
            Some(here) if FileType::from_raw_mode(here.st_mode) == FileType::Symlink => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let link = openat(&at.handle, part, flags, Mode::empty());
                return Ok(Entered::Link(
                    link.map_err(Fault::kernel("open the parent of"))?,
                ));
            }
            Some(_) => {
                return Fault::rule(format!("its parent {:?} is not a directory", join(child)));
            }
            None => self.below(child)?,
        };
        let metadata = match below {
            Some(found) if found.kind() == FileType::Symlink => {
                return Ok(Entered::Link(found.handle));
            }
            Some(found) if found.is_directory() => Metadata::of_file(&found.handle, &found.stat)?,
            Some(_) => {
                return Fault::rule(format!("its parent {:?} is not a directory", join(child)));
            }
            None if create => Metadata::implied_directory(),
            None => return Ok(Entered::Nothing),
        };
        self.put_directory(at, part, child.clone(), &metadata)?;
        let handle =
            open_directory(&at.handle, part).map_err(Fault::kernel("open the parent of"))?;
        Ok(Entered::Directory(handle))
    }

    fn reopen(&self, parts: &[OsString]) -> Result<Arc<OwnedFd>, Fault> {
        if parts.is_empty() {
            return Ok(self.root.clone());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let handle = open_beneath(self.root.as_fd(), &join(parts), flags);
        handle
            .map(Arc::new)
            .map_err(Fault::kernel("open the parent of"))
    }

    fn put_directory(
        &mut self,
        parent: &Directory,
        name: &OsStr,
        path: Parts,
        metadata: &Metadata,
    ) -> Result<(), Fault> {
        path_length(&path)?;
        let make = || mkdirat(&parent.handle, name, Mode::RWXU);
        match make() {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let here = stat(&parent.handle, name)?;
                if !here.as_ref().is_some_and(is_directory) {
                    self.remove(parent, name, &path)?;
                    make().map_err(Fault::kernel("create"))?;
                    // It takes the place of something that hid the layers below: so it hides them too.
                    if self.below(&path)?.is_some_and(|below| below.is_directory()) {
                        self.make_opaque(path.clone())?;
                    }
                }
            }
            Err(error) => return Err(Fault::kernel("create")(error)),
        }
        let handle = open_directory(&parent.handle, name).map_err(Fault::kernel("open"))?;
        clear_xattrs(&handle)?;
        metadata.apply_to_open(&handle)?;
        self.times.insert(path, metadata.mtime);
        Ok(())
    }

    fn put_hard_link(
        &mut self,
        parent: &Directory,
        name: &OsStr,
        path: Parts,
        target: &[u8],
    ) -> Result<(), Fault> {
        let wanted = String::from_utf8_lossy(target).into_owned();
        let mut target =
            parts(target).map_err(|rule| Fault::Rule(format!("its target {wanted:?}: {rule}")))?;
        let missing = || Fault::rule(format!("its target {wanted:?} is not there"));
        let Some(last) = target.pop() else {
            return missing();
        };
        let Some(from) = self.directory(&target, false)? else {
            return missing();
        };
        let source = from.child(&last);
        let here = stat(&from.handle, &last)?;
        match &here {
            Some(stat) if is_whiteout(stat) => return missing(),
            Some(stat) if is_directory(stat) => return Fault::rule("its target is a directory"),
            Some(_) => {}
            None => match self.below(&source)? {
                None => return missing(),
                Some(found) if found.is_directory() => {
                    return Fault::rule("its target is a directory");
                }
                Some(found) => self.copy_up(&from, &last, &source, &found)?,
            },
        }
        if source == path {
            return Ok(());
        }
        self.create(parent, name, &path, || {
            rustix::fs::linkat(&from.handle, &last, &parent.handle, name, AtFlags::empty())
        })
    }

    #[allow(clippy::too_many_arguments)] // The fields of an entry, from a tar stream or from a lower layer.
    fn put_other(
        &mut self,
        parent: &Directory,
        name: &OsStr,
        path: &Parts,
        kind: Kind,
        link: &[u8],
        metadata: &Metadata,
        fill: &mut Fill<'_>,
    ) -> Result<(), Fault> {
        let directory = parent.handle.clone();
        let private = Mode::RUSR | Mode::WUSR;
        let node = |kind: FileType, major: u32, minor: u32| {
            let directory = directory.clone();
            move || mknodat(&directory, name, kind, private, makedev(major, minor))
        };
        match kind {
            Kind::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = self.create(parent, name, path, || {
                    openat(&directory, name, flags, private)
                })?;
                fill(&file)?;
                metadata.apply_to_open(&file)?;
                return Metadata::apply_times(metadata.mtime, &file);
            }
            Kind::Symlink => {
                if link.is_empty() || link.len() > PATH_LIMIT || link.contains(&0) {
                    return Fault::rule("its target is empty, too long, or has a NUL in it");
                }
                self.create(parent, name, path, || symlinkat(link, &directory, name))?;
            }
            // As a device it would let a container do nothing; in a layer it is overlayfs' whiteout.
            Kind::CharDevice { major: 0, minor: 0 } => {
                return Fault::rule("a character device 0:0 would be taken for a whiteout");
            }
            Kind::CharDevice { major, minor } => {
                self.create(
                    parent,
                    name,
                    path,
                    node(FileType::CharacterDevice, major, minor),
                )?;
            }
            Kind::BlockDevice { major, minor } => {
                self.create(
                    parent,
                    name,
                    path,
                    node(FileType::BlockDevice, major, minor),
                )?;
            }
            Kind::Fifo => self.create(parent, name, path, node(FileType::Fifo, 0, 0))?,
            Kind::Directory | Kind::HardLink => {
                return Fault::rule("it is of a kind that belongs elsewhere");
            }
        }
        metadata.apply_by_name(parent.handle.as_fd(), name, kind == Kind::Symlink)
    }

    /// Brings a file of a lower layer into this one, so that a hard link can be made to it.
    fn copy_up(
        &mut self,
        parent: &Directory,
        name: &OsStr,
        path: &Parts,
        found: &Found,
    ) -> Result<(), Fault> {
        let metadata = Metadata::of_file(&found.handle, &found.stat)?;
        let (major, minor) = (
            rustix::fs::major(found.stat.st_rdev),
            rustix::fs::minor(found.stat.st_rdev),
        );
        let mut link = Vec::new();
        let kind = match found.kind() {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&found.handle, "", Vec::new());
                link = target.map_err(Fault::kernel("read the link"))?.into_bytes();
                Kind::Symlink
            }
            FileType::CharacterDevice => Kind::CharDevice { major, minor },
            FileType::BlockDevice => Kind::BlockDevice { major, minor },
            FileType::Fifo => Kind::Fifo,
            _ => return Fault::rule("its target is of a kind that cannot be linked"),
        };
        let lower = self.lower.clone();
        let mut fill = |file: &OwnedFd| {
            let source = lower
                .open(found, path)
                .map_err(Fault::kernel("open the target of"))?;
            copy(source, file).map_err(Fault::kernel("copy the target of"))
        };
        self.put_other(parent, name, path, kind, &link, &metadata, &mut fill)
    }

    /// Creates a name that must be new; if it is not, what has it is removed first.
    fn create<T>(
        &mut self,
        parent: &Directory,
        name: &OsStr,
        path: &Parts,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Fault> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(parent, name, path)?;
                make().map_err(Fault::kernel("create"))
            }
            other => other.map_err(Fault::kernel("create")),
        }
    }

    fn remove(&mut self, parent: &Directory, name: &OsStr, path: &Parts) -> Result<(), Fault> {
        self.whiteouts.remove(path);
        match unlinkat(&parent.handle, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                // Handles below it would lead out of the tree, or into nothing.
                self.kept.clear();
                self.times.remove(path);
                self.opaque.remove(path);
                remove_tree(&parent.handle, name).map_err(Fault::kernel("replace"))
            }
            Err(error) => Err(Fault::kernel("replace")(error)),
        }
    }

    fn make_opaque(&mut self, path: Parts) -> Result<(), Fault> {
        let handle = self.reopen(&path)?;
        rustix::fs::fsetxattr(&handle, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
            .map_err(Fault::kernel("mark as opaque"))?;
        self.forget_whiteouts(&path)?;
        self.opaque.insert(path);
        Ok(())
    }

    /// Below an opaque directory there is nothing to hide, and overlayfs would show the marks as broken devices.
    fn forget_whiteouts(&mut self, directory: &[OsString]) -> Result<(), Fault> {
        let range = self.whiteouts.range(directory.to_vec()..);
        let inside: Vec<Parts> = range
            .take_while(|path| path.starts_with(directory))
            .cloned()
            .collect();
        for path in inside {
            self.whiteouts.remove(&path);
            let Some((name, parent)) = path.split_last() else {
                continue;
            };
            let parent = self.reopen(parent)?;
            unlinkat(&parent, name.as_os_str(), AtFlags::empty())
                .map_err(Fault::kernel("remove the whiteout of"))?;
        }
        Ok(())
    }
}

enum Entered {
    Directory(OwnedFd),
    Link(OwnedFd),
    Nothing,
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn stat(parent: impl AsFd, name: &OsStr) -> Result<Option<Stat>, Fault> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(Fault::kernel("look at")(error)),
    }
}

fn open_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Links can make real paths longer than any entry's name; they must stay openable.
fn path_length(path: &[OsString]) -> Result<usize, Fault> {
    let length = path.iter().map(|part| part.len() + 1).sum();
    match length > PATH_LIMIT {
        true => Fault::rule(format!("its real path is longer than {PATH_LIMIT} bytes")),
        false => Ok(length),
    }
}

fn copy(from: OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut from = std::fs::File::from(from);
    let mut to = std::fs::File::from(to.try_clone()?);
    io::copy(&mut from, &mut to).map(drop)
}
