//! What GC takes away, and above all what it does not.

use bridge_agent::journal::State;
use cni::Verb;
use model::{Owner, RunBy};
use serde_json::{Value, json};

use crate::world::{Hands, World, macvlan, ovs, with};

/// GC of this configuration with these attachments still valid.
async fn gc(w: &World, conf: &Value, valid: &[(&str, &str)], hands: &mut Hands) -> Result<Value, cni::Error> {
    gc_by(w, conf, valid, crate::world::RUNTIME, hands).await
}

async fn gc_by(w: &World, conf: &Value, valid: &[(&str, &str)], runtime: &str, hands: &mut Hands) -> Result<Value, cni::Error> {
    let list: Vec<Value> = valid.iter().map(|(c, i)| json!({"containerID":c,"ifname":i})).collect();
    let conf = with(conf.clone(), json!({"cni.dev/valid-attachments": list}));
    let mut call = w.call(Verb::Gc, "", "", conf, None);
    call.netns = None;
    call.runtime = runtime.into();
    w.run(&call, hands).await
}

fn containers(w: &World) -> Vec<String> {
    w.agent.journal.all().into_iter().map(|e| format!("{} {}", e.key.container_id, e.key.ifname)).collect()
}

fn net(name: &str) -> Value {
    ovs(json!({"ipam":null,"name":name,"cniVersion":"1.1.0"}))
}

#[tokio::test]
async fn gc_takes_only_stale_attachments_of_its_network_with_their_addresses() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let pod = w.pod("a", json!({})).await;
    let of = |name: &str| with(net(name), json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    for (container, name) in [("c1", "a"), ("c2", "a"), ("c3", "b")] {
        w.add(container, "eth0", &of(name), Some(&pod)).await.unwrap();
    }
    gc(&w, &of("a"), &[("c2", "eth0")], &mut Hands::default()).await.unwrap();
    assert_eq!(containers(&w), ["c2 eth0", "c2 eth0", "c3 eth0", "c3 eth0"]);
    assert_eq!(w.leases().await.len(), 2);
    // The same interface name of another container, and another interface of the same, are not named.
    gc(&w, &of("a"), &[("c2", "net1"), ("c9", "eth0")], &mut Hands::default()).await.unwrap();
    assert_eq!((containers(&w), w.leases().await.len()), (vec!["c3 eth0".to_owned(); 2], 1));
}

#[tokio::test]
async fn gc_needs_the_list() {
    let w = World::new().await;
    let mut call = w.call(Verb::Gc, "", "", net("a"), None);
    call.netns = None;
    let e = w.run(&call, &mut Hands::default()).await.unwrap_err();
    assert_eq!((e.code, e.msg.starts_with("cni.dev/valid-attachments is missing")), (7, true));
}

#[tokio::test]
async fn gc_leaves_another_runtimes_attachments_and_those_of_nobody_known() {
    let w = World::new().await;
    for (container, runtime) in [("c1", "/usr/bin/containerd"), ("c2", "/usr/bin/nerdctl"), ("c3", "")] {
        let mut call = w.call(Verb::Add, container, "eth0", net("a"), None);
        call.runtime = runtime.into();
        w.run(&call, &mut Hands::default()).await.unwrap();
    }
    gc_by(&w, &net("a"), &[], "", &mut Hands::default()).await.unwrap();
    assert_eq!(containers(&w).len(), 3);
    gc_by(&w, &net("a"), &[], "/usr/bin/nerdctl", &mut Hands::default()).await.unwrap();
    assert_eq!(containers(&w), ["c1 eth0", "c3 eth0"]);
    // The journal keeps it over a restart.
    let w = w.restart().await;
    gc_by(&w, &net("a"), &[], "/usr/bin/containerd", &mut Hands::default()).await.unwrap();
    assert_eq!(containers(&w), ["c3 eth0"]);
}

#[tokio::test]
async fn gc_leaves_what_is_not_complete_and_finishes_what_was_being_deleted() {
    let w = World::new().await;
    for (container, state) in [("c1", State::Adding), ("c2", State::Deleting)] {
        w.add(container, "eth0", &net("a"), None).await.unwrap();
        for e in w.agent.journal.of_container(container) {
            w.agent.journal.put(bridge_agent::journal::Entry { state, ..e }).unwrap();
        }
    }
    gc(&w, &net("a"), &[], &mut Hands::default()).await.unwrap();
    assert_eq!(containers(&w), ["c1 eth0"]);
}

#[tokio::test]
async fn the_agent_never_touches_what_a_plugin_made_alone() {
    let w = World::new().await;
    w.add("c1", "eth0", &net("a"), None).await.unwrap();
    // As cni-ovs alone leaves it: its own mark, and nothing in our journal.
    w.host.edit_host(|h, ovs| {
        let bridge = &mut ovs.as_mut().unwrap().bridges[0];
        let port = bridge.ports.iter_mut().find(|p| p.external_ids.contains_key(Owner::OVS_KEY)).unwrap();
        port.external_ids.insert(Owner::OVS_BY_KEY.into(), "alone".into());
        for l in &mut h.links {
            let owner = l.alias.as_ref().and_then(|a| Owner::from_alias(a));
            l.alias = owner.map(|o| Owner { by: RunBy::Alone, ..o }.alias()).or(l.alias.take());
        }
    });
    for e in w.agent.journal.all() {
        w.agent.journal.remove(&e.key).unwrap();
    }
    let before = w.before("x").await;
    gc(&w, &net("a"), &[], &mut Hands::default()).await.unwrap();
    // Not by a DEL of the same container, not at a start either.
    w.del("c1", "eth0", &net("a"), None).await.unwrap();
    let w = w.restart().await;
    w.agent.sweep().await;
    let after = w.before("x").await;
    assert_eq!((after.host, after.ovs), (before.host, before.ovs));
}

#[tokio::test]
async fn a_foreign_ipam_plugin_is_told_all_that_stands_whoever_made_it() {
    let w = World::new().await;
    let conf = macvlan(json!({"name":"a","cniVersion":"1.1.0","ipam":{"type":"host-local"}}));
    let given = json!({"cniVersion":"1.1.0","ips":[{"address":"10.9.0.5/24"}]});
    let mut hands = Hands::default().with("host-local", Ok(given));
    for (container, runtime) in [("c1", "/usr/bin/containerd"), ("c2", "/usr/bin/nerdctl"), ("c3", "/usr/bin/containerd")] {
        let mut call = w.call(Verb::Add, container, "eth0", conf.clone(), None);
        call.runtime = runtime.into();
        w.run(&call, &mut hands).await.unwrap();
    }
    hands.executed.clear();
    hands.inputs.clear();
    gc(&w, &conf, &[("c1", "eth0"), ("before-boot", "eth0")], &mut hands).await.unwrap();
    assert_eq!(hands.log(), ["DEL host-local eth0", "GC host-local "]);
    let stays = &hands.inputs[1]["cni.dev/valid-attachments"];
    let ids: Vec<&str> = stays.as_array().unwrap().iter().map(|a| a["containerID"].as_str().unwrap()).collect();
    assert_eq!(ids, ["c1", "before-boot", "c2"]);
}

#[tokio::test]
async fn gc_goes_on_after_an_error_and_tells_all_of_them() {
    let w = World::new().await;
    let conf = macvlan(json!({"name":"a","cniVersion":"1.1.0","ipam":{"type":"host-local"}}));
    let given = json!({"cniVersion":"1.1.0","ips":[{"address":"10.9.0.5/24"}]});
    let mut hands = Hands::default().with("host-local", Ok(given));
    for c in ["c1", "c2"] {
        w.run(&w.call(Verb::Add, c, "eth0", conf.clone(), None), &mut hands).await.unwrap();
    }
    w.run(&w.call(Verb::Add, "c3", "eth0", with(conf.clone(), json!({"ipam":null})), None), &mut hands).await.unwrap();
    // The plugin is gone from CNI_PATH.
    let e = gc(&w, &conf, &[], &mut Hands::default()).await.unwrap_err();
    assert_eq!(e.code, 11);
    for part in ["collect 3", "c1 eth0", "c2 eth0", "plugin host-local failed (GC)"] {
        assert!(e.to_string().contains(part), "{part}: {e}");
    }
    assert_eq!(containers(&w), ["c1 eth0", "c2 eth0"], "c3 needed nobody, the others wait");
    // It is back.
    gc(&w, &conf, &[], &mut hands).await.unwrap();
    assert!(w.agent.journal.is_empty());
}

/// A pod with its cluster network (foreign) and a second NIC of ours, and their GC by the meta plugin.
async fn cluster(w: &World) -> (Value, Hands) {
    let list = json!({"cniVersion":"1.1.0","name":"cluster","plugins":[{"type":"ptp"},{"type":"tuning"}]});
    std::fs::write(w.dir.path().join("net.d/10-cluster.conflist"), list.to_string()).unwrap();
    w.nad("default", "second", ovs(json!({"ipam":{"type":"host-local"},"name":"second","cniVersion":"1.1.0"}))).await;
    w.nad("default", "old", json!({"cniVersion":"1.0.0","name":"old","type":"bridge"})).await;
    let given = json!({"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.244.0.5/24","interface":0}]});
    let hands = Hands::default()
        .with("ptp", Ok(given.clone()))
        .with("tuning", Ok(given.clone()))
        .with("bridge", Ok(given.clone()))
        .with("host-local", Ok(json!({"cniVersion":"1.1.0","ips":[{"address":"10.9.0.5/24"}]})));
    (json!({"cniVersion":"1.1.0","name":"mooring","type":"mooring","clusterNetwork":"cluster"}), hands)
}

#[tokio::test]
async fn the_meta_plugin_collects_all_networks_of_a_pod_and_asks_delegates_that_have_gc() {
    let w = World::new().await;
    let (conf, mut hands) = cluster(&w).await;
    let pod = w.pod("a", json!({"k8s.v1.cni.cncf.io/networks":"second,old"})).await;
    for c in ["c1", "c2"] {
        w.run(&w.call(Verb::Add, c, "eth0", conf.clone(), Some(&pod)), &mut hands).await.unwrap();
    }
    hands.executed.clear();
    hands.inputs.clear();
    gc(&w, &conf, &[("c2", "eth0"), ("c8", "eth0")], &mut hands).await.unwrap();
    assert!(w.agent.journal.of_container("c1").is_empty());
    assert!(!w.agent.journal.of_container("c2").is_empty());
    let log = hands.log();
    let dels: Vec<&str> = log.iter().map(String::as_str).filter(|l| l.starts_with("DEL")).collect();
    assert_eq!(dels, ["DEL bridge net2", "DEL host-local net1", "DEL tuning eth0", "DEL ptp eth0"]);
    // `old` is of a version without GC.
    let gcs: Vec<(&str, Value)> = hands
        .executed
        .iter()
        .zip(&hands.inputs)
        .filter(|((_, verb, _), _)| *verb == "GC")
        .map(|((p, _, _), i)| (p.as_str(), i["cni.dev/valid-attachments"].clone()))
        .collect();
    let c2 = |ifname: &str| json!({"containerID":"c2","ifname":ifname});
    let cluster = json!([c2("eth0"), {"containerID":"c8","ifname":"eth0"}]);
    assert_eq!(gcs, [("ptp", cluster.clone()), ("tuning", cluster), ("host-local", json!([c2("net1")]))]);
}

#[tokio::test]
async fn a_delegate_is_not_collected_by_the_gc_of_a_network_of_its_name() {
    let w = World::new().await;
    let (conf, mut hands) = cluster(&w).await;
    let pod = w.pod("a", json!({"k8s.v1.cni.cncf.io/networks":"second"})).await;
    w.run(&w.call(Verb::Add, "c1", "eth0", conf, Some(&pod)), &mut hands).await.unwrap();
    w.add("c2", "eth0", &net("second"), None).await.unwrap();
    gc(&w, &net("second"), &[], &mut Hands::default()).await.unwrap();
    assert!(w.agent.journal.of_container("c2").is_empty());
    assert!(w.agent.journal.of_container("c1").iter().any(|e| e.key.ifname == "net1"));
}

#[tokio::test]
async fn addresses_that_one_nic_took_for_another_stay_with_their_taker() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let pools = json!([{"interface":"eth0","ipv4":["p"]},{"interface":"net1","ipv4":["p"]}]).to_string();
    let pod = w.pod("a", json!({"ipam.spidernet.io/ippools":pools,"k8s.v1.cni.cncf.io/networks":"default/x"})).await;
    // As the IPAM of another project's main plugin.
    let conf = json!({"cniVersion":"1.1.0","name":"br","type":"bridge","ipam":{"type":"spiderpool"}});
    w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap();
    assert_eq!(w.leases().await.len(), 2);
    gc(&w, &conf, &[("c1", "eth0")], &mut Hands::default()).await.unwrap();
    assert_eq!(w.leases().await.len(), 2);
    gc(&w, &conf, &[], &mut Hands::default()).await.unwrap();
    assert_eq!(w.leases().await.len(), 0);
}
