//! From the kernel's messages to `model::observed`. Reads attributes directly rather than into a type for everything: only
//! a dozen matter, and whatever else a message holds may be of any shape. Attribute numbers: linux/if_link.h,
//! linux/if_addr.h, linux/rtnetlink.h, linux/fib_rules.h, linux/neighbour.h.

use std::collections::BTreeMap;

use model::observed::{Addr, Link, LinkKind, MacvlanMode, Neighbour};
use model::{Cidr, IfAddr, IfName, MacAddr, Route, Rule};
use nix::libc;

use crate::wire::{attributes, i32_of, ip_of, string_of, u8_of, u16_of, u32_of};

/// Names of links by index, to name what the kernel numbers.
pub(crate) type Names = BTreeMap<u32, IfName>;

const ARPHRD_LOOPBACK: u16 = 772;

/// `struct ifinfomsg`
pub(crate) fn link(body: &[u8]) -> Option<Link> {
    let flags = u32_of(body.get(8..)?)?;
    let set = |flag: libc::c_int| flags & flag.cast_unsigned() != 0;
    let mut link = Link {
        index: u32_of(body.get(4..)?)?,
        // Replaced below: a link always has a name.
        name: IfName::new("?").expect("one byte"),
        kind: if u16_of(body.get(2..)?)? == ARPHRD_LOOPBACK { LinkKind::Loopback } else { LinkKind::Physical },
        mac: None,
        permanent_mac: None,
        mtu: 0,
        max_mtu: None,
        up: set(libc::IFF_UP),
        carrier: set(libc::IFF_LOWER_UP),
        alias: None,
        link_index: None,
        link_netnsid: None,
        master: None,
        altnames: Vec::new(),
        tx_queue_len: None,
    };
    let mut name = None;
    for (kind, v) in attributes(body.get(16..)?) {
        match kind {
            1 => link.mac = mac(v),
            3 => name = string_of(v).and_then(|n| IfName::new(n).ok()),
            4 => link.mtu = u32_of(v)?,
            5 => link.link_index = u32_of(v).filter(|i| *i != 0),
            10 => link.master = u32_of(v).filter(|i| *i != 0),
            13 => link.tx_queue_len = u32_of(v),
            18 => link.kind = link_kind(v).unwrap_or(link.kind),
            20 => link.alias = string_of(v),
            37 => link.link_netnsid = i32_of(v).filter(|i| *i >= 0),
            51 => link.max_mtu = u32_of(v).filter(|m| *m != 0),
            52 => link.altnames = attributes(v).filter(|(k, _)| *k == 53).filter_map(|(_, v)| string_of(v)).collect(),
            54 => link.permanent_mac = mac(v).filter(|m| m.bytes() != [0; 6]),
            _ => {}
        }
    }
    link.name = name?;
    Some(link)
}

fn mac(v: &[u8]) -> Option<MacAddr> {
    v.try_into().ok().map(MacAddr::from_bytes)
}

/// `IFLA_LINKINFO`
fn link_kind(info: &[u8]) -> Option<LinkKind> {
    let kind = attributes(info).find(|(k, _)| *k == 1).and_then(|(_, v)| string_of(v))?;
    let data = |wanted: u16| {
        let (_, data) = attributes(info).find(|(k, _)| *k == 2)?;
        attributes(data).find(|(k, _)| *k == wanted).map(|(_, v)| v)
    };
    Some(match kind.as_str() {
        "veth" => LinkKind::Veth,
        "bridge" => LinkKind::Bridge,
        "bond" => LinkKind::Bond,
        "tun" => LinkKind::Tun,
        "vlan" => LinkKind::Vlan { id: data(1).and_then(u16_of)? },
        "macvlan" => match data(1).and_then(u32_of)? {
            1 => LinkKind::Macvlan { mode: MacvlanMode::Private },
            2 => LinkKind::Macvlan { mode: MacvlanMode::Vepa },
            4 => LinkKind::Macvlan { mode: MacvlanMode::Bridge },
            8 => LinkKind::Macvlan { mode: MacvlanMode::Passthru },
            // `source`, which the reference plugin lacks.
            _ => LinkKind::Other(kind),
        },
        _ => LinkKind::Other(kind),
    })
}

/// `struct ifaddrmsg`
pub(crate) fn addr(body: &[u8], names: &Names) -> Option<Addr> {
    let prefix_len = u8_of(body.get(1..)?)?;
    let mut flags = u32::from(u8_of(body.get(2..)?)?);
    let scope = u8_of(body.get(3..)?)?;
    let index = u32_of(body.get(4..)?)?;
    let (mut address, mut local) = (None, None);
    for (kind, v) in attributes(body.get(8..)?) {
        match kind {
            1 => address = ip_of(v),
            // Where both are there, `IFA_ADDRESS` is the far end of a point-to-point link.
            2 => local = ip_of(v),
            8 => flags = u32_of(v)?,
            _ => {}
        }
    }
    Some(Addr {
        dev: names.get(&index)?.clone(),
        addr: IfAddr::new(local.or(address)?, prefix_len).ok()?,
        scope_link: scope == libc::RT_SCOPE_LINK,
        permanent: flags & libc::IFA_F_PERMANENT != 0,
        tentative: flags & libc::IFA_F_TENTATIVE != 0,
        dad_failed: flags & libc::IFA_F_DADFAILED != 0,
    })
}

const RTN_UNICAST: u8 = 1;
const RTM_F_CLONED: u32 = 0x200;
const RTNH_F_ONLINK: u32 = 4;
const RT_TABLE_LOCAL: u32 = 255;
/// `IP6_RT_PRIO_USER` of net/ip6_route.h
const METRIC_V6: u32 = 1024;

/// `struct rtmsg`. Several next hops give several routes, alike but for these. An IPv6 metric of 1024 is none: it is what
/// the kernel gives a route that asks for none, so that a route reads back as it was added.
pub(crate) fn routes(body: &[u8], names: &Names) -> Option<Vec<Route>> {
    let ipv4 = match i32::from(u8_of(body)?) {
        libc::AF_INET => true,
        libc::AF_INET6 => false,
        _ => return None,
    };
    let [_, dst_len, src_len, _, table, _, _, kind] = *body.first_chunk::<8>()?;
    let flags = u32_of(body.get(8..)?)?;
    if kind != RTN_UNICAST || flags & RTM_F_CLONED != 0 || src_len != 0 {
        return None;
    }
    let mut table = u32::from(table);
    let mut dst = if ipv4 { Cidr::default_v4() } else { Cidr::default_v6() };
    let mut hops = Vec::new();
    let (mut src, mut metric, mut mtu, mut advmss) = (None, None, None, None);
    let attrs = body.get(12..)?;
    for (kind, v) in attributes(attrs) {
        match kind {
            1 => dst = Cidr::new(ip_of(v)?, dst_len).ok()?,
            6 => metric = u32_of(v).filter(|m| *m != if ipv4 { 0 } else { METRIC_V6 }),
            7 => src = ip_of(v),
            8 => {
                for (kind, v) in attributes(v) {
                    match kind {
                        2 => mtu = u32_of(v),
                        8 => advmss = u32_of(v),
                        _ => {}
                    }
                }
            }
            9 => hops = next_hops(v),
            15 => table = u32_of(v)?,
            _ => {}
        }
    }
    if table == RT_TABLE_LOCAL {
        return None;
    }
    if hops.is_empty() {
        let oif = attributes(attrs).find(|(k, _)| *k == 4).and_then(|(_, v)| u32_of(v))?;
        hops.push((oif, gateway(attrs), flags));
    }
    let route = |(oif, gw, flags): (u32, _, u32)| {
        let dev = names.get(&oif)?.clone();
        Some(Route { dst, gw, dev, src, table, metric, mtu, advmss, onlink: flags & RTNH_F_ONLINK != 0 })
    };
    Some(hops.into_iter().filter_map(route).collect())
}

/// `RTA_GATEWAY`, or `RTA_VIA` (family, address) where the next hop is of the other family.
fn gateway(attrs: &[u8]) -> Option<std::net::IpAddr> {
    attributes(attrs).find_map(|(kind, v)| match kind {
        5 => ip_of(v),
        18 => v.get(2..).and_then(ip_of),
        _ => None,
    })
}

/// `struct rtnexthop`s: length, flags, weight, index, attributes.
fn next_hops(mut v: &[u8]) -> Vec<(u32, Option<std::net::IpAddr>, u32)> {
    let mut out = Vec::new();
    while let (Some(len), Some(flags), Some(oif)) = (u16_of(v), v.get(2), v.get(4..).and_then(u32_of)) {
        let len = usize::from(len);
        let Some(attrs) = v.get(8..len) else { break };
        out.push((oif, gateway(attrs), u32::from(*flags)));
        v = v.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;
const FRA_NONE: u32 = u32::MAX;

/// `struct fib_rule_hdr`. None where the rule has an action or a selector that `Rule` has no word for.
pub(crate) fn rule(body: &[u8]) -> Option<Rule> {
    let [family, dst_len, src_len, tos, table, _, _, action] = *body.first_chunk::<8>()?;
    let flags = u32_of(body.get(8..)?)?;
    let ipv4 = match i32::from(family) {
        libc::AF_INET => true,
        libc::AF_INET6 => false,
        _ => return None,
    };
    if action != FR_ACT_TO_TBL || flags & FIB_RULE_INVERT != 0 || tos != 0 {
        return None;
    }
    let mut rule = Rule { priority: 0, from: None, to: None, iif: None, fwmark: None, table: table.into(), ipv4 };
    for (kind, v) in attributes(body.get(12..)?) {
        match kind {
            1 => rule.to = Some(Cidr::new(ip_of(v)?, dst_len).ok()?),
            2 => rule.from = Some(Cidr::new(ip_of(v)?, src_len).ok()?),
            3 => rule.iif = Some(IfName::new(string_of(v)?).ok()?),
            6 => rule.priority = u32_of(v)?,
            10 => rule.fwmark = Some(u32_of(v)?).filter(|m| *m != 0),
            15 => rule.table = u32_of(v)?,
            // suppress_ifgroup, suppress_prefixlength: there with "none" in every rule
            13 | 14 if u32_of(v)? == FRA_NONE => {}
            // A mask that leaves bits out.
            16 if u32_of(v)? == u32::MAX || u32_of(v)? == 0 => {}
            // l3mdev
            19 if u8_of(v)? == 0 => {}
            // realms, tun_id, suppressors, masks, oif, l3mdev, uids, protocol and port selectors
            11..=14 | 16 | 17 | 19 | 20 | 22..=30 => return None,
            _ => {}
        }
    }
    Some(rule)
}

const NUD_PERMANENT: u16 = 0x80;

/// `struct ndmsg`, permanent ones only.
pub(crate) fn neighbour(body: &[u8], names: &Names) -> Option<Neighbour> {
    let index = u32_of(body.get(4..)?)?;
    let state = u16_of(body.get(8..)?)?;
    let (mut ip, mut lladdr) = (None, None);
    for (kind, v) in attributes(body.get(12..)?) {
        match kind {
            1 => ip = ip_of(v),
            2 => lladdr = mac(v),
            _ => {}
        }
    }
    let permanent = state & NUD_PERMANENT != 0;
    permanent.then_some(())?;
    Some(Neighbour { dev: names.get(&index)?.clone(), ip: ip?, mac: lladdr, permanent })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Attributes that are well formed but for their contents, so that the readers are reached.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let header = prop::collection::vec(any::<u8>(), 0..17);
        let attr = (0u16..60, prop::collection::vec(any::<u8>(), 0..24));
        (header, prop::collection::vec(attr, 0..8), any::<bool>()).prop_map(|(mut out, attrs, v4)| {
            if let Some(family) = out.first_mut() {
                *family = if v4 { 2 } else { 10 };
            }
            for (kind, value) in attrs {
                out.extend((u16::try_from(value.len()).expect("below 24") + 4).to_ne_bytes());
                out.extend(kind.to_ne_bytes());
                out.extend(&value);
                out.resize(out.len().next_multiple_of(4), 0);
            }
            out
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn no_message_makes_a_reader_panic(bytes in prop_oneof![message(), prop::collection::vec(any::<u8>(), 0..120)]) {
            let names: Names = [(1, IfName::new("lo").expect("a name"))].into();
            let _ = (link(&bytes), addr(&bytes, &names), routes(&bytes, &names), rule(&bytes), neighbour(&bytes, &names));
            let _ = crate::wire::messages(&bytes);
        }
    }
}
