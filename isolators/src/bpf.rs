//! bpf(2): load, attach and look at programs of the type BPF_PROG_TYPE_CGROUP_DEVICE, which decide on cgroup v2 which
//! devices may be used.

// The crate's door to bpf(2), which no library here wraps.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// One instruction (the kernel's bpf/standardization/instruction-set).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source register in the high one.
    pub registers: u8,
    /// Jump distance or memory offset.
    pub offset: i16,
    /// Constant.
    pub constant: i32,
}

/// The kernel's fingerprint of a program's instructions (`prog_tag` of /proc/PID/fdinfo).
pub type Tag = [u8; 8];

// linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// More programs than the kernel attaches to one cgroup (BPF_CGROUP_MAX_PROGS is 64).
const MAX_PROGRAMS: usize = 64;

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`; the kernel fills as much as it is asked for.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    prog_type: u32,
    id: u32,
    tag: Tag,
}

/// Plain data that bpf(2) may read and write as the attributes of a command: `repr(C)`, no padding, any bytes valid.
trait Attributes {}
impl Attributes for LoadAttr {}
impl Attributes for AttachAttr {}
impl Attributes for QueryAttr {}
impl Attributes for IdAttr {}
impl Attributes for InfoAttr {}

fn bpf<A: Attributes>(command: libc::c_int, attributes: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes at most `size_of::<A>()` bytes of `attributes`, which is exclusively borrowed
    // for the call; every address inside it is set by the functions below from a live buffer of the length beside it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<A>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// The descriptor that a command made.
fn descriptor<A: Attributes>(command: libc::c_int, attributes: &mut A) -> io::Result<OwnedFd> {
    let raw = bpf(command, attributes)?;
    let raw = RawFd::try_from(raw).map_err(io::Error::other)?;
    // SAFETY: BPF_PROG_LOAD and BPF_PROG_GET_FD_BY_ID, the only commands this is called with, return a new descriptor
    // that nothing else owns; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn unsigned(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

/// The kernel's log of why it refused a program, beside the error.
fn load(program: &[Instruction], log: &mut [u8]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut attributes = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).map_err(io::Error::other)?,
        log_buf: match log.is_empty() {
            true => 0,
            false => log.as_mut_ptr().expose_provenance() as u64,
        },
        prog_name: *b"tepui_devices\0\0\0",
        ..LoadAttr::default()
    };
    descriptor(BPF_PROG_LOAD, &mut attributes)
}

/// Loads a program that decides on devices.
///
/// # Errors
/// What the kernel refused; for a program that it could not verify, with the last line of its reason.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let error = match load(program, &mut []) {
        Ok(loaded) => return Ok(loaded),
        Err(error) => error,
    };
    if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)) {
        return Err(error);
    }
    let mut log = vec![0; 16 * 1024];
    match load(program, &mut log) {
        Ok(loaded) => Ok(loaded),
        Err(error) => {
            let text = String::from_utf8_lossy(&log);
            let lines = text.trim_end_matches('\0').lines();
            let reason = lines.rev().find(|line| !line.starts_with("processed "));
            let reason = reason.unwrap_or("no reason given");
            Err(io::Error::new(error.kind(), format!("{error}: {reason}")))
        }
    }
}

/// Attaches a program to a cgroup, beside those of others: what any of them refuses is refused. It stays until the
/// cgroup is removed.
///
/// # Errors
/// EPERM when a cgroup above has a program that lets no other stand below it.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = AttachAttr {
        target_fd: unsigned(cgroup),
        attach_bpf_fd: unsigned(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
        ..AttachAttr::default()
    };
    bpf(BPF_PROG_ATTACH, &mut attributes).map(drop)
}

/// The fingerprints of the device programs that are attached to a cgroup itself, in order.
///
/// # Errors
/// When the kernel does not let them be looked at.
pub fn device_program_tags(cgroup: BorrowedFd<'_>) -> io::Result<Vec<Tag>> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut attributes = QueryAttr {
        target_fd: unsigned(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: MAX_PROGRAMS as u32,
        ..QueryAttr::default()
    };
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    let count = attributes.prog_cnt as usize;
    let mut tags = Vec::with_capacity(count);
    for id in ids.into_iter().take(count) {
        let mut attributes = IdAttr {
            id,
            ..IdAttr::default()
        };
        let program = descriptor(BPF_PROG_GET_FD_BY_ID, &mut attributes)?;
        tags.push(tag(std::os::fd::AsFd::as_fd(&program))?);
    }
    Ok(tags)
}

/// The fingerprint of a loaded program.
///
/// # Errors
/// When the kernel does not give it.
pub fn tag(program: BorrowedFd<'_>) -> io::Result<Tag> {
    let mut info = ProgramInfo::default();
    let mut attributes = InfoAttr {
        bpf_fd: unsigned(program),
        info_len: size_of::<ProgramInfo>() as u32,
        info: std::ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info.tag)
}
