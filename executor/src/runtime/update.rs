//! `update`: changes the limits of a container, and writes them down.

use serde_json::{Map, Value, json};
use tepui_isolators::{Declaration, registry};

use super::Failure;
use super::arguments::Update;
use super::command_line::Globals;
use super::store::Status;

/// Runs the command.
pub(super) fn run(globals: &Globals, arguments: &Update) -> Result<(), Failure> {
    let entry = super::load(globals, &arguments.id)?;
    let wanted = wanted(arguments)?;
    let _lock = entry.lock()?;
    if entry.status()? == Status::Stopped {
        return Err(format!("container not running: {}", entry.id()).into());
    }
    let before = entry.declaration()?;
    let Changes { kept, written } = changes(&resources(&before)?, wanted);
    let isolators = registry::all();
    if let Err(error) = registry::update(&isolators, entry.id(), &with(&before, written)?) {
        // Some may be changed already: what was declared before holds again.
        let old = without_devices(resources(&before)?);
        if let Err(left) = registry::update(&isolators, entry.id(), &with(&before, old)?) {
            super::log::warning(format_args!(
                "the limits of before could not be restored: {}",
                crate::report::chain(&left)
            ));
        }
        return Err(error.into());
    }
    Ok(entry.set_declaration(&with(&before, kept)?)?)
}

type Object = Map<String, Value>;

/// `linux.resources` of a declaration.
fn resources(declaration: &Declaration) -> serde_json::Result<Object> {
    let linux = declaration.spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    match serde_json::to_value(resources)? {
        Value::Object(resources) => Ok(resources),
        _ => Ok(Object::new()),
    }
}

/// The same declaration with other resources.
fn with(declaration: &Declaration, resources: Object) -> Result<Declaration, Failure> {
    let mut declaration = declaration.clone();
    let resources = serde_json::from_value(Value::Object(resources))
        .map_err(|error| format!("these resources cannot be understood: {error}"))?;
    let mut linux = declaration.spec.linux().clone().unwrap_or_default();
    linux.set_resources(Some(resources));
    declaration.spec.set_linux(Some(linux));
    Ok(declaration)
}

/// The rules of devices stay as they are: a caller may have added its own to the kernel's.
fn without_devices(mut resources: Object) -> Object {
    resources.remove("devices");
    resources
}

/// What an update amounts to.
struct Changes {
    /// The resources from now on, for the next update too.
    kept: Object,
    /// What is to be written now: what is wanted, and what the kernel takes only together with it.
    written: Object,
}

fn changes(before: &Object, mut wanted: Object) -> Changes {
    wanted.remove("devices");
    let set =
        |of: &Object, key: &str, name: &str| of.get(key).and_then(|all| all.get(name)).cloned();
    if let Some(memory) = wanted.get_mut("memory").and_then(Value::as_object_mut) {
        // A runtime that was not asked to look first shall not.
        memory.entry("checkBeforeUpdate").or_insert(false.into());
        // No limit of the memory means none of memory and swap together.
        let is_unlimited = memory.get("limit") == Some(&json!(-1));
        if is_unlimited && !memory.contains_key("swap") && set(before, "memory", "swap").is_some() {
            memory.insert("swap".into(), json!(-1));
        }
    }
    let mut kept = before.clone();
    merge(&mut kept, &wanted);
    let mut written = wanted.clone();
    if let (Some(memory), true) = (kept.get("memory"), wanted.contains_key("memory")) {
        // They are checked against each other.
        written.insert("memory".into(), memory.clone());
    }
    if set(&wanted, "cpu", "idle").is_some() && set(&wanted, "cpu", "shares").is_none() {
        // An idle cgroup takes no weight, now and later.
        if let Some(cpu) = kept.get_mut("cpu").and_then(Value::as_object_mut) {
            cpu.remove("shares");
        }
    }
    let names_either = ["quota", "period"]
        .iter()
        .any(|name| set(&wanted, "cpu", name).is_some());
    if let (true, Some(cpu)) = (
        names_either,
        written.get_mut("cpu").and_then(Value::as_object_mut),
    ) {
        // One file on cgroup v2.
        for name in ["quota", "period"] {
            if let Some(value) = set(&kept, "cpu", name) {
                cpu.insert(name.into(), value);
            }
        }
    }
    Changes { kept, written }
}

/// Objects key by key; lists by the device that an element is for; else the new value.
fn merge(old: &mut Object, new: &Object) {
    for (key, value) in new {
        match (old.get_mut(key), value) {
            (_, Value::Null) => {}
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => merge_lists(old, new),
            _ => {
                old.insert(key.clone(), value.clone());
            }
        }
    }
}

fn merge_lists(old: &mut Vec<Value>, new: &[Value]) {
    let names = |value: &Value| ["major", "minor", "pageSize"].map(|name| value.get(name).cloned());
    for value in new {
        match old.iter_mut().find(|known| names(known) == names(value)) {
            Some(Value::Object(known)) => {
                if let Value::Object(value) = value {
                    merge(known, value);
                }
            }
            _ => old.push(value.clone()),
        }
    }
}

/// What the command line asks for, as `linux.resources`.
fn wanted(arguments: &Update) -> Result<Object, Failure> {
    if arguments.l3_cache_schema.is_some() || arguments.mem_bw_schema.is_some() {
        return Err(
            "Intel RDT is not supported: leave out --l3-cache-schema and --mem-bw-schema".into(),
        );
    }
    if let Some(path) = arguments
        .resources
        .as_ref()
        .filter(|path| !path.as_os_str().is_empty())
    {
        let text = match path.to_str() {
            Some("-") => std::io::read_to_string(std::io::stdin()),
            _ => std::fs::read_to_string(path),
        };
        let text = text.map_err(|error| format!("could not read {}: {error}", path.display()))?;
        return serde_json::from_str(&text)
            .map_err(|error| format!("could not understand {}: {error}", path.display()).into());
    }
    let mut wanted = Object::new();
    let mut set = |group: &str, name: &str, value: Value| {
        let group = wanted
            .entry(group)
            .or_insert_with(|| Value::Object(Object::new()));
        if let Value::Object(group) = group {
            group.insert(name.to_owned(), value);
        }
    };
    if let Some(weight) = arguments.blkio_weight.filter(|weight| *weight != 0) {
        set("blockIO", "weight", weight.into());
    }
    for (name, value) in [
        ("cpus", &arguments.cpuset_cpus),
        ("mems", &arguments.cpuset_mems),
    ] {
        if let Some(value) = given(value) {
            set("cpu", name, value.into());
        }
    }
    for (option, name, value) in [
        ("cpu-burst", "burst", &arguments.cpu_burst),
        ("cpu-period", "period", &arguments.cpu_period),
        ("cpu-rt-period", "realtimePeriod", &arguments.cpu_rt_period),
        ("cpu-share", "shares", &arguments.cpu_share),
    ] {
        if let Some(value) = given(value) {
            set("cpu", name, number::<u64>(option, value)?.into());
        }
    }
    for (option, name, value) in [
        ("cpu-idle", "idle", &arguments.cpu_idle),
        ("cpu-quota", "quota", &arguments.cpu_quota),
        (
            "cpu-rt-runtime",
            "realtimeRuntime",
            &arguments.cpu_rt_runtime,
        ),
    ] {
        if let Some(value) = given(value) {
            set("cpu", name, number::<i64>(option, value)?.into());
        }
    }
    for (option, name, value) in [
        ("memory", "limit", &arguments.memory),
        (
            "memory-reservation",
            "reservation",
            &arguments.memory_reservation,
        ),
        ("memory-swap", "swap", &arguments.memory_swap),
    ] {
        if let Some(value) = given(value) {
            set("memory", name, bytes(option, value)?.into());
        }
    }
    if let Some(limit) = arguments.pids_limit {
        set("pids", "limit", limit.into());
    }
    if given(&arguments.kernel_memory)
        .or(given(&arguments.kernel_memory_tcp))
        .is_some()
    {
        super::log::warning("Kernel memory settings are ignored and will be removed");
    }
    Ok(wanted)
}

fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|value| !value.is_empty())
}

fn number<T: std::str::FromStr>(option: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|_| {
        format!("invalid value for {option}: {text:?} is not a number in its range").into()
    })
}

/// A number of bytes: `1048576`, `512k`, `1.5GiB`; -1 is no limit.
fn bytes(option: &str, text: &str) -> Result<i64, Failure> {
    if text == "-1" {
        return Ok(-1);
    }
    let invalid =
        || format!("invalid value for {option}: {text:?} is not a size, as 512m or 1.5GiB");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = text[digits.len()..].trim_start().to_ascii_lowercase();
    let shift = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit)
    {
        "" if unit != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(invalid().into()),
    };
    // Whole numbers exactly, whatever their size.
    let whole = digits.parse::<i64>().ok();
    let size = match whole {
        Some(number) => number.checked_mul(1 << shift),
        None => digits.parse::<f64>().ok().and_then(|number| {
            let size = number * (1i64 << shift) as f64;
            (size < i64::MAX as f64).then_some(size as i64)
        }),
    };
    size.filter(|size| *size >= 0)
        .ok_or_else(|| invalid().into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn sizes_are_read_as_other_runtimes_read_them() {
        for (text, expected) in [
            ("67108864", 67_108_864),
            ("50M", 50 << 20),
            ("1kb", 1024),
            ("1.5GiB", 3 << 29),
            ("2 g", 2 << 30),
            ("10b", 10),
            ("0", 0),
            ("-1", -1),
        ] {
            assert_eq!(bytes("memory", text).unwrap(), expected, "{text}");
        }
        for bad in [
            "",
            "m",
            "-2",
            "1x",
            "1ib",
            "1mm",
            "99999999999p",
            "1e400",
            "nan",
        ] {
            assert!(bytes("memory", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_named_stays_and_what_belongs_together_is_written_together() {
        let before = object(json!({
            "devices": [{ "allow": false }],
            "memory": { "limit": 100, "swap": 200 },
            "cpu": { "shares": 100, "quota": 5000, "period": 10000 },
            "pids": { "limit": 20 },
        }));
        let Changes { kept, written } =
            changes(&before, object(json!({ "cpu": { "period": 20000 } })));
        assert_eq!(
            Value::Object(written),
            json!({ "cpu": { "quota": 5000, "period": 20000 } })
        );
        assert_eq!(
            kept["cpu"],
            json!({ "shares": 100, "quota": 5000, "period": 20000 })
        );
        assert_eq!(kept["pids"], before["pids"]);
        assert_eq!(kept["devices"], before["devices"]);

        let Changes { kept, written } =
            changes(&before, object(json!({ "memory": { "limit": -1 } })));
        assert_eq!(
            written["memory"],
            json!({ "limit": -1, "swap": -1, "checkBeforeUpdate": false })
        );
        assert_eq!(kept["memory"], written["memory"]);

        let Changes { kept, written } = changes(&before, object(json!({ "cpu": { "idle": 1 } })));
        assert_eq!(written["cpu"], json!({ "idle": 1 }));
        assert!(kept["cpu"].get("shares").is_none());
    }

    #[test]
    fn a_device_is_changed_in_its_place() {
        let list = |weight: u64| json!({ "blockIO": { "weightDevice": [{ "major": 8, "minor": 0, "weight": weight }] } });
        let Changes { kept, .. } = changes(&object(list(10)), object(list(20)));
        assert_eq!(Value::Object(kept), list(20));
    }

    #[test]
    fn the_command_line_becomes_resources() {
        let arguments = Update {
            memory: Some("50M".into()),
            cpu_quota: Some("-1".into()),
            cpu_share: Some("200".into()),
            pids_limit: Some(-1),
            ..Update::default()
        };
        let expected = json!({
            "memory": { "limit": 52_428_800 },
            "cpu": { "quota": -1, "shares": 200 },
            "pids": { "limit": -1 },
        });
        assert_eq!(Value::Object(wanted(&arguments).unwrap()), expected);
    }
}
