//! What a plugin's process does: read the call, hand it to the node's agent over its socket and print the answer, or run
//! it alone where the host has no agent. The one part of this crate that touches files, sockets and processes; blocking,
//! without threads but for the plugins it executes.

pub mod exec;

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::Value;

use crate::request::{RawCall, version_text};
use crate::wire::{self, Call, Exec, ToAgent, ToClient, WireError};
use crate::{Error, Request, Verb, version};

/// Written by the agent's installer: `{"socket": "/run/mooring/cni.sock"}`.
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
    let answer = Request::new(&raw, &stdin).and_then(|request| match socket_of(&request)? {
        Some(socket) => forward(&socket, &raw, &request, Timeouts::DEFAULT),
        None => match alone {
            Some(alone) => alone(&request),
            None => Err(Error::config(format!(
                "socket: missing, and {AGENT_FILE} is not there: {about} has no work of its own, it needs the node's agent"
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

/// Configuration decides who does the work: `socket`, else the installer's file. Never whether a socket answers, or an
/// agent that is restarting would have plugins doing its work behind its back.
fn socket_of(request: &Request) -> Result<Option<String>, Error> {
    if let Some(s) = request.conf.socket()? {
        return Ok(Some(s.to_owned()));
    }
    let text = match std::fs::read_to_string(AGENT_FILE) {
        Ok(t) => t,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("failed to read {AGENT_FILE}: {e}"))),
    };
    agent_socket(&text).map(Some)
}

/// The socket's path in the installer's file.
pub fn agent_socket(text: &str) -> Result<String, Error> {
    let v: Value = serde_json::from_str(text).map_err(|e| Error::config(format!("{AGENT_FILE}: {e}")))?;
    match v.get("socket").and_then(Value::as_str) {
        Some(s) if s.starts_with('/') => Ok(s.to_owned()),
        _ => Err(Error::config(format!("{AGENT_FILE}: socket must be an absolute path"))),
    }
}

/// Hands the call to the agent and does its executions until it replies.
pub fn forward(socket: &str, raw: &RawCall, request: &Request, timeouts: Timeouts) -> Result<Value, Error> {
    // DEL without its namespace is normal; ADD and CHECK need it.
    let netns = match (&request.netns, request.verb) {
        (None, _) => None,
        (Some(path), verb) => match File::open(path) {
            Ok(f) => Some(f),
            Err(e) if verb == Verb::Del && gone(&e) => None,
            Err(e) => return Err(Error::new(Error::UNKNOWN_CONTAINER, format!("CNI_NETNS {path:?}: failed to open: {e}"))),
        },
    };
    let mut stream = connect(socket, timeouts.connect).map_err(|e| {
        let code = if request.verb == Verb::Status { Error::NOT_AVAILABLE } else { Error::TRY_AGAIN };
        Error::new(code, format!("failed to reach the node's agent at {socket} within {} s: {e}", timeouts.connect.as_secs()))
            .with_details("the agent is down or being replaced; see its log on this node")
    })?;
    let lost = |what: &str, e: &dyn std::fmt::Display| {
        Error::new(Error::TRY_AGAIN, format!("failed to {what} the node's agent at {socket}: {e}"))
    };
    let call = ToAgent::Call(Call {
        version: wire::PROTOCOL,
        verb: request.verb,
        container_id: raw.container_id.clone(),
        netns: request.netns.clone(),
        ifname: raw.ifname.clone(),
        args: raw.args.clone(),
        path: raw.path.clone(),
        stdin: Value::Object(request.conf.raw().clone()),
    });
    stream.set_write_timeout(Some(timeouts.reply)).map_err(|e| lost("talk to", &e))?;
    let frame = wire::encode(&call).map_err(|e| Error::io(e.to_string()))?;
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

/// Tries until the limit while nobody listens (an agent that is being replaced), every 50 ms.
fn connect(socket: &str, limit: Duration) -> std::io::Result<UnixStream> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
    let deadline = Instant::now() + limit;
    loop {
        match UnixStream::connect(socket) {
            Err(e) if matches!(e.kind(), NotFound | ConnectionRefused | WouldBlock) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
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
    fn the_installers_file_names_the_socket() {
        assert_eq!(agent_socket(r#"{"socket":"/run/mooring/cni.sock"}"#).unwrap(), "/run/mooring/cni.sock");
        assert_eq!(agent_socket(r#"{"socket":"cni.sock"}"#).unwrap_err().code, 7);
        assert_eq!(agent_socket("{").unwrap_err().code, 7);
    }
}
