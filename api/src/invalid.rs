//! Why a value that someone wrote is refused.

use std::fmt::Display;

/// The field, what it holds, and the rule that it breaks: `spec.subnet: "10.6.0.1/16": has host bits set, ...`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?}: {rule}")]
pub struct Invalid {
    /// Path below the object (`spec.ips[3]`), or the annotation's or label's key.
    pub field: String,
    pub value: String,
    pub rule: String,
}

impl Invalid {
    /// Errors of other crates begin with the value; it is told once.
    pub fn new(field: impl Into<String>, value: impl Display, rule: impl Display) -> Self {
        let (value, rule) = (value.to_string(), rule.to_string());
        let rest = rule.strip_prefix(&format!("{value:?} ")).or_else(|| rule.strip_prefix(&format!("{value} ")));
        let rule = match rest {
            Some(rest) if !value.is_empty() => rest.to_owned(),
            _ => rule,
        };
        Self { field: field.into(), value, rule }
    }

    /// The same below another field.
    pub fn within(mut self, prefix: &str) -> Self {
        self.field = if self.field.is_empty() { prefix.to_owned() } else { format!("{prefix}.{}", self.field) };
        self
    }
}
