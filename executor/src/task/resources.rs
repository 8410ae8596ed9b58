//! The resources of a task in the kernel's units.

use super::invalid;
use crate::agent::messages::TaskInfo;
use crate::core::TaskProblem;

/// Bytes of a Mesos "MB".
const MIB: i64 = 1 << 20;

/// The least memory limit that Mesos sets.
const LEAST_MEMORY: i64 = 32 * MIB;

/// What a task may use.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Resources {
    /// CPUs that it is weighed by.
    pub cpu_request: Option<f64>,
    /// CPUs that it may use at most; none is no limit.
    pub cpu_limit: Option<f64>,
    /// Soft memory limit in bytes.
    pub memory_request: Option<i64>,
    /// Hard memory limit in bytes; none is no limit.
    pub memory_limit: Option<i64>,
}

/// Sums entries of one name (several roles, reservations), and lets `limits` replace the sum as the hard limit.
///
/// # Errors
/// For amounts that are no numbers, or below zero.
pub fn read(task: &TaskInfo) -> Result<Resources, TaskProblem> {
    let amounts = task
        .resources
        .iter()
        .filter_map(|resource| Some((&resource.name, resource.scalar.as_ref()?.value)));
    let limits = task
        .limits
        .iter()
        .map(|(name, scalar)| (name, scalar.value));
    if let Some((name, value)) = amounts
        .chain(limits)
        .find(|(_, value)| value.is_nan() || *value < 0.0)
    {
        return Err(invalid(
            &format!("resources[{name}]"),
            &format!("{value} is not an amount"),
        ));
    }
    let sum = |name: &str| {
        let entries = task
            .resources
            .iter()
            .filter(|resource| resource.name == name);
        entries
            .filter_map(|resource| resource.scalar.as_ref().map(|scalar| scalar.value))
            .reduce(|a, b| a + b)
    };
    let limit = |name: &str| task.limits.get(name).map(|scalar| scalar.value);
    let (cpu_request, memory_request) = (sum("cpus"), sum("mem"));
    let finite = |value: f64| value.is_finite().then_some(value);
    // Whole MB, as Mesos takes them; never below its minimum.
    let bytes = |megabytes: f64| ((megabytes as i64).saturating_mul(MIB)).max(LEAST_MEMORY);
    Ok(Resources {
        cpu_request,
        cpu_limit: limit("cpus").or(cpu_request).and_then(finite),
        memory_request: memory_request.map(bytes),
        memory_limit: limit("mem").or(memory_request).and_then(finite).map(bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::messages::{Resource, Scalar};

    fn task(resources: &[(&str, f64)], limits: &[(&str, f64)]) -> TaskInfo {
        let resource = |(name, value): &(&str, f64)| Resource {
            name: (*name).into(),
            scalar: Some(Scalar { value: *value }),
            ..Resource::default()
        };
        TaskInfo {
            resources: resources.iter().map(resource).collect(),
            limits: limits
                .iter()
                .map(|(name, value)| ((*name).into(), Scalar { value: *value }))
                .collect(),
            ..TaskInfo::default()
        }
    }

    #[test]
    fn entries_add_up_and_limits_replace_the_sum() {
        let read = |resources, limits| super::read(&task(resources, limits)).expect("amounts");
        let two_roles = read(&[("cpus", 0.5), ("mem", 64.9), ("cpus", 0.25)], &[]);
        assert_eq!(two_roles.cpu_request, Some(0.75));
        assert_eq!(two_roles.cpu_limit, Some(0.75));
        assert_eq!(two_roles.memory_limit, Some(64 * MIB));
        let limited = read(
            &[("cpus", 1.0), ("mem", 64.0)],
            &[("cpus", 2.0), ("mem", f64::INFINITY)],
        );
        assert_eq!((limited.cpu_limit, limited.memory_limit), (Some(2.0), None));
        assert_eq!(limited.memory_request, Some(64 * MIB));
        assert_eq!(read(&[("mem", 1.0)], &[]).memory_limit, Some(LEAST_MEMORY));
        assert_eq!(read(&[], &[]), Resources::default());
        for bad in [f64::NAN, -1.0] {
            assert!(super::read(&task(&[("mem", bad)], &[])).is_err());
            assert!(super::read(&task(&[], &[("cpus", bad)])).is_err());
        }
    }
}
