//! The route picture as text, and what is refused. The pods: a foreign eth0 with a macvlan net1 (overlay), a macvlan eth0
//! (underlay), and NICs of one family.
#![allow(clippy::unwrap_used)]

#[path = "support/net.rs"]
mod net;

use std::net::IpAddr;

use model::observed::{Addr, LinkKind, MacvlanMode, NetnsState};
use model::{AttachmentId, Cidr, IfAddr, IfName, Owner, Route, RunBy};
use planner::coordinate::{self, CoordinateInput, Mode, Settings, table_of};
use planner::{Gateways, Nic, NicRoute, Plan, Refusal, Step};

fn name(s: &str) -> IfName {
    IfName::new(s).unwrap()
}

fn addr(s: &str) -> IfAddr {
    s.parse().unwrap()
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn cidr(s: &str) -> Cidr {
    s.parse().unwrap()
}

/// Adds a NIC as a main plugin leaves it: connected route and default.
fn nic(pod: &mut NetnsState, n: &str, kind: LinkKind, addrs: &[&str], gws: &[&str]) {
    let index = pod.links.len() as u32 + 2;
    let mut l = net::link(index, n, kind);
    l.mac = Some("02:00:00:00:00:01".parse().unwrap());
    pod.links.push(l);
    for a in addrs.iter().map(|a| addr(a)) {
        pod.addrs.push(Addr { dev: name(n), addr: a, scope_link: false, permanent: true, tentative: false, dad_failed: false });
        let mut r = Route::new(a.network(), None, name(n));
        r.src = a.is_ipv4().then_some(a.ip());
        pod.routes.push(r);
    }
    for g in gws.iter().map(|g| ip(g)) {
        let second = pod.routes.iter().any(|r| r.dst == Cidr::default_for(g));
        if !second {
            pod.routes.push(Route::new(Cidr::default_for(g), Some(g), name(n)));
        }
    }
}

fn ipam(addrs: &[&str], gws: &[&str]) -> Nic {
    let gw = |v4: bool| gws.iter().map(|g| ip(g)).find(|g| g.is_ipv4() == v4);
    Nic {
        addrs: addrs.iter().map(|a| addr(a)).collect(),
        gateways: Gateways { v4: gw(true), v6: gw(false) },
        routes: gws.iter().map(|g| NicRoute::new(Cidr::default_for(ip(g)), Some(ip(g)))).collect(),
        has_ipam: true,
    }
}

fn host() -> NetnsState {
    let mut h = NetnsState::default();
    for (i, (n, kind, a)) in [
        ("ens192", LinkKind::Physical, "10.6.0.11/16"),
        ("cni0", LinkKind::Bridge, "10.244.0.1/24"),
        ("docker0", LinkKind::Bridge, "172.17.0.1/16"),
    ]
    .into_iter()
    .enumerate()
    {
        h.links.push(net::link(i as u32 + 2, n, kind));
        h.addrs.push(Addr {
            dev: name(n),
            addr: addr(a),
            scope_link: false,
            permanent: true,
            tentative: false,
            dad_failed: false,
        });
        h.routes.push(Route::new(addr(a).network(), None, name(n)));
    }
    h.routes.push(Route::new(Cidr::default_v4(), Some(ip("10.6.0.1")), name("ens192")));
    h
}

fn settings() -> Settings {
    Settings {
        cidrs: vec![cidr("10.244.0.0/16"), cidr("10.96.0.0/12")],
        hijack: vec![cidr("169.254.20.10/32")],
        ..Settings::default()
    }
}

fn owner(n: &str) -> Owner {
    Owner { attachment: AttachmentId::of("c1", n), by: RunBy::Agent }
}

fn nics(l: &[&str]) -> Vec<IfName> {
    l.iter().map(|n| name(n)).collect()
}

fn plan(n: &str, all: &[&str], nic: &Nic, s: &Settings, pod: &NetnsState, host: &NetnsState) -> Result<Plan, Refusal> {
    coordinate::plan(&CoordinateInput { owner: owner(n), ifname: &name(n), nic, settings: s, pod_nics: &nics(all), pod, host })
}

/// Without numbers and sysctls.
fn text(p: &Plan) -> String {
    p.steps.iter().filter(|s| !matches!(s, Step::SetSysctl { .. })).map(|s| format!("{s}\n")).collect()
}

fn overlay() -> NetnsState {
    let mut pod = NetnsState::default();
    nic(&mut pod, "eth0", LinkKind::Veth, &["10.244.0.2/24"], &["10.244.0.1"]);
    nic(&mut pod, "net1", LinkKind::Macvlan { mode: MacvlanMode::Bridge }, &["10.6.1.10/16"], &["10.6.0.1"]);
    pod
}

const NET1: (&[&str], &[&str]) = (&["10.6.1.10/16"], &["10.6.0.1"]);

#[test]
fn net1_beside_a_foreign_eth0() {
    let p = plan("net1", &["eth0", "net1"], &ipam(NET1.0, NET1.1), &settings(), &overlay(), &host()).unwrap();
    assert_eq!(
        text(&p),
        "\
add route 10.6.0.11/32 via 10.244.0.1 dev eth0 (pod)
add route 10.96.0.0/12 via 10.244.0.1 dev eth0 (pod)
add route 10.244.0.0/16 via 10.244.0.1 dev eth0 (pod)
add route 169.254.20.10/32 via 10.244.0.1 dev eth0 (pod)
add route 10.6.0.0/16 dev net1 src 10.6.1.10 table 101 (pod)
add route 10.244.0.0/24 dev eth0 src 10.244.0.2 table 101 (pod)
add route default via 10.6.0.1 dev net1 table 101 (pod)
add route 10.6.0.11/32 via 10.244.0.1 dev eth0 table 101 (pod)
add route 10.96.0.0/12 via 10.244.0.1 dev eth0 table 101 (pod)
add route 10.244.0.0/16 via 10.244.0.1 dev eth0 table 101 (pod)
add route 169.254.20.10/32 via 10.244.0.1 dev eth0 table 101 (pod)
add route 10.244.0.0/24 dev eth0 src 10.244.0.2 table 100 (pod)
add route default via 10.244.0.1 dev eth0 table 100 (pod)
add route 10.6.0.11/32 via 10.244.0.1 dev eth0 table 100 (pod)
add route 10.96.0.0/12 via 10.244.0.1 dev eth0 table 100 (pod)
add route 10.244.0.0/16 via 10.244.0.1 dev eth0 table 100 (pod)
add route 169.254.20.10/32 via 10.244.0.1 dev eth0 table 100 (pod)
add rule 1000: from 10.6.1.10 lookup 101 (pod)
add rule 1000: from 10.244.0.2 lookup 100 (pod)
add rule 1000: from all lookup 500 (host)
add route 10.6.1.10/32 via 10.244.0.2 dev cni0 table 500 (host)
"
    );
}

#[test]
fn net1_named_for_the_default_route_takes_it_from_eth0() {
    let s = Settings { default_route_nic: Some(name("net1")), default_route_nic_by_pod: true, ..settings() };
    let (mut pod, mut h) = (overlay(), host());
    let p = plan("net1", &["eth0", "net1"], &ipam(NET1.0, NET1.1), &s, &pod, &h).unwrap();
    let t = text(&p);
    assert!(
        t.contains("delete route default via 10.244.0.1 dev eth0 (pod)\nadd route default via 10.6.0.1 dev net1 (pod)\n"),
        "{t}"
    );
    net::apply(&p, &mut h, &mut pod);
    let dev = |src: Option<&str>, dst: &str| planner::lookup::route(&pod, src.map(ip), ip(dst), None).unwrap().dev.to_string();
    assert_eq!(dev(None, "8.8.8.8"), "net1");
    assert_eq!(dev(Some("10.244.0.2"), "8.8.8.8"), "eth0");
    assert_eq!(dev(Some("10.6.1.10"), "10.96.0.10"), "eth0");
}

#[test]
fn a_macvlan_eth0_gets_a_pair_to_the_node() {
    let mut pod = NetnsState::default();
    nic(&mut pod, "eth0", LinkKind::Macvlan { mode: MacvlanMode::Bridge }, NET1.0, NET1.1);
    let mut h = host();
    let p = plan("eth0", &["eth0"], &ipam(NET1.0, NET1.1), &settings(), &pod, &h).unwrap();
    let id = owner("eth0").attachment.link_name("mvh-");
    let (host_mac, pod_mac) = match &p.steps.iter().find(|s| matches!(s, Step::AddVeth(_))).unwrap() {
        Step::AddVeth(v) => (v.host_mac.unwrap(), v.pod_mac.unwrap()),
        _ => unreachable!(),
    };
    assert_ne!(host_mac, pod_mac);
    assert!(host_mac.unicast().is_ok() && pod_mac.unicast().is_ok());
    assert_eq!(
        text(&p),
        format!(
            "\
add veth veth0 in the pod with peer {id} on the host
set link {id} (host) up
set link veth0 (pod) up
add neighbour 10.6.0.11 lladdr {host_mac} dev veth0 (pod)
add route 10.6.0.11/32 dev veth0 src 10.6.1.10 (pod)
add route 10.96.0.0/12 via 10.6.0.11 dev veth0 src 10.6.1.10 (pod)
add route 10.244.0.0/16 via 10.6.0.11 dev veth0 src 10.6.1.10 (pod)
add route 169.254.20.10/32 via 10.6.0.11 dev veth0 src 10.6.1.10 (pod)
add rule 1000: from all lookup 500 (host)
add route 10.6.1.10/32 dev {id} table 500 (host)
add neighbour 10.6.1.10 lladdr {pod_mac} dev {id} (host)
"
        )
    );
    net::apply(&p, &mut h, &mut pod);
    // DEL: the pair by its mark, the route by its address; someone else's stay.
    h.links.push(net::link(77, "mvh-other", LinkKind::Veth));
    let del = coordinate::plan_del(owner("eth0"), &[ip("10.6.1.10")], 500, &h);
    assert_eq!(text(&del), format!("delete route 10.6.1.10/32 dev {id} table 500 (host)\ndelete link {id} (host)\n"));
    assert!(coordinate::plan_del(owner("net9"), &[], 500, &h).is_empty());
    assert!(coordinate::plan_sweep(500, &[ip("10.6.1.10")], &h).is_empty());
    assert_eq!(coordinate::plan_sweep(500, &[], &h).steps.len(), 1);
    net::apply(&del, &mut h, &mut pod);
    assert!(coordinate::plan_del(owner("eth0"), &[ip("10.6.1.10")], 500, &h).is_empty());
}

#[test]
fn a_node_without_an_address_is_still_a_next_hop() {
    let mut pod = NetnsState::default();
    nic(
        &mut pod,
        "eth0",
        LinkKind::Macvlan { mode: MacvlanMode::Bridge },
        &["10.6.1.10/16", "fd00:10:6::1:10/64"],
        &["10.6.0.1"],
    );
    let n = ipam(&["10.6.1.10/16", "fd00:10:6::1:10/64"], &["10.6.0.1"]);
    let s = Settings { cidrs: vec![cidr("10.96.0.0/12"), cidr("fd00:10:96::/112")], ..Settings::default() };
    let mut h = NetnsState::default();
    let p = plan("eth0", &["eth0"], &n, &s, &pod, &h).unwrap();
    let t = text(&p);
    assert!(t.contains("add route 10.96.0.0/12 via 169.254.1.1 dev veth0 src 10.6.1.10 onlink (pod)"), "{t}");
    assert!(t.contains("add route fd00:10:96::/112 via fe80::1 dev veth0 onlink (pod)"), "{t}");
    assert!(t.contains("add neighbour 169.254.1.1 lladdr") && t.contains("add neighbour fe80::1 lladdr"), "{t}");
    net::apply(&p, &mut h, &mut pod);
}

#[test]
fn a_family_that_only_net1_has_keeps_its_default_in_main() {
    let mut pod = NetnsState::default();
    nic(&mut pod, "eth0", LinkKind::Veth, &["10.244.0.2/24"], &["10.244.0.1"]);
    nic(&mut pod, "net1", LinkKind::Macvlan { mode: MacvlanMode::Bridge }, &["fd00:10:6::1:10/64"], &["fd00:10:6::1"]);
    let (mut h, n) = (host(), ipam(&["fd00:10:6::1:10/64"], &["fd00:10:6::1"]));
    let p = plan("net1", &["eth0", "net1"], &n, &settings(), &pod, &h).unwrap();
    assert!(!text(&p).contains("delete"), "{}", text(&p));
    net::apply(&p, &mut h, &mut pod);
    assert_eq!(planner::lookup::route(&pod, None, ip("2001:db8::1"), None).unwrap().dev, name("net1"));
}

#[test]
fn a_second_default_in_main_is_moved_into_the_nics_table() {
    let mut pod = overlay();
    let mut second = Route::new(Cidr::default_v4(), Some(ip("10.6.0.1")), name("net1"));
    second.metric = Some(100);
    pod.routes.push(second);
    let p = plan("net1", &["eth0", "net1"], &ipam(NET1.0, NET1.1), &settings(), &pod, &host()).unwrap();
    let t = text(&p);
    assert!(t.contains("delete route default via 10.6.0.1 dev net1 metric 100 (pod)"), "{t}");
    assert!(t.contains("add route default via 10.6.0.1 dev net1 table 101 (pod)"), "{t}");
}

/// As the main plugins leave it: main had a default already, so the second one is neither there nor in the result.
#[test]
fn the_gateway_of_a_second_nic_is_its_tables_default() {
    let mut pod = overlay();
    pod.routes.retain(|r| !(r.dst.is_default() && r.dev == name("net1")));
    let mut n = ipam(NET1.0, NET1.1);
    n.routes.clear();
    let p = plan("net1", &["eth0", "net1"], &n, &settings(), &pod, &host()).unwrap();
    assert!(text(&p).contains("add route default via 10.6.0.1 dev net1 table 101 (pod)"), "{}", text(&p));
    let settings = Settings { default_route_nic: Some(name("net1")), ..settings() };
    let p = plan("net1", &["eth0", "net1"], &n, &settings, &pod, &host()).unwrap();
    assert!(text(&p).contains("add route default via 10.6.0.1 dev net1 (pod)"), "{}", text(&p));
}

#[test]
fn a_nic_without_a_default_and_a_gateway_gets_none() {
    let mut pod = overlay();
    pod.routes.retain(|r| !(r.dst.is_default() && r.dev == name("net1")));
    let mut n = ipam(NET1.0, NET1.1);
    n.routes.clear();
    n.gateways = Default::default();
    let p = plan("net1", &["eth0", "net1"], &n, &settings(), &pod, &host()).unwrap();
    assert!(!text(&p).contains("default via 10.6.0.1"), "{}", text(&p));
}

#[test]
fn tables_are_numbered_by_name_and_never_collide() {
    let all = nics(&["eth0", "net1", "storage", "net3", "net153", "net0", "net02"]);
    let tables: Vec<u32> = all.iter().map(|n| table_of(n, &all)).collect();
    assert_eq!(tables, [100, 101, 1002, 103, 1004, 1005, 1006]);
}

#[test]
fn modes_that_cannot_work_are_refused_and_disabled_does_nothing() {
    let n = ipam(NET1.0, NET1.1);
    let run = |mode, ifname: &str, pod: &NetnsState| {
        plan(ifname, &["eth0", "net1"], &n, &Settings { mode, ..settings() }, pod, &host()).map_err(|e| e.to_string())
    };
    assert!(run(Mode::Disabled, "net1", &overlay()).unwrap().is_empty());
    assert_eq!(
        run(Mode::Underlay, "net1", &overlay()).unwrap_err(),
        "mode \"underlay\": the pod has no veth0, so its first NIC is the cluster's: use \"auto\" or \"overlay\" on net1"
    );
    assert_eq!(
        run(Mode::Overlay, "eth0", &overlay()).unwrap_err(),
        "mode \"overlay\": eth0 is on the physical network itself, no NIC of the pod is the cluster's: use \"auto\" or \"underlay\""
    );
    assert_eq!(
        run(Mode::Auto, "net1", &NetnsState::default()).unwrap_err(),
        "ifname \"net1\": the main plugin left no such link in the pod"
    );
}

#[test]
fn a_default_nic_that_is_none_is_refused_with_the_list() {
    let n = ipam(NET1.0, NET1.1);
    let run = |by_pod, all: &[&str]| {
        let s = Settings { default_route_nic: Some(name("net7")), default_route_nic_by_pod: by_pod, ..settings() };
        plan("net1", all, &n, &s, &overlay(), &host()).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(
        run(true, &["eth0", "net1"]).unwrap_err(),
        "default-route-nic \"net7\": the pod has no such NIC, it has eth0, net1"
    );
    assert!(run(false, &["eth0", "net1"]).is_err());
    // A NIC that comes later is fine, and eth0 keeps the default until then.
    assert!(run(true, &["eth0", "net1", "net7"]).is_ok());
    // A setting for all pods does not hit those with one NIC.
    assert!(run(false, &["net1"]).is_ok());
}

#[test]
fn a_policy_route_by_a_next_hop_elsewhere_is_refused() {
    let s = Settings { policy_routes: vec![(cidr("172.20.0.0/16"), ip("10.9.0.1"))], ..settings() };
    let e = plan("net1", &["eth0", "net1"], &ipam(NET1.0, NET1.1), &s, &overlay(), &host()).unwrap_err();
    assert_eq!(e.to_string(), "policyRoutes[0].gw \"10.9.0.1\": is in no network of net1, which has 10.6.0.0/16");
    let s = Settings {
        policy_routes: vec![(cidr("172.20.0.0/16"), ip("10.6.0.2")), (cidr("fd00:172::/64"), ip("fd00:10:6::2"))],
        ..settings()
    };
    let t = text(&plan("net1", &["eth0", "net1"], &ipam(NET1.0, NET1.1), &s, &overlay(), &host()).unwrap());
    assert!(t.contains("add route 172.20.0.0/16 via 10.6.0.2 dev net1 table 101 (pod)") && !t.contains("fd00:172"), "{t}");
}

#[test]
fn a_mac_prefix_changes_a_foreign_nic_and_its_link_local_address() {
    let s = Settings { mac_prefix: Some([0x0a, 0x1b]), tx_queue_len: Some(2000), rp_filter: Some(2), ..settings() };
    let mut pod = overlay();
    pod.addrs.push(Addr {
        dev: name("net1"),
        addr: addr("fe80::ff:fe00:1/64"),
        scope_link: true,
        permanent: true,
        tentative: false,
        dad_failed: false,
    });
    let (mut h, n) = (host(), ipam(NET1.0, NET1.1));
    let p = plan("net1", &["eth0", "net1"], &n, &s, &pod, &h).unwrap();
    assert!(
        text(&p).starts_with(
            "\
set link net1 (pod) address 0a:1b:0a:06:01:0a
delete address fe80::ff:fe00:1/64 dev net1 (pod)
add address fe80::81b:aff:fe06:10a/64 dev net1 (pod)
announce 10.6.1.10 dev net1
set link net1 (pod) txqueuelen 2000
"
        ),
        "{}",
        text(&p)
    );
    let sysctls: Vec<String> = p.steps.iter().filter(|s| matches!(s, Step::SetSysctl { .. })).map(Step::to_string).collect();
    assert_eq!(
        sysctls,
        [
            "set net/ipv6/conf/net1/accept_ra = 0 (pod)",
            "set net/ipv4/conf/all/rp_filter = 2 (pod)",
            "set net/ipv4/conf/eth0/rp_filter = 2 (pod)",
            "set net/ipv4/conf/net1/rp_filter = 2 (pod)",
        ]
    );
    net::apply(&p, &mut h, &mut pod);
    assert_eq!(text(&plan("net1", &["eth0", "net1"], &n, &s, &pod, &h).unwrap()), "");
}

#[test]
fn every_prefix_of_a_plan_can_be_undone() {
    let n = ipam(NET1.0, NET1.1);
    let p = plan("net1", &["eth0", "net1"], &n, &settings(), &overlay(), &host()).unwrap();
    for done in 0..=p.steps.len() {
        let (mut pod, mut h) = (overlay(), host());
        net::apply(&Plan { steps: p.steps[..done].to_vec() }, &mut h, &mut pod);
        let undo = p.undo(done);
        for s in &undo.steps {
            match s {
                Step::DelRule { ns, rule } => {
                    (if *ns == planner::Ns::Pod { &mut pod } else { &mut h }).rules.retain(|r| r != rule)
                }
                _ => net::apply(&Plan { steps: vec![s.clone()] }, &mut h, &mut pod),
            }
        }
        assert_eq!((pod, h), (overlay(), host()), "after {done} steps");
    }
}
