//! CNI plugins as black boxes: every file of `vectors/` is one case. Knows what a case says, not how it is carried out.
//!
//! A file: `about`; `plugins`; `reference`, see [`Reference`]; `before`, shell lines on a node; `flat`, the text of
//! `/run/flat.conf`; `conf`, the configuration of calls that bring none; `calls` and `after`.
//! `versions`: `all` makes one case of each CNI version, with `$VERSION` in the place of its name and without the calls of
//! verbs that it does not have.
//!
//! A call has `verb` (ADD where it is absent), `env` (over the usual one; null removes), `stdin` (`stdin_text` where it is no
//! JSON), `prev` (the result of the ADD before it as `prevResult`), `exit`, `stdout` and `stdout_of` (by plugin). Among the
//! calls and in `after` stand checks: `run`, a shell line, with `json`, `text` or `fails`, and `only` for some plugins.
//! Expected JSON is a subset: objects may have more keys, lists are whole; a text `~x` stands for any that holds x, `*` for
//! anything; `$PLUGIN` is the plugin's name.

pub mod compare;
pub mod run;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// Of the specification, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The verbs, each with the version that brought it (specification, "Changes").
pub const VERBS: [(&str, &str); 6] =
    [("ADD", "0.3.0"), ("DEL", "0.3.0"), ("VERSION", "0.3.0"), ("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")];

/// Ours; the other plugins are those of containernetworking/plugins.
pub const OURS: [&str; 2] = ["cni-macvlan", "cni-ovs"];

/// What the reference plugin does with a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The same: it goes first, and what comes of ours must be that.
    Same,
    /// It does otherwise, and ours does better: the reason. That it does is tested.
    Differs(String),
    /// There is none that can be executed, so the text of a specification decides: which.
    None(String),
}

/// One case, of one version where the file names several.
#[derive(Debug, Clone)]
pub struct Vector {
    /// The file's name, and the version after an `@`.
    pub name: String,
    pub reference: Reference,
    body: Value,
}

/// A configuration key that a plugin was given: plugin, verb, version, key.
pub type Touch = (String, String, String, String);

impl Vector {
    /// All files of a directory, by name.
    ///
    /// # Errors
    /// One cannot be read, or says something that no case says.
    pub fn all(dir: &Path) -> Result<Vec<Self>> {
        let mut files: Vec<_> = std::fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
        files.retain(|p| p.extension().is_some_and(|e| e == "json"));
        files.sort();
        let mut out = Vec::new();
        for file in files {
            let name = file.file_stem().and_then(|s| s.to_str()).context("a file without a name")?;
            out.extend(Self::read(name, &std::fs::read_to_string(&file)?).with_context(|| name.to_owned())?);
        }
        Ok(out)
    }

    fn read(name: &str, text: &str) -> Result<Vec<Self>> {
        let one = |name: String, body: Value| -> Result<Self> {
            const KEYS: [&str; 9] = ["about", "plugins", "reference", "before", "flat", "conf", "calls", "after", "versions"];
            for key in body.as_object().context("not an object")?.keys() {
                ensure!(KEYS.contains(&key.as_str()), "unknown key {key}");
            }
            let reference = match &body["reference"] {
                Value::String(s) if s == "same" => Reference::Same,
                Value::Object(o) if o.len() == 1 => match o.iter().next() {
                    Some((k, Value::String(why))) if k == "differs" => Reference::Differs(why.clone()),
                    Some((k, Value::String(why))) if k == "none" => Reference::None(why.clone()),
                    _ => bail!("reference: {}", body["reference"]),
                },
                other => bail!("reference: {other}"),
            };
            let vector = Self { name, reference, body };
            vector.check()?;
            Ok(vector)
        };
        let body: Value = serde_json::from_str(text)?;
        match body.get("versions").map(|v| v == "all") {
            None => Ok(vec![one(name.to_owned(), body)?]),
            Some(true) => VERSIONS
                .iter()
                .map(|version| {
                    let mut body: Value = serde_json::from_str(&text.replace("$VERSION", version))?;
                    if let Some(calls) = body["calls"].as_array_mut() {
                        calls.retain(|c| c.get("run").is_some() || since(verb(c)).is_some_and(|s| s <= *version));
                    }
                    one(format!("{name}@{version}"), body)
                })
                .collect(),
            Some(false) => bail!("versions: only \"all\""),
        }
    }

    fn check(&self) -> Result<()> {
        let (ours, theirs): (Vec<_>, Vec<_>) = self.plugins().into_iter().partition(|p| OURS.contains(p));
        ensure!(!self.calls().is_empty(), "no calls");
        match self.reference {
            Reference::Same => ensure!(!theirs.is_empty(), "the reference does the same, and no reference plugin is named"),
            Reference::Differs(_) => ensure!(theirs.len() == 1 && !ours.is_empty(), "differs: one of theirs and ours"),
            Reference::None(_) => ensure!(theirs.is_empty(), "there is no reference, and {theirs:?} is named"),
        }
        Ok(())
    }

    /// Names, in the order in which they are judged.
    pub fn plugins(&self) -> Vec<&str> {
        let mut plugins: Vec<&str> = list(&self.body["plugins"]).iter().filter_map(Value::as_str).collect();
        plugins.sort_by_key(|p| OURS.contains(p));
        plugins
    }

    fn before(&self) -> impl Iterator<Item = &str> {
        list(&self.body["before"]).iter().filter_map(Value::as_str)
    }

    fn calls(&self) -> &[Value] {
        list(&self.body["calls"])
    }

    fn after(&self) -> &[Value] {
        list(&self.body["after"])
    }

    fn flat(&self) -> Option<&Value> {
        self.body.get("flat")
    }

    /// The configuration of a call.
    fn stdin<'a>(&'a self, call: &'a Value) -> Option<&'a Value> {
        call.get("stdin").or(if call.get("stdin_text").is_some() { None } else { self.body.get("conf") })
    }

    /// Whether libcni can be asked for all of its calls: cnitool names the container itself, and gives a plugin nothing that
    /// is no configuration.
    pub fn is_for_cnitool(&self) -> bool {
        let mut added = false;
        self.calls().iter().filter(|c| c.get("run").is_none()).all(|call| {
            let env = call["env"].as_object();
            let plain = env.into_iter().flatten().all(|(k, v)| {
                ["CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"].contains(&k.as_str()) && v.as_str().is_some_and(|s| !s.is_empty())
            });
            // libcni has rules of its own for names, which are ours: what breaks them never comes to a plugin.
            let short = call["env"]["CNI_IFNAME"].as_str().is_none_or(|name| name.len() < 16);
            let conf = self.stdin(call).and_then(Value::as_object);
            let whole = conf.is_some_and(|c| {
                let text = |key: &str| c.get(key).and_then(Value::as_str).unwrap_or_default();
                let known = since(verb(call)).is_some_and(|s| s <= text("cniVersion")) && VERSIONS.contains(&text("cniVersion"));
                known && text("type") == "$PLUGIN" && !text("name").is_empty() && !c.keys().any(|k| k.starts_with("cni.dev/"))
            });
            // It brings the result that it remembers, and only that.
            let result = match verb(call) {
                "ADD" => conf.is_some_and(|c| !c.contains_key("prevResult")),
                "CHECK" => added,
                verb => verb != "VERSION",
            };
            added |= verb(call) == "ADD" && expected_exit(call) == 0;
            plain && short && whole && result
        })
    }

    /// Whether a plugin of the reference's IPAMs that speaks nothing newer than 1.0.0 can take part.
    pub fn needs_newest_ipam(&self) -> bool {
        self.calls().iter().filter_map(|c| self.stdin(c)).any(|s| s["cniVersion"] == "1.1.0" && s["ipam"]["type"].is_string())
    }

    /// Whether any call says which hardware address it wants.
    fn asks_for_mac(&self) -> bool {
        let (taken, refused) = self.touched();
        taken.iter().chain(&refused).any(|(_, _, _, key)| {
            ["mac", "runtimeconfig.mac", "cni_args.mac", "args.cni.mac"].contains(&key.to_ascii_lowercase().as_str())
        })
    }

    /// Every key that a call with an expected outcome has given a plugin; those of calls that must be refused apart.
    pub fn touched(&self) -> (BTreeSet<Touch>, BTreeSet<Touch>) {
        let (mut taken, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for call in self.calls().iter().filter(|c| c.get("run").is_none()) {
            let Some(stdin) = self.stdin(call).and_then(Value::as_object) else { continue };
            let version = stdin.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
            let mut keys = keys_of(stdin);
            if call["prev"] == true {
                keys.insert("prevResult".to_owned());
            }
            let args = call["env"]["CNI_ARGS"].as_str().unwrap_or_default();
            keys.extend(args.split(';').filter_map(|a| a.split_once('=')).map(|(k, _)| format!("CNI_ARGS.{k}")));
            if stdin.get("configuration_path").is_some() {
                keys.extend(self.flat().and_then(Value::as_object).into_iter().flatten().map(|(k, _)| format!("flat.{k}")));
            }
            let to = if expected_exit(call) == 0 { &mut taken } else { &mut refused };
            for plugin in self.plugins() {
                let touch = |k: &String| (plugin.to_owned(), verb(call).to_owned(), version.to_owned(), k.clone());
                to.extend(keys.iter().map(touch));
            }
        }
        (taken, refused)
    }
}

/// Top-level keys, and below them those of `args.cni`, `runtimeConfig` and the entries of `trunk`.
fn keys_of(conf: &Map<String, Value>) -> BTreeSet<String> {
    let mut keys: BTreeSet<String> = conf.keys().cloned().collect();
    let mut below = |prefix: &str, v: Option<&Value>| {
        keys.extend(v.and_then(Value::as_object).into_iter().flatten().map(|(k, _)| format!("{prefix}.{k}")));
    };
    below("args.cni", conf.get("args").and_then(|a| a.get("cni")));
    below("runtimeConfig", conf.get("runtimeConfig"));
    for entry in conf.get("trunk").map(list).unwrap_or_default() {
        below("trunk", Some(entry));
    }
    keys
}

fn verb(call: &Value) -> &str {
    call["verb"].as_str().or(call["env"]["CNI_COMMAND"].as_str()).unwrap_or("ADD")
}

/// None for what is no verb: such a call is a case of its own.
fn since(verb: &str) -> Option<&'static str> {
    VERBS.iter().find(|(v, _)| *v == verb).map(|(_, since)| *since)
}

fn expected_exit(call: &Value) -> i64 {
    call.get("exit").and_then(Value::as_i64).unwrap_or(0)
}

fn list(v: &Value) -> &[Value] {
    v.as_array().map_or(&[], Vec::as_slice)
}
