//! Addresses that strangers use, gateways that are silent, and announcements that are repeated: what the agent does with what
//! the segment says. That the segment is asked rightly is the kernel's lab.

use std::net::IpAddr;
use std::time::Duration;

use cni::Error;
use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use model::MacAddr;
use planner::Step;
use serde_json::{Value, json};

use crate::addresses::stateful_set;
use crate::world::{World, macvlan, with};

const STRANGER: MacAddr = MacAddr::from_bytes([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]);

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn pools(v4: &str) -> Value {
    json!({"ipam.spidernet.io/ippool": json!({"ipv4":[v4]}).to_string()})
}

async fn annotate(w: &World, pool: &str, annotations: Value) {
    let api: Api<api::SpiderIPPool> = Api::all(w.client.clone());
    let patch = Patch::Merge(json!({"metadata":{"annotations":annotations}}));
    api.patch(pool, &PatchParams::default(), &patch).await.unwrap();
    let want = annotations.as_object().unwrap();
    w.until("the annotations are seen", || {
        let pools = w.agent.caches.pools();
        let pool = pools.iter().find(|p| p.name_any() == pool).unwrap();
        want.iter().all(|(k, v)| pool.annotations().get(k).map(String::as_str) == v.as_str())
    })
    .await;
}

/// A pool that asks whether its addresses are free.
async fn asking_pool(w: &World, name: &str, ips: &str) {
    w.v4(name, ips).await;
    annotate(w, name, json!({"mooring.dev/detect-conflict":"true"})).await;
}

async fn coordinator(w: &World, spec: Value) {
    let api: Api<api::spider::SpiderCoordinator> = Api::all(w.client.clone());
    let cr = json!({"apiVersion":"spiderpool.spidernet.io/v2beta1","kind":"SpiderCoordinator","metadata":{"name":"default"},"spec":spec});
    api.create(&PostParams::default(), &serde_json::from_value(cr).unwrap()).await.unwrap();
    w.until("the coordinator is seen", || w.agent.caches.coordinator("default").is_some()).await;
}

/// What the last NIC asked.
fn asked(w: &World) -> (Vec<String>, Vec<String>) {
    let applied = w.host.applied();
    let probe = applied.iter().rev().find_map(|(_, plan)| {
        plan.steps
            .iter()
            .any(|s| matches!(s, Step::AddMacvlan(_)))
            .then(|| plan.steps.iter().find_map(|s| if let Step::Probe { ask, .. } = s { Some(ask.clone()) } else { None }))
    });
    let ask = probe.flatten().unwrap_or_default();
    let text = |ip: &IpAddr| ip.to_string();
    (ask.unused.iter().map(text).collect(), ask.gateways.iter().map(|(gateway, _)| text(gateway)).collect())
}

#[tokio::test]
async fn asked_is_what_the_pool_says_else_the_network_else_the_coordinator() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.99").await;
    let (none, address, gateway) = (Vec::<String>::new(), |n: u8| vec![format!("10.6.1.{n}")], vec!["10.6.0.1".to_owned()]);
    let mut n = 10;
    let mut add = async |conf: Value| {
        let name = format!("a{n}");
        let mut annotations = pools("p");
        annotations["mooring.dev/ips"] = format!("10.6.1.{n}").into();
        let pod = w.pod(&name, annotations).await;
        w.add(&name, "eth0", &conf, Some(&pod)).await.unwrap();
        n += 1;
        asked(&w)
    };
    assert_eq!(add(macvlan(json!({}))).await, (none.clone(), none.clone()), "nothing by default");
    coordinator(&w, json!({"detectIPConflict":true,"detectGateway":true})).await;
    assert_eq!(add(macvlan(json!({}))).await, (address(11), gateway.clone()));
    annotate(&w, "p", json!({"mooring.dev/detect-conflict":"false"})).await;
    assert_eq!(add(macvlan(json!({}))).await, (none.clone(), gateway.clone()));
    annotate(&w, "p", json!({"mooring.dev/detect-conflict":"true","mooring.dev/detect-gateway":"false"})).await;
    assert_eq!(add(macvlan(json!({}))).await, (address(13), none.clone()));
}

#[tokio::test]
async fn a_network_of_the_meta_plugin_may_speak_for_its_pools() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.99").await;
    let coordinator = json!({"type":"coordinator","detectIPConflict":true,"mode":"overlay"});
    let chain = json!({"cniVersion":"1.0.0","name":"mv","plugins":[with(macvlan(json!({})), json!({"name":null,"cniVersion":null})), coordinator]});
    w.nad("default", "mv", chain).await;
    let pod = w.pod("a", {
        let mut a = pools("p");
        a["v1.multus-cni.io/default-network"] = "default/mv".into();
        a
    });
    let pod = pod.await;
    let conf = json!({"cniVersion":"1.0.0","name":"m","type":"mooring"});
    // Only what is asked matters here: the coordinator has no node address to work with.
    let _ = w.add("c1", "eth0", &conf, Some(&pod)).await;
    assert_eq!(asked(&w).0.len(), 1);
}

#[tokio::test]
async fn an_address_that_a_stranger_uses_is_put_into_quarantine_and_the_pod_gets_another() {
    let w = World::new().await;
    asking_pool(&w, "p", "10.6.1.10-10.6.1.11").await;
    w.map("p", &["10.6.1.10"]).await;
    w.host.set_stranger(ip("10.6.1.10"), Some(STRANGER));
    let pod = w.pod("a", pools("p")).await;
    let result = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    assert_eq!(result["ips"][0]["address"], "10.6.1.11/16");
    w.until_async("the quarantine is written", || async {
        w.lease("default.v4-10-6-1-10").await.is_some_and(|l| l.spec.quarantine.is_some())
    })
    .await;
    let lease = w.lease("default.v4-10-6-1-10").await.unwrap().spec;
    let q = lease.quarantine.clone().unwrap();
    assert_eq!((q.mac.as_deref(), q.node.as_str()), (Some("52:54:00:aa:bb:cc"), "n1"));
    assert!(lease.holder.is_none() && lease.node.is_empty() && lease.agent_id.is_empty());
    assert!(w.lease("default.v4-10-6-1-10").await.unwrap().labels().get("mooring.dev/node").is_none());
    assert_eq!(w.lease("default.v4-10-6-1-11").await.unwrap().spec.holder.unwrap().pod_name, "a");
    let events: Api<Event> = Api::namespaced(w.client.clone(), "default");
    w.until_async("the event is written", || async {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        all.iter().any(|e| {
            e.reason.as_deref() == Some("AddressConflict")
                && e.message.as_deref().is_some_and(|m| m.contains("10.6.1.10") && m.contains("52:54:00:aa:bb:cc"))
        })
    })
    .await;
    // The next pod does not get it either, also when the stranger is gone, before the quarantine ends.
    w.host.set_stranger(ip("10.6.1.10"), None);
    let next = w.pod("b", pools("p")).await;
    let e = w.add("c2", "eth0", &macvlan(json!({})), Some(&next)).await.unwrap_err();
    assert!(e.msg.starts_with("no free IPv4 address"), "{e}");
    // And the agent has nothing to do with it any more.
    w.del("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    assert!(w.lease("default.v4-10-6-1-10").await.unwrap().spec.quarantine.is_some());
    assert!(w.agent.journal.is_empty());
}

#[tokio::test]
async fn an_add_tries_so_many_addresses_and_then_leaves_nothing_but_the_quarantines() {
    let w = World::new().await;
    asking_pool(&w, "p", "10.6.1.10-10.6.1.29").await;
    for last in 10..30 {
        w.host.set_stranger(ip(&format!("10.6.1.{last}")), Some(STRANGER));
    }
    let pod = w.pod("a", pools("p")).await;
    let before = w.before("c1").await;
    let e = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
    assert_eq!(e.code, Error::TRY_AGAIN);
    assert!(e.msg.contains("each of the 8 addresses") && e.msg.contains("52:54:00:aa:bb:cc"), "{e}");
    let leases = w.leases().await;
    assert_eq!(leases.len(), 8);
    assert!(leases.iter().all(|l| l.spec.quarantine.is_some()));
    let after = w.before("c1").await;
    assert_eq!((after.host, after.pod), (before.host, before.pod));
    assert!(w.agent.journal.is_empty());
}

#[tokio::test]
async fn the_other_familys_address_is_not_lost_with_the_one_that_a_stranger_uses() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    w.pool("six", json!({"subnet":"fd00:10:6::/64","ips":["fd00:10:6::10-fd00:10:6::11"],"gateway":"fd00:10:6::1"})).await;
    annotate(&w, "six", json!({"mooring.dev/detect-conflict":"true"})).await;
    w.map("six", &["fd00:10:6::10"]).await;
    w.host.set_stranger(ip("fd00:10:6::10"), Some(STRANGER));
    let both = json!({"ipam.spidernet.io/ippool": json!({"ipv4":["p"],"ipv6":["six"]}).to_string()});
    let pod = w.pod("a", both).await;
    let result = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    assert_eq!(result["ips"][0]["address"], "10.6.1.10/16");
    assert_eq!(result["ips"][1]["address"], "fd00:10:6::11/64");
    assert_eq!(w.leases().await.len(), 3);
    w.del("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    w.until_async("only the quarantine is left", || async { w.leases().await.len() == 1 }).await;
}

#[tokio::test]
async fn a_second_nics_address_is_replaced_without_the_first_ones() {
    let w = World::new().await;
    asking_pool(&w, "p", "10.6.1.10-10.6.1.12").await;
    w.map("p", &["10.6.1.10", "10.6.1.11"]).await;
    let mut annotations = json!({"ipam.spidernet.io/ippools": json!([{"interface":"eth0","ipv4":["p"]},{"interface":"net1","ipv4":["p"]}]).to_string()});
    annotations["k8s.v1.cni.cncf.io/networks"] = "default/mv@net1".into();
    let pod = w.pod("a", annotations).await;
    let first = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    let first = first["ips"][0]["address"].as_str().unwrap().to_owned();
    // Taken with the first one, and by a stranger before it is used.
    let second = if first == "10.6.1.10/16" { "10.6.1.11" } else { "10.6.1.10" };
    w.host.set_stranger(ip(second), Some(STRANGER));
    let result = w.add("c1", "net1", &macvlan(json!({})), Some(&pod)).await.unwrap();
    assert_eq!(result["ips"][0]["address"], "10.6.1.12/16");
    let mut held: Vec<_> =
        w.leases().await.into_iter().filter_map(|l| Some((l.spec.address, l.spec.holder?.interface))).collect();
    held.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(
        held,
        [(first.trim_end_matches("/16").to_owned(), "eth0".to_owned()), ("10.6.1.12".to_owned(), "net1".to_owned())]
    );
}

#[tokio::test]
async fn an_address_that_is_asked_for_by_name_is_not_replaced() {
    let w = World::new().await;
    asking_pool(&w, "p", "10.6.1.10-10.6.1.19").await;
    w.host.set_stranger(ip("10.6.1.10"), Some(STRANGER));
    let mut annotations = pools("p");
    annotations["mooring.dev/ips"] = "10.6.1.10".into();
    let pod = w.pod("a", annotations).await;
    let e = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
    assert_eq!(e.code, Error::TRY_AGAIN);
    assert_eq!(
        e.msg,
        "address 10.6.1.10 of pool p is used by somebody with the hardware address 52:54:00:aa:bb:cc, and the pod is to have this one"
    );
    assert!(w.leases().await.iter().all(|l| l.spec.quarantine.is_none() && l.spec.holder.is_none()));
    // As soon as the stranger is gone the pod starts.
    w.host.set_stranger(ip("10.6.1.10"), None);
    let result = w.add("c2", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    assert_eq!(result["ips"][0]["address"], "10.6.1.10/16");
}

#[tokio::test]
async fn a_statefulset_keeps_its_address_against_a_stranger_and_takes_no_strangers_first() {
    let w = World::new().await;
    asking_pool(&w, "p", "10.6.1.10-10.6.1.11").await;
    w.map("p", &["10.6.1.10"]).await;
    w.host.set_stranger(ip("10.6.1.10"), Some(STRANGER));
    let owner = stateful_set(&w).await;
    let pod = w.pod_of("web-0", pools("p"), owner.clone()).await;
    let result = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    assert_eq!(result["ips"][0]["address"], "10.6.1.11/16", "its first address may be any");
    assert!(w.lease("default.v4-10-6-1-10").await.unwrap().spec.identity.is_none());
    w.del("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    w.delete_pod("web-0").await;
    w.host.set_stranger(ip("10.6.1.11"), Some(STRANGER));
    let pod = w.pod_of("web-0", pools("p"), owner).await;
    let e = w.add("c2", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
    assert!(e.msg.contains("10.6.1.11") && e.msg.contains("52:54:00:aa:bb:cc"), "{e}");
    let kept = w.lease("default.v4-10-6-1-11").await.unwrap().spec;
    assert!(kept.quarantine.is_none() && kept.holder.is_none() && kept.identity.is_some());
}

#[tokio::test]
async fn a_silent_gateway_fails_the_add_and_leaves_nothing() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.11").await;
    annotate(&w, "p", json!({"mooring.dev/detect-gateway":"true"})).await;
    w.host.silence(ip("10.6.0.1"));
    let pod = w.pod("a", pools("p")).await;
    let before = w.before("c1").await;
    let e = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
    assert_eq!(e.code, Error::TRY_AGAIN);
    assert!(e.msg.contains("gateway 10.6.0.1 does not answer on this segment"), "{e}");
    let after = w.before("c1").await;
    assert_eq!((after.host, after.pod), (before.host, before.pod));
    assert!(w.leases().await.iter().all(|l| l.spec.holder.is_none()));
    assert!(w.agent.journal.is_empty());
}

#[tokio::test]
async fn announcements_are_repeated_while_the_nic_is_there() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.11").await;
    w.pool("six", json!({"subnet":"fd00:10:6::/64","ips":["fd00:10:6::10-fd00:10:6::11"]})).await;
    let both = json!({"ipam.spidernet.io/ippool": json!({"ipv4":["p"],"ipv6":["six"]}).to_string()});
    let (stays, goes) = (w.pod("a", both.clone()).await, w.pod("b", both).await);
    w.add("c1", "eth0", &macvlan(json!({})), Some(&stays)).await.unwrap();
    w.add("c2", "eth0", &macvlan(json!({})), Some(&goes)).await.unwrap();
    w.del("c2", "eth0", &macvlan(json!({})), Some(&goes)).await.unwrap();
    assert!(w.host.announced_again().is_empty(), "nobody waits for it");
    tokio::time::sleep(Duration::from_millis(2600)).await;
    let mine = w.netns("c1").to_string_lossy().into_owned();
    let all = w.host.announced_again();
    assert!(all.iter().all(|(pod, dev, _)| *pod == mine && dev.as_str() == "eth0"), "{all:?}");
    let families: Vec<Vec<bool>> = all.iter().map(|(_, _, ips)| ips.iter().map(IpAddr::is_ipv4).collect()).collect();
    assert_eq!(families, [vec![false], vec![true, false]], "IPv6 after one and two seconds, IPv4 after two");
}

#[tokio::test]
async fn what_a_segment_says_of_a_deleted_nodes_addresses_is_noted_in_their_leases() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.99").await;
    for n in 20..40 {
        w.foreign_lease("p", &format!("10.6.1.{n}"), json!({})).await;
    }
    w.foreign_lease("p", "10.6.1.50", json!({"node": "n1", "agentID": w.agent.me.agent_id})).await;
    let mut map = api::PoolMap::new("p", Default::default());
    map.spec.pool = "p".into();
    let ask = |n: u8, node: &str| api::mooring::ProbeRequest { address: format!("10.6.1.{n}"), node: node.into() };
    map.spec.probes = (20..39).map(|n| ask(n, "n1")).chain([ask(39, "n3"), ask(50, "n1"), ask(60, "n1")]).collect();
    for n in [21, 25, 38] {
        w.host.set_stranger(ip(&format!("10.6.1.{n}")), Some(STRANGER));
    }
    let seen = async |n: u8| w.lease(&format!("default.v4-10-6-1-{n}")).await.unwrap().spec.sighting;
    // Without a pod of the pool there is no place to ask from.
    w.agent.look(&map).await;
    assert_eq!(seen(20).await, None);
    let mut annotations = pools("p");
    annotations["mooring.dev/ips"] = "10.6.1.90".into();
    let pod = w.pod("a", annotations).await;
    w.add("a", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    w.agent.look(&map).await;
    for n in 20..39 {
        let s = seen(n).await.unwrap_or_else(|| panic!("10.6.1.{n} was not asked for"));
        assert_eq!(s.mac, [21, 25, 38].contains(&n).then(|| STRANGER.to_string()), "10.6.1.{n}");
        assert_eq!(s.node, "n1");
    }
    assert_eq!((seen(39).await, seen(50).await), (None, None), "another node is to ask; this one is ours");
    // Nobody has it, or it came back: nothing to note it in.
    assert!(w.lease("default.v4-10-6-1-60").await.is_none());
}
