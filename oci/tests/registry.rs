//! The registry client against a server on loopback that answers as real ones do on their bad days.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use support::{Bench, Compression, Member, chain, tar, write_layout};

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// What the server answers: status line's rest, headers, body; `cut` bytes of the body are really sent.
struct Answer {
    status: &'static str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Answer {
    fn new(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
        }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Seen, usize) -> Answer + Send + Sync;

/// A server on a port of its own. The handler gets each request and how often its path was asked for before.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    fn new(handler: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, handler): (_, Arc<Handler>) = (seen.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, handler) = (log.clone(), handler.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &log, &*handler));
            }
        });
        Self { port, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Seen>>, handler: &Handler) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line == "\r\n" => break,
                Ok(_) => lines.push(line.trim_end().to_owned()),
            }
        }
        let mut first = lines[0].split(' ');
        let headers = lines[1..].iter().map(|line| line.split_once(": ").unwrap());
        let request = Seen {
            method: first.next().unwrap().into(),
            path: first.next().unwrap().into(),
            headers: headers
                .map(|(name, value)| (name.to_lowercase(), value.into()))
                .collect(),
        };
        let before = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            log.iter().filter(|seen| seen.path == request.path).count() - 1
        };
        let answer = handler(&request, before);
        let mut text = format!(
            "HTTP/1.1 {}\r\nContent-Length: {}\r\n",
            answer.status,
            answer.body.len()
        );
        for (name, value) in &answer.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let body = if request.method == "HEAD" {
            &[]
        } else {
            &answer.body[..answer.cut.unwrap_or(answer.body.len())]
        };
        if writer.write_all(&[text.as_bytes(), body].concat()).is_err() || answer.cut.is_some() {
            return;
        }
    }
}

/// The files of an image by their paths in the repository `web`.
#[derive(Clone)]
struct Repository(Arc<HashMap<String, Vec<u8>>>);

impl Repository {
    fn new(bench: &Bench) -> Self {
        let (uid, gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        // Long enough to be cut, and not compressible to nothing.
        let text: String = (0..20_000)
            .map(|number| format!("{}", number * 7919))
            .collect();
        let layer = tar(&[Member::file("f", &text).owner(uid.into(), gid.into())]);
        let dir = bench.path("image");
        write_layout(&dir, &[layer], Compression::Gzip, json!({}));
        let mut files = HashMap::new();
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
        let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        for entry in std::fs::read_dir(dir.join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let digest = format!("sha256:{}", path.file_name().unwrap().to_str().unwrap());
            let bytes = std::fs::read(path).unwrap();
            if digest == manifest {
                files.insert("/v2/web/manifests/v1".into(), bytes.clone());
                files.insert(format!("/v2/web/manifests/{digest}"), bytes);
            } else {
                files.insert(format!("/v2/web/blobs/{digest}"), bytes);
            }
        }
        Self(Arc::new(files))
    }

    fn answer(&self, request: &Seen) -> Answer {
        let Some(body) = self.0.get(&request.path) else {
            return Answer::new(
                "404 Not Found",
                r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no"}]}"#,
            );
        };
        let digest = tepui_oci::Digest::of(body).to_string();
        let range = request.header("range").and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        });
        match range {
            Some(start) => Answer::new("206 Partial Content", &body[start..]).with(
                "Content-Range",
                format!("bytes {start}-{}/{}", body.len() - 1, body.len()),
            ),
            None => Answer::new("200 OK", body.clone()).with("Docker-Content-Digest", digest),
        }
    }

    /// The path of the layer: the longest file.
    fn layer(&self) -> String {
        self.0
            .iter()
            .max_by_key(|(_, bytes)| bytes.len())
            .unwrap()
            .0
            .clone()
    }
}

fn pull(bench: &Bench, server: &Server) -> Result<tepui_oci::Image, String> {
    bench
        .pull(&format!("127.0.0.1:{}/web:v1", server.port))
        .map_err(|error| chain(&error))
}

#[test]
fn a_second_pull_asks_only_whether_the_tag_moved() {
    let bench = Bench::new();
    let repository = Repository::new(&bench);
    let server = Server::new(move |request, _| repository.answer(request));
    let first = pull(&bench, &server).unwrap();
    let before = server.seen().len();
    assert_eq!(pull(&bench, &server).unwrap().layers, first.layers);
    let asked: Vec<_> = server.seen()[before..]
        .iter()
        .map(|seen| (seen.method.clone(), seen.path.clone()))
        .collect();
    assert_eq!(asked, [("HEAD".into(), "/v2/web/manifests/v1".into())]);
    let by_digest = format!("127.0.0.1:{}/web@{}", server.port, first.digest);
    bench.pull(&by_digest).unwrap();
    let before = server.seen().len();
    bench.pull(&by_digest).unwrap();
    assert_eq!(server.seen().len(), before);
}

#[test]
fn a_download_that_breaks_off_is_resumed_where_it_stopped() {
    let bench = Bench::new();
    let repository = Repository::new(&bench);
    let layer = repository.layer();
    let size = repository.0[&layer].len();
    let path = layer.clone();
    let server = Server::new(move |request, before| {
        let mut answer = repository.answer(request);
        if request.path == path && before < 2 {
            answer.cut = Some(answer.body.len() / 2);
        }
        answer
    });
    pull(&bench, &server).unwrap();
    let ranges: Vec<_> = server
        .seen()
        .iter()
        .filter(|seen| seen.path == layer)
        .map(|seen| seen.header("range").map(String::from))
        .collect();
    let half = size / 2;
    let rest = half + (size - half) / 2;
    assert_eq!(
        ranges,
        [
            None,
            Some(format!("bytes={half}-")),
            Some(format!("bytes={rest}-"))
        ]
    );
}

#[test]
fn a_registry_without_ranges_is_asked_from_the_start() {
    let bench = Bench::new();
    let repository = Repository::new(&bench);
    let layer = repository.layer();
    let server = Server::new(move |request, before| {
        let plain = Seen {
            headers: HashMap::new(),
            ..request.clone()
        };
        let mut answer = repository.answer(&plain);
        answer.cut = (request.path == layer && before == 0).then_some(1000);
        answer
    });
    pull(&bench, &server).unwrap();
}

#[test]
fn failures_that_pass_are_waited_for_and_others_are_not() {
    let bench = Bench::new();
    let repository = Repository::new(&bench);
    let server = Server::new(move |request, before| match before {
        0 => Answer::new("429 Too Many Requests", "").with("Retry-After", "0"),
        1 => Answer::new("503 Service Unavailable", ""),
        _ => repository.answer(request),
    });
    pull(&bench, &server).unwrap();
    for (status, count) in [
        ("403 Forbidden", 1),
        ("404 Not Found", 1),
        ("500 Internal Server Error", 5),
    ] {
        let server = Server::new(move |_, _| {
            Answer::new(
                status,
                r#"{"errors":[{"code":"CODE","message":"because"}]}"#,
            )
        });
        let error = pull(&Bench::new(), &server).unwrap_err();
        let wanted = format!(
            "image 127.0.0.1:{}/web:v1: the registry answered {status} (CODE: because)",
            server.port
        );
        assert_eq!(error, wanted);
        assert_eq!(server.seen().len(), count);
    }
}

#[test]
fn anonymous_tokens_are_fetched_where_they_are_wanted_and_stay_with_the_registry() {
    let bench = Bench::new();
    let repository = Repository::new(&bench);
    let storage = {
        let repository = repository.clone();
        Server::new(move |request, _| repository.answer(request))
    };
    let tokens = Server::new(|_, _| Answer::new("200 OK", r#"{"token":"secret","expires_in":60}"#));
    let (realm, elsewhere) = (tokens.port, storage.port);
    let registry = Server::new(move |request, _| {
        if request.header("authorization") != Some("Bearer secret") {
            let value = format!(
                r#"Bearer realm="http://127.0.0.1:{realm}/token",service="reg",scope="repository:web:pull""#
            );
            return Answer::new("401 Unauthorized", "").with("WWW-Authenticate", value);
        }
        match request.is_blob() {
            true => Answer::new("307 Temporary Redirect", "").with(
                "Location",
                format!("http://127.0.0.1:{elsewhere}{}", request.path),
            ),
            false => repository.answer(request),
        }
    });
    pull(&bench, &registry).unwrap();
    let asked: Vec<_> = tokens.seen().iter().map(|seen| seen.path.clone()).collect();
    assert_eq!(asked, ["/token?service=reg&scope=repository:web:pull"]);
    assert!(tokens.seen()[0].header("authorization").is_none());
    let there = storage.seen();
    assert_eq!(there.len(), 2);
    assert!(
        there
            .iter()
            .all(|seen| seen.header("authorization").is_none()),
        "{there:?}"
    );
}

#[test]
fn redirects_into_the_clear_or_in_circles_are_refused() {
    for (location, wanted) in [
        ("http://registry.example/x", "plain HTTP"),
        ("ftp://127.0.0.1/x", "not an http or https"),
        ("/v2/web/manifests/v1", "redirects too often"),
        ("", "too often"),
    ] {
        let server =
            Server::new(move |_, _| Answer::new("302 Found", "").with("Location", location));
        let error = pull(&Bench::new(), &server).unwrap_err();
        assert!(error.contains(wanted), "{location}: {error}");
    }
}

#[test]
fn wrong_content_is_refused_however_it_is_wrong() {
    // Of the three documents only the layer is longer.
    const LAYER: usize = 2000;
    type Change = fn(&Seen, Vec<u8>) -> Vec<u8>;
    let cases: [(&str, Change); 5] = [
        ("has the digest", |_, mut body| {
            if body.len() > LAYER {
                body[20] ^= 1;
            }
            body
        }),
        ("more than the", |_, mut body| {
            if body.len() > LAYER {
                body.push(0);
            }
            body
        }),
        ("length limit exceeded", |seen, body| {
            if seen.path.contains("manifests") {
                vec![b' '; 5 << 20]
            } else {
                body
            }
        }),
        ("not valid", |seen, body| {
            if seen.path.contains("manifests") {
                b"<html>".to_vec()
            } else {
                body
            }
        }),
        ("manifest and index at once", |seen, body| {
            let text = String::from_utf8_lossy(&body).into_owned();
            if seen.path.contains("manifests") {
                text.replacen('{', r#"{"manifests":[],"#, 1).into_bytes()
            } else {
                body
            }
        }),
    ];
    for (wanted, change) in cases {
        let bench = Bench::new();
        let repository = Repository::new(&bench);
        let server = Server::new(move |request, _| {
            let answer = repository.answer(request);
            Answer::new("200 OK", change(request, answer.body))
        });
        let error = pull(&bench, &server).unwrap_err();
        assert!(error.contains(wanted), "{wanted}: {error}");
        assert_eq!(
            std::fs::read_dir(bench.store.layers_directory())
                .unwrap()
                .count(),
            0
        );
    }
}

#[test]
fn a_registry_that_is_gone_is_replaced_by_what_is_known() {
    let bench = Bench::new();
    let repository = Repository::new(&bench);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let reference = format!("127.0.0.1:{port}/web:v1");
    // It serves three requests on one connection, and is gone.
    let log = Mutex::new(Vec::new());
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        drop(listener);
        serve(stream, &log, &move |request: &Seen, _| {
            repository.answer(request)
        });
    });
    let first = bench.pull(&reference).unwrap();
    server.join().unwrap();
    assert_eq!(bench.pull(&reference).unwrap().layers, first.layers);
    let error = chain(&Bench::new().pull(&reference).unwrap_err());
    assert!(
        error.contains(&format!(
            "could not connect to 127.0.0.1:{port}: Connection refused"
        )),
        "{error}"
    );
}
