//! SpiderMultusConfig: what a network is, in fields; a NetworkAttachmentDefinition is rendered from it (`nad::render`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::coordinator::CoordinatorSettings;

/// A network, in fields. Exactly the block that `cniType` names is given.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderMultusConfig",
    plural = "spidermultusconfigs",
    shortname = "smc",
    category = "spiderpool",
    namespaced,
    status = "SpiderMultusConfigStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A network, in fields; a NetworkAttachmentDefinition is made from it."
)]
#[x_kube(validation = Rule::new("has(self.macvlan) == (has(self.cniType) && self.cniType == 'macvlan')").message("the block macvlan must be given with cniType macvlan, and only then"))]
#[x_kube(validation = Rule::new("has(self.ipvlan) == (has(self.cniType) && self.cniType == 'ipvlan')").message("the block ipvlan must be given with cniType ipvlan, and only then"))]
#[x_kube(validation = Rule::new("has(self.vlan) == (has(self.cniType) && self.cniType == 'vlan')").message("the block vlan must be given with cniType vlan, and only then"))]
#[x_kube(validation = Rule::new("has(self.sriov) == (has(self.cniType) && self.cniType == 'sriov')").message("the block sriov must be given with cniType sriov, and only then"))]
#[x_kube(validation = Rule::new("has(self.ovs) == (has(self.cniType) && self.cniType == 'ovs')").message("the block ovs must be given with cniType ovs, and only then"))]
#[x_kube(validation = Rule::new("has(self.ibsriov) == (has(self.cniType) && self.cniType == 'ib-sriov')").message("the block ibsriov must be given with cniType ib-sriov, and only then"))]
#[x_kube(validation = Rule::new("has(self.ipoib) == (has(self.cniType) && self.cniType == 'ipoib')").message("the block ipoib must be given with cniType ipoib, and only then"))]
#[x_kube(validation = Rule::new("!has(self.customCNI) || self.customCNI == '' || !has(self.cniType) || self.cniType == 'custom'").message("customCNI is for cniType custom only"))]
#[serde(rename_all = "camelCase")]
pub struct SpiderMultusConfigSpec {
    #[serde(default)]
    pub cni_type: CniType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macvlan: Option<MacvlanConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipvlan: Option<MacvlanConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sriov: Option<SriovConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ovs: Option<OvsConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ibsriov: Option<IbSriovConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipoib: Option<IpoibConfig>,
    /// For `custom`: a CNI configuration or list as JSON, or nothing.
    #[serde(rename = "customCNI", skip_serializing_if = "Option::is_none")]
    pub custom_cni: Option<String>,
    /// The coordinator is chained behind the main plugin (never for `custom`).
    #[serde(default = "yes")]
    pub enable_coordinator: bool,
    /// The main plugin has no IPAM.
    #[serde(rename = "disableIPAM", default)]
    pub disable_ipam: bool,
    /// What this network wants otherwise than the SpiderCoordinator says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<CoordinatorSettings>,
    /// Further plugins, each a JSON object as text, between the main plugin and the coordinator.
    #[serde(rename = "chainCNIJsonData", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub chain_cni_json_data: Vec<String>,
}

fn yes() -> bool {
    true
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum CniType {
    Macvlan,
    Ipvlan,
    Vlan,
    Sriov,
    Ovs,
    IbSriov,
    Ipoib,
    #[default]
    Custom,
}

/// Macvlan and ipvlan.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("(self.master.size() >= 2) == has(self.bond)").message("two or more masters need a bond, one has none"))]
#[x_kube(validation = Rule::new("!has(self.ippools) || !has(self.ippools.matchMasterSubnet) || !self.ippools.matchMasterSubnet").message("matchMasterSubnet is for sriov only"))]
#[serde(rename_all = "camelCase")]
pub struct MacvlanConfig {
    /// The parent; two or more are joined by `bond`.
    #[schemars(schema_with = "crate::schema::masters")]
    pub master: Vec<String>,
    /// 0 takes the parent's.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    pub mtu: i32,
    /// VLAN of the parent; 0 or absent is none.
    #[serde(rename = "vlanID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan_id: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond: Option<Bond>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdma_resource_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<PoolNames>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("(self.master.size() >= 2) == has(self.bond)").message("two or more masters need a bond, one has none"))]
#[x_kube(validation = Rule::new("!has(self.ippools) || !has(self.ippools.matchMasterSubnet) || !self.ippools.matchMasterSubnet").message("matchMasterSubnet is for sriov only"))]
#[x_kube(validation = Rule::new("has(self.vlanMode) && self.vlanMode == 'auto' ? !has(self.vlanID) : (has(self.vlanID) && self.vlanID >= 1)").message("vlanID of 1 to 4094 must be given with vlanMode manual, and only then"))]
#[serde(rename_all = "camelCase")]
pub struct VlanConfig {
    #[schemars(schema_with = "crate::schema::masters")]
    pub master: Vec<String>,
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    pub mtu: i32,
    /// Needed with `vlanMode: manual`, refused with `auto`.
    #[serde(rename = "vlanID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan_id: Option<i32>,
    #[serde(default)]
    pub vlan_mode: VlanMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond: Option<Bond>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdma_resource_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<PoolNames>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum VlanMode {
    #[default]
    Manual,
    Auto,
}

/// A bond that the parents are joined in.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Bond {
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[^/:\s]+$"))]
    pub name: String,
    /// As the kernel numbers them: 0 balance-rr, 1 active-backup, 2 balance-xor, 3 broadcast, 4 802.3ad, 5 balance-tlb, 6 balance-alb.
    #[schemars(range(min = 0, max = 6))]
    pub mode: i32,
    /// `key=value` joined by `;`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("has(self.resourceName) && self.resourceName != ''").message("resourceName must be given"))]
#[x_kube(validation = Rule::new("!has(self.minTxRateMbps) || !has(self.maxTxRateMbps) || self.minTxRateMbps <= self.maxTxRateMbps").message("minTxRateMbps must not exceed maxTxRateMbps"))]
#[serde(rename_all = "camelCase")]
pub struct SriovConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_name: Option<String>,
    #[serde(rename = "vlanID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan_id: Option<i32>,
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    pub mtu: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub min_tx_rate_mbps: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_tx_rate_mbps: Option<i64>,
    #[serde(default)]
    pub rdma_isolation: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<PoolNames>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("!has(self.ippools) || !has(self.ippools.matchMasterSubnet) || !self.ippools.matchMasterSubnet").message("matchMasterSubnet is for sriov only"))]
#[serde(rename_all = "camelCase")]
pub struct OvsConfig {
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[^/:\s]+$"))]
    pub bridge: String,
    /// Access VLAN; without effect beside `trunk`. Absent leaves the port a trunk of every VLAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan: Option<i32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub trunk: Vec<OvsTrunk>,
    #[serde(rename = "deviceID", skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<PoolNames>,
}

/// One VLAN (`id`), or `minID` to `maxID`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("has(self.minID) == has(self.maxID)").message("minID and maxID must be given together"))]
#[x_kube(validation = Rule::new("!has(self.minID) || !has(self.maxID) || self.minID <= self.maxID").message("minID must not exceed maxID"))]
#[x_kube(validation = Rule::new("has(self.id) || has(self.minID) || has(self.maxID)").message("id, or minID and maxID, must be given"))]
pub struct OvsTrunk {
    #[serde(rename = "minID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub min_id: Option<i64>,
    #[serde(rename = "maxID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub max_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub id: Option<i64>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("has(self.resourceName) && self.resourceName != ''").message("resourceName must be given"))]
#[x_kube(validation = Rule::new("!has(self.ippools) || !has(self.ippools.matchMasterSubnet) || !self.ippools.matchMasterSubnet").message("matchMasterSubnet is for sriov only"))]
#[serde(rename_all = "camelCase")]
pub struct IbSriovConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pkey: Option<String>,
    #[serde(default)]
    pub link_state: IbLinkState,
    #[serde(default = "yes")]
    pub rdma_isolation: bool,
    #[serde(default)]
    pub enable_ib_kubernetes: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<PoolNames>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum IbLinkState {
    Auto,
    #[default]
    Enable,
    Disable,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct IpoibConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<PoolNames>,
}

/// The pools of a network; wildcards `*`, `?`, `[..]` are allowed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PoolNames {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipv4: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipv6: Vec<String>,
    /// Only pools whose subnet is that of the master (sriov only).
    #[serde(default)]
    pub match_master_subnet: bool,
}

/// Spiderpool has none; here it says why there is no NetworkAttachmentDefinition.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SpiderMultusConfigStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
