//! Who something belongs to: pods, attachments, and the mark that we leave on things.

use std::fmt;
use std::str::FromStr;

use crate::serde_as_str;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("attachment id {0:?} is not 16 hexadecimal digits")]
    Attachment(String),
}

/// A pod as the CNI arguments and the API name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    /// `metadata.uid`; empty where the runtime did not tell (K8S_POD_UID is optional).
    #[serde(default)]
    pub uid: String,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One NIC of one container: a digest of (container id, interface name). 64 bits in hexadecimal. FNV-1a, written once
/// here because it must never change: links and rows on hosts carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId(u64);

impl AttachmentId {
    pub fn of(container_id: &str, ifname: &str) -> Self {
        let mut h: u64 = 0xcbf2_9ce4_8422_2325;
        for b in container_id.bytes().chain([0]).chain(ifname.bytes()) {
            h = (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // FNV's high bits mix poorly on short input; names of host links are cut from them, so fold once more.
        h ^= h >> 32;
        h = h.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h ^= h >> 29;
        Self(h)
    }

    /// A host link's name made of a prefix (at most 4 bytes) and 11 digits of the id: at most 15 bytes. Digits come from
    /// the digest of container id *and* interface, so ids with a common beginning do not collide.
    pub fn link_name(&self, prefix: &str) -> crate::IfName {
        debug_assert!(prefix.len() <= 4);
        let digits = self.to_string();
        crate::IfName::new(format!("{prefix}{}", &digits[..11])).expect("a short prefix and hexadecimal digits")
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for AttachmentId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        if s.len() != 16 || !s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(IdError::Attachment(s.to_owned()));
        }
        Ok(Self(u64::from_str_radix(s, 16).map_err(|_| IdError::Attachment(s.to_owned()))?))
    }
}

serde_as_str!(AttachmentId);

/// Which process carried an attachment out: the node's agent, or the CNI binary by itself on a host without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunBy {
    Agent,
    Alone,
}

/// The mark on everything of ours. On links it is the alias `mooring:1:<attachment id>` (agent) or
/// `mooring:1:<attachment id>:alone`; on OVSDB rows `external_ids`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    pub attachment: AttachmentId,
    pub by: RunBy,
}

impl Owner {
    /// `external_ids` key that holds the attachment id.
    pub const OVS_KEY: &'static str = "mooring-attachment";
    /// `external_ids` key that holds `agent` or `alone`.
    pub const OVS_BY_KEY: &'static str = "mooring-by";

    pub fn alias(&self) -> String {
        match self.by {
            RunBy::Agent => format!("mooring:1:{}", self.attachment),
            RunBy::Alone => format!("mooring:1:{}:alone", self.attachment),
        }
    }

    /// Reads an alias back; none where it is not ours.
    pub fn from_alias(alias: &str) -> Option<Self> {
        let rest = alias.strip_prefix("mooring:1:")?;
        let (id, by) = match rest.split_once(':') {
            None => (rest, RunBy::Agent),
            Some((id, "alone")) => (id, RunBy::Alone),
            Some(_) => return None,
        };
        Some(Self { attachment: id.parse().ok()?, by })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachment_ids_are_stable() {
        // Pinned: hosts carry these.
        assert_eq!(AttachmentId::of("c1", "eth0").to_string(), "caf6ccba24b09326");
        assert_ne!(AttachmentId::of("c1", "eth0"), AttachmentId::of("c1", "net1"));
        // (container id, interface) must not be confused by where one ends and the other begins.
        assert_ne!(AttachmentId::of("c1e", "th0"), AttachmentId::of("c1", "eth0"));
        let id = AttachmentId::of("c1", "eth0");
        assert_eq!(id.to_string().parse::<AttachmentId>().unwrap(), id);
        assert!("0123".parse::<AttachmentId>().is_err());
        assert!("0123456789ABCDEF".parse::<AttachmentId>().is_err());
    }

    #[test]
    fn host_links_of_containers_with_a_common_prefix_differ() {
        let a = AttachmentId::of("45bfa1b55c46a", "eth0").link_name("veth");
        let b = AttachmentId::of("45bfa1b55c46b", "eth0").link_name("veth");
        assert_ne!(a, b);
        assert_eq!(a.as_str().len(), 15);
    }

    #[test]
    fn aliases_round_trip_and_foreign_ones_are_left_alone() {
        for by in [RunBy::Agent, RunBy::Alone] {
            let o = Owner { attachment: AttachmentId::of("c", "eth0"), by };
            assert_eq!(Owner::from_alias(&o.alias()), Some(o));
        }
        for foreign in ["", "mooring", "mooring:1:", "mooring:2:0123456789abcdef", "mooring:1:0123456789abcdef:other", "uplink"] {
            assert_eq!(Owner::from_alias(foreign), None, "{foreign}");
        }
    }
}
