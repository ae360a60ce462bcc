//! A small stand-in for the Kubernetes API: in memory, with a snapshot file, for the demo, for tests and for single
//! hosts. It does not know what our kinds mean; where it and the real API server differ, the real one is right.
//!
//! With the feature `server` (the default of this package, off in the workspace): [`Server`] and its parts. Without it:
//! only [`client`], for processes that talk to the socket.
//!
//! Known to differ from the real one: no server-side apply, no strategic merge or JSON patch (415), lists are never cut
//! (`limit` is ignored), owners' dependents go at once, `Foreground` deletion is `Background`, no ratcheting of rules,
//! no admission but the guard of leases, one version a kind.

pub mod client;

#[cfg(feature = "server")]
mod builtin;
#[cfg(feature = "server")]
mod discovery;
#[cfg(feature = "server")]
mod gc;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
pub mod kinds;
#[cfg(feature = "server")]
mod meta;
#[cfg(feature = "server")]
mod patch;
#[cfg(feature = "server")]
mod route;
#[cfg(feature = "server")]
pub mod schema;
#[cfg(feature = "server")]
mod selector;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
pub mod snapshot;
#[cfg(feature = "server")]
mod status;
#[cfg(feature = "server")]
mod store;
#[cfg(feature = "server")]
mod verbs;
#[cfg(feature = "server")]
mod watch;

#[cfg(feature = "server")]
pub use server::{Options, Server};
#[cfg(feature = "server")]
pub use verbs::LeaseGuard;
