//! The agent in one process: a host in memory, the stand-in for the API, real files for journal and sockets. Proves what the
//! agent does with them, not what the kernel does: that is the lab's.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the answer, in their helpers too")]

mod addresses;
mod chain;
mod gc;
mod leases;
mod lost;
mod networks;
mod nic;
mod node;
mod probe;
mod ready;
mod restart;
mod served;
mod socket;
mod spool;
mod world;
