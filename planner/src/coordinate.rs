//! Routes, rules, host veth, neighbours and sysctls of one NIC of a pod, after its main plugin. Pure: knows the pod's and
//! the host's state as values, nothing of who sets the settings.
//!
//! The picture (tables: eth0 100, net1 101, netN 100+N; rules of preference 1000; both families; link-local left alone):
//! - Reply traffic leaves where it came in: `from <NIC's address> lookup <NIC's table>`; the table has the NIC's own
//!   networks, its other routes and its default.
//! - The cluster (pod, service and hijacked networks, node addresses) goes through the node in *every* table: by eth0's
//!   gateway where eth0 is the cluster's NIC ("overlay"), by `veth0`, a pair to the node of our own, where eth0 is on the
//!   physical network itself ("underlay": macvlan children cannot talk to their parent's host).
//! - The default route in main belongs to eth0, or to the NIC that the user names.
//! - On the host the address of an underlay NIC leads to the pod directly: table 500 (`hostRuleTable`), one rule for all.
//!
//! Without connection marks: what comes in by veth0 comes from a node, a pod, a service or a hijacked network, and all of
//! these have a route by veth0, so replies go back by it. Left over: a client outside those networks that reaches a pod on
//! the physical network through a NodePort with `externalTrafficPolicy: Local` (its address is kept, the reply leaves by
//! eth0 and misses the node's connection tracking). Such a client can reach the pod's address itself; or its network can
//! be put into `hijackCIDR`.

mod routes;
pub mod settings;

use std::net::IpAddr;

use model::observed::{LinkKind, NetnsState};
use model::{Cidr, IfAddr, IfName, MacAddr, Owner, Route, Rule};

use crate::step::{LinkSet, Veth};
use crate::{Nic, Ns, Plan, Refusal, Step};

pub use settings::{Mode, Settings};

/// Preference of all our rules: behind `local` (0), before `main` (32766).
pub const RULE_PREF: u32 = 1000;
/// The pod's end of the pair to the node.
pub const VETH0: &str = "veth0";
/// Prefix of the node's end; the digits are the attachment's.
pub const HOST_VETH_PREFIX: &str = "mvh-";

#[derive(Debug, Clone, Copy)]
pub struct CoordinateInput<'a> {
    pub owner: Owner,
    pub ifname: &'a IfName,
    /// Addresses and gateways of this NIC.
    pub nic: &'a Nic,
    pub settings: &'a Settings,
    /// Names of all NICs that the pod will have, in order; the first is the one the runtime asked for (eth0).
    pub pod_nics: &'a [IfName],
    /// All of the pod, after the main plugin.
    pub pod: &'a NetnsState,
    /// All of the host.
    pub host: &'a NetnsState,
}

/// What a mode comes down to for one NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Underlay,
    Overlay,
    Nothing,
}

/// The table of a NIC: 100 for the first, 100+N for `netN`, 1000 + place for any other name. Tables 253 to 255 are the
/// kernel's, so netN counts up to 152.
pub fn table_of(ifname: &IfName, pod_nics: &[IfName]) -> u32 {
    let place = pod_nics.iter().position(|n| n == ifname);
    if place == Some(0) {
        return 100;
    }
    let digits = ifname.as_str().strip_prefix("net").filter(|d| !d.starts_with('0') && !d.starts_with('+'));
    match digits.and_then(|d| d.parse::<u32>().ok()) {
        Some(n @ 1..=152) => 100 + n,
        _ => 1000 + place.map_or(0, |p| u32::try_from(p).expect("a pod has few NICs")),
    }
}

/// The MAC that `podMACPrefix` asks for: two given bytes and four of the first address. Whoever plans the main plugin takes
/// it as the NIC's MAC (`Attach::mac`, unless the user named one), so that the result, the network status and the IPv6
/// link-local address are right from the start; `plan` changes it only on a NIC that a foreign plugin made, and then
/// whoever holds the result has to put this MAC into it.
pub fn pod_mac(settings: &Settings, nic: &Nic) -> Option<MacAddr> {
    Some(MacAddr::from_prefix_and_ip(settings.mac_prefix?, nic.addrs.first()?.ip()))
}

/// Underlay, overlay or nothing; refuses a mode that cannot work on this NIC.
pub fn way(input: &CoordinateInput<'_>) -> Result<Way, Refusal> {
    let first = input.pod_nics.first().is_none_or(|f| f == input.ifname);
    let has_veth0 = input.pod.links.iter().any(|l| l.name.as_str() == VETH0);
    match input.settings.mode {
        Mode::Disabled => Ok(Way::Nothing),
        Mode::Auto if first || has_veth0 => Ok(Way::Underlay),
        Mode::Auto => Ok(Way::Overlay),
        Mode::Underlay if first || has_veth0 => Ok(Way::Underlay),
        Mode::Underlay => Err(Refusal::conflict(
            "mode",
            "underlay",
            format!("the pod has no {VETH0}, so its first NIC is the cluster's: use \"auto\" or \"overlay\" on {}", input.ifname),
        )),
        Mode::Overlay if first || has_veth0 => Err(Refusal::conflict(
            "mode",
            "overlay",
            format!(
                "{} is on the physical network itself, no NIC of the pod is the cluster's: use \"auto\" or \"underlay\"",
                input.pod_nics.first().unwrap_or(input.ifname)
            ),
        )),
        Mode::Overlay => Ok(Way::Overlay),
    }
}

/// Steps for this NIC. Carried out twice they change nothing the second time; a second plan holds at most sysctls, which
/// are not observed.
pub fn plan(input: &CoordinateInput<'_>) -> Result<Plan, Refusal> {
    let way = way(input)?;
    check_default_nic(input)?;
    let mut p = Plan::default();
    if way == Way::Nothing {
        return Ok(p);
    }
    if input.pod.link(input.ifname).is_none() {
        return Err(Refusal::missing("ifname", input.ifname, "the main plugin left no such link in the pod"));
    }
    mac_and_queue(input, &mut p);
    sysctls(input, &mut p);
    let first = input.pod_nics.first().is_none_or(|f| f == input.ifname);
    let node = routes::Node::of(input, way);
    if way == Way::Underlay && first {
        host_pair(input, &node, &mut p)?;
    }
    routes::pod(input, way, first, &node, &mut p)?;
    host_routes(input, way, first, &node, &mut p);
    Ok(p)
}

/// What is left of the NIC on the host: the pair (found by its mark), and the routes to its addresses, which carry no mark
/// but lie in our table. Nothing in the pod: it goes with its namespace, or the main plugin's DEL takes the NIC.
pub fn plan_del(owner: Owner, ips: &[IpAddr], host_rule_table: u32, host: &NetnsState) -> Plan {
    let alias = owner.alias();
    let ours =
        |l: &&model::observed::Link| l.alias.as_deref() == Some(alias.as_str()) && l.name.as_str().starts_with(HOST_VETH_PREFIX);
    let routes = host.routes.iter().filter(|r| r.table == host_rule_table && ips.iter().any(|ip| r.dst == Cidr::host(*ip)));
    let routes = routes.map(|r| Step::DelRoute { ns: Ns::Host, route: r.clone() });
    routes.chain(host.links.iter().filter(ours).map(|l| Step::DelLink { ns: Ns::Host, name: l.name.clone() })).collect()
}

/// Routes of our table on the host that lead to no living attachment's address.
pub fn plan_sweep(host_rule_table: u32, living: &[IpAddr], host: &NetnsState) -> Plan {
    let stale = |r: &&Route| r.table == host_rule_table && !living.iter().any(|ip| r.dst == Cidr::host(*ip));
    host.routes.iter().filter(stale).map(|r| Step::DelRoute { ns: Ns::Host, route: r.clone() }).collect()
}

fn check_default_nic(input: &CoordinateInput<'_>) -> Result<(), Refusal> {
    let Some(nic) = &input.settings.default_route_nic else { return Ok(()) };
    if !input.settings.default_route_nic_by_pod && input.pod_nics.len() < 2 {
        return Ok(());
    }
    if input.pod_nics.iter().chain(input.pod.links.iter().map(|l| &l.name)).any(|n| n == nic) {
        return Ok(());
    }
    let all = input.pod_nics.iter().map(IfName::as_str).collect::<Vec<_>>().join(", ");
    Err(Refusal::missing("default-route-nic", nic, format!("the pod has no such NIC, it has {all}")))
}

fn mac_and_queue(input: &CoordinateInput<'_>, p: &mut Plan) {
    let Some(link) = input.pod.link(input.ifname) else { return };
    let ns = Ns::Pod;
    if let (Some(want), Some(have)) = (pod_mac(input.settings, input.nic), link.mac)
        && want != have
    {
        let set = |mac| LinkSet { mac: Some(mac), ..LinkSet::default() };
        p.push(Step::SetLink { ns, name: link.name.clone(), set: set(want), was: set(have) });
        // The kernel makes the link-local address once, from the MAC of that moment.
        for a in input.pod.addrs_of(input.ifname).filter(|a| a.addr.ip() == eui64(have)) {
            p.push(Step::DelAddr { ns, dev: link.name.clone(), addr: a.addr });
            let addr = IfAddr::new(eui64(want), a.addr.prefix_len()).expect("a link-local address is an interface's");
            p.push(Step::AddAddr { ns, dev: link.name.clone(), addr, nodad: true });
        }
        p.push(Step::Announce { ns, dev: link.name.clone(), ips: input.nic.addrs.iter().map(IfAddr::ip).collect() });
    }
    if let (Some(want), have) = (input.settings.tx_queue_len, link.tx_queue_len)
        && have != Some(want)
    {
        let set = |q| LinkSet { tx_queue_len: q, ..LinkSet::default() };
        p.push(Step::SetLink { ns, name: link.name.clone(), set: set(Some(want)), was: set(have) });
    }
}

/// RFC 4291 appendix A.
fn eui64(mac: MacAddr) -> IpAddr {
    let m = mac.bytes();
    let mut o = [0u8; 16];
    (o[0], o[1]) = (0xfe, 0x80);
    o[8..].copy_from_slice(&[m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]);
    IpAddr::from(o)
}

fn sysctl(ns: Ns, key: String, value: impl ToString) -> Step {
    Step::SetSysctl { ns, key, value: value.to_string(), was: None }
}

fn sysctls(input: &CoordinateInput<'_>, p: &mut Plan) {
    let ns = Ns::Pod;
    if input.nic.addrs.iter().any(|a| !a.is_ipv4()) {
        p.push(sysctl(ns, format!("net/ipv6/conf/{}/disable_ipv6", input.ifname), 0));
    }
    if !input.nic.addrs.is_empty() {
        // Addresses are fixed; what a router on the wire announces would add others, and a second default route.
        p.push(sysctl(ns, format!("net/ipv6/conf/{}/accept_ra", input.ifname), 0));
    }
    if let Some(n) = input.settings.rp_filter {
        // The kernel takes the greater of `all` and the interface's own, which it inherited when it was made.
        p.push(sysctl(ns, "net/ipv4/conf/all/rp_filter".to_owned(), n));
        for l in input.pod.links.iter().filter(|l| l.kind != LinkKind::Loopback) {
            p.push(sysctl(ns, format!("net/ipv4/conf/{}/rp_filter", l.name), n));
        }
    }
}

/// Both ends' MACs follow from the attachment, so neighbour entries can be planned before the links are there.
pub(crate) fn pair_macs(owner: Owner) -> (MacAddr, MacAddr) {
    let id = owner.attachment.to_string();
    let byte = |i: usize| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).expect("an attachment id is hexadecimal");
    let tail = [byte(0), byte(1), byte(2), byte(3), byte(4)];
    let mac = |first| MacAddr::from_bytes([first, tail[0], tail[1], tail[2], tail[3], tail[4]]);
    // Locally administered, individual; one bit tells the ends apart.
    (mac(0x02), mac(0x06))
}

fn host_pair(input: &CoordinateInput<'_>, node: &routes::Node, p: &mut Plan) -> Result<(), Refusal> {
    let veth0 = IfName::new(VETH0).expect("a short name");
    let host_name = input.owner.attachment.link_name(HOST_VETH_PREFIX);
    let (host_mac, pod_mac) = pair_macs(input.owner);
    if input.pod.link(&veth0).is_none() {
        p.push(Step::AddVeth(Veth {
            host_name: host_name.clone(),
            pod_name: veth0.clone(),
            host_mac: Some(host_mac),
            pod_mac: Some(pod_mac),
            mtu: input.settings.veth_mtu,
            alias: input.owner.alias(),
        }));
        if node.has_v6 {
            p.push(sysctl(Ns::Pod, format!("net/ipv6/conf/{veth0}/disable_ipv6"), 0));
            p.push(sysctl(Ns::Host, format!("net/ipv6/conf/{host_name}/disable_ipv6"), 0));
        }
        for (ns, dev) in [(Ns::Pod, &veth0), (Ns::Host, &host_name)] {
            p.push(sysctl(ns, format!("net/ipv6/conf/{dev}/accept_ra"), 0));
        }
        if let Some(n) = input.settings.rp_filter {
            p.push(sysctl(Ns::Pod, format!("net/ipv4/conf/{veth0}/rp_filter"), n));
        }
        // Services and pods elsewhere are reached through the node; the key goes with the link.
        p.push(sysctl(Ns::Host, format!("net/ipv4/conf/{host_name}/forwarding"), 1));
    }
    for (ns, dev, state) in [(Ns::Host, &host_name, input.host), (Ns::Pod, &veth0, input.pod)] {
        if !state.link(dev).is_some_and(|l| l.up) {
            p.push(Step::SetLink { ns, name: dev.clone(), set: LinkSet::up(true), was: LinkSet::up(false) });
        }
    }
    if let Some(ip) = input.settings.veth_link_address {
        match IfAddr::new(ip, if ip.is_ipv4() { 32 } else { 128 }) {
            Err(e) => return Err(Refusal::invalid("vethLinkAddress", ip, e.to_string())),
            Ok(addr) if input.pod.addrs_of(&veth0).any(|a| a.addr == addr) => {}
            Ok(addr) => p.push(Step::AddAddr { ns: Ns::Pod, dev: veth0.clone(), addr, nodad: true }),
        }
    }
    for ip in node.on_veth0() {
        neighbour(p, Ns::Pod, input.pod, &veth0, ip, host_mac);
    }
    Ok(())
}

fn neighbour(p: &mut Plan, ns: Ns, state: &NetnsState, dev: &IfName, ip: IpAddr, mac: MacAddr) {
    if !state.neighbours.iter().any(|n| n.permanent && &n.dev == dev && n.ip == ip && n.mac == Some(mac)) {
        p.push(Step::AddNeighbour { ns, dev: dev.clone(), ip, mac });
    }
}

/// From the host to the NIC's addresses: the host cannot reach them by the physical NIC that the pod's is a child of.
fn host_routes(input: &CoordinateInput<'_>, way: Way, first: bool, node: &routes::Node, p: &mut Plan) {
    let table = input.settings.host_rule_table;
    for addr in &input.nic.addrs {
        let ip = addr.ip();
        let Some((dev, gw, mac)) = node.back_to_pod(input, way, first, ip) else { continue };
        let rule = Rule { priority: RULE_PREF, from: None, to: None, iif: None, fwmark: None, table, ipv4: ip.is_ipv4() };
        if !input.host.rules.contains(&rule)
            && !p.steps.iter().any(|s| matches!(s, Step::AddRule { ns: Ns::Host, rule: r } if *r == rule))
        {
            p.push(Step::AddRule { ns: Ns::Host, rule });
        }
        let route = Route::new(Cidr::host(ip), gw, dev.clone()).in_table(table);
        routes::put(p, Ns::Host, input.host, route, true);
        if let Some(mac) = mac {
            neighbour(p, Ns::Host, input.host, &dev, ip, mac);
        }
    }
}
