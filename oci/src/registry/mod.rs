//! A pulling client of registries (distribution-spec "Pull"): manifests and blobs, redirects, anonymous tokens, retries.

mod challenge;
mod connect;
mod download;
mod url;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use hyper::{Method, Response, StatusCode};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layout::check_document;
use crate::manifest::{Descriptor, MANIFEST_LIMIT, accepted_types};
use crate::reference::RegistryReference;
use challenge::{Challenge, Token};
use connect::{Connections, Unanswered};
use url::{Origin, Url};

/// Tries of one request, the first included.
const ATTEMPTS: u32 = 5;
const REDIRECTS: usize = 10;
/// The longest wait that a registry may ask for before a retry.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a body may stand still.
const STALL: Duration = Duration::from_secs(60);
const ERROR_LIMIT: usize = 64 << 10;

/// Pulls from one repository.
pub(crate) struct Client {
    /// For messages.
    image: String,
    repository: String,
    /// The scheme may turn out to be TLS on loopback.
    origin: Mutex<Origin>,
    token: Mutex<Option<HeaderValue>>,
    connections: Connections,
}

/// An answer, and whether it came from the registry itself.
struct Answer {
    response: Response<Incoming>,
    from_registry: bool,
}

impl Client {
    pub fn new(reference: &RegistryReference, image: String) -> Result<Self> {
        let plain = Origin::new(false, reference.endpoint());
        let origin = match plain {
            Ok(origin) if origin.is_loopback() && !reference.tls_only => Ok(origin),
            _ => Origin::new(true, reference.endpoint()),
        };
        let origin = origin.map_err(|rule| Error::Reference {
            text: reference.to_string(),
            wanted: "an image reference",
            rule,
        })?;
        Ok(Self {
            image,
            repository: reference.repository.clone(),
            origin: Mutex::new(origin),
            token: Mutex::default(),
            connections: Connections::default(),
        })
    }

    /// What a tag means now, without fetching it; none if the registry does not say.
    pub async fn digest_of(&self, tag: &str) -> Result<Option<Digest>> {
        let answer = self
            .request(
                Method::HEAD,
                &format!("manifests/{tag}"),
                accept_manifests(),
            )
            .await?;
        let header = answer.headers().get("docker-content-digest");
        Ok(header
            .filter(|_| answer.status().is_success())
            .and_then(|value| value.to_str().ok()?.parse().ok()))
    }

    /// A manifest or index by tag or digest, and what the registry calls it.
    pub async fn manifest(&self, reference: &str) -> Result<(Vec<u8>, Option<String>)> {
        let answer = self
            .request(
                Method::GET,
                &format!("manifests/{reference}"),
                accept_manifests(),
            )
            .await?;
        let answer = self.successful(answer).await?;
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(String::from)
        };
        let label = header(CONTENT_TYPE.as_str());
        // Parameters say nothing about the document.
        let label = label.map(|label| {
            label
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        });
        let stated = header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let body = self.body(answer, MANIFEST_LIMIT as usize).await?;
        let found = Digest::of(&body);
        let asked = reference.parse::<Digest>().ok();
        match asked.or(stated).filter(|expected| *expected != found) {
            Some(expected) => Err(Error::Mismatch {
                what: format!("the manifest {reference}"),
                expected,
                found,
            }),
            None => Ok((body, label)),
        }
    }

    /// A document, held in memory; size and digest are checked.
    pub async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        let what = format!("the document {}", descriptor.digest);
        if descriptor.size > limit {
            return Err(Error::refused(
                what,
                format!("it is longer than {limit} bytes"),
            ));
        }
        let path = format!("blobs/{}", descriptor.digest);
        let answer = self.request(Method::GET, &path, HeaderMap::new()).await?;
        let answer = self.successful(answer).await?;
        let bytes = self.body(answer, descriptor.size as usize).await?;
        check_document(&what, descriptor, &bytes)?;
        Ok(bytes)
    }

    /// Asks again while the failure may pass: 408, 429, 5xx, broken connections; never 401, 403, 404.
    async fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>> {
        let mut attempt = 1;
        loop {
            let result = self.authorized(&method, path, &headers).await;
            let wait = match &result {
                Ok(answer) if is_passing(answer.status()) => retry_after(answer.headers()),
                Err(Failure::Unanswered(error)) if error.transient => None,
                _ => return result.map_err(|failure| self.error(failure)),
            };
            if attempt == ATTEMPTS || wait.is_some_and(|wait| wait > LONGEST_WAIT) {
                return result.map_err(|failure| self.error(failure));
            }
            let wait = wait.unwrap_or_else(|| backoff(attempt));
            tracing::info!(
                image = self.image,
                path,
                attempt,
                ?wait,
                "the registry did not answer; asking again"
            );
            sleep(wait).await;
            attempt += 1;
        }
    }

    /// One request, with a token where the registry wants one.
    async fn authorized(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, Failure> {
        let mut renewed = false;
        loop {
            let answer = self.followed(method, path, headers).await?;
            let denied =
                answer.response.status() == StatusCode::UNAUTHORIZED && answer.from_registry;
            if !denied || renewed {
                return Ok(answer.response);
            }
            let values = answer.response.headers().get_all(WWW_AUTHENTICATE);
            let challenge = values
                .iter()
                .find_map(|value| Challenge::parse(value.to_str().ok()?));
            let Some(challenge) = challenge else {
                return Ok(answer.response);
            };
            self.fetch_token(&challenge).await?;
            renewed = true;
        }
    }

    /// Follows redirects; the token stays with the registry that it is for.
    async fn followed(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, Failure> {
        let path = format!("/v2/{}/{path}", self.repository);
        let first = self.first(method, &path, headers).await?;
        let home = self.origin();
        let mut url = Url {
            origin: home.clone(),
            path,
        };
        let mut response = first;
        for _ in 0..REDIRECTS {
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer {
                    response,
                    from_registry: url.origin == home,
                });
            }
            let refused = |rule: String| Failure::Refused(format!("a redirect of {url}"), rule);
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok());
            let next = url.join(location.unwrap_or_default()).map_err(refused)?;
            next.allowed_from(&home).map_err(refused)?;
            url = next;
            let mut headers = headers.clone();
            if url.origin == home {
                self.authorize(&mut headers);
            }
            response = self.connections.send(method, &url, &headers).await?;
        }
        Err(Failure::Refused(
            format!("the answer of {}", home.authority()),
            "it redirects too often".into(),
        ))
    }

    /// The first hop. A registry on loopback may speak plain HTTP, as Docker's clients assume too, or TLS.
    async fn first(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, Failure> {
        let origin = self.origin();
        let mut headers = headers.clone();
        self.authorize(&mut headers);
        let url = Url {
            origin: origin.clone(),
            path: path.into(),
        };
        let result = self.connections.send(method, &url, &headers).await;
        let misunderstood = match &result {
            // What servers of TLS answer to plain HTTP: 400, or a TLS alert.
            Ok(response) => response.status() == StatusCode::BAD_REQUEST,
            Err(error) => error.transient,
        };
        if origin.tls || !misunderstood {
            return Ok(result?);
        }
        let secure = Origin {
            tls: true,
            ..origin
        };
        match self.connections.try_tls(&secure).await {
            Ok(()) => {}
            Err(error) if error.is_not_tls() => return Ok(result?),
            Err(error) => return Err(error.into()),
        }
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = secure.clone();
        let url = Url {
            origin: secure,
            path: path.into(),
        };
        Ok(self.connections.send(method, &url, &headers).await?)
    }

    async fn fetch_token(&self, challenge: &Challenge) -> Result<(), Failure> {
        let refused = |rule| {
            Failure::Refused(
                format!("the token server {:?} of the registry", challenge.realm),
                rule,
            )
        };
        let url = challenge.url(&self.repository).map_err(refused)?;
        url.allowed_from(&self.origin()).map_err(refused)?;
        let response = self
            .connections
            .send(&Method::GET, &url, &HeaderMap::new())
            .await?;
        let status = response.status();
        if !status.is_success() {
            return Err(Failure::Refused(
                format!("a token by {url}"),
                format!("it answered {status}"),
            ));
        }
        let body = read_body(response, ERROR_LIMIT)
            .await
            .map_err(|error| refused(error.to_string()))?;
        let token: Option<Token> = serde_json::from_slice(&body).ok();
        let header = token
            .and_then(Token::text)
            .and_then(|text| HeaderValue::try_from(format!("Bearer {text}")).ok());
        let mut header = header.ok_or_else(|| refused("its answer has no token".into()))?;
        header.set_sensitive(true);
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(header);
        Ok(())
    }

    fn authorize(&self, headers: &mut HeaderMap) {
        if let Some(token) = self
            .token
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
        {
            headers.insert(AUTHORIZATION, token);
        }
    }

    fn origin(&self) -> Origin {
        self.origin
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn successful(&self, answer: Response<Incoming>) -> Result<Response<Incoming>> {
        let status = answer.status();
        if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
            return Ok(answer);
        }
        let basic = answer
            .headers()
            .get(WWW_AUTHENTICATE)
            .is_some_and(|value| value.as_bytes().starts_with(b"Basic"));
        let body = read_body(answer, ERROR_LIMIT).await.unwrap_or_default();
        let mut text = format!("{status}{}", said(&body));
        if status == StatusCode::UNAUTHORIZED && basic {
            text.push_str("; it wants a user and a password, and pulls are anonymous so far");
        }
        Err(Error::Registry {
            image: self.image.clone(),
            answer: text,
        })
    }

    async fn body(&self, answer: Response<Incoming>, limit: usize) -> Result<Vec<u8>> {
        read_body(answer, limit)
            .await
            .map_err(|source| Error::Connection {
                image: self.image.clone(),
                action: "read the answer of",
                target: self.origin().authority(),
                source,
            })
    }

    fn error(&self, failure: Failure) -> Error {
        match failure {
            Failure::Refused(what, rule) => Error::Refused { what, rule },
            Failure::Unanswered(error) => {
                let source = match error.is_not_tls() {
                    true => "it does not speak TLS; plain HTTP is only for 127.0.0.0/8, ::1 and localhost".into(),
                    false => error.source,
                };
                Error::Connection {
                    image: self.image.clone(),
                    action: error.action,
                    target: error.target,
                    source,
                }
            }
        }
    }
}

/// Why a request has no answer.
enum Failure {
    Unanswered(Unanswered),
    /// What, and by which rule.
    Refused(String, String),
}

impl From<Unanswered> for Failure {
    fn from(error: Unanswered) -> Self {
        Self::Unanswered(error)
    }
}

fn accept_manifests() -> HeaderMap {
    let value = HeaderValue::try_from(accepted_types()).ok();
    value.map(|value| (ACCEPT, value)).into_iter().collect()
}

async fn read_body(
    answer: Response<Incoming>,
    limit: usize,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let body = Limited::new(answer.into_body(), limit).collect();
    Ok(timeout(STALL, body)
        .await
        .map_err(|_| "it took more than 60 seconds")??
        .to_bytes()
        .to_vec())
}

fn is_passing(status: StatusCode) -> bool {
    status == StatusCode::REQUEST_TIMEOUT
        || status == StatusCode::TOO_MANY_REQUESTS
        || status.is_server_error()
}

/// Seconds only: registries do not send dates here.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// 0.2, 0.4, 0.8 ... seconds, and up to as much again, so that a thousand nodes do not ask at once.
fn backoff(attempt: u32) -> Duration {
    let base = 100u64 << attempt.min(8);
    let jitter = getrandom::u32().map_or(0, u64::from) % base;
    Duration::from_millis(base + jitter)
}

/// The codes and messages in an error's body (distribution-spec "Error Codes"), made safe to print.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(body) = serde_json::from_slice::<Body>(body) else {
        return String::new();
    };
    let clean =
        |text: String| -> String { text.chars().filter(|c| !c.is_control()).take(300).collect() };
    let list: Vec<String> = body
        .errors
        .into_iter()
        .take(3)
        .map(|said| match (clean(said.code), clean(said.message)) {
            (code, message) if message.is_empty() => code,
            (code, message) => format!("{code}: {message}"),
        })
        .collect();
    if list.is_empty() {
        String::new()
    } else {
        format!(" ({})", list.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_registry_says_is_repeated_but_not_its_control_characters() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\u001b[31m unknown","detail":{}}]}"#;
        assert_eq!(said(body), " (MANIFEST_UNKNOWN: manifest[31m unknown)");
        assert_eq!(said(b"<html>"), "");
        assert_eq!(said(br#"{"errors":[]}"#), "");
        assert_eq!(said(br#"{"errors":[{"code":"DENIED"}]}"#), " (DENIED)");
    }

    #[test]
    fn waits_grow_and_differ() {
        for attempt in 1..5 {
            let wait = backoff(attempt).as_millis() as u64;
            assert!(
                (100 << attempt..200 << attempt).contains(&wait),
                "{attempt}: {wait}"
            );
        }
    }
}
