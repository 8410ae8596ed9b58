//! The state of a container as others see it: `state` and `list` print it (runtime-spec runtime.md "State", with
//! the additions of other runtimes).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use tepui_isolators::ContainerId;

use super::store::{Entry, Result, Status};

/// One container, now.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicState {
    /// Version of the runtime-spec.
    pub oci_version: String,
    /// Its name.
    pub id: ContainerId,
    /// Its first process on the host; 0 when that has ended.
    pub pid: u32,
    /// What it is doing.
    pub status: String,
    /// The bundle.
    pub bundle: PathBuf,
    /// The root file system.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// Of the bundle.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Who owns its state directory; only `list` looks.
    pub owner: String,
}

impl PublicState {
    /// The container as it is now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn now(entry: &Entry) -> Result<Self> {
        let (state, status) = (&entry.state, entry.status()?);
        Ok(Self {
            oci_version: state.oci_version.clone(),
            id: state.identity.id.clone(),
            pid: match status {
                Status::Stopped => 0,
                _ => state.identity.pid,
            },
            status: status.to_string(),
            bundle: state.bundle.clone(),
            rootfs: state.rootfs.clone(),
            created: state.created.clone(),
            annotations: state.annotations.clone(),
            owner: String::new(),
        })
    }
}
