//! Every effect that we can have on a host, as a value, and its inverse.
//!
//! A step is one change. `plumbing` carries a plan out in order; it puts neighbouring steps of one network namespace into
//! one netlink batch and neighbouring OVSDB steps into one transaction. When step k fails, the inverses of the steps before
//! it run in reverse order.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use model::observed::MacvlanMode;
use model::{IfAddr, IfName, MacAddr, Mtu, Route, Rule, Tag, Trunks};

/// The network namespace a step acts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ns {
    Host,
    Pod,
}

impl fmt::Display for Ns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ns::Host => "host",
            Ns::Pod => "pod",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum Step {
    /// A macvlan born in the pod's namespace. Inverse: `DelLink`.
    AddMacvlan(Macvlan),
    /// A veth pair, one end in the pod, the other on the host. Inverse: `DelLink` of the host end.
    AddVeth(Veth),
    /// Not there counts as done. Links have no inverse: whoever deletes one must mean it.
    DelLink {
        ns: Ns,
        name: IfName,
    },
    /// Changes what is `Some` in `set`; `was` holds the same fields as they were.
    SetLink {
        ns: Ns,
        name: IfName,
        set: LinkSet,
        was: LinkSet,
    },
    /// `nodad`: skip duplicate address detection (IPv6), because the address is usable at once. Already there counts as done.
    AddAddr {
        ns: Ns,
        dev: IfName,
        addr: IfAddr,
        nodad: bool,
    },
    DelAddr {
        ns: Ns,
        dev: IfName,
        addr: IfAddr,
    },
    /// Fails where another route has the same key (`NLM_F_EXCL`).
    AddRoute {
        ns: Ns,
        route: Route,
    },
    /// Not there counts as done.
    DelRoute {
        ns: Ns,
        route: Route,
    },
    AddRule {
        ns: Ns,
        rule: Rule,
    },
    DelRule {
        ns: Ns,
        rule: Rule,
    },
    /// A permanent neighbour entry.
    AddNeighbour {
        ns: Ns,
        dev: IfName,
        ip: IpAddr,
        mac: MacAddr,
    },
    DelNeighbour {
        ns: Ns,
        dev: IfName,
        ip: IpAddr,
        mac: MacAddr,
    },
    /// `key` is dotted or slashed below /proc/sys, e.g. `net/ipv4/conf/net1/arp_notify`. `was` is none where unknown: then
    /// there is no inverse (a key of a link that the same plan made goes with the link).
    SetSysctl {
        ns: Ns,
        key: String,
        value: String,
        was: Option<String>,
    },
    /// Transmit checksum offload, `ETHTOOL_STXCSUM`. The userspace datapath passes frames on without completing checksums.
    SetTxChecksum {
        ns: Ns,
        dev: IfName,
        on: bool,
    },
    /// Asks the segment before addresses are used. Fails where somebody uses one already, a gateway does not answer, or the link
    /// has no carrier to ask by. No inverse.
    Probe {
        ns: Ns,
        dev: IfName,
        ask: Probe,
    },
    /// Gratuitous ARP and unsolicited neighbour advertisement for each address, after the link has carrier. No inverse.
    Announce {
        ns: Ns,
        dev: IfName,
        ips: Vec<IpAddr>,
    },
    AddBridge(Bridge),
    DelBridge(Bridge),
    SetBridge {
        name: IfName,
        set: BridgeSet,
        was: BridgeSet,
    },
    /// Done when vswitchd gave every interface an `ofport` above 0; failed when `error` is set or `ofport` is -1.
    AddPort {
        bridge: IfName,
        port: Port,
    },
    DelPort {
        bridge: IfName,
        port: Port,
    },
    SetPort {
        bridge: IfName,
        name: String,
        set: PortSet,
        was: PortSet,
    },
}

/// What an interface is to find out.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Probe {
    /// Addresses that nobody else may use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unused: Vec<IpAddr>,
    /// Gateways that have to answer, each with the interface's address that asks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<(IpAddr, IpAddr)>,
}

impl Probe {
    pub fn is_empty(&self) -> bool {
        self.unused.is_empty() && self.gateways.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Macvlan {
    pub name: IfName,
    pub parent: IfName,
    /// Where the parent is: `Host`, or `Pod` for `linkInContainer`.
    pub parent_ns: Ns,
    pub mode: MacvlanMode,
    pub mac: Option<MacAddr>,
    pub mtu: Option<Mtu>,
    /// `IFLA_MACVLAN_BC_QUEUE_LEN`, packets.
    pub bc_queue_len: Option<u32>,
    pub alias: String,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Veth {
    pub host_name: IfName,
    pub pod_name: IfName,
    pub host_mac: Option<MacAddr>,
    pub pod_mac: Option<MacAddr>,
    pub mtu: Option<Mtu>,
    /// Set on both ends.
    pub alias: String,
}

/// Fields of a link that can be set; none leaves one alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct LinkSet {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_queue_len: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}

impl LinkSet {
    pub fn up(up: bool) -> Self {
        Self { up: Some(up), ..Self::default() }
    }
}

/// An Open vSwitch bridge with its local port; always made and deleted together, for NetworkManager drops bridges that
/// have no ports.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Bridge {
    pub name: IfName,
    pub set: BridgeSet,
}

/// Columns of a Bridge row. For maps, each named key is set, or removed where the value is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct BridgeSet {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datapath_type: Option<String>,
    /// `Some(None)` empties the column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_mode: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcast_snooping: Option<bool>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub other_config: BTreeMap<String, Option<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub external_ids: BTreeMap<String, Option<String>>,
    /// `mtu_request` of the local port's Interface row; `Some(None)` empties it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu_request: Option<Option<u32>>,
}

/// A Port row with its Interface rows.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Port {
    pub name: String,
    pub interfaces: Vec<Interface>,
    pub set: PortSet,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct PortSet {
    /// `Some(None)` empties the column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<Option<Tag>>,
    /// An empty set means all VLANs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trunks: Option<Trunks>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan_mode: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond_mode: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacp: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond_updelay: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond_downdelay: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub external_ids: BTreeMap<String, Option<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Interface {
    pub name: String,
    /// `Interface.type`: empty, `system` or `internal`.
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ofport_request: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu_request: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub external_ids: BTreeMap<String, String>,
}

impl Step {
    /// The step that takes this one back; none where there is nothing to take back or what was there is not known.
    pub fn inverse(&self) -> Option<Step> {
        use Step::*;
        Some(match self.clone() {
            AddMacvlan(m) => DelLink { ns: Ns::Pod, name: m.name },
            AddVeth(v) => DelLink { ns: Ns::Host, name: v.host_name },
            DelLink { .. } | Probe { .. } | Announce { .. } => return None,
            SetLink { ns, name, set, was } => SetLink { ns, name, set: was, was: set },
            AddAddr { ns, dev, addr, .. } => DelAddr { ns, dev, addr },
            DelAddr { ns, dev, addr } => AddAddr { ns, dev, addr, nodad: true },
            AddRoute { ns, route } => DelRoute { ns, route },
            DelRoute { ns, route } => AddRoute { ns, route },
            AddRule { ns, rule } => DelRule { ns, rule },
            DelRule { ns, rule } => AddRule { ns, rule },
            AddNeighbour { ns, dev, ip, mac } => DelNeighbour { ns, dev, ip, mac },
            DelNeighbour { ns, dev, ip, mac } => AddNeighbour { ns, dev, ip, mac },
            SetSysctl { ns, key, value, was } => SetSysctl { ns, key, value: was?, was: Some(value) },
            SetTxChecksum { ns, dev, on } => SetTxChecksum { ns, dev, on: !on },
            AddBridge(b) => DelBridge(b),
            DelBridge(b) => AddBridge(b),
            SetBridge { name, set, was } => SetBridge { name, set: was, was: set },
            AddPort { bridge, port } => DelPort { bridge, port },
            DelPort { bridge, port } => AddPort { bridge, port },
            SetPort { bridge, name, set, was } => SetPort { bridge, name, set: was, was: set },
        })
    }

    /// Whether it goes to OVSDB, hence into a transaction with its neighbours.
    pub fn is_ovsdb(&self) -> bool {
        use Step::*;
        matches!(self, AddBridge(_) | DelBridge(_) | SetBridge { .. } | AddPort { .. } | DelPort { .. } | SetPort { .. })
    }
}

/// One line, for logs, status and `mooring plan`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Step::*;
        match self {
            AddMacvlan(m) => write!(f, "add macvlan {} in the pod on {} {}", m.name, m.parent_ns, m.parent),
            AddVeth(v) => write!(f, "add veth {} in the pod with peer {} on the host", v.pod_name, v.host_name),
            DelLink { ns, name } => write!(f, "delete link {name} ({ns})"),
            SetLink { ns, name, set, .. } => {
                write!(f, "set link {name} ({ns})")?;
                if let Some(up) = set.up {
                    write!(f, " {}", if up { "up" } else { "down" })?;
                }
                if let Some(mac) = set.mac {
                    write!(f, " address {mac}")?;
                }
                if let Some(mtu) = set.mtu {
                    write!(f, " mtu {mtu}")?;
                }
                if let Some(q) = set.tx_queue_len {
                    write!(f, " txqueuelen {q}")?;
                }
                if let Some(a) = &set.alias {
                    write!(f, " alias {a:?}")?;
                }
                Ok(())
            }
            AddAddr { ns, dev, addr, .. } => write!(f, "add address {addr} dev {dev} ({ns})"),
            DelAddr { ns, dev, addr } => write!(f, "delete address {addr} dev {dev} ({ns})"),
            AddRoute { ns, route } => write!(f, "add route {route} ({ns})"),
            DelRoute { ns, route } => write!(f, "delete route {route} ({ns})"),
            AddRule { ns, rule } => write!(f, "add rule {rule} ({ns})"),
            DelRule { ns, rule } => write!(f, "delete rule {rule} ({ns})"),
            AddNeighbour { ns, dev, ip, mac } => write!(f, "add neighbour {ip} lladdr {mac} dev {dev} ({ns})"),
            DelNeighbour { ns, dev, ip, .. } => write!(f, "delete neighbour {ip} dev {dev} ({ns})"),
            SetSysctl { ns, key, value, .. } => write!(f, "set {key} = {value} ({ns})"),
            SetTxChecksum { ns, dev, on } => {
                write!(f, "set tx checksum offload {} dev {dev} ({ns})", if *on { "on" } else { "off" })
            }
            Probe { dev, ask, .. } => {
                write!(f, "probe")?;
                for ip in &ask.unused {
                    write!(f, " {ip}")?;
                }
                for (gateway, _) in &ask.gateways {
                    write!(f, " gateway {gateway}")?;
                }
                write!(f, " dev {dev}")
            }
            Announce { dev, ips, .. } => {
                write!(f, "announce")?;
                for ip in ips {
                    write!(f, " {ip}")?;
                }
                write!(f, " dev {dev}")
            }
            AddBridge(b) => write!(f, "add bridge {}", b.name),
            DelBridge(b) => write!(f, "delete bridge {}", b.name),
            SetBridge { name, set, .. } => write!(f, "set bridge {name} {set}"),
            AddPort { bridge, port } => {
                write!(f, "add port {} to bridge {bridge}", port.name)?;
                if port.interfaces.len() > 1 {
                    write!(f, " with interfaces")?;
                    for i in &port.interfaces {
                        write!(f, " {}", i.name)?;
                    }
                }
                if let Some(Some(tag)) = port.set.tag {
                    write!(f, " tag {tag}")?;
                }
                if let Some(t) = port.set.trunks.as_ref().filter(|t| !t.is_empty()) {
                    write!(f, " trunks {t}")?;
                }
                // The others follow from tag and trunks.
                match port.set.vlan_mode.as_ref().and_then(Option::as_deref) {
                    None | Some("access" | "trunk") => Ok(()),
                    Some(mode) => write!(f, " vlan_mode {mode}"),
                }
            }
            DelPort { bridge, port } => write!(f, "delete port {} from bridge {bridge}", port.name),
            SetPort { name, set, .. } => write!(f, "set port {name} {set}"),
        }
    }
}

/// Writes `name=value` pairs joined by blanks; an emptied column or removed key has no value.
struct Pairs<'a, 'f>(&'a mut fmt::Formatter<'f>, bool);

impl Pairs<'_, '_> {
    fn pair(&mut self, name: &str, value: &dyn fmt::Display) -> fmt::Result {
        let blank = if std::mem::replace(&mut self.1, true) { " " } else { "" };
        write!(self.0, "{blank}{name}={value}")
    }

    fn some<T: fmt::Display>(&mut self, name: &str, value: &Option<T>) -> fmt::Result {
        value.as_ref().map_or(Ok(()), |v| self.pair(name, v))
    }

    fn column<T: fmt::Display>(&mut self, name: &str, value: &Option<Option<T>>) -> fmt::Result {
        match value {
            None => Ok(()),
            Some(None) => self.pair(name, &""),
            Some(Some(v)) => self.pair(name, v),
        }
    }

    fn map(&mut self, name: &str, map: &BTreeMap<String, Option<String>>) -> fmt::Result {
        map.iter().try_for_each(|(k, v)| self.pair(&format!("{name}:{k}"), &v.as_deref().unwrap_or_default()))
    }
}

/// In the order and with the names of ovs-vswitchd.conf.db(5).
impl fmt::Display for BridgeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut p = Pairs(f, false);
        p.some("datapath_type", &self.datapath_type)?;
        p.column("fail_mode", &self.fail_mode)?;
        p.some("mcast_snooping_enable", &self.mcast_snooping)?;
        p.map("other_config", &self.other_config)?;
        p.map("external_ids", &self.external_ids)?;
        p.column("mtu_request", &self.mtu_request)
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut p = Pairs(f, false);
        p.column("tag", &self.tag)?;
        p.some("trunks", &self.trunks)?;
        p.column("vlan_mode", &self.vlan_mode)?;
        p.column("bond_mode", &self.bond_mode)?;
        p.column("lacp", &self.lacp)?;
        p.some("bond_updelay", &self.bond_updelay)?;
        p.some("bond_downdelay", &self.bond_downdelay)?;
        p.map("external_ids", &self.external_ids)
    }
}

/// Steps in the order in which they are carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    pub steps: Vec<Step>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// What takes the first `done` steps back, in reverse order.
    pub fn undo(&self, done: usize) -> Plan {
        Plan { steps: self.steps[..done].iter().rev().filter_map(Step::inverse).collect() }
    }
}

impl FromIterator<Step> for Plan {
    fn from_iter<I: IntoIterator<Item = Step>>(iter: I) -> Self {
        Self { steps: iter.into_iter().collect() }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, s) in self.steps.iter().enumerate() {
            writeln!(f, "{:3}. {s}", i + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_print_what_they_change_and_nothing_else() {
        let set = BridgeSet {
            fail_mode: Some(None),
            mcast_snooping: Some(true),
            external_ids: BTreeMap::from([("mooring-bridge".to_owned(), Some("br1".to_owned())), ("old".to_owned(), None)]),
            ..BridgeSet::default()
        };
        assert_eq!(set.to_string(), "fail_mode= mcast_snooping_enable=true external_ids:mooring-bridge=br1 external_ids:old=");
        let step = Step::SetPort {
            bridge: IfName::new("br1").unwrap(),
            name: "eth1".to_owned(),
            set: PortSet { trunks: Some("100-103,200".parse().unwrap()), bond_updelay: Some(200), ..PortSet::default() },
            was: PortSet::default(),
        };
        assert_eq!(step.to_string(), "set port eth1 trunks=100-103,200 bond_updelay=200");
        assert_eq!(BridgeSet::default().to_string(), "");
    }

    #[test]
    fn undo_runs_backwards_and_gives_the_inverse_of_each_step() {
        let name = IfName::new("eth1").unwrap();
        let up = Step::SetLink { ns: Ns::Host, name: name.clone(), set: LinkSet::up(true), was: LinkSet::up(false) };
        let route = Step::AddRoute { ns: Ns::Pod, route: Route::new("10.0.0.0/8".parse().unwrap(), None, name.clone()) };
        let plan: Plan = [up.clone(), route.clone(), Step::DelLink { ns: Ns::Host, name }].into_iter().collect();
        assert_eq!(plan.undo(3).steps, [route.inverse().unwrap(), up.inverse().unwrap()]);
        assert_eq!(plan.undo(1).steps, [up.inverse().unwrap()]);
        assert_eq!(up.inverse().unwrap().inverse().unwrap(), up);
    }
}
