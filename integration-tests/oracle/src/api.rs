//! Reads the API: GET of lists over plain HTTP on a unix socket, or by a program such as `kubectl get --raw`. Knows paths,
//! and nothing of the objects.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::facts::{Api, list};

/// How the API is asked.
#[derive(Debug, Clone)]
pub enum Source {
    Socket(PathBuf),
    /// A command that prints the answer to GET of the path that is its last argument.
    Command(Vec<String>),
}

const OURS: &str = "/apis/mooring.dev/v1alpha1";
const SPIDER: &str = "/apis/spiderpool.spidernet.io/v2beta1";
/// A list of some hundred objects takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads all that is judged.
///
/// # Errors
/// The API does not answer, or not with a list.
pub fn read(source: &Source) -> Result<Api> {
    let items = |path: String| {
        let answer = source.get(&path).with_context(|| path.clone())?;
        let value: Value = serde_json::from_str(&answer).with_context(|| path.clone())?;
        ensure!(value["items"].is_array(), "{path}: {value}");
        Ok(list(&value, "/items").to_vec())
    };
    Ok(Api {
        pods: items("/api/v1/pods".to_owned())?,
        nodes: items("/api/v1/nodes".to_owned())?,
        leases: items(format!("{OURS}/addressleases"))?,
        maps: items(format!("{OURS}/poolmaps"))?,
        networks: items(format!("{OURS}/nodenetworks"))?,
        pools: items(format!("{SPIDER}/spiderippools"))?,
        endpoints: items(format!("{SPIDER}/spiderendpoints"))?,
        coordinators: items(format!("{SPIDER}/spidercoordinators"))?,
    })
}

impl Source {
    fn get(&self, path: &str) -> Result<String> {
        match self {
            Source::Socket(socket) => {
                let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let head = "Host: api\r\nX-Mooring-Account: oracle\r\nAccept: application/json\r\nConnection: close\r\n";
                stream.write_all(format!("GET {path} HTTP/1.1\r\n{head}\r\n").as_bytes())?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer)?;
                body(&answer)
            }
            Source::Command(words) => {
                let (program, args) = words.split_first().context("an empty command")?;
                let output = Command::new(program).args(args).arg(path).output().with_context(|| program.clone())?;
                ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
                Ok(String::from_utf8(output.stdout)?)
            }
        }
    }
}

/// The body of a whole response (RFC 9112), with a length, in chunks, or until the end.
fn body(answer: &[u8]) -> Result<String> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("the answer ends in its head")?;
    let head = std::str::from_utf8(&answer[..end])?.to_lowercase();
    let rest = &answer[end + 4..];
    ensure!(head.starts_with("http/1.1 200"), "{}: {}", head.lines().next().unwrap_or(""), String::from_utf8_lossy(rest));
    if !head.contains("\r\ntransfer-encoding: chunked") {
        if let Some(length) = head.lines().find_map(|l| l.strip_prefix("content-length: ")) {
            ensure!(length.trim().parse() == Ok(rest.len()), "{} bytes came of {length}", rest.len());
        }
        return Ok(String::from_utf8(rest.to_vec())?);
    }
    let (mut out, mut rest) = (Vec::new(), rest);
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").context("the answer ends between chunks")?;
        let size = std::str::from_utf8(&rest[..line])?.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).with_context(|| format!("chunk size {size:?}"))?;
        if size == 0 {
            return Ok(String::from_utf8(out)?);
        }
        let (from, to) = (line + 2, line + 2 + size);
        if rest.len() < to + 2 {
            bail!("the answer ends in a chunk");
        }
        out.extend_from_slice(&rest[from..to]);
        rest = &rest[to + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_whole_or_not_at_all() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap(), "{}");
        assert_eq!(body(b"HTTP/1.1 200 OK\r\n\r\n{}").unwrap(), "{}");
        assert_eq!(
            body(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4;x\r\n\":1}\r\n0\r\n\r\n").unwrap(),
            "{\"a\":1}"
        );
        for bad in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"",
            "HTTP/1.1 503 no\r\n\r\n{}",
            "HTTP/1.1 200",
        ] {
            assert!(body(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
