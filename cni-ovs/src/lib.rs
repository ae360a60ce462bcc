//! A pod's port on an Open vSwitch bridge: configuration of ovs-cni (type `ovs`) in, plan out. Pure; knows nothing of
//! sockets, IPAM plugins or how a step is carried out.

mod conf;
mod plan;

pub use conf::{Conf, FLAT_FILES, KEYS, TRUNK_KEYS, Vlans};
pub use plan::garbage;

/// `owner` in a port's `external_ids`; ovs-cni writes its own name there.
pub const OWNER: &str = model::DOMAIN;
/// `external_ids` key: the CNI network's name, by which GC finds the ports of its network.
pub const NETWORK_KEY: &str = "mooring-network";

#[cfg(test)]
mod tests;
