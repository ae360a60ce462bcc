//! What the journal has lost, found again: leases of this node that no record stands for, and the NICs in its sandboxes. A lease whose
//! address lives is noted again, as far as that can be told, so that DEL and GC find it. Pure; the caller looks and writes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipam::machine::Held;
use ipam::{Name, Pool, Pools};
use model::{AttachmentId, IfAddr, PodRef};
use serde_json::json;

use super::{identity_object, name_text};
use crate::journal::{self, Addresses, Call, Entry, Key, Role, State, Work};
use crate::sandboxes::Nic;

/// What follows for leases that nobody knew.
#[derive(Debug, Default)]
pub struct Found {
    /// Had by a sandbox that the lease or the journal names.
    pub held: Vec<Held>,
    /// Had by a sandbox, and by which one nobody can tell.
    pub used: Vec<(Name, Arc<str>)>,
    /// To be written down before anything else.
    pub entries: Vec<Entry>,
}

/// `leases`: of this node, unknown to the machine. `noted`: the journal's entry of a key.
pub fn find(leases: &[ipam::Lease], nics: &[Nic], pools: &Pools, noted: impl Fn(&Key) -> Option<Entry>) -> Found {
    let mut found = Found::default();
    let mut again: BTreeMap<Key, (Vec<journal::Held>, &ipam::Holder, &Nic)> = BTreeMap::new();
    for l in leases {
        let by = l.holder.as_deref().and_then(|h| {
            let key = Key::new(&h.container, &h.nic, Role::Addresses);
            Some((h, nic_of(h, l.name.ip, nics)?, noted(&key), key))
        });
        match by {
            // An earlier look could write only a part down.
            Some((h, _, Some(e), _)) if e.state == State::Added && has(&e, l) => found.held.push(held(l, h)),
            Some((h, nic, None, key)) if let Some(record) = record(l, nic, pools.get(&l.pool)) => {
                found.held.push(held(l, h));
                again.entry(key).or_insert_with(|| (Vec::new(), h, nic)).0.push(record);
            }
            _ if nics.iter().any(|n| n.addrs.iter().any(|a| a.ip() == l.name.ip)) => {
                found.used.push((l.name.clone(), l.pool.clone()));
            }
            _ => {}
        }
    }
    for (key, (held, holder, nic)) in again {
        let ifname = key.ifname.clone();
        let main = Key { role: Role::Main, ..key.clone() };
        let entry = |key, work| Entry {
            key,
            state: State::Added,
            pod: Some(PodRef { namespace: holder.namespace.clone(), name: holder.pod.clone(), uid: holder.uid.clone() }),
            netns: Some(nic.netns.clone()),
            network: String::new(),
            runtime: String::new(),
            work,
        };
        found.entries.push(entry(key, Work::Addresses(Addresses { held, taken_by: ifname, used: true })));
        if let Some(call) = call_of(nic)
            && noted(&main).is_none()
        {
            found.entries.push(entry(main, Work::Main(call)));
        }
    }
    found
}

/// The holder's NIC by its mark; where the main plugin was another project's, by its name and the address.
fn nic_of<'a>(h: &ipam::Holder, ip: IpAddr, nics: &'a [Nic]) -> Option<&'a Nic> {
    let id = AttachmentId::of(&h.container, &h.nic);
    let marked = || nics.iter().filter(|n| n.attachment == Some(id));
    let named = |n: &&Nic| n.link.name.as_str() == h.nic;
    let foreign = |n: &&Nic| n.attachment.is_none() && n.addrs.iter().any(|a| a.ip() == ip);
    // Beside the NIC there may be a pair of the coordinator's, and somebody may have renamed the NIC.
    marked().find(named).or_else(|| marked().next()).or_else(|| nics.iter().filter(named).find(foreign))
}

/// Whether its sandbox still has the address: a DEL may have come meanwhile.
pub fn still_lives(held: &Held, nics: &[Nic]) -> bool {
    nic_of(&held.holder, held.name.ip, nics).is_some()
}

fn has(e: &Entry, l: &ipam::Lease) -> bool {
    let name = name_text(&l.name);
    matches!(&e.work, Work::Addresses(a) if a.held.iter().any(|h| h.lease == name))
}

fn held(l: &ipam::Lease, h: &ipam::Holder) -> Held {
    Held { name: l.name.clone(), pool: l.pool.clone(), holder: Arc::new(h.clone()), identity: l.identity.clone() }
}

/// As an ADD without annotations would have it: what it is for is the SpiderEndpoint, for the pod has its routes.
fn record(l: &ipam::Lease, nic: &Nic, pool: Option<&Pool>) -> Option<journal::Held> {
    let ip = l.name.ip;
    let alone = || IfAddr::new(ip, if ip.is_ipv4() { 32 } else { 128 }).ok();
    Some(journal::Held {
        lease: name_text(&l.name),
        pool: l.pool.to_string(),
        addr: nic.addrs.iter().find(|a| a.ip() == ip).copied().or_else(alone)?,
        gateway: pool.and_then(|p| p.gateway),
        routes: pool.map(|p| p.routes.clone()).unwrap_or_default(),
        clean_gateway: false,
        identity: l.identity.as_deref().map(identity_object),
        fresh: false,
    })
}

/// As much of the call as its DEL needs: which plugin, and whose the addresses are. None for another project's NIC.
fn call_of(nic: &Nic) -> Option<Call> {
    use model::observed::LinkKind;
    let kind = match nic.link.kind {
        _ if nic.attachment.is_none() => return None,
        LinkKind::Veth => "cni-ovs",
        LinkKind::Macvlan { .. } => "cni-macvlan",
        _ => return None,
    };
    Some(Call {
        conf: json!({ "cniVersion": "1.0.0", "name": "unknown", "type": kind, "ipam": { "type": "spiderpool" } }),
        args: String::new(),
        path: String::new(),
        foreign_ipam: false,
        vlan: nic.vlan,
        mac: nic.link.mac.map(|m| m.to_string()),
    })
}
