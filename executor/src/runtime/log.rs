//! The log of the runtime: to standard error or to `--log`, as text or JSON, in the form that callers of OCI runtimes
//! parse (`level`, `msg`, `time`).
//!
//! Warnings of the libraries come through `tracing` and end here too.

use std::fmt::{self, Display, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::command_line::LogOptions;

/// Set once, before the command runs.
static LOG: OnceLock<Log> = OnceLock::new();

/// Where messages go and in which form.
#[derive(Debug)]
struct Log {
    file: Option<File>,
    json: bool,
    debug: bool,
}

#[derive(serde::Serialize)]
struct Line<'a> {
    level: &'a str,
    msg: &'a str,
    time: String,
}

impl Log {
    fn write(&self, level: &str, msg: &str) {
        let line = Line {
            level,
            msg,
            time: super::clock::now_seconds(),
        };
        let text = match self.json {
            true => serde_json::to_string(&line).unwrap_or_default(),
            false => format!("time={:?} level={level} msg={msg:?}", line.time),
        };
        // One write for each line, so that lines of several processes do not mix. Where even this fails there is nobody
        // left to tell.
        let _ = match &self.file {
            Some(file) => (&*file).write_all(format!("{text}\n").as_bytes()),
            None => io::stderr().write_all(format!("{text}\n").as_bytes()),
        };
    }
}

/// Opens the log.
///
/// # Errors
/// When the file cannot be opened.
pub fn start(options: &LogOptions) -> io::Result<()> {
    let open = |path| {
        let mut how = File::options();
        how.create(true).append(true).mode(0o644).open(path)
    };
    let file = options.file.as_ref().map(open).transpose()?;
    let log = Log {
        file,
        json: options.json,
        debug: options.debug,
    };
    // A second start keeps the first log.
    let _ = LOG.set(log);
    let _ = tracing::subscriber::set_global_default(Forward);
    Ok(())
}

/// Whether `--debug` was given: what is costly to say need not be said.
pub fn is_debug() -> bool {
    LOG.get().is_some_and(|log| log.debug)
}

/// Something that helps to find a fault.
pub fn debug(message: impl Display) {
    if let Some(log) = LOG.get().filter(|log| log.debug) {
        log.write("debug", &message.to_string());
    }
}

/// Something that somebody should look at.
pub fn warning(message: impl Display) {
    if let Some(log) = LOG.get() {
        log.write("warning", &message.to_string());
    }
}

/// Why the command failed: also to standard error, where the log is a file.
pub fn failure(message: &str) {
    match LOG.get() {
        Some(log) if log.file.is_none() => log.write("error", message),
        _ => failure_in_words(message, message),
    }
}

/// As [`failure`], in these words and no others on standard error.
pub fn failure_in_words(message: &str, words: &str) {
    if let Some(log) = LOG.get().filter(|log| log.file.is_some()) {
        log.write("error", message);
    }
    eprintln!("{words}");
}

/// Takes what the libraries say.
struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.most()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.most()))
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            _ => "debug",
        };
        if let Some(log) = LOG.get() {
            log.write(level, &format!("{}{}", text.message, text.fields));
        }
    }

    // Nothing here uses spans.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

impl Forward {
    fn most(&self) -> Level {
        match is_debug() {
            true => Level::DEBUG,
            false => Level::WARN,
        }
    }
}

/// An event as one line: the message, then `name=value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
