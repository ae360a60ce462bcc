//! Objects by kind and name, one counter of versions, and a bounded window of changes per kind for watches. It does not
//! know what an object means: it never looks beyond `metadata`, and accepts whatever it is given.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use crate::kinds::KindId;

/// Where an object lies within its kind. The namespace is empty for cluster-scoped kinds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
}

impl Key {
    /// From its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// One version of one object. Never changed: a change makes a new one.
#[derive(Debug)]
pub struct Object {
    /// The whole object, `metadata.resourceVersion` included.
    pub value: Value,
    /// The same version as a number.
    pub version: u64,
    /// Encoded once, however many lists and watches send it.
    json: OnceLock<Bytes>,
}

impl Object {
    fn new(mut value: Value, version: u64) -> Arc<Self> {
        value["metadata"]["resourceVersion"] = Value::String(version.to_string());
        Arc::new(Self { value, version, json: OnceLock::new() })
    }

    /// An object that is shown but not stored.
    pub fn draft(value: Value) -> Arc<Self> {
        Arc::new(Self { value, version: 0, json: OnceLock::new() })
    }

    /// The object as JSON.
    pub fn json(&self) -> &Bytes {
        self.json.get_or_init(|| Bytes::from(self.value.to_string()))
    }

    /// `metadata.<name>` as text, empty where absent.
    pub fn meta(&self, name: &str) -> &str {
        self.value["metadata"][name].as_str().unwrap_or_default()
    }
}

/// One change of one object: created (no old), replaced, or deleted (no new).
#[derive(Debug, Clone)]
pub struct Change {
    /// The version that this change made.
    pub version: u64,
    /// What was there before.
    pub old: Option<Arc<Object>>,
    /// What is there now.
    pub new: Option<Arc<Object>>,
}

#[derive(Debug)]
struct Table {
    objects: BTreeMap<Key, Arc<Object>>,
    /// In order of version; at most `Store::window` of them.
    changes: VecDeque<Change>,
    /// Changes up to this version are no longer known.
    forgotten: u64,
    /// The version of the last change: watchers sleep on it.
    latest: watch::Sender<u64>,
}

/// All objects of one server.
#[derive(Debug)]
pub struct Store {
    version: u64,
    tables: Vec<Table>,
    /// Who names this uid as an owner.
    dependents: HashMap<String, BTreeSet<(KindId, Key)>>,
    /// Who has this uid.
    uids: HashMap<String, (KindId, Key)>,
    window: usize,
}

/// Changes of one kind after a version, or that some of them are no longer known.
#[derive(Debug)]
pub enum Changes {
    /// In order, at most as many as were asked for.
    Known(Vec<Change>),
    /// Changes up to this version are lost.
    Forgotten(u64),
}

impl Store {
    /// An empty store of `kinds` kinds whose versions begin after `version`, which keeps `window` changes of each kind.
    pub fn new(kinds: usize, version: u64, window: usize) -> Self {
        let table = || Table {
            objects: BTreeMap::new(),
            changes: VecDeque::new(),
            forgotten: version,
            latest: watch::Sender::new(version),
        };
        Self { version, tables: (0..kinds).map(|_| table()).collect(), dependents: HashMap::new(), uids: HashMap::new(), window }
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// One object.
    pub fn get(&self, kind: KindId, key: &Key) -> Option<&Arc<Object>> {
        self.tables[kind].objects.get(key)
    }

    /// Objects of a kind in order of namespace and name; of one namespace when it is given.
    pub fn list(&self, kind: KindId, namespace: Option<&str>) -> impl Iterator<Item = (&Key, &Arc<Object>)> {
        let from = namespace.map_or(Bound::Unbounded, |n| Bound::Included(Key::new(n, "")));
        let range = self.tables[kind].objects.range((from, Bound::Unbounded));
        range.take_while(move |(key, _)| namespace.is_none_or(|n| key.namespace == n))
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: KindId) -> usize {
        self.tables[kind].objects.len()
    }

    /// Stores a new version, whether or not the object was there.
    pub fn put(&mut self, kind: KindId, key: Key, value: Value) -> Arc<Object> {
        self.version += 1;
        let object = Object::new(value, self.version);
        let old = self.insert(kind, key, object.clone());
        self.record(kind, Change { version: self.version, old, new: Some(object.clone()) });
        object
    }

    /// Removes an object and returns its last state.
    pub fn remove(&mut self, kind: KindId, key: &Key) -> Option<Arc<Object>> {
        let old = self.tables[kind].objects.remove(key)?;
        self.version += 1;
        self.unindex(kind, key, &old);
        self.record(kind, Change { version: self.version, old: Some(old.clone()), new: None });
        Some(old)
    }

    /// Puts back an object of a snapshot: it keeps its version, and nobody is told.
    pub fn restore(&mut self, kind: KindId, key: Key, value: Value, version: u64) {
        let object = Object::new(value, version);
        self.insert(kind, key, object);
    }

    /// Up to `max` changes of a kind after `version`.
    pub fn changes(&self, kind: KindId, version: u64, max: usize) -> Changes {
        let table = &self.tables[kind];
        if version < table.forgotten {
            return Changes::Forgotten(table.forgotten);
        }
        let start = table.changes.partition_point(|change| change.version <= version);
        Changes::Known(table.changes.range(start..).take(max).cloned().collect())
    }

    /// Wakes its holder after each change of a kind.
    pub fn latest(&self, kind: KindId) -> watch::Receiver<u64> {
        self.tables[kind].latest.subscribe()
    }

    /// Who has this uid.
    pub fn by_uid(&self, uid: &str) -> Option<&(KindId, Key)> {
        self.uids.get(uid)
    }

    /// Who names this uid in its ownerReferences.
    pub fn dependents(&self, uid: &str) -> Vec<(KindId, Key)> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    fn insert(&mut self, kind: KindId, key: Key, object: Arc<Object>) -> Option<Arc<Object>> {
        let old = self.tables[kind].objects.insert(key.clone(), object.clone());
        if let Some(old) = &old {
            self.unindex(kind, &key, old);
        }
        for owner in owners(&object.value) {
            self.dependents.entry(owner.to_owned()).or_default().insert((kind, key.clone()));
        }
        self.uids.insert(object.meta("uid").to_owned(), (kind, key));
        old
    }

    fn unindex(&mut self, kind: KindId, key: &Key, old: &Object) {
        self.uids.remove(old.meta("uid"));
        for owner in owners(&old.value) {
            if let Some(set) = self.dependents.get_mut(owner) {
                set.remove(&(kind, key.clone()));
                if set.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
    }

    fn record(&mut self, kind: KindId, change: Change) {
        let table = &mut self.tables[kind];
        let version = change.version;
        table.changes.push_back(change);
        while table.changes.len() > self.window {
            if let Some(lost) = table.changes.pop_front() {
                table.forgotten = lost.version;
            }
        }
        table.latest.send_replace(version);
    }
}

/// The uids in `metadata.ownerReferences`.
pub fn owners(value: &Value) -> impl Iterator<Item = &str> {
    let references = value["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    references.filter_map(|reference| reference["uid"].as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, uid: &str, owner: Option<&str>) -> Value {
        let owners: Vec<Value> = owner.iter().map(|uid| json!({"uid": uid})).collect();
        json!({"metadata": {"name": name, "uid": uid, "ownerReferences": owners}})
    }

    #[test]
    fn versions_rise_over_all_kinds() {
        let mut store = Store::new(2, 10, 8);
        assert_eq!(store.put(0, Key::new("", "a"), object("a", "1", None)).version, 11);
        assert_eq!(store.put(1, Key::new("", "a"), object("a", "2", None)).version, 12);
        store.remove(0, &Key::new("", "a"));
        assert_eq!(store.version(), 13);
        assert!(store.remove(0, &Key::new("", "a")).is_none());
        assert_eq!(store.version(), 13);
    }

    #[test]
    fn a_list_of_one_namespace_holds_no_neighbours() {
        let mut store = Store::new(1, 0, 8);
        for (namespace, name) in [("a", "x"), ("aa", "y"), ("b", "z"), ("a", "w")] {
            store.put(0, Key::new(namespace, name), object(name, name, None));
        }
        let names = |ns| store.list(0, ns).map(|(key, _)| key.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(Some("a")), ["w", "x"]);
        assert_eq!(names(None).len(), 4);
        assert!(names(Some("0")).is_empty());
    }

    #[test]
    fn the_window_forgets_the_oldest_changes_and_says_so() {
        let mut store = Store::new(1, 0, 3);
        for i in 0..5 {
            store.put(0, Key::new("", "a"), object("a", &i.to_string(), None));
        }
        assert!(matches!(store.changes(0, 1, 10), Changes::Forgotten(2)));
        let Changes::Known(changes) = store.changes(0, 2, 2) else { panic!("2 is still known") };
        assert_eq!(changes.iter().map(|c| c.version).collect::<Vec<_>>(), [3, 4]);
        let Changes::Known(none) = store.changes(0, 5, 2) else { panic!("the newest is known") };
        assert!(none.is_empty());
    }

    #[test]
    fn owners_are_indexed_through_replacement_and_removal() {
        let mut store = Store::new(1, 0, 8);
        store.put(0, Key::new("", "a"), object("a", "1", Some("9")));
        assert_eq!(store.dependents("9").len(), 1);
        store.put(0, Key::new("", "a"), object("a", "1", Some("8")));
        assert!(store.dependents("9").is_empty());
        assert_eq!(store.by_uid("1"), Some(&(0, Key::new("", "a"))));
        store.remove(0, &Key::new("", "a"));
        assert!(store.dependents("8").is_empty());
        assert!(store.by_uid("1").is_none());
    }
}
