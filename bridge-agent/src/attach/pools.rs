//! SpiderIPPools and SpiderReservedIPs as the pools that `ipam` chooses from. Knows no pod.

use std::collections::HashMap;

use api::{SpiderIPPool, SpiderReservedIP, annotations, mooring::PoolMap};
use ipam::{Chunk, Family, Pool, PoolSpec, Pools, Ranges, Window};
use kube::ResourceExt;

/// All pools, and why some of them are none.
#[derive(Debug, Default)]
pub struct View {
    pub pools: Pools,
    /// By name: the field that is wrong.
    pub broken: HashMap<String, String>,
}

impl View {
    pub fn of<'a>(
        pools: impl IntoIterator<Item = &'a SpiderIPPool>,
        reserved: impl IntoIterator<Item = &'a SpiderReservedIP>,
    ) -> Self {
        let mut broken = HashMap::new();
        let mut good = Vec::new();
        for p in pools {
            match pool(p) {
                Ok(p) => good.push(p),
                Err(why) => {
                    broken.insert(p.name_any(), why);
                }
            }
        }
        let reserved: Vec<Ranges> = reserved.into_iter().flat_map(|r| Family::BOTH.map(|f| of_family(&r.spec.ips, f))).collect();
        Self { pools: Pools::new(good, &reserved), broken }
    }
}

/// What of a reservation is of this family. An entry that cannot be read reserves nothing; the controller says so on it.
fn of_family(entries: &[String], family: Family) -> Ranges {
    let readable = entries.iter().filter_map(|e| Ranges::parse(std::slice::from_ref(e), family, None).ok());
    readable.fold(Ranges::empty(family), |all, r| all.union(&r))
}

fn pool(p: &SpiderIPPool) -> Result<Pool, String> {
    let s = &p.spec;
    let unimplemented = [
        ("podAffinity", s.pod_affinity.is_some()),
        ("namespaceAffinity", s.namespace_affinity.is_some()),
        ("nodeAffinity", s.node_affinity.is_some()),
    ];
    let spec = PoolSpec {
        name: p.name_any(),
        ip_version: s.ip_version,
        subnet: s.subnet.clone(),
        ips: s.ips.clone(),
        exclude_ips: s.exclude_ips.clone(),
        gateway: s.gateway.clone().filter(|g| !g.is_empty()),
        routes: s.routes.iter().map(|r| (r.dst.clone(), r.gw.clone())).collect(),
        default: s.default,
        disable: s.disable,
        terminating: p.metadata.deletion_timestamp.is_some(),
        domain: annotations::l2_domain(p.annotations()).map_err(|e| e.to_string())?,
        node_names: s.node_name.clone(),
        namespace_names: s.namespace_name.clone(),
        multus_names: s.multus_name.clone(),
        unimplemented: unimplemented.iter().filter(|(_, set)| *set).map(|(name, _)| format!("spec.{name}")).collect(),
        created: p.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
    };
    Pool::parse(spec).map_err(|e| e.to_string())
}

/// A PoolMap's chunks. One that cannot be read is left out: it is a hint.
pub fn window(map: &PoolMap) -> Window {
    let chunks = map.spec.chunks.iter().filter_map(|c| c.decode().ok()).map(|(base, free)| Chunk { base, free });
    Window { chunks: chunks.collect() }
}
