//! The stand-ins for kubelet, runtime and Deployment controller with Debian's plugins alone: what a pod needs before
//! anything of the product is in its way.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use integration_tests::cluster::{Cluster, DEPLOYMENTS, PODS, text};
use integration_tests::demo::scale;
use integration_tests::lab::{Lab, Options};
use integration_tests::product::{From, Product, captured, wait_until};

const APP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: default}
spec:
  replicas: 4
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec: {containers: [{name: app, image: app}]}
";
/// For what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn pods_of_a_deployment_are_spread_reach_each_other_and_leave_nothing() {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab"));
    let lab = Lab::start(&Options { exe, nodes: 2 }).unwrap();
    let mut product = Product::without(&lab).unwrap();
    let cluster = Cluster::new(&product.socket).unwrap();
    wait_until("nodes", PATIENCE, || {
        ensure!(cluster.list(integration_tests::cluster::NODES)?.len() == 2);
        Ok(())
    })
    .unwrap();
    cluster.apply_text(APP).unwrap();
    let pods =
        wait_until("pods", PATIENCE, || cluster.running("app", 4)).unwrap_or_else(|e| panic!("{e:#}\n{}", lab.run().tails(20)));
    for node in ["n1", "n2"] {
        assert_eq!(pods.iter().filter(|p| text(p, "/spec/nodeName") == node).count(), 2, "pods on {node}");
    }

    let netns = lab.node(1).space.run("ip", &["netns", "list"]).unwrap();
    let first = format!("/run/netns/{}", netns.split_whitespace().next().unwrap());
    let from = From { space: &lab.node(1).space, netns: Some(&first) };
    for pod in &pods {
        let to = text(pod, "/status/podIP").parse().unwrap();
        from.ping(to).unwrap();
        from.tcp(lab.exe(), to).unwrap();
    }
    let seen = captured(from, "eth0", &["icmp"], |seen| {
        from.ping("10.6.0.1".parse()?)?;
        seen.until(|text| text.contains("ICMP echo reply"));
        Ok(())
    });
    let seen = seen.unwrap();
    assert!(seen.contains("ICMP echo reply"), "{seen}");

    scale(&cluster, "app", 1).unwrap();
    wait_until("one pod", PATIENCE, || {
        let left = cluster.list(PODS)?.len();
        ensure!(left == 1, "{left} pods are left");
        Ok(())
    })
    .unwrap();
    cluster.delete(DEPLOYMENTS, "app").unwrap();
    wait_until("no pod", PATIENCE, || {
        ensure!(cluster.list(PODS)?.is_empty(), "pods are left");
        Ok(())
    })
    .unwrap();
    for node in &lab.nodes {
        assert_eq!(node.space.run("ip", &["netns", "list"]).unwrap(), "");
        assert_eq!(node.space.run("sh", &["-c", "ls /var/lib/cni/results"]).unwrap(), "");
        assert_eq!(node.space.run("sh", &["-c", "ls /run/cni-networks/cluster | grep '^10' || true"]).unwrap(), "");
        let links = node.space.run("ip", &["-br", "link"]).unwrap();
        assert!(!links.contains("veth"), "{links}");
    }
    integration_tests::oracle::silent(&lab, &product).unwrap();
    product.check().unwrap();
}
