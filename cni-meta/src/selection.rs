//! The annotations that choose networks, in both their syntaxes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{IfName, MacAddr};
use serde_json::{Map, Value};

use crate::{DEFAULT_NETWORK, DEFAULT_NETWORK_NAMESPACE, MetaError, NETWORKS};

/// One network that a pod asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    pub namespace: String,
    pub name: String,
    /// None: `net1`, `net2`, ... by its place in the list.
    pub interface: Option<IfName>,
    /// Addresses with or without a prefix length, as written and valid.
    pub ips: Vec<String>,
    pub mac: Option<MacAddr>,
    /// Merged into `args.cni`.
    pub cni_args: Map<String, Value>,
    /// Gateways: this NIC gets the default route, all others lose theirs.
    pub default_route: Vec<IpAddr>,
    /// Handed on as capabilities: `portMappings`, `bandwidth`, `infinibandGUID`, `deviceID`.
    pub capabilities: Map<String, Value>,
    /// Keys that we do not know, kept: the standard reserves them for others.
    pub other: Map<String, Value>,
}

impl Selection {
    /// `namespace/name`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// `k8s.v1.cni.cncf.io/networks` of a pod; networks without a namespace are in the pod's. An empty text is no networks.
    pub fn parse_networks(text: &str, pod_namespace: &str) -> Result<Vec<Selection>, MetaError> {
        Parser { annotation: NETWORKS, namespace: pod_namespace }.list(text)
    }

    /// `v1.multus-cni.io/default-network` of a pod.
    pub fn parse_default_network(text: &str) -> Result<Option<Selection>, MetaError> {
        let p = Parser { annotation: DEFAULT_NETWORK, namespace: DEFAULT_NETWORK_NAMESPACE };
        let mut list = p.list(text)?;
        if list.len() > 1 {
            return Err(p.bad(format!("{text:?} names {} networks, one is allowed", list.len())));
        }
        Ok(list.pop())
    }
}

/// Names in the pod, by place: `net1` for the first. Refuses a name that occurs twice or is the primary's.
pub fn interface_names(selections: &[Selection], primary: &IfName) -> Result<Vec<IfName>, MetaError> {
    let mut taken = BTreeSet::from([primary.clone()]);
    let mut names = Vec::with_capacity(selections.len());
    for (i, s) in selections.iter().enumerate() {
        let name = match &s.interface {
            Some(name) => name.clone(),
            None => IfName::new(format!("net{}", i + 1)).map_err(|e| field(&s.reference(), "interface", "", e.to_string()))?,
        };
        if !taken.insert(name.clone()) {
            let whose = if name == *primary { "the pod's first interface" } else { "another network of the pod" };
            return Err(field(&s.reference(), "interface", name.as_str(), format!("is taken by {whose}")));
        }
        names.push(name);
    }
    Ok(names)
}

fn field(network: &str, field: &str, value: &str, rule: String) -> MetaError {
    MetaError::Field { annotation: NETWORKS, network: network.into(), field: field.into(), value: format!("{value:?}"), rule }
}

struct Parser<'a> {
    annotation: &'static str,
    namespace: &'a str,
}

impl Parser<'_> {
    fn bad(&self, why: String) -> MetaError {
        MetaError::Annotation { annotation: self.annotation, why }
    }

    fn field(&self, network: &str, field: &str, value: impl ToString, rule: impl ToString) -> MetaError {
        MetaError::Field {
            annotation: self.annotation,
            network: network.to_owned(),
            field: field.to_owned(),
            value: value.to_string(),
            rule: rule.to_string(),
        }
    }

    /// JSON where one of its characters occurs, as Multus decides it; else the short form.
    fn list(&self, text: &str) -> Result<Vec<Selection>, MetaError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Vec::new());
        }
        if !text.contains(['[', '{', '"']) {
            return text.split(',').map(|item| self.short(item.trim())).collect();
        }
        match serde_json::from_str::<Value>(text) {
            Ok(Value::Array(a)) => a.iter().enumerate().map(|(i, e)| self.element(i, e)).collect(),
            Ok(_) => Err(self.bad("must be a JSON list of networks".into())),
            Err(e) => Err(self.bad(format!("is not valid JSON: {e}"))),
        }
    }

    /// `[<namespace>/]<name>[@<interface>]`
    fn short(&self, item: &str) -> Result<Selection, MetaError> {
        let (network, interface) = match item.split_once('@') {
            Some((n, i)) => (n.trim(), Some(i.trim())),
            None => (item, None),
        };
        let (namespace, name) = match network.split_once('/') {
            Some((ns, n)) => (ns, n),
            None => (self.namespace, network),
        };
        if interface.is_some_and(|i| i.contains('@')) || name.contains('/') {
            return Err(self.bad(format!("{item:?} is not of the form [<namespace>/]<name>[@<interface>]")));
        }
        Ok(Selection {
            namespace: self.object_name(item, "namespace", namespace)?,
            name: self.object_name(item, "name", name)?,
            interface: interface.map(|i| self.ifname(item, "interface", i)).transpose()?,
            ..Selection::default()
        })
    }

    fn element(&self, i: usize, e: &Value) -> Result<Selection, MetaError> {
        let Value::Object(o) = e else {
            return Err(self.bad(format!("element {i}: must be an object, is {e}")));
        };
        let name = match o.get("name") {
            Some(Value::String(s)) if !s.is_empty() => s.as_str(),
            _ => return Err(self.bad(format!("element {i}: name is missing"))),
        };
        let mut s = Selection {
            namespace: self.namespace.to_owned(),
            name: self.object_name(name, "name", name)?,
            ..Selection::default()
        };
        for (key, v) in o {
            let text = || v.as_str().ok_or_else(|| self.field(name, key, v, "must be a string"));
            match key.as_str() {
                _ if v.is_null() => {}
                "name" => {}
                "namespace" => {
                    let ns = text()?;
                    if !ns.is_empty() {
                        s.namespace = self.object_name(name, key, ns)?;
                    }
                }
                // `interfaceRequest` is the older name.
                "interface" | "interfaceRequest" => {
                    let n = text()?;
                    if !n.is_empty() {
                        s.interface = Some(self.ifname(name, key, n)?);
                    }
                }
                "ips" => s.ips = self.ips(name, v)?,
                "mac" => {
                    let m = text()?;
                    if !m.is_empty() {
                        let mac = m.parse::<MacAddr>().and_then(MacAddr::unicast).map_err(|e| self.field(name, key, v, e))?;
                        s.mac = Some(mac);
                    }
                }
                "cni-args" => match v {
                    Value::Object(args) => s.cni_args = args.clone(),
                    _ => return Err(self.field(name, key, v, "must be an object")),
                },
                "default-route" => {
                    let list = v.as_array().ok_or_else(|| self.field(name, key, v, "must be a list of gateways"))?;
                    s.default_route = list
                        .iter()
                        .map(|g| {
                            g.as_str()
                                .and_then(|g| g.parse().ok())
                                .ok_or_else(|| self.field(name, key, g, "must be an IP address"))
                        })
                        .collect::<Result<_, _>>()?;
                    let v4 = s.default_route.iter().filter(|g| g.is_ipv4()).count();
                    if v4 > 1 || s.default_route.len() - v4 > 1 {
                        return Err(self.field(name, key, v, "must have at most one gateway of each family"));
                    }
                }
                "portMappings" | "bandwidth" | "deviceID" => {
                    s.capabilities.insert(key.clone(), v.clone());
                }
                "infiniband-guid" => {
                    s.capabilities.insert("infinibandGUID".into(), v.clone());
                }
                _ => {
                    s.other.insert(key.clone(), v.clone());
                }
            }
        }
        Ok(s)
    }

    /// A list, or one text: Multus users write both.
    fn ips(&self, network: &str, v: &Value) -> Result<Vec<String>, MetaError> {
        let items: Vec<&Value> = match v {
            Value::Array(a) => a.iter().collect(),
            Value::String(_) => vec![v],
            _ => return Err(self.field(network, "ips", v, "must be a list of addresses")),
        };
        let mut ips = Vec::with_capacity(items.len());
        for item in items {
            let text = item.as_str().unwrap_or_default();
            let valid = match text.contains('/') {
                true => text.parse::<model::IfAddr>().is_ok(),
                false => text.parse::<IpAddr>().is_ok(),
            };
            if !valid {
                return Err(self.field(network, "ips", item, "must be an IP address, with or without a prefix length"));
            }
            if ips.iter().any(|i| i == text) {
                return Err(self.field(network, "ips", item, "occurs twice"));
            }
            ips.push(text.to_owned());
        }
        Ok(ips)
    }

    fn ifname(&self, network: &str, field: &str, name: &str) -> Result<IfName, MetaError> {
        IfName::new(name).map_err(|e| self.field(network, field, format!("{name:?}"), e))
    }

    /// A DNS-1123 subdomain: the name of a Kubernetes object.
    fn object_name(&self, network: &str, field: &str, name: &str) -> Result<String, MetaError> {
        let label = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        if name.len() <= 253 && name.split('.').all(label) {
            return Ok(name.to_owned());
        }
        Err(self.field(
            network,
            field,
            format!("{name:?}"),
            "must be lower-case letters, digits, '-' or '.', and begin and end with a letter or digit",
        ))
    }
}
