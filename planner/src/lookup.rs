//! The kernel's route choice, on values: rules by preference, then the longest prefix, then the least metric.
//! Does not know marks' origin, multipath weights or cached exceptions.

use std::net::IpAddr;

use model::addr::TABLE_MAIN;
use model::observed::NetnsState;
use model::{Cidr, IfName, Route};

/// What the kernel uses where a route names no priority: 0 for IPv4, `IP6_RT_PRIO_USER` for IPv6.
pub fn metric(route: &Route) -> u32 {
    route.metric.filter(|m| *m != 0).unwrap_or(if route.dst.is_ipv4() { 0 } else { 1024 })
}

/// In one table.
pub fn in_table(routes: &[Route], table: u32, dst: IpAddr) -> Option<&Route> {
    let matching = routes.iter().filter(|r| r.table == table && r.dst.contains(dst));
    matching.min_by_key(|r| (std::cmp::Reverse(r.dst.prefix_len()), metric(r)))
}

/// For a packet of the namespace's own with this source (none: not chosen yet), or one that came in by `iif`.
pub fn route<'a>(ns: &'a NetnsState, src: Option<IpAddr>, dst: IpAddr, iif: Option<&IfName>) -> Option<&'a Route> {
    let mut rules: Vec<_> = ns.rules.iter().filter(|r| r.ipv4 == dst.is_ipv4() && r.fwmark.is_none()).collect();
    rules.sort_by_key(|r| r.priority);
    let fits = |net: &Option<Cidr>, ip: Option<IpAddr>| net.is_none_or(|n| ip.is_some_and(|ip| n.contains(ip)));
    let mut tables: Vec<u32> = rules
        .into_iter()
        .filter(|r| fits(&r.from, src) && fits(&r.to, Some(dst)) && r.iif.as_ref().is_none_or(|i| Some(i) == iif))
        .map(|r| r.table)
        .collect();
    // Observers may leave the kernel's own rules out.
    if !tables.contains(&TABLE_MAIN) {
        tables.push(TABLE_MAIN);
    }
    tables.into_iter().find_map(|t| in_table(&ns.routes, t, dst))
}
