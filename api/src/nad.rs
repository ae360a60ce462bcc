//! NetworkAttachmentDefinition (`k8s.cni.cncf.io/v1`): Multus's kind, of which ours are one among several authors, so that
//! everything in it may be missing. Written by hand because `kube`'s derive makes `spec` mandatory.

mod render;

pub use render::render;

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Serialize};

const API_VERSION: &str = "k8s.cni.cncf.io/v1";
const KIND: &str = "NetworkAttachmentDefinition";

/// A network that a pod can ask for.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAttachmentDefinition {
    #[serde(default = "api_version")]
    api_version: String,
    #[serde(default = "kind")]
    kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: NetworkAttachmentDefinitionSpec,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkAttachmentDefinitionSpec {
    /// A CNI configuration or configuration list, as JSON text. Absent or empty: the file of that name on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}

fn api_version() -> String {
    API_VERSION.to_owned()
}

fn kind() -> String {
    KIND.to_owned()
}

impl NetworkAttachmentDefinition {
    pub fn new(name: &str, spec: NetworkAttachmentDefinitionSpec) -> Self {
        Self {
            api_version: api_version(),
            kind: kind(),
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            spec,
        }
    }

    /// The configuration; none where it is absent or empty.
    pub fn config(&self) -> Option<&str> {
        self.spec.config.as_deref().filter(|c| !c.trim().is_empty())
    }
}

impl Default for NetworkAttachmentDefinition {
    fn default() -> Self {
        Self {
            api_version: api_version(),
            kind: kind(),
            metadata: ObjectMeta::default(),
            spec: NetworkAttachmentDefinitionSpec::default(),
        }
    }
}

impl Resource for NetworkAttachmentDefinition {
    type DynamicType = ();
    type Scope = kube::core::NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        KIND.into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "k8s.cni.cncf.io".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn api_version(_: &()) -> Cow<'_, str> {
        API_VERSION.into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        "network-attachment-definitions".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
