//! Ranges and windows against naive sets of addresses.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipam::window::{BLIND_TRIES, free_of_chunk};
use ipam::{Family, Learned, LeaseState, Picker, Ranges, Share, Window, counts, spares_per_node};
use proptest::prelude::*;

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn set(r: &Ranges) -> BTreeSet<IpAddr> {
    r.iter().collect()
}

fn v4(n: u32) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a06_0000 + n))
}

fn v6(n: u32) -> IpAddr {
    IpAddr::V6(std::net::Ipv6Addr::from_bits(0xfd00_0000_0000_0000_0000_0000_0000_0000 + u128::from(n)))
}

/// Entries over a space of 1024 addresses, so that they meet often.
fn entries(of: fn(u32) -> IpAddr) -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec((0u32..1024, 0u32..80), 0..8).prop_map(move |v| {
        v.into_iter().map(|(a, n)| if n == 0 { of(a).to_string() } else { format!("{}-{}", of(a), of(a + n)) }).collect()
    })
}

fn naive(entries: &[String]) -> BTreeSet<IpAddr> {
    let bits = |s: &str| match ip(s) {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    let mut out = BTreeSet::new();
    for e in entries {
        let (a, b) = e.split_once('-').unwrap_or((e, e));
        for n in bits(a)..=bits(b) {
            out.insert(if ip(a).is_ipv4() { IpAddr::V4((n as u32).into()) } else { IpAddr::V6(n.into()) });
        }
    }
    out
}

fn laws(family: Family, a: &[String], b: &[String]) {
    let (ra, rb) = (Ranges::parse(a, family, None).unwrap(), Ranges::parse(b, family, None).unwrap());
    let (na, nb) = (naive(a), naive(b));
    assert_eq!(set(&ra), na);
    assert_eq!(ra.len(), na.len() as u128);
    assert_eq!(set(&ra.subtract(&rb)), &na - &nb);
    assert_eq!(set(&ra.union(&rb)), &na | &nb);
    assert_eq!(set(&ra.intersect(&rb)), &na & &nb);
    assert_eq!(ra.intersects(&rb), !na.is_disjoint(&nb));
    for (i, x) in na.iter().enumerate() {
        assert_eq!(ra.nth(i as u128), Some(*x));
    }
    assert_eq!(ra.nth(na.len() as u128), None);
    assert!(nb.iter().all(|x| ra.contains(*x) == na.contains(x)));
    let from_chunks: BTreeSet<IpAddr> =
        ra.chunks().flat_map(|c| free_of_chunk(&ra, c, &BTreeSet::new()).iter().collect::<Vec<_>>()).collect();
    assert_eq!(from_chunks, na);
    let chunks: Vec<_> = ra.chunks().collect();
    assert!(chunks.windows(2).all(|w| w[0] < w[1]));
    if !na.is_empty() {
        let text = ra.to_string();
        assert_eq!(Ranges::parse(&text.split(',').collect::<Vec<_>>(), family, None).unwrap(), ra);
    }
}

proptest! {
    #[test]
    fn ranges_are_sets(a in entries(v4), b in entries(v4), c in entries(v6), d in entries(v6)) {
        laws(Family::V4, &a, &b);
        laws(Family::V6, &c, &d);
    }

    #[test]
    fn a_window_holds_exactly_the_free_addresses(a in entries(v4), leased in proptest::collection::btree_set(0u32..1100, 0..300)) {
        let all = Ranges::parse(&a, Family::V4, None).unwrap();
        let leased: BTreeSet<IpAddr> = leased.into_iter().map(v4).collect();
        let w = Window::build(&all, &leased);
        let free: BTreeSet<IpAddr> = w.chunks.iter().flat_map(|c| c.iter().collect::<Vec<_>>()).collect();
        prop_assert_eq!(&free, &(&set(&all) - &leased));
        prop_assert_eq!(w.count() as usize, free.len());
        prop_assert!(free.iter().all(|x| w.is_free(*x)));
        let c = counts(&all, leased.iter().map(|x| (*x, LeaseState::Held)));
        prop_assert_eq!(c.free, free.len() as u128);
        prop_assert_eq!(c.allocated as usize, leased.len());
    }

    /// Whatever the random numbers: every free address that was not learnt to be taken comes once, no other ever, and those of
    /// the first positions come first.
    #[test]
    fn a_picker_with_a_window_gives_each_free_address_once(a in entries(v4), leased in proptest::collection::btree_set(0u32..1100, 0..300), known in proptest::collection::vec(0u32..1100, 0..20), place in 0usize..5, seed: u64) {
        let all = Ranges::parse(&a, Family::V4, None).unwrap();
        let w = Window::build(&all, &leased.into_iter().map(v4).collect());
        let mut learned = Learned::default();
        known.iter().for_each(|n| learned.conflict(v4(*n)));
        let first = Share { place, of: 5 }.positions(&w, &all);
        let mut rng = splitmix(seed);
        let mut picker = Picker::new(Some(&w), &all, &learned).first(first.clone());
        let picked: Vec<IpAddr> = std::iter::from_fn(|| picker.next(&mut rng)).collect();
        let free: Vec<(usize, IpAddr)> = w.chunks.iter().enumerate().flat_map(|(c, chunk)| {
            (0..=255u8).filter(|i| chunk.is_free(*i)).map(move |i| (c * 256 + usize::from(i), chunk.iter().find(|x| u8_of(*x) == i).unwrap()))
        }).filter(|(_, x)| !learned.contains(*x)).collect();
        prop_assert_eq!(picked.len(), free.len());
        prop_assert_eq!(picked.iter().copied().collect::<BTreeSet<_>>(), free.iter().map(|(_, x)| *x).collect());
        let own: Vec<IpAddr> = free.iter().filter(|(k, _)| first.contains(k)).map(|(_, x)| *x).collect();
        prop_assert_eq!(&picked[..own.len()], &own[..]);
    }
}

fn u8_of(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(x) => x.octets()[3],
        IpAddr::V6(x) => x.octets()[15],
    }
}

fn splitmix(mut s: u64) -> impl FnMut() -> u64 {
    move || {
        s = s.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = s;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[test]
fn the_whole_of_ipv6_and_a_full_64_are_no_burden() {
    let all = Ranges::of_net(&"::/0".parse().unwrap());
    assert_eq!(all.len(), u128::MAX);
    assert_eq!(all.nth(u128::MAX), Some(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")));
    let hole = Ranges::parse(&["::-ffff::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], Family::V6, None).unwrap();
    assert!(!all.subtract(&hole).contains(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")));
    let net = "fd00:10:6::/64".parse().unwrap();
    let half = Ranges::of_net(&net)
        .subtract(&Ranges::parse(&["fd00:10:6::-fd00:10:6:0:7fff:ffff:ffff:ffff"], Family::V6, Some(&net)).unwrap());
    assert_eq!(half.len(), 1 << 63);
    assert_eq!(Window::build(&half, &BTreeSet::new()).chunks.len(), 64);
    assert_eq!(Ranges::of_net(&"10.0.0.0/8".parse().unwrap()).chunks().count(), 65536);
}

#[test]
fn entries_are_parsed_strictly_and_the_error_names_entry_and_rule() {
    let net = "10.6.0.0/16".parse().unwrap();
    let err = |e: &str| Ranges::parse(&[e], Family::V4, Some(&net)).unwrap_err().to_string();
    assert_eq!(err("10.6.0.9-10.6.0.1"), "\"10.6.0.9-10.6.0.1\" ends before it begins");
    assert_eq!(err("10.7.0.1"), "\"10.7.0.1\" is not inside the subnet 10.6.0.0/16");
    assert_eq!(err("10.6.255.250-10.7.0.1"), "\"10.6.255.250-10.7.0.1\" is not inside the subnet 10.6.0.0/16");
    assert_eq!(err("10.6.0.1-fd00::1"), "\"10.6.0.1-fd00::1\" mixes IPv4 and IPv6");
    assert_eq!(err("fd00::1"), "\"fd00::1\" is not an IPv4 address");
    for bad in
        ["", "-", "10.6.0.1 - 10.6.0.2", "10.6.0.1-", "10.6.0.1-2", "10.6.0.01", "10.6.0.1-10.6.0.2-10.6.0.3", "10.6.0.0/24"]
    {
        assert_eq!(err(bad), format!("{bad:?} is neither an address nor a range \"first-last\" without spaces"));
    }
}

#[test]
fn without_a_window_sixteen_random_addresses_are_tried() {
    let all = Ranges::of_net(&"fd00::/64".parse().unwrap());
    let learned = Learned::default();
    let mut rng = splitmix(7);
    let mut p = Picker::new(None, &all, &learned);
    let picked: BTreeSet<IpAddr> = std::iter::from_fn(|| p.next(&mut rng)).collect();
    assert_eq!(picked.len(), BLIND_TRIES as usize);
    assert!(picked.iter().all(|x| all.contains(*x)));
    // A set of one address: found once, never twice, and it ends.
    let one = Ranges::parse(&["10.6.0.5"], Family::V4, None).unwrap();
    let mut p = Picker::new(None, &one, &learned);
    assert_eq!(p.next(&mut rng), Some(ip("10.6.0.5")));
    assert_eq!(p.next(&mut rng), None);
    let none = Ranges::empty(Family::V4);
    assert_eq!(Picker::new(None, &none, &learned).next(&mut rng), None);
}

#[test]
fn picks_spread_over_the_window() {
    let all = Ranges::parse(&["10.6.0.0-10.6.3.255"], Family::V4, None).unwrap();
    let w = Window::build(&all, &BTreeSet::new());
    let learned = Learned::default();
    let mut rng = splitmix(1);
    let firsts: BTreeSet<IpAddr> = (0..200).filter_map(|_| Picker::new(Some(&w), &all, &learned).next(&mut rng)).collect();
    assert!(firsts.len() > 150, "200 picks of 1024 gave {} addresses", firsts.len());
}

#[test]
fn a_window_from_before_a_range_was_cut_does_not_bring_the_cut_part_back() {
    let before = Ranges::parse(&["10.6.0.1-10.6.0.9"], Family::V4, None).unwrap();
    let w = Window::build(&before, &BTreeSet::new());
    let after = Ranges::parse(&["10.6.0.1-10.6.0.2"], Family::V4, None).unwrap();
    let learned = Learned::default();
    let mut rng = splitmix(3);
    let mut p = Picker::new(Some(&w), &after, &learned);
    assert_eq!(std::iter::from_fn(|| p.next(&mut rng)).count(), 2);
}

#[test]
fn what_was_learnt_is_kept_until_the_window_knows_it_or_contradicts_it_twice() {
    let all = Ranges::parse(&["10.6.0.1-10.6.0.9"], Family::V4, None).unwrap();
    let x = ip("10.6.0.3");
    let free = Window::build(&all, &BTreeSet::new());
    let taken = Window::build(&all, &BTreeSet::from([x]));
    let mut l = Learned::default();
    l.conflict(x);
    l.window_changed(&free);
    assert!(l.contains(x), "that window may be older than the lease");
    l.window_changed(&free);
    assert!(l.is_empty());
    l.conflict(x);
    l.window_changed(&taken);
    assert!(l.is_empty());
}

#[test]
fn spares_follow_the_formula() {
    for (free, nodes, want) in
        [(0, 10, 0), (39, 10, 0), (40, 10, 1), (320, 10, 8), (100_000, 10, 8), (u128::MAX, 1, 8), (5, 0, 0), (7, 1, 1)]
    {
        assert_eq!(spares_per_node(free, nodes), want, "{free} free, {nodes} nodes");
    }
}

#[test]
fn counts_tell_states_apart() {
    let all = Ranges::parse(&["10.6.0.1-10.6.0.10"], Family::V4, None).unwrap();
    let leases = [
        ("10.6.0.1", LeaseState::Held),
        ("10.6.0.2", LeaseState::Spare),
        ("10.6.0.3", LeaseState::Unreachable),
        ("10.6.0.4", LeaseState::Kept),
        ("10.6.9.9", LeaseState::Held),
    ];
    let c = counts(&all, leases.map(|(a, s)| (ip(a), s)));
    assert_eq!((c.total, c.allocated, c.spare, c.unreachable, c.kept, c.free), (10, 2, 1, 1, 1, 6));
}
