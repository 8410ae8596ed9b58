//! HTTP to the agent: one connection for a SUBSCRIBE and its endless answer, others for calls, over TCP or the agent's
//! domain socket.
//!
//! The agent writes the answer to a call into the middle of the event stream if both use one connection. Content types
//! are compared by it as exact strings. Nothing here looks up names: the agent says where it is by address.

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Environment;
use super::environment::Token;
use super::messages::{Call, DecodeError, Event};
use super::recordio::{self, Decoder};
use crate::settings::ContentType;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the head of an answer. A busy agent is slow, a dead one is found by TCP.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Of an error's text.
const MAXIMUM_TEXT: usize = 64 << 10;
/// Of a `sockaddr_un`, with the closing zero: unix(7).
const MAXIMUM_SOCKET_PATH: usize = 108;

/// What went wrong between the agent and us.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody there.
    #[error("could not connect to the agent at {target}")]
    Connect {
        /// Address or path.
        target: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke, or what came was no HTTP.
    #[error("the connection to the agent failed")]
    Http(#[from] hyper::Error),
    /// No answer for a minute.
    #[error("the agent did not answer a call within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    /// Another answer than the one that means success.
    #[error("the agent answered {status}: {text}")]
    Status {
        /// Its number.
        status: StatusCode,
        /// What the agent says to it.
        text: String,
    },
    /// The event stream came to its end.
    #[error("the agent closed the event stream")]
    Closed,
    /// The event stream is out of step.
    #[error("the event stream is broken")]
    RecordIo(#[from] recordio::Error),
    /// An event that cannot be understood.
    #[error("could not understand an event")]
    Decode(#[from] DecodeError),
}

impl Error {
    /// Whether the agent is there but has not recovered: 404 before its routes are there, 503 after.
    pub fn is_recovering(&self) -> bool {
        let recovering = [StatusCode::NOT_FOUND, StatusCode::SERVICE_UNAVAILABLE];
        matches!(self, Error::Status { status, .. } if recovering.contains(status))
    }

    /// Whether trying again cannot help: the agent does not want us.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Status { status, .. } if !self.is_recovering() && !status.is_server_error())
    }
}

#[derive(Debug)]
enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Where the agent is and how to speak to it.
#[derive(Debug)]
pub struct Client {
    target: Target,
    host: String,
    path: String,
    content_type: ContentType,
    token: Option<Token>,
}

impl Client {
    /// For the agent that the environment names. Its domain socket goes first.
    pub fn new(environment: &Environment, content_type: ContentType) -> Arc<Self> {
        let tcp = || Target::Tcp(environment.address);
        Arc::new(Client {
            target: environment
                .domain_socket
                .clone()
                .map_or_else(tcp, Target::Unix),
            host: environment.address.to_string(),
            // Without the prefix the agent answers 403 on the domain socket.
            path: format!("/{}/api/v1/executor", environment.prefix),
            content_type,
            token: environment.token.clone(),
        })
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(self: &Arc<Self>) -> Result<Connection, Error> {
        let attempt = async {
            match &self.target {
                Target::Tcp(address) => {
                    Ok(Connection::over(self, connect_tcp(*address).await?).await)
                }
                Target::Unix(path) => Ok(Connection::over(self, connect_unix(path).await?).await),
            }
        };
        let late = |_| Err(std::io::ErrorKind::TimedOut.into());
        let result: std::io::Result<_> =
            timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or_else(late);
        result.map_err(|source| Error::Connect {
            target: self.target(),
            source,
        })?
    }

    fn target(&self) -> String {
        match &self.target {
            Target::Tcp(address) => address.to_string(),
            Target::Unix(path) => path.display().to_string(),
        }
    }

    fn request(&self, call: &Call) -> Request<Full<Bytes>> {
        let mime = self.content_type.mime();
        let mut request = Request::post(&self.path)
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, mime)
            .header(ACCEPT, mime);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        request
            .body(Full::new(self.content_type.encode(call)))
            .expect("prefix and token were checked when the environment was read")
    }
}

async fn connect_tcp(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Nothing but TCP finds out about a node that vanished: heartbeats come every 30 minutes and prove nothing.
    use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle};
    use rustix::net::sockopt::{set_tcp_keepintvl, set_tcp_nodelay};
    set_socket_keepalive(&socket, true)?;
    set_tcp_keepidle(&socket, Duration::from_secs(30))?;
    set_tcp_keepintvl(&socket, Duration::from_secs(10))?;
    set_tcp_keepcnt(&socket, 3)?;
    set_tcp_nodelay(&socket, true)?;
    socket.connect(address).await
}

/// A path that is too long for an address is taken from its directory, held open, in /proc.
async fn connect_unix(path: &Path) -> std::io::Result<UnixStream> {
    if path.as_os_str().as_bytes().len() < MAXIMUM_SOCKET_PATH {
        return UnixStream::connect(path).await;
    }
    use rustix::fs::{Mode, OFlags, open};
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let directory = open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let short = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    UnixStream::connect(short).await
}

/// A connection to the agent. It ends when this is dropped.
#[derive(Debug)]
pub struct Connection {
    client: Arc<Client>,
    sender: SendRequest<Full<Bytes>>,
    io: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.io.abort();
    }
}

impl Connection {
    async fn over<S>(client: &Arc<Client>, stream: S) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let io = tokio::spawn(async move {
            // Whoever waits for an answer is told as well.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the agent ended");
            }
        });
        Ok(Connection {
            client: client.clone(),
            sender,
            io,
        })
    }

    /// Sends a call other than SUBSCRIBE and waits until the agent has accepted it.
    ///
    /// # Errors
    /// When the connection fails or the answer is not 202.
    pub async fn call(&mut self, call: &Call) -> Result<(), Error> {
        let response = self.send(call).await?;
        let response = expect(StatusCode::ACCEPTED, response).await?;
        // To the end, so that the connection can be used again.
        response.into_body().collect().await?;
        Ok(())
    }

    /// Sends a SUBSCRIBE, which takes the connection.
    ///
    /// # Errors
    /// When the connection fails or the answer is not 200.
    pub async fn subscribe(mut self, call: &Call) -> Result<EventStream, Error> {
        let response = self.send(call).await?;
        let response = expect(StatusCode::OK, response).await?;
        let is_json = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value == ContentType::Json.mime());
        Ok(EventStream {
            content_type: if is_json {
                ContentType::Json
            } else {
                ContentType::Protobuf
            },
            body: response.into_body(),
            decoder: Decoder::default(),
            _connection: self,
        })
    }

    async fn send(&mut self, call: &Call) -> Result<Response<Incoming>, Error> {
        let answer = async {
            self.sender.ready().await?;
            self.sender.send_request(self.client.request(call)).await
        };
        Ok(timeout(ANSWER_TIMEOUT, answer)
            .await
            .map_err(|_| Error::Timeout)??)
    }
}

async fn expect(
    status: StatusCode,
    response: Response<Incoming>,
) -> Result<Response<Incoming>, Error> {
    if response.status() == status {
        return Ok(response);
    }
    let status = response.status();
    let text = match Limited::new(response.into_body(), MAXIMUM_TEXT)
        .collect()
        .await
    {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => format!("(its text could not be read: {error})"),
    };
    Err(Error::Status { status, text })
}

/// The events that follow a SUBSCRIBE.
#[derive(Debug)]
pub struct EventStream {
    content_type: ContentType,
    body: Incoming,
    decoder: Decoder,
    _connection: Connection,
}

impl EventStream {
    /// The next one.
    ///
    /// # Errors
    /// When the stream has ended, or is broken; it is of no use then.
    pub async fn next_event(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(record) = self.decoder.next_record()? {
                return Ok(self.content_type.decode(record)?);
            }
            let frame = self.body.frame().await.ok_or(Error::Closed)??;
            if let Some(data) = frame.data_ref() {
                self.decoder.push(data);
            }
        }
    }
}
