//! The container's terminal, opened from inside its own devpts (pts(4)). Nothing here allocates.
//!
//! The image is not trusted: `/dev/ptmx` must lead to a devpts, the other end is opened through the first (TIOCGPTPEER)
//! and never by its name, and `/dev/console` is covered without following links (CVE-2025-52565).

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tepui_isolators::undefended;

use super::{mount, place};
use crate::launch::Terminal;
use crate::launch::report::Record;
use crate::launch::step::Create;
use crate::launch::sys;

/// `DEVPTS_SUPER_MAGIC`, statfs(2).
const DEVPTS: u64 = 0x1cd1;

/// Opens a terminal, makes it the controlling one and standard input, output and error, and sends its other end to the
/// parent. `ENXIO` when `/dev/ptmx` leads anywhere else.
pub(super) fn open(terminal: Terminal, uid: u32, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let ours = rustix::fs::openat2(rustix::fs::CWD, c"/dev/ptmx", flags, Mode::empty(), resolve)?;
    if rustix::fs::fstatfs(&ours)?.f_type as u64 != DEVPTS {
        return Err(Errno::NXIO);
    }
    sys::unlock_terminal(ours.as_fd())?;
    // As every other runtime has it: who reads the output expects the program's own line ends.
    sys::keep_line_ends(ours.as_fd())?;
    let peer = match undefended("terminal-by-descriptor") {
        false => sys::terminal_peer(ours.as_fd())?,
        true => rustix::fs::open(c"/dev/pts/0", flags, Mode::empty())?,
    };
    if let Some((rows, columns)) = terminal.size {
        sys::set_terminal_size(ours.as_fd(), rows, columns)?;
    }
    // Made by us a moment ago: no file of anybody else changes its owner.
    rustix::fs::fchown(&peer, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    if terminal.is_console {
        let place =
            place::resolve_or_make(c"/dev/console", Create::File, !undefended("plain-console"))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(&peer, c"", flags)?;
        mount::attach(tree.as_fd(), place.file.as_fd())?;
    }
    send(socket, ours.as_fd())?;
    sys::make_controlling_terminal(peer.as_fd())?;
    (0..3).try_for_each(|number| sys::duplicate_to(peer.as_fd(), number))
}

fn send(socket: BorrowedFd<'_>, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    let bytes = Record::Terminal.encode();
    let parts = [IoSlice::new(&bytes)];
    rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL).map(drop)
}
