//! Which nodes change next, and the route choice.
#![allow(clippy::unwrap_used)]

use planner::rollout::{MaxUnavailable, Next, NodeProgress, Progress, next};
use proptest::prelude::*;

fn node(name: &str, control_plane: bool, progress: Progress) -> NodeProgress {
    NodeProgress { name: name.into(), control_plane, progress }
}

fn names(n: Next) -> String {
    n.start.join(" ")
}

#[test]
fn a_tenth_of_the_nodes_but_at_least_one_changes_at_once() {
    let nodes: Vec<_> = (0..25).map(|i| node(&format!("n{i:02}"), false, Progress::Pending)).collect();
    assert_eq!(names(next(&nodes, MaxUnavailable::default())), "n00 n01 n02");
    assert_eq!(names(next(&nodes[..3], MaxUnavailable::default())), "n00");
    assert_eq!(names(next(&nodes, MaxUnavailable::Count(2))), "n00 n01");
    assert_eq!(names(next(&nodes, MaxUnavailable::Count(0))), "n00");
    assert_eq!(next(&[], MaxUnavailable::default()), Next::default());
}

#[test]
fn control_plane_nodes_come_last_and_the_first_failure_stops_all() {
    let mut nodes = vec![
        node("a", true, Progress::Pending),
        node("b", false, Progress::Changing),
        node("c", false, Progress::Pending),
        node("d", false, Progress::Paused),
    ];
    assert_eq!(names(next(&nodes, MaxUnavailable::Count(3))), "c");
    nodes[2].progress = Progress::Done;
    assert_eq!(names(next(&nodes, MaxUnavailable::Count(3))), "", "b is still changing");
    nodes[1].progress = Progress::Done;
    assert_eq!(names(next(&nodes, MaxUnavailable::Count(3))), "a");
    nodes[1].progress = Progress::Failed;
    assert_eq!(next(&nodes, MaxUnavailable::Count(3)), Next { start: vec![], held_by: vec!["b".into()] });
}

proptest! {
    #[test]
    fn never_more_than_allowed_and_always_an_end(kinds in prop::collection::vec((any::<bool>(), 0u8..3), 1..40), percent in 0u32..120) {
        let mut nodes: Vec<_> = kinds.iter().enumerate().map(|(i, (cp, k))| node(&format!("n{i}"), *cp, [Progress::Done, Progress::Pending, Progress::Paused][usize::from(*k)])).collect();
        let max = MaxUnavailable::Percent(percent);
        for _ in 0..=nodes.len() {
            let n = next(&nodes, max);
            let paused = nodes.iter().filter(|n| n.progress == Progress::Paused).count();
            prop_assert!(n.start.len() <= max.of(nodes.len() - paused));
            for x in nodes.iter_mut().filter(|x| n.start.contains(&x.name)) {
                prop_assert_eq!(x.progress, Progress::Pending);
                x.progress = Progress::Done;
            }
        }
        prop_assert!(nodes.iter().all(|n| n.progress != Progress::Pending));
    }
}
