//! Nodes with the real machine, their disks, journals and sandboxes, a runtime that makes and removes pods, a controller with the
//! real decisions, and a network between them that does what the schedule says. One queue of events, one seed: a run is the
//! same each time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipam::fleet::{self, Fence, Fencing, Loss};
use ipam::machine::{Ask, AskId, Held, Machine, Map, Output, Owner, PoolOfAsk, Reply, Request, RequestId, TakeError, What as Of};
use ipam::{Holder, Identity, IdentityKind, Lease, Name, Ranges, Window};

use crate::schedule::{Asks, Mode, Rng, Schedule, What};
use crate::server::Server;

/// As the driver's.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// How soon the runtime tries an ADD again.
const RETRY: Duration = Duration::from_secs(2);
/// The controller writes a map that often.
const MAP_EVERY: Duration = Duration::from_secs(1);

pub const POOL: &str = "p";

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
    Map(usize, u32, Arc<Map>),
    NoMap(usize, u32),
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
    /// Living ones, with their address.
    pub sandboxes: BTreeMap<String, Name>,
    asks: Vec<(AskId, usize, Arc<Holder>)>,
    watching: BTreeSet<Name>,
    follows: bool,
    faults: Vec<(Mode, u64, Duration)>,
    watches_lost: Duration,
    crash_in: Option<u64>,
    tick_at: Option<Duration>,
    fence: Option<Fence>,
    declared_dead: bool,
    /// The last map that came.
    map: Option<Arc<Map>>,
    pub contested: BTreeSet<Name>,
}

/// A record of the journal.
#[derive(Debug, Clone)]
pub struct Noted {
    pub name: Name,
    holder: Arc<Holder>,
    identity: Option<Arc<Identity>>,
    deleting: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodState {
    Waiting,
    Asking(AskId),
    Running(String),
    Gone,
}

#[derive(Debug)]
pub struct Pod {
    pub node: usize,
    pub asks: Asks,
    pub state: PodState,
    pub refused: Option<TakeError>,
}

pub struct World {
    pub now: Duration,
    rng: Rng,
    events: BTreeMap<(Duration, u64), Ev>,
    seq: u64,
    pub server: Server,
    pub nodes: Vec<Node>,
    pub pods: BTreeMap<usize, Pod>,
    pool: PoolOfAsk,
    /// SpiderEndpoints of fixed identities.
    index: BTreeMap<Arc<Identity>, Name>,
    pub map: Option<Arc<Map>>,
    map_version: u64,
    control_at: Option<Duration>,
    controlled: Duration,
    controller_down: Duration,
    containers: u64,
    agents: u64,
    pub restored: bool,
    /// Faults have stopped.
    pub calm: bool,
    pub broken: Option<String>,
    pub steps: u64,
    pub trace: Option<Vec<String>>,
}

pub fn address(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + u32::try_from(n).expect("small pools")))
}

impl World {
    pub fn new(s: &Schedule) -> Self {
        let domain: Arc<str> = "d".into();
        let ips = (0..s.addresses).map(address);
        let pool = PoolOfAsk { name: POOL.into(), domain, ranges: Arc::new(Ranges::of_ips(ipam::Family::V4, ips)) };
        let mut w = Self {
            now: Duration::ZERO,
            rng: Rng(s.seed),
            events: BTreeMap::new(),
            seq: 0,
            server: Server::default(),
            nodes: Vec::new(),
            pods: BTreeMap::new(),
            pool,
            index: BTreeMap::new(),
            map: None,
            map_version: 0,
            control_at: None,
            controlled: Duration::ZERO,
            controller_down: Duration::ZERO,
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
                sandboxes: BTreeMap::new(),
                asks: Vec::new(),
                watching: BTreeSet::new(),
                follows: false,
                faults: Vec::new(),
                watches_lost: Duration::ZERO,
                crash_in: None,
                tick_at: None,
                fence: None,
                declared_dead: false,
                map: None,
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

    fn new_agent_id(&mut self) -> Arc<str> {
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

    fn at(&mut self, when: Duration, ev: Ev) {
        self.seq += 1;
        self.events.insert((when.max(self.now), self.seq), ev);
    }

    fn after(&mut self, from_ms: u64, to_ms: u64, ev: Ev) {
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
                let (reply, changed) = self.server.carry_out(self.now, &request, stale);
                let name = self.nodes[node].name.clone();
                let reply = match reply {
                    Reply::Leases(l) => Reply::Leases(l.into_iter().filter(|l| l.node == name).collect()),
                    r => r,
                };
                self.note(|| format!("n{node} #{id} arrives {} -> {}", say(&request), say_reply(&reply)));
                if let Some(name) = changed {
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
                    self.with(n, |m, now| m.reply(now, id, reply));
                }
            }
            Ev::Changed(n, epoch, name) => {
                if self.lives(n, epoch) && self.nodes[n].watching.contains(&name) {
                    self.with(n, |m, now| m.changed(now, &name));
                }
            }
            Ev::Map(n, epoch, map) => {
                if !self.lives(n, epoch) {
                    return;
                }
                if self.nodes[n].watches_lost > self.now {
                    // The watch begins anew, with what is there then.
                    let when = self.nodes[n].watches_lost;
                    self.at(when, Ev::Map(n, epoch, map));
                    return;
                }
                let map = self.map.clone().filter(|_| self.rng.chance(50)).unwrap_or(map);
                let number = |m: &Map| m.version.parse::<u64>().expect("made below");
                if self.nodes[n].map.as_ref().is_none_or(|old| number(old) < number(&map)) {
                    self.nodes[n].map = Some(map.clone());
                    self.note(|| {
                        let free: u32 = map.window.count();
                        format!("n{n} map {}: {free} free, {} spares, recall {:?}", map.version, map.spares_per_node, map.recall)
                    });
                    self.with(n, |m, now| m.map(now, POOL, Some((*map).clone())));
                }
            }
            Ev::NoMap(n, epoch) => {
                if self.lives(n, epoch) && self.nodes[n].map.is_none() {
                    self.with(n, |m, now| m.map(now, POOL, None));
                }
            }
            Ev::Control => {
                self.control_at = None;
                self.control();
            }
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

    fn lives(&self, n: usize, epoch: u32) -> bool {
        self.nodes[n].epoch == epoch && self.nodes[n].machine.is_some()
    }

    fn carry_out(&mut self, what: What) {
        self.note(|| format!("== {what:?}"));
        match what {
            What::Create { pod, node, asks } => self.create(pod, node, asks),
            What::Delete { pod } => self.delete(pod),
            What::HangUp { pod } => {
                if let Some(Pod { state: PodState::Asking(_), .. }) = self.pods.get(&pod) {
                    self.hang_up(pod);
                    let when = self.now + RETRY;
                    self.at(when, Ev::Retry(pod));
                }
            }
            What::Requests { node, mode, percent, ms } => {
                let until = self.now + Duration::from_millis(ms);
                self.nodes[node].faults.push((mode, percent, until));
            }
            What::WatchesLost { node, ms } => self.nodes[node].watches_lost = self.now + Duration::from_millis(ms),
            What::Crash { node, steps } => self.nodes[node].crash_in = Some(steps),
            What::Reboot { node, ms } => self.power_off(node, Some(ms), false),
            What::Recreate { node, ms } => self.power_off(node, Some(ms), true),
            What::LoseDisk { node } => {
                if self.nodes[node].alive {
                    self.nodes[node].agent_id = self.new_agent_id();
                    self.crash(node, 1000);
                }
            }
            What::Die { node, fenced_after_ms } => {
                // One is left to run what is to be checked.
                if self.nodes.iter().filter(|n| n.alive).count() > 1 {
                    self.power_off(node, None, false);
                    let epoch = self.nodes[node].epoch;
                    let when = self.now + Duration::from_millis(fenced_after_ms);
                    self.at(when, Ev::Fence(node, epoch));
                }
            }
            What::ControllerDown { ms } => self.controller_down = self.now + Duration::from_millis(ms),
            What::Restore { by_ms, bump } => {
                let to = self.now.saturating_sub(Duration::from_millis(by_ms));
                self.server.restore(to, bump);
                self.restored = true;
                // What was noted with the Nodes is as old as the leases.
                for node in &mut self.nodes {
                    node.fence = None;
                }
                let watched: BTreeSet<Name> = self.nodes.iter().flat_map(|n| n.watching.iter().cloned()).collect();
                for name in watched {
                    self.changed(&name);
                }
                self.control_soon();
            }
            // Nothing reads one.
            What::Clock { .. } => {}
        }
    }

    pub fn create(&mut self, pod: usize, node: usize, asks: Asks) {
        if let Asks::Ordinal(_) = asks {
            // Only one of a name.
            let same: Vec<usize> =
                self.pods.iter().filter(|(_, p)| p.asks == asks && p.state != PodState::Gone).map(|(n, _)| *n).collect();
            for old in same {
                self.delete(old);
            }
        }
        self.pods.insert(pod, Pod { node, asks, state: PodState::Waiting, refused: None });
        self.try_pod(pod);
    }

    pub fn delete(&mut self, pod: usize) {
        let Some(p) = self.pods.get_mut(&pod) else { return };
        let node = p.node;
        match std::mem::replace(&mut p.state, PodState::Gone) {
            PodState::Waiting | PodState::Gone => {}
            PodState::Asking(id) => {
                self.pods.get_mut(&pod).expect("as above").state = PodState::Asking(id);
                self.hang_up(pod);
                self.pods.get_mut(&pod).expect("as above").state = PodState::Gone;
            }
            PodState::Running(container) => self.del(node, &container),
        }
    }

    /// The sandbox goes, and the agent hears of it, or will when it is back.
    fn del(&mut self, n: usize, container: &str) {
        self.nodes[n].sandboxes.remove(container);
        self.note(|| format!("n{n} DEL {container}"));
        self.release_noted(n, container);
    }

    fn release_noted(&mut self, n: usize, container: &str) {
        if self.nodes[n].machine.is_none() {
            return;
        }
        let Some(e) = self.nodes[n].journal.get_mut(container) else { return };
        e.deleting = true;
        let name = e.name.clone();
        self.with(n, |m, now| m.release(now, &name, container, true));
    }

    fn hang_up(&mut self, pod: usize) {
        let p = self.pods.get_mut(&pod).expect("asked by the caller");
        let (n, PodState::Asking(id)) = (p.node, p.state.clone()) else { return };
        p.state = PodState::Waiting;
        self.nodes[n].asks.retain(|(a, ..)| *a != id);
        self.with(n, |m, now| m.cancel(now, id));
    }

    fn identity(&self, asks: Asks) -> Option<Arc<Identity>> {
        let (kind, name) = match asks {
            Asks::Any => return None,
            Asks::Ordinal(n) => (IdentityKind::StatefulSet, format!("web-{n}")),
            Asks::Address(n) => (IdentityKind::Pod, format!("app-{n}")),
        };
        Some(Arc::new(Identity { kind, namespace: "n".into(), name, nic: "eth0".into() }))
    }

    /// ADD, where the agent listens.
    fn try_pod(&mut self, pod: usize) {
        let Some(p) = self.pods.get(&pod).filter(|p| p.state == PodState::Waiting) else { return };
        let (n, asks, forget) = (p.node, p.asks, matches!(p.refused, Some(TakeError::Refused { .. })));
        if self.nodes[n].machine.is_none() {
            return;
        }
        self.containers += 1;
        let name = match asks {
            Asks::Ordinal(k) => format!("web-{k}"),
            _ => format!("p{pod}"),
        };
        let holder = Arc::new(Holder {
            namespace: "n".into(),
            pod: name,
            uid: pod.to_string(),
            nic: "eth0".into(),
            container: format!("c{}", self.containers),
        });
        let identity = self.identity(asks);
        let known = identity.as_ref().and_then(|i| {
            let of_lease = || self.server.leases.values().find(|l| l.identity.as_ref() == Some(i)).map(|l| l.name.clone());
            self.index.get(i).cloned().or_else(of_lease)
        });
        let what = match (asks, known) {
            (Asks::Address(k), _) => Of::Fixed { pool: self.pool.clone(), ip: address(k) },
            // The index said one that is another's by now: it gets a new one, as in the driver.
            (Asks::Ordinal(_), Some(name)) if !forget => Of::Fixed { pool: self.pool.clone(), ip: name.ip },
            _ => Of::Any(vec![self.pool.clone()]),
        };
        self.note(|| {
            format!(
                "n{n} ADD {} for {}: {}",
                holder.container,
                holder.pod,
                match &what {
                    Of::Any(_) => "any".to_owned(),
                    Of::Fixed { ip, .. } => ip.to_string(),
                }
            )
        });
        let ask = Ask { holder: holder.clone(), identity, what };
        let now = self.now;
        let node = &mut self.nodes[n];
        let id = node.machine.as_mut().expect("checked above").take(now, ask);
        node.asks.push((id, pod, holder));
        self.pods.get_mut(&pod).expect("found above").state = PodState::Asking(id);
        self.pump(n);
    }

    fn with(&mut self, n: usize, f: impl FnOnce(&mut Machine, Duration)) {
        let now = self.now;
        if let Some(m) = &mut self.nodes[n].machine {
            f(m, now);
            self.pump(n);
        }
    }

    /// Whether the agent dies here.
    fn crashes(&mut self, n: usize) -> bool {
        match &mut self.nodes[n].crash_in {
            Some(0) => {
                self.nodes[n].crash_in = None;
                self.crash(n, 3000);
                true
            }
            Some(k) => {
                *k -= 1;
                false
            }
            None => false,
        }
    }

    /// Carries out what the machine says, as the driver does.
    fn pump(&mut self, n: usize) {
        while let Some(out) = self.nodes[n].machine.as_mut().and_then(Machine::pop) {
            if self.crashes(n) {
                return;
            }
            match out {
                Output::Request(id, request) => self.send(n, id, request),
                Output::Taken(id, taken) => {
                    let Some(i) = self.nodes[n].asks.iter().position(|(a, ..)| *a == id) else {
                        self.breaks(format!("n{n} got an address for an ask that was given up"));
                        return;
                    };
                    let (_, pod, holder) = self.nodes[n].asks.remove(i);
                    let asks = self.pods[&pod].asks;
                    let identity = self.identity(asks);
                    let noted =
                        Noted { name: taken.name.clone(), holder: holder.clone(), identity: identity.clone(), deleting: false };
                    self.nodes[n].journal.insert(holder.container.clone(), noted);
                    if self.crashes(n) {
                        return;
                    }
                    self.note(|| format!("n{n} {} has {}", holder.container, taken.name.ip));
                    self.use_address(n, &holder.container, &taken.name);
                    if let Some(i) = identity {
                        self.index.insert(i, taken.name);
                    }
                    let p = self.pods.get_mut(&pod).expect("it asked");
                    p.state = PodState::Running(holder.container.clone());
                    p.refused = None;
                }
                Output::Failed(id, error) => {
                    let Some(i) = self.nodes[n].asks.iter().position(|(a, ..)| *a == id) else { continue };
                    let (_, pod, holder) = self.nodes[n].asks.remove(i);
                    self.note(|| format!("n{n} ADD {} fails: {error}", holder.container));
                    let p = self.pods.get_mut(&pod).expect("it asked");
                    p.state = PodState::Waiting;
                    p.refused = Some(error.clone());
                    let p = &self.pods[&pod];
                    // One that never had it for sure may find another there.
                    let had = |i: &Arc<Identity>| self.index.contains_key(i);
                    if let (Asks::Ordinal(_), TakeError::Refused { .. }, false) = (p.asks, &error, self.restored)
                        && self.identity(p.asks).as_ref().is_some_and(had)
                    {
                        self.breaks(format!("{} lost its address: {error}", holder.pod));
                    }
                    let when = self.now + RETRY;
                    self.at(when, Ev::Retry(pod));
                }
                Output::Released(name) => {
                    // Somebody else's task strikes it out.
                    let all = self.nodes[n].journal.iter().filter(|(_, e)| e.deleting && e.name == name);
                    let gone: Vec<String> = all.map(|(c, _)| c.clone()).collect();
                    let epoch = self.nodes[n].epoch;
                    for container in gone {
                        self.after(0, 100, Ev::Strike(n, epoch, container));
                    }
                }
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
                Output::Follow(_) => {
                    self.nodes[n].follows = true;
                    let epoch = self.nodes[n].epoch;
                    match self.map.clone() {
                        Some(map) => self.after(2, 300, Ev::Map(n, epoch, map)),
                        None => self.after(2, 300, Ev::NoMap(n, epoch)),
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
        let arrive = |answer, stale| Ev::Arrive { node: n, epoch, id, request: request.clone(), stale, answer };
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
            .map(|e| Held { name: e.name.clone(), pool: POOL.into(), holder: e.holder.clone(), identity: e.identity.clone() })
            .collect();
        let seed = self.rng.next();
        node.machine = Some(Machine::new(me, held, seed, self.now));
        node.follows = false;
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

    /// The process ends; what was being added has failed, and the runtime's DEL comes when the agent is back.
    fn crash(&mut self, n: usize, back_ms: u64) {
        self.note(|| format!("n{n} agent dies"));
        let node = &mut self.nodes[n];
        node.machine = None;
        node.epoch += 1;
        node.tick_at = None;
        node.map = None;
        node.follows = false;
        node.watching.clear();
        let asks = std::mem::take(&mut node.asks);
        let epoch = node.epoch;
        for (_, pod, _) in asks {
            let p = self.pods.get_mut(&pod).expect("it asked");
            if matches!(p.state, PodState::Asking(_)) {
                p.state = PodState::Waiting;
            }
        }
        // One that got its address in this very moment has no reply.
        for (_, p) in self.pods.iter_mut().filter(|(_, p)| p.node == n) {
            if let PodState::Asking(_) = p.state {
                p.state = PodState::Waiting;
            }
        }
        self.after(back_ms / 4, back_ms, Ev::Start(n, epoch));
    }

    fn power_off(&mut self, n: usize, back_ms: Option<u64>, new_disk: bool) {
        if !self.nodes[n].alive && !new_disk {
            return;
        }
        self.crash(n, 1);
        let node = &mut self.nodes[n];
        node.epoch += 1;
        node.alive = false;
        node.journal.clear();
        node.sandboxes.clear();
        node.contested.clear();
        let epoch = node.epoch;
        if new_disk {
            self.nodes[n].agent_id = self.new_agent_id();
        }
        // Its pods: made anew by the runtime when it is back, gone otherwise.
        for p in self.pods.values_mut().filter(|p| p.node == n && p.state != PodState::Gone) {
            p.state = if back_ms.is_some() { PodState::Waiting } else { PodState::Gone };
        }
        if let Some(ms) = back_ms {
            self.nodes[n].alive = true;
            self.nodes[n].declared_dead = false;
            let when = self.now + Duration::from_millis(ms);
            self.at(when, Ev::Start(n, epoch));
            self.control_soon();
        }
    }

    fn changed(&mut self, name: &Name) {
        for n in 0..self.nodes.len() {
            if self.nodes[n].watching.contains(name) && self.nodes[n].watches_lost <= self.now {
                let epoch = self.nodes[n].epoch;
                self.after(2, 50, Ev::Changed(n, epoch, name.clone()));
            }
        }
        self.control_soon();
        self.check_name(name);
    }

    pub fn control_soon(&mut self) {
        if self.control_at.is_none() {
            let when = (self.controlled + MAP_EVERY).max(self.now + Duration::from_millis(20)).max(self.controller_down);
            self.control_at = Some(when);
            self.at(when, Ev::Control);
        }
    }

    fn control(&mut self) {
        if self.controller_down > self.now {
            return self.control_soon();
        }
        self.controlled = self.now;
        for n in 0..self.nodes.len() {
            self.fence(n);
        }
        let reachable: BTreeSet<Arc<str>> = self.nodes.iter().filter(|n| n.alive).map(|n| n.name.clone()).collect();
        let leased: BTreeSet<IpAddr> = self.server.leases.keys().map(|n| n.ip).collect();
        let free = self.pool.ranges.len() - leased.len() as u128;
        let leases: Vec<fleet::Lease<'_>> = self.server.leases.values().map(of_fleet).collect();
        let map = Map {
            version: "".into(),
            window: Window::build(&self.pool.ranges, &leased),
            spares_per_node: fleet::spares(free, leases.iter().copied(), |n| reachable.contains(n)),
            recall: fleet::recall(leases.iter().copied()),
            nodes: ipam::share::marks(self.nodes.iter().map(|n| &*n.name)),
        };
        let same = |old: &Arc<Map>| {
            old.window == map.window
                && old.spares_per_node == map.spares_per_node
                && old.recall == map.recall
                && old.nodes == map.nodes
        };
        if self.map.as_ref().is_some_and(same) {
            return;
        }
        self.map_version += 1;
        let map = Arc::new(Map { version: self.map_version.to_string().into(), ..map });
        self.map = Some(map.clone());
        for n in 0..self.nodes.len() {
            if self.nodes[n].follows {
                let epoch = self.nodes[n].epoch;
                self.after(2, 100, Ev::Map(n, epoch, map.clone()));
            }
        }
    }

    /// One step.
    fn fence(&mut self, n: usize) {
        let node = &self.nodes[n];
        let leases = self.server.leases.values().filter(|l| l.node == node.name).map(of_fleet);
        match fleet::fence(node.declared_dead, node.fence.as_ref(), leases, Some(&node.agent_id)) {
            Fencing::Settled => {}
            Fencing::Record(f) => {
                self.nodes[n].fence = Some(f);
                self.control_soon();
            }
            Fencing::Forget => self.nodes[n].fence = None,
            Fencing::Release(list) => {
                for (ip, loss) in list {
                    let name = Name { domain: self.pool.domain.clone(), ip };
                    let Some(l) = self.server.leases.get(&name).cloned() else { continue };
                    let request = match loss {
                        Loss::Delete => Request::Delete(l),
                        Loss::Empty => Request::Update(Lease {
                            node: "".into(),
                            agent_id: "".into(),
                            holder: None,
                            wanted: None,
                            released: true,
                            ..l
                        }),
                    };
                    self.note(|| format!("controller {}", say(&request)));
                    self.server.carry_out(self.now, &request, false);
                    self.changed(&name);
                }
                self.control_soon();
            }
        }
    }

    /// Faults stop.
    pub fn calm_down(&mut self) {
        self.calm = true;
        self.controller_down = Duration::ZERO;
        for n in 0..self.nodes.len() {
            let node = &mut self.nodes[n];
            node.faults.clear();
            node.watches_lost = self.now;
            node.crash_in = None;
        }
        self.control_soon();
    }

    pub fn pool_size(&self) -> usize {
        usize::try_from(self.pool.ranges.len()).expect("small pools")
    }
}

fn of_fleet(l: &Lease) -> fleet::Lease<'_> {
    fleet::Lease {
        ip: l.name.ip,
        node: &l.node,
        agent_id: &l.agent_id,
        held: l.holder.is_some(),
        fixed: l.identity.is_some(),
        wanted: l.wanted.is_some(),
        quarantined: None,
    }
}

fn failed(doubtful: bool, error: &str) -> Reply {
    Reply::Failed { doubtful, permanent: false, error: error.to_owned() }
}

pub fn say_lease(l: &Lease) -> String {
    let who = l.holder.as_ref().map_or("-".to_owned(), |h| format!("{} {}", h.pod, h.container));
    let more = [(l.wanted.is_some(), " wanted"), (l.released, " released")];
    let more: String = more.iter().filter(|(set, _)| *set).map(|(_, t)| *t).collect();
    let identity = l.identity.as_ref().map_or(String::new(), |i| format!(" for {}", i.name));
    format!("{} v{} {}/{} [{who}]{identity}{more}", l.name.ip, l.version, l.node, l.agent_id)
}

fn say(r: &Request) -> String {
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
