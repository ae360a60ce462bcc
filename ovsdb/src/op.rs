//! Operations of a transaction and what the server says of each (RFC 7047 sections 4.1.3 and 5.2). Sends nothing.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, SerializeTuple, Serializer};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::error::Error;
use crate::value::{Atom, Columns, Uuid, Value};

/// Column values from pairs, for rows of [`Operation`].
pub fn columns<'a>(pairs: impl IntoIterator<Item = (&'a str, Value)>) -> Columns {
    pairs.into_iter().map(|(column, value)| (column.to_owned(), value)).collect()
}

/// How a condition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Includes,
    Excludes,
}

/// How a mutation changes a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    /// Adds elements to a set, or pairs to a map whose keys are absent (a present key keeps its value).
    Insert,
    /// Removes elements of a set, or of a map: pairs when given a map, keys when given a set.
    Delete,
}

/// Part of a `where`; all parts must hold. A `where` without parts is every row.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    pub column: String,
    pub function: Function,
    pub value: Value,
}

impl Condition {
    pub fn new(column: impl Into<String>, function: Function, value: impl Into<Value>) -> Self {
        Condition { column: column.into(), function, value: value.into() }
    }

    pub fn equal(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Condition::new(column, Function::Equal, value)
    }

    pub fn not_equal(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Condition::new(column, Function::NotEqual, value)
    }

    /// The column has at least these elements or pairs.
    pub fn includes(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Condition::new(column, Function::Includes, value)
    }

    /// The column has none of these elements or pairs.
    pub fn excludes(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Condition::new(column, Function::Excludes, value)
    }

    /// The row of this identity.
    pub fn uuid(uuid: Uuid) -> Self {
        Condition::equal("_uuid", uuid)
    }
}

/// One change to one column of every row that matches.
#[derive(Debug, Clone, PartialEq)]
pub struct Mutation {
    pub column: String,
    pub mutator: Mutator,
    pub value: Value,
}

impl Mutation {
    pub fn new(column: impl Into<String>, mutator: Mutator, value: impl Into<Value>) -> Self {
        Mutation { column: column.into(), mutator, value: value.into() }
    }

    pub fn add(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Mutation::new(column, Mutator::Add, value)
    }

    pub fn insert(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Mutation::new(column, Mutator::Insert, value)
    }

    pub fn delete(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Mutation::new(column, Mutator::Delete, value)
    }

    /// Removes map keys whatever their values.
    pub fn delete_keys<K: Into<Atom>>(column: impl Into<String>, keys: impl IntoIterator<Item = K>) -> Self {
        Mutation::new(column, Mutator::Delete, Value::set(keys))
    }

    /// Sets map keys whatever they were: `insert` alone keeps an old value, so the keys are deleted first.
    pub fn set_keys<'a>(column: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> [Self; 2] {
        let pairs: Vec<(&str, &str)> = pairs.into_iter().collect();
        [Mutation::delete_keys(column, pairs.iter().map(|(key, _)| *key)), Mutation::insert(column, Value::map(pairs))]
    }
}

/// What a `wait` compares the rows found with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Equal,
    NotEqual,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// `uuid_name` lets other operations of the transaction refer to the new row by [`Value::named_uuid`].
    Insert {
        table: String,
        row: Columns,
        uuid_name: Option<String>,
    },
    /// Without `columns`: all of them.
    Select {
        table: String,
        condition: Vec<Condition>,
        columns: Option<Vec<String>>,
    },
    Update {
        table: String,
        condition: Vec<Condition>,
        row: Columns,
    },
    Mutate {
        table: String,
        condition: Vec<Condition>,
        mutations: Vec<Mutation>,
    },
    Delete {
        table: String,
        condition: Vec<Condition>,
    },
    /// Holds the transaction until the rows that match `condition`, seen through `columns`, are (not) exactly `rows`.
    /// `timeout_ms` 0 decides at once: compare-and-set. `None` waits for ever.
    Wait {
        table: String,
        condition: Vec<Condition>,
        columns: Vec<String>,
        until: Until,
        rows: Vec<Columns>,
        timeout_ms: Option<u64>,
    },
    /// Reply only after the data is on the disk.
    CommitDurable,
    /// Goes into the database's log.
    Comment {
        comment: String,
    },
    /// Fails the transaction unless this client holds the lock.
    Assert {
        lock: String,
    },
}

impl Operation {
    pub fn insert(table: impl Into<String>, row: Columns) -> Self {
        Operation::Insert { table: table.into(), row, uuid_name: None }
    }

    /// Names the row of an insert; does nothing to another operation.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        if let Operation::Insert { uuid_name, .. } = &mut self {
            *uuid_name = Some(name.into());
        }
        self
    }

    pub fn select(table: impl Into<String>, condition: Vec<Condition>) -> Self {
        Operation::Select { table: table.into(), condition, columns: None }
    }

    pub fn select_columns(table: impl Into<String>, condition: Vec<Condition>, columns: &[&str]) -> Self {
        Operation::Select { table: table.into(), condition, columns: Some(owned(columns)) }
    }

    pub fn update(table: impl Into<String>, condition: Vec<Condition>, row: Columns) -> Self {
        Operation::Update { table: table.into(), condition, row }
    }

    pub fn mutate(table: impl Into<String>, condition: Vec<Condition>, mutations: Vec<Mutation>) -> Self {
        Operation::Mutate { table: table.into(), condition, mutations }
    }

    pub fn delete(table: impl Into<String>, condition: Vec<Condition>) -> Self {
        Operation::Delete { table: table.into(), condition }
    }

    /// Compare-and-set guard: the transaction goes on only if the rows that match are exactly `rows` now.
    pub fn expect(table: impl Into<String>, condition: Vec<Condition>, columns: &[&str], rows: Vec<Columns>) -> Self {
        Operation::Wait {
            table: table.into(),
            condition,
            columns: owned(columns),
            until: Until::Equal,
            rows,
            timeout_ms: Some(0),
        }
    }

    /// Guard: the transaction goes on only if no row matches now.
    pub fn expect_none(table: impl Into<String>, condition: Vec<Condition>) -> Self {
        Operation::expect(table, condition, &["_uuid"], Vec::new())
    }

    /// Guard: the transaction goes on only if at least one row matches now.
    pub fn expect_some(table: impl Into<String>, condition: Vec<Condition>) -> Self {
        Operation::Wait {
            table: table.into(),
            condition,
            columns: owned(&["_uuid"]),
            until: Until::NotEqual,
            rows: Vec::new(),
            timeout_ms: Some(0),
        }
    }

    pub fn comment(comment: impl Into<String>) -> Self {
        Operation::Comment { comment: comment.into() }
    }

    pub fn assert(lock: impl Into<String>) -> Self {
        Operation::Assert { lock: lock.into() }
    }

    /// Verb and table, for people.
    pub fn describe(&self) -> String {
        match self {
            Operation::Insert { table, .. } => format!("insert {table}"),
            Operation::Select { table, .. } => format!("select {table}"),
            Operation::Update { table, .. } => format!("update {table}"),
            Operation::Mutate { table, .. } => format!("mutate {table}"),
            Operation::Delete { table, .. } => format!("delete {table}"),
            Operation::Wait { table, .. } => format!("wait {table}"),
            Operation::CommitDurable => "commit".to_owned(),
            Operation::Comment { .. } => "comment".to_owned(),
            Operation::Assert { lock } => format!("assert {lock}"),
        }
    }

    /// What the server would answer with a bare `syntax error`.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            Operation::Insert { uuid_name: Some(name), .. } => check_identifier("uuid-name", name),
            Operation::Assert { lock } => check_identifier("lock", lock),
            _ => Ok(()),
        }
    }
}

/// RFC 7047 section 3.1, `<id>`.
pub(crate) fn check_identifier(field: &'static str, value: &str) -> Result<(), Error> {
    let mut bytes = value.bytes();
    let starts = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if starts && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Ok(());
    }
    Err(Error::Identifier { field, value: value.to_owned() })
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What a successful operation gave.
#[derive(Debug, Clone, PartialEq)]
pub enum OpResult {
    Inserted(Uuid),
    Rows(Vec<Columns>),
    /// Rows that matched.
    Count(u64),
    Done,
}

impl OpResult {
    pub fn inserted(&self) -> Option<Uuid> {
        match self {
            OpResult::Inserted(uuid) => Some(*uuid),
            _ => None,
        }
    }

    pub fn rows(&self) -> Option<&[Columns]> {
        match self {
            OpResult::Rows(rows) => Some(rows),
            _ => None,
        }
    }

    pub fn count(&self) -> Option<u64> {
        match self {
            OpResult::Count(count) => Some(*count),
            _ => None,
        }
    }
}

#[derive(Deserialize, Default)]
struct RawResult {
    error: Option<String>,
    #[serde(default)]
    details: Option<String>,
    uuid: Option<Value>,
    rows: Option<Vec<Columns>>,
    count: Option<u64>,
}

/// The result array of `transact`. One result an operation; after the first failure `null` for what was not tried;
/// when all went well but the commit did not, one extra element with the error.
pub(crate) fn parse_results(operations: &[String], reply: &RawValue) -> Result<Vec<OpResult>, Error> {
    let malformed = |reason: String| Error::Reply { method: "transact", reason };
    let raw: Vec<Option<RawResult>> = serde_json::from_str(reply.get()).map_err(|error| malformed(error.to_string()))?;
    let mut results = Vec::with_capacity(operations.len());
    for (index, result) in raw.into_iter().enumerate() {
        let operation = operations.get(index);
        let Some(result) = result else {
            return Err(malformed(format!("operation {index} was not tried, but none before it failed")));
        };
        if let Some(error) = result.error {
            let details = result.details.unwrap_or_default();
            return Err(match operation {
                Some(operation) => Error::Operation { index, operation: operation.clone(), error, details },
                None => Error::Commit { error, details },
            });
        }
        if operation.is_none() {
            return Err(malformed(format!("{} operations were sent and element {index} is no error", operations.len())));
        }
        results.push(match result {
            RawResult { uuid: Some(Value::Atom(Atom::Uuid(uuid))), .. } => OpResult::Inserted(uuid),
            RawResult { uuid: Some(_), .. } => return Err(malformed(format!("uuid of operation {index} is none"))),
            RawResult { rows: Some(rows), .. } => OpResult::Rows(rows),
            RawResult { count: Some(count), .. } => OpResult::Count(count),
            _ => OpResult::Done,
        });
    }
    if results.len() < operations.len() {
        return Err(malformed(format!("{} operations were sent, {} results came", operations.len(), results.len())));
    }
    Ok(results)
}

/// Member `error` of a JSON-RPC reply: an object with `error` and `details`, or anything.
pub(crate) fn parse_refusal(method: &'static str, error: &RawValue) -> Error {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Refusal {
        Object {
            error: String,
            #[serde(default)]
            details: Option<String>,
        },
        Text(String),
        Other(IgnoredAny),
    }
    match serde_json::from_str(error.get()) {
        Ok(Refusal::Object { error, details }) => Error::Refused { method, error, details: details.unwrap_or_default() },
        Ok(Refusal::Text(error)) => Error::Refused { method, error, details: String::new() },
        Ok(Refusal::Other(_)) | Err(_) => Error::Refused { method, error: error.get().to_owned(), details: String::new() },
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let function = match self.function {
            Function::Less => "<",
            Function::LessOrEqual => "<=",
            Function::Equal => "==",
            Function::NotEqual => "!=",
            Function::Greater => ">",
            Function::GreaterOrEqual => ">=",
            Function::Includes => "includes",
            Function::Excludes => "excludes",
        };
        triple(serializer, &self.column, function, &self.value)
    }
}

impl Serialize for Mutation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mutator = match self.mutator {
            Mutator::Add => "+=",
            Mutator::Subtract => "-=",
            Mutator::Multiply => "*=",
            Mutator::Divide => "/=",
            Mutator::Modulo => "%=",
            Mutator::Insert => "insert",
            Mutator::Delete => "delete",
        };
        triple(serializer, &self.column, mutator, &self.value)
    }
}

fn triple<S: Serializer>(serializer: S, column: &str, word: &str, value: &Value) -> Result<S::Ok, S::Error> {
    let mut tuple = serializer.serialize_tuple(3)?;
    tuple.serialize_element(column)?;
    tuple.serialize_element(word)?;
    tuple.serialize_element(value)?;
    tuple.end()
}

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Operation::Insert { table, row, uuid_name } => {
                map.serialize_entry("op", "insert")?;
                map.serialize_entry("table", table)?;
                map.serialize_entry("row", row)?;
                if let Some(name) = uuid_name {
                    map.serialize_entry("uuid-name", name)?;
                }
            }
            Operation::Select { table, condition, columns } => {
                map.serialize_entry("op", "select")?;
                map.serialize_entry("table", table)?;
                map.serialize_entry("where", condition)?;
                if let Some(columns) = columns {
                    map.serialize_entry("columns", columns)?;
                }
            }
            Operation::Update { table, condition, row } => {
                map.serialize_entry("op", "update")?;
                map.serialize_entry("table", table)?;
                map.serialize_entry("where", condition)?;
                map.serialize_entry("row", row)?;
            }
            Operation::Mutate { table, condition, mutations } => {
                map.serialize_entry("op", "mutate")?;
                map.serialize_entry("table", table)?;
                map.serialize_entry("where", condition)?;
                map.serialize_entry("mutations", mutations)?;
            }
            Operation::Delete { table, condition } => {
                map.serialize_entry("op", "delete")?;
                map.serialize_entry("table", table)?;
                map.serialize_entry("where", condition)?;
            }
            Operation::Wait { table, condition, columns, until, rows, timeout_ms } => {
                map.serialize_entry("op", "wait")?;
                map.serialize_entry("table", table)?;
                map.serialize_entry("where", condition)?;
                map.serialize_entry("columns", columns)?;
                map.serialize_entry("until", if *until == Until::Equal { "==" } else { "!=" })?;
                map.serialize_entry("rows", rows)?;
                if let Some(timeout_ms) = timeout_ms {
                    map.serialize_entry("timeout", timeout_ms)?;
                }
            }
            Operation::CommitDurable => {
                map.serialize_entry("op", "commit")?;
                map.serialize_entry("durable", &true)?;
            }
            Operation::Comment { comment } => {
                map.serialize_entry("op", "comment")?;
                map.serialize_entry("comment", comment)?;
            }
            Operation::Assert { lock } => {
                map.serialize_entry("op", "assert")?;
                map.serialize_entry("lock", lock)?;
            }
        }
        map.end()
    }
}

/// Parameters of `transact`: the database, then the operations (RFC 7047 section 4.1.3).
pub(crate) struct TransactParams<'a> {
    pub database: &'a str,
    pub operations: &'a [Operation],
}

impl Serialize for TransactParams<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.operations.len() + 1))?;
        seq.serialize_element(self.database)?;
        for operation in self.operations {
            seq.serialize_element(operation)?;
        }
        seq.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(operations: &[&str], reply: serde_json::Value) -> Result<Vec<OpResult>, Error> {
        let raw = serde_json::value::to_raw_value(&reply).unwrap();
        parse_results(&owned(operations), &raw)
    }

    const UUID: &str = "550e8400-e29b-41d4-a716-446655440000";

    #[test]
    fn operations_are_written_as_the_rfc_shows_them() {
        let operations = vec![
            Operation::insert("Port", columns([("name", "p".into())])).named("row1"),
            Operation::expect(
                "Bridge",
                vec![Condition::equal("name", "br0")],
                &["name"],
                vec![columns([("name", "br0".into())])],
            ),
            Operation::mutate("Bridge", vec![], vec![Mutation::insert("ports", Value::named_uuid("row1"))]),
            Operation::update("Port", vec![Condition::uuid(UUID.parse().unwrap())], columns([("tag", Value::empty())])),
            Operation::delete("Port", vec![Condition::includes("external_ids", Value::map([("a", "b")]))]),
            Operation::select_columns("Port", vec![], &["name"]),
            Operation::comment("why"),
            Operation::assert("lock"),
        ];
        let written = serde_json::to_value(TransactParams { database: "D", operations: &operations }).unwrap();
        assert_eq!(
            written,
            json!(["D",
                {"op": "insert", "table": "Port", "row": {"name": "p"}, "uuid-name": "row1"},
                {"op": "wait", "table": "Bridge", "where": [["name", "==", "br0"]], "columns": ["name"], "until": "==",
                 "rows": [{"name": "br0"}], "timeout": 0},
                {"op": "mutate", "table": "Bridge", "where": [], "mutations": [["ports", "insert", ["named-uuid", "row1"]]]},
                {"op": "update", "table": "Port", "where": [["_uuid", "==", ["uuid", UUID]]], "row": {"tag": ["set", []]}},
                {"op": "delete", "table": "Port", "where": [["external_ids", "includes", ["map", [["a", "b"]]]]]},
                {"op": "select", "table": "Port", "where": [], "columns": ["name"]},
                {"op": "comment", "comment": "why"},
                {"op": "assert", "lock": "lock"},
            ])
        );
    }

    #[test]
    fn each_kind_of_result_is_told_apart() {
        let found = parse(
            &["insert A", "mutate A", "select A", "comment"],
            json!([{"uuid": ["uuid", UUID]}, {"count": 2}, {"rows": [{"tag": 5}]}, {}]),
        )
        .unwrap();
        assert_eq!(
            found,
            [
                OpResult::Inserted(UUID.parse().unwrap()),
                OpResult::Count(2),
                OpResult::Rows(vec![columns([("tag", 5.into())])]),
                OpResult::Done
            ]
        );
    }

    #[test]
    fn first_failure_is_named_and_the_rest_is_null() {
        let error = parse(&["a", "b", "c"], json!([{}, {"error": "timed out", "details": "too late"}, null])).unwrap_err();
        assert!(
            matches!(&error, Error::Operation { index: 1, operation, details, .. } if operation == "b" && details == "too late")
        );
        assert!(error.is_timed_out());
    }

    #[test]
    fn commit_error_is_the_extra_element() {
        let error = parse(&["a"], json!([{"count": 1}, {"error": "referential integrity violation"}])).unwrap_err();
        assert!(matches!(error, Error::Commit { ref details, .. } if details.is_empty()));
        assert!(error.is_referential_integrity_violation());
    }

    #[test]
    fn replies_of_the_wrong_shape_are_errors() {
        for (operations, reply) in [
            (&["a"][..], json!([])),
            (&["a"], json!([{}, {}])),
            (&["a"], json!([null])),
            (&["a"], json!({"count": 1})),
            (&["a"], json!([{"uuid": "x"}])),
            (&["a"], json!([{"count": -1}])),
            (&[], json!([null])),
        ] {
            assert!(matches!(parse(operations, reply.clone()), Err(Error::Reply { .. })), "{reply}");
        }
        assert_eq!(parse(&[], json!([])).unwrap(), []);
    }

    #[test]
    fn refusal_may_be_an_object_a_string_or_anything() {
        let refusal =
            |value: serde_json::Value| parse_refusal("transact", &serde_json::value::to_raw_value(&value).unwrap()).to_string();
        assert_eq!(
            refusal(json!({"error": "unknown database", "details": "no X", "syntax": "[]"})),
            "OVSDB server refused transact: unknown database (no X)"
        );
        assert_eq!(refusal(json!("canceled")), "OVSDB server refused transact: canceled");
        assert_eq!(refusal(json!([1])), "OVSDB server refused transact: [1]");
    }

    #[test]
    fn identifiers_are_checked_before_the_server_sees_them() {
        for good in ["a", "_", "row_1", "Z9"] {
            assert!(check_identifier("lock", good).is_ok(), "{good}");
        }
        for bad in ["", "underlay-ctl", "1a", "é", "a b"] {
            assert!(check_identifier("lock", bad).is_err(), "{bad}");
        }
        assert!(Operation::insert("T", Columns::new()).named("a-b").check().is_err());
    }
}
