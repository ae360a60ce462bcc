//! `make demo`: the product on two nodes, from a label to a ping, with every result read back by foreign tools. It knows
//! the examples' names and addresses; whether a row is right is for `ping`, TCP, `ip` and `ovs-vsctl` to say.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cluster::{
    BRIDGES, COORDINATORS, Cluster, DEPLOYMENTS, ENDPOINTS, NADS, NODE_NETWORKS, NODES, PODS, POOLS, aligned, text,
};
use crate::lab::{Lab, OUTSIDE, Options};
use crate::product::{From, Product, wait_until};

/// No step takes longer on a busy machine; on an idle one a whole demo is far below a minute.
const PATIENCE: Duration = Duration::from_secs(120);
/// The Deployments of both examples.
const APPS: [&str; 4] = ["test-app", "neighbour", "nginx", "nginx-net1"];
/// Columns of `kubectl get spiderippool`.
const POOL_COLUMNS: [(&str, &str); 6] = [
    ("VERSION", "/status/ipVersion"),
    ("SUBNET", "/spec/subnet"),
    ("ALLOCATED-IP-COUNT", "/status/allocatedIPCount"),
    ("TOTAL-IP-COUNT", "/status/totalIPCount"),
    ("DEFAULT", "/spec/default"),
    ("DISABLE", "/spec/disable"),
];
/// Columns of `kubectl get spiderendpoints`.
const ENDPOINT_COLUMNS: [(&str, &str); 6] = [
    ("INTERFACE", "/status/current/ips/0/interface"),
    ("IPV4POOL", "/status/current/ips/0/ipv4Pool"),
    ("IPV4", "/status/current/ips/0/ipv4"),
    ("IPV6POOL", "/status/current/ips/0/ipv6Pool"),
    ("IPV6", "/status/current/ips/0/ipv6"),
    ("NODE", "/status/current/node"),
];
/// A pod as the demo needs it.
#[derive(Debug, Clone)]
struct Pod {
    name: String,
    app: String,
    /// Index into the lab's nodes.
    node: usize,
    /// Its network namespace, as a path on the node.
    netns: String,
    /// Its address on the physical network, as its SpiderEndpoint says.
    address: IpAddr,
}

/// The running demo.
#[derive(Debug)]
pub struct Demo {
    /// The machines.
    pub lab: Lab,
    /// The processes.
    pub product: Product,
    /// The API.
    pub cluster: Cluster,
    examples: PathBuf,
    began: Instant,
    wrong: Vec<String>,
}

/// Runs the whole demo.
///
/// # Errors
/// Something does not come up, or a row of a table is wrong: all wrong rows are named.
pub fn run(exe: PathBuf, examples: PathBuf, keep: bool) -> Result<()> {
    let mut demo = Demo::start(exe, examples)?;
    if let Err(e) = demo.show() {
        println!("\n{}", demo.lab.run().tails(12));
        return Err(e);
    }
    if keep {
        return demo.keep();
    }
    demo.take_down()?;
    demo.verdict()
}

impl Demo {
    /// Lab, product, and nothing applied yet.
    ///
    /// # Errors
    /// Something does not come up.
    pub fn start(exe: PathBuf, examples: PathBuf) -> Result<Self> {
        let began = Instant::now();
        println!("two nodes, a switch, a router and an outside host as namespaces; Open vSwitch on each node");
        let lab = Lab::start(&Options { exe, nodes: 2 })?;
        crate::run::remove_on_signal(lab.dir())?;
        println!("  [{:5.1} s] the standalone API, the controller, an agent per node", began.elapsed().as_secs_f32());
        let started = Product::start(&lab);
        let mut product = started.inspect_err(|_| println!("{}", lab.run().tails(12)))?;
        for space in [&lab.router, &lab.outside, &lab.node(1).space, &lab.node(2).space] {
            product.serve_echo(&lab, space)?;
        }
        let cluster = Cluster::new(&product.socket)?;
        Ok(Self { lab, product, cluster, examples, began, wrong: Vec::new() })
    }

    /// As [`Demo::start`], on a real API server.
    ///
    /// # Errors
    /// As there.
    pub fn start_on_kube(exe: PathBuf, examples: PathBuf, deploy: &Path) -> Result<Self> {
        let began = Instant::now();
        let lab = Lab::start(&Options { exe, nodes: 2 })?;
        let started = lab.connect_control().and_then(|address| Product::start_on_kube(&lab, address, deploy));
        let mut product = started.inspect_err(|_| println!("{}", lab.run().tails(12)))?;
        for space in [&lab.router, &lab.outside, &lab.node(1).space, &lab.node(2).space] {
            product.serve_echo(&lab, space)?;
        }
        let kubeconfig = product.kube().context("just started")?.kubeconfig(crate::kube::ADMIN);
        let cluster = Cluster::on_kube(&kubeconfig, &lab.control)?;
        Ok(Self { lab, product, cluster, examples, began, wrong: Vec::new() })
    }

    /// Everything but the end.
    ///
    /// # Errors
    /// Something does not come about at all; rows that are merely wrong are kept for [`Demo::verdict`].
    pub fn show(&mut self) -> Result<()> {
        self.bring_up_bridge()?;
        self.bring_up_networks()?;
        self.bring_up_pods()?;
        let pods = self.pods()?;
        self.tables()?;
        self.matrix("pods with one NIC on br1 (172.18.0.0/16)", &pods, ["test-app", "neighbour"], "172.18.0.1")?;
        self.matrix("pods with net1 by macvlan on ens192 (10.6.0.0/16)", &pods, ["nginx", "nginx-net1"], "10.6.0.1")?;
        self.routes(&pods)?;
        self.oracle()?;
        self.product.check()
    }

    fn step(&self, text: &str) {
        println!("  [{:5.1} s] {text}", self.began.elapsed().as_secs_f32());
    }

    fn wait<T>(&mut self, what: &str, mut ask: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        self.product.check()?;
        let this = &*self;
        let answer = wait_until(what, PATIENCE, || ask(this))?;
        self.step(what);
        Ok(answer)
    }

    fn example(&self, folder: &str, files: &[&str]) -> Result<()> {
        let files: Vec<PathBuf> = files.iter().map(|f| self.examples.join(folder).join(f)).collect();
        for line in self.cluster.apply(&files)? {
            self.step(&line);
        }
        Ok(())
    }

    /// The Bridge, the label, and the address that a person puts on the new bridge.
    fn bring_up_bridge(&mut self) -> Result<()> {
        self.wait("both nodes are Ready", |d| {
            let nodes = d.cluster.list(NODES)?;
            ensure!(nodes.len() == 2, "{} nodes are registered", nodes.len());
            Ok(())
        })?;
        self.example("underlay-ovs", &["00-bridge.yaml"])?;
        for node in ["n1", "n2"] {
            self.cluster.label_node(node, "bridge.mooring.dev/br1", Some("enabled"))?;
            self.step(&format!("node {node} labelled bridge.mooring.dev/br1=enabled"));
        }
        self.wait("br1 is on both nodes, with label and resource", |d| {
            for node in ["n1", "n2"] {
                let object = d.cluster.get(NODES, None, node)?;
                let network = || d.cluster.get(NODE_NETWORKS, None, node).map(|n| text(&n, "/status")).unwrap_or_default();
                let label = text(&object, "/metadata/labels/ready.mooring.dev~1br1");
                ensure!(label == "true", "{node} has no label ready.mooring.dev/br1=true; its NodeNetwork: {}", network());
                let resource = text(&object, "/status/capacity/ovs-cni.network.kubevirt.io~1br1");
                ensure!(!resource.is_empty(), "{node} has no resource ovs-cni.network.kubevirt.io/br1");
            }
            Ok(())
        })?;
        for node in &self.lab.nodes {
            let address = format!("{}/16", node.bridge_address());
            node.space.ip_batch(&format!("addr add {address} dev br1\nlink set br1 up\n"))?;
            self.step(&format!("{}: ip addr add {address} dev br1", node.name()));
        }
        Ok(())
    }

    fn bring_up_networks(&mut self) -> Result<()> {
        self.example("macvlan-second-nic", &["00-coordinator.yaml", "10-ippool.yaml", "20-network.yaml"])?;
        self.example("underlay-ovs", &["10-ippool.yaml", "20-network.yaml"])?;
        self.wait("SpiderCoordinator default is Synced", |d| {
            let status = d.cluster.get(COORDINATORS, None, "default")?.pointer("/status").cloned().unwrap_or_default();
            ensure!(text(&status, "/phase") == "Synced", "its status: {status}");
            ensure!(text(&status, "/overlayPodCIDR") == "[\"10.244.0.0/16\"]", "its status: {status}");
            ensure!(text(&status, "/serviceCIDR") == "[\"10.233.0.0/18\"]", "its status: {status}");
            Ok(())
        })?;
        self.wait("both NetworkAttachmentDefinitions are there", |d| {
            for (namespace, name) in [("default", "macvlan-ens192"), ("kube-system", "ovs-conf")] {
                d.cluster.get(NADS, Some(namespace), name)?;
            }
            Ok(())
        })
    }

    fn bring_up_pods(&mut self) -> Result<()> {
        self.example("underlay-ovs", &["30-test-app.yaml", "40-neighbour.yaml"])?;
        self.example("macvlan-second-nic", &["30-nginx.yaml", "40-nginx-default-route-net1.yaml"])?;
        self.wait("all eight pods run", |d| APPS.iter().try_for_each(|app| d.cluster.running(app, 2).map(|_| ())))?;
        self.wait("every pod has its SpiderEndpoint, and the pools count them", |d| {
            for (pool, count) in [("ippool-test", "4"), ("10-6-v4", "4")] {
                let pool = d.cluster.get(POOLS, None, pool)?;
                let allocated = text(&pool, "/status/allocatedIPCount");
                ensure!(allocated == count, "pool {} counts {allocated}", text(&pool, "/metadata/name"));
            }
            let endpoints = d.cluster.list(ENDPOINTS)?.len();
            ensure!(endpoints == 8, "{endpoints} SpiderEndpoints exist");
            Ok(())
        })
    }

    /// Joins the API's pods and endpoints with the runtime's record of sandboxes on the nodes.
    fn pods(&self) -> Result<Vec<Pod>> {
        let mut sandboxes = Vec::new();
        for (index, node) in self.lab.nodes.iter().enumerate() {
            let records = node.space.run("sh", &["-c", "cat /var/lib/cni/results/*-eth0"])?;
            for record in serde_json::Deserializer::from_str(&records).into_iter::<Value>() {
                let record = record.context("unreadable record of a sandbox")?;
                let args = record["cniArgs"].as_array().cloned().unwrap_or_default();
                let name = args.iter().find(|a| a[0] == "K8S_POD_NAME").map(|a| text(&a[1], "")).unwrap_or_default();
                sandboxes.push((name, index, text(&record, "/netns")));
            }
        }
        let mut pods = Vec::new();
        for endpoint in self.cluster.list(ENDPOINTS)? {
            let name = text(&endpoint, "/metadata/name");
            let Some((_, node, netns)) = sandboxes.iter().find(|s| s.0 == name) else { bail!("{name} has no sandbox") };
            let address = text(&endpoint, "/status/current/ips/0/ipv4");
            let address = address.split('/').next().unwrap_or_default();
            let address = address.parse().with_context(|| format!("{name}: ipv4 of its SpiderEndpoint is {address:?}"))?;
            let app = APPS.iter().filter(|app| name.starts_with(&format!("{app}-"))).max_by_key(|app| app.len());
            let app = app.context("a pod of no Deployment")?.to_string();
            pods.push(Pod { name, app, node: *node, netns: netns.clone(), address });
        }
        Ok(pods)
    }

    fn tables(&mut self) -> Result<()> {
        println!("\n# on n1: ovs-vsctl show");
        let show = self.lab.node(1).space.run("ovs-vsctl", &["--timeout=10", "show"])?;
        print!("{show}");
        let ports = show.matches("Port ").count();
        // br1 itself, the uplink, and one for each of the node's two pods.
        self.right("ovs-vsctl show: br1 has eth0 and two pods", show.contains("Interface eth0") && ports == 4);
        for (title, kind, columns) in [
            ("spiderippool", POOLS, POOL_COLUMNS.as_slice()),
            ("spiderendpoints", ENDPOINTS, ENDPOINT_COLUMNS.as_slice()),
            ("bridges", BRIDGES, &[("READY", "/status/ready"), ("DESIRED", "/status/desired"), ("UPLINK", "/status/uplink")]),
        ] {
            println!("\n# kubectl get {title}");
            print!("{}", self.cluster.table(kind, columns)?);
        }
        println!("\n# kubectl get pods -o wide");
        print!("{}", self.cluster.pods_wide()?);
        for (pool, first, last) in
            [("ippool-test", "172.18.30.131", "172.18.30.140"), ("10-6-v4", "10.6.212.200", "10.6.212.240")]
        {
            let (first, last): (IpAddr, IpAddr) = (first.parse()?, last.parse()?);
            let all: Vec<IpAddr> = self.pods()?.iter().map(|p| p.address).filter(|a| (first..=last).contains(a)).collect();
            let distinct: std::collections::BTreeSet<_> = all.iter().collect();
            self.right(&format!("{pool}: four pods have four addresses of its range"), all.len() == 4 && distinct.len() == 4);
        }
        Ok(())
    }

    fn right(&mut self, what: &str, is: bool) {
        if !is {
            println!("WRONG: {what}");
            self.wrong.push(what.to_owned());
        }
    }

    /// Ping and TCP in every direction of one network. `apps` have one pod on each node.
    fn matrix(&mut self, title: &str, pods: &[Pod], apps: [&str; 2], gateway: &str) -> Result<()> {
        println!("\n# {title}");
        let pod = |app: &str, node: usize| {
            pods.iter().find(|p| p.app == app && p.node == node).with_context(|| format!("{app} has no pod on node {}", node + 1))
        };
        let (first, beside, across) = (pod(apps[0], 0)?, pod(apps[1], 0)?, pod(apps[0], 1)?);
        let node = |index: usize| From { space: &self.lab.nodes[index].space, netns: None };
        let inside = |pod: &Pod| From { netns: None, ..node(pod.node) };
        let outside = From { space: &self.lab.outside, netns: None };
        let own_node: IpAddr = match apps[0] {
            "nginx" => self.lab.node(1).address().parse()?,
            _ => self.lab.node(1).bridge_address().parse()?,
        };
        let mut lines = Vec::new();
        let far: IpAddr = OUTSIDE.0.parse()?;
        lines.push((
            "pod to pod, same node",
            Some(first),
            inside(first),
            beside.address,
            format!("{} -> {}", first.name, beside.name),
        ));
        lines.push((
            "pod to pod, across nodes",
            Some(first),
            inside(first),
            across.address,
            format!("{} -> {}", first.name, across.name),
        ));
        lines.push((
            "pod to pod, back",
            Some(across),
            inside(across),
            beside.address,
            format!("{} -> {}", across.name, beside.name),
        ));
        for to in [first, beside, across] {
            lines.push(("outside to pod", None, outside, to.address, format!("outside {far} -> {}", to.name)));
        }
        for from in [first, beside] {
            lines.push(("pod to gateway", Some(from), inside(from), gateway.parse()?, format!("{} -> {gateway}", from.name)));
            lines.push(("pod to other subnet", Some(from), inside(from), far, format!("{} -> {far}", from.name)));
        }
        for to in [first, beside] {
            lines.push(("node to own pod", None, node(0), to.address, format!("n1 -> {}", to.name)));
            lines.push(("pod to own node", Some(to), inside(to), own_node, format!("{} -> n1 {own_node}", to.name)));
        }
        let mut rows = vec![["", "PING", "TCP 64 KiB", "FROM -> TO"].map(str::to_owned).to_vec()];
        let mut wrong = Vec::new();
        for (what, pod, from, to, who) in lines {
            let from = From { netns: pod.map(|p| p.netns.as_str()), ..from };
            let ping = from.ping(to);
            let tcp = from.tcp(self.lab.exe(), to);
            for (kind, error) in [("ping", ping.as_ref().err()), ("tcp", tcp.as_ref().err())] {
                if let Some(error) = error {
                    wrong.push(format!("{title}: {what}: {who} ({to}): {kind}: {error:#}"));
                }
            }
            let ping = ping.map_or("WRONG".into(), |ms| format!("{ms} ms"));
            let tcp = if tcp.is_ok() { "ok" } else { "WRONG" };
            rows.push(vec![what.into(), ping, tcp.into(), format!("{who} {to}")]);
        }
        print!("{}", aligned(&rows));
        self.wrong.extend(wrong);
        Ok(())
    }

    /// Rules and routes of a pod with two NICs, with and without `default-route-nic`.
    fn routes(&mut self, pods: &[Pod]) -> Result<()> {
        for (app, default) in [("nginx", "eth0"), ("nginx-net1", "net1")] {
            let pod = pods.iter().find(|p| p.app == app && p.node == 0).context("no such pod")?.clone();
            let from = From { space: &self.lab.node(1).space, netns: Some(&pod.netns) };
            println!("\n# {}: the default route is on {default}", pod.name);
            let rules = from.run("ip", &["rule"])?;
            print!("$ ip rule\n{rules}$ ip route\n{}", from.run("ip", &["route"])?);
            for table in tables_of(&rules) {
                print!("$ ip route show table {table}\n{}", from.run("ip", &["route", "show", "table", &table])?);
            }
            let source = pod.address.to_string();
            let node = self.lab.node(1).address();
            let checks: [(&str, &[&str], &str); 7] = [
                ("outside", &[OUTSIDE.0], default),
                ("another pod's eth0", &["10.244.2.2"], "eth0"),
                ("a Service", &["10.233.0.3"], "eth0"),
                ("its own node", &[&node], "eth0"),
                ("net1's own subnet", &["10.6.0.1"], "net1"),
                ("outside, from net1's address", &[OUTSIDE.0, "from", &source], "net1"),
                ("a Service, from net1's address", &["10.233.0.3", "from", &source], "eth0"),
            ];
            let mut rows = Vec::new();
            for (what, args, nic) in checks {
                let answer = from.run("ip", &[&["-j", "route", "get"], args].concat()).unwrap_or_else(|e| format!("{e:#}"));
                let by = serde_json::from_str::<Value>(&answer).map(|v| text(&v, "/0/dev")).unwrap_or(answer);
                let verdict = if by == nic { "ok".to_owned() } else { format!("WRONG, not {nic}") };
                rows.push(vec![format!("ip route get {}", args.join(" ")), what.to_owned(), by.clone(), verdict]);
                if by != nic {
                    self.wrong.push(format!("{}: {what} goes by {by}, not {nic}", pod.name));
                }
            }
            print!("{}", aligned(&rows));
        }
        Ok(())
    }

    /// Deletes pods, networks and bridge, and looks for what is left.
    ///
    /// # Errors
    /// Something does not go away.
    pub fn take_down(&mut self) -> Result<()> {
        println!("\n# all of it is deleted");
        for app in APPS {
            self.cluster.delete(DEPLOYMENTS, app)?;
        }
        self.wait("all pods are gone, and the pools count none", |d| {
            let pods = d.cluster.list(PODS)?.len();
            ensure!(pods == 0, "{pods} pods are left");
            for pool in d.cluster.list(POOLS)? {
                let allocated = text(&pool, "/status/allocatedIPCount");
                ensure!(allocated == "0", "pool {} counts {allocated}", text(&pool, "/metadata/name"));
            }
            Ok(())
        })?;
        self.wait("the nodes have no port, link or network namespace of a pod", |d| {
            for node in &d.lab.nodes {
                let ports = node.space.run("ovs-vsctl", &["--timeout=10", "list-ports", "br1"])?;
                ensure!(ports.trim() == "eth0", "{}: br1 has the ports {ports:?}", node.name());
                let links: Value = serde_json::from_str(&node.space.run("ip", &["-j", "link"])?)?;
                let expected = ["lo", "ens192", "eth0", "br1", "ovs-netdev", "ovs-system"];
                let names = links.as_array().into_iter().flatten().map(|l| text(l, "/ifname"));
                let extra: Vec<String> = names.filter(|n| !expected.contains(&n.as_str())).collect();
                ensure!(extra.is_empty(), "{}: links {extra:?} are left", node.name());
                let netns = node.space.run("ip", &["netns", "list"])?;
                ensure!(netns.trim().is_empty(), "{}: namespaces {netns:?} are left", node.name());
            }
            Ok(())
        })?;
        self.cluster.delete(BRIDGES, "br1")?;
        self.wait("br1 is gone from both nodes", |d| {
            for node in &d.lab.nodes {
                let bridges = node.space.run("ovs-vsctl", &["--timeout=10", "list-br"])?;
                ensure!(bridges.trim().is_empty(), "{} has {bridges:?}", node.name());
            }
            Ok(())
        })?;
        self.oracle()?;
        self.product.check()
    }

    /// A program that shares no code with the product looks at all of it.
    fn oracle(&self) -> Result<()> {
        crate::oracle::silent(&self.lab, &self.product)?;
        self.step("the leak oracle finds nothing duplicate, leaked or stale");
        Ok(())
    }

    /// How many rows were wrong.
    ///
    /// # Errors
    /// Any was.
    pub fn verdict(&self) -> Result<()> {
        let seconds = self.began.elapsed().as_secs_f32();
        if self.wrong.is_empty() {
            println!("\neverything is right, after {seconds:.1} s");
            return Ok(());
        }
        println!();
        for wrong in &self.wrong {
            println!("WRONG: {wrong}");
        }
        bail!("{} rows are wrong, after {seconds:.1} s", self.wrong.len())
    }

    fn keep(self) -> Result<()> {
        self.verdict()?;
        let exe = self.lab.exe().display().to_string();
        println!("\nleft running; try:");
        for (what, space) in [("n1", &self.lab.node(1).space), ("n2", &self.lab.node(2).space), ("outside", &self.lab.outside)] {
            println!("  nsenter -t {} -a            # a shell on {what}", space.pid());
        }
        let pid = self.lab.node(1).space.pid();
        println!("  nsenter -t {pid} -a ovs-vsctl show");
        println!("  nsenter -t {pid} -a ip netns list");
        if let Some(pod) = self.pods()?.iter().find(|p| p.node == 0) {
            let name = pod.netns.trim_start_matches("/run/netns/");
            println!("  nsenter -t {pid} -a ip netns exec {name} ping -c1 {}      # from {}", OUTSIDE.0, pod.name);
        }
        let mooring = self.lab.exe().with_file_name("mooring");
        println!("  {} --api-socket {} show", mooring.display(), self.product.socket.display());
        println!("  ls {}/logs", self.lab.dir().display());
        println!("  {exe} clean              # remove it all");
        self.lab.keep()
    }
}

/// The tables that rules name, but the kernel's own and main.
fn tables_of(rules: &str) -> Vec<String> {
    let mut tables: Vec<String> = Vec::new();
    for line in rules.lines() {
        let Some(table) = line.split("lookup ").nth(1).and_then(|t| t.split_whitespace().next()) else { continue };
        if !["local", "main", "default"].contains(&table) && !tables.iter().any(|t| t == table) {
            tables.push(table.to_owned());
        }
    }
    tables
}

/// `kubectl scale deployment APP --replicas N`
///
/// # Errors
/// There is no such Deployment.
pub fn scale(cluster: &Cluster, app: &str, replicas: u32) -> Result<()> {
    cluster.patch(DEPLOYMENTS, app, &json!({"spec": {"replicas": replicas}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_those_that_rules_name() {
        let rules = "0:\tfrom all lookup local\n32762:\tfrom 10.6.212.202 lookup 101\n32763:\tfrom all lookup 101\n32766:\tfrom all lookup main\n";
        assert_eq!(tables_of(rules), ["101"]);
    }
}
