//! Cases about kinds of CRDs: pruning, defaults, schema, rules, generation, status.

use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::support::{Suite, refused, widget};

pub async fn defaults_are_filled_and_unknown_fields_dropped(suite: &Suite) {
    let api = suite.widgets();
    let new = widget("w", json!({"subnet": "10.0.0.0/24", "nope": 1, "free": {"any": {"thing": 1}}}));
    let made = api.create(&PostParams::default(), &new).await.unwrap();
    assert_eq!(made.data["spec"], json!({"subnet": "10.0.0.0/24", "mode": "auto", "free": {"any": {"thing": 1}}}));
    let patch = Patch::Merge(json!({"spec": {"mode": null, "other": 2}}));
    let patched = api.patch("w", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(patched.data["spec"], made.data["spec"]);
    assert_eq!(patched.metadata.resource_version, made.metadata.resource_version);
}

pub async fn schema_errors_name_field_value_and_rule(suite: &Suite) {
    let api = suite.widgets();
    let head = r#"Widget.suite.mooring.dev "w" is invalid: "#;
    for (spec, wanted) in [
        (json!({}), "spec.subnet: Required value"),
        (json!({"subnet": "ab"}), r#"spec.subnet: Invalid value: "ab": spec.subnet in body should be at least 3 chars long"#),
        (json!({"subnet": 7}), r#"spec.subnet: Invalid value: "integer": spec.subnet in body must be of type string: "integer""#),
        (json!({"subnet": "abc", "mode": "x"}), r#"spec.mode: Unsupported value: "x": supported values: "auto", "off""#),
        (
            json!({"subnet": "abc", "vlan": 4095}),
            "spec.vlan: Invalid value: 4095: spec.vlan in body should be less than or equal to 4094",
        ),
        (
            json!({"subnet": "abc", "mac": "zz"}),
            r#"spec.mac: Invalid value: "zz": spec.mac in body should match '^([0-9a-f]{2}:){5}[0-9a-f]{2}$'"#,
        ),
        (json!({"subnet": "abc", "ips": ["a", "b", "a"]}), r#"spec.ips[2]: Duplicate value: "a""#),
    ] {
        let message = refused(api.create(&PostParams::default(), &widget("w", spec.clone())).await, 422, "Invalid");
        // The real server adds what else it noticed, such as rules that could not be judged.
        assert!(message.starts_with(head) && message.contains(wanted), "{spec}: {message}");
    }
    let mut whole = widget("w", Value::Null);
    whole.data = json!({});
    let message = refused(api.create(&PostParams::default(), &whole).await, 422, "Invalid");
    assert!(message.contains("spec: Required value"), "{message}");
    assert!(api.list(&ListParams::default()).await.unwrap().items.is_empty());
}

pub async fn rules_are_judged_on_create_and_on_change(suite: &Suite) {
    let api = suite.widgets();
    let bad = widget("w", json!({"subnet": "abc", "mode": "off", "vlan": 3}));
    let message = refused(api.create(&PostParams::default(), &bad).await, 422, "Invalid");
    assert!(message.contains("spec: Invalid value") && message.contains("vlan must be absent when mode is off"), "{message}");
    let mut made = api.create(&PostParams::default(), &widget("w", json!({"subnet": "abc"}))).await.unwrap();
    made.data["spec"]["subnet"] = json!("abd");
    let message = refused(api.replace("w", &PostParams::default(), &made).await, 422, "Invalid");
    assert!(message.contains("subnet is immutable"), "{message}");
    let patch = Patch::Merge(json!({"spec": {"vlan": 7}}));
    assert_eq!(api.patch("w", &PatchParams::default(), &patch).await.unwrap().data["spec"]["vlan"], 7);
    let patch = Patch::Merge(json!({"spec": {"mode": "off"}}));
    refused(api.patch("w", &PatchParams::default(), &patch).await, 422, "Invalid");
}

pub async fn the_generation_counts_changes_of_spec_only(suite: &Suite) {
    let api = suite.widgets();
    let made = api.create(&PostParams::default(), &widget("w", json!({"subnet": "abc"}))).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    let patch = |value: Value| Patch::Merge(value);
    let params = PatchParams::default();
    let labelled = api.patch("w", &params, &patch(json!({"metadata": {"labels": {"a": "b"}}}))).await.unwrap();
    assert_eq!(labelled.metadata.generation, Some(1));
    let status = api.patch_status("w", &params, &patch(json!({"status": {"used": 1}}))).await.unwrap();
    assert_eq!(status.metadata.generation, Some(1));
    let changed = api.patch("w", &params, &patch(json!({"spec": {"vlan": 1}}))).await.unwrap();
    assert_eq!(changed.metadata.generation, Some(2));
    let forced = api.patch("w", &params, &patch(json!({"metadata": {"generation": 9}}))).await.unwrap();
    assert_eq!(forced.metadata.generation, Some(2));
}

pub async fn status_takes_nothing_but_status(suite: &Suite) {
    let api = suite.widgets();
    let mut new = widget("w", json!({"subnet": "abc"}));
    new.data["status"] = json!({"used": 9});
    let made = api.create(&PostParams::default(), &new).await.unwrap();
    assert_eq!(made.data.get("status"), None);
    let mut change = made.clone();
    change.data["status"] = json!({"used": 3});
    change.data["spec"]["vlan"] = json!(5);
    change.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    let after = api.replace_status("w", &PostParams::default(), &change).await.unwrap();
    assert_eq!(after.data["status"], json!({"used": 3}));
    assert_eq!(after.data["spec"].get("vlan"), None);
    assert_eq!(after.metadata.labels, None);
    let mut change = after.clone();
    change.data["status"] = json!({"used": 4});
    let same = api.replace("w", &PostParams::default(), &change).await.unwrap();
    assert_eq!(same.data["status"], json!({"used": 3}));
    assert_eq!(same.metadata.resource_version, after.metadata.resource_version);
    refused(api.replace_status("w", &PostParams::default(), &made).await, 409, "Conflict");
    let bad = Patch::Merge(json!({"status": {"used": "many"}}));
    refused(api.patch_status("w", &PatchParams::default(), &bad).await, 422, "Invalid");
    assert_eq!(api.get_status("w").await.unwrap().data["status"], json!({"used": 3}));
}

pub async fn an_update_needs_its_version(suite: &Suite) {
    let api = suite.widgets();
    api.create(&PostParams::default(), &widget("w", json!({"subnet": "abc"}))).await.unwrap();
    let versionless = widget("w", json!({"subnet": "abc", "vlan": 1}));
    let message = refused(api.replace("w", &PostParams::default(), &versionless).await, 422, "Invalid");
    assert!(message.contains("metadata.resourceVersion: Invalid value") && message.ends_with("must be specified for an update"));
}

pub async fn a_selectable_field_selects(suite: &Suite) {
    let api = suite.widgets();
    for (name, mode) in [("a", "auto"), ("b", "off")] {
        let new = widget(name, json!({"subnet": "abc", "mode": mode}));
        api.create(&PostParams::default(), &new).await.unwrap();
    }
    let found = api.list(&ListParams::default().fields("spec.mode=off")).await.unwrap().items;
    assert_eq!(found.iter().filter_map(|w| w.metadata.name.as_deref()).collect::<Vec<_>>(), ["b"]);
    refused(api.list(&ListParams::default().fields("spec.vlan=1")).await, 400, "BadRequest");
}

pub async fn strict_requests_name_unknown_fields(suite: &Suite) {
    let path = format!("/apis/suite.mooring.dev/v1/namespaces/{}/widgets?fieldValidation=Strict", suite.namespace);
    let body = json!({"apiVersion": "suite.mooring.dev/v1", "kind": "Widget", "metadata": {"name": "w"},
        "spec": {"subnet": "abc", "vlans": 1}});
    let message = refused(suite.raw("POST", &path, body).await, 400, "BadRequest");
    assert!(message.contains(r#"strict decoding error: unknown field "spec.vlans""#), "{message}");
}
