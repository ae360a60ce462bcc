//! A way to the API on which things go wrong: a unix socket in front of the API's own that is gone, slow, refuses, or loses
//! answers, as it is told; and that counts what passes. It knows HTTP heads and nothing of the objects.
//!
//! A thread for each connection and direction; they end with their connection. A connection is one request, as the clients of
//! the standalone API make them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

/// What is wrong with the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Nobody is there: connections are cut, watches too.
    Gone,
    /// Each request waits first.
    Slow(Duration),
    /// Each request is refused with this status.
    Refuse(u16),
    /// Each request is carried out, and its answer lost.
    Mute,
}

/// The proxy; it goes on until the process ends.
#[derive(Debug, Clone)]
pub struct Proxy {
    socket: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: PathBuf,
    fault: Mutex<Fault>,
    /// Requests by `METHOD kind`.
    counts: Mutex<BTreeMap<String, usize>>,
    in_hand: AtomicUsize,
    /// The most that were in hand at once, watches not counted.
    most: AtomicUsize,
    /// Both sides of each connection that lives, to be cut.
    open: Mutex<BTreeMap<usize, [UnixStream; 2]>>,
    connections: AtomicUsize,
}

impl Proxy {
    /// Listens at `socket` and passes on to `upstream`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(socket: &Path, upstream: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            fault: Mutex::new(Fault::None),
            counts: Mutex::default(),
            in_hand: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            open: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let proxy = Self { socket: socket.to_owned(), shared: shared.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let _ = shared.serve(stream);
                });
            }
        });
        Ok(proxy)
    }

    /// Where to ask.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// From now on this is wrong.
    pub fn set(&self, fault: Fault) {
        *locked(&self.shared.fault) = fault;
        if fault == Fault::Gone {
            for stream in locked(&self.shared.open).values().flatten() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Requests since the last time, by `METHOD kind` (`WATCH` for watches), and the most that were in hand at once.
    pub fn take_counts(&self) -> (BTreeMap<String, usize>, usize) {
        (std::mem::take(&mut *locked(&self.shared.counts)), self.shared.most.swap(0, Ordering::SeqCst))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn serve(&self, mut client: UnixStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        let mut buffer = [0; 4096];
        while !head.windows(4).any(|w| w == b"\r\n\r\n") {
            match client.read(&mut buffer)? {
                0 => return Ok(()),
                n => head.extend_from_slice(&buffer[..n]),
            }
        }
        let (name, watch) = named(&head);
        *locked(&self.counts).entry(name).or_default() += 1;
        let fault = *locked(&self.fault);
        match fault {
            Fault::Gone => return client.shutdown(Shutdown::Both),
            Fault::Refuse(status) => return refuse(client, status),
            Fault::Slow(pause) => std::thread::sleep(pause),
            Fault::None | Fault::Mute => {}
        }
        if !watch {
            let now = self.in_hand.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
        }
        let done = self.pass(&mut client, &head, fault == Fault::Mute && !watch);
        if !watch {
            self.in_hand.fetch_sub(1, Ordering::SeqCst);
        }
        done
    }

    /// There and back, until either side ends.
    fn pass(&self, client: &mut UnixStream, head: &[u8], mute: bool) -> std::io::Result<()> {
        let mut api = UnixStream::connect(&self.upstream)?;
        let id = self.connections.fetch_add(1, Ordering::SeqCst);
        locked(&self.open).insert(id, [client.try_clone()?, api.try_clone()?]);
        let done = Self::carry(client, &mut api, head, mute);
        locked(&self.open).remove(&id);
        done
    }

    fn carry(client: &mut UnixStream, api: &mut UnixStream, head: &[u8], mute: bool) -> std::io::Result<()> {
        api.write_all(head)?;
        let (mut from, mut to) = (client.try_clone()?, api.try_clone()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        if mute {
            // Its first byte says that the request was carried out.
            let _ = api.read(&mut [0; 1]);
        } else {
            let _ = std::io::copy(api, client);
        }
        let _ = api.shutdown(Shutdown::Both);
        client.shutdown(Shutdown::Both)
    }
}

fn refuse(mut client: UnixStream, status: u16) -> std::io::Result<()> {
    let reason = if status == 429 { "TooManyRequests" } else { "InternalError" };
    let body = format!(
        "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\"message\":\"the lab says no\",\"reason\":\"{reason}\",\"code\":{status}}}"
    );
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nRetry-After: 1\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes())?;
    client.write_all(body.as_bytes())?;
    // What it still sends is read, lest the kernel answers it with a reset that overtakes ours.
    client.shutdown(Shutdown::Write)?;
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    std::io::copy(&mut client, &mut std::io::sink()).map(|_| ())
}

/// `METHOD kind` of a request's head, and whether it is a watch.
fn named(head: &[u8]) -> (String, bool) {
    let text = String::from_utf8_lossy(head);
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let watch = query.split('&').any(|q| q.starts_with("watch=") && q != "watch=false");
    // /api/v1/... or /apis/GROUP/VERSION/..., then namespaces/NAME/ before what lies in one.
    let skip = if path.starts_with("/apis/") { 3 } else { 2 };
    let mut parts = path.trim_start_matches('/').split('/').skip(skip);
    let mut kind = parts.next().unwrap_or_default();
    if kind == "namespaces"
        && let Some(inside) = parts.nth(1)
    {
        kind = inside;
    }
    (format!("{} {kind}", if watch { "WATCH" } else { method }), watch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_by_method_and_kind() {
        for (line, name, watch) in [
            ("GET /api/v1/pods?watch=true&x=1 HTTP/1.1\r\n", "WATCH pods", true),
            ("GET /api/v1/namespaces/default HTTP/1.1\r\n", "GET namespaces", false),
            ("PATCH /api/v1/namespaces/default/pods/p/status HTTP/1.1\r\n", "PATCH pods", false),
            ("POST /apis/mooring.dev/v1alpha1/addressleases? HTTP/1.1\r\n", "POST addressleases", false),
            ("DELETE /apis/g/v/namespaces/d/spiderendpoints/x HTTP/1.1\r\n", "DELETE spiderendpoints", false),
        ] {
            assert_eq!(named(line.as_bytes()), (name.to_owned(), watch), "{line}");
        }
    }

    /// A server that answers each connection with its own request.
    fn echo(socket: &Path) {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut buffer = [0; 4096];
                let n = stream.read(&mut buffer).unwrap();
                stream.write_all(&buffer[..n]).unwrap();
            }
        });
    }

    fn asked(proxy: &Proxy) -> String {
        let mut stream = UnixStream::connect(proxy.socket()).unwrap();
        stream.write_all(b"GET /api/v1/pods HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn what_is_wrong_is_seen_and_what_passes_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, upstream) = (dir.path().join("p"), dir.path().join("u"));
        echo(&upstream);
        let proxy = Proxy::start(&socket, &upstream).unwrap();
        assert!(asked(&proxy).starts_with("GET /api/v1/pods"));
        proxy.set(Fault::Refuse(429));
        assert!(asked(&proxy).starts_with("HTTP/1.1 429 "));
        for silent in [Fault::Gone, Fault::Mute] {
            proxy.set(silent);
            assert_eq!(asked(&proxy), "", "{silent:?}");
        }
        proxy.set(Fault::Slow(Duration::from_millis(100)));
        let began = std::time::Instant::now();
        assert!(asked(&proxy).starts_with("GET"));
        assert!(began.elapsed() >= Duration::from_millis(100));
        let (counts, most) = proxy.take_counts();
        assert_eq!(counts["GET pods"], 5);
        // One is in hand until its connection is taken down, a moment after its end is seen.
        assert!((1..=2).contains(&most), "{most}");
        // A connection that has ended holds no file descriptor.
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while !locked(&proxy.shared.open).is_empty() {
            assert!(std::time::Instant::now() < deadline, "{:?}", locked(&proxy.shared.open));
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(proxy.take_counts().0.is_empty());
    }
}
