//! Mount options as runtime-spec config "mounts" and mount(8) write them, sorted by what the kernel does with them.
//!
//! Flags of the mount (`nosuid`), of the mount and all below it (`rnosuid`), propagation (`rslave`), binding (`rbind`),
//! and what is left for the file system itself (`size=64m`).

use std::ffi::CString;

use libc::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME,
    MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE,
};

use crate::launch_info::MountAttributes;

/// `MOUNT_ATTR__ATIME`: the bits that hold one of three values and not flags.
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;

/// What a bind mount loses when any flag is asked for and this one is not.
const FLAGS: u64 = MOUNT_ATTR_RDONLY
    | MOUNT_ATTR_NOSUID
    | MOUNT_ATTR_NODEV
    | MOUNT_ATTR_NOEXEC
    | MOUNT_ATTR_NOSYMFOLLOW;

/// The options of one mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `bind` or `rbind`.
    pub bind: bool,
    /// `rbind`.
    pub recursive_bind: bool,
    /// For the mount alone, as written.
    flags: MountAttributes,
    /// An access-time mode, or `nodiratime`, was asked for (`atime` and the like only take one back).
    access_time: bool,
    /// Any flag was written, if only to clear it.
    any_flag: bool,
    /// `remount`: what the source has stays, unless it is cleared by name.
    remount: bool,
    /// For the mount and those below it.
    pub recursive_attributes: MountAttributes,
    /// `rw` was written out: some mounts are read-only unless it is.
    pub read_write: bool,
    /// `MS_PRIVATE` and its like, 0 for none.
    pub propagation: u64,
    /// The source must be reached without any symbolic link (`x-tepui-plain-source`, our own): it lies where a workload
    /// can plant some.
    pub plain_source: bool,
    /// `idmap` (false) or `ridmap` (true).
    pub id_map: Option<bool>,
    /// `tmpcopyup`.
    pub copy_up: bool,
    /// Flags of a file system as a whole, by their fsconfig(2) names; a bind mount ignores them as mount(2) does.
    pub superblock: Vec<CString>,
    /// What is left: keys and values for the file system, in order.
    pub filesystem: Vec<(CString, Option<CString>)>,
}

/// What one option does.
enum Effect {
    Set(u64),
    Clear(u64),
    /// One of the access-time modes.
    AccessTime(u64),
    /// Takes the mode back, when an option before it chose it.
    NoAccessTime(u64),
    /// Clears the first and sets the second bits, for the mounts below too.
    Recursive(u64, u64),
    Propagation(u64),
    Bind,
    RecursiveBind,
    Remount,
    PlainSource,
    IdMap(bool),
    CopyUp,
    Superblock,
    /// A default, or a hint that the kernel ignores.
    Nothing,
    /// The file system's own business.
    Filesystem,
}

fn effect(option: &str) -> Effect {
    use Effect::*;
    match option {
        "ro" => Set(MOUNT_ATTR_RDONLY),
        "rw" => Clear(MOUNT_ATTR_RDONLY),
        "nosuid" => Set(MOUNT_ATTR_NOSUID),
        "suid" => Clear(MOUNT_ATTR_NOSUID),
        "nodev" => Set(MOUNT_ATTR_NODEV),
        "dev" => Clear(MOUNT_ATTR_NODEV),
        "noexec" => Set(MOUNT_ATTR_NOEXEC),
        "exec" => Clear(MOUNT_ATTR_NOEXEC),
        "nosymfollow" => Set(MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => Clear(MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => AccessTime(MOUNT_ATTR_NOATIME),
        "strictatime" => AccessTime(MOUNT_ATTR_STRICTATIME),
        "relatime" => AccessTime(0),
        "nodiratime" => AccessTime(MOUNT_ATTR_NODIRATIME),
        "atime" => NoAccessTime(MOUNT_ATTR_NOATIME),
        "nostrictatime" => NoAccessTime(MOUNT_ATTR_STRICTATIME),
        "diratime" => NoAccessTime(MOUNT_ATTR_NODIRATIME),
        // relatime is the kernel's default and the value 0.
        "norelatime" => NoAccessTime(0),
        "rro" => Recursive(0, MOUNT_ATTR_RDONLY),
        "rrw" => Recursive(MOUNT_ATTR_RDONLY, 0),
        "rnosuid" => Recursive(0, MOUNT_ATTR_NOSUID),
        "rsuid" => Recursive(MOUNT_ATTR_NOSUID, 0),
        "rnodev" => Recursive(0, MOUNT_ATTR_NODEV),
        "rdev" => Recursive(MOUNT_ATTR_NODEV, 0),
        "rnoexec" => Recursive(0, MOUNT_ATTR_NOEXEC),
        "rexec" => Recursive(MOUNT_ATTR_NOEXEC, 0),
        "rnosymfollow" => Recursive(0, MOUNT_ATTR_NOSYMFOLLOW),
        "rsymfollow" => Recursive(MOUNT_ATTR_NOSYMFOLLOW, 0),
        "rnodiratime" => Recursive(0, MOUNT_ATTR_NODIRATIME),
        "rdiratime" => Recursive(MOUNT_ATTR_NODIRATIME, 0),
        "rnoatime" => Recursive(ATIME, MOUNT_ATTR_NOATIME),
        "rstrictatime" => Recursive(ATIME, MOUNT_ATTR_STRICTATIME),
        "rrelatime" | "ratime" | "rnorelatime" | "rnostrictatime" => Recursive(ATIME, 0),
        "private" => Propagation(MS_PRIVATE),
        "rprivate" => Propagation(MS_PRIVATE | MS_REC),
        "slave" => Propagation(MS_SLAVE),
        "rslave" => Propagation(MS_SLAVE | MS_REC),
        "shared" => Propagation(MS_SHARED),
        "rshared" => Propagation(MS_SHARED | MS_REC),
        "unbindable" => Propagation(MS_UNBINDABLE),
        "runbindable" => Propagation(MS_UNBINDABLE | MS_REC),
        "bind" => Bind,
        "rbind" => RecursiveBind,
        "remount" => Remount,
        "x-tepui-plain-source" => PlainSource,
        "idmap" => IdMap(false),
        "ridmap" => IdMap(true),
        "tmpcopyup" => CopyUp,
        "sync" | "async" | "dirsync" | "mand" | "nomand" | "lazytime" | "nolazytime" => Superblock,
        // File systems that count versions always do; the new mount calls have no word for it.
        "iversion" | "noiversion" | "defaults" | "loud" | "silent" => Nothing,
        _ => Filesystem,
    }
}

impl Options {
    /// Sorts options, in order: a later one wins over an earlier one.
    ///
    /// # Errors
    /// The option and the rule that it breaks.
    pub fn parse(words: &[String]) -> Result<Self, (&str, &'static str)> {
        let mut options = Self::default();
        for word in words {
            options.add(word)?;
        }
        Ok(options)
    }

    fn add<'a>(&mut self, word: &'a str) -> Result<(), (&'a str, &'static str)> {
        let flags = &mut self.flags;
        match effect(word) {
            Effect::Set(bit) => {
                self.any_flag = true;
                flags.set |= bit;
                flags.clear &= !bit;
                self.read_write &= word != "ro";
            }
            Effect::Clear(bit) => {
                self.any_flag = true;
                flags.set &= !bit;
                flags.clear |= bit;
                self.read_write |= word == "rw";
            }
            Effect::AccessTime(mode) => {
                self.any_flag = true;
                self.access_time = true;
                if mode != MOUNT_ATTR_NODIRATIME {
                    flags.set &= !ATIME;
                }
                flags.set |= mode;
            }
            Effect::NoAccessTime(mode) => {
                self.any_flag = true;
                flags.set &= !mode;
            }
            Effect::Recursive(clear, set) => {
                let below = &mut self.recursive_attributes;
                below.set = below.set & !clear | set;
                below.clear = below.clear & !set | clear;
                // The whole field has to be cleared to set one of its values.
                if (set | clear) & ATIME != 0 {
                    below.clear |= ATIME;
                }
            }
            Effect::Propagation(kind) => {
                if self.propagation != 0 && self.propagation != kind {
                    return Err((word, "another propagation is given before it"));
                }
                self.propagation = kind;
            }
            Effect::Bind => self.bind = true,
            Effect::RecursiveBind => {
                self.bind = true;
                self.recursive_bind = true;
            }
            Effect::Remount => self.remount = true,
            Effect::PlainSource => self.plain_source = true,
            Effect::IdMap(recursive) => self.id_map = Some(recursive),
            Effect::CopyUp => self.copy_up = true,
            Effect::Superblock => self.superblock.push(text(word, word)?),
            Effect::Nothing => {}
            Effect::Filesystem => self.filesystem.push(key_and_value(word)?),
        }
        Ok(())
    }

    /// The attributes of a new mount: all that is not set is off.
    pub fn of_new_mount(&self) -> MountAttributes {
        let below = self.recursive_attributes;
        MountAttributes::setting(self.flags.set & !below.clear | below.set)
    }

    /// The change to a bind mount. Without any flag it stays as its source is; with one, it has those that are asked
    /// for and no other (mount(8) "bind", as container runtimes read it). Access times stay unless a mode is chosen.
    pub fn of_bind_mount(&self) -> MountAttributes {
        if !self.any_flag {
            return MountAttributes::default();
        }
        let mut attributes = self.flags;
        if self.access_time {
            attributes.clear |= ATIME | MOUNT_ATTR_NODIRATIME & !attributes.set;
        }
        if !self.remount {
            attributes.reset = FLAGS & !attributes.set & !attributes.clear;
        }
        attributes
    }
}

fn text<'a>(word: &'a str, part: &str) -> Result<CString, (&'a str, &'static str)> {
    CString::new(part).map_err(|_| (word, "it has a NUL byte"))
}

type KeyAndValue = (CString, Option<CString>);

fn key_and_value(word: &str) -> Result<KeyAndValue, (&str, &'static str)> {
    Ok(match word.split_once('=') {
        Some((key, value)) => (text(word, key)?, Some(text(word, value)?)),
        None => (text(word, word)?, None),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    fn parse(text: &str) -> Options {
        Options::parse(&words(text)).unwrap()
    }

    #[test]
    fn each_option_goes_where_the_kernel_wants_it() {
        let table: [(&str, u64, u64); 12] = [
            ("defaults", 0, 0),
            ("ro,nosuid,nodev,noexec", 0xf, 0),
            ("ro,rw", 0, 0),
            ("rw,ro", 1, 0),
            ("nosuid,suid,noexec", 8, 0),
            ("noatime,strictatime", 0x20, 0),
            ("noatime,relatime", 0, 0),
            ("nodiratime,noatime", 0x90, 0),
            ("nosymfollow", 0x20_0000, 0),
            ("noatime,atime", 0, 0),
            ("bind,rslave", 0, 0x8_4000),
            ("bind,private", 0, 0x4_0000),
        ];
        for (text, set, propagation) in table {
            let options = parse(text);
            assert_eq!(options.of_new_mount().set, set, "{text}");
            assert_eq!(options.propagation, propagation, "{text}");
            assert!(options.filesystem.is_empty(), "{text}");
        }
        assert!(parse("rw").read_write && !parse("rw,ro").read_write && !parse("").read_write);
        assert!(parse("bind").bind && !parse("bind").recursive_bind);
        assert!(parse("rbind").bind && parse("rbind").recursive_bind);
        assert_eq!(parse("bind,idmap").id_map, Some(false));
        assert_eq!(parse("rbind,ridmap").id_map, Some(true));
        assert!(parse("tmpcopyup").copy_up);
    }

    #[test]
    fn a_bind_mount_keeps_its_flags_or_has_exactly_those_asked_for() {
        let of = |text| parse(text).of_bind_mount();
        assert!(of("bind,rslave,sync").is_empty());
        let attributes = |set, clear, reset| MountAttributes { set, clear, reset };
        assert_eq!(of("bind,ro"), attributes(1, 0, 0x20_000e));
        assert_eq!(of("bind,rw,nosuid"), attributes(2, 1, 0x20_000c));
        assert_eq!(of("bind,remount,ro"), attributes(1, 0, 0));
        // Access times: taking nothing back changes nothing, choosing one replaces the field.
        assert_eq!(of("bind,atime"), attributes(0, 0, 0x20_000f));
        assert_eq!(of("bind,relatime"), attributes(0, 0xf0, 0x20_000f));
        assert_eq!(of("bind,nodiratime"), attributes(0x80, 0x70, 0x20_000f));
    }

    #[test]
    fn recursive_forms_set_and_clear_on_their_own() {
        let of = |text| parse(text).recursive_attributes;
        let attributes = |set, clear| MountAttributes {
            set,
            clear,
            reset: 0,
        };
        assert_eq!(of("rbind,ro"), attributes(0, 0));
        assert_eq!(of("rbind,ro,rro"), attributes(1, 0));
        assert_eq!(of("rbind,rro,rrw,rnosuid"), attributes(2, 1));
        assert_eq!(of("rbind,rdev,rexec"), attributes(0, 0xc));
        assert_eq!(of("rbind,rnoatime"), attributes(0x10, 0x70));
        assert_eq!(of("rbind,ratime"), attributes(0, 0x70));
        assert_eq!(of("rbind,rnodiratime"), attributes(0x80, 0));
    }

    #[test]
    fn the_rest_is_the_file_systems() {
        let options = parse("nosuid,size=64m,mode=1777,newinstance,sync,x=a=b");
        let expected: [(CString, Option<CString>); 4] = [
            (c"size".into(), Some(c"64m".into())),
            (c"mode".into(), Some(c"1777".into())),
            (c"newinstance".into(), None),
            (c"x".into(), Some(c"a=b".into())),
        ];
        assert_eq!(options.filesystem, expected);
        assert_eq!(options.superblock, [c"sync".to_owned()]);
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let words = words("bind,rslave,shared");
        assert_eq!(Options::parse(&words).unwrap_err().0, "shared");
    }
}
