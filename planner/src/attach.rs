//! What a main plugin (macvlan, ovs) is: configuration that knows how to make one NIC, as a plan.

use std::net::IpAddr;

use model::observed::{Observed, Scope};
use model::{Cidr, IfAddr, IfName, MacAddr, Owner, PodRef};

use crate::step::Probe;
use crate::{Plan, Refusal};

/// The NIC that is to be made or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    pub owner: Owner,
    /// None on hosts that have no pods (podman, a plain host).
    pub pod: Option<PodRef>,
    pub container_id: String,
    /// Path of the network namespace as the runtime gave it; none at DEL after a reboot.
    pub netns: Option<String>,
    pub ifname: IfName,
    /// Name of the network (CNI `name`).
    pub network: String,
    /// Asked for by the user, by any of the ways there are; none: derived from the first address.
    pub mac: Option<MacAddr>,
    pub nic: Nic,
    /// What is to be found out before the addresses are used.
    pub probe: Probe,
}

/// What an IPAM said. IPv4 first, always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nic {
    pub addrs: Vec<IfAddr>,
    pub gateways: Gateways,
    /// The default one among them where there is one.
    pub routes: Vec<NicRoute>,
    /// False where there is no IPAM at all: the link is set up, nothing more.
    pub has_ipam: bool,
}

/// A route as an IPAM gives it: of the NIC that is being made, hence without a device (CNI 1.1.0 `routes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NicRoute {
    pub dst: Cidr,
    /// None: the gateway of the NIC's own family, and where it has none, on the link.
    pub gw: Option<IpAddr>,
    /// None is the main table.
    pub table: Option<u32>,
    /// CNI's `priority`.
    pub metric: Option<u32>,
    pub mtu: Option<u32>,
    pub advmss: Option<u32>,
}

impl NicRoute {
    pub const fn new(dst: Cidr, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, table: None, metric: None, mtu: None, advmss: None }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gateways {
    pub v4: Option<IpAddr>,
    pub v6: Option<IpAddr>,
}

/// What a host is looked at for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    Add,
    Del,
    Check,
}

/// A main plugin's checked configuration. Pure.
pub trait MainPlugin: Send + Sync {
    /// What has to be looked at before `plan_add`, `plan_del` or `check`, and no more: each kind of thing is a dump, and a pod
    /// waits for it. The same whatever addresses the NIC will have.
    fn scope(&self, attach: &Attach, aim: Aim) -> Scope;

    /// The MAC that the NIC will have.
    fn mac(&self, attach: &Attach) -> Option<MacAddr>;

    /// Steps that make the NIC, from nothing to announced. Refuses before anything is touched: master or bridge absent, MTU
    /// above the parent's, interface name taken.
    fn plan_add(&self, attach: &Attach, seen: &Observed) -> Result<Plan, Refusal>;

    /// Steps that take away what is there of it, found by the owner's mark; empty where nothing is left.
    fn plan_del(&self, attach: &Attach, seen: &Observed) -> Plan;

    /// The difference between what should be there and what is.
    fn check(&self, attach: &Attach, seen: &Observed) -> Result<(), Refusal>;

    /// Name of the host's end, where there is one besides the parent (the veth of an OVS port).
    fn host_link(&self, attach: &Attach) -> Option<IfName>;
}
