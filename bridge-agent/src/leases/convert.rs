//! An AddressLease as the value that `ipam` decides about, and back. Knows no request.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::keys;
use api::mooring::lease::{Quarantine, QuarantineReason};
use api::mooring::{
    AddressLease, AddressLeaseSpec, Holder, Identity, IdentityKind, Wanted, chunk_label, identity_label, label_value, lease_name,
    parse_lease_name,
};
use ipam::{Lease, Name};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

/// The value of a lease's name; none where it is not ours by its form.
pub fn name_of(lease: &str) -> Option<Name> {
    let (domain, ip) = parse_lease_name(lease).ok()?;
    Some(Name { ip, domain: domain.into() })
}

pub fn name_text(name: &Name) -> String {
    lease_name(&name.domain, name.ip)
}

pub fn value_of(l: &AddressLease) -> Option<Lease> {
    let name = name_of(&l.name_any())?;
    let s = &l.spec;
    Some(Lease {
        name,
        uid: l.uid().unwrap_or_default().into(),
        version: l.resource_version().unwrap_or_default().into(),
        pool: s.pool.as_str().into(),
        node: s.node.as_str().into(),
        agent_id: s.agent_id.as_str().into(),
        holder: s.holder.as_ref().map(|h| Arc::new(holder_value(h))),
        identity: s.identity.as_ref().map(|i| Arc::new(identity_value(i))),
        wanted: s.wanted.as_ref().map(|w| {
            Arc::new(ipam::Wanted {
                node: w.node.as_str().into(),
                agent_id: w.agent_id.as_str().into(),
                namespace: w.pod_namespace.clone(),
                pod: w.pod_name.clone(),
            })
        }),
        released: s.released_at.is_some(),
        quarantine: s.quarantine.as_ref().map(|q| {
            Arc::new(ipam::Quarantine { mac: q.mac.clone(), reason: format!("{:?}", q.reason), node: q.node.as_str().into() })
        }),
    })
}

/// The whole object, for a create or an update; times are now.
pub fn object_of(l: &Lease, now: Timestamp) -> AddressLease {
    let now = now.to_string();
    let spec = AddressLeaseSpec {
        pool: l.pool.to_string(),
        address: l.name.ip.to_string(),
        node: l.node.to_string(),
        agent_id: l.agent_id.to_string(),
        holder: l.holder.as_deref().map(holder_object),
        identity: l.identity.as_deref().map(identity_object),
        wanted: l.wanted.as_ref().map(|w| Wanted {
            node: w.node.to_string(),
            agent_id: w.agent_id.to_string(),
            pod_namespace: w.namespace.clone(),
            pod_name: w.pod.clone(),
            at: now.clone(),
        }),
        released_at: l.released.then(|| now.clone()),
        quarantine: l.quarantine.as_ref().map(|q| Quarantine {
            mac: q.mac.clone(),
            reason: QuarantineReason::DuplicateAddress,
            node: q.node.to_string(),
            at: now.clone(),
        }),
        sighting: None,
    };
    let mut labels = BTreeMap::from([
        (keys::LEASE_POOL.to_owned(), label_value(&l.pool)),
        (keys::LEASE_CHUNK.to_owned(), chunk_label(l.name.ip)),
    ]);
    if !l.node.is_empty() {
        labels.insert(keys::LEASE_NODE.to_owned(), label_value(&l.node));
    }
    if let Some(i) = &spec.identity {
        labels.insert(keys::LEASE_IDENTITY.to_owned(), identity_label(i));
    }
    let mut object = AddressLease::new(&name_text(&l.name), spec);
    object.metadata.labels = Some(labels);
    let text = |s: &str| Some(s.to_owned()).filter(|s| !s.is_empty());
    object.metadata.uid = text(&l.uid);
    object.metadata.resource_version = text(&l.version);
    object
}

pub fn holder_value(h: &Holder) -> ipam::Holder {
    ipam::Holder {
        namespace: h.pod_namespace.clone(),
        pod: h.pod_name.clone(),
        uid: h.pod_uid.clone(),
        nic: h.interface.clone(),
        container: h.container_id.clone(),
    }
}

fn holder_object(h: &ipam::Holder) -> Holder {
    Holder {
        pod_namespace: h.namespace.clone(),
        pod_name: h.pod.clone(),
        pod_uid: h.uid.clone(),
        interface: h.nic.clone(),
        container_id: h.container.clone(),
    }
}

pub fn identity_value(i: &Identity) -> ipam::Identity {
    let kind = match i.kind {
        IdentityKind::StatefulSet => ipam::IdentityKind::StatefulSet,
        IdentityKind::VirtualMachine => ipam::IdentityKind::VirtualMachine,
        IdentityKind::Pod => ipam::IdentityKind::Pod,
    };
    ipam::Identity { kind, namespace: i.namespace.clone(), name: i.name.clone(), nic: i.interface.clone() }
}

pub fn identity_object(i: &ipam::Identity) -> Identity {
    let kind = match i.kind {
        ipam::IdentityKind::StatefulSet => IdentityKind::StatefulSet,
        ipam::IdentityKind::VirtualMachine => IdentityKind::VirtualMachine,
        ipam::IdentityKind::Pod => IdentityKind::Pod,
    };
    Identity { kind, namespace: i.namespace.clone(), name: i.name.clone(), interface: i.nic.clone() }
}

/// Addresses of a domain by their leases' names.
pub fn addresses<'a>(domain: &'a str, all: &'a [AddressLease]) -> impl Iterator<Item = IpAddr> + 'a {
    all.iter().filter_map(|l| name_of(&l.name_any())).filter(move |n| *n.domain == *domain).map(|n| n.ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_the_same_value_after_it_was_an_object() {
        let who = ipam::Holder {
            namespace: "shop".into(),
            pod: "web-0".into(),
            uid: "u".into(),
            nic: "eth0".into(),
            container: "c".into(),
        };
        let identity = ipam::Identity {
            kind: ipam::IdentityKind::StatefulSet,
            namespace: "shop".into(),
            name: "web-0".into(),
            nic: "eth0".into(),
        };
        let held = Lease {
            name: name_of("rack.7.v4-10-6-0-9").unwrap(),
            uid: "1-2".into(),
            version: "77".into(),
            pool: "p".into(),
            node: "n1".into(),
            agent_id: "a1".into(),
            holder: Some(who.into()),
            identity: Some(identity.into()),
            wanted: None,
            released: false,
            quarantine: None,
        };
        let wanted = ipam::Wanted { node: "n2".into(), agent_id: "a2".into(), namespace: "shop".into(), pod: "x".into() };
        let spare = Lease { holder: None, identity: None, wanted: Some(wanted.into()), released: true, ..held.clone() };
        let offender =
            ipam::Quarantine { mac: Some("52:54:00:00:00:01".into()), reason: "DuplicateAddress".into(), node: "n1".into() };
        let away = Lease { node: "".into(), agent_id: "".into(), quarantine: Some(offender.into()), ..spare.clone() };
        for l in [held, spare, away] {
            let object = object_of(&l, Timestamp::now());
            assert_eq!(object.labels().contains_key(keys::LEASE_NODE), !l.node.is_empty());
            assert_eq!(value_of(&object).unwrap(), l);
        }
    }
}
