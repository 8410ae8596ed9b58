//! Blobs of layers: streamed into a file without a name while they are hashed, and resumed where they broke off.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use hyper::{Method, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{ATTEMPTS, Client, STALL, backoff};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use crate::source::Blob;
use crate::store::Store;

/// Pieces on their way from the network to the file.
const QUEUE: usize = 16;

enum Piece {
    Data(Bytes),
    /// The registry starts over.
    Restart,
}

impl Client {
    /// Downloads a layer's blob; its size and digest are checked.
    pub async fn blob(&self, descriptor: &Descriptor, store: &Store) -> Result<Blob> {
        let what = format!("the blob {}", descriptor.digest);
        let mut writer = Writer::start(store)?;
        let mut attempt = 1;
        while writer.length < descriptor.size || attempt == 1 {
            let before = writer.length;
            let answer = self.ranged(descriptor, before).await?;
            if before > 0 && answer.status() == StatusCode::OK {
                writer.send(Piece::Restart).await?;
            }
            match self.stream(answer, &mut writer, descriptor.size).await {
                Ok(()) => break,
                Err(Interrupted::Failed(error)) => return Err(error),
                // Each piece gained is a reason to go on.
                Err(Interrupted::Broken(_)) if writer.length > before => attempt = 2,
                Err(Interrupted::Broken(error)) if attempt >= ATTEMPTS => return Err(error),
                Err(Interrupted::Broken(_)) => attempt += 1,
            }
            tracing::info!(blob = %descriptor.digest, at = writer.length, "the download broke off; resuming");
            sleep(backoff(attempt)).await;
        }
        let (file, found, length) = writer.finish().await?;
        if length != descriptor.size {
            let rule = format!(
                "it has {length} bytes, but {} were promised",
                descriptor.size
            );
            return Err(Error::refused(what, rule));
        }
        match found == descriptor.digest {
            true => Ok(Blob {
                file: Arc::new(file),
                offset: 0,
                length,
            }),
            false => Err(Error::Mismatch {
                what,
                expected: descriptor.digest,
                found,
            }),
        }
    }

    async fn ranged(&self, descriptor: &Descriptor, start: u64) -> Result<Response<Incoming>> {
        let path = format!("blobs/{}", descriptor.digest);
        let mut headers = HeaderMap::new();
        if start > 0
            && let Ok(value) = HeaderValue::try_from(format!("bytes={start}-"))
        {
            headers.insert(RANGE, value);
        }
        let answer = self.request(Method::GET, &path, headers).await?;
        if start > 0 && answer.status() == StatusCode::PARTIAL_CONTENT {
            let range = answer
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|value| value.to_str().ok());
            if !range.is_some_and(|range| range.starts_with(&format!("bytes {start}-"))) {
                let rule = format!(
                    "the registry sent the range {range:?} instead of bytes from {start} on"
                );
                return Err(Error::refused(
                    format!("the blob {}", descriptor.digest),
                    rule,
                ));
            }
        } else if answer.status() == StatusCode::PARTIAL_CONTENT {
            let what = format!("the blob {}", descriptor.digest);
            return Err(Error::refused(
                what,
                "the registry sent a part of it without being asked for one",
            ));
        }
        self.successful(answer).await
    }

    /// Passes a body on to the file, at most `size` bytes in all.
    async fn stream(
        &self,
        answer: Response<Incoming>,
        writer: &mut Writer,
        size: u64,
    ) -> Result<(), Interrupted> {
        let mut body = answer.into_body();
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| {
            Interrupted::Broken(Error::Connection {
                image: self.image.clone(),
                action: "download a layer from",
                target: self.origin().authority(),
                source,
            })
        };
        loop {
            let frame = timeout(STALL, body.frame()).await;
            let frame = match frame.map_err(|_| broken("nothing came for 60 seconds".into()))? {
                Some(frame) => frame.map_err(|error| broken(error.into()))?,
                None if writer.length < size => return Err(broken("it ended too early".into())),
                None => return Ok(()),
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if writer.length + data.len() as u64 > size {
                let rule = format!(
                    "the registry sends more than the {size} bytes that its manifest promises"
                );
                return Err(Interrupted::Failed(Error::refused("a layer's blob", rule)));
            }
            writer
                .send(Piece::Data(data))
                .await
                .map_err(Interrupted::Failed)?;
        }
    }
}

enum Interrupted {
    /// Worth resuming.
    Broken(Error),
    Failed(Error),
}

/// Hashes and writes on a thread of its own: a disk that is slow must not hold up the event loop.
struct Writer {
    pieces: mpsc::Sender<Piece>,
    thread: JoinHandle<io::Result<(File, Digest)>>,
    /// Bytes handed over since the last start.
    length: u64,
}

impl Writer {
    fn start(store: &Store) -> Result<Self> {
        let file = store.unnamed_file()?;
        let (pieces, queue) = mpsc::channel(QUEUE);
        let thread = tokio::task::spawn_blocking(move || write(file, queue));
        Ok(Self {
            pieces,
            thread,
            length: 0,
        })
    }

    async fn send(&mut self, piece: Piece) -> Result<()> {
        self.length = match &piece {
            Piece::Data(data) => self.length + data.len() as u64,
            Piece::Restart => 0,
        };
        if self.pieces.send(piece).await.is_ok() {
            return Ok(());
        }
        // It has ended, so it has failed.
        joined((&mut self.thread).await).and(Err(Error::Cancelled))
    }

    async fn finish(self) -> Result<(File, Digest, u64)> {
        drop(self.pieces);
        let (file, digest) = joined(self.thread.await)?;
        Ok((file, digest, self.length))
    }
}

fn joined<T>(result: Result<io::Result<T>, tokio::task::JoinError>) -> Result<T> {
    result
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(Error::file("write a download to", "the store"))
}

fn write(mut file: File, mut queue: mpsc::Receiver<Piece>) -> io::Result<(File, Digest)> {
    let mut hasher = Hasher::default();
    while let Some(piece) = queue.blocking_recv() {
        match piece {
            Piece::Data(data) => {
                hasher.update(&data);
                file.write_all(&data)?;
            }
            Piece::Restart => {
                hasher = Hasher::default();
                file.set_len(0)?;
                file.seek(SeekFrom::Start(0))?;
            }
        }
    }
    Ok((file, hasher.finish()))
}
