//! The task that owns the socket: connects, pairs replies with requests, answers and sends echoes, feeds replicas, and
//! starts afresh when anything breaks. It knows no table.
//!
//! It is spawned by `Client::connect` and ends when the last handle is dropped. It holds no lock over an await, and all
//! its waiting is in `select!` on operations that lose nothing when cancelled. Update notifications are applied here, in
//! the order they came, so there is no queue of them that could overflow.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::codec::{Encoder, FramedRead};
use tracing::{debug, info, warn};

use crate::client::{Config, State};
use crate::codec::{CodecError, JsonCodec};
use crate::endpoint::Connector;
use crate::error::Error;
use crate::monitor::{MonitorRequest, Shared, TableUpdates, UpdateError};
use crate::op::parse_refusal;
use crate::schema::Schema;

/// Requests sent whose replies have not come. The server works through them in order of milliseconds; more in flight
/// would only be memory. Waiting transactions count too.
const MAX_IN_FLIGHT: usize = 1024;

/// Bytes that the server has not taken yet above which no further request is accepted: it is behind.
const MAX_UNSENT: usize = 1 << 20;

/// Above this even echo answers have piled up: the server talks but does not listen.
const MAX_UNSENT_ANSWERS: usize = 4 << 20;

pub(crate) enum Command {
    Call { id: u64, method: &'static str, params: Box<RawValue>, reply: Reply },
    Cancel { id: u64 },
    Monitor { id: u64, request: MonitorRequest, shared: Weak<Shared> },
    Lock { name: String, held: watch::Sender<bool> },
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Command")
    }
}

/// Wakes the connection's task when it is dropped, to give back at the server what its owner held.
#[derive(Debug, Default)]
pub(crate) struct Release(pub(crate) Arc<Notify>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

type Reply = oneshot::Sender<Result<Box<RawValue>, Error>>;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the server closed the connection")]
    Closed,
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("failed to write: {0}")]
    Write(#[source] io::Error),
    #[error("the server gave no sign of life for {0:?}")]
    Silent(Duration),
    #[error("the server does not take what is sent to it")]
    Deaf,
    #[error("malformed message: {0}")]
    Message(#[source] serde_json::Error),
    #[error(transparent)]
    Refused(Error),
    #[error(transparent)]
    Update(#[from] UpdateError),
    #[error("a monitor was cancelled by the server")]
    MonitorCancelled,
}

pub(crate) struct Actor<C> {
    connector: C,
    config: Config,
    inbox: mpsc::Receiver<Command>,
    /// A replica or a lock was dropped.
    released: Arc<Notify>,
    state: watch::Sender<State>,
    monitors: BTreeMap<u64, Monitor>,
    locks: BTreeMap<String, watch::Sender<bool>>,
}

struct Monitor {
    request: MonitorRequest,
    shared: Weak<Shared>,
}

impl<C: Connector> Actor<C> {
    pub(crate) fn new(
        connector: C,
        config: Config,
        inbox: mpsc::Receiver<Command>,
        released: Arc<Notify>,
        state: watch::Sender<State>,
    ) -> Self {
        Actor { connector, config, inbox, released, state, monitors: BTreeMap::new(), locks: BTreeMap::new() }
    }

    pub(crate) async fn run(mut self) {
        let server = self.connector.describe();
        let mut backoff = Backoff::new(self.config.backoff_min, self.config.backoff_max);
        loop {
            let Some(stream) = self.connect().await else { return };
            let reason = match stream {
                Ok(stream) => {
                    let began = Instant::now();
                    let Some(broken) = self.converse(stream).await else { return };
                    // A server that takes connections only to drop them is not to be hammered.
                    if began.elapsed() > self.config.backoff_max {
                        backoff.reset();
                    }
                    broken.to_string()
                }
                Err(error) => format!("failed to connect to {server}: {error}"),
            };
            let pause = backoff.next();
            debug!(%server, reason, pause = ?pause, "OVSDB connection is tried again");
            self.state.send_replace(State::Disconnected { reason: reason.into() });
            if self.refuse_until(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// `None` when the last handle is gone.
    async fn connect(&mut self) -> Option<io::Result<C::Stream>> {
        // Connecting borrows the connector while commands are refused, so the two are taken apart for its duration.
        let Actor { connector, config, inbox, state, monitors, locks, .. } = self;
        let connecting = tokio::time::timeout(config.connect_timeout, connector.connect());
        tokio::pin!(connecting);
        loop {
            tokio::select! {
                done = &mut connecting => {
                    return Some(done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())));
                }
                command = inbox.recv() => refuse(command?, state, monitors, locks),
            }
        }
    }

    async fn refuse_until(&mut self, end: impl Future<Output = ()>) -> Option<()> {
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return Some(()),
                command = self.inbox.recv() => refuse(command?, &self.state, &mut self.monitors, &mut self.locks),
            }
        }
    }

    /// Until the connection breaks; `None` when the last handle is gone.
    async fn converse(&mut self, stream: C::Stream) -> Option<Broken> {
        let (reader, writer) = tokio::io::split(stream);
        let mut session = Session::new(self, reader, writer);
        let ended = session.run().await;
        let in_flight = std::mem::take(&mut session.in_flight);
        let reason: Arc<str> = match &ended {
            Ok(()) => "the client was dropped".into(),
            Err(broken) => broken.to_string().into(),
        };
        if ended.is_err() {
            warn!(server = self.connector.describe(), %reason, "OVSDB connection broke");
        }
        // Replicas and locks first: a caller that is told of the break shall not find them as before.
        self.state.send_replace(State::Disconnected { reason: Arc::clone(&reason) });
        for shared in self.monitors.values().filter_map(|monitor| monitor.shared.upgrade()) {
            shared.set_synced(false);
        }
        for held in self.locks.values() {
            held.send_replace(false);
        }
        for waiting in in_flight.into_values() {
            if let InFlight::Call { reply, .. } = waiting {
                // Whether anybody still waits does not matter.
                let _ = reply.send(Err(Error::Disconnected { reason: Arc::clone(&reason) }));
            }
        }
        ended.err()
    }
}

/// What happens to a command without a connection: calls fail, the rest is remembered.
fn refuse(
    command: Command,
    state: &watch::Sender<State>,
    monitors: &mut BTreeMap<u64, Monitor>,
    locks: &mut BTreeMap<String, watch::Sender<bool>>,
) {
    match command {
        Command::Call { reply, .. } => {
            let reason = match &*state.borrow() {
                State::Disconnected { reason } => Arc::clone(reason),
                State::Connected { .. } => "reconnecting".into(),
            };
            let _ = reply.send(Err(Error::NotConnected { reason }));
        }
        Command::Cancel { .. } => {}
        Command::Monitor { id, request, shared } => drop(monitors.insert(id, Monitor { request, shared })),
        Command::Lock { name, held } => drop(locks.insert(name, held)),
    }
}

/// What a reply is for.
enum InFlight {
    Call {
        method: &'static str,
        reply: Reply,
    },
    Schema,
    Monitor {
        id: u64,
    },
    Lock {
        name: String,
    },
    /// Nobody waits for the content.
    Ignored,
}

/// One connection.
struct Session<'a, C: Connector> {
    actor: &'a mut Actor<C>,
    frames: FramedRead<ReadHalf<C::Stream>, JsonCodec>,
    writer: WriteHalf<C::Stream>,
    unsent: BytesMut,
    unflushed: bool,
    in_flight: HashMap<RequestId, InFlight>,
    /// Own requests are numbered apart from the callers', who number theirs themselves.
    next_own: u64,
    schema: Option<Arc<Schema>>,
    heard: Instant,
    probed: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RequestId {
    Caller(u64),
    Own(u64),
}

impl Serialize for RequestId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            RequestId::Caller(id) => serializer.serialize_u64(*id),
            RequestId::Own(id) => serializer.serialize_str(&format!("own-{id}")),
        }
    }
}

impl RequestId {
    fn parse(raw: &RawValue) -> Option<Self> {
        let text = raw.get();
        if let Some(own) = text.strip_prefix("\"own-").and_then(|rest| rest.strip_suffix('"')) {
            return own.parse().ok().map(RequestId::Own);
        }
        text.parse().ok().map(RequestId::Caller)
    }
}

#[derive(Serialize)]
struct Request<'a, P> {
    id: RequestId,
    method: &'a str,
    params: P,
}

/// To a request of the server's. Its own words go back as they came: as values they would have to fit ours, and a number need not.
#[derive(Serialize)]
struct Answer<'a> {
    id: &'a RawValue,
    result: Option<&'a RawValue>,
    error: Option<&'a str>,
}

/// Anything the server sends (RFC 7047 section 4): a reply has `result` or `error`, the rest a `method`.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(default)]
    method: Option<String>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

impl<'a, C: Connector> Session<'a, C> {
    fn new(actor: &'a mut Actor<C>, reader: ReadHalf<C::Stream>, writer: WriteHalf<C::Stream>) -> Self {
        let codec = JsonCodec::new(actor.config.max_message_len);
        Session {
            actor,
            frames: FramedRead::new(reader, codec),
            writer,
            unsent: BytesMut::new(),
            unflushed: false,
            in_flight: HashMap::new(),
            next_own: 0,
            schema: None,
            heard: Instant::now(),
            probed: None,
        }
    }

    async fn run(&mut self) -> Result<(), Broken> {
        let database = self.actor.config.database.clone();
        self.request("get_schema", json!([database]), InFlight::Schema)?;
        let interval = self.actor.config.probe_interval;
        loop {
            if self.unsent.len() > MAX_UNSENT_ANSWERS + self.actor.config.max_message_len {
                return Err(Broken::Deaf);
            }
            let accepting = self.in_flight.len() < MAX_IN_FLIGHT && self.unsent.len() < MAX_UNSENT;
            let silent_at = self.probed.unwrap_or(self.heard) + interval;
            tokio::select! {
                frame = self.frames.next() => {
                    let frame = frame.ok_or(Broken::Closed)??;
                    self.heard = Instant::now();
                    self.probed = None;
                    self.receive(&frame)?;
                }
                written = drive(&mut self.writer, &mut self.unsent), if self.unflushed => {
                    self.unflushed = !written.map_err(Broken::Write)?;
                }
                command = self.actor.inbox.recv(), if accepting => match command {
                    Some(command) => self.command(command)?,
                    None => return Ok(()),
                },
                () = self.actor.released.notified() => self.release()?,
                () = tokio::time::sleep_until(silent_at) => {
                    if self.probed.is_some() {
                        return Err(Broken::Silent(interval * 2));
                    }
                    self.probed = Some(Instant::now());
                    self.request("echo", json!([]), InFlight::Ignored)?;
                }
            }
        }
    }

    fn send(&mut self, message: impl Serialize) -> Result<(), CodecError> {
        self.unflushed = true;
        JsonCodec::new(self.actor.config.max_message_len).encode(message, &mut self.unsent)
    }

    fn request(&mut self, method: &str, params: impl Serialize, waiting: InFlight) -> Result<(), Broken> {
        let id = RequestId::Own(self.next_own);
        self.next_own += 1;
        self.send(Request { id, method, params })?;
        self.in_flight.insert(id, waiting);
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<(), Broken> {
        match command {
            // The caller gave up before it was sent.
            Command::Call { reply, .. } if reply.is_closed() => {}
            Command::Call { id, method, params, reply } => {
                let id = RequestId::Caller(id);
                match self.send(Request { id, method, params }) {
                    Ok(()) => drop(self.in_flight.insert(id, InFlight::Call { method, reply })),
                    // Appends all or nothing, so the connection goes on.
                    Err(error) => {
                        let _ = reply.send(Err(Error::Encode { method, reason: error.to_string() }));
                    }
                }
            }
            Command::Cancel { id } => {
                let id = RequestId::Caller(id);
                // RFC 7047 section 4.1.4 promises a reply with error "canceled"; ovsdb-server 3.1 cancels and sends none.
                if self.in_flight.remove(&id).is_some() {
                    self.send(json!({"id": null, "method": "cancel", "params": [id]}))?;
                }
            }
            Command::Monitor { id, request, shared } => {
                self.actor.monitors.insert(id, Monitor { request, shared });
                self.start_monitor(id)?;
            }
            Command::Lock { name, held } => {
                let replaced = self.actor.locks.insert(name.clone(), held);
                if self.schema.is_some() {
                    if let Some(replaced) = replaced {
                        // The server refuses to be asked twice for the same lock.
                        replaced.send_replace(false);
                        self.request("unlock", json!([name]), InFlight::Ignored)?;
                    }
                    self.request("lock", json!([name]), InFlight::Lock { name: name.clone() })?;
                }
            }
        }
        Ok(())
    }

    /// Does nothing before the schema is there: its arrival starts all monitors.
    fn start_monitor(&mut self, id: u64) -> Result<(), Broken> {
        let (Some(schema), Some(monitor)) = (&self.schema, self.actor.monitors.get(&id)) else {
            return Ok(());
        };
        let params = json!([self.actor.config.database, id, monitor.request.encode(schema)]);
        self.request("monitor_cond", params, InFlight::Monitor { id })
    }

    fn receive(&mut self, frame: &[u8]) -> Result<(), Broken> {
        let message: Message<'_> = serde_json::from_slice(frame).map_err(Broken::Message)?;
        match (message.method.as_deref(), message.id) {
            (Some("echo"), Some(id)) => Ok(self.send(Answer { id, result: message.params, error: None })?),
            (Some("update2"), _) => self.update(message.params),
            (Some(method @ ("locked" | "stolen")), _) => {
                self.lock_changed(message.params, method == "locked");
                Ok(())
            }
            (Some("monitor_canceled"), _) => Err(Broken::MonitorCancelled),
            (Some(method), Some(id)) => {
                debug!(method, "request of the OVSDB server is not known");
                Ok(self.send(Answer { id, result: None, error: Some("unknown method") })?)
            }
            (Some(method), None) => {
                debug!(method, "notification of the OVSDB server is not known");
                Ok(())
            }
            (None, id) => self.reply(id, message.result, message.error),
        }
    }

    fn reply(&mut self, id: Option<&RawValue>, result: Option<&RawValue>, error: Option<&RawValue>) -> Result<(), Broken> {
        let Some(waiting) = id.and_then(RequestId::parse).and_then(|id| self.in_flight.remove(&id)) else {
            debug!(id = id.map(RawValue::get), "reply of the OVSDB server to nothing that was asked");
            return Ok(());
        };
        let answer = |method: &'static str| match (result, error) {
            (_, Some(error)) => Err(parse_refusal(method, error)),
            (Some(result), None) => Ok(result),
            (None, None) => Err(Error::Reply { method, reason: "it has neither result nor error".to_owned() }),
        };
        match waiting {
            InFlight::Call { method, reply } => {
                // Whether anybody still waits does not matter.
                let _ = reply.send(answer(method).map(ToOwned::to_owned));
            }
            InFlight::Ignored => {}
            InFlight::Schema => {
                let schema = answer("get_schema").map_err(Broken::Refused)?;
                let schema: Schema = serde_json::from_str(schema.get()).map_err(Broken::Message)?;
                self.begin(Arc::new(schema))?;
            }
            InFlight::Monitor { id } => {
                let content = answer("monitor_cond").map_err(Broken::Refused)?;
                let schema = self.schema.as_ref().expect("monitors are started after the schema came");
                if let Some(shared) = self.actor.monitors.get(&id).and_then(|monitor| monitor.shared.upgrade()) {
                    shared.reset(schema, content)?;
                }
            }
            InFlight::Lock { name } => {
                #[derive(Deserialize)]
                struct Locked {
                    locked: bool,
                }
                let locked = answer("lock").map_err(Broken::Refused)?;
                let locked: Locked = serde_json::from_str(locked.get()).map_err(Broken::Message)?;
                if let Some(handle) = self.actor.locks.get(&name) {
                    handle.send_replace(locked.locked);
                }
            }
        }
        Ok(())
    }

    /// The server is what we look for: everything that outlives a connection is asked for again.
    fn begin(&mut self, schema: Arc<Schema>) -> Result<(), Broken> {
        info!(server = self.actor.connector.describe(), version = schema.version, "OVSDB connected");
        self.schema = Some(Arc::clone(&schema));
        self.actor.monitors.retain(|_, monitor| monitor.shared.strong_count() > 0);
        self.actor.locks.retain(|_, held| !held.is_closed());
        let ids: Vec<u64> = self.actor.monitors.keys().copied().collect();
        for id in ids {
            self.start_monitor(id)?;
        }
        let names: Vec<String> = self.actor.locks.keys().cloned().collect();
        for name in names {
            self.request("lock", json!([name]), InFlight::Lock { name: name.clone() })?;
        }
        self.actor.state.send_replace(State::Connected { schema });
        Ok(())
    }

    fn update(&mut self, params: Option<&RawValue>) -> Result<(), Broken> {
        let params = params.map_or("[]", RawValue::get);
        let (id, updates): (u64, TableUpdates) = serde_json::from_str(params).map_err(Broken::Message)?;
        // Updates of a monitor that is being cancelled may still come.
        match self.actor.monitors.get(&id).and_then(|monitor| monitor.shared.upgrade()) {
            Some(shared) => Ok(shared.update(updates)?),
            None => Ok(()),
        }
    }

    fn lock_changed(&mut self, params: Option<&RawValue>, held: bool) {
        let name = params.and_then(|params| serde_json::from_str::<[String; 1]>(params.get()).ok());
        if let Some(handle) = name.and_then(|[name]| self.actor.locks.get(&name)) {
            handle.send_replace(held);
        }
    }

    /// Gives back what nobody holds any more.
    fn release(&mut self) -> Result<(), Broken> {
        let dead: Vec<u64> =
            self.actor.monitors.extract_if(.., |_, monitor| monitor.shared.strong_count() == 0).map(|(id, _)| id).collect();
        let free: Vec<String> = self.actor.locks.extract_if(.., |_, held| held.is_closed()).map(|(name, _)| name).collect();
        // Before the schema came nothing was asked for.
        if self.schema.is_some() {
            for id in dead {
                self.request("monitor_cancel", json!([id]), InFlight::Ignored)?;
            }
            for name in free {
                self.request("unlock", json!([name]), InFlight::Ignored)?;
            }
        }
        Ok(())
    }
}

/// Writes some of what is unsent, or flushes when all is written; true when nothing is left to do.
async fn drive(writer: &mut (impl AsyncWrite + Unpin), unsent: &mut BytesMut) -> io::Result<bool> {
    if unsent.is_empty() {
        writer.flush().await?;
        return Ok(true);
    }
    match writer.write_buf(unsent).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(false),
    }
}

/// Doubling pauses with jitter, so that many clients of one server do not come back together.
struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    fn new(min: Duration, max: Duration) -> Self {
        Backoff { min, max, next: min }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    /// Half of the pause is fixed, half is drawn.
    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        // Each RandomState has fresh keys: random enough for this.
        let drawn = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        pause / 2 + (pause / 2).mul_f64(drawn)
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
