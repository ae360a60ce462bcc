//! What was read, as values: JSON as `ip`, `ovs-vsctl`, the runtime and the API print it. Knows where things are in it, and
//! not what is right.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::journal::Journal;

/// Everything, of one moment (or nearly: who judges it looks more than once).
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub machines: Vec<Machine>,
    pub api: Api,
    /// Addresses of pods that were asked for on the wire, and the hardware addresses that answered.
    pub wire: BTreeMap<IpAddr, Vec<String>>,
}

/// Objects by kind.
#[derive(Debug, Clone, Default)]
pub struct Api {
    pub pods: Vec<Value>,
    pub nodes: Vec<Value>,
    pub leases: Vec<Value>,
    pub maps: Vec<Value>,
    pub pools: Vec<Value>,
    pub endpoints: Vec<Value>,
    pub networks: Vec<Value>,
    pub coordinators: Vec<Value>,
}

/// One node.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub name: String,
    /// NICs that the node has by itself.
    pub uplinks: Vec<String>,
    /// `ip -j -d addr` of the host: links with their addresses.
    pub links: Vec<Value>,
    /// `ip -j route show table all`, both families.
    pub routes: Vec<Value>,
    /// `ip -j rule`, both families.
    pub rules: Vec<Value>,
    /// `ip -j neigh show nud permanent`
    pub neighbours: Vec<Value>,
    pub namespaces: Vec<Namespace>,
    /// What the runtime keeps of each sandbox that it believes in.
    pub records: Vec<Value>,
    /// host-local's files: the address, and the container that has it.
    pub host_local: Vec<(String, String)>,
    /// None where Open vSwitch does not answer.
    pub ovs: Option<Ovs>,
    pub journal: Journal,
    /// Names of files.
    pub spool: Vec<String>,
    pub agent_id: String,
}

/// A file of `/run/netns`.
#[derive(Debug, Clone, Default)]
pub struct Namespace {
    pub name: String,
    pub dev: u64,
    pub ino: u64,
    /// `ip -j -d addr` inside; empty where it cannot be entered.
    pub links: Vec<Value>,
}

/// Tables of OVSDB, as rows by column.
#[derive(Debug, Clone, Default)]
pub struct Ovs {
    pub bridges: Vec<BTreeMap<String, Value>>,
    pub ports: Vec<BTreeMap<String, Value>>,
    pub interfaces: Vec<BTreeMap<String, Value>>,
}

/// A sandbox that lives: the runtime has it, and its namespace is there.
#[derive(Debug, Clone)]
pub struct Sandbox<'a> {
    pub machine: &'a Machine,
    pub container: String,
    pub netns: &'a Namespace,
    /// `namespace/name`
    pub pod: String,
    pub uid: String,
}

impl Machine {
    pub fn sandboxes(&self) -> Vec<Sandbox<'_>> {
        let of = |record: &Value| {
            let netns = self.namespace_at(&text(record, "/netns"))?;
            let args = record["cniArgs"].as_array().cloned().unwrap_or_default();
            let arg = |key: &str| args.iter().find(|a| a[0] == key).map(|a| text(a, "/1")).unwrap_or_default();
            let pod = format!("{}/{}", arg("K8S_POD_NAMESPACE"), arg("K8S_POD_NAME"));
            Some(Sandbox { machine: self, container: text(record, "/containerId"), netns, pod, uid: arg("K8S_POD_UID") })
        };
        self.records.iter().filter_map(of).collect()
    }

    /// What a path such as `/run/netns/x` (or `/var/run/netns/x`, which is the same) leads to.
    pub fn namespace_at(&self, path: &str) -> Option<&Namespace> {
        let (dir, name) = path.rsplit_once('/')?;
        self.namespaces.iter().find(|n| n.name == name && dir.ends_with("/run/netns"))
    }
}

impl Sandbox<'_> {
    /// Names of its links but `lo`.
    pub fn nics(&self) -> Vec<String> {
        self.netns.links.iter().map(|l| text(l, "/ifname")).filter(|n| n != "lo").collect()
    }

    /// Its global addresses, with their link.
    pub fn addresses(&self) -> Vec<(IpAddr, String)> {
        self.netns.links.iter().flat_map(|l| addresses(l).into_iter().map(|a| (a, text(l, "/ifname")))).collect()
    }

    /// It has this address on this link.
    pub fn has(&self, address: &str, nic: &str) -> bool {
        let plain = address.split('/').next().unwrap_or_default();
        plain.parse::<IpAddr>().is_ok_and(|ip| self.addresses().iter().any(|(a, n)| *a == ip && n == nic))
    }
}

/// Global addresses of a link as `ip -j addr` prints it.
pub fn addresses(link: &Value) -> Vec<IpAddr> {
    let all = link["addr_info"].as_array().map(Vec::as_slice).unwrap_or_default();
    let global = all.iter().filter(|a| a["scope"] == "global");
    let ips = global.filter_map(|a| text(a, "/local").parse().ok());
    // 169.254/16 is the pod's end of a pair to its host, the same in every pod.
    ips.filter(|ip: &IpAddr| !matches!(ip, IpAddr::V4(v4) if v4.is_link_local())).collect()
}

/// The attachment id of a container's interface, as the marks have it: FNV-1a of `<container id> NUL <interface>`, folded.
pub fn attachment(container: &str, nic: &str) -> String {
    let mut hash = fnv(container.bytes().chain([0]).chain(nic.bytes()));
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 29;
    format!("{hash:016x}")
}

/// FNV-1a, 64 bit.
pub fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What a path leads to, as text; empty where there is nothing.
pub fn text(object: &Value, path: &str) -> String {
    match object.pointer(path) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A list at a path; empty where there is none.
pub fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    object.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A value of an OVSDB map column (`["map",[["k","v"],...]]`).
pub fn of_map(column: Option<&Value>, key: &str) -> Option<String> {
    let pairs = column?.get(1)?.as_array()?;
    pairs.iter().find(|p| p[0] == key).map(|p| text(p, "/1"))
}

/// The members of an OVSDB set column, which is a bare value where it has one member.
pub fn of_set(column: Option<&Value>) -> Vec<String> {
    let member = |v: &Value| match v.as_array().map(Vec::as_slice) {
        Some([tag, uuid]) if tag == "uuid" => text(uuid, ""),
        _ => text(v, ""),
    };
    match column {
        None => Vec::new(),
        Some(v) if v[0] == "set" => v[1].as_array().into_iter().flatten().map(member).collect(),
        Some(v) => vec![member(v)],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn attachment_ids_are_those_of_the_marks() {
        assert_eq!(attachment("c1", "eth0"), "caf6ccba24b09326");
        assert_ne!(attachment("c1e", "th0"), attachment("c1", "eth0"));
    }

    #[test]
    fn columns_of_ovsdb_are_read() {
        let map = json!(["map", [["a", "b"], ["c", "d"]]]);
        assert_eq!(of_map(Some(&map), "c").as_deref(), Some("d"));
        assert_eq!(of_map(Some(&json!(["map", []])), "c"), None);
        assert_eq!(of_set(Some(&json!(["set", [["uuid", "x"], ["uuid", "y"]]]))), ["x", "y"]);
        assert_eq!(of_set(Some(&json!(["uuid", "x"]))), ["x"]);
        assert_eq!(of_set(Some(&json!(-1))), ["-1"]);
        assert!(of_set(Some(&json!(["set", []]))).is_empty());
    }

    #[test]
    fn only_global_addresses_count() {
        let link = json!({"addr_info": [{"local": "10.0.0.1", "scope": "global"}, {"local": "fe80::1", "scope": "link"},
            {"local": "169.254.1.1", "scope": "global"}, {"local": "fd00::1", "scope": "global"}, {}]});
        assert_eq!(addresses(&link), ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    }
}
