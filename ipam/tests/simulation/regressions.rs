//! Schedules that failed once, as short as they got.

use std::time::Duration;

use crate::run;
use crate::schedule::{Action, Asks, Mode, Schedule, What};

fn passes(seed: u64, nodes: usize, addresses: usize, actions: &[(u64, What)]) {
    let actions = actions.iter().map(|(ms, what)| Action { at: Duration::from_millis(*ms), what: *what }).collect();
    let s = Schedule { seed, nodes, addresses, actions };
    assert!(run(&s).is_ok(), "{}", crate::explain(&s));
}

#[test]
fn an_identity_whose_address_etcd_forgot_is_not_sent_to_who_has_it_now_for_ever() {
    let create = |pod, node, asks| What::Create { pod, node, asks };
    passes(
        5263,
        3,
        4,
        &[
            (4800, create(0, 1, Asks::Any)),
            (5891, create(1, 2, Asks::Ordinal(0))),
            (8224, What::Restore { by_ms: 87_795, bump: false }),
            (11_087, create(2, 2, Asks::Ordinal(1))),
            (88_479, create(5, 1, Asks::Ordinal(1))),
        ],
    );
}

#[test]
fn an_add_that_may_not_get_the_address_is_not_its_holder() {
    let create = |pod, asks| What::Create { pod, node: 1, asks };
    passes(
        1535,
        2,
        30,
        &[
            (2637, What::Requests { node: 1, mode: Mode::Slow, percent: 100, ms: 6440 }),
            (2653, create(0, Asks::Ordinal(0))),
            (6084, What::Delete { pod: 0 }),
            (6100, create(2, Asks::Address(6))),
            (8821, create(3, Asks::Ordinal(0))),
        ],
    );
}

#[test]
fn an_add_that_fails_while_its_identitys_address_is_given_back_does_not_take_it_from_the_identity() {
    let create = |pod, node, asks| What::Create { pod, node, asks };
    passes(
        13_061,
        2,
        3,
        &[
            (14, create(0, 1, Asks::Ordinal(0))),
            (158, What::Requests { node: 1, mode: Mode::Partition, percent: 100, ms: 12_677 }),
            (1272, What::Reboot { node: 0, ms: 15_100 }),
            (1297, What::LoseDisk { node: 0 }),
            (2155, What::Delete { pod: 0 }),
            (2166, create(1, 1, Asks::Any)),
            (4396, create(2, 0, Asks::Address(2))),
            (10_889, create(3, 1, Asks::Ordinal(0))),
        ],
    );
}
