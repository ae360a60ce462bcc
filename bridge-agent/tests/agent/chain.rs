//! Chained plugins: the coordinator and ifacer.

use api::SpiderCoordinator;
use cni::Error;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use planner::coordinate::HOST_VETH_PREFIX;
use serde_json::{Value, json};

use crate::world::{World, macvlan, with};

fn coordinator(prev: &Value, more: Value) -> Value {
    with(json!({"cniVersion":"1.0.0","name":"mv-net","type":"coordinator","prevResult":prev}), more)
}

async fn underlay(w: &World) -> (model::PodRef, Value) {
    w.v4("p", "10.6.1.10").await;
    w.host.edit_host(|h, _| {
        h.addrs.push(model::observed::Addr {
            dev: model::IfName::new("ens192").unwrap(),
            addr: "10.6.0.11/16".parse().unwrap(),
            scope_link: false,
            permanent: true,
            tentative: false,
            dad_failed: false,
        });
    });
    let pod = w.pod("a", json!({"ipam.spidernet.io/ippool":r#"{"ipv4":["p"]}"#})).await;
    let result = w.add("c1", "eth0", &macvlan(json!({})), Some(&pod)).await.unwrap();
    (pod, result)
}

#[tokio::test]
async fn the_first_nic_gets_a_pair_to_its_node_and_loses_it_by_its_mark() {
    let w = World::new().await;
    let (pod, prev) = underlay(&w).await;
    let before = w.before("c1").await;
    let result = w.add("c1", "eth0", &coordinator(&prev, json!({})), Some(&pod)).await.unwrap();
    assert_eq!(result, prev);
    let pair = |w: &World| w.host.host().links.iter().any(|l| l.name.as_str().starts_with(HOST_VETH_PREFIX));
    assert!(pair(&w));
    w.check("c1", "eth0", &coordinator(&prev, json!({})), &prev, Some(&pod)).await.unwrap();
    // Without prevResult, pod or namespace.
    let mut call = w.call(cni::Verb::Del, "c1", "eth0", json!({"cniVersion":"1.0.0","name":"mv-net","type":"coordinator"}), None);
    call.netns = None;
    w.run(&call, &mut crate::world::Hands::default()).await.unwrap();
    assert!(!pair(&w));
    let after = w.before("c1").await;
    assert_eq!((after.host.links, after.host.routes), (before.host.links, before.host.routes));
}

#[tokio::test]
async fn whichever_of_its_steps_fails_the_host_is_as_the_main_plugin_left_it() {
    let w = World::new().await;
    let (pod, prev) = underlay(&w).await;
    let before = w.before("c1").await;
    let mut k = 0;
    loop {
        w.host.fail_step(k);
        match w.add("c1", "eth0", &coordinator(&prev, json!({})), Some(&pod)).await {
            Ok(_) => break,
            Err(e) => {
                assert_eq!(e.code, Error::APPLY, "{e}");
                assert_eq!(w.before("c1").await, before, "step {k}: {e}");
            }
        }
        k += 1;
    }
    assert!(k > 5, "only {k} steps");
}

#[tokio::test]
async fn settings_come_from_the_network_over_the_cr_and_a_cr_that_is_not_ready_is_no_obstacle() {
    let w = World::new().await;
    let api: Api<SpiderCoordinator> = Api::all(w.client.clone());
    let cr = json!({"apiVersion":"spiderpool.spidernet.io/v2beta1","kind":"SpiderCoordinator","metadata":{"name":"default"},
        "spec":{"mode":"auto","podMACPrefix":"0a:1b","hijackCIDR":["169.254.0.0/16"]}});
    api.create(&PostParams::default(), &serde_json::from_value(cr).unwrap()).await.unwrap();
    let status = json!({"status":{"phase":"NotReady","reason":"no source","overlayPodCIDR":["10.244.0.0/16"],"serviceCIDR":[]}});
    api.patch_status("default", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    w.until("the status is seen", || w.agent.caches.coordinator("default").is_some_and(|c| c.status.is_some())).await;
    let (pod, prev) = underlay(&w).await;
    let result = w.add("c1", "eth0", &coordinator(&prev, json!({"hijackCIDR":["192.0.2.0/24"]})), Some(&pod)).await.unwrap();
    // The result tells the address that the NIC has now.
    assert_eq!(result["interfaces"][0]["mac"], "0a:1b:0a:06:01:0a");
    w.until_async("the endpoint has it", || async {
        w.endpoint("a").await.and_then(|e| e.status?.current.ips.pop()?.mac).as_deref() == Some("0a:1b:0a:06:01:0a")
    })
    .await;
    let pod_state = w.host.pod(&w.netns("c1").to_string_lossy());
    let has = |dst: &str| pod_state.routes.iter().any(|r| r.dst.to_string() == dst && r.dev.as_str() == "veth0");
    assert!(has("10.244.0.0/16") && has("192.0.2.0/24"), "{:?}", pod_state.routes);
    assert!(!has("169.254.0.0/16"), "the network's own list takes the place of the CR's");
}

#[tokio::test]
async fn wrong_settings_are_refused_with_their_field() {
    let w = World::new().await;
    let (pod, prev) = underlay(&w).await;
    for (more, code, part) in [
        (json!({"podRPFilter":7}), Error::INVALID_CONFIG, "podRPFilter"),
        (json!({"hijackCIDR":["nonsense"]}), Error::INVALID_CONFIG, "hijackCIDR[0]"),
        (json!({"mode":"overlay"}), Error::CONFLICT, "mode \"overlay\""),
        (json!({"prevResult":null}), Error::INVALID_CONFIG, "prevResult is missing"),
    ] {
        let e = w.add("c1", "eth0", &coordinator(&prev, more.clone()), Some(&pod)).await.unwrap_err();
        assert!(e.code == code && e.to_string().contains(part), "{more}: {} {e}", e.code);
    }
    let pod = w.pod("b", json!({"ipam.spidernet.io/default-route-nic":"net7"})).await;
    let e = w.add("c1", "eth0", &coordinator(&prev, json!({})), Some(&pod)).await.unwrap_err();
    assert!(e.code == Error::MISSING && e.msg.contains("net7"), "{} {e}", e.code);
}

#[tokio::test]
async fn ifacer_passes_on_where_the_link_is_there_and_says_who_makes_it_where_not() {
    let w = World::new().await;
    let prev = json!({"cniVersion":"1.0.0","ips":[{"address":"10.6.1.10/16"}]});
    let conf = json!({"cniVersion":"1.0.0","name":"n","type":"ifacer","interfaces":["ens192"],"vlanID":0,"prevResult":prev});
    assert_eq!(w.add("c1", "net1", &conf, None).await.unwrap(), prev);
    let e = w.add("c1", "net1", &with(conf, json!({"vlanID":100})), None).await.unwrap_err();
    assert_eq!(
        (e.code, e.msg.as_str()),
        (
            Error::MISSING,
            "interface ens192.100 is not on this node: bonds and vlan devices are made by host networking, not when a pod starts"
        )
    );
}
