//! Volumes of a container.

use std::collections::BTreeMap;

use super::*;

messages! {
    /// Something to mount, at a path of the container.
    message Volume {
        mode: i32 = [enumeration = "VolumeMode", required, tag = "3"] as VolumeMode;
        container_path: String = [string, required, tag = "1"];
        host_path: Option<String> = [string, optional, tag = "2"];
        image: Option<Image> = [message, optional, tag = "4"];
        source: Option<VolumeSource> = [message, optional, tag = "5"];
    }

    /// What is mounted.
    message VolumeSource {
        r#type: Option<i32> = [enumeration = "VolumeSourceType", optional, tag = "1"] as VolumeSourceType;
        docker_volume: Option<DockerVolume> = [message, optional, tag = "2"];
        host_path: Option<HostPath> = [message, optional, tag = "5"];
        sandbox_path: Option<SandboxPath> = [message, optional, tag = "3"];
        secret: Option<Secret> = [message, optional, tag = "4"];
        csi_volume: Option<CsiVolume> = [message, optional, tag = "6"];
    }

    /// A volume of docker's volume drivers.
    message DockerVolume {
        driver: Option<String> = [string, optional, tag = "1"];
        name: String = [string, required, tag = "2"];
        driver_options: Option<Parameters> = [message, optional, tag = "3"];
    }

    /// A path of the node.
    message HostPath {
        path: String = [string, required, tag = "1"];
        mount_propagation: Option<MountPropagation> = [message, optional, tag = "2"];
    }

    /// Which mounts pass through a volume.
    message MountPropagation {
        mode: Option<i32> = [enumeration = "MountPropagationMode", optional, tag = "1"] as MountPropagationMode;
    }

    /// A path of a sandbox.
    message SandboxPath {
        r#type: Option<i32> = [enumeration = "SandboxPathType", optional, tag = "1"] as SandboxPathType;
        path: String = [string, required, tag = "2"];
    }

    /// A volume of a CSI plugin.
    message CsiVolume {
        plugin_name: String = [string, required, tag = "1"];
        static_provisioning: Option<StaticProvisioning> = [message, optional, tag = "2"];
    }

    /// A CSI volume that is there already.
    message StaticProvisioning {
        volume_id: String = [string, required, tag = "1"];
        volume_capability: VolumeCapability = [message, required, tag = "2"];
        node_stage_secrets: BTreeMap<String, Secret> = [btree_map = "string, message", tag = "3"];
        node_publish_secrets: BTreeMap<String, Secret> = [btree_map = "string, message", tag = "4"];
        volume_context: BTreeMap<String, String> = [btree_map = "string, string", tag = "5"];
    }

    /// How a CSI volume is used. The schema allows one of `block` and `mount`.
    message VolumeCapability {
        block: Option<BlockVolume> = [message, optional, tag = "1"];
        mount: Option<MountVolume> = [message, optional, tag = "2"];
        access_mode: AccessMode = [message, required, tag = "3"];
    }

    /// As a device.
    message BlockVolume {}

    /// As a file system.
    message MountVolume {
        fs_type: Option<String> = [string, optional, tag = "1"];
        mount_flags: Vec<String> = [string, repeated, tag = "2"];
    }

    /// By how many.
    message AccessMode {
        mode: i32 = [enumeration = "AccessModeType", required, tag = "1"] as AccessModeType;
    }
}

enums! {
    /// Whether a volume may be written.
    enum VolumeMode "" {
        Rw = 1,
        Ro = 2,
    }

    /// Kinds of volumes.
    enum VolumeSourceType "" {
        Unknown = 0,
        DockerVolume = 1,
        SandboxPath = 2,
        Secret = 3,
        HostPath = 4,
        CsiVolume = 5,
    }

    /// Whose sandbox.
    enum SandboxPathType "" {
        Unknown = 0,
        Self_ = 1 as "SELF",
        Parent = 2,
    }

    /// Directions of mount propagation.
    enum MountPropagationMode "" {
        Unknown = 0,
        HostToContainer = 1,
        Bidirectional = 2,
    }

    /// Who may read and write a CSI volume.
    enum AccessModeType "" {
        Unknown = 0,
        SingleNodeWriter = 1,
        SingleNodeReaderOnly = 2,
        MultiNodeReaderOnly = 3,
        MultiNodeSingleWriter = 4,
        MultiNodeMultiWriter = 5,
    }
}
