//! The world of the kill rounds: two nodes with a bridge, pods with two NICs that stay up, pods that come and go, and a way to
//! the API on which things go wrong. It knows what a pod must be able to do, and how things are killed; each test says when.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, EVENTS, NODE_NETWORKS, NODES, PODS, text};
use crate::lab::{Lab, Options};
use crate::oracle;
use crate::product::{From, Product, wait_until};
use crate::proxy::Proxy;

/// For what takes seconds on an idle machine: an agent that was killed is met again by callers within 10 s, a kubelet's
/// pause is 2 s, and lanes run on busy machines.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Pools with room for all that is made here, in both segments.
const POOLS: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: rounds-172}
spec: {subnet: 172.18.0.0/16, gateway: 172.18.0.1, ips: [172.18.40.1-172.18.40.200]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: rounds-6}
spec: {subnet: 10.6.0.0/16, gateway: 10.6.0.1, ips: [10.6.213.1-10.6.213.200]}
";

/// What a pod with two NICs asks for: eth0 on the bridge, net1 by macvlan, routes by the coordinator.
const TWO_NICS: &str = "v1.multus-cni.io/default-network: kube-system/ovs-conf, k8s.v1.cni.cncf.io/networks: macvlan-ens192, \
    ipam.spidernet.io/ippools: '[{\"interface\": \"eth0\", \"ipv4\": [\"rounds-172\"]}, {\"interface\": \"net1\", \"ipv4\": [\"rounds-6\"]}]'";

/// The world.
#[derive(Debug)]
pub struct Rounds {
    /// The processes.
    pub product: Product,
    /// The API, as a person asks it.
    pub cluster: Cluster,
    /// The product's way to the API.
    pub proxy: Proxy,
    /// The machines.
    pub lab: Lab,
}

/// A pod that runs, as the node's runtime knows it.
#[derive(Debug, Clone)]
pub struct Up {
    /// Its name in `default`.
    pub name: String,
    /// Index into the lab's nodes.
    pub node: usize,
    /// Path of its network namespace on the node.
    pub netns: String,
    /// Its NICs' addresses: NIC, address.
    pub addresses: Vec<(String, IpAddr)>,
}

impl Rounds {
    /// Everything up, with the pods `up-1` and `up-2`, one on each node.
    ///
    /// # Errors
    /// Something does not come up: with the ends of all logs.
    pub fn start(exe: PathBuf, examples: &Path) -> Result<Self> {
        let lab = Lab::start(&Options { exe, nodes: 2 })?;
        let (product, proxy) = Product::start_behind(&lab).with_context(|| lab.run().tails(12))?;
        let cluster = Cluster::new(&product.socket)?;
        let rounds = Self { product, cluster, proxy, lab };
        rounds.set_up(examples).map_err(|e| rounds.explained(e))?;
        Ok(rounds)
    }

    fn set_up(&self, examples: &Path) -> Result<()> {
        wait_until("nodes", PATIENCE, || {
            ensure!(self.cluster.list(NODES)?.len() == 2, "nodes are missing");
            Ok(())
        })?;
        let file = |folder: &str, name: &str| examples.join(folder).join(name);
        self.cluster.apply(&[
            file("underlay-ovs", "00-bridge.yaml"),
            file("underlay-ovs", "20-network.yaml"),
            file("macvlan-second-nic", "00-coordinator.yaml"),
            file("macvlan-second-nic", "20-network.yaml"),
        ])?;
        self.cluster.apply_text(POOLS)?;
        for node in ["n1", "n2"] {
            self.cluster.label_node(node, "bridge.mooring.dev/br1", Some("enabled"))?;
        }
        for node in ["n1", "n2"] {
            wait_until("bridge ready", PATIENCE, || {
                let network = self.cluster.get(NODE_NETWORKS, None, node)?;
                let label = text(&self.cluster.get(NODES, None, node)?, "/metadata/labels/ready.mooring.dev~1br1");
                ensure!(label == "true", "{node} is not ready: {}", text(&network, "/status/bridges"));
                Ok(())
            })?;
        }
        for number in 1..=2 {
            self.pod(&format!("up-{number}"), &format!("n{number}"))?;
        }
        for number in 1..=2 {
            self.running(&format!("up-{number}"))?;
        }
        self.settled()
    }

    /// An error with the ends of all logs.
    pub fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        anyhow::anyhow!("{error:#}\n{}", self.lab.run().tails(25))
    }

    /// A pod with two NICs.
    ///
    /// # Errors
    /// The API refuses it.
    pub fn pod(&self, name: &str, node: &str) -> Result<()> {
        create(&self.cluster, name, node, TWO_NICS)
    }

    /// Waits until a pod runs.
    ///
    /// # Errors
    /// It does not: with the newest warning about it.
    pub fn running(&self, name: &str) -> Result<Value> {
        wait_until(&format!("{name} runs"), PATIENCE, || {
            let pod = self.cluster.get(PODS, Some("default"), name)?;
            ensure!(text(&pod, "/status/phase") == "Running", "{}", self.warning(name)?);
            Ok(pod)
        })
    }

    /// Waits until a pod is gone.
    ///
    /// # Errors
    /// It is still there: with the newest warning about it.
    pub fn gone(&self, name: &str) -> Result<()> {
        wait_until(&format!("{name} is gone"), PATIENCE, || {
            ensure!(self.cluster.get(PODS, Some("default"), name).is_err(), "{}", self.warning(name)?);
            Ok(())
        })
    }

    /// The newest warning about a pod.
    ///
    /// # Errors
    /// The API does not answer.
    pub fn warning(&self, name: &str) -> Result<String> {
        let mut events = self.cluster.list(EVENTS)?;
        events.retain(|e| text(e, "/involvedObject/name") == name && text(e, "/type") == "Warning");
        events.sort_by_key(|e| text(e, "/lastTimestamp"));
        Ok(events.last().map(|e| text(e, "/message")).unwrap_or_default())
    }

    /// All pods that run, as the runtimes know them.
    ///
    /// # Errors
    /// A pod that runs has no sandbox, or an unreadable one.
    pub fn up(&self) -> Result<Vec<Up>> {
        let mut pods = self.cluster.list(PODS)?;
        pods.retain(|p| text(p, "/status/phase") == "Running" && p.pointer("/metadata/deletionTimestamp").is_none());
        let mut up = Vec::new();
        for (index, node) in self.lab.nodes.iter().enumerate() {
            let script = "for f in /var/lib/cni/results/*-eth0; do [ -e \"$f\" ] && cat \"$f\"; done; true";
            let records = node.space.run("sh", &["-c", script])?;
            for record in serde_json::Deserializer::from_str(&records).into_iter::<Value>() {
                let record = record.context("record of a sandbox")?;
                let args = record["cniArgs"].as_array().cloned().unwrap_or_default();
                let arg = |key: &str| args.iter().find(|a| a[0] == key).map(|a| text(a, "/1")).unwrap_or_default();
                if !pods.iter().any(|p| text(p, "/metadata/uid") == arg("K8S_POD_UID")) {
                    continue;
                }
                let netns = text(&record, "/netns");
                let from = From { space: &node.space, netns: Some(&netns) };
                let links: Value = serde_json::from_str(&from.run("ip", &["-j", "-4", "addr"])?)?;
                let addresses = links.as_array().into_iter().flatten().filter_map(|l| {
                    let nic = text(l, "/ifname");
                    (nic == "eth0" || nic == "net1").then_some((nic, text(l, "/addr_info/0/local").parse().ok()?))
                });
                up.push(Up { name: arg("K8S_POD_NAME"), node: index, netns: netns.clone(), addresses: addresses.collect() });
            }
        }
        ensure!(up.len() == pods.len(), "{} pods run, and the runtimes have {} of them", pods.len(), up.len());
        Ok(up)
    }

    /// Each of these pods pings the gateway of each of its NICs, and has TCP with the next one by each NIC.
    ///
    /// # Errors
    /// All that fail.
    pub fn reach(&self, up: &[Up]) -> Result<()> {
        let work = |at: usize| -> Vec<String> {
            let (pod, next) = (&up[at], &up[(at + 1) % up.len()]);
            let from = From { space: &self.lab.nodes[pod.node].space, netns: Some(&pod.netns) };
            let mut wrong = Vec::new();
            for (nic, own) in &pod.addresses {
                let gateway = if nic == "eth0" { "172.18.0.1" } else { "10.6.0.1" };
                if let Err(e) = from.run("ping", &["-n", "-c1", "-W3", "-I", &own.to_string(), gateway]) {
                    wrong.push(format!("{}: ping {gateway} by {nic}: {e:#}", pod.name));
                }
                let peer = next.addresses.iter().find(|(n, _)| n == nic);
                if let Some((_, ip)) = peer.filter(|(_, ip)| ip != own)
                    && let Err(e) = from.tcp(self.lab.exe(), *ip)
                {
                    wrong.push(format!("{}: tcp to {} {ip} by {nic}: {e:#}", pod.name, next.name));
                }
            }
            if pod.addresses.len() < 2 {
                wrong.push(format!("{}: it has only {:?}", pod.name, pod.addresses));
            }
            wrong
        };
        let wrong: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..up.len()).map(|at| scope.spawn(move || work(at))).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        });
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    /// Pods that run reach what they should.
    ///
    /// # Errors
    /// All that do not.
    pub fn reachable(&self) -> Result<()> {
        self.reach(&self.up()?)
    }

    /// Pods that run reach what they should, and the oracle is silent.
    ///
    /// # Errors
    /// What is wrong.
    pub fn settled(&self) -> Result<()> {
        oracle::silent(&self.lab, &self.product)?;
        self.reachable()
    }

    /// Kills a node's agent, and starts it again.
    ///
    /// # Errors
    /// It does not come up.
    pub fn crash_agent(&mut self, node: usize) -> Result<()> {
        self.product.take_agent(&self.lab.nodes[node])?.kill()?;
        self.product.start_agent(&self.lab, &self.lab.nodes[node])
    }
}

/// A pod with annotations.
///
/// # Errors
/// The API refuses it.
pub fn create(cluster: &Cluster, name: &str, node: &str, annotations: &str) -> Result<()> {
    let yaml = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default, annotations: {{{annotations}}}}}, \
         spec: {{nodeName: {node}, containers: [{{name: c, image: c}}]}}}}"
    );
    cluster.apply_text(&yaml).map(|_| ())
}

/// Numbers that look random and are the same for the same seed (xorshift64*, Vigna 2016).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The seed is printed, so that a failed round can be had again.
    pub fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Self(seed.max(1))
    }

    /// Less than `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// Pods that come and go on both nodes, until told to stop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<(Vec<String>, usize)>>,
}

impl Load {
    /// At most this many at once: more only makes a busy machine busier.
    const MOST: usize = 8;

    /// Goes on with the pods `names`; `number` is the next one's.
    ///
    /// # Errors
    /// No client can be made.
    pub fn start(rounds: &Rounds, mut dice: Dice, mut names: Vec<String>, mut number: usize) -> Result<Self> {
        let cluster = Cluster::new(&rounds.product.socket)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                let full = names.len() >= Self::MOST;
                if full || (!names.is_empty() && dice.below(3) == 0) {
                    let at = usize::try_from(dice.below(names.len() as u64))?;
                    cluster.delete(PODS, &names.swap_remove(at))?;
                } else {
                    let name = format!("load-{number}");
                    create(&cluster, &name, ["n1", "n2"][number % 2], TWO_NICS)?;
                    number += 1;
                    names.push(name);
                }
                std::thread::sleep(Duration::from_millis(50 + dice.below(250)));
            }
            Ok((names, number))
        });
        Ok(Self { stop, thread })
    }

    /// Stops; waits until the pods that were not deleted run and the others are gone; returns them and the next number.
    ///
    /// # Errors
    /// Something of that does not come about.
    pub fn stop(self, rounds: &Rounds) -> Result<(Vec<String>, usize)> {
        self.stop.store(true, Ordering::SeqCst);
        let (names, number) = self.thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        for name in &names {
            rounds.running(name)?;
        }
        wait_until("deleted pods are gone", PATIENCE, || {
            let pods = rounds.cluster.list(PODS)?;
            let left: Vec<String> =
                pods.iter().map(|p| text(p, "/metadata/name")).filter(|n| n.starts_with("load-") && !names.contains(n)).collect();
            ensure!(left.is_empty(), "{left:?} are left: {}", rounds.warning(&left[0])?);
            Ok(())
        })?;
        Ok((names, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (mut a, mut b) = (Dice::new(7), Dice::new(7));
        let numbers: Vec<u64> = (0..100).map(|_| a.below(10)).collect();
        assert!(numbers.iter().all(|n| *n < 10 && *n == b.below(10)));
        assert!((0..10).all(|n| numbers.contains(&n)));
    }
}
