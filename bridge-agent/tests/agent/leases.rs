//! Leases over a node's life: spares, rest, recall, a lost disk, an etcd that went back in time.

use std::time::{Duration, Instant};

use api::PoolMap;
use api::mooring::AddressLease;
use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::served::Served;
use crate::world::{World, macvlan};

fn v4(pool: &str) -> Value {
    json!({"ipam.spidernet.io/ippool": json!({"ipv4":[pool]}).to_string()})
}

async fn patch_map(w: &World, spec: Value) {
    let api: Api<PoolMap> = Api::all(w.client.clone());
    api.patch("p", &PatchParams::default(), &Patch::Merge(json!({ "spec": spec }))).await.unwrap();
}

/// A pool of 20 with a map of all; `spares` a node.
async fn pool(w: &World, spares: u8) {
    w.v4("p", "10.6.1.10-10.6.1.29").await;
    let free: Vec<String> = (10..30).map(|n| format!("10.6.1.{n}")).collect();
    w.map("p", &free.iter().map(String::as_str).collect::<Vec<_>>()).await;
    patch_map(w, json!({ "sparesPerNode": spares })).await;
}

#[tokio::test]
async fn an_add_with_a_spare_in_hand_needs_no_api_server() {
    let (mut served, w) = Served::start().await;
    pool(&w, 2).await;
    let (a, b) = (w.pod("a", v4("p")).await, w.pod("b", v4("p")).await);
    let conf = macvlan(json!({}));
    w.add("c1", "eth0", &conf, Some(&a)).await.unwrap();
    w.until("spares are made behind", || w.agent.leases.spares().len() == 2).await;
    w.until("the pod is seen", || w.agent.caches.pod_now("default", "b").is_some()).await;

    served.stop().await;
    let silent = served.silent();
    let spares = w.agent.leases.spares();
    let began = Instant::now();
    let result = w.add("c2", "eth0", &conf, Some(&b)).await.unwrap();
    // A request to one who does not answer takes 10 s.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let got = result["ips"][0]["address"].as_str().unwrap().trim_end_matches("/16").to_owned();
    assert!(spares.iter().any(|ip| ip.to_string() == got), "{got} is none of {spares:?}");

    drop(silent);
    served.restart();
    let name = api::mooring::lease_name("default", got.parse().unwrap());
    let direct: Api<AddressLease> = Api::all(served.server.client("mooring-agent"));
    let holder = || async { direct.get(&name).await.unwrap().spec.holder.map(|h| h.container_id) };
    // The request that never had an answer is given up after 10 s.
    for _ in 0..150 {
        if holder().await.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(holder().await.as_deref(), Some("c2"), "the holder is written behind");
    served.stop().await;
}

#[tokio::test]
async fn a_released_address_rests_is_given_where_nothing_else_is_and_goes_when_the_pool_is_short() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    w.map("p", &["10.6.1.10"]).await;
    patch_map(&w, json!({ "sparesPerNode": 1 })).await;
    let (a, b) = (w.pod("a", v4("p")).await, w.pod("b", v4("p")).await);
    let conf = macvlan(json!({}));
    w.add("c1", "eth0", &conf, Some(&a)).await.unwrap();
    let rests = || async {
        let l = w.lease("default.v4-10-6-1-10").await.unwrap().spec;
        l.holder.is_none() && l.released_at.is_some() && l.agent_id == w.agent.me.agent_id
    };
    w.del("c1", "eth0", &conf, Some(&a)).await.unwrap();
    w.until_async("it rests", rests).await;
    assert!(w.agent.leases.spares().is_empty(), "it may not be given without a word");
    assert!(w.agent.journal.is_empty());

    assert_eq!(w.add("c2", "eth0", &conf, Some(&b)).await.unwrap()["ips"][0]["address"], "10.6.1.10/16");
    let l = w.lease("default.v4-10-6-1-10").await.unwrap().spec;
    assert_eq!((l.holder.unwrap().container_id.as_str(), l.released_at), ("c2", None));

    w.del("c2", "eth0", &conf, Some(&b)).await.unwrap();
    w.until_async("it rests again", rests).await;
    patch_map(&w, json!({ "sparesPerNode": 0 })).await;
    w.until_async("it is given back", || async { w.leases().await.is_empty() }).await;
}

#[tokio::test]
async fn a_spare_that_someone_asks_for_is_given_back_and_no_other() {
    let w = World::new().await;
    pool(&w, 2).await;
    let a = w.pod("a", v4("p")).await;
    w.add("c1", "eth0", &macvlan(json!({})), Some(&a)).await.unwrap();
    w.until("spares are made behind", || w.agent.leases.spares().len() == 2).await;
    let spares = w.agent.leases.spares();
    let name = api::mooring::lease_name("default", spares[0]);
    let uid = w.lease(&name).await.unwrap().uid();
    let wanted = json!({"spec":{"wanted":{"node":"n2","agentID":"x","podNamespace":"default","podName":"web-0","at":"2026-01-01T00:00:00Z"}}});
    Api::<AddressLease>::all(w.client.clone()).patch(&name, &PatchParams::default(), &Patch::Merge(wanted)).await.unwrap();
    // As the controller repeats it; what is recalled is not free for a new spare either.
    patch_map(&w, json!({ "recall": [spares[0].to_string()], "sparesPerNode": 1 })).await;
    w.until_async("it is given back", || async { w.lease(&name).await.is_none_or(|l| l.uid() != uid) }).await;
    assert_eq!(w.agent.leases.spares(), &spares[1..]);
}

#[tokio::test]
async fn an_agent_that_lost_its_id_adopts_what_still_runs() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.29").await;
    let a = w.pod("a", v4("p")).await;
    let conf = macvlan(json!({}));
    w.add("c1", "eth0", &conf, Some(&a)).await.unwrap();
    let before = w.leases().await[0].clone();
    // The pod's address is any of the pool's.
    let other = if before.spec.address == "10.6.1.29" { "10.6.1.28" } else { "10.6.1.29" };
    w.foreign_lease("p", other, json!({"node":"n1","agentID":before.spec.agent_id})).await;
    std::fs::remove_file(w.dir.path().join("state").join(bridge_agent::agent_id::FILE)).unwrap();
    let w = w.restart().await;
    assert_ne!(w.agent.me.agent_id, before.spec.agent_id);
    w.until_async("the running one is adopted and the other gone", || async {
        let all = w.leases().await;
        all.len() == 1 && all[0].spec.agent_id == w.agent.me.agent_id
    })
    .await;
    let after = w.leases().await[0].clone();
    assert_eq!((after.uid(), &after.spec.holder), (before.uid(), &before.spec.holder));
    w.del("c1", "eth0", &conf, Some(&a)).await.unwrap();
    assert!(w.leases().await.is_empty());
}

#[tokio::test]
async fn what_etcd_forgot_is_made_again_and_what_it_gave_to_another_is_reported() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.11").await;
    let (a, b) = (w.pod("a", v4("p")).await, w.pod("b", v4("p")).await);
    let conf = macvlan(json!({}));
    let first = w.add("c1", "eth0", &conf, Some(&a)).await.unwrap()["ips"][0]["address"].as_str().unwrap().to_owned();
    w.add("c2", "eth0", &conf, Some(&b)).await.unwrap();
    let api: Api<AddressLease> = Api::all(w.client.clone());
    for l in w.leases().await {
        api.delete(&l.name_any(), &Default::default()).await.unwrap();
    }
    w.foreign_lease("p", first.trim_end_matches("/16"), json!({})).await;
    let w = w.restart().await;
    w.until_async("the lost one is made again", || async {
        w.leases().await.iter().any(|l| l.spec.holder.as_ref().is_some_and(|h| h.container_id == "c2"))
    })
    .await;
    let events: Api<Event> = Api::namespaced(w.client.clone(), "default");
    w.until_async("the conflict is told", || async {
        events.list(&ListParams::default()).await.unwrap().items.iter().any(|e| {
            e.reason.as_deref() == Some("AddressConflict")
                && e.message.as_deref().is_some_and(|m| m.contains("default/there eth0 on node n2"))
        })
    })
    .await;
    // The other one keeps its lease; who has none gives nothing back.
    w.del("c1", "eth0", &conf, Some(&a)).await.unwrap();
    assert!(w.leases().await.iter().any(|l| l.spec.node == "n2"));
}
