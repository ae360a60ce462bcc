//! Schedules that failed once, as short as they got.

use std::time::Duration;

use crate::run;
use crate::schedule::{Action, Asks, Mode, Schedule, What};

fn passes(seed: u64, nodes: usize, addresses: usize, actions: &[(u64, What)]) {
    passes_with(seed, nodes, addresses, 0, actions);
}

fn passes_with(seed: u64, nodes: usize, addresses: usize, second: usize, actions: &[(u64, What)]) {
    passes_on(Schedule { seed, nodes, addresses, second, v6: 0, actions: Vec::new() }, actions);
}

/// Two nodes, both families.
fn passes_dual(seed: u64, addresses: usize, v6: usize, actions: &[(u64, What)]) {
    passes_on(Schedule { seed, nodes: 2, addresses, second: 0, v6, actions: Vec::new() }, actions);
}

fn passes_on(s: Schedule, actions: &[(u64, What)]) {
    let actions = actions.iter().map(|(ms, what)| Action { at: Duration::from_millis(*ms), what: *what }).collect();
    let s = Schedule { actions, ..s };
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
fn a_spare_that_a_running_sandbox_asks_back_is_not_made_again_before_it_gets_it() {
    let create = |pod, node, asks| What::Create { pod, node, asks };
    let actions = [
        (29, create(1, 0, Asks::Any)),
        (98, What::Restore { by_ms: 36_553, bump: false }),
        (147, What::WatchesLost { node: 1, ms: 3257 }),
        (2774, create(3, 1, Asks::Any)),
        (83_048, create(4, 0, Asks::Address(3))),
        (151_590, create(6, 1, Asks::Any)),
    ];
    passes_dual(265_087, 29, 13, &actions);
}

#[test]
fn a_late_create_for_an_identity_does_not_cost_it_the_address_that_it_has() {
    let create = |pod, node, asks| What::Create { pod, node, asks };
    let actions = [
        (26, What::Requests { node: 1, mode: Mode::Late, percent: 50, ms: 10_616 }),
        (194, create(0, 1, Asks::Ordinal(1))),
        (2796, create(1, 1, Asks::Address(13))),
        (3536, create(3, 0, Asks::Address(17))),
        (6370, create(4, 0, Asks::Any)),
        (6381, create(5, 0, Asks::Ordinal(1))),
        (7192, create(6, 1, Asks::Any)),
        (9877, What::Recreate { node: 0, ms: 16_360 }),
        (12_464, create(7, 1, Asks::Address(4))),
    ];
    passes_dual(303_025, 34, 14, &actions);
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

#[test]
fn nodes_do_not_make_and_give_back_spares_for_ever() {
    let create = |pod, node, asks| What::Create { pod, node, asks };
    passes(
        49,
        2,
        6,
        &[(217, create(1, 0, Asks::Any)), (11_475, create(2, 1, Asks::Address(1))), (71_768, What::Delete { pod: 1 })],
    );
    passes(
        437,
        3,
        13,
        &[
            (10, create(0, 1, Asks::Any)),
            (54, What::Delete { pod: 0 }),
            (1724, create(1, 1, Asks::Any)),
            (1761, What::Restore { by_ms: 9820, bump: false }),
            (23_536, create(3, 1, Asks::Any)),
            (80_620, create(4, 2, Asks::Ordinal(0))),
            (146_516, create(5, 0, Asks::Address(0))),
            (146_527, What::Delete { pod: 3 }),
        ],
    );
}

#[test]
fn an_update_that_comes_in_after_its_add_was_given_up_is_found_and_undone() {
    let create = |pod, node, asks| What::Create { pod, node, asks };
    passes(
        15_266,
        2,
        10,
        &[
            (54, What::Requests { node: 1, mode: Mode::Slow, percent: 20, ms: 10_063 }),
            (1590, create(0, 0, Asks::Any)),
            (1630, What::Requests { node: 0, mode: Mode::Late, percent: 50, ms: 9714 }),
            (1944, create(1, 0, Asks::Address(3))),
            (6511, create(2, 1, Asks::Ordinal(1))),
            (8202, create(3, 1, Asks::Any)),
            (8205, create(4, 0, Asks::Ordinal(1))),
            (11_157, What::Delete { pod: 4 }),
        ],
    );
}

#[test]
fn a_spare_whose_former_taking_is_still_on_its_way_is_looked_at_again() {
    let create = |pod, node, asks| What::Create { pod, node, asks };
    passes(
        115_876,
        3,
        31,
        &[
            (62_217, create(0, 0, Asks::Any)),
            (69_742, create(2, 1, Asks::Any)),
            (69_780, create(3, 1, Asks::Any)),
            (69_803, What::Requests { node: 0, mode: Mode::Late, percent: 100, ms: 17_553 }),
            (69_843, create(4, 0, Asks::Ordinal(1))),
            (71_614, What::WatchesLost { node: 0, ms: 49_591 }),
            (84_462, What::HangUp { pod: 4 }),
        ],
    );
}

#[test]
fn a_version_that_an_old_etcd_gives_out_again_is_not_the_same_lease() {
    let create = |pod, node, asks| What::Create { pod, node, asks };
    passes(
        175_472,
        3,
        5,
        &[
            (2082, create(0, 0, Asks::Ordinal(0))),
            (3548, create(1, 0, Asks::Any)),
            (10_436, create(2, 2, Asks::Address(0))),
            (17_019, create(3, 2, Asks::Any)),
            (17_049, What::Restore { by_ms: 13_532, bump: false }),
        ],
    );
}

#[test]
fn a_refused_ask_leaves_the_leases_of_an_older_agent_to_their_identity() {
    let create = |pod, asks| What::Create { pod, node: 1, asks };
    passes(
        201_798,
        3,
        2,
        &[
            (89, create(0, Asks::Ordinal(1))),
            (68_705, create(1, Asks::Address(0))),
            (68_736, create(2, Asks::Any)),
            (69_267, What::Die { node: 0, fenced_after_ms: 96_458 }),
            (69_293, What::Recreate { node: 1, ms: 1060 }),
        ],
    );
}

#[test]
fn a_create_that_comes_in_after_its_agent_died_leaves_its_identity_no_second_address() {
    let create = |pod, node, asks| What::Create { pod, node, asks };
    passes_with(
        5531,
        2,
        6,
        1,
        &[
            (677, What::Crash { node: 1, steps: 6 }),
            (67_410, What::Requests { node: 1, mode: Mode::Late, percent: 50, ms: 14_911 }),
            (67_459, create(0, 0, Asks::Any)),
            (67_498, create(1, 1, Asks::Ordinal(0))),
            (122_800, What::Crash { node: 0, steps: 1 }),
        ],
    );
}

#[test]
fn an_address_that_came_back_is_taken_before_one_of_the_next_pool_also_where_no_other_map_comes() {
    let create = |pod, node, asks| What::Create { pod, node, asks };
    passes_with(
        1545,
        3,
        2,
        5,
        &[
            (14_284, create(2, 1, Asks::Ordinal(0))),
            (14_318, create(3, 0, Asks::Any)),
            (80_597, What::Recreate { node: 0, ms: 1863 }),
            (80_645, What::Requests { node: 0, mode: Mode::NoAnswer, percent: 100, ms: 12_071 }),
        ],
    );
}

#[test]
fn a_delete_sent_before_a_crash_does_not_take_the_address_of_a_pod_that_came_after_it() {
    let create = |pod, node| What::Create { pod, node, asks: Asks::Any };
    let actions = [
        (243, create(0, 1)),
        (13_033, What::Requests { node: 1, mode: Mode::Late, percent: 100, ms: 16_583 }),
        (13_077, What::Crash { node: 1, steps: 11 }),
        (13_106, What::Delete { pod: 0 }),
        (13_142, create(1, 0)),
        (73_837, What::Requests { node: 1, mode: Mode::NoAnswer, percent: 20, ms: 2579 }),
        (73_874, create(2, 1)),
    ];
    passes_dual(654_414, 17, 7, &actions);
}

#[test]
fn a_record_that_outlived_the_one_after_it_takes_nothing_from_who_has_the_address_now() {
    let create = |pod, asks| What::Create { pod, node: 1, asks };
    let actions = [
        (1188, create(0, Asks::Any)),
        (1199, What::Requests { node: 1, mode: Mode::TooMany, percent: 100, ms: 18_904 }),
        (1215, create(1, Asks::Ordinal(1))),
        (2236, What::Delete { pod: 0 }),
        (67_467, create(2, Asks::Ordinal(1))),
        (67_505, What::LoseJournal { node: 1, percent: 50 }),
    ];
    passes(282_386, 2, 6, &actions);
}
