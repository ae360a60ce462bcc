//! Pools as the controller sees them, and what it writes of them.

use super::*;
use crate::state::{Change, SlimNode, SlimTaint};
use api::mooring::AddressLease;
use kube::runtime::watcher::Event;

fn now() -> Stamp {
    Stamp("2026-01-01T00:00:00Z".parse().unwrap())
}

fn pool(name: &str, spec: Value) -> SpiderIPPool {
    let mut p = SpiderIPPool::new(name, serde_json::from_value(spec).unwrap());
    p.metadata.generation = Some(1);
    p.metadata.uid = Some(format!("uid-{name}"));
    p
}

fn quick_start() -> SpiderIPPool {
    pool("ippool-test", json!({ "subnet": "172.18.0.0/16", "ips": ["172.18.30.131-172.18.30.140"], "gateway": "172.18.0.1" }))
}

fn lease(ip: &str, pool: &str, holder: bool) -> AddressLease {
    let ip = ip.parse().unwrap();
    let mut l = AddressLease::new(&api::mooring::lease_name("default", ip), Default::default());
    l.spec.pool = pool.into();
    l.spec.node = "n1".into();
    l.spec.holder = holder.then(Default::default);
    l
}

fn node(name: &str, taints: &[(&str, &str)]) -> SlimNode {
    let mut n = SlimNode::default();
    n.metadata.name = Some(name.into());
    n.spec.taints = taints.iter().map(|(key, effect)| SlimTaint { key: (*key).into(), effect: (*effect).into() }).collect();
    n
}

/// With one node, n1.
fn world(pools: Vec<SpiderIPPool>, leases: Vec<AddressLease>) -> State {
    let mut s = State::default();
    let mut d = Dirty::default();
    s.apply(Change::Node(Event::Apply(node("n1", &[("node.kubernetes.io/not-ready", "NoSchedule")]))), &mut d);
    for p in pools {
        s.apply(Change::Pool(Event::Apply(p)), &mut d);
    }
    for l in leases {
        s.apply(Change::Lease(Event::Apply(l)), &mut d);
    }
    s
}

fn all(s: &State) -> Vec<Write> {
    decide(s, &Dirty::all(), &now())
}

fn status_of<'a>(w: &'a [Write], name: &str) -> &'a Value {
    w.iter()
        .find_map(|w| match &w.op {
            Op::PatchStatus(v) if w.name == name => Some(&v["status"]),
            _ => None,
        })
        .unwrap_or_else(|| panic!("no status of {name}: {w:?}"))
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap()
}

#[test]
fn the_quick_starts_pool_counts_its_holders() {
    let s = world(
        vec![quick_start()],
        vec![lease("172.18.30.131", "ippool-test", true), lease("172.18.30.132", "ippool-test", false)],
    );
    let w = all(&s);
    let st = status_of(&w, "ippool-test");
    assert_eq!(
        (&st["ipVersion"], &st["totalIPCount"], &st["allocatedIPCount"], &st["freeIPCount"]),
        (&json!(4), &json!(10), &json!(1), &json!(8))
    );
    assert_eq!(condition(st, "Ready")["status"], "True");
}

fn map_of(w: &[Write]) -> PoolMap {
    let map = w.iter().find(|w| w.kind == Kind::PoolMap).unwrap();
    let Op::Create(v) = &map.op else { panic!("{map:?}") };
    serde_json::from_value(v.clone()).unwrap()
}

#[test]
fn the_map_says_how_many_spares_a_node_keeps_and_which_are_asked_back() {
    let mut wanted = lease("172.18.30.132", "ippool-test", false);
    wanted.spec.wanted = Some(Default::default());
    let leases = vec![lease("172.18.30.131", "ippool-test", true), wanted.clone()];
    let map = map_of(&all(&world(vec![quick_start()], leases.clone())));
    // 8 without a lease and a spare, one node.
    assert_eq!((map.spec.spares_per_node, map.spec.recall), (2, vec!["172.18.30.132".to_owned()]));
    let mut off = quick_start();
    off.spec.disable = true;
    assert_eq!(map_of(&all(&world(vec![off], leases))).spec.spares_per_node, 0);
    // Somebody was quicker than the request.
    wanted.spec.holder = Some(Default::default());
    assert!(map_of(&all(&world(vec![quick_start()], vec![wanted]))).spec.recall.is_empty());
}

#[test]
fn leases_of_nodes_out_of_reach_are_shown_apart_with_what_to_do() {
    let on = |ip: &str, node: &str| {
        let mut l = lease(ip, "ippool-test", true);
        l.spec.node = node.into();
        l
    };
    let leases = vec![
        on("172.18.30.131", "n1"),
        on("172.18.30.132", "n2"),
        on("172.18.30.133", "n3"),
        on("172.18.30.134", "n3"),
        lease("172.18.30.135", "ippool-test", false),
        {
            let mut l = on("172.18.30.136", "");
            l.spec.holder = None;
            l
        },
    ];
    let mut s = world(vec![quick_start()], leases);
    s.apply(Change::Node(Event::Apply(node("n2", &[("node.kubernetes.io/unreachable", "NoExecute")]))), &mut Dirty::default());
    let w = all(&s);
    let st = status_of(&w, "ippool-test");
    let count = |what: &str| st[what].as_i64().unwrap();
    assert_eq!(
        ["allocatedIPCount", "unreachableIPCount", "spareIPCount", "keptIPCount", "freeIPCount"].map(count),
        [1, 3, 1, 1, 4]
    );
    let c = condition(st, "UnreachableNodes");
    assert_eq!((&c["status"], &c["reason"]), (&json!("True"), &json!("NodeDeleted")));
    assert_eq!(
        c["message"],
        "addresses: 1 of node n2, which is not ready; 2 of node n3, which is deleted (when it is dead: mooring release --node n3)"
    );
    assert!(w.iter().all(|w| w.kind != Kind::Lease), "nobody said that they are dead: {w:?}");
}

#[test]
fn a_deleted_nodes_addresses_are_asked_for_and_what_was_heard_is_shown() {
    let of_n3 = |ip: &str, sighting: Option<Value>| {
        let mut l = lease(ip, "ippool-test", true);
        l.spec.node = "n3".into();
        l.spec.sighting = sighting.map(|s| serde_json::from_value(s).unwrap());
        l
    };
    let (used, silent) = (
        json!({ "mac": "02:00:00:00:00:07", "node": "n1", "at": "2025-12-31T23:59:50Z" }),
        json!({ "node": "n1", "at": "2025-12-31T23:59:50Z" }),
    );
    let mut n1 = node("n1", &[]);
    n1.metadata.resource_version = Some("2".into());
    let decided = |leases: Vec<AddressLease>| {
        let mut s = world(vec![quick_start()], leases);
        s.apply(Change::Node(Event::Apply(n1.clone())), &mut Dirty::default());
        all(&s)
    };
    let on_n1 = || lease("172.18.30.140", "ippool-test", true);
    let w = decided(vec![of_n3("172.18.30.131", None), of_n3("172.18.30.132", Some(used.clone())), on_n1()]);
    let asked: Vec<_> = map_of(&w).spec.probes.into_iter().map(|p| (p.address, p.node)).collect();
    assert_eq!(asked, [("172.18.30.131".to_owned(), "n1".to_owned())]);
    let said = |w: &[Write]| condition(status_of(w, "ippool-test"), "UnreachableNodes")["message"].as_str().unwrap().to_owned();
    let release = "(when it is dead: mooring release --node n3)";
    assert_eq!(
        said(&w),
        format!("addresses: 2 of node n3, which is deleted; 1 are STILL USED (172.18.30.132 by 02:00:00:00:00:07) {release}")
    );
    let w = decided(vec![of_n3("172.18.30.131", Some(silent)), on_n1()]);
    assert!(map_of(&w).spec.probes.is_empty());
    assert_eq!(
        said(&w),
        format!("addresses: 1 of node n3, which is deleted; 1 were asked for on the segment, and nobody uses them {release}")
    );
    // Nobody there could ask.
    assert!(map_of(&decided(vec![of_n3("172.18.30.131", Some(used))])).spec.probes.is_empty());
    assert!(w.iter().all(|w| w.kind != Kind::Lease), "nobody said that it is dead: {w:?}");
}

#[test]
fn a_quarantined_address_is_shown_with_its_offender_and_given_to_nobody() {
    let mut l = lease("172.18.30.131", "ippool-test", false);
    l.spec.node.clear();
    let q = json!({ "mac": "02:00:00:00:00:07", "reason": "DuplicateAddress", "node": "n2", "at": "2026-01-01T00:00:00Z" });
    l.spec.quarantine = Some(serde_json::from_value(q).unwrap());
    let w = all(&world(vec![quick_start()], vec![l]));
    let st = status_of(&w, "ippool-test");
    assert_eq!((&st["quarantinedIPCount"], &st["keptIPCount"], &st["freeIPCount"]), (&json!(1), &json!(0), &json!(9)));
    let c = condition(st, "Quarantined");
    assert_eq!(
        (&c["status"], &c["message"]),
        (&json!("True"), &json!("172.18.30.131 is used by 02:00:00:00:00:07, seen by node n2"))
    );
    let (_, bits) = map_of(&w).spec.chunks[0].decode().unwrap();
    assert_eq!(bits[131 / 8] & (1 << (131 % 8)), 0);
}

#[test]
fn an_exhausted_pool_says_where_its_addresses_are() {
    let p = pool("p", json!({ "subnet": "10.6.0.0/16", "ips": ["10.6.1.1-10.6.1.2"] }));
    let w = all(&world(vec![p], vec![lease("10.6.1.1", "p", true), lease("10.6.1.2", "p", false)]));
    let c = condition(status_of(&w, "p"), "Exhausted");
    assert_eq!((&c["status"], &c["message"]), (&json!("True"), &json!("every address has a lease: 1 in use, 1 spare on nodes")));
}

#[test]
fn the_map_shows_free_addresses_only() {
    let s = world(vec![quick_start()], vec![lease("172.18.30.131", "ippool-test", true)]);
    let w = all(&s);
    let m = map_of(&w);
    let (base, bits) = m.spec.chunks[0].decode().unwrap();
    assert_eq!(base.to_string(), "172.18.30.0");
    let free: Vec<u8> = (0..=255u8).filter(|i| bits[usize::from(i / 8)] & (1 << (i % 8)) != 0).collect();
    assert_eq!(free, (132..=140).collect::<Vec<_>>());
}

#[test]
fn of_overlapping_pools_the_older_owns_what_they_share() {
    let mut old = pool("old", json!({ "subnet": "10.6.0.0/16", "ips": ["10.6.1.1-10.6.1.10"] }));
    old.metadata.creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time("2026-01-01T00:00:00Z".parse().unwrap()));
    let mut young = pool("young", json!({ "subnet": "10.6.0.0/16", "ips": ["10.6.1.8-10.6.1.20"] }));
    young.metadata.creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time("2026-01-02T00:00:00Z".parse().unwrap()));
    let w = all(&world(vec![old, young], vec![]));
    assert_eq!(condition(status_of(&w, "old"), "Overlap")["status"], "False");
    let o = condition(status_of(&w, "young"), "Overlap");
    assert_eq!(o["message"], "in L2 domain default: 10.6.1.8-10.6.1.10 belongs to the older pool old");
}

#[test]
fn a_field_that_nothing_acts_on_stops_the_pool_and_is_named() {
    let p = pool("p", json!({ "subnet": "10.6.0.0/16", "ips": ["10.6.1.1"], "podAffinity": { "matchLabels": { "a": "b" } } }));
    let w = all(&world(vec![p], vec![]));
    let c = condition(status_of(&w, "p"), "Ready");
    assert_eq!((&c["status"], &c["reason"]), (&json!("False"), &json!("FieldNotImplemented")));
    assert!(c["message"].as_str().unwrap().contains("podAffinity"));
}

#[test]
fn a_pool_in_use_keeps_its_finalizer_until_the_last_lease_is_gone() {
    let mut p = quick_start();
    p.metadata.finalizers = Some(vec![keys::FINALIZER.into()]);
    p.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time("2026-01-01T00:00:00Z".parse().unwrap()));
    let s = world(vec![p.clone()], vec![lease("172.18.30.131", "ippool-test", true)]);
    assert!(all(&s).iter().all(|w| !matches!(w.op, Op::Patch(_))));
    let s = world(vec![p], vec![]);
    let w = all(&s);
    assert_eq!(w.len(), 1);
    let Op::Patch(v) = &w[0].op else { panic!() };
    assert_eq!(v["metadata"]["finalizers"], json!([]));
}

#[test]
fn addresses_in_use_that_a_cut_range_no_longer_holds_are_shown() {
    let s = world(vec![quick_start()], vec![lease("172.18.30.200", "ippool-test", true)]);
    let c = all(&s);
    let c = condition(status_of(&c, "ippool-test"), "InUseOutsideRange");
    assert_eq!(c["message"], "1 addresses are in use that ips no longer holds: 172.18.30.200");
}

#[test]
fn what_is_right_is_not_written_again() {
    let s = world(vec![quick_start()], vec![]);
    let mut p = quick_start();
    let mut m = None;
    for w in all(&s) {
        match (w.kind, w.op) {
            (Kind::Pool, Op::PatchStatus(v)) => p.status = Some(serde_json::from_value(v["status"].clone()).unwrap()),
            (Kind::Pool, Op::Patch(v)) => {
                p.metadata.finalizers = serde_json::from_value(v["metadata"]["finalizers"].clone()).unwrap()
            }
            (Kind::PoolMap, Op::Create(v)) => m = Some(serde_json::from_value::<PoolMap>(v).unwrap()),
            other => panic!("{other:?}"),
        }
    }
    let mut s = world(vec![p], vec![]);
    s.apply(Change::PoolMap(Event::Apply(m.unwrap())), &mut Dirty::default());
    assert_eq!(all(&s), vec![]);
}
