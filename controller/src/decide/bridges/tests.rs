//! Bridges decided on small worlds: nodes, what they were told, what they answered.

use super::*;
use crate::state::Change;
use api::NodeNetwork;
use kube::runtime::watcher::Event;
use serde_json::from_value;

fn now() -> Stamp {
    Stamp("2026-01-01T00:00:00Z".parse().unwrap())
}

/// The API server and the agents, as far as `decide` can tell.
#[derive(Default)]
struct World {
    state: State,
}

impl World {
    fn node(&mut self, name: &str, labels: &[(&str, &str)]) {
        let mut n = self.state.nodes.get(name).cloned().unwrap_or_default();
        n.metadata.name = Some(name.into());
        n.metadata.uid = Some(format!("uid-{name}"));
        n.metadata.labels = Some(labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect());
        self.state.apply(Change::Node(Event::Apply(n)), &mut Default::default());
    }

    fn bridge(&mut self, name: &str, generation: i64, spec: Value) {
        let mut b = Bridge::new(name, from_value(spec).unwrap());
        b.metadata.generation = Some(generation);
        b.metadata.finalizers = Some(vec![keys::FINALIZER.into()]);
        self.state.apply(Change::Bridge(Event::Apply(b)), &mut Default::default());
    }

    fn deleting(&mut self, name: &str) {
        let mut b = self.state.bridges.get(name).unwrap().clone();
        b.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now().0));
        self.state.apply(Change::Bridge(Event::Apply(b)), &mut Default::default());
    }

    /// Decides and carries the writes out the way an API server does.
    fn step(&mut self) -> Vec<Write> {
        let writes = decide(&self.state, &now());
        for w in &writes {
            match (w.kind, &w.op) {
                (Kind::NodeNetwork, Op::Create(v)) => {
                    let mut n: NodeNetwork = from_value(v.clone()).unwrap();
                    n.metadata.generation = Some(1);
                    self.state.apply(Change::NodeNetwork(Event::Apply(n)), &mut Default::default());
                }
                (Kind::NodeNetwork, Op::Patch(v)) => {
                    let mut n = self.state.node_networks.get(&w.name).unwrap().clone();
                    n.spec.bridges = from_value(v["spec"]["bridges"].clone()).unwrap();
                    n.metadata.generation = n.metadata.generation.map(|g| g + 1);
                    self.state.apply(Change::NodeNetwork(Event::Apply(n)), &mut Default::default());
                }
                (Kind::Node, op) => {
                    let mut n = self.state.nodes.get(&w.name).unwrap().clone();
                    let merge = |v: &Value, key: &str, set: &mut dyn FnMut(&str, Option<&str>)| {
                        for (k, v) in v[key].as_object().into_iter().flatten() {
                            set(k, v.as_str());
                        }
                    };
                    match op {
                        Op::Patch(v) => merge(&v["metadata"], "labels", &mut |k, v| {
                            let labels = n.metadata.labels.get_or_insert_default();
                            match v {
                                Some(v) => drop(labels.insert(k.into(), v.into())),
                                None => drop(labels.remove(k)),
                            }
                        }),
                        Op::PatchStatus(v) => merge(&v["status"], "capacity", &mut |k, v| match v {
                            // An API server writes quantities in its own way.
                            Some(v) => drop(n.status.capacity.insert(k.into(), Quantity(v.replace("000", "k")))),
                            None => drop(n.status.capacity.remove(k)),
                        }),
                        other => panic!("{other:?}"),
                    }
                    self.state.apply(Change::Node(Event::Apply(n)), &mut Default::default());
                }
                (Kind::Bridge, Op::PatchStatus(v)) => {
                    let mut b = self.state.bridges.get(&w.name).unwrap().clone();
                    b.status = Some(from_value(v["status"].clone()).unwrap());
                    self.state.apply(Change::Bridge(Event::Apply(b)), &mut Default::default());
                }
                (Kind::Bridge, Op::Patch(v)) => {
                    let mut b = self.state.bridges.get(&w.name).unwrap().clone();
                    b.metadata.finalizers = from_value(v["metadata"]["finalizers"].clone()).unwrap();
                    let gone = b.metadata.deletion_timestamp.is_some() && b.finalizers().is_empty();
                    let e = if gone { Event::Delete(b) } else { Event::Apply(b) };
                    self.state.apply(Change::Bridge(e), &mut Default::default());
                }
                other => panic!("{other:?}"),
            }
        }
        writes
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            if self.step().is_empty() {
                return;
            }
        }
        panic!("it does not settle");
    }

    /// The agent of a node answers for all that it is told.
    fn answer(&mut self, node: &str, phase: BridgePhase) {
        let mut n = self.state.node_networks.get(node).unwrap().clone();
        let bridges = n.spec.bridges.iter().map(|b| BridgeState {
            name: b.name.clone(),
            generation: b.generation,
            phase: if b.remove && phase == BridgePhase::Ready { BridgePhase::Removed } else { phase },
            reason: (phase == BridgePhase::Failed).then(|| "UplinkAbsent".into()),
            message: (phase == BridgePhase::Failed).then(|| "no NIC eth7".into()),
            ..Default::default()
        });
        n.status = Some(api::mooring::NodeNetworkStatus {
            observed_generation: n.metadata.generation,
            bridges: bridges.collect(),
            ..Default::default()
        });
        self.state.apply(Change::NodeNetwork(Event::Apply(n)), &mut Default::default());
    }

    fn told(&self, node: &str) -> Vec<String> {
        self.state.node_networks.get(node).map_or(vec![], |n| {
            n.spec
                .bridges
                .iter()
                .map(|b| {
                    format!(
                        "{}{}{}",
                        b.name,
                        if b.remove { " remove" } else { "" },
                        b.uplink.as_ref().map(|u| format!(" {}", uplink_text(u))).unwrap_or_default()
                    )
                })
                .collect()
        })
    }

    fn status(&self, bridge: &str) -> api::mooring::BridgeStatus {
        self.state.bridges.get(bridge).unwrap().status.clone().unwrap()
    }

    fn condition(&self, bridge: &str, kind: &str) -> (String, String) {
        let c = self.status(bridge).conditions.into_iter().find(|c| c.type_ == kind).unwrap();
        (c.status, c.reason)
    }
}

fn everywhere() -> Value {
    json!({ "nodeSelector": {}, "uplink": { "interface": "eth0" } })
}

#[test]
fn a_label_alone_chooses_the_node_and_its_value_the_uplink() {
    let mut w = World::default();
    w.node("n1", &[("bridge.mooring.dev/br1", "enabled")]);
    w.node("n2", &[("bridge.mooring.dev/br1", "storage")]);
    w.node("n3", &[("bridge.mooring.dev/br1", "ens5")]);
    w.node("n4", &[]);
    w.bridge("br1", 1, json!({ "uplink": { "interface": "eth0" }, "configs": [{ "name": "storage", "uplink": { "mac": "02:00:00:00:00:01" } }] }));
    for _ in 0..4 {
        w.settle();
        for n in ["n1", "n2", "n3", "n4"] {
            w.answer(n, BridgePhase::Ready);
        }
    }
    assert_eq!(w.told("n1"), ["br1 eth0"]);
    assert_eq!(w.told("n2"), ["br1 02:00:00:00:00:01"]);
    assert_eq!(w.told("n3"), ["br1 ens5"]);
    assert!(w.told("n4").is_empty());
}

#[test]
fn nodes_change_one_after_the_other_and_control_planes_last() {
    let mut w = World::default();
    w.node("a-cp", &[("node-role.kubernetes.io/control-plane", "")]);
    w.node("b", &[]);
    w.node("c", &[]);
    w.bridge("br1", 1, everywhere());
    let mut order = Vec::new();
    for _ in 0..4 {
        w.settle();
        let told: Vec<_> = ["a-cp", "b", "c"].into_iter().filter(|n| !w.told(n).is_empty() && !order.contains(n)).collect();
        assert!(told.len() <= 1, "{told:?}");
        for n in told {
            w.answer(n, BridgePhase::Ready);
            order.push(n);
        }
    }
    assert_eq!(order, ["b", "c", "a-cp"]);
    assert_eq!(w.condition("br1", "Available"), ("True".into(), "AllReady".into()));
}

#[test]
fn the_first_failure_stops_the_roll_out() {
    let mut w = World::default();
    w.node("a", &[]);
    w.node("b", &[]);
    w.bridge("br1", 1, everywhere());
    w.settle();
    w.answer("a", BridgePhase::Failed);
    w.settle();
    assert!(w.told("b").is_empty());
    assert_eq!(w.condition("br1", "Degraded"), ("True".into(), "NodesFailed".into()));
    assert_eq!(w.status("br1").nodes[0].message, "no NIC eth7");
    // A new spec is a new try.
    w.bridge("br1", 2, json!({ "nodeSelector": {}, "uplink": { "interface": "eth1" } }));
    w.settle();
    assert_eq!(w.told("a"), ["br1 eth1"]);
}

#[test]
fn ready_nodes_have_label_and_resource_and_lose_them_when_they_are_not() {
    let mut w = World::default();
    w.node("a", &[]);
    w.bridge("br1", 1, everywhere());
    w.settle();
    w.answer("a", BridgePhase::Ready);
    w.settle();
    let node = |w: &World| w.state.nodes.get("a").unwrap().clone();
    assert_eq!(node(&w).metadata.labels.unwrap().get("ready.mooring.dev/br1").map(String::as_str), Some("true"));
    assert_eq!(node(&w).status.capacity["ovs-cni.network.kubevirt.io/br1"].0, "1k");
    // A kubelet that registers anew puts the value to zero: the value is repaired, not only the key.
    let mut zero = node(&w);
    zero.status.capacity.insert("ovs-cni.network.kubevirt.io/br1".into(), Quantity("0".into()));
    w.state.apply(Change::Node(Event::Apply(zero)), &mut Default::default());
    w.settle();
    assert_eq!(node(&w).status.capacity["ovs-cni.network.kubevirt.io/br1"].0, "1k");
    w.answer("a", BridgePhase::Failed);
    w.settle();
    assert!(!node(&w).metadata.labels.unwrap().contains_key("ready.mooring.dev/br1"));
    assert!(node(&w).status.capacity.is_empty());
}

#[test]
fn resources_of_another_marker_are_left_alone() {
    let mut w = World::default();
    let mut n = SlimNode::default();
    n.metadata.name = Some("a".into());
    n.status.capacity.insert("ovs-cni.network.kubevirt.io/br9".into(), Quantity("1k".into()));
    w.state.apply(Change::Node(Event::Apply(n)), &mut Default::default());
    w.settle();
    assert!(w.state.nodes.get("a").unwrap().status.capacity.contains_key("ovs-cni.network.kubevirt.io/br9"));
}

#[test]
fn a_bridge_that_is_deleted_waits_for_its_nodes() {
    let mut w = World::default();
    w.node("a", &[]);
    w.bridge("br1", 1, everywhere());
    w.settle();
    w.answer("a", BridgePhase::Ready);
    w.settle();
    w.deleting("br1");
    w.settle();
    assert_eq!(w.told("a"), ["br1 remove eth0"]);
    w.answer("a", BridgePhase::InUse);
    w.settle();
    assert_eq!(w.condition("br1", "InUse"), ("True".into(), "HasAttachments".into()));
    w.answer("a", BridgePhase::Ready);
    w.settle();
    assert!(w.told("a").is_empty());
    assert!(w.state.bridges.get("br1").is_none());
    assert!(!w.state.nodes.get("a").unwrap().metadata.labels.clone().unwrap().contains_key("ready.mooring.dev/br1"));
}

#[test]
fn a_node_whose_label_is_taken_away_gives_the_bridge_up() {
    let mut w = World::default();
    w.node("a", &[("bridge.mooring.dev/br1", "enabled")]);
    w.bridge("br1", 1, json!({ "uplink": { "interface": "eth0" } }));
    w.settle();
    w.answer("a", BridgePhase::Ready);
    w.settle();
    w.node("a", &[]);
    w.settle();
    assert_eq!(w.told("a"), ["br1 remove eth0"]);
    w.answer("a", BridgePhase::Ready);
    w.settle();
    assert!(w.told("a").is_empty());
}

#[test]
fn a_bridge_that_chooses_no_node_says_so() {
    let mut w = World::default();
    w.node("a", &[]);
    w.bridge("br1", 1, json!({ "nodeSelector": { "matchLabels": { "no": "where" } }, "uplink": { "interface": "eth0" } }));
    w.settle();
    assert_eq!(w.condition("br1", "Available"), ("False".into(), "NoNodes".into()));
}

#[test]
fn a_label_that_names_neither_config_nor_nic_is_refused_and_breaks_nothing() {
    let mut w = World::default();
    w.node("a", &[("bridge.mooring.dev/br1", "enabled")]);
    w.bridge("br1", 1, json!({ "uplink": { "interface": "eth0" } }));
    w.settle();
    w.answer("a", BridgePhase::Ready);
    w.settle();
    w.node("a", &[("bridge.mooring.dev/br1", "a-name-of-more-than-15-bytes")]);
    w.settle();
    assert_eq!(w.told("a"), ["br1 eth0"]);
    let s = w.status("br1");
    assert_eq!(s.nodes[0].reason, "LabelInvalid");
    assert!(s.nodes[0].message.contains("a-name-of-more-than-15-bytes"), "{}", s.nodes[0].message);
}

#[test]
fn a_paused_bridge_tells_nobody_anything_new() {
    let mut w = World::default();
    w.node("a", &[]);
    w.bridge("br1", 1, everywhere());
    let mut b = w.state.bridges.get("br1").unwrap().clone();
    b.annotations_mut().insert(keys::PAUSED.into(), "true".into());
    w.state.apply(Change::Bridge(Event::Apply(b)), &mut Default::default());
    w.settle();
    assert!(w.told("a").is_empty());
}

#[test]
fn quantities_are_compared_as_numbers() {
    let q = |s: &str| quantity(&Quantity(s.into()));
    assert_eq!((q("1000"), q("1k"), q("0"), q("2M")), (Some(1000), Some(1000), Some(0), Some(2_000_000)));
    assert_eq!((q("1500m"), q("1Ki"), q("")), (None, None, None));
}
