//! SpiderCoordinator: how the NICs of one pod share routes. The settings are also a block of a SpiderMultusConfig.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ippool::PoolRoute;

/// How the NICs of a pod share routes. An absent field is left to the next source: NAD, then SpiderCoordinator, then the
/// default named here.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderCoordinator",
    plural = "spidercoordinators",
    shortname = "scc",
    category = "spiderpool",
    status = "SpiderCoordinatorStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "How the NICs of a pod share routes.",
    printcolumn(name = "MODE", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase")
)]
#[serde(rename_all = "camelCase")]
pub struct CoordinatorSettings {
    /// Default `auto`: underlay on the pod's first NIC, else overlay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<CoordinatorMode>,
    /// Where the pod CIDRs come from. Default `auto`.
    #[serde(rename = "podCIDRType", skip_serializing_if = "Option::is_none")]
    pub pod_cidr_type: Option<PodCidrType>,
    /// Networks, or addresses that stand for their /32 or /128, that a pod reaches through its node.
    #[serde(rename = "hijackCIDR", default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::cidrs_or_ips")]
    pub hijack_cidr: Option<Vec<String>>,
    /// Routes for the NIC's own table.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub policy_routes: Option<Vec<PoolRoute>>,
    /// First two bytes of the NIC's hardware address, `0a:1b`; the address gives the other four.
    #[serde(rename = "podMACPrefix", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9A-Fa-f][02468ACEace]:[0-9A-Fa-f]{2})?$"), length(max = 5))]
    pub pod_mac_prefix: Option<String>,
    /// Each NIC has a table of its own for what it sends. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune_pod_routes: Option<bool>,
    /// The NIC that keeps the default route.
    // A rendered network spells it the other way.
    #[serde(rename = "podDefaultRouteNIC", alias = "podDefaultRouteNic", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub pod_default_route_nic: Option<String>,
    /// Table of the host for the routes to pods. Default 500.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4294967295i64))]
    #[x_kube(validation = Rule::new("self < 253 || self > 255").message("the tables 253 to 255 are the kernel's"))]
    pub host_rule_table: Option<i64>,
    /// rp_filter of the pod's interfaces: 0, 1, 2; negative leaves it alone. Default 0.
    #[serde(rename = "podRPFilter", skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 2))]
    pub pod_rp_filter: Option<i64>,
    /// Transmit queue length of the NIC; 0 leaves it alone. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4294967295i64))]
    pub tx_queue_len: Option<i64>,
    /// An address for the pod's side of the veth to its host.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 39))]
    #[x_kube(validation = Rule::new("self == '' || isIP(self)").message("must be an address"))]
    pub veth_link_address: Option<String>,
    /// MTU of the veth to the host; absent leaves it to the agent.
    #[serde(rename = "vethMTU", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 68, max = 65535))]
    pub veth_mtu: Option<i64>,
    /// Older field (Spiderpool before 1.0): probe the gateway before the pod starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detect_gateway: Option<bool>,
    /// Older field: probe whether someone else has the address.
    #[serde(rename = "detectIPConflict", skip_serializing_if = "Option::is_none")]
    pub detect_ip_conflict: Option<bool>,
    /// Older field: rp_filter of the host's interfaces; -1, 0, 1, 2.
    #[serde(rename = "hostRPFilter", skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 2))]
    pub host_rp_filter: Option<i64>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum CoordinatorMode {
    #[default]
    Auto,
    Underlay,
    Overlay,
    Disabled,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum PodCidrType {
    #[default]
    Auto,
    Cluster,
    Calico,
    Cilium,
    None,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SpiderCoordinatorStatus {
    pub phase: CoordinatorPhase,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(rename = "overlayPodCIDR", default, skip_serializing_if = "Vec::is_empty")]
    pub overlay_pod_cidr: Vec<String>,
    #[serde(rename = "serviceCIDR", default, skip_serializing_if = "Vec::is_empty")]
    pub service_cidr: Vec<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CoordinatorPhase {
    Synced,
    #[default]
    NotReady,
}
