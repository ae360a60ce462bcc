//! One call of a plugin: environment and standard input, checked. Pure: the caller brings both.

use std::fmt;

use model::{IfName, PodRef};
use serde_json::{Map, Value};

use crate::{CniArgs, Error, NetConf, Version};

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    Add,
    Del,
    Check,
    Status,
    Version,
    Gc,
}

impl Verb {
    pub const ALL: [Verb; 6] = [Verb::Add, Verb::Del, Verb::Check, Verb::Status, Verb::Version, Verb::Gc];

    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
            Verb::Gc => "GC",
        }
    }

    pub fn parse(s: &str) -> Option<Self> {
        Verb::ALL.into_iter().find(|v| v.as_str() == s)
    }

    /// The environment the specification requires for the verb, besides `CNI_COMMAND`.
    const fn required(self) -> &'static [&'static str] {
        match self {
            Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Verb::Status | Verb::Gc => &["CNI_PATH"],
            Verb::Version => &[],
        }
    }

    /// The oldest version that has the verb.
    pub const fn since(self) -> Version {
        match self {
            Verb::Check => Version::V0_4_0,
            Verb::Status | Verb::Gc => Version::V1_1_0,
            Verb::Add | Verb::Del | Verb::Version => Version::V0_3_0,
        }
    }

    /// ADD, DEL and CHECK are about one container's interface.
    pub const fn has_attachment(self) -> bool {
        matches!(self, Verb::Add | Verb::Del | Verb::Check)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A checked call. For STATUS, GC and VERSION there is no attachment: `container_id` is empty and `ifname` none.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub verb: Verb,
    pub container_id: String,
    /// Path; none at DEL when the runtime knows that the namespace is gone, and for STATUS, GC, VERSION.
    pub netns: Option<String>,
    pub ifname: Option<IfName>,
    pub args: CniArgs,
    /// `CNI_ARGS` as it came, to hand on.
    pub raw_args: String,
    /// `CNI_PATH` as it came: directories of plugins joined by `:`.
    pub path: String,
    /// For VERSION an empty configuration.
    pub conf: NetConf,
}

/// The five strings of a call, before they are checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawCall {
    pub command: String,
    pub container_id: String,
    pub netns: String,
    pub ifname: String,
    pub args: String,
    pub path: String,
}

impl RawCall {
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let get = |key: &str| env(key).unwrap_or_default();
        Self {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
            path: get("CNI_PATH"),
        }
    }

    fn get(&self, key: &str) -> &str {
        match key {
            "CNI_CONTAINERID" => &self.container_id,
            "CNI_NETNS" => &self.netns,
            "CNI_IFNAME" => &self.ifname,
            _ => &self.path,
        }
    }
}

impl Request {
    /// Checks in the order of the reference implementation: environment (code 4), standard input (6, 7), version (1).
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Self, Error> {
        Self::new(&RawCall::from_env(env), stdin)
    }

    pub fn new(call: &RawCall, stdin: &[u8]) -> Result<Self, Error> {
        let verb = verb_of(call)?;
        if verb == Verb::Version {
            return Ok(Self::without_attachment(verb, call, NetConf::empty()));
        }
        let raw: Value = serde_json::from_slice(stdin)
            .map_err(|e| Error::decode(format!("failed to parse the network configuration: {e}")))?;
        Self::with_conf(verb, call, raw)
    }

    /// The same from a configuration that is parsed already (the agent's side of the socket).
    pub fn from_value(call: &RawCall, stdin: Value) -> Result<Self, Error> {
        let verb = verb_of(call)?;
        Self::with_conf(verb, call, stdin)
    }

    fn with_conf(verb: Verb, call: &RawCall, raw: Value) -> Result<Self, Error> {
        let Value::Object(raw) = raw else {
            return Err(Error::decode("the network configuration is not a JSON object"));
        };
        check_name(&raw)?;
        if verb.has_attachment() {
            check_container_id(&call.container_id)?;
        }
        let ifname = if verb.has_attachment() {
            Some(IfName::new(call.ifname.as_str()).map_err(|e| Error::env(format!("CNI_IFNAME: {e}")))?)
        } else {
            None
        };
        let conf = NetConf::parse(raw)?;
        if conf.version < verb.since() {
            return Err(Error::new(Error::INCOMPATIBLE_VERSION, format!("config version does not allow {verb}"))
                .with_details(format!("config is {:?}, {verb} needs {}", conf.version.as_str(), verb.since())));
        }
        if verb == Verb::Check && conf.prev_result.is_none() {
            return Err(Error::config("prevResult is missing, CHECK needs the result of ADD"));
        }
        let args = CniArgs::parse(&call.args)?;
        if !verb.has_attachment() {
            return Ok(Self { args, ..Self::without_attachment(verb, call, conf) });
        }
        Ok(Self {
            verb,
            container_id: call.container_id.clone(),
            netns: Some(call.netns.clone()).filter(|n| !n.is_empty()),
            ifname,
            args,
            raw_args: call.args.clone(),
            path: call.path.clone(),
            conf,
        })
    }

    fn without_attachment(verb: Verb, call: &RawCall, conf: NetConf) -> Self {
        Self {
            verb,
            container_id: String::new(),
            netns: None,
            ifname: None,
            args: CniArgs::default(),
            raw_args: call.args.clone(),
            path: call.path.clone(),
            conf,
        }
    }

    pub fn pod(&self) -> Option<PodRef> {
        self.args.pod()
    }

    /// `CNI_IFNAME` of ADD, DEL and CHECK; for the other verbs an error that says so.
    pub fn attachment_ifname(&self) -> Result<&IfName, Error> {
        self.ifname.as_ref().ok_or_else(|| Error::env(format!("{} has no CNI_IFNAME", self.verb)))
    }
}

fn verb_of(call: &RawCall) -> Result<Verb, Error> {
    if call.command.is_empty() {
        return Err(Error::env("required env variables [CNI_COMMAND] missing"));
    }
    let verb = Verb::parse(&call.command).ok_or_else(|| Error::env(format!("unknown CNI_COMMAND: {}", call.command)))?;
    let missing: Vec<_> = verb.required().iter().copied().filter(|key| call.get(key).is_empty()).collect();
    if !missing.is_empty() {
        return Err(Error::env(format!("required env variables [{}] missing", missing.join(","))));
    }
    Ok(verb)
}

/// `cniVersion` as it came, for error objects; empty where there is none.
pub fn version_text(stdin: &[u8]) -> String {
    serde_json::from_slice::<Value>(stdin)
        .ok()
        .and_then(|v| v.get("cniVersion").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_default()
}

/// Alphanumeric, then alphanumeric, `_`, `.` or `-`: the rule for container ids and network names alike.
fn is_word(s: &str) -> bool {
    let mut bytes = s.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

const WORD_RULE: &str = "must start with a letter or digit and go on with letters, digits, '_', '.' or '-'";

fn check_container_id(id: &str) -> Result<(), Error> {
    if is_word(id) { Ok(()) } else { Err(Error::env(format!("CNI_CONTAINERID {id:?}: {WORD_RULE}"))) }
}

fn check_name(conf: &Map<String, Value>) -> Result<(), Error> {
    match conf.get("name") {
        None => Err(Error::config("missing network name")),
        Some(Value::String(s)) if s.is_empty() => Err(Error::config("missing network name")),
        Some(Value::String(s)) if is_word(s) => Ok(()),
        Some(Value::String(s)) => Err(Error::config(format!("name {s:?}: {WORD_RULE}"))),
        Some(v) => Err(Error::decode(format!("name {v}: must be a string"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"{"cniVersion":"1.0.0","name":"net","type":"macvlan"}"#;

    fn call(pairs: &[(&str, &str)], stdin: &str) -> Result<Request, Error> {
        let mut env = std::collections::BTreeMap::from([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/a"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ]);
        env.extend(pairs.iter().copied());
        Request::from_env(&|k| env.get(k).map(|v| (*v).to_owned()), stdin.as_bytes())
    }

    fn fails(pairs: &[(&str, &str)], stdin: &str) -> (u32, String) {
        let e = call(pairs, stdin).unwrap_err();
        (e.code, e.msg)
    }

    #[test]
    fn a_whole_add_is_read() {
        let r = call(&[("CNI_ARGS", "MAC=0a:00:00:00:00:01")], CONF).unwrap();
        assert_eq!((r.verb, r.container_id.as_str(), r.netns.as_deref()), (Verb::Add, "c1", Some("/run/netns/a")));
        assert_eq!(r.args.get("MAC"), Some("0a:00:00:00:00:01"));
        assert_eq!((r.conf.name.as_str(), r.conf.version), ("net", Version::V1_0_0));
    }

    #[test]
    fn missing_environment_is_named() {
        let all = [("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", "")];
        assert_eq!(fails(&all, CONF), (4, "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing".into()));
        assert_eq!(fails(&[("CNI_COMMAND", "")], CONF), (4, "required env variables [CNI_COMMAND] missing".into()));
        assert_eq!(fails(&[("CNI_COMMAND", "UPDATE")], CONF), (4, "unknown CNI_COMMAND: UPDATE".into()));
        assert_eq!(fails(&[("CNI_COMMAND", "add")], CONF), (4, "unknown CNI_COMMAND: add".into()));
    }

    #[test]
    fn each_verb_needs_its_own_environment() {
        assert!(call(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", ""), ("CNI_PATH", "")], CONF).unwrap().netns.is_none());
        assert!(call(&[("CNI_COMMAND", "VERSION"), ("CNI_NETNS", ""), ("CNI_IFNAME", ""), ("CNI_CONTAINERID", "")], "").is_ok());
        let v11 = r#"{"cniVersion":"1.1.0","name":"net","type":"macvlan"}"#;
        let none = [("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", "")];
        for verb in ["STATUS", "GC"] {
            let mut env = none.to_vec();
            env.push(("CNI_COMMAND", verb));
            assert!(call(&env, v11).is_ok(), "{verb}");
            env.push(("CNI_PATH", ""));
            assert_eq!(fails(&env, v11), (4, "required env variables [CNI_PATH] missing".into()));
        }
    }

    #[test]
    fn ids_and_interface_names_have_rules() {
        assert_eq!(
            fails(&[("CNI_CONTAINERID", "../x")], CONF),
            (
                4,
                "CNI_CONTAINERID \"../x\": must start with a letter or digit and go on with letters, digits, '_', '.' or '-'"
                    .into()
            )
        );
        assert_eq!(
            fails(&[("CNI_IFNAME", "abcdefghijklmnop")], CONF),
            (4, "CNI_IFNAME: interface name \"abcdefghijklmnop\" has 16 bytes, at most 15 are allowed".into())
        );
        for bad in ["a/b", "a b", "a:b", ".", ".."] {
            assert_eq!(fails(&[("CNI_IFNAME", bad)], CONF).0, 4, "{bad}");
        }
    }

    #[test]
    fn bad_standard_input_is_told_apart() {
        assert_eq!(fails(&[], "").0, 6);
        assert_eq!(fails(&[], "{").0, 6);
        assert_eq!(fails(&[], "[]"), (6, "the network configuration is not a JSON object".into()));
        assert_eq!(fails(&[], r#"{"cniVersion":"1.0.0"}"#), (7, "missing network name".into()));
        assert_eq!(fails(&[], r#"{"cniVersion":"1.0.0","name":"a b"}"#).0, 7);
        assert_eq!(fails(&[], r#"{"cniVersion":"1.0.0","name":5}"#).0, 6);
        assert_eq!(fails(&[], r#"{"cniVersion":"3.0.0","name":"n","type":"t"}"#).0, 1);
        assert_eq!(fails(&[], r#"{"name":"n","type":"t"}"#).0, 1);
        assert_eq!(fails(&[], r#"{"cniVersion":1,"name":"n","type":"t"}"#).0, 6);
    }

    #[test]
    fn verbs_are_of_their_version() {
        let v = |v: &str| format!(r#"{{"cniVersion":"{v}","name":"n","type":"t"}}"#);
        assert_eq!(fails(&[("CNI_COMMAND", "CHECK")], &v("0.3.1")), (1, "config version does not allow CHECK".into()));
        assert_eq!(fails(&[("CNI_COMMAND", "GC")], &v("1.0.0")), (1, "config version does not allow GC".into()));
        assert_eq!(fails(&[("CNI_COMMAND", "STATUS")], &v("1.0.0")), (1, "config version does not allow STATUS".into()));
        assert_eq!(
            fails(&[("CNI_COMMAND", "CHECK")], &v("0.4.0")),
            (7, "prevResult is missing, CHECK needs the result of ADD".into())
        );
    }

    #[test]
    fn version_text_survives_what_the_request_does_not() {
        assert_eq!(version_text(br#"{"cniVersion":"9.0.0"}"#), "9.0.0");
        assert_eq!(version_text(b"{"), "");
    }
}
