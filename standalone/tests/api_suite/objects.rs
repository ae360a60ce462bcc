//! Cases about built-in kinds: names, versions, conflicts, patches, selectors, status.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::support::{Suite, config_map, from, pod, refused};

pub async fn create_sets_what_only_the_server_knows(suite: &Suite) {
    let api = suite.config_maps();
    let made = api.create(&PostParams::default(), &config_map("a", json!({}))).await.unwrap().metadata;
    assert!(made.uid.is_some_and(|uid| uid.len() == 36));
    assert!(made.creation_timestamp.is_some());
    assert_eq!(made.namespace.as_deref(), Some(suite.namespace.as_str()));
    assert!(made.resource_version.is_some_and(|v| v.parse::<u64>().is_ok()));
    let again = api.create(&PostParams::default(), &config_map("a", json!({}))).await;
    assert_eq!(refused(again, 409, "AlreadyExists"), r#"configmaps "a" already exists"#);
    assert_eq!(refused(api.get("b").await, 404, "NotFound"), r#"configmaps "b" not found"#);
    assert_eq!(api.get("a").await.unwrap().data.unwrap()["a"], "1");
    let gone = api.delete("b", &DeleteParams::default()).await;
    assert_eq!(refused(gone, 404, "NotFound"), r#"configmaps "b" not found"#);
    let mut versioned = config_map("c", json!({}));
    versioned.metadata.resource_version = Some("1".into());
    assert!(api.create(&PostParams::default(), &versioned).await.is_err());
}

pub async fn bad_names_and_labels_are_refused(suite: &Suite) {
    let api = suite.config_maps();
    let message = refused(api.create(&PostParams::default(), &config_map("A_b", json!({}))).await, 422, "Invalid");
    let start = r#"ConfigMap "A_b" is invalid: metadata.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain must"#;
    assert!(message.starts_with(start), "{message}");
    let nameless: ConfigMap = from(json!({"metadata": {}}));
    let message = refused(api.create(&PostParams::default(), &nameless).await, 422, "Invalid");
    assert!(message.ends_with("metadata.name: Required value: name or generateName is required"), "{message}");
    let labelled = config_map("c", json!({"x": "not a value"}));
    let message = refused(api.create(&PostParams::default(), &labelled).await, 422, "Invalid");
    assert!(message.contains(r#"metadata.labels: Invalid value: "not a value": a valid label must be"#), "{message}");
    assert!(api.list(&ListParams::default().fields("metadata.name=c")).await.unwrap().items.is_empty());
}

pub async fn a_generated_name_is_unique(suite: &Suite) {
    let api = suite.config_maps();
    let template: ConfigMap = from(json!({"metadata": {"generateName": "made-"}}));
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(api.create(&PostParams::default(), &template).await.unwrap().metadata.name.unwrap());
    }
    assert!(names.iter().all(|n| n.len() == 10 && n.starts_with("made-")), "{names:?}");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3);
}

pub async fn a_stale_update_conflicts(suite: &Suite) {
    let api = suite.config_maps();
    let mut first = api.create(&PostParams::default(), &config_map("a", json!({}))).await.unwrap();
    let stale = first.clone();
    first.data = Some([("a".to_owned(), "2".to_owned())].into());
    let second = api.replace("a", &PostParams::default(), &first).await.unwrap();
    assert_ne!(second.metadata.resource_version, stale.metadata.resource_version);
    let message = refused(api.replace("a", &PostParams::default(), &stale).await, 409, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply \
        your changes to the latest version and try again"
    );
    let patch = json!({"metadata": {"resourceVersion": stale.metadata.resource_version}, "data": {"b": "1"}});
    let patched = api.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await;
    refused(patched, 409, "Conflict");
    // Config maps may be replaced without a version.
    let mut forced = stale;
    forced.metadata.resource_version = None;
    assert_eq!(api.replace("a", &PostParams::default(), &forced).await.unwrap().data.unwrap()["a"], "1");
    let missing = config_map("b", json!({}));
    refused(api.replace("b", &PostParams::default(), &missing).await, 404, "NotFound");
}

pub async fn a_change_of_nothing_makes_no_version(suite: &Suite) {
    let api = suite.config_maps();
    let first = api.create(&PostParams::default(), &config_map("a", json!({"x": "y"}))).await.unwrap();
    let same = api.replace("a", &PostParams::default(), &first).await.unwrap();
    assert_eq!(same.metadata.resource_version, first.metadata.resource_version);
    let patch = Patch::Merge(json!({"metadata": {"labels": {"x": "y"}}, "data": {"none": null}}));
    let same = api.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(same.metadata.resource_version, first.metadata.resource_version);
}

pub async fn merge_patch_merges_and_removes(suite: &Suite) {
    let api = suite.config_maps();
    api.create(&PostParams::default(), &config_map("a", json!({"x": "1", "y": "1"}))).await.unwrap();
    let patch = Patch::Merge(json!({"metadata": {"labels": {"x": null, "z": "1"}}, "data": {"b": "2"}}));
    let patched = api.patch("a", &PatchParams::default(), &patch).await.unwrap();
    let labels: Vec<String> = patched.metadata.labels.unwrap().into_keys().collect();
    assert_eq!(labels, ["y", "z"]);
    assert_eq!(patched.data.unwrap().len(), 2);
    refused(api.patch("b", &PatchParams::default(), &patch).await, 404, "NotFound");
}

pub async fn identity_cannot_change(suite: &Suite) {
    let api = suite.config_maps();
    let made = api.create(&PostParams::default(), &config_map("a", json!({}))).await.unwrap();
    let mut other = made.clone();
    other.metadata.name = Some("b".into());
    let message = refused(api.replace("a", &PostParams::default(), &other).await, 400, "BadRequest");
    assert_eq!(message, "the name of the object (b) does not match the name on the URL (a)");
    let mut other = made.clone();
    other.metadata.namespace = Some("default".into());
    other.metadata.resource_version = None;
    let message = refused(api.create(&PostParams::default(), &other).await, 400, "BadRequest");
    assert_eq!(message, "the namespace of the provided object does not match the namespace sent on the request");
    let mut other = made.clone();
    other.metadata.uid = Some("11111111-1111-1111-1111-111111111111".into());
    refused(api.replace("a", &PostParams::default(), &other).await, 409, "Conflict");
    let mut other = made.clone();
    other.metadata.creation_timestamp = None;
    let kept = api.replace("a", &PostParams::default(), &other).await.unwrap();
    assert_eq!(kept.metadata.creation_timestamp, made.metadata.creation_timestamp);
}

pub async fn a_missing_namespace_takes_nothing(suite: &Suite) {
    let api: Api<ConfigMap> = Api::namespaced(suite.client.clone(), "mt-there-is-no-such-namespace");
    let message = refused(api.create(&PostParams::default(), &config_map("a", json!({}))).await, 404, "NotFound");
    assert_eq!(message, r#"namespaces "mt-there-is-no-such-namespace" not found"#);
    assert!(api.list(&ListParams::default()).await.unwrap().items.is_empty());
}

pub async fn pod_status_is_written_apart(suite: &Suite) {
    let api = suite.pods();
    let mut new = pod("p", None);
    new.status = Some(from(json!({"phase": "Running"})));
    let made = api.create(&PostParams::default(), &new).await.unwrap();
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Pending"));
    let patch = Patch::Merge(json!({"status": {"podIP": "10.0.0.1"}, "metadata": {"labels": {"a": "b"}}}));
    let patched = api.patch("p", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(patched.status.unwrap().pod_ip, None);
    assert!(patched.metadata.labels.is_some());
    let status = json!({"status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}, "spec": {"nodeName": "x"}});
    let patched = api.patch_status("p", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    assert_eq!(patched.status.unwrap().pod_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(patched.spec.unwrap().node_name, None);
}

pub async fn a_pod_moves_to_a_node_only_by_binding(suite: &Suite) {
    let api = suite.pods();
    api.create(&PostParams::default(), &pod("p", None)).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"nodeName": "mt-n1"}}));
    let message = refused(api.patch("p", &PatchParams::default(), &patch).await, 422, "Invalid");
    assert!(message.contains("spec: Forbidden: pod updates may not change fields other than"), "{message}");
    let path = format!("/api/v1/namespaces/{}/pods/p/binding", suite.namespace);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "mt-n1"}});
    suite.raw("POST", &path, binding.clone()).await.unwrap();
    assert_eq!(api.get("p").await.unwrap().spec.unwrap().node_name.as_deref(), Some("mt-n1"));
    refused(suite.raw("POST", &path, binding).await, 409, "Conflict");
    api.delete("p", &DeleteParams { grace_period_seconds: Some(0), ..Default::default() }).await.unwrap();
}

pub async fn label_and_field_selectors_choose(suite: &Suite) {
    let api = suite.config_maps();
    for (name, labels) in [("sel-a", json!({"t": "1"})), ("sel-b", json!({"t": "2"})), ("sel-c", json!({}))] {
        api.create(&PostParams::default(), &config_map(name, labels)).await.unwrap();
    }
    let names = async |params: ListParams| -> Vec<String> {
        let items = api.list(&params).await.unwrap().items.into_iter().filter_map(|c| c.metadata.name);
        // A real namespace also holds kube-root-ca.crt.
        items.filter(|name| name.starts_with("sel-")).collect()
    };
    for (selector, wanted) in [
        ("t=1", &["sel-a"][..]),
        ("t!=1", &["sel-b", "sel-c"]),
        ("t in (1,2)", &["sel-a", "sel-b"]),
        ("t notin (1)", &["sel-b", "sel-c"]),
        ("t", &["sel-a", "sel-b"]),
        ("!t", &["sel-c"]),
        ("t,t!=1", &["sel-b"]),
    ] {
        assert_eq!(names(ListParams::default().labels(selector)).await, wanted, "{selector}");
    }
    assert_eq!(names(ListParams::default().fields("metadata.name=sel-b")).await, ["sel-b"]);
    assert_eq!(names(ListParams::default().fields("metadata.name!=sel-b").labels("t")).await, ["sel-a"]);
    assert_eq!(names(ListParams { resource_version: Some("0".into()), ..Default::default() }).await.len(), 3);
    let message = refused(api.list(&ListParams::default().fields("data.a=1")).await, 400, "BadRequest");
    assert!(
        message.contains(r#""data.a" is not a known field selector: only "metadata.name", "metadata.namespace""#),
        "{message}"
    );
    let pods = suite.pods();
    let message = refused(pods.list(&ListParams::default().fields("spec.image=1")).await, 400, "BadRequest");
    assert!(message.contains("field label not supported: spec.image"), "{message}");
    pods.create(&PostParams::default(), &pod("p", None)).await.unwrap();
    assert_eq!(pods.list(&ListParams::default().fields("spec.nodeName=")).await.unwrap().items.len(), 1);
    assert!(pods.list(&ListParams::default().fields("status.phase=Running")).await.unwrap().items.is_empty());
}

pub async fn unknown_fields_are_refused_only_when_strict(suite: &Suite) {
    let path = format!("/api/v1/namespaces/{}/configmaps", suite.namespace);
    let body = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "nope": 1});
    let strict = suite.raw("POST", &format!("{path}?fieldValidation=Strict"), body("a")).await;
    let message = refused(strict, 400, "BadRequest");
    assert!(message.contains(r#"strict decoding error: unknown field "nope""#), "{message}");
    let made = suite.raw("POST", &path, body("a")).await.unwrap();
    assert_eq!(made.get("nope"), None);
}

pub async fn wrong_types_are_refused(suite: &Suite) {
    let path = format!("/api/v1/namespaces/{}/configmaps", suite.namespace);
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": 1}});
    refused(suite.raw("POST", &path, body).await, 400, "BadRequest");
    let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}});
    refused(suite.raw("POST", &path, body).await, 400, "BadRequest");
    // Null is an object without fields, of which the name is missed first.
    let message = refused(suite.raw("POST", &path, Value::Null).await, 422, "Invalid");
    assert!(message.contains("metadata.name: Required value: name or generateName is required"), "{message}");
    refused(suite.raw("POST", &path, json!([])).await, 400, "BadRequest");
    assert!(suite.config_maps().get_opt("a").await.unwrap().is_none());
}

pub async fn metadata_alone_can_be_asked_for(suite: &Suite) {
    let api = suite.config_maps();
    api.create(&PostParams::default(), &config_map("a", json!({"x": "y"}))).await.unwrap();
    let one = api.get_metadata("a").await.unwrap();
    assert_eq!(one.types.unwrap().kind, "PartialObjectMetadata");
    let list = api.list_metadata(&ListParams::default().labels("x=y")).await.unwrap();
    assert_eq!(list.items.len(), 1);
    assert_eq!(list.items[0].metadata.name.as_deref(), Some("a"));
}

pub async fn a_dry_run_changes_nothing(suite: &Suite) {
    let api = suite.config_maps();
    let dry = PostParams { dry_run: true, ..Default::default() };
    let shown = api.create(&dry, &config_map("a", json!({}))).await.unwrap();
    assert!(shown.metadata.uid.is_some());
    assert!(api.get_opt("a").await.unwrap().is_none());
    let made = api.create(&PostParams::default(), &config_map("a", json!({}))).await.unwrap();
    let patch = Patch::Merge(json!({"data": {"a": "9"}}));
    let shown = api.patch("a", &PatchParams { dry_run: true, ..Default::default() }, &patch).await.unwrap();
    assert_eq!(shown.data.unwrap()["a"], "9");
    assert_eq!(api.get("a").await.unwrap(), made);
}

pub async fn discovery_names_the_kinds(suite: &Suite) {
    assert_eq!(suite.client.apiserver_version().await.unwrap().major, "1");
    let core = suite.client.list_core_api_resources("v1").await.unwrap();
    let pods = core.resources.iter().find(|r| r.name == "pods").unwrap();
    assert!(pods.namespaced && pods.verbs.iter().any(|verb| verb == "watch"));
    assert!(core.resources.iter().any(|r| r.name == "pods/status"));
    let group = kube::discovery::group(&suite.client, "suite.mooring.dev").await.unwrap();
    let (resource, _) = group.recommended_kind("Widget").unwrap();
    assert_eq!(resource.plural, "widgets");
    assert!(kube::discovery::group(&suite.client, "none.mooring.dev").await.is_err());
}
