//! The status of a task.

use bytes::Bytes;

use super::*;

messages! {
    /// What became of a task.
    message TaskStatus {
        task_id: TaskId = [message, required, tag = "1"];
        state: i32 = [enumeration = "TaskState", required, tag = "2"] as TaskState;
        message: Option<String> = [string, optional, tag = "4"];
        source: Option<i32> = [enumeration = "Source", optional, tag = "9"] as Source;
        reason: Option<i32> = [enumeration = "Reason", optional, tag = "10"] as Reason;
        data: Option<Bytes> = [bytes = "bytes", optional, tag = "3"];
        agent_id: Option<AgentId> = [message, optional, tag = "5"];
        executor_id: Option<ExecutorId> = [message, optional, tag = "7"];
        timestamp: Option<f64> = [double, optional, tag = "6"];
        uuid: Option<Bytes> = [bytes = "bytes", optional, tag = "11"];
        healthy: Option<bool> = [bool, optional, tag = "8"];
        check_status: Option<CheckStatusInfo> = [message, optional, tag = "15"];
        labels: Option<Labels> = [message, optional, tag = "12"];
        container_status: Option<ContainerStatus> = [message, optional, tag = "13"];
        unreachable_time: Option<TimeInfo> = [message, optional, tag = "14"];
        limitation: Option<TaskResourceLimitation> = [message, optional, tag = "16"];
    }

    /// Which limit ended a task.
    message TaskResourceLimitation { resources: Vec<Resource> = [message, repeated, tag = "1"]; }

    /// What is known of a container.
    message ContainerStatus {
        container_id: Option<ContainerId> = [message, optional, tag = "4"];
        network_infos: Vec<NetworkInfo> = [message, repeated, tag = "1"];
        cgroup_info: Option<CgroupInfo> = [message, optional, tag = "2"];
        executor_pid: Option<u32> = [uint32, optional, tag = "3"];
    }

    /// Cgroup handles.
    message CgroupInfo { net_cls: Option<NetCls> = [message, optional, tag = "1"]; }

    /// The handle of net_cls.
    message NetCls { classid: Option<u32> = [uint32, optional, tag = "1"]; }
}

enums! {
    /// The life of a task.
    enum TaskState "TASK_" {
        Starting = 0,
        Running = 1,
        Finished = 2,
        Failed = 3,
        Killed = 4,
        Lost = 5,
        Staging = 6,
        Error = 7,
        Killing = 8,
        Dropped = 9,
        Unreachable = 10,
        Gone = 11,
        GoneByOperator = 12,
        Unknown = 13,
    }

    /// Who says so.
    enum Source "SOURCE_" {
        Master = 0,
        Agent = 1,
        Executor = 2,
    }

    /// Why.
    enum Reason "REASON_" {
        CommandExecutorFailed = 0,
        ExecutorTerminated = 1,
        ExecutorUnregistered = 2,
        FrameworkRemoved = 3,
        GcError = 4,
        InvalidFrameworkid = 5,
        InvalidOffers = 6,
        MasterDisconnected = 7,
        ContainerLimitationMemory = 8,
        Reconciliation = 9,
        AgentDisconnected = 10,
        AgentRemoved = 11,
        AgentRestarted = 12,
        AgentUnknown = 13,
        TaskInvalid = 14,
        TaskUnauthorized = 15,
        TaskUnknown = 16,
        ContainerPreempted = 17,
        ResourcesUnknown = 18,
        ContainerLimitation = 19,
        ContainerLimitationDisk = 20,
        ContainerLaunchFailed = 21,
        ContainerUpdateFailed = 22,
        ExecutorRegistrationTimeout = 23,
        ExecutorReregistrationTimeout = 24,
        TaskGroupInvalid = 25,
        TaskGroupUnauthorized = 26,
        IoSwitchboardExited = 27,
        TaskCheckStatusUpdated = 28,
        TaskHealthCheckStatusUpdated = 29,
        TaskKilledDuringLaunch = 30,
        AgentRemovedByOperator = 31,
        AgentReregistered = 32,
        MaxCompletionTimeReached = 33,
        AgentDraining = 34,
    }
}

impl TaskState {
    /// Whether nothing may follow it.
    pub fn is_terminal(self) -> bool {
        use TaskState::*;
        matches!(
            self,
            Finished | Failed | Killed | Error | Lost | Dropped | Gone | GoneByOperator
        )
    }
}
