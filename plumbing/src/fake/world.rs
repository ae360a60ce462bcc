//! The state of a fake host and what each step does to it. Pure: state in, state out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::observed::{Addr, Link, LinkKind, Neighbour, NetnsState, Ovs, OvsBridge, OvsInterface, OvsPort};
use model::{IfName, MacAddr, Route};
use netlink::{Errno, KernelError};
use planner::step::{BridgeSet, LinkSet, Macvlan, Port, PortSet, Veth};
use planner::{Ns, Plan, Step};

use crate::error::StepError;
use crate::exec::Done;

#[derive(Debug, Default)]
pub(super) struct World {
    pub host: NetnsState,
    pub pods: BTreeMap<String, NetnsState>,
    pub ovs: Option<Ovs>,
    pub ovs_down: bool,
    pub fail_step: Option<usize>,
    pub bad_interfaces: BTreeMap<String, String>,
    /// Hosts of the segment that are none of ours.
    pub strangers: BTreeMap<IpAddr, MacAddr>,
    /// Gateways that do not answer; all others do.
    pub silent: BTreeSet<IpAddr>,
    pub applied: Vec<(Option<String>, Plan)>,
    /// (pod, interface, addresses)
    pub announced_again: Vec<(String, IfName, Vec<IpAddr>)>,
    /// (name on the host, pod, name in the pod)
    veths: Vec<(IfName, String, IfName)>,
    sysctls: BTreeMap<(Option<String>, String), String>,
    last_index: u32,
}

type Outcome = Result<Done, StepError>;

fn refused<T>(errno: Errno, text: &str) -> Result<T, StepError> {
    let text = (!text.is_empty()).then(|| text.to_owned());
    Err(netlink::Error::from(KernelError { errno, text }).into())
}

fn no_link<T>(name: &IfName) -> Result<T, StepError> {
    Err(netlink::Error::NoLink(name.to_string()).into())
}

impl World {
    pub fn add_nic(&mut self, name: IfName, mac: MacAddr) {
        let mut nic = self.new_link(name, LinkKind::Physical, Some(mac), 1500, None);
        (nic.up, nic.carrier, nic.permanent_mac) = (true, true, Some(mac));
        self.host.links.push(nic);
    }

    pub fn step(&mut self, pod: Option<&str>, step: &Step) -> Outcome {
        use Step::*;
        match step {
            AddMacvlan(m) => self.add_macvlan(pod, m),
            AddVeth(v) => self.add_veth(pod, v),
            DelLink { ns, name } => self.del_link(pod, *ns, name),
            SetLink { ns, name, set, .. } => self.set_link(pod, *ns, name, set),
            SetSysctl { ns, key, value, .. } => {
                self.state(pod, *ns)?;
                let place = pod.filter(|_| *ns == Ns::Pod).map(ToOwned::to_owned);
                self.sysctls.insert((place, key.clone()), value.clone());
                Ok(Done::Changed)
            }
            Probe { ns, dev, ask } => {
                let Some(link) = self.state(pod, *ns)?.link(dev) else { return no_link(dev) };
                if !link.up {
                    return Err(StepError::NoCarrier);
                }
                if let Some((ip, mac)) = ask.unused.iter().find_map(|ip| self.strangers.get_key_value(ip)) {
                    return Err(StepError::Duplicate { ip: *ip, mac: *mac });
                }
                match ask.gateways.iter().find(|(gateway, _)| self.silent.contains(gateway)) {
                    Some((gateway, _)) => Err(StepError::GatewaySilent(*gateway)),
                    None => Ok(Done::AlreadySo),
                }
            }
            SetTxChecksum { ns, dev, .. } | Announce { ns, dev, .. } => match self.state(pod, *ns)?.link(dev) {
                Some(_) => Ok(Done::Changed),
                None => no_link(dev),
            },
            AddAddr { ns, .. }
            | DelAddr { ns, .. }
            | AddRoute { ns, .. }
            | DelRoute { ns, .. }
            | AddRule { ns, .. }
            | DelRule { ns, .. }
            | AddNeighbour { ns, .. }
            | DelNeighbour { ns, .. } => in_netns(self.state(pod, *ns)?, step),
            AddBridge(_) | DelBridge(_) | SetBridge { .. } | AddPort { .. } | DelPort { .. } | SetPort { .. } => {
                if self.ovs_down {
                    return Err(StepError::OvsDown(super::down()));
                }
                let done = in_ovs(self.ovs.as_mut().ok_or(StepError::NoOvs)?, step)?;
                // The switch makes the link of a bridge's local port, down, and takes it along.
                match step {
                    AddBridge(b) => {
                        let local = self.new_link(b.name.clone(), LinkKind::Other("openvswitch".into()), None, 1500, None);
                        self.host.links.push(local);
                    }
                    DelBridge(b) => self.host.links.retain(|l| l.name != b.name),
                    _ => {}
                }
                Ok(done)
            }
        }
    }

    /// What the switch says of a port that was just added.
    pub fn unusable(&mut self, step: &Step) -> Option<StepError> {
        let names: Vec<&str> = match step {
            Step::AddPort { port, .. } => port.interfaces.iter().map(|i| i.name.as_str()).collect(),
            Step::AddBridge(b) => vec![b.name.as_str()],
            _ => return None,
        };
        let (interface, error) = names.into_iter().find_map(|n| self.bad_interfaces.get_key_value(n))?;
        Some(StepError::Interface { interface: interface.clone(), error: error.clone() })
    }

    fn state(&mut self, pod: Option<&str>, ns: Ns) -> Result<&mut NetnsState, StepError> {
        match (ns, pod) {
            (Ns::Host, _) => Ok(&mut self.host),
            (Ns::Pod, Some(pod)) => Ok(self.pods.entry(pod.to_owned()).or_default()),
            (Ns::Pod, None) => Err(StepError::NoPod),
        }
    }

    fn new_link(&mut self, name: IfName, kind: LinkKind, mac: Option<MacAddr>, mtu: u32, alias: Option<&str>) -> Link {
        self.last_index += 1;
        let [.., a, b] = self.last_index.to_be_bytes();
        Link {
            index: self.last_index,
            name,
            kind,
            mac: mac.or(Some(MacAddr::from_bytes([0x02, 0xfa, 0x6e, 0, a, b]))),
            permanent_mac: None,
            mtu,
            max_mtu: Some(65535),
            up: false,
            carrier: false,
            alias: alias.map(ToOwned::to_owned),
            link_index: None,
            link_netnsid: None,
            master: None,
            altnames: vec![],
            tx_queue_len: Some(1000),
        }
    }

    fn add_macvlan(&mut self, pod: Option<&str>, m: &Macvlan) -> Outcome {
        let Some(parent) = self.state(pod, m.parent_ns)?.link(&m.parent).cloned() else { return no_link(&m.parent) };
        if self.state(pod, Ns::Pod)?.link(&m.name).is_some() {
            return refused(Errno::EEXIST, "");
        }
        let mtu = m.mtu.map_or(parent.mtu, model::Mtu::get);
        if mtu > parent.mtu {
            return refused(Errno::EINVAL, "");
        }
        let mut link = self.new_link(m.name.clone(), LinkKind::Macvlan { mode: m.mode }, m.mac, mtu, Some(&m.alias));
        link.link_index = Some(parent.index);
        link.link_netnsid = (m.parent_ns == Ns::Host).then_some(0);
        self.state(pod, Ns::Pod)?.links.push(link);
        Ok(Done::Changed)
    }

    fn add_veth(&mut self, pod: Option<&str>, v: &Veth) -> Outcome {
        if self.state(pod, Ns::Pod)?.link(&v.pod_name).is_some() || self.host.link(&v.host_name).is_some() {
            return refused(Errno::EEXIST, "");
        }
        let mtu = v.mtu.map_or(1500, model::Mtu::get);
        let mut host = self.new_link(v.host_name.clone(), LinkKind::Veth, v.host_mac, mtu, Some(&v.alias));
        let mut end = self.new_link(v.pod_name.clone(), LinkKind::Veth, v.pod_mac, mtu, Some(&v.alias));
        (host.link_index, end.link_index) = (Some(end.index), Some(host.index));
        (host.link_netnsid, end.link_netnsid) = (Some(0), Some(0));
        self.host.links.push(host);
        self.state(pod, Ns::Pod)?.links.push(end);
        self.veths.push((v.host_name.clone(), pod.unwrap_or_default().to_owned(), v.pod_name.clone()));
        Ok(Done::Changed)
    }

    fn del_link(&mut self, pod: Option<&str>, ns: Ns, name: &IfName) -> Outcome {
        if self.state(pod, ns)?.link(name).is_none() {
            return Ok(Done::AlreadySo);
        }
        remove(self.state(pod, ns)?, name);
        let of_pair = |v: &(IfName, String, IfName)| match ns {
            Ns::Host => &v.0 == name,
            Ns::Pod => pod == Some(v.1.as_str()) && &v.2 == name,
        };
        if let Some(i) = self.veths.iter().position(of_pair) {
            let (host, pod, end) = self.veths.remove(i);
            match ns {
                Ns::Pod => remove(&mut self.host, &host),
                Ns::Host => remove(self.pods.entry(pod).or_default(), &end),
            }
        }
        Ok(Done::Changed)
    }

    fn set_link(&mut self, pod: Option<&str>, ns: Ns, name: &IfName, set: &LinkSet) -> Outcome {
        let state = self.state(pod, ns)?;
        let Some(link) = state.links.iter_mut().find(|l| &l.name == name) else { return refused(Errno::ENODEV, "") };
        link.mac = set.mac.or(link.mac);
        link.mtu = set.mtu.unwrap_or(link.mtu);
        link.tx_queue_len = set.tx_queue_len.or(link.tx_queue_len);
        if let Some(alias) = &set.alias {
            link.alias = Some(alias.clone()).filter(|a| !a.is_empty());
        }
        if let Some(up) = set.up.filter(|up| *up != link.up) {
            (link.up, link.carrier) = (up, up);
            match up {
                true => {
                    let addrs: Vec<_> = state.addrs_of(name).cloned().collect();
                    state.routes.extend(addrs.iter().filter_map(connected));
                }
                false => state.routes.retain(|r| &r.dev != name),
            }
        }
        Ok(Done::Changed)
    }
}

fn remove(state: &mut NetnsState, name: &IfName) {
    state.links.retain(|l| &l.name != name);
    state.addrs.retain(|a| &a.dev != name);
    state.routes.retain(|r| &r.dev != name);
    state.neighbours.retain(|n| &n.dev != name);
}

/// The route to an address's own network, which the kernel adds by itself.
fn connected(a: &Addr) -> Option<Route> {
    let mut route = Route::new(a.addr.network(), None, a.dev.clone());
    match a.addr.is_ipv4() {
        true => route.src = Some(a.addr.ip()),
        false => route.metric = Some(256),
    }
    (!a.addr.is_ipv4() || a.addr.prefix_len() < 32).then_some(route)
}

fn in_netns(state: &mut NetnsState, step: &Step) -> Outcome {
    use Step::*;
    match step {
        AddAddr { dev, addr, .. } => {
            let Some(up) = state.link(dev).map(|l| l.up) else { return no_link(dev) };
            if state.addrs_of(dev).any(|a| a.addr == *addr) {
                return Ok(Done::AlreadySo);
            }
            let added =
                Addr { dev: dev.clone(), addr: *addr, scope_link: false, permanent: true, tentative: false, dad_failed: false };
            state.routes.extend(connected(&added).filter(|_| up));
            state.addrs.push(added);
            Ok(Done::Changed)
        }
        DelAddr { dev, addr, .. } => {
            let Some(i) = state.addrs.iter().position(|a| &a.dev == dev && a.addr == *addr) else { return Ok(Done::AlreadySo) };
            let removed = state.addrs.remove(i);
            let route = connected(&removed);
            state.routes.retain(|r| Some(r) != route.as_ref());
            Ok(Done::Changed)
        }
        AddRoute { route, .. } => {
            let Some(link) = state.link(&route.dev) else { return no_link(&route.dev) };
            if !link.up {
                return refused(Errno::ENETDOWN, "Nexthop device is not up");
            }
            if let Some(gw) = route.gw.filter(|_| !route.onlink) {
                let reached = state.addrs_of(&route.dev).any(|a| a.addr.network().contains(gw))
                    || state.routes.iter().any(|r| r.dev == route.dev && r.gw.is_none() && r.dst.contains(gw));
                if !reached {
                    return refused(Errno::ENETUNREACH, "Nexthop has invalid gateway");
                }
            }
            if state.routes.iter().any(|r| same_key(r, route)) {
                return refused(Errno::EEXIST, "");
            }
            state.routes.push(route.clone());
            Ok(Done::Changed)
        }
        DelRoute { route, .. } => {
            let found = state.routes.iter().position(|r| same_key(r, route) && r.dev == route.dev && r.gw == route.gw);
            Ok(found.map_or(Done::AlreadySo, |i| {
                state.routes.remove(i);
                Done::Changed
            }))
        }
        AddRule { rule, .. } if state.rules.contains(rule) => Ok(Done::AlreadySo),
        AddRule { rule, .. } => {
            state.rules.push(rule.clone());
            Ok(Done::Changed)
        }
        DelRule { rule, .. } => {
            let before = state.rules.len();
            state.rules.retain(|r| r != rule);
            Ok(if state.rules.len() < before { Done::Changed } else { Done::AlreadySo })
        }
        AddNeighbour { dev, ip, mac, .. } => {
            if state.link(dev).is_none() {
                return no_link(dev);
            }
            state.neighbours.retain(|n| (&n.dev, n.ip) != (dev, *ip));
            state.neighbours.push(Neighbour { dev: dev.clone(), ip: *ip, mac: Some(*mac), permanent: true });
            Ok(Done::Changed)
        }
        DelNeighbour { dev, ip, .. } => {
            let before = state.neighbours.len();
            state.neighbours.retain(|n| (&n.dev, n.ip) != (dev, *ip));
            Ok(if state.neighbours.len() < before { Done::Changed } else { Done::AlreadySo })
        }
        _ => unreachable!("the caller sends no other"),
    }
}

fn same_key(a: &Route, b: &Route) -> bool {
    (a.dst, a.table, a.metric) == (b.dst, b.table, b.metric)
}

fn in_ovs(ovs: &mut Ovs, step: &Step) -> Outcome {
    use Step::*;
    let bridge = |ovs: &Ovs, name: &str| ovs.bridges.iter().position(|b| b.name == name);
    let need = |ovs: &Ovs, name: &str| bridge(ovs, name).ok_or_else(|| StepError::NoBridge(name.to_owned()));
    match step {
        AddBridge(b) => {
            if bridge(ovs, b.name.as_str()).is_some() {
                return Err(StepError::BridgeExists(b.name.to_string()));
            }
            let local = OvsInterface {
                name: b.name.to_string(),
                kind: "internal".into(),
                ofport: Some(65534),
                ..OvsInterface::default()
            };
            let local = OvsPort { name: b.name.to_string(), interfaces: vec![local], ..OvsPort::default() };
            let mut row = OvsBridge { name: b.name.to_string(), ports: vec![local], ..OvsBridge::default() };
            set_bridge(&mut row, &b.set);
            ovs.bridges.push(row);
        }
        DelBridge(b) => match bridge(ovs, b.name.as_str()) {
            None => return Ok(Done::AlreadySo),
            Some(i) => drop(ovs.bridges.remove(i)),
        },
        SetBridge { name, set, .. } => {
            let i = need(ovs, name.as_str())?;
            set_bridge(&mut ovs.bridges[i], set);
        }
        AddPort { bridge, port } => {
            let i = need(ovs, bridge.as_str())?;
            free(ovs, port)?;
            let ofport = i64::try_from(ovs.bridges[i].ports.len()).unwrap_or(1);
            ovs.bridges[i].ports.push(new_port(port, ofport));
        }
        DelPort { port, .. } => {
            let place = ovs
                .bridges
                .iter()
                .enumerate()
                .find_map(|(b, row)| Some((b, row.ports.iter().position(|p| p.name == port.name)?)));
            let Some((b, p)) = place else { return Ok(Done::AlreadySo) };
            let row = &ovs.bridges[b].ports[p];
            let mut marks = port.set.external_ids.iter().filter(|(k, _)| k.starts_with("mooring-"));
            if !marks.all(|(k, v)| row.external_ids.get(k) == v.as_ref()) {
                return Ok(Done::AlreadySo);
            }
            ovs.bridges[b].ports.remove(p);
        }
        SetPort { name, set, .. } => {
            let port = ovs.bridges.iter_mut().flat_map(|b| &mut b.ports).find(|p| &p.name == name);
            set_port(port.ok_or_else(|| StepError::NoPort(name.clone()))?, set);
        }
        _ => unreachable!("the caller sends no other"),
    }
    Ok(Done::Changed)
}

fn free(ovs: &Ovs, port: &Port) -> Result<(), StepError> {
    for b in &ovs.bridges {
        if b.port(&port.name).is_some() {
            return Err(StepError::PortExists { port: port.name.clone(), bridge: b.name.clone() });
        }
    }
    for i in &port.interfaces {
        if let Some((b, p)) = ovs.find_interface(&i.name) {
            return Err(StepError::InterfaceTaken { interface: i.name.clone(), port: p.name.clone(), bridge: b.name.clone() });
        }
    }
    Ok(())
}

fn new_port(port: &Port, ofport: i64) -> OvsPort {
    let interface = |i: &planner::step::Interface| OvsInterface {
        name: i.name.clone(),
        kind: i.kind.clone(),
        ofport: Some(i.ofport_request.map_or(ofport, i64::from)),
        ofport_request: i.ofport_request.map(i64::from),
        mtu_request: i.mtu_request.map(i64::from),
        external_ids: i.external_ids.clone(),
        link_state: Some("up".into()),
        ..OvsInterface::default()
    };
    let mut row =
        OvsPort { name: port.name.clone(), interfaces: port.interfaces.iter().map(interface).collect(), ..OvsPort::default() };
    set_port(&mut row, &port.set);
    row
}

fn set_map(map: &mut BTreeMap<String, String>, set: &BTreeMap<String, Option<String>>) {
    for (k, v) in set {
        match v {
            Some(v) => map.insert(k.clone(), v.clone()),
            None => map.remove(k),
        };
    }
}

fn set_bridge(row: &mut OvsBridge, set: &BridgeSet) {
    if let Some(d) = &set.datapath_type {
        row.datapath_type.clone_from(d);
    }
    if let Some(f) = &set.fail_mode {
        row.fail_mode.clone_from(f);
    }
    row.mcast_snooping = set.mcast_snooping.unwrap_or(row.mcast_snooping);
    set_map(&mut row.other_config, &set.other_config);
    set_map(&mut row.external_ids, &set.external_ids);
    if let Some(mtu) = set.mtu_request {
        let name = row.name.clone();
        for i in row.ports.iter_mut().flat_map(|p| &mut p.interfaces).filter(|i| i.name == name) {
            i.mtu_request = mtu.map(i64::from);
            i.mtu = mtu.map(i64::from);
        }
    }
}

fn set_port(row: &mut OvsPort, set: &PortSet) {
    if let Some(tag) = set.tag {
        row.tag = tag.map(|t| t.get());
    }
    if let Some(trunks) = &set.trunks {
        row.trunks = trunks.iter().map(|t| t.get()).collect();
    }
    for (column, value) in
        [(&mut row.vlan_mode, &set.vlan_mode), (&mut row.bond_mode, &set.bond_mode), (&mut row.lacp, &set.lacp)]
    {
        if let Some(value) = value {
            column.clone_from(value);
        }
    }
    row.bond_updelay = set.bond_updelay.map_or(row.bond_updelay, i64::from);
    row.bond_downdelay = set.bond_downdelay.map_or(row.bond_downdelay, i64::from);
    set_map(&mut row.external_ids, &set.external_ids);
}
