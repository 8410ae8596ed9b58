//! A workload that does all it can to outlive its container, for the crash tests: it clears its parent-death signal,
//! starts sessions of its own, forks twice, changes its user and ignores SIGTERM. Then it says `escaped` and stays.
//!
//! Its only argument is ignored: it is what the test recognises the processes by.

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, Uid, fork, getpid, pause, setsid, setuid};

fn main() {
    deafen();
    stray();
    loop {
        pause();
    }
}

/// Ignores every signal that asks to end, and does not end with its parent.
fn deafen() {
    for signal_to_ignore in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
    ] {
        // SAFETY: SigIgn installs no handler, so no code of ours runs at a signal.
        #[allow(unsafe_code)]
        unsafe { signal(signal_to_ignore, SigHandler::SigIgn) }.expect("these may be ignored");
    }
    set_pdeathsig(None).expect("it may be cleared");
}

/// Leaves a grandchild in a session of its own, which no longer has a parent here and another user.
fn stray() {
    // SAFETY: this process has one thread, so the child may use everything.
    #[allow(unsafe_code)]
    if let ForkResult::Parent { .. } = unsafe { fork() }.expect("fork") {
        return;
    }
    setsid().expect("a forked process leads no group");
    // SAFETY: as above.
    #[allow(unsafe_code)]
    if let ForkResult::Parent { .. } = unsafe { fork() }.expect("fork") {
        std::process::exit(0);
    }
    setsid().expect("a forked process leads no group");
    setuid(Uid::from_raw(12345)).expect("root of a container may change its user");
    // A change of the user clears it too, but only until something sets it again.
    set_pdeathsig(None).expect("it may be cleared");
    println!("escaped as process {}", getpid());
    loop {
        pause();
    }
}
