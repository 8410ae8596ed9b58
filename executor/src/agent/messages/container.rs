//! What kind of container a task wants.

use super::*;

messages! {
    /// A container.
    message ContainerInfo {
        r#type: i32 = [enumeration = "ContainerType", required, tag = "1"] as ContainerType;
        volumes: Vec<Volume> = [message, repeated, tag = "2"];
        hostname: Option<String> = [string, optional, tag = "4"];
        docker: Option<DockerInfo> = [message, optional, tag = "3"];
        mesos: Option<MesosInfo> = [message, optional, tag = "5"];
        network_infos: Vec<NetworkInfo> = [message, repeated, tag = "7"];
        linux_info: Option<LinuxInfo> = [message, optional, tag = "8"];
        rlimit_info: Option<RlimitInfo> = [message, optional, tag = "9"];
        tty_info: Option<TtyInfo> = [message, optional, tag = "10"];
    }

    /// As the docker containerizer wants it.
    message DockerInfo {
        image: String = [string, required, tag = "1"];
        network: Option<i32> = [enumeration = "DockerNetwork", optional, tag = "2", default = "Host"] as DockerNetwork;
        port_mappings: Vec<PortMapping> = [message, repeated, tag = "3"];
        privileged: Option<bool> = [bool, optional, tag = "4"];
        parameters: Vec<Parameter> = [message, repeated, tag = "5"];
        force_pull_image: Option<bool> = [bool, optional, tag = "6"];
        volume_driver: Option<String> = [string, optional, tag = "7"];
    }

    /// As the Mesos containerizer wants it.
    message MesosInfo { image: Option<Image> = [message, optional, tag = "1"]; }

    /// An image.
    message Image {
        r#type: i32 = [enumeration = "ImageType", required, tag = "1"] as ImageType;
        appc: Option<AppcImage> = [message, optional, tag = "2"];
        docker: Option<DockerImage> = [message, optional, tag = "3"];
        cached: Option<bool> = [bool, optional, tag = "4", default = "true"];
    }

    /// In App Container form.
    message AppcImage {
        name: String = [string, required, tag = "1"];
        id: Option<String> = [string, optional, tag = "2"];
        labels: Option<Labels> = [message, optional, tag = "3"];
    }

    /// In Docker or OCI form.
    message DockerImage {
        name: String = [string, required, tag = "1"];
        credential: Option<Credential> = [message, optional, tag = "2"];
        config: Option<Secret> = [message, optional, tag = "3"];
    }

    /// A network, and what the container has in it.
    message NetworkInfo {
        ip_addresses: Vec<IpAddress> = [message, repeated, tag = "5"];
        name: Option<String> = [string, optional, tag = "6"];
        groups: Vec<String> = [string, repeated, tag = "3"];
        labels: Option<Labels> = [message, optional, tag = "4"];
        port_mappings: Vec<PortMapping> = [message, repeated, tag = "7"];
    }

    /// An address.
    message IpAddress {
        protocol: Option<i32> = [enumeration = "Protocol", optional, tag = "1"] as Protocol;
        ip_address: Option<String> = [string, optional, tag = "2"];
    }

    /// From a port of the host to one of the container; those of docker and of networks are alike.
    message PortMapping {
        host_port: u32 = [uint32, required, tag = "1"];
        container_port: u32 = [uint32, required, tag = "2"];
        protocol: Option<String> = [string, optional, tag = "3"];
    }

    /// Capabilities and what else only Linux has.
    message LinuxInfo {
        capability_info: Option<CapabilityInfo> = [message, optional, tag = "1"];
        bounding_capabilities: Option<CapabilityInfo> = [message, optional, tag = "2"];
        effective_capabilities: Option<CapabilityInfo> = [message, optional, tag = "3"];
        share_pid_namespace: Option<bool> = [bool, optional, tag = "4"];
        seccomp: Option<SeccompInfo> = [message, optional, tag = "5"];
        ipc_mode: Option<i32> = [enumeration = "IpcMode", optional, tag = "6"] as IpcMode;
        shm_size: Option<u32> = [uint32, optional, tag = "7"];
        share_cgroups: Option<bool> = [bool, optional, tag = "8", default = "true"];
    }

    /// A set of capabilities.
    message CapabilityInfo {
        capabilities: Vec<i32> =
            [enumeration = "Capability", repeated, packed = "false", tag = "1"] as Capability;
    }

    /// The seccomp profile. Whether `unconfined` is there matters.
    message SeccompInfo {
        profile_name: Option<String> = [string, optional, tag = "1"];
        unconfined: Option<bool> = [bool, optional, tag = "2"];
    }

    /// Resource limits of processes.
    message RlimitInfo { rlimits: Vec<Rlimit> = [message, repeated, tag = "1"]; }

    /// One of them; without numbers it is unlimited.
    message Rlimit {
        r#type: Option<i32> = [enumeration = "RlimitType", optional, tag = "1"] as RlimitType;
        hard: Option<u64> = [uint64, optional, tag = "2"];
        soft: Option<u64> = [uint64, optional, tag = "3"];
    }

    /// Its presence asks for a terminal.
    message TtyInfo { window_size: Option<WindowSize> = [message, optional, tag = "1"]; }

    /// Of a terminal, in characters.
    message WindowSize {
        rows: u32 = [uint32, required, tag = "1"];
        columns: u32 = [uint32, required, tag = "2"];
    }
}

enums! {
    /// Whose words describe the container.
    enum ContainerType "" {
        Docker = 1,
        Mesos = 2,
    }

    /// Networks of docker.
    enum DockerNetwork "" {
        Host = 1,
        Bridge = 2,
        None = 3,
        User = 4,
    }

    /// Kinds of images.
    enum ImageType "" {
        Appc = 1,
        Docker = 2,
    }

    /// Versions of IP.
    enum Protocol "" {
        Ipv4 = 1 as "IPv4",
        Ipv6 = 2 as "IPv6",
    }

    /// Whose System V objects and queues the container sees.
    enum IpcMode "" {
        Unknown = 0,
        Private = 1,
        ShareParent = 2,
    }

    /// capabilities(7), numbered from 1000.
    enum Capability "" {
        Unknown = 0,
        Chown = 1000,
        DacOverride = 1001,
        DacReadSearch = 1002,
        Fowner = 1003,
        Fsetid = 1004,
        Kill = 1005,
        Setgid = 1006,
        Setuid = 1007,
        Setpcap = 1008,
        LinuxImmutable = 1009,
        NetBindService = 1010,
        NetBroadcast = 1011,
        NetAdmin = 1012,
        NetRaw = 1013,
        IpcLock = 1014,
        IpcOwner = 1015,
        SysModule = 1016,
        SysRawio = 1017,
        SysChroot = 1018,
        SysPtrace = 1019,
        SysPacct = 1020,
        SysAdmin = 1021,
        SysBoot = 1022,
        SysNice = 1023,
        SysResource = 1024,
        SysTime = 1025,
        SysTtyConfig = 1026,
        Mknod = 1027,
        Lease = 1028,
        AuditWrite = 1029,
        AuditControl = 1030,
        Setfcap = 1031,
        MacOverride = 1032,
        MacAdmin = 1033,
        Syslog = 1034,
        WakeAlarm = 1035,
        BlockSuspend = 1036,
        AuditRead = 1037,
        Perfmon = 1038,
        Bpf = 1039,
        CheckpointRestore = 1040,
    }

    /// getrlimit(2).
    enum RlimitType "" {
        Unknown = 0,
        RlmtAs = 1,
        RlmtCore = 2,
        RlmtCpu = 3,
        RlmtData = 4,
        RlmtFsize = 5,
        RlmtLocks = 6,
        RlmtMemlock = 7,
        RlmtMsgqueue = 8,
        RlmtNice = 9,
        RlmtNofile = 10,
        RlmtNproc = 11,
        RlmtRss = 12,
        RlmtRtprio = 13,
        RlmtRttime = 14,
        RlmtSigpending = 15,
        RlmtStack = 16,
    }
}
