//! SpiderReservedIP: addresses that no pool gives out.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Addresses that no pool gives out.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderReservedIP",
    plural = "spiderreservedips",
    shortname = "sr",
    category = "spiderpool",
    status = "SpiderReservedIPStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Addresses that no pool gives out.",
    printcolumn(name = "VERSION", type_ = "integer", json_path = ".status.ipVersion")
)]
#[x_kube(validation = Rule::new("!has(self.ips) || !has(self.ipVersion) || self.ips.all(r, !isIP(r.split('-')[0]) || ip(r.split('-')[0]).family() == self.ipVersion)").message("ips must be of ipVersion"))]
#[x_kube(validation = Rule::new("!has(self.ips) || self.ips.size() == 0 || !isIP(self.ips[0].split('-')[0]) || self.ips.all(r, !isIP(r.split('-')[0]) || ip(r.split('-')[0]).family() == ip(self.ips[0].split('-')[0]).family())").message("ips must be of one family"))]
#[serde(rename_all = "camelCase")]
pub struct SpiderReservedIPSpec {
    /// 4 or 6; follows from the addresses when it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == 4 || self == 6").message("must be 4 or 6"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub ip_version: Option<i64>,
    /// Addresses `a` and ascending ranges `a-b`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::ranges")]
    pub ips: Vec<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SpiderReservedIPStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// 4 or 6, as the addresses say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_version: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
