//! The control socket of OVS daemons (ovs-appctl(8)): `fdb/show`, `ofproto/trace` and the like, as text. It speaks the
//! JSON-RPC of RFC 7047 section 4, one command a connection here.

use std::path::Path;

use bytes::BytesMut;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio_util::codec::{Encoder, FramedRead};

use crate::codec::{CodecError, JsonCodec};
use crate::error::Error;

/// Answers are for people; a forwarding table of 100,000 entries is 5 MB.
const MAX_ANSWER_LEN: usize = 16 << 20;

#[derive(Deserialize)]
struct Answer {
    result: Option<String>,
    error: Option<String>,
}

/// Runs one command. A command that the daemon refuses is [`Error::Refused`] with its text.
///
/// Waits as long as the daemon does; wrap it in a timeout.
pub async fn unixctl(socket: &Path, command: &str, arguments: &[&str]) -> Result<String, Error> {
    let failed = |reason: String| Error::Unixctl { socket: socket.display().to_string(), reason };
    let answer = exchange(socket, command, arguments).await.map_err(|error| failed(error.to_string()))?;
    let Some(answer) = answer else {
        return Err(failed("closed without an answer".to_owned()));
    };
    let answer: Answer = serde_json::from_slice(&answer).map_err(|error| failed(error.to_string()))?;
    match answer {
        Answer { error: Some(error), .. } => {
            Err(Error::Refused { method: "unixctl", error: error.trim_end().to_owned(), details: String::new() })
        }
        Answer { result, .. } => Ok(result.unwrap_or_default()),
    }
}

async fn exchange(socket: &Path, command: &str, arguments: &[&str]) -> Result<Option<bytes::Bytes>, CodecError> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut request = BytesMut::new();
    JsonCodec::default().encode(json!({"id": 0, "method": command, "params": arguments}), &mut request)?;
    stream.write_all(&request).await?;
    FramedRead::new(stream, JsonCodec::new(MAX_ANSWER_LEN)).next().await.transpose()
}
