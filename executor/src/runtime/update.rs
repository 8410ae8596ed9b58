//! `update`: changes the limits of a container, and writes them down.

use serde_json::{Value, json};
use tepui_isolators::{Declaration, registry};

use super::Failure;
use super::arguments::Update;
use super::command_line::Globals;
use super::limits::{Object, wanted};
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
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
}
