//! Routes and rules of `coordinate`: how the node is reached, a NIC's own table, eth0's, and whose the default is.
//! Does not know links' making.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::addr::TABLE_MAIN;
use model::observed::NetnsState;
use model::{Cidr, IfName, MacAddr, Route, Rule};

use super::{CoordinateInput, HOST_VETH_PREFIX, RULE_PREF, VETH0, Way, pair_macs, table_of};
use crate::lookup;
use crate::{Ns, Plan, Refusal, Step};

/// The node as the pod's next hop where the node has no address of the family: nobody has to own it, its neighbour entry is
/// permanent.
const NEXT_HOP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const NEXT_HOP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// Interfaces of the host whose addresses are no address of the node: bridges and devices of container engines, other
/// CNIs and virtualisation.
const NOT_THE_NODES: [&str; 18] = [
    "lo",
    "docker",
    "cbr",
    "cni",
    "dummy",
    "virbr",
    "lxcbr",
    "lxc",
    "veth",
    "cali",
    "tunl",
    "vxlan",
    "flannel",
    "kube-",
    "nodelocaldns",
    "cilium",
    "vx-submariner",
    HOST_VETH_PREFIX,
];

/// How the node is reached from the pod.
pub(crate) struct Node {
    pub has_v6: bool,
    /// The node's own, ascending.
    addrs: Vec<IpAddr>,
    /// eth0 or veth0.
    out: IfName,
    way: Way,
    /// Next hops; whether they are a stand-in without an address of their own.
    hops: Vec<(IpAddr, bool)>,
    /// eth0's IPv4 address: veth0 has none to send from.
    src_v4: Option<IpAddr>,
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_loopback(),
    }
}

fn first_nic<'a>(input: &CoordinateInput<'a>) -> &'a IfName {
    input.pod_nics.first().unwrap_or(input.ifname)
}

/// The first global address of a link of the pod.
fn ip_of(input: &CoordinateInput<'_>, nic: &IfName, ipv4: bool) -> Option<IpAddr> {
    if nic == input.ifname {
        return input.nic.addrs.iter().map(|a| a.ip()).find(|ip| ip.is_ipv4() == ipv4);
    }
    input.pod.addrs_of(nic).map(|a| a.addr.ip()).find(|ip| ip.is_ipv4() == ipv4 && !is_link_local(*ip))
}

impl Node {
    pub fn of(input: &CoordinateInput<'_>, way: Way) -> Node {
        let has = |v4| input.nic.addrs.iter().any(|a| a.is_ipv4() == v4);
        let cluster = input.settings.cluster();
        let theirs = |dev: &IfName| !NOT_THE_NODES.iter().any(|p| dev.as_str().starts_with(p));
        let is_nodes = |a: &&model::observed::Addr| {
            theirs(&a.dev) && !is_link_local(a.addr.ip()) && !cluster.iter().any(|c| c.contains(a.addr.ip()))
        };
        let mut seen: Vec<_> = input.host.addrs.iter().filter(is_nodes).collect();
        seen.sort_by_key(|a| a.addr.ip());
        let eth0 = first_nic(input);
        let hop = |v4: bool| -> Option<(IpAddr, bool)> {
            if way == Way::Overlay {
                return gateway_of(input.pod, eth0, v4).map(|gw| (gw, false));
            }
            // The node's address in the pod's own subnet, else on the NIC of its default route, else its first. The same
            // for all pods of a node, whatever order the kernel lists addresses in.
            let mine = ip_of(input, eth0, v4);
            let uplink = lookup::in_table(
                &input.host.routes,
                TABLE_MAIN,
                if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() },
            );
            let rank = |a: &&&model::observed::Addr| {
                let near = mine.is_some_and(|ip| a.addr.network().contains(ip));
                let on_default = uplink.is_some_and(|r| r.dev == a.dev);
                (!near, !on_default, a.addr.ip())
            };
            let best = seen.iter().filter(|a| a.addr.is_ipv4() == v4).min_by_key(rank);
            Some(best.map_or((if v4 { NEXT_HOP_V4 } else { NEXT_HOP_V6 }, true), |a| (a.addr.ip(), false)))
        };
        let hops = [true, false].into_iter().filter(|v4| has(*v4)).filter_map(hop).collect();
        let mut addrs: Vec<IpAddr> = seen.iter().map(|a| a.addr.ip()).filter(|ip| has(ip.is_ipv4())).collect();
        addrs.dedup();
        let out = if way == Way::Underlay { IfName::new(VETH0).expect("a short name") } else { eth0.clone() };
        Node { has_v6: has(false), addrs, out, way, hops, src_v4: ip_of(input, eth0, true) }
    }

    /// Addresses that the pod must find at veth0's other end.
    pub fn on_veth0(&self) -> Vec<IpAddr> {
        let mut all = self.addrs.clone();
        all.extend(self.hops.iter().filter(|(ip, _)| !self.addrs.contains(ip)).map(|(ip, _)| *ip));
        all
    }

    /// Routes to the node and the cluster, for one family and table. Nothing where there is no way (eth0 without a gateway
    /// of the family: its CNI plugin gives that family no cluster).
    fn routes(&self, cluster: &[Cidr], ipv4: bool, table: u32) -> Vec<Route> {
        let Some((hop, stand_in)) = self.hops.iter().find(|(ip, _)| ip.is_ipv4() == ipv4).copied() else { return Vec::new() };
        let src = if self.way == Way::Underlay && ipv4 { self.src_v4 } else { None };
        let route = |dst, gw: Option<IpAddr>| Route {
            src,
            onlink: stand_in && gw.is_some(),
            ..Route::new(dst, gw, self.out.clone()).in_table(table)
        };
        let nodes = self.addrs.iter().filter(|ip| ip.is_ipv4() == ipv4);
        let nodes = nodes.map(|ip| route(Cidr::host(*ip), (self.way == Way::Overlay && *ip != hop).then_some(hop)));
        nodes.chain(cluster.iter().filter(|c| c.is_ipv4() == ipv4).map(|c| route(*c, Some(hop)))).collect()
    }

    /// From the host: device, next hop, and the neighbour's MAC where it is to be made permanent.
    pub fn back_to_pod(
        &self,
        input: &CoordinateInput<'_>,
        way: Way,
        first: bool,
        ip: IpAddr,
    ) -> Option<(IfName, Option<IpAddr>, Option<MacAddr>)> {
        if way == Way::Underlay && first {
            return Some((input.owner.attachment.link_name(HOST_VETH_PREFIX), None, Some(pair_macs(input.owner).1)));
        }
        if way == Way::Underlay {
            let veth0 = input.pod.links.iter().find(|l| l.name.as_str() == VETH0)?;
            let peer = input.host.link_by_index(veth0.link_index?)?;
            return Some((peer.name.clone(), None, veth0.mac));
        }
        // Through eth0, by the route that the cluster's own plugin made: any kind of it will do, and the pod answers by
        // eth0 too, so reverse path filters of both sides agree.
        let eth0 = ip_of(input, first_nic(input), ip.is_ipv4())?;
        let route = lookup::in_table(&input.host.routes, TABLE_MAIN, eth0).filter(|r| r.gw.is_none() && !r.dst.is_default())?;
        Some((route.dev.clone(), Some(eth0), None))
    }
}

/// A NIC's next hop: of its default route in whatever table, else of any of its routes.
fn gateway_of(pod: &NetnsState, nic: &IfName, ipv4: bool) -> Option<IpAddr> {
    let via = pod.routes.iter().filter(|r| &r.dev == nic && r.dst.is_ipv4() == ipv4 && r.gw.is_some());
    via.min_by_key(|r| (!r.dst.is_default(), lookup::metric(r), r.table)).and_then(|r| r.gw)
}

fn same_key(a: &Route, b: &Route) -> bool {
    a.table == b.table && a.dst == b.dst && lookup::metric(a) == lookup::metric(b)
}

/// Adds a route unless it is there or planned. Where another with the same key is in the way it is replaced in our own
/// tables (`replace`), and left alone in main, which is not only ours.
pub(crate) fn put(p: &mut Plan, ns: Ns, state: &NetnsState, want: Route, replace: bool) {
    let planned = |s: &Step| matches!(s, Step::AddRoute { ns: n, route } if *n == ns && same_key(route, &want));
    if p.steps.iter().any(planned) {
        return;
    }
    let gone = |r: &Route| p.steps.iter().any(|s| matches!(s, Step::DelRoute { ns: n, route } if *n == ns && route == r));
    let there: Vec<Route> = state.routes.iter().filter(|r| same_key(r, &want) && !gone(r)).cloned().collect();
    if there.iter().any(|r| r.dev == want.dev && r.gw == want.gw && (want.src.is_none() || r.src == want.src)) {
        return;
    }
    if !there.is_empty() && !replace {
        return;
    }
    for route in there {
        p.push(Step::DelRoute { ns, route });
    }
    p.push(Step::AddRoute { ns, route: want });
}

fn rule(p: &mut Plan, input: &CoordinateInput<'_>, from: IpAddr, table: u32) {
    let rule = Rule {
        priority: RULE_PREF,
        from: Some(Cidr::host(from)),
        to: None,
        iif: None,
        fwmark: None,
        table,
        ipv4: from.is_ipv4(),
    };
    if !input.pod.rules.contains(&rule) {
        p.push(Step::AddRule { ns: Ns::Pod, rule });
    }
}

/// Networks and routes of a NIC in main that belong into its own table too.
fn own_routes<'a>(pod: &'a NetnsState, nic: &'a IfName, ipv4: bool) -> impl Iterator<Item = &'a Route> {
    let skip = |r: &Route| r.dst.is_default() || is_link_local(r.dst.ip()) || r.dst.ip().is_multicast();
    pod.routes.iter().filter(move |r| &r.dev == nic && r.table == TABLE_MAIN && r.dst.is_ipv4() == ipv4 && !skip(r))
}

/// Steps in the pod.
pub(crate) fn pod(input: &CoordinateInput<'_>, way: Way, first: bool, node: &Node, p: &mut Plan) -> Result<(), Refusal> {
    let s = input.settings;
    let cluster = s.cluster();
    let eth0 = first_nic(input);
    let table = table_of(input.ifname, input.pod_nics);
    let policy = policy_routes(input, if first || !s.tune_pod_routes { TABLE_MAIN } else { table })?;
    for ipv4 in [true, false] {
        let family: Vec<IpAddr> = input.nic.addrs.iter().map(|a| a.ip()).filter(|ip| ip.is_ipv4() == ipv4).collect();
        if family.is_empty() {
            continue;
        }
        let policy = policy.iter().filter(|r| r.dst.is_ipv4() == ipv4);
        for r in node.routes(&cluster, ipv4, TABLE_MAIN) {
            put(p, Ns::Pod, input.pod, r, false);
        }
        if first {
            policy.for_each(|r| put(p, Ns::Pod, input.pod, r.clone(), false));
            continue;
        }
        let gw = default_of(input, ipv4);
        if s.tune_pod_routes {
            let to_node = node.routes(&cluster, ipv4, TABLE_MAIN);
            let plain = |r: &Route, table| Route { table, metric: None, ..r.clone() };
            // What leads to the node is made for each table, not copied: main may have another one, from before us.
            let copied = |nic, table| {
                own_routes(input.pod, nic, ipv4).filter(|r| !to_node.iter().any(|n| n.dst == r.dst)).map(move |r| plain(r, table))
            };
            let mut own: Vec<Route> = copied(input.ifname, table).collect();
            own.extend(policy.cloned());
            own.extend(gw.map(|gw| Route::new(Cidr::default_for(gw), Some(gw), input.ifname.clone()).in_table(table)));
            own.extend(node.routes(&cluster, ipv4, table));
            if way == Way::Overlay {
                own.extend(copied(eth0, table).filter(|r| r.gw.is_none()));
            }
            // A route by a gateway needs the gateway's network first.
            own.sort_by_key(|r| r.gw.is_some());
            let mut eth0s: Vec<Route> = copied(eth0, 100).collect();
            eth0s.extend(
                gateway_of(input.pod, eth0, ipv4)
                    .map(|gw| Route::new(Cidr::default_for(gw), Some(gw), eth0.clone()).in_table(100)),
            );
            eth0s.extend(node.routes(&cluster, ipv4, 100));
            eth0s.sort_by_key(|r| r.gw.is_some());
            for r in own.into_iter().chain(eth0s) {
                put(p, Ns::Pod, input.pod, r, true);
            }
            family.iter().for_each(|ip| rule(p, input, *ip, table));
            ip_of(input, eth0, ipv4).into_iter().for_each(|ip| rule(p, input, ip, 100));
        } else {
            policy.for_each(|r| put(p, Ns::Pod, input.pod, r.clone(), false));
        }
        default_in_main(input, ipv4, gw, p);
    }
    Ok(())
}

/// The NIC's next hop for everything else: the default route that IPAM gave or the main plugin left, else the gateway of its
/// address. A second NIC's result has no default route, as main has room for one; our IPAM leaves the gateway out too where
/// `cleangateway` asks for none.
fn default_of(input: &CoordinateInput<'_>, ipv4: bool) -> Option<IpAddr> {
    let routes = input.nic.routes.iter().filter(|r| r.dst.is_default() && r.dst.is_ipv4() == ipv4);
    let seen = input.pod.routes.iter().filter(|r| r.dst.is_default() && r.dst.is_ipv4() == ipv4 && &r.dev == input.ifname);
    let named = if ipv4 { input.nic.gateways.v4 } else { input.nic.gateways.v6 };
    routes.filter_map(|r| r.gw.or(named)).chain(seen.filter_map(|r| r.gw)).next().or(named)
}

/// One default in main: eth0's, or the named NIC's. A NIC keeps its default where no other has one.
fn default_in_main(input: &CoordinateInput<'_>, ipv4: bool, gw: Option<IpAddr>, p: &mut Plan) {
    let ns = Ns::Pod;
    let defaults = input.pod.routes.iter().filter(|r| r.table == TABLE_MAIN && r.dst.is_default() && r.dst.is_ipv4() == ipv4);
    let (mine, others): (Vec<_>, Vec<_>) = defaults.partition(|r| &r.dev == input.ifname);
    if input.settings.default_route_nic.as_ref() == Some(input.ifname) {
        let Some(gw) = gw else { return };
        others.into_iter().for_each(|r| p.push(Step::DelRoute { ns, route: r.clone() }));
        put(p, ns, input.pod, Route::new(Cidr::default_for(gw), Some(gw), input.ifname.clone()), false);
    } else if !others.is_empty() {
        mine.into_iter().for_each(|r| p.push(Step::DelRoute { ns, route: r.clone() }));
    }
}

fn policy_routes(input: &CoordinateInput<'_>, table: u32) -> Result<Vec<Route>, Refusal> {
    let mut out = Vec::new();
    for (i, (dst, gw)) in input.settings.policy_routes.iter().enumerate() {
        // A route of a family that the NIC does not have is for other NICs of the same settings.
        if !input.nic.addrs.iter().any(|a| a.is_ipv4() == gw.is_ipv4()) {
            continue;
        }
        if !input.nic.addrs.iter().any(|a| a.network().contains(*gw)) {
            let nets = input.nic.addrs.iter().map(|a| a.network().to_string()).collect::<Vec<_>>().join(", ");
            return Err(Refusal::invalid(
                format!("policyRoutes[{i}].gw"),
                gw,
                format!("is in no network of {}, which has {nets}", input.ifname),
            ));
        }
        out.push(Route::new(*dst, Some(*gw), input.ifname.clone()).in_table(table));
    }
    Ok(out)
}
