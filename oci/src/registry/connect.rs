//! Connections to registries: names by hickory (never getaddrinfo(3), which would load the node's NSS modules into a
//! static binary), TLS by rustls with the node's own certificates, HTTP/1.1 by hyper.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hickory_resolver::TokioResolver;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderMap, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::url::{Origin, Url};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

type Sender = SendRequest<Empty<Bytes>>;
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why no answer came.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// E.g. "connect to".
    pub action: &'static str,
    /// Host and port, or the address.
    pub target: String,
    pub source: Cause,
    /// Worth another try: the connection was there and broke.
    pub transient: bool,
}

impl Unanswered {
    fn new(
        action: &'static str,
        target: impl ToString,
        source: impl Into<Cause>,
        transient: bool,
    ) -> Self {
        Self {
            action,
            target: target.to_string(),
            source: source.into(),
            transient,
        }
    }

    /// Somebody listens there, but does not speak TLS.
    pub fn is_not_tls(&self) -> bool {
        self.source
            .downcast_ref::<io::Error>()
            .is_some_and(|error| {
                let inner = error
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<rustls::Error>());
                match inner {
                    Some(rustls::Error::InvalidMessage(_)) => true,
                    Some(_) => false,
                    None => self.action == NEGOTIATE,
                }
            })
    }
}

const NEGOTIATE: &str = "negotiate TLS with";

/// Opens connections and keeps them for the next request.
#[derive(Default)]
pub(crate) struct Connections {
    idle: Mutex<HashMap<Origin, Vec<Sender>>>,
    resolver: OnceCell<TokioResolver>,
    tls: OnceCell<TlsConnector>,
}

impl Connections {
    /// Sends a request without a body and waits for the head of the answer.
    pub async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, Unanswered> {
        let broken = |source: Cause, transient| {
            Unanswered::new("get an answer from", url, source, transient)
        };
        let mut request = Request::builder()
            .method(method)
            .uri(&url.path)
            .header(HOST, url.origin.authority())
            .header(USER_AGENT, concat!("tepui/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| broken(error.into(), false))?;
        request.headers_mut().extend(headers.clone());
        let mut sender = match self.take_idle(&url.origin) {
            Some(sender) => sender,
            None => self.open(&url.origin).await?,
        };
        let answer = timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        let answer = answer.map_err(|_| broken("it took more than 60 seconds".into(), true))?;
        let answer = answer.map_err(|error| broken(error.into(), true))?;
        // It is busy until the body has been read; `take_idle` looks.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.entry(url.origin.clone()).or_default().push(sender);
        Ok(answer)
    }

    /// Finds out whether somebody speaks TLS there.
    pub async fn try_tls(&self, origin: &Origin) -> Result<(), Unanswered> {
        self.open(origin).await.map(drop)
    }

    fn take_idle(&self, origin: &Origin) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.get_mut(origin)?;
        senders.retain(|sender| !sender.is_closed());
        let at = senders.iter().position(SendRequest::is_ready)?;
        Some(senders.swap_remove(at))
    }

    async fn open(&self, origin: &Origin) -> Result<Sender, Unanswered> {
        let stream = self.connect(origin).await?;
        if !origin.tls {
            return speak(stream, origin).await;
        }
        let authority = origin.authority();
        let failed = |source: Cause| Unanswered::new(NEGOTIATE, &authority, source, false);
        let connector = self
            .tls
            .get_or_try_init(tls_connector)
            .await
            .map_err(|error| failed(error.into()))?;
        let name =
            ServerName::try_from(origin.host.clone()).map_err(|error| failed(error.into()))?;
        let stream = timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await;
        let stream = stream.map_err(|_| failed(io::Error::from(io::ErrorKind::TimedOut).into()))?;
        speak(stream.map_err(|error| failed(error.into()))?, origin).await
    }

    async fn connect(&self, origin: &Origin) -> Result<TcpStream, Unanswered> {
        let authority = origin.authority();
        let mut failure: Cause = "it has no address".into();
        for address in self.addresses(&origin.host).await? {
            match timeout(
                CONNECT_TIMEOUT,
                TcpStream::connect(SocketAddr::new(address, origin.port)),
            )
            .await
            {
                Ok(Ok(stream)) => {
                    // Requests are one small segment each.
                    let result = stream.set_nodelay(true);
                    return result
                        .map(|()| stream)
                        .map_err(|error| Unanswered::new("connect to", authority, error, true));
                }
                Ok(Err(error)) => failure = error.into(),
                Err(_) => failure = io::Error::from(io::ErrorKind::TimedOut).into(),
            }
        }
        Err(Unanswered::new("connect to", authority, failure, false))
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Unanswered> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        // Never asked of anybody: plain HTTP is trusted to stay on this machine (RFC 6761 section 6.3).
        if host == "localhost" {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let failed = |source: Cause| Unanswered::new("find the address of", host, source, false);
        let resolver = self
            .resolver
            .get_or_try_init(|| async { TokioResolver::builder_tokio()?.build() })
            .await;
        let resolver = resolver.map_err(|error| failed(error.into()))?;
        let found = resolver
            .lookup_ip(host)
            .await
            .map_err(|error| failed(error.into()))?;
        Ok(found.iter().collect())
    }
}

async fn speak<S>(stream: S, origin: &Origin) -> Result<Sender, Unanswered>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let result = handshake(TokioIo::new(stream)).await;
    let (sender, connection) =
        result.map_err(|error| Unanswered::new("talk to", origin.authority(), error, true))?;
    // It ends when the sender and the body of its last answer are gone, so it needs no handle.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a registry ended");
        }
    });
    Ok(sender)
}

async fn tls_connector() -> io::Result<TlsConnector> {
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
        .await
        .map_err(io::Error::other)?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reason = found
            .errors
            .first()
            .map_or(String::new(), |error| format!(" ({error})"));
        return Err(io::Error::other(format!(
            "this node has no CA certificates{reason}; install ca-certificates or set SSL_CERT_FILE"
        )));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}
