//! Whom a container runs as: numbers, from the image's passwd and group files or from the host's.
//!
//! Files are read and parsed, never asked through the C library, which would load the node's name services.

use serde_json::{Value, json};
use tepui_oci::rootfs::{self, Ids};
use tepui_oci::{Image, Store};

use super::Error;

/// A user that the host does not know.
#[derive(Debug, thiserror::Error)]
pub enum HostUserError {
    /// The name is not there.
    #[error("user {user:?} cannot be resolved on the host")]
    Unknown {
        /// As it was asked for.
        user: String,
        /// Why not.
        source: Box<tepui_oci::Error>,
    },
    /// A file could not be read.
    #[error("could not read {file}")]
    File {
        /// Which.
        file: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// Numbers of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
}

impl User {
    /// runtime-spec `process.user`.
    pub fn to_json(&self) -> Value {
        json!({"uid": self.uid, "gid": self.gid, "additionalGids": self.additional_gids, "umask": 0o022})
    }
}

impl From<Ids> for User {
    fn from(ids: Ids) -> Self {
        // The own group is among the supplementary ones too: else a setgid program could lose a group that denies
        // (CVE-2022-36109).
        let mut additional_gids = ids.additional_gids;
        if !additional_gids.contains(&ids.gid) {
            additional_gids.insert(0, ids.gid);
        }
        Self {
            uid: ids.uid,
            gid: ids.gid,
            additional_gids,
        }
    }
}

/// Resolves the user asked for, else the image's, else root.
pub fn resolve(asked: Option<&str>, store: &Store, image: Option<&Image>) -> Result<User, Error> {
    let Some(image) = image else {
        return Ok(on_host(asked.unwrap_or("0"))?);
    };
    let user = asked
        .or(image.config.user.as_deref())
        .filter(|user| !user.is_empty())
        .unwrap_or("0");
    let ids = rootfs::resolve_user(store, image, user).map_err(|source| Error::User {
        user: user.to_owned(),
        source: Box::new(source),
    })?;
    Ok(ids.into())
}

fn on_host(user: &str) -> Result<User, HostUserError> {
    let read = |file: &'static str| match std::fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(|source| HostUserError::File { file, source }),
    };
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    rootfs::resolve_user_in(&passwd, &group, user)
        .map(User::from)
        .map_err(|source| HostUserError::Unknown {
            user: user.to_owned(),
            source: Box::new(source),
        })
}
