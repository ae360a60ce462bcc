//! The object of a case in crd_cases.yaml, for the lanes that judge it.

use serde_json::{Value, json};

/// The accepted object that the case names, or the first, after the case's changes. `cases`: those of its kind.
pub fn object(cases: &Value, case: &Value) -> Value {
    let accepted = cases["accepted"].as_array().into_iter().flatten();
    let mut of = accepted.into_iter().filter(|a| case.get("of").is_none_or(|of| *of == a["name"]));
    let mut base = of.next().expect("`of` names an accepted object").clone();
    if let Some(spec) = case.get("spec") {
        base["spec"] = spec.clone();
    }
    for (part, patch) in [("spec", case.get("patch")), ("status", case.get("status"))] {
        if let Some(patch) = patch {
            merge(&mut base[part], patch);
        }
    }
    let name = case.get("name").unwrap_or(&base["name"]);
    let mut object = json!({"metadata": {"name": name}});
    for part in ["spec", "status"] {
        if let Some(value) = base.get(part) {
            object[part] = value.clone();
        }
    }
    object
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("made one above");
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}
