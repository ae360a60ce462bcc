//! What every case needs: a namespace of its own, the suite's CRDs, and ways to ask. It does not know any case.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, DynamicObject, PostParams};
use kube::core::ApiResource;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Bound of every wait: the real collector may take its time, anything of this crate's answers at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A client and a place of its own.
pub struct Suite {
    pub client: Client,
    /// A namespace that exists; also the prefix of cluster-scoped names.
    pub namespace: String,
}

impl Suite {
    pub async fn new(client: Client, case: &str) -> Self {
        let random: u32 = std::process::id() ^ std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
        let mut name = case.replace('_', "-");
        name.truncate(40);
        let namespace = format!("mt-{}-{random:08x}", name.trim_end_matches('-'));
        let suite = Self { client, namespace };
        suite.add_namespace(&suite.namespace).await;
        suite
    }

    pub async fn add_namespace(&self, name: &str) {
        let namespace: Namespace = from(json!({"metadata": {"name": name}}));
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    }

    pub async fn clean(&self) {
        for widget in self.plains().list(&Default::default()).await.unwrap() {
            let name = widget.metadata.name.unwrap_or_default();
            if name.starts_with(&self.namespace) {
                self.plains().delete(&name, &DeleteParams::default()).await.ok();
            }
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.delete(&self.namespace, &DeleteParams::default()).await.ok();
    }

    pub fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Namespaced, with status, schema and rules.
    pub fn widgets(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource("Widget", "widgets"))
    }

    /// Cluster-scoped, without status.
    pub fn plains(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource("Plain", "plains"))
    }

    /// A request that kube's own methods do not make.
    pub async fn raw(&self, method: &str, path: &str, body: Value) -> Result<Value, kube::Error> {
        let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        self.client.request(request.body(body.to_string().into_bytes()).unwrap()).await
    }
}

pub fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: "suite.mooring.dev".into(),
        version: "v1".into(),
        api_version: "suite.mooring.dev/v1".into(),
        kind: kind.into(),
        plural: plural.into(),
    }
}

pub fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub fn widget(name: &str, spec: Value) -> DynamicObject {
    from(json!({"apiVersion": "suite.mooring.dev/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}))
}

pub fn plain(name: &str) -> DynamicObject {
    from(json!({"apiVersion": "suite.mooring.dev/v1", "kind": "Plain", "metadata": {"name": name}, "spec": {}}))
}

pub fn config_map(name: &str, labels: Value) -> ConfigMap {
    from(json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}}))
}

pub fn pod(name: &str, node: Option<&str>) -> Pod {
    from(json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "registry.invalid/none"}]},
    }))
}

/// The refusal's message, after its code and reason were looked at.
#[track_caller]
pub fn refused<T>(result: Result<T, kube::Error>, code: u16, reason: &str) -> String {
    match result {
        Ok(_) => panic!("accepted, though {code} {reason} was due"),
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (code, reason), "{}", status.message);
            status.message.clone()
        }
        Err(other) => panic!("no Status object: {other}"),
    }
}

/// Asks again until the answer is yes.
pub async fn eventually(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !ask().await {
        assert!(tokio::time::Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub fn crds() -> Vec<CustomResourceDefinition> {
    let widget = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["subnet"],
                "properties": {
                    "subnet": {"type": "string", "minLength": 3, "maxLength": 40},
                    "mode": {"type": "string", "default": "auto", "enum": ["auto", "off"]},
                    "vlan": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 4094},
                    "mac": {"type": "string", "pattern": "^([0-9a-f]{2}:){5}[0-9a-f]{2}$"},
                    "ips": {"type": "array", "maxItems": 16, "items": {"type": "string", "maxLength": 40},
                        "x-kubernetes-list-type": "set"},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                },
                "x-kubernetes-validations": [
                    {"rule": "self.subnet == oldSelf.subnet", "message": "subnet is immutable"},
                    {"rule": "self.mode != 'off' || !has(self.vlan)", "message": "vlan must be absent when mode is off"},
                ],
            },
            "status": {"type": "object", "properties": {"used": {"type": "integer"}}},
        },
    });
    let plain = json!({"type": "object", "properties": {
        "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    vec![
        crd("Widget", "widgets", "Namespaced", widget, Some(json!({"status": {}})), json!([{"jsonPath": ".spec.mode"}])),
        crd("Plain", "plains", "Cluster", plain, None, json!([])),
    ]
}

fn crd(kind: &str, plural: &str, scope: &str, schema: Value, sub: Option<Value>, fields: Value) -> CustomResourceDefinition {
    from(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.suite.mooring.dev")},
        "spec": {
            "group": "suite.mooring.dev", "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": sub, "selectableFields": fields,
            }],
        },
    }))
}

/// A client of the API server that the environment names, with the suite's CRDs installed.
pub async fn real_client() -> Option<Client> {
    let path = std::env::var_os("MOORING_API_SUITE_KUBECONFIG")?;
    let kubeconfig = kube::config::Kubeconfig::read_from(path).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds() {
        match api.create(&PostParams::default(), &crd).await {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
            other => drop(other.unwrap()),
        }
    }
    for resource in [resource("Widget", "widgets"), resource("Plain", "plains")] {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        eventually("CRD served", async || api.list(&Default::default()).await.is_ok()).await;
    }
    Some(client)
}
