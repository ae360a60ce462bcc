//! Spares of a pool, and the comparison of what is in hand with what the API server has: at start, each hour, and whenever
//! something is found missing that nobody but us may have taken. Knows no ADD.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::slot::{Seen, Slot, Stage, Want};
use super::{BACKOFF, BACKOFF_MAX, FILL_AFTER, FILL_WITHIN, Held, Hold, Machine, REST, Reply, Request, Target, Time, Verb};
use crate::{Lease, Name, Picker};

/// How long what the journal knows waits for the list at start.
pub(super) const LIST_WAIT: Duration = Duration::from_secs(10);
/// A list by the node's label walks all leases in the API server (76 ms at 78,000): once an hour that is 2 % of one of its
/// CPUs with 1,000 nodes. It finds what came back with an old etcd and is nobody's any more.
const COMPARE_EVERY: Duration = Duration::from_secs(3600);
/// After what was sent before the last stop can come in no more: what it created is found then, and not an hour later. On
/// average; a fleet that is updated does not ask all at once.
const AFTER_DOUBT: Duration = Duration::from_secs(20);
/// The lease that was written last is the first to be wrong after etcd went back in time; one GET tells.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// Signs of a loss come in crowds.
const SUSPECT_EVERY: Duration = Duration::from_secs(60);
/// What is unclear waits for a list, and may be met again before the cache has it.
const UNCLEAR_EVERY: Duration = Duration::from_secs(2);
/// Of the first list, which ADDs wait for: soon after the API server is back.
const FIRST_BACKOFF_MAX: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(super) struct Compare {
    due: Time,
    check_at: Time,
    flight: bool,
    failures: u32,
    /// Of the last list that came.
    done: Option<Time>,
    suspected: Option<Time>,
}

impl Compare {
    pub fn new(now: Time) -> Self {
        Self { due: now, check_at: now + CHECK_EVERY, flight: false, failures: 0, done: None, suspected: None }
    }

    /// Before the first list came, what stands in no record may be what a sandbox has.
    pub fn is_first(&self) -> bool {
        self.done.is_none()
    }

    pub fn wake(&self) -> Option<Time> {
        Some(if self.flight { self.check_at } else { self.due.min(self.check_at) })
    }
}

impl Machine {
    pub(super) fn tick_compare(&mut self, now: Time) {
        if self.compare.due <= now && !self.compare.flight {
            self.compare.flight = true;
            self.send(Target::Compare, Verb::Read, None, false, Request::ListNode);
        }
        if self.compare.check_at <= now {
            self.compare.check_at = now + CHECK_EVERY;
            let settled = |s: &&Slot| {
                !s.flight
                    && s.retry_at.is_none()
                    && (s.is_idle_lease() || matches!(&s.want, Want::Hold(h) if h.stage == Stage::Firm))
            };
            let last = self.slots.iter().filter(|(_, s)| settled(s)).filter_map(|(n, s)| match &s.seen {
                Seen::There(l) => Some((s.order, n.clone(), l.version.clone())),
                _ => None,
            });
            if let Some((_, name, version)) = last.max_by_key(|(order, ..)| *order) {
                self.send(Target::Check(name.clone(), version), Verb::Read, None, false, Request::Get(name));
            }
        }
    }

    /// Only what differs from what was there when the question was asked says something.
    pub(super) fn reply_check(&mut self, now: Time, name: &Name, version: &Arc<str>, reply: Reply) {
        let order = self.id();
        let Some(slot) = self.slots.get_mut(name).filter(|s| !s.flight) else { return };
        let Seen::There(was) = &slot.seen else { return };
        if was.version != *version {
            return;
        }
        match reply {
            // Not the version alone: an etcd that went back gives its numbers out again.
            Reply::Done(l) if l == *was => return,
            Reply::Done(l) => slot.there(l, order),
            Reply::Absent => slot.seen = Seen::Absent,
            _ => return,
        }
        self.suspect(now);
        self.settle(now, name);
    }

    /// Something that only we may take away is gone: spares are looked at before they are given, and all is compared.
    pub(super) fn suspect(&mut self, now: Time) {
        if self.compare.suspected.is_some_and(|t| now < t + SUSPECT_EVERY) {
            // Not forgotten: what is found within this time may be of another loss.
            self.compare.due = self.compare.due.min(self.compare.suspected.map_or(now, |t| t + SUSPECT_EVERY));
            return;
        }
        self.compare.suspected = Some(now);
        self.compare.due = now;
        let idle: Vec<Name> = self.slots.iter().filter(|(_, s)| s.is_idle_lease() && !s.flight).map(|(n, _)| n.clone()).collect();
        for name in idle {
            if let Some(slot) = self.slots.get_mut(&name) {
                slot.distrust();
            }
            self.settle(now, &name);
        }
    }

    /// A lease of ours names somebody whom nobody here knows.
    pub(super) fn compare_soon(&mut self, now: Time) {
        let at = self.compare.done.map_or(now, |t| now.max(t + UNCLEAR_EVERY));
        self.compare.due = self.compare.due.min(at);
    }

    pub(super) fn reply_compare(&mut self, now: Time, reply: Reply) {
        self.compare.flight = false;
        let Reply::Leases(list) = reply else {
            // ADDs wait for the first one.
            let max = if self.compare.is_first() { FIRST_BACKOFF_MAX } else { BACKOFF_MAX };
            let wait = (BACKOFF * 2u32.saturating_pow(self.compare.failures)).min(max).mul_f64(self.jitter());
            self.compare.failures = (self.compare.failures + 1).min(10);
            self.compare.due = now + wait;
            if self.compare.is_first()
                && let Reply::Failed { permanent, error, .. } = reply
            {
                self.asks_failed(now, permanent, &error, wait);
            }
            return;
        };
        self.compare.failures = 0;
        let first = self.compare.done.replace(now).is_none();
        let jitter = self.jitter();
        self.compare.due = if now < self.past_doubt {
            self.past_doubt + AFTER_DOUBT.mul_f64(jitter)
        } else {
            now + COMPARE_EVERY.mul_f64(0.9 + 0.2 * (jitter - 0.5))
        };
        let mut list: BTreeMap<Name, Lease> = list.into_iter().filter(|l| self.me.owns(l)).map(|l| (l.name.clone(), l)).collect();
        // The list comes from a cache and may be old: it only raises questions, which a get answers.
        let mut questions = Vec::new();
        for (name, slot) in &mut self.slots {
            let listed = list.remove(name);
            if slot.flight {
                continue;
            }
            match (&slot.seen, listed) {
                // From the journal. Every write is guarded, so that an old answer does no harm here.
                (Seen::Unknown, Some(l)) if slot.retry_at.is_some() && slot.failures == 0 && slot.create_doubt.is_none() => {
                    slot.seen = Seen::There(l);
                    slot.retry_at = None;
                    questions.push(name.clone());
                }
                (Seen::Unknown, None) if matches!(&slot.want, Want::Hold(h) if h.stage == Stage::Firm) && slot.failures == 0 => {
                    slot.retry_at = None;
                    questions.push(name.clone());
                }
                (Seen::There(was), listed) if listed.as_ref() != Some(was) => {
                    slot.distrust();
                    questions.push(name.clone());
                }
                _ => {}
            }
        }
        for (name, l) in list {
            self.follow(&l.pool);
            let mut slot = Slot::new(Want::Found, l.pool, Seen::Unknown);
            // Looked for in the sandboxes.
            slot.holders.extend(l.holder);
            self.slots.insert(name.clone(), slot);
            questions.push(name);
        }
        for name in questions {
            self.settle(now, &name);
        }
        if first {
            self.asks_begin(now);
            for pool in self.pools.keys().cloned().collect::<Vec<_>>() {
                self.plan_fill(now, &pool);
            }
        }
    }

    /// Whether anything is known about the name. What is not, and in the list of this node's leases, is looked for in the
    /// sandboxes before the list is told: call `living`.
    pub fn knows(&self, name: &Name) -> bool {
        self.slots.get(name).is_some_and(|s| !matches!(s.want, Want::Unclear))
    }

    /// What sandboxes were found to use of what this does not know: the journal has lost it. To be told right before the list
    /// (`Reply::Leases`) that brought it up, and all of it each time. `held`: by whom is known, so that `release` gives it back.
    /// `used`: by whom is not known; nobody gets it as long as it is told here.
    pub fn living(&mut self, now: Time, held: Vec<Held>, used: Vec<(Name, Arc<str>)>) {
        self.slots.retain(|_, s| !matches!(s.want, Want::Unclear));
        let held = held.into_iter().map(|h| {
            let hold = Hold { holder: h.holder, identity: h.identity, stage: Stage::Firm, fresh: false };
            (h.name, h.pool, Want::Hold(hold))
        });
        let used = used.into_iter().map(|(name, pool)| (name, pool, Want::Unclear));
        for (name, pool, want) in held.chain(used).collect::<Vec<_>>() {
            if self.slots.contains_key(&name) {
                continue;
            }
            self.follow(&pool);
            let mut slot = Slot::new(want, pool, Seen::Unknown);
            // As what the journal knows: the list says what it is.
            slot.retry_at = Some(now).filter(|_| !matches!(slot.want, Want::Unclear));
            self.slots.insert(name, slot);
        }
    }

    pub(super) fn is_recalled(&self, pool: &str, ip: IpAddr) -> bool {
        self.pools.get(pool).and_then(|p| p.map.as_ref()).is_some_and(|m| m.recall.contains(&ip))
    }

    fn idle_count(&self, pool: &str) -> usize {
        self.slots.values().filter(|s| *s.pool == *pool && s.is_idle_lease()).count()
    }

    /// What becomes of an address without a holder: it rests and will be a spare where the node has room for one. Otherwise it
    /// goes at once: a rest would cost a write more, and lock addresses up just where nodes give many back.
    pub(super) fn idle_want(&self, now: Time, pool: &Arc<str>, name: &Name) -> Want {
        let Some(p) = self.pools.get(pool) else { return Want::Gone };
        let usable = p.ranges.as_ref().is_none_or(|(_, r)| r.contains(name.ip));
        let others = self.idle_count(pool) - usize::from(self.slots.get(name).is_some_and(Slot::is_idle_lease));
        if usable && !self.is_recalled(pool, name.ip) && others < p.spares_per_node() {
            Want::Rest { until: now + REST }
        } else {
            Want::Gone
        }
    }

    pub(super) fn end_rests(&mut self, now: Time) {
        let over = |s: &Slot| matches!(s.want, Want::Rest { until } if until <= now);
        let due: Vec<(Name, Arc<str>)> =
            self.slots.iter().filter(|(_, s)| over(s)).map(|(n, s)| (n.clone(), s.pool.clone())).collect();
        for (name, pool) in due {
            // It counts itself.
            let room = self.pools.get(&pool).is_some_and(|p| self.idle_count(&pool) <= p.spares_per_node());
            let stays = room && !self.is_recalled(&pool, name.ip);
            self.want(now, &name, if stays { Want::Spare { since: now } } else { Want::Gone });
            if stays {
                self.wake_asks_of(now, &pool);
            }
        }
        let fills: Vec<Arc<str>> =
            self.pools.iter().filter(|(_, p)| p.fill.is_some_and(|(at, _)| at <= now)).map(|(n, _)| n.clone()).collect();
        for pool in fills {
            self.fill(now, &pool);
        }
    }

    /// Gives back what is above the number of spares: those that rested longest first.
    pub(super) fn trim(&mut self, now: Time, pool: &str) {
        let Some(p) = self.pools.get(pool) else { return };
        let surplus = self.idle_count(pool).saturating_sub(p.spares_per_node());
        if surplus > 0 {
            let mut idle: Vec<((u8, Time), Name)> = self
                .slots
                .iter()
                .filter(|(_, s)| *s.pool == *pool)
                .filter_map(|(n, s)| match s.want {
                    Want::Spare { since } => Some(((0, since), n.clone())),
                    Want::Fill => Some(((1, now), n.clone())),
                    Want::Rest { until } => Some(((2, until), n.clone())),
                    _ => None,
                })
                .collect();
            idle.sort();
            for (_, name) in idle.into_iter().take(surplus) {
                self.want(now, &name, Want::Gone);
            }
        }
        self.plan_fill(now, pool);
    }

    /// As the controller counts it: a pod here has an address of the pool by the API server's word.
    fn uses(&self, pool: &str) -> bool {
        if self.compare.is_first() {
            return false;
        }
        let held = |s: &Slot| matches!(&s.want, Want::Hold(h) if h.stage == Stage::Firm);
        let ours = |s: &Slot| matches!(&s.seen, Seen::There(l) if self.me.owns(l));
        self.slots.values().any(|s| *s.pool == *pool && held(s) && ours(s))
    }

    /// Only where a pod has an address of the pool: the number of spares goes by the nodes that use it, and one that became a
    /// user by its first spare would lower the number that allowed it, for ever.
    pub(super) fn plan_fill(&mut self, now: Time, pool: &str) {
        if !self.uses(pool) {
            return;
        }
        let idle = self.idle_count(pool);
        if let Some(p) = self.pools.get_mut(pool)
            && p.fill.is_none()
            && idle < p.spares_per_node()
        {
            p.fill = Some((now + FILL_AFTER, now + FILL_WITHIN));
        }
    }

    /// Creates the spares that are missing.
    fn fill(&mut self, now: Time, pool: &Arc<str>) {
        let idle = self.idle_count(pool);
        let random = self.random();
        let used = self.uses(pool);
        let Some(p) = self.pools.get_mut(pool) else { return };
        p.fill = None;
        if !used {
            return;
        }
        p.unlearn(now);
        let missing = p.spares_per_node().saturating_sub(idle);
        let Some((domain, ranges)) = p.ranges.clone() else { return };
        let first = p.first(&self.me.node, &ranges);
        let Some(map) = &p.map else { return };
        let mut picker = Picker::new(Some(&map.window), &ranges, &p.learned).first(first);
        let mut names = Vec::new();
        while names.len() < missing
            && let Some(ip) = picker.next(&mut || random)
        {
            let name = Name { domain: domain.clone(), ip };
            // The window may name what we have ourselves by now.
            if !self.slots.contains_key(&name) {
                names.push(name);
            }
        }
        for name in names {
            self.slots.insert(name.clone(), Slot::new(Want::Fill, pool.clone(), Seen::Absent));
            self.settle(now, &name);
        }
    }

    /// The spare of a pool that was one for the longest time, and whether it is given without a word to the API server; those
    /// first.
    pub(super) fn best_spare(&self, pool: &str) -> Option<(Name, bool)> {
        let spares = self.slots.iter().filter_map(|(n, s)| match s.want {
            Want::Spare { since } if *s.pool == *pool && s.is_quiet() => Some((!s.giveable(&self.me), since, n)),
            _ => None,
        });
        spares.min().map(|(asks, _, name)| (name.clone(), !asks))
    }

    /// The address of a pool that rests and will have rested soonest.
    pub(super) fn best_resting(&self, pool: &str) -> Option<Name> {
        let resting = self.slots.iter().filter_map(|(n, s)| match s.want {
            Want::Rest { until } if *s.pool == *pool => Some((until, n)),
            _ => None,
        });
        resting.min().map(|(_, n)| n.clone())
    }

    pub(super) fn take_slot(&mut self, now: Time, name: &Name, hold: Hold) {
        if let Some(slot) = self.slots.get_mut(name)
            && std::mem::take(&mut slot.releasing)
        {
            self.out.push_back(super::Output::Released(name.clone()));
        }
        let pool = self.slots.get(name).map(|s| s.pool.clone());
        self.want(now, name, Want::Hold(hold));
        if let Some(pool) = pool {
            self.plan_fill(now, &pool);
        }
    }
}
