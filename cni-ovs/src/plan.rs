//! From a configuration to steps, and from rows back to what they should be.

use std::collections::BTreeMap;

use cni_plugin::fields::wrong;
use cni_plugin::garbage::Stays;
use cni_plugin::nic;
use model::observed::{Look, LookOvs, Observed, Ovs, OvsBridge, OvsPort, Scope, is_of_pod};
use model::{IfName, MacAddr, Mtu, Owner, RunBy, Tag, Trunks};
use planner::node::port_as_is;
use planner::step::{Interface, LinkSet, Port, PortSet, Veth};
use planner::{Aim, Attach, Class, MainPlugin, Ns, Plan, Refusal, Step};

use crate::conf::Conf;
use crate::{NETWORK_KEY, OWNER};

/// What a veth has when nobody says otherwise.
const VETH_MTU: u32 = 1500;

impl MainPlugin for Conf {
    fn scope(&self, attach: &Attach, aim: Aim) -> Scope {
        let pod = match aim {
            Aim::Add => Look::Routes,
            // It goes with the pair's other end.
            Aim::Del => Look::Nothing,
            Aim::Check => Look::All,
        };
        let port = host_name(attach);
        let ovs = LookOvs::Pod { attachment: attach.owner.attachment, port: port.clone() };
        Scope { host: Look::Links(vec![port]), pod, ovs }
    }

    fn mac(&self, attach: &Attach) -> Option<MacAddr> {
        Some(nic::mac_of(attach))
    }

    fn plan_add(&self, attach: &Attach, seen: &Observed) -> Result<Plan, Refusal> {
        let bridge = self.bridge_row(ovs(seen)?)?;
        nic::name_is_free(attach, seen)?;
        let host_name = host_name(attach);
        if seen.host.link(&host_name).is_some() || bridge.port(host_name.as_str()).is_some() {
            return Err(Refusal::conflict(
                "interface",
                &host_name,
                "the host has a link or port of that name already: this container was added before and not deleted",
            ));
        }
        let limit = uplink_mtu(bridge);
        let mtu = match (self.mtu, limit) {
            (Some(mtu), Some((limit, of))) if mtu.get() > limit => {
                return Err(wrong("mtu", mtu, format!("must not be above {limit}, the mtu of {of} on bridge {}", bridge.name)));
            }
            (Some(mtu), _) => Some(mtu),
            (None, Some((limit, _))) if limit < VETH_MTU => Mtu::new(u64::from(limit)).ok(),
            (None, _) => None,
        };
        let (host, pod) = (Ns::Host, Ns::Pod);
        let mut plan = Plan::default();
        plan.push(Step::AddVeth(Veth {
            host_name: host_name.clone(),
            pod_name: attach.ifname.clone(),
            host_mac: Some(nic::host_mac_of(attach)),
            pod_mac: self.mac(attach),
            mtu,
            alias: attach.owner.alias(),
        }));
        if bridge.datapath_type == "netdev" {
            // The userspace datapath forwards frames as they are: TCP whose checksum was left to the hardware never arrives.
            plan.push(Step::SetTxChecksum { ns: pod, dev: attach.ifname.clone(), on: false });
        }
        plan.push(Step::SetLink { ns: host, name: host_name, set: LinkSet::up(true), was: LinkSet::up(false) });
        plan.push(Step::AddPort { bridge: self.bridge.clone(), port: self.port(attach) });
        nic::configure(&mut plan, attach, seen, mtu.map_or(VETH_MTU, Mtu::get));
        Ok(plan)
    }

    fn plan_del(&self, attach: &Attach, seen: &Observed) -> Plan {
        let mut plan = Plan::default();
        // By the mark, on whatever bridge: the configuration may have changed since ADD.
        for (bridge, port) in seen.ovs.iter().flat_map(|o| marked(o, &attach.owner)) {
            if let Ok(name) = IfName::new(bridge.name.as_str()) {
                plan.push(Step::DelPort { bridge: name, port: port_as_is(port) });
            }
        }
        let alias = attach.owner.alias();
        let name = host_name(attach);
        if seen.host.link(&name).is_some_and(|l| l.alias.as_deref() == Some(alias.as_str())) {
            plan.push(Step::DelLink { ns: Ns::Host, name });
        }
        plan
    }

    fn check(&self, attach: &Attach, seen: &Observed) -> Result<(), Refusal> {
        let ovs = ovs(seen)?;
        self.bridge_row(ovs)?;
        let host_name = host_name(attach);
        let Some((bridge, port)) = marked(ovs, &attach.owner).next() else {
            return Err(Refusal::missing("port", &host_name, "is not in the database of Open vSwitch"));
        };
        if bridge.name != self.bridge.as_str() {
            return Err(Refusal::conflict("bridge", &bridge.name, format!("the port is there, should be on {}", self.bridge)));
        }
        let ((tag, trunks), mode) = (self.vlans.columns(), self.vlans.mode());
        if port.tag != tag.map(Tag::get) {
            let text = |t: Option<u16>| t.map_or("none".to_owned(), |t| t.to_string());
            return Err(Refusal::conflict("tag", text(port.tag), format!("should be {}", text(tag.map(Tag::get)))));
        }
        if port.trunk_set() != trunks || port.trunks.len() != trunks.len() {
            let all = |t: &Trunks| if t.is_empty() { "all".to_owned() } else { t.to_string() };
            return Err(Refusal::conflict("trunks", all(&port.trunk_set()), format!("should be {}", all(&trunks))));
        }
        if port.vlan_mode.as_deref() != Some(mode) {
            return Err(Refusal::conflict("vlan_mode", port.vlan_mode.as_deref().unwrap_or("none"), format!("should be {mode}")));
        }
        match port.interfaces.first() {
            Some(i) if i.error.as_deref().is_some_and(|e| !e.is_empty()) => {
                return Err(Refusal::conflict(
                    "interface",
                    &i.name,
                    format!("Open vSwitch reports: {}", i.error.as_deref().unwrap_or_default()),
                ));
            }
            Some(i) if i.ofport.is_none_or(|p| p <= 0) => {
                return Err(Refusal::conflict(
                    "interface",
                    &i.name,
                    "has no OpenFlow port: Open vSwitch does not forward for it",
                ));
            }
            Some(i) if i.external_ids.get("iface-id") != self.iface_id.as_ref() => {
                let have = i.external_ids.get("iface-id").map_or("none", String::as_str);
                return Err(Refusal::conflict(
                    "iface-id",
                    have,
                    format!("should be {}", self.iface_id.as_deref().unwrap_or("none")),
                ));
            }
            Some(_) => {}
            None => return Err(Refusal::missing("interface", &host_name, "the port has no interface")),
        }
        let host = seen.host.link(&host_name).ok_or_else(|| Refusal::missing("interface", &host_name, "is not on the host"))?;
        if !host.up {
            return Err(Refusal::conflict("interface", &host_name, "is down on the host"));
        }
        let link = nic::check(attach, seen, self.mac(attach))?;
        if let Some(want) = self.mtu.filter(|m| m.get() != link.mtu) {
            return Err(Refusal::conflict("mtu", link.mtu, format!("should be {want}")));
        }
        Ok(())
    }

    fn host_link(&self, attach: &Attach) -> Option<IfName> {
        Some(host_name(attach))
    }
}

fn host_name(attach: &Attach) -> IfName {
    attach.owner.attachment.link_name("veth")
}

fn ovs(seen: &Observed) -> Result<&Ovs, Refusal> {
    seen.ovs
        .as_ref()
        .ok_or_else(|| Refusal::new(Class::Later, "socket_file", "", "no connection to Open vSwitch: is ovsdb-server running"))
}

/// Ports that carry the mark of this owner.
fn marked<'a>(ovs: &'a Ovs, owner: &Owner) -> impl Iterator<Item = (&'a OvsBridge, &'a OvsPort)> {
    let (id, by) = (owner.attachment.to_string(), by_text(owner));
    ovs.bridges.iter().flat_map(|b| b.ports.iter().map(move |p| (b, p))).filter(move |(_, p)| {
        p.external_ids.get(Owner::OVS_KEY) == Some(&id) && p.external_ids.get(Owner::OVS_BY_KEY).map(String::as_str) == Some(by)
    })
}

fn by_text(owner: &Owner) -> &'static str {
    match owner.by {
        model::RunBy::Agent => "agent",
        model::RunBy::Alone => "alone",
    }
}

/// The least MTU of what leads out of the bridge: ports that are neither the bridge's own nor some pod's. None where there is
/// no uplink, or Open vSwitch does not know its MTU yet.
fn uplink_mtu(bridge: &OvsBridge) -> Option<(u32, &str)> {
    bridge
        .ports
        .iter()
        .filter(|p| p.name != bridge.name && !is_of_pod(&p.external_ids))
        .flat_map(|p| &p.interfaces)
        .filter(|i| i.kind.is_empty() || i.kind == "system")
        .filter_map(|i| Some((u32::try_from(i.mtu?).ok()?, i.name.as_str())))
        .min()
}

impl Conf {
    fn bridge_row<'a>(&self, ovs: &'a Ovs) -> Result<&'a OvsBridge, Refusal> {
        ovs.bridge(self.bridge.as_str())
            .ok_or_else(|| Refusal::missing("bridge", &self.bridge, "there is no such bridge in Open vSwitch on this host"))
    }

    fn port(&self, attach: &Attach) -> Port {
        let ((tag, trunks), mode) = (self.vlans.columns(), self.vlans.mode());
        let id = |s: &str| Some(s.to_owned());
        let external_ids = BTreeMap::from([
            ("contIface".to_owned(), id(attach.ifname.as_str())),
            ("contNetns".to_owned(), id(attach.netns.as_deref().unwrap_or_default())),
            ("contPodUid".to_owned(), id(attach.pod.as_ref().map_or("", |p| p.uid.as_str()))),
            ("owner".to_owned(), id(OWNER)),
            (Owner::OVS_KEY.to_owned(), Some(attach.owner.attachment.to_string())),
            (Owner::OVS_BY_KEY.to_owned(), id(by_text(&attach.owner))),
            (NETWORK_KEY.to_owned(), id(&attach.network)),
        ]);
        let name = host_name(attach).to_string();
        Port {
            name: name.clone(),
            interfaces: vec![Interface {
                name,
                kind: self.interface_type.clone(),
                ofport_request: self.ofport_request,
                mtu_request: None,
                external_ids: self.iface_id.iter().map(|i| ("iface-id".to_owned(), i.clone())).collect(),
            }],
            set: PortSet {
                tag: tag.map(Some),
                trunks: Some(trunks).filter(|t| !t.is_empty()),
                vlan_mode: Some(id(mode)),
                external_ids,
                ..PortSet::default()
            },
        }
    }
}

/// GC where there is no agent: ports that nobody stands for any more, with their links. Only what a plugin alone has made: the
/// agent's own attachments are the agent's.
pub fn garbage(stays: &Stays<'_>, seen: &Observed) -> Plan {
    let mut plan = Plan::default();
    let ports = seen.ovs.iter().flat_map(|o| &o.bridges).flat_map(|b| b.ports.iter().map(move |p| (b, p)));
    for (bridge, port) in ports {
        let get = |key: &str| port.external_ids.get(key).map(String::as_str);
        let Some(attachment) = get(Owner::OVS_KEY).and_then(|id| id.parse().ok()) else { continue };
        let owner = Owner { attachment, by: RunBy::Alone };
        if get(Owner::OVS_BY_KEY) != Some(by_text(&owner)) || !stays.is_garbage(&owner, NETWORK_KEY, &port.external_ids) {
            continue;
        }
        if let Ok(name) = IfName::new(bridge.name.as_str()) {
            plan.push(Step::DelPort { bridge: name, port: port_as_is(port) });
        }
        let alias = owner.alias();
        for link in seen.host.links.iter().filter(|l| l.alias.as_deref() == Some(alias.as_str())) {
            plan.push(Step::DelLink { ns: Ns::Host, name: link.name.clone() });
        }
    }
    plan
}
