//! Create, update, patch and delete: the order in which the rules of metadata, schema and kind are applied to one request,
//! and the one place where a request changes the store. It does not know HTTP, and takes the time from its caller.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::gc::{self, Deleted, Trigger};
use crate::kinds::{Kind, KindId, Kinds, Shape};
use crate::selector::Selector;
use crate::status::{ApiError, FieldError};
use crate::store::{Key, Object, Store};
use crate::{builtin, meta, patch};

/// Events are dropped oldest first beyond this count, as the real server drops them after an hour.
const EVENTS_MAX: usize = 4096;
/// How many are dropped at once, so that the search for the oldest is rare.
const EVENTS_DROPPED: usize = 512;
/// Tries to find a free name for a `generateName` (as in k8s.io/apiserver/pkg/registry/generic/registry).
const NAME_TRIES: usize = 8;

/// What is done with fields that the kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped, with a warning: the API server's default.
    Warn,
    /// The request is refused.
    Strict,
}

/// Which part of an object a request may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All but the status.
    Main,
    /// The status.
    Status,
}

/// A request's circumstances.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who asks: decides only what [`LeaseGuard`] guards.
    pub account: String,
    /// The kind asked for.
    pub kind: KindId,
    /// The namespace of the path, empty for cluster-scoped kinds.
    pub namespace: String,
    /// Judge, but change nothing.
    pub dry_run: bool,
    /// What happens to unknown fields.
    pub fields: FieldValidation,
    /// The time of the request.
    pub now: Timestamp,
}

/// Which kind only certain accounts may delete (design: whoever deletes a lease gives its address away).
#[derive(Debug, Clone)]
pub struct LeaseGuard {
    /// API group of the guarded kind.
    pub group: String,
    /// Its plural name.
    pub plural: String,
    /// Accounts that may delete.
    pub accounts: Vec<String>,
}

impl LeaseGuard {
    fn guards(&self, kind: &Kind) -> bool {
        kind.group == self.group && kind.plural == self.plural
    }
}

/// The body of a DELETE (meta/v1 DeleteOptions), as far as it is obeyed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    /// Seconds; only pods have a grace.
    pub grace_period_seconds: Option<i64>,
    /// `Orphan` leaves dependents alone; `Foreground` is treated as `Background`.
    pub propagation_policy: Option<String>,
    /// Deletes only what is still this.
    pub preconditions: Option<Preconditions>,
    /// `["All"]` changes nothing.
    pub dry_run: Vec<String>,
}

/// What the stored object must have.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    /// `metadata.uid`
    pub uid: Option<String>,
    /// `metadata.resourceVersion`
    pub resource_version: Option<String>,
}

/// An accepted write.
#[derive(Debug)]
pub struct Written {
    /// The object as it is now.
    pub object: Arc<Object>,
    /// Texts for the `Warning` header.
    pub warnings: Vec<String>,
}

/// Kinds, their objects and who may delete: what the verbs work on.
#[derive(Debug)]
pub struct Api<'a> {
    /// The served kinds.
    pub kinds: &'a Kinds,
    /// Their objects.
    pub store: &'a mut Store,
    /// The guarded kind.
    pub guard: &'a LeaseGuard,
}

impl Api<'_> {
    /// POST.
    pub fn create(&mut self, call: &Call, mut value: Value) -> Result<Written, ApiError> {
        let kind = self.kinds.get(call.kind);
        let warnings = decode(kind, &mut value, call.fields)?;
        if value["metadata"]["resourceVersion"].as_str().is_some_and(|v| !v.is_empty()) {
            let message = "resourceVersion should not be set on objects to be created".to_owned();
            return Err(ApiError { code: 500, reason: "", message, details: Value::Null });
        }
        check_namespace_matches(kind, &value, &call.namespace)?;
        let generated = value["metadata"]["name"].as_str().is_none_or(str::is_empty);
        let mut key = Key::new(call.namespace.clone(), "");
        for _ in 0..NAME_TRIES {
            let mut named = value.clone();
            meta::prepare_create(kind, &mut named, &call.namespace, &new_uid(), &name_suffix(), call.now);
            key.name = text(&named, "name").to_owned();
            let taken = self.store.get(call.kind, &key).is_some();
            if !generated || !taken {
                value = named;
                break;
            }
        }
        builtin::prepare_create(kind, &mut value);
        self.check_namespace_open(kind, call, &key.name)?;
        check(kind, &value, None)?;
        if self.store.get(call.kind, &key).is_some() {
            return Err(ApiError::already_exists(kind, &key.name));
        }
        if call.dry_run {
            return Ok(Written { object: Object::draft(value), warnings });
        }
        if kind.is("", "Event") {
            self.drop_old_events(call.kind);
        }
        let object = self.store.put(call.kind, key.clone(), value);
        self.settle_owned(call, key, &object);
        Ok(Written { object, warnings })
    }

    /// PUT.
    pub fn update(&mut self, call: &Call, name: &str, part: Part, mut value: Value) -> Result<Written, ApiError> {
        let kind = self.kinds.get(call.kind);
        let key = Key::new(call.namespace.clone(), name);
        let warnings = decode(kind, &mut value, call.fields)?;
        check_namespace_matches(kind, &value, &call.namespace)?;
        if text(&value, "name") != name {
            let message =
                format!("the name of the object ({}) does not match the name on the URL ({name})", text(&value, "name"));
            return Err(ApiError::bad_request(message));
        }
        let old = self.store.get(call.kind, &key).cloned().ok_or_else(|| ApiError::not_found(kind, name))?;
        if text(&value, "resourceVersion").is_empty() && !kind.unconditional_update {
            let error = FieldError::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
            return Err(ApiError::invalid(kind, name, &[error]));
        }
        self.replace(call, key, part, &old, value, warnings)
    }

    /// PATCH with a merge patch.
    pub fn merge_patch(&mut self, call: &Call, name: &str, part: Part, change: &Value) -> Result<Written, ApiError> {
        let kind = self.kinds.get(call.kind);
        let key = Key::new(call.namespace.clone(), name);
        let old = self.store.get(call.kind, &key).cloned().ok_or_else(|| ApiError::not_found(kind, name))?;
        if !change.is_object() {
            return Err(ApiError::bad_request("a merge patch of an object must be a JSON object"));
        }
        let mut value = old.value.clone();
        patch::merge(&mut value, change);
        let warnings = decode(kind, &mut value, call.fields)?;
        if text(&value, "name") != name {
            let error = FieldError::invalid("metadata.name", &value["metadata"]["name"], "field is immutable");
            return Err(ApiError::invalid(kind, name, &[error]));
        }
        self.replace(call, key, part, &old, value, warnings)
    }

    fn replace(
        &mut self,
        call: &Call,
        key: Key,
        part: Part,
        old: &Arc<Object>,
        mut value: Value,
        warnings: Vec<String>,
    ) -> Result<Written, ApiError> {
        let kind = self.kinds.get(call.kind);
        let version = text(&value, "resourceVersion");
        if !version.is_empty() && version != old.version.to_string() {
            return Err(ApiError::modified(kind, &key.name));
        }
        let uid = text(&value, "uid");
        if !uid.is_empty() && uid != old.meta("uid") {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.meta("uid"));
            return Err(ApiError::conflict(kind, &key.name, &why));
        }
        separate_status(kind, part, &mut value, &old.value);
        meta::prepare_update(&mut value, &old.value);
        count_generation(kind, &mut value, &old.value);
        check(kind, &value, Some(&old.value))?;
        let written = |object| Ok(Written { object, warnings });
        if value == old.value {
            // The real server does not write either: no version, no event.
            return written(old.clone());
        }
        if call.dry_run {
            return written(Object::draft(value));
        }
        let released = value["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
            && !value["metadata"]["deletionTimestamp"].is_null()
            && value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
            && !kind.is("", "Namespace");
        if released {
            self.store.remove(call.kind, &key);
            let uid = old.meta("uid").to_owned();
            self.settle(call, vec![Trigger::Removed { uid, namespace: key.namespace }]);
            return written(Object::draft(value));
        }
        let object = self.store.put(call.kind, key.clone(), value);
        if kind.is("", "Namespace") {
            self.settle(call, vec![Trigger::Removed { uid: String::new(), namespace: key.name.clone() }]);
        }
        self.settle_owned(call, key, &object);
        written(object)
    }

    /// DELETE of one object. Returns its last state when it is gone, its marked state when it waits.
    pub fn delete(&mut self, call: &Call, name: &str, options: &DeleteOptions) -> Result<Deleted, ApiError> {
        let kind = self.kinds.get(call.kind);
        let key = Key::new(call.namespace.clone(), name);
        let object = self.store.get(call.kind, &key).cloned().ok_or_else(|| ApiError::not_found(kind, name))?;
        if self.guard.guards(kind) && !self.guard.accounts.contains(&call.account) {
            let why = format!("account {:?} may not delete it: only the controller and the agents may", call.account);
            return Err(ApiError::forbidden(kind, name, &why));
        }
        let wanted = options.preconditions.clone().unwrap_or_default();
        let stored_version = object.version.to_string();
        let pairs =
            [("UID", wanted.uid, object.meta("uid")), ("ResourceVersion", wanted.resource_version, stored_version.as_str())];
        for (what, wanted, stored) in pairs {
            if let Some(wanted) = wanted.filter(|w| w != stored) {
                let why = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({stored}). The object \
                     might have been deleted and then recreated"
                );
                return Err(ApiError::conflict(kind, name, &why));
            }
        }
        if call.dry_run || !options.dry_run.is_empty() {
            return Ok(Deleted::Gone(object));
        }
        if options.propagation_policy.as_deref() == Some("Orphan") {
            gc::orphan_dependents(self.store, object.meta("uid"));
        }
        let grace = options.grace_period_seconds;
        let (deleted, trigger) = gc::remove_or_mark(self.store, self.kinds, call.kind, &key, grace, call.now);
        self.settle(call, trigger.into_iter().collect());
        Ok(deleted.expect("the object was found under the same lock"))
    }

    /// DELETE of all that match; returns what was deleted or marked.
    pub fn delete_collection(
        &mut self,
        call: &Call,
        all_namespaces: bool,
        selector: &Selector,
        options: &DeleteOptions,
    ) -> Result<Vec<Arc<Object>>, ApiError> {
        let namespace = (!all_namespaces).then_some(call.namespace.as_str());
        let found = self.store.list(call.kind, namespace).filter(|(_, object)| selector.matches(&object.value));
        let keys: Vec<Key> = found.map(|(key, _)| key.clone()).collect();
        let mut deleted = Vec::new();
        for key in keys {
            let call = Call { namespace: key.namespace.clone(), ..call.clone() };
            match self.delete(&call, &key.name, options) {
                Ok(Deleted::Gone(object) | Deleted::Marked(object)) => deleted.push(object),
                // It went as the dependent of one before it.
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }

    /// POST to `pods/<name>/binding`: the only way to put an existing pod on a node.
    pub fn bind(&mut self, call: &Call, name: &str, binding: &Value) -> Result<(), ApiError> {
        let kind = self.kinds.get(call.kind);
        let key = Key::new(call.namespace.clone(), name);
        let pod = self.store.get(call.kind, &key).cloned().ok_or_else(|| ApiError::not_found(kind, name))?;
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        if node.is_empty() {
            return Err(ApiError::invalid(kind, name, &[FieldError::required("target.name", "")]));
        }
        if let Some(current) = pod.value["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
            let why = format!("pod {name} is already assigned to node {current:?}");
            return Err(ApiError::conflict(kind, name, &why));
        }
        if !call.dry_run {
            let mut value = pod.value.clone();
            value["spec"]["nodeName"] = json!(node);
            self.store.put(call.kind, key, value);
        }
        Ok(())
    }

    fn check_namespace_open(&self, kind: &Kind, call: &Call, name: &str) -> Result<(), ApiError> {
        let Some(id) = self.kinds.of_reference("v1", "Namespace").filter(|_| kind.namespaced) else { return Ok(()) };
        let namespace = self.store.get(id, &Key::new("", call.namespace.clone()));
        let namespace = namespace.ok_or_else(|| ApiError::not_found(self.kinds.get(id), &call.namespace))?;
        if namespace.value["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {} because it is being terminated", call.namespace);
        let mut error = ApiError::forbidden(kind, name, &why);
        let message = format!("namespace {} is being terminated", call.namespace);
        error.details["causes"] = json!([{"reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace"}]);
        Err(error)
    }

    fn drop_old_events(&mut self, kind: KindId) {
        if self.store.count(kind) < EVENTS_MAX {
            return;
        }
        let mut all: Vec<(u64, Key)> = self.store.list(kind, None).map(|(key, o)| (o.version, key.clone())).collect();
        all.sort();
        for (_, key) in all.into_iter().take(EVENTS_DROPPED) {
            self.store.remove(kind, &key);
        }
    }

    fn settle_owned(&mut self, call: &Call, key: Key, object: &Object) {
        if crate::store::owners(&object.value).next().is_some() {
            self.settle(call, vec![Trigger::Owned(call.kind, key)]);
        }
    }

    fn settle(&mut self, call: &Call, triggers: Vec<Trigger>) {
        let (kinds, guard) = (self.kinds, self.guard);
        gc::settle(self.store, kinds, &|id| guard.guards(kinds.get(id)), call.now, triggers);
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value["metadata"][field].as_str().unwrap_or_default()
}

fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Five characters of the alphabet that Kubernetes uses, so that no words appear.
fn name_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    random.as_bytes().iter().take(5).map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])).collect()
}

/// Reads a client's object: version and kind must fit, metadata must be metadata, unknown fields go. Returns warnings.
fn decode(kind: &Kind, value: &mut Value, fields: FieldValidation) -> Result<Vec<String>, ApiError> {
    // A built-in kind's decoder takes null for an object without fields.
    if value.is_null() && matches!(kind.shape, Shape::Typed(_)) {
        *value = json!({});
    }
    let Value::Object(map) = value else {
        return Err(ApiError::bad_request("the body of the request must be a JSON object"));
    };
    for (field, wanted, what) in [("apiVersion", kind.api_version(), "API version"), ("kind", kind.kind.clone(), "kind")] {
        let got = map.entry(field).or_insert_with(|| json!(wanted));
        if got.as_str().is_some_and(str::is_empty) {
            *got = json!(wanted);
        }
        if *got != json!(wanted) {
            let message =
                format!("the {what} in the data ({}) does not match the expected {what} ({wanted})", crate::status::plain(got));
            return Err(ApiError::bad_request(message));
        }
    }
    meta::decode(value)?;
    let unknown = match &kind.shape {
        Shape::Schema(schema) => {
            let unknown = schema.prune(value);
            schema.default(value);
            unknown
        }
        Shape::Typed(read) => {
            let kept = read(value.clone()).map_err(|e| {
                let what = format!("{} in version {:?}", kind.kind, kind.api_version());
                ApiError::bad_request(format!("{what} cannot be handled as a {}: {e}", kind.kind))
            })?;
            let mut unknown = Vec::new();
            missing_paths(value, &kept, "", &mut unknown);
            *value = kept;
            builtin::default(kind, value);
            unknown
        }
    };
    let texts: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    match fields {
        FieldValidation::Strict if !texts.is_empty() => {
            Err(ApiError::bad_request(format!("strict decoding error: {}", texts.join(", "))))
        }
        FieldValidation::Warn => Ok(texts),
        FieldValidation::Strict | FieldValidation::Ignore => Ok(Vec::new()),
    }
}

/// Paths of `given` that are not in `kept`; nulls do not count.
fn missing_paths(given: &Value, kept: &Value, path: &str, missing: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (name, value) in given.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match kept.get(name) {
                    Some(kept) => missing_paths(value, kept, &path, missing),
                    None => missing.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (i, (given, kept)) in given.iter().zip(kept).enumerate() {
                missing_paths(given, kept, &format!("{path}[{i}]"), missing);
            }
        }
        _ => {}
    }
}

fn check_namespace_matches(kind: &Kind, value: &Value, namespace: &str) -> Result<(), ApiError> {
    let own = text(value, "namespace");
    if !kind.namespaced || own.is_empty() || own == namespace {
        return Ok(());
    }
    Err(ApiError::bad_request("the namespace of the provided object does not match the namespace sent on the request"))
}

fn check(kind: &Kind, value: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let mut errors = meta::check(kind, value);
    errors.extend(old.into_iter().flat_map(|old| meta::check_update(value, old)));
    errors.extend(builtin::check(kind, value, old));
    if let Shape::Schema(schema) = &kind.shape {
        errors.extend(schema.check(value, old));
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind, text(value, "name"), &errors)) }
}

/// Takes from the old object what this request may not change.
fn separate_status(kind: &Kind, part: Part, value: &mut Value, old: &Value) {
    let (Value::Object(new), Value::Object(old)) = (value, old) else { return };
    match part {
        Part::Main if !kind.status => {}
        Part::Main => {
            match old.get("status") {
                Some(status) => new.insert("status".to_owned(), status.clone()),
                None => new.remove("status"),
            };
        }
        Part::Status => {
            // Of a custom resource only the status is taken; built-in kinds let /status change metadata too.
            let own_metadata = matches!(kind.shape, Shape::Typed(_));
            let taken: &[&str] = if own_metadata { &["status", "metadata"] } else { &["status"] };
            let mut result = old.clone();
            for field in taken {
                match new.remove(*field) {
                    Some(value) => result.insert((*field).to_owned(), value),
                    None => result.remove(*field),
                };
            }
            *new = result;
        }
    }
}

/// The generation counts changes outside of metadata and of a separate status.
fn count_generation(kind: &Kind, value: &mut Value, old: &Value) {
    if !kind.generation {
        return;
    }
    let counted = |object: &Value| -> Vec<(String, Value)> {
        let fields = object.as_object().into_iter().flatten();
        let counted = fields.filter(|(name, _)| *name != "metadata" && !(kind.status && *name == "status"));
        counted.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    if counted(value) != counted(old) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        value["metadata"]["generation"] = json!(generation + 1);
    }
}
