//! A `kube::Client` for the socket of a standalone server. It does not know the server's types, so that a process which
//! only talks to one links none of them.
//!
//! Every request has its own connection: a unix connect costs little, a server that was restarted is simply met again,
//! and a watch never holds up another request. A connection's task ends with its response.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio::net::UnixStream;

/// Names the caller; the server believes it, as only root reaches the socket.
pub const ACCOUNT_HEADER: HeaderName = HeaderName::from_static("x-mooring-account");

/// A client of the server behind `socket`, under the name `account` (such as `mooring-agent`; a name that is no header
/// value becomes `anonymous`). Connects at each request, so the server need not run yet. Must be called within a tokio
/// runtime. A request fails with `kube::Error::Service` when nobody listens.
pub fn unix(socket: impl Into<PathBuf>, account: &str) -> kube::Client {
    let socket: Arc<Path> = Arc::from(socket.into());
    let account = HeaderValue::from_str(account).unwrap_or(HeaderValue::from_static("anonymous"));
    let service = tower::service_fn(move |request: Request<Body>| send(socket.clone(), account.clone(), request));
    kube::Client::new(service, "default")
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn send(socket: Arc<Path>, account: HeaderValue, mut request: Request<Body>) -> Result<Response<Incoming>, Failure> {
    let stream = UnixStream::connect(&socket).await.map_err(|error| {
        let text = format!("failed to connect to the standalone API at {}: {error}", socket.display());
        std::io::Error::new(error.kind(), text)
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the standalone API ended");
        }
    });
    // HTTP/1.1 wants the path alone on the request line and a Host header, whatever it says.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    *request.uri_mut() = path.parse::<Uri>()?;
    request.headers_mut().insert(http::header::HOST, HeaderValue::from_static("standalone"));
    request.headers_mut().insert(ACCOUNT_HEADER, account);
    Ok(sender.send_request(request).await?)
}
