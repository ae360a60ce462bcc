//! The kernel's network configuration over netlink: links, addresses, routes, rules, neighbours, sysctls,
//! announcements and probes, in any network namespace. Synchronous.
//!
//! A netlink socket belongs for good to the namespace in which it was opened. So [`Socket::open_in`] enters the namespace on a
//! thread of its own, opens the socket there, and the thread ends; the socket is then used from anywhere. No runtime
//! and no lasting thread is needed per namespace, and programs that make one attachment and exit stay small.
//!
//! It has no opinion on what should be there, and knows nothing of plans, pods or Open vSwitch.

pub mod announce;
pub mod error;
pub mod ethtool;
mod frame;
pub mod monitor;
pub mod netns;
pub mod probe;
mod query;
mod read;
pub mod request;
mod segment;
pub mod socket;
pub mod sysctl;
mod wire;

pub use announce::{Announced, announce, announce_again};
pub use error::{BatchError, Errno, Error, KernelError, Outcome};
pub use ethtool::{has_family, set_tx_checksum};
pub use monitor::Monitor;
pub use netns::{Inside, Netns, NetnsId};
pub use probe::{Probe, Probed, probe};
pub use query::RouteLookup;
pub use request::{LinkChange, LinkRef, Request};
pub use socket::Socket;
