//! `namespaces/ipc`: System V IPC and POSIX message queues of a container's own, ipc_namespaces(7).
//!
//! `/dev/shm` and `/dev/mqueue` are ordinary mounts of the declaration and belong to `filesystem/linux`.

use oci_spec::runtime::LinuxNamespaceType;

use crate::declaration::{ContainerId, Declaration};
use crate::error::Result;
use crate::isolator::Isolator;
use crate::launch_info::ContainerLaunchInfo;
use crate::live::{Finding, Live, Target};

/// `namespaces/ipc`.
#[derive(Debug, Clone, Copy, Default)]
pub struct IpcNamespace;

const KIND: LinuxNamespaceType = LinuxNamespaceType::Ipc;

impl Isolator for IpcNamespace {
    fn name(&self) -> &'static str {
        "namespaces/ipc"
    }

    fn prepare(&self, _: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        super::prepare(declaration, KIND)
    }

    fn observe(&self, target: &Target, _: &Declaration, live: &mut Live) -> Result<()> {
        super::observe(target, "ipc", live)
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
