//! SpiderSubnet: a subnet that Spiderpool makes pools from. Ours reads it and says that it is not implemented.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ippool::PoolRoute;

/// A subnet that pools are made from.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderSubnet",
    plural = "spidersubnets",
    shortname = "ss",
    category = "spiderpool",
    status = "SpiderSubnetStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A subnet that pools are made from.",
    printcolumn(name = "VERSION", type_ = "integer", json_path = ".status.ipVersion"),
    printcolumn(name = "SUBNET", type_ = "string", json_path = ".spec.subnet"),
    printcolumn(name = "ALLOCATED-IP-COUNT", type_ = "integer", json_path = ".status.allocatedIPCount"),
    printcolumn(name = "TOTAL-IP-COUNT", type_ = "integer", json_path = ".status.totalIPCount")
)]
#[x_kube(validation = Rule::new("!has(self.ipVersion) || !isCIDR(self.subnet) || cidr(self.subnet).ip().family() == self.ipVersion").message("ipVersion must be that of subnet"))]
#[x_kube(validation = Rule::new("!has(self.ips) || !isCIDR(self.subnet) || self.ips.all(r, [r.split('-')[0], r.split('-')[r.split('-').size() - 1]].all(a, !isIP(a) || cidr(self.subnet).containsIP(a)))").message("ips must lie in subnet"))]
#[x_kube(validation = Rule::new("!has(self.excludeIPs) || !isCIDR(self.subnet) || self.excludeIPs.all(r, [r.split('-')[0], r.split('-')[r.split('-').size() - 1]].all(a, !isIP(a) || cidr(self.subnet).containsIP(a)))").message("excludeIPs must lie in subnet"))]
#[x_kube(validation = Rule::new("!has(self.gateway) || !isCIDR(self.subnet) || !isIP(self.gateway) || cidr(self.subnet).containsIP(self.gateway)").message("gateway must lie in subnet"))]
#[x_kube(validation = Rule::new("!has(self.routes) || !isCIDR(self.subnet) || self.routes.all(r, !isIP(r.gw) || cidr(self.subnet).containsIP(r.gw))").message("the gateways of routes must lie in subnet"))]
#[x_kube(validation = Rule::new("!has(self.routes) || self.routes.all(r, r.dst != '0.0.0.0/0' && r.dst != '::/0')").message("routes must not have a default route, that is gateway"))]
#[x_kube(validation = Rule::new("!has(self.routes) || self.routes.all(r, self.routes.exists_one(q, q.dst == r.dst))").message("a destination must not have two routes"))]
#[serde(rename_all = "camelCase")]
pub struct SpiderSubnetSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == 4 || self == 6").message("must be 4 or 6"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub ip_version: Option<i64>,
    #[schemars(length(max = 43))]
    #[x_kube(validation = Rule::new("isCIDR(self) && isIP(self.split('/')[0]) && cidr(self) == cidr(self).masked()").message("must be a network without host bits, like 10.6.0.0/16"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub subnet: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::ranges")]
    pub ips: Vec<String>,
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
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SpiderSubnetStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_version: Option<i64>,
    #[serde(rename = "allocatedIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub allocated_ip_count: Option<i64>,
    #[serde(rename = "totalIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub total_ip_count: Option<i64>,
    /// Spiderpool's record; nothing is written here.
    #[serde(rename = "controlledIPPools", skip_serializing_if = "Option::is_none")]
    pub controlled_ip_pools: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
