//! Driver and embedded agent over a real unix socket, in both encodings: what the one says reaches the other.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use tepui::agent::Environment;
use tepui::agent::client::Client;
use tepui::agent::messages::{
    Call, CallType, Event, EventType, Kill, Launch, TaskId, TaskInfo, TaskState, TaskStatus,
};
use tepui::core::TaskProblem;
use tepui::driver::{Error, Options, Wanted, run};
use tepui::local_agent::LocalAgent;
use tepui::settings::ContentType;
use tepui::supervise::{ContainerEvent, Containers};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Containers that run at once and end when they are told to.
struct Obedient {
    sender: UnboundedSender<(String, ContainerEvent)>,
    receiver: UnboundedReceiver<(String, ContainerEvent)>,
}

impl Obedient {
    fn new() -> Self {
        let (sender, receiver) = unbounded_channel();
        Obedient { sender, receiver }
    }

    fn say(&self, key: &str, event: ContainerEvent) {
        self.sender.send((key.to_owned(), event)).unwrap();
    }
}

impl Containers for Obedient {
    type Request = ();

    fn launch(&mut self, key: &str, (): ()) {
        self.say(key, ContainerEvent::Running { pid: 1 });
    }

    fn terminate(&mut self, key: &str) {
        self.say(
            key,
            ContainerEvent::Exited {
                status: 15,
                limit: None,
            },
        );
    }

    fn destroy(&mut self, _: &str) {}

    async fn next_event(&mut self) -> (String, ContainerEvent) {
        self.receiver.recv().await.unwrap()
    }
}

fn environment(agent: &LocalAgent, changes: &[(&str, &str)]) -> Environment {
    let variables = agent.environment(Path::new("/sandbox"), Duration::from_secs(5));
    let mut variables: HashMap<String, String> = variables
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into_string().unwrap()))
        .collect();
    for (name, value) in changes {
        variables.insert((*name).to_owned(), (*value).to_owned());
    }
    Environment::from_variables(&variables).unwrap()
}

fn prepare(Wanted { subscribed, .. }: Wanted<'_>) -> Result<(), TaskProblem> {
    assert_eq!(subscribed.agent_info.hostname, "localhost");
    Ok(())
}

fn task(name: &str) -> TaskId {
    TaskId {
        value: name.to_owned(),
    }
}

fn launch(data: Vec<u8>) -> Event {
    let task = TaskInfo {
        task_id: task("t"),
        data: Some(data.into()),
        ..Default::default()
    };
    Event {
        launch: Some(Launch { task }),
        ..Event::of(EventType::Launch)
    }
}

fn kill() -> Event {
    let kill = Kill {
        task_id: task("t"),
        kill_policy: None,
    };
    Event {
        kill: Some(kill),
        ..Event::of(EventType::Kill)
    }
}

fn state(status: &TaskStatus) -> TaskState {
    TaskState::try_from(status.state).unwrap()
}

async fn a_whole_life(content_type: ContentType) {
    let directory = tempfile::tempdir().unwrap();
    let mut agent = LocalAgent::listen(directory.path()).unwrap();
    let environment = environment(&agent, &[]);
    let options = Options { content_type };
    // Larger than any chunk.
    agent.send(launch(vec![7; 1 << 20]));
    let scheduler = async {
        let mut states = Vec::new();
        loop {
            let status = agent.next_status().await;
            states.push(state(&status));
            match state(&status) {
                TaskState::Running => agent.send(kill()),
                state if state.is_terminal() => return (states, status),
                _ => (),
            }
        }
    };
    let (exit, (states, last)) = tokio::join!(
        run(&environment, options, prepare, Obedient::new()),
        scheduler
    );
    assert_eq!(exit.unwrap(), 0);
    use TaskState::*;
    assert_eq!(states, [Starting, Running, Killing, Killed]);
    assert_eq!(last.message(), "Command terminated with signal Terminated");
}

#[tokio::test]
async fn a_task_lives_and_dies_in_protobuf() {
    a_whole_life(ContentType::Protobuf).await;
}

#[tokio::test]
async fn a_task_lives_and_dies_in_json() {
    a_whole_life(ContentType::Json).await;
}

#[tokio::test]
async fn an_agent_that_refuses_us_is_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let agent = LocalAgent::listen(directory.path()).unwrap();
    let options = Options {
        content_type: ContentType::Json,
    };
    for (name, value, status) in [
        ("MESOS_EXECUTOR_AUTHENTICATION_TOKEN", "wrong", "401"),
        ("MESOS_EXECUTOR_ID", "somebody", "400"),
        ("MESOS_SLAVE_PID", "agent@127.0.0.1:0", "403"),
    ] {
        let environment = environment(&agent, &[(name, value)]);
        let result = run(&environment, options, prepare, Obedient::new()).await;
        let Err(Error::Refused(answer)) = result else {
            panic!("{name}: {result:?}")
        };
        assert!(
            answer
                .to_string()
                .starts_with(&format!("the agent answered {status}")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn an_update_that_breaks_the_rules_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let agent = LocalAgent::listen(directory.path()).unwrap();
    let environment = environment(&agent, &[]);
    let mut call = Call {
        r#type: Some(CallType::Update.into()),
        ..Default::default()
    };
    call.framework_id.value = environment.framework_id.clone();
    call.executor_id.value = environment.executor_id.clone();
    call.update = Some(Default::default());
    let mut connection = Client::new(&environment, ContentType::Protobuf)
        .connect()
        .await
        .unwrap();
    let refused = connection.call(&call).await.unwrap_err().to_string();
    assert_eq!(
        refused,
        "the agent answered 400 Bad Request: Expecting 'uuid' to be a version 4 UUID"
    );
    // The connection is still good.
    call = Call {
        r#type: Some(CallType::Heartbeat.into()),
        update: None,
        ..call
    };
    connection.call(&call).await.unwrap();
}

#[tokio::test]
async fn a_socket_with_a_long_path_is_reached() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("x".repeat(120));
    std::fs::create_dir(&long).unwrap();
    let short = directory.path().join("short");
    std::os::unix::fs::symlink(&long, &short).unwrap();
    let _listener = UnixListener::bind(short.join("agent.sock")).unwrap();
    let agent = LocalAgent::listen(directory.path()).unwrap();
    let path = long
        .join("agent.sock")
        .into_os_string()
        .into_string()
        .unwrap();
    let environment = environment(&agent, &[("MESOS_DOMAIN_SOCKET", &path)]);
    Client::new(&environment, ContentType::Json)
        .connect()
        .await
        .unwrap();
}

#[tokio::test]
async fn an_error_names_the_agents_address() {
    let directory = tempfile::tempdir().unwrap();
    let agent = LocalAgent::listen(directory.path()).unwrap();
    let environment = environment(&agent, &[("MESOS_DOMAIN_SOCKET", "/nowhere/agent.sock")]);
    let error = Client::new(&environment, ContentType::Json)
        .connect()
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "could not connect to the agent at /nowhere/agent.sock"
    );
}
