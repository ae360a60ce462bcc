//! The agent's journal as text: a record a line, `<FNV-1a of the JSON in 16 hexadecimal digits> <json>`, where the JSON is
//! `{"put": entry}` or `{"gone": key}`; what is torn counts as not written.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::facts::{fnv, text};

/// What is alive in it.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    /// By key.
    pub entries: BTreeMap<String, Value>,
    /// Lines that are no records.
    pub torn: usize,
}

impl Journal {
    pub fn parse(bytes: &str) -> Self {
        let mut journal = Self::default();
        for line in bytes.lines().filter(|l| !l.is_empty()) {
            match record(line) {
                Some(Record::Put(entry)) => {
                    journal.entries.insert(key(&entry["key"]), entry);
                }
                Some(Record::Gone(gone)) => {
                    journal.entries.remove(&key(&gone));
                }
                None => journal.torn += 1,
            }
        }
        journal
    }
}

enum Record {
    Put(Value),
    Gone(Value),
}

fn record(line: &str) -> Option<Record> {
    let (sum, json) = line.split_once(' ')?;
    if sum.len() != 16 || u64::from_str_radix(sum, 16).ok()? != fnv(json.bytes()) {
        return None;
    }
    let mut record: Value = serde_json::from_str(json).ok()?;
    if let Some(entry) = record.get_mut("put") {
        return Some(Record::Put(entry.take()));
    }
    record.get_mut("gone").map(|k| Record::Gone(k.take()))
}

fn key(key: &Value) -> String {
    format!("{} {} of {}", text(key, "/role"), text(key, "/ifname"), text(key, "/container_id"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(record: &Value) -> String {
        let text = record.to_string();
        format!("{:016x} {text}\n", fnv(text.bytes()))
    }

    #[test]
    fn the_last_word_about_a_key_counts_and_torn_lines_do_not() {
        let key = |c: &str| json!({"container_id": c, "ifname": "eth0", "role": "main"});
        let put = |c: &str, state: &str| line(&json!({"put": {"key": key(c), "state": state}}));
        let torn = put("c", "added");
        let text = format!(
            "{}{}{}{}{}",
            put("a", "adding"),
            put("b", "added"),
            put("a", "added"),
            line(&json!({"gone": key("b")})),
            &torn[..40]
        );
        let journal = Journal::parse(&text);
        assert_eq!(journal.entries.keys().collect::<Vec<_>>(), ["main eth0 of a"]);
        assert_eq!(journal.entries["main eth0 of a"]["state"], "added");
        assert_eq!(journal.torn, 1);
    }
}
