//! Every rule, by what breaks it: a world that is right, one thing planted in it, and the line that says so.

use serde_json::{Value, json};

use super::*;
use crate::facts::{Api, Machine, Namespace, Ovs};
use crate::journal::Journal;

const NOW: &str = "2026-01-01T00:10:00Z";

/// One node, and a pod with eth0 on br1 that has an address of a pool.
fn right() -> Facts {
    let id = attachment("c1", "eth0");
    let pod_link = json!({"ifname": "eth0", "ifalias": format!("mooring:1:{id}"),
        "addr_info": [{"local": "10.0.0.5", "scope": "global"}]});
    let row = |v: Value| v.as_object().unwrap().clone().into_iter().collect::<BTreeMap<String, Value>>();
    let port = |name: &str, ids: Value| {
        row(json!({"_uuid": ["uuid", name], "name": name, "interfaces": ["uuid", name], "external_ids": ids}))
    };
    let interface = |name: &str| row(json!({"_uuid": ["uuid", name], "name": name, "ofport": 1, "error": ["set", []]}));
    let entry = json!({"key": {"container_id": "c1", "ifname": "eth0", "role": "addresses"}, "state": "added",
        "netns": {"path": "/run/netns/cni-1", "dev": 4, "ino": 7},
        "work": {"work": "addresses", "held": [{"lease": "default.v4-10-0-0-5"}]}});
    let machine = Machine {
        name: "n1".into(),
        uplinks: vec!["ens192".into()],
        links: vec![
            json!({"ifname": "lo"}),
            json!({"ifname": "ens192", "addr_info": [{"local": "10.0.0.1", "scope": "global"}]}),
            json!({"ifname": "br1"}),
            json!({"ifname": "veth1", "ifalias": format!("mooring:1:{id}"), "link_netns": "cni-1"}),
        ],
        routes: vec![
            json!({"dst": "default", "gateway": "10.0.0.254", "dev": "ens192"}),
            json!({"dst": "10.0.0.5", "dev": "veth1", "table": "500"}),
            json!({"type": "local", "dst": "10.0.0.1", "dev": "ens192", "table": "local", "protocol": "kernel"}),
        ],
        rules: vec![
            json!({"priority": 0, "src": "all", "table": "local"}),
            json!({"priority": 1000, "src": "all", "table": "500"}),
        ],
        neighbours: vec![json!({"dst": "10.0.0.5", "dev": "veth1"})],
        namespaces: vec![Namespace { name: "cni-1".into(), dev: 4, ino: 7, links: vec![pod_link] }],
        records: vec![json!({"containerId": "c1", "netns": "/run/netns/cni-1", "cniArgs": [["K8S_POD_NAMESPACE", "default"],
            ["K8S_POD_NAME", "p"], ["K8S_POD_UID", "u1"]]})],
        host_local: vec![("10.244.0.2".into(), "c1".into())],
        ovs: Some(Ovs {
            bridges: vec![row(json!({"name": "br1", "external_ids": ["map", [["mooring-bridge", "br1"]]],
                "ports": ["set", [["uuid", "br1"], ["uuid", "ens192"], ["uuid", "veth1"]]]}))],
            ports: vec![
                port("br1", json!(["map", []])),
                port("ens192", json!(["map", [["mooring-bridge", "br1"]]])),
                port("veth1", json!(["map", [["mooring-attachment", id], ["contNetns", "/run/netns/cni-1"]]])),
            ],
            interfaces: ["br1", "ens192", "veth1"].map(interface).to_vec(),
        }),
        journal: Journal { entries: BTreeMap::from([("addresses eth0 of c1".to_owned(), entry)]), torn: 0 },
        spool: Vec::new(),
        agent_id: "a1".into(),
    };
    // Bits of 10.0.0.0/24 with only .9 free: bit 1 of byte 1.
    let bits = format!("AAIA{}A=", "A".repeat(38));
    let api = Api {
        pods: vec![json!({"metadata": {"namespace": "default", "name": "p", "uid": "u1"},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.5"}]}})],
        nodes: vec![json!({"metadata": {"name": "n1"}})],
        leases: vec![lease(
            "5",
            json!({"holder": {"podNamespace": "default", "podName": "p", "interface": "eth0", "containerID": "c1"}}),
        )],
        maps: vec![json!({"metadata": {"name": "pool"}, "spec": {"chunks": [{"base": "10.0.0.0", "bits": bits}]}})],
        pools: vec![
            json!({"metadata": {"name": "pool"}, "spec": {"ips": ["10.0.0.2-10.0.0.9"]}, "status": {"allocatedIPCount": 1}}),
        ],
        endpoints: vec![json!({"metadata": {"namespace": "default", "name": "p"},
            "status": {"current": {"uid": "u1", "node": "n1", "ips": [{"interface": "eth0", "ipv4": "10.0.0.5/24"}]}}})],
        networks: vec![json!({"metadata": {"name": "n1", "generation": 2}, "spec": {"bridges": [{"name": "br1"}]},
            "status": {"observedGeneration": 2, "agentID": "a1", "bridges": [{"name": "br1", "phase": "Ready", "attachments": 1}]}})],
        coordinators: Vec::new(),
    };
    let wire = BTreeMap::from([("10.0.0.5".parse().unwrap(), vec!["02:00:00:00:00:01".to_owned()])]);
    Facts { machines: vec![machine], api, wire }
}

/// A lease of n1 for 10.0.0.<last>.
fn lease(last: &str, more: Value) -> Value {
    let mut spec = json!({"pool": "pool", "address": format!("10.0.0.{last}"), "node": "n1", "agentID": "a1"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": format!("default.v4-10-0-0-{last}"), "uid": format!("l{}", if last == "5" { "1" } else { last }),
        "labels": {"mooring.dev/node": spec["node"]}}, "spec": spec})
}

/// What is said of the right world after `plant`.
fn said(plant: impl FnOnce(&mut Facts)) -> Vec<String> {
    let mut facts = right();
    plant(&mut facts);
    judge(&facts, NOW).iter().map(ToString::to_string).collect()
}

/// Exactly this kind of line about this.
#[track_caller]
fn finds(begins: &str, plant: impl FnOnce(&mut Facts)) {
    let said = said(plant);
    assert!(said.iter().any(|l| l.starts_with(begins)), "{begins:?} is not in {said:#?}");
}

fn node(f: &mut Facts) -> &mut Machine {
    &mut f.machines[0]
}

fn set(value: &mut Value, path: &str, to: Value) {
    *value.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = to;
}

#[test]
fn a_right_world_is_silent() {
    assert_eq!(said(|_| {}), Vec::<String>::new());
}

#[test]
fn rest_spares_and_kept_addresses_are_no_leaks() {
    let quiet = said(|f| {
        f.api.leases.push(lease("2", json!({"releasedAt": "2026-01-01T00:09:30Z"})));
        f.api.leases.extend((10..18).map(|i| lease(&i.to_string(), json!({}))));
        f.api.leases.push(lease("3", json!({"node": "", "agentID": "", "identity": {"kind": "StatefulSet"}})));
        f.api.leases.push(lease("4", json!({"node": "", "agentID": "", "quarantine": {"reason": "conflict"}})));
    });
    assert_eq!(quiet, Vec::<String>::new());
    finds("leaked spares of pool pool on n1", |f| f.api.leases.extend((10..19).map(|i| lease(&i.to_string(), json!({})))));
    finds("leaked spares of pool pool on n1", |f| {
        f.api.leases.extend((10..19).map(|i| lease(&i.to_string(), json!({"releasedAt": "2026-01-01T00:01:00Z"}))));
    });
}

#[test]
fn an_address_of_two_is_a_duplicate() {
    finds("duplicate address 10.0.0.5: eth0 of pod default/p on n1 and eth0 of pod default/q on n1", |f| {
        let links = node(f).namespaces[0].links.clone();
        node(f).namespaces.push(Namespace { name: "cni-2".into(), dev: 4, ino: 8, links });
        node(f).records.push(json!({"containerId": "c2", "netns": "/run/netns/cni-2",
            "cniArgs": [["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", "q"]]}));
    });
    finds("duplicate address 10.0.0.1: eth0 of pod default/p on n1 and ens192 of n1", |f| {
        set(&mut node(f).namespaces[0].links[0], "/addr_info/0/local", json!("10.0.0.1"));
    });
    finds("duplicate address 10.0.0.5 on the wire: 02:00:00:00:00:01 and 02:00:00:00:00:02 answer for it", |f| {
        f.wire.values_mut().for_each(|m| m.push("02:00:00:00:00:02".into()));
    });
    finds("duplicate lease of 10.0.0.5 in default", |f| {
        let mut other = f.api.leases[0].clone();
        set(&mut other, "/metadata/name", json!("default.another"));
        f.api.leases.push(other);
    });
    finds("duplicate lease for eth0 of container c1", |f| {
        let holder = f.api.leases[0]["spec"]["holder"].clone();
        f.api.leases.push(lease("6", json!({"holder": holder})));
    });
}

#[test]
fn the_same_address_in_two_domains_is_no_duplicate() {
    let said = said(|f| {
        let mut other = lease("5", json!({"node": "", "agentID": "", "identity": {"kind": "StatefulSet"}, "pool": "other"}));
        set(&mut other, "/metadata/name", json!("rack2.v4-10-0-0-5"));
        f.api.leases.push(other);
    });
    assert_eq!(said, Vec::<String>::new());
}

#[test]
fn what_no_living_pod_stands_for_on_a_host_is_leaked() {
    let dead = attachment("dead", "eth0");
    finds("leaked link veth9 on n1", |f| node(f).links.push(json!({"ifname": "veth9", "ifalias": format!("mooring:1:{dead}")})));
    finds("leaked link veth9 on n1", |f| {
        node(f).links.push(json!({"ifname": "veth9", "ifalias": format!("mooring:1:{dead}:alone")}))
    });
    finds("leaked link tap0 on n1", |f| node(f).links.push(json!({"ifname": "tap0"})));
    finds("leaked route to 10.0.0.7 in table 500 on n1", |f| {
        node(f).routes.push(json!({"dst": "10.0.0.7", "dev": "x", "table": "500"}))
    });
    finds("leaked route to fd00::7 in table main on n1", |f| {
        node(f).routes.push(json!({"dst": "fd00::7", "dev": "x", "protocol": "static"}))
    });
    finds("leaked rule 900 on n1", |f| node(f).rules.push(json!({"priority": 900, "src": "10.0.0.7", "table": "101"})));
    finds("leaked rule 900 on n1", |f| node(f).rules.push(json!({"priority": 900, "src": "all", "table": "77"})));
    finds("leaked neighbour 10.0.0.7 on n1", |f| node(f).neighbours.push(json!({"dst": "10.0.0.7", "dev": "ens192"})));
    finds("leaked spool file x.json on n1", |f| node(f).spool.push("x.json".into()));
    finds("leaked host-local's 10.244.0.9 on n1", |f| node(f).host_local.push(("10.244.0.9".into(), "dead".into())));
    finds("leaked namespace cni-9 on n1", |f| {
        node(f).namespaces.push(Namespace { name: "cni-9".into(), ..Namespace::default() })
    });
    finds("leaked link net1 in namespace cni-9 on n1", |f| {
        let links = vec![json!({"ifname": "lo"}), json!({"ifname": "net1", "ifalias": format!("mooring:1:{dead}:alone")})];
        node(f).namespaces.push(Namespace { name: "cni-9".into(), links, ..Namespace::default() })
    });
    for (mark, plant) in [(true, "p9"), (false, "p8")] {
        finds(&format!("leaked ovs port {plant} of br1 on n1"), |f| {
            let ovs = node(f).ovs.as_mut().unwrap();
            let mut port = ovs.ports[0].clone();
            port.insert("_uuid".into(), json!(["uuid", plant]));
            port.insert("name".into(), json!(plant));
            if mark {
                port.insert("external_ids".into(), json!(["map", [["mooring-attachment", dead]]]));
            }
            ovs.ports.push(port);
            ovs.bridges[0].get_mut("ports").unwrap()[1].as_array_mut().unwrap().push(json!(["uuid", plant]));
        });
    }
    finds("leaked ovs bridge br1 on n1", |f| set(&mut f.api.networks[0], "/spec/bridges", json!([])));
}

#[test]
fn a_mark_that_leads_elsewhere_is_stale() {
    finds("stale link veth1 on n1: it is marked for pod default/p and leads to cni-9", |f| {
        set(&mut node(f).links[3], "/link_netns", json!("cni-9"))
    });
    finds("stale ovs port veth1 of br1 on n1: contNetns", |f| {
        let ids = node(f).ovs.as_mut().unwrap().ports[2].get_mut("external_ids").unwrap();
        set(ids, "/1/1/1", json!("/run/netns/cni-9"));
    });
    for (column, value) in [("ofport", json!(-1)), ("error", json!("could not open network device"))] {
        finds("stale ovs port veth1 of br1 on n1: its interface", |f| {
            node(f).ovs.as_mut().unwrap().interfaces[2].insert(column.into(), value);
        });
    }
    finds("stale ovs on n1", |f| node(f).ovs = None);
    finds("stale record of sandbox c1 on n1", |f| node(f).namespaces.clear());
}

#[test]
fn a_journal_that_is_not_as_things_are_is_told() {
    let change = |path: &'static str, to: Value| {
        move |f: &mut Facts| set(node(f).journal.entries.get_mut("addresses eth0 of c1").unwrap(), path, to)
    };
    finds("leaked journal entry addresses eth0 of c1 on n1", change("/key/container_id", json!("dead")));
    finds("stale journal entry addresses eth0 of c1 on n1: it is adding", change("/state", json!("adding")));
    finds("stale journal entry addresses eth0 of c1 on n1: it names namespace", change("/netns/ino", json!(8)));
    finds(
        "stale journal entry addresses eth0 of c1 on n1: lease default.v4-10-0-0-6 is not",
        change("/work/held/0/lease", json!("default.v4-10-0-0-6")),
    );
    finds("stale journal on n1: it does not know eth0 of pod default/p", |f| node(f).journal.entries.clear());
    finds("stale lease default.v4-10-0-0-5: n1's journal does not know it", |f| node(f).journal.entries.clear());
}

#[test]
fn leases_that_nobody_stands_for_or_that_say_what_is_not_so_are_told() {
    let change = |path: &'static str, to: Value| move |f: &mut Facts| set(&mut f.api.leases[0], path, to);
    finds("leaked lease default.v4-10-0-0-5: its holder", change("/spec/holder/containerID", json!("dead")));
    finds(
        "stale lease default.v4-10-0-0-5: eth1 of pod default/p does not have",
        change("/spec/holder/interface", json!("eth1")),
    );
    finds("stale lease default.v4-10-0-0-5: it says pod default/q", change("/spec/holder/podName", json!("q")));
    finds("stale lease default.v4-10-0-0-5: agent a9 has it", change("/spec/agentID", json!("a9")));
    finds("stale lease default.v4-10-0-0-5: there is no node n9", |f| f.api.leases = vec![lease("5", json!({"node": "n9"}))]);
    finds("stale lease default.v4-10-0-0-5: its node is", change("/metadata/labels/mooring.dev~1node", json!("n9")));
    finds("leaked lease default.v4-10-0-0-6: it has no node", |f| {
        f.api.leases.push(lease("6", json!({"node": "", "agentID": ""})))
    });
    finds("stale address 10.0.0.5: eth0 of pod default/p on n1 has it without a lease", |f| f.api.leases.clear());
}

#[test]
fn words_for_people_that_are_not_so_are_told() {
    finds("stale count of pool pool", |f| set(&mut f.api.pools[0], "/status/allocatedIPCount", json!(2)));
    finds("stale poolmap pool: 10.0.0.9 is free in it", |f| f.api.leases.push(lease("9", json!({}))));
    finds("stale poolmap pool: its bits", |f| set(&mut f.api.maps[0], "/spec/chunks/0/bits", json!("?")));
    finds("leaked poolmap other", |f| set(&mut f.api.maps[0], "/metadata/name", json!("other")));
    finds("leaked endpoint default/q", |f| set(&mut f.api.endpoints[0], "/metadata/name", json!("q")));
    finds("stale endpoint default/p: it does not show 10.0.0.5", |f| f.api.endpoints.clear());
    for (path, to) in [("uid", json!("u9")), ("node", json!("n9")), ("ips/0/ipv4", json!("10.0.0.6/24"))] {
        finds("stale endpoint default/p", |f| set(&mut f.api.endpoints[0], &format!("/status/current/{path}"), to));
    }
    finds("leaked sandbox of pod default/p on n1", |f| f.api.pods.clear());
    finds("leaked sandbox of pod default/p on n1", |f| set(&mut f.api.pods[0], "/metadata/uid", json!("u9")));
    finds("stale pod default/p: it is Running and has no sandbox", |f| node(f).records.clear());
    finds("stale pod default/p: its status says 10.0.0.6", |f| set(&mut f.api.pods[0], "/status/podIPs/0/ip", json!("10.0.0.6")));
    finds("leaked nodenetwork n1", |f| f.api.nodes.clear());
    finds("stale nodenetwork n1: its generation", |f| set(&mut f.api.networks[0], "/metadata/generation", json!(3)));
    finds("stale nodenetwork n1: its agent", |f| set(&mut f.api.networks[0], "/status/agentID", json!("a9")));
    finds("stale nodenetwork n1: it counts 4 attachments", |f| {
        set(&mut f.api.networks[0], "/status/bridges/0/attachments", json!(4))
    });
    finds("stale nodenetwork n1: bridge br1 is said to be Ready", |f| node(f).ovs.as_mut().unwrap().bridges.clear());
}

#[test]
fn only_what_every_look_finds_stays() {
    let line = |what: &str, why: &str| Finding { wrong: Wrong::Leaked, what: what.into(), why: why.into() };
    let mut steady = Steady::default();
    assert!(!steady.is_silent(), "nobody has looked yet");
    steady.look(vec![line("a", "1"), line("b", "1")]);
    steady.look(vec![line("b", "2"), line("c", "1")]);
    assert_eq!(steady.left(), [line("b", "2")]);
    steady.look(vec![line("a", "1"), line("c", "1")]);
    assert!(steady.is_silent());
}
