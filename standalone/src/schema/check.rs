//! Values against one schema node, with the messages of the API server (k8s.io/kube-openapi/pkg/validation). It does not
//! know CEL, nor how defaults came in.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Number, Value};

use super::{Additional, Node, Type, join};
use crate::status::{FieldError, type_name};

/// More errors than this help nobody, and a long list of bad items should not make a long answer.
const ERRORS_MAX: usize = 50;

impl Node {
    pub(super) fn check(&self, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        if errors.len() >= ERRORS_MAX || (value.is_null() && self.nullable) {
            return;
        }
        if let Some(wanted) = self.wrong_type(value) {
            errors.push(FieldError::wrong_type(path, value, &wanted));
            return;
        }
        if let Some(allowed) = &self.allowed
            && !allowed.contains(value)
        {
            errors.push(FieldError::unsupported(path, value, allowed));
        }
        match value {
            Value::String(text) => self.check_text(text, value, path, errors),
            Value::Number(number) => self.check_number(number, value, path, errors),
            Value::Array(list) => self.check_list(list, path, errors),
            Value::Object(map) => self.check_map(map, path, errors),
            Value::Null | Value::Bool(_) => {}
        }
        self.check_combined(value, path, errors);
    }

    /// The name of the wanted type, when the value is of another.
    fn wrong_type(&self, value: &Value) -> Option<String> {
        if self.int_or_string {
            return (!is_integer(value) && !value.is_string()).then(|| "integer,string".to_owned());
        }
        let Some(kind) = self.kind else {
            // A node without a type is one of allOf, anyOf and the like, or takes anything.
            return None;
        };
        let fits = match kind {
            Type::Object => value.is_object(),
            Type::Array => value.is_array(),
            Type::String => value.is_string(),
            Type::Integer => is_integer(value),
            Type::Number => value.is_number(),
            Type::Boolean => value.is_boolean(),
        };
        (!fits).then(|| kind.name().to_owned())
    }

    fn check_text(&self, text: &str, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let chars = text.chars().count() as u64;
        if let Some(min) = self.length.0
            && chars < min
        {
            let detail = format!("{path} in body should be at least {min} chars long");
            errors.push(FieldError::invalid(path, value, &detail));
        }
        if let Some(max) = self.length.1
            && chars > max
        {
            errors.push(FieldError::too_long(path, &format!("Too long: may not be more than {max} bytes")));
        }
        if let Some((pattern, regex)) = &self.pattern
            && !regex.is_match(text)
        {
            errors.push(FieldError::invalid(path, value, &format!("{path} in body should match '{pattern}'")));
        }
        if let Some(format) = &self.format
            && !text_has_format(text, format)
        {
            errors.push(FieldError::invalid(path, value, &format!("{path} in body must be of type {format}: {value}")));
        }
    }

    fn check_number(&self, number: &Number, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let n = number.as_f64().unwrap_or(f64::NAN);
        if let Some((min, exclusive)) = self.minimum
            && (n < min || (exclusive && n == min))
        {
            let rule = if exclusive { "greater than" } else { "greater than or equal to" };
            errors.push(FieldError::invalid(path, value, &format!("{path} in body should be {rule} {min}")));
        }
        if let Some((max, exclusive)) = self.maximum
            && (n > max || (exclusive && n == max))
        {
            let rule = if exclusive { "less than" } else { "less than or equal to" };
            errors.push(FieldError::invalid(path, value, &format!("{path} in body should be {rule} {max}")));
        }
        if let Some(step) = self.multiple_of
            && (n / step).fract() != 0.0
        {
            errors.push(FieldError::invalid(path, value, &format!("{path} in body should be a multiple of {step}")));
        }
        let too_wide = match self.format.as_deref() {
            Some("int32") => number.as_i64().is_none_or(|n| i32::try_from(n).is_err()),
            Some("int64") => number.as_i64().is_none() && number.is_u64(),
            _ => false,
        };
        if too_wide {
            let format = self.format.as_deref().unwrap_or_default();
            errors.push(FieldError::invalid(path, value, &format!("{path} in body must be of type {format}: {value}")));
        }
    }

    fn check_list(&self, list: &[Value], path: &str, errors: &mut Vec<FieldError>) {
        let count = list.len() as u64;
        if let Some(min) = self.items_count.0
            && count < min
        {
            let detail = format!("{path} in body should have at least {min} items");
            errors.push(FieldError::invalid(path, &Value::from(count), &detail));
        }
        if let Some(max) = self.items_count.1
            && count > max
        {
            errors.push(FieldError::too_many(path, count, max));
        }
        if let Some(items) = &self.items {
            for (i, item) in list.iter().enumerate() {
                items.check(item, &format!("{path}[{i}]"), errors);
            }
        }
        if self.list_set || !self.list_map_keys.is_empty() {
            let mut seen = HashSet::new();
            for (i, item) in list.iter().enumerate() {
                let key = if self.list_set { item.clone() } else { self.key_of(item) };
                if !seen.insert(key.to_string()) {
                    errors.push(FieldError::duplicate(&format!("{path}[{i}]"), &key));
                }
            }
        }
    }

    fn key_of(&self, item: &Value) -> Value {
        let keys = self.list_map_keys.iter();
        Value::Object(keys.filter_map(|key| Some((key.clone(), item.get(key)?.clone()))).collect())
    }

    fn check_map(&self, map: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
        for name in self.required.iter().filter(|name| !map.contains_key(*name)) {
            errors.push(FieldError::required(&join(path, name), ""));
        }
        let count = map.len() as u64;
        if let Some(min) = self.properties_count.0
            && count < min
        {
            let detail = format!("{path} in body should have at least {min} properties");
            errors.push(FieldError::invalid(path, &Value::from(count), &detail));
        }
        if let Some(max) = self.properties_count.1
            && count > max
        {
            errors.push(FieldError::too_many(path, count, max));
        }
        for (name, value) in map {
            match (self.properties.get(name), &self.additional) {
                (Some(node), _) => node.check(value, &join(path, name), errors),
                (None, Some(Additional::Of(node))) => node.check(value, &join(path, name), errors),
                (None, _) => {}
            }
        }
    }

    fn check_combined(&self, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        for node in &self.all_of {
            node.check(value, path, errors);
        }
        let fitting = |nodes: &[Node]| nodes.iter().filter(|node| node.fits(value, path)).count();
        if !self.any_of.is_empty() && fitting(&self.any_of) == 0 {
            let detail = format!("{path} in body must validate at least one schema (anyOf)");
            errors.push(FieldError::invalid(path, &shown(value), &detail));
        }
        if !self.one_of.is_empty() {
            let count = fitting(&self.one_of);
            if count != 1 {
                let detail =
                    format!("{path} in body must validate one and only one schema (oneOf). Found {count} valid alternatives");
                errors.push(FieldError::invalid(path, &shown(value), &detail));
            }
        }
        if let Some(node) = &self.not
            && node.fits(value, path)
        {
            errors.push(FieldError::invalid(path, &shown(value), &format!("{path} in body must not validate the schema (not)")));
        }
    }

    fn fits(&self, value: &Value, path: &str) -> bool {
        let mut errors = Vec::new();
        self.check(value, path, &mut errors);
        errors.is_empty()
    }
}

/// Objects and lists are shown by their type, as whole ones would drown the message.
pub(super) fn shown(value: &Value) -> Value {
    if value.is_object() || value.is_array() { Value::from(type_name(value)) } else { value.clone() }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
}

/// Formats that the API server checks and our kinds may use; others mean nothing to it either.
fn text_has_format(text: &str, format: &str) -> bool {
    match format {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, length)| {
            let max = if address.parse::<Ipv4Addr>().is_ok() { 32 } else { 128 };
            let known = max == 32 || address.parse::<Ipv6Addr>().is_ok();
            known && length.parse::<u8>().is_ok_and(|length| length <= max)
        }),
        "mac" => {
            let parts: Vec<&str> = text.split([':', '-']).collect();
            [6, 8, 20].contains(&parts.len()) && parts.iter().all(|p| p.len() == 2 && u8::from_str_radix(p, 16).is_ok())
        }
        "uuid" => uuid::Uuid::try_parse(text).is_ok(),
        "date-time" => text.parse::<k8s_openapi::jiff::Timestamp>().is_ok(),
        _ => true,
    }
}
