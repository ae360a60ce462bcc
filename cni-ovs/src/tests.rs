//! What is accepted, refused and planned, against recordings of ovs-cni.

use super::*;
use cni::Request;
use cni::request::RawCall;
use cni_plugin::garbage::{PROCESS_KEY, RUNTIME_KEY, Stays};
use model::observed::{Link, LinkKind, NetnsState, Observed, Ovs, OvsBridge, OvsInterface, OvsPort};
use model::{AttachmentId, IfName, Mtu, Owner, RunBy, Tag, Trunks};
use planner::step::Probe;
use planner::{Attach, Class, Gateways, MainPlugin, Nic, NicRoute, Plan, Refusal, Step};
use serde_json::{Value, json};

fn call(verb: &str, args: &str) -> RawCall {
    RawCall {
        command: verb.into(),
        container_id: "c1".into(),
        netns: "/run/netns/a".into(),
        ifname: "net1".into(),
        args: args.into(),
        path: "/opt/cni/bin".into(),
    }
}

fn request(verb: &str, args: &str, extra: Value) -> Request {
    let mut conf = json!({"cniVersion":"1.0.0","name":"net","type":"cni-ovs","bridge":"br1","prevResult":{}});
    for (k, v) in extra.as_object().unwrap() {
        conf[k] = v.clone();
    }
    Request::from_value(&call(verb, args), conf).unwrap()
}

fn conf(extra: Value) -> Result<Conf, Refusal> {
    Conf::parse(&request("ADD", "", extra), None)
}

fn refusal(extra: Value) -> String {
    conf(extra).unwrap_err().to_string()
}

fn tag(t: i64) -> Tag {
    Tag::new(t).unwrap()
}

fn trunks(tags: &[i64]) -> Trunks {
    tags.iter().map(|t| tag(*t)).collect()
}

fn name(s: &str) -> IfName {
    IfName::new(s).unwrap()
}

fn port(name: &str, kind: &str) -> OvsPort {
    OvsPort {
        name: name.into(),
        interfaces: vec![OvsInterface {
            name: name.into(),
            kind: kind.into(),
            ofport: Some(1),
            mtu: Some(1500),
            ..OvsInterface::default()
        }],
        ..OvsPort::default()
    }
}

fn seen() -> Observed {
    let br1 = OvsBridge {
        name: "br1".into(),
        datapath_type: "netdev".into(),
        ports: vec![port("br1", "internal"), port("ens256", "")],
        ..OvsBridge::default()
    };
    let other = OvsBridge { name: "br2".into(), ports: vec![port("br2", "internal")], ..OvsBridge::default() };
    Observed { ovs: Some(Ovs { bridges: vec![br1, other], ..Ovs::default() }), ..Observed::default() }
}

fn attach() -> Attach {
    Attach {
        owner: Owner { attachment: AttachmentId::of("c1", "net1"), by: RunBy::Agent },
        pod: Some(model::PodRef { namespace: "default".into(), name: "a".into(), uid: "u1".into() }),
        container_id: "c1".into(),
        netns: Some("/run/netns/a".into()),
        ifname: name("net1"),
        network: "net".into(),
        mac: None,
        nic: Nic {
            addrs: vec!["10.6.1.10/16".parse().unwrap()],
            gateways: Gateways { v4: "10.6.0.1".parse().ok(), v6: None },
            routes: vec![NicRoute::new(model::Cidr::default_v4(), None)],
            has_ipam: true,
        },
        probe: Probe::default(),
    }
}

fn host_name() -> IfName {
    attach().owner.attachment.link_name("veth")
}

fn planned_port(plan: &Plan) -> planner::step::Port {
    plan.steps.iter().find_map(|s| if let Step::AddPort { port, .. } = s { Some(port.clone()) } else { None }).unwrap()
}

#[test]
fn the_vlan_truth_table_is_that_of_ovs_cni() {
    let vlans = |extra| {
        let c = conf(extra).unwrap();
        (c.vlans, c.dropped_vlan.map(Tag::get))
    };
    assert_eq!(vlans(json!({"vlan":100})), (Vlans::Access(tag(100)), None));
    assert_eq!(vlans(json!({"vlan":0})), (Vlans::Access(tag(0)), None));
    assert_eq!(vlans(json!({})), (Vlans::Trunk(Trunks::default()), None));
    assert_eq!(vlans(json!({"trunk":[]})), (Vlans::Trunk(Trunks::default()), None));
    assert_eq!(vlans(json!({"trunk":[{"id":42},{"minID":5,"maxID":7}]})), (Vlans::Trunk(trunks(&[5, 6, 7, 42])), None));
    assert_eq!(vlans(json!({"trunk":[{"id":42,"minID":5,"maxID":5}]})), (Vlans::Trunk(trunks(&[5, 42])), None));
    assert_eq!(vlans(json!({"vlan":0,"trunk":[{"id":42}]})), (Vlans::Trunk(trunks(&[42])), None));
    // No effect, as in ovs-cni, but told.
    assert_eq!(vlans(json!({"vlan":9,"trunk":[{"id":42}]})), (Vlans::Trunk(trunks(&[42])), Some(9)));
}

#[test]
fn every_vlan_mode_of_open_vswitch_can_be_asked_for() {
    let list = json!([{"id":42},{"minID":5,"maxID":6}]);
    let (native, carried) = (tag(9), trunks(&[5, 6, 42]));
    for (extra, want) in [
        (json!({"vlan_mode":"access","vlan":9}), Vlans::Access(native)),
        (json!({"vlan_mode":"access","vlan":0}), Vlans::Access(tag(0))),
        (json!({"vlan_mode":"trunk"}), Vlans::Trunk(Trunks::default())),
        (json!({"vlan_mode":"trunk","vlan":0,"trunk":list}), Vlans::Trunk(carried.clone())),
        (json!({"vlan_mode":"native-tagged","vlan":9}), Vlans::NativeTagged { native, trunks: Trunks::default() }),
        (json!({"vlan_mode":"native-untagged","vlan":9,"trunk":list}), Vlans::NativeUntagged { native, trunks: carried.clone() }),
        (json!({"vlan_mode":"dot1q-tunnel","vlan":9}), Vlans::Dot1qTunnel(native)),
        (json!({"vlan_mode":"","vlan":9}), Vlans::Access(native)),
    ] {
        let c = conf(extra.clone()).unwrap();
        assert_eq!((&c.vlans, c.dropped_vlan), (&want, None), "{extra}");
        let port = planned_port(&c.plan_add(&attach(), &seen()).unwrap());
        assert_eq!(port.set.vlan_mode, Some(Some(want.mode().to_owned())));
        assert_eq!((port.set.tag.flatten(), port.set.trunks.unwrap_or_default()), want.columns());
    }
    let p = conf(json!({"vlan_mode":"native-untagged","vlan":9,"trunk":list})).unwrap().plan_add(&attach(), &seen()).unwrap();
    let line = format!("add port {} to bridge br1 tag 9 trunks 5-6,42 vlan_mode native-untagged\n", host_name());
    assert!(p.to_string().contains(&line), "{p}");
    // The flat file may name it too.
    let c = Conf::parse(&request("ADD", "", json!({})), Some(r#"{"vlan_mode":"dot1q-tunnel","vlan":7}"#)).unwrap();
    assert_eq!(c.vlans, Vlans::Dot1qTunnel(tag(7)));
}

#[test]
fn vlan_modes_that_contradict_what_stands_beside_them_are_refused() {
    let mode = |mode: &str, extra: Value| {
        let mut all = json!({"vlan_mode": mode});
        all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        refusal(all)
    };
    let id = json!([{"id":42}]);
    assert_eq!(
        mode("qinq", json!({"vlan":9})),
        "vlan_mode \"qinq\": must be access, trunk, native-tagged, native-untagged or dot1q-tunnel (ovs-vswitchd.conf.db(5))"
    );
    assert_eq!(mode("access", json!({})), "vlan_mode \"access\": needs vlan, 0 to 4094, its VLAN");
    assert_eq!(
        mode("access", json!({"vlan":9,"trunk":id})),
        "vlan_mode \"access\": carries one VLAN, there must be no trunk beside it"
    );
    assert_eq!(
        mode("trunk", json!({"vlan":9,"trunk":id})),
        "vlan_mode \"trunk\": has no VLAN of its own, vlan needs native-tagged or native-untagged"
    );
    for native in ["native-tagged", "native-untagged"] {
        let text = format!("vlan_mode \"{native}\": needs vlan, 1 to 4094, the native VLAN");
        assert_eq!((mode(native, json!({"trunk":id})), mode(native, json!({"vlan":0}))), (text.clone(), text));
    }
    assert_eq!(mode("native-tagged", json!({"vlan":4095})), "vlan \"4095\": vlan tag 4095 is outside 0 to 4094");
    assert_eq!(mode("dot1q-tunnel", json!({})), "vlan_mode \"dot1q-tunnel\": needs vlan, 1 to 4094, the service VLAN");
    assert_eq!(
        mode("dot1q-tunnel", json!({"vlan":9,"trunk":id})),
        "vlan_mode \"dot1q-tunnel\": carries one VLAN, there must be no trunk beside it"
    );
    assert_eq!(refusal(json!({"vlan_mode":5})), "vlan_mode \"5\": must be a string");
}

#[test]
fn wrong_values_are_refused_by_name() {
    assert_eq!(refusal(json!({"bridge":""})), "bridge \"\": is missing");
    assert_eq!(
        refusal(json!({"bridge":"abcdefghijklmnop"})),
        "bridge \"abcdefghijklmnop\": interface name \"abcdefghijklmnop\" has 16 bytes, at most 15 are allowed"
    );
    assert_eq!(refusal(json!({"vlan":4095})), "vlan \"4095\": vlan tag 4095 is outside 0 to 4094");
    assert_eq!(refusal(json!({"vlan":-1})), "vlan \"-1\": vlan tag -1 is outside 0 to 4094");
    assert_eq!(refusal(json!({"vlan":"100"})), "vlan \"\\\"100\\\"\": must be a whole number");
    assert_eq!(
        refusal(json!({"trunk":[{"id":1},{"minID":100,"maxID":50}]})),
        "trunk[1].maxID \"50\": must not be below minID, which is 100"
    );
    assert_eq!(refusal(json!({"trunk":[{"minID":100}]})), "trunk[0].minID \"100\": needs a maxID beside it");
    assert_eq!(refusal(json!({"trunk":[{"maxID":100}]})), "trunk[0].maxID \"100\": needs a minID beside it");
    assert_eq!(refusal(json!({"trunk":[{"id":4095}]})), "trunk[0].id \"4095\": vlan tag 4095 is outside 0 to 4094");
    assert_eq!(refusal(json!({"trunk":[{"id":"5"}]})), "trunk[0].id \"\\\"5\\\"\": must be a whole number");
    assert_eq!(refusal(json!({"trunk":[{}]})), "trunk[0] \"{}\": needs an id, or minID and maxID");
    assert_eq!(refusal(json!({"trunk":[7]})), "trunk[0] \"7\": must be an object with id, or with minID and maxID");
    assert_eq!(refusal(json!({"trunk":"1-5"})), "trunk \"\\\"1-5\\\"\": must be a list");
    assert_eq!(refusal(json!({"mtu":-5})), "mtu \"-5\": must be 0 (the default) or more");
    assert_eq!(refusal(json!({"ofport_request":65280})), "ofport_request \"65280\": must be from 1 to 65279");
    assert_eq!(refusal(json!({"interface_type":"dpdk"})), "interface_type \"dpdk\": must be empty, system or internal");
    assert_eq!(
        refusal(json!({"deviceID":"0000:00:01.0"})),
        "deviceID \"0000:00:01.0\": hardware offload and vDPA are not supported, only veth"
    );
    assert_eq!(
        refusal(json!({"socket_file":"tcp:10.0.0.1:6640"})),
        "socket_file \"tcp:10.0.0.1:6640\": must be unix:/path; a database of another host (tcp:, ssl:) is not supported"
    );
    assert_eq!(
        refusal(json!({"link_state_check_retries":"5"})),
        "link_state_check_retries \"\\\"5\\\"\": must be a whole number"
    );
}

#[test]
fn keys_of_ovs_cni_are_read() {
    let c = conf(json!({"mtu":1400,"ofport_request":100,"interface_type":"system","socket_file":"unix:/run/o.sock",
        "link_state_check_retries":5,"link_state_check_interval":600,"future":1}))
    .unwrap();
    assert_eq!((c.mtu.map(Mtu::get), c.ofport_request, c.interface_type.as_str()), (Some(1400), Some(100), "system"));
    assert_eq!(c.socket_file.as_deref(), Some("/run/o.sock"));
    assert_eq!(conf(json!({"socket_file":"/run/o.sock"})).unwrap().socket_file.as_deref(), Some("/run/o.sock"));
}

#[test]
fn an_ovn_port_names_the_interface_and_the_bridge() {
    let parse = |args: &str, extra| Conf::parse(&request("ADD", args, extra), None).unwrap();
    let c = parse("OvnPort=lsp1", json!({"bridge":""}));
    assert_eq!((c.bridge.as_str(), c.iface_id.as_deref()), ("br-int", Some("lsp1")));
    let c = parse("OvnPort=lsp1", json!({"args":{"cni":{"OVNPORT":"lsp2"}}}));
    assert_eq!((c.bridge.as_str(), c.iface_id.as_deref()), ("br1", Some("lsp2")));
    assert_eq!(planned_port(&c.plan_add(&attach(), &seen()).unwrap()).interfaces[0].external_ids["iface-id"], "lsp2");
}

#[test]
fn the_flat_file_gives_what_the_configuration_does_not() {
    let r = |extra| request("ADD", "", extra);
    let flat = r#"{"bridge":"brflat","vlan":7,"mtu":1300,"socket_file":"unix:/flat.sock","link_state_check_retries":9}"#;
    let c = Conf::parse(&r(json!({"mtu":1400,"socket_file":""})), Some(flat)).unwrap();
    assert_eq!((c.bridge.as_str(), c.mtu.map(Mtu::get), c.socket_file.as_deref()), ("br1", Some(1400), Some("/flat.sock")));
    assert_eq!(c.vlans, Vlans::Access(tag(7)));
    assert_eq!(Conf::parse(&r(json!({"vlan":0})), Some(flat)).unwrap().vlans, Vlans::Access(tag(0)));
    assert_eq!(Conf::parse(&r(json!({})), Some("[")).unwrap_err().field, "configuration_path");
    assert_eq!(Conf::flat_file_of(&r(json!({}))).unwrap(), FLAT_FILES);
    assert_eq!(Conf::flat_file_of(&r(json!({"configuration_path":"/f"}))).unwrap()[0], "/f");
}

#[test]
fn a_port_is_planned_from_nothing_to_announced() {
    let h = host_name();
    assert_eq!(
        conf(json!({"vlan":100})).unwrap().plan_add(&attach(), &seen()).unwrap().to_string(),
        format!(
            "  1. add veth net1 in the pod with peer {h} on the host
  2. set tx checksum offload off dev net1 (pod)
  3. set link {h} (host) up
  4. add port {h} to bridge br1 tag 100
  5. set net/ipv6/conf/net1/accept_ra = 0 (pod)
  6. add address 10.6.1.10/16 dev net1 (pod)
  7. set link net1 (pod) up
  8. add route default via 10.6.0.1 dev net1 (pod)
  9. announce 10.6.1.10 dev net1
"
        )
    );
}

#[test]
fn the_kernel_datapath_keeps_checksum_offload() {
    let mut s = seen();
    s.ovs.as_mut().unwrap().bridges[0].datapath_type = String::new();
    let p = conf(json!({})).unwrap().plan_add(&attach(), &s).unwrap();
    assert!(!p.to_string().contains("checksum"), "{p}");
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_touched() {
    let add = |extra, s: &Observed| {
        let e = conf(extra).unwrap().plan_add(&attach(), s).unwrap_err();
        (e.class, e.to_string())
    };
    assert_eq!(
        add(json!({"bridge":"nobr"}), &seen()),
        (Class::Missing, "bridge \"nobr\": there is no such bridge in Open vSwitch on this host".into())
    );
    assert_eq!(
        add(json!({"mtu":9000}), &seen()),
        (Class::Invalid, "mtu \"9000\": must not be above 1500, the mtu of ens256 on bridge br1".into())
    );
    let no_ovs = Observed::default();
    assert_eq!(
        add(json!({}), &no_ovs),
        (Class::Later, "socket_file \"\": no connection to Open vSwitch: is ovsdb-server running".into())
    );
    let mut s = seen();
    s.pod.links.push(link("net1", ""));
    assert_eq!(
        add(json!({}), &s),
        (Class::Conflict, "CNI_IFNAME \"net1\": the container has an interface of that name already".into())
    );
    let mut s = seen();
    s.host.links.push(link(host_name().as_str(), ""));
    assert_eq!(add(json!({}), &s).0, Class::Conflict);
}

#[test]
fn a_pods_mtu_follows_a_smaller_uplink() {
    let mtu = |extra, uplink: Option<i64>| {
        let mut s = seen();
        s.ovs.as_mut().unwrap().bridges[0].ports[1].interfaces[0].mtu = uplink;
        let p = conf(extra).unwrap().plan_add(&attach(), &s).unwrap();
        let Step::AddVeth(v) = &p.steps[0] else { panic!("{p}") };
        v.mtu.map(Mtu::get)
    };
    assert_eq!(mtu(json!({}), Some(1500)), None);
    assert_eq!(mtu(json!({}), Some(1400)), Some(1400));
    assert_eq!(mtu(json!({}), Some(9000)), None);
    assert_eq!(mtu(json!({"mtu":9000}), Some(9000)), Some(9000));
    assert_eq!(mtu(json!({"mtu":9000}), None), Some(9000));
}

fn link(n: &str, alias: &str) -> Link {
    Link {
        index: 9,
        name: name(n),
        kind: LinkKind::Veth,
        mac: "0a:58:0a:06:01:0a".parse().ok(),
        permanent_mac: None,
        mtu: 1500,
        max_mtu: None,
        up: true,
        carrier: true,
        alias: Some(alias.to_owned()).filter(|a| !a.is_empty()),
        link_index: None,
        link_netnsid: None,
        master: None,
        altnames: Vec::new(),
        tx_queue_len: None,
    }
}

/// The host after a successful ADD with this configuration.
fn added(extra: Value) -> Observed {
    let mut s = seen();
    let p = planned_port(&conf(extra).unwrap().plan_add(&attach(), &s).unwrap());
    let row = OvsPort {
        name: p.name.clone(),
        interfaces: vec![OvsInterface {
            name: p.name.clone(),
            kind: p.interfaces[0].kind.clone(),
            ofport: Some(5),
            mtu: Some(1500),
            external_ids: p.interfaces[0].external_ids.clone(),
            ..OvsInterface::default()
        }],
        tag: p.set.tag.flatten().map(Tag::get),
        trunks: p.set.trunks.iter().flat_map(Trunks::iter).map(Tag::get).collect(),
        vlan_mode: p.set.vlan_mode.clone().flatten(),
        external_ids: p.set.external_ids.iter().filter_map(|(k, v)| Some((k.clone(), v.clone()?))).collect(),
        ..OvsPort::default()
    };
    s.ovs.as_mut().unwrap().bridges[0].ports.push(row);
    let alias = attach().owner.alias();
    s.host.links.push(link(p.name.as_str(), &alias));
    let addr = |a: &str| model::observed::Addr {
        dev: name("net1"),
        addr: a.parse().unwrap(),
        scope_link: false,
        permanent: true,
        tentative: false,
        dad_failed: false,
    };
    s.pod = NetnsState {
        links: vec![link("net1", &alias)],
        addrs: vec![addr("10.6.1.10/16")],
        routes: cni_plugin::nic::routes(&attach()),
        ..NetnsState::default()
    };
    s
}

#[test]
fn del_finds_port_and_link_by_the_mark_wherever_they_are() {
    let h = host_name();
    let c = Conf::parse(&request("DEL", "", json!({"bridge":"gone","vlan":4096})), None).unwrap();
    let mut s = added(json!({"vlan":100}));
    assert_eq!(
        c.plan_del(&attach(), &s).to_string(),
        format!("  1. delete port {h} from bridge br1\n  2. delete link {h} (host)\n")
    );
    // Moved to another bridge by hand, and the namespace took the link with it.
    let row = s.ovs.as_mut().unwrap().bridges[0].ports.pop().unwrap();
    s.ovs.as_mut().unwrap().bridges[1].ports.push(row);
    s.host.links.clear();
    assert_eq!(c.plan_del(&attach(), &s).to_string(), format!("  1. delete port {h} from bridge br2\n"));
    assert!(c.plan_del(&attach(), &seen()).is_empty());
    assert!(c.plan_del(&attach(), &Observed::default()).is_empty());
}

#[test]
fn del_leaves_alone_what_another_process_made() {
    let s = added(json!({}));
    let alone = Attach { owner: Owner { by: RunBy::Alone, ..attach().owner }, ..attach() };
    assert!(conf(json!({})).unwrap().plan_del(&alone, &s).is_empty());
}

#[test]
fn check_passes_after_add() {
    for extra in [
        json!({}),
        json!({"vlan":0}),
        json!({"vlan":100,"mtu":1500}),
        json!({"trunk":[{"id":42}]}),
        json!({"vlan":0,"trunk":[{"minID":1,"maxID":9}]}),
        json!({"vlan":9,"vlan_mode":"native-tagged","trunk":[{"id":42}]}),
        json!({"vlan":9,"vlan_mode":"native-untagged"}),
        json!({"vlan":9,"vlan_mode":"dot1q-tunnel"}),
        json!({"args":{"cni":{"ovnPort":"p"}}}),
    ] {
        assert_eq!(conf(extra.clone()).unwrap().check(&attach(), &added(extra.clone())), Ok(()), "{extra}");
    }
}

#[test]
fn check_names_each_difference() {
    let extra = json!({"vlan":100,"mtu":1500});
    let c = conf(extra.clone()).unwrap();
    let broken = |f: &dyn Fn(&mut Observed)| {
        let mut s = added(extra.clone());
        f(&mut s);
        c.check(&attach(), &s).unwrap_err().to_string()
    };
    fn row(s: &mut Observed) -> &mut OvsPort {
        s.ovs.as_mut().unwrap().bridges[0].ports.last_mut().unwrap()
    }
    let h = host_name();
    assert_eq!(broken(&|s| s.ovs = None), "socket_file \"\": no connection to Open vSwitch: is ovsdb-server running");
    assert_eq!(
        broken(&|s| s.ovs.as_mut().unwrap().bridges.clear()),
        "bridge \"br1\": there is no such bridge in Open vSwitch on this host"
    );
    assert_eq!(
        broken(&|s| drop(s.ovs.as_mut().unwrap().bridges[0].ports.pop())),
        format!("port \"{h}\": is not in the database of Open vSwitch")
    );
    let moved = |s: &mut Observed| {
        let p = s.ovs.as_mut().unwrap().bridges[0].ports.pop().unwrap();
        s.ovs.as_mut().unwrap().bridges[1].ports.push(p);
    };
    assert_eq!(broken(&moved), "bridge \"br2\": the port is there, should be on br1");
    assert_eq!(broken(&|s| row(s).tag = Some(5)), "tag \"5\": should be 100");
    assert_eq!(broken(&|s| row(s).tag = None), "tag \"none\": should be 100");
    assert_eq!(broken(&|s| row(s).trunks = vec![7]), "trunks \"7\": should be all");
    assert_eq!(broken(&|s| row(s).vlan_mode = None), "vlan_mode \"none\": should be access");
    assert_eq!(broken(&|s| row(s).vlan_mode = Some("dot1q-tunnel".into())), "vlan_mode \"dot1q-tunnel\": should be access");
    assert_eq!(
        broken(&|s| row(s).interfaces[0].error = Some("no such device".into())),
        format!("interface \"{h}\": Open vSwitch reports: no such device")
    );
    assert_eq!(
        broken(&|s| row(s).interfaces[0].ofport = Some(-1)),
        format!("interface \"{h}\": has no OpenFlow port: Open vSwitch does not forward for it")
    );
    assert_eq!(
        broken(&|s| drop(row(s).interfaces[0].external_ids.insert("iface-id".into(), "x".into()))),
        "iface-id \"x\": should be none"
    );
    assert_eq!(broken(&|s| row(s).interfaces.clear()), format!("interface \"{h}\": the port has no interface"));
    assert_eq!(broken(&|s| s.host.links.clear()), format!("interface \"{h}\": is not on the host"));
    assert_eq!(broken(&|s| s.host.links[0].up = false), format!("interface \"{h}\": is down on the host"));
    assert_eq!(
        broken(&|s| s.pod.links[0].mac = "0a:00:00:00:00:01".parse().ok()),
        "mac \"0a:00:00:00:00:01\": should be 0a:58:0a:06:01:0a"
    );
    assert_eq!(broken(&|s| s.pod.links[0].mtu = 1400), "mtu \"1400\": should be 1500");
    assert_eq!(broken(&|s| s.pod.addrs.clear()), "address \"10.6.1.10/16\": is not on net1");
    assert_eq!(broken(&|s| s.pod.routes.clear()), "route \"default via 10.6.0.1 dev net1\": is in no table");
}

#[test]
fn the_result_has_both_ends() {
    let p = conf(json!({})).unwrap().plan_add(&attach(), &seen()).unwrap();
    let v = cni_plugin::result_of(&attach(), &p, &request("ADD", "", json!({})), None).unwrap().to_value(cni::Version::V1_0_0);
    assert_eq!(v["interfaces"][0]["name"], host_name().as_str());
    assert_eq!(v["interfaces"][1], json!({"name":"net1","mac":"0a:58:0a:06:01:0a","sandbox":"/run/netns/a"}));
    assert_eq!(v["ips"], json!([{"interface":1,"address":"10.6.1.10/16","gateway":"10.6.0.1"}]));
    // A switch takes the lowest address of its ports for its own, and never this one.
    assert!(v["interfaces"][0]["mac"].as_str().unwrap().starts_with("fe:"));
}

/// A port as a plugin alone leaves it, by this runtime and process.
fn left_alone(runtime: &str, process: &str) -> Observed {
    let mut s = added(json!({}));
    let alone = Owner { by: RunBy::Alone, ..attach().owner };
    let ids = &mut s.ovs.as_mut().unwrap().bridges[0].ports.last_mut().unwrap().external_ids;
    for (key, value) in [(Owner::OVS_BY_KEY, "alone"), (RUNTIME_KEY, runtime), (PROCESS_KEY, process)] {
        ids.insert(key.into(), value.into());
    }
    s.host.links[0].alias = Some(alone.alias());
    s
}

#[test]
fn gc_takes_only_what_a_plugin_alone_left_on_this_network_for_this_runtime() {
    let h = host_name();
    let id = [attach().owner.attachment];
    let running = |p: &str| p == "7/1";
    let stays = Stays { network: "net", runtime: "/usr/bin/podman", valid: &[], is_running: &running };
    assert!(garbage(&stays, &added(json!({}))).is_empty(), "the agent's");
    let s = left_alone("/usr/bin/podman", "8/1");
    assert_eq!(garbage(&stays, &s).to_string(), format!("  1. delete port {h} from bridge br1\n  2. delete link {h} (host)\n"));
    assert!(garbage(&Stays { valid: &id, ..stays }, &s).is_empty(), "still valid");
    assert!(garbage(&Stays { network: "other", ..stays }, &s).is_empty(), "another network's");
    assert!(garbage(&Stays { runtime: "/usr/bin/nomad", ..stays }, &s).is_empty(), "another runtime's");
    assert!(garbage(&stays, &left_alone("/usr/bin/podman", "7/1")).is_empty(), "still being added");
    assert!(garbage(&Stays { runtime: "", ..stays }, &left_alone("", "8/1")).is_empty(), "nobody's");
}
