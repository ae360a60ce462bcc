//! What users and accidents do beyond the demo: a bridge made by hand, drift, a label taken away, an agent that dies, bad
//! pods, fixed addresses, both families. Everything is judged by foreign tools.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::cluster::{BRIDGES, EVENTS, LEASES, NODES, PODS, POOLS, text};
use integration_tests::lab::OUTSIDE;
use integration_tests::product::{From, program, wait_until};
use integration_tests::world::World as Started;
use serde_json::Value;

/// For what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// As the example's pods name their pool.
const POOL: &str = ", ipam.spidernet.io/ippool: '{\"ipv4\": [\"ippool-test\"]}'";

struct World(Started);

impl Deref for World {
    type Target = Started;

    fn deref(&self) -> &Started {
        &self.0
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Started {
        &mut self.0
    }
}

impl World {
    fn start() -> Self {
        Self(Started::start(Path::new(env!("CARGO_BIN_EXE_mooring-lab")), 2, PATIENCE).unwrap())
    }

    fn wait<T>(&self, what: &str, mut ask: impl FnMut(&Self) -> Result<T>) -> T {
        self.0.wait(what, || ask(self))
    }

    fn example(&self, files: &[&str]) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/underlay-ovs");
        self.cluster.apply(&files.iter().map(|f| dir.join(f)).collect::<Vec<_>>()).unwrap();
    }

    /// The example's Bridge, on these nodes, ready.
    fn bridge(&self, nodes: &[&str]) {
        self.example(&["00-bridge.yaml"]);
        for node in nodes {
            self.cluster.label_node(node, "bridge.mooring.dev/br1", Some("enabled")).unwrap();
        }
        for node in nodes {
            self.bridge_ready(node);
        }
    }

    fn vsctl(&self, node: usize, args: &[&str]) -> String {
        self.0.vsctl(node, args).unwrap()
    }

    /// A pod on the example's network with an address of its pool, and with more annotations.
    fn pod(&self, name: &str, node: &str, annotations: &str) {
        let yaml = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default, annotations: {{\
             v1.multus-cni.io/default-network: kube-system/ovs-conf{annotations}}}}}, \
             spec: {{nodeName: {node}, containers: [{{name: c, image: c}}]}}}}"
        );
        self.cluster.apply_text(&yaml).unwrap();
    }

    fn running(&self, name: &str) -> Value {
        self.wait(&format!("{name} runs"), |w| {
            let pod = w.cluster.get(PODS, Some("default"), name)?;
            ensure!(text(&pod, "/status/phase") == "Running", "{}", w.warning(name));
            Ok(pod)
        })
    }

    /// The newest warning about a pod.
    fn warning(&self, name: &str) -> String {
        let mut events = self.cluster.list(EVENTS).unwrap();
        events.retain(|e| text(e, "/involvedObject/name") == name && text(e, "/reason") == "FailedCreatePodSandBox");
        events.sort_by_key(|e| text(e, "/lastTimestamp"));
        events.last().map(|e| text(e, "/message")).unwrap_or_default()
    }

    fn netns(&self, node: usize, name: &str) -> String {
        self.0.netns(node, name).unwrap()
    }

    fn delete_pods(&self) {
        for pod in self.cluster.list(PODS).unwrap() {
            self.cluster.delete(PODS, &text(&pod, "/metadata/name")).unwrap();
        }
        self.wait("no pods", |w| {
            ensure!(w.cluster.list(PODS)?.is_empty(), "pods are left");
            Ok(())
        });
    }

    /// Nothing of a pod is on the node.
    fn bare(&self, node: usize) -> Result<()> {
        let links: Value = serde_json::from_str(&self.lab.node(node).space.run("ip", &["-j", "link"])?)?;
        let names: Vec<String> = links.as_array().unwrap().iter().map(|l| text(l, "/ifname")).collect();
        let known = ["lo", "ens192", "eth0", "br1", "ovs-netdev", "ovs-system"];
        ensure!(names.iter().all(|n| known.contains(&n.as_str())), "links: {names:?}");
        let ports = self.vsctl(node, &["list-ports", "br1"]);
        ensure!(ports == "eth0", "ports: {ports}");
        Ok(())
    }
}

#[test]
fn a_bridge_made_by_hand_is_adopted_and_stays_when_the_object_goes() {
    let world = World::start();
    let make = ["add-br", "br1", "--", "set", "bridge", "br1", "datapath_type=netdev", "--", "add-port", "br1", "eth0"];
    world.vsctl(1, &make);
    let uuid = world.vsctl(1, &["get", "bridge", "br1", "_uuid"]);
    world.bridge(&["n1"]);
    assert_eq!(world.vsctl(1, &["get", "bridge", "br1", "_uuid"]), uuid);
    assert_eq!(world.vsctl(1, &["list-ports", "br1"]), "eth0");
    world.cluster.delete(BRIDGES, "br1").unwrap();
    world.wait("label gone", |w| {
        let node = w.cluster.get(NODES, None, "n1")?;
        ensure!(text(&node, "/metadata/labels/ready.mooring.dev~1br1").is_empty(), "n1 still says ready");
        Ok(())
    });
    assert_eq!(world.vsctl(1, &["get", "bridge", "br1", "_uuid"]), uuid);
    assert_eq!(world.vsctl(1, &["list-ports", "br1"]), "eth0");
}

#[test]
fn an_uplink_that_somebody_removes_comes_back() {
    let world = World::start();
    world.bridge(&["n1"]);
    world.vsctl(1, &["del-port", "br1", "eth0"]);
    world.wait("eth0 is back", |w| {
        ensure!(w.vsctl(1, &["list-ports", "br1"]) == "eth0", "no eth0");
        Ok(())
    });
}

#[test]
fn a_label_taken_away_leaves_the_bridge_until_its_pods_are_gone() {
    let world = World::start();
    world.bridge(&["n1"]);
    world.example(&["10-ippool.yaml", "20-network.yaml"]);
    world.pod("a", "n1", POOL);
    world.running("a");
    world.cluster.label_node("n1", "bridge.mooring.dev/br1", None).unwrap();
    world.wait("in use", |w| w.cluster.condition(BRIDGES, "br1", "InUse"));
    assert_eq!(world.vsctl(1, &["list-br"]), "br1");
    From { space: &world.lab.node(1).space, netns: Some(&world.netns(1, "a")) }.ping("172.18.0.1".parse().unwrap()).unwrap();
    world.delete_pods();
    world.wait("br1 gone", |w| {
        ensure!(w.vsctl(1, &["list-br"]).is_empty(), "br1 is there");
        Ok(())
    });
}

#[test]
fn pods_survive_the_death_of_the_agent_and_its_next_life_cleans_up() {
    let mut world = World::start();
    world.bridge(&["n1"]);
    world.example(&["10-ippool.yaml", "20-network.yaml"]);
    world.pod("a", "n1", POOL);
    world.running("a");
    world.take_agent(1).unwrap().kill().unwrap();
    let netns = world.netns(1, "a");
    From { space: &world.lab.node(1).space, netns: Some(&netns) }.ping("172.18.0.1".parse().unwrap()).unwrap();
    world.pod("b", "n1", POOL);
    world.wait("b is refused", |w| {
        ensure!(w.warning("b").contains("Failed to create pod sandbox"), "no warning yet");
        Ok(())
    });
    world.start_agent(1).unwrap();
    world.running("b");
    From { space: &world.lab.node(1).space, netns: Some(&netns) }.ping("172.18.0.1".parse().unwrap()).unwrap();
    world.delete_pods();
    world.wait("bare", |w| w.bare(1));
}

#[test]
fn a_pod_that_names_no_pool_that_is_says_so_and_leaves_nothing_until_the_pool_is_there() {
    let world = World::start();
    world.bridge(&["n1"]);
    world.example(&["20-network.yaml"]);
    world.pod("a", "n1", POOL);
    world.wait("a warning that names the pool", |w| {
        let warning = w.warning("a");
        ensure!(warning.contains("ippool-test"), "warning: {warning}");
        Ok(())
    });
    world.wait("bare", |w| w.bare(1));
    world.example(&["10-ippool.yaml"]);
    world.running("a");
}

#[test]
fn a_fixed_address_is_the_one_that_was_asked_for_also_on_another_node() {
    let world = World::start();
    world.bridge(&["n1", "n2"]);
    world.example(&["10-ippool.yaml", "20-network.yaml"]);
    for node in ["n1", "n2"] {
        world.pod("fixed", node, &format!("{POOL}, mooring.dev/ips: 172.18.30.135"));
        let pod = world.running("fixed");
        assert_eq!(text(&pod, "/status/podIP"), "172.18.30.135", "on {node}");
        From { space: &world.lab.outside, netns: None }.ping("172.18.30.135".parse().unwrap()).unwrap();
        world.delete_pods();
    }
}

#[test]
fn a_dual_stack_pod_is_reached_in_both_families() {
    let world = World::start();
    world.bridge(&["n1", "n2"]);
    world.example(&["10-ippool.yaml", "20-network.yaml"]);
    let pool = "{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {name: pool6}, \
                spec: {ipVersion: 6, subnet: 'fd00:172:18::/64', ips: ['fd00:172:18::100-fd00:172:18::110'], gateway: 'fd00:172:18::1'}}";
    world.cluster.apply_text(pool).unwrap();
    let both = ", ipam.spidernet.io/ippool: '{\"ipv4\": [\"ippool-test\"], \"ipv6\": [\"pool6\"]}'";
    for (name, node) in [("a", "n1"), ("b", "n2")] {
        world.pod(name, node, both);
    }
    let ips: Vec<String> = ["a", "b"]
        .iter()
        .flat_map(|name| {
            let pod = world.running(name);
            [text(&pod, "/status/podIPs/0/ip"), text(&pod, "/status/podIPs/1/ip")]
        })
        .collect();
    assert!(ips[1].starts_with("fd00:172:18::1") && ips[3].starts_with("fd00:172:18::1"), "{ips:?}");
    let inside = world.netns(1, "a");
    let from = From { space: &world.lab.node(1).space, netns: Some(&inside) };
    for to in [ips[2].as_str(), ips[3].as_str(), OUTSIDE.0, OUTSIDE.1] {
        from.ping(to.parse().unwrap()).unwrap_or_else(|e| panic!("{to}: {e:#}"));
    }
    for to in &ips[2..] {
        from.tcp(world.lab.exe(), to.parse().unwrap()).unwrap();
    }
    for to in &ips {
        let outside = From { space: &world.lab.outside, netns: None };
        outside.ping(to.parse().unwrap()).unwrap();
        outside.tcp(world.lab.exe(), to.parse().unwrap()).unwrap();
    }
}

#[test]
fn a_deleted_nodes_addresses_are_asked_for_and_released_when_it_is_declared_dead() {
    let mut world = World::start();
    world.bridge(&["n1", "n2"]);
    world.example(&["10-ippool.yaml", "20-network.yaml"]);
    world.pod("here", "n1", POOL);
    world.running("here");
    world.pod("there", "n2", &format!("{POOL}, mooring.dev/ips: 172.18.30.135"));
    world.running("there");
    let there = world.netns(2, "there");
    let link: Value = serde_json::from_str(
        &world.lab.node(2).space.run("nsenter", &[&format!("--net={there}"), "ip", "-j", "link", "show", "eth0"]).unwrap(),
    )
    .unwrap();
    let mac = text(&link, "/0/address");
    // Cut off, not dead: nobody answers for the node any more, its pod runs on.
    world.take_agent(2).unwrap().kill().unwrap();
    world.cluster.delete(NODES, "n2").unwrap();
    let lease = "default.v4-172-18-30-135";
    let sighting = |w: &World| text(&w.cluster.get(LEASES, None, lease).unwrap(), "/spec/sighting");
    world.wait("the pod is seen", |w| {
        ensure!(sighting(w).contains(&mac), "{}", sighting(w));
        Ok(())
    });
    world.wait("the pool says so", |w| {
        let pool = w.cluster.get(POOLS, None, "ippool-test")?;
        let said = text(&pool, "/status/conditions");
        ensure!(said.contains(&format!("1 are STILL USED (172.18.30.135 by {mac})")), "{said}");
        Ok(())
    });
    let mooring = program(&world.lab, "mooring").unwrap().display().to_string();
    let release = |w: &World| {
        let socket = w.product.socket.display().to_string();
        w.lab.control.run(&mooring, &["--api-socket", &socket, "release", "--node", "n2", "--yes"])
    };
    let refused = format!("{:#}", release(&world).unwrap_err());
    assert!(refused.contains("172.18.30.135 by ") && refused.contains("are still used"), "{refused}");
    // Now it is dead: its pod's NIC goes with the namespace.
    world.lab.node(2).space.run("nsenter", &[&format!("--net={there}"), "ip", "link", "set", "eth0", "down"]).unwrap();
    wait_until("nobody answers", Duration::from_secs(90), || {
        let seen = sighting(&world);
        ensure!(seen.contains("n1") && !seen.contains(&mac), "{seen}");
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", world.lab.run().tails(20)));
    let said = release(&world).unwrap();
    assert!(said.contains("released"), "{said}");
    world.wait("the address is free", |w| {
        let all = w.cluster.list(LEASES)?;
        ensure!(all.iter().all(|l| text(l, "/spec/node") != "n2"), "{all:?}");
        Ok(())
    });
    // The machine is set up anew, under the same name.
    world.cluster.delete(PODS, "there").unwrap();
    world.wait("the dead pod is gone", |w| {
        ensure!(w.cluster.list(PODS)?.len() == 1, "it is there");
        Ok(())
    });
    let node = "{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {bridge.mooring.dev/br1: enabled}}}";
    world.cluster.apply_text(node).unwrap();
    world.start_agent(2).unwrap();
    // The address was kept for the pod, which comes back on another node.
    world.pod("there", "n1", &format!("{POOL}, mooring.dev/ips: 172.18.30.135"));
    let pod = world.running("there");
    assert_eq!(text(&pod, "/status/podIP"), "172.18.30.135");
    From { space: &world.lab.outside, netns: None }.ping("172.18.30.135".parse().unwrap()).unwrap();
    world.delete_pods();
}
