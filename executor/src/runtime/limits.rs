//! The options of `update` as `linux.resources`.

use serde_json::{Map, Value};

use super::Failure;
use super::arguments::Update;

/// A JSON object.
pub(super) type Object = Map<String, Value>;

/// What the command line asks for, as `linux.resources`.
pub(super) fn wanted(arguments: &Update) -> Result<Object, Failure> {
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
    use serde_json::json;

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
