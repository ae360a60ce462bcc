//! Group `mooring.dev/v1alpha1`: what nobody else has. The group's name is `model::DOMAIN`; the derive macros need it as a
//! literal, and a test compares them.

pub mod bridge;
pub mod labels;
pub mod lease;
pub mod node_network;
pub mod pool_map;

pub use bridge::{
    BondLink, BondMode, Bridge, BridgeConfig, BridgeResource, BridgeSpec, BridgeStatus, DatapathType, DeletionPolicy, FailMode,
    FailedNode, Lacp, Uplink,
};
pub use labels::{identity_label, label_value};
pub use lease::{
    AddressLease, AddressLeaseSpec, Holder, Identity, IdentityKind, LeaseNameError, Quarantine, QuarantineReason, Wanted,
    chunk_label, chunk_of_label, lease_name, parse_lease_name,
};
pub use node_network::{
    BridgeOnNode, BridgePhase, BridgeState, InterfaceSummary, NodeNetwork, NodeNetworkSpec, NodeNetworkStatus,
};
pub use pool_map::{Chunk, ChunkError, PoolMap, PoolMapSpec, ProbeRequest};

/// The version of these kinds.
pub const VERSION: &str = "v1alpha1";
