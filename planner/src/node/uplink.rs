//! From what the user calls an uplink to links of this node, and whether they may be one. Does not know bridges' columns.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::addr::TABLE_MAIN;
use model::desired::Uplink;
use model::observed::{Link, LinkKind, NetnsState, Observed};
use model::{BridgeName, IfName, MacAddr};

use super::{MARK, No, Reason};
use crate::{Refusal, lookup};

/// The port's name and its interfaces (more than one: a bond).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub port: IfName,
    pub interfaces: Vec<IfName>,
    /// Path of the field that names it, for refusals.
    pub field: &'static str,
    pub value: String,
}

impl Resolved {
    pub fn no(&self, reason: Reason, rule: impl Into<String>) -> No {
        let make = match reason {
            Reason::UplinkNotFound => Refusal::missing,
            Reason::UplinkUnsupported | Reason::InvalidBond | Reason::InvalidMtu => Refusal::invalid,
            _ => Refusal::conflict,
        };
        No(reason, make(self.field, &self.value, rule))
    }
}

/// Which links are meant. They may still be unfit: see [`fit`].
pub(crate) fn resolve(uplink: &Uplink, bridge: &BridgeName, seen: &Observed) -> Result<Resolved, No> {
    let host = &seen.host;
    let plain =
        |field, value: String, name: &IfName| Resolved { port: name.clone(), interfaces: vec![name.clone()], field, value };
    match uplink {
        Uplink::Interface(name) => {
            let field = "spec.uplink.interface";
            let hit = host
                .links
                .iter()
                .find(|l| l.name.as_str() == name)
                .or_else(|| host.links.iter().find(|l| l.altnames.iter().any(|a| a == name)));
            hit.map(|l| plain(field, name.clone(), &l.name)).ok_or_else(|| not_found(field, name, host))
        }
        Uplink::Mac(mac) => {
            let field = "spec.uplink.mac";
            match by_mac(host, *mac).as_slice() {
                [] => Err(not_found(field, &mac.to_string(), host)),
                [one] => Ok(plain(field, mac.to_string(), &one.name)),
                more => {
                    let names = more.iter().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", ");
                    Err(No(
                        Reason::UplinkAmbiguous,
                        Refusal::conflict(field, mac, format!("{names} have this hardware address, name one of them")),
                    ))
                }
            }
        }
        Uplink::DefaultRoute => {
            let field = "spec.uplink.defaultRoute";
            let any = |ip| lookup::in_table(&host.routes, TABLE_MAIN, ip).filter(|r| r.dst.is_default());
            let route = any(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).or_else(|| any(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
            let dev = route
                .map(|r| &r.dev)
                .ok_or_else(|| No(Reason::UplinkNotFound, Refusal::missing(field, true, "the node has no default route")))?;
            Ok(plain(field, "true".to_owned(), &behind(dev, bridge, seen, field, "true")?))
        }
        Uplink::CanReach(ip) => {
            let field = "spec.uplink.canReach";
            let dev = lookup::route(host, None, *ip, None).map(|r| &r.dev);
            let dev =
                dev.ok_or_else(|| No(Reason::UplinkNotFound, Refusal::missing(field, ip, "the node has no route to it")))?;
            Ok(plain(field, ip.to_string(), &behind(dev, bridge, seen, field, &ip.to_string())?))
        }
        Uplink::Bond(b) => {
            let r = Resolved {
                port: b.name.clone(),
                interfaces: b.interfaces.clone(),
                field: "spec.uplink.bond",
                value: b.name.to_string(),
            };
            if b.interfaces.len() < 2 {
                return Err(r.no(Reason::InvalidBond, "needs at least two interfaces"));
            }
            if let Some(twice) = b.interfaces.iter().enumerate().find_map(|(i, n)| b.interfaces[..i].contains(n).then_some(n)) {
                return Err(r.no(Reason::InvalidBond, format!("names {twice} twice")));
            }
            if b.interfaces.contains(&b.name) {
                return Err(r.no(Reason::InvalidBond, "must not have the name of one of its interfaces"));
            }
            if b.mode == model::desired::BondMode::BalanceTcp && b.lacp == model::desired::Lacp::Off {
                return Err(r.no(Reason::InvalidBond, "mode balance-tcp needs lacp active or passive (ovs-vswitchd.conf.db(5))"));
            }
            match b.interfaces.iter().find(|n| host.link(n).is_none()) {
                Some(absent) => Err(not_found("spec.uplink.bond.interfaces", absent.as_str(), host)),
                None => Ok(r),
            }
        }
    }
}

/// Where a route already goes by the bridge's own local port, the NIC is the one behind it: what we put there when the route
/// still went by the NIC, else the only NIC among the ports. Never the local port: it would take the place of the uplink.
fn behind(dev: &IfName, bridge: &BridgeName, seen: &Observed, field: &'static str, value: &str) -> Result<IfName, No> {
    if dev != bridge {
        return Ok(dev.clone());
    }
    let ports = seen.ovs.as_ref().and_then(|o| o.bridge(bridge.as_str())).map(|b| b.ports.as_slice()).unwrap_or_default();
    let nics_of = |ours: bool| {
        let ports = ports.iter().filter(move |p| !ours || p.external_ids.contains_key(MARK));
        let nics = ports.flat_map(|p| &p.interfaces).filter(|i| matches!(i.kind.as_str(), "" | "system"));
        nics.filter_map(|i| IfName::new(i.name.clone()).ok())
    };
    let ours: Vec<IfName> = nics_of(true).collect();
    if let [one] = ours.as_slice() {
        return Ok(one.clone());
    }
    let is_nic = |l: &Link| matches!(l.kind, LinkKind::Physical | LinkKind::Bond | LinkKind::Vlan { .. });
    let nics: Vec<IfName> = nics_of(false).filter(|n| seen.host.link(n).is_some_and(is_nic)).collect();
    match nics.as_slice() {
        [one] => Ok(one.clone()),
        _ => {
            let among = nics.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
            let rule = format!("the route goes by the bridge itself, which has {} NICs [{among}], name one of them", nics.len());
            Err(No(Reason::UplinkAmbiguous, Refusal::conflict(field, value, rule)))
        }
    }
}

/// Links with this hardware address that could be an uplink. Children (VLAN, macvlan), bridges and local ports copy their
/// NIC's address, slaves of a bond have the bond's: of these the NIC, or the bond, is meant.
fn by_mac(host: &NetnsState, mac: MacAddr) -> Vec<&Link> {
    let fits = |l: &&Link| l.mac == Some(mac) || l.permanent_mac == Some(mac);
    let own = |l: &&Link| {
        !matches!(
            &l.kind,
            LinkKind::Vlan { .. } | LinkKind::Macvlan { .. } | LinkKind::Bridge | LinkKind::Tun | LinkKind::Loopback
        ) && l.kind != LinkKind::Other("openvswitch".to_owned())
    };
    let all: Vec<&Link> = host.links.iter().filter(fits).filter(own).collect();
    let in_bond_of_these = |l: &&&Link| l.master.is_some_and(|m| all.iter().any(|b| b.index == m && b.kind == LinkKind::Bond));
    all.iter().filter(|l| !in_bond_of_these(l)).copied().collect()
}

fn not_found(field: &str, value: &str, host: &NetnsState) -> No {
    let nics: Vec<&str> = host.links.iter().filter(|l| unsupported(l).is_none()).map(|l| l.name.as_str()).collect();
    let there = if nics.is_empty() { "none that could be".to_owned() } else { nics.join(", ") };
    No(Reason::UplinkNotFound, Refusal::missing(field, value, format!("there is no such NIC on this node, it has {there}")))
}

/// Kinds of link that are no uplink.
fn unsupported(l: &Link) -> Option<&'static str> {
    match &l.kind {
        LinkKind::Loopback => Some("the loopback interface"),
        LinkKind::Bridge => Some("a Linux bridge"),
        LinkKind::Macvlan { .. } => Some("a macvlan interface, which cannot carry other hardware addresses"),
        LinkKind::Tun => Some("a tun or tap device"),
        LinkKind::Other(k) if k == "openvswitch" || k == "ipvlan" || k == "wireguard" || k == "dummy" => {
            Some("a virtual interface")
        }
        // A station may send with its own hardware address only (IEEE 802.11, three-address frames). The kernel names the
        // devices of its wireless stack wl*, udev's scheme too.
        LinkKind::Physical if l.name.as_str().starts_with("wl") => {
            Some("a wireless interface, which cannot carry other hardware addresses")
        }
        LinkKind::Physical | LinkKind::Veth | LinkKind::Bond | LinkKind::Vlan { .. } | LinkKind::Other(_) => None,
    }
}

/// Whether a NIC that is not in the bridge yet may be put into it. Children in other network namespaces are not seen from
/// here: the kernel then refuses the port (one receive handler a device), which the failed step reports.
pub(crate) fn fit(r: &Resolved, nic: &IfName, bridge: &BridgeName, seen: &Observed) -> Result<(), No> {
    let host = &seen.host;
    let link = host.link(nic).ok_or_else(|| not_found(r.field, nic.as_str(), host))?;
    if let Some(what) = unsupported(link) {
        return Err(r.no(Reason::UplinkUnsupported, format!("{nic} is {what}")));
    }
    if let Some((other, port)) = seen.ovs.as_ref().and_then(|o| o.find_interface(nic.as_str())) {
        let rule = if other.name == bridge.as_str() {
            format!("{nic} is in port {} of this bridge", port.name)
        } else {
            format!("{nic} is in bridge {}", other.name)
        };
        return Err(r.no(Reason::UplinkInUse, rule));
    }
    if let Some(master) = link.master {
        let name =
            host.link_by_index(master).map_or_else(|| format!("the interface with index {master}"), |m| m.name.to_string());
        return Err(r.no(Reason::UplinkInUse, format!("{nic} belongs to {name}")));
    }
    let child = host
        .links
        .iter()
        .find(|l| l.link_index == Some(link.index) && l.link_netnsid.is_none() && matches!(l.kind, LinkKind::Macvlan { .. }));
    if let Some(child) = child {
        return Err(r.no(
            Reason::UplinkInUse,
            format!("{nic} is the parent of macvlan interface {}; a NIC has one receiver in the kernel", child.name),
        ));
    }
    let nodes = host.addrs_of(nic).find(|a| !a.scope_link && !link_local(a.addr.ip()));
    if let Some(a) = nodes {
        return Err(r.no(
            Reason::UplinkCarriesNodeAddress,
            format!("{nic} has the node's address {}, which would be cut off; moving addresses is not implemented yet", a.addr),
        ));
    }
    Ok(())
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
