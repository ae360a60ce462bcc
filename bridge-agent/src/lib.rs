//! The node's half of Mooring, as a library so that tests run it in their own process: attaches pods (`cni_server`,
//! `attach`), keeps bridges (`node`), and is the one writer of this node's leases, endpoints and NodeNetwork status. Knows
//! the host only as `plumbing::Host`.

pub mod agent_id;
pub mod args;
pub mod attach;
pub mod caches;
pub mod cni_server;
pub mod endpoints;
pub mod events;
pub mod journal;
pub mod leases;
pub mod node;
pub mod run;
pub mod sandboxes;
pub mod spool;
pub mod status;
#[cfg(feature = "stop-at-step")]
mod stop;
pub mod sweep;
