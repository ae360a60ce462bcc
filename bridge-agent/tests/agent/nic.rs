//! ADD, DEL and CHECK of our main plugins, and every way in which they fail.

use cni::Verb;
use model::Owner;
use serde_json::{Value, json};

use crate::world::{Hands, World, macvlan, ovs, with};

#[tokio::test]
async fn an_ovs_nic_gets_an_address_a_port_and_its_papers_and_loses_them_all() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    let pod = w.pod("a", json!({})).await;
    let before = w.before("c1").await;
    let result = w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap();

    let leases = w.leases().await;
    assert_eq!(leases.len(), 1);
    let lease = &leases[0].spec;
    let holder = lease.holder.clone().unwrap();
    assert_eq!((holder.pod_name.as_str(), holder.interface.as_str(), holder.container_id.as_str()), ("a", "eth0", "c1"));
    assert_eq!((lease.node.as_str(), lease.pool.as_str(), lease.agent_id.as_str()), ("n1", "p", w.agent.me.agent_id.as_str()));
    assert_eq!(lease.identity, None);

    assert_eq!(result["ips"][0]["address"], format!("{}/16", lease.address));
    assert_eq!(result["ips"][0]["gateway"], "10.6.0.1");
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 2);
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    let port =
        w.host.ovs().unwrap().bridges[0].ports.iter().find(|p| p.external_ids.contains_key(Owner::OVS_KEY)).cloned().unwrap();
    assert_eq!(port.tag, Some(100));

    w.until_async("the endpoint is written", || async { w.endpoint("a").await.is_some() }).await;
    let status = w.endpoint("a").await.unwrap().status.unwrap();
    let ip = &status.current.ips[0];
    assert_eq!((ip.interface.as_str(), ip.vlan, ip.ipv4_pool.as_deref()), ("eth0", 100, Some("p")));
    assert_eq!(ip.ipv4.as_deref(), Some(format!("{}/16", lease.address).as_str()));
    assert_eq!(ip.mac.as_deref(), result["interfaces"][1]["mac"].as_str());
    assert_eq!((status.current.node.as_str(), status.owner_controller_type.as_str()), ("n1", "Pod"));

    assert_eq!(w.del("c1", "eth0", &conf, Some(&pod)).await.unwrap(), Value::Null);
    assert_eq!(w.before("c1").await, before);
    assert!(w.agent.journal.is_empty());
    // Twice is as good as once.
    w.del("c1", "eth0", &conf, Some(&pod)).await.unwrap();
}

#[tokio::test]
async fn a_macvlan_nic_is_checked_against_what_is_there() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let pod = w.pod("a", json!({"ipam.spidernet.io/ippool":r#"{"ipv4":["p"]}"#})).await;
    let conf = macvlan(json!({}));
    let result = w.add("c1", "net1", &conf, Some(&pod)).await.unwrap();
    assert_eq!(result["ips"][0]["address"], "10.6.1.10/16");
    w.check("c1", "net1", &conf, &result, Some(&pod)).await.unwrap();
    let path = w.netns("c1").to_string_lossy().into_owned();
    w.host.edit_pod(&path, |p| p.addrs.clear());
    let e = w.check("c1", "net1", &conf, &result, Some(&pod)).await.unwrap_err();
    assert_eq!(e.code, cni::Error::CHECK);
    assert!(e.msg.contains("10.6.1.10"), "{e}");
}

#[tokio::test]
async fn whichever_step_fails_the_host_is_as_before_and_no_address_is_taken() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    for conf in [ovs(json!({})), macvlan(json!({}))] {
        let conf = with(conf, json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
        let pod = w.pod(&format!("a-{}", conf["type"].as_str().unwrap()), json!({})).await;
        let container = format!("c-{}", conf["type"].as_str().unwrap());
        let before = w.before(&container).await;
        let mut k = 0;
        loop {
            w.host.fail_step(k);
            let done = w.add(&container, "eth0", &conf, Some(&pod)).await;
            if done.is_ok() {
                break;
            }
            let e = done.unwrap_err();
            assert_eq!(e.code, cni::Error::APPLY, "{e}");
            assert_eq!(w.before(&container).await, before, "step {k}: {e}");
            assert!(w.agent.journal.is_empty(), "step {k}");
            k += 1;
        }
        assert!(k > 4, "only {k} steps of {conf} were tried");
        w.del(&container, "eth0", &conf, Some(&pod)).await.unwrap();
        assert_eq!(w.before(&container).await, before);
    }
}

#[tokio::test]
async fn an_interface_that_open_vswitch_cannot_use_is_a_failed_add() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    let pod = w.pod("a", json!({})).await;
    let before = w.before("c1").await;
    let name = model::AttachmentId::of("c1", "eth0").link_name("veth").to_string();
    w.host.fail_interface(&name, "could not open network device");
    let e = w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap_err();
    assert!(e.msg.contains("could not open network device"), "{e}");
    assert_eq!(w.before("c1").await, before);
}

#[tokio::test]
async fn a_caller_that_hung_up_leaves_nothing() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    let pod = w.pod("a", json!({})).await;
    let before = w.before("c1").await;
    let abort = bridge_agent::cni_server::Abort::new();
    abort.trigger();
    let call = w.call(Verb::Add, "c1", "eth0", conf, Some(&pod));
    let e = w.run_until(&call, &mut Hands::default(), &abort).await.unwrap_err();
    assert_eq!(e.code, cni::Error::TRY_AGAIN);
    assert_eq!(w.before("c1").await, before);
    assert!(w.agent.journal.is_empty());
}

#[tokio::test]
async fn what_was_made_and_nobody_heard_of_is_taken_back() {
    use bridge_agent::cni_server::Handler;
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    let pod = w.pod("a", json!({})).await;
    let before = w.before("c1").await;
    let call = w.call(Verb::Add, "c1", "eth0", conf, Some(&pod));
    w.run(&call, &mut Hands::default()).await.unwrap();
    w.agent.take_back(&call).await;
    assert_eq!(w.before("c1").await, before);
    assert!(w.agent.journal.is_empty());
}

#[tokio::test]
async fn a_second_add_of_the_same_interface_is_refused_and_harms_nothing() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    let pod = w.pod("a", json!({})).await;
    w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap();
    let before = w.before("c1").await;
    let e = w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap_err();
    assert_eq!(e.to_string(), "interface eth0 of this container was added already, DEL has to come first");
    assert_eq!(w.before("c1").await, before);
}

#[tokio::test]
async fn an_add_after_a_failed_one_works() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let conf = macvlan(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    let pod = w.pod("a", json!({})).await;
    w.host.fail_step(1);
    w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap_err();
    w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap();
}

#[tokio::test]
async fn del_works_without_the_namespace_the_pod_and_of_what_never_was() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    w.del("never", "eth0", &conf, None).await.unwrap();
    let pod = w.pod("a", json!({})).await;
    let before = w.before("c1").await;
    w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap();
    w.delete_pod("a").await;
    let mut call = w.call(Verb::Del, "c1", "eth0", json!({"cniVersion":"1.0.0","name":"ovs-net","type":"cni-ovs"}), None);
    w.end_sandbox("c1");
    call.netns = None;
    w.run(&call, &mut Hands::default()).await.unwrap();
    let after = w.before("c1").await;
    assert_eq!((after.host, after.ovs, after.leases), (before.host, before.ovs, before.leases));
    assert!(w.agent.journal.is_empty());
}

#[tokio::test]
async fn a_layer_two_nic_needs_neither_pool_nor_pod() {
    let w = World::new().await;
    let conf = ovs(json!({"ipam":null,"trunk":[{"id":5}],"vlan":null}));
    let result = w.add("c1", "net1", &conf, None).await.unwrap();
    assert!(result.get("ips").is_none());
    w.check("c1", "net1", &conf, &result, None).await.unwrap();
    w.del("c1", "net1", &conf, None).await.unwrap();
    assert!(w.leases().await.is_empty());
}

#[tokio::test]
async fn a_foreign_ipam_is_executed_by_the_caller_and_gets_its_address_back_after_a_failure() {
    let w = World::new().await;
    let conf = ovs(json!({"ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}));
    let given =
        json!({"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24","gateway":"10.9.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]});
    let add = w.call(Verb::Add, "c1", "eth0", conf.clone(), None);
    let mut hands = Hands::default().with("host-local", Ok(given.clone()));
    let before = w.before("c1").await;
    w.host.fail_step(2);
    w.run(&add, &mut hands).await.unwrap_err();
    assert_eq!(hands.log(), ["ADD host-local eth0", "DEL host-local eth0"]);
    assert_eq!(w.before("c1").await, before);
    assert!(w.agent.journal.is_empty());

    let mut hands = Hands::default().with("host-local", Ok(given));
    let result = w.run(&add, &mut hands).await.unwrap();
    assert_eq!(result["ips"][0]["address"], "10.9.0.5/24");
    let del = w.call(Verb::Del, "c1", "eth0", conf, None);
    w.run(&del, &mut hands).await.unwrap();
    assert_eq!(hands.log(), ["ADD host-local eth0", "DEL host-local eth0"]);
    assert!(hands.inputs.iter().all(|i| i["ipam"]["subnet"] == "10.9.0.0/24"));

    let mut hands = Hands::default();
    let e = w.run(&add, &mut hands).await.unwrap_err();
    assert_eq!(e.msg, "plugin host-local failed (ADD): failed to find plugin \"host-local\" in CNI_PATH");
}

#[tokio::test]
async fn bad_configuration_is_refused_before_an_address_is_taken() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let pod = w.pod("a", json!({})).await;
    let before = w.before("c1").await;
    let ipam = json!({"type":"spiderpool","default_ipv4_ippool":["p"]});
    let cases = [
        (ovs(json!({"bridge":"br7"})), cni::Error::MISSING, "br7"),
        (ovs(json!({"vlan":4096})), cni::Error::INVALID_CONFIG, "vlan \"4096\""),
        (ovs(json!({"trunk":[{"minID":20,"maxID":10}]})), cni::Error::INVALID_CONFIG, "trunk[0]"),
        (macvlan(json!({"master":"ens999"})), cni::Error::MISSING, "ens999"),
        (macvlan(json!({"mtu":9000})), cni::Error::INVALID_CONFIG, "mtu"),
        (macvlan(json!({"mode":"magic"})), cni::Error::INVALID_CONFIG, "mode"),
    ];
    for (conf, code, part) in cases {
        let conf = with(conf, json!({"ipam": ipam}));
        let e = w.add("c1", "eth0", &conf, Some(&pod)).await.unwrap_err();
        assert!(e.code == code && e.msg.contains(part), "{conf}: {} {e}", e.code);
        assert_eq!(w.before("c1").await, before, "{conf}");
    }
    let path = w.netns("c1").to_string_lossy().into_owned();
    w.add("c1", "eth0", &with(macvlan(json!({})), json!({"ipam": ipam})), Some(&pod)).await.unwrap();
    assert_eq!(w.host.pod(&path).links.iter().filter(|l| l.name.as_str() == "eth0").count(), 1);
    // The name is taken in the pod by something that is not ours.
    let e = w.add("c1", "eth0", &with(ovs(json!({"name":"other"})), json!({"ipam": ipam})), Some(&pod)).await.unwrap_err();
    assert_eq!(e.code, cni::Error::CONFLICT);
}

#[tokio::test]
async fn a_configuration_of_another_database_is_refused_before_anything_is_taken() {
    let w = World::new().await;
    let before = w.before("c1").await;
    let conf = ovs(json!({"ipam":null,"socket_file":"unix:/run/other/db.sock"}));
    let e = w.add("c1", "eth0", &conf, None).await.unwrap_err();
    assert_eq!(e.code, cni::Error::INVALID_CONFIG);
    assert!(e.msg.starts_with("socket_file \"/run/other/db.sock\": the agent of this node works on"), "{e}");
    assert_eq!(w.before("c1").await, before);
    // DEL refuses nothing: it has nothing to find.
    w.del("c1", "eth0", &conf, None).await.unwrap();
    w.add("c1", "eth0", &ovs(json!({"ipam":null,"socket_file":"unix:/run/openvswitch/db.sock"})), None).await.unwrap();
}
