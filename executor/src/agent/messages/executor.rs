//! `executor.proto`: what goes over the wire between agent and executor.

use bytes::Bytes;

use super::*;

messages! {
    /// From the agent.
    message Event {
        r#type: Option<i32> = [enumeration = "EventType", optional, tag = "1"] as EventType;
        subscribed: Option<Subscribed> = [message, optional, tag = "2"];
        acknowledged: Option<Acknowledged> = [message, optional, tag = "3"];
        launch: Option<Launch> = [message, optional, tag = "4"];
        launch_group: Option<LaunchGroup> = [message, optional, tag = "8"];
        kill: Option<Kill> = [message, optional, tag = "5"];
        message: Option<EventMessage> = [message, optional, tag = "6"];
        error: Option<EventError> = [message, optional, tag = "7"];
    }

    /// The agent knows the executor now.
    message Subscribed {
        executor_info: ExecutorInfo = [message, required, tag = "1"];
        framework_info: FrameworkInfo = [message, required, tag = "2"];
        agent_info: AgentInfo = [message, required, tag = "3"];
        container_id: Option<ContainerId> = [message, optional, tag = "4"];
    }

    /// Run a task.
    message Launch { task: TaskInfo = [message, required, tag = "1"]; }

    /// Run several tasks, all or none.
    message LaunchGroup { task_group: TaskGroupInfo = [message, required, tag = "1"]; }

    /// End a task.
    message Kill {
        task_id: TaskId = [message, required, tag = "1"];
        kill_policy: Option<KillPolicy> = [message, optional, tag = "2"];
    }

    /// The agent has taken charge of an update.
    message Acknowledged {
        task_id: TaskId = [message, required, tag = "1"];
        uuid: Bytes = [bytes = "bytes", required, tag = "2"];
    }

    /// Free-form, from the scheduler.
    message EventMessage { data: Bytes = [bytes = "bytes", required, tag = "1"]; }

    /// Something went wrong in the agent.
    message EventError { message: String = [string, required, tag = "1"]; }

    /// To the agent.
    message Call {
        executor_id: ExecutorId = [message, required, tag = "1"];
        framework_id: FrameworkId = [message, required, tag = "2"];
        r#type: Option<i32> = [enumeration = "CallType", optional, tag = "3"] as CallType;
        subscribe: Option<Subscribe> = [message, optional, tag = "4"];
        update: Option<Update> = [message, optional, tag = "5"];
        message: Option<CallMessage> = [message, optional, tag = "6"];
    }

    /// Asks for the events, and says what the agent may not know.
    message Subscribe {
        unacknowledged_tasks: Vec<TaskInfo> = [message, repeated, tag = "1"];
        unacknowledged_updates: Vec<Update> = [message, repeated, tag = "2"];
    }

    /// A new status of a task.
    message Update { status: TaskStatus = [message, required, tag = "1"]; }

    /// Free-form, to the scheduler. Its number is 2 in the schema, not 1.
    message CallMessage { data: Bytes = [bytes = "bytes", required, tag = "2"]; }
}

enums! {
    /// Kinds of `Event`.
    enum EventType "" {
        Unknown = 0,
        Subscribed = 1,
        Launch = 2,
        Kill = 3,
        Acknowledged = 4,
        Message = 5,
        Error = 6,
        Shutdown = 7,
        LaunchGroup = 8,
        Heartbeat = 9,
    }

    /// Kinds of `Call`.
    enum CallType "" {
        Unknown = 0,
        Subscribe = 1,
        Update = 2,
        Message = 3,
        Heartbeat = 4,
    }
}

impl Event {
    /// An event of this kind without contents.
    pub fn of(kind: EventType) -> Self {
        Event {
            r#type: Some(kind.into()),
            ..Default::default()
        }
    }
}
