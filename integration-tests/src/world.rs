//! A lab with the product in it, as most tests of the lab begin; and the one place where they end: the leak oracle. What a test
//! asks of it beyond this is the test's own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, NODE_NETWORKS, NODES, text};
use crate::daemon::Daemon;
use crate::lab::{Lab, Options};
use crate::oracle;
use crate::product::{Product, wait_until};

#[derive(Debug)]
pub struct World {
    // Stopped before the machines go.
    pub product: Product,
    pub cluster: Cluster,
    pub lab: Lab,
    patience: Duration,
}

impl World {
    /// Nodes n1, n2, ... with the product, known to the API. `patience`: how long [`World::wait`] waits.
    ///
    /// # Errors
    /// What does not start, with the ends of all logs.
    pub fn start(lab_exe: &Path, nodes: u8, patience: Duration) -> Result<Self> {
        let lab = Lab::start(&Options { exe: lab_exe.to_owned(), nodes })?;
        let product = Product::start(&lab).with_context(|| lab.run().tails(20))?;
        let cluster = Cluster::new(&product.socket)?;
        let world = Self { product, cluster, lab, patience };
        world.wait("nodes", || {
            ensure!(world.cluster.list(NODES)?.len() == usize::from(nodes), "nodes are missing");
            Ok(())
        });
        Ok(world)
    }

    /// Asks until the answer is no error.
    ///
    /// # Panics
    /// The patience is over: with the last error and the ends of all logs.
    pub fn wait<T>(&self, what: &str, ask: impl FnMut() -> Result<T>) -> T {
        wait_until(what, self.patience, ask).unwrap_or_else(|e| panic!("{e:#}\n{}", self.lab.run().tails(30)))
    }

    /// As [`Product::take_agent`].
    ///
    /// # Errors
    /// As there.
    pub fn take_agent(&mut self, node: usize) -> Result<Daemon> {
        self.product.take_agent(self.lab.node(node))
    }

    /// As [`Product::start_agent`].
    ///
    /// # Errors
    /// As there.
    pub fn start_agent(&mut self, node: usize) -> Result<()> {
        self.product.start_agent(&self.lab, self.lab.node(node))
    }

    /// Waits until the node says that br1 is ready.
    pub fn bridge_ready(&self, node: &str) {
        self.wait("bridge ready", || {
            let label = text(&self.cluster.get(NODES, None, node)?, "/metadata/labels/ready.mooring.dev~1br1");
            ensure!(label == "true", "{node} is not ready: {}", self.why(node));
            Ok(())
        });
    }

    /// What the agent says of its bridges.
    pub fn why(&self, node: &str) -> String {
        self.cluster.get(NODE_NETWORKS, None, node).map(|n| n["status"]["bridges"].to_string()).unwrap_or_default()
    }

    /// What `ovs-vsctl ARGS` prints.
    ///
    /// # Errors
    /// It fails.
    pub fn vsctl(&self, node: usize, args: &[&str]) -> Result<String> {
        let args = [&["--timeout=10"], args].concat();
        Ok(self.lab.node(node).space.run("ovs-vsctl", &args)?.trim().to_owned())
    }

    /// The path of a pod's network namespace, by the runtime's record.
    ///
    /// # Errors
    /// There is no record of the pod.
    pub fn netns(&self, node: usize, pod: &str) -> Result<String> {
        let records = self.lab.node(node).space.run("sh", &["-c", "cat /var/lib/cni/results/*-eth0"])?;
        for record in serde_json::Deserializer::from_str(&records).into_iter::<Value>() {
            let record = record?;
            let args = record["cniArgs"].as_array().into_iter().flatten();
            if args.into_iter().any(|a| a[0] == "K8S_POD_NAME" && a[1] == pod) {
                return Ok(text(&record, "/netns"));
            }
        }
        anyhow::bail!("the runtime has no record of pod {pod}")
    }
}

impl Drop for World {
    /// However a story ends, nothing is duplicate, leaked or stale.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            oracle::silent(&self.lab, &self.product).unwrap_or_else(|e| panic!("{e:#}\n{}", self.lab.run().tails(20)));
        }
    }
}
