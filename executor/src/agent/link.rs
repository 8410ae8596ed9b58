//! The executor's link to the agent: an event stream and a queue of calls that are made and given up together, again
//! and again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::client::{Client, Connection, Error};
use super::messages::{Call, Event};

/// How often a call is tried again while the agent recovers.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Where the agent does not say how long it waits for us.
const DEFAULT_BACKOFF: Duration = Duration::from_secs(2);

/// What happens on the link.
#[derive(Debug)]
pub enum LinkEvent {
    /// The agent is there; it wants a SUBSCRIBE next.
    Connected,
    /// The agent is gone, or not there, or does not want our SUBSCRIBE. The link stays down until `connect`.
    Disconnected(Error),
    /// The agent accepted the update with this uuid.
    Accepted(Bytes),
    /// The agent did not accept a call.
    Rejected(Error),
    /// From the agent.
    Event(Box<Event>),
}

/// The link. What is left of an earlier connection is never heard of again.
pub struct Link {
    client: Arc<Client>,
    backoff: Duration,
    generation: u64,
    sender: mpsc::Sender<(u64, LinkEvent)>,
    receiver: mpsc::Receiver<(u64, LinkEvent)>,
    current: Option<Current>,
}

struct Current {
    subscribe: Option<oneshot::Sender<Call>>,
    calls: mpsc::UnboundedSender<Call>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Current {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Link {
    /// Not connected yet. `backoff` is how long a restarted agent waits for us.
    pub fn new(client: Arc<Client>, backoff: Option<Duration>) -> Self {
        let (sender, receiver) = mpsc::channel(64);
        Link {
            client,
            // A quarter, so that there are several attempts within the time even if some of them fail.
            backoff: backoff.unwrap_or(DEFAULT_BACKOFF) / 4,
            generation: 0,
            sender,
            receiver,
            current: None,
        }
    }

    /// Gives up the present connection and makes another: the very first at once, later ones after a random time, so
    /// that the executors of a node do not all come at once.
    pub fn connect(&mut self) {
        let delay = match self.generation {
            0 => Duration::ZERO,
            _ => random_up_to(self.backoff),
        };
        self.generation += 1;
        let report = Report {
            generation: self.generation,
            sender: self.sender.clone(),
        };
        let (subscribe, subscription) = oneshot::channel();
        let (calls, queue) = mpsc::unbounded_channel();
        let stream = stream(self.client.clone(), delay, subscription, report.clone());
        let calling = make_calls(self.client.clone(), queue, report);
        self.current = Some(Current {
            subscribe: Some(subscribe),
            calls,
            tasks: [tokio::spawn(stream), tokio::spawn(calling)],
        });
    }

    /// Answers `Connected` with a SUBSCRIBE.
    pub fn subscribe(&mut self, call: Call) {
        let sender = self
            .current
            .as_mut()
            .and_then(|current| current.subscribe.take());
        // Nobody takes it when the connection is gone again, which is reported.
        if let Some(sender) = sender {
            let _ = sender.send(call);
        }
    }

    /// Sends a call after those before it.
    pub fn call(&mut self, call: Call) {
        if let Some(current) = &self.current {
            // As above.
            let _ = current.calls.send(call);
        }
    }

    /// What happens next. May be dropped at any await.
    pub async fn next_event(&mut self) -> LinkEvent {
        loop {
            let received = self.receiver.recv().await;
            let (generation, event) = received.expect("a sender is kept here");
            if generation == self.generation {
                return event;
            }
        }
    }
}

#[derive(Clone)]
struct Report {
    generation: u64,
    sender: mpsc::Sender<(u64, LinkEvent)>,
}

impl Report {
    async fn send(&self, event: LinkEvent) {
        // Fails only when the link itself is dropped, and these tasks with it.
        let _ = self.sender.send((self.generation, event)).await;
    }
}

async fn stream(
    client: Arc<Client>,
    delay: Duration,
    subscription: oneshot::Receiver<Call>,
    report: Report,
) {
    sleep(delay).await;
    if let Err(error) = receive_events(&client, subscription, &report).await {
        report.send(LinkEvent::Disconnected(error)).await;
    }
}

async fn receive_events(
    client: &Arc<Client>,
    subscription: oneshot::Receiver<Call>,
    report: &Report,
) -> Result<(), Error> {
    let connection = client.connect().await?;
    report.send(LinkEvent::Connected).await;
    let Ok(call) = subscription.await else {
        return Ok(()); // another connection has taken our place
    };
    let mut events = connection.subscribe(&call).await?;
    loop {
        let event = events.next_event().await?;
        report.send(LinkEvent::Event(Box::new(event))).await;
    }
}

/// Sends the calls one after the other; the agent keeps updates in order only then.
async fn make_calls(client: Arc<Client>, mut queue: mpsc::UnboundedReceiver<Call>, report: Report) {
    let mut connection = None;
    while let Some(call) = queue.recv().await {
        if let Err(error) = make_call(&client, &mut connection, &call).await {
            report.send(LinkEvent::Rejected(error)).await;
            return;
        }
        if let Some(uuid) = call.update.and_then(|update| update.status.uuid) {
            report.send(LinkEvent::Accepted(uuid)).await;
        }
    }
}

async fn make_call(
    client: &Arc<Client>,
    kept: &mut Option<Connection>,
    call: &Call,
) -> Result<(), Error> {
    // A kept connection may have been closed meanwhile. The same update twice does no harm.
    let mut may_be_stale = kept.is_some();
    loop {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => client.connect().await?,
        };
        match connection.call(call).await {
            Ok(()) => {
                *kept = Some(connection);
                return Ok(());
            }
            Err(error) if error.is_recovering() => sleep(RETRY_INTERVAL).await,
            Err(Error::Http(_)) if may_be_stale => may_be_stale = false,
            Err(error) => return Err(error),
        }
    }
}

fn random_up_to(bound: Duration) -> Duration {
    let mut bytes = [0; 4];
    // Without randomness the longest time is as good.
    match getrandom::fill(&mut bytes) {
        Ok(()) => bound.mul_f64(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)),
        Err(_) => bound,
    }
}
