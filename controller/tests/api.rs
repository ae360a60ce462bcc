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
