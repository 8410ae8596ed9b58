//! What the child and our init say to the launcher: records of eight bytes, kind and value.
//!
//! `executor/init/main.rs`, which has no library, writes the first three with the same numbers.

/// A record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// The workload was executed.
    Executed,
    /// execve(2) of the workload failed with this errno.
    ExecuteFailed(i32),
    /// The workload ended with this wait status.
    Ended(i32),
    /// A step failed.
    StepFailed {
        /// Its index in the plan.
        index: u16,
        /// The kernel's number.
        errno: u16,
    },
    /// Everything is set up; the child waits for the start.
    Ready,
    /// The child waits for something that only the parent can do.
    Reached(Point),
    /// Our end of the container's terminal comes along.
    Terminal,
    /// A hook inside failed.
    HookFailed {
        /// Whether it was a `startContainer` hook, and not a `createContainer` one.
        at_start: bool,
        /// Its place among those of its kind, from 0.
        number: u16,
        /// Its wait status; [`Self::TIMED_OUT`] when it was killed for taking too long.
        status: u16,
    },
    /// A seccomp listener is this descriptor of the child, which waits until it was taken.
    Listener(i32),
}

/// Where a child waits for its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// For the id maps of its user namespace.
    IdMaps,
    /// For the offsets of its time namespace's clocks.
    TimeOffsets,
    /// For the host's hooks, when everything is mounted.
    Mounted,
}

impl Record {
    /// In place of a hook's wait status: it took too long.
    pub const TIMED_OUT: u16 = u16::MAX;

    /// Bytes on the socket.
    pub const SIZE: usize = 8;

    /// What has happened, in a word or two.
    pub fn name(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::ExecuteFailed(_) => "execution failed",
            Self::Ended(_) => "ended",
            Self::StepFailed { .. } => "step failed",
            Self::Ready => "ready",
            Self::Reached(Point::IdMaps) => "id maps",
            Self::Reached(Point::Mounted) => "mounted",
            Self::Reached(Point::TimeOffsets) => "time offsets",
            Self::Terminal => "terminal",
            Self::HookFailed { .. } => "hook failed",
            Self::Listener(_) => "listener",
        }
    }

    /// As bytes.
    pub fn encode(self) -> [u8; Self::SIZE] {
        let (kind, value): (u32, u32) = match self {
            Self::Executed => (1, 0),
            Self::ExecuteFailed(errno) => (2, errno as u32),
            Self::Ended(status) => (3, status as u32),
            Self::StepFailed { index, errno } => (4, u32::from(index) << 16 | u32::from(errno)),
            Self::Ready => (5, 0),
            Self::Reached(Point::IdMaps) => (6, 0),
            Self::Reached(Point::Mounted) => (6, 1),
            Self::Reached(Point::TimeOffsets) => (6, 2),
            Self::Terminal => (7, 0),
            Self::HookFailed {
                at_start,
                number,
                status,
            } => {
                let which = u32::from(number & 0x7fff) | u32::from(at_start) << 15;
                (9, which << 16 | u32::from(status))
            }
            Self::Listener(number) => (8, number as u32),
        };
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    /// From bytes; `None` for anything that is not a record, since the workload may have got hold of the socket.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, value) = bytes.split_at_checked(4)?;
        let kind = u32::from_ne_bytes(kind.try_into().ok()?);
        let value = u32::from_ne_bytes(value.try_into().ok()?);
        Some(match kind {
            1 => Self::Executed,
            2 => Self::ExecuteFailed(value as i32),
            3 => Self::Ended(value as i32),
            4 => Self::StepFailed {
                index: (value >> 16) as u16,
                errno: value as u16,
            },
            5 => Self::Ready,
            6 => Self::Reached(match value {
                0 => Point::IdMaps,
                1 => Point::Mounted,
                2 => Point::TimeOffsets,
                _ => return None,
            }),
            7 => Self::Terminal,
            9 => Self::HookFailed {
                at_start: value >> 31 != 0,
                number: (value >> 16 & 0x7fff) as u16,
                status: value as u16,
            },
            8 => Self::Listener(value as i32),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_socket_and_junk_does_not() {
        let all = [
            Record::Executed,
            Record::ExecuteFailed(2),
            Record::Ended(0x300),
            Record::StepFailed {
                index: 40,
                errno: 95,
            },
            Record::Ready,
            Record::Reached(Point::Mounted),
            Record::Reached(Point::TimeOffsets),
            Record::Terminal,
            Record::Listener(9),
        ];
        for record in all {
            assert_eq!(Record::decode(&record.encode()), Some(record));
        }
        for junk in [
            &b""[..],
            b"\x01\0\0\0",
            b"\x39\0\0\0\0\0\0\0",
            b"\x01\0\0\0\0\0\0\0\0",
        ] {
            assert_eq!(Record::decode(junk), None, "{junk:?}");
        }
    }
}
