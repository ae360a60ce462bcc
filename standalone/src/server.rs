//! The server as a value: kinds, objects and options behind one lock, and the ways in: a client in this process, and a
//! unix socket. It does not know the verbs' rules.
//!
//! Tasks: `serve_unix` runs in its caller's task and spawns one task a connection, which ends with the connection or at
//! shutdown; `keep_snapshot` runs in its caller's task. Cancelling either at any await loses nothing but the unsaved
//! changes since the last snapshot. The lock is never held over an await.

use std::convert::Infallible;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderValue, Request};
use hyper_util::rt::TokioIo;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};

use crate::client::ACCOUNT_HEADER;
use crate::kinds::{self, Kind, Kinds};
use crate::store::Store;
use crate::verbs::{Api, Call, FieldValidation, LeaseGuard};
use crate::{http as web, snapshot};

/// Connections at once: a node agent holds about a dozen watches, so this is room for dozens of processes, and a bound on
/// the memory that a runaway client can take.
const CONNECTIONS_MAX: usize = 1024;
/// Namespaces that a new cluster has.
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// What can be tuned; the default is what the program uses.
#[derive(Debug, Clone)]
pub struct Options {
    /// Changes of each kind that are kept for watches. 4,096 changes of 3 KiB objects are 12 MiB, and cover the start of
    /// 1,000 pods at four changes each.
    pub event_window: usize,
    /// Time between bookmarks of an idle watch; the API server's is about a minute.
    pub bookmark_every: Duration,
    /// The kind that only its owners may delete.
    pub guard: LeaseGuard,
}

impl Default for Options {
    fn default() -> Self {
        let accounts = ["mooring-controller", "mooring-agent"].map(str::to_owned).to_vec();
        Self {
            event_window: 4096,
            bookmark_every: Duration::from_secs(60),
            guard: LeaseGuard { group: "mooring.dev".to_owned(), plural: "addressleases".to_owned(), accounts },
        }
    }
}

/// A stand-in for the Kubernetes API. Clones are the same server.
#[derive(Debug, Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) kinds: Kinds,
    store: Mutex<Store>,
    pub(crate) options: Options,
    /// The version of the last write: the snapshot sleeps on it.
    written: watch::Sender<u64>,
    /// Turns true when the server goes: watches end.
    pub(crate) closing: watch::Sender<bool>,
}

impl Inner {
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        // A panic in a verb leaves the store whole: every change of it is one call.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one verb under the lock, and tells the snapshot when it wrote.
    pub(crate) fn with_api<R>(&self, verb: impl FnOnce(&mut Api<'_>) -> R) -> R {
        let mut store = self.store();
        let before = store.version();
        let result = verb(&mut Api { kinds: &self.kinds, store: &mut store, guard: &self.options.guard });
        let after = store.version();
        drop(store);
        if after != before {
            self.written.send_replace(after);
        }
        result
    }
}

impl Server {
    /// A server of these kinds (see [`kinds::builtin`]) and CRDs, with the namespaces of a new cluster. A CRD takes the
    /// place of a built-in kind with its path, as `kinds::builtin` holds one that others install as a CRD.
    pub fn new(kinds: Vec<Kind>, crds: Vec<CustomResourceDefinition>) -> Result<Self, kinds::Error> {
        Self::with_options(kinds, crds, Options::default())
    }

    /// As [`Server::new`], tuned.
    pub fn with_options(
        mut kinds: Vec<Kind>,
        crds: Vec<CustomResourceDefinition>,
        options: Options,
    ) -> Result<Self, kinds::Error> {
        let crds: Vec<Kind> = crds.iter().map(Kind::from_crd).collect::<Result<_, _>>()?;
        let path = |kind: &Kind| (kind.group.clone(), kind.version.clone(), kind.plural.clone());
        kinds.retain(|builtin| crds.iter().all(|crd| path(crd) != path(builtin)));
        kinds.extend(crds);
        let kinds = Kinds::new(kinds)?;
        let store = Store::new(kinds.all().len(), 1, options.event_window);
        let written = watch::Sender::new(store.version());
        let inner = Inner { kinds, store: Mutex::new(store), options, written, closing: watch::Sender::new(false) };
        let server = Self { inner: Arc::new(inner) };
        server.create_namespaces();
        Ok(server)
    }

    fn create_namespaces(&self) {
        let Some(kind) = self.inner.kinds.at_path("", "v1", "namespaces") else { return };
        let call = Call {
            account: "standalone".to_owned(),
            kind,
            namespace: String::new(),
            dry_run: false,
            fields: FieldValidation::Ignore,
            now: Timestamp::now(),
        };
        for name in NAMESPACES {
            // The only way this fails is that it exists already.
            let _ = self.inner.with_api(|api| api.create(&call, json!({"metadata": {"name": name}})));
        }
    }

    /// Takes the objects of a snapshot file in place of what there is. `Ok(false)`: there is no such file. Versions go on
    /// above all that the process which wrote it can have given out.
    pub fn load(&self, path: &Path) -> Result<bool, snapshot::Error> {
        let Some(store) = snapshot::read(path, &self.inner.kinds, self.inner.options.event_window)? else {
            return Ok(false);
        };
        *self.inner.store() = store;
        self.create_namespaces();
        Ok(true)
    }

    /// Writes the snapshot file now.
    pub fn save(&self, path: &Path) -> Result<(), snapshot::Error> {
        snapshot::Image::of(&self.inner.store(), &self.inner.kinds).write(path)
    }

    /// Keeps the snapshot file current until `stop` is done, then writes it a last time. Errors are logged and tried again
    /// with the next change; only the last one is returned.
    pub async fn keep_snapshot(&self, path: &Path, stop: impl Future<Output = ()>) -> Result<(), snapshot::Error> {
        snapshot::keep(self, path, self.inner.written.subscribe(), stop).await
    }

    /// A client of this server in this process, under a name that only the lease guard looks at. Must be called within a
    /// tokio runtime.
    pub fn client(&self, account: &str) -> kube::Client {
        let inner = self.inner.clone();
        let account = HeaderValue::from_str(account).unwrap_or(HeaderValue::from_static("anonymous"));
        let service = tower::service_fn(move |mut request: Request<kube::client::Body>| {
            let inner = inner.clone();
            request.headers_mut().insert(ACCOUNT_HEADER, account.clone());
            async move { Ok::<_, Infallible>(web::serve(inner, request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Serves the socket until `stop` is done. A stale socket file is replaced; the new one has mode 0600.
    pub async fn serve_unix(&self, path: &Path, stop: impl Future<Output = ()>) -> std::io::Result<()> {
        let listener = listen(path)?;
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        tokio::pin!(stop);
        loop {
            let place = tokio::select! {
                () = &mut stop => break,
                place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
            };
            let stream = tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of file descriptors, most likely: connections that end give some back.
                        tracing::warn!(%error, "failed to accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let inner = self.inner.clone();
            tokio::spawn(async move {
                let mut closing = inner.closing.subscribe();
                let service = hyper::service::service_fn(move |request| {
                    let inner = inner.clone();
                    async move { Ok::<_, Infallible>(web::serve(inner, request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::pin!(connection);
                let ended = tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = closed(&mut closing) => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                drop(place);
            });
        }
        self.close();
        // Connections get a moment to end their watches properly; who is slower is cut off with the process.
        let _ = tokio::time::timeout(Duration::from_secs(2), places.acquire_many(CONNECTIONS_MAX as u32)).await;
        std::fs::remove_file(path)
    }

    /// Ends every watch. The server goes on answering other requests.
    pub fn close(&self) {
        self.inner.closing.send_replace(true);
    }

    pub(crate) fn image(&self) -> snapshot::Image {
        snapshot::Image::of(&self.inner.store(), &self.inner.kinds)
    }
}

/// Done when the server closes, or is gone.
pub(crate) async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Binds under another name, sets the mode, then renames: nobody can connect before the mode is right.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    if let Ok(found) = std::fs::symlink_metadata(path)
        && !found.file_type().is_socket()
    {
        let text = format!("{} exists and is not a socket", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, text));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let text = format!("another server listens on {}", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, text));
    }
    let mut bound = path.as_os_str().to_owned();
    bound.push(".new");
    let _ = std::fs::remove_file(&bound);
    let listener = UnixListener::bind(&bound)?;
    std::fs::set_permissions(&bound, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&bound, path)?;
    Ok(listener)
}
