//! What only this server promises: its bounds, its guard, and what it refuses because it is small.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::ApiResource;
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use standalone::{Options, Server, kinds};

fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str) -> ConfigMap {
    from(json!({"metadata": {"name": name}}))
}

fn with(options: Options) -> Client {
    Server::with_options(kinds::builtin(), Vec::new(), options).unwrap().client("test")
}

fn code_of<T>(result: Result<T, kube::Error>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        Err(other) => panic!("no Status object: {other}"),
        Ok(_) => panic!("accepted"),
    }
}

async fn change(api: &Api<ConfigMap>, times: usize) {
    for i in 0..times {
        let patch = Patch::Merge(json!({"data": {"i": i.to_string()}}));
        api.patch("a", &PatchParams::default(), &patch).await.unwrap();
    }
}

async fn first_error(api: &Api<ConfigMap>, version: &str) -> (u16, String) {
    let mut events = Box::pin(api.watch(&WatchParams::default(), version).await.unwrap());
    match events.next().await.unwrap().unwrap() {
        WatchEvent::Error(status) => (status.code, status.reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn versions_beyond_the_window_are_gone() {
    let api: Api<ConfigMap> = Api::default_namespaced(with(Options { event_window: 8, ..Options::default() }));
    let made = api.create(&PostParams::default(), &config_map("a")).await.unwrap();
    change(&api, 20).await;
    let old = made.metadata.resource_version.unwrap();
    assert_eq!(first_error(&api, &old).await, (410, "Expired".to_owned()));
    // A version that this server has not given out yet is one of a predecessor that lost its end.
    assert_eq!(first_error(&api, "99999999").await, (410, "Expired".to_owned()));
    let future = ListParams { resource_version: Some("99999999".into()), ..Default::default() };
    let future = ListParams { version_match: Some(kube::api::VersionMatch::NotOlderThan), ..future };
    assert_eq!(code_of(api.list(&future).await).0, 504);
}

#[tokio::test]
async fn a_slow_watcher_is_closed_and_told_why() {
    let api: Api<ConfigMap> = Api::default_namespaced(with(Options { event_window: 8, ..Options::default() }));
    let made = api.create(&PostParams::default(), &config_map("a")).await.unwrap();
    let version = made.metadata.resource_version.unwrap();
    let mut events = Box::pin(api.watch(&WatchParams::default(), &version).await.unwrap());
    change(&api, 4).await;
    assert!(matches!(events.next().await, Some(Ok(WatchEvent::Modified(_)))));
    change(&api, 50).await;
    let rest: Vec<_> = events.try_collect().await.unwrap();
    match rest.last() {
        Some(WatchEvent::Error(status)) => assert!(status.message.starts_with("too old resource version: "), "{status:?}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_idle_watch_gets_bookmarks_only_when_it_asks() {
    let client = with(Options { bookmark_every: Duration::from_millis(50), ..Options::default() });
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let made = api.create(&PostParams::default(), &config_map("a")).await.unwrap();
    let version = made.metadata.resource_version.unwrap();
    let mut events = Box::pin(api.watch(&WatchParams::default(), &version).await.unwrap());
    let elsewhere: Api<Event> = Api::default_namespaced(client);
    let event = from(json!({"metadata": {"name": "e"}, "involvedObject": {}}));
    let newest = elsewhere.create(&PostParams::default(), &event).await.unwrap().metadata.resource_version.unwrap();
    loop {
        match events.next().await.unwrap().unwrap() {
            WatchEvent::Bookmark(mark) if mark.metadata.resource_version == newest => break,
            WatchEvent::Bookmark(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let quiet = WatchParams { bookmarks: false, ..WatchParams::default().timeout(1) };
    let none: Vec<_> = api.watch(&quiet, &version).await.unwrap().try_collect().await.unwrap();
    assert!(none.is_empty(), "{none:?}");
}

#[tokio::test]
async fn streaming_lists_work() {
    let api: Api<ConfigMap> = Api::default_namespaced(with(Options::default()));
    api.create(&PostParams::default(), &config_map("a")).await.unwrap();
    let mut events = Box::pin(watcher(api, watcher::Config::default().streaming_lists()));
    assert!(matches!(events.next().await, Some(Ok(watcher::Event::Init))));
    assert!(matches!(events.next().await, Some(Ok(watcher::Event::InitApply(_)))));
    assert!(matches!(events.next().await, Some(Ok(watcher::Event::InitDone))));
}

#[tokio::test]
async fn only_the_controller_and_agents_delete_leases() {
    let crd: CustomResourceDefinition = from(json!({
        "metadata": {"name": "addressleases.mooring.dev"},
        "spec": {
            "group": "mooring.dev", "scope": "Cluster", "names": {"kind": "AddressLease", "plural": "addressleases"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
        },
    }));
    let server = Server::new(kinds::builtin(), vec![crd]).unwrap();
    let resource = ApiResource {
        group: "mooring.dev".into(),
        version: "v1alpha1".into(),
        api_version: "mooring.dev/v1alpha1".into(),
        kind: "AddressLease".into(),
        plural: "addressleases".into(),
    };
    let api = |account: &str| -> Api<DynamicObject> { Api::all_with(server.client(account), &resource) };
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(server.client("test"));
    let node = nodes.create(&PostParams::default(), &from(json!({"metadata": {"name": "n1"}}))).await.unwrap();
    for name in ["a", "b"] {
        let lease = from(json!({"metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": node.metadata.uid}]}}));
        api("anyone").create(&PostParams::default(), &lease).await.unwrap();
    }
    for account in ["anyone", "", "mooring-cli"] {
        let (code, message) = code_of(api(account).delete("a", &DeleteParams::default()).await);
        assert_eq!(code, 403);
        assert!(message.starts_with(r#"addressleases.mooring.dev "a" is forbidden"#), "{message}");
        assert_eq!(code_of(api(account).delete_collection(&Default::default(), &Default::default()).await).0, 403);
    }
    // Not even a dying owner takes a lease along.
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    assert_eq!(api("anyone").list(&ListParams::default()).await.unwrap().items.len(), 2);
    api("mooring-agent").delete("a", &DeleteParams::default()).await.unwrap();
    api("mooring-controller").delete("b", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn what_is_not_implemented_says_so() {
    let client = with(Options::default());
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    api.create(&PostParams::default(), &config_map("a")).await.unwrap();
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}});
    let (code, message) = code_of(api.patch("a", &PatchParams::apply("x"), &Patch::Apply(&body)).await);
    assert_eq!(code, 415);
    assert!(message.contains("application/merge-patch+json") && message.contains("application/apply-patch+yaml"), "{message}");
    assert_eq!(code_of(api.patch("a", &PatchParams::default(), &Patch::Strategic(&body)).await).0, 415);
    let raw = async |method: &str, path: &str, body: Vec<u8>| {
        let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        code_of(client.request::<Value>(request.body(body).unwrap()).await).0
    };
    assert_eq!(raw("GET", "/api/v1/secrets", Vec::new()).await, 404);
    assert_eq!(raw("GET", "/apis/apps/v1beta1/deployments", Vec::new()).await, 404);
    assert_eq!(raw("GET", "/api/v1/configmaps/a", Vec::new()).await, 404);
    assert_eq!(raw("GET", "/api/v1/namespaces/default/configmaps/a/status", Vec::new()).await, 404);
    assert_eq!(raw("GET", "/a/b/c/d", Vec::new()).await, 404);
    assert_eq!(raw("PUT", "/api/v1/namespaces/default/configmaps", b"{}".to_vec()).await, 405);
    assert_eq!(raw("POST", "/api/v1/configmaps", b"{}".to_vec()).await, 405);
    assert_eq!(raw("POST", "/api/v1/namespaces/default/configmaps", b"{".to_vec()).await, 400);
    assert_eq!(raw("POST", "/api/v1/namespaces/default/configmaps", vec![b' '; 3 * 1024 * 1024 + 1]).await, 413);
    assert_eq!(raw("GET", "/api/v1/configmaps?resourceVersion=x", Vec::new()).await, 400);
    assert_eq!(raw("GET", "/api/v1/configmaps?continue=x", Vec::new()).await, 400);
}

#[tokio::test]
async fn events_do_not_pile_up() {
    let api: Api<Event> = Api::default_namespaced(with(Options::default()));
    for i in 0..4200 {
        let event: Event = from(json!({"metadata": {"name": format!("e{i}")}, "involvedObject": {}}));
        api.create(&PostParams::default(), &event).await.unwrap();
    }
    let left = api.list(&ListParams::default()).await.unwrap().items;
    assert!(left.len() <= 4096, "{}", left.len());
    assert!(api.get_opt("e4199").await.unwrap().is_some());
    assert!(api.get_opt("e0").await.unwrap().is_none());
}

#[tokio::test]
async fn a_socket_in_use_and_a_file_that_is_none_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    std::fs::write(&path, "precious").unwrap();
    let server = Server::new(kinds::builtin(), Vec::new()).unwrap();
    let error = server.serve_unix(&path, std::future::pending()).await.unwrap_err();
    assert!(error.to_string().ends_with("exists and is not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = server.serve_unix(&path, std::future::pending()).await.unwrap_err();
    assert!(error.to_string().starts_with("another server listens on"), "{error}");
    drop(listener);
    // Now it is a stale file, which is replaced.
    server.serve_unix(&path, tokio::time::sleep(Duration::from_millis(10))).await.unwrap();
}

#[tokio::test]
async fn a_client_without_server_gets_an_error_that_names_the_socket() {
    let api: Api<ConfigMap> = Api::default_namespaced(standalone::client::unix("/nonexistent/api.sock", "test"));
    let error = api.get("a").await.unwrap_err();
    assert!(error.to_string().contains("failed to connect to the standalone API at /nonexistent/api.sock"), "{error}");
}

#[tokio::test]
async fn our_own_kinds_are_served_with_their_rules() {
    let server = Server::new(kinds::builtin(), api::crds::all()).unwrap();
    let api = |kind: &str, version: &str, plural: &str| -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap();
        let gvk = kube::core::GroupVersionKind::gvk(group, version, kind);
        Api::all_with(server.client("test"), &ApiResource::from_gvk_with_plural(&gvk, plural))
    };
    let pools = api("SpiderIPPool", "spiderpool.spidernet.io/v2beta1", "spiderippools");
    let pool = json!({"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool", "metadata": {"name": "p"},
        "spec": {"subnet": "10.6.0.0/16", "gateway": "10.6.0.1", "ips": ["10.6.212.200-10.6.212.240"]}});
    let made = pools.create(&PostParams::default(), &from(pool.clone())).await.unwrap();
    let patch = |value: Value| Patch::Merge(value);
    let moved = pools.patch("p", &PatchParams::default(), &patch(json!({"spec": {"subnet": "10.7.0.0/16"}}))).await;
    assert_eq!(code_of(moved).0, 422);
    assert_eq!(made.metadata.generation, Some(1));
    let mut without = pool;
    without["spec"] = json!({});
    let (code, message) = code_of(pools.create(&PostParams::default(), &from(without)).await);
    assert_eq!(code, 422);
    assert!(message.contains("spec.subnet: Required value"), "{message}");
    let bridges = api("Bridge", "mooring.dev/v1alpha1", "bridges");
    let long = from(json!({"apiVersion": "mooring.dev/v1alpha1", "kind": "Bridge", "metadata": {"name": "sixteen-letters1"},
        "spec": {}}));
    assert_eq!(code_of(bridges.create(&PostParams::default(), &long).await).0, 422);
}

/// A pod's life as the lab's stand-ins lead it: create on a node, status, one lease, deletion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, printed, not judged"]
async fn pods_a_second_through_the_socket() {
    use k8s_openapi::api::coordination::v1::Lease;
    use k8s_openapi::api::core::v1::Pod;
    const PODS: usize = 1000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let server = Server::new(kinds::builtin(), Vec::new()).unwrap();
    let socket = path.clone();
    tokio::spawn(async move { server.serve_unix(&socket, std::future::pending()).await });
    while !path.exists() {
        tokio::task::yield_now().await;
    }
    let client = standalone::client::unix(&path, "test");
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let leases: Api<Lease> = Api::default_namespaced(client);
    // Two agents, two stand-ins for the kubelet, the controller, and who makes pods.
    for i in 0..6 {
        let params = WatchParams::default().fields(&format!("spec.nodeName=n{}", i % 2));
        let mut events = Box::pin(pods.watch(&params, "0").await.unwrap());
        tokio::spawn(async move { while let Some(Ok(_)) = events.next().await {} });
    }
    let started = std::time::Instant::now();
    let lives = futures_util::stream::iter(0..PODS).for_each_concurrent(16, |i| {
        let (pods, leases) = (pods.clone(), leases.clone());
        async move {
            let name = format!("p{i}");
            let pod: Pod = from(json!({"metadata": {"name": name}, "spec": {"nodeName": format!("n{}", i % 2),
                "containers": [{"name": "c", "image": "i"}]}}));
            pods.create(&PostParams::default(), &pod).await.unwrap();
            leases.create(&PostParams::default(), &from(json!({"metadata": {"name": name}}))).await.unwrap();
            let running = Patch::Merge(json!({"status": {"phase": "Running", "podIP": "10.0.0.1"}}));
            pods.patch_status(&name, &PatchParams::default(), &running).await.unwrap();
            let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
            pods.delete(&name, &now).await.unwrap();
            leases.delete(&name, &DeleteParams::default()).await.unwrap();
        }
    });
    lives.await;
    let took = started.elapsed();
    println!("{PODS} pods, 5 requests each, 6 watches: {took:?}, {:.0} pods/s", PODS as f64 / took.as_secs_f64());
}
