//! `NodeNetwork.status`: the one place that writes it. What is written follows from a round of the loop; it is written when
//! it differs from what is there. Knows no host.

use std::collections::BTreeMap;
use std::time::Duration;

use api::mooring::node_network::{MAX_INTERFACES, MAX_PLAN_STEPS};
use api::mooring::{BridgeOnNode, BridgePhase, BridgeState, InterfaceSummary};
use api::spider::CoordinatorPhase;
use api::{Condition, NodeNetwork, SpiderCoordinator};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use model::Owner;
use model::observed::{Link, LinkKind, Observed, OvsBridge};
use planner::node::{BridgePlan, MARK, SET, Verdict};
use serde_json::{Value, json};

/// A round does not wait for an API server that is away; the next one writes it.
const WRITE_WAIT: Duration = Duration::from_secs(5);
/// A summary names the addresses of a NIC up to the CRD's own limit.
const MAX_ADDRESSES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("failed to write the status of nodenetwork {0}")]
    Write(String, #[source] Box<kube::Error>),
    #[error("no answer within {secs} s about the status of nodenetwork {0}", secs = WRITE_WAIT.as_secs())]
    Timeout(String),
}

/// Why a bridge is not as wanted although the planner had a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub reason: String,
    pub message: String,
    /// Worth another try soon.
    pub passing: bool,
}

impl Outcome {
    pub fn failed(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), passing: false }
    }
}

/// What a round found.
#[derive(Debug)]
pub struct Now<'a> {
    pub network: &'a NodeNetwork,
    pub agent_id: &'a str,
    pub plans: &'a [BridgePlan],
    pub failures: &'a BTreeMap<String, Outcome>,
    /// Steps of the last change.
    pub changes: &'a BTreeMap<String, Vec<String>>,
    pub seen: &'a Observed,
    /// Why no ADD can be served.
    pub cni: Option<&'a Outcome>,
    /// The SpiderCoordinator that pods are coordinated by, where there is one.
    pub coordinator: Option<&'a SpiderCoordinator>,
}

/// Writes it where it differs.
pub async fn write(client: &Client, node: &str, now: &Now<'_>) -> Result<(), StatusError> {
    let bridges = bridges(now);
    let interfaces = interfaces(now.seen);
    let before = now.network.status.clone().unwrap_or_default();
    let ready = ready(&bridges, &before.conditions, now.network.metadata.generation);
    let cni = cni_ready(now, &before.conditions);
    let conditions: Vec<Condition> = [ready, cni].into_iter().chain(coordinator_ready(now, &before.conditions)).collect();
    let same = before.observed_generation == now.network.metadata.generation
        && before.agent_id.as_deref() == Some(now.agent_id)
        && before.bridges == bridges
        && before.interfaces == interfaces
        && before.conditions == conditions;
    if same {
        return Ok(());
    }
    // Whole lists, empty ones too: a merge patch leaves out what it does not name.
    let patch: Value = json!({ "status": {
        "observedGeneration": now.network.metadata.generation,
        "agentID": now.agent_id,
        "bridges": bridges,
        "interfaces": interfaces,
        "conditions": conditions,
    }});
    let api: Api<NodeNetwork> = Api::all(client.clone());
    match tokio::time::timeout(WRITE_WAIT, api.patch_status(node, &PatchParams::default(), &Patch::Merge(&patch))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(StatusError::Write(node.to_owned(), Box::new(e))),
        Err(_) => Err(StatusError::Timeout(node.to_owned())),
    }
}

fn bridges(now: &Now<'_>) -> Vec<BridgeState> {
    now.network.spec.bridges.iter().map(|b| bridge(now, b)).collect()
}

fn bridge(now: &Now<'_>, spec: &BridgeOnNode) -> BridgeState {
    let plan = now.plans.iter().find(|p| p.name.as_str() == spec.name);
    let there = now.seen.ovs.as_ref().and_then(|o| o.bridge(&spec.name));
    let (phase, reason, message) = match (now.failures.get(&spec.name), plan.map(|p| &p.verdict)) {
        (Some(o), _) => (BridgePhase::Failed, Some(o.reason.clone()), Some(o.message.clone())),
        (None, None) => (BridgePhase::Pending, Some("NotPlanned".to_owned()), None),
        (None, Some(v)) => {
            let phase = match v {
                Verdict::Ready => BridgePhase::Ready,
                // Applied as often as a round does, and it still differs: somebody changes it back.
                Verdict::Change => BridgePhase::Failed,
                Verdict::Refused { .. } => BridgePhase::Failed,
                Verdict::InUse { .. } => BridgePhase::InUse,
                Verdict::Removing => BridgePhase::Pending,
                Verdict::Removed | Verdict::Orphaned => BridgePhase::Removed,
            };
            let quiet = matches!(v, Verdict::Ready);
            let reason = if matches!(v, Verdict::Change) { "NotSettled" } else { v.reason() };
            (phase, Some(reason.to_owned()).filter(|_| !quiet), Some(v.to_string()).filter(|_| !quiet))
        }
    };
    let planned = plan.filter(|p| !p.plan.is_empty()).map(|p| p.plan.steps.iter().map(ToString::to_string).collect::<Vec<_>>());
    let mut plan = planned.or_else(|| now.changes.get(&spec.name).cloned()).unwrap_or_default();
    plan.truncate(MAX_PLAN_STEPS);
    let ports = |f: &dyn Fn(&model::observed::OvsPort) -> bool| {
        let n = there.map_or(0, |b| b.ports.iter().filter(|p| p.name != b.name && f(p)).count());
        i32::try_from(n).unwrap_or(i32::MAX)
    };
    BridgeState {
        name: spec.name.clone(),
        phase,
        reason,
        message,
        uplink: there.map(|b| uplink(b, spec)).unwrap_or_default(),
        generation: spec.generation,
        plan,
        ports: ports(&|_| true),
        attachments: ports(&|p| p.external_ids.contains_key(Owner::OVS_KEY)),
    }
}

/// NICs of the ports that are under our care, or that the spec names.
fn uplink(b: &OvsBridge, spec: &BridgeOnNode) -> Vec<String> {
    let named = spec.uplink.as_ref().and_then(|u| u.interface.as_deref());
    let ours = |p: &&model::observed::OvsPort| {
        p.external_ids.contains_key(MARK) || p.external_ids.contains_key(SET) || Some(p.name.as_str()) == named
    };
    let ports = b.ports.iter().filter(|p| p.name != b.name && !p.external_ids.contains_key(Owner::OVS_KEY)).filter(ours);
    let mut names: Vec<String> = ports.flat_map(|p| p.interfaces.iter().map(|i| i.name.clone())).collect();
    names.sort();
    names
}

/// The node's own NICs: not pods' links, not Open vSwitch's internal ones unless they have an address.
fn interfaces(seen: &Observed) -> Vec<InterfaceSummary> {
    let addresses = |l: &Link| {
        seen.host
            .addrs_of(&l.name)
            .filter(|a| !a.scope_link && a.permanent)
            .map(|a| a.addr.to_string())
            .take(MAX_ADDRESSES)
            .collect::<Vec<_>>()
    };
    let default =
        |l: &Link| seen.host.routes.iter().any(|r| r.dst.is_default() && r.table == model::addr::TABLE_MAIN && r.dev == l.name);
    let bridge = |l: &Link| {
        let ovs = seen.ovs.as_ref()?;
        let (b, p) = ovs.find_interface(l.name.as_str())?;
        (p.name != b.name && !p.external_ids.contains_key(Owner::OVS_KEY)).then(|| b.name.clone())
    };
    let mut out: Vec<InterfaceSummary> = seen
        .host
        .links
        .iter()
        .filter(|l| l.kind != LinkKind::Loopback && l.alias.as_deref().is_none_or(|a| Owner::from_alias(a).is_none()))
        .map(|l| (l, addresses(l), bridge(l)))
        .filter(|(l, addrs, bridge)| {
            matches!(l.kind, LinkKind::Physical | LinkKind::Bond | LinkKind::Vlan { .. }) || !addrs.is_empty() || bridge.is_some()
        })
        .map(|(l, addresses, bridge)| InterfaceSummary {
            name: l.name.to_string(),
            mac: l.mac.map(|m| m.to_string()),
            mtu: i64::from(l.mtu),
            up: l.up,
            addresses,
            default_route: default(l),
            bridge,
        })
        .collect();
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out.truncate(MAX_INTERFACES);
    out
}

fn ready(bridges: &[BridgeState], before: &[Condition], generation: Option<i64>) -> Condition {
    let bad: Vec<&BridgeState> =
        bridges.iter().filter(|b| !matches!(b.phase, BridgePhase::Ready | BridgePhase::Removed)).collect();
    let (status, reason, message) = match bad.first() {
        None => (
            "True",
            "AllReady".to_owned(),
            format!("{} bridges are as wanted", bridges.iter().filter(|b| b.phase == BridgePhase::Ready).count()),
        ),
        Some(b) => {
            let text = bad
                .iter()
                .map(|b| format!("{}: {}", b.name, b.message.as_deref().or(b.reason.as_deref()).unwrap_or("not ready")))
                .collect::<Vec<_>>();
            ("False", b.reason.clone().unwrap_or_else(|| "NotReady".to_owned()), text.join("; "))
        }
    };
    condition("Ready", status, reason, message, before, generation)
}

/// STATUS fails only for the pod network; for every other one this is the place that says it.
fn cni_ready(now: &Now<'_>, before: &[Condition]) -> Condition {
    let (status, reason, message) = match now.cni {
        None => ("True", "Serving".to_owned(), "pods can be added".to_owned()),
        Some(o) => ("False", o.reason.clone(), o.message.clone()),
    };
    condition("CNIReady", status, reason, message, before, now.network.metadata.generation)
}

/// A SpiderCoordinator that is NotReady gives what it has, and no pod waits for it: its routes to the cluster may be missing.
fn coordinator_ready(now: &Now<'_>, before: &[Condition]) -> Option<Condition> {
    let status = now.coordinator?.status.as_ref();
    let (is, reason, message) = match status {
        Some(s) if s.phase == CoordinatorPhase::Synced => ("True", "Synced", "its CIDRs are known".to_owned()),
        Some(s) => {
            let why = s.reason.clone().filter(|r| !r.is_empty()).unwrap_or_else(|| "no reason is given".to_owned());
            ("False", "CoordinatorNotReady", format!("pods are coordinated with what it has: {why}"))
        }
        None => (
            "False",
            "CoordinatorNotReady",
            "it has no status yet: pods are coordinated without the cluster's networks".to_owned(),
        ),
    };
    Some(condition("CoordinatorReady", is, reason.to_owned(), message, before, now.network.metadata.generation))
}

fn condition(
    kind: &str,
    status: &str,
    reason: String,
    message: String,
    before: &[Condition],
    generation: Option<i64>,
) -> Condition {
    let old = before.iter().find(|c| c.type_ == kind);
    // Changes of state only, as the API's conventions have it.
    let since = old.filter(|c| c.status == status).map_or_else(|| Time(Timestamp::now()), |c| c.last_transition_time.clone());
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        last_transition_time: since,
        observed_generation: generation,
    }
}
