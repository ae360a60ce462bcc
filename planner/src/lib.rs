//! The brain: (desired, observed) -> a `Plan` of `Step`s, each with its inverse. Values in, values out: no I/O, no clock,
//! no async; knows nothing of Kubernetes, CNI's wire form or how a step is carried out.

pub mod attach;
pub mod coordinate;
pub mod lookup;
pub mod node;
pub mod refusal;
pub mod rollout;
pub mod step;

pub use attach::{Aim, Attach, Gateways, MainPlugin, Nic, NicRoute};
pub use refusal::{Class, Refusal};
pub use step::{Ns, Plan, Step};
