//! SpiderIPPool: addresses of one subnet to give to pods, and for whom they are.
//! Does not know who has which: that is what AddressLeases say.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Addresses that pods may have.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderIPPool",
    plural = "spiderippools",
    shortname = "sp",
    category = "spiderpool",
    status = "SpiderIPPoolStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Addresses that pods may have, and which pods.",
    printcolumn(name = "VERSION", type_ = "integer", json_path = ".status.ipVersion"),
    printcolumn(name = "SUBNET", type_ = "string", json_path = ".spec.subnet"),
    printcolumn(name = "ALLOCATED-IP-COUNT", type_ = "integer", json_path = ".status.allocatedIPCount"),
    printcolumn(name = "TOTAL-IP-COUNT", type_ = "integer", json_path = ".status.totalIPCount"),
    printcolumn(name = "DEFAULT", type_ = "boolean", json_path = ".spec.default"),
    printcolumn(name = "DISABLE", type_ = "boolean", json_path = ".spec.disable"),
    printcolumn(name = "FREE-IP-COUNT", type_ = "integer", json_path = ".status.freeIPCount", priority = 10),
    printcolumn(name = "NodeName", type_ = "string", json_path = ".spec.nodeName", priority = 10),
    printcolumn(name = "MultusName", type_ = "string", json_path = ".spec.multusName", priority = 10),
    printcolumn(
        name = "APP-NAMESPACE",
        type_ = "string",
        json_path = r".spec.podAffinity.matchLabels['ipam\.spidernet\.io/app\-namespace']",
        priority = 10
    )
)]
#[serde(rename_all = "camelCase")]
pub struct SpiderIPPoolSpec {
    /// 4 or 6; follows from the subnet when it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_version: Option<i64>,
    /// The network that the addresses lie in, without host bits: `10.6.0.0/16`.
    pub subnet: String,
    /// Addresses `a` and ascending ranges `a-b` of the subnet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// What of `ips` is not given out, in the same syntax.
    #[serde(rename = "excludeIPs", default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_ips: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<PoolRoute>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_affinity: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_affinity: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<LabelSelector>,
    /// Namespaces that may use the pool; goes before `namespaceAffinity`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespace_name: Vec<String>,
    /// Nodes that may use the pool; goes before `nodeAffinity`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_name: Vec<String>,
    /// Networks that may use the pool, `namespace/name` or `name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub multus_name: Vec<String>,
    /// The pool serves pods that name none.
    #[serde(default)]
    pub default: bool,
    /// Nothing new is given out; what is in use stays.
    #[serde(default)]
    pub disable: bool,
}

/// A route that comes with an address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolRoute {
    /// Network, or an address that stands for its /32 or /128.
    pub dst: String,
    pub gw: String,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SpiderIPPoolStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// 4 or 6, as the subnet says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_version: Option<i64>,
    /// Leases with a holder.
    #[serde(rename = "allocatedIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub allocated_ip_count: Option<i64>,
    /// Addresses of `ips` less `excludeIPs`; more than 2^63-1 counts as that.
    #[serde(rename = "totalIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub total_ip_count: Option<i64>,
    /// Addresses without a lease.
    #[serde(rename = "freeIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub free_ip_count: Option<i64>,
    /// Leases that rest on a node without a holder.
    #[serde(rename = "spareIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub spare_ip_count: Option<i64>,
    /// Leases whose node cannot be reached.
    #[serde(rename = "unreachableIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub unreachable_ip_count: Option<i64>,
    /// Spiderpool's record of allocations, kept readable for a take-over. Ours are AddressLeases, nothing is written here.
    #[serde(rename = "allocatedIPs", skip_serializing_if = "Option::is_none")]
    pub allocated_ips: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
