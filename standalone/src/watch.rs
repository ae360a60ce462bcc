//! One watch: the changes of a kind after a version, as lines of JSON. It does not know requests.
//!
//! A watch has no queue: it reads the store's window of changes at its own pace and sleeps on the version of the last
//! one. A reader so slow that the window has moved past it gets the error 410 and its watch ends, so a slow client costs
//! no memory and holds up nobody.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::kinds::KindId;
use crate::selector::Selector;
use crate::server::{Inner, closed};
use crate::status::ApiError;
use crate::store::{Change, Changes, Key, Object, Store};

/// Changes sent as one chunk: enough to amortise the lock, little enough to begin soon.
const BATCH: usize = 256;

/// What a list or a watch shows.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub kind: KindId,
    /// None: all namespaces.
    pub namespace: Option<String>,
    /// Empty text for a cluster-scoped kind, whose objects all lie there.
    pub only_namespace: Option<&'static str>,
    pub selector: Selector,
    /// PartialObjectMetadata instead of whole objects.
    pub metadata_only: bool,
}

impl Scope {
    /// Matching objects, in order.
    pub fn list(&self, store: &Store) -> Vec<Arc<Object>> {
        // Watches of single objects by name are what agents open most; they cost one look-up.
        if let (Some(name), Some(namespace)) = (self.selector.name(), self.namespace.as_deref().or(self.only_namespace)) {
            let found = store.get(self.kind, &Key::new(namespace, name));
            return found.filter(|object| self.selector.matches(&object.value)).cloned().into_iter().collect();
        }
        let all = store.list(self.kind, self.namespace.as_deref());
        all.filter(|(_, object)| self.selector.matches(&object.value)).map(|(_, object)| object.clone()).collect()
    }

    /// An object as this scope's client wants it.
    pub fn encode(&self, object: &Object) -> Bytes {
        if self.metadata_only { Bytes::from(metadata_of(&object.value).to_string()) } else { object.json().clone() }
    }

    fn matches(&self, object: Option<&Arc<Object>>) -> bool {
        object.is_some_and(|object| {
            self.namespace.as_deref().is_none_or(|n| n == object.meta("namespace")) && self.selector.matches(&object.value)
        })
    }

    /// The line of a change, none where this scope sees nothing of it.
    fn line(&self, change: &Change, out: &mut BytesMut) {
        let (before, after) = (self.matches(change.old.as_ref()), self.matches(change.new.as_ref()));
        match (before, after, &change.old, &change.new) {
            (false, true, _, Some(new)) => event("ADDED", &self.encode(new), out),
            (true, true, _, Some(new)) => event("MODIFIED", &self.encode(new), out),
            (true, false, Some(old), _) => {
                // As in the API server: the last state that matched, at the version of the change.
                let mut last = if self.metadata_only { metadata_of(&old.value) } else { old.value.clone() };
                last["metadata"]["resourceVersion"] = json!(change.version.to_string());
                event("DELETED", last.to_string().as_bytes(), out);
            }
            _ => {}
        }
    }
}

fn metadata_of(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}

fn event(kind: &str, object: &[u8], out: &mut BytesMut) {
    out.reserve(object.len() + 40);
    out.put_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
    out.put_slice(object);
    out.put_slice(b"}\n");
}

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// With an ADDED for everything there is.
    Everything,
    /// As `Everything`, then a bookmark that says so (`sendInitialEvents`).
    EverythingThenBookmark,
    /// After a version.
    After(u64),
}

/// How a watch behaves.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub scope: Scope,
    pub start: Start,
    pub bookmarks: bool,
    pub timeout: Duration,
}

struct Running {
    inner: Arc<Inner>,
    watch: Watch,
    /// Changes up to this version were sent, or do not concern the scope.
    cursor: u64,
    latest: watch::Receiver<u64>,
    closing: watch::Receiver<bool>,
    first: Option<Bytes>,
    next_bookmark: Instant,
    end: Instant,
    ended: bool,
}

/// Starts a watch. The stream ends at its timeout, when the server closes, or after an ERROR line.
pub(crate) fn stream(inner: Arc<Inner>, watch: Watch) -> impl Stream<Item = Bytes> + Send {
    let store = inner.store();
    let latest = store.latest(watch.scope.kind);
    let mut first = BytesMut::new();
    let cursor = match watch.start {
        // A version of the future is one of a server that lost its last changes: the client has to list anew.
        Start::After(version) if version > store.version() => 0,
        Start::After(version) => version,
        Start::Everything | Start::EverythingThenBookmark => {
            for object in watch.scope.list(&store) {
                event("ADDED", &watch.scope.encode(&object), &mut first);
            }
            store.version()
        }
    };
    drop(store);
    if watch.start == Start::EverythingThenBookmark {
        let mark = json!({"annotations": {"k8s.io/initial-events-end": "true"}});
        bookmark(&inner, &watch.scope, cursor, mark, &mut first);
    }
    let now = Instant::now();
    let running = Running {
        cursor,
        latest,
        closing: inner.closing.subscribe(),
        first: (!first.is_empty()).then(|| first.freeze()),
        next_bookmark: now + inner.options.bookmark_every,
        end: now + watch.timeout,
        ended: false,
        inner,
        watch,
    };
    futures_util::stream::unfold(running, |mut running| async move {
        let bytes = running.next().await?;
        Some((bytes, running))
    })
}

impl Running {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        while !self.ended {
            self.latest.mark_unchanged();
            match self.read() {
                Some(bytes) if !bytes.is_empty() => return Some(bytes),
                Some(_) => continue,
                None => {}
            }
            let bookmark_at = if self.watch.bookmarks { self.next_bookmark } else { self.end };
            tokio::select! {
                // The sender lives as long as the server does.
                _ = self.latest.changed() => continue,
                () = closed(&mut self.closing) => return None,
                () = tokio::time::sleep_until(bookmark_at.min(self.end)) => {}
            }
            self.ended = Instant::now() >= self.end;
            self.next_bookmark = Instant::now() + self.inner.options.bookmark_every;
            if let Some(bytes) = self.bookmark() {
                return Some(bytes);
            }
        }
        None
    }

    /// The next lines; empty when there were changes but none for this scope, none when there were no changes.
    fn read(&mut self) -> Option<Bytes> {
        let changes = self.inner.store().changes(self.watch.scope.kind, self.cursor, BATCH);
        let mut out = BytesMut::new();
        match changes {
            Changes::Known(changes) => {
                self.cursor = changes.last()?.version;
                for change in &changes {
                    self.watch.scope.line(change, &mut out);
                }
            }
            Changes::Forgotten(oldest) => {
                let error = ApiError::expired(self.cursor, oldest);
                tracing::warn!(kind = %self.inner.kinds.get(self.watch.scope.kind).resource(), %error, "watch closed");
                event("ERROR", error.status().to_string().as_bytes(), &mut out);
                self.ended = true;
            }
        }
        Some(out.freeze())
    }

    /// A bookmark at the newest version, unless changes wait that have to be sent first.
    fn bookmark(&mut self) -> Option<Bytes> {
        if !self.watch.bookmarks {
            return None;
        }
        let store = self.inner.store();
        let waiting = match store.changes(self.watch.scope.kind, self.cursor, 1) {
            Changes::Known(changes) => !changes.is_empty(),
            Changes::Forgotten(_) => true,
        };
        if waiting {
            return None;
        }
        self.cursor = store.version();
        drop(store);
        let mut out = BytesMut::new();
        bookmark(&self.inner, &self.watch.scope, self.cursor, json!({}), &mut out);
        Some(out.freeze())
    }
}

fn bookmark(inner: &Inner, scope: &Scope, version: u64, mut metadata: Value, out: &mut BytesMut) {
    let kind = inner.kinds.get(scope.kind);
    metadata["resourceVersion"] = json!(version.to_string());
    metadata["creationTimestamp"] = Value::Null;
    let object = json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
    let object = if scope.metadata_only { metadata_of(&object) } else { object };
    event("BOOKMARK", object.to_string().as_bytes(), out);
}
