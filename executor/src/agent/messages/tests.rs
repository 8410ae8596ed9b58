#![allow(clippy::unwrap_used)]
use serde_json::json;

use super::*;

/// Every kind of field at least once, in the form that the agent writes.
fn task() -> JsonValue {
    json!({
        "name": "web", "task_id": {"value": "web.1"}, "agent_id": {"value": "S0"},
        "resources": [
            {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1},
             "allocation_info": {"role": "*"}, "revocable": {}},
            {"name": "ports", "type": "RANGES",
             "ranges": {"range": [{"begin": 31000, "end": 18446744073709551615_u64}]}},
        ],
        "executor": {"type": "CUSTOM", "executor_id": {"value": "e"}, "command": {"shell": true, "value": "x"}},
        "container": {
            "type": "MESOS",
            "mesos": {"image": {"type": "DOCKER", "docker": {"name": "busybox"}, "cached": true}},
            "linux_info": {
                "bounding_capabilities": {"capabilities": ["NET_BIND_SERVICE", "KILL"]},
                "seccomp": {"unconfined": false}, "ipc_mode": "SHARE_PARENT",
            },
            "network_infos": [{"ip_addresses": [{"protocol": "IPv6"}]}],
            "rlimit_info": {"rlimits": [{"type": "RLMT_NOFILE", "hard": 10, "soft": 5}]},
            "tty_info": {},
            "volumes": [{"mode": "RO", "container_path": "/v",
                         "source": {"type": "SANDBOX_PATH", "sandbox_path": {"type": "SELF", "path": "p"}}}],
        },
        "health_check": {"type": "COMMAND", "delay_seconds": 15.0, "consecutive_failures": 3,
                         "command": {"shell": true, "value": "true"}},
        "kill_policy": {"grace_period": {"nanoseconds": 2500000000_i64}},
        "data": "AAEC", "labels": {"labels": [{"key": "k", "value": "v"}]},
        "limits": {"mem": {"value": 64.0}},
    })
}

#[test]
fn a_task_goes_through_both_encodings_unchanged() {
    let text = task().to_string();
    let (read, unknown) = read_json::<TaskInfo>(text.as_bytes()).unwrap();
    assert!(unknown.is_empty(), "{unknown:?}");
    let protobuf = ContentType::Protobuf.encode(&read);
    let decoded: TaskInfo = ContentType::Protobuf.decode(protobuf).unwrap();
    assert_eq!(decoded.write().unwrap(), task());
}

#[test]
fn names_are_those_of_the_schema() {
    let mut names: Vec<String> = Vec::new();
    names.extend(
        [
            Reason::ContainerLimitationMemory,
            Reason::TaskKilledDuringLaunch,
        ]
        .map(Named::name),
    );
    names.extend([
        TaskState::GoneByOperator.name(),
        EventType::LaunchGroup.name(),
        Source::Agent.name(),
    ]);
    names.extend([
        RlimitType::RlmtNofile.name(),
        SandboxPathType::Self_.name(),
        Protocol::Ipv4.name(),
    ]);
    assert_eq!(
        names,
        [
            "REASON_CONTAINER_LIMITATION_MEMORY",
            "REASON_TASK_KILLED_DURING_LAUNCH",
            "TASK_GONE_BY_OPERATOR",
            "LAUNCH_GROUP",
            "SOURCE_AGENT",
            "RLMT_NOFILE",
            "SELF",
            "IPv4",
        ]
    );
    assert_eq!(
        Capability::from_name("CHECKPOINT_RESTORE"),
        Some(Capability::CheckpointRestore)
    );
}

#[test]
fn numbers_may_come_in_strings_and_infinity_as_a_bare_word() {
    let resource = |value: &str| {
        let text = format!(
            r#"{{"name": "Infinity \" NaN", "type": "SCALAR", "scalar": {{"value": {value}}}}}"#
        );
        read_json::<Resource>(text.as_bytes()).unwrap().0
    };
    assert_eq!(resource("\"1.5\"").scalar.unwrap().value, 1.5);
    assert_eq!(resource("Infinity").scalar.unwrap().value, f64::INFINITY);
    assert_eq!(
        resource("\"Infinity\"").scalar.unwrap().value,
        f64::INFINITY
    );
    assert_eq!(resource("-Infinity").name, "Infinity \" NaN");
    let infinite = Resource::scalar("mem", f64::INFINITY).write().unwrap();
    assert_eq!(infinite["scalar"]["value"], "Infinity");
    let nanoseconds = read_json::<DurationInfo>(br#"{"nanoseconds": "9007199254740993"}"#)
        .unwrap()
        .0;
    assert_eq!(nanoseconds.nanoseconds, 9_007_199_254_740_993);
    assert!(read_json::<DurationInfo>(br#"{"nanoseconds": 1.5}"#).is_err());
}

#[test]
fn what_a_later_mesos_adds_is_no_error() {
    let event = json!({"type": "LEVITATE", "new_thing": 1, "error": null, "kill": {"task_id": {"value": "t"}}});
    let (event, unknown) = read_json::<Event>(event.to_string().as_bytes()).unwrap();
    assert_eq!(
        (event.r#type, event.kill.unwrap().task_id.value),
        (None, "t".to_owned())
    );
    assert_eq!(unknown, ["new_thing"]);

    let capabilities = json!({"capabilities": ["KILL", "TELEPORT"]}).to_string();
    let capabilities = read_json::<CapabilityInfo>(capabilities.as_bytes())
        .unwrap()
        .0;
    assert_eq!(capabilities.capabilities, [Capability::Kill as i32]);

    // Field 1 (type) is 99, field 100 is unknown.
    let event: Event = ContentType::Protobuf
        .decode(Bytes::from_static(&[8, 99, 0xa0, 6, 1]))
        .unwrap();
    assert_eq!(event.r#type, Some(99));
}

#[test]
fn errors_name_the_field() {
    let error = |text: &str| {
        read_json::<TaskInfo>(text.as_bytes())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(r#"{"name": "n", "task_id": {}}"#),
        "task_id.value is missing"
    );
    assert_eq!(
        error(r#"{"name": 3}"#),
        "name is 3, but a string is expected"
    );
    let resources = r#"{"name": "n", "task_id": {"value": "t"}, "agent_id": {"value": "a"},
                        "resources": [{"name": "cpus", "type": "SCALE"}]}"#;
    assert_eq!(
        error(resources),
        r#"resources.0.type is "SCALE", but a name of the schema is expected"#
    );
}

#[test]
fn defaults_of_the_schema_stand_behind_the_accessors() {
    assert!(CommandInfo::default().shell());
    assert_eq!(HealthCheck::default().interval_seconds(), 10.0);
    assert_eq!(HealthCheck::default().consecutive_failures(), 3);
    assert_eq!(DockerInfo::default().network(), DockerNetwork::Host);
    assert_eq!(Variable::default().r#type(), VariableType::Value);
}
