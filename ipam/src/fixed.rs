//! Fixed addresses: which pods have an identity, whether a requested address may be given, and what a lease allows.
//! Does not know how leases are read or written, nor how long five seconds are.

use std::fmt;
use std::net::IpAddr;

use crate::{Pool, Pools, Rejection};

/// What an address stays with when the pod goes. One per NIC; one address of each family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(String);

impl Identity {
    /// A pod of a StatefulSet is the same one again when it comes back under its name; a pod that asks for addresses by
    /// itself (`mooring.dev/ips`, or `ips` of the networks annotation) keeps them for whatever controls it, so that the
    /// next pod of a Deployment gets them; without a controller, for its own name. None: any address will do.
    pub fn of_pod(
        namespace: &str,
        pod: &str,
        controller: Option<Controller<'_>>,
        nic: &str,
        asks_for_ips: bool,
    ) -> Option<Identity> {
        let of = |kind: &str, name: &str| Some(Identity(format!("{kind}/{namespace}/{name}/{nic}")));
        match controller {
            Some(c) if c.kind == "StatefulSet" && ordinal(c.name, pod).is_some() => of("StatefulSet", pod),
            Some(c) if asks_for_ips => of(c.kind, c.name),
            None if asks_for_ips => of("Pod", pod),
            _ => None,
        }
    }

    /// Read back from a lease.
    pub fn from_key(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    pub fn key(&self) -> &str {
        &self.0
    }

    /// Value of the label `mooring.dev/identity`: FNV-1a, 16 hexadecimal digits. Two identities that share one only make a
    /// list longer: the key is compared.
    pub fn hash(&self) -> String {
        let h = self.0.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        format!("{h:016x}")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The controlling owner of a pod at the top: a Deployment rather than its ReplicaSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controller<'a> {
    pub kind: &'a str,
    pub name: &'a str,
}

/// `web-3` of StatefulSet `web` is 3.
pub fn ordinal(set: &str, pod: &str) -> Option<u32> {
    let n = pod.strip_prefix(set)?.strip_prefix('-')?;
    if n.is_empty() || !n.bytes().all(|b| b.is_ascii_digit()) || (n.len() > 1 && n.starts_with('0')) {
        return None;
    }
    n.parse().ok()
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub namespace: String,
    pub pod: String,
    /// Empty where it was not known.
    pub uid: String,
    pub nic: String,
    pub container: String,
}

impl Holder {
    fn same_nic_of_pod(&self, other: &Holder) -> bool {
        self.namespace == other.namespace
            && self.pod == other.pod
            && self.nic == other.nic
            && (self.uid == other.uid || self.uid.is_empty() || other.uid.is_empty())
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.namespace, self.pod, self.nic)
    }
}

/// What matters of an AddressLease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    /// None: given back, kept for its identity.
    pub node: Option<String>,
    pub agent_id: Option<String>,
    pub holder: Option<Holder>,
    pub identity: Option<Identity>,
}

/// The asker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    pub node: String,
    pub agent_id: String,
    pub holder: Holder,
    pub identity: Option<Identity>,
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
        holder: Holder,
        node: String,
    },
    /// A spare of another node: set `wanted`, then watch as above.
    Recall {
        node: String,
    },
    Refuse(String),
}

/// What may be done with the lease of an address that is asked for by itself. Death is never assumed: a lease with a
/// holder is taken only by the same NIC of the same pod on the same node.
pub fn decide(lease: Option<&Lease>, me: &Me) -> Decision {
    let Some(lease) = lease else { return Decision::Create };
    let on_my_node = lease.node.as_deref().is_none_or(|n| n == me.node);
    let node = lease.node.clone().unwrap_or_default();
    let my_identity = lease.identity.is_some() && lease.identity == me.identity;
    match &lease.holder {
        Some(h) if h.same_nic_of_pod(&me.holder) && on_my_node => {
            let same =
                *h == me.holder && lease.agent_id.as_deref() == Some(me.agent_id.as_str()) && lease.identity == me.identity;
            if same { Decision::Mine } else { Decision::Take }
        }
        Some(h) if my_identity || h.same_nic_of_pod(&me.holder) => Decision::WaitFor { holder: h.clone(), node },
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
