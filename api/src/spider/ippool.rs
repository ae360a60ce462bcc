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
#[x_kube(validation = Rule::new("!has(self.ipVersion) || !isCIDR(self.subnet) || cidr(self.subnet).ip().family() == self.ipVersion").message("ipVersion must be that of subnet"))]
#[x_kube(validation = Rule::new("!has(self.ips) || !isCIDR(self.subnet) || self.ips.all(r, [r.split('-')[0], r.split('-')[r.split('-').size() - 1]].all(a, !isIP(a) || cidr(self.subnet).containsIP(a)))").message("ips must lie in subnet"))]
#[x_kube(validation = Rule::new("!has(self.excludeIPs) || !isCIDR(self.subnet) || self.excludeIPs.all(r, [r.split('-')[0], r.split('-')[r.split('-').size() - 1]].all(a, !isIP(a) || cidr(self.subnet).containsIP(a)))").message("excludeIPs must lie in subnet"))]
#[x_kube(validation = Rule::new("!has(self.gateway) || !isCIDR(self.subnet) || !isIP(self.gateway) || cidr(self.subnet).containsIP(self.gateway)").message("gateway must lie in subnet"))]
#[x_kube(validation = Rule::new("!has(self.routes) || !isCIDR(self.subnet) || self.routes.all(r, !isIP(r.gw) || cidr(self.subnet).containsIP(r.gw))").message("the gateways of routes must lie in subnet"))]
#[x_kube(validation = Rule::new("!has(self.routes) || self.routes.all(r, r.dst != '0.0.0.0/0' && r.dst != '::/0')").message("routes must not have a default route, that is gateway"))]
#[x_kube(validation = Rule::new("!has(self.routes) || self.routes.all(r, self.routes.exists_one(q, q.dst == r.dst))").message("a destination must not have two routes"))]
#[x_kube(validation = Rule::new("!has(self.podAffinity) || (has(self.podAffinity.matchLabels) && self.podAffinity.matchLabels.size() > 0) || (has(self.podAffinity.matchExpressions) && self.podAffinity.matchExpressions.size() > 0)").message("podAffinity must not be empty"))]
#[serde(rename_all = "camelCase")]
pub struct SpiderIPPoolSpec {
    /// 4 or 6; follows from the subnet when it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == 4 || self == 6").message("must be 4 or 6"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub ip_version: Option<i64>,
    /// The network that the addresses lie in, without host bits: `10.6.0.0/16`.
    #[schemars(length(max = 43))]
    #[x_kube(validation = Rule::new("isCIDR(self) && isIP(self.split('/')[0]) && cidr(self) == cidr(self).masked()").message("must be a network without host bits, like 10.6.0.0/16"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub subnet: String,
    /// Addresses `a` and ascending ranges `a-b` of the subnet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::ranges")]
    pub ips: Vec<String>,
    /// What of `ips` is not given out, in the same syntax.
    #[serde(rename = "excludeIPs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::ranges")]
    pub exclude_ips: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 39))]
    #[x_kube(validation = Rule::new("isIP(self)").message("must be an address"))]
    pub gateway: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub routes: Vec<PoolRoute>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub pod_affinity: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub namespace_affinity: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub node_affinity: Option<LabelSelector>,
    /// Namespaces that may use the pool; goes before `namespaceAffinity`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::names")]
    pub namespace_name: Vec<String>,
    /// Nodes that may use the pool; goes before `nodeAffinity`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::names")]
    pub node_name: Vec<String>,
    /// Networks that may use the pool, `namespace/name` or `name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::names")]
    pub multus_name: Vec<String>,
    /// The pool serves pods that name none.
    #[serde(default)]
    pub default: bool,
    /// Nothing new is given out; what is in use stays.
    #[serde(default)]
    pub disable: bool,
}

/// A route that comes with an address.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("(isIP(self.dst) || isCIDR(self.dst)) && isIP(self.gw)").message("dst must be a network or an address, gw an address"))]
#[x_kube(validation = Rule::new("!isCIDR(self.dst) || cidr(self.dst) == cidr(self.dst).masked()").message("dst must not have host bits set"))]
#[x_kube(validation = Rule::new("!isIP(self.gw) || !(isIP(self.dst) || isCIDR(self.dst)) || ip(self.gw).family() == (isIP(self.dst) ? ip(self.dst).family() : cidr(self.dst).ip().family())").message("dst and gw must be of one family"))]
pub struct PoolRoute {
    /// Network, or an address that stands for its /32 or /128.
    #[schemars(length(max = 43))]
    pub dst: String,
    #[schemars(length(max = 39))]
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
    /// Leases with a holder, those of unreachable nodes not counted.
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
    /// Leases without node and holder, kept for an identity.
    #[serde(rename = "keptIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub kept_ip_count: Option<i64>,
    /// Leases that nobody takes, because a stranger uses their addresses.
    #[serde(rename = "quarantinedIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub quarantined_ip_count: Option<i64>,
    /// Leases, with a holder or without, whose node is gone, tainted unreachable or not ready.
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
