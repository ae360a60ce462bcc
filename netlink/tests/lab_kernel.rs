//! Every request against the real kernel, judged by `ip -j`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/netns.rs"]
mod common;

use std::os::fd::AsFd;

use common::{index, ip, ip_do, mac, name, netns, nic, up};
use model::observed::{LinkKind, MacvlanMode};
use model::{IfAddr, Route, Rule};
use netlink::{BatchError, Errno, Error, LinkChange, LinkRef, Monitor, Netns, Outcome, Request, Socket};
use serde_json::{Value, json};

fn link(netns: &Netns, dev: &str) -> Value {
    ip(netns, &format!("link show dev {dev}"))[0].clone()
}

fn set(dev: &str, change: LinkChange<'static>) -> Request<'static> {
    Request::SetLink { link: LinkRef::Name(name(dev)), change }
}

/// Names of all links but the loopback's.
fn names(netns: &Netns) -> Vec<String> {
    let links = ip(netns, "link show");
    links.as_array().unwrap().iter().map(|l| l["ifname"].as_str().unwrap().to_owned()).filter(|n| n != "lo").collect()
}

fn refusal(result: Result<(), BatchError>) -> (Errno, String) {
    match result.unwrap_err().outcomes.into_iter().find_map(|o| match o {
        Outcome::Refused(k) => Some(k),
        _ => None,
    }) {
        Some(k) => (k.errno, k.text.unwrap_or_default()),
        None => panic!("nothing was refused"),
    }
}

#[test]
fn both_ends_of_a_veth_are_born_where_they_belong() {
    let (host, pod) = (netns(), netns());
    // A link of the host with the name that the pod's end is to have is in nobody's way.
    let _far = nic(&host, "net1");
    let socket = Socket::open_in(&pod).unwrap();
    let request = Request::AddVeth {
        name: name("net1"),
        mac: Some(mac("0a:58:0a:06:01:0a")),
        mtu: Some(1400),
        peer: name("veth0123456789a"),
        peer_mac: Some(mac("0a:58:00:00:00:01")),
        peer_netns: host.as_fd(),
    };
    socket.batch(&[request]).unwrap();
    let (near, far) = (link(&pod, "net1"), link(&host, "veth0123456789a"));
    assert_eq!((&near["address"], &near["mtu"]), (&json!("0a:58:0a:06:01:0a"), &json!(1400)));
    assert_eq!((&far["address"], &far["mtu"]), (&json!("0a:58:00:00:00:01"), &json!(1400)));
    assert_eq!(near["linkinfo"]["info_kind"], "veth");
    assert_eq!(near["operstate"], "DOWN");

    socket.batch(&[Request::DelLink(LinkRef::Name(name("net1")))]).unwrap();
    assert!(names(&pod).is_empty());
    assert_eq!(names(&host), ["net1"], "the other end went with it");
}

#[test]
fn a_macvlan_is_born_in_the_pod_in_each_mode() {
    let (host, pod) = (netns(), netns());
    let words = [
        (MacvlanMode::Bridge, "bridge"),
        (MacvlanMode::Private, "private"),
        (MacvlanMode::Vepa, "vepa"),
        (MacvlanMode::Passthru, "passthru"),
    ];
    for (i, (mode, word)) in words.into_iter().enumerate() {
        // One parent each: passthru wants it for itself.
        let (parent, own) = (format!("up{i}"), format!("net{i}"));
        let _far = nic(&host, &parent);
        let socket = Socket::open_in(&pod).unwrap();
        let request = Request::AddMacvlan {
            name: name(&own),
            parent: index(&Socket::open_in(&host).unwrap(), &parent),
            parent_netns: Some(socket.netns_id_of(&host).unwrap()),
            mode,
            mac: (mode != MacvlanMode::Passthru).then(|| mac("0a:58:0a:06:01:0a")),
            mtu: Some(1280),
            bc_queue_len: Some(2000),
        };
        socket.batch(&[request, set(&own, LinkChange { alias: Some("mooring:1:x".into()), ..LinkChange::default() })]).unwrap();
        let got = link(&pod, &own);
        assert_eq!(got["linkinfo"]["info_kind"], "macvlan", "{got}");
        assert_eq!(got["linkinfo"]["info_data"]["mode"], word, "{got}");
        assert_eq!(got["linkinfo"]["info_data"]["bcqueuelen"], 2000, "{got}");
        assert_eq!(got["mtu"], 1280);
        assert_eq!(got["ifalias"], "mooring:1:x");
        if mode != MacvlanMode::Passthru {
            assert_eq!(got["address"], "0a:58:0a:06:01:0a");
        }
        let seen = socket.link(&name(&own)).unwrap().unwrap();
        assert_eq!(seen.kind, LinkKind::Macvlan { mode });
        assert_eq!(seen.alias.as_deref(), Some("mooring:1:x"));
        assert_eq!(seen.link_index, Some(index(&Socket::open_in(&host).unwrap(), &parent)));
        assert!(seen.link_netnsid.is_some());
        socket.batch(&[Request::DelLink(LinkRef::Name(name(&own)))]).unwrap();
    }
    assert!(names(&pod).is_empty());
}

#[test]
fn a_macvlan_on_a_link_of_the_pod_itself_needs_no_other_namespace() {
    let pod = netns();
    let _far = nic(&pod, "eth0");
    let socket = Socket::open_in(&pod).unwrap();
    let request = |mtu| Request::AddMacvlan {
        name: name("net1"),
        parent: index(&socket, "eth0"),
        parent_netns: None,
        mode: MacvlanMode::Bridge,
        mac: None,
        mtu,
        bc_queue_len: None,
    };
    // A macvlan's mtu cannot be above its parent's.
    assert_eq!(refusal(socket.batch(&[request(Some(9000))])).0, Errno::EINVAL);
    socket.batch(&[request(None)]).unwrap();
    assert_eq!(link(&pod, "net1")["link"], "eth0");
    let (errno, _) = refusal(socket.batch(&[request(None)]));
    assert_eq!(errno, Errno::EEXIST);
}

#[test]
fn every_field_of_a_link_can_be_set() {
    let (host, pod) = (netns(), netns());
    let _far = nic(&host, "eth0");
    let socket = Socket::open_in(&host).unwrap();
    let none = LinkChange::default;
    socket
        .batch(&[
            set("eth0", LinkChange { mac: Some(mac("0a:00:00:00:00:07")), ..none() }),
            set("eth0", LinkChange { mtu: Some(1300), ..none() }),
            set("eth0", LinkChange { tx_queue_len: Some(17), ..none() }),
            set("eth0", LinkChange { alias: Some("mooring:1:0123456789abcdef".into()), ..none() }),
            set("eth0", LinkChange { up: Some(false), ..none() }),
        ])
        .unwrap();
    let got = link(&host, "eth0");
    assert_eq!(got["address"], "0a:00:00:00:00:07");
    assert_eq!(got["mtu"], 1300);
    assert_eq!(got["txqlen"], 17);
    assert_eq!(got["ifalias"], "mooring:1:0123456789abcdef");
    assert!(!got["flags"].as_array().unwrap().contains(&json!("UP")));

    socket.batch(&[set("eth0", LinkChange { alias: Some(String::new()), ..none() })]).unwrap();
    assert_eq!(link(&host, "eth0")["ifalias"], Value::Null);

    let by_index = LinkRef::Index(index(&socket, "eth0"));
    socket
        .batch(&[Request::SetLink { link: by_index.clone(), change: LinkChange { rename: Some(name("eth7")), ..none() } }])
        .unwrap();
    assert_eq!(names(&host), ["eth7"]);
    socket.batch(&[Request::SetLink { link: by_index, change: LinkChange { netns: Some(pod.as_fd()), ..none() } }]).unwrap();
    assert!(names(&host).is_empty());
    assert_eq!(names(&pod), ["eth7"]);

    let (errno, _) = refusal(socket.batch(&[up("absent")]));
    assert_eq!(errno, Errno::ENODEV);
    let (errno, _) = refusal(socket.batch(&[Request::DelLink(LinkRef::Name(name("absent")))]));
    assert_eq!(errno, Errno::ENODEV);
}

fn addrs(netns: &Netns, dev: &str) -> Vec<Value> {
    let all = ip(netns, &format!("addr show dev {dev}"));
    let global = |a: &&Value| a["scope"] == "global";
    all[0]["addr_info"].as_array().unwrap().iter().filter(global).cloned().collect()
}

fn addr(s: &str) -> IfAddr {
    s.parse().unwrap()
}

#[test]
fn addresses_of_both_families_come_and_go() {
    let pod = netns();
    let _far = nic(&pod, "eth0");
    let socket = Socket::open_in(&pod).unwrap();
    let index = index(&socket, "eth0");
    let add = |a: &str, nodad| Request::AddAddr { index, addr: addr(a), nodad, no_prefix_route: false };
    socket.batch(&[add("10.6.1.10/16", false), add("10.7.0.1/32", false), add("fd00:10:6::1:10/64", true)]).unwrap();
    let got = addrs(&pod, "eth0");
    assert_eq!(
        (&got[0]["local"], &got[0]["prefixlen"], &got[0]["broadcast"]),
        (&json!("10.6.1.10"), &json!(16), &json!("10.6.255.255"))
    );
    assert_eq!((&got[1]["local"], &got[1]["broadcast"]), (&json!("10.7.0.1"), &Value::Null));
    assert_eq!(
        (&got[2]["local"], &got[2]["nodad"], &got[2]["tentative"]),
        (&json!("fd00:10:6::1:10"), &json!(true), &Value::Null)
    );

    let seen = socket.state().unwrap();
    let of_us: Vec<_> =
        seen.addrs.iter().filter(|a| !a.scope_link && a.dev == name("eth0")).map(|a| a.addr.to_string()).collect();
    assert_eq!(of_us, ["10.6.1.10/16", "10.7.0.1/32", "fd00:10:6::1:10/64"]);
    assert!(seen.addrs.iter().filter(|a| !a.scope_link).all(|a| a.permanent && !a.tentative));

    for a in ["10.6.1.10/16", "fd00:10:6::1:10/64"] {
        assert_eq!(refusal(socket.batch(&[add(a, false)])).0, Errno::EEXIST, "{a}");
    }
    let del = |a: &str| Request::DelAddr { index, addr: addr(a) };
    socket.batch(&[del("10.6.1.10/16"), del("10.7.0.1/32"), del("fd00:10:6::1:10/64")]).unwrap();
    assert!(addrs(&pod, "eth0").is_empty());
    for a in ["10.6.1.10/16", "fd00:10:6::1:10/64"] {
        assert_eq!(refusal(socket.batch(&[del(a)])).0, Errno::EADDRNOTAVAIL, "{a}");
    }

    socket.batch(&[Request::AddAddr { index, addr: addr("10.8.0.1/24"), nodad: false, no_prefix_route: true }]).unwrap();
    assert_eq!(ip(&pod, "-4 route show dev eth0"), json!([]));
}

#[test]
fn routes_come_and_go_and_read_back_as_they_were_added() {
    let pod = netns();
    let _far = nic(&pod, "net1");
    let socket = Socket::open_in(&pod).unwrap();
    let index = index(&socket, "net1");
    socket
        .batch(&["10.6.1.10/16", "fd00:10:6::1:10/64"].map(|a| Request::AddAddr {
            index,
            addr: addr(a),
            nodad: true,
            no_prefix_route: true,
        }))
        .unwrap();
    let route = |dst: &str, gw: Option<&str>| Route::new(dst.parse().unwrap(), gw.map(|g| g.parse().unwrap()), name("net1"));
    let routes = [
        route("10.6.0.0/16", None),
        Route { src: Some("10.6.1.10".parse().unwrap()), ..route("10.6.0.0/16", None) }.in_table(101),
        route("0.0.0.0/0", Some("10.6.0.1")).in_table(100_101),
        Route { metric: Some(77), mtu: Some(1300), advmss: Some(1200), ..route("192.168.0.0/24", Some("10.6.0.1")) },
        Route { onlink: true, ..route("192.168.1.0/24", Some("172.31.0.1")) },
        route("fd00:10:6::/64", None),
        route("::/0", Some("fd00:10:6::1")).in_table(100_101),
        Route { metric: Some(5), ..route("fd00:99::/32", Some("fd00:10:6::1")) },
        route("192.168.2.0/24", Some("fd00:10:6::1")),
    ];
    let add: Vec<_> = routes.iter().map(|r| Request::AddRoute { index, route: r.clone() }).collect();
    socket.batch(&add).unwrap();

    let of = |table: &str, family: &str| ip(&pod, &format!("-{family} route show table {table}"));
    let main = of("main", "4");
    let find = |list: &Value, dst: &str| list.as_array().unwrap().iter().find(|r| r["dst"] == dst).cloned().unwrap_or_default();
    assert_eq!(find(&main, "10.6.0.0/16")["scope"], "link");
    assert_eq!(find(&of("101", "4"), "10.6.0.0/16")["prefsrc"], "10.6.1.10");
    assert_eq!(find(&of("100101", "4"), "default")["gateway"], "10.6.0.1");
    let metrics = find(&main, "192.168.0.0/24");
    assert_eq!(
        (&metrics["metric"], &metrics["metrics"][0]["mtu"], &metrics["metrics"][0]["advmss"]),
        (&json!(77), &json!(1300), &json!(1200))
    );
    assert_eq!(find(&main, "192.168.1.0/24")["flags"], json!(["onlink"]));
    assert_eq!(find(&main, "192.168.2.0/24")["via"], json!({"family": "inet6", "host": "fd00:10:6::1"}));
    assert_eq!(find(&of("100101", "6"), "default")["gateway"], "fd00:10:6::1");
    assert_eq!(find(&of("main", "6"), "fd00:99::/32")["metric"], 5);

    let seen = socket.state().unwrap().routes;
    for r in &routes {
        assert!(seen.contains(r), "{r} is missing in {seen:#?}");
    }
    assert_eq!(refusal(socket.batch(&add[..1])).0, Errno::EEXIST);
    let (errno, text) = refusal(socket.batch(&[Request::AddRoute { index, route: route("192.168.9.0/24", Some("172.31.0.1")) }]));
    assert_eq!((errno, text.as_str()), (Errno::ENETUNREACH, "Nexthop has invalid gateway"));

    let way = socket.route_get("192.168.0.9".parse().unwrap()).unwrap().unwrap();
    assert_eq!((way.link, way.gw, way.src), (index, Some("10.6.0.1".parse().unwrap()), Some("10.6.1.10".parse().unwrap())));
    assert_eq!(socket.route_get("203.0.113.1".parse().unwrap()).unwrap(), None);

    let del: Vec<_> = routes.iter().map(|r| Request::DelRoute { index, route: r.clone() }).collect();
    socket.batch(&del).unwrap();
    let left = socket.state().unwrap().routes;
    assert!(left.iter().all(|r| r.dst.to_string() == "fe80::/64"), "{left:?}");
    assert_eq!(refusal(socket.batch(&del[..1])).0, Errno::ESRCH);
}

#[test]
fn rules_look_a_table_up() {
    let pod = netns();
    let _far = nic(&pod, "net1");
    let socket = Socket::open_in(&pod).unwrap();
    let rule = |priority, ipv4, table| Rule { priority, from: None, to: None, iif: None, fwmark: None, table, ipv4 };
    let rules = [
        Rule { from: Some("10.6.1.10/32".parse().unwrap()), ..rule(1000, true, 101) },
        Rule { to: Some("10.96.0.0/12".parse().unwrap()), ..rule(1001, true, 100_101) },
        Rule { iif: Some(name("net1")), fwmark: Some(0x100), ..rule(1002, true, 103) },
        Rule { from: Some("fd00:10:6::1:10/128".parse().unwrap()), ..rule(1000, false, 101) },
        rule(1003, false, 254),
    ];
    socket.batch(&rules.clone().map(Request::AddRule)).unwrap();
    let got = ip(&pod, "-4 rule show");
    let of = |priority: u32| got.as_array().unwrap().iter().find(|r| r["priority"] == priority).cloned().unwrap_or_default();
    assert_eq!((&of(1000)["src"], &of(1000)["table"]), (&json!("10.6.1.10"), &json!("101")));
    assert_eq!((&of(1001)["dst"], &of(1001)["dstlen"], &of(1001)["table"]), (&json!("10.96.0.0"), &json!(12), &json!("100101")));
    assert_eq!((&of(1002)["iif"], &of(1002)["fwmark"]), (&json!("net1"), &json!("0x100")));
    // An action: without one, every lookup that meets the rule would fail.
    socket
        .batch(&[Request::AddAddr {
            index: index(&socket, "net1"),
            addr: addr("10.6.1.10/16"),
            nodad: false,
            no_prefix_route: false,
        }])
        .unwrap();
    assert!(common::run(&pod, "ip", &["route", "get", "10.6.0.1", "from", "10.6.1.10"]).is_ok());

    let seen = socket.rules().unwrap();
    for r in &rules {
        assert!(seen.contains(r), "{r} is missing in {seen:?}");
    }
    // One that we have no words for is left out, not misread.
    ip_do(&pod, "rule add pref 999 fwmark 0x200/0xf00 lookup 7");
    ip_do(&pod, "rule add pref 998 not from 10.0.0.0/8 lookup 7");
    ip_do(&pod, "rule add pref 997 lookup main suppress_prefixlength 0");
    assert_eq!(socket.rules().unwrap(), seen);

    assert_eq!(refusal(socket.batch(&[Request::AddRule(rules[0].clone())])).0, Errno::EEXIST);
    socket.batch(&rules.clone().map(Request::DelRule)).unwrap();
    assert!(socket.rules().unwrap().iter().all(|r| !rules.contains(r)));
    assert_eq!(refusal(socket.batch(&[Request::DelRule(rules[0].clone())])).0, Errno::ENOENT);
}

#[test]
fn permanent_neighbours_come_and_go() {
    let pod = netns();
    let _far = nic(&pod, "net1");
    let socket = Socket::open_in(&pod).unwrap();
    let index = index(&socket, "net1");
    let ips = ["10.6.0.1", "fd00::1"].map(|i| i.parse().unwrap());
    socket.batch(&ips.map(|ip| Request::AddNeighbour { index, ip, mac: mac("0a:00:00:00:00:01") })).unwrap();
    let got = ip(&pod, "neigh show nud permanent");
    for (n, ip) in got.as_array().unwrap().iter().zip(["10.6.0.1", "fd00::1"]) {
        assert_eq!((&n["dst"], &n["lladdr"], &n["state"]), (&json!(ip), &json!("0a:00:00:00:00:01"), &json!(["PERMANENT"])));
    }
    let seen = socket.state().unwrap().neighbours;
    assert_eq!(seen.iter().map(|n| n.ip).collect::<Vec<_>>(), ips);
    socket.batch(&ips.map(|ip| Request::DelNeighbour { index, ip })).unwrap();
    assert_eq!(ip(&pod, "neigh show nud permanent"), json!([]));
    assert_eq!(refusal(socket.batch(&[Request::DelNeighbour { index, ip: ips[0] }])).0, Errno::ENOENT);
}

#[test]
fn a_batch_tells_what_was_done_and_what_not() {
    let pod = netns();
    let _far = nic(&pod, "net1");
    let socket = Socket::open_in(&pod).unwrap();
    let index = index(&socket, "net1");
    let add = |i: u32| Request::AddAddr {
        index,
        addr: IfAddr::new(std::net::Ipv4Addr::from_bits(0x0a06_0000 + i).into(), 32).unwrap(),
        nodad: false,
        no_prefix_route: false,
    };
    // More than fit into one datagram.
    socket.batch(&(1..=200).map(add).collect::<Vec<_>>()).unwrap();
    assert_eq!(addrs(&pod, "net1").len(), 200);

    let failed = socket.batch(&[add(300), add(1), add(301)]).unwrap_err();
    assert_eq!(failed.first(), 1);
    assert!(
        matches!(&failed.outcomes[..], [Outcome::Done, Outcome::Refused(k), Outcome::Done] if k.errno == Errno::EEXIST),
        "{failed:?}"
    );
    assert!(failed.to_string().starts_with("request 2 of 3 was refused: File exists (EEXIST)"), "{failed}");
    // Behind a datagram with a refusal nothing is sent any more.
    let many: Vec<_> = [add(1)].into_iter().chain((400..=500).map(add)).collect();
    let failed = socket.batch(&many).unwrap_err();
    assert_eq!(failed.outcomes.iter().filter(|o| **o == Outcome::Done).count(), 63);
    assert_eq!(failed.outcomes.iter().filter(|o| **o == Outcome::NotTried).count(), 37 + 1);
    assert!(socket.batch(&[]).is_ok());
}

#[test]
fn a_link_is_found_by_any_of_its_names() {
    let host = netns();
    let _far = nic(&host, "eth0");
    ip_do(&host, "link property add dev eth0 altname enp0s3 altname a-name-that-is-longer-than-fifteen-bytes");
    let socket = Socket::open_in(&host).unwrap();
    for n in ["eth0", "enp0s3", "a-name-that-is-longer-than-fifteen-bytes"] {
        let found = socket.link_named(n).unwrap().unwrap_or_else(|| panic!("{n}"));
        assert_eq!(found.name, name("eth0"));
        assert_eq!(found.altnames, ["enp0s3", "a-name-that-is-longer-than-fifteen-bytes"]);
        assert_eq!(socket.link_by_index(found.index).unwrap(), Some(found));
    }
    assert_eq!(socket.link_named("eth9").unwrap(), None);
    assert_eq!(socket.link_by_index(4711).unwrap(), None);
    let found = socket.link(&name("eth0")).unwrap().unwrap();
    assert!(found.up && found.carrier && found.kind == LinkKind::Veth);
    let lo = socket.link(&name("lo")).unwrap().unwrap();
    assert!(lo.kind == LinkKind::Loopback && !lo.up);
}

#[test]
fn a_namespace_that_is_gone_or_none_is_told_by_its_path() {
    let dir = std::env::temp_dir();
    let gone = dir.join(format!("mt-gone-{}", std::process::id()));
    let e = Netns::open(&gone).unwrap_err();
    assert!(
        matches!(&e, Error::OpenNetns { .. }) && e.errno() == Some(Errno::ENOENT) && e.to_string().contains("mt-gone-"),
        "{e}"
    );
    std::fs::write(&gone, "").unwrap();
    let e = Netns::open(&gone);
    std::fs::remove_file(&gone).unwrap();
    assert!(matches!(e, Err(Error::NotNetns { .. })), "{e:?}");
    // One of another kind.
    let uts = Netns::open("/proc/self/ns/uts").unwrap();
    assert!(matches!(Socket::open_in(&uts), Err(Error::Enter { .. })));
}

#[test]
fn the_callers_thread_stays_in_its_own_namespace() {
    let before = Netns::current().unwrap().id();
    let pod = netns();
    let inside = pod.enter(|| Netns::current().unwrap().id()).unwrap();
    assert_eq!(inside, pod.id());
    assert_ne!(inside, before);
    assert_eq!(Netns::current().unwrap().id(), before);
}

#[test]
fn a_veth_has_one_queue_at_each_end() {
    let pod = netns();
    let far = nic(&pod, "net1");
    for (at, dev) in [(&pod, "net1"), (&far, "x")] {
        let link = link(at, dev);
        // Only a kernel with CONFIG_RPS says how many receive: user-mode Linux has none.
        let rps = std::path::Path::new("/proc/sys/net/core/rps_sock_flow_entries").exists();
        let receive = if rps { 1.into() } else { Value::Null };
        assert_eq!((&link["num_tx_queues"], &link["num_rx_queues"]), (&1.into(), &receive), "{link}");
    }
}

#[test]
fn changes_are_noticed() {
    let pod = netns();
    let monitor = Monitor::open_in(&pod).unwrap();
    assert!(!monitor.changed().unwrap());
    let soon = || std::time::Instant::now() + std::time::Duration::from_secs(60);
    assert!(!monitor.wait(std::time::Instant::now() + std::time::Duration::from_millis(10)).unwrap());
    let _far = nic(&pod, "net1");
    assert!(monitor.wait(soon()).unwrap());
    while monitor.wait(std::time::Instant::now() + std::time::Duration::from_millis(300)).unwrap() {}
    ip_do(&pod, "addr add 10.0.0.1/24 dev net1");
    assert!(monitor.wait(soon()).unwrap());
}

#[test]
fn one_socket_serves_several_threads() {
    let pod = netns();
    let _far = nic(&pod, "net1");
    let socket = Socket::open_in(&pod).unwrap();
    let index = index(&socket, "net1");
    std::thread::scope(|scope| {
        for t in 0..4u32 {
            let socket = &socket;
            scope.spawn(move || {
                for i in 0..50 {
                    let ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + t * 256 + i).into();
                    let request =
                        Request::AddAddr { index, addr: IfAddr::new(ip, 32).unwrap(), nodad: false, no_prefix_route: false };
                    socket.batch(&[request]).unwrap();
                    assert!(socket.links().unwrap().len() >= 2);
                }
            });
        }
    });
    assert_eq!(addrs(&pod, "net1").len(), 200);
}
