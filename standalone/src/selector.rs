//! Label and field selectors: parsed from a query string's value, matched against an object. It does not know kinds: which
//! fields may be selected is the caller's list.
//!
//! Source: Kubernetes, "Labels and Selectors"; k8s.io/apimachinery/pkg/labels.

use serde_json::Value;

use crate::status::plain;

/// Both selectors of one request. The default matches everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, String, bool)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// Why a selector cannot be used; the text is what the API server answers with code 400.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The label selector cannot be read.
    #[error("unable to parse requirement: {0}")]
    Label(String),
    /// The field selector cannot be read.
    #[error("invalid selector: {0:?}; can't understand {1:?}")]
    Field(String, String),
    /// The kind has no such selectable field.
    #[error("field label not supported: {0}")]
    UnknownField(String),
}

impl Selector {
    /// `fields` lists the selectable paths of the kind, beside `metadata.name` and `metadata.namespace`.
    pub fn parse(label_selector: &str, field_selector: &str, fields: &[String]) -> Result<Self, Error> {
        let labels = split_outside_parentheses(label_selector).into_iter().map(requirement).collect::<Result<_, _>>()?;
        let mut wanted = Vec::new();
        for term in field_selector.split(',').map(str::trim).filter(|term| !term.is_empty()) {
            let parts = [("!=", false), ("==", true), ("=", true)];
            let found = parts.iter().find_map(|(op, equal)| term.split_once(op).map(|(k, v)| (k, v, *equal)));
            let (field, value, equal) = found.ok_or_else(|| Error::Field(field_selector.to_owned(), term.to_owned()))?;
            if field != "metadata.name" && field != "metadata.namespace" && !fields.iter().any(|f| f == field) {
                return Err(Error::UnknownField(field.to_owned()));
            }
            wanted.push((field.to_owned(), value.to_owned(), equal));
        }
        Ok(Self { labels, fields: wanted })
    }

    /// Whether the object has all that is asked for.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|requirement| requirement.matches(labels))
            && self.fields.iter().all(|(field, value, equal)| (field_of(object, field) == *value) == *equal)
    }

    /// The only name that can match, when the selector says so.
    pub fn name(&self) -> Option<&str> {
        self.fields.iter().find(|(field, _, equal)| *equal && field == "metadata.name").map(|(_, name, _)| name.as_str())
    }
}

impl Requirement {
    fn matches(&self, labels: &Value) -> bool {
        let value = |key: &String| labels.get(key).and_then(Value::as_str);
        match self {
            Self::In(key, values) => value(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Self::NotIn(key, values) => value(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
        }
    }
}

/// The value at a dotted path, empty where it is absent: a selector cannot tell the two apart.
fn field_of(object: &Value, path: &str) -> String {
    let value = path.split('.').fold(object, |value, part| &value[part]);
    if value.is_null() { String::new() } else { plain(value) }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let terms = text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    terms.map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn requirement(term: &str) -> Result<Requirement, Error> {
    let bad = || Error::Label(term.to_owned());
    let key = |text: &str| -> Result<String, Error> {
        let text = text.trim();
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if text.is_empty() || !text.chars().all(legal) { Err(bad()) } else { Ok(text.to_owned()) }
    };
    if let Some((left, values)) = term.split_once('(') {
        let values = values.trim_end().strip_suffix(')').ok_or_else(bad)?;
        let values = values.split(',').map(|v| v.trim().to_owned()).collect();
        let (name, op) = left.trim().rsplit_once(char::is_whitespace).ok_or_else(bad)?;
        return match op {
            "in" => Ok(Requirement::In(key(name)?, values)),
            "notin" => Ok(Requirement::NotIn(key(name)?, values)),
            _ => Err(bad()),
        };
    }
    if let Some((name, value)) = term.split_once("!=") {
        return Ok(Requirement::NotIn(key(name)?, vec![value.trim().to_owned()]));
    }
    if let Some((name, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Ok(Requirement::In(key(name)?, vec![value.trim().to_owned()]));
    }
    match term.strip_prefix('!') {
        Some(name) => Ok(Requirement::Absent(key(name)?)),
        None => Ok(Requirement::Exists(key(term)?)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_match_as_documented() {
        let object = json!({"metadata": {"labels": {"a": "1", "b.io/c": "x"}}});
        let cases = [
            ("a=1", true),
            ("a==1", true),
            ("a=2", false),
            ("a!=2", true),
            ("z!=2", true),
            ("a!=1", false),
            ("a", true),
            ("z", false),
            ("!a", false),
            ("!z", true),
            ("a in (1, 2)", true),
            ("a in (2)", false),
            ("a notin (2,3)", true),
            ("z notin (2,3)", true),
            ("a notin (1)", false),
            ("a in (1,2),b.io/c=x", true),
            ("a in (1,2),b.io/c=y", false),
            ("", true),
        ];
        for (text, wanted) in cases {
            assert_eq!(Selector::parse(text, "", &[]).unwrap().matches(&object), wanted, "{text}");
        }
    }

    #[test]
    fn field_selectors_know_only_the_listed_fields() {
        let object = json!({"metadata": {"name": "x"}, "spec": {"nodeName": "n1", "on": true}});
        let fields = ["spec.nodeName".to_owned(), "spec.on".to_owned()];
        let parse = |text| Selector::parse("", text, &fields);
        assert!(parse("metadata.name=x,spec.nodeName==n1,spec.on=true").unwrap().matches(&object));
        assert!(!parse("spec.nodeName!=n1").unwrap().matches(&object));
        assert_eq!(parse("metadata.name=x").unwrap().name(), Some("x"));
        assert_eq!(parse("spec.other=1").unwrap_err().to_string(), "field label not supported: spec.other");
        assert!(parse("spec.nodeName").is_err());
        assert!(Selector::parse("", "spec.gone=", &["spec.gone".to_owned()]).unwrap().matches(&object));
    }

    #[test]
    fn malformed_label_selectors_are_refused() {
        for text in ["a in 1", "a in (1", "a near (1)", "=1", "!", "a b"] {
            assert!(Selector::parse(text, "", &[]).is_err(), "{text}");
        }
    }
}
