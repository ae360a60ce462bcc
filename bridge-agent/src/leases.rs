//! Addresses as the API server sees them: carries out what `ipam::machine` says and brings it the answers, the pools' maps, the
//! watched leases and the time. Decides nothing. AddressLeases are written here and nowhere else in the agent.
//!
//! Tasks: one for each request under way (bounded by the machine: 16, and one for each ADD), one for each pool in use, one for
//! each lease that an ADD waits for; each may be cancelled at any point, for what is not known is asked for again.

mod convert;
mod lost;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::keys;
use api::mooring::lease::Sighting;
use api::mooring::{AddressLease, AddressLeaseSpec, Holder, Identity, PoolMap, chunk_label, identity_label, label_value};
use futures_util::StreamExt;
use futures_util::future::join_all;
use ipam::machine::{
    Ask, AskId, Held, Machine, Map, Output, Owner, PoolOfAsk, Reply, Request, RequestId, TakeError, Taken, Time, What,
};
use ipam::{Name, Quarantine};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt};
use model::PodRef;
use runtime::Shutdown;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

use crate::attach::pools::window;
use crate::caches::Caches;
use crate::events::{Events, Reason};
use crate::journal::{Entry, Journal, Key, Role, State, Work};
use crate::sandboxes::Looker;
use convert::{object_of, value_of};

pub use convert::{identity_object, identity_value, name_of, name_text};

/// One request to the API server. Four of these fit into the minute that a CNI call has.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// How long the first user of a pool waits for its map; without one there are random tries, which always work.
const MAP_WAIT: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("failed to {act} leases of {of}")]
    Api {
        act: &'static str,
        of: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("no answer within {secs} s to the request to {act} leases of {of}", secs = REQUEST_WAIT.as_secs())]
    Timeout { act: &'static str, of: String },
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Leases(Arc<Inner>);

struct Inner {
    api: Api<AddressLease>,
    caches: Caches,
    events: Arc<Events>,
    journal: Arc<Journal>,
    sandboxes: Looker,
    node: String,
    began: tokio::time::Instant,
    state: Mutex<Driven>,
    /// The machine may want to be woken earlier than before.
    wake: Notify,
    /// The first list of our leases came, and the journal has again what it had lost.
    listed: watch::Sender<bool>,
}

struct Driven {
    machine: Machine,
    asks: HashMap<AskId, oneshot::Sender<Result<Taken, TakeError>>>,
    releases: HashMap<Name, Vec<oneshot::Sender<()>>>,
    watches: HashMap<Name, JoinHandle<()>>,
    /// Pools whose maps are followed.
    followed: HashSet<Arc<str>>,
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").field("node", &self.0.node).finish_non_exhaustive()
    }
}

impl Leases {
    /// `journal`: what this node's sandboxes have, but for what it has lost, which `sandboxes` shows.
    pub fn new(
        client: Client,
        caches: Caches,
        events: Arc<Events>,
        node: &str,
        agent_id: &str,
        journal: Arc<Journal>,
        sandboxes: Looker,
    ) -> Self {
        let me = Owner { node: node.into(), agent_id: agent_id.into() };
        let machine = Machine::new(me, held(&journal.all()), random(), Time::ZERO);
        let state =
            Driven { machine, asks: HashMap::new(), releases: HashMap::new(), watches: HashMap::new(), followed: HashSet::new() };
        Self(Arc::new(Inner {
            api: Api::all(client),
            caches,
            events,
            journal,
            sandboxes,
            node: node.to_owned(),
            began: tokio::time::Instant::now(),
            state: Mutex::new(state),
            wake: Notify::new(),
            listed: watch::Sender::new(false),
        }))
    }

    /// Keeps the machine's time until the shutdown. Requests are made also before and after.
    pub async fn run(&self, shutdown: Shutdown) {
        loop {
            let next = self.drive(|s, now| {
                s.machine.tick(now);
                s.machine.next_wake()
            });
            // A machine without anything to wait for still has its hourly comparison.
            let at = self.0.began + next.unwrap_or(Duration::from_secs(3600)).max(self.now() + Duration::from_millis(1));
            tokio::select! {
                () = shutdown.wait() => return,
                () = tokio::time::sleep_until(at) => {}
                () = self.0.wake.notified() => {}
            }
        }
    }

    fn now(&self) -> Time {
        self.0.began.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Driven> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call of the machine, and what follows from it, in its order.
    fn drive<T>(&self, f: impl FnOnce(&mut Driven, Time) -> T) -> T {
        let mut state = self.lock();
        let before = state.machine.next_wake();
        let done = f(&mut state, self.now());
        while let Some(out) = state.machine.pop() {
            self.follow_up(&mut state, out);
        }
        let after = state.machine.next_wake();
        drop(state);
        if after < before || before.is_none() {
            self.0.wake.notify_one();
        }
        done
    }

    fn follow_up(&self, state: &mut Driven, out: Output) {
        match out {
            Output::Request(id, request) => {
                let me = self.clone();
                tokio::spawn(async move { me.carry_out(id, request).await });
            }
            Output::Taken(id, taken) => {
                // Whoever asked takes it out of the channel, or gives it back when it hangs up.
                if let Some(tx) = state.asks.remove(&id) {
                    let _ = tx.send(Ok(taken));
                }
            }
            Output::Failed(id, error) => {
                if let Some(tx) = state.asks.remove(&id) {
                    let _ = tx.send(Err(error));
                }
            }
            Output::Released(name) => {
                for tx in state.releases.remove(&name).into_iter().flatten() {
                    let _ = tx.send(());
                }
            }
            Output::Contested { name, holder, lease } => {
                let theirs = lease.holder.as_ref().map_or("nobody".to_owned(), ToString::to_string);
                let message = format!(
                    "address {} is used by {holder} here, and by the api server's word by {theirs} on node {}: delete one of them",
                    name.ip, lease.node
                );
                tracing::error!(lease = name_text(&name), "{message}");
                let pod = PodRef { namespace: holder.namespace.clone(), name: holder.pod.clone(), uid: holder.uid.clone() };
                self.0.events.warn(&pod, Reason::AddressConflict, &message);
            }
            Output::Watch(name) => {
                let (me, watched) = (self.clone(), name.clone());
                let task = tokio::spawn(async move { me.watch(watched).await });
                if let Some(old) = state.watches.insert(name, task) {
                    old.abort();
                }
            }
            Output::Unwatch(name) => {
                if let Some(task) = state.watches.remove(&name) {
                    task.abort();
                }
            }
            Output::Follow(pool) => self.follow(state, &pool),
        }
    }

    /// Tells the machine of every map of a pool.
    fn follow(&self, state: &mut Driven, pool: &Arc<str>) {
        if !state.followed.insert(pool.clone()) {
            return;
        }
        let (me, pool) = (self.clone(), pool.clone());
        tokio::spawn(async move {
            let mut maps = me.0.caches.pool_map_watch(&pool);
            loop {
                if let Some(map) = maps.borrow_and_update().clone() {
                    me.drive(|s, now| s.machine.map(now, &pool, map.as_deref().map(map_value)));
                }
                if maps.changed().await.is_err() {
                    // The pool is gone, or the agent ends; the next ADD of a pool of this name begins anew.
                    me.lock().followed.remove(&pool);
                    return;
                }
            }
        });
    }

    /// The first event repeats what is known; that costs one GET.
    async fn watch(&self, name: Name) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", name_text(&name)));
        let mut events = Box::pin(watcher(self.0.api.clone(), config));
        while let Some(e) = events.next().await {
            match e {
                Ok(_) => self.drive(|s, now| s.machine.changed(now, &name)),
                Err(error) => {
                    tracing::warn!(lease = name_text(&name), %error, "watch of a fixed address failed, will retry");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Gets an address. Dropped, it gives back what it got.
    pub async fn take(&self, holder: Holder, identity: Option<&Identity>, what: What) -> Result<Taken, TakeError> {
        let pools = match &what {
            What::Any(pools) => pools.as_slice(),
            What::Fixed { .. } => &[],
        };
        join_all(pools.iter().map(|p| self.map_known(p))).await;
        let ask = Ask {
            holder: Arc::new(convert::holder_value(&holder)),
            identity: identity.map(|i| Arc::new(identity_value(i))),
            what,
        };
        let (tx, rx) = oneshot::channel();
        let id = self.drive(|s, now| {
            let id = s.machine.take(now, ask);
            s.asks.insert(id, tx);
            id
        });
        let mut asking = Asking { leases: self, id, container: holder.container_id, rx: Some(rx) };
        let answer = match &mut asking.rx {
            Some(rx) => rx.await,
            None => unreachable!("set two lines above"),
        };
        asking.rx = None;
        answer.unwrap_or_else(|_| Err(TakeError::Api { permanent: false, error: "the agent ends".to_owned() }))
    }

    /// Returns when the journal says of every lease of ours who has it.
    pub async fn listed(&self) {
        // Its sender is ours.
        let _ = self.0.listed.subscribe().wait_for(|l| *l).await;
    }

    /// Whether an address of the pool is on this node that nobody has.
    pub fn has_idle(&self, pool: &str) -> bool {
        self.lock().machine.has_idle(pool)
    }

    /// Waits a moment for the first map of a pool.
    async fn map_known(&self, pool: &PoolOfAsk) {
        let mut maps = self.0.caches.pool_map_watch(&pool.name);
        if let Ok(Ok(map)) = tokio::time::timeout(MAP_WAIT, maps.wait_for(Option::is_some)).await
            && let Some(map) = map.as_ref()
        {
            self.drive(|s, now| s.machine.map(now, &pool.name, map.as_deref().map(map_value)));
        }
        self.follow(&mut self.lock(), &pool.name);
    }

    /// Gives an address back; `keep`: for its identity. The future ends when the API server knows, or it rests; it need not be
    /// waited for.
    pub fn release(&self, lease: &str, container: &str, keep: bool) -> impl Future<Output = ()> + use<> {
        let done = name_of(lease).map(|name| {
            let (tx, rx) = oneshot::channel();
            self.drive(|s, now| {
                s.releases.entry(name.clone()).or_default().push(tx);
                s.machine.release(now, &name, container, keep);
            });
            rx
        });
        async move {
            if let Some(rx) = done {
                // Closed with the agent.
                let _ = rx.await;
            }
        }
    }

    /// Addresses that the next ADD gets without a request.
    pub fn spares(&self) -> Vec<IpAddr> {
        self.lock().machine.spares().map(|n| n.ip).collect()
    }

    /// An address that somebody else was seen to use: nobody gets it for a while.
    pub fn quarantine(&self, lease: &str, container: &str, mac: Option<String>) {
        let Some(name) = name_of(lease) else { return };
        let why = Quarantine { mac, reason: "DuplicateAddress".to_owned(), node: self.0.node.as_str().into() };
        self.drive(|s, now| s.machine.quarantine(now, &name, container, why));
    }

    /// Notes what the segment said about an address of another node: who uses it, or that nobody does. Only as the lease is now:
    /// where its agent writes it after all, that agent lives, and there is nothing to tell.
    pub async fn sighted(&self, lease: &str, mac: Option<String>) {
        let note = async {
            let Some(mut l) = self.0.api.get_opt(lease).await? else { return Ok(()) };
            if l.spec.node.is_empty() || l.spec.node == self.0.node {
                return Ok(());
            }
            let (node, at) = (self.0.node.clone(), Timestamp::now().to_string());
            l.spec.sighting = Some(Sighting { mac, node, at });
            self.0.api.replace(lease, &PostParams::default(), &l).await.map(|_| ())
        };
        match tokio::time::timeout(REQUEST_WAIT, note).await {
            Ok(Ok(())) => {}
            // The map asks again.
            Ok(Err(error)) => tracing::debug!(lease, %error, "what the segment said was not noted"),
            Err(_) => tracing::debug!(lease, "what the segment said was not noted: no answer from the api server"),
        }
    }

    async fn carry_out(&self, id: RequestId, request: Request) {
        let failed = |doubtful, permanent, error: String| {
            tracing::warn!(error, "a request about leases failed, will look again");
            Reply::Failed { doubtful, permanent, error }
        };
        let reply = match tokio::time::timeout(REQUEST_WAIT, self.request(request)).await {
            Ok(Ok(Reply::Leases(list))) => match self.look_for_lost(id, list).await {
                Ok(()) => return,
                Err(error) => failed(false, false, error),
            },
            Ok(Ok(reply)) => reply,
            Ok(Err(kube::Error::Api(s))) if s.code == 409 => Reply::Conflict,
            // Without a name it is the kind that is not there.
            Ok(Err(kube::Error::Api(s))) if s.code == 404 && s.details.as_ref().is_none_or(|d| !d.name.is_empty()) => {
                Reply::Absent
            }
            Ok(Err(e)) => {
                let code = match &e {
                    kube::Error::Api(s) => Some(s.code),
                    _ => None,
                };
                let permanent = code.is_some_and(|c| (400..500).contains(&c) && c != 410 && c != 429);
                failed(code.is_none_or(|c| c >= 500), permanent, crate::cni_server::with_causes(&e))
            }
            Err(_) => failed(true, false, format!("no answer from the api server within {} s", REQUEST_WAIT.as_secs())),
        };
        self.drive(|s, now| s.machine.reply(now, id, reply));
    }

    /// Brings the machine the leases of this node. Those that it does not know are looked for in the sandboxes first, and what is
    /// found is noted: where that fails, nothing is given back that may be in use.
    async fn look_for_lost(&self, id: RequestId, list: Vec<ipam::Lease>) -> Result<(), String> {
        let unknown: Vec<ipam::Lease> = {
            let state = self.lock();
            list.iter().filter(|l| !state.machine.knows(&l.name)).cloned().collect()
        };
        let look = || async {
            (self.0.sandboxes)().await.map_err(|e| format!("leases without a record: {}", crate::cni_server::with_causes(&e)))
        };
        let mut found = lost::Found::default();
        if !unknown.is_empty() {
            // For their gateways; without an answer it goes on without.
            if let Err(error) = self.0.caches.ready_for_addresses().await {
                tracing::warn!(%error, "looking for lost addresses without their pools");
            }
            let pools = self.0.caches.checked_pools();
            found = lost::find(&unknown, &look().await?, &pools.pools, |key| self.0.journal.get(key));
        }
        for e in found.entries {
            tracing::warn!(container = e.key.container_id, ifname = e.key.ifname, role = ?e.key.role, "the journal has lost what lives in a sandbox, noting it again");
            self.0.journal.put(e).map_err(|e| crate::cni_server::with_causes(&e))?;
        }
        for (name, _) in &found.used {
            tracing::warn!(
                lease = name_text(name),
                "a sandbox uses the address, and no record says which: nobody gets it meanwhile"
            );
        }
        let held = found.held.clone();
        self.drive(|s, now| {
            self.0.listed.send_replace(true);
            s.machine.living(now, found.held, found.used);
            s.machine.reply(now, id, Reply::Leases(list));
        });
        if !held.is_empty() {
            // A DEL between the look and the record found nothing to give back.
            match look().await {
                Ok(nics) => {
                    for h in held.iter().filter(|h| !lost::still_lives(h, &nics)) {
                        self.let_go(h).await;
                    }
                }
                Err(error) => tracing::warn!(error, "failed to look at the sandboxes again, DEL or the next start will tell"),
            }
        }
        Ok(())
    }

    /// Of a sandbox that went while its address was noted again.
    async fn let_go(&self, h: &Held) {
        let key = Key::new(&h.holder.container, &h.holder.nic, Role::Addresses);
        if let Some(e) = self.0.journal.get(&key)
            && let Err(error) = self.0.journal.put(Entry { state: State::Deleting, ..e })
        {
            tracing::warn!(%error, "failed to note what is given back");
        }
        self.release(&name_text(&h.name), &h.holder.container, h.identity.is_some()).await;
        if let Err(error) = self.0.journal.remove(&key) {
            tracing::warn!(%error, "failed to strike released addresses from the journal, the next start will");
        }
    }

    async fn request(&self, request: Request) -> Result<Reply, kube::Error> {
        let api = &self.0.api;
        let there = |l: &AddressLease| value_of(l).map_or(Reply::Absent, Reply::Done);
        Ok(match request {
            Request::Get(name) => api.get_opt(&name_text(&name)).await?.as_ref().map_or(Reply::Absent, there),
            Request::Create(l) => there(&api.create(&PostParams::default(), &object_of(&l, Timestamp::now())).await?),
            Request::Update(l) => {
                let object = object_of(&l, Timestamp::now());
                there(&api.replace(&object.name_any(), &PostParams::default(), &object).await?)
            }
            Request::Delete(l) => {
                let text = |s: &str| Some(s.to_owned());
                let preconditions = Some(Preconditions { uid: text(&l.uid), resource_version: text(&l.version) });
                api.delete(&name_text(&l.name), &DeleteParams { preconditions, ..DeleteParams::default() }).await?;
                Reply::Deleted
            }
            Request::ListNode => {
                // Also the first one: a consistent list of a label took 10 s at 78,000 leases, and the cache is behind by less than a
                // start takes.
                let all = api.list(&by_label(keys::LEASE_NODE, &label_value(&self.0.node))).await?;
                // Two long names may share a label's value.
                Reply::Leases(all.items.iter().filter_map(value_of).filter(|l| *l.node == *self.0.node).collect())
            }
            Request::ListChunk { domain, base } => {
                let all = api.list(&by_label(keys::LEASE_CHUNK, &chunk_label(base))).await?;
                Reply::Addresses(convert::addresses(&domain, &all.items).collect())
            }
        })
    }

    /// Addresses that an identity has, of all its interfaces. One label list, for when its SpiderEndpoint is gone.
    pub async fn of_identity(&self, identity: &Identity) -> Result<Vec<AddressLeaseSpec>, LeaseError> {
        let same = |i: &Identity| i.kind == identity.kind && i.namespace == identity.namespace && i.name == identity.name;
        let all = self.list_identity(identity).await?;
        Ok(all.into_iter().map(|l| l.spec).filter(|s| s.identity.as_ref().is_some_and(same)).collect())
    }

    /// Gives up what is kept for the identity besides these addresses: it asks for another pool now. What somebody holds stays.
    pub async fn drop_others(&self, identity: &Identity, keep: &[IpAddr]) -> Result<(), LeaseError> {
        let kept = |l: &AddressLease| {
            l.spec.identity.as_ref() == Some(identity) && l.spec.agent_id.is_empty() && l.spec.holder.is_none()
        };
        for l in self.list_identity(identity).await?.into_iter().filter(kept) {
            if l.spec.address.parse::<IpAddr>().is_ok_and(|ip| keep.contains(&ip)) {
                continue;
            }
            // As it is in the list, or not at all: it may have been taken since.
            let preconditions = Some(Preconditions { uid: l.uid(), resource_version: l.resource_version() });
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            match within("delete", identity, self.0.api.delete(&l.name_any(), &params)).await {
                Err(LeaseError::Api { source, .. }) if matches!(&*source, kube::Error::Api(s) if matches!(s.code, 404 | 409)) => {
                }
                other => {
                    other?;
                }
            }
        }
        Ok(())
    }

    async fn list_identity(&self, identity: &Identity) -> Result<Vec<AddressLease>, LeaseError> {
        let params = by_label(keys::LEASE_IDENTITY, &identity_label(identity));
        Ok(within("list", identity, self.0.api.list(&params)).await?.items)
    }
}

/// An ask that has not been answered yet.
struct Asking<'a> {
    leases: &'a Leases,
    id: AskId,
    container: String,
    rx: Option<oneshot::Receiver<Result<Taken, TakeError>>>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let Some(mut rx) = self.rx.take() else { return };
        self.leases.drive(|s, now| {
            s.asks.remove(&self.id);
            match rx.try_recv() {
                Ok(Ok(taken)) => s.machine.release(now, &taken.name, &self.container, !taken.fresh),
                Ok(Err(_)) => {}
                Err(_) => s.machine.cancel(now, self.id),
            }
        });
    }
}

async fn within<T>(
    act: &'static str,
    identity: &Identity,
    f: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, LeaseError> {
    let of = || format!("{}/{}", identity.namespace, identity.name);
    match tokio::time::timeout(REQUEST_WAIT, f).await {
        Ok(Ok(v)) => Ok(v),
        Ok(Err(e)) => Err(LeaseError::Api { act, of: of(), source: Box::new(e) }),
        Err(_) => Err(LeaseError::Timeout { act, of: of() }),
    }
}

/// From the API server's cache.
fn by_label(key: &str, value: &str) -> ListParams {
    ListParams::default().labels(&format!("{key}={value}")).match_any()
}

fn map_value(m: &PoolMap) -> Map {
    Map {
        version: m.resource_version().unwrap_or_default().into(),
        window: window(m),
        spares_per_node: u8::try_from(m.spec.spares_per_node).unwrap_or_default(),
        recall: m.spec.recall.iter().filter_map(|ip| ip.parse().ok()).collect(),
        nodes: m.spec.node_marks(),
    }
}

/// Of two entries with one lease the one that is not being deleted counts: it is the later one.
fn held(journal: &[Entry]) -> Vec<Held> {
    let mut entries: Vec<&Entry> = journal.iter().collect();
    entries.sort_by_key(|e| e.state != State::Deleting);
    let mut out = Vec::new();
    for e in entries {
        let Work::Addresses(a) = &e.work else { continue };
        let pod = e.pod.as_ref();
        for h in &a.held {
            let Some(name) = name_of(&h.lease) else { continue };
            let holder = ipam::Holder {
                namespace: pod.map(|p| p.namespace.clone()).unwrap_or_default(),
                pod: pod.map(|p| p.name.clone()).unwrap_or_default(),
                uid: pod.map(|p| p.uid.clone()).unwrap_or_default(),
                nic: e.key.ifname.clone(),
                container: e.key.container_id.clone(),
            };
            let identity = h.identity.as_ref().map(|i| Arc::new(identity_value(i)));
            out.push(Held { name, pool: h.pool.as_str().into(), holder: Arc::new(holder), identity });
        }
    }
    out
}

/// 64 bits: each `RandomState` has keys of its own, which is random enough to keep nodes apart; the API decides anyway.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
