//! What ADD answers, in the widest form (1.1.0), and its conversion from and to every version.

use std::net::IpAddr;

use model::{Cidr, IfAddr};
use serde_json::{Map, Value, json};

use crate::Version;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value}: {rule}")]
pub struct ResultError {
    pub field: String,
    pub value: String,
    pub rule: String,
}

/// A result, of whatever version it came in. Keys that no version names are dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddResult {
    pub interfaces: Vec<Interface>,
    pub ips: Vec<Ip>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// Empty where hardware addresses mean nothing. Text, for other plugins' links may have longer ones.
    pub mac: String,
    /// 1.1.0.
    pub mtu: Option<u32>,
    /// Path of the network namespace; empty for an interface of the host.
    pub sandbox: String,
    /// 1.1.0.
    pub socket_path: String,
    /// 1.1.0.
    pub pci_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    pub address: IfAddr,
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`; an IPAM plugin gives none.
    pub interface: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub dst: Cidr,
    pub gw: Option<IpAddr>,
    /// This and what follows: 1.1.0.
    pub mtu: Option<u32>,
    pub advmss: Option<u32>,
    pub priority: Option<u32>,
    pub table: Option<u32>,
    /// `enum rt_scope_t`: 0 universe, 253 link, 254 host.
    pub scope: Option<u8>,
}

impl Route {
    pub fn new(dst: Cidr, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    pub nameservers: Vec<String>,
    pub domain: String,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

impl AddResult {
    /// Of any version from 0.3.0 on; which one does not matter, for what differs between them is optional or derivable.
    pub fn from_value(v: &Value) -> Result<Self, ResultError> {
        let o = v.as_object().ok_or_else(|| bad("result", v, "must be an object"))?;
        if o.contains_key("ip4") || o.contains_key("ip6") {
            return Err(bad("result", &Value::Null, "has ip4 or ip6, the form of versions before 0.3.0, which we do not read"));
        }
        let interfaces = list(o, "interfaces")?
            .iter()
            .enumerate()
            .map(|(i, e)| interface(&format!("interfaces[{i}]"), e))
            .collect::<Result<Vec<_>, _>>()?;
        let ips = list(o, "ips")?
            .iter()
            .enumerate()
            .map(|(i, e)| ip(&format!("ips[{i}]"), e, interfaces.len()))
            .collect::<Result<Vec<_>, _>>()?;
        let routes = list(o, "routes")?
            .iter()
            .enumerate()
            .map(|(i, e)| route(&format!("routes[{i}]"), e))
            .collect::<Result<Vec<_>, _>>()?;
        let dns = match o.get("dns") {
            None | Some(Value::Null) => Dns::default(),
            Some(Value::Object(d)) => dns(d)?,
            Some(v) => return Err(bad("dns", v, "must be an object")),
        };
        Ok(Self { interfaces, ips, routes, dns })
    }

    /// As the version prints it: what a version does not know is left out; up to 0.4.0 `ips[].version` and `dns` are there.
    pub fn to_value(&self, version: Version) -> Value {
        let extended = version >= Version::V1_1_0;
        let mut o = Map::new();
        o.insert("cniVersion".into(), json!(version.as_str()));
        if !self.interfaces.is_empty() {
            o.insert("interfaces".into(), self.interfaces.iter().map(|i| i.to_value(extended)).collect());
        }
        if !self.ips.is_empty() {
            o.insert("ips".into(), self.ips.iter().map(|i| i.to_value(version)).collect());
        }
        if !self.routes.is_empty() {
            o.insert("routes".into(), self.routes.iter().map(|r| r.to_value(extended)).collect());
        }
        if version.is_legacy() || self.dns != Dns::default() {
            o.insert("dns".into(), self.dns.to_value());
        }
        Value::Object(o)
    }

    /// The interface in the pod with this name.
    pub fn pod_interface(&self, name: &str) -> Option<(usize, &Interface)> {
        self.interfaces.iter().enumerate().find(|(_, i)| i.name == name && !i.sandbox.is_empty())
    }

    /// Addresses of one interface. An address without an index is counted to every interface: chained plugins of the
    /// time before 0.3.1 leave it out.
    pub fn ips_of(&self, interface: usize) -> impl Iterator<Item = &Ip> {
        self.ips.iter().filter(move |ip| ip.interface.is_none_or(|i| i == interface))
    }
}

impl Interface {
    fn to_value(&self, extended: bool) -> Value {
        let mut o = Map::new();
        let mut put = |key: &str, text: &str| {
            if !text.is_empty() {
                o.insert(key.into(), json!(text));
            }
        };
        put("name", &self.name);
        put("mac", &self.mac);
        put("sandbox", &self.sandbox);
        if extended {
            put("socketPath", &self.socket_path);
            put("pciID", &self.pci_id);
            if let Some(mtu) = self.mtu {
                o.insert("mtu".into(), json!(mtu));
            }
        }
        Value::Object(o)
    }
}

impl Ip {
    fn to_value(&self, version: Version) -> Value {
        let mut o = Map::new();
        if version.is_legacy() {
            o.insert("version".into(), json!(if self.address.is_ipv4() { "4" } else { "6" }));
        }
        if let Some(i) = self.interface {
            o.insert("interface".into(), json!(i));
        }
        o.insert("address".into(), json!(self.address));
        if let Some(gw) = self.gateway {
            o.insert("gateway".into(), json!(gw));
        }
        Value::Object(o)
    }
}

impl Route {
    fn to_value(&self, extended: bool) -> Value {
        let mut o = Map::new();
        o.insert("dst".into(), json!(self.dst));
        if let Some(gw) = self.gw {
            o.insert("gw".into(), json!(gw));
        }
        if extended {
            let numbers = [
                ("mtu", self.mtu),
                ("advmss", self.advmss),
                ("priority", self.priority),
                ("table", self.table),
                ("scope", self.scope.map(u32::from)),
            ];
            for (key, n) in numbers {
                if let Some(n) = n {
                    o.insert(key.into(), json!(n));
                }
            }
        }
        Value::Object(o)
    }
}

impl Dns {
    fn to_value(&self) -> Value {
        let mut o = Map::new();
        for (key, l) in [("nameservers", &self.nameservers), ("search", &self.search), ("options", &self.options)] {
            if !l.is_empty() {
                o.insert(key.into(), json!(l));
            }
        }
        if !self.domain.is_empty() {
            o.insert("domain".into(), json!(self.domain));
        }
        Value::Object(o)
    }

    /// The `dns` key of a configuration or a result.
    pub fn from_value(v: &Value) -> Result<Self, ResultError> {
        match v {
            Value::Null => Ok(Self::default()),
            Value::Object(o) => dns(o),
            v => Err(bad("dns", v, "must be an object")),
        }
    }
}

fn bad(field: &str, value: &Value, rule: impl Into<String>) -> ResultError {
    ResultError { field: field.into(), value: value.to_string(), rule: rule.into() }
}

fn list<'a>(o: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], ResultError> {
    match o.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(a)) => Ok(a),
        Some(v) => Err(bad(key, v, "must be a list")),
    }
}

fn text(at: &str, e: &Value, key: &str) -> Result<String, ResultError> {
    match e.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(s)) => Ok(s.clone()),
        Some(v) => Err(bad(&format!("{at}.{key}"), v, "must be a string")),
    }
}

fn number(at: &str, e: &Value, key: &str) -> Result<Option<u32>, ResultError> {
    match e.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => match v.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(bad(&format!("{at}.{key}"), v, "must be a number from 0 to 4294967295")),
        },
    }
}

fn address(at: &str, e: &Value, key: &str) -> Result<Option<IpAddr>, ResultError> {
    let t = text(at, e, key)?;
    if t.is_empty() {
        return Ok(None);
    }
    t.parse().map(Some).map_err(|_| bad(&format!("{at}.{key}"), &json!(t), "must be an IP address"))
}

fn interface(at: &str, e: &Value) -> Result<Interface, ResultError> {
    if !e.is_object() {
        return Err(bad(at, e, "must be an object"));
    }
    Ok(Interface {
        name: text(at, e, "name")?,
        mac: text(at, e, "mac")?,
        mtu: number(at, e, "mtu")?.filter(|m| *m != 0),
        sandbox: text(at, e, "sandbox")?,
        socket_path: text(at, e, "socketPath")?,
        pci_id: text(at, e, "pciID")?,
    })
}

fn ip(at: &str, e: &Value, interfaces: usize) -> Result<Ip, ResultError> {
    let t = text(at, e, "address")?;
    let address_ = t.parse().map_err(|err: model::AddrError| bad(&format!("{at}.address"), &json!(t), err.to_string()))?;
    let interface = number(at, e, "interface")?.map(|i| i as usize);
    // An IPAM plugin has no interfaces and may still give index 0.
    if let Some(i) = interface.filter(|i| interfaces > 0 && *i >= interfaces) {
        return Err(bad(&format!("{at}.interface"), &json!(i), format!("there are {interfaces} interfaces")));
    }
    Ok(Ip { address: address_, gateway: address(at, e, "gateway")?, interface })
}

fn route(at: &str, e: &Value) -> Result<Route, ResultError> {
    let t = text(at, e, "dst")?;
    // Go's parser keeps host bits of a destination and the kernel masks them; so do we, for this is somebody else's output.
    let wrong = || bad(&format!("{at}.dst"), &json!(t), "must be a network in the form address/prefix-length");
    let (net, len) = t.split_once('/').ok_or_else(wrong)?;
    let dst = Cidr::containing(net.parse().map_err(|_| wrong())?, len.parse().map_err(|_| wrong())?).map_err(|_| wrong())?;
    let scope = number(at, e, "scope")?;
    let scope =
        scope.map(|s| u8::try_from(s).map_err(|_| bad(&format!("{at}.scope"), &json!(s), "must be 0 to 255"))).transpose()?;
    Ok(Route {
        dst,
        gw: address(at, e, "gw")?,
        mtu: number(at, e, "mtu")?.filter(|n| *n != 0),
        advmss: number(at, e, "advmss")?.filter(|n| *n != 0),
        priority: number(at, e, "priority")?.filter(|n| *n != 0),
        table: number(at, e, "table")?,
        scope,
    })
}

fn dns(o: &Map<String, Value>) -> Result<Dns, ResultError> {
    let strings = |key: &str| {
        list(o, key)
            .map_err(|e| ResultError { field: format!("dns.{key}"), ..e })?
            .iter()
            .map(|v| v.as_str().map(str::to_owned).ok_or_else(|| bad(&format!("dns.{key}"), v, "must be a list of strings")))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(Dns {
        nameservers: strings("nameservers")?,
        domain: match o.get("domain") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(s)) => s.clone(),
            Some(v) => return Err(bad("dns.domain", v, "must be a string")),
        },
        search: strings("search")?,
        options: strings("options")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name":"veth0","mac":"fe:00:00:00:00:01","mtu":1400},
                {"name":"net1","mac":"0a:58:0a:06:01:0a","sandbox":"/run/netns/a","mtu":1400,"socketPath":"/s","pciID":"0000:00:01.0"}],
            "ips": [
                {"interface":1,"address":"10.6.1.10/16","gateway":"10.6.0.1"},
                {"interface":1,"address":"fd00:10:6::1:10/64","gateway":"fd00:10:6::1"}],
            "routes": [
                {"dst":"0.0.0.0/0","gw":"10.6.0.1","mtu":1300,"advmss":1200,"priority":100,"table":101,"scope":0},
                {"dst":"10.8.0.0/16"}],
            "dns": {"nameservers":["10.0.0.53"],"domain":"d","search":["s"],"options":["ndots:5"]}
        })
    }

    #[test]
    fn the_newest_form_round_trips() {
        let r = AddResult::from_value(&full()).unwrap();
        assert_eq!(r.to_value(Version::V1_1_0), full());
    }

    #[test]
    fn older_forms_leave_out_what_they_do_not_know() {
        let r = AddResult::from_value(&full()).unwrap();
        let v = r.to_value(Version::V1_0_0);
        assert_eq!(v["interfaces"][1], json!({"name":"net1","mac":"0a:58:0a:06:01:0a","sandbox":"/run/netns/a"}));
        assert_eq!(v["routes"][0], json!({"dst":"0.0.0.0/0","gw":"10.6.0.1"}));
        assert_eq!(v["ips"][0], json!({"interface":1,"address":"10.6.1.10/16","gateway":"10.6.0.1"}));
        for old in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            let v = r.to_value(old);
            assert_eq!(v["cniVersion"], old.as_str());
            assert_eq!(v["ips"][0], json!({"version":"4","interface":1,"address":"10.6.1.10/16","gateway":"10.6.0.1"}));
            assert_eq!(v["ips"][1]["version"], "6");
        }
    }

    #[test]
    fn every_version_reads_back_what_it_printed() {
        let r = AddResult::from_value(&full()).unwrap();
        for v in Version::ALL {
            let once = r.to_value(v);
            assert_eq!(AddResult::from_value(&once).unwrap().to_value(v), once, "{v}");
        }
    }

    #[test]
    fn dns_is_there_up_to_0_4_0() {
        let empty = AddResult::default();
        assert_eq!(empty.to_value(Version::V0_4_0), json!({"cniVersion":"0.4.0","dns":{}}));
        assert_eq!(empty.to_value(Version::V1_0_0), json!({"cniVersion":"1.0.0"}));
    }

    #[test]
    fn wrong_results_name_the_field() {
        let e = |v: Value| AddResult::from_value(&v).unwrap_err().to_string();
        assert_eq!(
            e(json!({"ips":[{"address":"10.0.0.1"}]})),
            "ips[0].address \"10.0.0.1\": \"10.0.0.1\" is not an IP network in the form address/prefix-length"
        );
        assert_eq!(
            e(json!({"interfaces":[{}],"ips":[{"address":"10.0.0.1/8","interface":3}]})),
            "ips[0].interface 3: there are 1 interfaces"
        );
        assert_eq!(
            e(json!({"routes":[{"dst":"x"}]})),
            "routes[0].dst \"x\": must be a network in the form address/prefix-length"
        );
        assert_eq!(e(json!({"routes":[{"dst":"0.0.0.0/0","gw":"x"}]})), "routes[0].gw \"x\": must be an IP address");
        assert!(e(json!({"ip4":{"ip":"10.0.0.1/8"}})).contains("before 0.3.0"));
        assert!(AddResult::from_value(&json!([])).is_err());
    }

    #[test]
    fn host_bits_of_a_foreign_route_are_masked() {
        let r = AddResult::from_value(&json!({"routes":[{"dst":"10.8.1.1/16"}]})).unwrap();
        assert_eq!(r.routes[0].dst.to_string(), "10.8.0.0/16");
    }
}
