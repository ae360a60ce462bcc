//! Fixed addresses: whether a requested address may be given, and what a lease allows who asks for it by name.
//! Does not know how leases are read or written, nor how long five seconds are.

use std::net::IpAddr;
use std::sync::Arc;

use crate::{Holder, Identity, Lease, Pool, Pools, Rejection};

/// The controlling owner of a pod at the top: a Deployment rather than its ReplicaSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controller<'a> {
    pub kind: &'a str,
    pub name: &'a str,
}

impl Controller<'_> {
    /// Whether this is the StatefulSet that the pod is one of by its name.
    pub fn is_stateful_set_of(&self, pod: &str) -> bool {
        self.kind == "StatefulSet" && ordinal(self.name, pod).is_some()
    }
}

/// `web-3` of StatefulSet `web` is 3.
pub fn ordinal(set: &str, pod: &str) -> Option<u32> {
    let n = pod.strip_prefix(set)?.strip_prefix('-')?;
    if n.is_empty() || !n.bytes().all(|b| b.is_ascii_digit()) || (n.len() > 1 && n.starts_with('0')) {
        return None;
    }
    n.parse().ok()
}

/// The asker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me<'a> {
    pub node: &'a str,
    pub agent_id: &'a str,
    pub holder: &'a Holder,
    pub identity: Option<&'a Identity>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// No lease: create it.
    Create,
    /// It is ours already, to the letter: success.
    Mine,
    /// One guarded update makes it ours.
    Take,
    /// The former holder still has it: watch this lease by name for at most 5 s, then fail with error 11 and this text.
    WaitFor {
        holder: Arc<Holder>,
        node: Arc<str>,
    },
    /// A spare of another node: set `wanted`, then watch as above.
    Recall {
        node: Arc<str>,
    },
    Refuse(String),
}

/// What may be done with the lease of an address that is asked for by itself. Death is never assumed: a lease with a
/// holder is taken only by the same NIC of the same pod on the same node.
pub fn decide(lease: Option<&Lease>, me: &Me<'_>) -> Decision {
    let Some(lease) = lease else { return Decision::Create };
    if let Some(q) = &lease.quarantine {
        return Decision::Refuse(format!("it is in quarantine: {}", q.reason));
    }
    let on_my_node = lease.node.is_empty() || *lease.node == *me.node;
    let node = lease.node.clone();
    let my_identity = lease.identity.is_some() && lease.identity.as_deref() == me.identity;
    match &lease.holder {
        Some(h) if h.same_nic_of_pod(me.holder) && on_my_node => {
            let same = **h == *me.holder && *lease.agent_id == *me.agent_id && lease.identity.as_deref() == me.identity;
            if same { Decision::Mine } else { Decision::Take }
        }
        Some(h) if my_identity || h.same_nic_of_pod(me.holder) => Decision::WaitFor { holder: h.clone(), node },
        Some(h) => Decision::Refuse(format!("it is held by {h} on node {node}")),
        None => match &lease.identity {
            Some(other) if !my_identity => Decision::Refuse(format!("it is kept for {other}")),
            _ if on_my_node => Decision::Take,
            _ => Decision::Recall { node },
        },
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("address {0} cannot be given: no pool of this NIC holds it ({1})")]
    NoPool(IpAddr, String),
    #[error("addresses {0} and {1} are of one family, a NIC gets one of each")]
    TwoOfFamily(IpAddr, IpAddr),
    #[error("address {0} is in subnet {1}, the request says /{2}")]
    PrefixLen(IpAddr, model::Cidr, u8),
}

/// The pool of the given ones (in order) that may give this address; `prefix_len` where the request names one.
pub fn check_request<'a>(
    pools: &'a Pools,
    names: &[String],
    ip: IpAddr,
    prefix_len: Option<u8>,
) -> Result<&'a Pool, RequestError> {
    let mut why = Vec::new();
    for name in names {
        let Some(pool) = pools.get(name) else { continue };
        let reason = if pool.subnet.contains(ip) {
            if pools.allocatable(name).is_some_and(|r| r.contains(ip)) {
                return match prefix_len {
                    Some(len) if len != pool.subnet.prefix_len() => Err(RequestError::PrefixLen(ip, pool.subnet, len)),
                    _ => Ok(pool),
                };
            }
            if pool.gateway == Some(ip) {
                "it is the gateway".to_owned()
            } else if let Some(o) = pools.overlaps(name).iter().find(|o| o.shared.contains(ip)) {
                format!("it belongs to the older pool {}", o.older)
            } else if pool.ranges.contains(ip) {
                "it is reserved".to_owned()
            } else {
                "it is not among the pool's addresses, or excluded".to_owned()
            }
        } else {
            format!("it is not in {}", pool.subnet)
        };
        why.push(Rejection { pool: name.clone(), reason });
    }
    let text = why.iter().map(Rejection::to_string).collect::<Vec<_>>().join("; ");
    Err(RequestError::NoPool(ip, if text.is_empty() { "no pool is left".to_owned() } else { text }))
}

/// At most one address of each family.
pub fn one_of_each_family(ips: &[IpAddr]) -> Result<(), RequestError> {
    for (i, a) in ips.iter().enumerate() {
        if let Some(b) = ips[i + 1..].iter().find(|b| b.is_ipv4() == a.is_ipv4()) {
            return Err(RequestError::TwoOfFamily(*a, *b));
        }
    }
    Ok(())
}
