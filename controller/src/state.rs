//! What the watches brought, as maps. Filled by events, read by `decide`. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::mooring::{AddressLease, IdentityKind};
use api::{
    Bridge, NetworkAttachmentDefinition, NodeNetwork, PoolMap, SpiderCoordinator, SpiderIPPool, SpiderMultusConfig,
    SpiderReservedIP, keys,
};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};

/// What we read of a Node. A whole one is tens of kilobytes (images, conditions that change with each heartbeat).
#[derive(Resource, Serialize, Deserialize, Clone, Debug, Default)]
#[resource(inherit = Node)]
pub struct SlimNode {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: SlimNodeSpec,
    #[serde(default)]
    pub status: SlimNodeStatus,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct SlimNodeSpec {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<SlimTaint>,
}

/// A taint without its value and time.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct SlimTaint {
    pub key: String,
    pub effect: String,
}

impl SlimNode {
    /// An administrator says that it is shut down and stays so, and it does not say otherwise. As Kubernetes, which takes nothing from a
    /// node with this taint that is Ready (pkg/controller/podgc).
    pub fn is_out_of_service(&self) -> bool {
        let ready = self.status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        !ready && self.spec.taints.iter().any(|t| t.key == keys::TAINT_OUT_OF_SERVICE)
    }

    /// Kubernetes counts on it. The taints of a node that does not answer have the effect NoExecute; the same with NoSchedule
    /// is on every node from its creation until it is ready for the first time.
    pub fn is_reachable(&self) -> bool {
        let away = |t: &SlimTaint| t.effect == "NoExecute" && keys::TAINTS_UNREACHABLE.contains(&t.key.as_str());
        !self.is_out_of_service() && !self.spec.taints.iter().any(away)
    }
}

#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct SlimNodeStatus {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<String, Quantity>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<SlimCondition>,
}

/// A condition without its times and texts.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct SlimCondition {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
}

/// `namespace/name`, or `name` where there is no namespace.
pub type Key = String;

pub fn key<K: Resource>(obj: &K) -> Key {
    match &obj.meta().namespace {
        Some(ns) => format!("{ns}/{}", obj.name_any()),
        None => obj.name_any(),
    }
}

/// Objects of one kind. A relist is buffered and swapped in whole, so that nothing seems gone while it runs.
#[derive(Debug)]
pub struct Store<K> {
    map: BTreeMap<Key, K>,
    relist: Option<BTreeMap<Key, K>>,
    synced: bool,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self { map: BTreeMap::new(), relist: None, synced: false }
    }
}

impl<K: Resource> Store<K> {
    /// Applies an event; returns the objects that went or came, before and after.
    pub fn apply(&mut self, event: Event<K>) -> Vec<(Option<K>, Option<K>)>
    where
        K: Clone,
    {
        match event {
            Event::Init => {
                self.relist = Some(BTreeMap::new());
                Vec::new()
            }
            Event::InitApply(obj) => {
                let k = key(&obj);
                if let Some(r) = &mut self.relist {
                    r.insert(k, obj);
                }
                Vec::new()
            }
            Event::InitDone => {
                let new = self.relist.take().unwrap_or_default();
                self.synced = true;
                let mut changed = Vec::new();
                for (k, old) in &self.map {
                    let now = new.get(k);
                    if now.map(|n| &n.meta().resource_version) != Some(&old.meta().resource_version) {
                        changed.push((Some(old.clone()), now.cloned()));
                    }
                }
                for (k, n) in &new {
                    if !self.map.contains_key(k) {
                        changed.push((None, Some(n.clone())));
                    }
                }
                self.map = new;
                changed
            }
            Event::Apply(obj) => {
                let old = self.map.insert(key(&obj), obj.clone());
                vec![(old, Some(obj))]
            }
            Event::Delete(obj) => vec![(self.map.remove(&key(&obj)), None)],
        }
    }

    pub fn get(&self, key: &str) -> Option<&K> {
        self.map.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &K)> {
        self.map.iter()
    }

    pub fn values(&self) -> impl Iterator<Item = &K> {
        self.map.values()
    }

    pub fn synced(&self) -> bool {
        self.synced
    }
}

/// What counts of a lease. The objects themselves are not kept: there may be a hundred thousand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    pub pool: String,
    pub ip: IpAddr,
    pub domain: String,
    pub node: String,
    pub agent_id: String,
    pub held: bool,
    pub fixed: bool,
    /// Of a StatefulSet's pod or a virtual machine, whose NIC has one address of a family.
    pub identity: Option<Box<str>>,
    pub wanted: bool,
    /// Somebody declared by hand that the agent which has it is gone.
    pub released: bool,
    /// Since when nobody has it, in Unix seconds.
    pub released_at: Option<i64>,
    pub quarantine: Option<Box<Quarantined>>,
    pub sighting: Option<Box<Sighted>>,
    pub resource_version: String,
}

/// What the segment last said about an address of a deleted node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighted {
    /// Of whoever answered.
    pub mac: Option<String>,
    /// Unix seconds; 0 where the lease says nothing readable.
    pub at: i64,
}

/// Since when nobody may have an address, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub mac: Option<String>,
    /// Who noticed.
    pub node: String,
    /// Unix seconds; 0 where the lease says nothing readable.
    pub since: i64,
}

impl LeaseView {
    pub fn name(&self) -> String {
        api::mooring::lease_name(&self.domain, self.ip)
    }

    /// As the decisions of crate `ipam` see it.
    pub fn fleet(&self) -> ipam::fleet::Lease<'_> {
        ipam::fleet::Lease {
            ip: self.ip,
            node: &self.node,
            agent_id: &self.agent_id,
            held: self.held,
            fixed: self.fixed,
            wanted: self.wanted,
            quarantined: self.quarantine.as_ref().map(|q| q.since),
            released: self.released_at,
        }
    }

    /// Nobody but the controller does what has to be done with it.
    fn is_orphan(&self) -> bool {
        self.released || self.quarantine.is_some()
    }
}

/// What has one address: an identity, and whether it is IPv4.
type OneAddress = (Box<str>, bool);

/// Leases by domain and address: domains are what addresses are unique in.
#[derive(Debug, Default)]
pub struct Leases {
    by_address: BTreeMap<(String, IpAddr), LeaseView>,
    /// Pool -> its leases.
    by_pool: BTreeMap<String, BTreeSet<(String, IpAddr)>>,
    /// Those that only the controller can do something about.
    orphans: BTreeSet<(String, IpAddr)>,
    /// Leases of an identity, IPv4 and IPv6.
    by_identity: BTreeMap<OneAddress, BTreeSet<(String, IpAddr)>>,
    /// Those identities that have several.
    several: BTreeSet<OneAddress>,
    relist: Option<Vec<LeaseView>>,
    synced: bool,
}

impl Leases {
    /// Applies an event; adds to `dirty` the domains in which something changed.
    pub fn apply(&mut self, event: Event<AddressLease>, dirty: &mut BTreeSet<String>) {
        match event {
            Event::Init => self.relist = Some(Vec::new()),
            Event::InitApply(l) => {
                if let (Some(r), Some(v)) = (&mut self.relist, view(&l)) {
                    r.push(v);
                }
            }
            Event::InitDone => {
                dirty.extend(self.by_address.keys().map(|(d, _)| d.clone()));
                self.by_address.clear();
                self.by_pool.clear();
                self.orphans.clear();
                self.by_identity.clear();
                self.several.clear();
                for v in self.relist.take().unwrap_or_default() {
                    dirty.insert(v.domain.clone());
                    self.insert(v);
                }
                self.synced = true;
            }
            Event::Apply(l) => {
                if let Some(v) = view(&l) {
                    dirty.insert(v.domain.clone());
                    self.insert(v);
                }
            }
            // By name alone: a lease whose content is nonsense must be removable too.
            Event::Delete(l) => {
                if let Ok((domain, ip)) = api::mooring::lease::parse_lease_name(&l.name_any()) {
                    dirty.insert(domain.to_owned());
                    self.remove(&(domain.to_owned(), ip));
                }
            }
        }
    }

    fn insert(&mut self, v: LeaseView) {
        let k = (v.domain.clone(), v.ip);
        self.remove(&k);
        self.by_pool.entry(v.pool.clone()).or_default().insert(k.clone());
        if v.is_orphan() {
            self.orphans.insert(k.clone());
        }
        if let Some(one) = one_address(&v) {
            let of = self.by_identity.entry(one.clone()).or_default();
            of.insert(k.clone());
            if of.len() > 1 {
                self.several.insert(one);
            }
        }
        self.by_address.insert(k, v);
    }

    fn remove(&mut self, k: &(String, IpAddr)) {
        self.orphans.remove(k);
        let Some(old) = self.by_address.remove(k) else { return };
        if let Some(set) = self.by_pool.get_mut(&old.pool) {
            set.remove(k);
        }
        if let Some(one) = one_address(&old)
            && let Some(of) = self.by_identity.get_mut(&one)
        {
            of.remove(k);
            if of.len() < 2 {
                self.several.remove(&one);
            }
            if of.is_empty() {
                self.by_identity.remove(&one);
            }
        }
    }

    /// Leases that name this pool, wherever their addresses lie.
    pub fn of_pool<'a>(&'a self, pool: &str) -> impl Iterator<Item = &'a LeaseView> {
        self.by_pool.get(pool).into_iter().flatten().filter_map(|k| self.by_address.get(k))
    }

    /// Leases of a domain with addresses in `[first, last]`, whatever pool they name.
    pub fn in_range<'a>(&'a self, domain: &str, first: IpAddr, last: IpAddr) -> impl Iterator<Item = &'a LeaseView> {
        let d = domain.to_owned();
        self.by_address.range((d.clone(), first)..=(d, last)).map(|(_, v)| v)
    }

    /// Domains in which somebody has an address whose node is not there. Walks all leases.
    pub fn domains_of_deleted(&self, exists: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let deleted = |l: &&LeaseView| !l.node.is_empty() && !exists(&l.node);
        self.by_address.values().filter(deleted).map(|l| l.domain.clone()).collect()
    }

    /// Leases of a node. Walks all of them: asked for only while the node is being fenced.
    pub fn of_node<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a LeaseView> {
        self.by_address.values().filter(move |l| l.node == node)
    }

    /// Leases by domain and address that only the controller can do something about.
    pub fn orphans(&self) -> impl Iterator<Item = &LeaseView> {
        self.orphans.iter().filter_map(|k| self.by_address.get(k))
    }

    /// The leases of each identity that has several of one family.
    pub fn of_identities_with_several(&self) -> impl Iterator<Item = Vec<&LeaseView>> {
        let of = self.several.iter().filter_map(|one| self.by_identity.get(one));
        of.map(|keys| keys.iter().filter_map(|k| self.by_address.get(k)).collect())
    }

    pub fn synced(&self) -> bool {
        self.synced
    }

    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }
}

fn one_address(l: &LeaseView) -> Option<OneAddress> {
    l.identity.clone().map(|i| (i, l.ip.is_ipv4()))
}

/// The name says the address; the label and the spec only repeat it.
fn view(l: &AddressLease) -> Option<LeaseView> {
    let name = l.name_any();
    let (domain, ip) = match api::mooring::lease::parse_lease_name(&name) {
        Ok(x) => x,
        Err(e) => {
            tracing::warn!(lease = %name, error = %e, "a lease is not counted");
            return None;
        }
    };
    Some(LeaseView {
        pool: l.spec.pool.clone(),
        ip,
        domain: domain.to_owned(),
        node: l.spec.node.clone(),
        agent_id: l.spec.agent_id.clone(),
        held: l.spec.holder.is_some(),
        fixed: l.spec.identity.is_some(),
        identity: l
            .spec
            .identity
            .as_ref()
            .filter(|i| i.kind != IdentityKind::Pod)
            .map(|i| format!("{:?}/{}/{}/{}", i.kind, i.namespace, i.name, i.interface).into()),
        wanted: l.spec.wanted.is_some(),
        released: !l.spec.agent_id.is_empty() && l.annotations().get(keys::RELEASED) == Some(&l.spec.agent_id),
        released_at: l.spec.released_at.as_ref().map(|at| at.parse::<Timestamp>().map_or(0, Timestamp::as_second)),
        quarantine: l.spec.quarantine.as_ref().map(|q| {
            let since = q.at.parse::<Timestamp>().map_or(0, Timestamp::as_second);
            Box::new(Quarantined { mac: q.mac.clone(), node: q.node.clone(), since })
        }),
        sighting: l.spec.sighting.as_ref().map(|s| {
            let at = s.at.parse::<Timestamp>().map_or(0, Timestamp::as_second);
            Box::new(Sighted { mac: s.mac.clone(), at })
        }),
        resource_version: l.resource_version().unwrap_or_default(),
    })
}

#[derive(Debug, Default)]
pub struct State {
    pub pools: Store<SpiderIPPool>,
    pub reserved: Store<SpiderReservedIP>,
    pub pool_maps: Store<PoolMap>,
    pub leases: Leases,
    pub multus_configs: Store<SpiderMultusConfig>,
    pub nads: Store<NetworkAttachmentDefinition>,
    pub coordinators: Store<SpiderCoordinator>,
    pub kubeadm: Store<ConfigMap>,
    pub bridges: Store<Bridge>,
    pub nodes: Store<SlimNode>,
    pub node_networks: Store<NodeNetwork>,
}

impl State {
    /// Something is to be decided that no change tells of: a quarantine ends, or a fence, or an identity has had a second address
    /// for long.
    pub fn waits_for_the_clock(&self) -> bool {
        self.leases.orphans().next().is_some()
            || self.leases.of_identities_with_several().next().is_some()
            || self.nodes.iter().any(|(_, n)| n.is_out_of_service())
    }

    /// Nothing is decided before every watch has brought its first list: what has not come yet would look deleted.
    pub fn synced(&self) -> bool {
        self.pools.synced()
            && self.reserved.synced()
            && self.pool_maps.synced()
            && self.leases.synced()
            && self.multus_configs.synced()
            && self.nads.synced()
            && self.coordinators.synced()
            && self.kubeadm.synced()
            && self.bridges.synced()
            && self.nodes.synced()
            && self.node_networks.synced()
    }
}

/// One event of one watch.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "at most a queue of them exists, and each is taken apart at once")]
pub enum Change {
    Pool(Event<SpiderIPPool>),
    Reserved(Event<SpiderReservedIP>),
    PoolMap(Event<PoolMap>),
    Lease(Event<AddressLease>),
    MultusConfig(Event<SpiderMultusConfig>),
    Nad(Event<NetworkAttachmentDefinition>),
    Coordinator(Event<SpiderCoordinator>),
    Kubeadm(Event<ConfigMap>),
    Bridge(Event<Bridge>),
    Node(Event<SlimNode>),
    NodeNetwork(Event<NodeNetwork>),
}

/// What has to be decided anew.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Dirty {
    /// All pools: one came, went or changed, or reserved addresses did.
    pub pools: bool,
    /// Pools of these L2 domains: leases changed.
    pub domains: BTreeSet<String>,
    pub networks: bool,
    pub coordinators: bool,
    pub bridges: bool,
    /// What nodes lose that cannot give it back: nodes, or leases of such a node, changed.
    pub losses: bool,
}

impl Dirty {
    pub fn all() -> Self {
        Self { pools: true, domains: BTreeSet::new(), networks: true, coordinators: true, bridges: true, losses: true }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn merge(&mut self, other: Dirty) {
        self.pools |= other.pools;
        self.domains.extend(other.domains);
        self.networks |= other.networks;
        self.coordinators |= other.coordinators;
        self.bridges |= other.bridges;
        self.losses |= other.losses;
    }
}

impl State {
    /// Takes an event in and says what it touches.
    pub fn apply(&mut self, change: Change, dirty: &mut Dirty) {
        match change {
            Change::Pool(e) => dirty.pools |= !self.pools.apply(e).is_empty(),
            Change::Reserved(e) => dirty.pools |= !self.reserved.apply(e).is_empty(),
            Change::PoolMap(e) => dirty.pools |= !self.pool_maps.apply(e).is_empty(),
            Change::Lease(e) => {
                self.leases.apply(e, &mut dirty.domains);
                dirty.losses = true;
            }
            Change::MultusConfig(e) => dirty.networks |= !self.multus_configs.apply(e).is_empty(),
            Change::Nad(e) => dirty.networks |= !self.nads.apply(e).is_empty(),
            Change::Coordinator(e) => {
                let changed = !self.coordinators.apply(e).is_empty();
                dirty.coordinators |= changed;
                // NADs carry the coordinator's settings.
                dirty.networks |= changed;
            }
            Change::Kubeadm(e) => dirty.coordinators |= !self.kubeadm.apply(e).is_empty(),
            Change::Bridge(e) => dirty.bridges |= !self.bridges.apply(e).is_empty(),
            // A heartbeat changes only what we do not keep.
            Change::Node(e) => {
                for (old, new) in self.nodes.apply(e) {
                    let (Some(o), Some(n)) = (&old, &new) else {
                        *dirty = Dirty { pools: true, bridges: true, losses: true, ..std::mem::take(dirty) };
                        continue;
                    };
                    dirty.bridges |= o.metadata.labels != n.metadata.labels
                        || o.metadata.annotations != n.metadata.annotations
                        || o.status.capacity != n.status.capacity
                        || o.metadata.deletion_timestamp != n.metadata.deletion_timestamp;
                    dirty.losses |= o.spec.taints != n.spec.taints || o.metadata.annotations != n.metadata.annotations;
                    dirty.pools |= o.spec.taints != n.spec.taints;
                }
            }
            Change::NodeNetwork(e) => dirty.bridges |= !self.node_networks.apply(e).is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str, pool: &str, holder: bool) -> AddressLease {
        let mut l = AddressLease::new(name, Default::default());
        l.spec.pool = pool.into();
        l.spec.holder = holder.then(Default::default);
        l
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn a_relist_replaces_everything_at_once() {
        let mut s = Store::<SpiderIPPool>::default();
        s.apply(Event::Apply(SpiderIPPool::new("old", Default::default())));
        s.apply(Event::Init);
        s.apply(Event::InitApply(SpiderIPPool::new("new", Default::default())));
        assert!(s.get("old").is_some() && s.get("new").is_none() && !s.synced());
        let changed = s.apply(Event::InitDone);
        assert_eq!(changed.len(), 2);
        assert!(s.get("old").is_none() && s.get("new").is_some() && s.synced());
    }

    #[test]
    fn leases_are_found_by_pool_and_by_range() {
        let mut l = Leases::default();
        let mut dirty = BTreeSet::new();
        l.apply(Event::Apply(lease("default.v4-10-6-1-1", "a", true)), &mut dirty);
        l.apply(Event::Apply(lease("default.v4-10-6-1-2", "a", false)), &mut dirty);
        l.apply(Event::Apply(lease("lab.v4-10-6-1-2", "b", true)), &mut dirty);
        assert_eq!(dirty, BTreeSet::from(["default".to_owned(), "lab".to_owned()]));
        assert_eq!(l.of_pool("a").count(), 2);
        assert_eq!(l.in_range("default", ip("10.6.1.2"), ip("10.6.1.255")).count(), 1);
        // The pool that a lease names may change (the older of two overlapping pools went).
        l.apply(Event::Apply(lease("default.v4-10-6-1-1", "c", true)), &mut dirty);
        assert_eq!(l.of_pool("a").count(), 1);
        l.apply(Event::Delete(lease("default.v4-10-6-1-1", "whatever", true)), &mut dirty);
        assert_eq!(l.of_pool("c").count(), 0);
        assert_eq!(l.len(), 2);
    }

    #[test]
    fn heartbeats_of_nodes_dirty_nothing() {
        let mut s = State::default();
        let mut node = SlimNode::default();
        node.metadata.name = Some("n1".into());
        let mut d = Dirty::default();
        s.apply(Change::Node(Event::Apply(node.clone())), &mut d);
        assert!(d.bridges && d.pools && d.losses);
        d = Dirty::default();
        node.metadata.resource_version = Some("2".into());
        s.apply(Change::Node(Event::Apply(node.clone())), &mut d);
        assert!(d.is_empty());
        node.metadata.labels = Some(BTreeMap::from([("bridge.mooring.dev/br1".into(), "enabled".into())]));
        s.apply(Change::Node(Event::Apply(node.clone())), &mut d);
        assert!(d.bridges && !d.pools);
        node.spec.taints.push(SlimTaint { key: "node.kubernetes.io/unreachable".into(), effect: "NoExecute".into() });
        d = Dirty::default();
        s.apply(Change::Node(Event::Apply(node)), &mut d);
        assert!(d.pools && d.losses && !d.bridges, "its leases count otherwise");
    }
}
