//! Pools: lines `subnet X`, `ip A[-B]`, `ex A[-B]`, `gw A`, `route DST GW`, `version N`, `multus NAME` make a SpiderIPPool. What it gives
//! out is compared with a naive set of addresses where the subnet is small, and with the laws of sets where it is not.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::SpiderIPPool;
use api::spider::{PoolRoute, SpiderIPPoolSpec};
use ipam::{Family, Pool, Ranges};

/// Subnets of at most so many host bits are written out address by address.
const SMALL: u8 = 10;

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let spec = spec(text);
    let object = SpiderIPPool::new("pool", spec.clone());
    match api::convert::pool(&object) {
        Err(e) => {
            let field = e.field.strip_prefix("spec.").unwrap_or_default();
            let known = ["subnet", "ipVersion", "ips[", "excludeIPs[", "gateway", "routes[", "multusName["];
            assert!(known.iter().any(|k| field.starts_with(k)) && !e.rule.is_empty(), "{e:?} names no field");
            let mut values = [&spec.ips[..], &spec.exclude_ips[..], &spec.multus_name[..]].concat();
            values.extend(spec.routes.iter().flat_map(|r| [r.dst.clone(), r.gw.clone()]));
            values.extend([spec.subnet.clone(), spec.gateway.clone().unwrap_or_default()]);
            values.extend(spec.ip_version.map(|v| v.to_string()));
            // An address may be told in its short form.
            let canonical = |v: &String| v.parse::<IpAddr>().is_ok_and(|ip| ip.to_string() == e.value);
            assert!(values.iter().any(|v| *v == e.value || canonical(v)), "{e:?} tells a value that nobody wrote");
        }
        Ok(pool) => {
            rules(&pool, &spec);
            laws(&pool, &spec);
            let width = Family::of_net(&pool.subnet).width();
            if width - pool.subnet.prefix_len() <= SMALL {
                naive(&pool, &spec);
            }
        }
    }
}

fn spec(text: &str) -> SpiderIPPoolSpec {
    let mut spec = SpiderIPPoolSpec::default();
    // Enough for every rule, few enough for a fast run.
    for line in text.lines().take(24) {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "subnet" => spec.subnet = value.to_owned(),
            "ip" => spec.ips.push(value.to_owned()),
            "ex" => spec.exclude_ips.push(value.to_owned()),
            "gw" => spec.gateway = Some(value.to_owned()),
            "multus" => spec.multus_name.push(value.to_owned()),
            "version" => spec.ip_version = value.parse().ok(),
            "route" => {
                let (dst, gw) = value.split_once(' ').unwrap_or((value, ""));
                spec.routes.push(PoolRoute { dst: dst.to_owned(), gw: gw.to_owned() });
            }
            _ => {}
        }
    }
    spec
}

fn rules(pool: &Pool, spec: &SpiderIPPoolSpec) {
    let family = pool.family();
    assert_eq!(pool.ranges.family(), family);
    assert!(pool.gateway.is_none_or(|g| pool.subnet.contains(g) && !pool.ranges.contains(g)));
    assert_eq!(pool.routes.len(), spec.routes.len());
    for (dst, gw) in &pool.routes {
        assert!(dst.is_ipv4() == (family == Family::V4) && pool.subnet.contains(*gw) && !dst.is_default());
    }
}

fn laws(pool: &Pool, spec: &SpiderIPPoolSpec) {
    let family = pool.family();
    let parse = |entries: &[String]| Ranges::parse(entries, family, Some(&pool.subnet)).expect("the pool took them");
    let (ips, excluded) = (parse(&spec.ips), parse(&spec.exclude_ips));
    let (both, either, left) = (ips.intersect(&excluded), ips.union(&excluded), ips.subtract(&excluded));
    assert!(!left.intersects(&excluded) && left.intersect(&ips) == left);
    assert_eq!(left.union(&both), ips);
    assert_eq!(either.subtract(&excluded), left);
    assert_eq!(both, excluded.intersect(&ips));
    if either.len() < u128::MAX / 4 {
        assert_eq!(either.len() + both.len(), ips.len() + excluded.len());
        assert_eq!(left.len() + both.len(), ips.len());
    }
    assert_eq!(pool.ranges.subtract(&left), Ranges::empty(family), "nothing comes of nothing");
    for ranges in [&ips, &excluded, &both, &either, &left, &pool.ranges] {
        ends(ranges, pool);
    }
}

/// Counting, finding and writing agree with each other at the ends of a set.
fn ends(ranges: &Ranges, pool: &Pool) {
    let len = ranges.len();
    assert_eq!((len == 0, ranges.nth(0)), (ranges.is_empty(), ranges.iter().next()));
    if len < u128::MAX {
        assert_eq!(ranges.nth(len), None);
    }
    for n in [0, 1, len / 2, len.saturating_sub(2), len.saturating_sub(1)].into_iter().filter(|n| *n < len) {
        let ip = ranges.nth(n).expect("there are as many");
        assert!(ranges.contains(ip) && pool.subnet.contains(ip));
        let bits = ranges.chunk_bits(ip);
        let at = last_byte(ip);
        assert!(bits[usize::from(at) / 8] & (1 << (at % 8)) != 0, "{ip} is not in its own chunk");
    }
    if !ranges.is_empty() {
        let text = ranges.to_string();
        let entries: Vec<&str> = text.split(',').collect();
        assert_eq!(Ranges::parse(&entries, ranges.family(), Some(&pool.subnet)).as_ref(), Ok(ranges), "{text}");
    }
}

fn naive(pool: &Pool, spec: &SpiderIPPoolSpec) {
    let v4 = pool.family() == Family::V4;
    let host_bits = pool.family().width() - pool.subnet.prefix_len();
    let first = number(pool.subnet.ip());
    let last = first + ((1u128 << host_bits) - 1);
    let mut all = BTreeSet::new();
    let each = |entry: &String| {
        let mut ends = entry.split('-').map(|e| number(e.parse().expect("the pool took it")));
        let a = ends.next().expect("split gives one at least");
        let b = ends.next().unwrap_or(a);
        (a..=b).collect::<Vec<_>>()
    };
    all.extend(spec.ips.iter().flat_map(each));
    for n in spec.exclude_ips.iter().flat_map(each) {
        all.remove(&n);
    }
    if host_bits >= 2 {
        all.remove(&first);
        if v4 {
            all.remove(&last);
        }
    }
    let ip = |n: u128| if v4 { IpAddr::V4(Ipv4Addr::from_bits(n as u32)) } else { IpAddr::V6(Ipv6Addr::from_bits(n)) };
    let found: Vec<IpAddr> = pool.ranges.iter().collect();
    assert_eq!(found, all.iter().map(|n| ip(*n)).collect::<Vec<_>>());
    assert_eq!(pool.ranges.len(), all.len() as u128);
    for (i, n) in all.iter().enumerate() {
        assert_eq!(pool.ranges.nth(i as u128), Some(ip(*n)));
    }
    for n in first..=last {
        assert_eq!(pool.ranges.contains(ip(n)), all.contains(&n), "{}", ip(n));
    }
    let chunks: BTreeSet<u128> = all.iter().map(|n| n >> 8).collect();
    assert_eq!(pool.ranges.chunks().map(number).collect::<Vec<_>>(), chunks.iter().map(|c| c << 8).collect::<Vec<_>>());
    for chunk in chunks {
        let bits = pool.ranges.chunk_bits(ip(chunk << 8));
        for i in 0..256u128 {
            let set = bits[(i / 8) as usize] & (1 << (i % 8)) != 0;
            assert_eq!(set, all.contains(&((chunk << 8) + i)));
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn last_byte(ip: IpAddr) -> u8 {
    (number(ip) & 0xff) as u8
}
