//! The CEL rules of a schema (`x-kubernetes-validations`), compiled once. It does not know the rest of the schema, and
//! does no ratcheting: a rule that an old object broke already refuses its next update.

use std::sync::{Mutex, PoisonError};

use kube_cel::{CompiledSchema, Validator, compile_schema};
use serde_json::Value;

use super::{Error, check::shown};
use crate::status::FieldError;

/// Compiled rules and the functions they may call.
pub(super) struct Rules {
    compiled: CompiledSchema,
    /// Its evaluation context is not shared between threads.
    validator: Mutex<Validator>,
    /// Most kinds have none, and the walk is not free.
    any: bool,
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rules").field("any", &self.any).finish_non_exhaustive()
    }
}

impl Rules {
    pub(super) fn new(open_api: &Value) -> Result<Self, Error> {
        let compiled = compile_schema(open_api);
        if let Some(error) = compiled.compilation_errors().into_iter().next() {
            return Err(Error::Rule(error.to_string()));
        }
        let any = open_api.to_string().contains("\"x-kubernetes-validations\"");
        Ok(Self { compiled, validator: Mutex::new(Validator::new()), any })
    }

    pub(super) fn check(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        if !self.any {
            return Vec::new();
        }
        let validator = self.validator.lock().unwrap_or_else(PoisonError::into_inner);
        match validator.validate_compiled(&self.compiled, object, old) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.iter().map(|e| field_error(object, e)).collect(),
        }
    }
}

fn field_error(object: &Value, error: &kube_cel::ValidationError) -> FieldError {
    let field = error.field_path.trim_start_matches('.');
    let value = shown(at_path(object, field));
    let field = if field.is_empty() { "<nil>" } else { field };
    match error.reason.as_deref() {
        Some("FieldValueForbidden") => FieldError::forbidden(field, &error.message),
        Some("FieldValueRequired") => FieldError::required(field, &error.message),
        Some("FieldValueDuplicate") => FieldError::duplicate(field, &value),
        _ => FieldError::invalid(field, &value, &error.message),
    }
}

/// The value behind a path such as `spec.ports[0].name`, null where the path leads nowhere.
fn at_path<'a>(object: &'a Value, path: &str) -> &'a Value {
    let pointer: String =
        path.split(['.', '[']).filter(|part| !part.is_empty()).map(|part| format!("/{}", part.trim_end_matches(']'))).collect();
    object.pointer(&pointer).unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_finds_its_value() {
        let object = json!({"spec": {"ports": [{"name": "a"}]}});
        assert_eq!(at_path(&object, "spec.ports[0].name"), &json!("a"));
        assert_eq!(at_path(&object, "spec.none"), &Value::Null);
    }
}
