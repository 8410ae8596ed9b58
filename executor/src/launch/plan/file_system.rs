//! New file systems of a launch: by the new mount calls, or by mount(2) where those do not take an option.

use std::ffi::{CString, OsStr};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tepui_isolators::Overlay;

use super::{c_path, c_string};
use crate::launch::error::{Error, Result};
use crate::launch::step::{MountSource, Step, Whole};

/// The longest option string that mount(2) takes: one page, with its end mark.
const MOUNT_OPTIONS_LIMIT: usize = 4095;

/// The longest value that fsconfig(2) takes, with its end mark.
const FSCONFIG_LIMIT: usize = 256;

/// A new file system, in the way that takes its options.
pub(super) fn new(
    fstype: CString,
    source: CString,
    options: Vec<(CString, Option<CString>)>,
    attributes: u64,
    propagation: u64,
    copy_up: bool,
) -> Result<MountSource> {
    let is_long = |(_, value): &(CString, Option<CString>)| {
        let length = value.as_ref().map_or(0, |value| value.as_bytes().len());
        length >= FSCONFIG_LIMIT
    };
    let has_mode = options.iter().any(|(key, _)| key.as_c_str() == c"mode");
    let inherit_mode = fstype.as_c_str() == c"tmpfs" && !has_mode;
    let suits_mount =
        !inherit_mode && !copy_up && propagation == 0 && suits_mount(&fstype, &options, attributes);
    if !suits_mount && !options.iter().any(is_long) {
        return Ok(MountSource::New {
            inherit_mode,
            fstype,
            source,
            options,
            attributes,
            propagation,
            copy_up,
        });
    }
    let words = options.iter().map(|(key, value)| match value {
        Some(value) => [key.as_bytes(), b"=", value.as_bytes()].concat(),
        None => key.as_bytes().to_owned(),
    });
    let joined = words.collect::<Vec<_>>().join(&b","[..]);
    if joined.len() > MOUNT_OPTIONS_LIMIT {
        return Err(Error::Mount {
            what: source.to_string_lossy().into_owned(),
            target: fstype.to_string_lossy().into_owned(),
            rule: ": its options are longer than the page that mount(2) takes",
            source: Errno::INVAL.into(),
        });
    }
    // Its place would have to be looked up again, and may be another by then.
    if propagation != 0 {
        return Err(Error::Mount {
            what: source.to_string_lossy().into_owned(),
            target: fstype.to_string_lossy().into_owned(),
            rule: ": with an option of 256 bytes or more it cannot have a propagation of its own",
            source: Errno::INVAL.into(),
        });
    }
    Ok(MountSource::Whole(Whole {
        fstype,
        source,
        options: CString::new(joined).expect("its parts come from C strings"),
        flags: mount_flags(attributes),
    }))
}

/// Whether mount(2), one call in place of six, does the same. Its MS_RDONLY also holds for the file system itself, which
/// a sysfs shares with other containers and cgroups share with the host, where it is there already.
fn suits_mount(fstype: &CString, options: &[(CString, Option<CString>)], attributes: u64) -> bool {
    let is_read_only = attributes & libc::MOUNT_ATTR_RDONLY != 0;
    let is_plain = |text: &CString| !text.as_bytes().contains(&b',');
    let is_known = match fstype.to_bytes() {
        b"cgroup" | b"cgroup2" => true,
        b"devpts" | b"mqueue" | b"proc" | b"sysfs" | b"tmpfs" => !is_read_only,
        _ => false,
    };
    let mut words = options.iter();
    is_known && words.all(|(key, value)| is_plain(key) && value.as_ref().is_none_or(is_plain))
}

/// The `MS_*` of mount(2) for `MOUNT_ATTR_*`.
fn mount_flags(attributes: u64) -> u64 {
    let table = [
        (libc::MOUNT_ATTR_RDONLY, libc::MS_RDONLY),
        (libc::MOUNT_ATTR_NOSUID, libc::MS_NOSUID),
        (libc::MOUNT_ATTR_NODEV, libc::MS_NODEV),
        (libc::MOUNT_ATTR_NOEXEC, libc::MS_NOEXEC),
        (libc::MOUNT_ATTR_NOATIME, libc::MS_NOATIME),
        (libc::MOUNT_ATTR_STRICTATIME, libc::MS_STRICTATIME),
        (libc::MOUNT_ATTR_NODIRATIME, libc::MS_NODIRATIME),
        // MS_NOSYMFOLLOW
        (libc::MOUNT_ATTR_NOSYMFOLLOW, 0x100),
    ];
    let set = table
        .iter()
        .filter(|(attribute, _)| attributes & attribute != 0);
    set.fold(0, |flags, (_, flag)| flags | flag)
}

/// The overlay that is the root.
pub(super) fn overlay(overlay: &Overlay, flags: u64, target: &CString) -> Result<Step> {
    let escape = |path: &Path| {
        let text = path.as_os_str().to_string_lossy();
        text.replace('\\', "\\\\").replace(',', "\\,")
    };
    let writable = relative_to_layers(overlay);
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        overlay.lower.join(":"),
        escape(&writable.join("upper")),
        escape(&writable.join("work"))
    );
    if options.len() > MOUNT_OPTIONS_LIMIT {
        return Err(Error::TooManyLayers {
            count: overlay.lower.len(),
            length: options.len(),
        });
    }
    Ok(Step::MountOverlay {
        layers: c_path(&overlay.layers)?,
        target: target.clone(),
        options: c_string(OsStr::new(&options))?,
        flags,
    })
}

/// The mount table of the container shows these options: `../containers/<id>` tells it nothing of the host's paths, and
/// is shorter.
fn relative_to_layers(overlay: &Overlay) -> PathBuf {
    let store = |path: &Path| path.parent().map(Path::to_owned);
    let above = overlay.writable.parent().and_then(store);
    match (above, overlay.layers.parent()) {
        (Some(above), Some(store)) if above == store => {
            let below = overlay
                .writable
                .strip_prefix(store)
                .expect("it is two levels below");
            Path::new("..").join(below)
        }
        _ => overlay.writable.clone(),
    }
}
