//! A node with Open vSwitch in memory: carries bridge steps out, refuses what ovsdb or the kernel would.

use model::observed::{LinkKind, Observed, Ovs, OvsBridge, OvsInterface, OvsPort};
use planner::step::{BridgeSet, PortSet};
use planner::{Plan, Step};

use super::net;

pub fn node(nics: &[&str]) -> Observed {
    let mut seen = Observed {
        ovs: Some(Ovs { version: "3.1.0".into(), datapath_types: vec!["netdev".into(), "system".into()], bridges: Vec::new() }),
        ..Observed::default()
    };
    for (i, n) in nics.iter().enumerate() {
        let mut l = net::link(i as u32 + 2, n, LinkKind::Physical);
        let mac: model::MacAddr = format!("02:00:00:00:00:{i:02x}").parse().unwrap();
        (l.mac, l.permanent_mac, l.up, l.max_mtu) = (Some(mac), Some(mac), i % 2 == 0, Some(9216));
        seen.host.links.push(l);
    }
    seen
}

pub fn port(name: &str) -> OvsPort {
    OvsPort {
        name: name.into(),
        interfaces: vec![OvsInterface { name: name.into(), ..OvsInterface::default() }],
        ..OvsPort::default()
    }
}

/// With its local port, as made by hand.
pub fn add_bridge(seen: &mut Observed, name: &str) -> usize {
    let mut local = port(name);
    (local.interfaces[0].kind, local.interfaces[0].mtu) = ("internal".into(), Some(1500));
    let index = 100 + seen.host.links.len() as u32;
    let mut l = net::link(index, name, LinkKind::Other("openvswitch".into()));
    l.up = false;
    seen.host.links.push(l);
    let ovs = seen.ovs.as_mut().unwrap();
    ovs.bridges.push(OvsBridge { name: name.into(), ports: vec![local], ..OvsBridge::default() });
    ovs.bridges.len() - 1
}

/// Rows and links have no order.
pub fn sorted(mut seen: Observed) -> Observed {
    seen.host.links.sort_by(|a, b| a.name.cmp(&b.name));
    for l in &mut seen.host.links {
        if l.kind == LinkKind::Other("openvswitch".into()) {
            l.index = 0;
        }
    }
    if let Some(o) = &mut seen.ovs {
        o.bridges.sort_by(|a, b| a.name.cmp(&b.name));
        o.bridges.iter_mut().for_each(|b| b.ports.sort_by(|a, b| a.name.cmp(&b.name)));
    }
    seen
}

pub fn apply(plan: &Plan, seen: &mut Observed) {
    for step in &plan.steps {
        one(step, seen).unwrap_or_else(|e| panic!("{step}: {e}\n{plan}"));
    }
}

fn merge(to: &mut std::collections::BTreeMap<String, String>, set: &std::collections::BTreeMap<String, Option<String>>) {
    for (k, v) in set {
        match v {
            Some(v) => to.insert(k.clone(), v.clone()),
            None => to.remove(k),
        };
    }
}

fn set_bridge(b: &mut OvsBridge, s: &BridgeSet) {
    if let Some(d) = &s.datapath_type {
        b.datapath_type = d.clone();
    }
    if let Some(f) = &s.fail_mode {
        b.fail_mode = f.clone();
    }
    b.mcast_snooping = s.mcast_snooping.unwrap_or(b.mcast_snooping);
    merge(&mut b.other_config, &s.other_config);
    merge(&mut b.external_ids, &s.external_ids);
    if let Some(m) = s.mtu_request {
        let name = b.name.clone();
        let local = b.ports.iter_mut().find(|p| p.name == name).unwrap();
        local.interfaces[0].mtu_request = m.map(i64::from);
        local.interfaces[0].mtu = Some(i64::from(m.unwrap_or(1500)));
    }
}

fn set_port(p: &mut OvsPort, s: &PortSet) {
    if let Some(t) = s.tag {
        p.tag = t.map(|t| t.get());
    }
    if let Some(t) = &s.trunks {
        p.trunks = t.iter().map(|t| t.get()).collect();
    }
    for (to, from) in [(&mut p.vlan_mode, &s.vlan_mode), (&mut p.bond_mode, &s.bond_mode), (&mut p.lacp, &s.lacp)] {
        if let Some(v) = from {
            *to = v.clone();
        }
    }
    p.bond_updelay = s.bond_updelay.map_or(p.bond_updelay, i64::from);
    p.bond_downdelay = s.bond_downdelay.map_or(p.bond_downdelay, i64::from);
    merge(&mut p.external_ids, &s.external_ids);
}

fn one(step: &Step, seen: &mut Observed) -> Result<(), String> {
    let find = |seen: &mut Observed, name: &str| -> Result<usize, String> {
        seen.ovs.as_ref().unwrap().bridges.iter().position(|b| b.name == name).ok_or(format!("no bridge {name}"))
    };
    match step {
        Step::SetLink { name, set, .. } => {
            let l = seen.host.links.iter_mut().find(|l| &l.name == name).ok_or("no such link")?;
            l.up = set.up.unwrap_or(l.up);
            l.mtu = set.mtu.unwrap_or(l.mtu);
        }
        Step::AddBridge(b) => {
            if seen.host.link(&b.name).is_some() || find(seen, b.name.as_str()).is_ok() {
                return Err("name is taken".into());
            }
            let i = add_bridge(seen, b.name.as_str());
            set_bridge(&mut seen.ovs.as_mut().unwrap().bridges[i], &b.set);
        }
        Step::DelBridge(b) => {
            let i = find(seen, b.name.as_str())?;
            seen.ovs.as_mut().unwrap().bridges.remove(i);
            seen.host.links.retain(|l| l.name != b.name);
        }
        Step::SetBridge { name, set, .. } => {
            let i = find(seen, name.as_str())?;
            set_bridge(&mut seen.ovs.as_mut().unwrap().bridges[i], set);
        }
        Step::AddPort { bridge, port } => {
            for i in &port.interfaces {
                if seen.ovs.as_ref().unwrap().find_interface(&i.name).is_some() {
                    return Err(format!("{} is in a port", i.name));
                }
                if !seen.host.links.iter().any(|l| l.name.as_str() == i.name) {
                    return Err(format!("no such device {}", i.name));
                }
            }
            let i = find(seen, bridge.as_str())?;
            let b = &mut seen.ovs.as_mut().unwrap().bridges[i];
            if b.port(&port.name).is_some() {
                return Err("port is there".into());
            }
            let interfaces = port
                .interfaces
                .iter()
                .map(|i| OvsInterface {
                    name: i.name.clone(),
                    kind: i.kind.clone(),
                    mtu_request: i.mtu_request.map(i64::from),
                    ofport_request: i.ofport_request.map(i64::from),
                    ..OvsInterface::default()
                })
                .collect();
            let mut p = OvsPort { name: port.name.clone(), interfaces, ..OvsPort::default() };
            set_port(&mut p, &port.set);
            b.ports.push(p);
        }
        Step::DelPort { bridge, port } => {
            let i = find(seen, bridge.as_str())?;
            let b = &mut seen.ovs.as_mut().unwrap().bridges[i];
            let at = b.ports.iter().position(|p| p.name == port.name).ok_or("no such port")?;
            b.ports.remove(at);
        }
        Step::SetPort { bridge, name, set, .. } => {
            let i = find(seen, bridge.as_str())?;
            let p = seen.ovs.as_mut().unwrap().bridges[i].ports.iter_mut().find(|p| &p.name == name).ok_or("no such port")?;
            set_port(p, set);
        }
        other => return Err(format!("not expected here: {other:?}")),
    }
    Ok(())
}
