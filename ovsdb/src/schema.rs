//! The part of a database's schema (RFC 7047 section 3.2) that a client needs: which columns there are and how their
//! differences are written.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Tables and columns of the server at the other end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Schema {
    pub name: String,
    #[serde(default)]
    pub version: String,
    pub tables: BTreeMap<String, TableSchema>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct TableSchema {
    pub columns: BTreeMap<String, ColumnSchema>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "RawColumn")]
pub struct ColumnSchema {
    /// Base type: `integer`, `real`, `boolean`, `string` or `uuid`.
    pub key: String,
    /// Of maps: base type of the values.
    pub value: Option<String>,
    /// 0 or 1.
    pub min: u64,
    /// `u64::MAX` is `unlimited`.
    pub max: u64,
}

impl ColumnSchema {
    /// A set of possibly several elements, or a map. Only of these does an update carry a difference; of the others
    /// (scalar, optional scalar) it carries the new value (`ovsdb_datum_diff`, ovs/lib/ovsdb-data.c).
    pub fn is_composite(&self) -> bool {
        self.value.is_some() || self.max > 1
    }
}

impl Schema {
    pub fn column(&self, table: &str, column: &str) -> Option<&ColumnSchema> {
        self.tables.get(table)?.columns.get(column)
    }

    pub fn has(&self, table: &str, column: &str) -> bool {
        self.column(table, column).is_some()
    }
}

#[derive(Deserialize)]
struct RawColumn {
    r#type: RawType,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawType {
    Name(String),
    Full { key: RawBase, value: Option<RawBase>, min: Option<u64>, max: Option<RawMax> },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawBase {
    Name(String),
    Full { r#type: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawMax {
    Count(u64),
    Unlimited(#[expect(dead_code, reason = "that it is a string says it all")] String),
}

impl From<RawColumn> for ColumnSchema {
    fn from(raw: RawColumn) -> Self {
        let name = |base| match base {
            RawBase::Name(name) | RawBase::Full { r#type: name } => name,
        };
        match raw.r#type {
            RawType::Name(key) => ColumnSchema { key, value: None, min: 1, max: 1 },
            RawType::Full { key, value, min, max } => ColumnSchema {
                key: name(key),
                value: value.map(name),
                min: min.unwrap_or(1),
                max: match max {
                    None => 1,
                    Some(RawMax::Count(count)) => count,
                    Some(RawMax::Unlimited(_)) => u64::MAX,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_types_of_every_notation_are_understood() {
        let schema: Schema = serde_json::from_value(serde_json::json!({
            "name": "D", "version": "1.0.0", "cksum": "0 0",
            "tables": {"T": {"indexes": [["a"]], "columns": {
                "a": {"type": "string", "mutable": false},
                "b": {"type": {"key": {"type": "integer", "minInteger": 1}, "min": 0, "max": 1}},
                "c": {"type": {"key": {"type": "uuid", "refTable": "U"}, "min": 0, "max": "unlimited"}},
                "d": {"type": {"key": "string", "value": "integer", "min": 0, "max": "unlimited"}},
                "e": {"type": {"key": {"type": "string", "enum": ["set", ["x"]]}, "min": 0, "max": 2}, "ephemeral": true},
            }}}
        }))
        .unwrap();
        let composite = |column| schema.column("T", column).unwrap().is_composite();
        assert_eq!(["a", "b", "c", "d", "e"].map(composite), [false, false, true, true, true]);
        assert_eq!(schema.column("T", "b").unwrap().min, 0);
        assert!(!schema.has("T", "z") && !schema.has("Z", "a"));
    }
}
