//! What the agent knows of the API without asking: its node's pods, networks, pools, reserved addresses, coordinators,
//! namespaces, its NodeNetwork, and the maps of the pools that it uses. Every list and watch starts from the API server's
//! cache; no lease is watched. Does not know what anything of it is for.
//!
//! Tasks: one for each watch, started here, ended by the shutdown; each only feeds a store, so that cancelling is safe.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::convert::Checked;
use api::{NetworkAttachmentDefinition, NodeNetwork, PoolMap, SpiderCoordinator, SpiderIPPool, SpiderReservedIP};
use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::utils::Backoff as StreamBackoff;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use model::PodRef;
use runtime::{Backoff, Shutdown};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;
use tokio::time::Instant;

/// All agents of a cluster may start at once (a roll-out): their first lists are spread over this time.
const START_JITTER: Duration = Duration::from_millis(500);
/// How long an ADD waits for the pod to appear in the watch before it asks the API server: the scheduler's binding reaches
/// kubelet and us by two watches, which differ by milliseconds; Multus waits 2.5 s for the same.
const POD_WAIT: Duration = Duration::from_secs(2);
/// How long an ADD waits for the first lists after the agent's start; longer and the runtime's own retry is the better one.
const READY_WAIT: Duration = Duration::from_secs(10);
/// How long coordinating waits for settings before it goes on with what is known: it never blocks a pod, also not where the
/// CRD is not installed.
const COORDINATOR_WAIT: Duration = Duration::from_secs(1);
/// A GET that has no answer by then will hardly have one within the time that the CNI call has left.
const GET_WAIT: Duration = Duration::from_secs(10);

/// The part of a Pod that attaching needs: 1 KiB where the whole has 5 to 20.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pod {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: PodSpec,
    #[serde(default)]
    pub status: PodStatus,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    #[serde(default)]
    pub node_name: Option<String>,
    #[serde(default)]
    pub restart_policy: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PodStatus {
    #[serde(default)]
    pub phase: Option<String>,
    #[serde(default)]
    pub reason: Option<String>,
}

/// The part of a Namespace that choosing a pool needs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Namespace {
    #[serde(default)]
    pub metadata: ObjectMeta,
}

macro_rules! core_kind {
    ($t:ty, $kind:literal, $plural:literal, $scope:ty) => {
        impl Resource for $t {
            type DynamicType = ();
            type Scope = $scope;
            fn kind(_: &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group(_: &()) -> Cow<'_, str> {
                "".into()
            }
            fn version(_: &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn plural(_: &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
core_kind!(Pod, "Pod", "pods", kube::core::NamespaceResourceScope);
core_kind!(Namespace, "Namespace", "namespaces", kube::core::ClusterResourceScope);

impl Pod {
    pub fn annotations(&self) -> &std::collections::BTreeMap<String, String> {
        static NONE: std::sync::LazyLock<std::collections::BTreeMap<String, String>> = std::sync::LazyLock::new(Default::default);
        self.metadata.annotations.as_ref().unwrap_or(&NONE)
    }

    pub fn reference(&self) -> PodRef {
        PodRef {
            namespace: self.metadata.namespace.clone().unwrap_or_default(),
            name: self.metadata.name.clone().unwrap_or_default(),
            uid: self.metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// The owner that controls it.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true))
    }

    /// Whether this is the pod of that UID. The runtime calls a static pod by the hash of its file, which its mirror in the
    /// API has as an annotation.
    fn is(&self, uid: &str) -> bool {
        let hash = |key: &str| self.annotations().get(key).map(String::as_str);
        uid.is_empty()
            || self.metadata.uid.as_deref() == Some(uid)
            || hash("kubernetes.io/config.hash") == Some(uid)
            || hash("kubernetes.io/config.mirror") == Some(uid)
    }

    /// Why it gets no network any more.
    fn finished(&self) -> Option<String> {
        if self.metadata.deletion_timestamp.is_some() {
            return Some("is being deleted".to_owned());
        }
        let always = self.spec.restart_policy.as_deref().unwrap_or("Always") == "Always";
        let never = self.spec.restart_policy.as_deref() == Some("Never");
        match (self.status.phase.as_deref(), self.status.reason.as_deref()) {
            (_, Some("Evicted")) => Some("is evicted".to_owned()),
            (Some("Succeeded"), _) if !always => Some("has finished (phase Succeeded)".to_owned()),
            (Some("Failed"), _) if never => Some("has finished (phase Failed)".to_owned()),
            _ => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("pod {0} is not there")]
    Absent(PodRef),
    #[error("pod {pod} has uid {found}, the runtime asks for {asked}: it was made anew meanwhile", asked = .pod.uid)]
    Replaced { pod: PodRef, found: String },
    #[error("pod {0} {1}")]
    Finished(PodRef, String),
    #[error("failed to read pod {0}")]
    Get(PodRef, #[source] kube::Error),
    #[error("no answer about pod {0} within {secs} s", secs = GET_WAIT.as_secs())]
    Timeout(PodRef),
}

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("the first list of {0} from the api server is not there yet")]
    NotReady(&'static str),
}

/// All stores. Cheap to clone.
#[derive(Clone)]
pub struct Caches {
    client: Client,
    shutdown: Shutdown,
    pods: Followed<Pod>,
    namespaces: Followed<Namespace>,
    nads: Followed<NetworkAttachmentDefinition>,
    pools: Followed<SpiderIPPool>,
    reserved: Followed<SpiderReservedIP>,
    checked: Arc<Mutex<Option<LastChecked>>>,
    coordinators: Followed<SpiderCoordinator>,
    node_network: Followed<NodeNetwork>,
    node: Arc<str>,
    maps: Arc<Mutex<HashMap<String, MapWatch>>>,
}

impl Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caches").field("node", &self.node).field("pods", &self.pods.store.len()).finish_non_exhaustive()
    }
}

/// What pools and reserved addresses came down to when they were last looked at.
struct LastChecked {
    /// How often each had changed by then.
    changes: (u64, u64),
    checked: Arc<Checked>,
}

struct MapWatch {
    rx: watch::Receiver<Option<Option<Arc<PoolMap>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Caches {
    /// Starts all watches. Needs a running tokio runtime.
    pub fn start(client: &Client, node: &str, shutdown: &Shutdown) -> Self {
        let any = || watcher::Config::default().any_semantic();
        Self {
            client: client.clone(),
            shutdown: shutdown.clone(),
            pods: follow(Api::all(client.clone()), any().fields(&format!("spec.nodeName={node}")), shutdown),
            namespaces: follow(Api::all(client.clone()), any(), shutdown),
            nads: follow(Api::all(client.clone()), any(), shutdown),
            pools: follow(Api::all(client.clone()), any(), shutdown),
            reserved: follow(Api::all(client.clone()), any(), shutdown),
            checked: Arc::default(),
            coordinators: follow(Api::all(client.clone()), any(), shutdown),
            node_network: follow(Api::all(client.clone()), any().fields(&format!("metadata.name={node}")), shutdown),
            node: node.into(),
            maps: Arc::default(),
        }
    }

    /// Returns when everything that choosing an address looks at has been listed once.
    pub async fn ready_for_addresses(&self) -> Result<(), CacheError> {
        self.pools.ready("SpiderIPPools", READY_WAIT).await?;
        self.reserved.ready("SpiderReservedIPs", READY_WAIT).await?;
        self.namespaces.ready("Namespaces", READY_WAIT).await
    }

    /// Of what an ADD looks at, the first that has never been listed.
    pub fn missing(&self) -> Option<&'static str> {
        [
            ("Pods", self.pods.is_ready()),
            ("NetworkAttachmentDefinitions", self.nads.is_ready()),
            ("SpiderIPPools", self.pools.is_ready()),
            ("SpiderReservedIPs", self.reserved.is_ready()),
            ("Namespaces", self.namespaces.is_ready()),
        ]
        .into_iter()
        .find_map(|(what, ready)| (!ready).then_some(what))
    }

    pub async fn ready_for_networks(&self) -> Result<(), CacheError> {
        self.nads.ready("NetworkAttachmentDefinitions", READY_WAIT).await
    }

    pub async fn ready_for_coordinator(&self) -> Result<(), CacheError> {
        self.coordinators.ready("SpiderCoordinators", COORDINATOR_WAIT).await
    }

    /// The pod of a CNI call: from the watch, else after a bounded wait from the API server.
    pub async fn pod(&self, want: &PodRef) -> Result<Arc<Pod>, PodError> {
        let key = ObjectRef::<Pod>::new(&want.name).within(&want.namespace);
        let mut changed = self.pods.changes.clone();
        let seen = async {
            loop {
                changed.borrow_and_update();
                if let Some(p) = self.pods.store.get(&key).filter(|p| p.is(&want.uid)) {
                    return p;
                }
                if changed.changed().await.is_err() {
                    // The watch has ended with the process's shutdown.
                    std::future::pending::<()>().await;
                }
            }
        };
        let pod = match tokio::time::timeout(POD_WAIT, seen).await {
            Ok(p) => p,
            Err(_) => {
                let pods: Api<Pod> = Api::namespaced(self.client.clone(), &want.namespace);
                let got = tokio::time::timeout(GET_WAIT, pods.get_opt(&want.name)).await;
                let got = got.map_err(|_| PodError::Timeout(want.clone()))?.map_err(|e| PodError::Get(want.clone(), e))?;
                Arc::new(got.ok_or_else(|| PodError::Absent(want.clone()))?)
            }
        };
        if !pod.is(&want.uid) {
            return Err(PodError::Replaced { pod: want.clone(), found: pod.metadata.uid.clone().unwrap_or_default() });
        }
        match pod.finished() {
            Some(why) => Err(PodError::Finished(want.clone(), why)),
            None => Ok(pod),
        }
    }

    /// As the watch has it, whatever its state.
    pub fn pod_now(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.store.get(&ObjectRef::new(name).within(namespace))
    }

    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.namespaces.store.get(&ObjectRef::new(name))
    }

    pub fn nad(&self, namespace: &str, name: &str) -> Option<Arc<NetworkAttachmentDefinition>> {
        self.nads.store.get(&ObjectRef::new(name).within(namespace))
    }

    pub fn pools(&self) -> Vec<Arc<SpiderIPPool>> {
        self.pools.store.state()
    }

    /// All pools as they may be used, read anew only after one of them or of the reserved addresses changed.
    pub fn checked_pools(&self) -> Arc<Checked> {
        // The counters first: what changes after this is read again at the next call.
        let changes = (*self.pools.changes.borrow(), *self.reserved.changes.borrow());
        let mut last = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(l) if l.changes == changes => l.checked.clone(),
            _ => {
                let (all, kept) = (self.pools.store.state(), self.reserved.store.state());
                let checked = Arc::new(api::convert::pools(all.iter().map(AsRef::as_ref), kept.iter().map(AsRef::as_ref)));
                *last = Some(LastChecked { changes, checked: checked.clone() });
                checked
            }
        }
    }

    pub fn coordinator(&self, name: &str) -> Option<Arc<SpiderCoordinator>> {
        self.coordinators.store.get(&ObjectRef::new(name))
    }

    pub fn node_network(&self) -> Option<Arc<NodeNetwork>> {
        self.node_network.store.get(&ObjectRef::new(&self.node))
    }

    /// Marked whenever the NodeNetwork may have changed.
    pub fn node_network_changed(&self) -> watch::Receiver<u64> {
        self.node_network.changes.clone()
    }

    /// Whether the first list of the NodeNetwork is there: before it, absence says nothing.
    pub async fn ready_for_node(&self) {
        // An error means that the watch has ended, which it does at shutdown only.
        let _ = self.node_network.changes.clone().wait_for(|n| *n > 0).await;
    }

    /// The maps of all pools in use here that have one.
    pub fn pool_maps(&self) -> Vec<Arc<PoolMap>> {
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.values().filter_map(|w| w.rx.borrow().clone().flatten()).collect()
    }

    /// The map of a pool as it is and will be: none until the first answer, then none where there is no map. The first call for a
    /// pool starts a watch by name, which ends when the pool is gone.
    pub fn pool_map_watch(&self, pool: &str) -> watch::Receiver<Option<Option<Arc<PoolMap>>>> {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(w) = maps.get(pool) {
            return w.rx.clone();
        }
        // As many watches as there are pools in use: those of deleted pools end when a new one begins.
        maps.retain(|name, w| {
            let lives = self.pools.store.get(&ObjectRef::new(name)).is_some();
            if !lives {
                w.task.abort();
            }
            lives
        });
        let (tx, rx) = watch::channel(None);
        let api: Api<PoolMap> = Api::all(self.client.clone());
        let config = watcher::Config::default().any_semantic().fields(&format!("metadata.name={pool}"));
        let shutdown = self.shutdown.clone();
        let name = pool.to_owned();
        let task = tokio::spawn(async move {
            let mut events = Box::pin(watcher(api, config).backoff(WatchBackoff::new()));
            let mut seen = false;
            loop {
                let event = tokio::select! {
                    () = shutdown.wait() => return,
                    e = events.next() => e,
                };
                match event {
                    Some(Ok(watcher::Event::Apply(m) | watcher::Event::InitApply(m))) => {
                        seen = true;
                        tx.send_replace(Some(Some(Arc::new(m))));
                    }
                    Some(Ok(watcher::Event::Delete(_))) => {
                        tx.send_replace(Some(None));
                    }
                    Some(Ok(watcher::Event::Init)) => seen = false,
                    Some(Ok(watcher::Event::InitDone)) => {
                        if !seen {
                            tx.send_replace(Some(None));
                        }
                    }
                    Some(Err(e)) => tracing::warn!(kind = "PoolMap", name, error = %e, "watch failed, will retry"),
                    None => return,
                }
            }
        });
        maps.insert(pool.to_owned(), MapWatch { rx: rx.clone(), task });
        rx
    }
}

/// What one watch has brought.
#[derive(Clone)]
struct Followed<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store: Store<K>,
    /// How often the store has changed; its first list is the first time. The store's own `wait_until_ready` wakes only the last of
    /// several who wait.
    changes: watch::Receiver<u64>,
}

impl<K> Followed<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    fn is_ready(&self) -> bool {
        *self.changes.borrow() > 0
    }

    async fn ready(&self, what: &'static str, wait: Duration) -> Result<(), CacheError> {
        let mut changes = self.changes.clone();
        match tokio::time::timeout(wait, changes.wait_for(|n| *n > 0)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(CacheError::NotReady(what)),
        }
    }
}

/// Between tries of a watch: kube's own rises to 30 s, in which a node would go on with what it knew before an outage of the
/// API server. With 5 s a node's seven watches make about two requests a second during one.
#[derive(Debug)]
struct WatchBackoff {
    inner: Backoff,
    last: Instant,
}

const WATCH_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// A watch that fails right after its list is no success: the waits begin anew only after it held for so long.
const WATCH_HELD: Duration = Duration::from_secs(30);

impl WatchBackoff {
    fn new() -> Self {
        Self { inner: Backoff::new(WATCH_RETRY.0, WATCH_RETRY.1), last: Instant::now() }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.last.elapsed() > WATCH_HELD {
            self.inner.reset();
        }
        self.last = Instant::now();
        Some(self.inner.next_wait())
    }
}

impl StreamBackoff for WatchBackoff {
    /// Called with every event that arrives; see `WATCH_HELD`.
    fn reset(&mut self) {}
}

/// Starts one watch.
fn follow<K>(api: Api<K>, config: watcher::Config, shutdown: &Shutdown) -> Followed<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, mut writer) = reflector::store();
    let (tx, rx) = watch::channel(0);
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let spread = START_JITTER.mul_f64(unit_random());
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(spread) => {}
        }
        let strip = |o: &mut K| o.meta_mut().managed_fields = None;
        let mut events = Box::pin(watcher(api, config).backoff(WatchBackoff::new()).modify(strip));
        loop {
            let event = tokio::select! {
                () = shutdown.wait() => return,
                e = events.next() => e,
            };
            match event {
                Some(Ok(e)) => {
                    writer.apply_watcher_event(&e);
                    // A list is taken over when it is whole.
                    if !matches!(e, watcher::Event::Init | watcher::Event::InitApply(_)) {
                        tx.send_modify(|n| *n += 1);
                    }
                }
                Some(Err(e)) => tracing::warn!(kind = %K::kind(&()), error = %e, "watch failed, will retry"),
                None => return,
            }
        }
    });
    Followed { store, changes: rx }
}

/// Evenly in [0, 1): each `RandomState` has keys of its own.
fn unit_random() -> f64 {
    (std::collections::hash_map::RandomState::new().build_hasher().finish() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_tried_again_within_five_seconds_and_quickly_after_it_held() {
        let mut b = WatchBackoff::new();
        let first = b.next().unwrap();
        assert!(first <= WATCH_RETRY.0, "{first:?}");
        for _ in 0..50 {
            let wait = b.next().unwrap();
            assert!(wait <= Duration::from_secs(5), "{wait:?}");
            tokio::time::advance(wait).await;
            // The list succeeded, and the watch failed at once.
            b.reset();
        }
        assert!(b.next().unwrap() > Duration::from_secs(2));
        tokio::time::advance(WATCH_HELD + Duration::from_secs(1)).await;
        assert!(b.next().unwrap() <= WATCH_RETRY.0);
    }
}
