//! What goes over the agent's socket: messages and frames, as bytes in memory.
//!
//! A frame is a length in 4 bytes, big-endian, and that many bytes of JSON. The client sends `Call`, with the network
//! namespace's descriptor (SCM_RIGHTS) on the first byte; the agent answers with any number of `Exec`, each answered by
//! `ExecDone`, and one `Reply`. The agent decides, the plugin's process executes other plugins for it: it stands on the
//! host, knows `CNI_PATH`, and its end (a hang-up) tells the agent to undo.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::request::RawCall;
use crate::{Error, Verb};

/// Enough for a GC that names 10,000 attachments (about 150 bytes each), small enough that no peer can fill memory.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;

/// The only value of `Call.version` so far.
pub const PROTOCOL: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a message of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLong(usize),
    #[error("failed to read a message")]
    Json(#[source] serde_json::Error),
}

/// Client to agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum ToAgent {
    Call(Call),
    ExecDone(ExecDone),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    pub version: u32,
    pub verb: Verb,
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Path as the runtime gave it, also where it could not be opened.
    pub netns: Option<String>,
    pub ifname: String,
    /// `CNI_ARGS` as it came.
    pub args: String,
    /// `CNI_PATH` as it came.
    pub path: String,
    /// The configuration.
    pub stdin: Value,
    /// Program of the runtime that executed the plugin; empty where it cannot be told. GC is about one runtime's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime: String,
}

impl Call {
    /// What the plugin passes on; `runtime`: the program that executed it, empty where it cannot be told.
    pub fn new(raw: &RawCall, request: &crate::Request, runtime: String) -> Self {
        Self {
            version: PROTOCOL,
            verb: request.verb,
            container_id: raw.container_id.clone(),
            netns: request.netns.clone(),
            ifname: raw.ifname.clone(),
            args: raw.args.clone(),
            path: raw.path.clone(),
            stdin: Value::Object(request.conf.raw().clone()),
            runtime,
        }
    }

    pub fn raw(&self) -> RawCall {
        RawCall {
            command: self.verb.as_str().to_owned(),
            container_id: self.container_id.clone(),
            netns: self.netns.clone().unwrap_or_default(),
            ifname: self.ifname.clone(),
            args: self.args.clone(),
            path: self.path.clone(),
        }
    }

    /// The call, checked again: the agent trusts root, not root's arithmetic.
    pub fn request(&self) -> Result<crate::Request, Error> {
        crate::Request::from_value(&self.raw(), self.stdin.clone())
    }
}

/// How a plugin that the agent asked for ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ExecDone {
    /// Exit code 0.
    pub ok: bool,
    pub stdout: String,
    /// At most the last 4 KiB.
    pub stderr: String,
    /// None where a signal ended it or it never ran.
    pub code: Option<i32>,
    /// No such file in `CNI_PATH`.
    pub missing: bool,
}

impl ExecDone {
    /// The result of a plugin that printed one (ADD), or the error it printed, or one that says how it ended.
    pub fn result(&self, plugin: &str, verb: Verb) -> Result<Option<crate::AddResult>, Error> {
        if self.missing {
            return Err(Error::new(Error::DELEGATE, format!("failed to find plugin {plugin:?} in CNI_PATH"))
                .with_details(self.stderr.clone()));
        }
        if !self.ok {
            return Err(Error::from_stdout(&self.stdout).unwrap_or_else(|| {
                let how =
                    self.code.map_or("did not end in time or was killed".to_owned(), |c| format!("ended with exit code {c}"));
                Error::new(Error::DELEGATE, format!("plugin {plugin:?} {how}")).with_details(self.stderr.trim())
            }));
        }
        if verb != Verb::Add {
            return Ok(None);
        }
        let wrong = |e: String| Error::new(Error::DELEGATE, format!("plugin {plugin:?} printed no valid result: {e}"));
        let v: Value = serde_json::from_str(&self.stdout).map_err(|e| wrong(e.to_string()))?;
        Ok(Some(crate::AddResult::from_value(&v).map_err(|e| wrong(e.to_string()))?))
    }
}

/// Agent to client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum ToClient {
    Exec(Exec),
    Reply(Reply),
}

/// "Execute this plugin for me."
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exec {
    pub plugin: String,
    pub command: Verb,
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub netns: Option<String>,
    pub ifname: String,
    pub args: String,
    pub path: String,
    pub stdin: Value,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply {
    Failed {
        ok: False,
        code: u32,
        msg: String,
        #[serde(default)]
        details: String,
    },
    Done {
        ok: True,
        stdout: Value,
    },
}

/// `true`, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct True;
/// `false`, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct False;

macro_rules! literal {
    ($t:ident, $v:literal) => {
        impl Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_bool($v)
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if bool::deserialize(d)? == $v { Ok($t) } else { Err(serde::de::Error::custom(concat!("expected ", $v))) }
            }
        }
    };
}
literal!(True, true);
literal!(False, false);

impl Reply {
    /// What the plugin is to print; null prints nothing.
    pub fn done(stdout: Value) -> Self {
        Reply::Done { ok: True, stdout }
    }

    pub fn failed(e: &Error) -> Self {
        Reply::Failed { ok: False, code: e.code, msg: e.msg.clone(), details: e.details.clone() }
    }

    pub fn into_result(self) -> Result<Value, Error> {
        match self {
            Reply::Done { stdout, .. } => Ok(stdout),
            Reply::Failed { code, msg, details, .. } => Err(Error { code, msg, details }),
        }
    }
}

/// A whole frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(WireError::Json)?;
    let len = frame.len() - 4;
    if len > MAX_FRAME {
        return Err(WireError::TooLong(len));
    }
    let len = u32::try_from(len).map_err(|_| WireError::TooLong(len))?;
    frame[..4].copy_from_slice(&len.to_be_bytes());
    Ok(frame)
}

/// Length of the body that follows a frame's first four bytes.
pub fn body_len(head: [u8; 4]) -> Result<usize, WireError> {
    let len = u32::from_be_bytes(head) as usize;
    if len > MAX_FRAME { Err(WireError::TooLong(len)) } else { Ok(len) }
}

pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(body).map_err(WireError::Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call() -> Call {
        Call {
            version: PROTOCOL,
            verb: Verb::Add,
            container_id: "c1".into(),
            netns: Some("/run/netns/a".into()),
            ifname: "eth0".into(),
            args: "IgnoreUnknown=1".into(),
            path: "/opt/cni/bin".into(),
            stdin: json!({"cniVersion":"1.0.0","name":"n","type":"cni-macvlan"}),
            runtime: "/usr/bin/containerd".into(),
        }
    }

    #[test]
    fn messages_have_the_agreed_form() {
        assert_eq!(
            serde_json::to_value(ToAgent::Call(call())).unwrap(),
            json!({"type":"Call","version":1,"verb":"ADD","containerID":"c1","netns":"/run/netns/a","ifname":"eth0","args":"IgnoreUnknown=1",
                "path":"/opt/cni/bin","stdin":{"cniVersion":"1.0.0","name":"n","type":"cni-macvlan"},"runtime":"/usr/bin/containerd"})
        );
        assert_eq!(
            serde_json::to_value(ToClient::Reply(Reply::done(Value::Null))).unwrap(),
            json!({"type":"Reply","ok":true,"stdout":null})
        );
        assert_eq!(
            serde_json::to_value(ToClient::Reply(Reply::failed(&Error::config("x")))).unwrap(),
            json!({"type":"Reply","ok":false,"code":7,"msg":"x","details":""})
        );
    }

    #[test]
    fn messages_round_trip_through_frames() {
        let messages = [
            ToClient::Reply(Reply::done(json!({"cniVersion":"1.0.0"}))),
            ToClient::Reply(Reply::failed(&Error::config("x"))),
            ToClient::Exec(Exec {
                plugin: "host-local".into(),
                command: Verb::Del,
                container_id: "c1".into(),
                netns: None,
                ifname: "eth0".into(),
                args: String::new(),
                path: "/bin".into(),
                stdin: json!({}),
            }),
        ];
        for m in messages {
            let frame = encode(&m).unwrap();
            let len = body_len(frame[..4].try_into().unwrap()).unwrap();
            assert_eq!(len, frame.len() - 4);
            assert_eq!(decode::<ToClient>(&frame[4..]).unwrap(), m);
        }
    }

    #[test]
    fn frames_are_bounded() {
        assert!(body_len(u32::MAX.to_be_bytes()).is_err());
        assert_eq!(body_len(u32::try_from(MAX_FRAME).unwrap().to_be_bytes()).unwrap(), MAX_FRAME);
        assert!(matches!(encode(&"x".repeat(MAX_FRAME)), Err(WireError::TooLong(_))));
    }

    #[test]
    fn a_reply_that_is_neither_is_refused() {
        for bad in [
            json!({"type":"Reply"}),
            json!({"type":"Reply","ok":true,"code":1,"msg":"x"}),
            json!({"type":"Reply","ok":false,"stdout":null}),
            json!({"type":"Other"}),
        ] {
            assert!(decode::<ToClient>(bad.to_string().as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_call_is_checked_again() {
        let mut c = call();
        assert_eq!(c.request().unwrap().container_id, "c1");
        c.container_id = "../c".into();
        assert_eq!(c.request().unwrap_err().code, 4);
    }

    #[test]
    fn the_end_of_a_plugin_is_told_apart() {
        let done = |ok, stdout: &str, code, missing| ExecDone { ok, stdout: stdout.into(), stderr: "why".into(), code, missing };
        assert!(done(true, r#"{"cniVersion":"1.0.0","ips":[]}"#, Some(0), false).result("p", Verb::Add).unwrap().is_some());
        assert_eq!(done(true, "", Some(0), false).result("p", Verb::Del).unwrap(), None);
        assert_eq!(done(true, "", Some(0), false).result("p", Verb::Add).unwrap_err().code, Error::DELEGATE);
        let e = done(false, r#"{"code":11,"msg":"later"}"#, Some(1), false).result("p", Verb::Add).unwrap_err();
        assert_eq!((e.code, e.msg.as_str()), (11, "later"));
        let e = done(false, "panic", Some(2), false).result("p", Verb::Add).unwrap_err();
        assert_eq!(e.to_string(), "plugin \"p\" ended with exit code 2; why");
        let e = done(false, "", None, true).result("p", Verb::Add).unwrap_err();
        assert_eq!(e.to_string(), "failed to find plugin \"p\" in CNI_PATH; why");
    }
}
