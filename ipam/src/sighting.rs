//! Addresses whose node's object was deleted. Nobody gives them back, and nobody but a person may take them: the machine may run
//! on, cut off. So they stay locked, and the segment is asked whether somebody uses them. Who asks is decided here: a node that
//! has a pod in the same pool, and thus on the same segment. What is heard is shown, and decides nothing.
//!
//! Does not know how a segment is asked.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::fleet::Lease;

/// A silent address is asked for again after so long, in seconds: whoever repairs a cut-off node sees it within minutes.
pub const SILENT_AGAIN_SECS: i64 = 600;
/// One that is used: whoever shuts the machine down waits for this before the addresses are called dead.
pub const USED_AGAIN_SECS: i64 = 30;
/// A node that was asked and says nothing (it has no carrier, its agent is away) is given so long, in seconds; then another one.
const TURN_SECS: i64 = 60;
/// Addresses that one map asks about, as the schema has it; the next ones follow when these are answered.
pub const MAX: usize = 256;

/// What was heard of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Unix seconds.
    pub at: i64,
    pub used: bool,
}

impl Heard {
    fn holds(self, now: i64) -> bool {
        // A clock that went back must not make it hold for ever.
        (self.at..self.at + if self.used { USED_AGAIN_SECS } else { SILENT_AGAIN_SECS }).contains(&now)
    }
}

/// Which addresses of one pool are to be asked for, and by which node; ascending. `now`: Unix seconds. `exists`: whether there
/// is a Node object of this name; `reachable`: whether it answers, too.
pub fn wanted<'a>(
    leases: impl IntoIterator<Item = (Lease<'a>, Option<Heard>)>,
    exists: impl Fn(&str) -> bool,
    reachable: impl Fn(&str) -> bool,
    now: i64,
) -> Vec<(IpAddr, &'a str)> {
    let (mut askers, mut due) = (BTreeSet::new(), BTreeSet::new());
    for (l, heard) in leases {
        if l.node.is_empty() {
            continue;
        }
        if !exists(l.node) {
            if !heard.is_some_and(|h| h.holds(now)) {
                due.insert(l.ip);
            }
        } else if l.held && reachable(l.node) {
            askers.insert(l.node);
        }
    }
    let askers: Vec<&str> = askers.into_iter().collect();
    if askers.is_empty() {
        return Vec::new();
    }
    let turn = usize::try_from(now.div_euclid(TURN_SECS).rem_euclid(1 << 20)).unwrap_or_default();
    // Sixteen are one question of 0.6 s; more are shared out.
    due.into_iter().take(MAX).enumerate().map(|(i, ip)| (ip, askers[(turn + i / 16) % askers.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: usize) -> IpAddr {
        IpAddr::from([10, 6, (n / 256) as u8, (n % 256) as u8])
    }

    fn lease(n: usize, node: &str, held: bool) -> Lease<'_> {
        Lease { ip: ip(n), node, agent_id: "a", held, fixed: false, wanted: false, quarantined: None, released: None }
    }

    fn decided<'a>(leases: &[(Lease<'a>, Option<Heard>)], now: i64) -> Vec<(IpAddr, &'a str)> {
        wanted(leases.iter().copied(), |n| n != "gone", |n| n != "gone" && n != "cut-off", now)
    }

    #[test]
    fn only_deleted_nodes_addresses_are_asked_for_by_a_node_that_has_a_pod_there() {
        let leases = [
            (lease(1, "gone", true), None),
            (lease(2, "cut-off", true), None),
            (lease(3, "n1", true), None),
            (lease(4, "gone", false), None),
        ];
        assert_eq!(decided(&leases, 0), vec![(ip(1), "n1"), (ip(4), "n1")]);
        // A spare is no place to ask from, and a node out of reach does not ask.
        assert_eq!(
            decided(&[(lease(1, "gone", true), None), (lease(2, "cut-off", true), None), (lease(3, "n1", false), None)], 0),
            vec![]
        );
    }

    #[test]
    fn what_was_heard_is_asked_for_again_in_time_and_by_another_node_if_need_be() {
        let at = |heard| [(lease(1, "gone", true), heard), (lease(2, "n1", true), None), (lease(3, "n2", true), None)];
        for (used, again) in [(false, SILENT_AGAIN_SECS), (true, USED_AGAIN_SECS)] {
            let heard = Some(Heard { at: 1000, used });
            assert_eq!(decided(&at(heard), 1000 + again - 1), vec![]);
            assert_eq!(decided(&at(heard), 1000 + again).len(), 1);
            assert_eq!(decided(&at(heard), 900).len(), 1, "the clock went back");
        }
        let by: Vec<&str> = (0..4).map(|turn| decided(&at(None), turn * TURN_SECS)[0].1).collect();
        assert_eq!(by, ["n1", "n2", "n1", "n2"]);
    }

    #[test]
    fn many_are_bounded_and_shared_out() {
        let mut leases: Vec<_> = (0..1000).map(|n| (lease(n, "gone", true), None)).collect();
        leases.extend([(lease(2000, "n1", true), None), (lease(2001, "n2", true), None)]);
        let all = decided(&leases, 0);
        assert_eq!(all.len(), MAX);
        assert_eq!(all.iter().filter(|(_, by)| *by == "n1").count(), MAX / 2);
    }
}
