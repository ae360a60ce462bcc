//! SpiderReservedIP: addresses that no pool gives out.

use kube::{CustomResource, KubeSchema};
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
    derive = "PartialEq",
    derive = "Default",
    doc = "Addresses that no pool gives out.",
    printcolumn(name = "VERSION", type_ = "integer", json_path = ".spec.ipVersion")
)]
#[serde(rename_all = "camelCase")]
pub struct SpiderReservedIPSpec {
    /// 4 or 6; follows from the addresses when it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_version: Option<i64>,
    /// Addresses `a` and ascending ranges `a-b`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
}
