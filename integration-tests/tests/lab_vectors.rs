//! CNI plugins as black boxes: every file of `vectors/` is one case, executed against each plugin that it names: first
//! the reference plugins of the distribution, which proves the case, then ours, alone (no agent). State is judged
//! by `ip`, `ovs-vsctl` and the like only.
//!
//! A file: `about`; `plugins`; `before`, shell lines on a node; `calls`, each with `env` (over the usual one; null removes),
//! `stdin` (`stdin_text` where it is no JSON), `exit`, `stdout` and `stdout_of` (by plugin), or a shell line `run`;
//! `after`, each with `run` and `json`, `text` or `fails`, and `only` for some plugins.
//! Expected JSON is a subset: objects may have more keys, lists are whole; a text `~x` stands for any that holds x,
//! `*` for anything; `$PLUGIN` is the plugin's name.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use integration_tests::lab::{Lab, Options};
use integration_tests::node::REFERENCE_PLUGINS;
use integration_tests::space::Space;
use serde_json::{Value, json};

/// In the order in which they are judged.
const PLUGINS: [&str; 5] = ["host-local", "static", "macvlan", "cni-macvlan", "cni-ovs"];

#[test]
fn every_vector_holds_for_every_plugin_it_names() {
    let lab_exe = PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab"));
    let ours = lab_exe.parent().unwrap().to_owned();
    for plugin in ["cni-macvlan", "cni-ovs"] {
        let file = ours.join(plugin);
        assert!(file.is_file(), "{} is missing: cargo build -p {plugin} with the profile of this test", file.display());
    }
    let lab = Lab::start(&Options { exe: lab_exe, nodes: 1 }).unwrap();
    let node = &lab.node(1).space;
    let usual = State::of(node);
    let only = std::env::var("VECTOR").ok();
    let mut vectors: Vec<_> =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")).unwrap().map(|e| e.unwrap().path()).collect();
    vectors.retain(|p| p.extension().is_some_and(|e| e == "json"));
    vectors.sort();
    let (mut ran, mut failed) = (0, Vec::new());
    for plugin in PLUGINS {
        for file in &vectors {
            let name = file.file_stem().unwrap().to_str().unwrap();
            let vector: Value =
                serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let named = vector["plugins"].as_array().unwrap_or_else(|| panic!("{name}: plugins")).iter().any(|p| p == plugin);
            if !named || only.as_ref().is_some_and(|o| o != name) {
                continue;
            }
            ran += 1;
            let case = Case { node, plugin, path: format!("{REFERENCE_PLUGINS}:{}", ours.display()) };
            if let Err(why) = case.run(&vector) {
                failed.push(format!("{name} with {plugin}: {why}"));
            }
            usual.restore(node);
        }
    }
    assert!(failed.is_empty(), "{} of {ran} failed:\n{}", failed.len(), failed.join("\n"));
    println!("{ran} runs of {} vectors", vectors.len());
    assert!(ran > 0, "no vector was run");
}

/// What a node has before any case; everything else is removed after one.
struct State {
    links: BTreeSet<String>,
}

impl State {
    fn of(node: &Space) -> Self {
        let links: Value = serde_json::from_str(&node.run("ip", &["-j", "link"]).unwrap()).unwrap();
        Self { links: links.as_array().unwrap().iter().map(|l| l["ifname"].as_str().unwrap().to_owned()).collect() }
    }

    fn restore(&self, node: &Space) {
        let script = "for b in $(ovs-vsctl --timeout=10 list-br); do ovs-vsctl --timeout=10 del-br $b; done
            ip -all netns delete; rm -rf /var/lib/cni /run/cni-networks";
        node.run("sh", &["-ec", script]).unwrap();
        for link in Self::of(node).links.difference(&self.links) {
            // `ovs-netdev` and the like go with the last bridge, some moments later.
            let _ = node.output("ip", &["link", "delete", link]);
        }
    }
}

struct Case<'a> {
    node: &'a Space,
    plugin: &'a str,
    path: String,
}

impl Case<'_> {
    fn run(&self, vector: &Value) -> Result<(), String> {
        self.shell("ip netns add pod; ip -n pod link set lo up")?;
        for line in list(&vector["before"]) {
            self.shell(line.as_str().unwrap())?;
        }
        for (i, call) in list(&vector["calls"]).iter().enumerate() {
            self.call(call).map_err(|e| format!("call {i}: {e}"))?;
        }
        for check in list(&vector["after"]) {
            let mine = check.get("only").is_none_or(|o| list(o).iter().any(|p| p == self.plugin));
            if mine {
                self.check(check)?;
            }
        }
        Ok(())
    }

    fn shell(&self, line: &str) -> Result<String, String> {
        self.node.run("sh", &["-ec", &line.replace("$PLUGIN", self.plugin)]).map_err(|e| e.to_string())
    }

    fn call(&self, call: &Value) -> Result<(), String> {
        if let Some(line) = call["run"].as_str() {
            return self.shell(line).map(|_| ());
        }
        let mut env = json!({"CNI_COMMAND":"ADD","CNI_CONTAINERID":"vector1","CNI_NETNS":"/run/netns/pod","CNI_IFNAME":"eth0","CNI_PATH":self.path});
        for (k, v) in call["env"].as_object().into_iter().flatten() {
            env[k] = v.clone();
        }
        let stdin = match call["stdin_text"].as_str() {
            Some(text) => text.to_owned(),
            None => call["stdin"].to_string().replace("$PLUGIN", self.plugin),
        };
        let mut args: Vec<String> = vec!["-i".into(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()];
        for (k, v) in env.as_object().unwrap() {
            if let Some(v) = v.as_str() {
                args.push(format!("{k}={v}"));
            }
        }
        let script = "printf %s \"$1\" > /run/vector.stdin; shift; exec env \"$@\" < /run/vector.stdin";
        let file = self.path.split(':').map(|d| format!("{d}/{}", self.plugin)).find(|f| Path::new(f).is_file()).unwrap();
        args.push(file);
        let args: Vec<&str> = ["-c", script, "sh", &stdin].into_iter().chain(args.iter().map(String::as_str)).collect();
        let output = self.node.output("sh", &args).map_err(|e| e.to_string())?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let printed = format!("stdout {} stderr {}", out.trim(), err.trim());
        let exit = call.get("exit").and_then(Value::as_i64).unwrap_or(0);
        if output.status.code().map(i64::from) != Some(exit) {
            return Err(format!("exit {:?}, expected {exit}: {printed}", output.status.code()));
        }
        let expected = [&call["stdout"], &call["stdout_of"][self.plugin]];
        for e in expected.into_iter().filter(|e| !e.is_null()) {
            let have: Value = serde_json::from_str(&out).map_err(|e| format!("not JSON ({e}): {printed}"))?;
            subset(e, &have).map_err(|why| format!("{why} in {printed}"))?;
        }
        Ok(())
    }

    fn check(&self, check: &Value) -> Result<(), String> {
        let line = check["run"].as_str().unwrap();
        let result = self.shell(line);
        if check["fails"] == json!(true) {
            return result.map_or(Ok(()), |out| Err(format!("`{line}` should fail, and prints {}", out.trim())));
        }
        let out = result?;
        if let Some(text) = check["text"].as_str()
            && out.trim() != text
        {
            return Err(format!("`{line}` prints {:?}, expected {text:?}", out.trim()));
        }
        if let Some(expected) = check.get("json") {
            let have: Value = serde_json::from_str(&out).map_err(|e| format!("`{line}`: {e}: {out}"))?;
            subset(expected, &have).map_err(|why| format!("`{line}`: {why} in {}", out.trim()))?;
        }
        Ok(())
    }
}

fn list(v: &Value) -> &[Value] {
    v.as_array().map_or(&[], Vec::as_slice)
}

fn subset(expected: &Value, have: &Value) -> Result<(), String> {
    match (expected, have) {
        (Value::Object(e), Value::Object(h)) => {
            for (k, v) in e {
                subset(v, h.get(k).unwrap_or(&Value::Null)).map_err(|why| format!("{k}.{why}"))?;
            }
            Ok(())
        }
        // iproute2 of Debian 12 prints an empty object for each link and address that it leaves out.
        (Value::Array(e), Value::Array(h)) if e.len() == h.iter().filter(|v| **v != json!({})).count() => e
            .iter()
            .zip(h.iter().filter(|v| **v != json!({})))
            .enumerate()
            .try_for_each(|(i, (e, h))| subset(e, h).map_err(|why| format!("{i}.{why}"))),
        (Value::String(s), _) if s == "*" && !have.is_null() => Ok(()),
        (Value::String(s), Value::String(h)) if s.strip_prefix('~').is_some_and(|s| h.contains(s)) => Ok(()),
        _ if expected == have => Ok(()),
        _ => Err(format!(" {expected} expected, {have} found")),
    }
}
