//! What an AddressLease says, as a value: which address, whose it is, who uses it. Cheap to copy, for the machine keeps and
//! hands round many. Does not know how a lease is written down in the API.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::fixed::Controller;

/// One address of one L2 domain; a lease's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    // First, for comparing.
    pub ip: IpAddr,
    pub domain: Arc<str>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of domain {}", self.ip, self.domain)
    }
}

/// An AddressLease. Empty texts stand for fields that are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub name: Name,
    /// `metadata.uid`; empty before it is created.
    pub uid: Arc<str>,
    /// `metadata.resourceVersion`, which guards every write; empty before it is created.
    pub version: Arc<str>,
    pub pool: Arc<str>,
    pub node: Arc<str>,
    pub agent_id: Arc<str>,
    pub holder: Option<Arc<Holder>>,
    pub identity: Option<Arc<Identity>>,
    pub wanted: Option<Arc<Wanted>>,
    /// The last holder went and none came since (`releasedAt`).
    pub released: bool,
    pub quarantine: Option<Arc<Quarantine>>,
}

/// Who uses an address.
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
    pub(crate) fn same_nic_of_pod(&self, other: &Holder) -> bool {
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

/// A request for a hand-over: who asks for this very address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub node: Arc<str>,
    pub agent_id: Arc<str>,
    pub namespace: String,
    pub pod: String,
}

/// Somebody who has no lease was seen to use the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// The offender's hardware address, where it was seen.
    pub mac: Option<String>,
    pub reason: String,
    /// Node that saw it.
    pub node: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdentityKind {
    /// Ordinal of a StatefulSet, by pod name.
    StatefulSet,
    /// A KubeVirt virtual machine.
    VirtualMachine,
    /// Whoever asks for an address by itself: its controller, or a pod without one.
    Pod,
}

/// What an address stays with when the pod goes. One per NIC; one address of each family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    pub kind: IdentityKind,
    pub namespace: String,
    /// Name of the pod, of its controller, or of the virtual machine.
    pub name: String,
    pub nic: String,
}

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
        let (kind, name) = match controller {
            Some(c) if c.is_stateful_set_of(pod) => (IdentityKind::StatefulSet, pod),
            Some(c) if asks_for_ips => (IdentityKind::Pod, c.name),
            None if asks_for_ips => (IdentityKind::Pod, pod),
            _ => return None,
        };
        Some(Identity { kind, namespace: namespace.to_owned(), name: name.to_owned(), nic: nic.to_owned() })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}/{}/{}", self.kind, self.namespace, self.name, self.nic)
    }
}
