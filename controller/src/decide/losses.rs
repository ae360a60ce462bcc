//! Leases that nobody but the controller ends: quarantines that are over, what an identity has beside the address it uses, and
//! those of nodes that were declared dead. By the taint
//! `node.kubernetes.io/out-of-service` the node loses what its agents had at that moment; by `mooring release` each lease
//! says for itself that its agent is gone. What is out of reach only counts as such (`pools`).

use std::collections::BTreeSet;

use api::keys;
use ipam::fleet::{self, Fence, Fencing, Loss};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Stamp;
use crate::state::{LeaseView, SlimNode, State};
use crate::write::{Kind, Op, Write, guard};

/// Value of the annotation `mooring.dev/fenced`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    agents: BTreeSet<String>,
    since: Timestamp,
    done: bool,
}

pub fn decide(state: &State, now: &Stamp) -> Vec<Write> {
    let mut out = Vec::new();
    for (name, node) in state.nodes.iter() {
        out.extend(fence(state, name, node, now));
    }
    for l in state.leases.orphans() {
        let how = match l.released {
            true => Some(fleet::loss(&l.fleet())),
            false => fleet::quarantine_over(&l.fleet(), now.0.as_second()),
        };
        out.extend(how.map(|how| lose(l, how, now)));
    }
    for leases in state.leases.of_identities_with_several() {
        let ips = fleet::superfluous(leases.iter().map(|l| l.fleet()), now.0.as_second());
        let kept = leases.into_iter().filter(|l| !l.held && ips.contains(&l.ip));
        out.extend(kept.map(|l| lose(l, Loss::Delete, now)));
    }
    out
}

fn fence(state: &State, name: &str, node: &SlimNode, now: &Stamp) -> Vec<Write> {
    let record = match node.annotations().get(keys::FENCED).map(|text| serde_json::from_str::<Record>(text)) {
        None => None,
        Some(Ok(r)) => Some(Fence { agents: r.agents, since: r.since.as_second(), done: r.done }),
        Some(Err(error)) => {
            // Who is meant cannot be told, and taking from the wrong one gives an address twice.
            tracing::warn!(node = name, %error, "annotation {} cannot be read; the node loses nothing", keys::FENCED);
            Some(Fence { agents: BTreeSet::new(), since: 0, done: true })
        }
    };
    let known = state.node_networks.get(name).and_then(|n| n.status.as_ref()?.agent_id.as_deref());
    let leases = state.leases.of_node(name).map(LeaseView::fleet);
    match fleet::fence(node.is_out_of_service(), record.as_ref(), leases, known, now.0.as_second()) {
        Fencing::Settled => Vec::new(),
        Fencing::Record(f) => {
            let since = Timestamp::from_second(f.since).unwrap_or(now.0);
            let text = json!(Record { agents: f.agents, since, done: f.done }).to_string();
            vec![annotate(name, node, &json!(text))]
        }
        Fencing::Forget => vec![annotate(name, node, &Value::Null)],
        Fencing::Release(lost) => {
            // In the order of the leases that were given.
            let of_agents = |l: &&LeaseView| record.as_ref().is_some_and(|f| f.agents.contains(&l.agent_id));
            let leases = state.leases.of_node(name).filter(of_agents);
            leases.zip(lost).map(|(l, (_, how))| lose(l, how, now)).collect()
        }
    }
}

fn annotate(name: &str, node: &SlimNode, value: &Value) -> Write {
    let mut metadata = guard(node);
    metadata["annotations"] = json!({ keys::FENCED: value });
    Write { kind: Kind::Node, namespace: None, name: name.to_owned(), op: Op::Patch(json!({ "metadata": metadata })) }
}

/// Only as it was decided about: an agent that lives after all may have changed it.
fn lose(l: &LeaseView, how: Loss, now: &Stamp) -> Write {
    let op = match how {
        Loss::Delete => Op::Delete { uid: None, resource_version: Some(l.resource_version.clone()) },
        Loss::Empty => Op::Patch(json!({
            "metadata": {
                "resourceVersion": l.resource_version,
                "labels": { keys::LEASE_NODE: null },
                "annotations": { keys::RELEASED: null },
            },
            "spec": { "node": null, "agentID": null, "holder": null, "wanted": null, "quarantine": null, "releasedAt": now.0.to_string() },
        })),
    };
    Write { kind: Kind::Lease, namespace: None, name: l.name(), op }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Change, Dirty, SlimCondition, SlimTaint};
    use api::mooring::{AddressLease, Identity, IdentityKind};
    use kube::runtime::watcher::Event;

    fn node(taint: bool, fenced: Option<&str>) -> SlimNode {
        let mut n = SlimNode::default();
        n.metadata.name = Some("n1".into());
        n.metadata.resource_version = Some("7".into());
        n.metadata.annotations = fenced.map(|f| [(keys::FENCED.to_owned(), f.to_owned())].into());
        n.spec.taints = if taint {
            vec![SlimTaint { key: keys::TAINT_OUT_OF_SERVICE.into(), effect: "NoExecute".into() }]
        } else {
            Vec::new()
        };
        n
    }

    fn lease(ip: &str, agent: &str, fixed: bool) -> AddressLease {
        let mut l = AddressLease::new(&api::mooring::lease_name("default", ip.parse().unwrap()), Default::default());
        (l.spec.node, l.spec.agent_id) = ("n1".into(), agent.into());
        l.spec.holder = Some(Default::default());
        let identity =
            || Identity { kind: IdentityKind::StatefulSet, namespace: "d".into(), name: "w-0".into(), interface: "eth0".into() };
        l.spec.identity = fixed.then(identity);
        l.metadata.resource_version = Some(format!("rv-{ip}"));
        l
    }

    fn decided(node: Option<SlimNode>, leases: Vec<AddressLease>) -> Vec<Write> {
        decided_at("2026-01-01T00:00:00Z", node, leases)
    }

    fn decided_at(now: &str, node: Option<SlimNode>, leases: Vec<AddressLease>) -> Vec<Write> {
        let mut s = State::default();
        let mut d = Dirty::default();
        if let Some(n) = node {
            s.apply(Change::Node(Event::Apply(n)), &mut d);
        }
        for l in leases {
            s.apply(Change::Lease(Event::Apply(l)), &mut d);
        }
        decide(&s, &Stamp(now.parse().unwrap()))
    }

    #[test]
    fn a_fenced_node_is_noted_first_and_loses_then() {
        let leases = || vec![lease("10.0.0.1", "a", false), lease("10.0.0.2", "a", true), lease("10.0.0.3", "new", false)];
        assert_eq!(decided(Some(node(false, None)), leases()), vec![]);
        let noted = decided(Some(node(true, None)), leases()[..2].to_vec());
        let text = r#"{"agents":["a"],"done":false,"since":"2026-01-01T00:00:00Z"}"#;
        assert_eq!(noted.len(), 1);
        assert_eq!(
            noted[0].op,
            Op::Patch(json!({ "metadata": { "resourceVersion": "7", "annotations": { "mooring.dev/fenced": text } } }))
        );
        let lost = decided(Some(node(true, Some(text))), leases());
        assert_eq!(lost.iter().map(|w| w.name.as_str()).collect::<Vec<_>>(), ["default.v4-10-0-0-1", "default.v4-10-0-0-2"]);
        assert_eq!(lost[0].op, Op::Delete { uid: None, resource_version: Some("rv-10.0.0.1".into()) });
        let Op::Patch(v) = &lost[1].op else { panic!("{lost:?}") };
        assert_eq!((&v["metadata"]["resourceVersion"], &v["spec"]["holder"]), (&json!("rv-10.0.0.2"), &Value::Null));
        assert!(v["spec"].get("identity").is_none(), "it stays its identity's");
        // Its last create may still come in.
        let early = decided_at("2026-01-01T00:01:29Z", Some(node(true, Some(text))), leases()[2..].to_vec());
        assert_eq!(early, vec![]);
        let done = decided_at("2026-01-01T00:01:30Z", Some(node(true, Some(text))), leases()[2..].to_vec());
        assert!(format!("{:?}", done[0].op).contains(r#"\"done\":true"#), "{done:?}");
        let forgotten = decided(Some(node(false, Some(text))), leases());
        assert_eq!(
            forgotten[0].op,
            Op::Patch(json!({ "metadata": { "resourceVersion": "7", "annotations": { "mooring.dev/fenced": null } } }))
        );
    }

    #[test]
    fn a_node_that_is_ready_loses_nothing_whatever_its_taint_says() {
        let mut alive = node(true, None);
        let ready = |status: &str| vec![SlimCondition { type_: "Ready".into(), status: status.into() }];
        alive.status.conditions = ready("True");
        assert_eq!(decided(Some(alive.clone()), vec![lease("10.0.0.1", "a", false)]), vec![]);
        alive.status.conditions = ready("Unknown");
        assert_eq!(decided(Some(alive), vec![lease("10.0.0.1", "a", false)]).len(), 1);
    }

    #[test]
    fn a_quarantine_ends_by_itself() {
        let in_quarantine = |at: &str, fixed| {
            let mut l = lease("10.0.0.1", "", fixed);
            (l.spec.node, l.spec.holder) = (String::new(), None);
            let q = json!({ "reason": "DuplicateAddress", "node": "n1", "at": at });
            l.spec.quarantine = Some(serde_json::from_value(q).unwrap());
            l
        };
        assert_eq!(decided(None, vec![in_quarantine("2025-12-31T23:55:00Z", false)]), vec![]);
        let over = decided(None, vec![in_quarantine("2025-12-31T23:50:00Z", false)]);
        assert_eq!(over[0].op, Op::Delete { uid: None, resource_version: Some("rv-10.0.0.1".into()) });
        let over = decided(None, vec![in_quarantine("2025-12-31T23:50:00Z", true)]);
        let Op::Patch(v) = &over[0].op else { panic!("{over:?}") };
        assert!(v["spec"]["quarantine"].is_null() && v["spec"].get("identity").is_none(), "{v}");
    }

    #[test]
    fn an_identity_loses_what_is_kept_for_it_beside_the_address_it_uses() {
        let kept = |ip| {
            let mut l = lease(ip, "", true);
            (l.spec.node, l.spec.holder) = (String::new(), None);
            l
        };
        let held = || lease("10.0.0.2", "a", true);
        let lost = decided(None, vec![kept("10.0.0.1"), held(), kept("fd00::1")]);
        assert_eq!(lost.iter().map(|w| w.name.as_str()).collect::<Vec<_>>(), ["default.v4-10-0-0-1"]);
        assert_eq!(lost[0].op, Op::Delete { uid: None, resource_version: Some("rv-10.0.0.1".into()) });
        let lately = |mut l: AddressLease| {
            l.spec.released_at = Some("2025-12-31T23:59:00Z".into());
            l
        };
        assert_eq!(decided(None, vec![lately(kept("10.0.0.1")), held()]), vec![], "what is held may be the late one");
        assert_eq!(decided(None, vec![kept("10.0.0.1"), kept("10.0.0.2")]), vec![], "none is used");
        let of_controller = |mut l: AddressLease| {
            l.spec.identity.as_mut().unwrap().kind = IdentityKind::Pod;
            l
        };
        assert_eq!(decided(None, vec![of_controller(kept("10.0.0.1")), of_controller(held())]), vec![], "it names several");

        let mut s = State::default();
        let mut d = Dirty::default();
        for e in [Event::Apply(kept("10.0.0.1")), Event::Apply(held()), Event::Delete(kept("10.0.0.1"))] {
            s.apply(Change::Lease(e), &mut d);
        }
        assert_eq!(s.leases.of_identities_with_several().count(), 0);
    }

    #[test]
    fn a_note_that_cannot_be_read_takes_nothing_away() {
        assert_eq!(decided(Some(node(true, Some("yes"))), vec![lease("10.0.0.1", "a", false)]), vec![]);
    }

    #[test]
    fn a_lease_that_was_released_by_hand_goes_unless_another_agent_has_it_by_now() {
        let marked = |by: &str| {
            let mut l = lease("10.0.0.1", "a", false);
            l.metadata.annotations = Some([(keys::RELEASED.to_owned(), by.to_owned())].into());
            l
        };
        assert_eq!(decided(None, vec![marked("a")]).len(), 1);
        assert_eq!(decided(None, vec![marked("b")]), vec![]);
        assert_eq!(decided(None, vec![marked("")]), vec![]);
    }
}
