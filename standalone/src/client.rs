//! A `kube::Client` for the socket of a standalone server. It does not know the server's types, so that a process which
//! only talks to one links none of them.
//!
//! Connections that have answered are kept for the next request: half of what a small request costs both sides is a new
//! connection. A watch has one of its own, so that it never holds up another request, and a server that was restarted is
//! simply met again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderName, HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio::net::UnixStream;

/// Names the caller; the server believes it, as only root reaches the socket.
pub const ACCOUNT_HEADER: HeaderName = HeaderName::from_static("x-mooring-account");

/// Connections kept: a process seldom has more requests under way at once, and each is one of the server's places.
const KEPT_MAX: usize = 8;

/// A client of the server behind `socket`, under the name `account` (such as `mooring-agent`; a name that is no header
/// value becomes `anonymous`). Connects when first asked, so the server need not run yet. Must be called within a tokio
/// runtime. A request fails with `kube::Error::Service` when nobody listens.
pub fn unix(socket: impl Into<PathBuf>, account: &str) -> kube::Client {
    let account = HeaderValue::from_str(account).unwrap_or(HeaderValue::from_static("anonymous"));
    let server = Arc::new(Server { socket: socket.into(), account, kept: Mutex::default() });
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move { server.send(request).await }
    });
    kube::Client::new(service, "default")
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Server {
    socket: PathBuf,
    account: HeaderValue,
    /// Some may still be busy with the end of a response.
    kept: Mutex<Vec<SendRequest<Body>>>,
}

impl Server {
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        // HTTP/1.1 wants the path alone on the request line and a Host header, whatever it says.
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        *request.uri_mut() = path.parse::<Uri>()?;
        request.headers_mut().insert(http::header::HOST, HeaderValue::from_static("standalone"));
        request.headers_mut().insert(ACCOUNT_HEADER, self.account.clone());
        let is_watch = request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "watch=true" || p == "watch=1"));
        if !is_watch {
            while let Some(mut connection) = self.take() {
                match connection.try_send_request(request).await {
                    Ok(response) => {
                        self.keep(connection);
                        return Ok(response);
                    }
                    // It had ended unnoticed, and nothing was sent.
                    Err(mut e) => match e.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(e.into_error().into()),
                    },
                }
            }
        }
        let mut connection = connect(&self.socket).await?;
        let response = connection.send_request(request).await?;
        if !is_watch {
            self.keep(connection);
        }
        Ok(response)
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = kept.iter().position(SendRequest::is_ready)?;
        Some(kept.swap_remove(idle))
    }

    fn keep(&self, connection: SendRequest<Body>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|c| !c.is_closed());
        if kept.len() < KEPT_MAX {
            kept.push(connection);
        }
    }
}

async fn connect(socket: &Path) -> Result<SendRequest<Body>, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let text = format!("failed to connect to the standalone API at {}: {error}", socket.display());
        std::io::Error::new(error.kind(), text)
    })?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the standalone API ended");
        }
    });
    Ok(sender)
}
