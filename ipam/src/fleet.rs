//! What is decided about the leases of a whole cluster: how many spares a node may keep, which spares are asked back, what a
//! fenced node loses, which leases count as out of reach, and when a quarantine is over. The controller's part of addresses;
//! no decision here ever rests on a time-out of a node: death is proven, never assumed.
//!
//! Does not know API objects, nor how a node is found to be fenced or out of reach.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::window::{LeaseState, spares_per_node};

/// How long nobody is given an address that somebody else was seen to use, in seconds. The next who takes it probes again, so
/// this only bounds how often an offender that stays costs an ADD one more address.
pub const QUARANTINE_SECS: i64 = 600;
/// How long after the declaration leases of a dead machine are looked for, in seconds. Its last creates may still be under way
/// then: an API server ends each after 60 s; the rest is for a watch that lags.
pub const FENCE_SECS: i64 = 90;
/// How long an address that is kept for an identity is left alone while another seems to be in use, in seconds: what is in use may
/// be such a late create itself, which its own agent takes back within 90 s.
pub const SUPERFLUOUS_SECS: i64 = 600;
/// Addresses that one map asks back, as the schema has it. One is asked back for an ADD that waits 5 s, so that more are not
/// asked for together; the rest comes in the next map.
pub const MAX_RECALL: usize = 256;

/// What matters of an AddressLease here. Empty texts stand for fields that are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease<'a> {
    pub ip: IpAddr,
    pub node: &'a str,
    pub agent_id: &'a str,
    /// It has a holder.
    pub held: bool,
    /// It has an identity, and outlives its holder.
    pub fixed: bool,
    /// Somebody asks for this very address.
    pub wanted: bool,
    /// Since when nobody may have it, in Unix seconds.
    pub quarantined: Option<i64>,
    /// Since when nobody has it, in Unix seconds, where somebody had.
    pub released: Option<i64>,
}

impl Lease<'_> {
    /// With a node, without a holder: in hand for the next pod there, or resting.
    pub fn is_spare(&self) -> bool {
        !self.held && !self.node.is_empty()
    }

    /// How it counts, each lease once. `reachable`: whether a node of this name is there and answers.
    pub fn state(&self, reachable: impl Fn(&str) -> bool) -> LeaseState {
        match self {
            Lease { quarantined: Some(_), .. } => LeaseState::Quarantined,
            _ if self.node.is_empty() => LeaseState::Kept,
            _ if !reachable(self.node) => LeaseState::Unreachable,
            _ if self.held => LeaseState::Held,
            _ => LeaseState::Spare,
        }
    }
}

/// Leases that each node may keep of a pool without a holder. `free`: addresses without a lease. Those that lie about as
/// spares count as free here: otherwise taking spares would lower the number that allowed them, and giving them back would
/// raise it again, for ever. A node uses the pool while it has a lease of it; one out of reach neither takes nor gives.
pub fn spares<'a>(free: u128, leases: impl IntoIterator<Item = Lease<'a>>, reachable: impl Fn(&str) -> bool) -> u8 {
    let mut nodes = BTreeSet::new();
    let mut idle = free;
    for l in leases {
        if matches!(l.state(&reachable), LeaseState::Held | LeaseState::Spare) {
            nodes.insert(l.node);
            idle += u128::from(!l.held);
        }
    }
    spares_per_node(idle, u32::try_from(nodes.len()).unwrap_or(u32::MAX))
}

/// Spares that their nodes shall give back, because someone asks for them by name; ascending.
pub fn recall<'a>(leases: impl IntoIterator<Item = Lease<'a>>) -> Vec<IpAddr> {
    let wanted: BTreeSet<IpAddr> = leases.into_iter().filter(|l| l.wanted && l.is_spare()).map(|l| l.ip).collect();
    wanted.into_iter().take(MAX_RECALL).collect()
}

/// How a lease is taken from a node that cannot give it back any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The lease is deleted, the address is free.
    Delete,
    /// Node, agent and holder are emptied; the identity stays, and with it the claim to the address.
    Empty,
}

/// How this lease is taken away. The write is guarded by the version that was decided about.
pub fn loss(lease: &Lease<'_>) -> Loss {
    if lease.fixed { Loss::Empty } else { Loss::Delete }
}

/// A node was declared dead. Kept with the Node, so that another controller goes on where the last one stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fence {
    /// The agents that were there at that moment. One that comes later under the same node name is not dead.
    pub agents: BTreeSet<String>,
    /// When it was noted, in Unix seconds.
    pub since: i64,
    /// Everything that these agents had is taken away, and nothing of theirs comes any more. What one of them takes from now on, it takes alive: the declaration
    /// was about the machine before it was started anew.
    pub done: bool,
}

/// The next step of fencing one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fencing {
    /// Nothing to do, or not yet.
    Settled,
    /// Write this down before anything is taken away.
    Record(Fence),
    /// Take these away; decide again when it is seen.
    Release(Vec<(IpAddr, Loss)>),
    /// The node is no longer declared dead: the record goes, and the next declaration begins anew.
    Forget,
}

/// What comes next. `declared`: the node is declared dead now. `record`: what was written down. `leases`: those that name the
/// node. `known`: the node's agent where it is known without a lease. `now` in Unix seconds; to be asked again until the record
/// is done.
pub fn fence<'a>(
    declared: bool,
    record: Option<&Fence>,
    leases: impl IntoIterator<Item = Lease<'a>>,
    known: Option<&str>,
    now: i64,
) -> Fencing {
    match (declared, record) {
        (false, None) => Fencing::Settled,
        (false, Some(_)) => Fencing::Forget,
        (true, None) => {
            let agents = leases.into_iter().map(|l| l.agent_id).chain(known).filter(|a| !a.is_empty());
            Fencing::Record(Fence { agents: agents.map(str::to_owned).collect(), since: now, done: false })
        }
        (true, Some(f)) if f.done => Fencing::Settled,
        (true, Some(f)) => {
            let lost: Vec<_> = leases.into_iter().filter(|l| f.agents.contains(l.agent_id)).map(|l| (l.ip, loss(&l))).collect();
            // A time in the future is a clock that was wrong, and is waited for no longer than any other.
            let over = (now - f.since).abs() >= FENCE_SECS;
            match (lost.is_empty(), over) {
                (false, _) => Fencing::Release(lost),
                (true, true) => Fencing::Record(Fence { done: true, ..f.clone() }),
                (true, false) => Fencing::Settled,
            }
        }
    }
}

/// Of the leases of one identity in one family: those kept for it although a sandbox has another, and has had for long. A create
/// that was carried out long after its ADD was given up, by an agent that died meanwhile, leaves one behind; an identity has one
/// address of a family. `now`: Unix seconds.
pub fn superfluous<'a>(of_identity: impl IntoIterator<Item = Lease<'a>>, now: i64) -> Vec<IpAddr> {
    let (held, rest): (Vec<_>, Vec<_>) = of_identity.into_iter().partition(|l| l.held);
    let long = |l: &&Lease<'_>| l.released.is_none_or(|at| (now - at).abs() >= SUPERFLUOUS_SECS);
    let kept = rest.iter().filter(|l| l.node.is_empty() && l.quarantined.is_none()).filter(long);
    if held.is_empty() { Vec::new() } else { kept.map(|l| l.ip).collect() }
}

/// What becomes of a quarantined lease whose time is over: a fixed one goes back to its identity. `now` in Unix seconds. A
/// time in the future is a clock that was wrong, and is waited for no longer than any other.
pub fn quarantine_over(lease: &Lease<'_>, now: i64) -> Option<Loss> {
    let since = lease.quarantined?;
    ((now - since).abs() >= QUARANTINE_SECS).then(|| loss(lease))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(last: u8, node: &'static str, held: bool) -> Lease<'static> {
        let agent_id = if node.is_empty() { "" } else { "a" };
        let ip = IpAddr::from([10, 0, 0, last]);
        Lease { ip, node, agent_id, held, fixed: false, wanted: false, quarantined: None, released: None }
    }

    fn all(_: &str) -> bool {
        true
    }

    #[test]
    fn taking_the_spares_that_were_allowed_does_not_forbid_them() {
        // 12 idle addresses and three nodes: one each, also when all three have it.
        let held = [lease(1, "n1", true), lease(2, "n2", true), lease(3, "n3", true)];
        assert_eq!(spares(12, held, all), 1);
        let with_spares = held.into_iter().chain([lease(4, "n1", false), lease(5, "n2", false), lease(6, "n3", false)]);
        assert_eq!(spares(9, with_spares, all), 1);
        assert_eq!(spares(11, held, all), 0);
    }

    #[test]
    fn nodes_out_of_reach_neither_use_a_pool_nor_give_spares_back() {
        let leases = [lease(1, "n1", true), lease(2, "gone", true), lease(3, "gone", false)];
        assert_eq!(spares(4, leases, |n| n != "gone"), 1);
        assert_eq!(spares(4, leases, all), 0);
        assert_eq!(spares(1000, [], all), 0, "nobody uses it");
        assert_eq!(spares(u128::MAX - 1, [lease(1, "n1", true)], all), 8);
    }

    #[test]
    fn only_spares_are_asked_back() {
        let wanted = |l: Lease<'static>| Lease { wanted: true, ..l };
        let leases =
            [lease(1, "n1", false), wanted(lease(2, "n1", true)), wanted(lease(4, "n1", false)), wanted(lease(3, "", false))];
        assert_eq!(recall(leases), [IpAddr::from([10, 0, 0, 4])]);
        let many =
            (0..=255u8).flat_map(|i| [4, 5].map(|n| Lease { ip: IpAddr::from([10, 0, n, i]), ..wanted(lease(1, "n1", false)) }));
        assert_eq!(recall(many).len(), MAX_RECALL);
    }

    #[test]
    fn each_lease_counts_once() {
        let reachable = |n: &str| n == "n1";
        let state = |l: Lease<'static>| l.state(reachable);
        assert_eq!(state(lease(1, "n1", true)), LeaseState::Held);
        assert_eq!(state(lease(1, "n1", false)), LeaseState::Spare);
        assert_eq!(state(lease(1, "n2", true)), LeaseState::Unreachable);
        assert_eq!(state(lease(1, "n2", false)), LeaseState::Unreachable);
        assert_eq!(state(lease(1, "", false)), LeaseState::Kept);
        assert_eq!(state(Lease { quarantined: Some(0), ..lease(1, "", false) }), LeaseState::Quarantined);
    }

    #[test]
    fn a_fenced_node_loses_what_its_agents_had_at_that_moment() {
        let fixed = Lease { fixed: true, ..lease(2, "n1", true) };
        let mut leases = vec![lease(1, "n1", true), fixed, lease(3, "n1", false)];
        let (t0, later) = (1000, 1000 + FENCE_SECS);
        let Fencing::Record(record) = fence(true, None, leases.clone(), Some("b"), t0) else { panic!() };
        assert_eq!(record, Fence { agents: BTreeSet::from(["a".to_owned(), "b".to_owned()]), since: t0, done: false });
        // A node that was set up anew under the old name, before the old one's leases are gone.
        leases.push(Lease { agent_id: "new", ..lease(4, "n1", true) });
        let ip = |n| IpAddr::from([10, 0, 0, n]);
        assert_eq!(
            fence(true, Some(&record), leases.clone(), Some("new"), t0),
            Fencing::Release(vec![(ip(1), Loss::Delete), (ip(2), Loss::Empty), (ip(3), Loss::Delete)])
        );
        leases.retain(|l| l.agent_id == "new");
        // A create of the dead machine may still be under way, and comes in.
        assert_eq!(fence(true, Some(&record), leases.clone(), None, later - 1), Fencing::Settled);
        let late = leases.iter().copied().chain([lease(6, "n1", true)]);
        assert_eq!(fence(true, Some(&record), late, None, later), Fencing::Release(vec![(ip(6), Loss::Delete)]));
        let done = Fence { done: true, ..record.clone() };
        assert_eq!(fence(true, Some(&record), leases.clone(), None, later), Fencing::Record(done.clone()));
        let wrong = Fence { since: 10 * later, ..record.clone() };
        assert_eq!(
            fence(true, Some(&wrong), leases.clone(), None, later),
            Fencing::Record(Fence { done: true, ..wrong.clone() }),
            "a clock that was wrong"
        );
        // The machine runs again with its old disk, and the taint is still there.
        leases.push(lease(5, "n1", true));
        assert_eq!(fence(true, Some(&done), leases.clone(), None, later), Fencing::Settled);
        assert_eq!(fence(false, Some(&done), leases.clone(), None, later), Fencing::Forget);
        assert_eq!(fence(false, None, leases, None, later), Fencing::Settled);
    }

    #[test]
    fn an_identity_keeps_no_second_address_beside_the_one_that_is_used() {
        let fixed = |last, node, held| Lease { fixed: true, ..lease(last, node, held) };
        let (ip, none) = (|n| IpAddr::from([10, 0, 0, n]), Vec::<IpAddr>::new());
        let superfluous = |leases: &[Lease<'static>]| superfluous(leases.iter().copied(), 10_000);
        let since = |at, l| Lease { released: Some(at), ..l };
        assert_eq!(superfluous(&[fixed(1, "", false), fixed(2, "n1", true), since(9_400, fixed(3, "", false))]), [ip(1), ip(3)]);
        assert_eq!(
            superfluous(&[since(9_401, fixed(1, "", false)), fixed(2, "n1", true)]),
            none,
            "the other may be the late one"
        );
        assert_eq!(superfluous(&[fixed(1, "", false), fixed(2, "", false)]), none, "which one comes back nobody knows");
        assert_eq!(superfluous(&[fixed(1, "n2", false), fixed(2, "n1", true)]), none, "its agent is about to give it back");
        let quarantined = Lease { quarantined: Some(1), ..fixed(1, "", false) };
        assert_eq!(superfluous(&[quarantined, fixed(2, "n1", true)]), none, "ends by itself");
    }

    #[test]
    fn a_quarantine_ends_and_a_fixed_address_stays_its_identitys() {
        let l = Lease { quarantined: Some(1000), ..lease(1, "", false) };
        assert_eq!(quarantine_over(&l, 1000 + QUARANTINE_SECS - 1), None);
        assert_eq!(quarantine_over(&l, 1000 + QUARANTINE_SECS), Some(Loss::Delete));
        assert_eq!(quarantine_over(&Lease { fixed: true, ..l }, 1000 + QUARANTINE_SECS), Some(Loss::Empty));
        assert_eq!(
            quarantine_over(&Lease { quarantined: Some(1_000_000), ..l }, 1000),
            Some(Loss::Delete),
            "a clock that was wrong"
        );
        assert_eq!(quarantine_over(&lease(1, "", false), i64::MAX), None);
    }
}
