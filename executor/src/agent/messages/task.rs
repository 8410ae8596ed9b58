//! Tasks, and who is around them: executor, framework, agent.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;

messages! {
    /// What to run.
    message TaskInfo {
        name: String = [string, required, tag = "1"];
        task_id: TaskId = [message, required, tag = "2"];
        agent_id: AgentId = [message, required, tag = "3"];
        resources: Vec<Resource> = [message, repeated, tag = "4"];
        executor: Option<ExecutorInfo> = [message, optional, tag = "5"];
        command: Option<CommandInfo> = [message, optional, tag = "7"];
        container: Option<ContainerInfo> = [message, optional, tag = "9"];
        health_check: Option<HealthCheck> = [message, optional, tag = "8"];
        check: Option<CheckInfo> = [message, optional, tag = "13"];
        kill_policy: Option<KillPolicy> = [message, optional, tag = "12"];
        data: Option<Bytes> = [bytes = "bytes", optional, tag = "6"];
        labels: Option<Labels> = [message, optional, tag = "10"];
        discovery: Option<DiscoveryInfo> = [message, optional, tag = "11"];
        max_completion_time: Option<DurationInfo> = [message, optional, tag = "14"];
        limits: BTreeMap<String, Scalar> = [btree_map = "string, message", tag = "15"];
    }

    /// Tasks that start and fail together.
    message TaskGroupInfo { tasks: Vec<TaskInfo> = [message, repeated, tag = "1"]; }

    /// Who runs tasks: us.
    message ExecutorInfo {
        r#type: Option<i32> = [enumeration = "ExecutorType", optional, tag = "15"] as ExecutorType;
        executor_id: ExecutorId = [message, required, tag = "1"];
        framework_id: Option<FrameworkId> = [message, optional, tag = "8"];
        command: Option<CommandInfo> = [message, optional, tag = "7"];
        container: Option<ContainerInfo> = [message, optional, tag = "11"];
        resources: Vec<Resource> = [message, repeated, tag = "5"];
        name: Option<String> = [string, optional, tag = "9"];
        source: Option<String> = [string, optional, tag = "10"];
        data: Option<Bytes> = [bytes = "bytes", optional, tag = "4"];
        discovery: Option<DiscoveryInfo> = [message, optional, tag = "12"];
        shutdown_grace_period: Option<DurationInfo> = [message, optional, tag = "13"];
        labels: Option<Labels> = [message, optional, tag = "14"];
    }

    /// Who wants tasks to run.
    message FrameworkInfo {
        user: String = [string, required, tag = "1"];
        name: String = [string, required, tag = "2"];
        id: Option<FrameworkId> = [message, optional, tag = "3"];
        failover_timeout: Option<f64> = [double, optional, tag = "4"];
        checkpoint: Option<bool> = [bool, optional, tag = "5"];
        role: Option<String> = [string, optional, tag = "6", default = "*"];
        roles: Vec<String> = [string, repeated, tag = "12"];
        hostname: Option<String> = [string, optional, tag = "7"];
        principal: Option<String> = [string, optional, tag = "8"];
        webui_url: Option<String> = [string, optional, tag = "9"];
        capabilities: Vec<FrameworkCapability> = [message, repeated, tag = "10"];
        labels: Option<Labels> = [message, optional, tag = "11"];
        offer_filters: BTreeMap<String, OfferFilters> = [btree_map = "string, message", tag = "13"];
    }

    /// Something that a framework can.
    message FrameworkCapability {
        r#type: Option<i32> =
            [enumeration = "FrameworkCapabilityType", optional, tag = "1"] as FrameworkCapabilityType;
    }

    /// Which offers a framework wants.
    message OfferFilters {
        min_allocatable_resources: Option<MinAllocatableResources> = [message, optional, tag = "1"];
    }

    /// Offers smaller than all of these are not wanted.
    message MinAllocatableResources {
        quantities: Vec<ResourceQuantities> = [message, repeated, tag = "1"];
    }

    /// Amounts by resource name.
    message ResourceQuantities {
        quantities: BTreeMap<String, Scalar> = [btree_map = "string, message", tag = "1"];
    }

    /// The node.
    message AgentInfo {
        hostname: String = [string, required, tag = "1"];
        port: Option<i32> = [int32, optional, tag = "8", default = "5051"];
        resources: Vec<Resource> = [message, repeated, tag = "3"];
        attributes: Vec<Attribute> = [message, repeated, tag = "5"];
        id: Option<AgentId> = [message, optional, tag = "6"];
        domain: Option<DomainInfo> = [message, optional, tag = "10"];
    }

    /// Where a node is.
    message DomainInfo { fault_domain: Option<FaultDomain> = [message, optional, tag = "1"]; }

    /// What fails together.
    message FaultDomain {
        region: RegionInfo = [message, required, tag = "1"];
        zone: ZoneInfo = [message, required, tag = "2"];
    }

    /// Large fault domain.
    message RegionInfo { name: String = [string, required, tag = "1"]; }

    /// Small fault domain.
    message ZoneInfo { name: String = [string, required, tag = "1"]; }

    /// How others find a task.
    message DiscoveryInfo {
        visibility: i32 = [enumeration = "Visibility", required, tag = "1"] as Visibility;
        name: Option<String> = [string, optional, tag = "2"];
        environment: Option<String> = [string, optional, tag = "3"];
        location: Option<String> = [string, optional, tag = "4"];
        version: Option<String> = [string, optional, tag = "5"];
        ports: Option<Ports> = [message, optional, tag = "6"];
        labels: Option<Labels> = [message, optional, tag = "7"];
    }

    /// Ports for discovery.
    message Ports { ports: Vec<Port> = [message, repeated, tag = "1"]; }

    /// One of them.
    message Port {
        number: u32 = [uint32, required, tag = "1"];
        name: Option<String> = [string, optional, tag = "2"];
        protocol: Option<String> = [string, optional, tag = "3"];
        visibility: Option<i32> = [enumeration = "Visibility", optional, tag = "4"] as Visibility;
        labels: Option<Labels> = [message, optional, tag = "5"];
    }
}

enums! {
    /// Who made the executor.
    enum ExecutorType "" {
        Unknown = 0,
        Default = 1,
        Custom = 2,
    }

    /// What frameworks can.
    enum FrameworkCapabilityType "" {
        Unknown = 0,
        RevocableResources = 1,
        TaskKillingState = 2,
        GpuResources = 3,
        SharedResources = 4,
        PartitionAware = 5,
        MultiRole = 6,
        ReservationRefinement = 7,
        RegionAware = 8,
    }

    /// Who may discover.
    enum Visibility "" {
        Framework = 0,
        Cluster = 1,
        External = 2,
    }
}

impl FrameworkInfo {
    /// Whether the framework can do this.
    pub fn is_capable(&self, of: FrameworkCapabilityType) -> bool {
        self.capabilities
            .iter()
            .any(|capability| capability.r#type == Some(of.into()))
    }
}
