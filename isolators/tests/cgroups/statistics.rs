//! What a container has used, read back.

use tepui_isolators::cgroups::hierarchy::Version;
use tepui_isolators::cgroups::statistics::statistics;

use crate::container::Container;

#[test]
fn what_was_used_and_what_is_allowed_is_told() {
    requires_root!();
    let container = Container::prepare(
        r#"{"memory":{"limit":67108864,"swap":67108864},"pids":{"limit":17},"cpu":{"quota":20000,"period":100000}}"#,
    );
    // Some processor time, more than one period of it; some memory; two processes.
    let mut workload = container.start(
        "a=$(head -c 8388608 /dev/zero | tr '\\0' x); n=0; while [ $n -lt 200000 ]; do n=$((n+1)); done; \
         sleep 1000 & echo done; read end",
    );
    workload.write("go\n");
    assert_eq!(workload.line(), "done");
    let seen = statistics(&container.id, &container.declaration.cgroups).expect("statistics");
    let json = serde_json::to_value(&seen).expect("JSON");

    let v1 = container.directory("memory").version() == Version::V1;
    assert!(seen.cpu.usage.total > 10_000_000, "{json:#}");
    assert!(seen.cpu.usage.user > 0, "{json:#}");
    assert_eq!(seen.cpu.usage.percpu.is_empty(), !v1, "{json:#}");
    assert!(seen.cpu.throttling.throttled_periods > 0, "{json:#}");
    assert!(seen.cpu.throttling.throttled_time > 1_000_000, "{json:#}");
    assert_eq!(seen.memory.usage.limit, 67_108_864);
    assert!(seen.memory.usage.usage > 4 << 20, "{json:#}");
    assert!(
        seen.memory.usage.max >= seen.memory.usage.usage || !v1,
        "{json:#}"
    );
    assert_eq!(seen.memory.swap.limit, 67_108_864);
    assert!(!seen.memory.raw.is_empty());
    assert_eq!((seen.pids.current, seen.pids.limit), (2, 17));
    assert_eq!(json["network_interfaces"], serde_json::Value::Null);
    assert_eq!(json["intel_rdt"], serde_json::json!({}));
    if v1 {
        assert!(
            !seen.cpuset.cpus.is_empty() && !seen.cpuset.mems.is_empty(),
            "{json:#}"
        );
    }
}

#[test]
fn a_container_that_is_gone_has_used_nothing() {
    requires_root!();
    let container = Container::prepare("{}");
    container.cleanup().expect("cleanup");
    let seen = statistics(&container.id, &container.declaration.cgroups).expect("statistics");
    assert_eq!(seen, Default::default());
}
