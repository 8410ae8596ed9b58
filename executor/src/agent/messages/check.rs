//! Checks and health checks of tasks, and their results.

use super::*;

messages! {
    /// A check that is only reported.
    message CheckInfo {
        r#type: Option<i32> = [enumeration = "CheckType", optional, tag = "1"] as CheckType;
        command: Option<CheckCommand> = [message, optional, tag = "2"];
        http: Option<CheckHttp> = [message, optional, tag = "3"];
        tcp: Option<CheckTcp> = [message, optional, tag = "7"];
        delay_seconds: Option<f64> = [double, optional, tag = "4", default = "15.0"];
        interval_seconds: Option<f64> = [double, optional, tag = "5", default = "10.0"];
        timeout_seconds: Option<f64> = [double, optional, tag = "6", default = "20.0"];
    }

    /// By a command in the container.
    message CheckCommand { command: CommandInfo = [message, required, tag = "1"]; }

    /// By a GET.
    message CheckHttp {
        port: u32 = [uint32, required, tag = "1"];
        path: Option<String> = [string, optional, tag = "2"];
    }

    /// By connecting.
    message CheckTcp { port: u32 = [uint32, required, tag = "1"]; }

    /// A check whose failure ends the task.
    message HealthCheck {
        delay_seconds: Option<f64> = [double, optional, tag = "2", default = "15.0"];
        interval_seconds: Option<f64> = [double, optional, tag = "3", default = "10.0"];
        timeout_seconds: Option<f64> = [double, optional, tag = "4", default = "20.0"];
        consecutive_failures: Option<u32> = [uint32, optional, tag = "5", default = "3"];
        grace_period_seconds: Option<f64> = [double, optional, tag = "6", default = "10.0"];
        r#type: Option<i32> = [enumeration = "CheckType", optional, tag = "8"] as CheckType;
        command: Option<CommandInfo> = [message, optional, tag = "7"];
        http: Option<HttpHealthCheck> = [message, optional, tag = "1"];
        tcp: Option<TcpHealthCheck> = [message, optional, tag = "9"];
    }

    /// By a GET.
    message HttpHealthCheck {
        protocol: Option<i32> = [enumeration = "Protocol", optional, tag = "5"] as Protocol;
        scheme: Option<String> = [string, optional, tag = "3"];
        port: u32 = [uint32, required, tag = "1"];
        path: Option<String> = [string, optional, tag = "2"];
        statuses: Vec<u32> = [uint32, repeated, packed = "false", tag = "4"];
    }

    /// By connecting.
    message TcpHealthCheck {
        protocol: Option<i32> = [enumeration = "Protocol", optional, tag = "2"] as Protocol;
        port: u32 = [uint32, required, tag = "1"];
    }

    /// The last result of a check: a sub-message that is there but empty is a check that has no result yet.
    message CheckStatusInfo {
        r#type: Option<i32> = [enumeration = "CheckType", optional, tag = "1"] as CheckType;
        command: Option<CheckStatusCommand> = [message, optional, tag = "2"];
        http: Option<CheckStatusHttp> = [message, optional, tag = "3"];
        tcp: Option<CheckStatusTcp> = [message, optional, tag = "4"];
    }

    /// Of a command.
    message CheckStatusCommand { exit_code: Option<i32> = [int32, optional, tag = "1"]; }

    /// Of a GET.
    message CheckStatusHttp { status_code: Option<u32> = [uint32, optional, tag = "1"]; }

    /// Of a connection.
    message CheckStatusTcp { succeeded: Option<bool> = [bool, optional, tag = "1"]; }
}

enums! {
    /// Ways to check.
    enum CheckType "" {
        Unknown = 0,
        Command = 1,
        Http = 2,
        Tcp = 3,
    }
}
