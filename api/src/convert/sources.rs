//! What pod and namespace say about pools, as `ipam` weighs it.

use std::collections::BTreeMap;

use ipam::{FamilyNames, NicEntry, Sources};

use crate::annotations::{self, PodPools, PoolChoice};
use crate::invalid::Invalid;

/// The pod's annotations and those of its namespace; what the network's configuration says is for the caller to add.
pub fn sources(pod: &BTreeMap<String, String>, namespace: &BTreeMap<String, String>) -> Result<Sources, Invalid> {
    let mut out = Sources::default();
    match annotations::pod_pools(pod)? {
        Some(PodPools::PerNic(list)) => {
            let entry = |n: annotations::NicPools| NicEntry {
                interface: n.interface.map(|i| i.to_string()),
                names: names(n.pools),
                clean_gateway: n.clean_gateway,
            };
            out.ippools = Some(list.into_iter().map(entry).collect());
        }
        Some(PodPools::EachNic(choice)) => out.ippool = Some(names(choice)),
        None => {}
    }
    if let Some(choice) = annotations::namespace_pools(namespace)? {
        out.namespace = names(choice);
    }
    Ok(out)
}

/// An empty list asks for no address of that family.
pub fn names(choice: PoolChoice) -> FamilyNames {
    let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
    FamilyNames { v4: some(choice.ipv4), v6: some(choice.ipv6) }
}
