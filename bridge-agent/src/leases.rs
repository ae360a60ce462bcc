//! The API's side of addresses: AddressLeases are created, taken over, emptied and deleted here and nowhere else in the
//! agent. The API server's create decides who has an address. Does not know which address is tried, or why.
//!
//! A name that this agent works with is *claimed* in memory from before the first request until the lease is gone (or while
//! it is held), so that two ADDs of one node never mistake each other's lease for a leftover of their own.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::keys;
use api::mooring::{AddressLease, AddressLeaseSpec, Holder, Identity, IdentityKind, chunk_label, lease_name, parse_lease_name};
use futures_util::StreamExt;
use ipam::fixed::{self, Decision};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

/// How long a fixed address is waited for while somebody else has it: a rolling update deletes a pod and makes the next one
/// within this time; longer and the runtime's retry is cheaper than a CNI call that hangs.
pub const FIXED_WAIT: Duration = Duration::from_secs(5);
/// One request to the API server. Four of these fit into the minute that a CNI call has.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// Tries of one guarded update: a conflict means that somebody changed the lease in between, which the controller's repair
/// does once, not five times.
const UPDATE_TRIES: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("failed to {act} lease {name}")]
    Api {
        act: &'static str,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("no answer within {secs} s to the request to {act} lease {name}", secs = REQUEST_WAIT.as_secs())]
    Timeout { act: &'static str, name: String },
    #[error("lease {name} changed {UPDATE_TRIES} times while it was to be updated")]
    Contended { name: String },
    #[error("address {address} is still held by {holder} on node {node}")]
    Busy { address: IpAddr, holder: String, node: String },
    #[error("address {address} cannot be given: {why}")]
    Refused { address: IpAddr, why: String },
}

impl LeaseError {
    /// Whether the same request may succeed later with nothing else changed.
    pub fn is_temporary(&self) -> bool {
        match self {
            LeaseError::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(s) => s.code >= 500 || s.code == 429,
                _ => true,
            },
            LeaseError::Timeout { .. } | LeaseError::Contended { .. } | LeaseError::Busy { .. } => true,
            LeaseError::Refused { .. } => false,
        }
    }

    /// Whether the server may have carried the request out although we have no answer.
    fn is_doubtful(&self) -> bool {
        match self {
            LeaseError::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(s) => s.code >= 500,
                _ => true,
            },
            LeaseError::Timeout { .. } => true,
            _ => false,
        }
    }
}

/// For whom an address of which pool is wanted.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    pub pool: &'a str,
    /// L2 domain of the pool.
    pub domain: &'a str,
    pub holder: &'a Holder,
    /// Set for fixed addresses.
    pub identity: Option<&'a Identity>,
}

/// A lease that we have: its name stays claimed until `release`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub name: String,
    pub uid: String,
    /// It did not exist before.
    pub created: bool,
}

#[derive(Debug)]
pub struct Leases {
    api: Api<AddressLease>,
    node: String,
    agent_id: String,
    /// Name -> container that it is for; empty for work on a leftover.
    claimed: Mutex<HashMap<String, String>>,
    /// Names whose creation may or may not have happened; each is claimed.
    doubtful: Mutex<Vec<(String, String)>>,
    /// Counts releases, for those who wait for an address that this node gives up.
    released: watch::Sender<u64>,
}

impl Leases {
    /// `held`: names that the journal says this agent has, each with its container.
    pub fn new(client: Client, node: &str, agent_id: &str, held: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            api: Api::all(client),
            node: node.to_owned(),
            agent_id: agent_id.to_owned(),
            claimed: Mutex::new(held.into_iter().collect()),
            doubtful: Mutex::default(),
            released: watch::channel(0).0,
        }
    }

    fn claim(&self, name: &str, container: &str) -> bool {
        match self.claimed.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(v) => {
                v.insert(container.to_owned());
                true
            }
        }
    }

    /// Ends the claim of this container; a later one's stays.
    fn unclaim(&self, name: &str, container: &str) {
        {
            let mut all = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
            if all.get(name).is_some_and(|c| c == container) {
                all.remove(name);
            }
        }
        self.released.send_modify(|n| *n += 1);
    }

    pub fn is_claimed(&self, name: &str) -> bool {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// Tries to get one address. `None`: somebody has it.
    pub async fn take(&self, ask: &Ask<'_>, ip: IpAddr) -> Result<Option<Taken>, LeaseError> {
        let name = lease_name(ask.domain, ip);
        let container = &ask.holder.container_id;
        if !self.claim(&name, container) {
            return Ok(None);
        }
        let taken = self.create_or_adopt(ask, ip, &name).await;
        match &taken {
            Ok(Some(_)) => {}
            Ok(None) => self.unclaim(&name, container),
            // The claim stays, so that nobody adopts what `settle_doubtful` is going to delete.
            Err(e) if e.is_doubtful() => {
                self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).push((name, container.clone()))
            }
            Err(_) => self.unclaim(&name, container),
        }
        taken
    }

    async fn create_or_adopt(&self, ask: &Ask<'_>, ip: IpAddr, name: &str) -> Result<Option<Taken>, LeaseError> {
        let lease = self.lease(ask, ip, name);
        match self.request("create", name, self.api.create(&PostParams::default(), &lease)).await {
            Ok(made) => return Ok(Some(taken(&made, true))),
            Err(e) if code(&e) == Some(409) => {}
            Err(e) => return Err(e),
        }
        // Ours and claimed by nobody: a leftover (a crash between create and journal). Taking it is as good as creating it.
        match self.get(name).await? {
            Some(there) if there.spec.agent_id == self.agent_id && !another_identity(&there, ask) => {
                match self.replace(ask, there).await {
                    Ok(t) => Ok(Some(t)),
                    Err(e) if matches!(code(&e), Some(409 | 404)) => Ok(None),
                    Err(e) => Err(e),
                }
            }
            // Also when it is gone again: the next address is as good.
            _ => Ok(None),
        }
    }

    /// Gets one certain address for an identity: creates its lease, or takes it over by one guarded update. Waits `FIXED_WAIT`
    /// while somebody else has it.
    pub async fn take_fixed(&self, ask: &Ask<'_>, ip: IpAddr) -> Result<Taken, LeaseError> {
        let name = lease_name(ask.domain, ip);
        let deadline = tokio::time::Instant::now() + FIXED_WAIT;
        let mut released = self.released.subscribe();
        let mut events = None;
        loop {
            released.borrow_and_update();
            let who = match self.try_fixed(ask, ip, &name).await? {
                Fixed::Taken(t) => return Ok(t),
                Fixed::Again => continue,
                Fixed::Busy { holder, node } => LeaseError::Busy { address: ip, holder, node },
            };
            // Watched by name only while somebody waits. The first event repeats what we know; that costs one GET.
            let events = events.get_or_insert_with(|| {
                let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
                Box::pin(watcher(self.api.clone(), config))
            });
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return Err(who),
                Some(e) = events.next() => {
                    if let Err(error) = e {
                        tracing::warn!(name, %error, "watch of a fixed address failed, will retry");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
                r = released.changed() => {
                    // The sender is a field of ours, so that it cannot be gone.
                    debug_assert!(r.is_ok());
                }
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(who);
            }
        }
    }

    async fn try_fixed(&self, ask: &Ask<'_>, ip: IpAddr, name: &str) -> Result<Fixed, LeaseError> {
        let container = &ask.holder.container_id;
        if !self.claim(name, container) {
            // This node has it: what had it before has not been taken down yet.
            let holder = self
                .get(name)
                .await?
                .and_then(|l| l.spec.holder)
                .map_or_else(|| "a pod that is being taken down".to_owned(), |h| named(&h));
            return Ok(Fixed::Busy { holder, node: self.node.clone() });
        }
        let outcome = self.try_claimed(ask, ip, name).await;
        match &outcome {
            Ok(Fixed::Taken(_)) => {}
            Err(e) if e.is_doubtful() => {
                self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), container.clone()))
            }
            // Without waking those who wait for a release: nothing was released.
            _ => {
                self.claimed.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            }
        }
        outcome
    }

    async fn try_claimed(&self, ask: &Ask<'_>, ip: IpAddr, name: &str) -> Result<Fixed, LeaseError> {
        let there = self.get(name).await?;
        let (holder, identity) = (plain(ask.holder), ask.identity.map(key));
        let me = fixed::Me { node: &self.node, agent_id: &self.agent_id, holder: &holder, identity: identity.as_ref() };
        let seen = there.as_ref().map(|l| self.seen(l, ip));
        let lease = match fixed::decide(seen.as_ref(), &me) {
            Decision::Create => self
                .request("create", name, self.api.create(&PostParams::default(), &self.lease(ask, ip, name)))
                .await
                .map(|l| taken(&l, true)),
            Decision::Mine | Decision::Take => self.replace(ask, there.expect("a lease was decided about")).await,
            Decision::WaitFor { holder, node } => return Ok(Fixed::Busy { holder: holder.to_string(), node: node.to_string() }),
            Decision::Recall { node } => {
                return Ok(Fixed::Busy { holder: "nobody (a spare address)".to_owned(), node: node.to_string() });
            }
            Decision::Refuse(why) => return Err(LeaseError::Refused { address: ip, why }),
        };
        match lease {
            Ok(t) => Ok(Fixed::Taken(t)),
            Err(e) if matches!(code(&e), Some(409 | 404)) => Ok(Fixed::Again),
            Err(e) => Err(e),
        }
    }

    /// A lease of ours that nothing here claims has no holder any more, whatever it says.
    fn seen(&self, l: &AddressLease, ip: IpAddr) -> ipam::Lease {
        let leftover = l.spec.agent_id == self.agent_id;
        ipam::Lease {
            name: ipam::Name { ip, domain: "".into() },
            uid: "".into(),
            version: "".into(),
            pool: l.spec.pool.as_str().into(),
            node: l.spec.node.as_str().into(),
            agent_id: l.spec.agent_id.as_str().into(),
            holder: l.spec.holder.as_ref().filter(|_| !leftover).map(|h| plain(h).into()),
            identity: l.spec.identity.as_ref().map(|i| key(i).into()),
            wanted: None,
            released: l.spec.released_at.is_some(),
            quarantine: None,
        }
    }

    /// Gives an address back. Not there, or somebody else's by now, counts as given back. The claim ends with success.
    pub async fn release(&self, name: &str, uid: &str, container: &str, fixed: bool) -> Result<(), LeaseError> {
        if fixed {
            self.empty(name, uid, Some(container)).await?
        } else {
            self.delete(name, uid).await?
        }
        self.unclaim(name, container);
        Ok(())
    }

    async fn delete(&self, name: &str, uid: &str) -> Result<(), LeaseError> {
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match self.request("delete", name, self.api.delete(name, &params)).await {
            Ok(_) => Ok(()),
            // 409: another lease by now.
            Err(e) if matches!(code(&e), Some(404 | 409)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// `container`: only while this one is the holder; the same lease may have a later one.
    async fn empty(&self, name: &str, uid: &str, container: Option<&str>) -> Result<(), LeaseError> {
        for _ in 0..UPDATE_TRIES {
            let Some(mut l) = self.get(name).await? else { return Ok(()) };
            if l.metadata.uid.as_deref() != Some(uid)
                || l.spec.agent_id != self.agent_id
                || (container.is_some() && container != l.spec.holder.as_ref().map(|h| h.container_id.as_str()))
            {
                return Ok(());
            }
            l.spec.node.clear();
            l.spec.agent_id.clear();
            l.spec.holder = None;
            l.spec.wanted = None;
            l.spec.released_at = Some(Timestamp::now().to_string());
            l.labels_mut().remove(keys::LEASE_NODE);
            match self.request("update", name, self.api.replace(name, &PostParams::default(), &l)).await {
                Ok(_) => return Ok(()),
                Err(e) if code(&e) == Some(404) => return Ok(()),
                Err(e) if code(&e) == Some(409) => {}
                Err(e) => return Err(e),
            }
        }
        Err(LeaseError::Contended { name: name.to_owned() })
    }

    /// Deletes what unanswered creations may have left. The names that could not be settled stay for the next call.
    pub async fn settle_doubtful(&self) -> Result<(), LeaseError> {
        loop {
            let name = self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
            let Some((name, container)) = name else { return Ok(()) };
            if let Some(l) = self.get(&name).await? {
                self.give_back(&l).await?;
            }
            self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).retain(|(n, _)| *n != name);
            self.unclaim(&name, &container);
        }
    }

    pub fn has_doubtful(&self) -> bool {
        !self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Leases of this agent that neither the journal nor a running ADD knows: given back. One label list.
    pub async fn release_unknown(&self) -> Result<usize, LeaseError> {
        let params = ListParams::default().labels(&format!("{}={}", keys::LEASE_NODE, label_value(&self.node))).match_any();
        let all = self.request("list", "*", self.api.list(&params)).await?;
        let mut released = 0;
        for l in all.items.into_iter().filter(|l| l.spec.agent_id == self.agent_id) {
            let name = l.name_any();
            // Claimed while it is deleted: an ADD that picks it meanwhile takes another one.
            if !self.claim(&name, "") {
                continue;
            }
            let done = self.give_back(&l).await;
            self.unclaim(&name, "");
            done?;
            released += 1;
        }
        Ok(released)
    }

    async fn give_back(&self, l: &AddressLease) -> Result<(), LeaseError> {
        let (name, uid) = (l.name_any(), l.uid().unwrap_or_default());
        if l.spec.agent_id != self.agent_id {
            return Ok(());
        }
        if l.spec.identity.is_some() { self.empty(&name, &uid, None).await } else { self.delete(&name, &uid).await }
    }

    /// Addresses that an identity has, of all its interfaces. One label list, for when its SpiderEndpoint is gone.
    pub async fn of_identity(&self, identity: &Identity) -> Result<Vec<AddressLeaseSpec>, LeaseError> {
        let params = ListParams::default().labels(&format!("{}={}", keys::LEASE_IDENTITY, identity_label(identity))).match_any();
        let all = self.request("list", "*", self.api.list(&params)).await?;
        let same = |i: &Identity| i.kind == identity.kind && i.namespace == identity.namespace && i.name == identity.name;
        Ok(all.items.into_iter().map(|l| l.spec).filter(|s| s.identity.as_ref().is_some_and(same)).collect())
    }

    /// Gives up what is kept for the identity besides these addresses: it asks for another pool now. What somebody holds stays.
    pub async fn drop_others(&self, identity: &Identity, keep: &[IpAddr]) -> Result<(), LeaseError> {
        let params = ListParams::default().labels(&format!("{}={}", keys::LEASE_IDENTITY, identity_label(identity))).match_any();
        let all = self.request("list", "*", self.api.list(&params)).await?;
        let kept = |l: &AddressLease| {
            l.spec.identity.as_ref() == Some(identity) && l.spec.agent_id.is_empty() && l.spec.holder.is_none()
        };
        for l in all.items.into_iter().filter(kept) {
            if l.spec.address.parse::<IpAddr>().is_ok_and(|ip| keep.contains(&ip)) {
                continue;
            }
            // As it is in the list, or not at all: it may have been taken since.
            let preconditions = Some(Preconditions { uid: l.uid(), resource_version: l.resource_version() });
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            let name = l.name_any();
            match self.request("delete", &name, self.api.delete(&name, &params)).await {
                Ok(_) => {}
                Err(e) if matches!(code(&e), Some(404 | 409)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Addresses of one chunk (a /24 or /120) that have a lease. One label list, from the API server's cache.
    pub async fn of_chunk(&self, domain: &str, base: IpAddr) -> Result<BTreeSet<IpAddr>, LeaseError> {
        let params = ListParams::default().labels(&format!("{}={}", keys::LEASE_CHUNK, chunk_label(base))).match_any();
        let all = self.request("list", "*", self.api.list(&params)).await?;
        let names = all.items.iter().map(|l| l.name_any());
        Ok(names.filter_map(|n| parse_lease_name(&n).ok().filter(|(d, _)| *d == domain).map(|(_, ip)| ip)).collect())
    }

    async fn get(&self, name: &str) -> Result<Option<AddressLease>, LeaseError> {
        self.request("read", name, self.api.get_opt(name)).await
    }

    /// Puts our holder into a lease, guarded by its resourceVersion.
    async fn replace(&self, ask: &Ask<'_>, mut there: AddressLease) -> Result<Taken, LeaseError> {
        let name = there.name_any();
        there.spec.node = self.node.clone();
        there.spec.agent_id = self.agent_id.clone();
        there.spec.holder = Some(ask.holder.clone());
        there.spec.identity = ask.identity.cloned();
        there.spec.pool = ask.pool.to_owned();
        there.spec.wanted = None;
        there.spec.released_at = None;
        let labels = there.labels_mut();
        labels.insert(keys::LEASE_NODE.to_owned(), label_value(&self.node));
        labels.insert(keys::LEASE_POOL.to_owned(), label_value(ask.pool));
        match ask.identity {
            Some(i) => labels.insert(keys::LEASE_IDENTITY.to_owned(), identity_label(i)),
            None => labels.remove(keys::LEASE_IDENTITY),
        };
        let done = self.request("update", &name, self.api.replace(&name, &PostParams::default(), &there)).await?;
        Ok(taken(&done, false))
    }

    fn lease(&self, ask: &Ask<'_>, ip: IpAddr, name: &str) -> AddressLease {
        let spec = AddressLeaseSpec {
            pool: ask.pool.to_owned(),
            address: ip.to_string(),
            node: self.node.clone(),
            agent_id: self.agent_id.clone(),
            holder: Some(ask.holder.clone()),
            identity: ask.identity.cloned(),
            wanted: None,
            released_at: None,
            quarantine: None,
        };
        let mut lease = AddressLease::new(name, spec);
        let mut labels = BTreeMap::from([
            (keys::LEASE_POOL.to_owned(), label_value(ask.pool)),
            (keys::LEASE_NODE.to_owned(), label_value(&self.node)),
            (keys::LEASE_CHUNK.to_owned(), chunk_label(ip)),
        ]);
        if let Some(i) = ask.identity {
            labels.insert(keys::LEASE_IDENTITY.to_owned(), identity_label(i));
        }
        lease.metadata.labels = Some(labels);
        lease
    }

    async fn request<T>(
        &self,
        act: &'static str,
        name: &str,
        f: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, LeaseError> {
        match tokio::time::timeout(REQUEST_WAIT, f).await {
            Ok(Ok(v)) => Ok(v),
            Ok(Err(e)) => Err(LeaseError::Api { act, name: name.to_owned(), source: Box::new(e) }),
            Err(_) => Err(LeaseError::Timeout { act, name: name.to_owned() }),
        }
    }
}

enum Fixed {
    Taken(Taken),
    Busy {
        holder: String,
        node: String,
    },
    /// It changed under our hands.
    Again,
}

fn taken(l: &AddressLease, created: bool) -> Taken {
    Taken { name: l.name_any(), uid: l.uid().unwrap_or_default(), created }
}

fn another_identity(l: &AddressLease, ask: &Ask<'_>) -> bool {
    l.spec.identity.is_some() && l.spec.identity.as_ref() != ask.identity
}

fn code(e: &LeaseError) -> Option<u16> {
    match e {
        LeaseError::Api { source, .. } => match source.as_ref() {
            kube::Error::Api(s) => Some(s.code),
            _ => None,
        },
        _ => None,
    }
}

fn named(h: &Holder) -> String {
    format!(
        "pod {}/{} ({}, container {})",
        h.pod_namespace,
        h.pod_name,
        h.interface,
        h.container_id.get(..13).unwrap_or(&h.container_id)
    )
}

fn plain(h: &Holder) -> ipam::Holder {
    ipam::Holder {
        namespace: h.pod_namespace.clone(),
        pod: h.pod_name.clone(),
        uid: h.pod_uid.clone(),
        nic: h.interface.clone(),
        container: h.container_id.clone(),
    }
}

fn key(i: &Identity) -> ipam::Identity {
    let kind = match i.kind {
        IdentityKind::StatefulSet => ipam::IdentityKind::StatefulSet,
        IdentityKind::VirtualMachine => ipam::IdentityKind::VirtualMachine,
        IdentityKind::Pod => ipam::IdentityKind::Pod,
    };
    ipam::Identity { kind, namespace: i.namespace.clone(), name: i.name.clone(), nic: i.interface.clone() }
}

/// A name as a label's value: itself, or where it is longer than the 63 bytes that a value may have, its beginning and a
/// digest.
pub fn label_value(name: &str) -> String {
    if name.len() <= 63 {
        return name.to_owned();
    }
    // Names are ASCII (RFC 1123); `get` covers the case that one is not.
    format!("{}-{:016x}", name.get(..46).unwrap_or_default(), fnv1a([name]))
}

/// One value for all interfaces of a pod or VM, so that one list finds them.
pub fn identity_label(i: &Identity) -> String {
    format!("{:016x}", fnv1a([&format!("{:?}", i.kind), i.namespace.as_str(), i.name.as_str()]))
}

fn fnv1a<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for p in parts {
        for b in p.bytes().chain([0]) {
            h = (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    h
}
