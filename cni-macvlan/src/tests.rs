//! What is accepted, refused and planned, against configurations of the reference macvlan plugin.

use super::*;
use cni::request::RawCall;
use model::observed::{Addr, LinkKind, NetnsState};
use model::{AttachmentId, Owner, Route, RunBy};
use planner::step::Probe;
use planner::{Aim, Gateways, Nic, NicRoute};
use serde_json::{Value, json};

fn request(verb: &str, extra: Value) -> Request {
    let mut conf = json!({"cniVersion":"1.0.0","name":"net","type":"cni-macvlan","prevResult":{}});
    for (k, v) in extra.as_object().unwrap() {
        conf[k] = v.clone();
    }
    let call = RawCall {
        command: verb.into(),
        container_id: "c1".into(),
        netns: "/run/netns/a".into(),
        ifname: "eth0".into(),
        path: "/opt/cni/bin".into(),
        ..RawCall::default()
    };
    Request::from_value(&call, conf).unwrap()
}

fn conf(extra: Value) -> Result<Conf, Refusal> {
    Conf::parse(&request("ADD", extra))
}

fn refusal(extra: Value) -> String {
    conf(extra).unwrap_err().to_string()
}

fn name(s: &str) -> IfName {
    IfName::new(s).unwrap()
}

fn link(index: u32, n: &str, kind: LinkKind) -> Link {
    Link {
        index,
        name: name(n),
        kind,
        mac: Some("00:50:56:b4:00:06".parse().unwrap()),
        permanent_mac: None,
        mtu: 1500,
        max_mtu: None,
        up: true,
        carrier: true,
        alias: None,
        link_index: None,
        link_netnsid: None,
        master: None,
        altnames: Vec::new(),
        tx_queue_len: None,
    }
}

fn host() -> NetnsState {
    let default =
        |dev: &str, metric| Route { metric, ..Route::new(model::Cidr::default_v4(), "10.6.0.1".parse().ok(), name(dev)) };
    NetnsState {
        links: vec![link(2, "ens192", LinkKind::Physical), link(3, "ens224", LinkKind::Physical)],
        routes: vec![default("ens192", Some(100)), default("ens224", Some(50))],
        ..NetnsState::default()
    }
}

fn seen() -> Observed {
    Observed { host: host(), ..Observed::default() }
}

fn attach() -> Attach {
    Attach {
        owner: Owner { attachment: AttachmentId::of("c1", "eth0"), by: RunBy::Alone },
        pod: None,
        container_id: "c1".into(),
        netns: Some("/run/netns/a".into()),
        ifname: name("eth0"),
        network: "net".into(),
        mac: None,
        nic: Nic {
            addrs: vec!["10.6.1.10/16".parse().unwrap(), "fd00:10:6::1:10/64".parse().unwrap()],
            gateways: Gateways { v4: "10.6.0.1".parse().ok(), v6: "fd00:10:6::1".parse().ok() },
            routes: vec![
                NicRoute::new(model::Cidr::default_v4(), None),
                NicRoute::new("10.8.0.0/16".parse().unwrap(), "10.6.0.9".parse().ok()),
                NicRoute::new(model::Cidr::default_v6(), "fd00:10:6::1".parse().ok()),
            ],
            has_ipam: true,
        },
        probe: Probe::default(),
    }
}

fn plan(extra: Value) -> Result<Plan, Refusal> {
    conf(extra).unwrap().plan_add(&attach(), &seen())
}

#[test]
fn keys_of_the_reference_plugin_are_read() {
    let all = json!({"master":"ens192","mode":"private","mtu":1400,"linkInContainer":true,"bcqueuelen":2000,"promiscMode":true,"future":{}});
    assert_eq!(
        conf(all).unwrap(),
        Conf {
            master: Some(name("ens192")),
            mode: Mode(MacvlanMode::Private),
            mtu: Some(Mtu::new(1400).unwrap()),
            link_in_container: true,
            bc_queue_len: Some(2000)
        }
    );
    assert_eq!(conf(json!({"master":"","mode":"","mtu":0,"bcqueuelen":0})).unwrap(), Conf::default());
    for (word, _) in MODES {
        assert_eq!(mode_name(conf(json!({"mode":word})).unwrap().mode.0), word);
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    assert_eq!(refusal(json!({"mode":"l2"})), "mode \"l2\": must be bridge, private, vepa or passthru");
    assert_eq!(refusal(json!({"mode":"source"})), "mode \"source\": must be bridge, private, vepa or passthru");
    assert_eq!(
        refusal(json!({"master":"abcdefghijklmnop"})),
        "master \"abcdefghijklmnop\": interface name \"abcdefghijklmnop\" has 16 bytes, at most 15 are allowed"
    );
    assert_eq!(refusal(json!({"master":7})), "master \"7\": must be a string");
    assert_eq!(refusal(json!({"mtu":-1})), "mtu \"-1\": must be 0 (the master's) or more");
    assert_eq!(refusal(json!({"mtu":40})), "mtu \"40\": mtu 40 is outside 68 to 65535");
    assert_eq!(refusal(json!({"mtu":"1500"})), "mtu \"\\\"1500\\\"\": must be a whole number");
    assert_eq!(refusal(json!({"linkInContainer":"yes"})), "linkInContainer \"\\\"yes\\\"\": must be true or false");
    assert_eq!(refusal(json!({"bcqueuelen":-5})), "bcqueuelen \"-5\": must be from 0 to 4294967295");
}

#[test]
fn del_refuses_nothing() {
    assert_eq!(Conf::parse(&request("DEL", json!({"mode":"l2"}))), Ok(Conf::default()));
}

#[test]
fn a_pod_nic_is_planned_from_nothing_to_announced() {
    assert_eq!(
        plan(json!({"master":"ens192"})).unwrap().to_string(),
        "  1. add macvlan eth0 in the pod on host ens192
  2. set net/ipv6/conf/eth0/accept_ra = 0 (pod)
  3. set net/ipv6/conf/eth0/disable_ipv6 = 0 (pod)
  4. add address 10.6.1.10/16 dev eth0 (pod)
  5. add address fd00:10:6::1:10/64 dev eth0 (pod)
  6. set link eth0 (pod) up
  7. add route default via 10.6.0.1 dev eth0 (pod)
  8. add route 10.8.0.0/16 via 10.6.0.9 dev eth0 (pod)
  9. add route default via fd00:10:6::1 dev eth0 (pod)
 10. announce 10.6.1.10 fd00:10:6::1:10 dev eth0
"
    );
    let plan = plan(json!({"master":"ens192","mode":"vepa","mtu":1400,"bcqueuelen":9})).unwrap();
    let Step::AddMacvlan(m) = &plan.steps[0] else { panic!("{plan}") };
    assert_eq!((m.mode, m.mtu.map(Mtu::get), m.bc_queue_len), (MacvlanMode::Vepa, Some(1400), Some(9)));
    assert_eq!(m.mac.unwrap().to_string(), "0a:58:0a:06:01:0a");
    assert_eq!(Owner::from_alias(&m.alias), Some(attach().owner));
}

#[test]
fn a_nic_that_is_to_ask_comes_up_and_asks_before_it_has_addresses() {
    let probe = Probe {
        unused: vec!["10.6.1.10".parse().unwrap()],
        gateways: vec![("10.6.0.1".parse().unwrap(), "10.6.1.10".parse().unwrap())],
    };
    let plan = conf(json!({"master":"ens192"})).unwrap().plan_add(&Attach { probe, ..attach() }, &seen()).unwrap().to_string();
    let middle = "  4. set link eth0 (pod) up
  5. probe 10.6.1.10 gateway 10.6.0.1 dev eth0
  6. add address 10.6.1.10/16 dev eth0 (pod)
  7. add address fd00:10:6::1:10/64 dev eth0 (pod)
  8. add route default via 10.6.0.1 dev eth0 (pod)
";
    assert!(plan.contains(middle), "{plan}");
}

#[test]
fn without_ipam_the_link_comes_up_and_nothing_more() {
    let a = Attach { nic: Nic::default(), ..attach() };
    let p = conf(json!({"master":"ens192"})).unwrap().plan_add(&a, &seen()).unwrap();
    assert_eq!(p.steps.len(), 2, "{p}");
    let Step::AddMacvlan(m) = &p.steps[0] else { panic!("{p}") };
    // Known before the link exists, and the same if it is made again.
    assert_eq!(m.mac, conf(json!({})).unwrap().mac(&a));
    assert!(m.mac.unwrap().unicast().is_ok());
}

#[test]
fn a_small_mtu_has_no_ipv6_to_set() {
    let a = Attach { nic: Nic { addrs: vec!["10.6.1.10/16".parse().unwrap()], has_ipam: true, ..Nic::default() }, ..attach() };
    let p = conf(json!({"master":"ens192","mtu":1200})).unwrap().plan_add(&a, &seen()).unwrap();
    assert!(!p.to_string().contains("net/ipv6"), "{p}");
}

#[test]
fn the_default_master_is_the_nic_of_the_best_default_route() {
    let p = plan(json!({})).unwrap();
    assert!(p.to_string().contains("on host ens224"), "{p}");
    let c = conf(json!({})).unwrap();
    let mut s = seen();
    s.host.routes.clear();
    assert_eq!(
        c.plan_add(&attach(), &s).unwrap_err().to_string(),
        "master \"\": is not given, and there is no default route on the host whose NIC to take"
    );
    s.host.routes = vec![Route::new(model::Cidr::default_v6(), "fe80::1".parse().ok(), name("ens192"))];
    assert!(c.plan_add(&attach(), &s).unwrap().to_string().contains("on host ens192"));
}

#[test]
fn the_master_may_be_in_the_container() {
    let c = conf(json!({"master":"net0","linkInContainer":true})).unwrap();
    let mut s = Observed::default();
    assert_eq!(
        c.plan_add(&attach(), &s).unwrap_err().to_string(),
        "master \"net0\": there is no such interface in the container"
    );
    s.pod.links.push(link(5, "net0", LinkKind::Veth));
    let p = c.plan_add(&attach(), &s).unwrap();
    assert!(p.to_string().contains("in the pod on pod net0"), "{p}");
    assert_eq!(c.scope(&attach(), Aim::Add).host, Look::Nothing);
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_touched() {
    let r = |extra: Value| plan(extra).unwrap_err();
    let e = r(json!({"master":"nope"}));
    assert_eq!((e.class, e.to_string().as_str()), (Class::Missing, "master \"nope\": there is no such interface on the host"));
    let e = r(json!({"master":"ens192","mtu":9000}));
    assert_eq!(
        (e.class, e.to_string().as_str()),
        (Class::Invalid, "mtu \"9000\": must not be above 1500, the mtu of the master ens192")
    );
    let mut s = seen();
    s.pod.links.push(link(2, "eth0", LinkKind::Veth));
    let e = conf(json!({"master":"ens192"})).unwrap().plan_add(&attach(), &s).unwrap_err();
    assert_eq!(
        (e.class, e.to_string().as_str()),
        (Class::Conflict, "CNI_IFNAME \"eth0\": the container has an interface of that name already")
    );
    let mut s = seen();
    s.host.links[0].up = false;
    let e = conf(json!({"master":"ens192"})).unwrap().plan_add(&attach(), &s).unwrap_err();
    assert_eq!(
        (e.class, e.to_string().as_str()),
        (Class::Later, "master \"ens192\": is down on the host: a macvlan on it would carry nothing")
    );
}

#[test]
fn a_second_nic_leaves_the_first_ones_default_route() {
    let mut s = seen();
    s.pod.routes = vec![Route::new(model::Cidr::default_v4(), "10.244.0.1".parse().ok(), name("first"))];
    let p = conf(json!({"master":"ens192"})).unwrap().plan_add(&attach(), &s).unwrap();
    let text = p.to_string();
    assert!(
        !text.contains("default via 10.6.0.1")
            && text.contains("10.8.0.0/16 via 10.6.0.9")
            && text.contains("default via fd00:10:6::1"),
        "{text}"
    );
}

#[test]
fn passthru_has_the_masters_address() {
    let p = plan(json!({"master":"ens192","mode":"passthru"})).unwrap();
    let Step::AddMacvlan(m) = &p.steps[0] else { panic!("{p}") };
    assert_eq!(m.mac.unwrap().to_string(), "00:50:56:b4:00:06");
}

/// The pod after a successful ADD.
fn added() -> Observed {
    let mut s = seen();
    let mut l = link(7, "eth0", LinkKind::Macvlan { mode: MacvlanMode::Bridge });
    l.alias = Some(attach().owner.alias());
    l.mac = "0a:58:0a:06:01:0a".parse().ok();
    (l.link_index, l.link_netnsid) = (Some(2), Some(0));
    s.pod.links.push(l);
    let addr = |a: &str| Addr {
        dev: name("eth0"),
        addr: a.parse().unwrap(),
        scope_link: false,
        permanent: true,
        tentative: false,
        dad_failed: false,
    };
    s.pod.addrs = vec![addr("10.6.1.10/16"), addr("fd00:10:6::1:10/64")];
    s.pod.routes = nic::routes(&attach());
    s
}

#[test]
fn del_finds_its_link_by_the_mark() {
    let c = Conf::default();
    let mut s = added();
    s.pod.links.push(link(8, "eth1", LinkKind::Macvlan { mode: MacvlanMode::Bridge }));
    assert_eq!(c.plan_del(&attach(), &s).to_string(), "  1. delete link eth0 (pod)\n");
    s.pod.links[0].name = name("renamed");
    assert_eq!(c.plan_del(&attach(), &s).to_string(), "  1. delete link renamed (pod)\n");
    // An attachment of the agent is not ours when we run alone.
    s.pod.links[0].alias = Some(Owner { by: RunBy::Agent, ..attach().owner }.alias());
    assert!(c.plan_del(&attach(), &s).is_empty());
    assert!(c.plan_del(&attach(), &Observed::default()).is_empty());
}

#[test]
fn check_passes_after_add_and_also_when_routes_were_moved_to_a_table() {
    let c = conf(json!({"master":"ens192"})).unwrap();
    let mut s = added();
    assert_eq!(c.check(&attach(), &s), Ok(()));
    for r in &mut s.pod.routes {
        r.table = 101;
    }
    assert_eq!(c.check(&attach(), &s), Ok(()));
}

#[test]
fn check_names_each_difference() {
    let c = conf(json!({"master":"ens192","mtu":1500})).unwrap();
    let broken = |f: &dyn Fn(&mut Observed)| {
        let mut s = added();
        f(&mut s);
        c.check(&attach(), &s).unwrap_err().to_string()
    };
    assert_eq!(broken(&|s| s.pod.links.clear()), "interface \"eth0\": is not in the container");
    assert_eq!(broken(&|s| s.pod.links[0].alias = None), "interface \"eth0\": is not ours: its alias is \"\"");
    assert_eq!(
        broken(&|s| s.pod.links[0].mac = "0a:00:00:00:00:01".parse().ok()),
        "mac \"0a:00:00:00:00:01\": should be 0a:58:0a:06:01:0a"
    );
    assert_eq!(broken(&|s| s.pod.links[0].up = false), "interface \"eth0\": is down");
    assert_eq!(broken(&|s| s.pod.links[0].mtu = 1400), "mtu \"1400\": should be 1500");
    assert_eq!(
        broken(&|s| s.pod.links[0].kind = LinkKind::Macvlan { mode: MacvlanMode::Vepa }),
        "mode \"vepa\": should be bridge"
    );
    assert_eq!(broken(&|s| s.pod.links[0].kind = LinkKind::Veth), "interface \"eth0\": is no macvlan but Veth");
    assert_eq!(broken(&|s| s.pod.links[0].link_index = Some(3)), "master \"ens192\": is not the parent of eth0");
    assert_eq!(broken(&|s| s.host.links.clear()), "master \"ens192\": there is no such interface on the host");
    assert_eq!(broken(&|s| s.pod.addrs.truncate(1)), "address \"fd00:10:6::1:10/64\": is not on eth0");
    assert_eq!(
        broken(&|s| s.pod.addrs[1].dad_failed = true),
        "address \"fd00:10:6::1:10/64\": duplicate address detection failed: someone else on the wire has it"
    );
    assert_eq!(broken(&|s| s.pod.routes.truncate(2)), "route \"default via fd00:10:6::1 dev eth0\": is in no table");
}

#[test]
fn the_result_says_what_the_plan_did() {
    let mut s = seen();
    s.pod.routes = vec![Route::new(model::Cidr::default_v4(), "10.244.0.1".parse().ok(), name("first"))];
    let p = conf(json!({"master":"ens192"})).unwrap().plan_add(&attach(), &s).unwrap();
    let r = cni_plugin::result_of(&attach(), &p, &request("ADD", json!({"dns":{"nameservers":["10.0.0.53"]}})), None).unwrap();
    assert_eq!(
        r.to_value(cni::Version::V1_0_0),
        json!({"cniVersion":"1.0.0",
            "interfaces":[{"name":"eth0","mac":"0a:58:0a:06:01:0a","sandbox":"/run/netns/a"}],
            "ips":[{"interface":0,"address":"10.6.1.10/16","gateway":"10.6.0.1"},{"interface":0,"address":"fd00:10:6::1:10/64","gateway":"fd00:10:6::1"}],
            "routes":[{"dst":"10.8.0.0/16","gw":"10.6.0.9"},{"dst":"::/0","gw":"fd00:10:6::1"}],
            "dns":{"nameservers":["10.0.0.53"]}})
    );
}
