//! From what is stored to checked values, or to the field that is wrong and why. These rules hold also where an object was
//! stored before its CRD had them; some of them CEL cannot say.
//! Does not see other objects: what pools owe each other is the controller's.

mod bridge;
mod coordinator;
mod node;
mod pool;
mod sources;

pub use bridge::{CheckedUplink, bridge, bridge_on_node, trunks, uplink, uplink_in_a_word};
pub use coordinator::{Coordinator, coordinator, merged};
pub use node::node;
pub use pool::{Checked, pool, pools, reserved};
pub use sources::{names, sources};

use std::net::IpAddr;

use model::Cidr;

use crate::invalid::Invalid;

fn ip(field: &str, value: &str) -> Result<IpAddr, Invalid> {
    value.parse().map_err(|_| Invalid::new(field, value, "is not an IP address"))
}

/// A network, or an address that stands for its /32 or /128.
fn cidr_or_ip(field: &str, value: &str) -> Result<Cidr, Invalid> {
    match value.parse::<IpAddr>() {
        Ok(ip) => Ok(Cidr::host(ip)),
        Err(_) => value.parse().map_err(|e| Invalid::new(field, value, e)),
    }
}

/// Destination and next hop of one family.
pub(crate) fn route(field: &str, r: &crate::spider::PoolRoute) -> Result<(Cidr, IpAddr), Invalid> {
    let dst = cidr_or_ip(&format!("{field}.dst"), &r.dst)?;
    let gw = ip(&format!("{field}.gw"), &r.gw)?;
    if dst.is_ipv4() != gw.is_ipv4() {
        return Err(Invalid::new(format!("{field}.gw"), &r.gw, format!("is not of the family of its destination {dst}")));
    }
    Ok((dst, gw))
}
