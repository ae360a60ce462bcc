//! The coordinator's settings for one NIC, checked and merged by whoever read them. Does not know where they were written.

use std::net::IpAddr;

use model::{Cidr, IfName, Mtu};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Auto,
    Underlay,
    Overlay,
    /// Nothing is done.
    Disabled,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub mode: Mode,
    /// Rules and a table for each NIC.
    pub tune_pod_routes: bool,
    /// None: the first NIC has the default route.
    pub default_route_nic: Option<IfName>,
    /// The pod itself names it: then it must be there. A setting for many pods may name a NIC that a pod with a single NIC
    /// does not have.
    pub default_route_nic_by_pod: bool,
    /// Pod and service networks of the cluster.
    pub cidrs: Vec<Cidr>,
    /// What else goes through the node.
    pub hijack: Vec<Cidr>,
    /// (destination, next hop in a network of the NIC), of one family each.
    pub policy_routes: Vec<(Cidr, IpAddr)>,
    pub mac_prefix: Option<[u8; 2]>,
    /// 0, 1 or 2; none leaves the kernel's value.
    pub rp_filter: Option<u8>,
    pub tx_queue_len: Option<u32>,
    /// An address for veth0.
    pub veth_link_address: Option<IpAddr>,
    pub veth_mtu: Option<Mtu>,
    pub host_rule_table: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            tune_pod_routes: true,
            default_route_nic: None,
            default_route_nic_by_pod: false,
            cidrs: Vec::new(),
            hijack: Vec::new(),
            policy_routes: Vec::new(),
            mac_prefix: None,
            rp_filter: Some(0),
            tx_queue_len: None,
            veth_link_address: None,
            veth_mtu: None,
            host_rule_table: 500,
        }
    }
}

impl Settings {
    /// Everything that goes through the node, without doubles. A default route is none of it.
    pub fn cluster(&self) -> Vec<Cidr> {
        let mut out: Vec<Cidr> = self.cidrs.iter().chain(&self.hijack).filter(|c| !c.is_default()).copied().collect();
        out.sort();
        out.dedup();
        out
    }
}
