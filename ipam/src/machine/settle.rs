//! One name's next step: what its slot says is carried out, and what the API server answers is noted in it. Knows no pool's
//! number of spares and no order of an ADD's attempts.

use std::sync::Arc;

use super::ask;
use super::slot::{Act, Seen, Stage, Want};
use super::{
    BACKOFF, BACKOFF_MAX, BEHIND_MAX, CONTEST_EVERY, DOUBT, Machine, Output, REST, Reply, Request, Taken, Target, Time, Verb,
};
use crate::Name;

impl Machine {
    pub(super) fn reply_slot(&mut self, now: Time, name: &Name, verb: Verb, guard: Option<Arc<str>>, reply: Reply) {
        let order = self.id();
        let me = self.me.clone();
        let backoff = self.jitter();
        let Some(slot) = self.slots.get_mut(name) else { return };
        slot.flight = false;
        let known = slot.known.take();
        let mut lost = false;
        match (verb, reply) {
            (Verb::Delete, Reply::Deleted | Reply::Absent) | (Verb::Update, Reply::Absent) => slot.seen = Seen::Absent,
            (Verb::Read, Reply::Absent) => {
                lost = known.is_some();
                slot.seen = Seen::Absent;
            }
            (_, Reply::Done(l)) => {
                lost = known.is_some() && !me.owns(&l);
                // What is noted on the slot is about this lease; another identity's own address is not fresh.
                if let Want::Hold(h) = &mut slot.want
                    && h.identity.is_some()
                    && verb == Verb::Read
                    && l.identity == h.identity
                {
                    h.fresh = false;
                }
                slot.there(l, order);
            }
            (Verb::Create, Reply::Conflict) => {
                slot.conflicted = true;
                slot.seen = Seen::Unknown;
            }
            (_, Reply::Failed { doubtful, permanent, error }) => {
                slot.known = known;
                if doubtful && verb != Verb::Read {
                    slot.seen = Seen::Unknown;
                    match verb {
                        Verb::Create => slot.create_doubt = Some(now + DOUBT),
                        _ => slot.write_doubt = guard.map(|v| (v, now + DOUBT)),
                    }
                }
                slot.failures = slot.failures.saturating_add(1);
                let wait = (BACKOFF * 2u32.saturating_pow(slot.failures.min(10) - 1)).min(BACKOFF_MAX).mul_f64(backoff);
                slot.retry_at = Some(now + wait);
                if let Some(ask) = slot.ask() {
                    self.ask_failed(now, ask, permanent, error, wait);
                }
                return;
            }
            // A conflict of a write: it changed in between.
            (_, _) => slot.seen = Seen::Unknown,
        }
        slot.failures = 0;
        if lost {
            self.suspect(now);
        }
        self.settle(now, name);
    }

    /// Sets what is wanted, and does what follows.
    pub(super) fn want(&mut self, now: Time, name: &Name, want: Want) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        slot.want = want;
        slot.admit_holder();
        slot.conflicted = false;
        // While the API server does not answer, a change of mind is no reason to ask it more often.
        if slot.failures == 0 {
            slot.retry_at = None;
        }
        self.settle(now, name);
    }

    /// The next step for a name, where nothing is under way.
    pub(super) fn settle(&mut self, now: Time, name: &Name) {
        // Each turn but the last changes what is wanted, along Found -> Spare or Rest -> Gone.
        for _ in 0..4 {
            let Some(slot) = self.slots.get_mut(name) else { return };
            if slot.flight || slot.retry_at.is_some_and(|t| t > now) {
                return;
            }
            slot.retry_at = None;
            slot.create_doubt = slot.create_doubt.filter(|t| *t > now);
            if slot.write_doubt.as_ref().is_some_and(|(_, t)| *t <= now) {
                // It was carried out by now, or never will be.
                slot.write_doubt = None;
                slot.distrust();
            }
            let ask = slot.ask();
            let act = slot.act(name, &self.me);
            match act {
                Act::Get => return self.send_slot(now, name, Verb::Read, None, Request::Get(name.clone())),
                Act::Create(l) => return self.send_slot(now, name, Verb::Create, None, Request::Create(l)),
                Act::Update(l) => {
                    return self.send_slot(now, name, Verb::Update, Some(l.version.clone()), Request::Update(l));
                }
                Act::Delete(l) => {
                    // Whoever asks for it is to have it, and not this node's next spare.
                    if l.wanted.is_some()
                        && let Some(pool) = self.pools.get_mut(&slot.pool)
                    {
                        pool.learn(now, name.ip);
                    }
                    return self.send_slot(now, name, Verb::Delete, Some(l.version.clone()), Request::Delete(l));
                }
                Act::Done => return self.done(now, name),
                Act::Forget => return self.forget(now, name),
                Act::Next => {
                    if let Some(pool) = self.pools.get_mut(&slot.pool) {
                        pool.learn(now, name.ip);
                    }
                    self.forget(now, name);
                    return self.ask_goes_on(ask);
                }
                Act::Busy { holder, node } => {
                    // Watched; this is for events that never come.
                    slot.seen = Seen::Unknown;
                    slot.retry_at = Some(now + ask::POLL);
                    return self.ask_waits(now, ask, name, holder, node);
                }
                Act::Refuse(why) => {
                    // It may be a lease of an older agent of this node, with an identity to be kept.
                    slot.want = Want::Found;
                    self.ask_refused(ask, name, why);
                }
                Act::Classify(l) => {
                    // What this life has created, no earlier one can have written to.
                    let found = matches!(slot.want, Want::Found);
                    let (pool, released) =
                        (slot.pool.clone(), l.released || l.holder.is_some() || l.agent_id != self.me.agent_id);
                    let unknown = self.pools.get(&pool).is_none_or(|p| !p.known);
                    let want = match self.idle_want(now, &pool, name) {
                        _ if l.identity.is_some() => Want::Keep,
                        Want::Rest { .. } if !released => Want::Spare { since: now },
                        // What the map says is not known yet, so soon after the start.
                        Want::Gone if unknown => Want::Rest { until: now + REST },
                        want => want,
                    };
                    let past = (found && now < self.past_doubt).then_some((l.version, self.past_doubt));
                    if let Some(slot) = self.slots.get_mut(name) {
                        slot.want = want;
                        slot.write_doubt = slot.write_doubt.take().or(past);
                    }
                }
                Act::Unclear => {
                    // Who gave it back has nothing of it.
                    let releasing = std::mem::take(&mut slot.releasing);
                    slot.want = Want::Unclear;
                    if releasing {
                        self.out.push_back(Output::Released(name.clone()));
                    }
                    self.compare_soon(now);
                    return self.ask_meets_unclear(now, ask, name);
                }
                Act::Contested(lease) => {
                    // A spare was asked for, and comes back within seconds.
                    let spare = lease.holder.is_none() && lease.quarantine.is_none();
                    slot.retry_at = Some(now + if spare { ask::POLL } else { CONTEST_EVERY });
                    slot.seen = Seen::Unknown;
                    let told = slot.reported.replace(lease.version.clone());
                    if let Want::Hold(h) = &slot.want
                        && told.as_ref() != Some(&lease.version)
                    {
                        let (name, holder) = (name.clone(), h.holder.clone());
                        self.out.push_back(Output::Contested { name, holder, lease: Box::new(lease) });
                    }
                    return self.suspect(now);
                }
            }
        }
    }

    pub(super) fn done(&mut self, now: Time, name: &Name) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        slot.conflicted = false;
        slot.forget_holders();
        slot.retry_at = slot.write_doubt.as_ref().map(|(_, until)| *until);
        let pool = slot.pool.clone();
        if let Want::Hold(h) = &mut slot.want
            && let Stage::Any(id) | Stage::Fixed(id) = h.stage
        {
            h.stage = Stage::Firm;
            let taken = Taken { name: name.clone(), pool: pool.clone(), fresh: h.fresh };
            self.ask_done(id, taken);
            self.plan_fill(now, &pool);
        }
    }

    /// Nothing of ours is left under this name, unless a write comes in late.
    pub(super) fn forget(&mut self, now: Time, name: &Name) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let releasing = std::mem::take(&mut slot.releasing);
        let idle = slot.is_idle_lease().then(|| slot.pool.clone());
        match slot.doubt() {
            Some(until) if until > now => {
                slot.want = Want::Gone;
                slot.seen = Seen::Unknown;
                slot.retry_at = Some(until);
            }
            _ => {
                self.slots.remove(name);
            }
        }
        if releasing {
            self.out.push_back(Output::Released(name.clone()));
        }
        if let Some(pool) = idle {
            self.plan_fill(now, &pool);
        }
        self.wake_asks_for(name);
    }

    pub(super) fn send_slot(&mut self, now: Time, name: &Name, verb: Verb, guard: Option<Arc<str>>, request: Request) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let behind = slot.ask().is_none();
        if behind && self.behind >= BEHIND_MAX {
            self.queue.insert(name.clone());
            return;
        }
        slot.flight = true;
        // What a firm address meets in its place shows that the API server lost something.
        if verb == Verb::Create && matches!(&slot.want, Want::Hold(h) if h.stage == Stage::Firm) {
            self.suspect(now);
        }
        self.send(Target::Slot(name.clone()), verb, guard, behind, request);
    }
}
