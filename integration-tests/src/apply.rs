//! `kubectl apply` as far as the examples need it: YAML documents are created, or replace what is there. It does not
//! know what the objects mean.

use anyhow::{Context, Result, bail};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::{Client, ResourceExt};
use serde_json::Value;

/// Kinds whose plural is not the usual one.
const PLURALS: [(&str, &str); 3] = [
    ("NetworkAttachmentDefinition", "network-attachment-definitions"),
    ("SpiderReservedIP", "spiderreservedips"),
    ("SpiderMultusConfig", "spidermultusconfigs"),
];
/// Kinds without a namespace.
const CLUSTER: [&str; 11] = [
    "Namespace",
    "Node",
    "CustomResourceDefinition",
    "SpiderIPPool",
    "SpiderReservedIP",
    "SpiderSubnet",
    "SpiderCoordinator",
    "Bridge",
    "NodeNetwork",
    "AddressLease",
    "PoolMap",
];

/// The documents of a YAML text, without empty ones.
///
/// # Errors
/// Not YAML.
pub fn documents(yaml: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml).context("malformed YAML")?;
    Ok(all.into_iter().filter(|d| !d.is_null()).collect())
}

/// How to speak about an object's kind, in the namespace it names (or `default`).
///
/// # Errors
/// No apiVersion or kind.
pub fn api_of(client: &Client, object: &Value) -> Result<Api<DynamicObject>> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).with_context(|| format!("object without {key}"));
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
    Ok(api(client, version, kind, namespace))
}

/// As [`api_of`], for a kind by name.
pub fn api(client: &Client, version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let gvk = GroupVersionKind::gvk(group, version, kind);
    let resource = match PLURALS.iter().find(|(k, _)| *k == kind) {
        Some((_, plural)) => ApiResource::from_gvk_with_plural(&gvk, plural),
        None => ApiResource::from_gvk(&gvk),
    };
    if CLUSTER.contains(&kind) {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace.unwrap_or("default"), &resource)
    }
}

/// Creates or replaces every document; returns a line for each, as kubectl prints them.
///
/// # Errors
/// The first object that is refused, with the API's reason.
pub async fn apply(client: &Client, yaml: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for document in documents(yaml)? {
        let api = api_of(client, &document)?;
        let mut object: DynamicObject = serde_json::from_value(document)?;
        let kind = object.types.as_ref().map(|t| t.kind.to_lowercase()).unwrap_or_default();
        let name = object.name_any();
        let what = format!("{kind}/{name}");
        let done = match api.create(&PostParams::default(), &object).await {
            Ok(_) => "created",
            Err(kube::Error::Api(status)) if status.code == 409 => {
                replace(&api, &mut object).await.with_context(|| what.clone())?;
                "configured"
            }
            Err(kube::Error::Api(status)) => bail!("{what}: {}", status.message),
            Err(e) => return Err(e).with_context(|| what.clone()),
        };
        lines.push(format!("{what} {done}"));
    }
    Ok(lines)
}

/// In place of the one that is there, which its controllers write as well: what they wrote between our look and our write is
/// looked at again, as `kubectl` does.
async fn replace(api: &Api<DynamicObject>, object: &mut DynamicObject) -> kube::Result<()> {
    let name = object.name_any();
    let mut tries = 0;
    loop {
        let old = api.get(&name).await?;
        object.metadata.resource_version = old.metadata.resource_version;
        object.metadata.finalizers = old.metadata.finalizers;
        tries += 1;
        match api.replace(&name, &PostParams::default(), object).await {
            // Nobody writes one object that often for long.
            Err(kube::Error::Api(status)) if status.reason == "Conflict" && tries < 100 => {}
            done => return done.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_documents_are_none() {
        let all = documents("# only words\n---\nkind: A\n---\nkind: B\n").unwrap();
        let kinds: Vec<&str> = all.iter().filter_map(|d| d["kind"].as_str()).collect();
        assert_eq!(kinds, ["A", "B"]);
    }
}
