//! Addresses, routes and the rest of a NIC that is there: the same for every kind of link.

use model::observed::{Link, Observed};
use model::{MacAddr, Route};
use planner::step::LinkSet;
use planner::{Attach, Ns, Plan, Refusal, Step};

use crate::attach::gateway;

/// Least MTU with which the kernel gives a link IPv6 (RFC 8200, `IPV6_MIN_MTU`).
const IPV6_MIN_MTU: u32 = 1280;

/// The hardware address that was asked for, else one made of the first address (IPv4 before IPv6), else, for a link without
/// addresses, one made of the attachment's id: always known before the link exists, and the same when it is made again.
pub fn mac_of(attach: &Attach) -> MacAddr {
    match (attach.mac, attach.nic.addrs.first()) {
        (Some(mac), _) => mac,
        (None, Some(addr)) => MacAddr::from_ip(addr.ip()),
        (None, None) => mac_of_id(attach, 0x0e),
    }
}

/// For the host's end of a pair. First byte 0xfe: a switch that takes the lowest of its ports' addresses as its own (OVS
/// without `hwaddr`) never takes this one.
pub fn host_mac_of(attach: &Attach) -> MacAddr {
    mac_of_id(attach, 0xfe)
}

fn mac_of_id(attach: &Attach, first: u8) -> MacAddr {
    let digits = attach.owner.attachment.to_string();
    let byte = |i: usize| digits.get(2 * i..2 * i + 2).and_then(|d| u8::from_str_radix(d, 16).ok()).unwrap_or(0);
    MacAddr::from_bytes([first, byte(0), byte(1), byte(2), byte(3), byte(4)])
}

/// Refuses a name that the pod's namespace has already.
pub fn name_is_free(attach: &Attach, seen: &Observed) -> Result<(), Refusal> {
    match seen.pod.link(&attach.ifname) {
        None => Ok(()),
        Some(_) => Err(Refusal::conflict("CNI_IFNAME", &attach.ifname, "the container has an interface of that name already")),
    }
}

/// Steps from a link that was just made, down, to one that talks: addresses before it comes up, so that its first packet has
/// the right source (unless it is asked first whether they are free); routes after, for the kernel takes none through a link that is down. `mtu` is the link's.
pub fn configure(plan: &mut Plan, attach: &Attach, seen: &Observed, mtu: u32) {
    let (ns, dev) = (Ns::Pod, &attach.ifname);
    let sysctl = |key: &str, value: &str| Step::SetSysctl {
        ns,
        key: format!("net/ipv6/conf/{dev}/{key}"),
        value: value.to_owned(),
        was: None,
    };
    if attach.nic.has_ipam && mtu >= IPV6_MIN_MTU {
        // A router on the wire must not add addresses to a NIC whose addresses are given.
        plan.push(sysctl("accept_ra", "0"));
        if attach.nic.addrs.iter().any(|a| !a.is_ipv4()) {
            plan.push(sysctl("disable_ipv6", "0"));
        }
    }
    let up = Step::SetLink { ns, name: dev.clone(), set: LinkSet::up(true), was: LinkSet::up(false) };
    let addrs = attach.nic.addrs.iter().map(|addr| Step::AddAddr { ns, dev: dev.clone(), addr: *addr, nodad: true });
    if attach.probe.is_empty() {
        plan.steps.extend(addrs);
        plan.push(up);
    } else {
        // The link has to talk before it has an address.
        plan.push(up);
        plan.push(Step::Probe { ns, dev: dev.clone(), ask: attach.probe.clone() });
        plan.steps.extend(addrs);
    }
    for route in routes(attach) {
        if seen.pod.routes.iter().all(|r| !same_key(r, &route)) {
            plan.push(Step::AddRoute { ns, route });
        }
    }
    if !attach.nic.addrs.is_empty() {
        plan.push(Step::Announce { ns, dev: dev.clone(), ips: attach.nic.addrs.iter().map(|a| a.ip()).collect() });
    }
}

/// The routes as the IPAM means them, with next hops filled in.
pub fn routes(attach: &Attach) -> Vec<Route> {
    let nic = &attach.nic;
    nic.routes
        .iter()
        .map(|r| Route {
            dst: r.dst,
            gw: r.gw.or(gateway(nic.gateways, r.dst.is_ipv4())),
            dev: attach.ifname.clone(),
            src: None,
            table: r.table.unwrap_or(model::addr::TABLE_MAIN),
            metric: r.metric,
            mtu: r.mtu,
            advmss: r.advmss,
            onlink: false,
        })
        .collect()
}

/// A destination that another NIC leads to already keeps that route (the first NIC's default, mostly); which of two should win
/// is the coordinator's to decide, not that of whoever comes last.
fn same_key(a: &Route, b: &Route) -> bool {
    let metric = |r: &Route| r.metric.unwrap_or(if r.dst.is_ipv4() { 0 } else { 1024 });
    a.dst == b.dst && a.table == b.table && metric(a) == metric(b)
}

/// CHECK of what every NIC has: the link with its address and up, every address, every route. Routes may be in any table, for a
/// chained plugin may have moved them.
pub fn check<'a>(attach: &Attach, seen: &'a Observed, mac: Option<MacAddr>) -> Result<&'a Link, Refusal> {
    let dev = &attach.ifname;
    let link = seen.pod.link(dev).ok_or_else(|| Refusal::missing("interface", dev, "is not in the container"))?;
    if link.alias.as_deref() != Some(attach.owner.alias().as_str()) {
        return Err(Refusal::conflict(
            "interface",
            dev,
            format!("is not ours: its alias is {:?}", link.alias.as_deref().unwrap_or_default()),
        ));
    }
    if let (Some(want), Some(have)) = (mac, link.mac)
        && want != have
    {
        return Err(Refusal::conflict("mac", have, format!("should be {want}")));
    }
    if !link.up {
        return Err(Refusal::conflict("interface", dev, "is down"));
    }
    for addr in &attach.nic.addrs {
        match seen.pod.addrs_of(dev).find(|a| a.addr == *addr) {
            None => return Err(Refusal::missing("address", addr, format!("is not on {dev}"))),
            Some(a) if a.dad_failed => {
                return Err(Refusal::conflict(
                    "address",
                    addr,
                    "duplicate address detection failed: someone else on the wire has it",
                ));
            }
            Some(_) => {}
        }
    }
    for route in routes(attach) {
        if !seen.pod.routes.iter().any(|r| r.dst == route.dst && r.gw == route.gw && r.dev == route.dev) {
            return Err(Refusal::missing("route", &route, "is in no table"));
        }
    }
    Ok(link)
}
