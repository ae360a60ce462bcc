//! An ADD that asks for an address: any of some pools, or a certain one. Says what is tried next and when it is given up;
//! what a lease allows is `slot`'s to say.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::slot::{Hold, Seen, Slot, Stage, Want};
use super::{AskId, Machine, Output, Reply, Request, Taken, Target, Time, Verb};
use crate::window::{MAX_CHUNKS, free_of_chunk};
use crate::{Holder, Identity, Learned, Name, Picker, Ranges, Tried, Window};

/// Creations that may end in a conflict before another pool is tried, or the next map is waited for: where nodes keep to
/// their shares there is none, and 8 in a row mean that most of what the map calls free is taken.
const TRIES: usize = 8;
/// How long an ADD that finds every pool full waits for an address that comes back: a rolling update frees and takes at
/// the same time, nodes give spares back, and a map is written at most once a second.
pub const FULL_WAIT: Duration = Duration::from_secs(3);
/// A map whose free addresses all turn out to be taken is replaced within a second, where the controller runs and is not very
/// busy. After this time it is believed no longer.
const STALE: Duration = Duration::from_millis(1500);
/// How often full pools are looked at again meanwhile.
const FULL_TICK: Duration = Duration::from_millis(500);
/// How long a fixed address is waited for while somebody else has it: a rolling update deletes a pod and makes the next one
/// within this time; longer and the runtime's retry is cheaper than a CNI call that hangs.
pub const FIXED_WAIT: Duration = Duration::from_secs(5);
/// How often a watched lease is read all the same.
pub(super) const POLL: Duration = Duration::from_secs(1);
/// Who may have an address of `Want::Unclear`.
const UNCLEAR: &str = "a sandbox that no record tells of";
/// How long errors of the API server are borne; after that the runtime's own retry is the better one.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub struct Ask {
    pub holder: Arc<Holder>,
    /// Set for fixed addresses.
    pub identity: Option<Arc<Identity>>,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    /// Any free address of these pools, in their order.
    Any(Vec<PoolOfAsk>),
    /// This one.
    Fixed { pool: PoolOfAsk, ip: IpAddr },
}

#[derive(Debug, Clone)]
pub struct PoolOfAsk {
    pub name: Arc<str>,
    /// L2 domain.
    pub domain: Arc<str>,
    /// What it may give out.
    pub ranges: Arc<Ranges>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    #[error("every address is taken")]
    Full,
    #[error("address {ip} is still held by {holder} on node {node}")]
    Busy { ip: IpAddr, holder: String, node: Arc<str> },
    #[error("address {ip} cannot be given: {why}")]
    Refused { ip: IpAddr, why: String },
    /// The API server fails; `permanent` where the same request would fail again.
    #[error("{error}")]
    Api { permanent: bool, error: String },
}

#[derive(Debug)]
pub(super) struct Asking {
    ask: Ask,
    on: On,
    /// Since when the API server fails.
    failing: Option<Time>,
    /// Nothing is done before, unless something changes.
    next: Option<Time>,
    /// Of a fixed address: when it is given up. Of any: set when all pools were found full.
    deadline: Option<Time>,
    /// The deadline passed while a request was under way: its answer is the last.
    expired: bool,
    /// Who has the fixed address.
    busy: Option<(String, Arc<str>)>,
    watching: bool,
    /// Pools before this one gave nothing in this round.
    cursor: usize,
    tried: Tried,
    tries: usize,
    /// The one chunk that was listed of the pool in hand.
    listed: Option<Window>,
    /// Pools of which one was: each list is a walk through all leases, and the runtime's next ADD may have another.
    blind: BTreeSet<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum On {
    Nothing,
    Name(Name),
    List,
}

impl Asking {
    pub fn wake(&self) -> Option<Time> {
        [self.next.filter(|_| self.on == On::Nothing), self.deadline].into_iter().flatten().min()
    }

    /// How long all pools have been found full.
    fn waited(&self, now: Time) -> Time {
        self.deadline.map_or(Time::ZERO, |t| (now + FULL_WAIT).saturating_sub(t))
    }

    fn next_pool(&mut self) {
        self.cursor += 1;
        (self.tried, self.tries, self.listed) = Default::default();
    }

    fn hold(&self, stage: Stage) -> Hold {
        Hold { holder: self.ask.holder.clone(), identity: self.ask.identity.clone(), stage, fresh: true }
    }
}

impl Machine {
    /// Asks for an address. `Taken` or `Failed` comes with this id, perhaps at once.
    pub fn take(&mut self, now: Time, ask: Ask) -> AskId {
        let id = self.id();
        let pools = match &ask.what {
            What::Any(pools) => pools.as_slice(),
            What::Fixed { pool, .. } => std::slice::from_ref(pool),
        };
        for p in pools {
            self.follow(&p.name);
            if let Some(pool) = self.pools.get_mut(&p.name) {
                if pool.ranges.as_ref().is_none_or(|(_, r)| *r != p.ranges) {
                    pool.first = None;
                }
                pool.ranges = Some((p.domain.clone(), p.ranges.clone()));
                pool.put_off_fill(now);
            }
            self.plan_fill(now, &p.name);
        }
        let begins = !self.compare.is_first();
        let deadline = (begins && matches!(ask.what, What::Fixed { .. })).then(|| now + FIXED_WAIT);
        let asking = Asking {
            ask,
            on: On::Nothing,
            failing: None,
            next: None,
            deadline,
            expired: false,
            busy: None,
            watching: false,
            cursor: 0,
            tried: Tried::default(),
            tries: 0,
            listed: None,
            blind: BTreeSet::new(),
        };
        self.asks.insert(id, asking);
        self.ready.push(id);
        self.flush(now);
        id
    }

    /// The ADD was given up. After `Taken` it is `release` that gives an address back.
    pub fn cancel(&mut self, now: Time, id: AskId) {
        self.end(now, id);
        self.flush(now);
    }

    /// Nothing is given before the first list: what sandboxes have and no record says is among it.
    pub(super) fn flush(&mut self, now: Time) {
        if self.compare.is_first() {
            self.ready.clear();
            return;
        }
        while let Some(id) = self.ready.pop() {
            match self.asks.get(&id).filter(|a| a.on == On::Nothing).map(|a| &a.ask.what) {
                Some(What::Any(_)) => self.run_any(now, id),
                Some(What::Fixed { .. }) => self.run_fixed(now, id),
                None => {}
            }
        }
    }

    pub(super) fn tick_asks(&mut self, now: Time) {
        let over: Vec<AskId> =
            self.asks.iter().filter(|(_, a)| a.deadline.is_some_and(|t| t <= now)).map(|(id, _)| *id).collect();
        for id in over {
            let Some(a) = self.asks.get(&id) else { continue };
            let error = match (&a.ask.what, &a.on, &a.busy) {
                (What::Fixed { ip, .. }, _, Some((holder, node))) => {
                    TakeError::Busy { ip: *ip, holder: holder.clone(), node: node.clone() }
                }
                (What::Any(_), On::Nothing, _) => TakeError::Full,
                // A request is under way: its answer decides.
                _ => {
                    if let Some(a) = self.asks.get_mut(&id) {
                        (a.deadline, a.expired) = (None, true);
                    }
                    continue;
                }
            };
            self.fail(now, id, error);
        }
        let due = self.asks.iter().filter(|(_, a)| a.on == On::Nothing && a.next.is_some_and(|t| t <= now));
        self.ready.extend(due.map(|(id, _)| *id).collect::<Vec<_>>());
    }

    /// Something of this pool may have come back.
    pub(super) fn wake_asks_of(&mut self, _now: Time, pool: &str) {
        let of_pool = |a: &Asking| match &a.ask.what {
            What::Any(pools) => pools.iter().any(|p| *p.name == *pool),
            What::Fixed { .. } => false,
        };
        let idle = self.asks.iter().filter(|(_, a)| a.on == On::Nothing && of_pool(a));
        self.ready.extend(idle.map(|(id, _)| *id).collect::<Vec<_>>());
    }

    /// The first list came: asks that waited for it begin.
    pub(super) fn asks_begin(&mut self, now: Time) {
        for (id, a) in &mut self.asks {
            a.deadline = matches!(a.ask.what, What::Fixed { .. }).then(|| now + FIXED_WAIT);
            a.failing = None;
            self.ready.push(*id);
        }
    }

    /// The first list failed, which all of them wait for.
    pub(super) fn asks_failed(&mut self, now: Time, permanent: bool, error: &str, wait: Time) {
        for id in self.asks.keys().copied().collect::<Vec<_>>() {
            self.ask_failed(now, id, permanent, error.to_owned(), wait);
        }
    }

    /// This node has nothing to do with the name any more.
    pub(super) fn wake_asks_for(&mut self, name: &Name) {
        let fixed = |a: &Asking| match &a.ask.what {
            What::Any(_) => false,
            What::Fixed { pool, ip } => *ip == name.ip && pool.domain == name.domain,
        };
        let idle = self.asks.iter().filter(|(_, a)| a.on == On::Nothing && fixed(a));
        self.ready.extend(idle.map(|(id, _)| *id).collect::<Vec<_>>());
    }

    fn run_fixed(&mut self, now: Time, id: AskId) {
        let Some(a) = self.asks.get_mut(&id) else { return };
        let What::Fixed { pool, ip } = &a.ask.what else { return };
        let name = Name { domain: pool.domain.clone(), ip: *ip };
        let (pool, mut hold) = (pool.name.clone(), a.hold(Stage::Fixed(id)));
        // What became of it is told by `wake_asks_for`; this is for what is not.
        a.next = Some(now + POLL);
        match self.slots.get(&name) {
            None => {
                self.slots.insert(name.clone(), Slot::new(Want::Gone, pool, Seen::Unknown));
            }
            Some(s) => match &s.want {
                Want::Hold(h) if h.stage == Stage::Firm && h.holder == a.ask.holder && h.identity == a.ask.identity => {
                    return self.ask_done(id, Taken { name, pool: s.pool.clone(), fresh: false });
                }
                // The former pod of the same identity, or an ADD that may not get it.
                Want::Hold(h)
                    if h.stage != Stage::Firm || h.identity == a.ask.identity || h.holder.same_nic_of_pod(&a.ask.holder) =>
                {
                    a.busy = Some((h.holder.to_string(), self.me.node.clone()));
                    return;
                }
                Want::Hold(h) => {
                    let why = format!("it is held by {} on node {}", h.holder, self.me.node);
                    return self.ask_refused(Some(id), &name, why);
                }
                Want::Rest { .. } | Want::Spare { .. } => {}
                Want::Gone if s.lingers() => {}
                Want::Keep if matches!(&s.seen, Seen::There(l) if l.identity == a.ask.identity) => hold.fresh = false,
                Want::Unclear => {
                    a.busy = Some((UNCLEAR.to_owned(), self.me.node.clone()));
                    return;
                }
                // It is on its way out of our hands.
                _ => {
                    a.busy = Some(("a pod that is being taken down".to_owned(), self.me.node.clone()));
                    return;
                }
            },
        }
        a.on = On::Name(name.clone());
        self.take_slot(now, &name, hold);
    }

    /// A spare in hand, else a create, pool after pool.
    fn run_any(&mut self, now: Time, id: AskId) {
        let Some(mut a) = self.asks.remove(&id) else { return };
        let What::Any(pools) = &a.ask.what else { return };
        let pools = pools.clone();
        while let Some(pool) = pools.get(a.cursor) {
            if let Some(p) = self.pools.get_mut(&pool.name) {
                p.unlearn(now);
            }
            if let Some((name, certain)) = self.best_spare(&pool.name) {
                if !pool.ranges.contains(name.ip) {
                    self.want(now, &name, Want::Gone);
                    continue;
                }
                let on_api = !certain || a.ask.identity.is_some();
                let hold = a.hold(if on_api { Stage::Any(id) } else { Stage::Firm });
                let taken = Taken { name: name.clone(), pool: pool.name.clone(), fresh: true };
                if on_api {
                    a.on = On::Name(name.clone());
                }
                self.asks.insert(id, a);
                if !on_api {
                    self.ask_done(id, taken);
                }
                return self.take_slot(now, &name, hold);
            }
            // Where another one was quicker, an address that rests is better than more of the same.
            if a.tries > 0
                && let Some(name) = self.best_resting(&pool.name).filter(|n| pool.ranges.contains(n.ip))
            {
                return self.take_resting(now, id, a, &name);
            }
            if let Some(name) = self.pick(&mut a, pool) {
                a.tries += 1;
                a.on = On::Name(name.clone());
                let hold = a.hold(Stage::Any(id));
                self.asks.insert(id, a);
                let slot =
                    self.slots.entry(name.clone()).or_insert_with(|| Slot::new(Want::Gone, pool.name.clone(), Seen::Absent));
                slot.seen = Seen::Absent;
                slot.retry_at = None;
                return self.take_slot(now, &name, hold);
            }
            // No map, or one that says nothing true and is not replaced: one chunk's leases.
            let blind = self.pools.get(&pool.name).is_none_or(|p| match &p.map {
                None => true,
                Some(m) => m.window.count() > 0 && now >= p.map_at + STALE && a.waited(now) >= STALE,
            });
            let chunks: Vec<IpAddr> = pool.ranges.chunks().take(MAX_CHUNKS).collect();
            if blind && !chunks.is_empty() && a.blind.insert(a.cursor) {
                let base = chunks[usize::try_from(self.random() % chunks.len() as u64).expect("few chunks")];
                a.on = On::List;
                // Filled in by the reply.
                a.listed = Some(Window { chunks: vec![free_of_chunk(&pool.ranges, base, &Default::default())] });
                self.asks.insert(id, a);
                let request = Request::ListChunk { domain: pool.domain.clone(), base };
                return self.send(Target::Chunk(id), Verb::Read, None, false, request);
            }
            a.next_pool();
        }
        // An address that rests is better than none.
        for pool in &pools {
            if let Some(name) = self.best_resting(&pool.name).filter(|n| pool.ranges.contains(n.ip)) {
                return self.take_resting(now, id, a, &name);
            }
        }
        a.cursor = 0;
        a.deadline.get_or_insert(now + FULL_WAIT);
        a.next = Some(now + FULL_TICK);
        let expired = a.expired;
        self.asks.insert(id, a);
        if expired {
            self.fail(now, id, TakeError::Full);
        }
    }

    fn take_resting(&mut self, now: Time, id: AskId, mut a: Asking, name: &Name) {
        let hold = a.hold(Stage::Any(id));
        a.on = On::Name(name.clone());
        a.cursor = 0;
        self.asks.insert(id, a);
        self.take_slot(now, name, hold);
    }

    /// The next candidate that nobody here has to do with.
    fn pick(&mut self, a: &mut Asking, pool: &PoolOfAsk) -> Option<Name> {
        let mut seed = self.random();
        let mut random = || {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            seed
        };
        let nothing = Learned::default();
        let p = self.pools.get_mut(&pool.name)?;
        let first = p.first(&self.me.node, &pool.ranges);
        let (window, learned, first) = match &a.listed {
            Some(w) => (Some(w), &nothing, 0..0),
            None => (p.map.as_ref().map(|m| &m.window), &p.learned, first),
        };
        let mut picker = Picker::new(window, &pool.ranges, learned).first(first).resume(std::mem::take(&mut a.tried));
        let mut found = None;
        while a.tries < TRIES
            && let Some(ip) = picker.next(&mut random)
        {
            let name = Name { domain: pool.domain.clone(), ip };
            if self.slots.get(&name).is_none_or(Slot::lingers) {
                found = Some(name);
                break;
            }
        }
        a.tried = picker.pause();
        found
    }

    pub(super) fn reply_chunk(&mut self, now: Time, id: AskId, reply: Reply) {
        let Some(a) = self.asks.get_mut(&id) else { return };
        a.on = On::Nothing;
        let What::Any(pools) = &a.ask.what else { return };
        match (reply, pools.get(a.cursor)) {
            (Reply::Addresses(leased), Some(pool)) => {
                let base = a.listed.as_ref().and_then(|w| w.chunks.first()).map(|c| c.base);
                a.listed = base.map(|b| Window { chunks: vec![free_of_chunk(&pool.ranges, b, &leased)] });
                (a.tried, a.tries) = Default::default();
                self.ready.push(id);
            }
            (Reply::Failed { permanent, error, .. }, _) => {
                a.listed = None;
                a.blind.remove(&a.cursor);
                self.ask_failed(now, id, permanent, error, FULL_TICK);
                if let Some(a) = self.asks.get_mut(&id) {
                    a.next = Some(now + FULL_TICK);
                }
            }
            _ => self.ready.push(id),
        }
    }

    /// A request for this ask failed; `wait` until the next one.
    pub(super) fn ask_failed(&mut self, now: Time, id: AskId, permanent: bool, error: String, wait: Time) {
        let Some(a) = self.asks.get_mut(&id) else { return };
        let since = *a.failing.get_or_insert(now);
        if permanent || now + wait > since + PATIENCE {
            self.fail(now, id, TakeError::Api { permanent, error });
        }
    }

    pub(super) fn ask_goes_on(&mut self, id: Option<AskId>) {
        let Some((id, a)) = id.and_then(|id| Some((id, self.asks.get_mut(&id)?))) else { return };
        a.on = On::Nothing;
        a.failing = None;
        self.ready.push(id);
    }

    /// Of any address another one is tried; a fixed one is asked for again when the sandboxes have been looked at.
    pub(super) fn ask_meets_unclear(&mut self, now: Time, id: Option<AskId>, name: &Name) {
        let Some((id, a)) = id.and_then(|id| Some((id, self.asks.get_mut(&id)?))) else { return };
        if matches!(a.ask.what, What::Any(_)) {
            return self.ask_goes_on(Some(id));
        }
        let node = self.me.node.clone();
        if a.expired {
            return self.fail(now, id, TakeError::Busy { ip: name.ip, holder: UNCLEAR.to_owned(), node });
        }
        (a.on, a.busy, a.next, a.failing) = (On::Nothing, Some((UNCLEAR.to_owned(), node)), Some(now + POLL), None);
        if std::mem::take(&mut a.watching) {
            self.out.push_back(Output::Unwatch(name.clone()));
        }
    }

    pub(super) fn ask_waits(&mut self, now: Time, id: Option<AskId>, name: &Name, holder: String, node: Arc<str>) {
        let Some((id, a)) = id.and_then(|id| Some((id, self.asks.get_mut(&id)?))) else { return };
        if a.expired {
            return self.fail(now, id, TakeError::Busy { ip: name.ip, holder, node });
        }
        a.busy = Some((holder, node));
        a.failing = None;
        if !std::mem::replace(&mut a.watching, true) {
            self.out.push_back(Output::Watch(name.clone()));
        }
    }

    pub(super) fn ask_refused(&mut self, id: Option<AskId>, name: &Name, why: String) {
        if let Some(id) = id {
            self.finish(id);
            self.out.push_back(Output::Failed(id, TakeError::Refused { ip: name.ip, why }));
        }
    }

    pub(super) fn ask_done(&mut self, id: AskId, taken: Taken) {
        self.finish(id);
        self.out.push_back(Output::Taken(id, taken));
    }

    fn fail(&mut self, now: Time, id: AskId, error: TakeError) {
        self.end(now, id);
        self.out.push_back(Output::Failed(id, error));
    }

    fn finish(&mut self, id: AskId) -> Option<Asking> {
        let a = self.asks.remove(&id)?;
        if a.watching
            && let On::Name(name) = &a.on
        {
            self.out.push_back(Output::Unwatch(name.clone()));
        }
        Some(a)
    }

    /// Ends an ask without an address: what it has begun is undone.
    fn end(&mut self, now: Time, id: AskId) {
        let Some(a) = self.finish(id) else { return };
        let On::Name(name) = a.on else { return };
        let Some(slot) = self.slots.get(&name).filter(|s| s.ask() == Some(id)) else { return };
        let want = match &slot.want {
            Want::Hold(h) if h.identity.is_some() && !h.fresh => Want::Keep,
            // What is there nobody has looked at yet; this ADD has written nothing.
            Want::Hold(h) if h.identity.is_some() && matches!(slot.seen, Seen::Unknown) && slot.create_doubt.is_none() => {
                Want::Found
            }
            _ => Want::Gone,
        };
        self.want(now, &name, want);
        self.wake_asks_for(&name);
    }
}
