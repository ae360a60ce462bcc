//! The words of Mooring: values with their rules. Whoever holds one of these types need not check it again.
//! Knows nothing of Kubernetes, sockets, files or clocks.

pub mod addr;
pub mod desired;
pub mod id;
pub mod link;
pub mod observed;
pub mod vlan;

pub use addr::{AddrError, Cidr, IfAddr, Route, Rule, Scope};
pub use id::{AttachmentId, IdError, Owner, PodRef, RunBy};
pub use link::{BridgeName, IfName, LinkError, MacAddr, Mtu};
pub use vlan::{Tag, Trunks, VlanError, VlanId};

/// The domain of our own API group, node labels and annotations. The one place that names it.
pub const DOMAIN: &str = "mooring.dev";

/// Implements serde through `Display` and `FromStr`, so that a deserialised value obeys the same rule as a parsed one.
macro_rules! serde_as_str {
    ($t:ty) => {
        impl serde::Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                s.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_str;
