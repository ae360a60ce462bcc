//! The handle through which any number of callers use one connection. What the connection does is in `connection`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::codec::MAX_MESSAGE_LEN;
use crate::connection::{Actor, Command, Release};
use crate::endpoint::Connector;
use crate::error::Error;
use crate::monitor::{MonitorRequest, Replica, Shared};
use crate::op::{OpResult, Operation, TransactParams, check_identifier, parse_results};
use crate::schema::Schema;

/// Requests that wait for the connection's task. Small, because it takes them at once unless the server is behind; then
/// callers shall wait, not memory grow.
const MAX_QUEUED: usize = 64;

#[derive(Debug, Clone)]
pub struct Config {
    /// `Open_vSwitch` by default.
    pub database: String,
    /// Silence of the server after which it is asked for an echo, and for that answer again before the connection is
    /// given up. ovsdb-server does not probe unix sockets, so nobody else notices one that hangs. 5 s by default, as in
    /// the C clients.
    pub probe_interval: Duration,
    /// Time for one attempt to connect. 5 s by default.
    pub connect_timeout: Duration,
    /// Shortest and longest pause between attempts. 100 ms and 5 s by default: the server is mostly on this machine,
    /// and its restart takes less than a second.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// Longest message, both ways.
    pub max_message_len: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            database: "Open_vSwitch".to_owned(),
            probe_interval: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            max_message_len: MAX_MESSAGE_LEN,
        }
    }
}

/// Where the connection stands.
#[derive(Debug, Clone)]
pub enum State {
    /// `reason` of the last failure; `not tried yet` at first.
    Disconnected { reason: Arc<str> },
    /// The server answered with this schema.
    Connected { schema: Arc<Schema> },
}

impl State {
    pub fn is_connected(&self) -> bool {
        matches!(self, State::Connected { .. })
    }
}

/// Clones share one connection, which lives as long as one of them, a [`Replica`] or a [`Lock`] does.
///
/// Every call may be dropped at any point: nothing is left behind, but what was sent may be carried out. A dropped
/// `transact` is cancelled at the server, which ends one that still waits.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: String,
    max_message_len: usize,
    commands: mpsc::Sender<Command>,
    released: Arc<Notify>,
    state: watch::Receiver<State>,
    next_id: AtomicU64,
}

impl Client {
    /// Starts the task that connects, and reconnects for ever; returns at once. Must be called within a tokio runtime.
    pub fn connect(connector: impl Connector, config: Config) -> Self {
        let (commands, inbox) = mpsc::channel(MAX_QUEUED);
        let (state_sender, state) = watch::channel(State::Disconnected { reason: "not tried yet".into() });
        let released = Arc::new(Notify::new());
        let inner = Inner {
            database: config.database.clone(),
            max_message_len: config.max_message_len,
            commands,
            released: Arc::clone(&released),
            state,
            next_id: AtomicU64::new(0),
        };
        // The task ends by itself when the last handle is gone: its inbox closes.
        tokio::spawn(Actor::new(connector, config, inbox, released, state_sender).run());
        Client { inner: Arc::new(inner) }
    }

    pub fn state(&self) -> State {
        self.inner.state.borrow().clone()
    }

    /// Wakes on every change of the connection, with the latest state only.
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.inner.state.clone()
    }

    /// Waits for a connection; the error names the last failure.
    pub async fn connected(&self, timeout: Duration) -> Result<Arc<Schema>, Error> {
        let mut state = self.subscribe();
        // Whether it came about is read from the state: the error shall name the last failure.
        let _ = tokio::time::timeout(timeout, state.wait_for(State::is_connected)).await;
        match self.state() {
            State::Connected { schema } => Ok(schema),
            State::Disconnected { reason } => Err(Error::NotConnected { reason }),
        }
    }

    /// Runs the operations as one transaction: all or nothing. One result an operation.
    ///
    /// The server sends what the transaction changed before its reply, so a synced [`Replica`] of this client already
    /// shows it. Without a connection it fails at once with [`Error::NotConnected`]; it has no time limit of its own.
    pub async fn transact(&self, operations: Vec<Operation>) -> Result<Vec<OpResult>, Error> {
        operations.iter().try_for_each(Operation::check)?;
        let params = TransactParams { database: &self.inner.database, operations: &operations };
        let reply = self.call("transact", &params).await?;
        let described: Vec<String> = operations.iter().map(Operation::describe).collect();
        parse_results(&described, &reply)
    }

    /// Names of the databases that the server has.
    pub async fn list_dbs(&self) -> Result<Vec<String>, Error> {
        let reply = self.call("list_dbs", &[(); 0]).await?;
        serde_json::from_str(reply.get()).map_err(|error| Error::Reply { method: "list_dbs", reason: error.to_string() })
    }

    /// Asks the server for a sign of life.
    pub async fn echo(&self) -> Result<(), Error> {
        self.call("echo", &[(); 0]).await.map(drop)
    }

    /// Follows tables from now on, over reconnects too, until the last clone of the replica is dropped. Returns before
    /// the first content is there: see [`Replica::synced`].
    pub async fn monitor(&self, request: MonitorRequest) -> Result<Replica, Error> {
        let shared = Arc::new(Shared::new(Release(Arc::clone(&self.inner.released))));
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let command = Command::Monitor { id, request, shared: Arc::downgrade(&shared) };
        self.send(command).await?;
        Ok(Replica { shared, client: self.clone() })
    }

    /// Asks for a lock, over reconnects too, until the returned handle is dropped: see [`Lock::held`]. A
    /// further handle of the same name and client takes the place of the first. `name` must be an identifier.
    pub async fn lock(&self, name: &str) -> Result<Lock, Error> {
        check_identifier("lock", name)?;
        let (held, receiver) = watch::channel(false);
        self.send(Command::Lock { name: name.to_owned(), held }).await?;
        Ok(Lock { held: receiver, _release: Release(Arc::clone(&self.inner.released)), _client: self.clone() })
    }

    async fn send(&self, command: Command) -> Result<(), Error> {
        let stopped = |_| Error::NotConnected { reason: "the connection's task has ended".into() };
        self.inner.commands.send(command).await.map_err(stopped)
    }

    /// One request and its reply.
    async fn call(&self, method: &'static str, params: &impl Serialize) -> Result<Box<RawValue>, Error> {
        let params =
            serde_json::value::to_raw_value(params).map_err(|error| Error::Encode { method, reason: error.to_string() })?;
        let (len, max) = (params.get().len() + ENVELOPE_LEN, self.inner.max_message_len);
        if len > max {
            return Err(Error::TooLong { len, max });
        }
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.send(Command::Call { id, method, params, reply }).await?;
        let mut guard = CancelOnDrop { commands: &self.inner.commands, id, armed: method == "transact" };
        let result = answer.await;
        guard.armed = false;
        result.unwrap_or_else(|_| Err(Error::Disconnected { reason: "the connection's task has ended".into() }))
    }
}

/// Room for `{"id":...,"method":"...","params":}`.
const ENVELOPE_LEN: usize = 80;

/// Tells the server that nobody waits for a transaction any more (RFC 7047 section 4.1.4).
struct CancelOnDrop<'a> {
    commands: &'a mpsc::Sender<Command>,
    id: u64,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            // With a full queue the transaction runs to its end and its reply is thrown away.
            let _ = self.commands.try_send(Command::Cancel { id: self.id });
        }
    }
}

/// A lock of the server (RFC 7047 section 4.1.8), asked for until this is dropped.
#[derive(Debug)]
pub struct Lock {
    held: watch::Receiver<bool>,
    // After `held`: fields are dropped in this order, and the task must find that one gone.
    _release: Release,
    _client: Client,
}

impl Lock {
    /// As far as this client knows. Guard what must not be done without it by [`Operation::assert`].
    pub fn held(&self) -> bool {
        *self.held.borrow()
    }

    /// Waits until it is granted.
    pub async fn acquired(&mut self) {
        if self.held.wait_for(|held| *held).await.is_err() {
            // The connection's task has ended, with the runtime: nobody will grant it.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until it is lost: stolen, or the connection broke.
    pub async fn lost(&mut self) {
        let _ = self.held.wait_for(|held| !*held).await;
    }
}
