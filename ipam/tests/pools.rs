//! Pools, their choice, and fixed addresses: table tests.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use ipam::choice::glob;
use ipam::fixed::{Controller, one_of_each_family, ordinal};
use ipam::{
    Ask, Decision, Family, FamilyNames, Holder, Identity, IdentityKind, Lease, Me, Name, NicEntry, NicOfPod, NicPools, Pool,
    PoolSpec, Pools, Quarantine, Ranges, Sources, check_request, choose, decide,
};
use proptest::prelude::*;

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn spec(name: &str, subnet: &str, ips: &[&str]) -> PoolSpec {
    PoolSpec { name: name.into(), subnet: subnet.into(), ips: strings(ips), domain: "default".into(), ..PoolSpec::default() }
}

fn strings(s: &[&str]) -> Vec<String> {
    s.iter().map(|s| (*s).to_owned()).collect()
}

fn pool(name: &str, ips: &[&str], change: impl FnOnce(&mut PoolSpec)) -> Pool {
    let subnet = if ips[0].contains(':') { "fd00:10:6::/64" } else { "10.6.0.0/16" };
    let mut s = spec(name, subnet, ips);
    change(&mut s);
    Pool::parse(s).unwrap()
}

fn pools(p: impl IntoIterator<Item = Pool>) -> Pools {
    Pools::new(p, &[])
}

fn names(v4: &[&str], v6: &[&str]) -> FamilyNames {
    let some = |l: &[&str]| (!l.is_empty()).then(|| strings(l));
    FamilyNames { v4: some(v4), v6: some(v6) }
}

fn nics() -> Vec<NicOfPod> {
    vec![
        NicOfPod { name: "eth0".into(), network: None },
        NicOfPod { name: "net1".into(), network: Some("kube-system/ovs-conf".into()) },
    ]
}

fn ask(pools: &Pools, current: &str, sources: &Sources) -> Result<Vec<NicPools>, String> {
    let nics = nics();
    let a = Ask { node: "node1", namespace: "shop", nics: &nics, current, agent_namespace: "kube-system", sources };
    choose(pools, &a).map_err(|e| e.to_string())
}

#[test]
fn a_pool_gives_out_its_ranges_less_what_no_nic_can_have() {
    let p = Pool::parse(PoolSpec {
        exclude_ips: strings(&["10.6.0.5-10.6.0.6"]),
        gateway: Some("10.6.0.5".into()),
        ..spec("a", "10.6.0.0/24", &["10.6.0.0-10.6.0.9", "10.6.0.250-10.6.0.255"])
    })
    .unwrap();
    assert_eq!(p.ranges.to_string(), "10.6.0.1-10.6.0.4,10.6.0.7-10.6.0.9,10.6.0.250-10.6.0.254");
    let p6 = Pool::parse(spec("b", "fd00::/64", &["fd00::-fd00::2"])).unwrap();
    assert_eq!(p6.ranges.to_string(), "fd00::1-fd00::2");
    assert_eq!(Pool::parse(spec("c", "10.6.0.4/31", &["10.6.0.4-10.6.0.5"])).unwrap().ranges.len(), 2);
}

#[test]
fn a_wrong_pool_is_refused_with_field_value_and_rule() {
    let base = || spec("a", "10.6.0.0/16", &["10.6.0.10-10.6.0.20"]);
    let err = |s: PoolSpec| Pool::parse(s).unwrap_err().to_string();
    assert_eq!(err(spec("a", "10.6.0.1/16", &[])), "spec.subnet: 10.6.0.1/16 has host bits set, the network is 10.6.0.0/16");
    assert_eq!(err(PoolSpec { ip_version: Some(6), ..base() }), "spec.ipVersion 6 does not agree with the subnet 10.6.0.0/16");
    assert_eq!(
        err(PoolSpec { ips: strings(&["10.6.0.1", "10.7.0.1"]), ..base() }),
        "spec.ips[1]: \"10.7.0.1\" is not inside the subnet 10.6.0.0/16"
    );
    assert_eq!(
        err(PoolSpec { exclude_ips: strings(&["x"]), ..base() }),
        "spec.excludeIPs[0]: \"x\" is neither an address nor a range \"first-last\" without spaces"
    );
    assert_eq!(
        err(PoolSpec { gateway: Some("10.7.0.1".into()), ..base() }),
        "spec.gateway \"10.7.0.1\" is not an address of the subnet 10.6.0.0/16"
    );
    assert_eq!(
        err(PoolSpec { gateway: Some("10.6.0.12".into()), ..base() }),
        "spec.gateway 10.6.0.12 is one of the addresses to give out, list it in excludeIPs or take it out of ips"
    );
    let route = |dst: &str, gw: &str| PoolSpec {
        routes: vec![("10.9.0.0/16".into(), "10.6.0.1".into()), (dst.into(), gw.into())],
        ..base()
    };
    assert_eq!(
        err(route("0.0.0.0/0", "10.6.0.1")),
        "spec.routes[1].dst 0.0.0.0/0 is the default route, which follows from the gateway"
    );
    assert_eq!(err(route("10.9.0.0/16", "10.6.0.2")), "spec.routes[1].dst 10.9.0.0/16 is there twice");
    assert_eq!(
        err(route("fd00::/64", "10.6.0.1")),
        "spec.routes[1].dst \"fd00::/64\" is not a network of the pool's family without host bits"
    );
    assert_eq!(
        err(route("10.8.0.0/16", "10.7.0.1")),
        "spec.routes[1].gw \"10.7.0.1\" is not an address of the subnet 10.6.0.0/16"
    );
    assert!(Pool::parse(route("10.8.1.1", "10.6.0.1")).is_ok());
}

#[test]
fn of_overlapping_pools_in_one_domain_the_older_owns_the_shared_addresses() {
    let old = pool("z-old", &["10.6.0.1-10.6.0.10"], |s| s.created = 1);
    let young = pool("a-young", &["10.6.0.8-10.6.0.12"], |s| s.created = 2);
    let elsewhere = pool("b", &["10.6.0.1-10.6.0.12"], |s| (s.created, s.domain) = (3, "lab".into()));
    let p = Pools::new([young, old, elsewhere], &[Ranges::parse(&["10.6.0.2"], Family::V4, None).unwrap()]);
    assert_eq!(p.allocatable("z-old").unwrap().to_string(), "10.6.0.1,10.6.0.3-10.6.0.10");
    assert_eq!(p.allocatable("a-young").unwrap().to_string(), "10.6.0.11-10.6.0.12");
    assert_eq!(p.overlaps("a-young")[0].older, "z-old");
    assert_eq!(p.overlaps("a-young")[0].shared.to_string(), "10.6.0.8-10.6.0.10");
    assert!(p.overlaps("z-old").is_empty() && p.overlaps("b").is_empty());
    assert_eq!(p.allocatable("b").unwrap().len(), 11);
}

proptest! {
    /// However pools overlap: no address of a domain may be given out of two pools, and none is lost.
    #[test]
    fn every_address_belongs_to_exactly_one_pool(spans in proptest::collection::vec((1u8..200, 0u8..50, 0i64..4, any::<bool>()), 1..8)) {
        let all: Vec<Pool> = spans.iter().enumerate().map(|(i, (a, n, created, lab))| {
            let range = format!("10.6.0.{a}-10.6.0.{}", a.saturating_add(*n));
            pool(&format!("p{i}"), &[&range], |s| { s.created = *created; if *lab { s.domain = "lab".into() } })
        }).collect();
        let p = pools(all.clone());
        for domain in ["default", "lab"] {
            let of: Vec<&Pool> = all.iter().filter(|x| x.domain == domain).collect();
            for n in 1..=254u8 {
                let x = ip(&format!("10.6.0.{n}"));
                let owners = of.iter().filter(|q| p.allocatable(&q.name).unwrap().contains(x)).count();
                prop_assert_eq!(owners, usize::from(of.iter().any(|q| q.ranges.contains(x))));
            }
        }
    }
}

#[test]
fn the_first_source_that_is_there_decides_alone() {
    let p = pools([
        pool("ann", &["10.6.1.1"], |_| {}),
        pool("ns", &["10.6.2.1"], |_| {}),
        pool("conf", &["10.6.3.1"], |_| {}),
        pool("conf6", &["fd00:10:6::3"], |_| {}),
        pool("def", &["10.6.4.1"], |s| s.default = true),
        pool("def6", &["fd00:10:6::4"], |s| s.default = true),
    ]);
    let one = |s: &Sources| {
        let c = ask(&p, "net1", s).unwrap();
        (c[0].v4.clone().unwrap_or_default().join(","), c[0].v6.clone().unwrap_or_default().join(","))
    };
    let mut s = Sources::default();
    assert_eq!(one(&s), ("def".into(), "def6".into()));
    s.conf = names(&["conf"], &["conf6"]);
    assert_eq!(one(&s), ("conf".into(), "conf6".into()));
    s.namespace = names(&["ns"], &[]);
    assert_eq!(one(&s), ("ns".into(), String::new()));
    s.ippool = Some(names(&["ann"], &[]));
    // Only IPv4 asked for: a pod with IPv4 only, although the configuration has both.
    assert_eq!(one(&s), ("ann".into(), String::new()));
    s.ippools = Some(vec![NicEntry { interface: Some("net1".into()), names: names(&["ns"], &["def6"]), clean_gateway: true }]);
    assert_eq!(one(&s), ("ns".into(), "def6".into()));
    assert!(ask(&p, "net1", &s).unwrap()[0].clean_gateway);
}

#[test]
fn without_any_source_the_error_says_so() {
    assert_eq!(
        ask(&pools([pool("a", &["10.6.1.1"], |_| {})]), "net1", &Sources::default()).unwrap_err(),
        "no pool to take an address for net1 from: no annotation, network configuration or default pool names one"
    );
    let s = Sources { ippool: Some(FamilyNames::default()), ..Sources::default() };
    assert_eq!(ask(&pools([]), "net1", &s).unwrap_err(), "annotation ipam.spidernet.io/ippool for net1 names no pool");
}

#[test]
fn pools_keep_the_users_order_and_patterns_expand_by_name() {
    let p = pools(["red", "blue", "b2", "b1", "green"].map(|n| pool(n, &["10.6.1.1-10.6.1.9"], |s| s.domain = n.into())));
    let order = |l: &[&str]| {
        ask(&p, "net1", &Sources { ippool: Some(names(l, &[])), ..Sources::default() })
            .map(|c| c[0].v4.clone().unwrap().join(" "))
    };
    assert_eq!(order(&["red", "blue", "green"]).unwrap(), "red blue green");
    assert_eq!(order(&["green", "b?", "red"]).unwrap(), "green b1 b2 red");
    assert_eq!(order(&["*"]).unwrap(), "b1 b2 blue green red");
    assert_eq!(order(&["b1", "b*"]).unwrap(), "b1 b2 blue");
    assert_eq!(order(&["red", "red"]).unwrap_err(), "annotation ipam.spidernet.io/ippool names pool \"red\" twice for net1");
    assert_eq!(
        order(&["x*"]).unwrap_err(),
        "annotation ipam.spidernet.io/ippool: no IPv4 pool for net1: x*: there is no such pool"
    );
}

#[test]
fn globs_match_whole_names() {
    for (p, n, want) in [
        ("*", "", true),
        ("a*", "abc", true),
        ("a*c", "abc", true),
        ("a*c", "abd", false),
        ("?", "", false),
        ("a?c", "abc", true),
        ("[ab]1", "b1", true),
        ("[a-c]1", "c1", true),
        ("[!a]1", "a1", false),
        ("[!a]1", "b1", true),
        ("[^a]1", "b1", true),
        ("[]]", "]", true),
        ("[x", "[x", true),
        ("*a*b*", "xxaxxbxx", true),
        ("a", "ab", false),
        ("v4-[0-9]*", "v4-7x", true),
    ] {
        assert_eq!(glob(p, n), want, "{p} {n}");
    }
}

#[test]
fn every_rejected_pool_has_its_reason() {
    let p = pools([
        pool("gone", &["10.6.1.1"], |s| s.terminating = true),
        pool("off", &["10.6.1.2"], |s| s.disable = true),
        pool("six", &["fd00:10:6::1"], |_| {}),
        pool("picky", &["10.6.1.3"], |s| s.unimplemented = strings(&["spec.podAffinity", "spec.nodeAffinity"])),
        pool("other-node", &["10.6.1.4"], |s| s.node_names = strings(&["node2", "node3"])),
        pool("other-ns", &["10.6.1.5"], |s| s.namespace_names = strings(&["bank"])),
        pool("other-net", &["10.6.1.6"], |s| s.multus_names = strings(&["ovs-other", "x/ovs-conf"])),
        pool("shadowed", &["10.6.1.1"], |s| s.created = 9),
    ]);
    let l = ["gone", "off", "six", "picky", "other-node", "other-ns", "other-net", "shadowed", "absent"];
    let s = Sources { ippool: Some(names(&l, &[])), ..Sources::default() };
    let text = ask(&p, "net1", &s).unwrap_err();
    assert_eq!(
        text,
        "annotation ipam.spidernet.io/ippool: no IPv4 pool for net1: gone: it is being deleted; off: spec.disable is set; six: it is an IPv6 pool; \
         picky: it uses spec.podAffinity, spec.nodeAffinity, which is not implemented; other-node: spec.nodeName does not list node node1, only node2, node3; \
         other-ns: spec.namespaceName does not list namespace shop, only bank; other-net: spec.multusName does not list network kube-system/ovs-conf, only ovs-other, x/ovs-conf; \
         shadowed: its addresses belong to the older pool gone; absent: there is no such pool"
    );
    assert!(!text.contains('\n'));
}

#[test]
fn filters_let_the_right_ones_through() {
    let p = pools([
        pool("ok", &["10.6.1.1"], |s| {
            s.node_names = strings(&["node1"]);
            s.namespace_names = strings(&["shop"]);
            s.multus_names = strings(&["ovs-conf"]);
        }),
        pool("off", &["10.6.1.2"], |s| s.disable = true),
    ]);
    let s = Sources { ippool: Some(names(&["off", "ok"], &[])), ..Sources::default() };
    let c = ask(&p, "net1", &s).unwrap();
    assert_eq!(c[0].v4, Some(strings(&["ok"])));
    assert_eq!(c[0].rejected[0].to_string(), "off: spec.disable is set");
    // eth0's network is not known here: only a pool that asks for one is affected.
    assert!(
        ask(&p, "eth0", &s).unwrap_err().contains("ok: spec.multusName lists ovs-conf, but the network of eth0 is not known")
    );
}

#[test]
fn a_family_that_was_asked_for_must_be_there() {
    let p = pools([pool("a", &["10.6.1.1"], |_| {}), pool("b", &["fd00:10:6::1"], |s| s.disable = true)]);
    let s = Sources { conf: names(&["a"], &["b"]), ..Sources::default() };
    assert_eq!(ask(&p, "net1", &s).unwrap_err(), "the network's configuration: no IPv6 pool for net1: b: spec.disable is set");
}

#[test]
fn ippools_maps_nics_by_name_or_by_position() {
    let p = pools([pool("a", &["10.6.1.1"], |_| {}), pool("b", &["10.6.2.1"], |_| {})]);
    let entry =
        |i: Option<&str>, n: &str| NicEntry { interface: i.map(Into::into), names: names(&[n], &[]), clean_gateway: false };
    let run = |e: Vec<NicEntry>, current: &str| {
        ask(&p, current, &Sources { ippools: Some(e), ..Sources::default() })
            .map(|c| c.iter().map(|c| format!("{}={}", c.nic, c.v4.as_ref().unwrap().join(","))).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(run(vec![entry(None, "a"), entry(None, "b")], "net1").unwrap(), "eth0=a net1=b");
    assert_eq!(run(vec![entry(Some("net1"), "a"), entry(Some("eth0"), "b")], "eth0").unwrap(), "net1=a eth0=b");
    let err = |e, c: &str| run(e, c).unwrap_err().replace("annotation ipam.spidernet.io/ippools: ", "");
    assert_eq!(
        err(vec![entry(Some("net1"), "a"), entry(None, "b")], "net1"),
        "either every entry names an interface or none does"
    );
    assert_eq!(err(vec![entry(Some("net1"), "a"), entry(Some("net1"), "b")], "net1"), "interface \"net1\" is there twice");
    assert_eq!(err(vec![entry(Some("net7"), "a")], "net1"), "interface \"net7\" is not a NIC of the pod, it has eth0, net1");
    assert_eq!(err(vec![entry(Some("eth0"), "a")], "net1"), "no entry for net1");
    assert_eq!(err(vec![entry(None, "a")], "net1"), "no entry for net1");
    assert_eq!(
        err(vec![entry(None, "a"), entry(None, "a"), entry(None, "b")], "net1"),
        "3 entries for 2 NICs (eth0, net1), they go by position where they name no interface"
    );
}

#[test]
fn who_has_an_identity() {
    let id = |pod: &str, c: Option<(&'static str, &'static str)>, ips| {
        Identity::of_pod("shop", pod, c.map(|(kind, name)| Controller { kind, name }), "net1", ips).map(|i| i.to_string())
    };
    assert_eq!(id("web-0", Some(("StatefulSet", "web")), false).as_deref(), Some("StatefulSet/shop/web-0/net1"));
    assert_eq!(id("web-0", Some(("StatefulSet", "web")), true).as_deref(), Some("StatefulSet/shop/web-0/net1"));
    assert_eq!(id("web-x", Some(("StatefulSet", "web")), false), None);
    assert_eq!(id("web-5d-abc", Some(("Deployment", "web")), false), None);
    assert_eq!(id("web-5d-abc", Some(("Deployment", "web")), true).as_deref(), Some("Pod/shop/web/net1"));
    assert_eq!(id("solo", None, true).as_deref(), Some("Pod/shop/solo/net1"));
    assert_eq!(id("solo", None, false), None);
    for (pod, want) in [
        ("web-0", Some(0)),
        ("web-12", Some(12)),
        ("web-01", None),
        ("web-", None),
        ("web", None),
        ("webx-1", None),
        ("web-+1", None),
    ] {
        assert_eq!(ordinal("web", pod), want, "{pod}");
    }
}

fn holder(pod: &str, uid: &str, container: &str) -> Holder {
    Holder { namespace: "shop".into(), pod: pod.into(), uid: uid.into(), nic: "net1".into(), container: container.into() }
}

#[test]
fn what_a_lease_allows() {
    let sts = |n: &str| {
        Some(Identity { kind: IdentityKind::StatefulSet, namespace: "shop".into(), name: n.into(), nic: "net1".into() })
    };
    let (who, web0) = (holder("web-0", "u2", "c2"), sts("web-0"));
    let me = Me { node: "n1", agent_id: "a1", holder: &who, identity: web0.as_ref() };
    let lease = |node: Option<&str>, h: Option<Holder>, identity: Option<Identity>| Lease {
        name: Name { domain: "default".into(), ip: ip("10.6.0.1") },
        uid: "u".into(),
        version: "1".into(),
        pool: "p".into(),
        node: node.unwrap_or_default().into(),
        agent_id: node.unwrap_or_default().replace('n', "a").into(),
        holder: h.map(Into::into),
        identity: identity.map(Into::into),
        wanted: None,
        released: false,
        quarantine: None,
    };
    let wait = |h: &Holder, node: &str| Decision::WaitFor { holder: h.clone().into(), node: node.into() };
    let d = |l: Lease| decide(Some(&l), &me);
    assert_eq!(decide(None, &me), Decision::Create);
    assert_eq!(d(lease(Some("n1"), Some(who.clone()), sts("web-0"))), Decision::Mine);
    // The sandbox was made again, or the agent has a new id: ours, but it has to be written.
    assert_eq!(d(lease(Some("n1"), Some(holder("web-0", "u2", "c1")), sts("web-0"))), Decision::Take);
    assert_eq!(d(Lease { agent_id: "a9".into(), ..lease(Some("n1"), Some(who.clone()), sts("web-0")) }), Decision::Take);
    // Given back at DEL, kept for the identity.
    assert_eq!(d(lease(None, None, sts("web-0"))), Decision::Take);
    assert_eq!(d(lease(Some("n1"), None, sts("web-0"))), Decision::Take);
    assert_eq!(d(lease(Some("n1"), None, None)), Decision::Take);
    // The former pod still has it, here or elsewhere: its death is not assumed.
    let old = holder("web-0", "u1", "c1");
    assert_eq!(d(lease(Some("n2"), Some(old.clone()), sts("web-0"))), wait(&old, "n2"));
    assert_eq!(d(lease(Some("n1"), Some(old.clone()), sts("web-0"))), wait(&old, "n1"));
    assert_eq!(d(lease(Some("n2"), Some(who.clone()), None)), wait(&who, "n2"));
    assert_eq!(d(lease(Some("n2"), None, None)), Decision::Recall { node: "n2".into() });
    assert_eq!(
        d(lease(Some("n2"), Some(holder("db", "u9", "c9")), None)),
        Decision::Refuse("it is held by shop/db net1 on node n2".into())
    );
    assert_eq!(d(lease(None, None, sts("web-1"))), Decision::Refuse("it is kept for StatefulSet/shop/web-1/net1".into()));
    let offender = Quarantine { mac: None, reason: "somebody answers".into(), node: "n2".into() };
    assert_eq!(
        d(Lease { quarantine: Some(offender.into()), ..lease(None, None, sts("web-0")) }),
        Decision::Refuse("it is in quarantine: somebody answers".into())
    );
    let stateless = Me { identity: None, ..me.clone() };
    let refused = Decision::Refuse("it is kept for StatefulSet/shop/web-0/net1".into());
    assert_eq!(decide(Some(&lease(None, None, sts("web-0"))), &stateless), refused);
}

#[test]
fn requested_addresses_are_checked_against_the_pools() {
    let p = Pools::new(
        [
            pool("a", &["10.6.1.1-10.6.1.9"], |s| (s.exclude_ips, s.gateway) = (strings(&["10.6.1.5"]), Some("10.6.0.1".into()))),
            pool("b", &["10.6.1.8-10.6.1.12"], |s| s.created = 5),
            pool("six", &["fd00:10:6::1-fd00:10:6::9"], |_| {}),
        ],
        &[Ranges::parse(&["10.6.1.2"], Family::V4, None).unwrap()],
    );
    let l = strings(&["a", "b", "six"]);
    let check = |x: &str, len| check_request(&p, &l, ip(x), len).map(|p| p.name.clone()).map_err(|e| e.to_string());
    assert_eq!(check("10.6.1.1", None).unwrap(), "a");
    assert_eq!(check("10.6.1.9", Some(16)).unwrap(), "a");
    assert_eq!(check("10.6.1.12", None).unwrap(), "b");
    assert_eq!(check("fd00:10:6::3", None).unwrap(), "six");
    assert_eq!(check("10.6.1.1", Some(24)).unwrap_err(), "address 10.6.1.1 is in subnet 10.6.0.0/16, the request says /24");
    assert!(
        check("10.6.1.2", None).unwrap_err().contains(
            "a: it is reserved; b: it is not among the pool's addresses, or excluded; six: it is not in fd00:10:6::/64"
        )
    );
    assert!(check("10.6.0.1", None).unwrap_err().contains("a: it is the gateway"));
    assert!(check("10.6.1.5", None).unwrap_err().contains("a: it is not among the pool's addresses, or excluded"));
    assert_eq!(
        check_request(&p, &strings(&["b"]), ip("10.6.1.9"), None).unwrap_err().to_string(),
        "address 10.6.1.9 cannot be given: no pool of this NIC holds it (b: it belongs to the older pool a)"
    );
    assert!(one_of_each_family(&[ip("10.6.1.1"), ip("fd00::1")]).is_ok());
    assert!(one_of_each_family(&[ip("10.6.1.1"), ip("fd00::1"), ip("10.6.1.2")]).is_err());
}
