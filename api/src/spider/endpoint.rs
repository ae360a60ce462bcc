//! SpiderEndpoint: which addresses a pod has, for people to read, and the index of fixed identities.
//! Its status is an ordinary field (no subresource), so that one write makes it whole.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ippool::PoolRoute;

/// The kind has no `spec`.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderEndpoint",
    plural = "spiderendpoints",
    shortname = "se",
    category = "spiderpool",
    namespaced,
    no_spec,
    status = "SpiderEndpointStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "The addresses of a pod.",
    printcolumn(name = "INTERFACE", type_ = "string", json_path = ".status.current.ips[0].interface"),
    printcolumn(name = "IPV4POOL", type_ = "string", json_path = ".status.current.ips[0].ipv4Pool"),
    printcolumn(name = "IPV4", type_ = "string", json_path = ".status.current.ips[0].ipv4"),
    printcolumn(name = "IPV6POOL", type_ = "string", json_path = ".status.current.ips[0].ipv6Pool"),
    printcolumn(name = "IPV6", type_ = "string", json_path = ".status.current.ips[0].ipv6"),
    printcolumn(name = "NODE", type_ = "string", json_path = ".status.current.node")
)]
pub struct SpiderEndpointSpec {}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SpiderEndpointStatus {
    pub current: EndpointNow,
    /// Kind of the top controller: `Deployment`, `StatefulSet`, `Pod` ...
    pub owner_controller_type: String,
    pub owner_controller_name: String,
}

/// The present incarnation of the pod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct EndpointNow {
    pub uid: String,
    pub node: String,
    #[schemars(length(max = 32))]
    pub ips: Vec<EndpointIp>,
}

/// One NIC.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EndpointIp {
    pub interface: String,
    /// With prefix length: `10.6.212.202/16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_gateway: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6_pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6_gateway: Option<String>,
    /// Access VLAN; 0 is untagged.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan: i64,
    /// The NIC has no default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean_gateway: Option<bool>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub routes: Vec<PoolRoute>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}
