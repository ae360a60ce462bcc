//! The hands of the program as one thing: look at a host, and carry a plan out on it, wholly or not at all.
//!
//! [`Host`] is what the processes use. [`LinuxHost`] is the real one, over netlink and OVSDB; [`KernelHost`] is its blocking
//! half without Open vSwitch and without a runtime; [`FakeHost`] keeps a host in memory, with faults on demand. All run plans
//! by the same executor, which undoes what was done when a step fails.
//!
//! Nothing here decides what should be on a host, and nothing here knows Kubernetes or CNI.

pub mod error;
mod exec;
pub mod fake;

pub mod linux;
pub mod stop;

use std::future::Future;
use std::net::IpAddr;

use model::observed::{Observed, Scope};
use model::{IfName, Owner};
pub use netlink::{Netns, NetnsId};
pub use ovsdb::Endpoint;
#[cfg(feature = "ssl")]
pub use ovsdb::SslFiles;
use planner::{Ns, Plan};
use tokio::sync::watch;

pub use error::{ApplyError, HostError, StepError, Undo};

pub use fake::FakeHost;
pub use linux::{KernelHost, LinuxHost};

/// A host that can be looked at and changed.
pub trait Host: Send + Sync {
    /// What there is, as far as `scope` asks. Of the pod nothing is seen without `pod`. `Observed::ovs` is none where
    /// the host has no Open vSwitch; an Open vSwitch that is there but does not answer is an error, lest
    /// somebody take it for an empty one.
    fn observe(&self, pod: Option<&Netns>, scope: &Scope) -> impl Future<Output = Result<Observed, HostError>> + Send;

    /// Carries the plan out in order, or, when a step fails, takes back what was done and says how far that went.
    ///
    /// Dropping the future does not stop it half way: it goes on by itself to the end, or back to the beginning.
    fn apply(&self, pod: Option<&Netns>, plan: &Plan) -> impl Future<Output = Result<(), ApplyError>> + Send;

    /// Counts changes of the host's links, addresses, routes and of OVSDB, its own ones included. Only that it grew matters.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Everything that carries our mark: links of the host and of `pod`, ports of Open vSwitch.
    fn find_marked(&self, pod: Option<&Netns>) -> impl Future<Output = Result<Vec<Marked>, HostError>> + Send;

    /// Announces those of `ips` that `dev` of `pod` has (still), once more; true where something was sent. Changes nothing.
    fn announce_again(&self, pod: &Netns, dev: &IfName, ips: &[IpAddr]) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// The host's way to an address, as its kernel would choose it; none where there is none.
    fn route_get(&self, to: IpAddr) -> impl Future<Output = Result<Option<Way>, HostError>> + Send;
}

/// How the host would send to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub dev: IfName,
    pub gw: Option<IpAddr>,
    pub src: Option<IpAddr>,
}

/// Something of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    pub owner: Owner,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Link {
        ns: Ns,
        name: IfName,
    },
    /// A port of Open vSwitch, and the bridge that holds it.
    Port {
        bridge: String,
        port: String,
    },
}
