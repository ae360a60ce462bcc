//! The Container Network Interface, versions 0.3.0 to 1.1.0 (github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md):
//! requests, configuration, results and errors as values. Knows nothing of what a network is made of, nor of plans.
//! The only input and output is in `shim`: what a plugin's process does when the node has an agent.

pub mod args;
pub mod conf;
pub mod error;
pub mod request;
pub mod result;
pub mod shim;
pub mod version;
pub mod wire;

pub use args::CniArgs;
pub use conf::{Attachment, NetConf, NetConfList};
pub use error::Error;
pub use request::{Request, Verb};
pub use result::{AddResult, Dns, Interface, Ip, Route};
pub use version::Version;
