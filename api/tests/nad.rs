//! Our own networks and their NetworkAttachmentDefinitions (tests/golden: `<case>.yaml` is applied, `<case>.json` is its
//! configuration). `UPDATE_GOLDEN=1` writes what is rendered now; read the difference before it is committed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use api::spider::{CoordinatorSettings, SpiderCoordinator};
use api::{Invalid, NetworkAttachmentDefinition, SpiderMultusConfig};
use serde_json::{Value, json};

fn cluster() -> SpiderCoordinator {
    let spec: CoordinatorSettings =
        serde_json::from_value(json!({"mode": "overlay", "hijackCIDR": ["169.254.0.0/16"], "hostRuleTable": 500})).unwrap();
    SpiderCoordinator::new("default", spec)
}

fn smc(value: Value) -> SpiderMultusConfig {
    let mut all = json!({"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderMultusConfig", "metadata": {"name": "n", "namespace": "default", "uid": "u1"}});
    all.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

fn render(spec: Value) -> Result<NetworkAttachmentDefinition, Invalid> {
    api::nad::render(&smc(json!({ "spec": spec })), None)
}

fn refused(spec: Value) -> String {
    render(spec).unwrap_err().to_string()
}

#[test]
fn networks_are_rendered_as_the_golden_files_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        cases += 1;
        let input: SpiderMultusConfig = serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let nad = api::nad::render(&input, Some(&cluster())).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let config: Value = serde_json::from_str(nad.config().unwrap()).unwrap();
        let golden = path.with_extension("json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, format!("{config:#}\n")).unwrap();
        }
        let want: Value = serde_json::from_str(&std::fs::read_to_string(&golden).unwrap()).unwrap();
        assert_eq!(config, want, "{}", path.display());
    }
    assert_eq!(cases, 5);
}

#[test]
fn a_nad_belongs_to_its_network_and_says_what_it_was_told() {
    let annotations = json!({"example.com/a": "b", "kubectl.kubernetes.io/last-applied-configuration": "{}", "multus.spidernet.io/cr-name": "other", "multus.spidernet.io/cni-version": "1.0.0"});
    let nad = api::nad::render(
        &smc(json!({"metadata": {"name": "n", "namespace": "kube-system", "uid": "u1", "annotations": annotations, "labels": {"x": "y"}}, "spec": {"cniType": "ovs", "ovs": {"bridge": "br1", "deviceID": "0000:01:00.0"}}})),
        None,
    )
    .unwrap();
    let v = serde_json::to_value(&nad).unwrap();
    assert_eq!((v["apiVersion"].as_str(), v["kind"].as_str()), (Some("k8s.cni.cncf.io/v1"), Some("NetworkAttachmentDefinition")));
    assert_eq!((v["metadata"]["name"].as_str(), v["metadata"]["namespace"].as_str()), (Some("other"), Some("kube-system")));
    let a = &v["metadata"]["annotations"];
    assert_eq!(a["k8s.v1.cni.cncf.io/resourceName"], "ovs-cni.network.kubevirt.io/br1");
    assert_eq!(a["example.com/a"], "b");
    assert!(a.get("kubectl.kubernetes.io/last-applied-configuration").is_none() && v["metadata"].get("labels").is_none());
    assert_eq!(
        v["metadata"]["ownerReferences"],
        json!([{"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderMultusConfig", "name": "n", "uid": "u1", "controller": true, "blockOwnerDeletion": true}])
    );
    let config: Value = serde_json::from_str(nad.config().unwrap()).unwrap();
    assert_eq!((config["name"].as_str(), config["cniVersion"].as_str()), (Some("other"), Some("1.0.0")));
}

#[test]
fn an_empty_network_is_an_empty_nad() {
    for spec in [json!({}), json!({"cniType": "custom", "customCNI": ""})] {
        assert_eq!(render(spec).unwrap().config(), None);
    }
}

#[test]
fn each_wrong_field_is_named() {
    for (spec, error) in [
        (json!({"cniType": "ovs"}), "spec.ovs: \"\": must be given with this cniType"),
        (
            json!({"cniType": "ovs", "ovs": {"bridge": "br1"}, "macvlan": {"master": ["a"]}}),
            "spec.cniType: \"ovs\": does not go with the block macvlan",
        ),
        (
            json!({"cniType": "ovs", "ovs": {"bridge": "abcdefghijklmnop"}}),
            "spec.ovs.bridge: \"abcdefghijklmnop\": interface name \"abcdefghijklmnop\" has 16 bytes, at most 15 are allowed",
        ),
        (
            json!({"cniType": "ovs", "ovs": {"bridge": "br1", "vlan": 4095}}),
            "spec.ovs.vlan: \"4095\": vlan tag 4095 is outside 0 to 4094",
        ),
        (
            json!({"cniType": "ovs", "ovs": {"bridge": "br1", "trunk": [{"minID": 9, "maxID": 5}]}}),
            "spec.ovs.trunk[0]: \"9-5\": ends before it begins",
        ),
        (
            json!({"cniType": "ovs", "ovs": {"bridge": "br1", "trunk": [{"maxID": 5}]}}),
            "spec.ovs.trunk[0]: \"{\\\"maxID\\\":5}\": minID and maxID must be given together",
        ),
        (json!({"cniType": "macvlan", "macvlan": {"master": []}}), "spec.macvlan.master: \"\": must name an interface"),
        (
            json!({"cniType": "macvlan", "macvlan": {"master": ["a", "b"]}}),
            "spec.macvlan.bond: \"a,b\": must be given with two or more masters",
        ),
        (
            json!({"cniType": "macvlan", "macvlan": {"master": ["abcdefghijklm"], "vlanID": 100}}),
            "spec.macvlan.vlanID: \"abcdefghijklm.100\": interface name \"abcdefghijklm.100\" has 17 bytes, at most 15 are allowed",
        ),
        (
            json!({"cniType": "macvlan", "macvlan": {"master": ["a"], "mtu": -1}}),
            "spec.macvlan.mtu: \"-1\": is outside 0 to 65535",
        ),
        (
            json!({"cniType": "macvlan", "macvlan": {"master": ["a"]}, "coordinator": {"podMACPrefix": "01:00"}}),
            "spec.coordinator.podMACPrefix: \"01:00\": begins a group address, an interface needs an individual one",
        ),
        (
            json!({"cniType": "macvlan", "macvlan": {"master": ["a"]}, "chainCNIJsonData": ["{}"]}),
            "spec.chainCNIJsonData[0]: \"{}\": has no type",
        ),
        (
            json!({"cniType": "custom", "customCNI": "{\"plugins\":[{}]}"}),
            "spec.customCNI: \"{\\\"plugins\\\":[{}]}\": plugins[0] has no type",
        ),
    ] {
        assert_eq!(refused(spec), error);
    }
    let named = |annotations: Value| {
        api::nad::render(&smc(json!({"metadata": {"name": "n", "annotations": annotations}, "spec": {}})), None)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        named(json!({"multus.spidernet.io/cr-name": "A_b"})),
        "multus.spidernet.io/cr-name: \"A_b\": is not the name of an object: a DNS subdomain"
    );
    assert_eq!(
        named(json!({"multus.spidernet.io/cni-version": "x"})),
        "multus.spidernet.io/cni-version: \"x\": is not one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
    );
}

#[test]
fn a_mistake_of_the_cluster_is_told_as_the_clusters() {
    let mut cr = cluster();
    cr.spec.host_rule_table = Some(0);
    let error = api::nad::render(&smc(json!({"spec": {"cniType": "ovs", "ovs": {"bridge": "br1"}}})), Some(&cr)).unwrap_err();
    assert_eq!(error.field, "SpiderCoordinator.spec.hostRuleTable");
}
