//! Commands, their environment, and how they are ended.

use bytes::Bytes;

use super::*;

messages! {
    /// A command.
    message CommandInfo {
        uris: Vec<Uri> = [message, repeated, tag = "1"];
        environment: Option<Environment> = [message, optional, tag = "2"];
        shell: Option<bool> = [bool, optional, tag = "6", default = "true"];
        value: Option<String> = [string, optional, tag = "3"];
        arguments: Vec<String> = [string, repeated, tag = "7"];
        user: Option<String> = [string, optional, tag = "5"];
    }

    /// Something to fetch into the sandbox before the command starts.
    message Uri {
        value: String = [string, required, tag = "1"];
        executable: Option<bool> = [bool, optional, tag = "2"];
        extract: Option<bool> = [bool, optional, tag = "3", default = "true"];
        cache: Option<bool> = [bool, optional, tag = "4"];
        output_file: Option<String> = [string, optional, tag = "5"];
    }

    /// Environment variables.
    message Environment { variables: Vec<Variable> = [message, repeated, tag = "1"]; }

    /// One of them.
    message Variable {
        name: String = [string, required, tag = "1"];
        r#type: Option<i32> = [enumeration = "VariableType", optional, tag = "3", default = "Value"] as VariableType;
        value: Option<String> = [string, optional, tag = "2"];
        secret: Option<Secret> = [message, optional, tag = "4"];
    }

    /// Something not to be shown.
    message Secret {
        r#type: Option<i32> = [enumeration = "SecretType", optional, tag = "1"] as SecretType;
        reference: Option<SecretReference> = [message, optional, tag = "2"];
        value: Option<SecretValue> = [message, optional, tag = "3"];
    }

    /// Where a secret is kept.
    message SecretReference {
        name: String = [string, required, tag = "1"];
        key: Option<String> = [string, optional, tag = "2"];
    }

    /// The secret itself.
    message SecretValue { data: Bytes = [bytes = "bytes", required, tag = "1"]; }

    /// A name and a secret.
    message Credential {
        principal: String = [string, required, tag = "1"];
        secret: Option<String> = [string, optional, tag = "2"];
    }

    /// Parameters for something outside of Mesos.
    message Parameters { parameter: Vec<Parameter> = [message, repeated, tag = "1"]; }

    /// One of them.
    message Parameter {
        key: String = [string, required, tag = "1"];
        value: String = [string, required, tag = "2"];
    }

    /// How a task wants to be ended.
    message KillPolicy { grace_period: Option<DurationInfo> = [message, optional, tag = "1"]; }
}

enums! {
    /// Whether a variable is secret.
    enum VariableType "" {
        Unknown = 0,
        Value = 1,
        Secret = 2,
    }

    /// Whether a secret is here or elsewhere.
    enum SecretType "" {
        Unknown = 0,
        Reference = 1,
        Value = 2,
    }
}
