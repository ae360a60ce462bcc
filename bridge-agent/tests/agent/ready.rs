//! STATUS, and the conditions that say what STATUS does not.

use std::sync::Arc;

use api::{Condition, NodeNetwork, SpiderCoordinator};
use bridge_agent::node::NodeLoop;
use cni::Verb;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::world::{Hands, NODE, World, macvlan, ovs, with};

async fn status(w: &World, conf: Value, hands: &mut Hands) -> Result<Value, cni::Error> {
    let mut call = w.call(Verb::Status, "", "", with(conf, json!({"cniVersion":"1.1.0"})), None);
    call.netns = None;
    w.run(&call, hands).await
}

fn meta() -> Value {
    json!({"name":"mooring","type":"mooring","clusterNetwork":"cluster"})
}

fn cluster_is(w: &World, version: &str, plugins: Value) {
    let list = json!({"cniVersion":version,"name":"cluster","plugins":plugins});
    std::fs::write(w.dir.path().join("net.d/10-cluster.conflist"), list.to_string()).unwrap();
}

async fn seen_all(w: &World) {
    w.until("everything is listed", || w.agent.caches.missing().is_none()).await;
}

#[tokio::test]
async fn status_fails_for_the_pod_network_only() {
    let w = World::new().await;
    seen_all(&w).await;
    cluster_is(&w, "1.1.0", json!([{"type":"cni-ovs","bridge":"br1"}]));
    let none = &mut Hands::default();
    let ours = ovs(json!({"ipam":null,"name":"cluster"}));
    for conf in [meta(), ours.clone(), ovs(json!({"ipam":null})), macvlan(json!({"ipam":null}))] {
        assert_eq!(status(&w, conf, none).await, Ok(Value::Null));
    }
    w.host.set_ovs_down(true);
    for conf in [meta(), ours] {
        // Ports that are there may not forward.
        assert_eq!(status(&w, conf, none).await.unwrap_err().code, 51);
    }
    assert_eq!(status(&w, ovs(json!({"ipam":null})), none).await, Ok(Value::Null));
    // Open vSwitch is nothing to a macvlan.
    assert_eq!(status(&w, macvlan(json!({"ipam":null,"name":"cluster"})), none).await, Ok(Value::Null));
}

#[tokio::test]
async fn status_is_not_available_before_the_first_lists_and_without_a_cluster_network() {
    let w = World::new().await;
    seen_all(&w).await;
    let e = status(&w, meta(), &mut Hands::default()).await.unwrap_err();
    assert_eq!(e.code, 50);
    assert!(e.msg.contains("the cluster network cannot be read: network cluster: no configuration of that name"), "{e}");
    cluster_is(&w, "1.0.0", json!([{"type":"ptp"}]));
    // The watches of a fresh agent have seen nothing yet.
    let w = w.restart().await;
    let e = status(&w, meta(), &mut Hands::default()).await.unwrap_err();
    assert!(e.code == 50 && e.msg.contains("the first list of"), "{e}");
    seen_all(&w).await;
    status(&w, meta(), &mut Hands::default()).await.unwrap();
}

#[tokio::test]
async fn status_asks_the_foreign_plugins_of_the_pod_network_that_have_it() {
    let w = World::new().await;
    seen_all(&w).await;
    cluster_is(&w, "1.0.0", json!([{"type":"ptp"}]));
    let mut hands = Hands::default();
    status(&w, meta(), &mut hands).await.unwrap();
    assert!(hands.executed.is_empty(), "1.0.0 has no STATUS");
    cluster_is(&w, "1.1.0", json!([{"type":"cni-macvlan","master":"ens192","ipam":{"type":"host-local"}},{"type":"tuning"}]));
    let mut hands = Hands::default().with("host-local", Ok(Value::Null)).with("tuning", Ok(Value::Null));
    status(&w, meta(), &mut hands).await.unwrap();
    assert_eq!(hands.log(), ["STATUS host-local ", "STATUS tuning "]);
    assert_eq!(hands.inputs[0]["name"], "cluster");
    let e = status(&w, meta(), &mut Hands::default()).await.unwrap_err();
    assert!(e.code == 50 && e.msg.contains("plugin host-local failed (STATUS)"), "{e}");
}

async fn conditions(w: &World) -> Vec<Condition> {
    let api: Api<NodeNetwork> = Api::all(w.client.clone());
    let network = api.get(NODE).await.unwrap();
    let mut node = NodeLoop::new(
        Arc::new(w.host.clone()),
        w.client.clone(),
        w.agent.caches.clone(),
        w.agent.journal.clone(),
        NODE,
        &w.agent.me.agent_id,
    );
    node.round(&network).await;
    api.get(NODE).await.unwrap().status.unwrap().conditions
}

fn text(all: &[Condition], kind: &str) -> String {
    all.iter().find(|c| c.type_ == kind).map(|c| format!("{} {}: {}", c.status, c.reason, c.message)).unwrap_or_default()
}

async fn with_node() -> World {
    let w = World::new().await;
    seen_all(&w).await;
    let n = json!({"apiVersion":"mooring.dev/v1alpha1","kind":"NodeNetwork","metadata":{"name":NODE},"spec":{"bridges":[]}});
    let api: Api<NodeNetwork> = Api::all(w.client.clone());
    api.create(&PostParams::default(), &serde_json::from_value(n).unwrap()).await.unwrap();
    w
}

#[tokio::test]
async fn what_keeps_adds_from_being_served_is_a_condition() {
    let w = with_node().await;
    let all = conditions(&w).await;
    assert_eq!(text(&all, "CNIReady"), "True Serving: pods can be added");
    assert_eq!(text(&all, "CoordinatorReady"), "", "there is none");
    w.host.set_ovs_down(true);
    assert!(text(&conditions(&w).await, "CNIReady").starts_with("False OpenVSwitchDown: "));
    w.host.set_ovs_down(false);
    assert!(text(&conditions(&w).await, "CNIReady").starts_with("True"));
}

#[tokio::test]
async fn a_coordinator_that_is_not_ready_is_a_condition() {
    let w = with_node().await;
    let api: Api<SpiderCoordinator> = Api::all(w.client.clone());
    let c = json!({"apiVersion":"spiderpool.spidernet.io/v2beta1","kind":"SpiderCoordinator","metadata":{"name":"default"},"spec":{}});
    api.create(&PostParams::default(), &serde_json::from_value(c).unwrap()).await.unwrap();
    let put = async |status: Value| {
        let before = w.agent.caches.coordinator("default");
        api.patch_status("default", &PatchParams::default(), &Patch::Merge(&json!({"status":status}))).await.unwrap();
        w.until("it is seen", || w.agent.caches.coordinator("default") != before).await;
    };
    w.until("it is seen", || w.agent.caches.coordinator("default").is_some()).await;
    assert!(text(&conditions(&w).await, "CoordinatorReady").starts_with("False CoordinatorNotReady: it has no status yet"));
    put(json!({"phase":"NotReady","reason":"no kubeadm-config"})).await;
    let is = text(&conditions(&w).await, "CoordinatorReady");
    assert_eq!(is, "False CoordinatorNotReady: pods are coordinated with what it has: no kubeadm-config");
    put(json!({"phase":"Synced","reason":null,"serviceCIDR":["10.96.0.0/12"]})).await;
    assert_eq!(text(&conditions(&w).await, "CoordinatorReady"), "True Synced: its CIDRs are known");
}

#[tokio::test]
async fn all_who_wait_for_the_first_lists_go_on_when_they_are_there() {
    let w = World::new().await;
    let shutdown = runtime::Shutdown::new();
    let caches = bridge_agent::caches::Caches::start(&w.client, "n1", &shutdown);
    let began = std::time::Instant::now();
    // Each in a task of its own, as calls are.
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let caches = caches.clone();
            tokio::spawn(async move { caches.ready_for_addresses().await })
        })
        .collect();
    // Whoever only looks takes nobody's place.
    w.until("everything is listed", || caches.missing().is_none()).await;
    for one in waiting {
        one.await.unwrap().unwrap();
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "they went on when their time was over: {:?}", began.elapsed());
}
