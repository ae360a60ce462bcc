//! Group `spiderpool.spidernet.io/v2beta1`, as Spiderpool's users wrote their manifests for it: same fields, same
//! defaults, same short names (fixtures/crd-fields). What is added is status, and CEL in the place of a webhook.
//! Does not know whether an object makes sense beside others.

pub mod coordinator;
pub mod endpoint;
pub mod ippool;
pub mod multus;
pub mod reserved;
pub mod subnet;

pub use coordinator::{
    CoordinatorMode, CoordinatorPhase, CoordinatorSettings, PodCidrType, SpiderCoordinator, SpiderCoordinatorStatus,
};
pub use endpoint::{EndpointIp, EndpointNow, SpiderEndpoint, SpiderEndpointSpec, SpiderEndpointStatus};
pub use ippool::{PoolRoute, SpiderIPPool, SpiderIPPoolSpec, SpiderIPPoolStatus};
pub use multus::{
    Bond, CniType, IbLinkState, IbSriovConfig, IpoibConfig, MacvlanConfig, OvsConfig, OvsTrunk, PoolNames, SpiderMultusConfig,
    SpiderMultusConfigSpec, SpiderMultusConfigStatus, SriovConfig, VlanConfig, VlanMode,
};
pub use reserved::{SpiderReservedIP, SpiderReservedIPSpec, SpiderReservedIPStatus};
pub use subnet::{SpiderSubnet, SpiderSubnetSpec, SpiderSubnetStatus};

/// The group of these kinds.
pub const GROUP: &str = "spiderpool.spidernet.io";
/// The version of these kinds.
pub const VERSION: &str = "v2beta1";
