//! `cgroups/perf_event`: a cgroup by which perf(1) can watch a container's processes alone.
//!
//! perf_event_open(2), PERF_FLAG_PID_CGROUP. v1 has a hierarchy of its own for it, without limits; on v2 every cgroup does.

use super::observation;
use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target};

const NAME: &str = "cgroups/perf_event";
const CONTROLLER: &str = "perf_event";

/// The isolator `cgroups/perf_event`.
#[derive(Debug, Clone, Copy, Default)]
pub struct PerfEventIsolator;

impl Isolator for PerfEventIsolator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let directory = super::create(NAME, CONTROLLER, id, declaration, false)?;
        Ok(super::join_all(&directory))
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        observation::locate_own(CONTROLLER, target, live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        let own = observation::own_cgroup(NAME, CONTROLLER, declaration, live);
        own.into_iter().collect()
    }

    fn cleanup(&self, id: &ContainerId, declaration: &Declaration) -> Result<()> {
        super::remove(CONTROLLER, id, declaration)
    }
}
