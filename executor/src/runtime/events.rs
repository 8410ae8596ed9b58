//! `events`: statistics of a container, once or again and again, and when it ran out of memory.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use tepui_isolators::cgroups::MemIsolator;
use tepui_isolators::cgroups::statistics::{Statistics, statistics};
use tepui_isolators::{ContainerId, Isolator, LimitEvent, Watch};

use super::Failure;
use super::arguments::Events;
use super::command_line::Globals;
use super::store::{Entry, Status};
use crate::report::chain;

/// One line of the output.
#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a ContainerId,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Statistics>,
}

/// Runs the command, until the container has ended.
pub(super) fn run(globals: &Globals, arguments: &Events) -> Result<(), Failure> {
    let entry = super::load(globals, &arguments.id)?;
    let interval = parse_duration(&arguments.interval)
        .filter(|interval| !interval.is_zero())
        .ok_or("duration interval must be greater than 0, as 5s or 100ms")?;
    let stopped = || format!("container with id {} is not running", entry.id());
    if entry.status()? == Status::Stopped {
        return Err(stopped().into());
    }
    if arguments.stats {
        return print_statistics(&entry);
    }
    let init = entry.init()?.ok_or_else(stopped)?;
    let watch = MemIsolator.watch(entry.id(), &entry.declaration()?)?;
    report(&entry, &init, watch, interval)
}

fn print_statistics(entry: &Entry) -> Result<(), Failure> {
    let identity = &entry.state.identity;
    let data = statistics(&identity.id, &identity.cgroups)?;
    print_event("stats", entry, Some(data))
}

fn print_event(kind: &'static str, entry: &Entry, data: Option<Statistics>) -> Result<(), Failure> {
    let event = Event {
        r#type: kind,
        id: entry.id(),
        data,
    };
    super::print(&format!("{}\n", serde_json::to_string(&event)?))
}

/// Waits for whatever comes first: the container's end, a lack of memory, the next round.
fn report(
    entry: &Entry,
    init: &OwnedFd,
    mut watch: Option<Box<dyn Watch>>,
    interval: Duration,
) -> Result<(), Failure> {
    let mut next = Instant::now() + interval;
    loop {
        let ready = wait(init, watch.as_deref(), next)?;
        if let Some(watch) = watch.as_mut() {
            let news = match ready.ended {
                true => watch.at_exit()?,
                false if ready.watch => watch.check()?,
                false => None,
            };
            if let Some(LimitEvent::Memory { .. }) = news {
                print_event("oom", entry, None)?;
            }
        }
        if ready.ended {
            return Ok(());
        }
        if Instant::now() >= next {
            next = Instant::now() + interval;
            if let Err(error) = print_statistics(entry) {
                super::log::warning(chain(error.as_ref()));
            }
        }
    }
}

/// What came.
struct Ready {
    ended: bool,
    watch: bool,
}

fn wait(init: &OwnedFd, watch: Option<&dyn Watch>, until: Instant) -> io::Result<Ready> {
    let mut polled = vec![PollFd::new(init, PollFlags::IN)];
    let descriptor = watch.map(|watch| watch.descriptor());
    if let (Some(descriptor), Some(watch)) = (&descriptor, watch) {
        let flags = match watch.is_priority() {
            true => PollFlags::PRI,
            false => PollFlags::IN,
        };
        polled.push(PollFd::new(descriptor, flags));
    }
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let is_ready = |polled: &PollFd<'_>| !polled.revents().is_empty();
    Ok(Ready {
        ended: polled.first().is_some_and(is_ready),
        watch: polled.get(1).is_some_and(is_ready),
    })
}

/// `5s`, `100ms`, `1m30s`, `1.5h`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() || text.is_empty() {
        let (number, after) = split_where(rest, |c| !c.is_ascii_digit() && c != '.');
        let (unit, after) = split_where(after, |c| c.is_ascii_digit() || c == '.');
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = after;
    }
    Some(total)
}

fn split_where(text: &str, end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(end).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, milliseconds) in [
            ("5s", 5000),
            ("100ms", 100),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for bad in ["", "5", "s", "5x", "-1s", "1s1", "9e99h"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
