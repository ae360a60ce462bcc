//! What the measured plugins find: the API's objects, and both sides' configurations. It does not measure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::exec::{Plugin, PodName};
use crate::cluster::{Cluster, NADS, NODE_NETWORKS, PODS, POOLS, text};
use crate::node::CNI_BIN;
use crate::product::wait_until;

/// Pods without annotations, `p0` and on.
pub const PODS_PLAIN: usize = 260;
/// Pods that ask for a second NIC, `m0` and on.
pub const PODS_TWO: usize = 60;
/// Where the installer says that the node has an agent.
const AGENT_FILE: &str = "/etc/cni/net.d/mooring.d/agent.json";

const OBJECTS: &str = "
apiVersion: v1
kind: Node
metadata:
  name: n1
  labels: {kubernetes.io/hostname: n1, bridge.mooring.dev/br1: enabled}
status:
  addresses: [{type: InternalIP, address: 10.6.0.11}]
  conditions: [{type: Ready, status: 'True', reason: KubeletReady}]
---
apiVersion: mooring.dev/v1alpha1
kind: Bridge
metadata: {name: br1}
spec:
  uplink: {interface: eth0}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kubeadm-config, namespace: kube-system}
data:
  ClusterConfiguration: |
    networking:
      podSubnet: 10.244.0.0/16
      serviceSubnet: 10.233.0.0/18
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderCoordinator
metadata: {name: default}
spec: {mode: auto, podCIDRType: cluster, detectGateway: false, detectIPConflict: false}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: bench}
spec: {subnet: 10.6.0.0/16, gateway: 10.6.0.1, ips: [10.6.16.1-10.6.35.136]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: full}
spec: {subnet: 10.6.0.0/16, gateway: 10.6.0.1, ips: [10.6.64.1-10.6.83.136]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: bench-ovs}
spec: {subnet: 172.18.0.0/16, gateway: 172.18.0.1, ips: [172.18.16.1-172.18.35.136]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: bench-net1, namespace: default}
spec:
  cniType: macvlan
  macvlan: {master: [ens192], ippools: {ipv4: [bench]}}
";

/// One side's plugins, configured for the same networks.
#[derive(Debug)]
pub struct World {
    /// The API.
    pub cluster: Cluster,
    go: PathBuf,
    /// Pods without annotations.
    pub pods: Vec<PodName>,
    /// Pods with a second NIC.
    pub pods_two: Vec<PodName>,
}

impl World {
    /// Makes the objects and waits until the product has acted on them.
    ///
    /// # Errors
    /// An object is refused, or nothing comes of it.
    pub fn new(socket: &Path, go: &Path) -> Result<Self> {
        let cluster = Cluster::new(socket)?;
        cluster.apply_text(OBJECTS)?;
        let mut all = String::new();
        for (prefix, count, annotations) in
            [("p", PODS_PLAIN, json!({})), ("m", PODS_TWO, json!({"k8s.v1.cni.cncf.io/networks": "bench-net1"}))]
        {
            for i in 0..count {
                all.push_str(&pod(&format!("{prefix}{i}"), "n1", &annotations));
            }
        }
        cluster.apply_text(&all)?;
        let limit = Duration::from_secs(30);
        wait_until("pools are counted", limit, || {
            for pool in cluster.list(POOLS)? {
                ensure!(text(&pool, "/status/totalIPCount") == "5000", "{pool}");
            }
            Ok(())
        })?;
        wait_until("br1 is there", limit, || {
            let node = cluster.get(NODE_NETWORKS, None, "n1")?;
            let bridges = node.pointer("/status/bridges").and_then(Value::as_array).cloned().unwrap_or_default();
            ensure!(bridges.iter().any(|b| b["name"] == "br1" && b["phase"] == "Ready"), "{}", node["status"]);
            Ok(())
        })?;
        wait_until("the network of the second NIC is there", limit, || cluster.get(NADS, Some("default"), "bench-net1"))?;
        // The agent hears of all this by its watches.
        std::thread::sleep(Duration::from_secs(1));
        let named = |prefix: char| -> Result<Vec<PodName>> {
            let pods = cluster.list(PODS)?.into_iter();
            let pods = pods.map(|p| PodName { name: text(&p, "/metadata/name"), uid: text(&p, "/metadata/uid") });
            Ok(pods.filter(|p| p.name.starts_with(prefix)).collect())
        };
        let (pods, pods_two) = (named('p')?, named('m')?);
        Ok(Self { cluster, go: go.to_owned(), pods, pods_two })
    }

    /// A file of the reference plugins.
    pub fn go_file(&self, name: &str) -> PathBuf {
        self.go.join(name)
    }

    /// Our macvlan with an address of this pool.
    pub fn macvlan(&self, pool: &str) -> Plugin {
        self.plugin(
            Path::new(CNI_BIN),
            "cni-macvlan",
            json!({"master": "ens192", "mode": "bridge", "ipam": {"type": "spiderpool", "default_ipv4_ippool": [pool]}}),
        )
    }

    /// Our OVS plugin with an address of a pool.
    pub fn ovs(&self) -> Plugin {
        let ipam = json!({"type": "spiderpool", "default_ipv4_ippool": ["bench-ovs"]});
        self.plugin(Path::new(CNI_BIN), "cni-ovs", json!({"bridge": "br1", "ipam": ipam}))
    }

    /// Our macvlan with host-local, for a host without the agent.
    pub fn macvlan_host_local(&self) -> Plugin {
        let conf = json!({"master": "ens192", "mode": "bridge", "ipam": host_local("alone")});
        self.plugin(Path::new(CNI_BIN), "cni-macvlan", conf)
    }

    /// The node's own network as the runtime calls it.
    pub fn mooring(&self) -> Plugin {
        self.plugin(Path::new(CNI_BIN), "mooring", json!({"clusterNetwork": "cluster"}))
    }

    /// Their macvlan with host-local.
    pub fn go_macvlan(&self) -> Plugin {
        self.plugin(&self.go, "macvlan", json!({"master": "ens192", "mode": "bridge", "ipam": host_local("go")}))
    }

    /// Their bridge with host-local.
    pub fn go_bridge(&self) -> Plugin {
        self.plugin(&self.go, "bridge", json!({"bridge": "gobr0", "ipam": host_local("go-bridge")}))
    }

    fn plugin(&self, dir: &Path, kind: &str, mut conf: Value) -> Plugin {
        conf["cniVersion"] = json!("1.0.0");
        conf["name"] = json!(format!("bench-{kind}"));
        conf["type"] = json!(kind);
        Plugin { file: dir.join(kind), conf: conf.to_string(), path: format!("{CNI_BIN}:{}", self.go.display()) }
    }

    /// Runs `work` as on a host where no agent is installed.
    ///
    /// # Errors
    /// The file cannot be moved.
    pub fn alone<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let away = format!("{AGENT_FILE}.away");
        std::fs::rename(AGENT_FILE, &away)?;
        let done = work();
        std::fs::rename(&away, AGENT_FILE)?;
        done
    }
}

/// An address of 5,000, as our pools have; each user has a directory of its own.
fn host_local(user: &str) -> Value {
    let third = if user == "alone" { 96 } else { 128 };
    let (first, last) = (format!("10.6.{third}.1"), format!("10.6.{}.136", third + 19));
    json!({
        "type": "host-local",
        "dataDir": format!("/run/bench-{user}"),
        "ranges": [[{"subnet": "10.6.0.0/16", "rangeStart": first, "rangeEnd": last, "gateway": "10.6.0.1"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    })
}

/// A pod that is bound to a node, as one document.
pub fn pod(name: &str, node: &str, annotations: &Value) -> String {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none"}]},
    });
    format!("---\n{pod}\n")
}
