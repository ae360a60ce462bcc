//! The socket that the CNI plugins call: who may call, how a message is framed, how many calls are in hand, which of them
//! wait for each other, and what happens when a caller hangs up. Knows nothing of what a call does.
//!
//! Tasks: the accept loop, and two for each connection, one that carries the call out and one that reads. The latter sees
//! the hang-up and sets the call's abort switch; a call is never dropped in the middle of a step, it looks at the switch
//! between steps and undoes what it did.
//!
//! Calls for one container are serial. While a call waits for a foreign plugin it lends its turn: that plugin may execute
//! one of ours (`spiderpool` as the IPAM of `bridge`), which is a call of the same container.

use std::collections::HashMap;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cni::wire::{self, Call, Exec, ExecDone, Reply, ToAgent, ToClient, WireError};
use runtime::Shutdown;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc};

/// Connections at once. A node starts at most some hundred pods at a time (kubelet's default is 110 pods), each with a few
/// plugins; each connection costs two file descriptors, of which a process has 1024 by default.
const MAX_CONNECTIONS: usize = 384;
/// Calls that are worked on at once; the others wait in order. More only lengthens the queues of netlink and OVSDB, each of
/// which does one thing at a time.
const MAX_IN_HAND: usize = 32;
/// A caller sends its one message right after it connected; one that does not is broken, and holds a connection.
const FIRST_FRAME_WAIT: Duration = Duration::from_secs(5);
/// A caller that does not take its reply is as good as gone.
const WRITE_WAIT: Duration = Duration::from_secs(5);
/// How long a foreign plugin may run: below the minute after which the caller gives up, so that there is time to undo.
const EXEC_WAIT: Duration = Duration::from_secs(45);
/// How long calls in hand may go on after the process was told to stop; then they abort, which takes them well below the
/// 30 s that a container has before it is killed.
const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// A call's caller hung up, or the process ends: undo.
pub type Abort = Shutdown;

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{0:?} exists and is no socket")]
    NoSocket(PathBuf),
    #[error("failed to listen on {0:?}")]
    Listen(PathBuf, #[source] io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("caller hung up in the middle of a message")]
    Torn,
    #[error("failed to read from the caller")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("more than one file descriptor with a message")]
    Descriptors,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the caller hung up while it was to execute {0}")]
    HungUp(String),
    #[error("plugin {0} did not end within {secs} s", secs = EXEC_WAIT.as_secs())]
    Timeout(String),
    #[error("there is nobody to execute plugin {0}: no call is in hand")]
    Nobody(String),
    #[error("failed to ask the caller to execute {0}")]
    Send(String, #[source] io::Error),
}

/// Executes a foreign plugin on the host: the caller's hands.
pub trait Runner: Send {
    fn exec(&mut self, what: Exec) -> impl Future<Output = Result<ExecDone, RunError>> + Send;
}

/// For work that no call stands behind (start-up, retries).
#[derive(Debug)]
pub struct NoRunner;

impl Runner for NoRunner {
    async fn exec(&mut self, what: Exec) -> Result<ExecDone, RunError> {
        Err(RunError::Nobody(what.plugin))
    }
}

/// What a call does.
pub trait Handler: Send + Sync + 'static {
    fn call<R: Runner>(
        &self,
        call: &Call,
        netns: Option<OwnedFd>,
        runner: &mut R,
        abort: &Abort,
    ) -> impl Future<Output = Result<Value, cni::Error>> + Send;

    /// The call succeeded and its caller never heard of it.
    fn take_back(&self, call: &Call) -> impl Future<Output = ()> + Send;
}

#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
}

impl Server {
    /// Listens with mode 0600. A socket file that is left from an earlier life is replaced.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let listen = |e| ServerError::Listen(path.to_owned(), e);
        match fs::symlink_metadata(path) {
            Ok(m) if m.file_type().is_socket() => fs::remove_file(path).map_err(listen)?,
            Ok(_) => return Err(ServerError::NoSocket(path.to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(dir) = path.parent() {
                    fs::create_dir_all(dir).map_err(listen)?;
                }
            }
            Err(e) => return Err(listen(e)),
        }
        let listener = UnixListener::bind(path).map_err(listen)?;
        // Between the two calls the file has the umask's mode; the check of the peer's uid stands from the first moment.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(listen)?;
        Ok(Self { listener })
    }

    /// Serves until the shutdown, then waits for what is in hand.
    pub async fn run<H: Handler>(self, handler: Arc<H>, shutdown: Shutdown) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let turns = Arc::new(Turns { serial: Mutex::default(), in_hand: Arc::new(Semaphore::new(MAX_IN_HAND)) });
        let shared = Arc::new(Shared { handler, turns });
        let give_up = Abort::new();
        loop {
            // Taken before accept: what is too much waits in the kernel's backlog.
            let permit = tokio::select! {
                () = shutdown.wait() => break,
                p = connections.clone().acquire_owned() => p.expect("the semaphore is never closed"),
            };
            let stream = tokio::select! {
                () = shutdown.wait() => break,
                a = self.listener.accept() => match a {
                    Ok((s, _)) => s,
                    Err(error) => {
                        // Out of descriptors, most likely: some will be closed soon.
                        tracing::warn!(%error, "failed to accept a cni call, will retry");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let (shared, give_up) = (shared.clone(), give_up.clone());
            tokio::spawn(async move {
                shared.serve(stream, give_up).await;
                drop(permit);
            });
        }
        drop(self.listener);
        let all = u32::try_from(MAX_CONNECTIONS).expect("a small number");
        if tokio::time::timeout(DRAIN_WAIT, connections.acquire_many(all)).await.is_err() {
            give_up.trigger();
            // Undoing is bounded by itself; this bounds the bound.
            let _ = tokio::time::timeout(DRAIN_WAIT, connections.acquire_many(all)).await;
        }
    }
}

struct Shared<H> {
    handler: Arc<H>,
    turns: Arc<Turns>,
}

impl<H: Handler> Shared<H> {
    async fn serve(&self, stream: UnixStream, give_up: Abort) {
        match stream.peer_cred() {
            Ok(c) if c.uid() == 0 || c.uid() == nix::unistd::geteuid().as_raw() => {}
            Ok(c) => {
                tracing::warn!(uid = c.uid(), pid = c.pid(), "cni call by another user than root was refused");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "failed to learn who calls");
                return;
            }
        }
        let first = match tokio::time::timeout(FIRST_FRAME_WAIT, first_frame(&stream)).await {
            Ok(f) => f,
            Err(_) => {
                tracing::warn!("a caller sent no message in time");
                return;
            }
        };
        let (read, mut write) = stream.into_split();
        let (call, netns) = match first.and_then(|(bytes, fd)| Ok((decode(&bytes)?, fd))) {
            Ok((ToAgent::Call(call), fd)) => (call, fd),
            Ok((ToAgent::ExecDone(_), _)) => {
                return send(&mut write, &failed(&cni::Error::decode("the first message is no call"))).await.unwrap_or(());
            }
            Err(e) => {
                tracing::warn!(error = %e, "bad message from a caller");
                return send(&mut write, &failed(&cni::Error::decode(with_causes(&e)))).await.unwrap_or(());
            }
        };
        let abort = Abort::new();
        // Room for one: a caller speaks only when it is asked.
        let (tx, answers) = mpsc::channel(1);
        let listening = tokio::spawn(listen(read, tx, abort.clone(), give_up));
        let turn = tokio::select! {
            t = self.turns.take(&call.container_id) => Some(t),
            () = abort.wait() => None,
        };
        if let Some(turn) = turn {
            let mut caller =
                Caller { write, answers, turns: self.turns.clone(), container: call.container_id.clone(), turn: Some(turn) };
            self.carry_out(&call, netns, &mut caller, &abort).await;
        }
        listening.abort();
    }

    async fn carry_out(&self, call: &Call, netns: Option<OwnedFd>, runner: &mut Caller, abort: &Abort) {
        plumbing::stop::begin(call.verb.as_str());
        let done = self.handler.call(call, netns, runner, abort).await;
        plumbing::stop::step(&"before the reply");
        let (answer, made) = match done {
            Ok(result) => (ToClient::Reply(Reply::done(result)), call.verb == cni::Verb::Add),
            Err(e) => (failed(&e), false),
        };
        let told = if abort.is_set() { Err(io::ErrorKind::BrokenPipe.into()) } else { send(&mut runner.write, &answer).await };
        plumbing::stop::step(&"after the reply");
        if let Err(error) = told {
            tracing::warn!(container = call.container_id, ifname = call.ifname, %error, "the caller hung up before the reply");
            if made {
                self.handler.take_back(call).await;
            }
        }
    }
}

fn failed(e: &cni::Error) -> ToClient {
    ToClient::Reply(Reply::failed(e))
}

async fn send(write: &mut OwnedWriteHalf, message: &ToClient) -> io::Result<()> {
    let frame = wire::encode(message).map_err(io::Error::other)?;
    tokio::time::timeout(WRITE_WAIT, write.write_all(&frame)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The caller of one call, as its hands.
struct Caller {
    write: OwnedWriteHalf,
    answers: mpsc::Receiver<ExecDone>,
    turns: Arc<Turns>,
    container: String,
    turn: Option<Turn>,
}

impl Caller {
    async fn ask(&mut self, what: Exec) -> Result<ExecDone, RunError> {
        let plugin = what.plugin.clone();
        plumbing::stop::step(&plugin);
        send(&mut self.write, &ToClient::Exec(what)).await.map_err(|e| RunError::Send(plugin.clone(), e))?;
        match tokio::time::timeout(EXEC_WAIT, self.answers.recv()).await {
            Ok(Some(done)) => {
                plumbing::stop::step(&"a foreign plugin has ended");
                Ok(done)
            }
            Ok(None) => Err(RunError::HungUp(plugin)),
            Err(_) => Err(RunError::Timeout(plugin)),
        }
    }
}

impl Runner for Caller {
    async fn exec(&mut self, what: Exec) -> Result<ExecDone, RunError> {
        self.turn = None;
        let done = self.ask(what).await;
        // Also after a hang-up: whatever is to be undone is undone in turn.
        self.turn = Some(self.turns.take(&self.container).await);
        done
    }
}

/// Reads what the caller answers, until it hangs up.
async fn listen(mut read: OwnedReadHalf, answers: mpsc::Sender<ExecDone>, abort: Abort, give_up: Abort) {
    loop {
        let message = tokio::select! {
            m = next_frame(&mut read) => m,
            () = give_up.wait() => break,
        };
        match message.and_then(|m| m.map(|b| decode(&b)).transpose()) {
            Ok(Some(ToAgent::ExecDone(done))) => {
                // Full or closed: nobody asked, and a caller that talks unasked is broken.
                if answers.try_send(done).is_err() {
                    break;
                }
            }
            Ok(Some(ToAgent::Call(_))) => break,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "bad message from a caller");
                break;
            }
        }
    }
    abort.trigger();
}

fn decode(bytes: &[u8]) -> Result<ToAgent, FrameError> {
    Ok(wire::decode(bytes)?)
}

/// The first frame, with the descriptor that came with its first byte.
async fn first_frame(stream: &UnixStream) -> Result<(Vec<u8>, Option<OwnedFd>), FrameError> {
    let mut head = [0u8; 4];
    let (mut have, fd) = loop {
        stream.readable().await.map_err(FrameError::Read)?;
        match stream.try_io(Interest::READABLE, || receive(stream, &mut head)) {
            Ok((0, _)) => return Err(FrameError::Torn),
            Ok((n, mut fds)) => {
                if fds.len() > 1 {
                    return Err(FrameError::Descriptors);
                }
                break (n, fds.pop());
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(FrameError::Read(e)),
        }
    };
    while have < head.len() {
        have += read_some(stream, &mut head[have..]).await?;
    }
    let mut body = vec![0u8; wire::body_len(head)?];
    let mut have = 0;
    while have < body.len() {
        have += read_some(stream, &mut body[have..]).await?;
    }
    Ok((body, fd))
}

async fn read_some(stream: &UnixStream, into: &mut [u8]) -> Result<usize, FrameError> {
    loop {
        stream.readable().await.map_err(FrameError::Read)?;
        match stream.try_read(into) {
            Ok(0) => return Err(FrameError::Torn),
            Ok(n) => return Ok(n),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(FrameError::Read(e)),
        }
    }
}

/// recvmsg(2): bytes and descriptors. Those beyond the room for two are closed by the kernel.
fn receive(stream: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(into)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(these) = message {
            fds.extend(these);
        }
    }
    Ok((got.bytes, fds))
}

/// `None`: the caller hung up between two messages.
async fn next_frame(read: &mut OwnedReadHalf) -> Result<Option<Vec<u8>>, FrameError> {
    let mut head = [0u8; 4];
    match read.read_exact(&mut head).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(FrameError::Read(e)),
    }
    let mut body = vec![0u8; wire::body_len(head)?];
    read.read_exact(&mut body).await.map_err(|_| FrameError::Torn)?;
    Ok(Some(body))
}

/// The right to work: alone for a container, and one of `MAX_IN_HAND`.
struct Turn {
    _serial: OwnedMutexGuard<()>,
    _permit: OwnedSemaphorePermit,
}

struct Turns {
    serial: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    in_hand: Arc<Semaphore>,
}

impl Turns {
    /// Waits for the container first, so that calls which wait for each other take no one else's place.
    async fn take(&self, container: &str) -> Turn {
        let lock = {
            let mut all = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for: at most as many stay as there are connections.
            if all.len() > MAX_CONNECTIONS {
                all.retain(|_, l| Arc::strong_count(l) > 1);
            }
            all.entry(container.to_owned()).or_default().clone()
        };
        let serial = lock.lock_owned().await;
        let permit = self.in_hand.clone().acquire_owned().await.expect("the semaphore is never closed");
        Turn { _serial: serial, _permit: permit }
    }
}

pub(crate) fn with_causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        text.push_str(": ");
        text.push_str(&c.to_string());
        cause = c.source();
    }
    text
}
