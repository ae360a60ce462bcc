//! The lab: nodes, switch, router and an outside host as namespaces of this machine, with real Open vSwitch and real CNI
//! plugins; stand-ins for a kubelet and for the Deployment controller; the demo. It knows the product only as processes
//! and API objects, never by its types.

pub mod apply;
pub mod audit;
pub mod bench;
pub mod cluster;
pub mod cni_runtime;
pub mod daemon;
pub mod demo;
pub mod deployments;
pub mod echo;
pub mod guest;
pub mod kube;
pub mod kubelet;
pub mod lab;
pub mod node;
pub mod oracle;
pub mod product;
pub mod proxy;
pub mod rounds;
pub mod run;
pub mod space;
pub mod swarm;
pub mod vectors;
pub mod world;
