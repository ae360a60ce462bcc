//! The cluster side of Mooring: watches objects, decides on plain values, writes.
//!
//! `state` holds what the watches brought; `decide` turns it into `Write`s, purely; `write` is the only one that writes to the
//! API; `run` is the loop, of the one that `leader` elects. Knows no host: it meets the agents in API objects only.

pub mod args;
pub mod decide;
pub mod leader;
pub mod run;
pub mod state;
pub mod write;
