//! The lab: nodes, switch, router and an outside host as namespaces of this machine, with real Open vSwitch and real CNI
//! plugins; stand-ins for a kubelet and for the Deployment controller; the demo. It knows the product only as processes
//! and API objects, never by its types.

pub mod daemon;
pub mod lab;
pub mod node;
pub mod run;
pub mod space;
