//! `namespaces/cgroup`: the container's own cgroups are the roots that it sees, cgroup_namespaces(7).
//!
//! It is made after the move into the container's cgroups, because its roots are the cgroups that its maker is in.

use oci_spec::runtime::LinuxNamespaceType;

use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target};

/// `namespaces/cgroup`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CgroupNamespace;

const KIND: LinuxNamespaceType = LinuxNamespaceType::Cgroup;

impl Isolator for CgroupNamespace {
    fn name(&self) -> &'static str {
        "namespaces/cgroup"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        super::prepare(declaration, KIND)
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        super::observe(target, "cgroup", live)
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        vec![super::compare_declared(
            self.name(),
            declaration,
            KIND,
            live,
        )]
    }
}
