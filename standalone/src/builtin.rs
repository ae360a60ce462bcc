//! What the API server does to built-in kinds beyond the general rules: defaults, initial status, pods' immutability and
//! grace. It does not know storage; kinds of CRDs pass through untouched.

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::status::FieldError;

/// A deleted pod that runs on a node gets this long to stop, as in Kubernetes.
const GRACE_S_DEFAULT: i64 = 30;

/// Fields of `spec` that a pod's owner may change later (k8s.io/kubernetes/pkg/apis/core/validation, ValidatePodUpdate).
const POD_MUTABLE: [&str; 3] = ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations"];

/// Defaults and initial status of a new object.
pub fn prepare_create(kind: &Kind, object: &mut Value) {
    if kind.status
        && !kind.is("", "Node")
        && let Value::Object(map) = object
    {
        // A node registers with its status; everything else starts without one.
        map.remove("status");
    }
    default(kind, object);
    if kind.is("", "Pod") {
        object["status"] = json!({"phase": "Pending"});
    }
    if kind.is("", "Namespace") {
        let name = object["metadata"]["name"].clone();
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        object["spec"] = json!({"finalizers": ["kubernetes"]});
        object["status"] = json!({"phase": "Active"});
    }
}

/// Defaults that our controllers may rely on.
pub fn default(kind: &Kind, object: &mut Value) {
    if kind.is("", "Pod") {
        set_absent(&mut object["spec"], "restartPolicy", json!("Always"));
        set_absent(&mut object["spec"], "terminationGracePeriodSeconds", json!(GRACE_S_DEFAULT));
        set_absent(&mut object["spec"], "dnsPolicy", json!("ClusterFirst"));
        set_absent(&mut object["spec"], "schedulerName", json!("default-scheduler"));
    }
    if kind.group == "apps" {
        set_absent(&mut object["spec"], "replicas", json!(1));
    }
}

fn set_absent(map: &mut Value, field: &str, value: Value) {
    if map.get(field).is_none_or(Value::is_null) {
        map[field] = value;
    }
}

/// Rules of built-in kinds that an object breaks; `old` is what it replaces.
pub fn check(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if kind.is("", "Pod") {
        if object["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
            errors.push(FieldError::required("spec.containers", ""));
        }
        if old.is_some_and(|old| fixed_part(&old["spec"]) != fixed_part(&object["spec"])) {
            let detail = "pod updates may not change fields other than `spec.containers[*].image`,\
                `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
                tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
            errors.push(FieldError::forbidden("spec", detail));
        }
    }
    if kind.group == "apps" {
        let selector = &object["spec"]["selector"]["matchLabels"];
        let labels = &object["spec"]["template"]["metadata"]["labels"];
        let unmatched = selector.as_object().into_iter().flatten().any(|(key, value)| labels.get(key) != Some(value));
        if unmatched {
            let detail = "`selector` does not match template `labels`";
            errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
        }
    }
    errors
}

fn fixed_part(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Value::Object(map) = &mut spec {
        for field in POD_MUTABLE {
            map.remove(field);
        }
        for list in ["containers", "initContainers"] {
            for container in map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Value::Object(container) = container {
                    container.remove("image");
                }
            }
        }
    }
    spec
}

/// Seconds between the wish to delete and the removal: 0 but for a pod that may still run on a node.
pub fn grace_s(kind: &Kind, object: &Value, asked: Option<i64>) -> i64 {
    let assigned = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !kind.is("", "Pod") || !assigned || ended {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(GRACE_S_DEFAULT);
    asked.unwrap_or(own).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::builtin;

    fn kind(name: &str) -> Kind {
        builtin().into_iter().find(|k| k.kind == name).unwrap()
    }

    #[test]
    fn a_pod_starts_pending_whatever_its_creator_says() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running"}});
        prepare_create(&kind("Pod"), &mut pod);
        assert_eq!(pod["status"], json!({"phase": "Pending"}));
        assert_eq!(pod["spec"]["restartPolicy"], "Always");
    }

    #[test]
    fn a_node_keeps_the_status_it_registers_with() {
        let mut node = json!({"metadata": {"name": "n"}, "status": {"capacity": {"cpu": "2"}}});
        prepare_create(&kind("Node"), &mut node);
        assert_eq!(node["status"]["capacity"]["cpu"], "2");
    }

    #[test]
    fn a_pods_image_may_change_and_its_node_may_not() {
        let old = json!({"spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "a"}]}});
        let image = json!({"spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "b"}]}});
        let node = json!({"spec": {"nodeName": "n2", "containers": [{"name": "c", "image": "a"}]}});
        assert!(check(&kind("Pod"), &image, Some(&old)).is_empty());
        assert_eq!(check(&kind("Pod"), &node, Some(&old))[0].field, "spec");
    }

    #[test]
    fn only_a_pod_on_a_node_has_grace() {
        let on_node = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}});
        assert_eq!(grace_s(&kind("Pod"), &on_node, None), 5);
        assert_eq!(grace_s(&kind("Pod"), &on_node, Some(0)), 0);
        assert_eq!(grace_s(&kind("Pod"), &json!({"spec": {}}), None), 0);
        assert_eq!(grace_s(&kind("Node"), &on_node, None), 0);
        let ended = json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}});
        assert_eq!(grace_s(&kind("Pod"), &ended, None), 0);
    }
}
