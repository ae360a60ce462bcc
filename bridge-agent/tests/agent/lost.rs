//! A journal that lost entries while pods live: their ports, links and addresses stay theirs, and DEL and GC still take all away.

use bridge_agent::journal::{Entry, Role, State, Work};
use cni::Verb;
use kube::api::{Api, Patch, PatchParams};
use model::{AttachmentId, Owner};
use serde_json::{Value, json};

use crate::world::{Hands, World, macvlan, ovs, with};

fn of_pool(conf: Value) -> Value {
    with(conf, json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}))
}

/// The next life's journal is without the entries that are lost.
async fn restart_without(w: World, lost: impl Fn(&Entry) -> bool) -> World {
    for e in w.agent.journal.all().into_iter().filter(lost) {
        w.agent.journal.remove(&e.key).unwrap();
    }
    w.restart().await
}

fn noted(w: &World) -> Vec<String> {
    w.agent.journal.all().into_iter().map(|e| format!("{} {} {:?}", e.key.container_id, e.key.ifname, e.key.role)).collect()
}

fn marked_ports(w: &World) -> Vec<String> {
    let ovs = w.host.ovs().unwrap();
    ovs.bridges[0].ports.iter().filter_map(|p| p.external_ids.get(Owner::OVS_KEY).cloned()).collect()
}

/// Addresses by the container that has them.
async fn holders(w: &World) -> Vec<(String, String)> {
    let of = |l: &api::mooring::AddressLease| l.spec.holder.as_ref().map_or("-".into(), |h| h.container_id.clone());
    let mut all: Vec<_> = w.leases().await.iter().map(|l| (of(l), l.spec.address.clone())).collect();
    all.sort();
    all
}

#[tokio::test]
async fn an_empty_journal_costs_no_living_pod_its_port_or_its_address() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.13").await;
    let pod = w.pod("a", json!({})).await;
    let (o, m) = (of_pool(ovs(json!({}))), of_pool(macvlan(json!({}))));
    let nothing = w.before("x").await;
    for (container, conf) in [("c1", &o), ("c2", &m), ("died", &o)] {
        w.add(container, "eth0", conf, Some(&pod)).await.unwrap();
    }
    w.end_sandbox("died");
    let before = holders(&w).await;
    let of = |all: &[(String, String)], c: &str| all.iter().find(|(x, _)| x == c).unwrap().1.clone();

    let w = restart_without(w, |_| true).await;
    let swept = w.agent.sweep().await;
    assert_eq!((swept.entries, swept.marks), (0, 2), "port and link of the one that died");
    assert_eq!(marked_ports(&w), [AttachmentId::of("c1", "eth0").to_string()]);
    w.until("what lives is noted again", || w.agent.journal.all().len() == 4).await;
    assert_eq!(noted(&w), ["c1 eth0 Addresses", "c1 eth0 Main", "c2 eth0 Addresses", "c2 eth0 Main"]);
    w.until_async("the dead one's address is given back", || async { holders(&w).await.iter().all(|(c, _)| c != "died") }).await;
    // Two are left of four, and another two ADDs get them.
    for c in ["c3", "c4"] {
        w.add(c, "eth0", &o, Some(&pod)).await.unwrap();
    }
    let after = holders(&w).await;
    assert_eq!((of(&after, "c1"), of(&after, "c2")), (of(&before, "c1"), of(&before, "c2")));
    assert!(w.add("c5", "eth0", &o, Some(&pod)).await.is_err(), "the pool is empty");
    let e = w.agent.journal.of_container("c1");
    let Work::Addresses(a) = &e[0].work else { panic!("{e:?}") };
    assert_eq!((a.held[0].addr.to_string(), a.held[0].pool.as_str()), (format!("{}/16", of(&before, "c1")), "p"));
    assert_eq!(e[0].pod.as_ref(), Some(&pod));
    let Work::Main(c) = &e[1].work else { panic!("{e:?}") };
    assert_eq!((c.vlan, c.mac.is_some()), (Some(100), true));

    for (container, conf) in [("c1", &o), ("c2", &m), ("c3", &o), ("c4", &o)] {
        w.del(container, "eth0", conf, Some(&pod)).await.unwrap();
    }
    let after = w.before("x").await;
    assert_eq!((after.host, after.ovs, after.leases), (nothing.host, nothing.ovs, nothing.leases));
    for c in ["c1", "c2", "c3", "c4"] {
        assert_eq!(w.before(c).await.pod.links.len(), nothing.pod.links.len(), "{c}");
    }
    assert!(w.agent.journal.is_empty(), "{:?}", noted(&w));
}

#[tokio::test]
async fn whichever_entries_are_lost_del_takes_all_away() {
    for role in [Role::Addresses, Role::Main] {
        let w = World::new().await;
        w.v4("p", "10.6.1.10-10.6.1.13").await;
        let pod = w.pod("a", json!({})).await;
        let conf = of_pool(ovs(json!({})));
        let nothing = w.before("x").await;
        w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap();
        let leased = holders(&w).await;
        let w = restart_without(w, |e| e.key.role == role).await;
        assert_eq!(w.agent.sweep().await.marks, 0, "{role:?}");
        let all: &[&str] = if role == Role::Main { &["c1 eth0 Addresses"] } else { &["c1 eth0 Addresses", "c1 eth0 Main"] };
        w.until("what lives is noted again", || noted(&w) == all).await;
        assert_eq!(holders(&w).await, leased);
        w.del("c1", "eth0", &conf, Some(&pod)).await.unwrap();
        let after = w.before("x").await;
        assert_eq!((after.host, after.ovs, after.leases), (nothing.host, nothing.ovs, nothing.leases), "{role:?}");
        assert!(w.agent.journal.is_empty(), "{:?}", noted(&w));
    }
}

#[tokio::test]
async fn networks_that_are_lost_go_also_when_the_pod_is_gone_from_the_api() {
    let w = World::new().await;
    let list = |name: &str, plugin: Value| json!({"cniVersion":"1.0.0","name":name,"plugins":[plugin]});
    let first = list("cluster", of_pool(ovs(json!({}))));
    std::fs::write(w.dir.path().join("net.d/10-cluster.conflist"), first.to_string()).unwrap();
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    w.nad("kube-system", "mv", list("mv", of_pool(macvlan(json!({}))))).await;
    let pod = w.pod("a", json!({"k8s.v1.cni.cncf.io/networks":"kube-system/mv"})).await;
    let nothing = w.before("x").await;
    let mooring = json!({"cniVersion":"1.0.0","name":"mooring","type":"mooring","clusterNetwork":"cluster"});
    w.add("c1", "eth0", &mooring, Some(&pod)).await.unwrap();
    assert_eq!(w.leases().await.len(), 2);
    let w = restart_without(w, |_| true).await;
    assert_eq!(w.agent.sweep().await.marks, 0);
    w.until("what lives is noted again", || w.agent.journal.all().len() == 4).await;
    assert_eq!(noted(&w), ["c1 eth0 Addresses", "c1 eth0 Main", "c1 net1 Addresses", "c1 net1 Main"]);
    w.delete_pod("a").await;
    w.del("c1", "eth0", &mooring, Some(&pod)).await.unwrap();
    let after = w.before("x").await;
    assert_eq!((after.host, after.ovs, after.leases), (nothing.host, nothing.ovs, nothing.leases));
    assert!(w.agent.journal.is_empty(), "{:?}", noted(&w));
}

#[tokio::test]
async fn gc_takes_what_was_found_again_when_its_sandbox_is_gone_and_the_next_start_does() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let pod = w.pod("a", json!({})).await;
    let conf = of_pool(ovs(json!({"cniVersion":"1.1.0"})));
    let nothing = w.before("x").await;
    for c in ["c1", "c2"] {
        w.add(c, "eth0", &conf, Some(&pod)).await.unwrap();
    }
    let w = restart_without(w, |_| true).await;
    w.agent.sweep().await;
    w.until("what lives is noted again", || w.agent.journal.all().len() == 4).await;
    let gc = |w: &World| {
        let mut call = w.call(Verb::Gc, "", "", with(conf.clone(), json!({"cni.dev/valid-attachments": []})), None);
        call.netns = None;
        call
    };
    w.run(&gc(&w), &mut Hands::default()).await.unwrap();
    assert_eq!((noted(&w).len(), w.leases().await.len()), (4, 2), "whose they are nobody knows, and they live");
    w.end_sandbox("c1");
    w.run(&gc(&w), &mut Hands::default()).await.unwrap();
    assert_eq!(noted(&w), ["c2 eth0 Addresses", "c2 eth0 Main"]);
    w.until_async("its address is free", || async { w.leases().await.len() == 1 }).await;
    w.end_sandbox("c2");
    let w = w.restart().await;
    w.agent.sweep().await;
    w.until_async("its address is free", || async { w.leases().await.is_empty() }).await;
    let after = w.before("x").await;
    assert_eq!((after.host, after.ovs), (nothing.host, nothing.ovs));
}

/// A spare in hand is given without a word to the API server; the process ended before it wrote the holder.
#[tokio::test]
async fn an_address_in_use_that_is_a_spare_by_the_api_servers_word_is_given_to_nobody() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.11").await;
    let pod = w.pod("a", json!({})).await;
    let conf = of_pool(ovs(json!({})));
    w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap();
    let lease = w.leases().await.remove(0);
    let api: Api<api::mooring::AddressLease> = Api::all(w.client.clone());
    let patch = Patch::Merge(json!({"spec":{"holder":null}}));
    api.patch(lease.metadata.name.as_deref().unwrap(), &PatchParams::default(), &patch).await.unwrap();
    let w = restart_without(w, |_| true).await;
    w.agent.sweep().await;
    assert_eq!(marked_ports(&w).len(), 1);
    w.add("c2", "eth0", &conf, Some(&pod)).await.unwrap();
    let all = holders(&w).await;
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all.iter().any(|(c, ip)| c == "-" && *ip == lease.spec.address), "{all:?}");
    assert!(w.add("c3", "eth0", &conf, Some(&pod)).await.is_err(), "the pool is empty");
    w.del("c1", "eth0", &conf, Some(&pod)).await.unwrap();
    assert_eq!(marked_ports(&w).len(), 1, "of c2");
}

/// IPAM of another project's main plugin: the NIC has no mark, its name and address tell.
#[tokio::test]
async fn an_address_on_another_projects_nic_stays_its_pods() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let pod = w.pod("a", json!({})).await;
    let conf = of_pool(ovs(json!({})));
    w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap();
    w.host.edit_pod(&w.netns("c1").to_string_lossy(), |p| p.links.iter_mut().for_each(|l| l.alias = None));
    let w = restart_without(w, |_| true).await;
    w.until("what lives is noted again", || noted(&w) == ["c1 eth0 Addresses"]).await;
    assert_eq!(holders(&w).await[0].0, "c1");
    let entry = w.agent.journal.all().remove(0);
    assert_eq!((entry.state, entry.is_found()), (State::Added, true));
}
