//! What is kept of the leases, found by address, pool and identity. Knows what they say, not what is to be done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::keys;
use api::mooring::{AddressLease, IdentityKind};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

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
}
