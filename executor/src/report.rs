//! How an error is shown: its whole chain of causes in one line.

use std::error::Error;

/// `outer: cause: its cause`. A transparent wrapper adds nothing.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
