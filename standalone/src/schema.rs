//! The structural OpenAPI v3 schema of a CRD: parsed once, then it fills defaults, drops or names unknown fields, and
//! hands to `check` (values) and `rules` (CEL). It does not know metadata, versions or what is stored.
//!
//! Source: Kubernetes, "Extend the Kubernetes API with CustomResourceDefinitions", structural schemas, pruning, defaulting.

mod check;
mod rules;

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use crate::status::FieldError;

/// Schemas nest no deeper than this: those of real CRDs stay below 30, and the walk is recursive.
const DEPTH_MAX: usize = 64;

/// Why a schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `$ref`, or a root that is no object.
    #[error("schema at {path:?} is not structural: {why}")]
    NotStructural {
        /// Where in the schema.
        path: String,
        /// Which rule.
        why: &'static str,
    },
    /// A pattern that does not compile.
    #[error("schema at {path:?}: pattern {pattern:?} does not compile")]
    Pattern {
        /// Where in the schema.
        path: String,
        /// The pattern.
        pattern: String,
        /// What the regex engine says.
        source: Box<regex::Error>,
    },
    /// A CEL rule that does not compile.
    #[error("a rule of x-kubernetes-validations does not compile: {0}")]
    Rule(String),
}

/// A CRD's schema, ready to use.
#[derive(Debug)]
pub struct Schema {
    root: Node,
    rules: rules::Rules,
}

impl Schema {
    /// Parses `openAPIV3Schema`.
    pub fn new(open_api: &Value) -> Result<Self, Error> {
        let root = Node::parse(open_api, "", 0)?;
        if root.kind != Some(Type::Object) {
            return Err(Error::NotStructural { path: String::new(), why: "the root must be of type object" });
        }
        Ok(Self { root, rules: rules::Rules::new(open_api)? })
    }

    /// Drops what the schema does not name, and returns the paths of it. `apiVersion`, `kind` and `metadata` stay.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut unknown = Vec::new();
        if let Value::Object(map) = object {
            let kept: Vec<_> = ["apiVersion", "kind", "metadata"].iter().filter_map(|k| map.remove_entry(*k)).collect();
            self.root.prune_map(map, "", &mut unknown);
            map.extend(kept);
        }
        unknown
    }

    /// Fills in defaults, also in place of a null that the field does not allow.
    pub fn default(&self, object: &mut Value) {
        self.root.default(object);
    }

    /// All fields that break the schema, and, when there are none, all that break a CEL rule. `old` is the object that
    /// is replaced: rules on transitions are judged only with it.
    pub fn check(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.root.check(object, "", &mut errors);
        // The API server does not run rules on values that are of the wrong shape either.
        if errors.is_empty() { self.rules.check(object, old) } else { errors }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Type {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

#[derive(Debug)]
enum Additional {
    Any,
    Of(Box<Node>),
}

#[derive(Debug, Default)]
struct Node {
    kind: Option<Type>,
    nullable: bool,
    int_or_string: bool,
    preserve_unknown: bool,
    embedded_resource: bool,
    properties: BTreeMap<String, Node>,
    additional: Option<Additional>,
    items: Option<Box<Node>>,
    required: Vec<String>,
    allowed: Option<Vec<Value>>,
    pattern: Option<(String, Regex)>,
    format: Option<String>,
    minimum: Option<(f64, bool)>,
    maximum: Option<(f64, bool)>,
    multiple_of: Option<f64>,
    length: (Option<u64>, Option<u64>),
    items_count: (Option<u64>, Option<u64>),
    properties_count: (Option<u64>, Option<u64>),
    list_set: bool,
    list_map_keys: Vec<String>,
    default: Option<Value>,
    all_of: Vec<Node>,
    any_of: Vec<Node>,
    one_of: Vec<Node>,
    not: Option<Box<Node>>,
}

/// `parent.name`, or `name` at the root.
fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

impl Node {
    fn parse(schema: &Value, path: &str, depth: usize) -> Result<Self, Error> {
        let not_structural = |why| Error::NotStructural { path: path.to_owned(), why };
        if depth > DEPTH_MAX {
            return Err(not_structural("nested too deeply"));
        }
        let map = schema.as_object().ok_or_else(|| not_structural("a schema must be an object"))?;
        if map.contains_key("$ref") {
            return Err(not_structural("$ref is not allowed"));
        }
        let child = |value: &Value, name: &str| Self::parse(value, &join(path, name), depth + 1);
        let children = |key: &str| -> Result<Vec<Node>, Error> {
            map.get(key).and_then(Value::as_array).into_iter().flatten().map(|v| child(v, key)).collect()
        };
        let flag = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or(false);
        let count = |key: &str| map.get(key).and_then(Value::as_u64);
        let number = |key: &str| map.get(key).and_then(Value::as_f64);
        let text = |key: &str| map.get(key).and_then(Value::as_str);
        let texts = |key: &str| -> Vec<String> {
            map.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };

        let kind = match text("type") {
            None | Some("") => None,
            Some(name) => Some(Type::parse(name).ok_or_else(|| not_structural("unknown type"))?),
        };
        let mut properties = BTreeMap::new();
        for (name, schema) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            properties.insert(name.clone(), child(schema, name)?);
        }
        let additional = match map.get("additionalProperties") {
            Some(Value::Bool(true)) => Some(Additional::Any),
            Some(value @ Value::Object(_)) => Some(Additional::Of(Box::new(child(value, "*")?))),
            _ => None,
        };
        let items = map.get("items").map(|v| child(v, "items").map(Box::new)).transpose()?;
        let not = map.get("not").map(|v| child(v, "not").map(Box::new)).transpose()?;
        let pattern = match text("pattern") {
            None => None,
            Some(pattern) => {
                let regex = Regex::new(pattern).map_err(|source| Error::Pattern {
                    path: path.to_owned(),
                    pattern: pattern.to_owned(),
                    source: Box::new(source),
                })?;
                Some((pattern.to_owned(), regex))
            }
        };
        Ok(Self {
            kind,
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag("x-kubernetes-embedded-resource"),
            properties,
            additional,
            items,
            required: texts("required"),
            allowed: map.get("enum").and_then(Value::as_array).cloned(),
            pattern,
            format: text("format").map(str::to_owned),
            minimum: number("minimum").map(|n| (n, flag("exclusiveMinimum"))),
            maximum: number("maximum").map(|n| (n, flag("exclusiveMaximum"))),
            multiple_of: number("multipleOf"),
            length: (count("minLength"), count("maxLength")),
            items_count: (count("minItems"), count("maxItems")),
            properties_count: (count("minProperties"), count("maxProperties")),
            list_set: text("x-kubernetes-list-type") == Some("set"),
            list_map_keys: texts("x-kubernetes-list-map-keys"),
            default: map.get("default").cloned(),
            all_of: children("allOf")?,
            any_of: children("anyOf")?,
            one_of: children("oneOf")?,
            not,
        })
    }

    fn prune(&self, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
        match value {
            Value::Object(map) if self.embedded_resource => {
                let kept: Vec<_> = ["apiVersion", "kind", "metadata"].iter().filter_map(|k| map.remove_entry(*k)).collect();
                self.prune_map(map, path, unknown);
                map.extend(kept);
            }
            Value::Object(map) => self.prune_map(map, path, unknown),
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for (i, item) in list.iter_mut().enumerate() {
                        items.prune(item, &format!("{path}[{i}]"), unknown);
                    }
                }
            }
            _ => {}
        }
    }

    fn prune_map(&self, map: &mut Map<String, Value>, path: &str, unknown: &mut Vec<String>) {
        map.retain(|name, value| {
            let path = join(path, name);
            match (self.properties.get(name), &self.additional) {
                (Some(node), _) => node.prune(value, &path, unknown),
                (None, Some(Additional::Of(node))) => node.prune(value, &path, unknown),
                (None, Some(Additional::Any)) => {}
                (None, None) if self.preserve_unknown => {}
                (None, None) => {
                    unknown.push(path);
                    return false;
                }
            }
            true
        });
    }

    fn default(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (name, node) in &self.properties {
                    if let Some(default) = &node.default {
                        let missing = map.get(name).is_none_or(|v| v.is_null() && !node.nullable);
                        if missing {
                            map.insert(name.clone(), default.clone());
                        }
                    }
                    if let Some(value) = map.get_mut(name) {
                        node.default(value);
                    }
                }
                if let Some(Additional::Of(node)) = &self.additional {
                    for (name, value) in map.iter_mut() {
                        if !self.properties.contains_key(name) {
                            node.default(value);
                        }
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    list.iter_mut().for_each(|item| items.default(item));
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        Schema::new(&json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "required": ["subnet"],
            "properties": {
                "subnet": {"type": "string", "minLength": 3},
                "mode": {"type": "string", "default": "auto", "enum": ["auto", "off"]},
                "vlan": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 4094, "nullable": true},
                "ips": {"type": "array", "items": {"type": "string", "pattern": "^[0-9.]+$"}, "x-kubernetes-list-type": "set"},
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "properties": {
                        "name": {"type": "string"}, "speed": {"type": "integer", "default": 10}}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "either": {"x-kubernetes-int-or-string": true},
            },
            "x-kubernetes-validations": [
                {"rule": "!has(self.vlan) || self.vlan != 13", "message": "13 brings bad luck"},
                {"rule": "self.subnet == oldSelf.subnet", "message": "subnet is immutable", "reason": "FieldValueForbidden",
                 "fieldPath": ".subnet"},
            ],
        }}}))
        .unwrap()
    }

    fn errors(object: Value) -> Vec<String> {
        schema().check(&object, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unknown_fields_are_dropped_and_named() {
        let mut object = json!({"kind": "X", "metadata": {"a": 1}, "other": 1, "spec": {
            "subnet": "a", "nope": 1, "free": {"x": {"y": 1}}, "ports": [{"name": "a", "what": 1}], "labels": {"a": "b"}}});
        let mut unknown = schema().prune(&mut object);
        unknown.sort();
        assert_eq!(unknown, ["other", "spec.nope", "spec.ports[0].what"]);
        assert_eq!(
            object,
            json!({"kind": "X", "metadata": {"a": 1}, "spec": {
            "subnet": "a", "free": {"x": {"y": 1}}, "ports": [{"name": "a"}], "labels": {"a": "b"}}})
        );
    }

    #[test]
    fn defaults_fill_absent_fields_and_forbidden_nulls_only() {
        let mut object = json!({"spec": {"mode": null, "vlan": null, "ports": [{"name": "a"}, {"name": "b", "speed": 1}]}});
        schema().default(&mut object);
        assert_eq!(
            object,
            json!({"spec": {"mode": "auto", "vlan": null,
            "ports": [{"name": "a", "speed": 10}, {"name": "b", "speed": 1}]}})
        );
        let mut none = json!({});
        schema().default(&mut none);
        assert_eq!(none, json!({}));
    }

    #[test]
    fn every_broken_field_is_named_in_the_api_servers_words() {
        let got = errors(json!({"spec": {"mode": "x", "vlan": 4095, "ips": ["1.1", "b", "1.1"], "labels": {"a": 1},
            "ports": [{"name": "p"}, {"name": "p"}], "either": 1.5}}));
        assert_eq!(
            got,
            [
                r#"spec.subnet: Required value"#,
                r#"spec.either: Invalid value: "number": spec.either in body must be of type integer,string: "number""#,
                r#"spec.ips[1]: Invalid value: "b": spec.ips[1] in body should match '^[0-9.]+$'"#,
                r#"spec.ips[2]: Duplicate value: "1.1""#,
                r#"spec.labels.a: Invalid value: "integer": spec.labels.a in body must be of type string: "integer""#,
                r#"spec.mode: Unsupported value: "x": supported values: "auto", "off""#,
                r#"spec.ports[1]: Duplicate value: {"name":"p"}"#,
                r#"spec.vlan: Invalid value: 4095: spec.vlan in body should be less than or equal to 4094"#,
            ]
        );
        assert_eq!(
            errors(json!({"spec": {"subnet": "ab"}})),
            [r#"spec.subnet: Invalid value: "ab": spec.subnet in body should be at least 3 chars long"#]
        );
        assert_eq!(
            errors(json!({"spec": {"subnet": null}})),
            [r#"spec.subnet: Invalid value: "null": spec.subnet in body must be of type string: "null""#]
        );
    }

    #[test]
    fn cel_rules_are_judged_and_transition_rules_only_on_update() {
        let old = json!({"spec": {"subnet": "abc"}});
        let new = json!({"spec": {"subnet": "abd", "vlan": 13}});
        let texts = |errors: Vec<FieldError>| -> Vec<String> { errors.iter().map(ToString::to_string).collect() };
        assert_eq!(texts(schema().check(&new, None)), [r#"spec: Invalid value: "object": 13 brings bad luck"#]);
        assert_eq!(
            texts(schema().check(&new, Some(&old))),
            [r#"spec: Invalid value: "object": 13 brings bad luck"#, "spec.subnet: Forbidden: subnet is immutable"]
        );
    }

    #[test]
    fn a_schema_that_is_not_structural_is_refused() {
        assert!(Schema::new(&json!({"type": "string"})).is_err());
        assert!(Schema::new(&json!({"type": "object", "properties": {"a": {"$ref": "#/b"}}})).is_err());
        assert!(Schema::new(&json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}})).is_err());
        assert!(Schema::new(&json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.("}]})).is_err());
    }
}
