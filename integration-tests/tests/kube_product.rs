//! The product on a real API server, each process under its own account: the controller beside hand-made nodes, and the whole
//! demo with agents, bridges and pods.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::demo::Demo;
use integration_tests::kube::{ADMIN, AGENT, CONTROLLER, Machine};
use integration_tests::product::wait_until;
use serde_json::Value;

/// For what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn exe() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab"))
}

/// A table's cell, or whatever else a JSONPath leads to.
fn field(m: &Machine, what: &[&str], path: &str) -> Result<String> {
    let output = format!("jsonpath={path}");
    m.kubectl(&[&["get"], what, &["-o", &output]].concat())
}

fn until(m: &Machine, what: &str, is: impl Fn() -> Result<bool>) {
    let asked = wait_until(what, PATIENCE, || {
        ensure!(is()?, "not yet");
        Ok(())
    });
    asked.unwrap_or_else(|e| panic!("{e:#}\n{}", m.tails(25)));
}

#[test]
fn the_controller_works_under_its_own_account() {
    let m = Machine::start(&exe(), &root().join("deploy")).unwrap_or_else(|e| panic!("{e:#}"));
    let mut command = Command::new(exe().with_file_name("mooring-controller"));
    let mut controller = m.start_beside("controller", CONTROLLER, &mut command).unwrap();
    let apply = |account: &str, yaml: &str| m.kube.kubectl_with(&m.space, account, &["apply", "-f", "-"], Some(yaml)).unwrap();
    for folder in ["underlay-ovs", "macvlan-second-nic"] {
        m.kubectl(&["apply", "--validate=strict", "-f", &root().join("examples").join(folder).display().to_string()]).unwrap();
    }

    let pool = ["spiderippool", "ippool-test"];
    until(&m, "the pool is counted", || {
        Ok(field(&m, &pool, "{.status.totalIPCount}/{.status.allocatedIPCount}/{.status.ipVersion}")? == "10/0/4")
    });
    until(&m, "the pool has a map", || Ok(field(&m, &["poolmap", "ippool-test"], "{.spec.chunks[0].base}")? == "172.18.30.0"));
    until(&m, "the coordinator is synced", || {
        let said =
            field(&m, &["spidercoordinator", "default"], "{.status.phase} {.status.overlayPodCIDR[0]} {.status.serviceCIDR[0]}")?;
        Ok(said == "Synced 10.244.0.0/16 10.233.0.0/18")
    });
    for (namespace, name, kind) in [("default", "macvlan-ens192", "\"cni-macvlan\""), ("kube-system", "ovs-conf", "\"cni-ovs\"")]
    {
        until(&m, "a network is rendered", || {
            Ok(field(&m, &["net-attach-def", "-n", namespace, name], "{.spec.config}")?.contains(kind))
        });
    }

    // A node comes, and asks for the bridge.
    apply(ADMIN, "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {bridge.mooring.dev/br1: enabled}}}");
    until(&m, "the node has br1 to make", || Ok(field(&m, &["nodenetwork", "n1"], "{.spec.bridges[0].name}")? == "br1"));
    let generation = field(&m, &["nodenetwork", "n1"], "{.metadata.generation} {.spec.bridges[0].generation}").unwrap();
    let (seen, of_bridge) = generation.split_once(' ').unwrap();
    let status = format!(
        "{{\"status\": {{\"observedGeneration\": {seen}, \"bridges\": [{{\"name\": \"br1\", \"phase\": \"Ready\", \"generation\": {of_bridge}}}]}}}}"
    );
    let patch = ["patch", "nodenetwork", "n1", "--subresource=status", "--type=merge", "-p", &status];
    // Not as the agent, who may patch it but not read it by name, as kubectl does first.
    m.kubectl(&patch).unwrap();
    until(&m, "label and resource are on the node", || {
        let node = "{.metadata.labels.ready\\.mooring\\.dev/br1} {.status.capacity.ovs-cni\\.network\\.kubevirt\\.io/br1}";
        Ok(field(&m, &["node", "n1"], node)? == "true 1k")
    });
    until(&m, "the bridge counts its node", || Ok(field(&m, &["bridge", "br1"], "{.status.ready}/{.status.desired}")? == "1/1"));

    // An address is taken and given back; the pool cannot go in between.
    // By hand, in place of an agent.
    apply(
        ADMIN,
        "{apiVersion: mooring.dev/v1alpha1, kind: AddressLease, metadata: {name: default.v4-172-18-30-131}, \
        spec: {pool: ippool-test, address: 172.18.30.131, node: n1, agentID: a, \
        holder: {podNamespace: default, podName: p, interface: eth0, containerID: c}}}",
    );
    until(&m, "the lease is counted", || Ok(field(&m, &pool, "{.status.allocatedIPCount}")? == "1"));
    m.kubectl(&["delete", "spiderippool", "ippool-test", "--wait=false"]).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(field(&m, &pool, "{.metadata.deletionTimestamp}").unwrap().ends_with('Z'), "a pool in use does not go");
    m.kube.kubectl(&m.space, AGENT, &["delete", "addresslease", "default.v4-172-18-30-131"]).unwrap();
    until(&m, "pool and map are gone", || {
        Ok(field(&m, &["spiderippools,poolmaps"], "{.items[*].metadata.name}")? == "10-6-v4 10-6-v4")
    });

    // A node goes, and its NodeNetwork with it, by the collector.
    m.kubectl(&["delete", "node", "n1"]).unwrap();
    until(&m, "the NodeNetwork goes with its node", || Ok(field(&m, &["nodenetworks"], "{.items[*].metadata.name}")?.is_empty()));
    until(&m, "the bridge counts no node", || {
        Ok(matches!(field(&m, &["bridge", "br1"], "{.status.ready}/{.status.desired}")?.as_str(), "0/0" | "/"))
    });
    controller.check().unwrap();
    let log = controller.log();
    assert!(!log.to_lowercase().contains("forbidden"), "{log}");
    assert!(log.contains("all watches are synced"), "{log}");
}

#[test]
fn the_demo_is_right_on_a_real_api_server() {
    let mut demo =
        Demo::start_on_kube(exe(), root().join("examples"), &root().join("deploy")).unwrap_or_else(|e| panic!("{e:#}"));
    let shown = demo.show().and_then(|()| demo.take_down()).and_then(|()| demo.verdict());
    shown.unwrap_or_else(|e| panic!("{e:#}\n{}", demo.lab.run().tails(25)));
    let kube = demo.product.kube().unwrap();
    println!("kube-apiserver was ready after {:.1} s", kube.took.as_secs_f32());
    // Nobody was refused anything that the demo's own checks would not have noticed.
    let logs =
        ["control-controller", "n1-agent", "n2-agent"].map(|name| std::fs::read_to_string(demo.lab.run().log(name)).unwrap());
    for log in &logs {
        assert!(!log.to_lowercase().contains("forbidden"), "{log}");
    }
    let leases: Value =
        serde_json::from_str(&kube.kubectl(&demo.lab.control, ADMIN, &["get", "addressleases", "-o", "json"]).unwrap()).unwrap();
    // Spares and resting addresses stay with their nodes.
    let held = leases["items"].as_array().unwrap().iter().filter(|l| !l["spec"]["holder"].is_null()).count();
    assert_eq!(held, 0, "{leases}");
}
