//! Every rule and every bound of the CRDs, kept once and broken once, on kube-apiserver and on the stand-alone API. The rules'
//! cases are those of the crate `api` (tests/crd_cases.yaml); those of the bounds are made from the schemas: each accepted
//! object that has the field is changed so that it just keeps, and then just breaks, the bound.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../api/tests/cases/object.rs"]
mod case;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use integration_tests::apply;
use integration_tests::kube::{ADMIN, Machine};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where a refusal points, why, and in which words: a cause of the API's Status.
type Cause = (String, String, String);

/// The CRDs as they are shipped.
fn crds() -> Vec<Value> {
    let files = std::fs::read_dir(root().join("deploy/crds")).unwrap();
    files.map(|f| serde_saphyr::from_str(&std::fs::read_to_string(f.unwrap().path()).unwrap()).unwrap()).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// One kind with its cases.
struct Kind {
    version: String,
    kind: String,
    schema: Value,
    has_status: bool,
    cases: Value,
}

impl Kind {
    fn all() -> Vec<Self> {
        let file = root().join("api/tests/crd_cases.yaml");
        let cases: Map<String, Value> = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let kind = |crd: &Value| {
            let version = &crd["spec"]["versions"][0];
            let kind = text(crd, "/spec/names/kind").to_owned();
            Self {
                version: format!("{}/{}", text(crd, "/spec/group"), text(version, "/name")),
                schema: version["schema"]["openAPIV3Schema"].clone(),
                has_status: version.pointer("/subresources/status").is_some(),
                cases: cases.get(&kind).unwrap_or_else(|| panic!("{kind} has no cases")).clone(),
                kind,
            }
        };
        crds().iter().map(kind).collect()
    }

    /// The object of a case: the accepted one that it names, or the first, after its changes.
    fn object(&self, case: &Value) -> Value {
        let mut object = case::object(&self.cases, case);
        object["apiVersion"] = json!(self.version);
        object["kind"] = json!(self.kind);
        object
    }

    fn accepted(&self) -> Vec<Value> {
        list(&self.cases["accepted"]).iter().map(|a| self.object(&json!({"of": a["name"]}))).collect()
    }
}

/// A server under judgement.
struct Server {
    client: kube::Client,
}

impl Server {
    fn api(&self, kind: &Kind) -> Api<DynamicObject> {
        apply::api(&self.client, &kind.version, &kind.kind, None)
    }

    fn causes(done: Result<DynamicObject, kube::Error>) -> Result<Vec<Cause>> {
        match done {
            Ok(_) => Ok(Vec::new()),
            // What is asked for again has passed every check before.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(Vec::new()),
            Err(kube::Error::Api(status)) if status.code == 422 => {
                let causes = status.details.map(|d| d.causes).unwrap_or_default();
                Ok(causes.into_iter().map(|c| (c.field, c.reason, c.message)).collect())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// What a create would say, without one; of the status, where that is written apart, what an update of it would.
    async fn judge(&self, kind: &Kind, object: &Value, status: bool) -> Result<Vec<Cause>> {
        let dry = PostParams { dry_run: true, field_manager: None };
        if !status || !kind.has_status {
            return Self::causes(self.api(kind).create(&dry, &serde_json::from_value(object.clone())?).await);
        }
        let name = text(object, "/metadata/name");
        let mut there = serde_json::to_value(self.api(kind).get(name).await?)?;
        there["status"] = object["status"].clone();
        Self::causes(self.api(kind).replace_status(name, &dry, &serde_json::from_value(there)?).await)
    }

    async fn change(&self, kind: &Kind, name: &str, case: &Value) -> Result<Vec<Cause>> {
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        let done = self.api(kind).patch(name, &params, &Patch::Merge(json!({"spec": case["patch"]}))).await;
        Self::causes(done)
    }
}

/// A field as the server writes it, with the indices of lists taken out: `spec.configs[].name`.
fn plain(field: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in field.chars() {
        inside = (inside || c == '[') && c != ']';
        if !inside || c == '[' {
            out.push(c);
        }
    }
    out.trim_start_matches("<nil>").to_owned()
}

/// Path and message of every rule.
fn rules(schema: &Value, path: &str, out: &mut BTreeSet<(String, String)>) {
    for rule in list(&schema["x-kubernetes-validations"]) {
        out.insert((path.to_owned(), text(rule, "/message").to_owned()));
    }
    parts(schema, path, &mut |schema, path| rules(schema, path, out));
}

fn parts(schema: &Value, path: &str, visit: &mut dyn FnMut(&Value, &str)) {
    for (name, part) in schema["properties"].as_object().into_iter().flatten() {
        if !path.is_empty() || !["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
            visit(part, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") });
        }
    }
    if let Some(items) = schema.get("items") {
        visit(items, &format!("{path}[]"));
    }
}

/// A limit that a schema sets to a field, with a value that just keeps it (where there is one) and one that breaks it.
struct Bound {
    path: String,
    name: &'static str,
    limit: Value,
    /// The reasons by which the server may refuse.
    reason: &'static str,
    /// What it then says, in part.
    says: &'static str,
}

fn bounds(schema: &Value, path: &str, out: &mut Vec<Bound>) {
    let known = [
        ("enum", "FieldValueNotSupported", "Unsupported value"),
        ("pattern", "FieldValueInvalid", "should match"),
        ("minimum", "FieldValueInvalid", "should be greater than or equal to"),
        ("maximum", "FieldValueInvalid", "should be less than or equal to"),
        ("minLength", "FieldValueInvalid", "should be at least"),
        ("maxLength", "FieldValueTooLong", "Too long"),
        ("minItems", "FieldValueInvalid", "should have at least"),
        ("maxItems", "FieldValueTooMany", "Too many"),
    ];
    for (name, reason, says) in known {
        if let Some(limit) = schema.get(name) {
            out.push(Bound { path: path.to_owned(), name, limit: limit.clone(), reason, says });
        }
    }
    for name in list(&schema["required"]) {
        let field = name.as_str().unwrap();
        let path = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
        out.push(Bound { path, name: "required", limit: Value::Null, reason: "FieldValueRequired", says: "Required value" });
    }
    parts(schema, path, &mut |schema, path| bounds(schema, path, out));
}

/// A JSON pointer to the first place that a path without indices leads to.
fn find(object: &Value, path: &str) -> Option<String> {
    fn walk(here: &Value, path: &str, pointer: String) -> Option<String> {
        if path.is_empty() {
            return Some(pointer);
        }
        if let Some(rest) = path.strip_prefix("[]") {
            return list(here).iter().enumerate().find_map(|(i, item)| walk(item, rest, format!("{pointer}/{i}")));
        }
        let path = path.strip_prefix('.').unwrap_or(path);
        let end = path.find(['.', '[']).unwrap_or(path.len());
        walk(here.get(&path[..end])?, &path[end..], format!("{pointer}/{}", &path[..end]))
    }
    walk(object, path, String::new())
}

/// The object with a value at the bound, and past it.
fn mutants(bound: &Bound, object: &Value, at: &str) -> (Option<Value>, Value) {
    let with = |value: Value| {
        let mut object = object.clone();
        *object.pointer_mut(at).unwrap() = value;
        object
    };
    let number = || bound.limit.as_f64().unwrap() as i64;
    let many = |count: usize| {
        let items = list(object.pointer(at).unwrap());
        json!((0..count).map(|i| items[i % items.len()].clone()).collect::<Vec<_>>())
    };
    let count = || usize::try_from(number()).unwrap();
    match bound.name {
        "minimum" => (Some(with(json!(number()))), with(json!(number() - 1))),
        "maximum" => (Some(with(json!(number()))), with(json!(number() + 1))),
        "minLength" => (Some(with(json!("a".repeat(count())))), with(json!("a".repeat(count() - 1)))),
        "maxLength" => (Some(with(json!("a".repeat(count())))), with(json!("a".repeat(count() + 1)))),
        "minItems" => (Some(with(many(count()))), with(many(count() - 1))),
        "maxItems" => (Some(with(many(count()))), with(many(count() + 1))),
        "enum" => (Some(with(bound.limit[0].clone())), with(json!("no-such-word"))),
        // No pattern of ours takes it, whatever it begins and ends with.
        "pattern" => (None, with(json!("/ "))),
        "required" => {
            let (parent, name) = at.rsplit_once('/').unwrap();
            let mut object = object.clone();
            object.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
            (None, object)
        }
        other => panic!("{other} has no mutants"),
    }
}

/// Everything that a server judges otherwise than it should.
async fn judged(server: &Server) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let (mut rules_judged, mut bounds_judged) = (0, 0);
    for kind in Kind::all() {
        for object in kind.accepted() {
            let name = text(&object, "/metadata/name").to_owned();
            let done = server.api(&kind).create(&PostParams::default(), &serde_json::from_value(object.clone())?).await;
            let mut causes = Server::causes(done)?;
            if causes.is_empty() && kind.has_status && object.get("status").is_some() {
                causes = server.judge(&kind, &object, true).await?;
            }
            if !causes.is_empty() {
                wrong.push(format!("{} {name} is refused: {causes:?}", kind.kind));
            }
        }
        rules_judged += rules_of(server, &kind, &mut wrong).await?;
        bounds_judged += bounds_of(server, &kind, &mut wrong).await?;
    }
    println!("{rules_judged} rules and {bounds_judged} bounds were kept and broken");
    Ok(wrong)
}

async fn rules_of(server: &Server, kind: &Kind, wrong: &mut Vec<String>) -> Result<usize> {
    let mut all = BTreeSet::new();
    rules(&kind.schema, "", &mut all);
    let mut broken = BTreeSet::new();
    let name = &kind.kind;
    for case in list(&kind.cases["refused"]).iter().chain(list(&kind.cases["changes"])) {
        let causes = if list(&kind.cases["refused"]).contains(case) {
            server.judge(kind, &kind.object(case), false).await?
        } else {
            server.change(kind, text(case, "/of"), case).await?
        };
        let due: BTreeSet<&str> = list(&case["says"]).iter().filter_map(Value::as_str).collect();
        let mut said = BTreeSet::new();
        for (field, reason, message) in &causes {
            match due.iter().find(|d| message.contains(**d)) {
                Some(d) if reason == "FieldValueInvalid" => {
                    said.insert(*d);
                    broken.insert((plain(field), (*d).to_owned()));
                }
                _ => wrong.push(format!("{name} {case}: {field}: {reason}: {message}")),
            }
        }
        if said != due {
            wrong.push(format!("{name} {case}: {due:?} is due, {causes:?} is said"));
        }
    }
    for (path, message) in &all {
        if !broken.contains(&(path.clone(), message.clone())) {
            wrong.push(format!("{name} {path}: the rule was never broken: {message}"));
        }
        if !kind.accepted().iter().any(|o| find(o, path).is_some()) {
            wrong.push(format!("{name} {path}: the rule was never kept: {message}"));
        }
    }
    Ok(all.len())
}

async fn bounds_of(server: &Server, kind: &Kind, wrong: &mut Vec<String>) -> Result<usize> {
    let mut all = Vec::new();
    bounds(&kind.schema, "", &mut all);
    let accepted = kind.accepted();
    for bound in &all {
        let what = format!("{} {} {} {}", kind.kind, bound.path, bound.name, bound.limit);
        let Some((object, at)) = accepted.iter().find_map(|o| find(o, &bound.path).map(|at| (o, at))) else {
            wrong.push(format!("{what}: no accepted object has the field"));
            continue;
        };
        let (kept, past) = mutants(bound, object, &at);
        let status = bound.path.starts_with("status");
        let is_it = |c: &Cause| plain(&c.0) == bound.path && c.2.contains(bound.says);
        if let Some(kept) = kept {
            let causes = server.judge(kind, &kept, status).await?;
            if causes.iter().any(is_it) {
                wrong.push(format!("{what}: the bound itself is refused: {causes:?}"));
            }
        }
        let causes = server.judge(kind, &past, status).await?;
        if !causes.iter().any(|c| is_it(c) && c.1 == bound.reason) {
            wrong.push(format!("{what}: past it, {causes:?}"));
        }
    }
    Ok(all.len())
}

#[test]
fn kube_apiserver_keeps_every_rule_and_bound() {
    let machine = Machine::start(Path::new(env!("CARGO_BIN_EXE_mooring-lab")), &root().join("deploy"));
    let machine = machine.unwrap_or_else(|e| panic!("{e:#}"));
    let wrong = machine.with(ADMIN, async |client| judged(&Server { client }).await).unwrap();
    assert!(wrong.is_empty(), "{} judgements are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_standalone_api_keeps_them_alike() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let program = Path::new(env!("CARGO_BIN_EXE_mooring-lab")).with_file_name("mooring-standalone");
    let mut command = Command::new(&program);
    command.arg("--socket").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Killed(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display())));
    let patience = Instant::now() + Duration::from_secs(60);
    while !socket.exists() {
        assert!(Instant::now() < patience, "mooring-standalone makes no socket");
        std::thread::sleep(Duration::from_millis(10));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wrong = runtime.block_on(async {
        let client = standalone::client::unix(&socket, "mooring-agent");
        judged(&Server { client }).await
    });
    let wrong = wrong.unwrap();
    assert!(wrong.is_empty(), "{} judgements are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
