//! Nodes with the real machine, their disks, journals and sandboxes, and a network between them and the API server that does what
//! the schedule says. One queue of events, one seed: a run is the same each time. What the runtime does is in `pods`, the
//! controller in `control`, what breaks in `faults`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipam::fleet::Fence;
use ipam::machine::{Held, Machine, Map, Output, Owner, PoolOfAsk, Reply, Request, RequestId};
use ipam::{Family, Identity, Lease, Name, Ranges};

use crate::control::Controller;
use crate::pods::{Adding, Noted, Pod, PodState};
use crate::schedule::{Mode, Rng, Schedule, What};
use crate::server::Server;

/// As the driver's.
const REQUEST_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub enum Ev {
    Do(What),
    Tick(usize, u32),
    Start(usize, u32),
    Arrive {
        node: usize,
        epoch: u32,
        id: RequestId,
        request: Request,
        stale: bool,
        answer: Answer,
    },
    Reply(usize, u32, RequestId, Reply),
    Changed(usize, u32, Name),
    Map(usize, u32, usize, Arc<Map>),
    NoMap(usize, u32, usize),
    Control,
    Retry(usize),
    /// A record leaves the journal.
    Strike(usize, u32, String),
    Fence(usize, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Comes,
    Lost,
    Error,
}

#[derive(Debug)]
pub struct Node {
    pub name: Arc<str>,
    /// What is on its disk.
    pub agent_id: Arc<str>,
    pub alive: bool,
    /// Counts lives of the agent.
    pub epoch: u32,
    pub machine: Option<Machine>,
    pub journal: BTreeMap<String, Noted>,
    /// The journal once lost records: of what sandboxes have, some may stand nowhere.
    pub forgetful: bool,
    /// Living ones, with their addresses.
    pub sandboxes: BTreeMap<String, Vec<Name>>,
    pub asks: Vec<Adding>,
    pub watching: BTreeSet<Name>,
    /// Of each pool, whether its map is watched.
    pub follows: Vec<bool>,
    pub faults: Vec<(Mode, u64, Duration)>,
    pub watches_lost: Duration,
    pub crash_in: Option<u64>,
    pub tick_at: Option<Duration>,
    pub fence: Option<Fence>,
    pub declared_dead: bool,
    /// The last map that came of each pool.
    pub maps: Vec<Option<Arc<Map>>>,
    /// Its wall clock, in seconds off the true time.
    pub wall: i64,
    pub contested: BTreeSet<Name>,
}

/// A pool and its PoolMap.
pub struct Pool {
    pub ask: PoolOfAsk,
    pub map: Option<Arc<Map>>,
    pub version: u64,
}

pub struct World {
    pub now: Duration,
    pub rng: Rng,
    events: BTreeMap<(Duration, u64), Ev>,
    seq: u64,
    pub server: Server,
    pub nodes: Vec<Node>,
    pub pods: BTreeMap<usize, Pod>,
    /// In the order of the network's configuration. None overlaps another.
    pub pools: Vec<Pool>,
    /// What each pod gets an address of.
    pub families: Vec<Family>,
    /// SpiderEndpoints of fixed identities.
    pub index: BTreeMap<(Arc<Identity>, Family), Name>,
    /// Addresses that somebody without a lease uses, until then.
    pub strangers: BTreeMap<Name, Duration>,
    /// Since when an address is in quarantine, by the wall clock of the agent that wrote it.
    pub quarantined: BTreeMap<Name, i64>,
    /// Wall clock of whoever gave a lease back.
    pub given_back: BTreeMap<Name, i64>,
    pub controller: Controller,
    pub containers: u64,
    agents: u64,
    pub restored: bool,
    /// Faults have stopped.
    pub calm: bool,
    pub broken: Option<String>,
    pub steps: u64,
    pub trace: Option<Vec<String>>,
}

/// The n-th address of a pool.
fn address_of(pool: usize, n: usize) -> IpAddr {
    let n = u8::try_from(n + 1).expect("small pools");
    match pool {
        0 => [10, 0, 0, n].into(),
        1 => [10, 0, 1, n].into(),
        _ => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into(),
    }
}

impl World {
    pub fn new(s: &Schedule) -> Self {
        let domain: Arc<str> = "d".into();
        let pool = |(i, (name, family, size)): (usize, (&str, Family, usize))| {
            let ranges = Arc::new(Ranges::of_ips(family, (0..size).map(|n| address_of(i, n))));
            (size > 0).then(|| Pool {
                ask: PoolOfAsk { name: name.into(), domain: domain.clone(), ranges },
                map: None,
                version: 0,
            })
        };
        let all = [("p", Family::V4, s.addresses), ("q", Family::V4, s.second), ("v6", Family::V6, s.v6)];
        let pools: Vec<Pool> = all.into_iter().enumerate().filter_map(pool).collect();
        let mut w = Self {
            now: Duration::ZERO,
            rng: Rng(s.seed),
            events: BTreeMap::new(),
            seq: 0,
            server: Server::default(),
            nodes: Vec::new(),
            pods: BTreeMap::new(),
            families: Family::BOTH.into_iter().filter(|f| *f == Family::V4 || s.v6 > 0).collect(),
            pools,
            index: BTreeMap::new(),
            strangers: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            given_back: BTreeMap::new(),
            controller: Controller::default(),
            containers: 0,
            agents: 0,
            restored: false,
            calm: false,
            broken: None,
            steps: 0,
            trace: None,
        };
        w.server.remembers = s
            .actions
            .iter()
            .any(|a| matches!(a.what, What::Restore { .. } | What::Requests { mode: Mode::Stale, .. }) || a.what.starts_agents());
        for n in 0..s.nodes {
            let agent_id = w.new_agent_id();
            w.nodes.push(Node {
                name: format!("n{n}").into(),
                agent_id,
                alive: true,
                epoch: 0,
                machine: None,
                journal: BTreeMap::new(),
                forgetful: false,
                sandboxes: BTreeMap::new(),
                asks: Vec::new(),
                watching: BTreeSet::new(),
                follows: vec![false; w.pools.len()],
                faults: Vec::new(),
                watches_lost: Duration::ZERO,
                crash_in: None,
                tick_at: None,
                fence: None,
                declared_dead: false,
                maps: vec![None; w.pools.len()],
                wall: 0,
                contested: BTreeSet::new(),
            });
            w.at(Duration::ZERO, Ev::Start(n, 0));
        }
        for a in &s.actions {
            w.at(a.at + Duration::from_secs(1), Ev::Do(a.what));
        }
        w.control_soon();
        w
    }

    pub fn new_agent_id(&mut self) -> Arc<str> {
        self.agents += 1;
        format!("a{}", self.agents).into()
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(t) = &mut self.trace {
            t.push(format!("{:>9.3} {}", now.as_secs_f64(), text()));
        }
    }

    pub fn breaks(&mut self, why: String) {
        self.note(|| format!("BROKEN {why}"));
        self.broken.get_or_insert(why);
    }

    pub fn at(&mut self, when: Duration, ev: Ev) {
        self.seq += 1;
        self.events.insert((when.max(self.now), self.seq), ev);
    }

    pub fn after(&mut self, from_ms: u64, to_ms: u64, ev: Ev) {
        let when = self.now + self.rng.ms(from_ms, to_ms);
        self.at(when, ev);
    }

    pub fn next_at(&self) -> Option<Duration> {
        self.events.first_key_value().map(|((t, _), _)| *t)
    }

    /// Takes one event; false when there is none before `until`.
    pub fn step(&mut self, until: Duration) -> bool {
        if self.broken.is_some() || self.next_at().is_none_or(|t| t > until) {
            return false;
        }
        let Some(((t, _), ev)) = self.events.pop_first() else { return false };
        self.now = t;
        self.steps += 1;
        self.happen(ev);
        true
    }

    fn happen(&mut self, ev: Ev) {
        match ev {
            Ev::Do(what) => self.carry_out(what),
            Ev::Tick(n, epoch) => {
                if self.lives(n, epoch) && self.nodes[n].tick_at == Some(self.now) {
                    self.nodes[n].tick_at = None;
                    self.with(n, |m, now| m.tick(now));
                }
            }
            Ev::Start(n, epoch) => self.start(n, epoch),
            Ev::Arrive { node, epoch, id, request, stale, answer } => {
                let quarantined = |w: &Self, n: &Name| w.server.leases.get(n).is_some_and(|l| l.quarantine.is_some());
                let of = match &request {
                    Request::Update(l) | Request::Delete(l) => Some(&l.name),
                    _ => None,
                };
                let was = of.is_some_and(|n| quarantined(self, n));
                let (reply, changed) = self.server.carry_out(self.now, &request, stale);
                let name = self.nodes[node].name.clone();
                let reply = match reply {
                    Reply::Leases(l) => Reply::Leases(l.into_iter().filter(|l| l.node == name).collect()),
                    r => r,
                };
                self.note(|| format!("n{node} #{id} arrives {} -> {}", say(&request), say_reply(&reply)));
                if let Some(name) = changed {
                    if was && !self.restored {
                        self.breaks(format!("n{node} takes {} out of quarantine", name.ip));
                    }
                    if quarantined(self, &name) {
                        let wall = self.wall(self.nodes[node].wall);
                        self.quarantined.insert(name.clone(), wall);
                    }
                    if self.server.leases.get(&name).is_some_and(|l| l.released) {
                        let wall = self.wall(self.nodes[node].wall);
                        self.given_back.insert(name.clone(), wall);
                    }
                    self.changed(&name);
                }
                match answer {
                    Answer::Comes => self.after(1, 10, Ev::Reply(node, epoch, id, reply)),
                    Answer::Error => self.after(1, 10, Ev::Reply(node, epoch, id, failed(true, "500"))),
                    Answer::Lost => {}
                }
            }
            Ev::Reply(n, epoch, id, reply) => {
                if self.lives(n, epoch) {
                    if matches!(reply, Reply::Failed { .. }) {
                        self.note(|| format!("n{n} #{id} fails {}", say_reply(&reply)));
                    }
                    match reply {
                        Reply::Leases(list) => self.listed(n, id, list),
                        reply => self.with(n, |m, now| m.reply(now, id, reply)),
                    }
                }
            }
            Ev::Changed(n, epoch, name) => {
                if self.lives(n, epoch) && self.nodes[n].watching.contains(&name) {
                    self.with(n, |m, now| m.changed(now, &name));
                }
            }
            Ev::Map(n, epoch, pool, map) => self.map_comes(n, epoch, pool, map),
            Ev::NoMap(n, epoch, pool) => {
                if self.lives(n, epoch) && self.nodes[n].maps[pool].is_none() {
                    let name = self.pools[pool].ask.name.clone();
                    self.with(n, |m, now| m.map(now, &name, None));
                }
            }
            Ev::Control => self.control(),
            Ev::Retry(pod) => self.try_pod(pod),
            Ev::Strike(n, epoch, container) => {
                if self.lives(n, epoch) {
                    self.nodes[n].journal.remove(&container);
                }
            }
            Ev::Fence(n, epoch) => {
                if !self.nodes[n].alive && self.nodes[n].epoch == epoch {
                    self.note(|| format!("n{n} is declared dead"));
                    self.nodes[n].declared_dead = true;
                    self.control_soon();
                }
            }
        }
    }

    fn map_comes(&mut self, n: usize, epoch: u32, pool: usize, map: Arc<Map>) {
        if !self.lives(n, epoch) {
            return;
        }
        if self.nodes[n].watches_lost > self.now {
            // The watch begins anew, with what is there then.
            let when = self.nodes[n].watches_lost;
            self.at(when, Ev::Map(n, epoch, pool, map));
            return;
        }
        let map = self.pools[pool].map.clone().filter(|_| self.rng.chance(50)).unwrap_or(map);
        let number = |m: &Map| m.version.parse::<u64>().expect("made by the controller");
        if self.nodes[n].maps[pool].as_ref().is_none_or(|old| number(old) < number(&map)) {
            self.nodes[n].maps[pool] = Some(map.clone());
            let name = self.pools[pool].ask.name.clone();
            self.note(|| {
                let (free, spares) = (map.window.count(), map.spares_per_node);
                format!("n{n} map {} of {name}: {free} free, {spares} spares, recall {:?}", map.version, map.recall)
            });
            self.with(n, |m, now| m.map(now, &name, Some((*map).clone())));
        }
    }

    pub fn lives(&self, n: usize, epoch: u32) -> bool {
        self.nodes[n].epoch == epoch && self.nodes[n].machine.is_some()
    }

    pub fn with(&mut self, n: usize, f: impl FnOnce(&mut Machine, Duration)) {
        let now = self.now;
        if let Some(m) = &mut self.nodes[n].machine {
            f(m, now);
            self.pump(n);
        }
    }

    /// Carries out what the machine says, as the driver does.
    pub fn pump(&mut self, n: usize) {
        while let Some(out) = self.nodes[n].machine.as_mut().and_then(Machine::pop) {
            if self.crashes(n) {
                return;
            }
            match out {
                Output::Request(id, request) => self.send(n, id, request),
                Output::Taken(id, taken) => {
                    if !self.taken(n, id, taken) {
                        return;
                    }
                }
                Output::Failed(id, error) => self.failed(n, id, error),
                Output::Released(name) => self.released(n, &name),
                Output::Contested { name, holder, lease } => {
                    self.note(|| format!("n{n} reports {} of {}: {}", name.ip, holder.container, say_lease(&lease)));
                    self.nodes[n].contested.insert(name);
                }
                Output::Watch(name) => {
                    self.nodes[n].watching.insert(name);
                }
                Output::Unwatch(name) => {
                    self.nodes[n].watching.remove(&name);
                }
                Output::Follow(name) => {
                    let pool = self.pools.iter().position(|p| p.ask.name == name).expect("of an ask or a lease");
                    self.nodes[n].follows[pool] = true;
                    let epoch = self.nodes[n].epoch;
                    match self.pools[pool].map.clone() {
                        Some(map) => self.after(2, 300, Ev::Map(n, epoch, pool, map)),
                        None => self.after(2, 300, Ev::NoMap(n, epoch, pool)),
                    }
                }
            }
        }
        let Some(m) = &self.nodes[n].machine else { return };
        if let Some(wake) = m.next_wake() {
            // A timer is never early, and seldom exact.
            let wake = wake.max(self.now + Duration::from_millis(1));
            if self.nodes[n].tick_at.is_none_or(|t| t > wake || t <= self.now) {
                self.nodes[n].tick_at = Some(wake);
                let epoch = self.nodes[n].epoch;
                self.at(wake, Ev::Tick(n, epoch));
            }
        }
    }

    fn send(&mut self, n: usize, id: RequestId, request: Request) {
        let (now, epoch) = (self.now, self.nodes[n].epoch);
        self.nodes[n].faults.retain(|(.., until)| *until > now);
        let faults = self.nodes[n].faults.clone();
        let fault = faults.into_iter().find(|(_, percent, _)| self.rng.chance(*percent)).map(|f| f.0);
        self.note(|| format!("n{n} #{id} {}{}", say(&request), fault.map_or(String::new(), |f| format!(" ({f:?})"))));
        // A cache that is behind by more than a start takes, and a journal lost at the same time, are beyond an agent: what began in
        // that time stands nowhere for it.
        let cached = !(self.nodes[n].forgetful && request == Request::ListNode);
        let arrive = |answer, stale| Ev::Arrive { node: n, epoch, id, request: request.clone(), stale: stale && cached, answer };
        let gives_up = now + REQUEST_WAIT;
        match fault {
            None => {
                // A list from the cache may always be a little old.
                let stale = !self.calm && self.rng.chance(50);
                self.after(1, 15, arrive(Answer::Comes, stale));
            }
            Some(Mode::Stale) => self.after(1, 15, arrive(Answer::Comes, true)),
            Some(Mode::Slow) => self.after(2000, 2100, arrive(Answer::Comes, false)),
            Some(Mode::Partition) if self.rng.chance(50) => self.after(1, 5, Ev::Reply(n, epoch, id, failed(true, "refused"))),
            Some(Mode::Partition) => self.at(gives_up, Ev::Reply(n, epoch, id, failed(true, "no answer"))),
            Some(Mode::NoAnswer) => {
                self.after(1, 15, arrive(Answer::Lost, false));
                self.at(gives_up, Ev::Reply(n, epoch, id, failed(true, "no answer")));
            }
            Some(Mode::Late) => {
                self.after(10_001, 70_000, arrive(Answer::Lost, false));
                self.at(gives_up, Ev::Reply(n, epoch, id, failed(true, "no answer")));
            }
            Some(Mode::Error500) if self.rng.chance(50) => self.after(1, 15, arrive(Answer::Error, false)),
            Some(Mode::Error500) => self.after(1, 15, Ev::Reply(n, epoch, id, failed(true, "500"))),
            Some(Mode::TooMany) => self.after(1, 15, Ev::Reply(n, epoch, id, failed(false, "429"))),
        }
    }

    fn start(&mut self, n: usize, epoch: u32) {
        let node = &mut self.nodes[n];
        if node.epoch != epoch || !node.alive || node.machine.is_some() {
            return;
        }
        let me = Owner { node: node.name.clone(), agent_id: node.agent_id.clone() };
        // Of two records of one address the one that is not being deleted counts.
        let mut records: Vec<&Noted> = node.journal.values().collect();
        records.sort_by_key(|e| !e.deleting);
        let held: Vec<Held> = records
            .into_iter()
            .flat_map(|e| e.held.iter().map(|h| (h.clone(), e.holder.clone())))
            .map(|(h, holder)| Held { name: h.name, pool: h.pool, holder, identity: h.identity })
            .collect();
        let seed = self.rng.next();
        node.machine = Some(Machine::new(me, held, seed, self.now));
        node.follows.fill(false);
        self.note(|| format!("n{n} starts"));
        self.pump(n);
        let dead: Vec<String> = {
            let node = &self.nodes[n];
            let dead = node.journal.iter().filter(|(c, e)| e.deleting || !node.sandboxes.contains_key(*c));
            dead.map(|(c, _)| c.clone()).collect()
        };
        for container in dead {
            self.release_noted(n, &container);
        }
        let waiting: Vec<usize> =
            self.pods.iter().filter(|(_, p)| p.node == n && p.state == PodState::Waiting).map(|(i, _)| *i).collect();
        for pod in waiting {
            self.after(5, 500, Ev::Retry(pod));
        }
    }

    pub fn changed(&mut self, name: &Name) {
        for n in 0..self.nodes.len() {
            if self.nodes[n].watching.contains(name) && self.nodes[n].watches_lost <= self.now {
                let epoch = self.nodes[n].epoch;
                self.after(2, 50, Ev::Changed(n, epoch, name.clone()));
            }
        }
        self.control_soon();
        self.check_name(name);
    }

    pub fn pool_of(&self, ip: IpAddr) -> &PoolOfAsk {
        &self.pools.iter().find(|p| p.ask.ranges.contains(ip)).expect("an address of a pool").ask
    }

    /// The n-th address of the pools of IPv4, in their order.
    pub fn address(&self, n: usize) -> IpAddr {
        self.name_of(n).ip
    }

    /// The n-th address of all pools.
    pub fn name_of(&self, n: usize) -> Name {
        let mut n = n as u128;
        for p in &self.pools {
            match p.ask.ranges.nth(n) {
                Some(ip) => return Name { domain: p.ask.domain.clone(), ip },
                None => n -= p.ask.ranges.len(),
            }
        }
        unreachable!("schedules name addresses that are there")
    }

    /// How many addresses of a family there are.
    pub fn size(&self, family: Family) -> usize {
        let of = self.pools.iter().map(|p| &p.ask.ranges).filter(|r| r.family() == family);
        of.map(|r| usize::try_from(r.len()).expect("small pools")).sum()
    }
}

fn failed(doubtful: bool, error: &str) -> Reply {
    Reply::Failed { doubtful, permanent: false, error: error.to_owned() }
}

pub fn say_lease(l: &Lease) -> String {
    let who = l.holder.as_ref().map_or("-".to_owned(), |h| format!("{} {}", h.pod, h.container));
    let more = [(l.wanted.is_some(), " wanted"), (l.released, " released")];
    let more: String = more.iter().filter(|(set, _)| *set).map(|(_, t)| *t).collect();
    let more = if l.quarantine.is_some() { more + " quarantined" } else { more };
    let identity = l.identity.as_ref().map_or(String::new(), |i| format!(" for {}", i.name));
    format!("{} v{} {}/{} [{who}]{identity}{more}", l.name.ip, l.version, l.node, l.agent_id)
}

pub fn say(r: &Request) -> String {
    match r {
        Request::Get(n) => format!("get {}", n.ip),
        Request::Create(l) => format!("create {}", say_lease(l)),
        Request::Update(l) => format!("update {}", say_lease(l)),
        Request::Delete(l) => format!("delete {}", say_lease(l)),
        Request::ListNode => "list node".to_owned(),
        Request::ListChunk { .. } => "list chunk".to_owned(),
    }
}

fn say_reply(r: &Reply) -> String {
    match r {
        Reply::Done(l) => say_lease(l),
        Reply::Leases(l) => format!("[{}]", l.iter().map(say_lease).collect::<Vec<_>>().join(", ")),
        r => format!("{r:?}"),
    }
}
