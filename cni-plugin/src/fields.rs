//! Keys of a configuration with their types, strictly: a wrong type is a refusal that names key, value and type.
//! Keys that nobody asks for are left alone, as the reference plugins do. Which ones a plugin asks for is a list of its crate.

use std::fmt::Display;

use planner::Refusal;
use serde_json::{Map, Value};

#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    raw: &'a Map<String, Value>,
    known: &'static [&'static str],
}

impl<'a> Fields<'a> {
    /// `known`: all keys that will be asked for.
    pub fn of(raw: &'a Map<String, Value>, known: &'static [&'static str]) -> Self {
        Self { raw, known }
    }

    /// `null` counts as absent, as Go's decoder has it.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        debug_assert!(self.known.contains(&key), "{key} is not in the list of the plugin's keys");
        self.raw.get(key).filter(|v| !v.is_null())
    }

    /// Absent and empty are the same.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Refusal> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.as_str()).filter(|s| !s.is_empty())),
            Some(v) => Err(Refusal::invalid(key, v, "must be a string")),
        }
    }

    pub fn flag(&self, key: &str) -> Result<bool, Refusal> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err(Refusal::invalid(key, v, "must be true or false")),
        }
    }

    pub fn number(&self, key: &str) -> Result<Option<i64>, Refusal> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => v.as_i64().map(Some).ok_or_else(|| Refusal::invalid(key, v, "must be a whole number")),
        }
    }

    pub fn list(&self, key: &str) -> Result<&'a [Value], Refusal> {
        match self.get(key) {
            None => Ok(&[]),
            Some(Value::Array(a)) => Ok(a),
            Some(v) => Err(Refusal::invalid(key, v, "must be a list")),
        }
    }
}

/// A value's own error as the rule of a refusal.
pub fn wrong(key: impl Into<String>, value: impl Display, rule: impl Display) -> Refusal {
    Refusal::invalid(key, value, rule.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wrong_types_are_named() {
        let v = json!({"s":1,"f":"yes","n":1.5,"l":{},"null":null,"empty":""});
        let f = Fields::of(v.as_object().unwrap(), &["s", "f", "n", "l", "null", "empty", "absent"]);
        assert_eq!(f.text("s").unwrap_err().to_string(), "s \"1\": must be a string");
        assert_eq!(f.flag("f").unwrap_err().to_string(), "f \"\\\"yes\\\"\": must be true or false");
        assert_eq!(f.number("n").unwrap_err().to_string(), "n \"1.5\": must be a whole number");
        assert_eq!(f.list("l").unwrap_err().to_string(), "l \"{}\": must be a list");
        assert_eq!((f.text("null"), f.text("empty"), f.text("absent")), (Ok(None), Ok(None), Ok(None)));
    }
}
