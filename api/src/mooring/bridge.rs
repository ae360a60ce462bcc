//! Bridge: one Open vSwitch bridge on each of many nodes, and the link that it reaches the network through.
//! Does not know which nodes there are.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A bridge on every chosen node. Its name is the bridge's name.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "mooring.dev",
    version = "v1alpha1",
    kind = "Bridge",
    plural = "bridges",
    category = "mooring",
    status = "BridgeStatus",
    derive = "PartialEq",
    derive = "Default",
    validation = Rule::new("self.metadata.name.size() <= 15").message("metadata.name is the bridge's name, at most 15 bytes"),
    doc = "An Open vSwitch bridge on every chosen node.",
    printcolumn(name = "READY", type_ = "integer", json_path = ".status.ready"),
    printcolumn(name = "DESIRED", type_ = "integer", json_path = ".status.desired"),
    printcolumn(name = "FAILED", type_ = "integer", json_path = ".status.failed"),
    printcolumn(name = "UPLINK", type_ = "string", json_path = ".status.uplink"),
    printcolumn(name = "REASON", type_ = "string", json_path = ".status.conditions[?(@.type==\"Degraded\")].reason", priority = 10),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct BridgeSpec {
    /// Nodes that get the bridge. Absent: only those with the label `bridge.mooring.dev/<name>`; `{}`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Nodes that do not get it, whatever selector and label say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::names")]
    pub exclude_nodes: Vec<String>,
    /// How the bridge reaches the network. Absent: not at all, unless the node's label names a config or a NIC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Uplink>,
    /// Other uplinks, which a node's label chooses by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub configs: Vec<BridgeConfig>,
    /// VLANs that the uplink carries, `100` or `100-200`. Empty: all.
    #[serde(rename = "allowedVLANs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::vlans")]
    pub allowed_vlans: Vec<String>,
    /// MTU of the bridge's own port; absent: what Open vSwitch makes of its ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 68, max = 65535))]
    pub mtu: Option<i64>,
    #[serde(default)]
    pub fail_mode: FailMode,
    #[serde(default)]
    pub mcast_snooping: bool,
    /// Hardware address of the bridge; absent: the uplink's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17), regex(pattern = "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$"))]
    pub hwaddr: Option<String>,
    /// Absent: what the node's Open vSwitch offers, the kernel's before the userspace one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datapath_type: Option<DatapathType>,
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    #[serde(default)]
    pub resource: BridgeResource,
}

/// A named uplink: `configs[].name` is what a node's label says.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeConfig {
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self != 'enabled' && self != 'disabled'").message("enabled and disabled are words of the label"))]
    pub name: String,
    pub uplink: Uplink,
}

/// How a bridge reaches the network: exactly one of these.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("[has(self.interface), has(self.mac), has(self.defaultRoute), has(self.canReach), has(self.bond)].filter(x, x).size() == 1").message("exactly one of interface, mac, defaultRoute, canReach, bond must be given"))]
#[serde(rename_all = "camelCase")]
pub struct Uplink {
    /// The NIC of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[^/:\s]+$"))]
    pub interface: Option<String>,
    /// The NIC with this hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17), regex(pattern = "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$"))]
    pub mac: Option<String>,
    /// The NIC of the node's default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self").message("false says nothing, leave it out"))]
    pub default_route: Option<bool>,
    /// The NIC through which the node reaches this address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 39))]
    #[x_kube(validation = Rule::new("isIP(self)").message("must be an address"))]
    pub can_reach: Option<String>,
    /// A bond of Open vSwitch over several NICs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond: Option<BondLink>,
}

/// An Open vSwitch bond (ovs-vswitchd.conf.db(5), table Port).
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("!has(self.mode) || self.mode != 'balance-tcp' || (has(self.lacp) && self.lacp != 'off')").message("balance-tcp needs lacp active or passive"))]
#[x_kube(validation = Rule::new("!(self.name in self.interfaces)").message("the bond must not have the name of a member"))]
#[serde(rename_all = "camelCase")]
pub struct BondLink {
    /// Name of the port.
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[^/:\s]+$"))]
    pub name: String,
    #[schemars(schema_with = "crate::schema::bond_members")]
    pub interfaces: Vec<String>,
    #[serde(default)]
    pub mode: BondMode,
    #[serde(default)]
    pub lacp: Lacp,
    /// Milliseconds that a link must be up before it is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 600000))]
    pub updelay_ms: Option<i64>,
    /// Milliseconds that a link must be down before it is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 600000))]
    pub downdelay_ms: Option<i64>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum BondMode {
    #[default]
    ActiveBackup,
    BalanceSlb,
    BalanceTcp,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Lacp {
    #[default]
    Off,
    Active,
    Passive,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FailMode {
    #[default]
    Standalone,
    Secure,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DatapathType {
    System,
    Netdev,
}

/// What becomes of the bridge on a node that no longer gets it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DeletionPolicy {
    #[default]
    Revert,
    Orphan,
}

/// The extended resource `ovs-cni.network.kubevirt.io/<bridge>` of a node where the bridge is ready.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct BridgeResource {
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(default = "thousand")]
    #[schemars(range(min = 1, max = 1000000))]
    pub capacity: i64,
}

fn yes() -> bool {
    true
}

fn thousand() -> i64 {
    1000
}

impl Default for BridgeResource {
    fn default() -> Self {
        Self { enabled: yes(), capacity: thousand() }
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BridgeStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes that shall have it.
    #[serde(default)]
    pub desired: i32,
    /// Nodes that have it as the present spec says.
    #[serde(default)]
    pub ready: i32,
    /// Nodes that are being changed.
    #[serde(default)]
    pub updating: i32,
    /// Nodes that could not be changed.
    #[serde(default)]
    pub failed: i32,
    /// The spec's uplink in a word: `ens192`, `bond0 (ens1f0,ens1f1)`, `default route`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// The first failing nodes by name, at most `MAX_FAILED_NODES`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub nodes: Vec<FailedNode>,
    /// Available, Progressing, Degraded, InUse.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How many failing nodes a status names: enough to start looking, small enough for every watcher.
pub const MAX_FAILED_NODES: usize = 10;

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct FailedNode {
    pub node: String,
    pub reason: String,
    #[serde(default)]
    pub message: String,
}
