//! Objects as users and other controllers have them: the manifests of Spiderpool's quick starts hold no field that ours lack (kubectl's strict
//! validation would refuse them), and what may be missing may be missing.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use api::{NetworkAttachmentDefinition, SpiderEndpoint};
use serde_json::{Value, json};

/// Paths of the object that the kind's schema does not know.
fn unknown(schema: &Value, object: &Value, path: &str, out: &mut Vec<String>) {
    match object {
        Value::Object(map) => {
            for (key, value) in map {
                let path = format!("{path}.{key}");
                match schema["properties"].get(key).or_else(|| schema.get("additionalProperties")) {
                    Some(s) => unknown(s, value, &path, out),
                    None => out.push(path),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| unknown(&schema["items"], v, path, out)),
        _ => {}
    }
}

fn unknown_fields(kind: &str, object: &Value) -> Vec<String> {
    let crd = api::crds::all().into_iter().find(|c| c.spec.names.kind == kind).unwrap();
    let schema = serde_json::to_value(&crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    let mut out = Vec::new();
    unknown(&schema, object, "", &mut out);
    out
}

#[test]
fn the_quick_starts_use_no_field_that_we_lack() {
    let coordinator = json!({
        "spec": {
            "detectGateway": false, "detectIPConflict": false, "hijackCIDR": ["169.254.0.0/16"], "podRPFilter": 0, "hostRPFilter": 0, "hostRuleTable": 500,
            "mode": "auto", "podCIDRType": "calico", "podDefaultRouteNIC": "", "podMACPrefix": "", "tunePodRoutes": true,
        },
        "status": {"overlayPodCIDR": ["10.244.64.0/18"], "phase": "Synced", "serviceCIDR": ["10.244.0.0/18"]},
    });
    assert_eq!(unknown_fields("SpiderCoordinator", &coordinator), Vec::<String>::new());
    let parsed: api::SpiderCoordinator = serde_json::from_value({
        let mut c = coordinator;
        c["metadata"] = json!({"name": "default"});
        c["apiVersion"] = json!("spiderpool.spidernet.io/v2beta1");
        c["kind"] = json!("SpiderCoordinator");
        c
    })
    .unwrap();
    assert!(api::convert::coordinator(&parsed.spec, Some(&parsed)).is_ok());
    let pool = json!({"spec": {"disable": false, "gateway": "10.6.0.1", "ips": ["10.6.212.200-10.6.212.240"], "subnet": "10.6.0.0/16", "multusName": ["kube-system/ovs-conf"]}});
    assert_eq!(unknown_fields("SpiderIPPool", &pool), Vec::<String>::new());
    let network =
        json!({"spec": {"cniType": "macvlan", "macvlan": {"master": ["ens192"], "ippools": {"ipv4": ["10-6-v4"]}, "vlanID": 0}}});
    assert_eq!(unknown_fields("SpiderMultusConfig", &network), Vec::<String>::new());
    assert_eq!(
        unknown_fields("SpiderMultusConfig", &json!({"spec": {"ovs": {"bridge": "br1", "vlans": []}}})),
        [".spec.ovs.vlans"],
        "the test can fail"
    );
}

#[test]
fn an_endpoint_has_no_spec_and_keeps_its_status() {
    let text = json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1",
        "kind": "SpiderEndpoint",
        "metadata": {"name": "p", "namespace": "default"},
        "status": {
            "current": {"uid": "u", "node": "n", "ips": [{"interface": "eth0", "ipv4": "10.6.212.202/16", "ipv4Pool": "p4", "vlan": 0}]},
            "ownerControllerType": "Deployment",
            "ownerControllerName": "d",
        },
    });
    let endpoint: SpiderEndpoint = serde_json::from_value(text.clone()).unwrap();
    assert_eq!(endpoint.status.as_ref().unwrap().current.ips[0].ipv4_pool.as_deref(), Some("p4"));
    assert_eq!(serde_json::to_value(&endpoint).unwrap(), text);
    let crd = api::crds::all().into_iter().find(|c| c.spec.names.kind == "SpiderEndpoint").unwrap();
    assert!(crd.spec.versions[0].subresources.is_none(), "one write makes an endpoint whole");
}

#[test]
fn everything_in_a_nad_may_be_missing() {
    let nad: NetworkAttachmentDefinition = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
    assert_eq!(nad.config(), None);
    let empty: NetworkAttachmentDefinition = serde_json::from_value(json!({"metadata": {}, "spec": {"config": " "}})).unwrap();
    assert_eq!(empty.config(), None);
    let v = serde_json::to_value(&nad).unwrap();
    assert_eq!((v["apiVersion"].as_str(), v["kind"].as_str()), (Some("k8s.cni.cncf.io/v1"), Some("NetworkAttachmentDefinition")));
}
