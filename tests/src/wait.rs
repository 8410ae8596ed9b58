//! Waiting for something that another process does, with a limit.

use std::time::{Duration, Instant};

/// Asks until there is an answer.
///
/// # Panics
/// When there is none within `limit`, saying `what` was waited for.
pub fn until<T>(what: &str, limit: Duration, ask: impl FnMut() -> Option<T>) -> T {
    within(limit, ask).unwrap_or_else(|| panic!("{what}: not within {limit:?}"))
}

/// Asks until there is an answer or the time is over.
pub fn within<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        // Asked once more after the end: on a loaded machine the pause may have been long.
        let late = Instant::now() >= end;
        match ask() {
            Some(answer) => return Some(answer),
            None if late => return None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
