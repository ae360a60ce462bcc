//! AddressLease: one address, and who has it. The API server's create decides; the name makes it unique.
//! Does not know pools or whether the holder lives.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One address of one L2 domain, named `<domain>.<address>` (see `lease_name`).
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[kube(
    group = "mooring.dev",
    version = "v1alpha1",
    kind = "AddressLease",
    plural = "addressleases",
    shortname = "al",
    category = "mooring",
    derive = "PartialEq",
    derive = "Default",
    validation = Rule::new("!isIP(self.spec.address) || ip(self.spec.address).family() == 6 || self.metadata.name.endsWith('.v4-' + self.spec.address.replace('.', '-'))").message("metadata.name must be <domain>.<address>"),
    doc = "One address and who has it.",
    printcolumn(name = "ADDRESS", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "POOL", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "NODE", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "NAMESPACE", type_ = "string", json_path = ".spec.holder.podNamespace"),
    printcolumn(name = "POD", type_ = "string", json_path = ".spec.holder.podName"),
    printcolumn(name = "INTERFACE", type_ = "string", json_path = ".spec.holder.interface"),
    printcolumn(name = "CONFLICT-MAC", type_ = "string", json_path = ".spec.quarantine.mac"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("(has(self.node) && self.node != '') == (has(self.agentID) && self.agentID != '')").message("node and agentID must be given together"))]
#[x_kube(validation = Rule::new("!has(self.holder) || (has(self.node) && self.node != '')").message("a lease with a holder must have a node"))]
#[x_kube(validation = Rule::new("!has(self.quarantine) || (!has(self.holder) && (!has(self.node) || self.node == ''))").message("a quarantined lease must have neither holder nor node"))]
#[serde(rename_all = "camelCase")]
pub struct AddressLeaseSpec {
    pub pool: String,
    /// Without prefix length, as the name says it.
    #[schemars(length(max = 39))]
    #[x_kube(validation = Rule::new("isIP(self)").message("must be an address"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub address: String,
    /// Node whose agent has the lease; empty only for a fixed one that was given back and a quarantined one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// UUID on the disk of that node's agent; empty with `node`.
    #[serde(rename = "agentID", default, skip_serializing_if = "String::is_empty")]
    pub agent_id: String,
    /// Who uses the address; absent for a spare, a resting or a given-back one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// Whose address it stays between two holders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Someone asks for this very address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Wanted>,
    /// When the last holder went, RFC 3339; the address rests from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released_at: Option<String>,
    /// Somebody who is none of ours uses the address: nobody takes it until the controller deletes the lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
    /// The Node object of `node` was deleted, and the segment was asked whether somebody uses the address. Shown, and nothing
    /// follows from it; whoever writes the lease next leaves it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sighting: Option<Sighting>,
}

/// What a segment said about an address.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Hardware address of whoever answered, in small letters; absent where nobody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9a-f]{2}:){5}[0-9a-f]{2}$')").message("must be a hardware address in small letters"))]
    pub mac: Option<String>,
    /// Node whose agent asked.
    pub node: String,
    /// When, RFC 3339.
    pub at: String,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    pub pod_namespace: String,
    pub pod_name: String,
    #[serde(rename = "podUID", default, skip_serializing_if = "String::is_empty")]
    pub pod_uid: String,
    pub interface: String,
    #[serde(rename = "containerID")]
    pub container_id: String,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub kind: IdentityKind,
    pub namespace: String,
    /// Name of the pod or of the virtual machine.
    pub name: String,
    pub interface: String,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdentityKind {
    /// Ordinal of a StatefulSet, by pod name.
    StatefulSet,
    /// A KubeVirt virtual machine.
    VirtualMachine,
    /// A pod that names its address (`mooring.dev/ips`, or `ips` of its networks).
    Pod,
}

/// Why nobody may use an address for a while.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// Hardware address of whoever uses the address, in small letters; absent where none was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9a-f]{2}:){5}[0-9a-f]{2}$')").message("must be a hardware address in small letters"))]
    pub mac: Option<String>,
    pub reason: QuarantineReason,
    /// Node whose agent noticed.
    pub node: String,
    /// When, RFC 3339.
    pub at: String,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuarantineReason {
    /// Somebody answered for it before the pod used it (RFC 5227 section 2.1.1, RFC 4862 section 5.4).
    DuplicateAddress,
}

/// A request for a hand-over.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    pub node: String,
    #[serde(rename = "agentID")]
    pub agent_id: String,
    pub pod_namespace: String,
    pub pod_name: String,
    /// RFC 3339.
    pub at: String,
}

/// Why a text is no lease's name or no chunk label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseNameError {
    #[error("lease name {0:?} is not <domain>.<address> with an address like v4-10-6-212-202 or v6 and eight groups of four")]
    Name(String),
    #[error("chunk label {0:?} is not an address like v4-10-6-212-0 that begins a /24 or /120")]
    Chunk(String),
}

/// `default.v4-10-6-212-202`; IPv6 with eight groups of four digits, so that equal addresses have equal names.
pub fn lease_name(domain: &str, ip: IpAddr) -> String {
    format!("{domain}.{}", spelled(ip))
}

/// The domain and the address of a lease's name.
pub fn parse_lease_name(name: &str) -> Result<(&str, IpAddr), LeaseNameError> {
    let bad = || LeaseNameError::Name(name.to_owned());
    // A domain may have dots; an address has none.
    let (domain, address) = name.rsplit_once('.').ok_or_else(bad)?;
    if domain.is_empty() {
        return Err(bad());
    }
    Ok((domain, unspell(address).ok_or_else(bad)?))
}

/// Value of the label `mooring.dev/chunk`: the first address of the /24 or /120 that the address lies in.
pub fn chunk_label(ip: IpAddr) -> String {
    spelled(chunk_base(ip))
}

/// First address of the /24 or /120 that the address lies in.
pub fn chunk_base(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & !0xff).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !0xff).into(),
    }
}

/// The first address of the chunk that a label names.
pub fn chunk_of_label(label: &str) -> Result<IpAddr, LeaseNameError> {
    match unspell(label) {
        Some(ip) if chunk_base(ip) == ip => Ok(ip),
        _ => Err(LeaseNameError::Chunk(label.to_owned())),
    }
}

fn spelled(ip: IpAddr) -> String {
    let mut out = String::with_capacity(42);
    match ip {
        IpAddr::V4(v4) => {
            out.push_str("v4");
            for b in v4.octets() {
                let _ = write!(out, "-{b}");
            }
        }
        IpAddr::V6(v6) => {
            out.push_str("v6");
            for s in v6.segments() {
                let _ = write!(out, "-{s:04x}");
            }
        }
    }
    out
}

/// Only what `spelled` writes: no leading zeros in IPv4, four lower-case digits in IPv6.
fn unspell(s: &str) -> Option<IpAddr> {
    let ip = if let Some(rest) = s.strip_prefix("v4-") {
        rest.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4)
    } else if let Some(rest) = s.strip_prefix("v6-") {
        rest.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
    } else {
        None
    }?;
    (spelled(ip) == s).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_names_round_trip() {
        for (ip, name) in [
            ("10.6.212.202", "default.v4-10-6-212-202"),
            ("fd00:10::1", "default.v6-fd00-0010-0000-0000-0000-0000-0000-0001"),
            ("0.0.0.0", "default.v4-0-0-0-0"),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(lease_name("default", ip), name);
            assert_eq!(parse_lease_name(name).unwrap(), ("default", ip));
        }
        assert_eq!(parse_lease_name("rack.7.v4-10-0-0-1").unwrap(), ("rack.7", "10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn other_spellings_of_an_address_are_no_lease_names() {
        for bad in [
            "",
            "default",
            ".v4-10-0-0-1",
            "default.v4-10-0-0",
            "default.v4-010-0-0-1",
            "default.v4-10-0-0-256",
            "default.v4-10.0.0.1",
            "default.v6-fd00-10-0-0-0-0-0-1",
            "default.v6-FD00-0010-0000-0000-0000-0000-0000-0001",
            "default.10-0-0-1",
            "default.v6-fd00--1",
        ] {
            assert!(parse_lease_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn chunks_are_256_addresses() {
        assert_eq!(chunk_label("10.6.212.202".parse().unwrap()), "v4-10-6-212-0");
        assert_eq!(chunk_label("fd00::1ff".parse().unwrap()), "v6-fd00-0000-0000-0000-0000-0000-0000-0100");
        assert_eq!(chunk_of_label("v4-10-6-212-0").unwrap(), "10.6.212.0".parse::<IpAddr>().unwrap());
        assert!(chunk_of_label("v4-10-6-212-1").is_err());
    }

    #[test]
    fn names_and_labels_fit_kubernetes() {
        // RFC 1123 subdomain of at most 253, label value of at most 63.
        let ip: IpAddr = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
        assert!(chunk_label(ip).len() <= 63);
        assert!(lease_name(&"d".repeat(63), ip).len() <= 253);
    }
}
