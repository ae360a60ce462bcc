//! What has to change on a node so that its bridges are as wanted: (NodeDesired, Observed) -> one plan a bridge.
//! Pure: knows nothing of Kubernetes, of how a step is carried out, or of who persists it.
//!
//! Whose a thing is stands on it, in `external_ids`:
//! - bridge `mooring-bridge=<name>`: under our care. Without `mooring-set` we made it; with it, it was there before (adopted)
//!   and the list names the columns that we set, each with its former value in `mooring-was-<column>`.
//! - port `mooring-bridge=<name>`: we added it. A port with `mooring-set` only was there before.
//! - port `mooring-was-mtu.<nic>`, `mooring-was-up.<nic>`: what the NIC was before we changed it.

mod bridge;
mod ports;
mod removal;
pub mod uplink;

pub use ports::port_as_is;

use std::collections::BTreeMap;
use std::fmt;

use model::desired::NodeDesired;
use model::observed::Observed;
use model::{BridgeName, IfName};

use crate::{Plan, Refusal};

/// Mark of bridges and ports: the name of the Bridge object.
pub const MARK: &str = "mooring-bridge";
/// Columns that we set on something that was there before, joined by commas.
pub const SET: &str = "mooring-set";
/// + column: its value before.
pub const WAS: &str = "mooring-was-";

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct NodePlan {
    pub bridges: Vec<BridgePlan>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BridgePlan {
    pub name: BridgeName,
    pub plan: Plan,
    pub verdict: Verdict,
}

/// Why a bridge cannot be as wanted: the fixed word of the condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Reason {
    OvsUnavailable,
    DatapathUnavailable,
    NameInUse,
    UplinkNotFound,
    UplinkAmbiguous,
    /// In another bridge, bond or virtual switch, or parent of macvlan NICs.
    UplinkInUse,
    /// Another Bridge of this node wants it too.
    UplinkShared,
    UplinkCarriesNodeAddress,
    UplinkUnsupported,
    InvalidBond,
    InvalidMtu,
}

impl Reason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::OvsUnavailable => "OvsUnavailable",
            Reason::DatapathUnavailable => "DatapathUnavailable",
            Reason::NameInUse => "NameInUse",
            Reason::UplinkNotFound => "UplinkNotFound",
            Reason::UplinkAmbiguous => "UplinkAmbiguous",
            Reason::UplinkInUse => "UplinkInUse",
            Reason::UplinkShared => "UplinkShared",
            Reason::UplinkCarriesNodeAddress => "UplinkCarriesNodeAddress",
            Reason::UplinkUnsupported => "UplinkUnsupported",
            Reason::InvalidBond => "InvalidBond",
            Reason::InvalidMtu => "InvalidMtu",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum Verdict {
    /// As wanted: nothing to do.
    Ready,
    /// The plan makes it so (new, changed, or drifted).
    Change,
    Refused {
        reason: Reason,
        #[serde(serialize_with = "as_text")]
        refusal: Refusal,
    },
    /// Not removed: these ports still use it.
    InUse { ports: Vec<String> },
    /// The plan takes our additions back.
    Removing,
    /// Nothing of ours is left.
    Removed,
    /// Left as it is; the plan only takes our marks off.
    Orphaned,
}

fn as_text<S: serde::Serializer>(r: &Refusal, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(r)
}

impl Verdict {
    /// The condition's reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Verdict::Ready => "Ready",
            Verdict::Change => "Changing",
            Verdict::Refused { reason, .. } => reason.as_str(),
            Verdict::InUse { .. } => "InUse",
            Verdict::Removing => "Removing",
            Verdict::Removed => "Removed",
            Verdict::Orphaned => "Orphaned",
        }
    }
}

/// The condition's message.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Ready => f.write_str("the bridge is as wanted"),
            Verdict::Change => f.write_str("the bridge differs from what is wanted"),
            Verdict::Refused { refusal, .. } => refusal.fmt(f),
            Verdict::InUse { ports } => write!(f, "not removed, still in use by {}", ports.join(", ")),
            Verdict::Removing => f.write_str("our additions are being taken back"),
            Verdict::Removed => f.write_str("nothing of ours is left"),
            Verdict::Orphaned => f.write_str("left as it is, no longer ours"),
        }
    }
}

/// A refusal with its word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct No(pub Reason, pub Refusal);

impl From<No> for Verdict {
    fn from(No(reason, refusal): No) -> Self {
        Verdict::Refused { reason, refusal }
    }
}

/// Bridges earlier in the list have the first claim on an uplink.
pub fn plan(desired: &NodeDesired, seen: &Observed) -> NodePlan {
    let mut bridges = Vec::with_capacity(desired.bridges.len() + desired.removed.len());
    // Removals first: an uplink may go from one bridge to another.
    for r in &desired.removed {
        if desired.bridges.iter().any(|b| b.name == r.name) {
            continue;
        }
        let (plan, verdict) = removal::plan(r, seen);
        bridges.push(BridgePlan { name: r.name.clone(), plan, verdict });
    }
    let mut claimed: BTreeMap<IfName, BridgeName> = BTreeMap::new();
    for b in &desired.bridges {
        let (plan, verdict) = match bridge::plan(b, seen, &mut claimed) {
            Ok(plan) if plan.is_empty() => (plan, Verdict::Ready),
            Ok(plan) => (plan, Verdict::Change),
            Err(no) => (Plan::default(), no.into()),
        };
        bridges.push(BridgePlan { name: b.name.clone(), plan, verdict });
    }
    NodePlan { bridges }
}

/// Plans again: what is left to do or is refused. Empty: the node is as wanted.
pub fn verify(desired: &NodeDesired, seen: &Observed) -> Vec<BridgePlan> {
    let left = |b: &BridgePlan| !b.plan.is_empty() || matches!(b.verdict, Verdict::Refused { .. } | Verdict::InUse { .. });
    plan(desired, seen).bridges.into_iter().filter(left).collect()
}
