//! The leases of one agent: takes addresses, gives them back, keeps spares, and keeps what its sandboxes have whatever the API
//! server goes through. No I/O, no clock, no randomness of its own: calls say the time and bring replies, `pop` gives the
//! requests and outcomes that follow. Whoever drives it carries requests out, in any order, and remembers over restarts
//! (in the journal) which addresses were given.
//!
//! For each name there is what is wanted (`Want`) and what the API server last said (`Seen`); `Slot::act` says what follows,
//! and one request at a time is under way. So a time-out is no special case: nothing is known, look again. Every write is
//! guarded by the version that it was decided on.
//!
//! Does not know pods, sandboxes, or how pools are chosen.

mod ask;
mod compare;
mod settle;
mod slot;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::{Holder, Identity, Learned, Lease, Name, Quarantine, Ranges, Window, share};
use ask::Asking;
use compare::Compare;
use slot::{Hold, Seen, Slot, Stage, Want};

pub use ask::{Ask, PoolOfAsk, TakeError, What};

/// Since any moment before the first call; never steps back.
pub type Time = Duration;
pub type AskId = u64;
pub type RequestId = u64;

/// How long a released address is given to nobody: neighbours forget hardware addresses and connections within this time.
pub const REST: Duration = Duration::from_secs(60);
/// Requests at once for which no ADD waits; a drained node gives 250 addresses back, and others want the API server too.
const BEHIND_MAX: usize = 16;
/// A request without an answer may still be carried out for so long: an API server ends each after 60 s.
const DOUBT: Duration = Duration::from_secs(90);
/// Between tries after errors; doubled each time up to the latter.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long after the last ADD, and after the last map with fewer free addresses, spares are replaced: a burst of ADDs creates
/// its own leases, with one write each where a spare costs two, and where it empties the pool, other nodes' ADDs would wait
/// for the spares to be given back.
const FILL_AFTER: Duration = Duration::from_millis(1500);
/// But no later than this after the first: ADDs that never cease have their spares too.
const FILL_WITHIN: Duration = Duration::from_secs(5);
/// What still is free by the map after this time was given back: another map need not come, where nothing else changes, and
/// without this the next pool would be taken from.
const LEARNED_FOR: Duration = Duration::from_secs(5);
/// An address that a sandbox has and another holds by the API server's word is looked at again that often.
const CONTEST_EVERY: Duration = Duration::from_secs(60);

/// Whose leases these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub node: Arc<str>,
    pub agent_id: Arc<str>,
}

/// What the journal says that a sandbox has.
#[derive(Debug, Clone)]
pub struct Held {
    pub name: Name,
    pub pool: Arc<str>,
    pub holder: Arc<Holder>,
    pub identity: Option<Arc<Identity>>,
}

/// A PoolMap.
#[derive(Debug, Clone)]
pub struct Map {
    /// Its resourceVersion.
    pub version: Arc<str>,
    pub window: Window,
    pub spares_per_node: u8,
    pub recall: Vec<IpAddr>,
    /// `share::marks` of the nodes.
    pub nodes: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// As the API server has it now, not from its cache.
    Get(Name),
    Create(Lease),
    /// Guarded by `version`.
    Update(Lease),
    /// Guarded by `uid` and `version`.
    Delete(Lease),
    /// All that name this node; from the cache.
    ListNode,
    /// Addresses of one chunk that have a lease; from the cache.
    ListChunk {
        domain: Arc<str>,
        base: IpAddr,
    },
}

#[derive(Debug, Clone)]
pub enum Reply {
    /// Of a get, a create, an update.
    Done(Lease),
    Deleted,
    /// 404.
    Absent,
    /// 409: the name is taken, or the version is not that one any more.
    Conflict,
    Leases(Vec<Lease>),
    Addresses(BTreeSet<IpAddr>),
    Failed {
        /// It may have been carried out, or may still be: no answer, a broken connection, 5xx.
        doubtful: bool,
        /// The same request would fail again.
        permanent: bool,
        error: String,
    },
}

/// An address that an ask got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub name: Name,
    pub pool: Arc<str>,
    /// The identity did not have it before: if the ADD fails, it keeps nothing.
    pub fresh: bool,
}

#[derive(Debug, Clone)]
pub enum Output {
    Request(RequestId, Request),
    Taken(AskId, Taken),
    Failed(AskId, TakeError),
    /// Of `release`: the API server knows, or it rests and will be told.
    Released(Name),
    /// A sandbox here lives with an address that another has by the API server's word; only after etcd went back in time.
    Contested {
        name: Name,
        holder: Arc<Holder>,
        lease: Box<Lease>,
    },
    /// Call `changed` whenever this lease does, until `Unwatch`.
    Watch(Name),
    Unwatch(Name),
    /// Call `map` with this pool's map and whenever it changes.
    Follow(Arc<str>),
}

#[derive(Debug, Default)]
struct Pool {
    map: Option<Map>,
    /// `Follow` was said.
    followed: bool,
    /// `map` was called.
    known: bool,
    /// What it may give out, and where, by the last ask.
    ranges: Option<(Arc<str>, Arc<Ranges>)>,
    learned: Learned,
    /// When the last of it was learnt.
    learned_at: Time,
    /// This node's positions in the map's window.
    first: Option<Range<usize>>,
    /// When the map came.
    map_at: Time,
    /// When spares are filled, and no later than when.
    fill: Option<(Time, Time)>,
}

impl Pool {
    fn spares_per_node(&self) -> usize {
        self.map.as_ref().map_or(0, |m| usize::from(m.spares_per_node))
    }

    /// Where in the map's window this node looks first.
    fn first(&mut self, node: &str, ranges: &Ranges) -> Range<usize> {
        let positions = || {
            let map = self.map.as_ref()?;
            Some(share(&map.nodes, node)?.positions(&map.window, ranges))
        };
        self.first.get_or_insert_with(|| positions().unwrap_or_default()).clone()
    }

    /// Another one has the address, or is to have it, whatever the map says.
    fn learn(&mut self, now: Time, ip: IpAddr) {
        self.learned.conflict(ip);
        self.learned_at = now;
    }

    /// What is long learnt says nothing any more.
    fn unlearn(&mut self, now: Time) {
        if now >= self.learned_at + LEARNED_FOR {
            self.learned = Learned::default();
        }
    }

    /// An ADD asks, here or elsewhere: a burst is not over.
    fn put_off_fill(&mut self, now: Time) {
        if let Some((at, latest)) = &mut self.fill {
            *at = (now + FILL_AFTER).min(*latest);
        }
    }
}

#[derive(Debug)]
struct Flight {
    on: Target,
    verb: Verb,
    /// The version that guards the write.
    guard: Option<Arc<str>>,
    behind: bool,
}

#[derive(Debug)]
enum Target {
    Slot(Name),
    /// A look at a lease in hand; the version that it had.
    Check(Name, Arc<str>),
    Compare,
    Chunk(AskId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Read,
    Create,
    Update,
    Delete,
}

#[derive(Debug)]
pub struct Machine {
    me: Owner,
    /// What this agent sent before it was last stopped may still be carried out until then.
    past_doubt: Time,
    pools: BTreeMap<Arc<str>, Pool>,
    slots: BTreeMap<Name, Slot>,
    asks: BTreeMap<AskId, Asking>,
    flights: HashMap<RequestId, Flight>,
    /// Names whose turn comes when fewer requests are behind.
    queue: BTreeSet<Name>,
    behind: usize,
    /// Asks that go on now.
    ready: Vec<AskId>,
    out: VecDeque<Output>,
    compare: Compare,
    next_id: u64,
    random: u64,
}

impl Machine {
    /// `held`: what the journal says. `seed`: any number that differs between agents.
    pub fn new(me: Owner, held: impl IntoIterator<Item = Held>, seed: u64, now: Time) -> Self {
        let mut m = Self {
            me,
            past_doubt: now + DOUBT,
            pools: BTreeMap::new(),
            slots: BTreeMap::new(),
            asks: BTreeMap::new(),
            flights: HashMap::new(),
            queue: BTreeSet::new(),
            behind: 0,
            ready: Vec::new(),
            out: VecDeque::new(),
            compare: Compare::new(now),
            next_id: 0,
            random: seed,
        };
        for h in held {
            m.follow(&h.pool);
            let hold = Hold { holder: h.holder, identity: h.identity, stage: Stage::Firm, fresh: false };
            let mut slot = Slot::new(Want::Hold(hold), h.pool, Seen::Unknown);
            // The list at start brings them all at once; where it does not come, each is asked for.
            slot.retry_at = Some(now + compare::LIST_WAIT);
            m.slots.insert(h.name, slot);
        }
        m.tick(now);
        m
    }

    /// What is to be done next.
    pub fn pop(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When `tick` has something to do.
    pub fn next_wake(&self) -> Option<Time> {
        let slots = self.slots.values().flat_map(|s| {
            let rest = match s.want {
                Want::Rest { until } => Some(until),
                _ => None,
            };
            [s.retry_at.filter(|_| !s.flight), rest]
        });
        let asks = self.asks.values().map(Asking::wake);
        let pools = self.pools.values().map(|p| Some(p.fill?.0));
        slots.chain(asks).chain(pools).chain([self.compare.wake()]).flatten().min()
    }

    pub fn tick(&mut self, now: Time) {
        let due: Vec<Name> =
            self.slots.iter().filter(|(_, s)| s.retry_at.is_some_and(|t| t <= now)).map(|(n, _)| n.clone()).collect();
        for name in due {
            self.settle(now, &name);
        }
        self.end_rests(now);
        self.tick_asks(now);
        self.tick_compare(now);
        self.flush(now);
    }

    /// A pool's map as it is now; none: there is no map. Needs no more than one call for each version.
    pub fn map(&mut self, now: Time, pool: &str, map: Option<Map>) {
        let p = self.pools.entry(pool.into()).or_default();
        if p.known && p.map.as_ref().map(|m| &m.version) == map.as_ref().map(|m| &m.version) {
            return;
        }
        p.known = true;
        if let Some(m) = &map {
            p.learned.window_changed(&m.window);
        }
        let free = |m: &Option<Map>| m.as_ref().map_or(0, |m| m.window.count());
        if free(&map) < free(&p.map) {
            p.put_off_fill(now);
        }
        (p.map, p.map_at, p.first) = (map, now, None);
        let recalled: Vec<Name> = self
            .slots
            .iter()
            .filter(|(n, s)| *s.pool == *pool && s.is_idle_lease() && self.is_recalled(pool, n.ip))
            .map(|(n, _)| n.clone())
            .collect();
        for name in recalled {
            self.want(now, &name, Want::Gone);
        }
        self.trim(now, pool);
        self.wake_asks_of(now, pool);
        self.flush(now);
    }

    /// The watched lease changed.
    pub fn changed(&mut self, now: Time, name: &Name) {
        if let Some(slot) = self.slots.get_mut(name).filter(|s| s.ask().is_some()) {
            if !slot.flight {
                slot.seen = Seen::Unknown;
            }
            slot.retry_at = None;
            self.settle(now, name);
        }
        self.flush(now);
    }

    /// Gives an address back. `keep`: for its identity. Of a container that does not have it (any more) nothing is taken.
    pub fn release(&mut self, now: Time, name: &Name, container: &str, keep: bool) {
        let ours = |s: &Slot| matches!(&s.want, Want::Hold(h) if h.stage == Stage::Firm && h.holder.container == container);
        match self.slots.get(name) {
            Some(slot) if ours(slot) => {
                let pool = slot.pool.clone();
                let fixed = matches!(&slot.want, Want::Hold(h) if h.identity.is_some());
                let want = match (keep && fixed, self.idle_want(now, &pool, name)) {
                    (true, _) => Want::Keep,
                    (false, want) => want,
                };
                let rests = matches!(want, Want::Rest { .. });
                if let Some(slot) = self.slots.get_mut(name) {
                    slot.releasing = !rests;
                }
                if rests {
                    self.out.push_back(Output::Released(name.clone()));
                }
                self.want(now, name, want);
                self.wake_asks_of(now, &pool);
            }
            // An earlier call for the same.
            Some(slot) if matches!(slot.want, Want::Gone | Want::Keep) && slot.releasing => {}
            _ => self.out.push_back(Output::Released(name.clone())),
        }
        self.flush(now);
    }

    /// Somebody without a lease uses the address: nobody gets it, until the controller thinks better of it.
    pub fn quarantine(&mut self, now: Time, name: &Name, container: &str, why: Quarantine) {
        let ours = |s: &Slot| matches!(&s.want, Want::Hold(h) if h.holder.container == container);
        if self.slots.get(name).is_some_and(ours) {
            self.want(now, name, Want::Quarantine(Arc::new(why)));
        }
        self.flush(now);
    }

    /// Spares in hand that the next ADD gets without a request; for the log and for tests.
    pub fn spares(&self) -> impl Iterator<Item = &Name> {
        self.slots.iter().filter(|(_, s)| s.giveable(&self.me)).map(|(n, _)| n)
    }

    /// Whether an address of the pool is here that nobody has, in hand or resting.
    pub fn has_idle(&self, pool: &str) -> bool {
        self.slots.values().any(|s| *s.pool == *pool && matches!(s.want, Want::Spare { .. } | Want::Rest { .. }))
    }

    /// Addresses that sandboxes have.
    pub fn held(&self) -> impl Iterator<Item = (&Name, &Holder)> {
        self.slots.iter().filter_map(|(n, s)| match &s.want {
            Want::Hold(h) if h.stage == Stage::Firm => Some((n, &*h.holder)),
            _ => None,
        })
    }

    /// The answer to a request.
    pub fn reply(&mut self, now: Time, id: RequestId, reply: Reply) {
        let Some(flight) = self.flights.remove(&id) else { return };
        if flight.behind {
            self.behind -= 1;
        }
        match flight.on {
            Target::Slot(name) => self.reply_slot(now, &name, flight.verb, flight.guard, reply),
            Target::Check(name, version) => self.reply_check(now, &name, &version, reply),
            Target::Compare => self.reply_compare(now, reply),
            Target::Chunk(ask) => self.reply_chunk(now, ask, reply),
        }
        while self.behind < BEHIND_MAX
            && let Some(name) = self.queue.pop_first()
        {
            self.settle(now, &name);
        }
        self.flush(now);
    }

    fn send(&mut self, on: Target, verb: Verb, guard: Option<Arc<str>>, behind: bool, request: Request) {
        let id = self.id();
        self.behind += usize::from(behind);
        self.flights.insert(id, Flight { on, verb, guard, behind });
        self.out.push_back(Output::Request(id, request));
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// splitmix64 of the seed.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly in [0.5, 1.5).
    fn jitter(&mut self) -> f64 {
        0.5 + (self.random() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn follow(&mut self, pool: &Arc<str>) {
        if !std::mem::replace(&mut self.pools.entry(pool.clone()).or_default().followed, true) {
            self.out.push_back(Output::Follow(pool.clone()));
        }
    }
}
