//! The node's loop, round by round.

use std::sync::Arc;

use api::NodeNetwork;
use api::mooring::{BridgePhase, BridgeState};
use bridge_agent::node::NodeLoop;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use plumbing::FakeHost;
use serde_json::{Value, json};

use crate::world::{NODE, World};

struct Node {
    w: World,
    api: Api<NodeNetwork>,
    node: NodeLoop<FakeHost>,
}

impl Node {
    async fn new(bridges: Value) -> Self {
        let w = World::new().await;
        let api: Api<NodeNetwork> = Api::all(w.client.clone());
        let n =
            json!({"apiVersion":"mooring.dev/v1alpha1","kind":"NodeNetwork","metadata":{"name":NODE},"spec":{"bridges":bridges}});
        api.create(&PostParams::default(), &serde_json::from_value(n).unwrap()).await.unwrap();
        w.until("everything is listed", || w.agent.caches.missing().is_none()).await;
        let node = Self::fresh(&w);
        Self { w, api, node }
    }

    fn fresh(w: &World) -> NodeLoop<FakeHost> {
        NodeLoop::new(
            Arc::new(w.host.clone()),
            w.client.clone(),
            w.agent.caches.clone(),
            w.agent.journal.clone(),
            NODE,
            &w.agent.me.agent_id,
        )
    }

    /// One round; the states that it wrote.
    async fn round(&mut self) -> Vec<BridgeState> {
        let n = self.api.get(NODE).await.unwrap();
        self.node.round(&n).await;
        let n = self.api.get(NODE).await.unwrap();
        let status = n.status.unwrap();
        assert_eq!(status.observed_generation, n.metadata.generation);
        assert_eq!(status.agent_id.as_deref(), Some(self.w.agent.me.agent_id.as_str()));
        status.bridges
    }

    async fn spec(&self, bridges: Value) {
        self.api.patch(NODE, &PatchParams::default(), &Patch::Merge(&json!({"spec":{"bridges":bridges}}))).await.unwrap();
    }
}

fn br2(generation: i64) -> Value {
    json!({"name":"br2","generation":generation,"uplink":{"interface":"ens192"}})
}

#[tokio::test]
async fn a_bridge_is_made_told_kept_and_taken_back() {
    let mut n = Node::new(json!([br2(1)])).await;
    let s = n.round().await.remove(0);
    assert_eq!((s.phase, s.generation, s.uplink.as_slice(), s.ports), (BridgePhase::Ready, 1, &["ens192".to_owned()][..], 1));
    assert!(s.plan.iter().any(|l| l.contains("br2")), "the last change's steps: {:?}", s.plan);
    assert!(n.w.host.ovs().unwrap().bridge("br2").is_some());
    let version = n.api.get(NODE).await.unwrap().metadata.resource_version;
    n.round().await;
    assert_eq!(n.api.get(NODE).await.unwrap().metadata.resource_version, version, "nothing changed, nothing is written");

    // Drift: somebody took the uplink out.
    n.w.host.edit_host(|_, ovs| {
        ovs.as_mut().unwrap().bridges.iter_mut().filter(|b| b.name == "br2").for_each(|b| b.ports.retain(|p| p.name != "ens192"))
    });
    assert_eq!(n.round().await[0].phase, BridgePhase::Ready);
    assert!(n.w.host.ovs().unwrap().bridge("br2").unwrap().port("ens192").is_some());

    let mut gone = br2(1);
    gone["remove"] = json!(true);
    n.spec(json!([gone])).await;
    assert_eq!(n.round().await[0].phase, BridgePhase::Removed);
    assert!(n.w.host.ovs().unwrap().bridge("br2").is_none());
}

#[tokio::test]
async fn a_change_that_was_rolled_back_is_held_until_its_spec_changes_also_over_a_restart() {
    let mut n = Node::new(json!([br2(1)])).await;
    let before = (n.w.host.host(), n.w.host.ovs());
    n.w.host.fail_step(1);
    let s = n.round().await.remove(0);
    assert_eq!((s.phase, s.reason.as_deref()), (BridgePhase::Failed, Some("HeldAfterRollback")));
    assert!(s.message.as_deref().unwrap().starts_with("failed to "), "{:?}", s.message);
    assert_eq!((n.w.host.host(), n.w.host.ovs()), before);
    let tried = n.w.host.applied().len();
    n.round().await;
    n.node = Node::fresh(&n.w);
    assert_eq!(n.round().await[0].reason.as_deref(), Some("HeldAfterRollback"));
    assert_eq!(n.w.host.applied().len(), tried, "not tried again");
    n.spec(json!([br2(2)])).await;
    assert_eq!(n.round().await[0].phase, BridgePhase::Ready);
}

#[tokio::test]
async fn what_cannot_be_is_told_with_its_reason_and_harms_no_other_bridge() {
    let mut n = Node::new(json!([
        {"name":"bra","generation":1,"uplink":{"interface":"ens999"}},
        {"name":"brb","generation":1,"uplink":{"interface":"ens224"}},
        br2(1)
    ]))
    .await;
    let s = n.round().await;
    let told: Vec<_> = s.iter().map(|b| (b.name.as_str(), b.phase, b.reason.as_deref())).collect();
    assert_eq!(
        told,
        [
            ("bra", BridgePhase::Failed, Some("UplinkNotFound")),
            ("brb", BridgePhase::Failed, Some("UplinkInUse")),
            ("br2", BridgePhase::Ready, None)
        ]
    );
    let ready = n.api.get(NODE).await.unwrap().status.unwrap().conditions.remove(0);
    assert_eq!((ready.type_.as_str(), ready.status.as_str(), ready.reason.as_str()), ("Ready", "False", "UplinkNotFound"));
    assert!(ready.message.contains("bra: ") && ready.message.contains("brb: "), "{}", ready.message);
}

#[tokio::test]
async fn open_vswitch_that_does_not_answer_is_told_and_tried_again() {
    let mut n = Node::new(json!([br2(1)])).await;
    n.w.host.set_ovs_down(true);
    assert_eq!(n.round().await[0].reason.as_deref(), Some("HostUnreadable"));
    n.w.host.set_ovs_down(false);
    assert_eq!(n.round().await[0].phase, BridgePhase::Ready);
}

#[tokio::test]
async fn a_bridge_with_attachments_is_not_removed() {
    let mut n = Node::new(json!([br2(1)])).await;
    n.round().await;
    let conf = crate::world::ovs(json!({"bridge":"br2","ipam":null}));
    n.w.add("c1", "eth0", &conf, None).await.unwrap();
    let s = n.round().await.remove(0);
    assert_eq!((s.ports, s.attachments), (2, 1));
    let mut gone = br2(1);
    gone["remove"] = json!(true);
    n.spec(json!([gone.clone()])).await;
    assert_eq!(n.round().await[0].phase, BridgePhase::InUse);
    n.w.del("c1", "eth0", &conf, None).await.unwrap();
    assert_eq!(n.round().await[0].phase, BridgePhase::Removed);
}

#[tokio::test]
async fn the_loop_follows_the_spec_and_the_host_by_itself() {
    let n = Node::new(json!([])).await;
    let stop = runtime::Shutdown::new();
    let task = tokio::spawn(n.node.run(stop.clone()));
    n.api.patch(NODE, &PatchParams::default(), &Patch::Merge(&json!({"spec":{"bridges":[br2(1)]}}))).await.unwrap();
    let there = || n.w.host.ovs().unwrap().bridge("br2").is_some_and(|b| b.port("ens192").is_some());
    n.w.until("the bridge is made", there).await;
    n.w.host.edit_host(|_, ovs| ovs.as_mut().unwrap().bridges.iter_mut().for_each(|b| b.ports.retain(|p| p.name != "ens192")));
    n.w.until("the drift is repaired", there).await;
    stop.trigger();
    task.await.unwrap();
}
