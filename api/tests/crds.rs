//! The CRDs: files are current, names are right, and the rules refuse what they should, evaluated by the interpreter that
//! the stand-alone API uses. That kube-apiserver judges the same cases the same way is the kube lane's to show.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "cases/object.rs"]
mod case;

use std::path::Path;

use case::object;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_cel::Validator;
use serde_json::{Map, Value, json};

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

/// The cases of every kind: crd_cases.yaml says what its parts mean.
fn cases() -> Map<String, Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crd_cases.yaml");
    serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).expect("the cases are YAML")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

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
fn pools_print_the_columns_of_the_quick_start() {
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
fn every_case_is_judged_as_it_says() {
    let mut wrong = Vec::new();
    for (name, kind) in &cases() {
        let mut judge = |what: &str, object: &Value, old: Option<&Value>, says: &Value| {
            let broken = json!(broken(name, object, old));
            if broken != *says {
                wrong.push(format!("{name} {what}: {says} is due, and {broken} is said"));
            }
        };
        for case in list(&kind["accepted"]) {
            judge(&format!("accepted {}", case["name"]), &object(kind, &json!({"of": case["name"]})), None, &json!([]));
        }
        for case in list(&kind["refused"]) {
            assert!(!list(&case["says"]).is_empty(), "{name}: a refused case says why: {case}");
            judge(&format!("refused {case}"), &object(kind, case), None, &case["says"]);
        }
        for case in list(&kind["changes"]) {
            let old = object(kind, &json!({"of": case["of"]}));
            judge(&format!("change {case}"), &object(kind, case), Some(&old), case.get("says").unwrap_or(&json!([])));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_kind_has_cases_for_all_its_messages() {
    let cases = cases();
    for crd in api::crds::all() {
        let name = &crd.spec.names.kind;
        let kind = cases.get(name).unwrap_or_else(|| panic!("{name} has no cases"));
        let all = list(&kind["refused"]).iter().chain(list(&kind["changes"]));
        let said: Vec<&Value> = all.flat_map(|c| list(&c["says"])).collect();
        for message in messages(&schema(name)) {
            assert!(said.contains(&&message), "{name}: no case breaks the rule {message}");
        }
    }
}

/// Of all rules in a schema.
fn messages(schema: &Value) -> Vec<Value> {
    let mut all: Vec<Value> = list(&schema["x-kubernetes-validations"]).iter().map(|rule| rule["message"].clone()).collect();
    let parts = schema["properties"].as_object().into_iter().flat_map(Map::values);
    for part in parts.chain(schema.get("items")).chain(schema.get("additionalProperties")) {
        all.extend(messages(part));
    }
    all
}

#[test]
fn every_rule_compiles() {
    for crd in api::crds::all() {
        let kind = crd.spec.names.kind.clone();
        let compiled = kube_cel::compile_schema(&schema(&kind));
        assert!(!compiled.has_errors(), "{kind}: {:?}", compiled.compilation_errors());
    }
}
