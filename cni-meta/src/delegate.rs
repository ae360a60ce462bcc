//! From a chosen network to the plugins that are executed for it.

use std::net::IpAddr;

use cni::{AddResult, Attachment, NetConfList};
use model::IfName;
use serde_json::{Map, Value, json};

use crate::{MetaError, Selection};

/// A NetworkAttachmentDefinition, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nad {
    pub namespace: String,
    pub name: String,
    /// `spec.config`; empty means that a file on disk with this name is meant.
    pub config: String,
}

impl Nad {
    pub fn reference(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether the configuration is on disk.
    pub fn is_on_disk(&self) -> bool {
        self.config.trim().is_empty()
    }

    /// The plugins. `on_disk` is what `find_on_disk` gave, where `is_on_disk`.
    pub fn list(&self, on_disk: Option<&str>) -> Result<NetConfList, MetaError> {
        if !self.is_on_disk() {
            return list(&self.reference(), &self.config, &self.name);
        }
        match on_disk {
            Some(text) => list(&self.reference(), text, &self.name),
            None => Err(MetaError::NotOnDisk { network: self.reference(), name: self.name.clone() }),
        }
    }
}

/// The configuration of that `name` among the files of the CNI configuration directory, (file name, text) each: the first in
/// the order of file names. Files that are no configuration are passed over; they may be somebody's backup.
pub fn find_on_disk<'a>(name: &str, files: &'a [(String, String)]) -> Option<&'a str> {
    let mut sorted: Vec<_> =
        files.iter().filter(|(f, _)| [".conf", ".conflist", ".json"].iter().any(|e| f.ends_with(e))).collect();
    sorted.sort();
    sorted.into_iter().map(|(_, text)| text.as_str()).find(|text| {
        serde_json::from_str::<Value>(text)
            .ok()
            .and_then(|v| v.get("name").and_then(Value::as_str).map(|n| n == name))
            .unwrap_or(false)
    })
}

/// Parses a text as a list; where it has no `name` it gets the one of its object.
pub fn list(network: &str, text: &str, name: &str) -> Result<NetConfList, MetaError> {
    let config = |source: cni::Error| MetaError::Config { network: network.to_owned(), source };
    let mut v: Value = serde_json::from_str(text)
        .map_err(|e| config(cni::Error::decode(format!("failed to parse the network configuration: {e}"))))?;
    if let Value::Object(o) = &mut v {
        let unnamed = o.get("name").is_none_or(|n| n.is_null() || n.as_str() == Some(""));
        if unnamed {
            o.insert("name".into(), json!(name));
        }
    }
    NetConfList::from_value(v).map_err(config)
}

/// One network of one pod, ready to be executed.
#[derive(Debug, Clone, PartialEq)]
pub struct Delegate {
    /// `namespace/name`, or for the cluster's network its configuration's name.
    pub reference: String,
    pub ifname: IfName,
    /// With `cni-args` merged into every plugin's `args.cni`.
    pub list: NetConfList,
    /// `runtimeConfig` to choose from by the plugins' capabilities.
    pub runtime: Map<String, Value>,
    /// Gateways, where this NIC is to have the default route.
    pub default_route: Vec<IpAddr>,
}

impl Delegate {
    /// The pod's first network. `runtime` is what the runtime gave to us: it is for this network only.
    pub fn primary(
        reference: &str,
        list: NetConfList,
        ifname: IfName,
        selection: Option<&Selection>,
        runtime: &Map<String, Value>,
    ) -> Result<Self, MetaError> {
        let mut d = match selection {
            Some(s) => Self::additional(s, list, ifname)?,
            None => Self { reference: reference.to_owned(), ifname, list, runtime: Map::new(), default_route: Vec::new() },
        };
        for (k, v) in runtime {
            d.runtime.entry(k.clone()).or_insert_with(|| v.clone());
        }
        Ok(d)
    }

    pub fn additional(s: &Selection, mut list: NetConfList, ifname: IfName) -> Result<Self, MetaError> {
        let reference = s.reference();
        let mut runtime = s.capabilities.clone();
        let mut need = |capability: &str, value: Value| {
            if !list.has_capability(capability) {
                let kinds: Vec<_> = (0..list.plugins.len()).map(|i| list.kind(i)).collect();
                return Err(MetaError::Delegate {
                    network: reference.clone(),
                    field: capability.to_owned(),
                    value: value.to_string(),
                    rule: format!(
                        "needs a plugin with the capability {capability:?}, and none of {} declares it",
                        kinds.join(", ")
                    ),
                });
            }
            runtime.insert(capability.to_owned(), value);
            Ok(())
        };
        if !s.ips.is_empty() {
            need("ips", json!(s.ips))?;
        }
        if let Some(mac) = s.mac {
            need("mac", json!(mac))?;
        }
        let mut cni_args = s.cni_args.clone();
        if !s.ips.is_empty() {
            // An IPAM plugin is not told `runtimeConfig` by every main plugin; `args.cni` is in the configuration itself.
            cni_args.entry("ips").or_insert_with(|| json!(s.ips));
        }
        if !cni_args.is_empty() {
            for plugin in &mut list.plugins {
                merge_args(plugin, &cni_args);
            }
        }
        Ok(Self { reference, ifname, list, runtime, default_route: s.default_route.clone() })
    }

    /// Standard input of plugin `i`.
    pub fn conf(&self, i: usize, prev: Option<&AddResult>) -> Value {
        self.list.plugin_conf(i, prev, &self.runtime)
    }

    /// Standard input of plugin `i` at GC: `valid` are the attachments of this network.
    pub fn gc_conf(&self, i: usize, valid: &[Attachment]) -> Value {
        self.list.gc_conf(i, valid)
    }

    /// For the journal: DEL needs it when the NetworkAttachmentDefinition is gone.
    pub fn to_value(&self) -> Value {
        let mut list = self.list.raw.clone();
        let plugins: Vec<_> = self.list.plugins.iter().cloned().map(Value::Object).collect();
        if let Value::Object(o) = &mut list {
            let (name, version) = (self.list.name.clone(), self.list.version);
            if !o.contains_key("plugins") {
                o.clear();
            }
            o.insert("name".into(), json!(name));
            o.insert("cniVersion".into(), json!(version.as_str()));
            o.insert("plugins".into(), json!(plugins));
        }
        json!({ "reference": self.reference, "ifname": self.ifname, "list": list, "runtime": self.runtime, "defaultRoute": self.default_route })
    }

    /// Reads `to_value` back; none where it is something else.
    pub fn from_value(v: &Value) -> Option<Self> {
        Some(Self {
            reference: v.get("reference")?.as_str()?.to_owned(),
            ifname: serde_json::from_value(v.get("ifname")?.clone()).ok()?,
            list: NetConfList::from_value(v.get("list")?.clone()).ok()?,
            runtime: v.get("runtime")?.as_object()?.clone(),
            default_route: serde_json::from_value(v.get("defaultRoute")?.clone()).ok()?,
        })
    }
}

/// A pod's own keys win over the network's.
fn merge_args(plugin: &mut Map<String, Value>, cni_args: &Map<String, Value>) {
    let args = plugin.entry("args").or_insert_with(|| json!({}));
    if !args.is_object() {
        *args = json!({});
    }
    let Value::Object(args) = args else { return };
    let cni = args.entry("cni").or_insert_with(|| json!({}));
    if !cni.is_object() {
        *cni = json!({});
    }
    if let Value::Object(cni) = cni {
        cni.extend(cni_args.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
}

/// Which NIC has the default route because a pod's annotation says so; none where none does, and every network's own stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DefaultRoutes {
    pub v4: Option<(IfName, IpAddr)>,
    pub v6: Option<(IfName, IpAddr)>,
}

impl DefaultRoutes {
    /// Refuses two NICs that ask for the same family.
    pub fn of(delegates: &[Delegate]) -> Result<Self, MetaError> {
        let mut out = Self::default();
        for d in delegates {
            for gw in &d.default_route {
                let slot = if gw.is_ipv4() { &mut out.v4 } else { &mut out.v6 };
                if let Some((other, _)) = slot {
                    return Err(MetaError::Delegate {
                        network: d.reference.clone(),
                        field: "default-route".into(),
                        value: gw.to_string(),
                        rule: format!("{other} is to have the default route of that family already"),
                    });
                }
                *slot = Some((d.ifname.clone(), *gw));
            }
        }
        Ok(out)
    }

    /// Whether this NIC's own default route of the family must go.
    pub fn takes_from(&self, ifname: &IfName, v4: bool) -> bool {
        let slot = if v4 { &self.v4 } else { &self.v6 };
        slot.as_ref().is_some_and(|(winner, _)| winner != ifname)
    }

    /// The result as it is once the default routes are where they should be.
    pub fn apply(&self, ifname: &IfName, result: &AddResult) -> AddResult {
        let mut out = result.clone();
        for (v4, slot) in [(true, &self.v4), (false, &self.v6)] {
            let Some((winner, gw)) = slot else { continue };
            out.routes.retain(|r| !(r.dst.is_default() && r.dst.is_ipv4() == v4));
            if winner == ifname {
                out.routes.push(cni::Route::new(model::Cidr::default_for(*gw), Some(*gw)));
            }
        }
        out
    }
}
