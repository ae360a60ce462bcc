//! What follows a removal: dependents whose last owner is gone, and namespaces that empty themselves. It does not know
//! requests; it works at once, inside the change that caused it, where the real collector works in the background.

use std::collections::VecDeque;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::builtin;
use crate::kinds::{KindId, Kinds};
use crate::meta;
use crate::store::{Key, Object, Store};

/// Something that may have consequences.
#[derive(Debug)]
pub enum Trigger {
    /// An object is gone.
    Removed {
        /// Its `metadata.uid`.
        uid: String,
        /// Its namespace, empty for cluster-scoped kinds.
        namespace: String,
    },
    /// An object was written that names owners.
    Owned(KindId, Key),
    /// A namespace is to be emptied.
    Terminating(String),
}

/// Follows every trigger to its end. `spare` names kinds that are never collected.
pub fn settle(store: &mut Store, kinds: &Kinds, spare: &dyn Fn(KindId) -> bool, now: Timestamp, triggers: Vec<Trigger>) {
    let mut queue = VecDeque::from(triggers);
    while let Some(trigger) = queue.pop_front() {
        match trigger {
            Trigger::Removed { uid, namespace } => {
                queue.extend(store.dependents(&uid).into_iter().map(|(kind, key)| Trigger::Owned(kind, key)));
                queue.extend(finish_namespace(store, kinds, &namespace));
            }
            Trigger::Owned(kind, _) if spare(kind) => {}
            Trigger::Owned(kind, key) => queue.extend(check_owners(store, kinds, kind, &key, now)),
            Trigger::Terminating(namespace) => {
                for kind in (0..kinds.all().len()).filter(|id| kinds.get(*id).namespaced) {
                    let keys: Vec<Key> = store.list(kind, Some(&namespace)).map(|(key, _)| key.clone()).collect();
                    for key in keys {
                        queue.extend(remove_or_mark(store, kinds, kind, &key, None, now).1);
                    }
                }
                queue.extend(finish_namespace(store, kinds, &namespace));
            }
        }
    }
}

/// Deletes an object as far as its finalizers and its grace allow. The first value is its state after that: its last one
/// when it is gone; none when there was no such object.
pub fn remove_or_mark(
    store: &mut Store,
    kinds: &Kinds,
    kind: KindId,
    key: &Key,
    asked_grace_s: Option<i64>,
    now: Timestamp,
) -> (Option<Deleted>, Option<Trigger>) {
    let Some(object) = store.get(kind, key).cloned() else { return (None, None) };
    let described = kinds.get(kind);
    let held = object.value["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
        || (described.is("", "Namespace") && object.value["spec"]["finalizers"].as_array().is_some_and(|l| !l.is_empty()));
    let mut grace_s = builtin::grace_s(described, &object.value, asked_grace_s);
    let marked = !object.value["metadata"]["deletionTimestamp"].is_null();
    if marked && let Some(before) = object.value["metadata"]["deletionGracePeriodSeconds"].as_i64() {
        // A second delete may shorten the grace, never lengthen it.
        grace_s = grace_s.min(before);
        if grace_s == before && (held || grace_s > 0) {
            return (Some(Deleted::Marked(object)), None);
        }
    }
    if !held && grace_s == 0 {
        store.remove(kind, key);
        let trigger = Trigger::Removed { uid: object.meta("uid").to_owned(), namespace: key.namespace.clone() };
        return (Some(Deleted::Gone(object)), Some(trigger));
    }
    let mut value = object.value.clone();
    let at = now.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(grace_s)).unwrap_or(now);
    value["metadata"]["deletionTimestamp"] = Value::from(meta::time(at));
    value["metadata"]["deletionGracePeriodSeconds"] = Value::from(grace_s);
    if let Some(generation) = value["metadata"]["generation"].as_i64() {
        value["metadata"]["generation"] = Value::from(generation + 1);
    }
    let mut trigger = None;
    if described.is("", "Namespace") {
        value["status"]["phase"] = Value::from("Terminating");
        trigger = Some(Trigger::Terminating(key.name.clone()));
    }
    (Some(Deleted::Marked(store.put(kind, key.clone(), value))), trigger)
}

/// What became of a deleted object.
#[derive(Debug)]
pub enum Deleted {
    /// It is gone; this was its last state.
    Gone(std::sync::Arc<Object>),
    /// It waits for its finalizers or for the end of its grace.
    Marked(std::sync::Arc<Object>),
}

/// Takes a uid out of the ownerReferences of everything that names it (`propagationPolicy: Orphan`).
pub fn orphan_dependents(store: &mut Store, uid: &str) {
    for (kind, key) in store.dependents(uid) {
        drop_references(store, kind, &key, |reference| reference["uid"] == uid);
    }
}

fn check_owners(store: &mut Store, kinds: &Kinds, kind: KindId, key: &Key, now: Timestamp) -> Option<Trigger> {
    let object = store.get(kind, key)?.clone();
    let references = object.value["metadata"]["ownerReferences"].as_array()?;
    let lost = |reference: &Value| is_lost(store, kinds, reference, &key.namespace);
    let lost_uids: Vec<&Value> = references.iter().filter(|r| lost(r)).map(|r| &r["uid"]).collect();
    if lost_uids.is_empty() {
        return None;
    }
    if lost_uids.len() == references.len() {
        return remove_or_mark(store, kinds, kind, key, None, now).1;
    }
    drop_references(store, kind, key, |reference| lost_uids.contains(&&reference["uid"]));
    None
}

/// Whether the owner does not exist. An owner of a kind that is not served here is taken to exist, as nobody can tell.
fn is_lost(store: &Store, kinds: &Kinds, reference: &Value, namespace: &str) -> bool {
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let Some(owner_kind) = kinds.of_reference(text("apiVersion"), text("kind")) else { return false };
    let found = store.by_uid(text("uid"));
    !found.is_some_and(|(kind, key)| {
        *kind == owner_kind && key.name == text("name") && (key.namespace.is_empty() || key.namespace == namespace)
    })
}

fn drop_references(store: &mut Store, kind: KindId, key: &Key, dropped: impl Fn(&Value) -> bool) {
    let Some(object) = store.get(kind, key) else { return };
    let mut value = object.value.clone();
    if let Some(list) = value["metadata"]["ownerReferences"].as_array_mut() {
        list.retain(|reference| !dropped(reference));
    }
    store.put(kind, key.clone(), value);
}

/// Removes a namespace that is being deleted and has become empty.
fn finish_namespace(store: &mut Store, kinds: &Kinds, name: &str) -> Option<Trigger> {
    let kind = kinds.of_reference("v1", "Namespace")?;
    let key = Key::new("", name);
    let namespace = store.get(kind, &key)?.clone();
    let empty = || (0..kinds.all().len()).all(|id| !kinds.get(id).namespaced || store.list(id, Some(name)).next().is_none());
    if namespace.value["metadata"]["deletionTimestamp"].is_null() || !empty() {
        return None;
    }
    if namespace.value["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty()) {
        return None;
    }
    store.remove(kind, &key);
    Some(Trigger::Removed { uid: namespace.meta("uid").to_owned(), namespace: String::new() })
}
