//! `filesystem/linux`: a mount namespace with a root file system of its own, mounts(7), pivot_root(2).
//!
//! Everything is mounted inside the container's new mount namespace, so the kernel takes it all back with the last
//! process. The one thing on the host is the writable layer of an overlay, whose path the declaration names.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;

use super::mounts::{self, Declared};
use super::{cgroup, compare, devices, look, writable};
use crate::cgroups::directory::Directory;
use crate::cgroups::hierarchy::Hierarchies;
use crate::declaration::{ContainerId, Declaration, RootFilesystem};
use crate::error::{Error, Result};
use crate::isolator::Isolator;
use crate::launch_info::{ContainerLaunchInfo, RootMount};
use crate::live::{Finding, Live, Target};
use crate::{namespaces, observe};

/// `filesystem/linux`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxFilesystem;

impl Isolator for LinuxFilesystem {
    fn name(&self) -> &'static str {
        "filesystem/linux"
    }

    fn prepare(&self, id: &ContainerId, declaration: &Declaration) -> Result<ContainerLaunchInfo> {
        let kind = LinuxNamespaceType::Mount;
        // A path is refused there; that it is listed does not matter, a container always has its own.
        namespaces::prepare(declaration, kind)?;
        check_propagation(declaration)?;
        warn_of_relative_targets(declaration);
        let declared = mounts::declared(declaration)?;
        let (device_nodes, device_links) = devices::in_place(declaration, &declared)?;
        let place = |controller: Option<&str>| own_cgroup(id, declaration, controller);
        let masked_paths = paths("linux.maskedPaths", masked(declaration))?;
        let readonly_paths = paths("linux.readonlyPaths", readonly(declaration))?;
        let mut mounts = Vec::new();
        for one in declared {
            match one {
                Declared::Mount(mount) => mounts.push(mount),
                Declared::Cgroups(cgroups) => mounts.extend(cgroup::mounts(
                    &cgroups,
                    Hierarchies::of_this_host()?.mounts(),
                    &place,
                )?),
            }
        }
        // Without a /dev of its own the container lives with the nodes of the tree.
        let no_devices = device_nodes.is_empty()
            && mounts
                .iter()
                .any(|mount| mount.target.as_c_str() == c"/dev");
        let propagation = mounts::root_propagation(declaration);
        let bind = |source: &Path| RootMount::Bind {
            source: source.to_owned(),
            attributes: match no_devices {
                true => libc::MOUNT_ATTR_NODEV,
                false => 0,
            },
            // What becomes shared in the end gets peers of its own.
            private: propagation & libc::MS_SLAVE == 0 && propagation != 0,
        };
        let rootfs = match &declaration.rootfs {
            RootFilesystem::Host => bind(Path::new("/")),
            RootFilesystem::Directory(directory) => bind(directory),
            // Nodes come from /dev alone: one in a layer, or made by the workload, is dead.
            RootFilesystem::Overlay(overlay) => RootMount::Overlay {
                overlay: overlay.clone(),
                flags: libc::MS_NODEV,
            },
        };
        // Last, when nothing can be refused any more.
        if let RootFilesystem::Overlay(overlay) = &declaration.rootfs {
            let topmost = overlay.lower.first().map(|name| overlay.layers.join(name));
            writable::make(&overlay.writable, topmost.as_deref())?;
        }
        Ok(ContainerLaunchInfo {
            namespaces: vec![kind],
            rootfs: Some(rootfs),
            mounts,
            device_nodes,
            device_links,
            root_propagation: match propagation & (libc::MS_SHARED | libc::MS_UNBINDABLE) {
                0 => 0,
                _ => propagation,
            },
            masked_paths,
            readonly_paths,
            readonly_root: readonly_root(declaration),
            ..Default::default()
        })
    }

    fn observe(&self, target: &Target, declaration: &Declaration, live: &mut Live) -> Result<()> {
        namespaces::observe(target, "mnt", live)?;
        let root = look::Root::of(target)?;
        live.root_is_observers = Some(root.is_ours()?);
        let table = observe::mounts(target)?;
        let declared = mounts::declared(declaration).unwrap_or_default();
        let targets = declared.iter().map(|one| one.target().to_string_lossy());
        for path in std::iter::once("/".into()).chain(targets) {
            let id = root.mount_at(&path)?;
            if let Some(info) = table.iter().find(|info| Some(info.id) == id) {
                // A symbolic link of the image may lead from the declared path to where the mount is.
                live.mounted.insert(path.into_owned(), info.mount.clone());
            }
        }
        let declared: Vec<_> = live.mounted.values().cloned().collect();
        for info in &table {
            let path = &info.mount.target;
            let is_below = declared.iter().any(|mount| mount.has_below(path));
            // The table also has mounts that others cover; what is found at the path is what the target meets.
            if is_below && root.mount_at(path)? == Some(info.id) {
                live.mounted.insert(path.clone(), info.mount.clone());
            }
        }
        live.mounts = table.into_iter().map(|info| info.mount).collect();
        for path in masked(declaration).iter().chain(readonly(declaration)) {
            // Left out, the finding says "not seen".
            if !look::depends_on_the_reader(path) {
                live.masks.insert(path.clone(), root.mask(path)?);
            }
        }
        Ok(())
    }

    fn compare(&self, declaration: &Declaration, live: &Live) -> Vec<Finding> {
        compare::findings(declaration, live)
    }

    fn cleanup(&self, _: &ContainerId, declaration: &Declaration) -> Result<()> {
        match &declaration.rootfs {
            RootFilesystem::Overlay(overlay) => writable::discard(&overlay.writable),
            RootFilesystem::Host | RootFilesystem::Directory(_) => Ok(()),
        }
    }
}

/// Paths to hide.
pub(super) fn masked(declaration: &Declaration) -> &[String] {
    let linux = declaration.spec.linux().as_ref();
    let paths = linux.and_then(|linux| linux.masked_paths().as_ref());
    paths.map_or(&[], Vec::as_slice)
}

/// Paths to protect.
pub(super) fn readonly(declaration: &Declaration) -> &[String] {
    let linux = declaration.spec.linux().as_ref();
    let paths = linux.and_then(|linux| linux.readonly_paths().as_ref());
    paths.map_or(&[], Vec::as_slice)
}

/// Whether `/` itself is to be read-only.
pub(super) fn readonly_root(declaration: &Declaration) -> bool {
    let root = declaration.spec.root().as_ref();
    root.is_some_and(|root| root.readonly() == Some(true))
}

/// The container's own directory for a v1 controller, or in the unified hierarchy.
fn own_cgroup(
    id: &ContainerId,
    declaration: &Declaration,
    controller: Option<&str>,
) -> Result<Option<PathBuf>> {
    let placement = &declaration.cgroups;
    let directory = match controller {
        Some(controller) => Directory::of(controller, id, placement)?,
        None => Directory::unified(id, placement)?,
    };
    Ok(directory.map(|directory| directory.path().to_owned()))
}

fn warn_of_relative_targets(declaration: &Declaration) {
    let mounts = declaration.spec.mounts().iter().flatten();
    for mount in mounts.filter(|mount| !mount.destination().is_absolute()) {
        let destination = mount.destination().display();
        tracing::warn!(%destination, "a mount destination is relative, taking it from /");
    }
}

fn paths(field: &'static str, paths: &[String]) -> Result<Vec<CString>> {
    let mut known = Vec::with_capacity(paths.len());
    for path in paths {
        let absolute = Path::new(path).is_absolute() && !path.contains('\0');
        let normal = mounts::normal(Path::new(path)).filter(|_| absolute);
        let normal = normal.ok_or_else(|| Error::Config {
            field,
            value: format!("{path:?}"),
            rule: "each has to be an absolute path below the root".to_owned(),
        })?;
        // Twice would be two mounts, one on the other.
        if !known.contains(&normal) {
            known.push(normal);
        }
    }
    Ok(known)
}

/// The root mount is never a peer of the host's, whatever it becomes: runtime-spec config-linux "rootfsPropagation".
fn check_propagation(declaration: &Declaration) -> Result<()> {
    let linux = declaration.spec.linux().as_ref();
    let propagation = linux.and_then(|linux| linux.rootfs_propagation().as_deref());
    let propagation = propagation.unwrap_or_default();
    if propagation.is_empty() || mounts::root_propagation(declaration) != 0 {
        return Ok(());
    }
    Err(Error::Config {
        field: "linux.rootfsPropagation",
        value: propagation.to_owned(),
        rule: "it is not supported: use private, slave, shared or unbindable, or one of these with an r in front"
            .to_owned(),
    })
}
