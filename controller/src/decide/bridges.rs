//! Bridges: which nodes get them next, what each node's NodeNetwork says, what a Bridge's status tells of its nodes, and the
//! nodes' labels and resources. The node's label may choose another uplink; it never moves a node's own address.

use std::collections::{BTreeMap, BTreeSet};

use api::mooring::{BridgeOnNode, BridgePhase, BridgeState, FailedNode, Uplink, bridge::MAX_FAILED_NODES};
use api::{Bridge, NodeNetwork, convert, keys};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use planner::rollout::{self, MaxUnavailable, NodeProgress, Progress};
use serde_json::{Map, Value, json};

use super::Stamp;
use super::conditions::{self, Verdict};
use crate::state::{SlimNode, State};
use crate::write::{Kind, Op, Write, guard};

/// Nodes whose label says so change last (kubeadm's and its older name).
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

pub fn decide(state: &State, now: &Stamp) -> Vec<Write> {
    let nodes: BTreeMap<&str, OnNode> =
        state.nodes.iter().map(|(name, n)| (name.as_str(), OnNode::new(n, state.node_networks.get(name)))).collect();
    let bridges: Vec<Wanted> = state.bridges.values().map(|b| Wanted::new(b, &nodes)).collect();
    let mut out = Vec::new();
    let specs = specs(&bridges, &nodes);
    for (name, node) in &nodes {
        out.extend(node_network(name, node, &specs[name]));
        out.extend(node_marks(name, node, &bridges));
    }
    for w in &bridges {
        out.extend(bridge(w, &nodes, &specs, now));
    }
    out
}

/// A node, what it was told and what it answered.
struct OnNode<'a> {
    node: &'a SlimNode,
    network: Option<&'a NodeNetwork>,
    labels: BTreeMap<String, String>,
}

impl<'a> OnNode<'a> {
    fn new(node: &'a SlimNode, network: Option<&'a NodeNetwork>) -> Self {
        Self { node, network, labels: node.metadata.labels.clone().unwrap_or_default() }
    }

    fn told(&self, bridge: &str) -> Option<&'a BridgeOnNode> {
        self.network?.spec.bridges.iter().find(|b| b.name == bridge)
    }

    /// The agent's answer to what it is told now; none while the answer is still to an older word.
    fn answer(&self, bridge: &str) -> Option<&'a BridgeState> {
        let network = self.network?;
        let status = network.status.as_ref()?;
        if status.observed_generation != network.metadata.generation {
            return None;
        }
        let told = self.told(bridge)?;
        status.bridges.iter().find(|s| s.name == bridge && s.generation == told.generation)
    }

    fn ready(&self, bridge: &str) -> bool {
        self.told(bridge).is_some_and(|t| !t.remove) && self.answer(bridge).is_some_and(|a| a.phase == BridgePhase::Ready)
    }

    fn control_plane(&self) -> bool {
        CONTROL_PLANE.iter().any(|l| self.labels.contains_key(*l))
    }
}

/// A Bridge and the nodes that shall have it.
struct Wanted<'a> {
    bridge: &'a Bridge,
    name: String,
    deleting: bool,
    on: BTreeMap<&'a str, BridgeOnNode>,
    /// Nodes whose label cannot be followed.
    refused: BTreeMap<&'a str, String>,
    /// The Bridge itself cannot be used.
    invalid: Option<String>,
}

impl<'a> Wanted<'a> {
    fn new(bridge: &'a Bridge, nodes: &BTreeMap<&'a str, OnNode<'a>>) -> Self {
        let mut w = Self {
            bridge,
            name: bridge.name_any(),
            deleting: bridge.metadata.deletion_timestamp.is_some(),
            on: BTreeMap::new(),
            refused: BTreeMap::new(),
            invalid: convert::bridge(bridge).err().map(|e| e.to_string()),
        };
        if w.deleting || w.invalid.is_some() {
            return w;
        }
        for (name, node) in nodes {
            match convert::bridge_on_node(bridge, name, &node.labels) {
                Ok(Some(on)) => drop(w.on.insert(name, on)),
                Ok(None) => {}
                Err(e) => drop(w.refused.insert(name, e.to_string())),
            }
        }
        w
    }

    /// An invalid Bridge, a refused label and a paused one leave every node as it is: nothing that works is taken away.
    fn frozen(&self, node: &str, on: &OnNode) -> bool {
        let paused = |a: Option<&BTreeMap<String, String>>| a.is_some_and(|a| a.get(keys::PAUSED).is_some_and(|v| v == "true"));
        self.invalid.is_some()
            || self.refused.contains_key(node)
            || paused(self.bridge.metadata.annotations.as_ref())
            || paused(on.node.metadata.annotations.as_ref())
    }
}

/// The bridges of every node's NodeNetwork as they shall be now.
fn specs<'a>(bridges: &[Wanted<'a>], nodes: &BTreeMap<&'a str, OnNode<'a>>) -> BTreeMap<&'a str, Vec<BridgeOnNode>> {
    let mut specs: BTreeMap<&str, Vec<BridgeOnNode>> = nodes.keys().map(|n| (*n, Vec::new())).collect();
    for w in bridges {
        let next: BTreeSet<String> = next_nodes(w, nodes);
        for (name, on) in nodes {
            let told = on.told(&w.name);
            let entry = match (w.on.get(name), told) {
                _ if w.frozen(name, on) => told.cloned(),
                (Some(want), _) if next.contains(*name) => Some(want.clone()),
                (Some(_), told) => told.cloned(),
                (None, Some(told)) => leaving(w, on, told),
                (None, None) => None,
            };
            specs.entry(name).or_default().extend(entry);
        }
    }
    // Bridges whose object is gone altogether (the finalizer was taken away by hand): the node gives them up.
    let known: BTreeSet<&str> = bridges.iter().map(|w| w.name.as_str()).collect();
    for (name, on) in nodes {
        for told in on.network.iter().flat_map(|n| &n.spec.bridges).filter(|b| !known.contains(b.name.as_str())) {
            let done = on.answer(&told.name).is_some_and(|a| a.phase == BridgePhase::Removed);
            if !(told.remove && done) {
                specs.entry(name).or_default().push(BridgeOnNode { remove: true, ..told.clone() });
            }
        }
    }
    for list in specs.values_mut() {
        list.sort_by(|a, b| a.name.cmp(&b.name));
    }
    specs
}

/// A node that shall no longer have the bridge is told to remove it, and forgets it when it says that it has.
fn leaving(w: &Wanted, on: &OnNode, told: &BridgeOnNode) -> Option<BridgeOnNode> {
    let done = told.remove && on.answer(&w.name).is_some_and(|a| a.phase == BridgePhase::Removed);
    (!done).then(|| BridgeOnNode { remove: true, deletion_policy: w.bridge.spec.deletion_policy, ..told.clone() })
}

/// Nodes that are told of the present spec, and those that may be told now.
fn next_nodes(w: &Wanted, nodes: &BTreeMap<&str, OnNode>) -> BTreeSet<String> {
    let progress: Vec<NodeProgress> =
        w.on.iter()
            .map(|(name, want)| {
                let on = &nodes[name];
                let told = on.told(&w.name) == Some(want);
                let answer = on.answer(&w.name).filter(|_| told).map(|a| a.phase);
                NodeProgress {
                    name: (*name).to_owned(),
                    control_plane: on.control_plane(),
                    progress: match (told, answer) {
                        _ if w.frozen(name, on) => Progress::Paused,
                        (false, _) => Progress::Pending,
                        (true, Some(BridgePhase::Ready)) => Progress::Done,
                        (true, Some(BridgePhase::Failed)) => Progress::Failed,
                        (true, _) => Progress::Changing,
                    },
                }
            })
            .collect();
    let mut next: BTreeSet<String> = rollout::next(&progress, MaxUnavailable::default()).start.into_iter().collect();
    next.extend(progress.into_iter().filter(|n| n.progress != Progress::Pending).map(|n| n.name));
    next
}

fn node_network(name: &str, on: &OnNode, bridges: &[BridgeOnNode]) -> Option<Write> {
    let op = match on.network {
        None => Op::Create(json!({
            "apiVersion": "mooring.dev/v1alpha1",
            "kind": "NodeNetwork",
            "metadata": {
                "name": name,
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": on.node.metadata.uid }],
            },
            "spec": { "bridges": bridges },
        })),
        Some(have) if have.spec.bridges != bridges => {
            Op::Patch(json!({ "metadata": guard(have), "spec": { "bridges": bridges } }))
        }
        Some(_) => return None,
    };
    Some(Write { kind: Kind::NodeNetwork, namespace: None, name: name.to_owned(), op })
}

/// The label and the resource of every bridge, set where it is ready, taken away where it is not. Values are compared, not
/// only keys: a kubelet that registers anew puts the resource back to zero. A resource without our label is another's.
fn node_marks(name: &str, on: &OnNode, bridges: &[Wanted]) -> Vec<Write> {
    let mut labels = Map::new();
    let mut capacity = Map::new();
    for w in bridges {
        let ready = on.ready(&w.name);
        let label = format!("{}{}", keys::READY_LABEL_PREFIX, w.name);
        let resource = format!("{}{}", keys::BRIDGE_RESOURCE_PREFIX, w.name);
        let has_label = on.labels.get(&label).is_some_and(|v| v == "true");
        let offered = ready && w.bridge.spec.resource.enabled;
        let amount = on.node.status.capacity.get(&resource);
        if offered && amount.is_none_or(|q| quantity(q) != Some(w.bridge.spec.resource.capacity)) {
            capacity.insert(resource, Value::String(w.bridge.spec.resource.capacity.to_string()));
        } else if !offered && has_label && amount.is_some() {
            capacity.insert(resource, Value::Null);
        }
        if ready && !has_label {
            labels.insert(label, "true".into());
        } else if !ready && on.labels.contains_key(&label) {
            labels.insert(label, Value::Null);
        }
    }
    // Labels of Bridges that are no more.
    let known: BTreeSet<&str> = bridges.iter().map(|w| w.name.as_str()).collect();
    for (label, bridge) in on.labels.keys().filter_map(|l| Some((l, l.strip_prefix(keys::READY_LABEL_PREFIX)?))) {
        if !known.contains(bridge) {
            labels.insert(label.clone(), Value::Null);
            let resource = format!("{}{bridge}", keys::BRIDGE_RESOURCE_PREFIX);
            if on.node.status.capacity.contains_key(&resource) {
                capacity.insert(resource, Value::Null);
            }
        }
    }
    let write = |op| Write { kind: Kind::Node, namespace: None, name: name.to_owned(), op };
    let mut out = Vec::new();
    // The resource first: without the label we would not take it away again after a crash between the two.
    let label_first = labels.values().any(|v| !v.is_null());
    if !capacity.is_empty() {
        out.push(write(Op::PatchStatus(json!({ "status": { "capacity": capacity } }))));
    }
    if !labels.is_empty() {
        let w = write(Op::Patch(json!({ "metadata": { "labels": labels } })));
        if label_first { out.insert(0, w) } else { out.push(w) }
    }
    out
}

/// A whole number as the API writes it: `1000` reads back as `1k`. None for what is no whole number.
fn quantity(q: &Quantity) -> Option<i64> {
    let text = q.0.as_str();
    let (digits, factor) = match text.char_indices().find(|(_, c)| !c.is_ascii_digit()) {
        None => (text, 1),
        Some((i, _)) => {
            let factor = match &text[i..] {
                "k" => 1_000,
                "M" => 1_000_000,
                "G" => 1_000_000_000,
                _ => return None,
            };
            (&text[..i], factor)
        }
    };
    digits.parse::<i64>().ok()?.checked_mul(factor)
}

/// Finalizer and status of a Bridge.
fn bridge(w: &Wanted, nodes: &BTreeMap<&str, OnNode>, specs: &BTreeMap<&str, Vec<BridgeOnNode>>, now: &Stamp) -> Vec<Write> {
    let write = |op| Write { kind: Kind::Bridge, namespace: None, name: w.name.clone(), op };
    let mut out = Vec::new();
    let have = w.bridge.finalizers();
    let held = specs.values().flatten().any(|b| b.name == w.name);
    let ours = have.iter().any(|f| f == keys::FINALIZER);
    if !w.deleting && !ours {
        let mut list = have.to_vec();
        list.push(keys::FINALIZER.to_owned());
        out.push(write(Op::Patch(json!({ "metadata": { "resourceVersion": w.bridge.resource_version(), "finalizers": list } }))));
    } else if w.deleting && ours && !held {
        let list: Vec<_> = have.iter().filter(|f| *f != keys::FINALIZER).collect();
        // With the last finalizer the object goes; its status needs no writing.
        return vec![write(Op::Patch(
            json!({ "metadata": { "resourceVersion": w.bridge.resource_version(), "finalizers": list } }),
        ))];
    }
    let status = status(w, nodes, now);
    if serde_json::to_value(&w.bridge.status).ok() != serde_json::to_value(Some(&status)).ok() {
        // Absent fields are set to null, or a merge patch would keep what was there.
        let mut v = json!(status);
        for (field, empty) in [("nodes", json!([])), ("uplink", Value::Null)] {
            if v.get(field).is_none() {
                v[field] = empty;
            }
        }
        // Not guarded by the resourceVersion: a finalizer written just before would make it fail, and only we write status.
        out.push(write(Op::PatchStatus(json!({ "status": v }))));
    }
    out
}

fn status(w: &Wanted, nodes: &BTreeMap<&str, OnNode>, now: &Stamp) -> api::mooring::BridgeStatus {
    let mut failed = Vec::new();
    let (mut ready, mut updating, mut in_use) = (0, 0, Vec::new());
    for (name, on) in nodes {
        let wanted = w.on.get(name);
        let answer = on.answer(&w.name);
        if let Some(why) = w.refused.get(name) {
            failed.push(FailedNode { node: (*name).into(), reason: "LabelInvalid".into(), message: why.clone() });
            continue;
        }
        let told = wanted.is_some() && on.told(&w.name) == wanted;
        match answer {
            Some(a) if a.phase == BridgePhase::InUse => in_use.push(*name),
            Some(a) if a.phase == BridgePhase::Failed && (told || wanted.is_none()) => failed.push(FailedNode {
                node: (*name).into(),
                reason: a.reason.clone().unwrap_or_else(|| "Failed".into()),
                message: a.message.clone().unwrap_or_default(),
            }),
            Some(a) if a.phase == BridgePhase::Ready && told => ready += 1,
            _ if wanted.is_some() => updating += 1,
            _ => {}
        }
    }
    let desired = w.on.len() as i32 + w.refused.len() as i32;
    let verdicts = verdicts(w, desired, ready, updating, &failed, &in_use);
    let old = w.bridge.status.clone().unwrap_or_default();
    api::mooring::BridgeStatus {
        observed_generation: w.bridge.metadata.generation,
        desired,
        ready,
        updating,
        failed: failed.len() as i32,
        uplink: w.bridge.spec.uplink.as_ref().map(uplink_text),
        nodes: failed.into_iter().take(MAX_FAILED_NODES).collect(),
        conditions: conditions::with(&old.conditions, &verdicts, w.bridge.metadata.generation, now),
    }
}

fn verdicts(w: &Wanted, desired: i32, ready: i32, updating: i32, failed: &[FailedNode], in_use: &[&str]) -> Vec<Verdict> {
    let counts = format!("{ready} of {desired} nodes have it");
    let available = match (desired, &w.invalid) {
        (_, Some(_)) => Verdict::new("Available", false, "Invalid", counts.clone()),
        (0, None) => Verdict::new(
            "Available",
            false,
            "NoNodes",
            format!(
                "no node is chosen: neither spec.nodeSelector nor a label {}{} matches one",
                keys::BRIDGE_LABEL_PREFIX,
                w.name
            ),
        ),
        _ if ready == desired => Verdict::new("Available", true, "AllReady", counts.clone()),
        _ => Verdict::new("Available", false, "NotAllReady", counts.clone()),
    };
    let degraded = match (&w.invalid, failed.first()) {
        (Some(why), _) => Verdict::new("Degraded", true, "Invalid", why.clone()),
        (None, Some(f)) => Verdict::new(
            "Degraded",
            true,
            "NodesFailed",
            format!("{} nodes failed; {}: {}: {}", failed.len(), f.node, f.reason, f.message),
        ),
        (None, None) => Verdict::new("Degraded", false, "NoFailures", ""),
    };
    let waiting = updating > 0;
    let progressing = match (waiting, failed.is_empty()) {
        (true, true) => Verdict::new("Progressing", true, "RollingOut", format!("{updating} nodes are still to change")),
        (true, false) => Verdict::new(
            "Progressing",
            false,
            "Stopped",
            format!("{updating} nodes are still to change; the roll-out stops at the first failure"),
        ),
        (false, _) => Verdict::new("Progressing", false, "Settled", ""),
    };
    let use_ = if in_use.is_empty() {
        Verdict::new("InUse", false, "NotHeld", "")
    } else {
        Verdict::new(
            "InUse",
            true,
            "HasAttachments",
            format!("pods are attached on {}; it stays there until they are gone", in_use.join(", ")),
        )
    };
    vec![available, degraded, progressing, use_]
}

fn uplink_text(u: &Uplink) -> String {
    match u {
        Uplink { interface: Some(i), .. } => i.clone(),
        Uplink { mac: Some(m), .. } => m.clone(),
        Uplink { can_reach: Some(ip), .. } => format!("to {ip}"),
        Uplink { bond: Some(b), .. } => format!("{} ({})", b.name, b.interfaces.join(",")),
        Uplink { .. } => "default route".to_owned(),
    }
}

#[cfg(test)]
mod tests;
