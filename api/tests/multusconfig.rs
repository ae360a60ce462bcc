//! SpiderMultusConfigs and what the real Spiderpool made of them (fixtures/multusconfig): equal as JSON but for the names of
//! our plugins, and for what the table of differences says and why.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::SpiderMultusConfig;
use serde_json::{Value, json};

/// A case where ours does otherwise, on purpose.
enum Difference {
    /// They make a NAD of it, we refuse; the text is in our error.
    Refused(&'static str),
    /// They refuse it, we make a NAD.
    Accepted,
    /// Another value at this place of the configuration; null is "absent".
    Config(&'static str, Value),
}

fn differences() -> BTreeMap<&'static str, (Difference, &'static str)> {
    use Difference::{Accepted, Config, Refused};
    let vlan = "a vlan that nobody named is absent: with 0 the port would be an access port instead of a trunk of all";
    BTreeMap::from([
        ("ovs-min", (Config("/plugins/0/vlan", Value::Null), vlan)),
        ("ovs-coord-false", (Config("/plugins/0/vlan", Value::Null), vlan)),
        ("ovs-trunk-id", (Config("/plugins/0/vlan", Value::Null), vlan)),
        ("ovs-trunk-range", (Config("/plugins/0/vlan", Value::Null), vlan)),
        ("ovs-trunk-all-three", (Config("/plugins/0/vlan", Value::Null), vlan)),
        (
            "macvlan-coord-full",
            (Config("/plugins/1/hostRuleTable", json!(600)), "they never render hostRuleTable, so the setting does nothing"),
        ),
        (
            "macvlan-coord-rpf-negative",
            (Config("/plugins/1/podRPFilter", json!(-1)), "they render podRPFilter only beside podCIDRType"),
        ),
        ("macvlan-coord-hostrule-bad", (Refused("spec.coordinator.hostRuleTable"), "no table has a negative number")),
        ("macvlan-bond-one-master", (Refused("spec.macvlan.bond"), "they ignore a bond of one, whoever wrote it expects one")),
        ("ovs-nobridge", (Refused("spec.ovs.bridge"), "no pod could start")),
        (
            "ovs-trunk-min-only",
            (Refused("spec.ovs.trunk[0]"), "ovs-cni refuses it at every ADD (fixtures/ovs-cni/trunk-min-only)"),
        ),
        ("ib-sriov-pkey-bad", (Refused("spec.ibsriov.pkey"), "no pod could start")),
        ("custom-notype", (Refused("spec.customCNI"), "no pod could start")),
        ("custom-chain", (Refused("spec.chainCNIJsonData[0]"), "they ignore the further plugins without a word")),
        ("ann-cni-version-110", (Accepted, "our plugins speak 1.1.0")),
    ])
}

fn fixtures() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    let dir = std::env::var_os("MOORING_FIXTURES").map_or(beside, PathBuf::from).join("multusconfig");
    dir.is_dir().then_some(dir)
}

/// Name and documents of every YAML file of a folder.
fn cases(dir: &Path) -> Vec<(String, Vec<Value>)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let docs = text.split("\n---\n").map(|d| serde_saphyr::from_str::<Value>(d).expect("a fixture is YAML")).collect();
            out.push((path.file_stem().unwrap().to_str().unwrap().to_owned(), docs));
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

fn render(input: &Value) -> Result<Value, String> {
    let mut input = input.clone();
    // As the fixtures write the identity that the API server gives.
    input["metadata"]["uid"] = json!("<uid>");
    let smc: SpiderMultusConfig = serde_json::from_value(input).map_err(|e| e.to_string())?;
    let nad = api::nad::render(&smc, None).map_err(|e| e.to_string())?;
    Ok(serde_json::to_value(nad).unwrap())
}

/// The configuration with our plugins' names, and as JSON where it is JSON.
fn expected(nad: &Value) -> (Value, Option<Value>) {
    let mut nad = nad.clone();
    let config = nad.pointer_mut("/spec/config").map(Value::take).unwrap_or_default();
    let text = config.as_str().unwrap_or_default();
    let mut config = (!text.is_empty()).then(|| serde_json::from_str::<Value>(text).unwrap());
    if let Some(plugins) = config.as_mut().and_then(|c| c["plugins"].as_array_mut()) {
        for p in plugins {
            match p["type"].as_str() {
                Some("macvlan") => p["type"] = json!("cni-macvlan"),
                Some("ovs") => p["type"] = json!("cni-ovs"),
                _ => continue,
            }
            // The one difference in every network of ours: a pod's selection may name `mac` and `ips`. Through theirs it
            // cannot, for a runtime passes on what is declared and their networks declare nothing.
            p["capabilities"] = json!({"mac": true});
            if !p["ipam"].is_null() {
                p["capabilities"]["ips"] = json!(true);
            }
        }
    }
    (nad["metadata"].clone(), config)
}

fn patched(config: &mut Value, pointer: &str, value: &Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let map = config.pointer_mut(parent).and_then(Value::as_object_mut).expect("the table names a place that is there");
    match value {
        Value::Null => drop(map.remove(key).expect("the table takes away what is there")),
        v => drop(map.insert(key.to_owned(), v.clone())),
    }
}

#[test]
fn what_spiderpool_renders_we_render() {
    let Some(dir) = fixtures() else {
        println!("skipped: fixtures absent");
        return;
    };
    let differences = differences();
    let cases = cases(&dir.join("generated"));
    assert!(cases.len() >= 50, "the recordings are there: {}", cases.len());
    for (name, docs) in cases {
        let ours = render(&docs[0]);
        let (metadata, mut config) = expected(&docs[2]);
        match differences.get(name.as_str()) {
            Some((Difference::Refused(field), why)) => {
                let error = ours.expect_err(&format!("{name}: {why}"));
                assert!(error.starts_with(field), "{name}: {error}");
                continue;
            }
            Some((Difference::Config(pointer, value), _)) => patched(config.as_mut().unwrap(), pointer, value),
            Some((Difference::Accepted, _)) => panic!("{name}: they accept it too"),
            None => {}
        }
        let ours = ours.unwrap_or_else(|e| panic!("{name}: {e}"));
        // The contents of customCNI are the user's: there no name is ours.
        let custom = docs[0]["spec"]["cniType"] == "custom";
        let (our_metadata, our_config) = if custom {
            (ours["metadata"].clone(), ours["spec"]["config"].as_str().map(|c| serde_json::from_str(c).unwrap()))
        } else {
            expected(&ours)
        };
        let theirs = if custom {
            docs[2]["spec"]["config"].as_str().filter(|c| !c.is_empty()).map(|c| serde_json::from_str(c).unwrap())
        } else {
            config
        };
        assert_eq!(our_config, theirs, "{name}");
        assert_eq!(our_metadata, metadata, "{name}");
    }
}

/// What our error begins with, for each case that they refuse.
const REFUSED: &[(&str, &str)] = &[
    ("ann-cni-version-bad", "multus.spidernet.io/cni-version: \"x\""),
    ("bad-cnitype", "unknown variant `bogus`"),
    ("custom-badjson", "spec.customCNI:"),
    ("ib-sriov-noresource", "spec.ibsriov.resourceName:"),
    ("macvlan-bond-mode7", "spec.macvlan.bond.mode:"),
    ("macvlan-bond-noname", "spec.macvlan.bond.name:"),
    ("macvlan-chain-badjson", "spec.chainCNIJsonData[0]:"),
    ("macvlan-chain-empty-string", "spec.chainCNIJsonData[0]:"),
    ("macvlan-chain-list", "spec.chainCNIJsonData[0]:"),
    ("macvlan-chain-notype", "spec.chainCNIJsonData[0]:"),
    ("macvlan-coord-mac-bad", "spec.coordinator.podMACPrefix:"),
    ("macvlan-coord-mac-bad2", "spec.coordinator.podMACPrefix:"),
    ("macvlan-coord-mode-bad", "unknown variant `bogus`"),
    ("macvlan-coord-rpf-bad", "spec.coordinator.podRPFilter:"),
    ("macvlan-coord-tx-bad", "spec.coordinator.txQueueLen:"),
    ("macvlan-coord-vethlink-bad", "spec.coordinator.vethLinkAddress:"),
    ("macvlan-empty-master", "spec.macvlan.master:"),
    ("macvlan-mtu-neg", "spec.macvlan.mtu:"),
    ("macvlan-no-block", "spec.macvlan:"),
    ("macvlan-pools-match", "spec.macvlan.ippools.matchMasterSubnet:"),
    ("macvlan-two-blocks", "spec.cniType:"),
    ("macvlan-two-masters-no-bond", "spec.macvlan.bond:"),
    ("macvlan-vlan-4095", "spec.macvlan.vlanID:"),
    ("no-cnitype", "spec.cniType:"),
    ("ovs-trunk-4095", "spec.ovs.trunk[0].id:"),
    ("ovs-trunk-max-only", "spec.ovs.trunk[0]:"),
    ("ovs-vlan-4095", "spec.ovs.vlan:"),
    ("sriov-noresource", "spec.sriov.resourceName:"),
    ("vlan-auto-id", "spec.vlan.vlanID:"),
];

#[test]
fn what_spiderpool_refuses_we_refuse_for_the_same_field() {
    let Some(dir) = fixtures() else {
        println!("skipped: fixtures absent");
        return;
    };
    let differences = differences();
    let cases = cases(&dir.join("refused"));
    assert!(cases.len() >= REFUSED.len(), "the recordings are there: {}", cases.len());
    for (name, docs) in cases {
        let ours = render(&docs[0]);
        if matches!(differences.get(name.as_str()), Some((Difference::Accepted, _))) {
            assert!(ours.is_ok(), "{name}: {ours:?}");
            continue;
        }
        let (_, begin) =
            REFUSED.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{name} is not in the table: {ours:?}"));
        let error = ours.expect_err(&name);
        assert!(error.starts_with(begin), "{name}: {error}");
    }
}

#[test]
fn every_difference_is_of_a_case() {
    let Some(dir) = fixtures() else {
        println!("skipped: fixtures absent");
        return;
    };
    for name in differences().keys() {
        let is = |folder: &str| dir.join(folder).join(format!("{name}.yaml")).is_file();
        assert!(is("generated") || is("refused"), "{name}");
    }
}
