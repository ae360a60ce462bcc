//! Cases about watches: where they begin, what they show, when they end.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::watcher;
use serde_json::json;

use crate::support::{PATIENCE, Suite, config_map};

type Events = Pin<Box<dyn Stream<Item = Result<WatchEvent<ConfigMap>, kube::Error>> + Send>>;

async fn start(api: &Api<ConfigMap>, params: &WatchParams, version: &str) -> Events {
    Box::pin(api.watch(params, version).await.unwrap())
}

/// Type and name of the next event that is no bookmark.
async fn next(events: &mut Events) -> String {
    loop {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event in time");
        let (what, object) = match event.expect("the watch goes on").unwrap() {
            WatchEvent::Added(object) => ("added", object),
            WatchEvent::Modified(object) => ("modified", object),
            WatchEvent::Deleted(object) => ("deleted", object),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => return format!("error {}", status.code),
        };
        return format!("{what} {}", object.metadata.name.unwrap_or_default());
    }
}

async fn set(api: &Api<ConfigMap>, name: &str, patch: serde_json::Value) {
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

/// A real namespace also holds kube-root-ca.crt, which comes when it likes.
fn ours() -> WatchParams {
    WatchParams::default().labels("suite")
}

fn labels() -> serde_json::Value {
    json!({"suite": ""})
}

pub async fn a_watch_from_a_list_sees_every_change_in_order(suite: &Suite) {
    let api = suite.config_maps();
    api.create(&PostParams::default(), &config_map("old", labels())).await.unwrap();
    let version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = start(&api, &ours(), &version).await;
    api.create(&PostParams::default(), &config_map("a", labels())).await.unwrap();
    set(&api, "a", json!({"data": {"b": "1"}})).await;
    set(&api, "a", json!({"data": {"b": "1"}})).await;
    set(&api, "old", json!({"data": {"b": "1"}})).await;
    api.delete("a", &DeleteParams::default()).await.unwrap();
    for wanted in ["added a", "modified a", "modified old", "deleted a"] {
        assert_eq!(next(&mut events).await, wanted);
    }
    // Another watch from the same version sees the same.
    let mut late = start(&api, &ours(), &version).await;
    for wanted in ["added a", "modified a", "modified old", "deleted a"] {
        assert_eq!(next(&mut late).await, wanted);
    }
}

pub async fn a_watch_from_zero_begins_with_what_exists(suite: &Suite) {
    let api = suite.config_maps();
    api.create(&PostParams::default(), &config_map("a", labels())).await.unwrap();
    api.create(&PostParams::default(), &config_map("b", labels())).await.unwrap();
    let mut events = start(&api, &ours(), "0").await;
    let mut first = [next(&mut events).await, next(&mut events).await];
    first.sort();
    assert_eq!(first, ["added a", "added b"]);
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(next(&mut events).await, "deleted a");
}

pub async fn selectors_turn_changes_into_arrivals_and_departures(suite: &Suite) {
    let api = suite.config_maps();
    let made = api.create(&PostParams::default(), &config_map("a", json!({"suite": "", "on": "no"}))).await.unwrap();
    let version = made.metadata.resource_version.unwrap();
    let mut events = start(&api, &WatchParams::default().labels("on=yes"), &version).await;
    let label = |value: &str| json!({"metadata": {"labels": {"on": value}}});
    set(&api, "a", json!({"data": {"b": "1"}})).await;
    set(&api, "a", label("yes")).await;
    set(&api, "a", json!({"data": {"b": "2"}})).await;
    set(&api, "a", label("no")).await;
    set(&api, "a", label("yes")).await;
    api.delete("a", &DeleteParams::default()).await.unwrap();
    for wanted in ["added a", "modified a", "deleted a", "added a", "deleted a"] {
        assert_eq!(next(&mut events).await, wanted);
    }
}

pub async fn a_watch_by_name_sees_only_its_object(suite: &Suite) {
    let api = suite.config_maps();
    api.create(&PostParams::default(), &config_map("a", labels())).await.unwrap();
    api.create(&PostParams::default(), &config_map("b", labels())).await.unwrap();
    let mut events = start(&api, &WatchParams::default().fields("metadata.name=b"), "0").await;
    assert_eq!(next(&mut events).await, "added b");
    set(&api, "a", json!({"data": {"b": "1"}})).await;
    set(&api, "b", json!({"data": {"b": "1"}})).await;
    assert_eq!(next(&mut events).await, "modified b");
}

pub async fn a_watch_of_all_namespaces_sees_both(suite: &Suite) {
    let other = format!("{}-o", suite.namespace);
    suite.add_namespace(&other).await;
    let second: Api<ConfigMap> = Api::namespaced(suite.client.clone(), &other);
    let all: Api<ConfigMap> = Api::all(suite.client.clone());
    let version = all.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let label = json!({"suite": suite.namespace});
    let selector = format!("suite={}", suite.namespace);
    let mut events = start(&all, &WatchParams::default().labels(&selector), &version).await;
    suite.config_maps().create(&PostParams::default(), &config_map("a", label.clone())).await.unwrap();
    second.create(&PostParams::default(), &config_map("b", label)).await.unwrap();
    assert_eq!(next(&mut events).await, "added a");
    assert_eq!(next(&mut events).await, "added b");
    assert_eq!(all.list(&ListParams::default().labels(&selector)).await.unwrap().items.len(), 2);
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(suite.client.clone());
    namespaces.delete(&other, &DeleteParams::default()).await.unwrap();
}

pub async fn a_watch_ends_at_its_timeout(suite: &Suite) {
    let api = suite.config_maps();
    let events = start(&api, &ours().timeout(1), "0").await;
    let rest: Vec<_> = tokio::time::timeout(PATIENCE, events.try_collect()).await.expect("the end of the watch").unwrap();
    assert!(rest.iter().all(|event| matches!(event, WatchEvent::Bookmark(_))), "{rest:?}");
}

pub async fn the_library_watcher_works(suite: &Suite) {
    let api = suite.config_maps();
    api.create(&PostParams::default(), &config_map("a", labels())).await.unwrap();
    let config = watcher::Config::default().labels("suite").any_semantic();
    let mut events = Box::pin(watcher(api.clone(), config));
    let mut seen = Vec::new();
    let mut made = false;
    while !seen.iter().any(|s| s == "delete b") {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event in time").unwrap().unwrap();
        let name = |object: &ConfigMap| object.metadata.name.clone().unwrap_or_default();
        match event {
            watcher::Event::Init => {}
            watcher::Event::InitApply(object) => seen.push(format!("init {}", name(&object))),
            watcher::Event::InitDone => {
                assert!(!made, "the watcher had to list twice");
                made = true;
                api.create(&PostParams::default(), &config_map("b", labels())).await.unwrap();
                api.delete("b", &DeleteParams::default()).await.unwrap();
            }
            watcher::Event::Apply(object) => seen.push(format!("apply {}", name(&object))),
            watcher::Event::Delete(object) => seen.push(format!("delete {}", name(&object))),
        }
    }
    assert_eq!(seen, ["init a", "apply b", "delete b"]);
}
