//! What a host looks like: links, addresses, routes and rules of a network namespace, and the rows of Open vSwitch.
//! Filled by `plumbing`, read by `planner`. A partial look is normal: `Scope` says what was asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::{AttachmentId, IfAddr, IfName, MacAddr, Owner, Route, Rule, Tag, Trunks};

/// What to look at. A look at named links costs one request each, one at all of a kind a dump; `Look::All` is six dumps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    pub host: Look,
    /// Nothing is seen of the pod where the caller has no network namespace for it.
    pub pod: Look,
    pub ovs: LookOvs,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Look {
    #[default]
    Nothing,
    /// These links only (those that are absent are simply not in the answer), with no addresses, routes or rules.
    Links(Vec<IfName>),
    /// All links, with nothing else.
    AllLinks,
    /// All links, and the routes of all tables.
    Routes,
    /// Links, addresses, routes of all tables, rules, permanent neighbours.
    All,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LookOvs {
    #[default]
    Nothing,
    /// Bridges with all of their ports.
    All,
    /// Bridges, and of the pods' ports, which may be thousands, only this attachment's and one of this name.
    Pod { attachment: AttachmentId, port: IfName },
}

impl LookOvs {
    /// Whether a port with these `external_ids` is looked at.
    pub fn takes_in(&self, port: &str, external_ids: &BTreeMap<String, String>) -> bool {
        match self {
            LookOvs::Nothing => false,
            LookOvs::All => true,
            LookOvs::Pod { attachment, port: wanted } => {
                port == wanted.as_str()
                    || !is_of_pod(external_ids)
                    || external_ids.get(Owner::OVS_KEY).and_then(|id| id.parse().ok()).as_ref() == Some(attachment)
            }
        }
    }
}

/// Whether a port with these `external_ids` leads to a pod: one of ours, or of ovs-cni, which has `contIface` on each.
pub fn is_of_pod(external_ids: &BTreeMap<String, String>) -> bool {
    external_ids.contains_key(Owner::OVS_KEY) || external_ids.contains_key("contIface")
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Observed {
    pub host: NetnsState,
    pub pod: NetnsState,
    pub ovs: Option<Ovs>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct NetnsState {
    pub links: Vec<Link>,
    pub addrs: Vec<Addr>,
    /// Unicast routes of every table but `local`.
    pub routes: Vec<Route>,
    pub rules: Vec<Rule>,
    pub neighbours: Vec<Neighbour>,
}

impl NetnsState {
    pub fn link(&self, name: &IfName) -> Option<&Link> {
        self.links.iter().find(|l| &l.name == name)
    }

    pub fn link_by_index(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.index == index)
    }

    /// Addresses of a link in the kernel's order.
    pub fn addrs_of<'a>(&'a self, name: &'a IfName) -> impl Iterator<Item = &'a Addr> {
        self.addrs.iter().filter(move |a| &a.dev == name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Link {
    pub index: u32,
    pub name: IfName,
    pub kind: LinkKind,
    pub mac: Option<MacAddr>,
    /// `IFLA_PERM_ADDRESS`: the hardware's own, which bonds and bridges do not change.
    pub permanent_mac: Option<MacAddr>,
    pub mtu: u32,
    pub max_mtu: Option<u32>,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// `IFF_LOWER_UP`.
    pub carrier: bool,
    pub alias: Option<String>,
    /// `IFLA_LINK`: the parent of a macvlan or VLAN, the peer of a veth. The index is of namespace `link_netnsid` if set.
    pub link_index: Option<u32>,
    pub link_netnsid: Option<i32>,
    /// `IFLA_MASTER`: bridge, bond or `ovs-system`.
    pub master: Option<u32>,
    pub altnames: Vec<String>,
    pub tx_queue_len: Option<u32>,
}

/// `IFLA_INFO_KIND`; physical NICs have none.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    Physical,
    Loopback,
    Veth,
    Macvlan { mode: MacvlanMode },
    Bridge,
    Bond,
    Vlan { id: u16 },
    Tun,
    Other(String),
}

/// Modes of a macvlan, `enum macvlan_mode` of linux/if_link.h without `source`, which the reference plugin lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacvlanMode {
    Bridge,
    Private,
    Vepa,
    Passthru,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Addr {
    pub dev: IfName,
    pub addr: IfAddr,
    pub scope_link: bool,
    /// Statically set (`IFA_F_PERMANENT`), as against SLAAC or DHCP with a lifetime.
    pub permanent: bool,
    pub tentative: bool,
    pub dad_failed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Neighbour {
    pub dev: IfName,
    pub ip: IpAddr,
    pub mac: Option<MacAddr>,
    pub permanent: bool,
}

/// The rows of the local OVSDB that matter, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Ovs {
    pub version: String,
    /// `Open_vSwitch.datapath_types`; tells whether `system` (the kernel module) is offered.
    pub datapath_types: Vec<String>,
    pub bridges: Vec<OvsBridge>,
}

impl Ovs {
    pub fn bridge(&self, name: &str) -> Option<&OvsBridge> {
        self.bridges.iter().find(|b| b.name == name)
    }

    /// The bridge and port that hold this interface.
    pub fn find_interface(&self, name: &str) -> Option<(&OvsBridge, &OvsPort)> {
        self.bridges
            .iter()
            .flat_map(|b| b.ports.iter().map(move |p| (b, p)))
            .find(|(_, p)| p.interfaces.iter().any(|i| i.name == name))
    }
}

/// Names are plain strings here: others may have put into OVSDB what no kernel link could be called.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct OvsBridge {
    pub name: String,
    pub ports: Vec<OvsPort>,
    pub fail_mode: Option<String>,
    pub mcast_snooping: bool,
    pub datapath_type: String,
    pub other_config: BTreeMap<String, String>,
    pub external_ids: BTreeMap<String, String>,
}

impl OvsBridge {
    pub fn port(&self, name: &str) -> Option<&OvsPort> {
        self.ports.iter().find(|p| p.name == name)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct OvsPort {
    pub name: String,
    pub interfaces: Vec<OvsInterface>,
    pub tag: Option<u16>,
    pub trunks: Vec<u16>,
    pub vlan_mode: Option<String>,
    pub bond_mode: Option<String>,
    pub lacp: Option<String>,
    pub bond_updelay: i64,
    pub bond_downdelay: i64,
    pub other_config: BTreeMap<String, String>,
    pub external_ids: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct OvsInterface {
    pub name: String,
    /// `Interface.type`; empty and `system` mean the same.
    pub kind: String,
    pub ofport: Option<i64>,
    pub ofport_request: Option<i64>,
    pub error: Option<String>,
    pub mac_in_use: Option<String>,
    /// What the device has.
    pub mtu: Option<i64>,
    /// What it was asked to have.
    pub mtu_request: Option<i64>,
    pub link_state: Option<String>,
    pub external_ids: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

impl OvsPort {
    /// As a set for comparison; tags OVS would refuse cannot be in the column.
    pub fn trunk_set(&self) -> Trunks {
        self.trunks.iter().filter_map(|t| Tag::new(i64::from(*t)).ok()).collect()
    }
}
