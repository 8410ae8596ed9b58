//! Points in time as text: RFC 3339 in UTC, without a library for calendars.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, to the nanosecond: `2026-03-01T12:00:00.000000001Z`.
pub fn now_nanoseconds() -> String {
    let (seconds, nanoseconds) = since_epoch();
    format!("{}.{nanoseconds:09}Z", date_and_time(seconds))
}

/// Now, to the second: `2026-03-01T12:00:00Z`.
pub fn now_seconds() -> String {
    format!("{}Z", date_and_time(since_epoch().0))
}

fn since_epoch() -> (u64, u32) {
    // A clock before 1970 is shown as 1970.
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (elapsed.as_secs(), elapsed.subsec_nanos())
}

fn date_and_time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// Year, month and day of a number of days since 1970-01-01. Years are counted from March, so that the leap day is the
/// last of a year, and in eras of 400 years, which are all equally long.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let is_next_year = month >= 10;
    let month = if is_next_year { month - 9 } else { month + 3 };
    (
        era * 400 + year + u64::from(is_next_year),
        month,
        day_of_month,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_the_date_that_date_1_prints() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(date_and_time(seconds), text);
        }
        assert!(now_nanoseconds().ends_with('Z'));
        assert_eq!(
            now_nanoseconds().len(),
            "2026-03-01T12:00:00.000000001Z".len()
        );
    }
}
