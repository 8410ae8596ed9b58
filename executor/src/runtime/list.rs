//! `list`: the containers of a root.

use std::os::unix::fs::MetadataExt;

use super::Failure;
use super::arguments::{Format, List};
use super::command_line::Globals;
use super::public_state::PublicState;
use super::store::{Entry, Error, Store};
use crate::report::chain;

/// The narrowest column of the table, and the space after each.
const NARROWEST: usize = 12;
const PADDING: usize = 3;

/// Runs the command.
pub(super) fn run(globals: &Globals, arguments: &List) -> Result<(), Failure> {
    let listed = match Store::open(&globals.root).list() {
        // Nothing was created yet.
        Err(Error::File { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound && !globals.root_is_chosen =>
        {
            Vec::new()
        }
        other => other?,
    };
    let mut states = Vec::new();
    for (name, entry) in listed {
        match entry.and_then(|entry| describe(&entry)) {
            Ok(state) => states.push(state),
            // One that cannot be understood does not hide the others.
            Err(error) => eprintln!("load container {name}: {}", chain(&error)),
        }
    }
    let text = match arguments {
        List { quiet: true, .. } => states
            .iter()
            .map(|state| format!("{}\n", state.id))
            .collect(),
        List {
            format: Format::Json,
            ..
        } => format!("{}\n", serde_json::to_string(&states)?),
        List {
            format: Format::Table,
            ..
        } => table(&states),
    };
    super::print(&text)
}

fn describe(entry: &Entry) -> Result<PublicState, Error> {
    let mut state = PublicState::now(entry)?;
    let status = std::fs::metadata(&entry.directory).map_err(|source| Error::File {
        action: "look at",
        path: entry.directory.clone(),
        source,
    })?;
    state.owner = user_name(status.uid()).unwrap_or_else(|| format!("#{}", status.uid()));
    Ok(state)
}

/// The name of a user of the host, from its passwd file alone: no library of the host is loaded.
fn user_name(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn table(states: &[PublicState]) -> String {
    let title = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = states.iter().map(|state| {
        [
            state.id.to_string(),
            state.pid.to_string(),
            state.status.clone(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(title).chain(rows).collect();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < row.len() {
                let longest = rows.iter().map(|row| row[column].chars().count()).max();
                let width = (longest.unwrap_or(0) + PADDING).max(NARROWEST);
                let space = width - cell.chars().count();
                text.extend(std::iter::repeat_n(' ', space));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_has_a_title() {
        assert_eq!(
            table(&[]),
            "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
        );
    }

    #[test]
    fn users_have_names() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_name(u32::MAX - 7), None);
    }
}
