//! `ps`: the processes of a container, as ps(1) shows them.

use std::process::Command;

use tepui_isolators::cgroups::group::Group;

use super::Failure;
use super::arguments::{Format, Ps};
use super::command_line::Globals;

/// Runs the command.
pub(super) fn run(globals: &Globals, arguments: &Ps) -> Result<(), Failure> {
    let entry = super::load(globals, &arguments.id)?;
    let identity = &entry.state.identity;
    let pids = Group::of(&identity.id, &identity.cgroups)?.processes(true)?;
    if arguments.format == Format::Json {
        return super::print(&format!("{}\n", serde_json::to_string(&pids)?));
    }
    let options: &[String] = match arguments.options.is_empty() {
        true => &["-ef".to_owned()],
        false => &arguments.options,
    };
    let output = Command::new("ps")
        .args(options)
        .output()
        .map_err(|error| format!("could not run ps: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("ps failed ({}): {}", output.status, said.trim_end()).into());
    }
    super::print(&select(&String::from_utf8_lossy(&output.stdout), &pids)?)
}

/// The title and the lines of these processes.
fn select(table: &str, pids: &[u32]) -> Result<String, Failure> {
    let mut lines = table.lines();
    let title = lines.next().unwrap_or_default();
    let column = title.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or("couldn't find PID field in ps output")?;
    let mut selected = format!("{title}\n");
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let pid = line.split_whitespace().nth(column);
        let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
        let pid = pid.ok_or_else(|| format!("unable to parse the pid in {line:?}"))?;
        if pids.contains(&pid) {
            selected.push_str(line);
            selected.push('\n');
        }
    }
    Ok(selected)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_selected_by_the_column_named_pid() {
        let table = "UID   PID PPID CMD\nroot    1    0 init\nroot   12    1 sh -c 1\n\n";
        assert_eq!(
            select(table, &[12, 13]).unwrap(),
            "UID   PID PPID CMD\nroot   12    1 sh -c 1\n"
        );
        assert!(select("USER CMD\n", &[1]).is_err());
    }
}
