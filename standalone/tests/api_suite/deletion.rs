//! Cases about the end of objects: finalizers, preconditions, owners, namespaces, grace.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use serde_json::{Value, json};

use crate::support::{Suite, config_map, eventually, from, plain, pod, refused, widget};

pub async fn a_finalizer_holds_the_object(suite: &Suite) {
    let api = suite.widgets();
    let mut new = widget("w", json!({"subnet": "abc"}));
    new.metadata.finalizers = Some(vec!["suite.mooring.dev/hold".into()]);
    api.create(&PostParams::default(), &new).await.unwrap();
    let marked = api.delete("w", &DeleteParams::default()).await.unwrap().left().expect("the object, as it is still there");
    assert!(marked.metadata.deletion_timestamp.is_some());
    assert_eq!(marked.metadata.generation, Some(2));
    let again = api.delete("w", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(again.metadata.resource_version, marked.metadata.resource_version);
    let more = json!({"metadata": {"finalizers": ["suite.mooring.dev/hold", "suite.mooring.dev/more"]}});
    let message = refused(api.patch("w", &PatchParams::default(), &Patch::Merge(more)).await, 422, "Invalid");
    assert!(message.contains("no new finalizers can be added if the object is being deleted"), "{message}");
    // A dying object can still be written, and its mark cannot be taken back.
    let patch = json!({"metadata": {"deletionTimestamp": null, "labels": {"a": "b"}}});
    let patched = api.patch("w", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    assert_eq!(patched.metadata.deletion_timestamp, marked.metadata.deletion_timestamp);
    let release = json!({"metadata": {"finalizers": null}});
    api.patch("w", &PatchParams::default(), &Patch::Merge(release)).await.unwrap();
    assert!(api.get_opt("w").await.unwrap().is_none());
    // The name is free again, for another object.
    let next = api.create(&PostParams::default(), &widget("w", json!({"subnet": "abc"}))).await.unwrap();
    assert_ne!(next.metadata.uid, marked.metadata.uid);
}

pub async fn preconditions_guard_a_delete(suite: &Suite) {
    let api = suite.config_maps();
    let made = api.create(&PostParams::default(), &config_map("a", json!({}))).await.unwrap();
    let params = |uid: Option<String>, resource_version: Option<String>| DeleteParams {
        preconditions: Some(Preconditions { uid, resource_version }),
        ..Default::default()
    };
    let wrong = params(Some("11111111-1111-1111-1111-111111111111".into()), None);
    refused(api.delete("a", &wrong).await, 409, "Conflict");
    refused(api.delete("a", &params(None, Some("1".into()))).await, 409, "Conflict");
    let right = params(made.metadata.uid, made.metadata.resource_version);
    assert!(api.delete("a", &right).await.unwrap().is_right());
    assert!(api.get_opt("a").await.unwrap().is_none());
}

pub async fn a_collection_goes_by_its_selector(suite: &Suite) {
    let api = suite.config_maps();
    for (name, labels) in [("a", json!({"t": "1"})), ("b", json!({"t": "1"})), ("c", json!({"t": "2"}))] {
        api.create(&PostParams::default(), &config_map(name, labels)).await.unwrap();
    }
    api.delete_collection(&DeleteParams::default(), &ListParams::default().labels("t=1")).await.unwrap();
    eventually("a and b gone", async || api.list(&ListParams::default().labels("t")).await.unwrap().items.len() == 1).await;
    assert!(api.get_opt("c").await.unwrap().is_some());
}

fn owned(name: &str, owners: &[&ConfigMap]) -> ConfigMap {
    let references: Vec<Value> = owners
        .iter()
        .map(|o| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": o.metadata.name, "uid": o.metadata.uid}))
        .collect();
    from(json!({"metadata": {"name": name, "ownerReferences": references}}))
}

pub async fn dependents_go_with_their_last_owner(suite: &Suite) {
    let api = suite.config_maps();
    let params = PostParams::default();
    let a = api.create(&params, &config_map("owner-a", json!({}))).await.unwrap();
    let b = api.create(&params, &config_map("owner-b", json!({}))).await.unwrap();
    let only = api.create(&params, &owned("only", &[&a])).await.unwrap();
    api.create(&params, &owned("both", &[&a, &b])).await.unwrap();
    api.create(&params, &owned("grandchild", &[&only])).await.unwrap();
    let mut cluster = plain(&format!("{}-p", suite.namespace));
    cluster.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    suite.plains().create(&params, &cluster).await.unwrap();

    api.delete("owner-a", &DeleteParams::background()).await.unwrap();
    eventually("grandchild gone", async || api.get_opt("grandchild").await.unwrap().is_none()).await;
    assert!(api.get_opt("only").await.unwrap().is_none());
    eventually("one reference left", async || {
        let both = api.get("both").await.unwrap();
        both.metadata.owner_references.is_some_and(|list| list.len() == 1 && list[0].name == "owner-b")
    })
    .await;
    api.delete("owner-b", &DeleteParams::background()).await.unwrap();
    eventually("both gone", async || api.get_opt("both").await.unwrap().is_none()).await;
    // An owner that never was is an owner that is gone.
    let mut ghost = a.clone();
    ghost.metadata.uid = Some("11111111-1111-1111-1111-111111111111".into());
    api.create(&params, &owned("haunted", &[&ghost])).await.unwrap();
    eventually("haunted gone", async || api.get_opt("haunted").await.unwrap().is_none()).await;
}

pub async fn orphans_stay(suite: &Suite) {
    let api = suite.config_maps();
    let a = api.create(&PostParams::default(), &config_map("a", json!({}))).await.unwrap();
    api.create(&PostParams::default(), &owned("child", &[&a])).await.unwrap();
    let orphan = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..Default::default() };
    api.delete("a", &orphan).await.unwrap();
    eventually("a gone", async || api.get_opt("a").await.unwrap().is_none()).await;
    eventually("reference gone", async || {
        api.get("child").await.unwrap().metadata.owner_references.unwrap_or_default().is_empty()
    })
    .await;
}

pub async fn a_namespace_takes_its_contents_along(suite: &Suite) {
    let name = format!("{}-x", suite.namespace);
    suite.add_namespace(&name).await;
    let maps: Api<ConfigMap> = Api::namespaced(suite.client.clone(), &name);
    let mut held = config_map("held", json!({}));
    held.metadata.finalizers = Some(vec!["suite.mooring.dev/hold".into()]);
    maps.create(&PostParams::default(), &held).await.unwrap();
    maps.create(&PostParams::default(), &config_map("free", json!({}))).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(suite.client.clone());
    namespaces.delete(&name, &DeleteParams::default()).await.unwrap();
    let dying = namespaces.get(&name).await.unwrap();
    assert_eq!(dying.status.unwrap().phase.as_deref(), Some("Terminating"));
    eventually("free gone", async || maps.get_opt("free").await.unwrap().is_none()).await;
    let message = refused(maps.create(&PostParams::default(), &config_map("late", json!({}))).await, 403, "Forbidden");
    assert!(message.ends_with(&format!("unable to create new content in namespace {name} because it is being terminated")));
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    eventually("held marked", async || maps.get("held").await.unwrap().metadata.deletion_timestamp.is_some()).await;
    maps.patch("held", &PatchParams::default(), &release).await.unwrap();
    eventually("namespace gone", async || namespaces.get_opt(&name).await.unwrap().is_none()).await;
}

pub async fn a_running_pod_waits_for_its_kubelet(suite: &Suite) {
    let api = suite.pods();
    api.create(&PostParams::default(), &pod("bound", Some("mt-no-such-node"))).await.unwrap();
    let marked = api.delete("bound", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(30));
    assert!(api.get("bound").await.unwrap().metadata.deletion_timestamp.is_some());
    api.delete("bound", &DeleteParams { grace_period_seconds: Some(0), ..Default::default() }).await.unwrap();
    assert!(api.get_opt("bound").await.unwrap().is_none());
    api.create(&PostParams::default(), &pod("unbound", None)).await.unwrap();
    api.delete("unbound", &DeleteParams::default()).await.unwrap();
    assert!(api.get_opt("unbound").await.unwrap().is_none());
}
