//! The loop of the one controller that leads: watches mark things dirty, one task decides and writes. Who owns what: each watch is one task that ends with the
//! loop's receiver; the loop owns the state. Cancelling is safe: a write is one request, and what was not written is decided
//! again at the next start.

use std::time::Duration;

use api::mooring::AddressLease;
use api::{
    Bridge, NetworkAttachmentDefinition, NodeNetwork, PoolMap, SpiderCoordinator, SpiderIPPool, SpiderMultusConfig,
    SpiderReservedIP,
};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, Resource};
use runtime::{Backoff, Shutdown};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::Instrument;

use crate::decide::{self, decide};
use crate::leader::Leader;
use crate::state::{Change, Dirty, SlimNode, State};
use crate::write::{WriteError, write};

/// Events waiting for the loop. A full queue only makes the watches wait, and they resume where they were; 1024 is one burst
/// of a few hundred pods (a lease each) without a watch having to wait.
const QUEUE: usize = 1024;

/// Changes are collected for so long before anything is decided, so that a burst costs one decision. PoolMaps and counts may
/// be a second old (design: at most one write a second); bridges and networks wait no longer than a person notices.
const COLLECT: Duration = Duration::from_millis(150);
const COLLECT_POOLS: Duration = Duration::from_millis(1000);

/// Retries after a failed write: the API server is away or the object changed; both are over soon or take long.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Everything is decided anew so often, in case somebody changed what we wrote while a watch was down (and node resources,
/// which a kubelet may have put back to zero, are compared by value).
const RESYNC: Duration = Duration::from_secs(300);

/// Quarantines end by the clock, and the watch over a dead machine's leases; nobody waits for one by the second.
const CLOCK: Duration = Duration::from_secs(10);

/// Leads whenever it is our turn, until the shutdown.
pub async fn run(client: Client, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut leader = Leader::new(client.clone());
    loop {
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            () = leader.acquire() => tracing::info!("leading"),
        }
        let done = tokio::select! {
            done = lead(client.clone(), shutdown.clone()) => Some(done),
            // The work stops where it is: another controller reads what was written, and decides anew.
            () = leader.keep() => None,
        };
        if let Some(done) = done {
            leader.release().await;
            return done;
        }
    }
}

/// Decides and writes, until the shutdown.
pub async fn lead(client: Client, shutdown: Shutdown) -> anyhow::Result<()> {
    let (tx, mut rx) = mpsc::channel(QUEUE);
    start_watches(&client, &tx);
    drop(tx);
    let mut state = State::default();
    let mut dirty = Dirty::all();
    // What may be decided again at once, and what waits for the next full second.
    let mut next_pools = Instant::now();
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut resync = tokio::time::interval(RESYNC);
    let mut clock = tokio::time::interval(CLOCK);
    let mut ready = false;
    loop {
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            _ = resync.tick() => dirty.merge(Dirty::all()),
            _ = clock.tick() => {
                dirty.losses |= state.waits_for_the_clock();
                // Who asks for deleted nodes' addresses changes with the time.
                dirty.domains.extend(state.leases.domains_of_deleted(|node| state.nodes.get(node).is_some()));
            }
            change = rx.recv() => match change {
                Some(c) => state.apply(c, &mut dirty),
                None => anyhow::bail!("all watches ended"),
            },
            // Wakes the loop for pools that were put off.
            () = tokio::time::sleep_until(next_pools), if dirty.pools || !dirty.domains.is_empty() => {}
        }
        collect(&mut rx, &mut state, &mut dirty).await;
        if !state.synced() || dirty.is_empty() {
            continue;
        }
        if !ready {
            ready = true;
            tracing::info!(leases = state.leases.len(), "all watches are synced");
        }
        let mut now = std::mem::take(&mut dirty);
        if Instant::now() < next_pools {
            // Put off, not forgotten.
            dirty.pools = std::mem::take(&mut now.pools);
            dirty.domains = std::mem::take(&mut now.domains);
        } else if now.pools || !now.domains.is_empty() {
            next_pools = Instant::now() + COLLECT_POOLS;
        }
        let stamp = decide::Stamp(k8s_openapi::jiff::Timestamp::now());
        let mut failed = false;
        for w in decide(&state, &now, &stamp) {
            match write(&client, &w).await {
                Ok(()) => tracing::info!(write = %w, "written"),
                Err(e @ WriteError::Conflict { .. }) => {
                    tracing::debug!(error = %e, "will be decided again");
                    failed = true;
                }
                Err(e) => {
                    tracing::warn!(error = %e, cause = e.source_text(), "will be tried again");
                    failed = true;
                }
            }
        }
        if failed {
            dirty.merge(now);
            tokio::select! { () = backoff.wait() => {}, () = shutdown.wait() => return Ok(()) }
        } else {
            backoff.reset();
        }
    }
}

/// Takes in what comes within `COLLECT` of the first event.
async fn collect(rx: &mut mpsc::Receiver<Change>, state: &mut State, dirty: &mut Dirty) {
    let until = Instant::now() + COLLECT;
    while let Ok(Some(c)) = tokio::time::timeout_at(until, rx.recv()).await {
        state.apply(c, dirty);
    }
}

fn start_watches(client: &Client, tx: &mpsc::Sender<Change>) {
    // Lists come from the API server's cache (resourceVersion=0); a quorum read of everything is for nobody.
    let config = || Config::default().any_semantic();
    watch(Api::<SpiderIPPool>::all(client.clone()), config(), tx, Change::Pool);
    watch(Api::<SpiderReservedIP>::all(client.clone()), config(), tx, Change::Reserved);
    watch(Api::<PoolMap>::all(client.clone()), config(), tx, Change::PoolMap);
    watch(Api::<AddressLease>::all(client.clone()), config(), tx, Change::Lease);
    watch(Api::<SpiderMultusConfig>::all(client.clone()), config(), tx, Change::MultusConfig);
    watch(Api::<NetworkAttachmentDefinition>::all(client.clone()), config(), tx, Change::Nad);
    watch(Api::<SpiderCoordinator>::all(client.clone()), config(), tx, Change::Coordinator);
    watch(Api::<Bridge>::all(client.clone()), config(), tx, Change::Bridge);
    watch(Api::<SlimNode>::all(client.clone()), config(), tx, Change::Node);
    watch(Api::<NodeNetwork>::all(client.clone()), config(), tx, Change::NodeNetwork);
    let kubeadm = config().fields("metadata.name=kubeadm-config");
    watch(Api::<ConfigMap>::namespaced(client.clone(), "kube-system"), kubeadm, tx, Change::Kubeadm);
}

/// One watch: a task that ends when the loop is gone. The watcher itself relists and backs off; its errors are only told.
fn watch<K>(api: Api<K>, config: Config, tx: &mpsc::Sender<Change>, wrap: fn(Event<K>) -> Change)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let tx = tx.clone();
    let kind = K::kind(&());
    let span = tracing::info_span!("watch", %kind);
    tokio::spawn(
        async move {
            let mut events = watcher(api, config).default_backoff().boxed();
            while let Some(event) = events.next().await {
                match event {
                    Ok(e) => {
                        if tx.send(wrap(e)).await.is_err() {
                            return;
                        }
                    }
                    Err(e) => tracing::warn!(error = %e, "will be tried again"),
                }
            }
        }
        .instrument(span),
    );
}
