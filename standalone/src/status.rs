//! Failures of the API as values, and their `Status` objects and texts, worded as the Kubernetes API server words them.
//! It does not know how an error was found, nor HTTP beyond its status code.

use serde_json::{Value, json};

use crate::kinds::Kind;

/// A request that was refused. `Display` is the `message` of the `Status` object.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code, 400 to 599.
    pub code: u16,
    /// `Status.reason`: a fixed word, empty where the API server sends none.
    pub reason: &'static str,
    /// `Status.message`: for people.
    pub message: String,
    /// `Status.details`, or null.
    pub details: Value,
}

/// One refused field: what `Status.details.causes` lists.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// Path such as `spec.configs[0].vlan`; `<nil>` for the whole object.
    pub field: String,
    /// `FieldValueRequired` and its like.
    pub reason: &'static str,
    /// Text without the path, such as `Required value`.
    pub detail: String,
}

impl FieldError {
    /// A field that has to be there.
    pub fn required(field: &str, detail: &str) -> Self {
        let detail = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Self { field: field.to_owned(), reason: "FieldValueRequired", detail }
    }

    /// A value that breaks a rule.
    pub fn invalid(field: &str, value: &Value, detail: &str) -> Self {
        Self { field: field.to_owned(), reason: "FieldValueInvalid", detail: format!("Invalid value: {value}: {detail}") }
    }

    /// A value that is not of the field's type.
    pub fn wrong_type(field: &str, value: &Value, wanted: &str) -> Self {
        let shown = json!(type_or_text(value));
        let detail = format!("Invalid value: {shown}: {field} in body must be of type {wanted}: {shown}");
        Self { field: field.to_owned(), reason: "FieldValueTypeInvalid", detail }
    }

    /// A value outside an enumeration.
    pub fn unsupported(field: &str, value: &Value, allowed: &[Value]) -> Self {
        let allowed: Vec<String> = allowed.iter().map(|v| json!(plain(v)).to_string()).collect();
        let detail = format!("Unsupported value: {value}: supported values: {}", allowed.join(", "));
        Self { field: field.to_owned(), reason: "FieldValueNotSupported", detail }
    }

    /// A second entry with the key of another.
    pub fn duplicate(field: &str, value: &Value) -> Self {
        Self { field: field.to_owned(), reason: "FieldValueDuplicate", detail: format!("Duplicate value: {value}") }
    }

    /// A change or a value that is not allowed here.
    pub fn forbidden(field: &str, detail: &str) -> Self {
        Self { field: field.to_owned(), reason: "FieldValueForbidden", detail: format!("Forbidden: {detail}") }
    }

    /// Text beyond its bound.
    pub fn too_long(field: &str, detail: &str) -> Self {
        Self { field: field.to_owned(), reason: "FieldValueTooLong", detail: detail.to_owned() }
    }

    /// A list or map beyond its bound.
    pub fn too_many(field: &str, count: u64, max: u64) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        let detail = format!("Too many: {count}: must have at most {max} {items}");
        Self { field: field.to_owned(), reason: "FieldValueTooMany", detail }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.detail)
    }
}

/// A scalar as text without quotes, anything else as JSON.
pub fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn type_or_text(value: &Value) -> String {
    match value {
        Value::Object(_) => "object".to_owned(),
        Value::Array(_) => "array".to_owned(),
        other => type_name(other).to_owned(),
    }
}

/// The OpenAPI name of a JSON value's type.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl ApiError {
    fn about(kind: &Kind, name: &str, code: u16, reason: &'static str, message: String) -> Self {
        let details = json!({"name": name, "group": kind.group, "kind": kind.plural});
        Self { code, reason, message, details }
    }

    /// 400 with no object in particular.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { code: 400, reason: "BadRequest", message: message.into(), details: Value::Null }
    }

    /// 404: no such object.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", kind.resource());
        Self::about(kind, name, 404, "NotFound", message)
    }

    /// 404: no such path.
    pub fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource".to_owned();
        Self { code: 404, reason: "NotFound", message, details: json!({}) }
    }

    /// 409 on create.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", kind.resource());
        Self::about(kind, name, 409, "AlreadyExists", message)
    }

    /// 409 with the reason after "Operation cannot be fulfilled on ...".
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.resource());
        Self::about(kind, name, 409, "Conflict", message)
    }

    /// 409: the caller's resourceVersion is not the stored one.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    /// 403 about one object.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("{} {name:?} is forbidden: {why}", kind.resource());
        Self::about(kind, name, 403, "Forbidden", message)
    }

    /// 422 with every refused field. `errors` must not be empty.
    pub fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let text = if texts.len() == 1 { texts[0].clone() } else { format!("[{}]", texts.join(", ")) };
        let causes: Vec<Value> =
            errors.iter().map(|e| json!({"reason": e.reason, "message": e.detail, "field": e.field})).collect();
        let message = format!("{} {name:?} is invalid: {text}", kind.qualified());
        let details = json!({"name": name, "group": kind.group, "kind": kind.kind, "causes": causes});
        Self { code: 422, reason: "Invalid", message, details }
    }

    /// 410: the version is older than the events that are kept.
    pub fn expired(wanted: u64, oldest: u64) -> Self {
        let message = format!("too old resource version: {wanted} ({oldest})");
        Self { code: 410, reason: "Expired", message, details: Value::Null }
    }

    /// 504: the version lies in the future of this server.
    pub fn too_large_version(wanted: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        let causes = json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
        Self { code: 504, reason: "Timeout", message, details: json!({"causes": causes, "retryAfterSeconds": 1}) }
    }

    /// 405: the path exists, the verb does not.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource".to_owned();
        Self { code: 405, reason: "MethodNotAllowed", message, details: json!({}) }
    }

    /// 415 with what would have been accepted.
    pub fn unsupported_media(got: &str, accepted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}; got {got:?}");
        Self { code: 415, reason: "UnsupportedMediaType", message, details: json!({}) }
    }

    /// 413: a body beyond the bound.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self { code: 413, reason: "RequestEntityTooLarge", message, details: json!({}) }
    }

    /// The `Status` object (meta/v1).
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}
