//! The other end of the executor API, for one executor on this machine: it launches, acknowledges, and passes on what
//! the executor says. It speaks what a real agent speaks, over a unix socket, and is as strict.

mod task_file;

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::agent::environment::TOKEN_VARIABLE;
use crate::agent::messages::{
    Acknowledged, AgentId, AgentInfo, Call, CallType, ContainerId, Event, EventType, ExecutorId,
    ExecutorInfo, ExecutorType, FrameworkCapability, FrameworkCapabilityType, FrameworkId,
    FrameworkInfo, Source, Subscribed, TaskStatus,
};
use crate::agent::recordio;
use crate::settings::ContentType;

pub use task_file::{TaskFile, TaskFileError};

const FRAMEWORK: &str = "local";
const EXECUTOR: &str = "tepui";
/// The agent's id, for tasks that do not name one.
pub(crate) const AGENT: &str = "local-S0";
const PATH: &str = "/slave(1)/api/v1/executor";
/// Of a call.
const MAXIMUM_CALL: usize = 64 << 20;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// An agent for one executor.
pub struct LocalAgent {
    socket: PathBuf,
    shared: Arc<Shared>,
    statuses: UnboundedReceiver<TaskStatus>,
}

struct Shared {
    token: String,
    user: String,
    statuses: UnboundedSender<TaskStatus>,
    stream: Mutex<Stream>,
}

/// The event stream of the executor, if it is subscribed, and what waits for it.
#[derive(Default)]
struct Stream {
    content_type: ContentType,
    records: Option<UnboundedSender<Bytes>>,
    queued: Vec<Event>,
}

impl Stream {
    fn send(&mut self, event: Event) {
        match &self.records {
            // An executor that is gone gets it no more, as with a real agent.
            Some(records) => {
                let _ = records.send(recordio::encode(&self.content_type.encode(&event)));
            }
            None => self.queued.push(event),
        }
    }
}

impl LocalAgent {
    /// Listens on a socket in this directory, for an executor that knows a token. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(directory: &Path) -> std::io::Result<Self> {
        let mut token = [0; 16];
        getrandom::fill(&mut token).map_err(|error| std::io::Error::other(error.to_string()))?;
        let socket = directory.join("agent.sock");
        let listener = UnixListener::bind(&socket)?;
        let (sender, statuses) = unbounded_channel();
        let shared = Arc::new(Shared {
            token: token.iter().map(|byte| format!("{byte:02x}")).collect(),
            user: std::env::var("USER").unwrap_or_else(|_| "root".to_owned()),
            statuses: sender,
            stream: Mutex::default(),
        });
        let served = shared.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(serve(served.clone(), stream))),
                    Err(error) => {
                        tracing::error!(%error, "could not accept a connection");
                        return;
                    }
                }
            }
        });
        Ok(LocalAgent {
            socket,
            shared,
            statuses,
        })
    }

    /// The whole environment that an agent gives an executor.
    pub fn environment(&self, sandbox: &Path, grace: Duration) -> Vec<(&'static str, OsString)> {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        vec![
            ("MESOS_FRAMEWORK_ID", FRAMEWORK.into()),
            ("MESOS_EXECUTOR_ID", EXECUTOR.into()),
            ("MESOS_SLAVE_ID", AGENT.into()),
            // There is no such port: the socket is all there is.
            ("MESOS_SLAVE_PID", "slave(1)@127.0.0.1:0".into()),
            ("MESOS_AGENT_ENDPOINT", "127.0.0.1:0".into()),
            ("MESOS_DIRECTORY", sandbox.into()),
            ("MESOS_SANDBOX", sandbox.into()),
            ("MESOS_CHECKPOINT", "0".into()),
            ("MESOS_HTTP_COMMAND_EXECUTOR", "0".into()),
            (
                "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD",
                format!("{}ms", grace.as_millis()).into(),
            ),
            ("MESOS_DOMAIN_SOCKET", self.socket.clone().into()),
            (TOKEN_VARIABLE, self.shared.token.clone().into()),
            ("PATH", path.into()),
        ]
    }

    /// Sends the executor an event, once it is subscribed.
    pub fn send(&self, event: Event) {
        self.shared.stream().send(event);
    }

    /// The next status of a task, which is acknowledged already. May be dropped at any await.
    pub async fn next_status(&mut self) -> TaskStatus {
        self.statuses.recv().await.expect("a sender is kept here")
    }

    /// The next status of a task, if there is one.
    pub fn try_next_status(&mut self) -> Option<TaskStatus> {
        self.statuses.try_recv().ok()
    }
}

impl Shared {
    fn stream(&self) -> MutexGuard<'_, Stream> {
        self.stream
            .lock()
            .expect("nothing panics while it holds this")
    }

    /// The checks of a real agent, in its order.
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        if head.uri.path() != PATH {
            return refuse(StatusCode::FORBIDDEN, "Not the executor's endpoint");
        }
        if head.method != Method::POST {
            return refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "Expecting one of { 'POST' }",
            );
        }
        let authorization = format!("Bearer {}", self.token);
        if text(&head.headers, &AUTHORIZATION) != Some(&authorization) {
            return refuse(StatusCode::UNAUTHORIZED, "Not the token that was given");
        }
        let content_type = match text(&head.headers, &CONTENT_TYPE) {
            Some("application/json") => ContentType::Json,
            Some("application/x-protobuf") => ContentType::Protobuf,
            Some(_) => {
                return refuse(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "Expecting JSON or protobuf",
                );
            }
            None => {
                return refuse(
                    StatusCode::BAD_REQUEST,
                    "Expecting 'Content-Type' to be present",
                );
            }
        };
        let Ok(body) = Limited::new(body, MAXIMUM_CALL).collect().await else {
            return refuse(StatusCode::BAD_REQUEST, "Could not read the call");
        };
        let call: Call = match content_type.decode(body.to_bytes()) {
            Ok(call) => call,
            Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        if (
            call.framework_id.value.as_str(),
            call.executor_id.value.as_str(),
        ) != (FRAMEWORK, EXECUTOR)
        {
            return refuse(StatusCode::BAD_REQUEST, "Executor cannot be found");
        }
        match (call.r#type(), call.subscribe, call.update) {
            (CallType::Subscribe, Some(subscribe), _) => {
                let accepted = match text(&head.headers, &ACCEPT) {
                    None | Some("*/*" | "application/json") => ContentType::Json,
                    Some("application/x-protobuf") => ContentType::Protobuf,
                    Some(_) => {
                        return refuse(StatusCode::NOT_ACCEPTABLE, "Expecting JSON or protobuf");
                    }
                };
                let updates = subscribe.unacknowledged_updates;
                self.subscribe(accepted, updates.into_iter().map(|update| update.status))
            }
            (CallType::Update, _, Some(update)) => match self.update(update.status) {
                Ok(()) => status(StatusCode::ACCEPTED, ""),
                Err(wrong) => refuse(StatusCode::BAD_REQUEST, wrong),
            },
            (CallType::Heartbeat | CallType::Message, ..) => status(StatusCode::ACCEPTED, ""),
            _ => refuse(
                StatusCode::BAD_REQUEST,
                "Expecting a type and what belongs to it",
            ),
        }
    }

    fn subscribe(
        &self,
        content_type: ContentType,
        updates: impl Iterator<Item = TaskStatus>,
    ) -> Answer {
        let (records, receiver) = unbounded_channel();
        {
            let mut stream = self.stream();
            stream.content_type = content_type;
            stream.records = Some(records);
        }
        for update in updates {
            // One that is wrong is dropped, as with a real agent.
            let _ = self.update(update);
        }
        let mut stream = self.stream();
        stream.send(Event {
            subscribed: Some(self.subscribed()),
            ..Event::of(EventType::Subscribed)
        });
        for event in std::mem::take(&mut stream.queued) {
            stream.send(event);
        }
        let mut answer = Response::new(Records(receiver).boxed());
        let mime = content_type
            .mime()
            .parse()
            .expect("a constant that is a header's value");
        answer.headers_mut().insert(CONTENT_TYPE, mime);
        answer
    }

    fn subscribed(&self) -> Subscribed {
        let capabilities = [
            FrameworkCapabilityType::TaskKillingState,
            FrameworkCapabilityType::PartitionAware,
        ];
        Subscribed {
            executor_info: ExecutorInfo {
                r#type: Some(ExecutorType::Custom.into()),
                executor_id: ExecutorId {
                    value: EXECUTOR.to_owned(),
                },
                framework_id: Some(FrameworkId {
                    value: FRAMEWORK.to_owned(),
                }),
                ..Default::default()
            },
            framework_info: FrameworkInfo {
                user: self.user.clone(),
                name: FRAMEWORK.to_owned(),
                id: Some(FrameworkId {
                    value: FRAMEWORK.to_owned(),
                }),
                capabilities: capabilities
                    .map(|capability| FrameworkCapability {
                        r#type: Some(capability.into()),
                    })
                    .to_vec(),
                ..Default::default()
            },
            agent_info: AgentInfo {
                hostname: "localhost".to_owned(),
                id: Some(AgentId {
                    value: AGENT.to_owned(),
                }),
                ..Default::default()
            },
            container_id: Some(ContainerId {
                value: format!("local-{}", self.token),
                parent: None,
            }),
        }
    }

    fn update(&self, status: TaskStatus) -> Result<(), &'static str> {
        let uuid = status
            .uuid
            .clone()
            .filter(|uuid| uuid.len() == 16 && uuid[6] >> 4 == 4);
        let uuid = uuid.ok_or("Expecting 'uuid' to be a version 4 UUID")?;
        if status.source != Some(Source::Executor.into()) {
            return Err("Expecting 'source' to be SOURCE_EXECUTOR");
        }
        let acknowledged = Some(Acknowledged {
            task_id: status.task_id.clone(),
            uuid,
        });
        // Whoever runs this agent may have stopped to listen; the executor is to end all the same.
        let _ = self.statuses.send(status);
        self.stream().send(Event {
            acknowledged,
            ..Event::of(EventType::Acknowledged)
        });
        Ok(())
    }
}

async fn serve(shared: Arc<Shared>, stream: UnixStream) {
    let answer = |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(shared.answer(request).await) }
    };
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection of the executor ended");
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn refuse(code: StatusCode, text: &str) -> Answer {
    tracing::warn!(%code, text, "refused a call of the executor");
    status(code, text)
}

fn status(code: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::from(Bytes::copy_from_slice(text.as_bytes())).boxed());
    *answer.status_mut() = code;
    answer
}

/// The body of the event stream.
struct Records(UnboundedReceiver<Bytes>);

impl Body for Records {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|record| record.map(|record| Ok(Frame::data(record))))
    }
}
