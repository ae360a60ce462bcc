//! The snapshot file: all objects as one JSON document, replaced as a whole. It does not know verbs or clients.
//!
//! The file is written beside its place, synced, renamed, and the directory synced: after a crash at any moment the old
//! or the new one is there, whole (rename(2)).

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::kinds::Kinds;
use crate::server::Server;
use crate::store::{Key, Object, Store};

/// The layout of the file. A change of it gets a new number.
const FORMAT: u32 = 1;
/// Versions that are skipped at a restart. Changes after the last snapshot are lost, but clients have seen their versions;
/// those must not be given out again. A snapshot is at most seconds old, and a million changes take far longer.
const VERSIONS_SKIPPED: u64 = 1_000_000;
/// The least time between two snapshots.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Writing takes at most one part in so many of the time: a big store is saved less often.
const PAUSE_PER_WRITE: u32 = 10;

/// Why a snapshot cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing the file failed.
    #[error("failed to {act} snapshot {path}")]
    Io {
        /// What was being done.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not a snapshot.
    #[error("snapshot {path} is not readable")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// The file has a layout that this program does not know.
    #[error("snapshot {path} has format {format}, this program reads {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// An object is of a kind that is not served: dropping it would lose it for good.
    #[error("snapshot {path} holds {kind} {name:?}, a kind that is not served")]
    UnknownKind {
        /// The file.
        path: PathBuf,
        /// `apiVersion/kind` of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The task that writes was cancelled with its runtime.
    #[error("the snapshot's writer did not finish")]
    Cancelled,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    format: u32,
    resource_version: u64,
    objects: Vec<Value>,
}

/// All objects at one version, cheap to take: it shares them with the store.
#[derive(Debug)]
pub struct Image {
    version: u64,
    objects: Vec<Arc<Object>>,
}

impl Image {
    /// What the store holds now.
    pub fn of(store: &Store, kinds: &Kinds) -> Self {
        let ids = 0..kinds.all().len();
        let objects = ids.flat_map(|id| store.list(id, None).map(|(_, object)| object.clone())).collect();
        Self { version: store.version(), objects }
    }

    /// Replaces the file. Blocks on the disk.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |act| move |source| Error::Io { act, path: path.to_owned(), source };
        let mut beside = path.as_os_str().to_owned();
        beside.push(".tmp");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside);
        let mut out = BufWriter::new(file.map_err(failed("create"))?);
        self.encode(&mut out).map_err(failed("write"))?;
        let file = out.into_inner().map_err(|e| failed("write")(e.into_error()))?;
        file.sync_all().map_err(failed("sync"))?;
        std::fs::rename(&beside, path).map_err(failed("rename"))?;
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|d| d.sync_all()).map_err(failed("sync the directory of"))
    }

    fn encode(&self, out: &mut impl Write) -> std::io::Result<()> {
        write!(out, "{{\"format\":{FORMAT},\"resourceVersion\":{},\"objects\":[", self.version)?;
        for (i, object) in self.objects.iter().enumerate() {
            out.write_all(if i == 0 { b"\n" } else { b",\n" })?;
            out.write_all(object.json())?;
        }
        out.write_all(b"\n]}\n")
    }
}

/// The store of a snapshot file; none when there is no file.
pub(crate) fn read(path: &Path, kinds: &Kinds, window: usize) -> Result<Option<Store>, Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { act: "read", path: path.to_owned(), source }),
    };
    let malformed = |source| Error::Malformed { path: path.to_owned(), source };
    let document: Document = serde_json::from_slice(&bytes).map_err(malformed)?;
    if document.format != FORMAT {
        return Err(Error::Format { path: path.to_owned(), format: document.format });
    }
    let mut store = Store::new(kinds.all().len(), document.resource_version + VERSIONS_SKIPPED, window);
    for value in document.objects {
        let text = |field: &str| value[field].as_str().unwrap_or_default();
        let meta = |field: &str| value["metadata"][field].as_str().unwrap_or_default();
        let key = Key::new(meta("namespace"), meta("name"));
        let Some(kind) = kinds.of_reference(text("apiVersion"), text("kind")) else {
            let kind = format!("{}/{}", text("apiVersion"), text("kind"));
            return Err(Error::UnknownKind { path: path.to_owned(), kind, name: key.name });
        };
        let version = meta("resourceVersion").parse().unwrap_or(document.resource_version);
        store.restore(kind, key, value, version);
    }
    Ok(Some(store))
}

/// See [`Server::keep_snapshot`].
pub(crate) async fn keep(
    server: &Server,
    path: &Path,
    mut written: watch::Receiver<u64>,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    tokio::pin!(stop);
    let mut pause = PAUSE_MIN;
    loop {
        tokio::select! {
            () = &mut stop => return save(server, path).await,
            // The server outlives this call.
            _ = written.changed() => {}
        }
        tokio::select! {
            () = &mut stop => return save(server, path).await,
            () = tokio::time::sleep(pause) => {}
        }
        written.mark_unchanged();
        let started = Instant::now();
        if let Err(error) = save(server, path).await {
            tracing::error!(error = %error, source = ?std::error::Error::source(&error), "snapshot not written");
        }
        pause = PAUSE_MIN.max(started.elapsed() * PAUSE_PER_WRITE);
    }
}

async fn save(server: &Server, path: &Path) -> Result<(), Error> {
    let (image, path) = (server.image(), path.to_owned());
    tokio::task::spawn_blocking(move || image.write(&path)).await.map_err(|_| Error::Cancelled)?
}
