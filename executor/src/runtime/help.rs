//! What the command line says of itself: help in the form that callers of OCI runtimes look for.

/// Name, arguments and purpose of every command.
pub(super) const COMMANDS: [(&str, &str, &str); 17] = [
    ("checkpoint", "<container-id>", "not supported"),
    ("create", "<container-id>", "create a container"),
    (
        "delete",
        "<container-id>",
        "release everything a container holds",
    ),
    (
        "events",
        "<container-id>",
        "print statistics and out-of-memory events",
    ),
    (
        "exec",
        "<container-id> <command> [arguments]",
        "run another process in a container",
    ),
    ("features", "", "print what this runtime can do, as JSON"),
    (
        "kill",
        "<container-id> [signal]",
        "send a signal (default: SIGTERM) to a container's first process",
    ),
    ("list", "", "list the containers of this root"),
    (
        "pause",
        "<container-id>",
        "stop all processes of a container",
    ),
    (
        "ps",
        "<container-id> [options of ps]",
        "list the processes of a container",
    ),
    ("restore", "<container-id>", "not supported"),
    (
        "resume",
        "<container-id>",
        "let all processes of a paused container go on",
    ),
    ("run", "<container-id>", "create a container and start it"),
    ("spec", "", "write an example config.json"),
    (
        "start",
        "<container-id>",
        "run the program of a created container",
    ),
    (
        "state",
        "<container-id>",
        "print the state of a container, as JSON",
    ),
    (
        "update",
        "<container-id>",
        "change the limits of a container",
    ),
];

/// Help in the form that callers of OCI runtimes know.
pub(super) fn dress(command: clap::Command, name: &str, about: &str, usage: &str) -> clap::Command {
    let template = format!(
        "NAME:\n   {name} - {about}\n\nUSAGE:\n   {name} {usage}\n\nOPTIONS:\n{{options}}{{after-help}}\n"
    );
    command
        .help_template(template)
        .override_usage(format!("{name} {usage}"))
}

/// All commands, for the help of the program.
pub(super) fn command_list() -> String {
    let mut text = "COMMANDS:\n".to_owned();
    for (name, _, about) in COMMANDS {
        text.push_str(&format!("   {name:<12} {about}\n"));
    }
    text
}

/// What `--version` prints; callers look for the words before the colons.
pub(super) fn version(program: &str) -> String {
    format!(
        "{program} version {}\ncommit: {}\nspec: {}\n",
        env!("CARGO_PKG_VERSION"),
        option_env!("TEPUI_COMMIT").unwrap_or("unknown"),
        super::features::SPEC_VERSION,
    )
}
