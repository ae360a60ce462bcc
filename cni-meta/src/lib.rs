//! Several networks for one pod, as the Network Plumbing Working Group's standard 1.3 has them ("Kubernetes Network Custom
//! Resource Definition De-facto Standard"): annotations in, delegates to execute in order, network-status out. Pure: texts of
//! annotations, NetworkAttachmentDefinitions and files on disk come in as values; nothing is fetched or executed here.

pub mod delegate;
pub mod selection;
pub mod status;

pub use delegate::{DefaultRoutes, Delegate, Nad};
pub use selection::{Selection, interface_names};
pub use status::NetworkStatus;

#[cfg(test)]
mod tests;

/// Pod annotation: additional networks.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// Pod annotation: replaces the cluster's network.
pub const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";
/// Pod annotation that we write: what came of it.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// Where a default network without a namespace is looked for, as in Multus.
pub const DEFAULT_NETWORK_NAMESPACE: &str = "kube-system";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    #[error("annotation {annotation}: {why}")]
    Annotation { annotation: &'static str, why: String },
    #[error("annotation {annotation}, network {network}: {field} {value}: {rule}")]
    Field { annotation: &'static str, network: String, field: String, value: String, rule: String },
    #[error("network {network}: {field} {value}: {rule}")]
    Delegate { network: String, field: String, value: String, rule: String },
    #[error("network {network}: {source}")]
    Config { network: String, source: cni::Error },
    #[error(
        "network {network}: its NetworkAttachmentDefinition has no config, and no file in the CNI configuration directory has the name {name:?}"
    )]
    NotOnDisk { network: String, name: String },
}

impl MetaError {
    /// As the CNI error that the runtime gets.
    pub fn to_cni(&self) -> cni::Error {
        let code = match self {
            MetaError::Config { source, .. } => source.code,
            MetaError::NotOnDisk { .. } => cni::Error::MISSING,
            _ => cni::Error::INVALID_CONFIG,
        };
        cni::Error::new(code, self.to_string())
    }
}
