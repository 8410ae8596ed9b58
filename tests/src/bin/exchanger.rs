//! The other half of the races: exchanges two names for one another, over and over, with pauses from a seed.
//!
//! `exchanger DIRECTORY SEED` swaps `DIRECTORY/a` and `DIRECTORY/b` until it is killed. It is static, so that it can run
//! in a container that shares the directory with the attacked one.

use std::path::Path;
use std::process::ExitCode;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// The longest pause, in turns of an empty loop: some microseconds, as long as a few system calls of the victim.
const LONGEST_PAUSE: u64 = 4000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next();
    let seed = arguments.next().and_then(|seed| seed.parse().ok());
    let (Some(directory), Some(seed)) = (directory, seed) else {
        eprintln!("usage: exchanger DIRECTORY SEED");
        return ExitCode::from(2);
    };
    let (a, b) = (
        Path::new(&directory).join("a"),
        Path::new(&directory).join("b"),
    );
    let mut random = Random(seed);
    loop {
        if let Err(errno) = renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE) {
            eprintln!(
                "exchanger: cannot exchange {} and {}: {errno}",
                a.display(),
                b.display()
            );
            return ExitCode::FAILURE;
        }
        for turn in 0..random.draw() % LONGEST_PAUSE {
            std::hint::black_box(turn);
        }
    }
}

/// SplitMix64: any seed will do, zero too.
struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
