//! The discovery documents: which groups, versions and resources there are. It does not know objects.

use serde_json::{Value, json};

use crate::kinds::{Kind, Kinds};

/// The document at a path, none where there is none.
pub fn document(kinds: &Kinds, path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["version"] => Some(version()),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => {
            let groups: Vec<Value> = groups(kinds).iter().map(|name| group(kinds, name)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] if groups(kinds).iter().any(|group| group == name) => {
            let mut group = group(kinds, name);
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            Some(group)
        }
        ["api", version] => resources(kinds, "", version),
        ["apis", group, version] => resources(kinds, group, version),
        _ => None,
    }
}

/// The version of the API that the built-in kinds follow (k8s-openapi's feature of the workspace).
fn version() -> Value {
    json!({
        "major": "1", "minor": "33", "gitVersion": concat!("v1.33.0+mooring-standalone-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": concat!("linux/", "any"),
    })
}

fn groups(kinds: &Kinds) -> Vec<String> {
    let mut names: Vec<String> = kinds.all().iter().map(|k| k.group.clone()).filter(|g| !g.is_empty()).collect();
    names.sort();
    names.dedup();
    names
}

fn group(kinds: &Kinds, name: &str) -> Value {
    let mut versions: Vec<&str> = kinds.all().iter().filter(|k| k.group == name).map(|k| k.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    let versions: Vec<Value> = versions.iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
    let preferred = versions.last().cloned();
    json!({"name": name, "versions": versions, "preferredVersion": preferred, "serverAddressByClientCIDRs": []})
}

fn resources(kinds: &Kinds, group: &str, version: &str) -> Option<Value> {
    let of_version: Vec<&Kind> = kinds.all().iter().filter(|k| k.group == group && k.version == version).collect();
    let first = of_version.first()?;
    let mut list = Vec::new();
    for kind in &of_version {
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        list.push(json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": verbs, "shortNames": kind.short_names,
        }));
        if kind.status {
            list.push(json!({
                "name": format!("{}/status", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": list}))
}
