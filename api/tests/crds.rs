//! The CRDs: files are current, names are right, and the rules refuse what they should, evaluated by the interpreter that
//! the stand-alone API uses. That kube-apiserver takes them too is the Kubernetes lane's to show.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_cel::Validator;
use serde_json::{Value, json};

fn crd(kind: &str) -> CustomResourceDefinition {
    api::crds::all().into_iter().find(|c| c.spec.names.kind == kind).expect("the kind is one of ours")
}

fn schema(kind: &str) -> Value {
    let crd = serde_json::to_value(crd(kind)).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Messages of the CEL rules that an object breaks, sorted.
fn broken(kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    let schema = schema(kind);
    let mut out: Vec<String> = match Validator::new().validate_with_defaults(&schema, object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|e| e.message).collect(),
    };
    out.sort();
    out.dedup();
    out
}

fn object(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

fn pool(spec: Value) -> Vec<String> {
    broken("SpiderIPPool", &object("p", spec), None)
}

const NONE: &[&str] = &[];

#[test]
fn files_are_current() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for crd in api::crds::all() {
        let file = dir.join(format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}, run `cargo xtask crds`", file.display()));
        let have: Value = serde_saphyr::from_str(&text).expect("the file is YAML");
        let want = serde_json::to_value(&crd).unwrap();
        // Numbers of YAML have no difference of 8 and 8.0.
        let plain = |v: &Value| v.to_string().replace(".0,", ",").replace(".0}", "}");
        assert_eq!(plain(&have), plain(&want), "{}: run `cargo xtask crds`", file.display());
    }
    let files = std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(files, api::crds::all().len(), "a file in deploy/crds belongs to no kind");
}

#[test]
fn our_group_is_the_domain() {
    for kind in ["Bridge", "NodeNetwork", "AddressLease", "PoolMap"] {
        assert_eq!(crd(kind).spec.group, model::DOMAIN);
    }
}

#[test]
fn pools_print_the_columns_of_the_seeds() {
    let columns = |kind: &str| -> Vec<String> {
        let crd = crd(kind);
        let columns = crd.spec.versions[0].additional_printer_columns.clone().unwrap_or_default();
        columns.into_iter().filter(|c| c.priority.unwrap_or(0) == 0).map(|c| c.name).collect()
    };
    assert_eq!(columns("SpiderIPPool"), ["VERSION", "SUBNET", "ALLOCATED-IP-COUNT", "TOTAL-IP-COUNT", "DEFAULT", "DISABLE"]);
    assert_eq!(columns("SpiderEndpoint"), ["INTERFACE", "IPV4POOL", "IPV4", "IPV6POOL", "IPV6", "NODE"]);
    let version = crd("SpiderIPPool").spec.versions[0].additional_printer_columns.clone().unwrap()[0].json_path.clone();
    assert_eq!(version, ".status.ipVersion", "a pool need not have ipVersion, its column must be true all the same");
}

#[test]
fn a_pool_of_the_seeds_is_taken() {
    assert_eq!(
        pool(
            json!({"subnet": "10.6.0.0/16", "ips": ["10.6.212.200-10.6.212.209"], "gateway": "10.6.0.1", "multusName": ["kube-system/ovs-conf"]})
        ),
        NONE
    );
    assert_eq!(
        pool(json!({"subnet": "fd00:20::/64", "ips": ["fd00:20::10-fd00:20::20"], "gateway": "fd00:20::1", "ipVersion": 6})),
        NONE
    );
    assert_eq!(pool(json!({"subnet": "10.21.0.0/16"})), NONE);
}

#[test]
fn wrong_pools_are_refused() {
    for (patch, message) in [
        (json!({"subnet": "10.24.0.1/16"}), "must be a network without host bits, like 10.6.0.0/16"),
        (json!({"subnet": "10.24.0.0"}), "must be a network without host bits, like 10.6.0.0/16"),
        (json!({"subnet": "010.24.0.0/16"}), "must be a network without host bits, like 10.6.0.0/16"),
        (json!({"ipVersion": 6}), "ipVersion must be that of subnet"),
        (json!({"ips": ["10.25.0.10"]}), "ips must lie in subnet"),
        (json!({"ips": ["10.24.0.10-10.25.0.10"]}), "ips must lie in subnet"),
        (json!({"excludeIPs": ["fd00::1"]}), "excludeIPs must lie in subnet"),
        (json!({"ips": ["10.24.0.20-10.24.0.10"]}), "a range must not end before it begins"),
        (json!({"ips": ["10.24.1.1-10.24.0.255"]}), "a range must not end before it begins"),
        (json!({"ips": ["10.24.0.010"]}), "must be an address or a range a-b without spaces"),
        (json!({"ips": ["10.24.0.0/24"]}), "must be an address or a range a-b without spaces"),
        (json!({"gateway": "10.25.0.1"}), "gateway must lie in subnet"),
        (json!({"gateway": "gw"}), "must be an address"),
        (json!({"routes": [{"dst": "0.0.0.0/0", "gw": "10.24.0.1"}]}), "routes must not have a default route, that is gateway"),
        (
            json!({"routes": [{"dst": "1.0.0.0/8", "gw": "10.24.0.1"}, {"dst": "1.0.0.0/8", "gw": "10.24.0.2"}]}),
            "a destination must not have two routes",
        ),
        (json!({"routes": [{"dst": "1.0.0.0/8", "gw": "10.25.0.1"}]}), "the gateways of routes must lie in subnet"),
        (json!({"routes": [{"dst": "1.0.0.1/8", "gw": "10.24.0.1"}]}), "dst must not have host bits set"),
        (json!({"routes": [{"dst": "fd00::/8", "gw": "10.24.0.1"}]}), "dst and gw must be of one family"),
        (json!({"podAffinity": {}}), "podAffinity must not be empty"),
    ] {
        let mut spec = json!({"subnet": "10.24.0.0/16", "ips": ["10.24.0.10"]});
        spec.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        assert_eq!(pool(spec), [message], "{patch}");
    }
}

#[test]
fn subnet_and_version_of_a_pool_cannot_change() {
    let old = object("p", json!({"subnet": "10.24.0.0/16", "ipVersion": 4}));
    let change = |spec: Value| broken("SpiderIPPool", &object("p", spec), Some(&old));
    assert_eq!(change(json!({"subnet": "10.27.0.0/16", "ipVersion": 4})), ["cannot be changed"]);
    assert_eq!(
        change(json!({"subnet": "10.24.0.0/16", "ipVersion": 6})),
        ["cannot be changed", "ipVersion must be that of subnet"]
    );
    assert_eq!(change(json!({"subnet": "10.24.0.0/16", "ipVersion": 4, "ips": ["10.24.0.1"]})), NONE);
}

#[test]
fn reserved_addresses_are_of_one_family() {
    let r = |spec: Value| broken("SpiderReservedIP", &object("r", spec), None);
    assert_eq!(r(json!({"ips": ["10.20.0.1-10.20.0.9", "10.20.0.11"]})), NONE);
    assert_eq!(r(json!({"ips": ["10.20.0.1", "fd00::1"]})), ["ips must be of one family"]);
    assert_eq!(r(json!({"ipVersion": 6, "ips": ["10.20.0.1"]})), ["ips must be of ipVersion"]);
    assert_eq!(r(json!({"ips": ["10.20.0.300"]})), ["must be an address or a range a-b without spaces"]);
    assert_eq!(r(json!({"ips": ["10.20.0.1-fd00::1"]})), ["a range must lie in one family"]);
}

#[test]
fn bridges_have_a_name_for_the_kernel_and_one_uplink() {
    let b = |spec: Value| broken("Bridge", &object("br1", spec), None);
    assert_eq!(b(json!({"uplink": {"interface": "ens192"}, "nodeSelector": {}, "allowedVLANs": ["100-200", "300"]})), NONE);
    assert_eq!(b(json!({})), NONE);
    let one = "exactly one of interface, mac, defaultRoute, canReach, bond must be given";
    assert_eq!(b(json!({"uplink": {}})), [one]);
    assert_eq!(b(json!({"uplink": {"interface": "a", "mac": "02:00:00:00:00:01"}})), [one]);
    assert_eq!(b(json!({"configs": [{"name": "x", "uplink": {}}]})), [one]);
    assert_eq!(
        b(json!({"configs": [{"name": "enabled", "uplink": {"interface": "a"}}]})),
        ["enabled and disabled are words of the label"]
    );
    assert_eq!(b(json!({"uplink": {"defaultRoute": false}})), ["false says nothing, leave it out"]);
    assert_eq!(b(json!({"uplink": {"canReach": "10.0.0"}})), ["must be an address"]);
    assert_eq!(
        b(json!({"uplink": {"bond": {"name": "bond0", "interfaces": ["a", "a"]}}})),
        ["an interface must not be named twice"]
    );
    assert_eq!(
        b(json!({"uplink": {"bond": {"name": "a", "interfaces": ["a", "b"]}}})),
        ["the bond must not have the name of a member"]
    );
    assert_eq!(
        b(json!({"uplink": {"bond": {"name": "bond0", "interfaces": ["a", "b"], "mode": "balance-tcp"}}})),
        ["balance-tcp needs lacp active or passive"]
    );
    for vlan in ["4095", "200-100", "0-5"] {
        assert_eq!(b(json!({"allowedVLANs": [vlan]})), ["must be a vlan of 1 to 4094, or an ascending range of them"], "{vlan}");
    }
    assert_eq!(
        broken("Bridge", &object("abcdefghijklmnop", json!({})), None),
        ["metadata.name is the bridge's name, at most 15 bytes"]
    );
}

#[test]
fn coordinators_are_checked() {
    let c = |spec: Value| broken("SpiderCoordinator", &object("default", spec), None);
    // What the seeds apply.
    assert_eq!(
        c(
            json!({"mode": "overlay", "podCIDRType": "auto", "detectGateway": false, "detectIPConflict": false, "hostRPFilter": 0, "hostRuleTable": 500, "tunePodRoutes": true, "hijackCIDR": ["169.254.0.0/16", "10.100.0.10"]})
        ),
        NONE
    );
    assert_eq!(c(json!({"hostRuleTable": 254})), ["the tables 253 to 255 are the kernel's"]);
    assert_eq!(c(json!({"vethLinkAddress": "x"})), ["must be an address"]);
    assert_eq!(c(json!({"hijackCIDR": ["x"]})), ["must be a network or an address"]);
    assert_eq!(c(json!({"hijackCIDR": ["10.0.0.1/8"]})), ["a network must not have host bits set"]);
    assert_eq!(c(json!({"policyRoutes": [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]})), ["dst and gw must be of one family"]);
}

#[test]
fn networks_have_the_block_of_their_type() {
    let n = |spec: Value| broken("SpiderMultusConfig", &object("n", spec), None);
    assert_eq!(n(json!({})), NONE);
    assert_eq!(n(json!({"cniType": "ovs", "ovs": {"bridge": "br1"}})), NONE);
    assert_eq!(n(json!({"cniType": "macvlan"})), ["the block macvlan must be given with cniType macvlan, and only then"]);
    assert_eq!(n(json!({"macvlan": {"master": ["a"]}})), ["the block macvlan must be given with cniType macvlan, and only then"]);
    assert_eq!(
        n(json!({"cniType": "macvlan", "macvlan": {"master": ["a", "b"]}})),
        ["two or more masters need a bond, one has none"]
    );
    assert_eq!(
        n(json!({"cniType": "macvlan", "macvlan": {"master": ["a"], "ippools": {"matchMasterSubnet": true}}})),
        ["matchMasterSubnet is for sriov only"]
    );
    assert_eq!(
        n(json!({"cniType": "vlan", "vlan": {"master": ["a"]}})),
        ["vlanID of 1 to 4094 must be given with vlanMode manual, and only then"]
    );
    assert_eq!(
        n(json!({"cniType": "vlan", "vlan": {"master": ["a"], "vlanMode": "auto", "vlanID": 5}})),
        ["vlanID of 1 to 4094 must be given with vlanMode manual, and only then"]
    );
    assert_eq!(
        n(json!({"cniType": "ovs", "ovs": {"bridge": "br1", "trunk": [{"maxID": 5}]}})),
        ["minID and maxID must be given together"]
    );
    assert_eq!(
        n(json!({"cniType": "ovs", "ovs": {"bridge": "br1", "trunk": [{"minID": 6, "maxID": 5}]}})),
        ["minID must not exceed maxID"]
    );
    assert_eq!(n(json!({"cniType": "sriov", "sriov": {}})), ["resourceName must be given"]);
    assert_eq!(
        n(json!({"cniType": "ovs", "ovs": {"bridge": "br1"}, "customCNI": "{}"})),
        ["customCNI is for cniType custom only"]
    );
}

#[test]
fn leases_are_named_by_their_address() {
    let l = |name: &str, spec: Value, old: Option<&Value>| broken("AddressLease", &object(name, spec), old);
    let spec = json!({"pool": "p", "address": "10.6.212.202", "node": "n1", "agentID": "u"});
    let held = json!({"pool": "p", "address": "10.6.212.202", "holder": {"podNamespace": "d", "podName": "p", "interface": "eth0", "containerID": "c"}});
    assert_eq!(l("default.v4-10-6-212-202", spec.clone(), None), NONE);
    assert_eq!(l("default.v4-10-6-212-203", spec.clone(), None), ["metadata.name must be <domain>.<address>"]);
    assert_eq!(l("default.v4-10-6-212-202", held, None), ["a lease with a holder must have a node"]);
    assert_eq!(
        l("default.v4-10-6-212-202", json!({"pool": "p", "address": "10.6.212.202", "node": "n1"}), None),
        ["node and agentID must be given together"]
    );
    let old = object("default.v6-fd00-0000-0000-0000-0000-0000-0000-0001", json!({"pool": "p", "address": "fd00::1"}));
    assert_eq!(
        l("default.v6-fd00-0000-0000-0000-0000-0000-0000-0001", json!({"pool": "p", "address": "fd00::2"}), Some(&old)),
        ["cannot be changed"]
    );
}

#[test]
fn every_rule_compiles() {
    for crd in api::crds::all() {
        let kind = crd.spec.names.kind.clone();
        let compiled = kube_cel::compile_schema(&schema(&kind));
        assert!(!compiled.has_errors(), "{kind}: {:?}", compiled.compilation_errors());
    }
}
