//! Wait statuses in the words that Mesos' own executors use, which tools and eyes know; and back.

/// Signals 1 to 31 as strsignal(3) of glibc words them, on the architectures with the common numbers (signal(7)).
const SIGNALS: [&str; 31] = [
    "Hangup",
    "Interrupt",
    "Quit",
    "Illegal instruction",
    "Trace/breakpoint trap",
    "Aborted",
    "Bus error",
    "Floating point exception",
    "Killed",
    "User defined signal 1",
    "Segmentation fault",
    "User defined signal 2",
    "Broken pipe",
    "Alarm clock",
    "Terminated",
    "Stack fault",
    "Child exited",
    "Continued",
    "Stopped (signal)",
    "Stopped",
    "Stopped (tty input)",
    "Stopped (tty output)",
    "Urgent I/O condition",
    "CPU time limit exceeded",
    "File size limit exceeded",
    "Virtual timer expired",
    "Profiling timer expired",
    "Window changed",
    "I/O possible",
    "Power failure",
    "Bad system call",
];

const EXITED: &str = "Command exited with status ";
const TERMINATED: &str = "Command terminated with signal ";
const REAL_TIME: &str = "Real-time signal ";
/// SIGRTMIN of glibc.
const FIRST_REAL_TIME: i32 = 34;

/// What a wait(2) status says, e.g. `Command exited with status 3`.
pub fn describe_exit(status: i32) -> String {
    if libc::WIFEXITED(status) {
        return format!("{EXITED}{}", libc::WEXITSTATUS(status));
    }
    let number = libc::WTERMSIG(status);
    let core = if libc::WCOREDUMP(status) {
        " (core dumped)"
    } else {
        ""
    };
    let name = usize::try_from(number - 1)
        .ok()
        .and_then(|index| SIGNALS.get(index));
    match name {
        Some(name) => format!("{TERMINATED}{name}{core}"),
        None if (FIRST_REAL_TIME..=64).contains(&number) => {
            format!("{TERMINATED}{REAL_TIME}{}{core}", number - FIRST_REAL_TIME)
        }
        None => format!("{TERMINATED}Unknown signal {number}{core}"),
    }
}

/// The exit status that a shell would give for what `describe_exit` said: 128 + n for signal n. What follows the
/// description does not matter.
pub fn exit_status_of_message(message: &str) -> Option<i32> {
    let line = message.lines().next()?;
    if let Some(rest) = line.strip_prefix(EXITED) {
        return rest
            .split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok();
    }
    let rest = line.strip_prefix(TERMINATED)?;
    let text = rest.split(':').next()?.trim_end_matches(" (core dumped)");
    if let Some(number) = text.strip_prefix(REAL_TIME) {
        return Some(128 + FIRST_REAL_TIME + number.parse::<i32>().ok()?);
    }
    let index = SIGNALS.iter().position(|name| *name == text)?;
    Some(128 + 1 + i32::try_from(index).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_worded_as_mesos_words_them() {
        assert_eq!(describe_exit(3 << 8), "Command exited with status 3");
        assert_eq!(describe_exit(9), "Command terminated with signal Killed");
        assert_eq!(
            describe_exit(11 | 128),
            "Command terminated with signal Segmentation fault (core dumped)"
        );
        assert_eq!(
            describe_exit(36),
            "Command terminated with signal Real-time signal 2"
        );
    }

    #[test]
    fn the_exit_status_can_be_read_back() {
        for number in (1..=31).chain(34..=64) {
            assert_eq!(
                exit_status_of_message(&describe_exit(number)),
                Some(128 + number)
            );
            assert_eq!(
                exit_status_of_message(&describe_exit(number | 128)),
                Some(128 + number)
            );
        }
        for status in 0..256 {
            assert_eq!(
                exit_status_of_message(&describe_exit(status << 8)),
                Some(status)
            );
        }
        assert_eq!(
            exit_status_of_message("Command exited with status 1: memory ran out"),
            Some(1)
        );
        assert_eq!(exit_status_of_message("image not found"), None);
    }
}
