//! Network configurations, single and in lists, and what a runtime makes of a list's entry before it executes the plugin.

use model::{AttachmentId, IfName};
use serde_json::{Map, Value, json};

use crate::{AddResult, Error, Version};

/// Keys of a configuration that every plugin has (specification, section 1): those that we read.
pub const KEYS: &[&str] = &[
    "cniVersion",
    "name",
    "type",
    "ipam",
    "dns",
    "prevResult",
    "runtimeConfig",
    "args",
    "capabilities",
    "mac",
    "socket",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
];
/// Keys of `runtimeConfig`: `ips` is for IPAM plugins, which get the configuration as it is.
pub const RUNTIME_KEYS: &[&str] = &["mac", "ips"];
/// Keys of `args.cni`.
pub const ARGS_KEYS: &[&str] = &["mac", "ips", "ovnPort"];

/// One plugin's configuration as it comes on standard input. Unknown keys are kept in `raw`.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    pub version: Version,
    pub name: String,
    /// `type`: the plugin's file name; empty where the key is absent.
    pub kind: String,
    /// None where the key is absent, `null`, or an object without a `type`: no IPAM, layer 2 only.
    pub ipam: Option<Map<String, Value>>,
    pub prev_result: Option<AddResult>,
    /// GC: attachments that are still valid (`cni.dev/valid-attachments`); none where the key is absent.
    pub valid_attachments: Option<Vec<Attachment>>,
    raw: Map<String, Value>,
}

/// An attachment as GC names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attachment {
    pub container_id: String,
    pub ifname: IfName,
}

impl Attachment {
    pub fn id(&self) -> AttachmentId {
        AttachmentId::of(&self.container_id, self.ifname.as_str())
    }
}

impl NetConf {
    /// Code 1 for the version, 6 for wrong JSON types.
    pub fn parse(raw: Map<String, Value>) -> Result<Self, Error> {
        let text = |key: &str| match raw.get(key) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(s)) => Ok(s.clone()),
            Some(v) => Err(Error::decode(format!("{key} {v}: must be a string"))),
        };
        let object = |key: &str| match raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(o)) => Ok(Some(o)),
            Some(v) => Err(Error::decode(format!("{key} {v}: must be an object"))),
        };
        let version: Version = text("cniVersion")?.parse()?;
        object("runtimeConfig")?;
        if object("args")?.and_then(|a| a.get("cni")).is_some_and(|c| !c.is_object() && !c.is_null()) {
            return Err(Error::decode("args.cni: must be an object"));
        }
        let ipam = match object("ipam")? {
            None => None,
            Some(o) => match o.get("type") {
                None | Some(Value::Null) => None,
                Some(Value::String(t)) if t.is_empty() => None,
                Some(Value::String(_)) => Some(o.clone()),
                Some(v) => return Err(Error::decode(format!("ipam.type {v}: must be a string"))),
            },
        };
        let prev_result = object("prevResult")?
            .map(|o| AddResult::from_value(&Value::Object(o.clone())))
            .transpose()
            .map_err(|e| Error::decode(format!("prevResult: {e}")))?;
        let valid_attachments = valid_attachments(&raw)?;
        Ok(Self { version, name: text("name")?, kind: text("type")?, ipam, prev_result, valid_attachments, raw })
    }

    pub(crate) fn empty() -> Self {
        Self {
            version: Version::NEWEST,
            name: String::new(),
            kind: String::new(),
            ipam: None,
            prev_result: None,
            valid_attachments: None,
            raw: Map::new(),
        }
    }

    /// The whole object, as it came.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    pub fn ipam_type(&self) -> Option<&str> {
        self.ipam.as_ref().and_then(|o| o.get("type")).and_then(Value::as_str)
    }

    /// A key of `runtimeConfig`.
    pub fn runtime(&self, key: &str) -> Option<&Value> {
        debug_assert!(RUNTIME_KEYS.contains(&key), "{key} is not in RUNTIME_KEYS");
        self.raw.get("runtimeConfig")?.get(key)
    }

    /// A key of `args.cni`, in any case: ovs-cni reads `mac`, `Mac` and `MAC` alike.
    pub fn args_cni(&self, key: &str) -> Option<&Value> {
        debug_assert!(ARGS_KEYS.contains(&key), "{key} is not in ARGS_KEYS");
        let cni = self.raw.get("args")?.get("cni")?.as_object()?;
        cni.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v)
    }

    /// `socket`: the agent that serves this network.
    pub fn socket(&self) -> Result<Option<&str>, Error> {
        match self.raw.get("socket") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) if s.starts_with('/') => Ok(Some(s)),
            Some(v) => Err(Error::config(format!("socket {v}: must be an absolute path"))),
        }
    }

    /// `alone`: the plugin works by itself, also on a host that has an agent: podman's networks beside a kubelet's.
    pub fn alone(&self) -> Result<bool, Error> {
        match self.raw.get("alone") {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(alone)) => Ok(*alone),
            Some(v) => Err(Error::config(format!("alone {v}: must be true or false"))),
        }
    }
}

/// Both spellings: 1.1.0 as first published said `cni.dev/attachments`, and libcni sets both.
fn valid_attachments(raw: &Map<String, Value>) -> Result<Option<Vec<Attachment>>, Error> {
    let Some((key, list)) =
        ["cni.dev/valid-attachments", "cni.dev/attachments"].into_iter().find_map(|k| raw.get(k).map(|v| (k, v)))
    else {
        return Ok(None);
    };
    let bad = |why: String| Error::decode(format!("{key}: {why}"));
    let list = match list {
        Value::Null => return Ok(Some(Vec::new())),
        Value::Array(a) => a,
        _ => return Err(bad("must be a list".into())),
    };
    let mut out = Vec::with_capacity(list.len());
    for entry in list {
        let text = |k: &str| entry.get(k).and_then(Value::as_str).ok_or_else(|| bad(format!("an entry has no {k}")));
        let ifname = IfName::new(text("ifname")?).map_err(|e| bad(e.to_string()))?;
        out.push(Attachment { container_id: text("containerID")?.to_owned(), ifname });
    }
    Ok(Some(out))
}

/// A list of plugins that are executed one after another: a `.conflist`, or a `.conf` as a list of one.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConfList {
    pub version: Version,
    pub name: String,
    pub disable_check: bool,
    pub disable_gc: bool,
    pub plugins: Vec<Map<String, Value>>,
    /// The list as it was written, to cache and to hand on.
    pub raw: Value,
}

impl NetConfList {
    /// `text` holds a list (it has `plugins`) or a single configuration. Code 6 or 7; a version that we do not speak is code 1.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let v: Value =
            serde_json::from_str(text).map_err(|e| Error::decode(format!("failed to parse the network configuration: {e}")))?;
        Self::from_value(v)
    }

    pub fn from_value(raw: Value) -> Result<Self, Error> {
        let Value::Object(o) = &raw else {
            return Err(Error::decode("the network configuration is not a JSON object"));
        };
        let version = negotiate(o)?;
        let name = match o.get("name") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(s)) => s.clone(),
            Some(v) => return Err(Error::decode(format!("name {v}: must be a string"))),
        };
        if name.is_empty() {
            return Err(Error::config("missing network name"));
        }
        let flag = |key: &str| match o.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            // libcni takes the words too.
            Some(Value::String(s)) if s.eq_ignore_ascii_case("true") => Ok(true),
            Some(Value::String(s)) if s.eq_ignore_ascii_case("false") => Ok(false),
            Some(v) => Err(Error::config(format!("{key} {v}: must be true or false"))),
        };
        let plugins = match o.get("plugins") {
            None => vec![o.clone()],
            Some(Value::Array(a)) if a.is_empty() => return Err(Error::config("plugins []: a list needs at least one plugin")),
            Some(Value::Array(a)) => a
                .iter()
                .enumerate()
                .map(|(i, p)| p.as_object().cloned().ok_or_else(|| Error::decode(format!("plugins[{i}]: must be an object"))))
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(Error::decode("plugins: must be a list")),
        };
        for (i, p) in plugins.iter().enumerate() {
            let kind = p.get("type").and_then(Value::as_str).unwrap_or_default();
            if kind.is_empty() {
                return Err(Error::config(format!("plugins[{i}].type: missing")));
            }
            if kind.contains('/') {
                return Err(Error::config(format!("plugins[{i}].type {kind:?}: must be a file name, not a path")));
            }
        }
        Ok(Self {
            version,
            name,
            disable_check: flag("disableCheck")?,
            disable_gc: flag("disableGC")?,
            plugins,
            raw: raw.clone(),
        })
    }

    pub fn kind(&self, i: usize) -> &str {
        self.plugins.get(i).and_then(|p| p.get("type")).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether any plugin declares the capability.
    pub fn has_capability(&self, name: &str) -> bool {
        self.plugins.iter().any(|p| p.get("capabilities").and_then(|c| c.get(name)).and_then(Value::as_bool) == Some(true))
    }

    /// What libcni puts on the standard input of plugin `i`: the list's name and version, `prevResult` in that version, and of
    /// the runtime's data what the plugin has declared as its capabilities.
    pub fn plugin_conf(&self, i: usize, prev: Option<&AddResult>, runtime: &Map<String, Value>) -> Value {
        let mut conf = self.plugins.get(i).cloned().unwrap_or_default();
        conf.insert("name".into(), json!(self.name));
        conf.insert("cniVersion".into(), json!(self.version.as_str()));
        if let Some(prev) = prev {
            conf.insert("prevResult".into(), prev.to_value(self.version));
        }
        let declared = conf.get("capabilities").and_then(Value::as_object);
        let granted: Map<String, Value> = declared
            .into_iter()
            .flatten()
            .filter(|(_, on)| on.as_bool() == Some(true))
            .filter_map(|(k, _)| runtime.get(k).map(|v| (k.clone(), v.clone())))
            .collect();
        if !granted.is_empty() {
            conf.insert("runtimeConfig".into(), Value::Object(granted));
        }
        Value::Object(conf)
    }

    /// The same for GC, with the attachments that stay.
    pub fn gc_conf(&self, i: usize, valid: &[Attachment]) -> Value {
        let mut conf = self.plugin_conf(i, None, &Map::new());
        let list: Vec<_> = valid.iter().map(|a| json!({"containerID": a.container_id, "ifname": a.ifname.as_str()})).collect();
        conf["cni.dev/valid-attachments"] = json!(list);
        conf["cni.dev/attachments"] = json!(list);
        conf
    }
}

/// The newest of `cniVersion` and `cniVersions` that we speak.
fn negotiate(o: &Map<String, Value>) -> Result<Version, Error> {
    let first = match o.get("cniVersion") {
        None | Some(Value::Null) => "",
        Some(Value::String(s)) => s,
        Some(v) => return Err(Error::decode(format!("cniVersion {v}: must be a string"))),
    };
    let more: Vec<&str> = match o.get("cniVersions") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(a)) => a
            .iter()
            .map(|v| v.as_str().ok_or_else(|| Error::decode("cniVersions: must be a list of strings")))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(Error::decode("cniVersions: must be a list of strings")),
    };
    match more.iter().copied().chain([first]).filter_map(|s| s.parse::<Version>().ok()).max() {
        Some(v) => Ok(v),
        None => first.parse(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(v: Value) -> Result<NetConf, Error> {
        NetConf::parse(v.as_object().unwrap().clone())
    }

    #[test]
    fn unknown_keys_are_kept() {
        let c = conf(json!({"cniVersion":"1.0.0","name":"n","type":"t","extra":{"a":1}})).unwrap();
        assert_eq!(c.raw()["extra"]["a"], 1);
        assert_eq!(c.ipam, None);
    }

    #[test]
    fn an_ipam_without_a_type_is_none() {
        for ipam in [json!({}), Value::Null, json!({"type":""})] {
            assert_eq!(conf(json!({"cniVersion":"1.0.0","name":"n","type":"t","ipam":ipam})).unwrap().ipam, None);
        }
        let c = conf(json!({"cniVersion":"1.0.0","name":"n","type":"t","ipam":{"type":"host-local"}})).unwrap();
        assert_eq!(c.ipam_type(), Some("host-local"));
        assert_eq!(conf(json!({"cniVersion":"1.0.0","name":"n","ipam":[]})).unwrap_err().code, 6);
    }

    #[test]
    fn gc_reads_valid_attachments_of_both_spellings() {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let c =
                conf(json!({"cniVersion":"1.1.0","name":"n","type":"t", key: [{"containerID":"c1","ifname":"eth0"}]})).unwrap();
            let v = c.valid_attachments.unwrap();
            assert_eq!((v[0].container_id.as_str(), v[0].ifname.as_str()), ("c1", "eth0"));
            assert_eq!(v[0].id(), AttachmentId::of("c1", "eth0"));
        }
        assert_eq!(conf(json!({"cniVersion":"1.1.0","name":"n"})).unwrap().valid_attachments, None);
        assert_eq!(conf(json!({"cniVersion":"1.1.0","name":"n","cni.dev/attachments":[{}]})).unwrap_err().code, 6);
    }

    const LIST: &str = r#"{"cniVersion":"0.3.1","name":"net","disableCheck":"true","plugins":[
        {"type":"macvlan","master":"e","capabilities":{"ips":true,"mac":true,"bandwidth":false}},{"type":"tuning"}]}"#;

    #[test]
    fn a_list_is_executed_as_libcni_does() {
        let l = NetConfList::parse(LIST).unwrap();
        assert!(l.disable_check && !l.disable_gc && l.has_capability("mac") && !l.has_capability("bandwidth"));
        let runtime = json!({"mac":"0a:00:00:00:00:01","bandwidth":{"ingressRate":1},"portMappings":[]});
        let runtime = runtime.as_object().unwrap();
        assert_eq!(
            l.plugin_conf(0, None, runtime),
            json!({"cniVersion":"0.3.1","name":"net","type":"macvlan","master":"e",
                "capabilities":{"ips":true,"mac":true,"bandwidth":false},"runtimeConfig":{"mac":"0a:00:00:00:00:01"}})
        );
        let prev = AddResult {
            ips: vec![crate::Ip { address: "10.0.0.2/24".parse().unwrap(), gateway: None, interface: None }],
            ..AddResult::default()
        };
        assert_eq!(
            l.plugin_conf(1, Some(&prev), runtime),
            json!({"cniVersion":"0.3.1","name":"net","type":"tuning",
                "prevResult":{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24"}],"dns":{}}})
        );
    }

    #[test]
    fn a_single_configuration_is_a_list_of_one() {
        let l = NetConfList::parse(r#"{"cniVersion":"1.0.0","name":"n","type":"ptp","ipam":{"type":"x"}}"#).unwrap();
        assert_eq!((l.plugins.len(), l.kind(0)), (1, "ptp"));
    }

    #[test]
    fn the_newest_common_version_is_taken() {
        let l = |s: &str| NetConfList::parse(s).map(|l| l.version);
        assert_eq!(
            l(r#"{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"name":"n","plugins":[{"type":"t"}]}"#),
            Ok(Version::V1_1_0)
        );
        assert_eq!(l(r#"{"cniVersion":"9.0.0","name":"n","plugins":[{"type":"t"}]}"#).unwrap_err().code, 1);
    }

    #[test]
    fn wrong_lists_are_refused() {
        let e = |s: &str| NetConfList::parse(s).unwrap_err().msg;
        assert_eq!(e(r#"{"cniVersion":"1.0.0","plugins":[{"type":"t"}]}"#), "missing network name");
        assert_eq!(e(r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#), "plugins []: a list needs at least one plugin");
        assert_eq!(e(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#), "plugins[0].type: missing");
        assert_eq!(
            e(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../x"}]}"#),
            "plugins[0].type \"../x\": must be a file name, not a path"
        );
        assert_eq!(e(r#"{"cniVersion":"1.0.0","name":"n","plugins":[5]}"#), "plugins[0]: must be an object");
    }
}
