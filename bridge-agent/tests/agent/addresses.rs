//! Addresses: which pool, whose lease, what is fixed, what is given back.

use std::time::Duration;

use api::mooring::AddressLease;
use cni::Error;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::served::Served;
use crate::world::{World, macvlan};

fn v4(pool: &str) -> Value {
    json!({"ipam.spidernet.io/ippool": json!({"ipv4":[pool]}).to_string()})
}

#[tokio::test]
async fn refused_annotations_say_what_is_wrong_and_take_nothing() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    w.pool("off", json!({"subnet":"10.6.0.0/16","ips":["10.6.2.10"],"disable":true})).await;
    w.pool("empty", json!({"subnet":"10.6.0.0/16"})).await;
    w.pool("six", json!({"subnet":"fd00::/64","ips":["fd00::10"]})).await;
    w.pool("elsewhere", json!({"subnet":"10.6.0.0/16","ips":["10.6.3.10"],"nodeName":["n9"]})).await;
    w.pool("affine", json!({"subnet":"10.6.0.0/16","ips":["10.6.4.10"],"podAffinity":{"matchLabels":{"a":"b"}}})).await;
    let before = w.before("c1").await;
    let pool = |p: &str| v4(p);
    let key = "annotation ipam.spidernet.io/ippool";
    let cases = [
        (json!({}), "no pool to take an address for eth0 from: no annotation, network configuration or default pool names one".to_owned()),
        (pool("nope"), format!("{key}: no IPv4 pool for eth0: nope: there is no such pool")),
        (pool("off"), format!("{key}: no IPv4 pool for eth0: off: spec.disable is set")),
        (pool("empty"), format!("{key}: no IPv4 pool for eth0: empty: it has no address to give out")),
        (pool("six"), format!("{key}: no IPv4 pool for eth0: six: it is an IPv6 pool")),
        (pool("elsewhere"), format!("{key}: no IPv4 pool for eth0: elsewhere: spec.nodeName does not list node n1, only n9")),
        (pool("affine"), format!("{key}: no IPv4 pool for eth0: affine: it uses spec.podAffinity, which is not implemented")),
        (
            json!({"ipam.spidernet.io/ippool":"{\"ipv4\":[\"p\""}),
            format!("{key}: \"{{\\\"ipv4\\\":[\\\"p\\\"\": is not an object like {{\"ipv4\":[\"pool\"]}}: EOF while parsing a list at line 1 column 12"),
        ),
        (
            json!({"ipam.spidernet.io/ippools":"[{\"interface\":\"net5\",\"ipv4\":[\"p\"]}]"}),
            "annotation ipam.spidernet.io/ippools: interface \"net5\" is not a NIC of the pod, it has eth0".to_owned(),
        ),
        (
            json!({"ipam.spidernet.io/ippool":"{\"ipv4\":[\"p\"]}","mooring.dev/ips":"10.6.9.9"}),
            "address 10.6.9.9 cannot be given: no pool of this NIC holds it (p: it is not among the pool's addresses, or excluded)".to_owned(),
        ),
    ];
    for (i, (annotations, message)) in cases.into_iter().enumerate() {
        let pod = w.pod(&format!("bad-{i}"), annotations).await;
        let e = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
        assert_eq!((e.code, e.to_string()), (Error::INVALID_CONFIG, message));
        assert_eq!(w.before("c1").await, before);
        assert!(w.agent.journal.is_empty());
    }
    let events: Api<Event> = Api::namespaced(w.client.clone(), "default");
    w.until_async("the events are written", || async { events.list(&ListParams::default()).await.unwrap().items.len() >= 10 })
        .await;
    let all = events.list(&ListParams::default()).await.unwrap().items;
    let of = |pod: &str| all.iter().find(|e| e.involved_object.name.as_deref() == Some(pod)).unwrap();
    assert!(of("bad-2").message.as_deref().unwrap().contains("off: spec.disable is set"));
    // Once for each pod and reason.
    let pod = w.pod("again", v4("off")).await;
    for _ in 0..3 {
        w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let all = events.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(all.iter().filter(|e| e.involved_object.name.as_deref() == Some("again")).count(), 1);
}

#[tokio::test]
async fn a_pod_that_is_not_the_runtimes_or_has_ended_gets_nothing() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let mut pod = w.pod("a", v4("p")).await;
    let right = pod.uid.clone();
    pod.uid = "another".into();
    let e = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
    assert_eq!(
        (e.code, e.msg),
        (Error::CONFLICT, format!("pod default/a has uid {right}, the runtime asks for another: it was made anew meanwhile"))
    );
    pod.name = "nobody".into();
    let e = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
    assert_eq!((e.code, e.msg.as_str()), (Error::TRY_AGAIN, "pod default/nobody is not there"));
    let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(w.client.clone(), "default");
    api.delete("a", &Default::default()).await.unwrap();
    pod.name = "a".into();
    pod.uid = right;
    w.until("the deletion is seen", || {
        w.agent.caches.pod_now("default", "a").is_some_and(|p| p.metadata.deletion_timestamp.is_some())
    })
    .await;
    let e = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
    assert_eq!((e.code, e.msg.as_str()), (Error::CONFLICT, "pod default/a is being deleted"));
    assert!(w.leases().await.is_empty());
}

#[tokio::test]
async fn the_last_free_address_is_found_without_a_map_and_a_full_pool_says_so() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.13").await;
    for last in 10..=12 {
        w.foreign_lease("p", &format!("10.6.1.{last}"), json!({})).await;
    }
    let a = w.pod("a", v4("p")).await;
    let result = w.add("c1", "eth0", &macvlan(json!({})), Some(&a)).await.unwrap();
    assert_eq!(result["ips"][0]["address"], "10.6.1.13/16");
    let b = w.pod("b", v4("p")).await;
    let e = w.add("c2", "eth0", &macvlan(json!({})), Some(&b)).await.unwrap_err();
    assert_eq!(
        (e.code, e.msg.as_str()),
        (Error::TRY_AGAIN, "no free IPv4 address for eth0: every address is taken in pool p (4 addresses)")
    );
}

#[tokio::test]
async fn a_pod_whose_pool_is_empty_backs_off_until_a_map_says_otherwise() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.11").await;
    for last in 10..=11 {
        w.foreign_lease("p", &format!("10.6.1.{last}"), json!({})).await;
    }
    let pod = w.pod("a", v4("p")).await;
    let first = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
    // Each try of the runtime is another container; none of them lists a lease or waits.
    let (began, mut quickest) = (std::time::Instant::now(), Duration::MAX);
    for i in 2..12 {
        let asked = std::time::Instant::now();
        let again = w.add(&format!("c{i}"), "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap_err();
        assert_eq!((again.code, &again.msg), (Error::TRY_AGAIN, &first.msg));
        quickest = quickest.min(asked.elapsed());
        // Below the shortest wait, also on a busy machine.
        if began.elapsed() > Duration::from_millis(800) {
            break;
        }
    }
    assert!(quickest < Duration::from_millis(500), "{quickest:?}");
    let events: Api<Event> = Api::namespaced(w.client.clone(), "default");
    w.until_async("an event is written", || async { !events.list(&ListParams::default()).await.unwrap().items.is_empty() }).await;
    assert_eq!(events.list(&ListParams::default()).await.unwrap().items.len(), 1, "said once");
    // An address comes back and the map says so.
    let leases: Api<api::mooring::AddressLease> = Api::all(w.client.clone());
    leases.delete("default.v4-10-6-1-11", &Default::default()).await.unwrap();
    w.map("p", &["10.6.1.11"]).await;
    let seen = || w.agent.caches.pool_map_watch("p").borrow().clone().flatten().is_some();
    w.until("the map is seen", seen).await;
    let result = w.add("c20", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    assert_eq!(result["ips"][0]["address"], "10.6.1.11/16");
}

#[tokio::test]
async fn a_map_leads_to_a_free_address_and_conflicts_lead_to_the_next() {
    let w = World::new().await;
    w.v4("p", "10.6.1.0-10.6.1.255").await;
    w.map("p", &["10.6.1.77", "10.6.1.78", "10.6.1.79"]).await;
    // The map is older than these.
    w.foreign_lease("p", "10.6.1.77", json!({})).await;
    w.foreign_lease("p", "10.6.1.79", json!({})).await;
    let a = w.pod("a", v4("p")).await;
    let result = w.add("c1", "eth0", &macvlan(json!({})), Some(&a)).await.unwrap();
    assert_eq!(result["ips"][0]["address"], "10.6.1.78/16");
}

#[tokio::test]
async fn two_adds_at_once_never_share_an_address() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.25").await;
    let mut adds = Vec::new();
    for i in 0..16 {
        let pod = w.pod(&format!("a{i}"), v4("p")).await;
        adds.push((format!("c{i}"), pod));
    }
    let conf = macvlan(json!({}));
    let all = futures_util::future::join_all(adds.iter().map(|(c, p)| w.add(c, "eth0", &conf, Some(p)))).await;
    let mut got: Vec<String> = all.into_iter().map(|r| r.unwrap()["ips"][0]["address"].as_str().unwrap().to_owned()).collect();
    got.sort();
    got.dedup();
    assert_eq!(got.len(), 16);
}

#[tokio::test]
async fn a_lease_of_ours_that_the_journal_does_not_know_is_taken_over() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    w.foreign_lease("p", "10.6.1.10", json!({"node":"n1","agentID":w.agent.me.agent_id})).await;
    let a = w.pod("a", v4("p")).await;
    // It may be a living pod's, so the sandboxes are looked at first; meanwhile the runtime asks again.
    let conf = macvlan(json!({}));
    w.until_async("it is given", || async { w.add("c1", "eth0", &conf, Some(&a)).await.is_ok() }).await;
    assert_eq!(w.leases().await[0].spec.holder.as_ref().unwrap().container_id, "c1");
}

#[tokio::test]
async fn both_families_are_taken_together_or_not_at_all() {
    let w = World::new().await;
    w.v4("p4", "10.6.1.10").await;
    w.pool("p6", json!({"subnet":"fd00::/64","ips":["fd00::10"],"gateway":"fd00::1"})).await;
    let both = json!({"ipam.spidernet.io/ippool":r#"{"ipv4":["p4"],"ipv6":["p6"]}"#});
    let a = w.pod("a", both.clone()).await;
    let result = w.add("c1", "eth0", &macvlan(json!({})), Some(&a)).await.unwrap();
    assert_eq!((&result["ips"][0]["address"], &result["ips"][1]["address"]), (&json!("10.6.1.10/16"), &json!("fd00::10/64")));
    w.del("c1", "eth0", &macvlan(json!({})), Some(&a)).await.unwrap();
    w.foreign_lease("p6", "fd00::10", json!({})).await;
    let b = w.pod("b", both).await;
    w.add("c2", "eth0", &macvlan(json!({})), Some(&b)).await.unwrap_err();
    assert_eq!(w.leases().await.len(), 1);
}

#[tokio::test]
async fn ippools_takes_the_addresses_of_all_nics_or_none() {
    let w = World::new().await;
    w.v4("one", "10.6.1.10").await;
    w.v4("two", "10.6.2.10").await;
    let annotations = json!({
        "k8s.v1.cni.cncf.io/networks":"default/x",
        "ipam.spidernet.io/ippools":r#"[{"interface":"eth0","ipv4":["one"]},{"interface":"net1","ipv4":["two"],"cleangateway":true}]"#});
    let a = w.pod("a", annotations.clone()).await;
    let conf = macvlan(json!({}));
    w.add("c1", "eth0", &conf, Some(&a)).await.unwrap();
    assert_eq!(w.leases().await.len(), 2);
    let net1 = w.add("c1", "net1", &macvlan(json!({"name":"x"})), Some(&a)).await.unwrap();
    assert_eq!(net1["ips"][0]["address"], "10.6.2.10/16");
    assert!(net1["ips"][0].get("gateway").is_none() && net1.get("routes").is_none(), "{net1}");
    w.until_async("the endpoint has both", || async {
        w.endpoint("a").await.is_some_and(|e| e.status.unwrap().current.ips.len() == 2)
    })
    .await;
    w.del("c1", "net1", &conf, Some(&a)).await.unwrap();
    w.del("c1", "eth0", &conf, Some(&a)).await.unwrap();
    assert!(w.leases().await.is_empty());

    // The second NIC's pool is full: the first one's address is not taken.
    w.foreign_lease("two", "10.6.2.10", json!({})).await;
    let b = w.pod("b", annotations).await;
    let before = w.before("c2").await;
    w.add("c2", "eth0", &conf, Some(&b)).await.unwrap_err();
    assert_eq!(w.before("c2").await, before);
}

#[tokio::test]
async fn addresses_taken_for_a_nic_that_never_came_go_with_the_first() {
    let w = World::new().await;
    w.v4("one", "10.6.1.10").await;
    w.v4("two", "10.6.2.10").await;
    let annotations =
        json!({"k8s.v1.cni.cncf.io/networks":"default/x","ipam.spidernet.io/ippools":r#"[{"ipv4":["one"]},{"ipv4":["two"]}]"#});
    let a = w.pod("a", annotations).await;
    w.add("c1", "eth0", &macvlan(json!({})), Some(&a)).await.unwrap();
    assert_eq!(w.leases().await.len(), 2);
    w.del("c1", "eth0", &macvlan(json!({})), Some(&a)).await.unwrap();
    assert!(w.leases().await.is_empty() && w.agent.journal.is_empty());
}

pub async fn stateful_set(w: &World) -> Value {
    let set = json!({"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"web","namespace":"default"},
        "spec":{"serviceName":"web","selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}});
    let api: Api<StatefulSet> = Api::namespaced(w.client.clone(), "default");
    let made = api.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
    json!({"apiVersion":"apps/v1","kind":"StatefulSet","name":"web","uid":made.uid().unwrap(),"controller":true})
}

#[tokio::test]
async fn a_pod_of_a_statefulset_keeps_its_address() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.250").await;
    let owner = stateful_set(&w).await;
    let a = w.pod_of("web-0", v4("p"), owner.clone()).await;
    let conf = macvlan(json!({}));
    let first = w.add("c1", "eth0", &conf, Some(&a)).await.unwrap();
    // The index is there before the reply.
    let endpoint = w.endpoint("web-0").await.expect("written before the reply");
    assert_eq!(endpoint.owner_references()[0].kind, "StatefulSet");
    w.del("c1", "eth0", &conf, Some(&a)).await.unwrap();
    let kept = &w.leases().await[0].spec;
    assert_eq!((kept.node.as_str(), kept.agent_id.as_str(), &kept.holder), ("", "", &None));
    assert_eq!(kept.identity.as_ref().unwrap().name, "web-0");

    w.delete_pod("web-0").await;
    let again = w.pod_of("web-0", v4("p"), owner.clone()).await;
    let second = w.add("c2", "eth0", &conf, Some(&again)).await.unwrap();
    assert_eq!(second["ips"], first["ips"]);
    assert_eq!(w.leases().await.len(), 1);
    w.del("c2", "eth0", &conf, Some(&again)).await.unwrap();

    // The index is rebuilt from the leases.
    Api::<api::SpiderEndpoint>::namespaced(w.client.clone(), "default").delete("web-0", &Default::default()).await.unwrap();
    w.delete_pod("web-0").await;
    let third = w.pod_of("web-0", v4("p"), owner).await;
    assert_eq!(w.add("c3", "eth0", &conf, Some(&third)).await.unwrap()["ips"], first["ips"]);
    assert!(w.endpoint("web-0").await.is_some());
}

#[tokio::test]
async fn a_stateful_pod_that_asks_for_another_pool_gives_its_old_address_up() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    w.v4("q", "10.6.2.10").await;
    let owner = stateful_set(&w).await;
    let a = w.pod_of("web-0", v4("p"), owner.clone()).await;
    let conf = macvlan(json!({}));
    w.add("c1", "eth0", &conf, Some(&a)).await.unwrap();
    w.del("c1", "eth0", &conf, Some(&a)).await.unwrap();
    w.delete_pod("web-0").await;
    let b = w.pod_of("web-0", v4("q"), owner).await;
    assert_eq!(w.add("c2", "eth0", &conf, Some(&b)).await.unwrap()["ips"][0]["address"], "10.6.2.10/16");
    let names: Vec<String> = w.leases().await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["default.v4-10-6-2-10"]);
}

#[tokio::test]
async fn pods_that_come_and_go_at_once_never_share_an_address_and_leave_none_behind() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.13").await;
    let conf = macvlan(json!({}));
    let mut pods = Vec::new();
    for i in 0..4 {
        pods.push(w.pod(&format!("a{i}"), v4("p")).await);
    }
    let in_use = std::sync::Mutex::new(std::collections::HashSet::new());
    let life = |i: usize| {
        let (w, conf, pod, in_use) = (&w, &conf, &pods[i], &in_use);
        async move {
            for round in 0..15 {
                let c = format!("c{i}-{round}");
                let got = w.add(&c, "eth0", conf, Some(pod)).await.unwrap()["ips"][0]["address"].as_str().unwrap().to_owned();
                assert!(in_use.lock().unwrap().insert(got.clone()), "{got} is given twice");
                tokio::task::yield_now().await;
                in_use.lock().unwrap().remove(&got);
                // The runtime asks twice, at once.
                let (x, y) = tokio::join!(w.del(&c, "eth0", conf, Some(pod)), w.del(&c, "eth0", conf, Some(pod)));
                x.unwrap();
                y.unwrap();
            }
        }
    };
    futures_util::future::join_all((0..4).map(life)).await;
    w.until("all is given back", || w.agent.journal.is_empty()).await;
    assert!(w.leases().await.is_empty());
}

#[tokio::test]
async fn a_failed_add_keeps_no_fixed_address_that_it_was_the_first_to_take() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.250").await;
    let a = w.pod_of("web-0", v4("p"), stateful_set(&w).await).await;
    w.host.fail_step(1);
    w.add("c1", "eth0", &macvlan(json!({})), Some(&a)).await.unwrap_err();
    assert!(w.leases().await.is_empty());
}

#[tokio::test]
async fn an_address_that_another_node_still_has_is_waited_for_and_then_refused_by_name() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let identity = json!({"kind":"StatefulSet","namespace":"default","name":"web-0","interface":"eth0"});
    let held = json!({"identity":identity,"holder":{"podNamespace":"default","podName":"web-0","podUID":"old","interface":"eth0","containerID":"far"}});
    w.foreign_lease("p", "10.6.1.15", held).await;
    let label = json!({"metadata":{"labels":{"mooring.dev/identity": api::mooring::identity_label(&serde_json::from_value(identity).unwrap())}}});
    let api: Api<AddressLease> = Api::all(w.client.clone());
    api.patch("default.v4-10-6-1-15", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    let a = w.pod_of("web-0", v4("p"), stateful_set(&w).await).await;
    let began = tokio::time::Instant::now();
    let e = w.add("c1", "eth0", &macvlan(json!({})), Some(&a)).await.unwrap_err();
    assert_eq!((e.code, e.msg.as_str()), (Error::TRY_AGAIN, "address 10.6.1.15 is still held by default/web-0 eth0 on node n2"));
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());

    // Given back while somebody waits: taken at once.
    let release = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let empty = json!({"spec":{"node":null,"agentID":null,"holder":null}});
        api.patch("default.v4-10-6-1-15", &PatchParams::default(), &Patch::Merge(&empty)).await.unwrap();
    };
    let conf = macvlan(json!({}));
    let began = tokio::time::Instant::now();
    let (result, ()) = tokio::join!(w.add("c2", "eth0", &conf, Some(&a)), release);
    assert_eq!(result.unwrap()["ips"][0]["address"], "10.6.1.15/16");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn addresses_asked_for_by_name_are_given_to_one_at_a_time() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.250").await;
    let mut annotations = v4("p");
    annotations["mooring.dev/ips"] = json!("10.6.1.99");
    let a = w.pod("a", annotations.clone()).await;
    let conf = macvlan(json!({}));
    assert_eq!(w.add("c1", "eth0", &conf, Some(&a)).await.unwrap()["ips"][0]["address"], "10.6.1.99/16");
    let b = w.pod("b", annotations).await;
    let e = w.add("c2", "eth0", &conf, Some(&b)).await.unwrap_err();
    assert_eq!(e.msg, "address 10.6.1.99 cannot be given: it is held by default/a eth0 on node n1");
    let mut two = v4("p");
    two["mooring.dev/ips"] = json!("10.6.1.97");
    two["k8s.v1.cni.cncf.io/networks"] = json!("default/x");
    let two = w.pod("two", two).await;
    w.add("c9", "eth0", &conf, Some(&two)).await.unwrap();
    let e = w.add("c9", "net1", &conf, Some(&two)).await.unwrap_err();
    assert_eq!(
        e.msg,
        "annotation mooring.dev/ips: the pod has several NICs with addresses of pools, so each entry has to name its interface"
    );
    // `ips` of the networks annotation comes as runtimeConfig.
    let c = w.pod("c", v4("p")).await;
    let conf = macvlan(json!({"capabilities":{"ips":true},"runtimeConfig":{"ips":["10.6.1.98/16"]}}));
    assert_eq!(w.add("c3", "eth0", &conf, Some(&c)).await.unwrap()["ips"][0]["address"], "10.6.1.98/16");
}

#[tokio::test]
async fn del_succeeds_while_the_api_is_away_and_the_address_follows() {
    let (mut served, w) = Served::start().await;
    w.v4("p", "10.6.1.10").await;
    let a = w.pod("a", v4("p")).await;
    let conf = macvlan(json!({}));
    let before = w.before("c1").await;
    w.add("c1", "eth0", &conf, Some(&a)).await.unwrap();
    served.stop().await;
    w.del("c1", "eth0", &conf, Some(&a)).await.unwrap();
    assert_eq!(w.host.host(), before.host);
    assert!(!w.agent.journal.is_empty());
    served.restart();
    w.until("the address is given back", || w.agent.journal.is_empty()).await;
    assert!(w.leases().await.is_empty());
    served.stop().await;
}

#[tokio::test]
async fn our_ipam_serves_a_foreign_main_plugin() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let a = w.pod("a", v4("p")).await;
    let conf = json!({"cniVersion":"1.0.0","name":"n","type":"bridge","ipam":{"type":"spiderpool"}});
    let result = w.add("c1", "eth0", &conf, Some(&a)).await.unwrap();
    assert_eq!(
        result,
        json!({"cniVersion":"1.0.0","ips":[{"address":"10.6.1.10/16","gateway":"10.6.0.1"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.6.0.1"}]})
    );
    // The same NIC asks again: the same answer.
    assert_eq!(w.add("c1", "eth0", &conf, Some(&a)).await.unwrap(), result);
    w.check("c1", "eth0", &conf, &result, Some(&a)).await.unwrap();
    w.del("c1", "eth0", &conf, Some(&a)).await.unwrap();
    assert!(w.leases().await.is_empty());
    assert_eq!(w.check("c1", "eth0", &conf, &result, Some(&a)).await.unwrap_err().code, Error::CHECK);
}

#[tokio::test]
async fn of_a_family_that_is_not_named_the_next_life_has_the_same_address() {
    let w = World::new().await;
    w.v4("p4", "10.6.1.10-10.6.1.250").await;
    w.pool("p6", json!({"subnet":"fd00::/64","ips":["fd00::10-fd00::fff"],"gateway":"fd00::1"})).await;
    let named = |v4: &str| json!({"ipam.spidernet.io/ippool":r#"{"ipv4":["p4"],"ipv6":["p6"]}"#, "mooring.dev/ips": v4});
    let mut lives = Vec::new();
    for (i, v4) in ["10.6.1.99", "10.6.1.99", "10.6.1.98"].into_iter().enumerate() {
        let pod = w.pod("a", named(v4)).await;
        let container = format!("c{i}");
        let result = w.add(&container, "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
        assert_eq!(result["ips"][0]["address"], format!("{v4}/16"));
        lives.push(result["ips"][1]["address"].clone());
        w.del(&container, "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
        w.delete_pod("a").await;
    }
    assert!(lives.iter().all(|a| *a == lives[0]), "{lives:?}");
    // Nothing is kept but what the last life had.
    let mut kept: Vec<String> = w.leases().await.into_iter().map(|l| l.spec.address).collect();
    kept.sort();
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert_eq!(kept[0], "10.6.1.98");
}
