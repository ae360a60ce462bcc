//! Steps of Open vSwitch against a real ovsdb-server and ovs-vswitchd (userspace datapath) in a namespace of their own,
//! judged by `ovs-vsctl`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../netlink/tests/support/netns.rs"]
mod common;
#[path = "lab/switch.rs"]
mod switch;

use std::time::Duration;

use common::{ip, name, netns, nic};
use model::observed::{LookOvs, Scope};
use model::{Owner, RunBy};
use netlink::Netns;
use planner::Step;
use planner::step::{Bridge, BridgeSet, Interface, Port, PortSet};
use plumbing::{Host, HostError, LinuxHost, StepError, What};
use switch::{OWNER, Switch, apply, bridge, plan, port, tag, veth, wait_until};

#[tokio::test]
async fn bridges_and_ports_are_made_changed_and_taken_away() {
    let (switch, pod) = (Switch::start(), netns());
    let host = switch.host().await;
    let before = switch.picture();
    let set = BridgeSet {
        datapath_type: Some("netdev".into()),
        fail_mode: Some(Some("secure".into())),
        mcast_snooping: Some(true),
        other_config: [("hwaddr".into(), Some("0a:00:00:00:00:01".into()))].into(),
        external_ids: [("mooring-bridge".into(), Some("br1".into()))].into(),
        mtu_request: Some(Some(1400)),
    };
    let made = plan(
        [
            [Step::AddBridge(Bridge { name: name("br1"), set })].to_vec(),
            veth("veth1", "net1").to_vec(),
            veth("veth2", "net2").to_vec(),
            [
                port("br1", "veth1", PortSet { vlan_mode: Some(Some("access".into())), ..tag(100) }),
                port("br1", "veth2", PortSet { trunks: Some("100-102,200".parse().unwrap()), ..PortSet::default() }),
            ]
            .to_vec(),
        ]
        .concat(),
    );
    host.apply(Some(&pod), &made).await.unwrap();

    assert_eq!(switch.vsctl("list-ports br1"), "veth1\nveth2");
    assert_eq!(switch.vsctl("get Bridge br1 fail_mode mcast_snooping_enable datapath_type"), "secure\ntrue\nnetdev");
    assert_eq!(switch.vsctl("get Bridge br1 other_config external_ids"), "{hwaddr=\"0a:00:00:00:00:01\"}\n{mooring-bridge=br1}");
    assert_eq!(switch.vsctl("get Interface br1 type mtu_request"), "internal\n1400");
    assert_eq!(switch.vsctl("get Port veth1 tag vlan_mode"), "100\naccess");
    assert_eq!(switch.vsctl("get Port veth2 tag trunks"), "[]\n[100, 101, 102, 200]");
    assert_eq!(
        switch.vsctl("get Port veth1 external_ids"),
        format!("{{mooring-attachment=\"{OWNER}\", mooring-by=agent, owner=mooring.dev}}")
    );
    for port in ["veth1", "veth2"] {
        assert!(switch.vsctl(&format!("get Interface {port} ofport")).parse::<i64>().unwrap() > 0, "apply waits for it");
    }

    let seen = host.observe(None, &Scope { ovs: LookOvs::All, ..Scope::default() }).await.unwrap().ovs.unwrap();
    let br1 = seen.bridge("br1").unwrap();
    assert_eq!(br1.ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["br1", "veth1", "veth2"]);
    assert_eq!((br1.fail_mode.as_deref(), br1.mcast_snooping, br1.datapath_type.as_str()), (Some("secure"), true, "netdev"));
    assert_eq!(br1.port("veth2").unwrap().trunks, [100, 101, 102, 200]);
    assert_eq!(seen.find_interface("veth1").unwrap().1.tag, Some(100));
    assert!(seen.datapath_types.contains(&"netdev".to_owned()));
    let owner = Owner { attachment: OWNER.parse().unwrap(), by: RunBy::Agent };
    let marked = host.find_marked(None).await.unwrap();
    assert!(marked.iter().all(|m| m.owner == owner) && marked.len() == 4, "{marked:?}");
    assert!(marked.iter().any(|m| m.what == What::Port { bridge: "br1".into(), port: "veth1".into() }));

    let set_port = Step::SetPort {
        bridge: name("br1"),
        name: "veth1".into(),
        set: PortSet {
            tag: Some(None),
            trunks: Some("7".parse().unwrap()),
            vlan_mode: Some(None),
            external_ids: [("owner".into(), None), ("new".into(), Some("1".into()))].into(),
            ..PortSet::default()
        },
        was: PortSet {
            trunks: Some(model::Trunks::default()),
            vlan_mode: Some(Some("access".into())),
            external_ids: [("owner".into(), Some("mooring.dev".into())), ("new".into(), None)].into(),
            ..tag(100)
        },
    };
    let set_bridge = Step::SetBridge {
        name: name("br1"),
        set: BridgeSet {
            fail_mode: Some(None),
            other_config: [("hwaddr".into(), None)].into(),
            mtu_request: Some(None),
            ..BridgeSet::default()
        },
        was: BridgeSet {
            fail_mode: Some(Some("secure".into())),
            other_config: [("hwaddr".into(), Some("0a:00:00:00:00:01".into()))].into(),
            mtu_request: Some(Some(1400)),
            ..BridgeSet::default()
        },
    };
    let between = switch.picture();
    let change = plan([set_port, set_bridge]);
    host.apply(None, &change).await.unwrap();
    assert_eq!(switch.vsctl("get Port veth1 tag trunks vlan_mode"), "[]\n[7]\n[]");
    assert_eq!(switch.vsctl("get Port veth1 external_ids:new"), "\"1\"");
    assert!(!switch.vsctl("get Port veth1 external_ids").contains("owner"));
    assert_eq!(switch.vsctl("get Bridge br1 fail_mode other_config"), "[]\n{}");
    host.apply(None, &change.undo(2)).await.unwrap();
    assert_eq!(switch.picture(), between);

    host.apply(Some(&pod), &made.undo(made.steps.len())).await.unwrap();
    wait_until("all is gone", || switch.picture() == before);
    // Twice is as good as once.
    let again = made.steps.iter().filter_map(Step::inverse).filter(|s| !matches!(s, Step::SetLink { .. }));
    apply(&host, &pod, again).await.unwrap();
}

#[tokio::test]
async fn whichever_step_fails_the_switch_is_as_before() {
    let (switch, pod) = (Switch::start(), netns());
    let _far = nic(&switch.netns, "eth1");
    let host = switch.host().await;
    apply(&host, &pod, [bridge("br0")]).await.unwrap();
    let set_port = Step::SetPort { bridge: name("br0"), name: "veth1".into(), set: tag(7), was: tag(100) };
    let set_bridge = Step::SetBridge {
        name: name("br0"),
        set: BridgeSet { mcast_snooping: Some(true), ..BridgeSet::default() },
        was: BridgeSet { mcast_snooping: Some(false), ..BridgeSet::default() },
    };
    let steps = [
        vec![bridge("br1"), port("br1", "eth1", PortSet::default())],
        veth("veth1", "net1").to_vec(),
        vec![set_bridge, port("br0", "veth1", tag(100)), set_port],
        veth("veth2", "net2").to_vec(),
        vec![port("br1", "veth2", tag(200))],
    ]
    .concat();
    let plan = plan(steps);
    let before = switch.picture();
    for k in 0..plan.steps.len() {
        let e = host.apply_failing_at(Some(&pod), &plan, k).await.unwrap_err();
        assert!(e.index == k && e.undone(), "step {k}: {e}");
        wait_until(&format!("step {k} ({}) undone:\n{}\nis\n{before}", plan.steps[k], switch.picture()), || {
            switch.picture() == before
        });
        assert_eq!(ip(&pod, "link show").as_array().unwrap().len(), 1, "only lo");
    }
    host.apply(Some(&pod), &plan).await.unwrap();
}

#[tokio::test]
async fn an_interface_that_cannot_be_used_is_named_and_all_is_undone() {
    let (switch, pod) = (Switch::start(), netns());
    let host = switch.host().await;
    apply(&host, &pod, [bridge("br1")]).await.unwrap();
    let before = switch.picture();
    let [add, up] = veth("veth1", "net1");
    let e = apply(&host, &pod, [add, up, port("br1", "veth1", tag(1)), port("br1", "absent0", tag(2))]).await.unwrap_err();
    assert!(e.index == 3 && e.undone(), "{e}");
    let text = e.to_string();
    assert!(
        text.starts_with("failed to add port absent0 to bridge br1 tag 2: open vswitch could not use interface absent0: "),
        "{text}"
    );
    assert!(text.contains("No such device"), "{text}");
    wait_until("undone", || switch.picture() == before);
}

#[tokio::test]
async fn what_is_in_the_way_is_named() {
    let (switch, pod) = (Switch::start(), netns());
    let _far = nic(&switch.netns, "eth1");
    let host = switch.host().await;
    apply(&host, &pod, [bridge("br1"), bridge("br2"), port("br1", "eth1", PortSet::default())]).await.unwrap();
    let bond = |interfaces: &[&str]| {
        let interfaces = interfaces.iter().map(|i| Interface { name: (*i).into(), ..Interface::default() }).collect();
        Step::AddPort { bridge: name("br2"), port: Port { name: "bond0".into(), interfaces, set: PortSet::default() } }
    };
    for (step, text) in [
        (port("br2", "eth1", PortSet::default()), "failed to add port eth1 to bridge br2: port eth1 is on bridge br1 already"),
        (
            bond(&["eth9", "eth1"]),
            "failed to add port bond0 to bridge br2 with interfaces eth9 eth1: interface eth1 belongs to port eth1 of bridge br1 already",
        ),
        (bridge("br1"), "failed to add bridge br1: bridge br1 exists already"),
        (bridge("eth1"), "failed to add bridge eth1: port eth1 is on bridge br1 already"),
        (port("br9", "eth9", PortSet::default()), "failed to add port eth9 to bridge br9: bridge br9 does not exist"),
        (
            Step::SetPort { bridge: name("br1"), name: "eth9".into(), set: tag(1), was: tag(2) },
            "failed to set port eth9 tag=1: port eth9 does not exist",
        ),
    ] {
        assert_eq!(apply(&host, &pod, [step]).await.unwrap_err().to_string(), text);
    }
}

#[tokio::test]
async fn a_port_is_found_by_name_and_mark_wherever_it_is() {
    let (switch, pod) = (Switch::start(), netns());
    let host = switch.host().await;
    let steps = [vec![bridge("br1"), bridge("br2")], veth("veth1", "net1").to_vec(), vec![port("br1", "veth1", tag(1))]].concat();
    apply(&host, &pod, steps).await.unwrap();
    let del = port("br1", "veth1", tag(1)).inverse().unwrap();
    // Somebody moves it, row and all.
    let row = switch.vsctl("get Port veth1 _uuid");
    switch.vsctl(&format!("remove Bridge br1 ports {row} -- add Bridge br2 ports {row}"));
    assert_eq!((switch.vsctl("list-ports br1"), switch.vsctl("list-ports br2")), (String::new(), "veth1".to_owned()));
    apply(&host, &pod, [del.clone()]).await.unwrap();
    assert_eq!(switch.vsctl("list-ports br2"), "");

    // A port of somebody else that took the name.
    switch.vsctl("add-port br1 veth1 -- set Port veth1 external_ids:mooring-attachment=ffffffffffffffff");
    tokio::time::sleep(Duration::from_millis(200)).await;
    apply(&host, &pod, [del]).await.unwrap();
    assert_eq!(switch.vsctl("list-ports br1"), "veth1", "left alone");
}

#[tokio::test]
async fn a_port_can_be_replaced_by_one_of_its_name_in_one_transaction() {
    let (switch, pod) = (Switch::start(), netns());
    let host = switch.host().await;
    let made = [vec![bridge("br1"), bridge("br2")], veth("veth1", "net1").to_vec(), vec![port("br1", "veth1", tag(1))]].concat();
    apply(&host, &pod, made).await.unwrap();
    let old = port("br1", "veth1", tag(1));
    let replace = plan([old.inverse().unwrap(), port("br2", "veth1", tag(2))]);
    host.apply(None, &replace).await.unwrap();
    assert_eq!((switch.vsctl("list-ports br1"), switch.vsctl("list-ports br2")), (String::new(), "veth1".to_owned()));
    host.apply(None, &replace.undo(2)).await.unwrap();
    assert_eq!((switch.vsctl("list-ports br1"), switch.vsctl("get Port veth1 tag")), ("veth1".to_owned(), "1".to_owned()));
    // Made and taken away by one plan.
    let other = port("br2", "veth9", tag(9));
    host.apply(None, &plan([other.clone(), other.inverse().unwrap()])).await.unwrap();
    assert_eq!(switch.vsctl("list-ports br2"), "");
    host.apply(None, &plan([Step::DelBridge(Bridge { name: name("br1"), set: BridgeSet::default() }), bridge("br1")]))
        .await
        .unwrap();
    assert_eq!(switch.vsctl("list-ports br1"), "");
}

#[tokio::test]
async fn attachments_at_the_same_time_do_not_undo_each_other() {
    let switch = Switch::start();
    // As the agent, and as a binary that runs alone.
    let (one, two) = (switch.host().await, switch.host().await);
    apply(&one, &netns(), [bridge("br1")]).await.unwrap();
    let pods: Vec<Netns> = (0..8).map(|_| netns()).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for (i, pod) in pods.iter().enumerate() {
        let (host, pod) = (if i % 2 == 0 { one.clone() } else { two.clone() }, pod.clone());
        let veth_name = format!("veth{i}");
        tasks.spawn(async move {
            let [add, up] = veth(&veth_name, "net1");
            // The second host may not have seen the bridge yet.
            let scope = Scope { ovs: LookOvs::All, ..Scope::default() };
            while host.observe(None, &scope).await.unwrap().ovs.unwrap().bridge("br1").is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            apply(&host, &pod, [add, up, port("br1", &veth_name, tag(i64::try_from(i).unwrap()))]).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(switch.vsctl("list-ports br1").lines().count(), 8);
}

#[tokio::test]
async fn a_bridge_that_was_replaced_meanwhile_is_not_written_to() {
    let (switch, pod) = (Switch::start(), netns());
    let _far = nic(&switch.netns, "eth1");
    let host = switch.host().await;
    apply(&host, &pod, [bridge("br1")]).await.unwrap();
    // `vsctl` blocks the only thread: the connection mostly sends before it learns of the new bridge. Where it learns in time,
    // the port is on that one.
    let mut refused = false;
    for _ in 0..100 {
        if refused {
            break;
        }
        switch.vsctl("--if-exists del-port br1 eth1");
        tokio::time::sleep(Duration::from_millis(50)).await;
        switch.vsctl("del-br br1 -- add-br br1 -- set Bridge br1 datapath_type=netdev");
        match apply(&host, &pod, [port("br1", "eth1", PortSet::default())]).await {
            Ok(()) => assert_eq!(switch.vsctl("list-ports br1"), "eth1"),
            // On a busy machine also where it still knows the port of the round before.
            Err(e) => {
                assert_eq!(switch.vsctl("list-ports br1"), "", "{e}");
                refused |= matches!(*e.cause, StepError::OvsChanged);
            }
        }
    }
    assert!(refused, "a bridge that was replaced was known in time 100 times in a row");
}

#[tokio::test]
async fn a_bond_is_one_port_with_several_interfaces() {
    let (switch, pod) = (Switch::start(), netns());
    let _far = [nic(&switch.netns, "eth1"), nic(&switch.netns, "eth2")];
    let host = switch.host().await;
    let interfaces = ["eth1", "eth2"].map(|i| Interface { name: i.into(), ..Interface::default() }).to_vec();
    let set = PortSet {
        bond_mode: Some(Some("active-backup".into())),
        lacp: Some(Some("off".into())),
        bond_updelay: Some(100),
        bond_downdelay: Some(200),
        ..PortSet::default()
    };
    let bond = Step::AddPort { bridge: name("br1"), port: Port { name: "bond0".into(), interfaces, set } };
    let plan = plan([bridge("br1"), bond]);
    host.apply(Some(&pod), &plan).await.unwrap();
    assert_eq!(switch.vsctl("list-ports br1"), "bond0");
    assert_eq!(switch.vsctl("list-ifaces br1"), "eth1\neth2");
    assert_eq!(switch.vsctl("get Port bond0 bond_mode lacp bond_updelay bond_downdelay"), "active-backup\noff\n100\n200");
    let seen = host.observe(None, &Scope { ovs: LookOvs::All, ..Scope::default() }).await.unwrap().ovs.unwrap();
    assert_eq!(seen.find_interface("eth2").unwrap().1.name, "bond0");
    host.apply(Some(&pod), &plan.undo(2)).await.unwrap();
    assert_eq!(switch.vsctl("list-br"), "");
}

#[tokio::test]
async fn a_switch_that_does_not_take_a_port_up_is_told_and_all_is_undone() {
    let (mut switch, pod) = (Switch::start(), netns());
    let host = switch.host().await;
    apply(&host, &pod, [bridge("br1")]).await.unwrap();
    let before = switch.picture();
    switch.vswitchd.kill().unwrap();
    switch.vswitchd.wait().unwrap();
    let [add, up] = veth("veth1", "net1");
    let e = apply(&host, &pod, [add, up, port("br1", "veth1", tag(1))]).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        "failed to add port veth1 to bridge br1 tag 1: ovs-vswitchd gave interface veth1 no ofport within 10 s; ovs-vswitchd is not \
         running or hangs"
    );
    let ports = |s: &Switch| s.vsctl("--no-wait list-ports br1");
    assert_eq!(ports(&switch), "");
    assert!(before.contains("br1") && ip(&pod, "link show").as_array().unwrap().len() == 1);
}

#[tokio::test]
async fn a_database_that_was_away_is_not_taken_for_an_empty_one() {
    let (mut switch, pod) = (Switch::start(), netns());
    let host = switch.host().await;
    apply(&host, &pod, [bridge("br1")]).await.unwrap();
    switch.ovsdb.kill().unwrap();
    switch.ovsdb.wait().unwrap();
    std::fs::remove_file(switch.sock()).ok();
    // The connection's end is noticed as soon as the runtime runs again.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let scope = Scope { ovs: LookOvs::All, ..Scope::default() };
    let (looked, applied) = tokio::join!(host.observe(None, &scope), apply(&host, &pod, [bridge("br2")]));
    assert!(matches!(looked, Err(HostError::Ovs { .. })), "{looked:?}");
    let e = applied.unwrap_err();
    assert!(matches!(*e.cause, StepError::OvsDown(_)) && e.undone(), "{e}");
    switch.restart_ovsdb();
    assert!(host.observe(None, &scope).await.unwrap().ovs.unwrap().bridge("br1").is_some());
    apply(&host, &pod, [bridge("br2")]).await.unwrap();
}

#[tokio::test]
async fn a_host_without_open_vswitch_says_so() {
    let host_ns = netns();
    let pod = netns();
    let _far = nic(&host_ns, "eth1");
    for endpoint in [None, Some("unix:/nonexistent/mt-db.sock".parse().unwrap())] {
        let host = LinuxHost::in_netns(host_ns.clone(), endpoint).await.unwrap();
        let seen = host.observe(None, &Scope { ovs: LookOvs::All, ..Scope::default() }).await.unwrap();
        assert_eq!(seen.ovs, None);
        let [add, up] = veth("veth1", "net1");
        let e = apply(&host, &pod, [add, up, port("br1", "veth1", tag(1))]).await.unwrap_err();
        assert_eq!(
            e.to_string(),
            "failed to add port veth1 to bridge br1 tag 1: this host has no open vswitch; openvswitch is not installed or not running on \
             this host"
        );
        assert!(host.find_marked(Some(&pod)).await.unwrap().is_empty(), "undone");
    }
}

#[tokio::test]
async fn changes_of_the_database_are_told() {
    let (switch, pod) = (Switch::start(), netns());
    let host = switch.host().await;
    apply(&host, &pod, [bridge("br1")]).await.unwrap();
    let mut changes = host.changes();
    tokio::time::sleep(Duration::from_millis(500)).await;
    changes.mark_unchanged();
    switch.vsctl("set Bridge br1 external_ids:drift=1");
    // What ovs-vswitchd writes about a new bridge may come late, and is a change as well.
    loop {
        tokio::time::timeout(Duration::from_secs(60), changes.changed()).await.unwrap().unwrap();
        let seen = host.observe(None, &Scope { ovs: LookOvs::All, ..Scope::default() }).await.unwrap().ovs.unwrap();
        if let Some(drift) = seen.bridge("br1").unwrap().external_ids.get("drift") {
            assert_eq!(drift, "1");
            break;
        }
    }
}
