//! Bridges of a node: plans carried out on a node in memory, refusals, adoption and exact revert.
#![allow(clippy::unwrap_used)]

#[path = "support/net.rs"]
#[allow(dead_code)]
mod net;
#[path = "support/switch.rs"]
mod switch;

use model::desired::{
    Bond, BondMode, BridgeDesired, BridgeRemoved, DatapathType, DeletionPolicy, FailMode, Lacp, NodeDesired, Uplink,
};
use model::observed::{Addr, LinkKind, MacvlanMode, Observed};
use model::{Cidr, IfName, Mtu, Route};
use planner::Plan;
use planner::node::{self, Verdict};
use proptest::prelude::*;
use switch::{add_bridge, apply, port, sorted};

fn name(s: &str) -> IfName {
    IfName::new(s).unwrap()
}

fn bridge(n: &str, uplink: Option<Uplink>) -> BridgeDesired {
    BridgeDesired {
        name: name(n),
        uplink,
        allowed_vlans: Default::default(),
        mtu: None,
        fail_mode: FailMode::Standalone,
        mcast_snooping: false,
        hwaddr: None,
        datapath_type: None,
    }
}

fn over(nic: &str) -> Option<Uplink> {
    Some(Uplink::Interface(nic.into()))
}

fn bond(n: &str, nics: &[&str]) -> Bond {
    Bond {
        name: name(n),
        interfaces: nics.iter().map(|n| name(n)).collect(),
        mode: BondMode::ActiveBackup,
        lacp: Lacp::Off,
        updelay_ms: 0,
        downdelay_ms: 0,
    }
}

fn want(bridges: Vec<BridgeDesired>) -> NodeDesired {
    NodeDesired { bridges, removed: Vec::new() }
}

fn gone(n: &str, deletion_policy: DeletionPolicy) -> NodeDesired {
    NodeDesired { bridges: Vec::new(), removed: vec![BridgeRemoved { name: name(n), deletion_policy }] }
}

fn text(p: &Plan) -> String {
    p.steps.iter().map(|s| format!("{s}\n")).collect()
}

/// Carries the plan out and checks that nothing is left to do.
fn settle(desired: &NodeDesired, seen: &mut Observed) -> String {
    let plan = node::plan(desired, seen);
    let mut out = String::new();
    for b in &plan.bridges {
        assert!(!matches!(b.verdict, Verdict::Refused { .. }), "{}", b.verdict);
        apply(&b.plan, seen);
        out += &text(&b.plan);
    }
    assert_eq!(node::verify(desired, seen), []);
    out
}

fn refusal(desired: &NodeDesired, seen: &Observed) -> (String, String) {
    let p = node::plan(desired, seen);
    let b = p
        .bridges
        .iter()
        .find(|b| matches!(b.verdict, Verdict::Refused { .. }))
        .unwrap_or_else(|| panic!("nothing is refused: {p:?}"));
    assert!(b.plan.is_empty());
    (b.verdict.reason().to_owned(), b.verdict.to_string())
}

#[test]
fn a_bridge_over_a_nic_is_made_repaired_and_taken_back() {
    let start = switch::node(&["eth0", "eth1"]);
    let mut seen = start.clone();
    let mut b = bridge("br1", over("eth1"));
    (b.allowed_vlans, b.mtu) = ("100-102".parse().unwrap(), Some(Mtu::new(9000).unwrap()));
    let desired = want(vec![b]);
    assert_eq!(
        settle(&desired, &mut seen),
        "\
set link eth1 (host) up mtu 9000
add bridge br1
add port eth1 to bridge br1 trunks 100-102
set link br1 (host) up
"
    );
    let made = sorted(seen.clone());
    // Someone takes the port out, changes its trunks, sets the NIC down.
    let ovs = seen.ovs.as_mut().unwrap();
    ovs.bridges[0].ports.retain(|p| p.name != "eth1");
    assert_eq!(settle(&desired, &mut seen), "add port eth1 to bridge br1 trunks 100-102\n");
    let ovs = seen.ovs.as_mut().unwrap();
    let p = ovs.bridges[0].ports.iter_mut().find(|p| p.name == "eth1").unwrap();
    (p.trunks, p.tag) = (vec![5], Some(7));
    seen.host.links[1].up = false;
    assert_eq!(
        settle(&desired, &mut seen),
        "set link eth1 (host) up\nset port eth1 tag= trunks=100-102 external_ids:mooring-was-up.eth1=false\n"
    );
    assert_eq!(made.ovs.unwrap().bridges[0].ports[1].trunks, [100, 101, 102]);
}

#[test]
fn what_was_made_goes_again_and_the_nic_is_as_before() {
    let start = switch::node(&["eth0", "eth1"]);
    let mut seen = start.clone();
    let mut b = bridge("br1", over("eth1"));
    b.mtu = Some(Mtu::new(9000).unwrap());
    settle(&want(vec![b]), &mut seen);
    assert_eq!(
        settle(&gone("br1", DeletionPolicy::Revert), &mut seen),
        "delete port eth1 from bridge br1\ndelete bridge br1\nset link eth1 (host) down mtu 1500\n"
    );
    assert_eq!(sorted(seen.clone()), sorted(start));
    assert_eq!(node::plan(&gone("br1", DeletionPolicy::Revert), &seen).bridges[0].verdict, Verdict::Removed);
}

#[test]
fn a_hand_made_bridge_is_adopted_and_only_named_columns_are_set() {
    let mut seen = switch::node(&["eth0", "eth1"]);
    let i = add_bridge(&mut seen, "br1");
    let ovs = seen.ovs.as_mut().unwrap();
    ovs.bridges[i].ports.extend([port("eth1"), port("vnet7")]);
    ovs.bridges[i].fail_mode = Some("secure".into());
    let start = seen.clone();
    let mut b = bridge("br1", over("eth1"));
    assert_eq!(
        settle(&want(vec![b.clone()]), &mut seen),
        "set link eth1 (host) up\nset bridge br1 external_ids:mooring-bridge=br1 external_ids:mooring-set=\nset port eth1 external_ids:mooring-was-up.eth1=false\n"
    );
    (b.mcast_snooping, b.allowed_vlans) = (true, "7".parse().unwrap());
    assert_eq!(
        settle(&want(vec![b.clone()]), &mut seen),
        "\
set bridge br1 mcast_snooping_enable=true external_ids:mooring-set=mcast_snooping external_ids:mooring-was-mcast_snooping=false
set port eth1 trunks=7 external_ids:mooring-set=trunks external_ids:mooring-was-trunks=
"
    );
    // No longer named: as it was.
    b.mcast_snooping = false;
    assert_eq!(
        settle(&want(vec![b]), &mut seen),
        "set bridge br1 mcast_snooping_enable=false external_ids:mooring-set= external_ids:mooring-was-mcast_snooping=\n"
    );
    settle(&gone("br1", DeletionPolicy::Revert), &mut seen);
    assert_eq!(sorted(seen), sorted(start));
}

#[test]
fn an_adopted_bridge_gets_the_mtu_back_that_was_asked_for() {
    let mut seen = switch::node(&["eth0"]);
    let i = add_bridge(&mut seen, "br1");
    let local = &mut seen.ovs.as_mut().unwrap().bridges[i].ports[0].interfaces[0];
    (local.mtu_request, local.mtu) = (Some(1450), Some(1450));
    let start = seen.clone();
    let mut b = bridge("br1", None);
    b.mtu = Some(Mtu::new(9000).unwrap());
    let text = settle(&want(vec![b.clone()]), &mut seen);
    assert!(text.contains("external_ids:mooring-was-mtu_request=1450") && text.contains(" mtu_request=9000"), "{text}");
    // Someone asks for less: drift.
    seen.ovs.as_mut().unwrap().bridges[i].ports[0].interfaces[0].mtu_request = Some(1400);
    assert_eq!(settle(&want(vec![b]), &mut seen), "set bridge br1 mtu_request=9000\n");
    let text = settle(&gone("br1", DeletionPolicy::Revert), &mut seen);
    assert!(text.contains(" mtu_request=1450"), "{text}");
    assert_eq!(sorted(seen), sorted(start));
}

#[test]
fn an_orphaned_bridge_only_loses_our_marks() {
    let mut seen = switch::node(&["eth0", "eth1"]);
    settle(&want(vec![bridge("br1", over("eth1"))]), &mut seen);
    let before = seen.clone();
    let p = node::plan(&gone("br1", DeletionPolicy::Orphan), &seen);
    assert_eq!(p.bridges[0].verdict, Verdict::Orphaned);
    apply(&p.bridges[0].plan, &mut seen);
    assert_eq!(node::plan(&gone("br1", DeletionPolicy::Orphan), &seen).bridges[0].verdict, Verdict::Removed);
    let mut unmarked = before;
    for b in &mut unmarked.ovs.as_mut().unwrap().bridges {
        b.external_ids.clear();
        b.ports.iter_mut().for_each(|p| p.external_ids.clear());
    }
    assert_eq!(seen, unmarked);
}

#[test]
fn a_bridge_in_use_is_not_removed() {
    let mut seen = switch::node(&["eth0", "eth1"]);
    settle(&want(vec![bridge("br1", over("eth1"))]), &mut seen);
    let mut veth = port("veth0123");
    veth.external_ids.insert("mooring-attachment".into(), "0123456789abcdef".into());
    seen.ovs.as_mut().unwrap().bridges[0].ports.extend([veth, port("vnet7")]);
    let b = &node::plan(&gone("br1", DeletionPolicy::Revert), &seen).bridges[0];
    assert!(b.plan.is_empty());
    assert_eq!((b.verdict.reason(), b.verdict.to_string().as_str()), ("InUse", "not removed, still in use by veth0123, vnet7"));
    // On an adopted bridge only attachments of ours count: the rest was there before.
    let mut seen = switch::node(&["eth0", "eth1"]);
    let i = add_bridge(&mut seen, "br1");
    seen.ovs.as_mut().unwrap().bridges[i].ports.push(port("vnet7"));
    settle(&want(vec![bridge("br1", over("eth1"))]), &mut seen);
    assert_eq!(node::plan(&gone("br1", DeletionPolicy::Revert), &seen).bridges[0].verdict, Verdict::Removing);
}

#[test]
fn a_bond_is_one_port_with_several_interfaces() {
    let mut seen = switch::node(&["eth0", "eth1", "eth2", "eth3"]);
    let mut d = bond("bond1", &["eth1", "eth2"]);
    (d.mode, d.lacp, d.updelay_ms) = (BondMode::BalanceTcp, Lacp::Active, 200);
    let t = settle(&want(vec![bridge("br1", Some(Uplink::Bond(d.clone())))]), &mut seen);
    assert!(t.contains("add port bond1 to bridge br1 with interfaces eth1 eth2\n"), "{t}");
    d.lacp = Lacp::Passive;
    assert_eq!(settle(&want(vec![bridge("br1", Some(Uplink::Bond(d.clone())))]), &mut seen), "set port bond1 lacp=passive\n");
    d.interfaces = vec![name("eth2"), name("eth3")];
    let t = settle(&want(vec![bridge("br1", Some(Uplink::Bond(d)))]), &mut seen);
    assert!(t.contains("delete port bond1 from bridge br1\nadd port bond1 to bridge br1 with interfaces eth2 eth3\n"), "{t}");
    // From the bond to one of its NICs.
    let t = settle(&want(vec![bridge("br1", over("eth2"))]), &mut seen);
    assert!(t.contains("delete port bond1 from bridge br1\nadd port eth2 to bridge br1\n"), "{t}");
}

#[test]
fn bonds_that_cannot_work_are_refused() {
    let seen = switch::node(&["eth0", "eth1", "eth2"]);
    let run = |b: Bond| refusal(&want(vec![bridge("br1", Some(Uplink::Bond(b)))]), &seen).1;
    assert_eq!(run(bond("bond1", &["eth1"])), "spec.uplink.bond \"bond1\": needs at least two interfaces");
    assert_eq!(run(bond("bond1", &["eth1", "eth1"])), "spec.uplink.bond \"bond1\": names eth1 twice");
    assert_eq!(
        run(bond("eth1", &["eth1", "eth2"])),
        "spec.uplink.bond \"eth1\": must not have the name of one of its interfaces"
    );
    assert_eq!(
        run(Bond { mode: BondMode::BalanceTcp, ..bond("bond1", &["eth1", "eth2"]) }),
        "spec.uplink.bond \"bond1\": mode balance-tcp needs lacp active or passive (ovs-vswitchd.conf.db(5))"
    );
    assert_eq!(
        run(bond("bond1", &["eth1", "eth9"])),
        "spec.uplink.bond.interfaces \"eth9\": there is no such NIC on this node, it has eth0, eth1, eth2"
    );
}

#[test]
fn second_bridge_on_same_uplink_is_refused() {
    let mut seen = switch::node(&["eth0", "eth1"]);
    let d = want(vec![bridge("br1", over("eth1")), bridge("br2", over("eth1"))]);
    assert_eq!(
        refusal(&d, &seen),
        (
            "UplinkShared".into(),
            "spec.uplink.interface \"eth1\": eth1 is the uplink of Bridge br1 on this node too, a NIC serves one bridge".into()
        )
    );
    assert_eq!(node::plan(&d, &seen).bridges[0].verdict, Verdict::Change);
    // One that is not ours holds it.
    let i = add_bridge(&mut seen, "other");
    seen.ovs.as_mut().unwrap().bridges[i].ports.push(port("eth1"));
    assert_eq!(
        refusal(&want(vec![bridge("br1", over("eth1"))]), &seen),
        ("UplinkInUse".into(), "spec.uplink.interface \"eth1\": eth1 is in bridge other".into())
    );
}

#[test]
fn uplinks_that_cannot_be_are_refused_with_their_reason() {
    let mut seen = switch::node(&["eth0", "eth1", "eth2", "wlan0"]);
    let mut child = net::link(50, "mv0", LinkKind::Macvlan { mode: MacvlanMode::Bridge });
    child.link_index = Some(seen.host.link(&name("eth1")).unwrap().index);
    let br = net::link(51, "virbr0", LinkKind::Bridge);
    let mut slave = net::link(52, "eth5", LinkKind::Physical);
    slave.master = Some(51);
    seen.host.links.extend([child, br, slave, net::link(53, "lo", LinkKind::Loopback)]);
    seen.host.addrs.push(Addr {
        dev: name("eth0"),
        addr: "192.168.1.2/24".parse().unwrap(),
        scope_link: false,
        permanent: true,
        tentative: false,
        dad_failed: false,
    });
    seen.host.addrs.push(Addr {
        dev: name("eth2"),
        addr: "fe80::2/64".parse().unwrap(),
        scope_link: true,
        permanent: true,
        tentative: false,
        dad_failed: false,
    });
    let run = |nic: &str| refusal(&want(vec![bridge("br1", over(nic))]), &seen);
    assert_eq!(
        run("eth9"),
        (
            "UplinkNotFound".into(),
            "spec.uplink.interface \"eth9\": there is no such NIC on this node, it has eth0, eth1, eth2, eth5".into()
        )
    );
    assert_eq!(run("eth0"), ("UplinkCarriesNodeAddress".into(), "spec.uplink.interface \"eth0\": eth0 has the node's address 192.168.1.2/24, which would be cut off; moving addresses is not implemented yet".into()));
    assert_eq!(
        run("eth1"),
        (
            "UplinkInUse".into(),
            "spec.uplink.interface \"eth1\": eth1 is the parent of macvlan interface mv0; a NIC has one receiver in the kernel"
                .into()
        )
    );
    assert_eq!(run("eth5"), ("UplinkInUse".into(), "spec.uplink.interface \"eth5\": eth5 belongs to virbr0".into()));
    for (nic, what) in [
        ("lo", "the loopback interface"),
        ("virbr0", "a Linux bridge"),
        ("wlan0", "a wireless interface"),
        ("mv0", "a macvlan interface"),
    ] {
        let (reason, text) = run(nic);
        assert_eq!(reason, "UplinkUnsupported");
        assert!(text.contains(what), "{text}");
    }
    // Only a link-local address: fine.
    settle(&want(vec![bridge("br1", over("eth2"))]), &mut seen.clone());
    let mut big = bridge("br1", over("eth2"));
    big.mtu = Some(Mtu::new(9500).unwrap());
    assert_eq!(
        refusal(&want(vec![big]), &seen),
        ("InvalidMtu".into(), "spec.mtu \"9500\": eth2 takes at most 9216 (spec.uplink.interface)".into())
    );
}

#[test]
fn names_and_switches_that_are_not_there_are_refused() {
    let seen = switch::node(&["eth0", "eth1"]);
    let none = Observed { ovs: None, ..seen.clone() };
    assert_eq!(refusal(&want(vec![bridge("br1", None)]), &none).0, "OvsUnavailable");
    // Nor is it known whether anything of ours is left.
    assert_eq!(refusal(&gone("br1", DeletionPolicy::Revert), &none).0, "OvsUnavailable");
    assert_eq!(
        refusal(&want(vec![bridge("eth1", None)]), &seen),
        (
            "NameInUse".into(),
            "metadata.name \"eth1\": an interface of this node has this name, and a bridge's local port needs it".into()
        )
    );
    let mut userspace = seen.clone();
    userspace.ovs.as_mut().unwrap().datapath_types = vec!["netdev".into()];
    let mut b = bridge("br1", None);
    b.datapath_type = Some(DatapathType::System);
    assert_eq!(
        refusal(&want(vec![b.clone()]), &userspace),
        ("DatapathUnavailable".into(), "spec.datapathType \"system\": this node's Open vSwitch offers netdev".into())
    );
    b.datapath_type = None;
    settle(&want(vec![b.clone()]), &mut userspace);
    assert_eq!(userspace.ovs.unwrap().bridges[0].datapath_type, "netdev");
    let mut kernel = seen;
    settle(&want(vec![b]), &mut kernel);
    assert_eq!(kernel.ovs.unwrap().bridges[0].datapath_type, "system");
}

#[test]
fn an_uplink_may_be_named_in_many_ways() {
    let mut seen = switch::node(&["eth0", "eth1", "eth2"]);
    let (mac, index) = (seen.host.links[1].mac.unwrap(), seen.host.links[1].index);
    seen.host.links[1].altnames = vec!["enp3s0".into()];
    let mut vlan = net::link(60, "eth1.5", LinkKind::Vlan { id: 5 });
    (vlan.mac, vlan.link_index) = (Some(mac), Some(index));
    seen.host.links.push(vlan);
    let mut def = Route::new(Cidr::default_v4(), Some("10.0.0.1".parse().unwrap()), name("eth2"));
    def.metric = Some(200);
    let better = Route { metric: Some(100), dev: name("eth1"), ..def.clone() };
    seen.host.routes.extend([def, better, Route::new("172.16.0.0/12".parse().unwrap(), None, name("eth2"))]);
    let port_of = |u: Uplink| {
        let mut s = seen.clone();
        settle(&want(vec![bridge("br1", Some(u))]), &mut s);
        s.ovs.unwrap().bridges[0].ports[1].name.clone()
    };
    assert_eq!(port_of(Uplink::Interface("enp3s0".into())), "eth1");
    assert_eq!(port_of(Uplink::Mac(mac)), "eth1");
    assert_eq!(port_of(Uplink::DefaultRoute), "eth1");
    assert_eq!(port_of(Uplink::CanReach("172.16.9.9".parse().unwrap())), "eth2");
    assert_eq!(port_of(Uplink::CanReach("8.8.8.8".parse().unwrap())), "eth1");
    let err = |u: Uplink, s: &Observed| refusal(&want(vec![bridge("br1", Some(u))]), s);
    assert_eq!(
        err(Uplink::CanReach("fd00::1".parse().unwrap()), &seen),
        ("UplinkNotFound".into(), "spec.uplink.canReach \"fd00::1\": the node has no route to it".into())
    );
    seen.host.links[2].mac = Some(mac);
    assert_eq!(
        err(Uplink::Mac(mac), &seen),
        ("UplinkAmbiguous".into(), format!("spec.uplink.mac \"{mac}\": eth1, eth2 have this hardware address, name one of them"))
    );
    // Slaves of a bond have its address: the bond is meant.
    let mut b = net::link(70, "bond0", LinkKind::Bond);
    b.mac = Some(mac);
    seen.host.links.push(b);
    (seen.host.links[1].master, seen.host.links[2].master) = (Some(70), Some(70));
    settle(&want(vec![bridge("br1", Some(Uplink::Mac(mac)))]), &mut seen);
    assert!(seen.ovs.unwrap().bridges[0].port("bond0").is_some());
}

#[test]
fn a_nic_that_is_in_the_bridge_already_may_have_an_address() {
    let mut seen = switch::node(&["eth0"]);
    let i = add_bridge(&mut seen, "br1");
    seen.ovs.as_mut().unwrap().bridges[i].ports.push(port("eth0"));
    seen.host.addrs.push(Addr {
        dev: name("eth0"),
        addr: "192.168.1.2/24".parse().unwrap(),
        scope_link: false,
        permanent: true,
        tentative: false,
        dad_failed: false,
    });
    settle(&want(vec![bridge("br1", over("eth0"))]), &mut seen);
    // The default route goes by the bridge itself: the NIC behind it is meant.
    seen.host.routes.push(Route::new(Cidr::default_v4(), Some("192.168.1.1".parse().unwrap()), name("br1")));
    assert_eq!(settle(&want(vec![bridge("br1", Some(Uplink::DefaultRoute))]), &mut seen), "");
}

#[test]
fn an_uplink_stays_when_the_route_that_it_was_found_by_goes_by_the_bridge() {
    let router = "192.168.1.1".parse().unwrap();
    let by = |dev: &str| Route::new(Cidr::default_v4(), Some(router), name(dev));
    for uplink in [Uplink::DefaultRoute, Uplink::CanReach(router)] {
        for kind in [LinkKind::Physical, LinkKind::Veth] {
            let mut seen = switch::node(&["eth0", "eth1"]);
            seen.host.links[0].kind = kind;
            seen.host.routes = vec![by("eth0")];
            let desired = want(vec![bridge("br1", Some(uplink.clone()))]);
            settle(&desired, &mut seen);
            assert!(seen.ovs.as_ref().unwrap().bridges[0].port("eth0").is_some());
            seen.host.routes = vec![by("br1")];
            assert_eq!(settle(&desired, &mut seen), "");
            // Somebody's second NIC in the bridge changes nothing: the one that we put there is meant.
            seen.ovs.as_mut().unwrap().bridges[0].ports.push(port("eth1"));
            assert_eq!(settle(&desired, &mut seen), "");
        }
    }
    // Made by hand, with two NICs, or with none: nobody can tell, and nothing is touched.
    for (nics, text) in [(vec!["eth0", "eth1"], "2 NICs [eth0, eth1]"), (vec![], "0 NICs []")] {
        let mut seen = switch::node(&["eth0", "eth1"]);
        let i = add_bridge(&mut seen, "br1");
        seen.ovs.as_mut().unwrap().bridges[i].ports.extend(nics.into_iter().map(port));
        seen.host.routes = vec![by("br1")];
        assert_eq!(
            refusal(&want(vec![bridge("br1", Some(Uplink::DefaultRoute))]), &seen),
            (
                "UplinkAmbiguous".into(),
                format!(
                    "spec.uplink.defaultRoute \"true\": the route goes by the bridge itself, which has {text}, name one of them"
                )
            )
        );
    }
}

#[test]
fn an_uplink_that_a_removed_bridge_still_holds_is_refused_until_it_is_free() {
    let mut seen = switch::node(&["eth0", "eth1"]);
    settle(&want(vec![bridge("br1", over("eth1"))]), &mut seen);
    let desired = NodeDesired {
        bridges: vec![bridge("br2", over("eth1"))],
        removed: vec![BridgeRemoved { name: name("br1"), deletion_policy: DeletionPolicy::Revert }],
    };
    let p = node::plan(&desired, &seen);
    assert_eq!((p.bridges[0].verdict.reason(), p.bridges[1].verdict.reason()), ("Removing", "UplinkInUse"));
    apply(&p.bridges[0].plan, &mut seen);
    let p = node::plan(&desired, &seen);
    assert_eq!((p.bridges[0].verdict.reason(), p.bridges[1].verdict.reason()), ("Removed", "Changing"));
}

#[test]
fn an_uplink_goes_from_one_bridge_to_another() {
    let mut seen = switch::node(&["eth0", "eth1", "eth2"]);
    settle(&want(vec![bridge("br1", over("eth1"))]), &mut seen);
    let t = settle(&want(vec![bridge("br1", over("eth2"))]), &mut seen);
    assert_eq!(t, "set link eth1 (host) down\ndelete port eth1 from bridge br1\nadd port eth2 to bridge br1\n");
}

fn uplinks() -> impl Strategy<Value = Option<Uplink>> {
    prop_oneof![
        Just(None),
        prop::sample::select(vec!["eth1", "eth2", "eth3"]).prop_map(over),
        Just(Some(Uplink::Bond(bond("bond1", &["eth2", "eth3"])))),
        (any::<bool>(), 0u32..3).prop_map(|(slb, d)| {
            let mode = if slb { BondMode::BalanceSlb } else { BondMode::ActiveBackup };
            Some(Uplink::Bond(Bond { mode, updelay_ms: d * 100, downdelay_ms: d, ..bond("bond1", &["eth1", "eth2", "eth3"]) }))
        }),
    ]
}

prop_compose! {
    fn desired()(uplink in uplinks(), vlans in prop::sample::select(vec!["", "7", "100-103"]), mtu in prop::sample::select(vec![None, Some(1400u64), Some(9000)]), secure: bool, mcast: bool, mac: bool) -> BridgeDesired {
        BridgeDesired {
            allowed_vlans: if vlans.is_empty() { Default::default() } else { vlans.parse().unwrap() },
            mtu: mtu.map(|m| Mtu::new(m).unwrap()),
            fail_mode: if secure { FailMode::Secure } else { FailMode::Standalone },
            mcast_snooping: mcast,
            hwaddr: mac.then(|| "02:11:11:11:11:11".parse().unwrap()),
            ..bridge("br1", uplink)
        }
    }
}

prop_compose! {
    /// A node, perhaps with a br1 made by hand.
    fn start()(by_hand: bool, asked in prop::sample::select(vec![None, Some(1450)]), nic in prop::sample::select(vec!["", "eth1", "eth2"]), trunks in prop::sample::select(vec![vec![], vec![0u16, 5]]), secure in prop::sample::select(vec![None, Some("secure"), Some("standalone")]), mcast: bool, foreign: bool, hwaddr: bool) -> Observed {
        let mut seen = switch::node(&["eth0", "eth1", "eth2", "eth3"]);
        if by_hand {
            let i = add_bridge(&mut seen, "br1");
            let b = &mut seen.ovs.as_mut().unwrap().bridges[i];
            b.fail_mode = secure.map(Into::into);
            b.mcast_snooping = mcast;
            b.ports[0].interfaces[0].mtu_request = asked;
            b.ports[0].interfaces[0].mtu = asked.or(Some(1500));
            if hwaddr { b.other_config.insert("hwaddr".into(), "02:22:22:22:22:22".into()); }
            b.other_config.insert("mac-aging-time".into(), "30".into());
            b.external_ids.insert("theirs".into(), "yes".into());
            if !nic.is_empty() { b.ports.push(model::observed::OvsPort { trunks, ..port(nic) }); }
            if foreign { b.ports.push(port("vnet7")); }
        }
        seen
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever the specs, one after the other: a plan that is not refused makes it so, a second one is empty, every
    /// prefix of it can be taken back, and the removal at the end gives the former state exactly.
    #[test]
    fn plans_converge_undo_and_revert_exactly(start in start(), specs in prop::collection::vec(desired(), 1..5)) {
        let mut seen = start.clone();
        for d in specs {
            let desired = want(vec![d]);
            let plan = node::plan(&desired, &seen).bridges.remove(0);
            if let Verdict::Refused { .. } = plan.verdict {
                prop_assert!(plan.plan.is_empty());
                continue;
            }
            let before = sorted(seen.clone());
            for done in 0..=plan.plan.steps.len() {
                let mut s = seen.clone();
                apply(&Plan { steps: plan.plan.steps[..done].to_vec() }, &mut s);
                apply(&plan.plan.undo(done), &mut s);
                prop_assert_eq!(sorted(s), before.clone(), "after {} steps of\n{}", done, plan.plan);
            }
            apply(&plan.plan, &mut seen);
            prop_assert_eq!(node::verify(&desired, &seen), vec![]);
        }
        let removal = node::plan(&gone("br1", DeletionPolicy::Revert), &seen).bridges.remove(0);
        prop_assert_ne!(removal.verdict.reason(), "InUse");
        apply(&removal.plan, &mut seen);
        prop_assert_eq!(sorted(seen), sorted(start));
    }
}
