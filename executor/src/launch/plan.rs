//! The order of a launch: the merged launch info becomes one list of steps, complete before the clone.
//!
//! After this nothing is looked up by name any more: bind sources are detached trees, cgroup files are open, strings are
//! laid out for execve(2). The list can be printed, asserted on without root, and made to fail at any step.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use tepui_isolators::launch_info::{DeviceNode, Mount, MountKind, RootMount};
use tepui_isolators::{ContainerLaunchInfo, Declaration, Overlay, RootFilesystem};

use super::error::{Error, Result};
use super::step::{Create, Execute, Ids, MountSource, MountStep, Step};
use super::sys::{self, StringArray};

/// The longest option string that mount(2) takes: one page, with its end mark.
const MOUNT_OPTIONS_LIMIT: usize = 4095;

/// What the caller of a launch hands in beside the declaration.
#[derive(Debug)]
pub struct Attachments {
    /// Standard input, output and error of the workload.
    pub stdio: [OwnedFd; 3],
    /// An empty directory of the host where the root is mounted, in the container's own mount namespace.
    pub mount_point: PathBuf,
    /// Our init, when the declaration asks for it.
    pub init: Option<OwnedFd>,
    /// Number of the child's end of the socket to the launcher, which init goes on using.
    pub socket: RawFd,
}

/// All steps of one launch.
///
/// # Errors
/// When a source cannot be opened or a string cannot be one of the kernel's.
pub fn steps(
    declaration: &Declaration,
    info: ContainerLaunchInfo,
    attachments: Attachments,
) -> Result<Vec<Step>> {
    let process = declaration
        .spec
        .process()
        .as_ref()
        .ok_or(Error::Missing { field: "process" })?;
    let own_root = declaration.rootfs != RootFilesystem::Host;
    let target = c_path(&attachments.mount_point)?;
    let init = attachments.init.is_some();

    let mut steps = vec![
        Step::NotDumpable,
        Step::DefaultSignals(ignored_signals()?),
        Step::NewSession,
    ];
    // Before anything is charged to the wrong cgroup.
    for directory in &info.cgroup_v1 {
        steps.push(join_cgroup(directory)?);
    }
    // Its root is the cgroup that one is in, so it follows the move.
    if info
        .namespaces
        .contains(&oci_spec::runtime::LinuxNamespaceType::Cgroup)
    {
        steps.push(Step::CgroupNamespace);
    }
    steps.extend(info.loopback.then_some(Step::Loopback));
    steps.extend(info.hostname.map(Step::Hostname));
    // The host's /proc is gone after the pivot, and the container's is not ours to write to.
    steps.extend(
        info.oom_score_adj
            .map(|value| Step::OomScoreAdjustment(c_number(value))),
    );
    let directory = c_string(process.cwd().as_os_str())?;
    // Without `filesystem/linux` the container stays on the host's mounts.
    if let Some(root) = info.rootfs {
        steps.push(Step::RootPropagation);
        steps.push(root_step(root, &target)?);
        steps.push(Step::EnterRoot(target));
        // The order of the configuration counts (runtime-spec "mounts").
        for mount in info.mounts {
            steps.push(Step::Mount(mount_step(mount, own_root)?));
        }
        // Before the pivot, while the tree is still reached from the working directory; after all mounts.
        for path in info.masked_paths {
            steps.push(Step::Mask {
                path,
                null: null_device()?,
            });
        }
        steps.extend(info.readonly_paths.into_iter().map(Step::ReadonlyPath));
        steps.push(Step::PivotRoot);
        if own_root {
            steps.push(Step::MakeDirectory(directory.clone()));
        }
    }
    // After everything that writes.
    steps.extend(info.readonly_root.then_some(Step::ReadonlyRoot));
    for (number, from) in attachments.stdio.into_iter().enumerate() {
        let from = without_host_null(from)?;
        steps.push(Step::Stdio {
            from,
            number: number as i32,
        });
    }
    // Raising a hard limit needs a capability that goes next.
    steps.extend(info.rlimits.into_iter().map(Step::ResourceLimit));
    // Without no_new_privs the filter needs CAP_SYS_ADMIN, which goes below (seccomp(2)).
    let (early, late) = match info.no_new_privileges {
        true => (None, info.seccomp),
        false => (info.seccomp, None),
    };
    steps.extend(early.map(Step::Seccomp));
    // Dropping the bounding set after the change of user is EPERM.
    steps.extend(info.capabilities.map(Step::BoundingSet));
    let user = process.user();
    let groups = user.additional_gids().clone().unwrap_or_default();
    steps.push(Step::Ids(Ids {
        uid: user.uid(),
        gid: user.gid(),
        groups,
    }));
    steps.extend(info.capabilities.map(Step::Capabilities));
    // As the user, who may lack the right to enter it.
    steps.push(Step::WorkingDirectory(directory));
    steps.extend(info.no_new_privileges.then_some(Step::NoNewPrivileges));
    // Marks and does not close: the report must work until execve(2).
    steps.push(Step::CloseOnExec);
    steps.push(Step::AwaitStart { init });
    // Last, so that a profile need not allow our set-up.
    steps.extend(late.map(Step::Seccomp));
    steps.push(Step::Execute(execute(
        declaration,
        process,
        attachments.init,
        attachments.socket,
    )?));
    Ok(steps)
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Error::NulByte {
        text: text.to_string_lossy().into_owned(),
    })
}

fn c_path(path: &Path) -> Result<CString> {
    c_string(path.as_os_str())
}

/// The signals that this process ignores, as a mask (bit n-1 is signal n): CLONE_CLEAR_SIGHAND leaves those ignored, and
/// so does execve(2).
fn ignored_signals() -> Result<u64> {
    let path = Path::new("/proc/self/status");
    let failed = |source| Error::Open {
        path: path.to_owned(),
        source,
    };
    let status = std::fs::read_to_string(path).map_err(failed)?;
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))
}

fn c_number(value: i32) -> CString {
    CString::new(value.to_string()).expect("digits hold no NUL byte")
}

fn join_cgroup(directory: &Path) -> Result<Step> {
    let path = directory.join("tasks");
    let tasks = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(
        |source| Error::Open {
            path: path.clone(),
            source: source.into(),
        },
    )?;
    Ok(Step::JoinCgroup {
        path: c_path(&path)?,
        tasks,
    })
}

/// A detached copy of a tree of the host. It is a slave of the original from the start: where the host's mounts are
/// shared, nothing that is mounted on the copy may appear on the host.
fn open_tree(path: &Path, recursive: bool, plain: bool) -> Result<OwnedFd> {
    let failed = |errno: rustix::io::Errno| Error::Open {
        path: path.to_owned(),
        source: errno.into(),
    };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = match plain {
        false => rustix::mount::open_tree(CWD, path, flags),
        // A workload may have put a link there since it was looked at.
        true => {
            let open = OFlags::PATH | OFlags::CLOEXEC;
            let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            rustix::fs::openat2(CWD, path, open, Mode::empty(), resolve).and_then(|place| {
                rustix::mount::open_tree(place, c"", flags | OpenTreeFlags::AT_EMPTY_PATH)
            })
        }
    };
    let tree = tree.map_err(failed)?;
    sys::set_mount_propagation(tree.as_fd(), libc::MS_SLAVE | libc::MS_REC).map_err(failed)?;
    Ok(tree)
}

/// A detached mount of the host's null device, checked to be one: what it hides must not become readable by
/// somebody having put another file there (CVE-2025-31133). Read-only, so that nobody inside changes the node's mode.
fn null_device() -> Result<OwnedFd> {
    let path = Path::new("/dev/null");
    let failed = |errno: rustix::io::Errno| Error::Open {
        path: path.to_owned(),
        source: errno.into(),
    };
    let tree = open_tree(path, false, false)?;
    let status = rustix::fs::fstat(&tree).map_err(failed)?;
    if !is_null_device(&status) {
        return Err(Error::NotTheNullDevice);
    }
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    sys::set_mount_attributes(tree.as_fd(), attributes, false).map_err(failed)?;
    Ok(tree)
}

fn is_null_device(status: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
        && status.st_rdev == rustix::fs::makedev(1, 3)
}

/// A standard descriptor that is the host's null device becomes one through a read-only mount: through the other anybody
/// inside could change the node's mode for the whole host (fchmod(2)).
fn without_host_null(descriptor: OwnedFd) -> Result<OwnedFd> {
    let failed = |errno: rustix::io::Errno| Error::Open {
        path: "/dev/null".into(),
        source: errno.into(),
    };
    let status = rustix::fs::fstat(&descriptor).map_err(failed)?;
    if !is_null_device(&status) {
        return Ok(descriptor);
    }
    let mode = rustix::fs::fcntl_getfl(&descriptor).map_err(failed)? & OFlags::RWMODE;
    let tree = null_device()?;
    let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
    rustix::fs::open(path, mode | OFlags::CLOEXEC, Mode::empty()).map_err(failed)
}

fn root_step(root: RootMount, target: &CString) -> Result<Step> {
    match root {
        RootMount::Bind { source, attributes } => {
            let tree = open_tree(&source, true, false)?;
            if attributes != 0 {
                sys::set_mount_attributes(tree.as_fd(), attributes, true).map_err(|errno| {
                    Error::Open {
                        path: source.clone(),
                        source: errno.into(),
                    }
                })?;
            }
            Ok(Step::AttachRoot {
                source: c_path(&source)?,
                tree,
                target: target.clone(),
            })
        }
        RootMount::Overlay { overlay, flags } => {
            let escape = |path: &Path| {
                let text = path.as_os_str().to_string_lossy();
                text.replace('\\', "\\\\").replace(',', "\\,")
            };
            let writable = relative_to_layers(&overlay);
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
    }
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

fn mount_step(mount: Mount, own_root: bool) -> Result<MountStep> {
    let mut create = if own_root {
        Create::Directory
    } else {
        Create::Nothing
    };
    let source = match mount.kind {
        MountKind::Filesystem {
            fstype,
            source,
            options,
        } => MountSource::New {
            fstype,
            source,
            options,
        },
        MountKind::Bind {
            source,
            recursive,
            plain_source,
        } => {
            let tree = open_tree(&source, recursive, plain_source)?;
            let status = rustix::fs::fstat(&tree).map_err(|errno| Error::Open {
                path: source.clone(),
                source: errno.into(),
            })?;
            if own_root && FileType::from_raw_mode(status.st_mode) != FileType::Directory {
                create = Create::File;
            }
            MountSource::Tree {
                name: c_path(&source)?,
                tree,
            }
        }
        MountKind::Devices {
            nodes,
            links,
            directories,
            options,
        } => {
            let tree = device_tree(&nodes, &links, &directories, &options, mount.attributes)
                .map_err(|source| Error::Devices {
                    source: source.into(),
                })?;
            MountSource::Tree {
                name: c"devices".into(),
                tree,
            }
        }
    };
    let text = mount.target.as_bytes();
    let in_kernel = [&b"/proc"[..], b"/sys"]
        .iter()
        .any(|top| text.starts_with(top));
    Ok(MountStep {
        may_cover_kernel: in_kernel,
        target: mount.target,
        source,
        attributes: mount.attributes,
        recursive: mount.recursive_attributes,
        propagation: mount.propagation,
        plain_target: mount.plain_target,
        create,
    })
}

/// A detached tmpfs with its nodes: made here since mknod(2) is refused inside a strict devices cgroup.
fn device_tree(
    nodes: &[DeviceNode],
    links: &[(CString, CString)],
    directories: &[CString],
    options: &[(CString, Option<CString>)],
    attributes: u64,
) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"source", c"tmpfs")?;
    for (key, value) in options {
        match value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(&context, key.as_c_str(), value.as_c_str())?
            }
            None => rustix::mount::fsconfig_set_flag(&context, key.as_c_str())?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    // Read-only comes when it is attached, after it was filled.
    let attributes =
        MountAttrFlags::from_bits_retain(attributes as u32) - MountAttrFlags::MOUNT_ATTR_RDONLY;
    let tree = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    for node in nodes {
        let name = node.name.as_c_str();
        let device = rustix::fs::makedev(node.major, node.minor);
        let (kind, mode) = (
            FileType::from_raw_mode(node.mode),
            Mode::from_raw_mode(node.mode & 0o7777),
        );
        rustix::fs::mknodat(&tree, name, kind, mode, device)?;
        // mknod(2) takes the umask away.
        rustix::fs::chmodat(&tree, name, mode, rustix::fs::AtFlags::empty())?;
        let owner = Some(rustix::fs::Uid::from_raw(node.uid));
        let group = Some(rustix::fs::Gid::from_raw(node.gid));
        rustix::fs::chownat(
            &tree,
            name,
            owner,
            group,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    for directory in directories {
        rustix::fs::mkdirat(&tree, directory.as_c_str(), Mode::from_raw_mode(0o755))?;
    }
    for (name, points_at) in links {
        rustix::fs::symlinkat(points_at.as_c_str(), &tree, name.as_c_str())?;
    }
    Ok(tree)
}

/// The directories of `PATH` that execvp(3) would search when there is none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn execute(
    declaration: &Declaration,
    process: &oci_spec::runtime::Process,
    init: Option<OwnedFd>,
    socket: RawFd,
) -> Result<Execute> {
    let arguments = process.args().clone().unwrap_or_default();
    let environment = process.env().clone().unwrap_or_default();
    let first = arguments.first().ok_or(Error::Missing {
        field: "process.args",
    })?;
    let program = declaration.executable.as_ref().unwrap_or(first);
    if program.is_empty() {
        return Err(Error::Missing {
            field: "process.args[0]",
        });
    }
    let strings = |texts: &[String]| {
        texts
            .iter()
            .map(|t| c_string(OsStr::new(t)))
            .collect::<Result<Vec<_>>>()
    };
    let mut all = strings(&arguments)?;
    let mut candidates = Vec::new();
    if init.is_some() {
        all.splice(
            0..0,
            [
                c"tepui-init".into(),
                c_number(socket),
                c_string(OsStr::new(program))?,
            ],
        );
    } else {
        let path = environment
            .iter()
            .find_map(|v| v.strip_prefix("PATH="))
            .unwrap_or(DEFAULT_PATH);
        candidates = match program.contains('/') {
            true => vec![c_string(OsStr::new(program))?],
            false => strings(
                &path
                    .split(':')
                    .map(|d| format!("{d}/{program}"))
                    .collect::<Vec<_>>(),
            )?,
        };
    }
    Ok(Execute {
        init,
        candidates,
        arguments: StringArray::new(all),
        environment: StringArray::new(strings(&environment)?),
    })
}
