//! What a container runtime does with a CNI configuration, as libcni does it (containernetworking/cni, libcni/api.go):
//! runs the chain with prevResult and runtimeConfig, keeps results for DEL, deletes in reverse. Written apart from the
//! product's own `cni` crate, which it is to judge.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

/// One plugin's GC, by the caller's program as the runtime.
///
/// # Errors
/// The plugin is not there or fails: with what it printed.
pub fn gc(plugin: &Path, conf: &str) -> Result<()> {
    let mut command = Command::new(plugin);
    command.env("CNI_COMMAND", "GC").env("CNI_PATH", format!("{}:{}", crate::node::CNI_BIN, crate::node::REFERENCE_PLUGINS));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(conf.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "GC: {}", String::from_utf8_lossy(&output.stdout).trim());
    Ok(())
}

/// A failed call: what the plugin said, and which one.
#[derive(Debug, thiserror::Error)]
#[error("plugin type={plugin:?} failed ({verb}): {msg}{}", if details.is_empty() { String::new() } else { format!(": {details}") })]
pub struct Failure {
    /// `type` of the plugin.
    pub plugin: String,
    /// `ADD`, `DEL`, ...
    pub verb: &'static str,
    /// The specification's error code; 999 when the plugin printed none.
    pub code: i64,
    /// The plugin's text.
    pub msg: String,
    /// The plugin's further text, often empty.
    pub details: String,
}

/// A configuration list, or a single configuration as a list of one.
#[derive(Debug, Clone)]
pub struct NetworkList {
    name: String,
    version: String,
    disable_check: bool,
    plugins: Vec<Map<String, Value>>,
}

impl NetworkList {
    /// The first file of a directory in the order of names, as runtimes choose the default network.
    ///
    /// # Errors
    /// There is none, or it is malformed.
    pub fn first_in(dir: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(dir).with_context(|| format!("failed to read {}", dir.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        files.retain(|f| f.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json"));
        files.sort();
        let file = files.first().with_context(|| format!("no networks found in {}", dir.display()))?;
        let text = std::fs::read_to_string(file)?;
        Self::parse(&text).with_context(|| format!("failed to read {}", file.display()))
    }

    /// # Errors
    /// Not JSON, or without a name or plugins.
    pub fn parse(text: &str) -> Result<Self> {
        let value: Map<String, Value> = serde_json::from_str(text)?;
        let text_of = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let plugins = match value.get("plugins") {
            Some(list) => serde_json::from_value(list.clone()).context("plugins is not a list of objects")?,
            None => vec![value.clone()],
        };
        ensure!(!text_of("name").is_empty(), "no name");
        ensure!(!plugins.is_empty(), "no plugins");
        ensure!(plugins.iter().all(|p| p.get("type").is_some_and(Value::is_string)), "a plugin without type");
        let disable_check = value.get("disableCheck").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self { name: text_of("name"), version: text_of("cniVersion"), disable_check, plugins })
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// One NIC of one sandbox.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// CNI_CONTAINERID
    pub id: String,
    /// CNI_NETNS
    pub netns: String,
    /// CNI_IFNAME
    pub ifname: String,
    /// CNI_ARGS
    pub args: String,
    /// By capability: what a plugin that declares it gets as `runtimeConfig`.
    pub capabilities: Map<String, Value>,
}

/// Where a host has its plugins, and where results are kept.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// CNI_PATH: directories, separated by colons.
    pub path: String,
    /// Usually `/var/lib/cni`.
    pub cache: PathBuf,
}

impl Runtime {
    /// ADD of the whole chain: the last plugin's result, which is kept for DEL.
    ///
    /// # Errors
    /// A plugin failed. As libcni, this does not undo: the caller does DEL, as runtimes do.
    pub fn add(&self, list: &NetworkList, sandbox: &Sandbox) -> Result<Value> {
        let mut result = None;
        for plugin in &list.plugins {
            let conf = self.conf(list, plugin, sandbox, result.as_ref());
            result = Some(self.call("ADD", plugin, sandbox, &conf)?.context("ADD without a result")?);
        }
        let result = result.context("no plugin")?;
        self.keep(list, sandbox, &result)?;
        Ok(result)
    }

    /// CHECK of the whole chain against the kept result.
    ///
    /// # Errors
    /// A plugin finds a fault, or no result is kept.
    pub fn check(&self, list: &NetworkList, sandbox: &Sandbox) -> Result<()> {
        if list.disable_check {
            return Ok(());
        }
        let kept = self.kept(list, sandbox).context("no result is kept for this sandbox")?;
        for plugin in &list.plugins {
            self.call("CHECK", plugin, sandbox, &self.conf(list, plugin, sandbox, Some(&kept)))?;
        }
        Ok(())
    }

    /// DEL in reverse order, with the kept result from 0.4.0 on; then forgets the result.
    ///
    /// # Errors
    /// A plugin failed: the result is still kept, and DEL is to be tried again.
    pub fn del(&self, list: &NetworkList, sandbox: &Sandbox) -> Result<()> {
        let kept = if matches!(list.version.as_str(), "" | "0.1.0" | "0.2.0" | "0.3.0" | "0.3.1") {
            None
        } else {
            self.kept(list, sandbox)
        };
        for plugin in list.plugins.iter().rev() {
            self.call("DEL", plugin, sandbox, &self.conf(list, plugin, sandbox, kept.as_ref()))?;
        }
        let _ = std::fs::remove_file(self.kept_file(list, sandbox));
        Ok(())
    }

    fn conf(&self, list: &NetworkList, plugin: &Map<String, Value>, sandbox: &Sandbox, prev: Option<&Value>) -> Value {
        let mut conf = plugin.clone();
        conf.insert("name".into(), json!(list.name));
        conf.insert("cniVersion".into(), json!(list.version));
        if let Some(prev) = prev {
            conf.insert("prevResult".into(), prev.clone());
        }
        // Only what the plugin declares, and the declaration itself stays.
        let declared = plugin.get("capabilities").and_then(Value::as_object).cloned().unwrap_or_default();
        let given: Map<String, Value> = sandbox
            .capabilities
            .iter()
            .filter(|(name, _)| declared.get(*name) == Some(&Value::Bool(true)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !given.is_empty() {
            conf.insert("runtimeConfig".into(), Value::Object(given));
        }
        Value::Object(conf)
    }

    fn call(&self, verb: &'static str, plugin: &Map<String, Value>, sandbox: &Sandbox, conf: &Value) -> Result<Option<Value>> {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let file = self
            .path
            .split(':')
            .map(|dir| Path::new(dir).join(kind))
            .find(|file| file.is_file())
            .with_context(|| format!("failed to find plugin {kind:?} in path [{}]", self.path))?;
        let mut command = Command::new(&file);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &sandbox.id).env("CNI_NETNS", &sandbox.netns);
        command.env("CNI_IFNAME", &sandbox.ifname).env("CNI_ARGS", &sandbox.args).env("CNI_PATH", &self.path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("failed to start {}", file.display()))?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        // A plugin that ends without reading is judged by what it prints.
        let _ = stdin.write_all(conf.to_string().as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        if output.status.success() {
            if output.stdout.iter().all(u8::is_ascii_whitespace) {
                return Ok(None);
            }
            return Ok(Some(serde_json::from_slice(&output.stdout).with_context(|| format!("{kind} printed no JSON"))?));
        }
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let text = |key: &str| said.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (mut msg, mut details) = (text("msg"), text("details"));
        if msg.is_empty() {
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            (msg, details) = (format!("netplugin failed: {}", output.status), format!("{}{}", out.trim(), err.trim()));
        }
        let code = said.get("code").and_then(Value::as_i64).unwrap_or(999);
        bail!(Failure { plugin: kind.into(), verb, code, msg, details });
    }

    fn kept_file(&self, list: &NetworkList, sandbox: &Sandbox) -> PathBuf {
        self.cache.join("results").join(format!("{}-{}-{}", list.name, sandbox.id, sandbox.ifname))
    }

    fn keep(&self, list: &NetworkList, sandbox: &Sandbox, result: &Value) -> Result<()> {
        let file = self.kept_file(list, sandbox);
        std::fs::create_dir_all(self.cache.join("results"))?;
        let entry = json!({
            "kind": "cniCacheV1",
            "containerId": sandbox.id,
            "ifName": sandbox.ifname,
            "networkName": list.name,
            "netns": sandbox.netns,
            "cniArgs": sandbox.args.split(';').filter_map(|a| a.split_once('=')).map(|(k, v)| json!([k, v])).collect::<Vec<_>>(),
            "capabilityArgs": sandbox.capabilities,
            "result": result,
        });
        std::fs::write(&file, entry.to_string()).with_context(|| format!("failed to write {}", file.display()))
    }

    fn kept(&self, list: &NetworkList, sandbox: &Sandbox) -> Option<Value> {
        let text = std::fs::read_to_string(self.kept_file(list, sandbox)).ok()?;
        serde_json::from_str::<Value>(&text).ok()?.get("result").cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A plugin that writes down what it was called with and answers with its own name in `dns.domain`.
    const PLUGIN: &str = r#"#!/bin/sh
me=$(basename "$0"); here=$(dirname "$0")
conf=$(cat)
printf '%s %s %s\n' "$CNI_COMMAND" "$me" "$conf" >> "$here/calls"
[ ! -e "$here/$me.fail" ] || { echo '{"cniVersion":"1.0.0","code":11,"msg":"not now"}'; exit 1; }
[ "$CNI_COMMAND" != ADD ] || printf '{"cniVersion":"1.0.0","dns":{"domain":"%s"}}' "$me"
"#;

    struct Host {
        dir: tempfile::TempDir,
        runtime: Runtime,
    }

    fn host() -> Host {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let file = dir.path().join(name);
            std::fs::write(&file, PLUGIN).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let runtime = Runtime { path: dir.path().display().to_string(), cache: dir.path().join("cache") };
        Host { dir, runtime }
    }

    impl Host {
        fn calls(&self) -> Vec<(String, Value)> {
            let text = std::fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
            let line = |l: &str| {
                let (verb, rest) = l.split_once(' ').unwrap();
                let (name, conf) = rest.split_once(' ').unwrap();
                (format!("{verb} {name}"), serde_json::from_str(conf).unwrap())
            };
            text.lines().map(line).collect()
        }
    }

    fn list(version: &str) -> NetworkList {
        let text = json!({"cniVersion": version, "name": "net", "plugins": [
            {"type": "a", "capabilities": {"mac": true}}, {"type": "b", "capabilities": {"ips": false}}]});
        NetworkList::parse(&text.to_string()).unwrap()
    }

    fn sandbox() -> Sandbox {
        let capabilities = json!({"mac": "02:00:00:00:00:01", "ips": ["10.0.0.1"]}).as_object().unwrap().clone();
        let (id, netns, ifname) = ("c1".to_owned(), "/run/netns/c1".to_owned(), "eth0".to_owned());
        Sandbox { id, netns, ifname, args: "IgnoreUnknown=1;K8S_POD_NAME=p".into(), capabilities }
    }

    #[test]
    fn add_hands_each_plugin_the_result_before_it_and_only_declared_capabilities() {
        let host = host();
        let result = host.runtime.add(&list("1.0.0"), &sandbox()).unwrap();
        assert_eq!(result["dns"]["domain"], "b");
        let calls = host.calls();
        assert_eq!(calls[0].0, "ADD a");
        assert_eq!(calls[0].1["runtimeConfig"], json!({"mac": "02:00:00:00:00:01"}));
        assert_eq!(calls[0].1.get("prevResult"), None);
        assert_eq!((calls[1].0.as_str(), &calls[1].1["prevResult"]["dns"]["domain"]), ("ADD b", &json!("a")));
        assert_eq!(calls[1].1.get("runtimeConfig"), None);
        assert_eq!((&calls[1].1["name"], &calls[1].1["cniVersion"]), (&json!("net"), &json!("1.0.0")));
    }

    #[test]
    fn del_goes_backwards_with_the_kept_result_and_forgets_it() {
        let host = host();
        host.runtime.add(&list("1.0.0"), &sandbox()).unwrap();
        host.runtime.check(&list("1.0.0"), &sandbox()).unwrap();
        host.runtime.del(&list("1.0.0"), &sandbox()).unwrap();
        let calls = host.calls();
        let order: Vec<&str> = calls.iter().map(|c| c.0.as_str()).collect();
        assert_eq!(order, ["ADD a", "ADD b", "CHECK a", "CHECK b", "DEL b", "DEL a"]);
        assert!(calls[2..].iter().all(|c| c.1["prevResult"]["dns"]["domain"] == "b"));
        assert!(host.runtime.kept(&list("1.0.0"), &sandbox()).is_none());
    }

    #[test]
    fn del_before_0_4_0_has_no_previous_result() {
        let host = host();
        host.runtime.add(&list("0.3.1"), &sandbox()).unwrap();
        host.runtime.del(&list("0.3.1"), &sandbox()).unwrap();
        assert!(host.calls()[2..].iter().all(|c| c.1.get("prevResult").is_none()));
    }

    #[test]
    fn a_failed_plugin_is_named_with_its_code_and_its_result_stays_kept() {
        let host = host();
        host.runtime.add(&list("1.0.0"), &sandbox()).unwrap();
        std::fs::write(host.dir.path().join("a.fail"), "").unwrap();
        let error = host.runtime.del(&list("1.0.0"), &sandbox()).unwrap_err();
        assert_eq!(error.to_string(), "plugin type=\"a\" failed (DEL): not now");
        assert_eq!(error.downcast_ref::<Failure>().unwrap().code, 11);
        assert!(host.runtime.kept(&list("1.0.0"), &sandbox()).is_some());
    }

    #[test]
    fn the_first_file_by_name_is_the_network() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("10-b.conf"), r#"{"name":"b","type":"b"}"#).unwrap();
        std::fs::write(dir.path().join("00-a.conflist"), r#"{"name":"a","plugins":[{"type":"a"}]}"#).unwrap();
        std::fs::write(dir.path().join("00-.txt"), "no").unwrap();
        assert_eq!(NetworkList::first_in(dir.path()).unwrap().name(), "a");
    }
}
