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

/// `MOUNT_ATTR__ATIME`: the bits that hold one of three values and not flags.
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;

/// The options of one mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `bind` or `rbind`.
    pub bind: bool,
    /// `rbind`.
    pub recursive_bind: bool,
    /// `MOUNT_ATTR_*`.
    pub attributes: u64,
    /// Whether `attributes` hold for the mounts below too.
    pub recursive_attributes: bool,
    /// `rw` was written out: some mounts are read-only unless it is.
    pub read_write: bool,
    /// `MS_PRIVATE` and its like, 0 for none.
    pub propagation: u64,
    /// The source must be reached without any symbolic link (`x-tepui-plain-source`, our own): it lies where a workload
    /// can plant some.
    pub plain_source: bool,
    /// What is left: keys and values for the file system, in order.
    pub filesystem: Vec<(CString, Option<CString>)>,
}

/// What one option does.
enum Effect {
    /// Sets the second bits after clearing the first.
    Attribute(u64, u64),
    /// The same for the mounts below too.
    Recursive(u64, u64),
    Propagation(u64),
    Bind,
    RecursiveBind,
    PlainSource,
    /// A default, or a hint that the kernel ignores.
    Nothing,
    /// The file system's own business.
    Filesystem,
    Refused(&'static str),
}

fn effect(option: &str) -> Effect {
    use Effect::*;
    match option {
        "ro" => Attribute(0, MOUNT_ATTR_RDONLY),
        "rw" => Attribute(MOUNT_ATTR_RDONLY, 0),
        "nosuid" => Attribute(0, MOUNT_ATTR_NOSUID),
        "suid" => Attribute(MOUNT_ATTR_NOSUID, 0),
        "nodev" => Attribute(0, MOUNT_ATTR_NODEV),
        "dev" => Attribute(MOUNT_ATTR_NODEV, 0),
        "noexec" => Attribute(0, MOUNT_ATTR_NOEXEC),
        "exec" => Attribute(MOUNT_ATTR_NOEXEC, 0),
        "nosymfollow" => Attribute(0, MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => Attribute(MOUNT_ATTR_NOSYMFOLLOW, 0),
        "nodiratime" => Attribute(0, MOUNT_ATTR_NODIRATIME),
        "diratime" => Attribute(MOUNT_ATTR_NODIRATIME, 0),
        "noatime" => Attribute(ATIME, MOUNT_ATTR_NOATIME),
        "strictatime" => Attribute(ATIME, MOUNT_ATTR_STRICTATIME),
        // relatime is the kernel's default and the value 0.
        "relatime" | "atime" | "norelatime" | "nostrictatime" => Attribute(ATIME, 0),
        "rro" => Recursive(0, MOUNT_ATTR_RDONLY),
        "rnosuid" => Recursive(0, MOUNT_ATTR_NOSUID),
        "rnodev" => Recursive(0, MOUNT_ATTR_NODEV),
        "rnoexec" => Recursive(0, MOUNT_ATTR_NOEXEC),
        "rnosymfollow" => Recursive(0, MOUNT_ATTR_NOSYMFOLLOW),
        "rnodiratime" => Recursive(0, MOUNT_ATTR_NODIRATIME),
        "rnoatime" => Recursive(ATIME, MOUNT_ATTR_NOATIME),
        "rstrictatime" => Recursive(ATIME, MOUNT_ATTR_STRICTATIME),
        "rrelatime" | "ratime" | "rnorelatime" | "rnostrictatime" => Recursive(ATIME, 0),
        "rrw" | "rsuid" | "rdev" | "rexec" | "rsymfollow" | "rdiratime" => {
            Refused("this version cannot take a restriction away from the mounts below")
        }
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
        "x-tepui-plain-source" => PlainSource,
        "defaults" | "async" | "loud" | "silent" | "nolazytime" | "nomand" => Nothing,
        "idmap" | "ridmap" => Refused("this version has no id-mapped mounts"),
        "tmpcopyup" => Refused("this version does not copy what the image has below a tmpfs"),
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
        let mut recursive = None;
        for word in words {
            let refused = |rule| Err((word.as_str(), rule));
            match effect(word) {
                Effect::Attribute(clear, set) => {
                    options.attributes = options.attributes & !clear | set;
                    options.read_write = match word.as_str() {
                        "rw" => true,
                        "ro" => false,
                        _ => options.read_write,
                    };
                }
                Effect::Recursive(clear, set) => {
                    recursive = Some(recursive.unwrap_or(0) & !clear | set);
                }
                Effect::Propagation(kind) => {
                    if options.propagation != 0 && options.propagation != kind {
                        return refused("another propagation is given before it");
                    }
                    options.propagation = kind;
                }
                Effect::Bind => options.bind = true,
                Effect::RecursiveBind => {
                    options.bind = true;
                    options.recursive_bind = true;
                }
                Effect::PlainSource => options.plain_source = true,
                Effect::Nothing => {}
                Effect::Filesystem => options.filesystem.push(key_and_value(word)?),
                Effect::Refused(rule) => return refused(rule),
            }
        }
        if let Some(recursive) = recursive {
            // The launch sets one mask, on the mount alone or on all of it.
            if options.attributes & !recursive != 0 {
                let first = words.first().map_or("", String::as_str);
                return Err((
                    first,
                    "give each restriction its recursive form (rro, rnosuid …) or none of them",
                ));
            }
            options.attributes = recursive;
            options.recursive_attributes = true;
        }
        Ok(options)
    }
}

fn key_and_value(word: &str) -> Result<(CString, Option<CString>), (&str, &'static str)> {
    let text = |part: &str| CString::new(part).map_err(|_| (word, "it has a NUL byte"));
    Ok(match word.split_once('=') {
        Some((key, value)) => (text(key)?, Some(text(value)?)),
        None => (text(word)?, None),
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
        let table: [(&str, u64, bool, u64); 12] = [
            ("defaults", 0, false, 0),
            ("ro,nosuid,nodev,noexec", 0xf, false, 0),
            ("ro,rw", 0, false, 0),
            ("rw,ro", 1, false, 0),
            ("nosuid,suid,noexec", 8, false, 0),
            ("noatime,strictatime", 0x20, false, 0),
            ("noatime,relatime", 0, false, 0),
            ("nodiratime,noatime", 0x90, false, 0),
            ("nosymfollow", 0x20_0000, false, 0),
            ("rbind,ro,rro", 1, true, 0),
            ("bind,rslave", 0, false, 0x8_4000),
            ("bind,private", 0, false, 0x4_0000),
        ];
        for (text, attributes, recursive, propagation) in table {
            let options = parse(text);
            assert_eq!(options.attributes, attributes, "{text}");
            assert_eq!(options.recursive_attributes, recursive, "{text}");
            assert_eq!(options.propagation, propagation, "{text}");
            assert!(options.filesystem.is_empty(), "{text}");
        }
        assert!(parse("rw").read_write && !parse("rw,ro").read_write && !parse("").read_write);
        assert!(parse("bind").bind && !parse("bind").recursive_bind);
        assert!(parse("rbind").bind && parse("rbind").recursive_bind);
    }

    #[test]
    fn the_rest_is_the_file_systems() {
        let options = parse("nosuid,size=64m,mode=1777,newinstance,sync,x=a=b");
        let expected: [(CString, Option<CString>); 5] = [
            (c"size".into(), Some(c"64m".into())),
            (c"mode".into(), Some(c"1777".into())),
            (c"newinstance".into(), None),
            (c"sync".into(), None),
            (c"x".into(), Some(c"a=b".into())),
        ];
        assert_eq!(options.filesystem, expected);
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let cases = [
            ("rbind,rsuid", "rsuid"),
            ("bind,rslave,shared", "shared"),
            ("bind,idmap", "idmap"),
            ("tmpcopyup", "tmpcopyup"),
            ("nosuid,rro", "nosuid"),
        ];
        for (text, culprit) in cases {
            let words = words(text);
            assert_eq!(Options::parse(&words).unwrap_err().0, culprit, "{text}");
        }
    }
}
