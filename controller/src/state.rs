//! What the watches brought, as maps. Filled by events, read by `decide`. No I/O.

mod leases;
mod node;

use std::collections::{BTreeMap, BTreeSet};

use api::mooring::AddressLease;
use api::{
    Bridge, NetworkAttachmentDefinition, NodeNetwork, PoolMap, SpiderCoordinator, SpiderIPPool, SpiderMultusConfig,
    SpiderReservedIP,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

pub use leases::{LeaseView, Leases, Quarantined, Sighted};
pub use node::{SlimCondition, SlimNode, SlimNodeSpec, SlimNodeStatus, SlimTaint};

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
                    let elsewhere = o.spec.taints != n.spec.taints || o.is_out_of_service() != n.is_out_of_service();
                    dirty.losses |= elsewhere || o.metadata.annotations != n.metadata.annotations;
                    dirty.pools |= elsewhere;
                }
            }
            Change::NodeNetwork(e) => dirty.bridges |= !self.node_networks.apply(e).is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        s.apply(Change::Node(Event::Apply(node.clone())), &mut d);
        assert!(d.pools && d.losses && !d.bridges, "its leases count otherwise");
        // Put there while it was Ready, the taint says something only when it is not any more.
        let ready = |is: &str| vec![SlimCondition { type_: "Ready".into(), status: is.into() }];
        node.spec.taints.push(SlimTaint { key: api::keys::TAINT_OUT_OF_SERVICE.into(), effect: "NoExecute".into() });
        node.status.conditions = ready("True");
        s.apply(Change::Node(Event::Apply(node.clone())), &mut d);
        d = Dirty::default();
        node.status.conditions = ready("Unknown");
        s.apply(Change::Node(Event::Apply(node)), &mut d);
        assert!(d.pools && d.losses, "it is out of service now");
    }
}
