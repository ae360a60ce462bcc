//! What is kept of a Node, and what Kubernetes says by it. Knows nothing of what hangs on that.

use std::collections::BTreeMap;

use api::keys;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Resource;
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

/// What we read of a Node. A whole one is tens of kilobytes (images, conditions that change with each heartbeat).
#[derive(Resource, Serialize, Deserialize, Clone, Debug, Default)]
#[resource(inherit = Node)]
pub struct SlimNode {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: SlimNodeSpec,
    #[serde(default)]
    pub status: SlimNodeStatus,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct SlimNodeSpec {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<SlimTaint>,
}

/// A taint without its value and time.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct SlimTaint {
    pub key: String,
    pub effect: String,
}

impl SlimNode {
    /// An administrator says that it is shut down and stays so, and it does not say otherwise. As Kubernetes, which takes nothing from a
    /// node with this taint that is Ready (pkg/controller/podgc).
    pub fn is_out_of_service(&self) -> bool {
        let ready = self.status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        !ready && self.spec.taints.iter().any(|t| t.key == keys::TAINT_OUT_OF_SERVICE)
    }

    /// Kubernetes counts on it. The taints of a node that does not answer have the effect NoExecute; the same with NoSchedule
    /// is on every node from its creation until it is ready for the first time.
    pub fn is_reachable(&self) -> bool {
        let away = |t: &SlimTaint| t.effect == "NoExecute" && keys::TAINTS_UNREACHABLE.contains(&t.key.as_str());
        !self.is_out_of_service() && !self.spec.taints.iter().any(away)
    }
}

#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct SlimNodeStatus {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<String, Quantity>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<SlimCondition>,
}

/// A condition without its times and texts.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct SlimCondition {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
}
