#![allow(clippy::unwrap_used)]
use crate::agent::Environment;

pub fn environment() -> Environment {
    Environment {
        framework_id: "F".to_owned(),
        executor_id: "E".to_owned(),
        agent_id: "S".to_owned(),
        prefix: "slave(1)".to_owned(),
        address: ([127, 0, 0, 1], 5051).into(),
        domain_socket: None,
        sandbox: "/sandbox".into(),
        shutdown_grace: std::time::Duration::from_secs(5),
        checkpoint: None,
        token: None,
    }
}
