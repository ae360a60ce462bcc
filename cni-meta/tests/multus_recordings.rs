//! The annotations that Multus wrote for recorded pods, against ours for the same networks and results.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

use std::path::{Path, PathBuf};

use cni::AddResult;
use cni_meta::{NETWORK_STATUS, NETWORKS, NetworkStatus, Selection, interface_names};
use model::IfName;
use serde_json::Value;

fn fixtures() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    std::env::var_os("MOORING_FIXTURES").map(PathBuf::from).into_iter().chain([beside]).find(|p| p.is_dir())
}

fn annotation(pod: &Value, key: &str) -> String {
    pod["metadata"]["annotations"][key].as_str().unwrap_or_default().to_owned()
}

/// Results that libcni cached for the delegates: (network name, interface, result).
fn cached(dir: &Path) -> Vec<(String, String, AddResult)> {
    let Ok(files) = std::fs::read_dir(dir) else { return Vec::new() };
    files
        .map(|f| {
            let v: Value = serde_json::from_str(&std::fs::read_to_string(f.unwrap().path()).unwrap()).unwrap();
            let text = |k: &str| v[k].as_str().unwrap().to_owned();
            (text("networkName"), text("ifName"), AddResult::from_value(&v["result"]).unwrap())
        })
        .collect()
}

#[test]
fn network_status_is_what_multus_wrote() {
    let Some(dir) = fixtures().map(|f| f.join("pods")) else {
        println!("skipped: fixtures absent");
        return;
    };
    let (mut pods, mut networks, mut nil) = (0, 0, 0);
    for case in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        let Ok(text) = std::fs::read_to_string(case.join("pod-after.yaml")) else { continue };
        let pod: Value = serde_saphyr::from_str(&text).unwrap();
        let theirs = annotation(&pod, NETWORK_STATUS);
        if theirs.is_empty() {
            continue;
        }
        pods += 1;
        let theirs: Vec<Value> = serde_json::from_str(&theirs).unwrap();
        let chosen = Selection::parse_networks(&annotation(&pod, NETWORKS), "default").unwrap();
        let names = interface_names(&chosen, &IfName::new("eth0").unwrap()).unwrap();
        let ours: Vec<_> = chosen.iter().zip(&names).map(|(s, n)| (s.reference(), n.to_string())).collect();
        let seen: Vec<_> = theirs[1..]
            .iter()
            .map(|t| (t["name"].as_str().unwrap().to_owned(), t["interface"].as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(ours, seen, "{}: networks and names of interfaces", case.display());
        let results = cached(&case.join("var-lib-cni/multus/results"));
        for t in &theirs {
            let (reference, ifname) = (t["name"].as_str().unwrap(), t["interface"].as_str().unwrap());
            let network = reference.rsplit('/').next().unwrap();
            let Some((_, _, result)) = results.iter().find(|(n, i, _)| n == network && i == ifname) else {
                panic!("{}: no cached result of {reference} {ifname}", case.display());
            };
            let status = NetworkStatus::of(reference, &IfName::new(ifname).unwrap(), result, ifname == "eth0");
            let (mut ours, mut theirs) = (serde_json::to_value(status).unwrap(), t.clone());
            // The one deliberate difference: a default route without a next hop (ptp) is the text "<nil>" there.
            if theirs["gateway"] == serde_json::json!(["<nil>"]) {
                nil += 1;
                assert!(ours["gateway"][0].as_str().unwrap().parse::<std::net::IpAddr>().is_ok(), "{}", case.display());
                (ours["gateway"], theirs["gateway"]) = (Value::Null, Value::Null);
            }
            assert_eq!(ours, theirs, "{}: {reference} {ifname}", case.display());
            networks += 1;
        }
    }
    assert_eq!(nil, 1, "recordings with a default route without a next hop");
    assert!(pods >= 20 && networks >= 30, "only {pods} pods with {networks} networks were compared");
}
