//! State in, writes out. Pure: time comes in as a `Stamp`, and nothing is written that is there already.

pub mod bridges;
pub mod conditions;
pub mod coordinators;
pub mod losses;
pub mod networks;
pub mod pools;

use k8s_openapi::jiff::Timestamp;

use crate::state::{Dirty, State};
use crate::write::Write;

/// Now, for `lastTransitionTime`.
#[derive(Debug, Clone, Copy)]
pub struct Stamp(pub Timestamp);

/// All writes that bring the API to what the state asks for, for the parts that are dirty.
pub fn decide(state: &State, dirty: &Dirty, now: &Stamp) -> Vec<Write> {
    let mut out = Vec::new();
    if dirty.coordinators {
        out.extend(coordinators::decide(state));
    }
    if dirty.networks {
        out.extend(networks::decide(state, now));
    }
    if dirty.bridges {
        out.extend(bridges::decide(state, now));
    }
    // Before the pools, which count what is left.
    if dirty.losses {
        out.extend(losses::decide(state, now));
    }
    if dirty.pools || !dirty.domains.is_empty() {
        out.extend(pools::decide(state, dirty, now));
    }
    out
}
