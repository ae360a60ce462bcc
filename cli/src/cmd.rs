//! One file a command. Each returns the text that it has to say, so that tests read it.

pub mod explain;
pub mod free;
pub mod plan;
pub mod release;
pub mod show;
pub mod who_has;
