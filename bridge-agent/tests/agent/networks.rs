//! The meta plugin: several networks of one pod.

use cni::{Error, Verb};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};

use crate::world::{Hands, World, macvlan};

fn mooring() -> Value {
    json!({"cniVersion":"1.0.0","name":"mooring","type":"mooring","clusterNetwork":"cluster"})
}

fn ptp() -> Value {
    json!({"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/x"}],
        "ips":[{"interface":0,"address":"10.244.1.5/24","gateway":"10.244.1.1"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.1"}]})
}

async fn world() -> World {
    let w = World::new().await;
    let conf = json!({"cniVersion":"1.0.0","name":"cluster","plugins":[{"type":"ptp","ipam":{"type":"host-local"}},{"type":"portmap","capabilities":{"portMappings":true}}]});
    std::fs::write(w.dir.path().join("net.d/10-cluster.conflist"), conf.to_string()).unwrap();
    w.v4("p", "10.6.1.10-10.6.1.20").await;
    let second = macvlan(json!({"name":"mv","ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    w.nad("kube-system", "mv", json!({"cniVersion":"1.0.0","name":"mv","plugins":[second]})).await;
    w
}

#[tokio::test]
async fn all_networks_are_added_in_order_told_on_the_pod_and_taken_away_in_reverse() {
    let w = world().await;
    let pod = w.pod("a", json!({"k8s.v1.cni.cncf.io/networks":"kube-system/mv"})).await;
    let before = w.before("c1").await;
    let mut hands = Hands::default().with("ptp", Ok(ptp())).with("portmap", Ok(ptp()));
    let add = w.call(Verb::Add, "c1", "eth0", mooring(), Some(&pod));
    let result = w.run(&add, &mut hands).await.unwrap();
    assert_eq!(result, ptp(), "the runtime gets the first network's result only");
    assert_eq!(hands.log(), ["ADD ptp eth0", "ADD portmap eth0"]);
    assert_eq!(hands.inputs[1]["prevResult"]["ips"][0]["address"], "10.244.1.5/24");

    let api: Api<Pod> = Api::namespaced(w.client.clone(), "default");
    let annotations = api.get("a").await.unwrap().metadata.annotations.unwrap();
    let status: Value = serde_json::from_str(&annotations["k8s.v1.cni.cncf.io/network-status"]).unwrap();
    assert_eq!(
        (&status[0]["name"], &status[0]["default"], &status[0]["ips"][0]),
        (&json!("cluster"), &json!(true), &json!("10.244.1.5"))
    );
    assert_eq!((&status[1]["name"], &status[1]["interface"]), (&json!("kube-system/mv"), &json!("net1")));
    let lease = w.leases().await.pop().unwrap();
    assert_eq!(lease.spec.holder.unwrap().interface, "net1");

    w.run(
        &w.call(
            Verb::Check,
            "c1",
            "eth0",
            {
                let mut c = mooring();
                c["prevResult"] = ptp();
                c
            },
            Some(&pod),
        ),
        &mut hands,
    )
    .await
    .unwrap();

    // The NAD is gone, the pod too: DEL goes by what was noted.
    Api::<api::NetworkAttachmentDefinition>::namespaced(w.client.clone(), "kube-system")
        .delete("mv", &Default::default())
        .await
        .unwrap();
    w.delete_pod("a").await;
    hands.executed.clear();
    w.run(&w.call(Verb::Del, "c1", "eth0", mooring(), Some(&pod)), &mut hands).await.unwrap();
    assert_eq!(hands.log(), ["DEL portmap eth0", "DEL ptp eth0"]);
    assert_eq!(w.before("c1").await, before);
    assert!(w.agent.journal.is_empty());
    w.run(&w.call(Verb::Del, "c1", "eth0", mooring(), Some(&pod)), &mut hands).await.unwrap();
}

#[tokio::test]
async fn a_network_that_fails_undoes_those_before_it_in_reverse() {
    let w = world().await;
    let pod = w.pod("a", json!({"k8s.v1.cni.cncf.io/networks":r#"[{"name":"mv","namespace":"kube-system"},{"name":"mv","namespace":"kube-system","interface":"x2"}]"#})).await;
    let before = w.before("c1").await;
    for (fail, at) in [(0, "net1"), (3, "net1")] {
        let mut hands = Hands::default().with("ptp", Ok(ptp())).with("portmap", Ok(ptp()));
        w.host.fail_step(fail);
        let e = w.run(&w.call(Verb::Add, "c1", "eth0", mooring(), Some(&pod)), &mut hands).await.unwrap_err();
        assert!(e.msg.starts_with(&format!("network kube-system/mv ({at}): failed to ")), "{e}");
        assert_eq!(hands.log(), ["ADD ptp eth0", "ADD portmap eth0", "DEL portmap eth0", "DEL ptp eth0"]);
        assert_eq!(w.before("c1").await, before);
        assert!(w.agent.journal.is_empty());
    }
    let failure = json!({"cniVersion":"1.0.0","code":7,"msg":"no"});
    let mut hands = Hands::default().with("ptp", Ok(ptp())).with("portmap", Err(failure));
    let e = w.run(&w.call(Verb::Add, "c1", "eth0", mooring(), Some(&pod)), &mut hands).await.unwrap_err();
    assert_eq!((e.code, e.msg.as_str()), (7, "network cluster (eth0): plugin portmap failed (ADD): no"));
    assert_eq!(hands.log(), ["ADD ptp eth0", "ADD portmap eth0", "DEL portmap eth0", "DEL ptp eth0"]);
    // And it works again.
    let mut hands = Hands::default().with("ptp", Ok(ptp())).with("portmap", Ok(ptp()));
    w.run(&w.call(Verb::Add, "c1", "eth0", mooring(), Some(&pod)), &mut hands).await.unwrap();
    assert_eq!(w.leases().await.len(), 2, "the same network twice has two addresses");
}

#[tokio::test]
async fn the_pods_default_network_takes_the_place_of_the_clusters() {
    let w = world().await;
    let pod = w.pod("a", json!({"v1.multus-cni.io/default-network":"kube-system/mv"})).await;
    let mut hands = Hands::default();
    let result = w.run(&w.call(Verb::Add, "c1", "eth0", mooring(), Some(&pod)), &mut hands).await.unwrap();
    assert!(hands.log().is_empty());
    assert!(result["ips"][0]["address"].as_str().unwrap().starts_with("10.6.1."));
    assert_eq!(w.leases().await[0].spec.holder.as_ref().unwrap().interface, "eth0");
}

#[tokio::test]
async fn networks_that_are_not_there_are_named() {
    let w = world().await;
    for (i, (annotations, code, message)) in [
        (
            json!({"k8s.v1.cni.cncf.io/networks":"kube-system/nope"}),
            Error::MISSING,
            "network kube-system/nope: there is no such NetworkAttachmentDefinition",
        ),
        (
            json!({"v1.multus-cni.io/default-network":"nope"}),
            Error::MISSING,
            "network kube-system/nope: there is no such NetworkAttachmentDefinition",
        ),
        (
            json!({"k8s.v1.cni.cncf.io/networks":"[{\"name\":"}),
            Error::INVALID_CONFIG,
            "annotation k8s.v1.cni.cncf.io/networks: is not valid JSON: EOF while parsing a value at line 1 column 9",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = w.pod(&format!("bad-{i}"), annotations).await;
        let e = w.run(&w.call(Verb::Add, "c1", "eth0", mooring(), Some(&pod)), &mut Hands::default()).await.unwrap_err();
        assert_eq!((e.code, e.msg.as_str()), (code, message));
        assert!(w.agent.journal.is_empty());
    }
    let pod = w.pod("c", json!({})).await;
    let conf = json!({"cniVersion":"1.0.0","name":"mooring","type":"mooring","clusterNetwork":"nope"});
    let e = w.run(&w.call(Verb::Add, "c1", "eth0", conf, Some(&pod)), &mut Hands::default()).await.unwrap_err();
    assert!(e.code == Error::MISSING && e.msg.starts_with("network nope: no configuration of that name in "), "{e}");
}

#[tokio::test]
async fn an_unfinished_del_is_finished_by_the_next_one() {
    let w = world().await;
    let pod = w.pod("a", json!({"k8s.v1.cni.cncf.io/networks":"kube-system/mv"})).await;
    let mut hands = Hands::default().with("ptp", Ok(ptp())).with("portmap", Ok(ptp()));
    w.run(&w.call(Verb::Add, "c1", "eth0", mooring(), Some(&pod)), &mut hands).await.unwrap();
    // The first network's plugins are not on the node any more; the second network is taken away all the same.
    let del = w.call(Verb::Del, "c1", "eth0", mooring(), Some(&pod));
    let e = w.run(&del, &mut Hands::default()).await.unwrap_err();
    assert_eq!(e.code, Error::TRY_AGAIN);
    assert!(w.leases().await.is_empty());
    assert!(!w.agent.journal.is_empty());
    w.run(&del, &mut hands).await.unwrap();
    assert!(w.agent.journal.is_empty());
}
