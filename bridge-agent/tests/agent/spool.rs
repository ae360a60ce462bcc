//! DELs that came while no agent ran: what is made of them, in whatever state they are found.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use bridge_agent::journal::State;
use bridge_agent::spool::Drained;
use cni::Verb;
use cni::shim::spool::{self, NetnsInode, Spooled};
use cni::wire::Call;
use serde_json::{Value, json};

use crate::world::{Hands, World, macvlan, ovs};

fn dir(w: &World) -> PathBuf {
    w.dir.path().join("spool")
}

/// As a plugin leaves it.
fn leave(w: &World, call: &Call) -> Spooled {
    let netns = call.netns.as_ref().and_then(|p| std::fs::File::open(p).ok());
    let s = Spooled::new(call.clone(), netns.as_ref());
    spool::write(&dir(w), &s).unwrap();
    s
}

fn files(w: &World) -> Vec<String> {
    let names = std::fs::read_dir(dir(w)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.collect()
}

fn done(n: usize) -> Drained {
    Drained { done: n, ..Drained::default() }
}

#[tokio::test]
async fn a_spooled_del_takes_everything_away_before_the_socket_is_served() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    let pod = w.pod("a", json!({})).await;
    let before = w.before("x").await;
    w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap();
    leave(&w, &w.call(Verb::Del, "c1", "eth0", conf.clone(), Some(&pod)));
    // Neither pod nor namespace is left when the agent comes back.
    w.delete_pod("a").await;
    w.end_sandbox("c1");
    let w = w.restart().await;
    assert_eq!(w.agent.drain_at_start().await, done(1));
    assert_eq!(files(&w), [""; 0]);
    assert!(w.agent.journal.is_empty());
    let after = w.before("x").await;
    assert_eq!((after.host, after.ovs, after.leases), (before.host, before.ovs, before.leases));
    // And a DEL that the runtime sends all the same is fine.
    w.del("c1", "eth0", &conf, Some(&pod)).await.unwrap();
    assert_eq!(w.agent.drain_at_start().await, done(0));
}

#[tokio::test]
async fn after_a_boot_a_port_is_found_by_its_mark() {
    let w = World::new().await;
    let before = w.before("x").await;
    let conf = ovs(json!({"ipam":null}));
    w.add("c1", "eth0", &conf, None).await.unwrap();
    leave(&w, &w.call(Verb::Del, "c1", "eth0", conf, None));
    // The journal was on tmpfs, the database of Open vSwitch and the spool on disk.
    std::fs::remove_file(w.dir.path().join("journal")).unwrap();
    w.end_sandbox("c1");
    let w = w.restart().await;
    assert_eq!(w.agent.drain_at_start().await, done(1));
    assert_eq!((w.before("x").await.host, w.before("x").await.ovs), (before.host, before.ovs));
}

#[tokio::test]
async fn what_is_no_request_is_set_aside_and_blocks_nobody() {
    let w = World::new().await;
    let conf = ovs(json!({"ipam":null}));
    w.add("c1", "eth0", &conf, None).await.unwrap();
    leave(&w, &w.call(Verb::Del, "c1", "eth0", conf.clone(), None));
    std::fs::write(dir(&w).join("0.json"), "{\"at\":1,\"call\":").unwrap();
    std::fs::create_dir(dir(&w).join("1.json")).unwrap();
    // Whole, and no DEL of ours.
    leave(&w, &w.call(Verb::Add, "c2", "eth0", conf.clone(), None));
    leave(&w, &w.call(Verb::Del, "c3", "eth0", json!({"cniVersion":"1.0.0","name":"n","type":"bridge"}), None));
    leave(&w, &w.call(Verb::Del, "../c4", "eth0", conf, None));
    // Half written by a plugin that was killed just now, and by one long ago.
    std::fs::write(dir(&w).join(".new.json.1"), "{").unwrap();
    let old = std::fs::File::create(dir(&w).join(".old.json.1")).unwrap();
    old.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
    assert_eq!(w.agent.drain_at_start().await, Drained { done: 1, left: 0, bad: 5 });
    assert!(w.agent.journal.is_empty());
    let mut left = files(&w);
    left.sort();
    assert_eq!((left.len(), left[0].as_str()), (6, ".new.json.1"), "{left:?}");
    assert!(left[1..].iter().all(|n| n.ends_with(".json.bad")), "{left:?}");
    assert_eq!(w.agent.drain_at_start().await, done(0));
}

#[tokio::test]
async fn a_del_of_an_earlier_sandbox_leaves_the_later_one_alone() {
    let w = World::new().await;
    let conf = macvlan(json!({"ipam":null}));
    w.add("c1", "eth0", &conf, None).await.unwrap();
    let path = w.netns("c1");
    let call = w.call(Verb::Del, "c1", "eth0", conf.clone(), None);
    // The container id and the path came back with another namespace.
    for netns in [Some(NetnsInode { dev: 4, ino: 1 }), None] {
        spool::write(&dir(&w), &Spooled { at: 1, netns, call: call.clone() }).unwrap();
        assert_eq!(w.agent.drain_at_start().await, done(1));
        assert_eq!(w.agent.journal.all().len(), 1);
        assert!(w.host.pod(&path.to_string_lossy()).links.iter().any(|l| l.name.as_str() == "eth0"));
    }
    // The same namespace: it is meant.
    let id = std::fs::metadata(&path).unwrap();
    spool::write(&dir(&w), &Spooled { at: 1, netns: Some(NetnsInode { dev: id.dev(), ino: id.ino() }), call }).unwrap();
    assert_eq!(w.agent.drain_at_start().await, done(1));
    assert!(w.agent.journal.is_empty());
    assert!(!w.host.pod(&path.to_string_lossy()).links.iter().any(|l| l.name.as_str() == "eth0"));
}

#[tokio::test]
async fn a_namespace_that_is_not_the_one_at_del_is_not_entered() {
    let w = World::new().await;
    let conf = macvlan(json!({"ipam":null}));
    // What is at the path now belongs to somebody else, and is called the same.
    w.add("other", "eth0", &conf, None).await.unwrap();
    let path = w.netns("other");
    let mut call = w.call(Verb::Del, "c1", "eth0", conf, None);
    call.netns = Some(path.to_string_lossy().into_owned());
    spool::write(&dir(&w), &Spooled { at: 1, netns: Some(NetnsInode { dev: 4, ino: 1 }), call }).unwrap();
    let before = w.before("other").await;
    assert_eq!(w.agent.drain_at_start().await, done(1));
    assert_eq!(w.before("other").await, before);
}

#[tokio::test]
async fn a_del_that_fails_stays_and_is_done_later() {
    let w = World::new().await;
    let conf = ovs(json!({"ipam":null}));
    w.add("c1", "eth0", &conf, None).await.unwrap();
    leave(&w, &w.call(Verb::Del, "c1", "eth0", conf, None));
    w.host.set_ovs_down(true);
    assert_eq!(w.agent.drain_at_start().await, Drained { left: 1, ..Drained::default() });
    assert_eq!(files(&w).len(), 1);
    w.host.set_ovs_down(false);
    assert_eq!(w.agent.drain_at_start().await, done(1));
    assert!(w.agent.journal.is_empty());
}

#[tokio::test]
async fn a_del_that_fails_for_a_day_is_set_aside() {
    let w = World::new().await;
    let call = w.call(Verb::Del, "c1", "eth0", ovs(json!({"ipam":null})), None);
    spool::write(&dir(&w), &Spooled { at: 1, netns: None, call }).unwrap();
    w.host.set_ovs_down(true);
    assert_eq!(w.agent.drain_at_start().await, Drained { bad: 1, ..Drained::default() });
    assert!(files(&w)[0].ends_with(".bad"));
}

#[tokio::test]
async fn what_needs_a_plugin_waits_for_the_next_callers_hands() {
    let w = World::new().await;
    let conf = macvlan(json!({"ipam":{"type":"host-local"}}));
    let given = json!({"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24"}]});
    let mut hands = Hands::default().with("host-local", Ok(given));
    w.run(&w.call(Verb::Add, "c1", "eth0", conf.clone(), None), &mut hands).await.unwrap();
    leave(&w, &w.call(Verb::Del, "c1", "eth0", conf, None));
    w.end_sandbox("c1");
    let w = w.restart().await;
    assert_eq!(w.agent.drain_at_start().await, Drained { left: 1, ..Drained::default() });
    let mut hands = Hands::default().with("host-local", Ok(Value::Null));
    w.run(&w.call(Verb::Del, "nobody", "eth0", macvlan(json!({"ipam":null})), None), &mut hands).await.unwrap();
    assert_eq!(hands.log(), ["DEL host-local eth0"]);
    assert!(files(&w).is_empty() && w.agent.journal.is_empty());
    // Then nothing more is asked of anybody.
    w.run(&w.call(Verb::Del, "nobody", "eth0", macvlan(json!({"ipam":null})), None), &mut hands).await.unwrap();
    assert_eq!(hands.log().len(), 1);
}

#[tokio::test]
async fn an_agent_killed_while_it_drains_does_the_rest_at_its_next_start() {
    let mut w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let before = w.before("x").await;
    // With addresses: giving one back is where a DEL waits.
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    for i in 0..6 {
        let pod = w.pod(&format!("p{i}"), json!({})).await;
        w.add(&format!("c{i}"), "eth0", &conf, Some(&pod)).await.unwrap();
        leave(&w, &w.call(Verb::Del, &format!("c{i}"), "eth0", conf.clone(), Some(&pod)));
        w.end_sandbox(&format!("c{i}"));
    }
    // Killed ever later: the future is dropped at its n-th point of waiting, with files done, half done and untouched.
    let mut cut_short = 0;
    for polls in 1..40 {
        {
            let mut drain = Box::pin(w.agent.drain_at_start());
            for _ in 0..polls {
                if futures_util::poll!(drain.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        w = w.restart().await;
        let left = files(&w).len();
        cut_short += usize::from(left > 0 && left < 6);
        if left == 0 {
            break;
        }
    }
    assert!(cut_short > 0, "no kill came between two files");
    let rest = w.agent.drain_at_start().await;
    assert_eq!((rest.left, rest.bad), (0, 0));
    assert!(files(&w).is_empty());
    w.agent.sweep().await;
    w.until("all is given back", || w.agent.journal.is_empty()).await;
    let after = w.before("x").await;
    assert_eq!((after.host, after.ovs, after.leases), (before.host, before.ovs, before.leases));
}

#[tokio::test]
async fn a_file_whose_del_was_done_but_not_struck_is_done_again_without_harm() {
    let w = World::new().await;
    let conf = ovs(json!({"ipam":null}));
    w.add("c1", "eth0", &conf, None).await.unwrap();
    let s = leave(&w, &w.call(Verb::Del, "c1", "eth0", conf, None));
    assert_eq!(w.agent.drain_at_start().await, done(1));
    spool::write(&dir(&w), &s).unwrap();
    let w = w.restart().await;
    assert_eq!(w.agent.drain_at_start().await, done(1));
    assert!(w.agent.journal.all().iter().all(|e| e.state != State::Deleting));
}
