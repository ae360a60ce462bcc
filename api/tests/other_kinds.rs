//! SpiderIPPools, SpiderReservedIPs and SpiderCoordinators that the real Spiderpool was given, and whether it took them
//! (fixtures/multusconfig/other-kinds). Ours answers by CEL or by conversion; what only a look at other objects can tell is
//! the controller's condition and in the table here.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use api::{SpiderCoordinator, SpiderIPPool, SpiderReservedIP};
use kube_cel::Validator;
use serde_json::Value;

/// Case of a file, what ours does otherwise, and why.
const DIFFERENCES: &[(&str, &str, bool, &str)] = &[
    ("spiderippool.txt", "descending range", false, "they take it and count its addresses backwards"),
    (
        "spiderippool.txt",
        "same subnet, overlapping ips",
        true,
        "another pool is needed to tell: the younger has a condition and gets nothing of the older's",
    ),
    ("spiderippool.txt", "partly overlapping subnet", true, "another pool is needed to tell: only shared addresses matter"),
    ("spidercoordinator.txt", "empty spec", true, "podCIDRType has a default here, their webhook demands it"),
    ("spidercoordinator.txt", "without podCIDRType", true, "podCIDRType has a default here, their webhook demands it"),
];

fn fixtures() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    let dir = std::env::var_os("MOORING_FIXTURES").map_or(beside, PathBuf::from).join("multusconfig/other-kinds");
    dir.is_dir().then_some(dir)
}

/// Name, object and whether it was taken, of every `kubectl create` in a recording.
fn creations(text: &str) -> Vec<(String, Value, bool)> {
    let mut out = Vec::new();
    for case in text.split("\n### ").map(|c| c.trim_start_matches("### ")) {
        let name = case.lines().next().unwrap_or_default().to_owned();
        let Some((_, rest)) = case.split_once("$ kubectl create -f -\n") else { continue };
        let (yaml, rest) = rest.split_once("# exit code ").expect("a recorded command has an exit code");
        out.push((name, serde_saphyr::from_str(yaml).expect("a fixture is YAML"), rest.starts_with('0')));
    }
    out
}

/// What is wrong with it, by the rules of the CRD and then by conversion.
fn ours(object: &Value) -> Result<(), String> {
    let kind = object["kind"].as_str().unwrap();
    let crd = api::crds::all().into_iter().find(|c| c.spec.names.kind == kind).unwrap();
    let schema = serde_json::to_value(&crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    Validator::new().validate_with_defaults(&schema, object, None).map_err(|e| format!("{e:?}"))?;
    let mut object = object.clone();
    if object.get("spec").is_none_or(Value::is_null) {
        object["spec"] = serde_json::json!({});
    }
    let text = |e: serde_json::Error| e.to_string();
    match kind {
        "SpiderIPPool" => api::convert::pool(&serde_json::from_value::<SpiderIPPool>(object).map_err(text)?).map(drop),
        "SpiderReservedIP" => {
            api::convert::reserved(&serde_json::from_value::<SpiderReservedIP>(object).map_err(text)?).map(drop)
        }
        "SpiderCoordinator" => {
            let cr: SpiderCoordinator = serde_json::from_value(object).map_err(text)?;
            api::convert::coordinator(&cr.spec, None).map(drop)
        }
        other => panic!("{other} is not judged here"),
    }
    .map_err(|e| e.to_string())
}

#[test]
fn what_spiderpool_takes_we_take_and_what_it_refuses_we_refuse() {
    let Some(dir) = fixtures() else {
        println!("skipped: fixtures absent");
        return;
    };
    let mut judged = 0;
    let mut different = Vec::new();
    let mut wrong = Vec::new();
    for file in ["spiderippool.txt", "spiderreservedip.txt", "spidercoordinator.txt"] {
        for (name, object, taken) in creations(&std::fs::read_to_string(dir.join(file)).unwrap()) {
            // The API server refuses such a name before any rule of ours.
            if object["metadata"]["name"].as_str().is_some_and(|n| n.contains('*')) {
                continue;
            }
            judged += 1;
            let ours = ours(&object);
            let listed = DIFFERENCES.iter().find(|d| d.0 == file && d.1 == name);
            let want = listed.map_or(taken, |d| d.2);
            if listed.is_some() {
                assert_ne!(want, taken, "{file} {name} is no difference");
                different.push(name.clone());
            }
            if ours.is_ok() != want {
                wrong.push(format!("{file} {name}: taken by them {taken}, ours {ours:?}"));
            }
        }
    }
    assert!(judged > 30, "the recordings are there: {judged}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(different.len(), DIFFERENCES.len(), "every difference is of a case: {different:?}");
}
