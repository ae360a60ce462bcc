//! The CustomResourceDefinitions of every kind, generated from the Rust types. `cargo xtask crds` writes them to
//! deploy/crds, tests/crds.rs compares.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSON, JSONSchemaProps};
use kube::CustomResourceExt as _;
use serde_json::json;

use crate::mooring::{AddressLease, Bridge, NodeNetwork, PoolMap};
use crate::spider::{SpiderCoordinator, SpiderEndpoint, SpiderIPPool, SpiderMultusConfig, SpiderReservedIP, SpiderSubnet};

/// In the order in which they are written: ours, then Spiderpool's, then Multus's.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        Bridge::crd(),
        NodeNetwork::crd(),
        AddressLease::crd(),
        PoolMap::crd(),
        SpiderIPPool::crd(),
        SpiderSubnet::crd(),
        empty_spec_by_default(SpiderReservedIP::crd()),
        without_status_subresource(SpiderEndpoint::crd()),
        empty_spec_by_default(SpiderCoordinator::crd()),
        empty_spec_by_default(SpiderMultusConfig::crd()),
        network_attachment_definition(),
    ]
}

/// Spiderpool lets `spec` be absent where all of its fields may be.
fn empty_spec_by_default(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let root = root(&mut crd);
    if let Some(spec) = root.properties.as_mut().and_then(|p| p.get_mut("spec")) {
        spec.default = Some(JSON(json!({})));
    }
    // kubectl looks at `required` before the API server has filled the default in.
    root.required =
        root.required.take().map(|r| r.into_iter().filter(|n| n != "spec").collect::<Vec<_>>()).filter(|r| !r.is_empty());
    crd
}

/// A SpiderEndpoint's status is an ordinary field: one write makes the object whole.
fn without_status_subresource(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        version.subresources = None;
    }
    crd
}

fn root(crd: &mut CustomResourceDefinition) -> &mut JSONSchemaProps {
    crd.spec.versions[0]
        .schema
        .as_mut()
        .and_then(|s| s.open_api_v3_schema.as_mut())
        .expect("kube's derive writes one version with a schema")
}

/// As Multus's own manifest has it, so that whichever of the two is applied last changes nothing.
fn network_attachment_definition() -> CustomResourceDefinition {
    serde_json::from_value(json!({
        "metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
        "spec": {
            "group": "k8s.cni.cncf.io",
            "scope": "Namespaced",
            "names": {
                "kind": "NetworkAttachmentDefinition",
                "plural": "network-attachment-definitions",
                "singular": "network-attachment-definition",
                "shortNames": ["net-attach-def", "nad"],
            },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": "A network that a pod can ask for (Network Plumbing Working Group, de-facto standard).",
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": {
                            "type": "object",
                            "properties": {"config": {
                                "type": "string",
                                "description": "A CNI configuration or configuration list, as JSON text. Absent or empty: the file of that name on the node.",
                            }},
                        },
                    },
                }},
            }],
        },
    }))
    .expect("the literal above is a CustomResourceDefinition")
}
