//! Runs a plan: neighbouring steps of one system together, in order, and backwards when one fails. Knows no kernel and no
//! OVSDB: these are `Hands`.

use std::future::Future;
use std::ops::Range;

use planner::{Ns, Plan, Step};

use crate::error::{ApplyError, StepError, Undo};

/// What became of a step that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Changed,
    /// It was so before, hence is not ours to take back.
    AlreadySo,
}

/// A run of which a step failed. The hands may have gone on behind that step, or have done part of it.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Position in the run.
    pub at: usize,
    pub cause: StepError,
    /// For each step whether it has, or may have, changed something.
    pub changed: Vec<bool>,
}

pub(crate) trait Hands: Sync {
    /// Carries out steps that are all of OVSDB, or all of the kernel.
    fn carry_out(&self, run: &[Step]) -> impl Future<Output = Result<Vec<Done>, Failed>> + Send;
}

/// Carries `plan` out. With `fail_at`, that step fails before it is begun.
pub(crate) async fn run(hands: &impl Hands, plan: &Plan, fail_at: Option<usize>) -> Result<(), ApplyError> {
    let mut changed = Vec::new();
    for range in runs(&plan.steps) {
        crate::stop::step(&plan.steps[range.start]);
        let injected = fail_at.filter(|k| range.contains(k));
        let whole = range.start..injected.unwrap_or(range.end);
        let failed = match hands.carry_out(&plan.steps[whole.clone()]).await {
            Ok(done) => {
                changed.extend(whole.clone().zip(done).filter(|(_, d)| *d == Done::Changed).map(|(i, _)| i));
                injected.map(|k| (k, StepError::Injected))
            }
            Err(failed) => {
                changed.extend(whole.clone().zip(failed.changed).filter(|(_, c)| *c).map(|(i, _)| i));
                Some((whole.start + failed.at, failed.cause))
            }
        };
        if let Some((index, cause)) = failed {
            let step = Box::new(plan.steps[index].clone());
            tracing::debug!(%step, error = %cause, undo = changed.len(), "step failed");
            return Err(ApplyError { index, step, cause: Box::new(cause), undo: undo(hands, &plan.steps, &changed).await });
        }
    }
    crate::stop::step(&"the whole plan is carried out");
    Ok(())
}

/// Takes back the steps at `changed`, last one first, one at a time, and goes on when one fails.
async fn undo(hands: &impl Hands, steps: &[Step], changed: &[usize]) -> Undo {
    let mut failures = Vec::new();
    for step in changed.iter().rev().filter_map(|i| steps[*i].inverse()) {
        crate::stop::step(&step);
        if let Err(failed) = hands.carry_out(std::slice::from_ref(&step)).await {
            tracing::warn!(%step, error = %failed.cause, "failed to take a step back");
            failures.push((step, failed.cause));
        }
    }
    if failures.is_empty() { Undo::Complete } else { Undo::Incomplete(failures) }
}

/// Where a step is carried out; steps with the same place may share an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Netlink(Ns),
    Ovsdb,
    /// By itself: a file, or a socket of another kind.
    Alone,
}

pub(crate) fn place(step: &Step) -> Place {
    use Step::*;
    match step {
        // Both are born in the pod's namespace.
        AddMacvlan(_) | AddVeth(_) => Place::Netlink(Ns::Pod),
        DelLink { ns, .. }
        | SetLink { ns, .. }
        | AddAddr { ns, .. }
        | DelAddr { ns, .. }
        | AddRoute { ns, .. }
        | DelRoute { ns, .. }
        | AddRule { ns, .. }
        | DelRule { ns, .. }
        | AddNeighbour { ns, .. }
        | DelNeighbour { ns, .. } => Place::Netlink(*ns),
        SetSysctl { .. } | SetTxChecksum { .. } | Probe { .. } | Announce { .. } => Place::Alone,
        AddBridge(_) | DelBridge(_) | SetBridge { .. } | AddPort { .. } | DelPort { .. } | SetPort { .. } => Place::Ovsdb,
    }
}

/// Neighbours that one system carries out: OVSDB in one transaction, the kernel in `batches`.
fn runs(steps: &[Step]) -> Vec<Range<usize>> {
    cut(steps, |last, next| last.is_ovsdb() != next.is_ovsdb())
}

/// The parts of a run of the kernel's that share a netlink exchange.
fn batches(steps: &[Step]) -> Vec<Range<usize>> {
    use Step::*;
    let deletes = |s: &Step| matches!(s, DelLink { .. });
    cut(steps, |last, next| {
        place(last) != place(next)
            || place(next) == Place::Alone
            // Requests name links by index, so a link must be there before those that name it are put together.
            || matches!(last, AddMacvlan(_) | AddVeth(_))
            || deletes(last) != deletes(next)
            || matches!(next, AddMacvlan(_) | AddVeth(_))
    })
}

fn cut(steps: &[Step], between: impl Fn(&Step, &Step) -> bool) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        match out.last_mut() {
            Some(run) if !between(&steps[run.end - 1], step) => run.end = i + 1,
            _ => out.push(i..i + 1),
        }
    }
    out
}

/// Carries out a run of the kernel's batch by batch, up to the first that fails.
pub(crate) fn in_batches(run: &[Step], mut act: impl FnMut(&[Step]) -> Result<Vec<Done>, Failed>) -> Result<Vec<Done>, Failed> {
    let mut done = Vec::with_capacity(run.len());
    for batch in batches(run) {
        match act(&run[batch.clone()]) {
            Ok(these) => done.extend(these),
            Err(failed) => {
                let mut changed: Vec<bool> = done.iter().map(|d| *d == Done::Changed).collect();
                changed.extend(failed.changed);
                changed.resize(run.len(), false);
                return Err(Failed { at: batch.start + failed.at, cause: failed.cause, changed });
            }
        }
    }
    Ok(done)
}

/// What becomes of a future whose hands wait for nothing.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => unreachable!("only for hands that never wait"),
    }
}

#[cfg(test)]
mod tests {
    use model::IfName;
    use planner::step::{LinkSet, Port, PortSet, Veth};

    use super::*;

    fn name(s: &str) -> IfName {
        IfName::new(s).unwrap()
    }

    fn set(ns: Ns, n: &str) -> Step {
        Step::SetLink { ns, name: name(n), set: LinkSet::up(true), was: LinkSet::up(false) }
    }

    fn port(n: &str) -> Step {
        let port = Port { name: n.to_owned(), interfaces: vec![], set: PortSet::default() };
        Step::AddPort { bridge: name("br1"), port }
    }

    #[test]
    fn steps_of_one_namespace_share_a_batch_and_a_new_link_ends_it() {
        let veth = Step::AddVeth(Veth {
            host_name: name("veth0"),
            pod_name: name("net1"),
            host_mac: None,
            pod_mac: None,
            mtu: None,
            alias: "a".to_owned(),
        });
        let sysctl = Step::SetSysctl { ns: Ns::Pod, key: "net.ipv4.ip_forward".into(), value: "1".into(), was: None };
        let del = |n| Step::DelLink { ns: Ns::Host, name: name(n) };
        let steps = [
            veth,
            set(Ns::Pod, "net1"),
            set(Ns::Pod, "net1"),
            set(Ns::Host, "veth0"),
            port("veth0"),
            port("veth1"),
            sysctl.clone(),
            sysctl,
            set(Ns::Pod, "net1"),
            del("a"),
            del("b"),
            set(Ns::Host, "c"),
        ];
        assert_eq!(batches(&steps), [0..1, 1..3, 3..4, 4..6, 6..7, 7..8, 8..9, 9..11, 11..12].map(|r| r));
        assert_eq!(runs(&steps), [0..4, 4..6, 6..12].map(|r| r));
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn a_batch_that_fails_is_the_last_and_all_before_it_stands() {
        let sysctl = |key: &str| Step::SetSysctl { ns: Ns::Pod, key: key.into(), value: "1".into(), was: None };
        let steps = [sysctl("a"), set(Ns::Pod, "x"), set(Ns::Pod, "y"), sysctl("b")];
        let mut seen = Vec::new();
        let failed = in_batches(&steps, |batch| {
            seen.push(batch.len());
            match batch {
                [Step::SetSysctl { .. }] => Ok(vec![Done::Changed]),
                _ => Err(Failed { at: 1, cause: StepError::Injected, changed: vec![true, false] }),
            }
        })
        .unwrap_err();
        assert_eq!((seen, failed.at, failed.changed), (vec![1, 2], 2, vec![true, true, false, false]));
    }
}
