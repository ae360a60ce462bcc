//! What a new process makes of the old one's journal, marks and leases.

use std::io::Write;

use bridge_agent::journal::State;
use model::{AttachmentId, Owner, RunBy};
use serde_json::json;

use crate::world::{World, ovs};

#[tokio::test]
async fn what_was_begun_is_undone_what_lives_stays_and_what_died_goes() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    let pod = w.pod("a", json!({})).await;
    let nothing = w.before("x").await;
    for c in ["lives", "died", "begun"] {
        w.add(c, "eth0", &conf, Some(&pod)).await.unwrap();
    }
    w.end_sandbox("died");
    // As if the process had ended between apply and the second record.
    for mut e in w.agent.journal.of_container("begun") {
        e.state = State::Adding;
        w.agent.journal.put(e).unwrap();
    }
    // A torn record at the end.
    let mut file = std::fs::OpenOptions::new().append(true).open(w.dir.path().join("journal")).unwrap();
    file.write_all(b"0123456789abcdef {\"put\":{\"key\"").unwrap();

    let w = w.restart().await;
    let swept = w.agent.sweep().await;
    assert_eq!((swept.left, swept.marks), (0, 0));
    let left: Vec<String> = w.agent.journal.all().into_iter().map(|e| e.key.container_id).collect();
    assert_eq!(left, ["lives", "lives"]);
    let ports =
        |w: &World| w.host.ovs().unwrap().bridges[0].ports.iter().filter(|p| p.external_ids.contains_key(Owner::OVS_KEY)).count();
    assert_eq!((ports(&w), w.leases().await.len()), (1, 1));
    assert_eq!(w.leases().await[0].spec.holder.as_ref().unwrap().container_id, "lives");
    w.del("lives", "eth0", &conf, Some(&pod)).await.unwrap();
    let after = w.before("x").await;
    assert_eq!((after.host, after.ovs, after.leases), (nothing.host, nothing.ovs, nothing.leases));
}

#[tokio::test]
async fn a_link_that_was_born_and_not_yet_marked_is_found_by_the_journal() {
    let w = World::new().await;
    for (container, conf) in [("o", ovs(json!({"ipam":null}))), ("m", crate::world::macvlan(json!({"ipam":null})))] {
        let before = w.before(container).await;
        w.add(container, "eth0", &conf, None).await.unwrap();
        // As the kernel has it between the birth and the mark, and Open vSwitch not at all.
        w.host.edit_host(|h, ovs| {
            h.links.iter_mut().for_each(|l| l.alias = None);
            ovs.as_mut()
                .unwrap()
                .bridges
                .iter_mut()
                .for_each(|b| b.ports.retain(|p| !p.external_ids.contains_key(Owner::OVS_KEY)));
        });
        w.host.edit_pod(&w.netns(container).to_string_lossy(), |p| p.links.iter_mut().for_each(|l| l.alias = None));
        for mut e in w.agent.journal.of_container(container) {
            e.state = State::Adding;
            w.agent.journal.put(e).unwrap();
        }
        assert_eq!(w.agent.sweep().await.left, 0);
        assert_eq!(w.before(container).await, before, "{container}");
    }
}

#[tokio::test]
async fn marks_that_nothing_stands_for_go_unless_a_plugin_made_them_alone() {
    let w = World::new().await;
    let conf = ovs(json!({"ipam":null}));
    for c in ["ours", "alone"] {
        w.add(c, "eth0", &conf, None).await.unwrap();
        for e in w.agent.journal.of_container(c) {
            w.agent.journal.remove(&e.key).unwrap();
        }
    }
    let alone = Owner { attachment: AttachmentId::of("alone", "eth0"), by: RunBy::Alone };
    w.host.edit_host(|h, ovs| {
        let agent = Owner { by: RunBy::Agent, ..alone };
        for l in h.links.iter_mut().filter(|l| l.alias.as_deref() == Some(agent.alias().as_str())) {
            l.alias = Some(alone.alias());
        }
        for p in ovs.as_mut().unwrap().bridges.iter_mut().flat_map(|b| &mut b.ports) {
            if p.external_ids.get(Owner::OVS_KEY) == Some(&alone.attachment.to_string()) {
                p.external_ids.insert(Owner::OVS_BY_KEY.into(), "alone".into());
            }
        }
    });
    // While its sandbox lives, the journal may have lost it (`lost`).
    w.end_sandbox("ours");
    let w = w.restart().await;
    let swept = w.agent.sweep().await;
    assert_eq!(swept.marks, 2, "a port and its link");
    let left: Vec<String> =
        w.host.ovs().unwrap().bridges[0].ports.iter().filter_map(|p| p.external_ids.get(Owner::OVS_KEY).cloned()).collect();
    assert_eq!(left, [alone.attachment.to_string()]);
}

#[tokio::test]
async fn leases_of_ours_or_of_an_older_disk_without_a_record_are_given_back_and_others_left_alone() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let pod = w.pod("a", json!({})).await;
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap();
    let held = w.leases().await[0].metadata.name.clone().unwrap();
    let me = w.agent.me.agent_id.clone();
    w.foreign_lease("p", "10.6.3.1", json!({"node":"n1","agentID":me})).await;
    w.foreign_lease("p", "10.6.3.2", json!({"node":"n1","agentID":"an older disk"})).await;
    w.foreign_lease("p", "10.6.3.3", json!({"node":"n2"})).await;
    let identity = json!({"kind":"StatefulSet","namespace":"default","name":"web-0","interface":"eth0"});
    w.foreign_lease("p", "10.6.3.4", json!({"node":"n1","agentID":me,"identity":identity})).await;
    let w = w.restart().await;
    let mut want = vec![held, "default.v4-10-6-3-3".into(), "default.v4-10-6-3-4".into()];
    want.sort();
    w.until_async("the start's comparison is done", || async {
        let left: Vec<String> = w.leases().await.iter().filter_map(|l| l.metadata.name.clone()).collect();
        left == want && w.lease("default.v4-10-6-3-4").await.unwrap().spec.node.is_empty()
    })
    .await;
    let kept = w.lease("default.v4-10-6-3-4").await.unwrap().spec;
    assert!(kept.node.is_empty() && kept.holder.is_none() && kept.identity.is_some());
}
