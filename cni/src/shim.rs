//! What a plugin's process does: read the call, hand it to the node's agent over its socket and print the answer, or run
//! it alone where the host has no agent. The one part of this crate that touches files, sockets and processes; blocking,
//! without threads but for the plugins it executes.

pub mod exec;
pub mod parent;
pub mod spool;

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg};
use serde_json::Value;

use crate::request::{RawCall, version_text};
use crate::wire::{self, Call, Exec, ToAgent, ToClient, WireError};
use crate::{Error, Request, Verb, version};

/// Written by the agent's installer: `{"socket": "/run/mooring/cni.sock", "spool": "/var/lib/mooring/spool"}`.
pub const AGENT_FILE: &str = "/etc/cni/net.d/mooring.d/agent.json";

/// What runs where no agent belongs to the host; its value is what ADD prints, null for the other verbs.
pub type Alone = fn(&Request) -> Result<Value, Error>;

#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until the socket takes the connection: an agent that is being replaced is gone for some seconds.
    pub connect: Duration,
    /// For each next message of the agent.
    pub reply: Duration,
    /// For each plugin that the agent has us execute.
    pub exec: Duration,
}

impl Timeouts {
    pub const DEFAULT: Timeouts =
        Timeouts { connect: Duration::from_secs(10), reply: Duration::from_secs(60), exec: exec::LIMIT };
}

/// A plugin's whole `main`. `about` is its name; `alone` is none for a plugin that only ever forwards.
pub fn run(about: &str, alone: Option<Alone>) -> ExitCode {
    let raw = RawCall::from_env(&|key| std::env::var(key).ok());
    if raw.command.is_empty() {
        // A person at a terminal: say what this is, besides the error that the specification wants.
        eprintln!("{about}: CNI plugin, versions {}", crate::Version::ALL.map(|v| v.as_str()).join(", "));
    }
    let mut stdin = Vec::new();
    if !raw.command.is_empty() {
        let limit = wire::MAX_FRAME as u64;
        if let Err(e) = std::io::stdin().lock().take(limit).read_to_end(&mut stdin) {
            return print(&version_text(&stdin), Err(Error::io(format!("failed to read standard input: {e}"))));
        }
    }
    if raw.command == Verb::Version.as_str() {
        return print("", Ok(version::reply(&stdin)));
    }
    let answer = Request::new(&raw, &stdin).and_then(|request| match agent_of(&request)? {
        Some(agent) => forward(&agent, &raw, &request, Timeouts::DEFAULT),
        None => match alone {
            Some(alone) => alone(&request),
            None => Err(Error::config(format!(
                "socket: missing, and {AGENT_FILE} is not there or alone is set: {about} has no work of its own, it needs the node's agent"
            ))),
        },
    });
    print(&version_text(&stdin), answer)
}

/// Results and errors go to standard output; exit code 1 tells them apart.
fn print(version: &str, answer: Result<Value, Error>) -> ExitCode {
    let (text, code) = match answer {
        Ok(Value::Null) => return ExitCode::SUCCESS,
        Ok(v) => (v.to_string(), ExitCode::SUCCESS),
        Err(e) => (e.to_value(version).to_string(), ExitCode::FAILURE),
    };
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Where the host's agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub socket: String,
    /// Where a DEL waits while the agent is down.
    pub spool: PathBuf,
}

/// Configuration decides who does the work: `alone` or `socket`, else the installer's file. Never whether a socket answers, or an
/// agent that is restarting would have plugins doing its work behind its back.
fn agent_of(request: &Request) -> Result<Option<Agent>, Error> {
    let named = request.conf.socket()?;
    if request.conf.alone()? {
        return match named {
            Some(socket) => {
                Err(Error::config(format!("alone true: must not stand beside socket {socket:?}, which names an agent")))
            }
            None => Ok(None),
        };
    }
    let text = match std::fs::read_to_string(AGENT_FILE) {
        Ok(t) => Some(t),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io(format!("failed to read {AGENT_FILE}: {e}"))),
    };
    let file = text.map(|t| agent_file(&t)).transpose()?;
    Ok(match named {
        Some(socket) => Some(Agent { socket: socket.to_owned(), spool: file.map_or_else(|| spool::DIR.into(), |f| f.spool) }),
        None => file,
    })
}

/// What the installer's file says.
pub fn agent_file(text: &str) -> Result<Agent, Error> {
    let v: Value = serde_json::from_str(text).map_err(|e| Error::config(format!("{AGENT_FILE}: {e}")))?;
    let path = |key: &str| match v.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) if s.starts_with('/') => Ok(Some(s.clone())),
        Some(_) => Err(Error::config(format!("{AGENT_FILE}: {key} must be an absolute path"))),
    };
    let socket = path("socket")?.ok_or_else(|| Error::config(format!("{AGENT_FILE}: socket must be an absolute path")))?;
    Ok(Agent { socket, spool: path("spool")?.map_or_else(|| spool::DIR.into(), PathBuf::from) })
}

/// Hands the call to the agent and does its executions until it replies. A DEL that finds no agent is spooled and done: the
/// runtime goes on, and the agent takes it up before it listens again.
pub fn forward(agent: &Agent, raw: &RawCall, request: &Request, timeouts: Timeouts) -> Result<Value, Error> {
    let socket = agent.socket.as_str();
    // DEL without its namespace is normal; ADD and CHECK need it.
    let netns = match (&request.netns, request.verb) {
        (None, _) => None,
        (Some(path), verb) => match File::open(path) {
            Ok(f) => Some(f),
            Err(e) if verb == Verb::Del && gone(&e) => None,
            Err(e) => return Err(Error::new(Error::UNKNOWN_CONTAINER, format!("CNI_NETNS {path:?}: failed to open: {e}"))),
        },
    };
    let call = Call::new(raw, request, parent::runtime(&raw.path));
    let mut stream = match connect(socket, timeouts.connect) {
        Ok(s) => s,
        Err(e) => {
            let seconds = timeouts.connect.as_secs_f32();
            let text = format!("failed to reach the node's agent at {socket} within {seconds} s: {e}");
            if request.verb == Verb::Del && is_down(&e) {
                return spool_del(&agent.spool, call, netns.as_ref(), &text);
            }
            let code = if request.verb == Verb::Status { Error::NOT_AVAILABLE } else { Error::TRY_AGAIN };
            return Err(Error::new(code, text).with_details("the agent is down or being replaced; see its log on this node"));
        }
    };
    let lost = |what: &str, e: &dyn std::fmt::Display| {
        Error::new(Error::TRY_AGAIN, format!("failed to {what} the node's agent at {socket}: {e}"))
    };
    stream.set_write_timeout(Some(timeouts.reply)).map_err(|e| lost("talk to", &e))?;
    let frame = wire::encode(&ToAgent::Call(call)).map_err(|e| Error::io(e.to_string()))?;
    send(&mut stream, &frame, netns.as_ref().map(AsRawFd::as_raw_fd)).map_err(|e| lost("send to", &e))?;
    loop {
        match receive(&mut stream, timeouts.reply).map_err(|e| lost("get an answer from", &e))? {
            ToClient::Reply(reply) => return reply.into_result(),
            ToClient::Exec(exec) => {
                let done = exec::run(&exec, timeouts.exec);
                let frame = wire::encode(&ToAgent::ExecDone(done)).map_err(|e| Error::io(e.to_string()))?;
                send(&mut stream, &frame, None).map_err(|e| lost("send to", &e))?;
            }
        }
    }
}

fn spool_del(dir: &Path, call: Call, netns: Option<&File>, why: &str) -> Result<Value, Error> {
    match spool::write(dir, &spool::Spooled::new(call, netns)) {
        Ok(()) => {
            // Runtimes log what plugins say here.
            eprintln!("{why}; the DEL waits in {}", dir.display());
            Ok(Value::Null)
        }
        Err(e) => Err(Error::new(Error::TRY_AGAIN, why).with_details(format!("and the DEL could not be spooled: {e}"))),
    }
}

/// Runs one plugin as a delegate of this call: same attachment, same `CNI_PATH`, the given configuration.
pub fn delegate(request: &Request, plugin: &str, verb: Verb, stdin: Value) -> Result<Option<crate::AddResult>, Error> {
    let exec = Exec {
        plugin: plugin.to_owned(),
        command: verb,
        container_id: request.container_id.clone(),
        netns: request.netns.clone(),
        ifname: request.ifname.as_ref().map(|i| i.to_string()).unwrap_or_default(),
        args: request.raw_args.clone(),
        path: request.path.clone(),
        stdin,
    };
    exec::run(&exec, exec::LIMIT).result(plugin, verb)
}

fn gone(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Nobody listens, or nobody accepts.
fn is_down(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound, TimedOut, WouldBlock};
    matches!(e.kind(), NotFound | ConnectionRefused | WouldBlock | TimedOut)
}

/// Tries until the limit while nobody listens (an agent that is being replaced), every 50 ms. An agent that hangs has a full
/// backlog, in which a blocking connect would wait for ever: the socket's send time-out bounds that (unix(7)).
fn connect(socket: &str, limit: Duration) -> std::io::Result<UnixStream> {
    let deadline = Instant::now() + limit;
    loop {
        match connect_once(socket, deadline.saturating_duration_since(Instant::now())) {
            Err(e) if is_down(&e) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

fn connect_once(socket: &str, limit: Duration) -> std::io::Result<UnixStream> {
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(fd);
    // Zero would be no limit at all.
    stream.set_write_timeout(Some(limit.max(Duration::from_millis(1))))?;
    socket::connect(stream.as_raw_fd(), &UnixAddr::new(socket)?)?;
    Ok(stream)
}

/// The descriptor goes with the first byte.
fn send(stream: &mut UnixStream, frame: &[u8], fd: Option<RawFd>) -> std::io::Result<()> {
    let Some(fd) = fd else {
        return stream.write_all(frame);
    };
    let fds = [fd];
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(frame)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    stream.write_all(&frame[sent..])
}

#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error("no answer within {0} s")]
    Timeout(f32),
    #[error("it closed the connection")]
    Closed,
    #[error(transparent)]
    Io(std::io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
}

fn receive(stream: &mut UnixStream, limit: Duration) -> Result<ToClient, ReceiveError> {
    let deadline = Instant::now() + limit;
    let mut head = [0; 4];
    read_exact(stream, &mut head, deadline, limit)?;
    let mut body = vec![0; wire::body_len(head)?];
    read_exact(stream, &mut body, deadline, limit)?;
    Ok(wire::decode(&body)?)
}

/// `limit` is for the message only; the deadline holds over all reads.
fn read_exact(stream: &mut UnixStream, buf: &mut [u8], deadline: Instant, limit: Duration) -> Result<(), ReceiveError> {
    let mut filled = 0;
    while filled < buf.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ReceiveError::Timeout(limit.as_secs_f32()));
        }
        stream.set_read_timeout(Some(left)).map_err(ReceiveError::Io)?;
        match stream.read(&mut buf[filled..]) {
            Ok(0) => return Err(ReceiveError::Closed),
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Err(ReceiveError::Timeout(limit.as_secs_f32())),
            Err(e) => return Err(ReceiveError::Io(e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_the_work_is_the_configurations_to_say() {
        let agent = |extra: Value| {
            let mut conf = serde_json::json!({"cniVersion": "1.1.0", "name": "n", "type": "cni-macvlan"});
            conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let raw = RawCall { command: "STATUS".into(), path: "/opt/cni/bin".into(), ..RawCall::default() };
            agent_of(&Request::from_value(&raw, conf).unwrap()).map(|a| a.map(|a| a.socket)).map_err(|e| e.to_string())
        };
        assert_eq!(agent(serde_json::json!({"socket": "/s"})), Ok(Some("/s".into())));
        assert_eq!(agent(serde_json::json!({"alone": true})), Ok(None));
        assert_eq!(agent(serde_json::json!({"alone": false, "socket": "/s"})), Ok(Some("/s".into())));
        let both = "alone true: must not stand beside socket \"/s\", which names an agent";
        assert_eq!(agent(serde_json::json!({"alone": true, "socket": "/s"})), Err(both.into()));
        assert_eq!(agent(serde_json::json!({"alone": "yes"})), Err("alone \"yes\": must be true or false".into()));
    }

    #[test]
    fn the_installers_file_names_socket_and_spool() {
        let a = agent_file(r#"{"socket":"/run/mooring/cni.sock"}"#).unwrap();
        assert_eq!((a.socket.as_str(), a.spool.as_path()), ("/run/mooring/cni.sock", Path::new(spool::DIR)));
        assert_eq!(agent_file(r#"{"socket":"/s","spool":"/p"}"#).unwrap().spool, Path::new("/p"));
        for bad in [r#"{"socket":"cni.sock"}"#, r#"{"socket":"/s","spool":"p"}"#, r#"{"spool":"/p"}"#, "{"] {
            assert_eq!(agent_file(bad).unwrap_err().code, 7, "{bad}");
        }
    }
}
