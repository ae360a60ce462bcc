//! The whole controller against the standalone API: what users apply, and what they then read.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use api::mooring::{AddressLease, BridgePhase, BridgeState, NodeNetworkStatus};
use api::{Bridge, NetworkAttachmentDefinition, NodeNetwork, PoolMap, SpiderCoordinator, SpiderIPPool, SpiderMultusConfig};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use runtime::Shutdown;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

struct World {
    client: Client,
    /// May delete leases.
    agent: Client,
    shutdown: Shutdown,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

fn start() -> World {
    let server = standalone::Server::new(standalone::kinds::builtin(), api::crds::all()).unwrap();
    let shutdown = Shutdown::new();
    tokio::spawn(controller::run::run(server.client("mooring-controller"), shutdown.clone()));
    World { client: server.client("test"), agent: server.client("mooring-agent"), shutdown }
}

impl World {
    fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    async fn create<K>(&self, api: Api<K>, v: Value) -> K
    where
        K: Resource + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        api.create(&PostParams::default(), &serde_json::from_value(v).unwrap()).await.unwrap()
    }
}

/// Waits until the object is as wanted; 10 s are many times what it takes on a busy machine.
async fn until<K, T>(api: &Api<K>, name: &str, what: &str, mut f: impl FnMut(&K) -> Option<T>) -> T
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut last = None;
    for _ in 0..200 {
        last = api.get_opt(name).await.unwrap();
        if let Some(t) = last.as_ref().and_then(&mut f) {
            return t;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: {last:#?}");
}

#[tokio::test]
async fn a_pool_shows_its_counts_and_has_a_map() {
    let w = start();
    w.create(
        w.all::<SpiderIPPool>(),
        json!({
            "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool", "metadata": { "name": "ippool-test" },
            "spec": { "ips": ["172.18.30.131-172.18.30.140"], "subnet": "172.18.0.0/16", "gateway": "172.18.0.1", "multusName": ["kube-system/ovs-conf"] },
        }),
    )
    .await;
    let pools = w.all::<SpiderIPPool>();
    until(&pools, "ippool-test", "total count", |p| (p.status.as_ref()?.total_ip_count == Some(10)).then_some(())).await;
    let maps = w.all::<PoolMap>();
    until(&maps, "ippool-test", "map", |m| (!m.spec.chunks.is_empty()).then_some(())).await;

    w.create(w.all::<Node>(), json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } })).await;
    let lease = api::mooring::lease_name("default", "172.18.30.131".parse().unwrap());
    w.create(
        w.all::<AddressLease>(),
        json!({
            "apiVersion": "mooring.dev/v1alpha1", "kind": "AddressLease", "metadata": { "name": lease },
            "spec": {
                "pool": "ippool-test", "address": "172.18.30.131", "node": "n1", "agentID": "a",
                "holder": { "podNamespace": "default", "podName": "p", "interface": "eth0", "containerID": "c" },
            },
        }),
    )
    .await;
    until(&pools, "ippool-test", "one allocated", |p| (p.status.as_ref()?.allocated_ip_count == Some(1)).then_some(())).await;
    until(&maps, "ippool-test", "a map without it", |m| {
        let (_, bits) = m.spec.chunks.first()?.decode().ok()?;
        (bits[131 / 8] & (1 << (131 % 8)) == 0).then_some(())
    })
    .await;

    // The pool stays while an address is in use, and goes with the last.
    pools.delete("ippool-test", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(pools.get_opt("ippool-test").await.unwrap().is_some());
    Api::<AddressLease>::all(w.agent.clone()).delete(&lease, &DeleteParams::default()).await.unwrap();
    for _ in 0..200 {
        if pools.get_opt("ippool-test").await.unwrap().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the pool did not go");
}

#[tokio::test]
async fn a_labelled_node_gets_its_bridge_and_shows_it() {
    let w = start();
    let nodes = w.all::<Node>();
    w.create(w.all::<Node>(), json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } })).await;
    w.create(
        w.all::<Bridge>(),
        json!({ "apiVersion": "mooring.dev/v1alpha1", "kind": "Bridge", "metadata": { "name": "br1" }, "spec": { "uplink": { "interface": "eth0" } } }),
    )
    .await;
    let networks = w.all::<NodeNetwork>();
    until(&networks, "n1", "a NodeNetwork without bridges", |n| n.spec.bridges.is_empty().then_some(())).await;
    let label = json!({ "metadata": { "labels": { "bridge.mooring.dev/br1": "enabled" } } });
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    let generation = until(&networks, "n1", "br1 in the NodeNetwork", |n| {
        (n.spec.bridges.first()?.name == "br1").then_some(n.metadata.generation)
    })
    .await;

    let status = NodeNetworkStatus {
        observed_generation: generation,
        bridges: vec![BridgeState { name: "br1".into(), phase: BridgePhase::Ready, generation: 1, ..Default::default() }],
        ..Default::default()
    };
    networks.patch_status("n1", &PatchParams::default(), &Patch::Merge(&json!({ "status": status }))).await.unwrap();
    until(&nodes, "n1", "label and resource", |n| {
        let label = n.metadata.labels.as_ref()?.get("ready.mooring.dev/br1")?;
        let amount = n.status.as_ref()?.capacity.as_ref()?.get("ovs-cni.network.kubevirt.io/br1")?;
        (label == "true" && (amount.0 == "1000" || amount.0 == "1k")).then_some(())
    })
    .await;
    until(&w.all::<Bridge>(), "br1", "one of one ready", |b| {
        (b.status.as_ref()?.ready == 1 && b.status.as_ref()?.desired == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_config_becomes_a_network_and_a_hand_edit_is_repaired() {
    let w = start();
    let ns = || Api::<SpiderMultusConfig>::namespaced(w.client.clone(), "kube-system");
    w.create(
        ns(),
        json!({
            "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderMultusConfig",
            "metadata": { "name": "ovs-conf", "namespace": "kube-system" }, "spec": { "cniType": "ovs", "ovs": { "bridge": "br1" } },
        }),
    )
    .await;
    let nads = Api::<NetworkAttachmentDefinition>::namespaced(w.client.clone(), "kube-system");
    let config = until(&nads, "ovs-conf", "a NAD", |n| n.config().map(str::to_owned)).await;
    assert!(config.contains("\"cni-ovs\""), "{config}");
    nads.patch("ovs-conf", &PatchParams::default(), &Patch::Merge(&json!({ "spec": { "config": "{}" } }))).await.unwrap();
    until(&nads, "ovs-conf", "the NAD repaired", |n| (n.config() == Some(config.as_str())).then_some(())).await;
    ns().delete("ovs-conf", &DeleteParams::default()).await.unwrap();
    for _ in 0..200 {
        if nads.get_opt("ovs-conf").await.unwrap().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the NAD outlived its config");
}

#[tokio::test]
async fn the_coordinator_is_synced_from_the_quick_starts_config_map() {
    let w = start();
    w.create(
        w.all::<SpiderCoordinator>(),
        json!({ "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderCoordinator", "metadata": { "name": "default" }, "spec": { "mode": "auto", "podCIDRType": "cluster" } }),
    )
    .await;
    let all = w.all::<SpiderCoordinator>();
    until(&all, "default", "not ready, with the reason", |c| {
        c.status.as_ref()?.reason.as_ref().filter(|r| r.contains("kubeadm-config")).map(drop)
    })
    .await;
    let text = "networking:\n  podSubnet: 10.244.64.0/18\n  serviceSubnet: 10.233.0.0/18\n";
    w.create(
        Api::<ConfigMap>::namespaced(w.client.clone(), "kube-system"),
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "kubeadm-config", "namespace": "kube-system" }, "data": { "ClusterConfiguration": text } }),
    )
    .await;
    until(&all, "default", "synced", |c| (c.status.as_ref()?.overlay_pod_cidr == ["10.244.64.0/18"]).then_some(())).await;
}

fn lease(ip: &str, held: bool, identity: bool) -> Value {
    let name = api::mooring::lease_name("default", ip.parse().unwrap());
    let mut v = json!({
        "apiVersion": "mooring.dev/v1alpha1", "kind": "AddressLease",
        "metadata": { "name": name, "labels": { "mooring.dev/node": "n1" } },
        "spec": { "pool": "p", "address": ip, "node": "n1", "agentID": "a" },
    });
    if held {
        v["spec"]["holder"] = json!({ "podNamespace": "default", "podName": "p", "interface": "eth0", "containerID": "c" });
    }
    if identity {
        v["spec"]["identity"] = json!({ "kind": "StatefulSet", "namespace": "default", "name": "p", "interface": "eth0" });
    }
    v
}

async fn gone(api: &Api<AddressLease>, ip: &str) {
    let name = api::mooring::lease_name("default", ip.parse().unwrap());
    for _ in 0..200 {
        if api.get_opt(&name).await.unwrap().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{ip} is still leased");
}

#[tokio::test]
async fn a_node_out_of_service_loses_its_leases_and_a_deleted_one_keeps_them() {
    let w = start();
    w.create(w.all::<Node>(), json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } })).await;
    let pool = json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool", "metadata": { "name": "p" },
        "spec": { "ips": ["10.6.1.1-10.6.1.100"], "subnet": "10.6.0.0/16" },
    });
    w.create(w.all::<SpiderIPPool>(), pool).await;
    for l in [lease("10.6.1.1", true, false), lease("10.6.1.2", false, false), lease("10.6.1.3", true, true)] {
        w.create(w.all::<AddressLease>(), l).await;
    }
    let (pools, nodes, leases) = (w.all::<SpiderIPPool>(), w.all::<Node>(), w.all::<AddressLease>());
    until(&w.all::<PoolMap>(), "p", "eight spares", |m| (m.spec.spares_per_node == 8).then_some(())).await;
    let taint = json!({ "spec": { "taints": [{ "key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute" }] } });
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&taint)).await.unwrap();
    gone(&leases, "10.6.1.1").await;
    gone(&leases, "10.6.1.2").await;
    let kept = until(&leases, "default.v4-10-6-1-3", "emptied", |l| l.spec.holder.is_none().then(|| l.clone())).await;
    assert!(kept.spec.node.is_empty() && kept.spec.agent_id.is_empty() && kept.spec.identity.is_some(), "{kept:?}");
    assert!(kept.metadata.labels.is_none_or(|l| !l.contains_key("mooring.dev/node")));
    // A create of the dead machine that was under way.
    w.create(w.all::<AddressLease>(), lease("10.6.1.5", true, false)).await;
    gone(&leases, "10.6.1.5").await;
    let noted = until(&nodes, "n1", "a note", |n| n.metadata.annotations.as_ref()?.get("mooring.dev/fenced").cloned()).await;
    let mut note: Value = serde_json::from_str(&noted).unwrap();
    assert_eq!((&note["agents"], &note["done"]), (&json!(["a"]), &json!(false)), "{note}");
    // As if a minute and a half had passed.
    note["since"] = json!("2026-01-01T00:00:00Z");
    let text = json!({ "metadata": { "annotations": { "mooring.dev/fenced": note.to_string() } } });
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&text)).await.unwrap();
    until(&nodes, "n1", "done", |n| {
        n.metadata.annotations.as_ref()?.get("mooring.dev/fenced").filter(|f| f.contains("\"done\":true")).map(drop)
    })
    .await;
    // The machine runs again, under the same agent, before the taint is taken away.
    w.create(w.all::<AddressLease>(), lease("10.6.1.4", true, false)).await;
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&json!({ "spec": { "taints": null } }))).await.unwrap();
    until(&nodes, "n1", "no note", |n| {
        n.metadata.annotations.as_ref().is_none_or(|a| !a.contains_key("mooring.dev/fenced")).then_some(())
    })
    .await;
    until(&pools, "p", "one in use", |p| (p.status.as_ref()?.allocated_ip_count == Some(1)).then_some(())).await;

    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    let text = until(&pools, "p", "a node out of reach", |p| {
        let status = p.status.as_ref().filter(|s| s.unreachable_ip_count == Some(1) && s.allocated_ip_count == Some(0))?;
        Some(status.conditions.iter().find(|c| c.type_ == "UnreachableNodes")?.message.clone())
    })
    .await;
    assert!(text.contains("1 of node n1") && text.contains("mooring release --node n1"), "{text}");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(leases.get_opt("default.v4-10-6-1-4").await.unwrap().is_some(), "a deleted node is not a dead one");
}

#[tokio::test]
async fn one_of_two_controllers_leads_and_the_other_takes_over() {
    let server = standalone::Server::new(standalone::kinds::builtin(), api::crds::all()).unwrap();
    let client = server.client("test");
    let stop = [Shutdown::new(), Shutdown::new()];
    let first = tokio::spawn(controller::run::run(server.client("mooring-controller"), stop[0].clone()));
    let lease = Api::<k8s_openapi::api::coordination::v1::Lease>::namespaced(client.clone(), "kube-system");
    let holder = |l: &k8s_openapi::api::coordination::v1::Lease| l.spec.clone()?.holder_identity.filter(|h| !h.is_empty());
    let one = until(&lease, "mooring-controller", "a leader", holder).await;
    let second = tokio::spawn(controller::run::run(server.client("mooring-controller"), stop[1].clone()));
    // Longer than the second one's first look.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(until(&lease, "mooring-controller", "a leader", holder).await, one);
    stop[0].trigger();
    first.await.unwrap().unwrap();
    let two = until(&lease, "mooring-controller", "the other one leads", |l| holder(l).filter(|h| *h != one)).await;
    let pool = json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool", "metadata": { "name": "p" },
        "spec": { "ips": ["10.6.1.1-10.6.1.10"], "subnet": "10.6.0.0/16" },
    });
    Api::<SpiderIPPool>::all(client.clone())
        .create(&PostParams::default(), &serde_json::from_value(pool).unwrap())
        .await
        .unwrap();
    until(&Api::<SpiderIPPool>::all(client), "p", "it works", |p| (p.status.as_ref()?.total_ip_count == Some(10)).then_some(()))
        .await;
    stop[1].trigger();
    second.await.unwrap().unwrap();
    assert_ne!(one, two);
}

/// As when the Lease could not be renewed and the old leader has not noticed yet.
#[tokio::test]
async fn two_controllers_that_decide_at_once_come_to_one_end() {
    let server = standalone::Server::new(standalone::kinds::builtin(), api::crds::all()).unwrap();
    let stop = Shutdown::new();
    for _ in 0..2 {
        tokio::spawn(controller::run::lead(server.client("mooring-controller"), stop.clone()));
    }
    let w = World { client: server.client("test"), agent: server.client("mooring-agent"), shutdown: stop };
    let (pools, leases, maps) = (w.all::<SpiderIPPool>(), w.all::<AddressLease>(), w.all::<PoolMap>());
    for n in ["n1", "n2"] {
        w.create(w.all::<Node>(), json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": n } })).await;
    }
    let pool = json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool", "metadata": { "name": "p" },
        "spec": { "ips": ["10.6.1.1-10.6.1.100"], "subnet": "10.6.0.0/16" },
    });
    w.create(w.all::<SpiderIPPool>(), pool).await;
    for i in 1..=20 {
        w.create(w.all::<AddressLease>(), lease(&format!("10.6.1.{i}"), i % 2 == 0, i % 5 == 0)).await;
    }
    let mut other = lease("10.6.1.50", true, false);
    other["spec"]["node"] = json!("n2");
    w.create(w.all::<AddressLease>(), other).await;
    until(&pools, "p", "ten and one in use", |p| (p.status.as_ref()?.allocated_ip_count == Some(11)).then_some(())).await;
    let taint = json!({ "spec": { "taints": [{ "key": "node.kubernetes.io/out-of-service", "effect": "NoExecute" }] } });
    w.all::<Node>().patch("n1", &PatchParams::default(), &Patch::Merge(&taint)).await.unwrap();
    until(&pools, "p", "n1's are gone but for the fixed ones", |p| {
        let s = p.status.as_ref()?;
        (s.allocated_ip_count == Some(1) && s.kept_ip_count == Some(4) && s.free_ip_count == Some(95)).then_some(())
    })
    .await;
    // What they wrote, they do not write over and over.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let versions = async || {
        let map = maps.get("p").await.unwrap().metadata.resource_version;
        (pools.get("p").await.unwrap().metadata.resource_version, map)
    };
    let before = versions().await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(versions().await, before);
    assert_eq!(leases.list(&Default::default()).await.unwrap().items.len(), 5);
}
