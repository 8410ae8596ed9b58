//! `namespaces/net`: network devices, addresses and ports of a container's own, network_namespaces(7).
//!
//! A new namespace has a loopback device, which is set up, and nothing else; one that is joined stays as it is, and one
//! that is not listed is the host's.

use oci_spec::runtime::LinuxNamespaceType;

use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target};

/// `namespaces/net`.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetNamespace;

const KIND: LinuxNamespaceType = LinuxNamespaceType::Network;

impl Isolator for NetNamespace {
    fn name(&self) -> &'static str {
        "namespaces/net"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let info = super::prepare(declaration, KIND)?;
        Ok(ContainerLaunchInfo {
            loopback: !info.namespaces.is_empty(),
            ..info
        })
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        super::observe(target, "net", live)
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
