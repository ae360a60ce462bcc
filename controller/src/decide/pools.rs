//! Pools: counts, conditions and the finalizer of each SpiderIPPool, and its PoolMap, the hint from which agents choose a free
//! address. The truth is the leases; nothing here decides who has an address.

use std::collections::{BTreeMap, BTreeSet};

use api::convert::{self, Checked};
use api::mooring::{Chunk, PoolMapSpec, ProbeRequest};
use api::spider::ippool::SpiderIPPoolStatus;
use api::{PoolMap, SpiderIPPool, keys};
use ipam::{Counts, LeaseState, Pool, Window, fleet, sighting};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::Stamp;
use super::conditions::{self, Verdict};
use crate::state::{Dirty, LeaseView, State};
use crate::write::{Kind, Op, Write, guard};

pub fn decide(state: &State, dirty: &Dirty, now: &Stamp) -> Vec<Write> {
    let world = World::new(state);
    let mut out = Vec::new();
    for (name, obj) in state.pools.iter() {
        if dirty.pools || dirty.domains.contains(domain(obj)) {
            out.extend(world.pool(state, name, obj, now));
        }
    }
    // Maps of pools that are gone; the owner reference would see to it too, in time.
    if dirty.pools {
        out.extend(state.pool_maps.values().filter(|m| state.pools.get(&m.name_any()).is_none()).map(|m| Write {
            kind: Kind::PoolMap,
            namespace: None,
            name: m.name_any(),
            op: Op::Delete { uid: m.uid(), resource_version: None },
        }));
    }
    out
}

fn domain(p: &SpiderIPPool) -> &str {
    p.annotations().get(keys::L2_DOMAIN).map_or(keys::DEFAULT_L2_DOMAIN, String::as_str)
}

struct World<'a> {
    /// All pools, checked.
    pools: Checked,
    /// Nodes that are there and answer.
    reachable: BTreeSet<&'a str>,
    /// All nodes.
    nodes: BTreeSet<&'a str>,
    /// As maps name them.
    marks: String,
}

impl<'a> World<'a> {
    fn new(state: &'a State) -> Self {
        Self {
            pools: convert::pools(state.pools.values(), state.reserved.values()),
            reachable: state.nodes.iter().filter(|(_, n)| n.is_reachable()).map(|(name, _)| name.as_str()).collect(),
            nodes: state.nodes.iter().map(|(name, _)| name.as_str()).collect(),
            marks: PoolMapSpec::encode_marks(&ipam::share::marks(state.nodes.iter().map(|(name, _)| name.as_str()))),
        }
    }

    fn state(&self, l: &LeaseView) -> LeaseState {
        l.fleet().state(|node| self.reachable.contains(node))
    }

    fn pool(&self, state: &State, name: &str, obj: &SpiderIPPool, now: &Stamp) -> Vec<Write> {
        let mut out = Vec::new();
        let in_use = state.leases.of_pool(name).next().is_some();
        let terminating = obj.metadata.deletion_timestamp.is_some();
        let write = |op| Write { kind: Kind::Pool, namespace: None, name: name.to_owned(), op };
        let ours = obj.finalizers().iter().any(|f| f == keys::FINALIZER);
        if terminating && ours && !in_use {
            let rest: Vec<_> = obj.finalizers().iter().filter(|f| *f != keys::FINALIZER).collect();
            return vec![write(Op::Patch(
                json!({ "metadata": { "resourceVersion": obj.resource_version(), "finalizers": rest } }),
            ))];
        }
        if !terminating && !ours {
            let mut all = obj.finalizers().to_vec();
            all.push(keys::FINALIZER.to_owned());
            out.push(write(Op::Patch(json!({ "metadata": { "resourceVersion": obj.resource_version(), "finalizers": all } }))));
        }
        let leases: Vec<&LeaseView> = state.leases.of_pool(name).collect();
        let counts = self.pools.pools.allocatable(name).map(|r| ipam::counts(r, leases.iter().map(|l| (l.ip, self.state(l)))));
        let counts = counts.unwrap_or_default();
        let status = self.status(name, obj, &leases, &counts, now);
        if obj.status.as_ref() != Some(&status) {
            // Only we write a pool's status: no guard, or the finalizer written just before would make it fail.
            out.push(write(Op::PatchStatus(json!({ "status": status_patch(&status) }))));
        }
        if let (Some(pool), Some(allocatable), false) =
            (self.pools.pools.get(name), self.pools.pools.allocatable(name), terminating)
        {
            // Addresses of any pool's leases are taken: overlapping pools share a domain.
            let leased: BTreeSet<_> = match (allocatable.nth(0), allocatable.nth(allocatable.len().saturating_sub(1))) {
                (Some(first), Some(last)) => state.leases.in_range(&pool.domain, first, last).map(|l| l.ip).collect(),
                _ => BTreeSet::new(),
            };
            let spec = PoolMapSpec {
                pool: name.to_owned(),
                generation: obj.metadata.generation,
                chunks: Window::build(allocatable, &leased).chunks.iter().map(|c| Chunk::new(c.base, &c.free)).collect(),
                spares_per_node: self.spares(pool, &leases, &counts),
                recall: fleet::recall(leases.iter().map(|l| l.fleet())).iter().map(ToString::to_string).collect(),
                nodes: self.marks.clone(),
                probes: self.probes(&leases, now),
            };
            out.extend(pool_map(obj, spec, state.pool_maps.get(name)));
        }
        out
    }

    /// A pool that gives nothing out has its spares back.
    fn spares(&self, pool: &Pool, leases: &[&LeaseView], counts: &Counts) -> i32 {
        if pool.disable || !pool.unimplemented.is_empty() {
            return 0;
        }
        fleet::spares(counts.free, leases.iter().map(|l| l.fleet()), |node| self.reachable.contains(node)).into()
    }

    fn probes(&self, leases: &[&LeaseView], now: &Stamp) -> Vec<ProbeRequest> {
        let leases =
            leases.iter().map(|l| (l.fleet(), l.sighting.as_ref().map(|s| sighting::Heard { at: s.at, used: s.mac.is_some() })));
        let all = sighting::wanted(leases, |n| self.nodes.contains(n), |n| self.reachable.contains(n), now.0.as_second());
        all.into_iter().map(|(ip, by)| ProbeRequest { address: ip.to_string(), node: by.to_owned() }).collect()
    }

    fn status(&self, name: &str, obj: &SpiderIPPool, leases: &[&LeaseView], counts: &Counts, now: &Stamp) -> SpiderIPPoolStatus {
        let old = obj.status.clone().unwrap_or_default();
        let generation = obj.metadata.generation;
        let Some(pool) = self.pools.pools.get(name) else {
            let why = self.pools.invalid.get(name).map(ToString::to_string).unwrap_or_default();
            let verdicts = [Verdict::new("Ready", false, "Invalid", why)];
            return SpiderIPPoolStatus {
                observed_generation: generation,
                conditions: conditions::with(&old.conditions, &verdicts, generation, now),
                ..old
            };
        };
        let outside: Vec<_> = leases.iter().filter(|l| !pool.ranges.contains(l.ip)).map(|l| l.ip.to_string()).collect();
        let mut verdicts = self.verdicts(pool, counts, &outside);
        verdicts.push(self.unreachable(leases));
        verdicts.push(quarantined(leases));
        SpiderIPPoolStatus {
            observed_generation: generation,
            ip_version: Some(if pool.subnet.is_ipv4() { 4 } else { 6 }),
            allocated_ip_count: Some(clamp(u128::from(counts.allocated))),
            total_ip_count: Some(clamp(pool.ranges.len())),
            free_ip_count: Some(clamp(counts.free)),
            spare_ip_count: Some(clamp(u128::from(counts.spare))),
            kept_ip_count: Some(clamp(u128::from(counts.kept))),
            quarantined_ip_count: Some(clamp(u128::from(counts.quarantined))),
            unreachable_ip_count: Some(clamp(u128::from(counts.unreachable))),
            allocated_ips: old.allocated_ips,
            conditions: conditions::with(&old.conditions, &verdicts, generation, now),
        }
    }

    fn verdicts(&self, pool: &Pool, counts: &Counts, outside: &[String]) -> Vec<Verdict> {
        let ready = if !pool.unimplemented.is_empty() {
            Verdict::new(
                "Ready",
                false,
                "FieldNotImplemented",
                format!("nothing is given out: {} is set, which is not implemented yet", pool.unimplemented.join(", ")),
            )
        } else if pool.disable {
            Verdict::new("Ready", false, "Disabled", "spec.disable is true: nothing new is given out")
        } else if pool.terminating {
            Verdict::new("Ready", false, "Terminating", "it is deleted when its last address is given back")
        } else if !self.pools.reserved_invalid.is_empty() {
            // More is given out than was meant: every pool says so.
            let list: Vec<_> =
                self.pools.reserved_invalid.iter().map(|(name, e)| format!("SpiderReservedIP {name}: {e}")).collect();
            Verdict::new("Ready", true, "ReservedIPInvalid", list.join("; "))
        } else {
            Verdict::new("Ready", true, "Usable", "")
        };
        let exhausted = if counts.free == 0 {
            Verdict::new("Exhausted", true, "NoFreeAddress", every_address(counts))
        } else {
            Verdict::new("Exhausted", false, "HasFreeAddress", "")
        };
        let overlaps = self.pools.pools.overlaps(&pool.name);
        let overlap = if overlaps.is_empty() {
            Verdict::new("Overlap", false, "NoOverlap", "")
        } else {
            let list: Vec<_> = overlaps.iter().map(|o| format!("{} belongs to the older pool {}", o.shared, o.older)).collect();
            Verdict::new("Overlap", true, "SharedWithOlderPool", format!("in L2 domain {}: {}", pool.domain, list.join("; ")))
        };
        let cut = if outside.is_empty() {
            Verdict::new("InUseOutsideRange", false, "AllInside", "")
        } else {
            let named = outside.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
            Verdict::new(
                "InUseOutsideRange",
                true,
                "RangeWasCut",
                format!("{} addresses are in use that ips no longer holds: {named}", outside.len()),
            )
        };
        vec![ready, exhausted, overlap, cut]
    }

    /// Which nodes hold addresses that they cannot give back. Nothing is released for that: the node may live, cut off.
    fn unreachable(&self, leases: &[&LeaseView]) -> Verdict {
        let mut nodes: BTreeMap<&str, Vec<&LeaseView>> = BTreeMap::new();
        for l in leases.iter().filter(|l| self.state(l) == LeaseState::Unreachable) {
            nodes.entry(&l.node).or_default().push(l);
        }
        if nodes.is_empty() {
            return Verdict::new("UnreachableNodes", false, "AllReachable", "");
        }
        let gone = |node: &str| !self.nodes.contains(node);
        let one = |(node, of_node): (&&str, &Vec<&LeaseView>)| match gone(node) {
            true => format!(
                "{} of node {node}, which is deleted{} (when it is dead: mooring release --node {node})",
                of_node.len(),
                heard(of_node)
            ),
            false => format!("{} of node {node}, which is not ready", of_node.len()),
        };
        let any_gone = nodes.keys().any(|n| gone(n));
        let text = nodes.iter().map(one).collect::<Vec<_>>().join("; ");
        Verdict::new(
            "UnreachableNodes",
            true,
            if any_gone { "NodeDeleted" } else { "NodeNotReady" },
            format!("addresses: {text}"),
        )
    }
}

/// What the segment said about a deleted node's addresses.
fn heard(leases: &[&LeaseView]) -> String {
    let seen: Vec<_> = leases.iter().filter_map(|l| Some((l.ip, l.sighting.as_ref()?))).collect();
    let used: Vec<String> = seen.iter().filter_map(|(ip, s)| Some(format!("{ip} by {}", s.mac.as_ref()?))).collect();
    let silent = seen.len() - used.len();
    let named = used.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
    match (used.len(), silent) {
        (0, 0) => String::new(),
        (0, _) => format!("; {silent} were asked for on the segment, and nobody uses them"),
        (n, 0) => format!("; {n} are STILL USED ({named})"),
        (n, _) => format!("; {n} are STILL USED ({named}), {silent} were asked for and are silent"),
    }
}

/// Who uses addresses of the pool that were given to nobody.
fn quarantined(leases: &[&LeaseView]) -> Verdict {
    let all: Vec<String> = leases
        .iter()
        .filter_map(|l| {
            let q = l.quarantine.as_ref()?;
            let who = q.mac.as_deref().unwrap_or("somebody unknown");
            Some(format!("{} is used by {who}, seen by node {}", l.ip, q.node))
        })
        .collect();
    if all.is_empty() {
        return Verdict::new("Quarantined", false, "NoStranger", "");
    }
    Verdict::new("Quarantined", true, "DuplicateAddress", all.join("; "))
}

/// Where the addresses of a pool are that has none left.
fn every_address(c: &Counts) -> String {
    let parts = [
        (c.allocated, "in use"),
        (c.spare, "spare on nodes"),
        (c.kept, "kept for identities"),
        (c.unreachable, "on unreachable nodes"),
        (c.quarantined, "quarantined"),
    ];
    let list: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    if list.is_empty() {
        "it has no address to give out".to_owned()
    } else {
        format!("every address has a lease: {}", list.join(", "))
    }
}

/// More than an integer of the API can say counts as the most it can.
fn clamp(n: u128) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// In a merge patch an absent field keeps what was there.
fn status_patch(s: &SpiderIPPoolStatus) -> Value {
    let mut v = json!(s);
    if v.get("conditions").is_none() {
        v["conditions"] = json!([]);
    }
    v
}

fn pool_map(pool: &SpiderIPPool, spec: PoolMapSpec, have: Option<&PoolMap>) -> Option<Write> {
    let name = pool.name_any();
    let op = match have {
        Some(have) if have.spec == spec => return None,
        Some(have) => {
            let mut v = json!(spec);
            // What becomes empty is left out by serde; a merge patch would keep the old ones.
            for list in ["chunks", "recall", "probes"] {
                if v.get(list).is_none() {
                    v[list] = json!([]);
                }
            }
            if v.get("nodes").is_none() {
                v["nodes"] = json!("");
            }
            Op::Patch(json!({ "metadata": guard(have), "spec": v }))
        }
        None => Op::Create(json!({
            "apiVersion": PoolMap::api_version(&()),
            "kind": PoolMap::kind(&()),
            "metadata": {
                "name": name,
                "ownerReferences": [{
                    "apiVersion": SpiderIPPool::api_version(&()),
                    "kind": SpiderIPPool::kind(&()),
                    "name": name,
                    "uid": pool.uid(),
                }],
            },
            "spec": spec,
        })),
    };
    Some(Write { kind: Kind::PoolMap, namespace: None, name, op })
}

#[cfg(test)]
mod tests;
