//! NodeNetwork: the paper that controller and agent hand each other, one for each node and of its name. The controller
//! alone writes `spec`, the node's agent alone writes `status`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bridge::{DatapathType, DeletionPolicy, FailMode, Uplink};

/// What one node shall have.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "mooring.dev",
    version = "v1alpha1",
    kind = "NodeNetwork",
    plural = "nodenetworks",
    shortname = "nn",
    category = "mooring",
    status = "NodeNetworkStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "What one node shall have, and what it has.",
    printcolumn(name = "BRIDGES", type_ = "string", json_path = ".status.bridges[*].name"),
    printcolumn(name = "PHASES", type_ = "string", json_path = ".status.bridges[*].phase"),
    printcolumn(name = "READY", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(
        name = "MESSAGE",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 10
    ),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct NodeNetworkSpec {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub bridges: Vec<BridgeOnNode>,
}

/// One bridge of one node: a Bridge with the node's label applied.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BridgeOnNode {
    pub name: String,
    /// `metadata.generation` of the Bridge that this was made from.
    pub generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Uplink>,
    #[serde(rename = "allowedVLANs", default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_vlans: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    #[serde(default)]
    pub fail_mode: FailMode,
    #[serde(default)]
    pub mcast_snooping: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hwaddr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datapath_type: Option<DatapathType>,
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// The node shall no longer have it; `deletionPolicy` says what becomes of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remove: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// UUID on the node's disk: another one under the same node name is another agent.
    #[serde(rename = "agentID", skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub bridges: Vec<BridgeState>,
    /// The node's NICs, at most `MAX_INTERFACES`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub interfaces: Vec<InterfaceSummary>,
    /// `Ready` and what else the agent has to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How many NICs a status names; pods' links are not NICs of the node.
pub const MAX_INTERFACES: usize = 32;
/// How many steps of a plan a status shows.
pub const MAX_PLAN_STEPS: usize = 64;

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeState {
    pub name: String,
    pub phase: BridgePhase,
    /// One word in camel case: why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The NICs that the uplink turned out to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uplink: Vec<String>,
    /// Generation of the Bridge that this is the state of.
    #[serde(default)]
    pub generation: i64,
    /// Steps that are planned, or those of the last change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub plan: Vec<String>,
    /// Ports in the bridge, the local one not counted.
    #[serde(default)]
    pub ports: i32,
    /// Ports that are attachments of pods.
    #[serde(default)]
    pub attachments: i32,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BridgePhase {
    #[default]
    Pending,
    Ready,
    Failed,
    InUse,
    Removed,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceSummary {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(default)]
    pub mtu: i64,
    #[serde(default)]
    pub up: bool,
    /// With prefix length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<String>,
    /// The node's default route goes through it.
    #[serde(rename = "defaultRoute", default, skip_serializing_if = "std::ops::Not::not")]
    pub default_route: bool,
    /// Bridge that it is a port of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}
