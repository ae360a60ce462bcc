//! The leak oracle on a real lab: silent where all is right, and a line for each leak that is planted. (Each of its rules by
//! itself is in its own tests.)

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use integration_tests::cluster::{ENDPOINTS, LEASES, POOLS};
use integration_tests::oracle;
use integration_tests::rounds::{Rounds, Up};
use serde_json::json;

/// What is planted, and how it is taken away again: shell lines on n1, where the pod `up-1` is.
const ON_THE_HOST: [(&str, &str, &str); 8] = [
    (
        "leaked link vethleft on n1: its mark",
        "ip link add vethleft type veth peer name other; ip link set vethleft alias mooring:1:0123456789abcdef",
        "ip link del vethleft",
    ),
    (
        "leaked link dummyleft on n1: it leads to no living pod",
        "ip link add dummyleft link ens192 type macvlan mode bridge",
        "ip link del dummyleft",
    ),
    (
        "leaked ovs port left of br1 on n1: its mark",
        "ovs-vsctl --timeout=10 add-port br1 left -- set Interface left type=internal -- set Port left external_ids:mooring-attachment=0123456789abcdef",
        "ovs-vsctl --timeout=10 del-port br1 left",
    ),
    (
        "leaked route to 172.18.40.240 in table 500 on n1",
        "ip route add 172.18.40.240 dev ens192 table 500",
        "ip route del 172.18.40.240 table 500",
    ),
    ("leaked rule 77 on n1", "ip rule add priority 77 from 172.18.40.240 lookup 99", "ip rule del priority 77"),
    (
        "leaked spool file left.json on n1",
        "echo x > /var/lib/mooring/spool/left.json.bad; mv /var/lib/mooring/spool/left.json.bad /var/lib/mooring/spool/.left.json",
        "rm -f /var/lib/mooring/spool/.left.json",
    ),
    ("leaked namespace left on n1", "ip netns add left", "ip netns del left"),
    (
        "leaked neighbour 10.6.213.240 on n1",
        "ip neigh add 10.6.213.240 lladdr 02:00:00:00:00:01 dev ens192",
        "ip neigh del 10.6.213.240 dev ens192",
    ),
];

struct World(Rounds);

impl World {
    /// The oracle says this, and is silent when it is gone.
    fn finds(&self, line: &str, plant: impl FnOnce(&Rounds), remove: impl FnOnce(&Rounds)) {
        plant(&self.0);
        let said = oracle::settled(&self.0.lab, &self.0.product, 2).expect_err(line).to_string();
        assert!(said.contains(line), "{line:?} is not in {said}");
        remove(&self.0);
        oracle::silent(&self.0.lab, &self.0.product).unwrap_or_else(|e| panic!("after {line:?}: {e:#}"));
    }

    fn sh(script: &str) -> impl FnOnce(&Rounds) {
        move |r| drop(r.lab.node(1).space.run("sh", &["-ec", script]).unwrap())
    }

    /// In a pod's namespace on its node.
    fn inside(r: &Rounds, pod: &Up, args: &[&str]) {
        let netns = format!("--net={}", pod.netns);
        r.lab.nodes[pod.node].space.run("nsenter", &[&[netns.as_str(), "ip"], args].concat()).unwrap();
    }
}

#[test]
fn every_kind_of_leak_is_found_where_it_is() {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab"));
    let mut world = World(Rounds::start(exe, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")).unwrap());
    let up = world.0.up().unwrap();
    let pod = |name: &str| up.iter().find(|u| u.name == name).unwrap().clone();
    let (first, second) = (pod("up-1"), pod("up-2"));

    for (line, plant, remove) in ON_THE_HOST {
        let line = line.replace("left.json", if line.contains("spool") { ".left.json" } else { "left.json" });
        world.finds(&line, World::sh(plant), World::sh(remove));
    }

    // A second holder of an address, in a pod and on the wire.
    let taken = format!("{}/16", first.addresses[0].1);
    let line =
        format!("duplicate address {}: eth0 of pod default/up-1 on n1 and eth0 of pod default/up-2 on n2", first.addresses[0].1);
    world.finds(
        &line,
        |r| World::inside(r, &second, &["addr", "add", &taken, "dev", "eth0"]),
        |r| World::inside(r, &second, &["addr", "del", &taken, "dev", "eth0"]),
    );
    // Somebody who is no pod and on no node: only the wire knows.
    let line = format!("duplicate address {} on the wire", first.addresses[0].1);
    let rival = format!("addr {{}} {taken} dev sw172\nlink set sw172 up\n");
    world.finds(
        &line,
        |r| r.lab.switch.ip_batch(&rival.replace("{}", "add")).unwrap(),
        |r| r.lab.switch.ip_batch(&rival.replace("{}", "del")).unwrap(),
    );

    // Words in the API.
    let lease = format!("default.v4-{}", first.addresses[0].1.to_string().replace('.', "-"));
    let holder = world.0.cluster.get(LEASES, None, &lease).unwrap()["spec"]["holder"].clone();
    let held = |to: &str| json!({"spec": {"holder": {"containerID": to}}});
    world.finds(
        &format!("leaked lease {lease}: its holder"),
        |r| r.cluster.patch(LEASES, &lease, &held("dead")).unwrap(),
        |r| r.cluster.patch(LEASES, &lease, &json!({"spec": {"holder": holder}})).unwrap(),
    );
    let orphan = "{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderEndpoint, metadata: {name: left, namespace: default}, spec: {}}";
    world.finds(
        "leaked endpoint default/left",
        |r| drop(r.cluster.apply_text(orphan).unwrap()),
        |r| r.cluster.delete(ENDPOINTS, "left").unwrap(),
    );
    let pool = world.0.cluster.get(POOLS, None, "rounds-172").unwrap();
    assert_eq!(pool["status"]["allocatedIPCount"], 2);

    // The journal of a dead agent forgets a pod.
    let node = &world.0.lab.nodes[0];
    world.0.product.take_agent(node).unwrap().kill().unwrap();
    let journal = "/run/mooring/journal";
    world.finds(
        "stale journal on n1: it does not know",
        World::sh(&format!("mv {journal} {journal}.was; : > {journal}")),
        World::sh(&format!("mv {journal}.was {journal}")),
    );
    world.0.product.start_agent(&world.0.lab, &world.0.lab.nodes[0]).unwrap();
    world.0.settled().unwrap();
}
