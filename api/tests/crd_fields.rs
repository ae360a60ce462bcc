//! Every field that Spiderpool's CRDs have (fixtures/crd-fields), ours have too: type, required, default and bounds, but for
//! what the table of differences says and why. That ours have more is no difference: a manifest applies unchanged.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Kind, path (`*` at its end: everything below), cell, and why.
const DIFFERENCES: &[(&str, &str, &str, &str)] = &[
    (
        "SpiderCoordinator",
        "spec.*",
        "default",
        "an absent setting is left to the next source and then to the code's default, the same value",
    ),
    (
        "SpiderMultusConfig",
        "spec.coordinator.*",
        "default",
        "with defaults in the object a network would override the SpiderCoordinator in every setting",
    ),
    ("SpiderCoordinator", "spec.*", "bounds", "values that fail every pod are refused"),
    ("SpiderMultusConfig", "spec.*", "bounds", "values that fail every pod are refused"),
    ("SpiderIPPool", "spec.ipVersion", "bounds", "a rule says it with the field's name"),
    ("SpiderSubnet", "spec.ipVersion", "bounds", "a rule says it with the field's name"),
    ("SpiderReservedIP", "spec.ipVersion", "bounds", "a rule says it with the field's name"),
    ("SpiderMultusConfig", "spec.sriov.ippools.matchMasterSubnet", "bounds", "an enum of true and false is a boolean"),
    ("SpiderIPPool", "spec", "required", "a pool without a subnet is none"),
    ("SpiderSubnet", "spec", "required", "a subnet without a subnet is none"),
    (
        "SpiderIPPool",
        "spec.podAffinity.*",
        "bounds",
        "list types are of use to server-side apply only, the selector is atomic as a whole",
    ),
    (
        "SpiderIPPool",
        "spec.namespaceAffinity.*",
        "bounds",
        "list types are of use to server-side apply only, the selector is atomic as a whole",
    ),
    (
        "SpiderIPPool",
        "spec.nodeAffinity.*",
        "bounds",
        "list types are of use to server-side apply only, the selector is atomic as a whole",
    ),
];

fn is_different(kind: &str, path: &str, cell: &str) -> bool {
    DIFFERENCES.iter().any(|(k, p, c, _)| {
        *k == kind && *c == cell && (*p == path || p.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix)))
    })
}

fn fixtures() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    let dir = std::env::var_os("MOORING_FIXTURES").map_or(beside, PathBuf::from).join("crd-fields");
    dir.is_dir().then_some(dir)
}

/// The schema at a dotted path, and whether its parent requires it.
fn at<'a>(root: &'a Value, path: &str) -> Option<(&'a Value, bool)> {
    let mut here = root;
    let mut required = false;
    for part in path.split('.') {
        let (name, items) = match part.strip_suffix("[]") {
            Some(name) => (name, true),
            None => (part, false),
        };
        if name == "*" {
            here = here.get("additionalProperties")?;
            required = false;
        } else {
            required = here["required"].as_array().is_some_and(|r| r.iter().any(|n| n == name));
            here = here.get("properties")?.get(name)?;
        }
        if items {
            here = here.get("items")?;
            required = false;
        }
    }
    Some((here, required))
}

fn number(v: &Value) -> Option<f64> {
    v.as_f64()
}

#[test]
fn every_field_of_spiderpool_is_there() {
    let Some(dir) = fixtures() else {
        println!("skipped: fixtures absent");
        return;
    };
    let mut rows = 0;
    let mut wrong = Vec::new();
    for crd in api::crds::all() {
        let kind = crd.spec.names.kind.clone();
        let file = dir.join(format!("{}.tsv", kind.to_lowercase()));
        if !file.is_file() {
            assert_eq!(crd.spec.group, model::DOMAIN, "{kind} has no table");
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let header = |key: &str| text.lines().find_map(|l| l.strip_prefix(&format!("# {key}\t"))).unwrap_or_default().to_owned();
        let names = &crd.spec.names;
        assert_eq!(names.plural, header("plural"));
        assert_eq!(names.singular.as_deref(), Some(header("singular").as_str()));
        assert_eq!(crd.spec.scope, header("scope"));
        assert_eq!(names.categories.clone().unwrap_or_default().join(","), header("categories"), "{kind}");
        assert!(names.short_names.iter().flatten().any(|s| *s == header("shortNames")), "{kind}");
        let schema = serde_json::to_value(&crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
            let cells: Vec<&str> = line.split('\t').collect();
            let path = cells[0];
            // The API server itself knows these of every object.
            if ["apiVersion", "kind", "metadata"].contains(&path) {
                continue;
            }
            rows += 1;
            let Some((field, required)) = at(&schema, path) else {
                wrong.push(format!("{kind} {path}: is not there"));
                continue;
            };
            let ty = cells[1].split('/').next().unwrap_or_default();
            if field["type"] != ty {
                wrong.push(format!("{kind} {path}: type {} is not {ty}", field["type"]));
            }
            if required != (cells[2] == "yes") && !is_different(&kind, path, "required") {
                wrong.push(format!("{kind} {path}: required {required}"));
            }
            let default: Value =
                if cells[3].is_empty() { Value::Null } else { serde_json::from_str(cells[3]).unwrap_or(json!(cells[3])) };
            let ours = field.get("default").cloned().unwrap_or_default();
            // `spec: {}` is what an absent spec of theirs amounts to.
            if ours != default && !(path == "spec" && ours == json!({})) && !is_different(&kind, path, "default") {
                wrong.push(format!("{kind} {path}: default {ours} is not {default}"));
            }
            for rule in cells.get(4).unwrap_or(&"").split("; ").filter(|r| !r.is_empty()) {
                let (key, value) = rule.split_once('=').unwrap_or((rule, ""));
                let value: Value = serde_json::from_str(value).unwrap_or(json!(value));
                let ours = field.get(key).cloned().unwrap_or_default();
                let same = match key {
                    "enum" => {
                        let mut ours: Vec<String> = ours.as_array().into_iter().flatten().map(Value::to_string).collect();
                        let mut theirs: Vec<String> = value.as_array().into_iter().flatten().map(Value::to_string).collect();
                        ours.sort();
                        theirs.sort();
                        // Ours are nullable where the field may be absent.
                        ours.retain(|o| o != "null");
                        ours == theirs || theirs == ["false", "true"]
                    }
                    _ => ours == value || (number(&ours).is_some() && number(&ours) == number(&value)),
                };
                if !same && !is_different(&kind, path, "bounds") {
                    wrong.push(format!("{kind} {path}: {key} {ours} is not {value}"));
                }
            }
        }
    }
    assert!(rows > 200, "the tables are there: {rows}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
