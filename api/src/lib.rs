//! What users and our own processes say to each other through the Kubernetes API: the kinds with their field rules, the
//! annotations and labels, and the way from a stored object to checked values, or to the field that is wrong and why.
//! Knows no API server, no clock, no file and no host.

#![allow(clippy::duplicated_attributes, reason = "two printcolumns of one type are no duplicate")]

pub mod annotations;
pub mod convert;
pub mod crds;
mod invalid;
pub mod keys;
pub mod mooring;
pub mod nad;
mod schema;
pub mod selector;
pub mod spider;

pub use invalid::Invalid;
pub use mooring::{AddressLease, Bridge, NodeNetwork, PoolMap};
pub use nad::NetworkAttachmentDefinition;
pub use spider::{SpiderCoordinator, SpiderEndpoint, SpiderIPPool, SpiderMultusConfig, SpiderReservedIP, SpiderSubnet};

/// `metadata/v1 Condition`, the shape of every condition in our status blocks.
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, LabelSelectorRequirement};
