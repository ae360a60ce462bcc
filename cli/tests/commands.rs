//! The commands as a user types them, against a standalone API on a socket.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;

use kube::api::PostParams;
use kube::{Client, Resource};
use serde_json::{Value, json};

struct World {
    dir: std::path::PathBuf,
    client: Client,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl World {
    async fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mt-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let server = standalone::Server::new(standalone::kinds::builtin(), api::crds::all()).unwrap();
        let client = server.client("mooring-agent");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let socket = dir.join("api.sock");
        tokio::spawn(async move {
            server
                .serve_unix(&socket, async move {
                    let _ = stopped.await;
                })
                .await
                .unwrap();
        });
        let w = Self { dir, client, stop: Some(stop) };
        while !w.dir.join("api.sock").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        w
    }

    async fn create<K>(&self, namespace: Option<&str>, v: Value)
    where
        K: Resource<DynamicType = ()>,
    {
        let body = serde_json::to_vec(&v).unwrap();
        let request = kube::core::Request::new(K::url_path(&(), namespace)).create(&PostParams::default(), body).unwrap();
        let _: Value = self.client.request(request).await.unwrap();
    }

    async fn mooring(&self, args: &[&str]) -> (bool, String) {
        let mut c = Command::new(env!("CARGO_BIN_EXE_mooring"));
        c.arg("--api-socket").arg(self.dir.join("api.sock")).args(args);
        let out = tokio::task::spawn_blocking(move || c.output().unwrap()).await.unwrap();
        (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    }

    async fn pool(&self, name: &str, spec: Value) {
        let v = json!({ "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool", "metadata": { "name": name }, "spec": spec });
        self.create::<api::SpiderIPPool>(None, v).await;
    }

    async fn lease(&self, ip: &str, pool: &str, pod: &str) {
        self.lease_on("n1", ip, pool, pod).await;
    }

    async fn lease_on(&self, node: &str, ip: &str, pool: &str, pod: &str) {
        let name = api::mooring::lease_name("default", ip.parse().unwrap());
        let v = json!({
            "apiVersion": "mooring.dev/v1alpha1", "kind": "AddressLease",
            "metadata": { "name": name, "labels": { "mooring.dev/node": api::mooring::label_value(node), "mooring.dev/pool": pool } },
            "spec": {
                "pool": pool, "address": ip, "node": node, "agentID": "a",
                "holder": { "podNamespace": "default", "podName": pod, "podUID": "u", "interface": "eth0", "containerID": "c" },
            },
        });
        self.create::<api::AddressLease>(None, v).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn free_and_who_has_tell_the_same_story() {
    let w = World::start("free").await;
    w.pool(
        "p",
        json!({ "subnet": "10.6.0.0/16", "ips": ["10.6.1.1-10.6.1.10"], "excludeIPs": ["10.6.1.9"], "gateway": "10.6.0.1" }),
    )
    .await;
    w.lease("10.6.1.3", "p", "web-1").await;
    let (ok, text) = w.mooring(&["free", "p"]).await;
    assert!(ok, "{text}");
    assert_eq!(
        text,
        "8 of 9 addresses of p are free\nof the others 1 are in use\n10.6.1.1-10.6.1.2\n10.6.1.4-10.6.1.8\n10.6.1.10\n"
    );
    let (_, text) = w.mooring(&["who-has", "10.6.1.3"]).await;
    assert!(text.starts_with("10.6.1.3 is eth0 of pod default/web-1\n  pool       p\n  node       n1\n"), "{text}");
    let (_, text) = w.mooring(&["who-has", "10.6.1.4"]).await;
    assert_eq!(text, "nobody has 10.6.1.4 in L2 domain default: there is no AddressLease default.v4-10-6-1-4\n");
    let (ok, text) = w.mooring(&["free", "nope"]).await;
    assert!(!ok && text.contains("there is no SpiderIPPool nope"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_names_every_pool_with_its_reason() {
    let w = World::start("explain").await;
    w.pool("good", json!({ "subnet": "10.6.0.0/16", "ips": ["10.6.1.1-10.6.1.10"] })).await;
    w.pool("off", json!({ "subnet": "10.7.0.0/16", "ips": ["10.7.1.1-10.7.1.10"], "disable": true })).await;
    w.pool("elsewhere", json!({ "subnet": "10.8.0.0/16", "ips": ["10.8.1.1-10.8.1.10"], "nodeName": ["n9"] })).await;
    let config = json!({ "cniVersion": "0.3.1", "name": "ovs-conf", "plugins": [{ "type": "cni-ovs", "bridge": "br1", "ipam": { "type": "spiderpool" } }] });
    let nad = json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": { "name": "ovs-conf", "namespace": "kube-system" }, "spec": { "config": config.to_string() },
    });
    w.create::<api::NetworkAttachmentDefinition>(Some("kube-system"), nad).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "namespace": "default", "annotations": {
            "v1.multus-cni.io/default-network": "kube-system/ovs-conf",
            "ipam.spidernet.io/ippool": "{\"ipv4\":[\"off\",\"elsewhere\",\"good\"]}",
        } },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] },
    });
    w.create::<k8s_openapi::api::core::v1::Pod>(Some("default"), pod).await;
    w.lease("10.6.1.3", "good", "web").await;
    let (ok, text) = w.mooring(&["explain", "pod", "default/web"]).await;
    assert!(ok, "{text}");
    for line in [
        "pod default/web on n1",
        "  eth0 (kube-system/ovs-conf):",
        "    IPv4 from good (annotation ipam.spidernet.io/ippool)",
        "    not off: ",
        "    not elsewhere: ",
        "  holds 10.6.1.3 of pool good on eth0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let (ok, text) = w.mooring(&["explain", "pod", "nope"]).await;
    assert!(!ok && text.contains("there is no pod default/nope"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_finds_what_a_pod_holds_on_a_node_whose_name_is_longer_than_a_label() {
    let w = World::start("long").await;
    let node = format!("{}.example.org", "n".repeat(63));
    w.pool("p", json!({ "subnet": "10.6.0.0/16", "ips": ["10.6.1.1-10.6.1.10"] })).await;
    let config = json!({ "cniVersion": "0.3.1", "name": "o", "plugins": [{ "type": "cni-ovs", "bridge": "br1", "ipam": { "type": "spiderpool" } }] });
    let nad = json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": { "name": "o", "namespace": "kube-system" }, "spec": { "config": config.to_string() },
    });
    w.create::<api::NetworkAttachmentDefinition>(Some("kube-system"), nad).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "namespace": "default", "annotations": {
            "v1.multus-cni.io/default-network": "kube-system/o", "ipam.spidernet.io/ippool": "{\"ipv4\":[\"p\"]}",
        } },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] },
    });
    w.create::<k8s_openapi::api::core::v1::Pod>(Some("default"), pod).await;
    w.lease_on(&node, "10.6.1.3", "p", "web").await;
    let (ok, text) = w.mooring(&["explain", "pod", "default/web"]).await;
    assert!(ok && text.contains("  holds 10.6.1.3 of pool p on eth0"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn show_prints_the_quick_starts_columns() {
    let w = World::start("show").await;
    w.pool("ippool-test", json!({ "subnet": "172.18.0.0/16", "ips": ["172.18.30.131-172.18.30.140"] })).await;
    let (ok, text) = w.mooring(&["show", "pools"]).await;
    assert!(ok, "{text}");
    assert!(
        text.starts_with("NAME          VERSION   SUBNET          ALLOCATED-IP-COUNT   TOTAL-IP-COUNT   DEFAULT   DISABLE   FREE   SPARE   KEPT   UNREACHABLE   QUARANTINED\n"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_breaks_a_rule_is_refused_with_its_field() {
    let w = World::start("plan").await;
    let file = w.dir.join("b.yaml");
    std::fs::write(&file, "apiVersion: mooring.dev/v1alpha1\nkind: Bridge\nmetadata: {name: br1}\nspec: {uplink: {interface: eth0}, allowedVLANs: ['4095']}\n").unwrap();
    let (ok, text) = w.mooring(&["plan", "-f", file.to_str().unwrap()]).await;
    assert!(!ok && text.contains("spec.allowedVLANs[0]") && text.contains("4095"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_nodes_addresses_are_marked_once_and_a_ready_nodes_are_not() {
    let w = World::start("release").await;
    w.lease("10.6.1.3", "p", "web-1").await;
    w.lease("10.6.1.4", "p", "web-2").await;
    let (ok, text) = w.mooring(&["release", "--node", "n1"]).await;
    assert!(!ok && text.contains("there is no terminal to ask at: say --yes"), "{text}");
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    });
    w.create::<k8s_openapi::api::core::v1::Node>(None, node).await;
    let (ok, text) = w.mooring(&["release", "--node", "n1", "--yes"]).await;
    assert!(!ok && text.contains("node n1 is ready"), "{text}");
    let nodes = kube::Api::<k8s_openapi::api::core::v1::Node>::all(w.client.clone());
    nodes.delete("n1", &Default::default()).await.unwrap();
    let leases = kube::Api::<api::AddressLease>::all(w.client.clone());
    let sighting = json!({ "mac": "02:00:00:00:00:07", "node": "n2", "at": "2026-01-01T00:00:00Z" });
    let patch = |s: Value| kube::api::Patch::Merge(json!({ "spec": { "sighting": s } }));
    leases.patch("default.v4-10-6-1-4", &Default::default(), &patch(sighting)).await.unwrap();
    let (ok, text) = w.mooring(&["release", "--node", "n1", "--yes"]).await;
    let used = "1 addresses of node n1 are still used: 10.6.1.4 by 02:00:00:00:00:07 (node n2 at 2026-01-01T00:00:00Z)";
    assert!(!ok && text.contains(used), "{text}");
    let (_, text) = w.mooring(&["who-has", "10.6.1.4"]).await;
    assert!(text.contains("02:00:00:00:00:07 answers for it; asked by node n2"), "{text}");
    leases.patch("default.v4-10-6-1-4", &Default::default(), &patch(json!({ "mac": null }))).await.unwrap();
    let (ok, text) = w.mooring(&["release", "--node", "n1", "--yes"]).await;
    assert!(ok, "{text}");
    assert_eq!(
        text,
        "released 2 addresses (2 of pods, 0 stay with their identities) of node n1; the controller takes them back\n"
    );
    let leases = kube::Api::<api::AddressLease>::all(w.client.clone()).list(&Default::default()).await.unwrap();
    assert!(
        leases.iter().all(|l| l.metadata.annotations.as_ref().is_some_and(|a| a["mooring.dev/released"] == "a")),
        "{leases:?}"
    );
    let (_, text) = w.mooring(&["who-has", "10.6.1.3"]).await;
    assert!(text.contains("its node was declared dead"), "{text}");
    let (ok, text) = w.mooring(&["release", "--node", "n2", "--yes"]).await;
    assert!(ok && text == "node n2 has no address\n", "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_without_a_holder_say_what_they_are_there_for() {
    let w = World::start("spare").await;
    w.pool("p", json!({ "subnet": "10.6.0.0/16", "ips": ["10.6.1.1-10.6.1.10"] })).await;
    let lease = |ip: &str, spec: Value| {
        let mut all = json!({ "pool": "p", "address": ip });
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let name = api::mooring::lease_name("default", ip.parse().unwrap());
        json!({ "apiVersion": "mooring.dev/v1alpha1", "kind": "AddressLease", "metadata": { "name": name }, "spec": all })
    };
    let identity = json!({ "kind": "StatefulSet", "namespace": "default", "name": "web-0", "interface": "eth0" });
    for (ip, spec, says) in [
        ("10.6.1.1", json!({ "node": "n1", "agentID": "a" }), "its node keeps it as a spare"),
        ("10.6.1.2", json!({ "node": "n1", "agentID": "a", "releasedAt": "2026-01-01T00:00:00Z" }), "it rests on its node"),
        ("10.6.1.3", json!({ "identity": identity }), "it is kept for its identity"),
        (
            "10.6.1.4",
            json!({ "quarantine": { "mac": "02:00:00:00:00:07", "reason": "DuplicateAddress", "node": "n1", "at": "2026-01-01T00:00:00Z" } }),
            "it is quarantined, because a stranger uses it",
        ),
    ] {
        w.create::<api::AddressLease>(None, lease(ip, spec)).await;
        let (_, text) = w.mooring(&["who-has", ip]).await;
        assert!(text.starts_with(&format!("{ip} has no holder; {says}")), "{text}");
    }
    let (_, text) = w.mooring(&["free", "p"]).await;
    let line = "of the others 1 are kept for identities, 1 are quarantined, 1 are spares of nodes, 1 rest on nodes";
    assert!(text.starts_with(&format!("6 of 10 addresses of p are free\n{line}\n")), "{text}");
}
