//! The rules of `metadata`: names, labels, what the server sets and what a client may change. It does not know specs,
//! storage or HTTP.
//!
//! Source: k8s.io/apimachinery/pkg/api/validation and util/validation, for rules and texts.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::status::{ApiError, FieldError};

/// All annotations of one object together (apimachinery `TotalAnnotationSizeLimitB`).
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
const SUBDOMAIN_MAX: usize = 253;
const LABEL_MAX: usize = 63;

const SUBDOMAIN_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_TEXT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const VALUE_TEXT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
    must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const KEY_TEXT: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// Reads `metadata` as the API server does: wrong types are refused, unknown fields dropped, `managedFields` not kept.
pub fn decode(object: &mut Value) -> Result<(), ApiError> {
    let raw = object.get("metadata").cloned().filter(|m| !m.is_null()).unwrap_or_else(|| json!({}));
    let mut meta: ObjectMeta = serde_json::from_value(raw)
        .map_err(|e| ApiError::bad_request(format!("unable to decode metadata of the request's object: {e}")))?;
    meta.managed_fields = None;
    meta.self_link = None;
    object["metadata"] = serde_json::to_value(meta).expect("metadata is plain data");
    Ok(())
}

/// The time as `metadata` holds it: whole seconds.
pub fn time(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Metadata of a new object: what the client may not choose is set, a `generateName` becomes a name with `suffix`.
pub fn prepare_create(kind: &Kind, object: &mut Value, namespace: &str, uid: &str, suffix: &str, now: Timestamp) {
    let meta = &mut object["metadata"];
    let absent = |meta: &Value, key: &str| meta[key].as_str().is_none_or(str::is_empty);
    if absent(meta, "name") && !absent(meta, "generateName") {
        let base: String = meta["generateName"].as_str().unwrap_or_default().chars().take(LABEL_MAX - suffix.len()).collect();
        meta["name"] = json!(format!("{base}{suffix}"));
    }
    meta["uid"] = json!(uid);
    meta["creationTimestamp"] = json!(time(now));
    if let Value::Object(meta) = meta {
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation", "resourceVersion", "namespace"] {
            meta.remove(field);
        }
        if kind.namespaced {
            meta.insert("namespace".to_owned(), json!(namespace));
        }
        if kind.generation {
            meta.insert("generation".to_owned(), json!(1));
        }
    }
}

/// Metadata of a replaced object: what never changes is taken from the old one.
pub fn prepare_update(object: &mut Value, old: &Value) {
    let old = &old["metadata"];
    if let Value::Object(meta) = &mut object["metadata"] {
        for field in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "generateName",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "resourceVersion",
        ] {
            match old.get(field) {
                Some(value) => meta.insert(field.to_owned(), value.clone()),
                None => meta.remove(field),
            };
        }
    }
}

/// Every rule of `metadata` that the object breaks.
pub fn check(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let meta = &object["metadata"];
    let mut errors = Vec::new();
    match meta["name"].as_str() {
        None | Some("") => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        Some(name) => {
            if let Some(text) = name_error(kind, name) {
                errors.push(FieldError::invalid("metadata.name", &meta["name"], &text));
            }
        }
    }
    for (key, value) in meta["labels"].as_object().into_iter().flatten() {
        check_key(key, "metadata.labels", &mut errors);
        let text = value.as_str().unwrap_or_default();
        if text.len() > LABEL_MAX {
            let detail = format!("must be no more than {LABEL_MAX} bytes");
            errors.push(FieldError::invalid("metadata.labels", value, &detail));
        } else if !text.is_empty() && !is_name_part(text) {
            errors.push(FieldError::invalid("metadata.labels", value, VALUE_TEXT));
        }
    }
    let mut size = 0;
    for (key, value) in meta["annotations"].as_object().into_iter().flatten() {
        check_key(&key.to_lowercase(), "metadata.annotations", &mut errors);
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_BYTES_MAX {
        let detail = format!("Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes");
        errors.push(FieldError::too_long("metadata.annotations", &detail));
    }
    for finalizer in meta["finalizers"].as_array().into_iter().flatten() {
        check_key(finalizer.as_str().unwrap_or_default(), "metadata.finalizers", &mut errors);
    }
    check_owners(meta, &mut errors);
    errors
}

/// Rules on the way from `old` to `object`.
pub fn check_update(object: &Value, old: &Value) -> Vec<FieldError> {
    let finalizers = |object: &Value| -> Vec<String> {
        let list = object["metadata"]["finalizers"].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let before = finalizers(old);
    let added: Vec<String> = finalizers(object).into_iter().filter(|f| !before.contains(f)).collect();
    if old["metadata"]["deletionTimestamp"].is_null() || added.is_empty() {
        return Vec::new();
    }
    let shown: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
    let detail = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        shown.join(", ")
    );
    vec![FieldError::forbidden("metadata.finalizers", &detail)]
}

fn check_owners(meta: &Value, errors: &mut Vec<FieldError>) {
    let mut controllers = 0;
    for (i, owner) in meta["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                let path = format!("metadata.ownerReferences[{i}].{field}");
                errors.push(FieldError::invalid(&path, &json!(""), &format!("{field} must not be empty")));
            }
        }
        controllers += usize::from(owner["controller"] == json!(true));
    }
    if controllers > 1 {
        let detail = "Only one reference can have Controller set to true";
        errors.push(FieldError::invalid("metadata.ownerReferences", &json!("array"), detail));
    }
}

fn name_error(kind: &Kind, name: &str) -> Option<String> {
    // Namespaces and Services become DNS labels; everything else that is served here may hold dots.
    let label = kind.is("", "Namespace") || kind.is("", "Service");
    let (max, legal, text) =
        if label { (LABEL_MAX, is_dns_label(name), LABEL_TEXT) } else { (SUBDOMAIN_MAX, is_subdomain(name), SUBDOMAIN_TEXT) };
    if name.len() > max {
        return Some(format!("must be no more than {max} bytes"));
    }
    (!legal).then(|| text.to_owned())
}

fn check_key(key: &str, field: &str, errors: &mut Vec<FieldError>) {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|p| p.len() > SUBDOMAIN_MAX || !is_subdomain(p)) {
        errors.push(FieldError::invalid(field, &json!(key), &format!("prefix part {SUBDOMAIN_TEXT}")));
    }
    if name.len() > LABEL_MAX {
        errors.push(FieldError::invalid(field, &json!(key), &format!("name part must be no more than {LABEL_MAX} bytes")));
    } else if !is_name_part(name) {
        errors.push(FieldError::invalid(field, &json!(key), KEY_TEXT));
    }
}

fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_dns_label)
}

fn is_name_part(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    edge(text.chars().next()) && edge(text.chars().last()) && text.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::builtin;

    fn kind(name: &str) -> Kind {
        builtin().into_iter().find(|k| k.kind == name).unwrap()
    }

    fn first_error(kind_name: &str, meta: Value) -> String {
        check(&kind(kind_name), &json!({"metadata": meta})).first().map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn names_follow_the_rule_of_their_kind() {
        assert_eq!(first_error("Node", json!({"name": "a.b-c"})), "");
        assert!(
            first_error("Namespace", json!({"name": "a.b"}))
                .starts_with(r#"metadata.name: Invalid value: "a.b": a lowercase RFC 1123 label must consist of"#)
        );
        for bad in ["A", "-a", "a-", "a..b", "a_b", "ä"] {
            assert!(first_error("Node", json!({"name": bad})).contains("RFC 1123 subdomain"), "{bad}");
        }
        assert_eq!(first_error("Node", json!({})), "metadata.name: Required value: name or generateName is required");
        assert!(first_error("Node", json!({"name": "a".repeat(254)})).ends_with("must be no more than 253 bytes"));
    }

    #[test]
    fn labels_annotations_and_owners_are_checked() {
        assert_eq!(first_error("Node", json!({"name": "a", "labels": {"x.io/Y_z": "", "b": "C.d"}})), "");
        assert!(first_error("Node", json!({"name": "a", "labels": {"b": "c d"}})).contains(r#""c d": a valid label"#));
        assert!(first_error("Node", json!({"name": "a", "labels": {"b c": ""}})).contains("name part must consist"));
        assert!(first_error("Node", json!({"name": "a", "labels": {"B/c": ""}})).contains("prefix part"));
        let big = "x".repeat(ANNOTATIONS_BYTES_MAX);
        assert!(first_error("Node", json!({"name": "a", "annotations": {"b": big}})).contains("Too long"));
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "1", "controller": true});
        assert!(first_error("Pod", json!({"name": "a", "ownerReferences": [owner, owner]})).contains("Only one reference"));
        assert!(first_error("Pod", json!({"name": "a", "ownerReferences": [{"kind": "Pod"}]})).contains("must not be empty"));
    }

    #[test]
    fn what_the_server_sets_cannot_be_chosen() {
        let mut object = json!({"metadata": {"generateName": "x-", "uid": "mine", "generation": 9, "deletionTimestamp": "t"}});
        prepare_create(&kind("Pod"), &mut object, "ns", "uid", "abcde", Timestamp::UNIX_EPOCH);
        assert_eq!(
            object["metadata"],
            json!({"generateName": "x-", "name": "x-abcde", "namespace": "ns", "uid": "uid",
            "creationTimestamp": "1970-01-01T00:00:00Z", "generation": 1})
        );
        let mut new = json!({"metadata": {"name": "other", "labels": {"a": "b"}, "deletionTimestamp": "t"}});
        prepare_update(&mut new, &object);
        assert_eq!(new["metadata"]["name"], "x-abcde");
        assert_eq!(new["metadata"]["labels"]["a"], "b");
        assert!(new["metadata"].get("deletionTimestamp").is_none());
    }

    #[test]
    fn no_finalizer_is_added_to_a_dying_object() {
        let old = json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["a/b"]}});
        assert!(check_update(&json!({"metadata": {"finalizers": []}}), &old).is_empty());
        let errors = check_update(&json!({"metadata": {"finalizers": ["a/b", "a/c"]}}), &old);
        assert!(errors[0].detail.ends_with(r#"found new finalizers []string{"a/c"}"#), "{}", errors[0].detail);
    }
}
