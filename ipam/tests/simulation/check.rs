//! What must be true: after every event, when faults have stopped and all has settled, and of a pool that is then filled to
//! its last address.

use std::collections::BTreeMap;
use std::time::Duration;

use ipam::machine::TakeError;
use ipam::{Family, IdentityKind, Lease, Name};

use crate::pods::{Pod, PodState};
use crate::schedule::{Asks, Mode, Schedule, What};
use crate::world::{World, say_lease};

/// Two hourly comparisons fit, and some.
const SETTLES_WITHIN: Duration = Duration::from_secs(3 * 3600);
/// Where no agent died and etcd did not go back: a request that may still be carried out is waited for 90 s.
const SETTLES_SOON: Duration = Duration::from_secs(300);
/// A quarantine by the clock of an agent that was up to 600 s ahead: a later one counts as over.
const QUARANTINES_END_WITHIN: Duration = Duration::from_secs(1500);
/// What comes in late has come by then, and what it left is gone: an agent waits 90 s for it.
const LATE_ONES_ARE_OVER: Duration = Duration::from_secs(120);
/// A map is written at most once a second, and comes within 0.3 s.
const MAPS_COME_WITHIN: Duration = Duration::from_secs(2);
/// A schedule that goes round in circles.
const STEPS_MAX: u64 = 200_000;

impl World {
    /// A sandbox begins to use an address.
    pub fn use_address(&mut self, n: usize, container: &str, name: &Name) {
        for (other, node) in self.nodes.iter().enumerate() {
            if let Some((c, _)) = node.sandboxes.iter().find(|(_, a)| a.contains(name))
                && !self.restored
            {
                let why = format!("{} is given to {container} on n{n} while {c} on n{other} has it", name.ip);
                return self.breaks(why);
            }
        }
        self.nodes[n].sandboxes.entry(container.to_owned()).or_default().push(name.clone());
        self.check_name(name);
    }

    /// The lease of an address that a living sandbox has is of that node, as long as etcd does not go back in time.
    pub fn check_name(&mut self, name: &Name) {
        if self.restored {
            return;
        }
        let mut why = None;
        for (n, node) in self.nodes.iter().enumerate() {
            let Some((c, _)) = node.sandboxes.iter().find(|(_, a)| a.contains(name)) else { continue };
            match self.server.leases.get(name) {
                Some(l) if l.node == node.name && l.quarantine.is_none() => {}
                l => why = Some(format!("{c} on n{n} has {}, whose lease is {:?}", name.ip, l.map(say_lease))),
            }
        }
        if let Some(why) = why {
            self.breaks(why);
        }
    }

    /// Why it is not settled; none when it is.
    pub fn unsettled(&self) -> Option<String> {
        let mut holders: BTreeMap<&Name, Vec<(usize, &String)>> = BTreeMap::new();
        for (n, node) in self.nodes.iter().enumerate() {
            for (c, name) in node.sandboxes.iter().flat_map(|(c, names)| names.iter().map(move |name| (c, name))) {
                holders.entry(name).or_default().push((n, c));
            }
            if node.alive && node.machine.is_none() {
                return Some(format!("n{n} is down"));
            }
        }
        for (name, who) in &holders {
            let lease = self.server.leases.get(name);
            let says = |n: usize, c: &str| {
                lease.is_some_and(|l| l.agent_id == self.nodes[n].agent_id && l.holder.as_ref().is_some_and(|h| h.container == c))
            };
            for (n, c) in who {
                if says(*n, c) || self.nobody_can_tell(*n, c, name) {
                    continue;
                }
                // Only after etcd went back: whoever does not have the lease has said so.
                if !self.restored || !self.nodes[*n].contested.contains(*name) {
                    return Some(format!("{c} on n{n} has {}, whose lease is {:?}", name.ip, lease.map(say_lease)));
                }
                if !who.iter().any(|(n, c)| says(*n, c)) && who.len() > 1 {
                    return Some(format!("{} has {} holders and the lease of none", name.ip, who.len()));
                }
            }
        }
        let mut spares = vec![vec![0; self.nodes.len()]; self.pools.len()];
        let mut addresses = BTreeMap::new();
        for l in self.server.leases.values() {
            if l.quarantine.is_some() {
                return Some(format!("{} is in quarantine", l.name.ip));
            }
            if *l.pool != *self.pool_of(l.name.ip).name {
                return Some(format!("{} is of pool {}", l.name.ip, l.pool));
            }
            if let Some(i) = l.identity.as_deref().filter(|i| i.kind != IdentityKind::Pod && !self.restored) {
                let of = addresses.entry((i, Family::of(l.name.ip))).or_insert((0, 0));
                of.0 += 1;
                of.1 += usize::from(l.holder.is_some());
            }
            let node = self.nodes.iter().position(|n| n.name == l.node && n.agent_id == l.agent_id && n.alive);
            if self.is_unclear(l) || self.waits_for_release(l) {
                continue;
            }
            let lost = match (&l.holder, node) {
                (Some(h), Some(n)) => {
                    let node = &self.nodes[n];
                    // An ADD that waits for its other family.
                    let mut adding = node.asks.iter().filter(|a| a.holder.container == h.container).flat_map(|a| &a.taken);
                    !node.sandboxes.get(&h.container).is_some_and(|names| names.contains(&l.name))
                        && !adding.any(|t| t.name == l.name)
                }
                (None, Some(n)) => {
                    let pool = self.pools.iter().position(|p| p.ask.ranges.contains(l.name.ip)).unwrap_or_default();
                    spares[pool][n] += 1;
                    l.identity.is_some()
                }
                (None, None) => !l.node.is_empty() || l.identity.is_none(),
                (Some(_), None) => true,
            };
            if lost {
                return Some(format!("nobody has {}", say_lease(l)));
            }
        }
        // Where none is held, which one comes back nobody knows.
        if let Some(((i, f), (n, _))) = addresses.into_iter().find(|(_, (n, held))| *n > 1 && *held > 0) {
            return Some(format!("{} has {n} addresses of {f:?}", i.name));
        }
        for (pool, spares) in self.pools.iter().zip(spares) {
            let allowed = pool.map.as_ref().map_or(0, |m| usize::from(m.spares_per_node));
            if let Some(n) = spares.iter().position(|s| *s > allowed) {
                return Some(format!("n{n} has {} spares of {}, {allowed} are allowed", spares[n], pool.ask.name));
            }
        }
        for (n, node) in self.nodes.iter().enumerate() {
            for name in node.machine.iter().flat_map(|m| m.spares()) {
                if !self.server.leases.get(name).is_some_and(|l| l.agent_id == node.agent_id && l.holder.is_none()) {
                    return Some(format!("n{n} believes in a spare {}", name.ip));
                }
            }
        }
        let full: Vec<Family> = self.families.iter().copied().filter(|f| self.given(*f) >= self.size(*f)).collect();
        for (i, p) in &self.pods {
            if matches!(p.state, PodState::Running(_) | PodState::Gone) || !self.nodes[p.node].alive {
                continue;
            }
            let busy = match &p.refused {
                Some(TakeError::Busy { ip, .. }) => self.server.leases.values().any(|l| l.name.ip == *ip && self.is_unclear(l)),
                _ => false,
            };
            let excused = match (p.asks, &p.refused) {
                _ if busy => true,
                // Somebody else has that address, or it is kept for another; or there is none of the other family, so that it
                // would not run, nor do those who take that address for a moment.
                (Asks::Address(k), Some(TakeError::Refused { .. } | TakeError::Busy { .. })) => {
                    let me = format!("app-{k}");
                    full.contains(&Family::V6)
                        || self.server.leases.values().any(|l| {
                            l.name.ip == self.address(k)
                                && (l.holder.is_some() || l.identity.as_ref().is_some_and(|i| i.name != me))
                        })
                }
                // The one that is kept for it is not taken.
                (asks, _) => full.iter().any(|f| {
                    let own = |l: &Lease| {
                        l.node.is_empty()
                            && l.identity.is_some()
                            && l.identity == self.identity(asks)
                            && Family::of(l.name.ip) == *f
                    };
                    self.restored || !self.server.leases.values().any(own)
                }),
            };
            if !excused {
                return Some(format!("pod {i} has no address: {:?} {:?}", p.state, p.refused));
            }
        }
        None
    }

    /// The sandbox has the address by a record that the journal has lost, and the lease does not say so: of an agent that was killed
    /// before it wrote the holder behind the ADD. Nobody gets it, until the sandbox goes. Or etcd has forgotten it too.
    fn nobody_can_tell(&self, n: usize, container: &str, name: &Name) -> bool {
        let node = &self.nodes[n];
        let noted = node.journal.get(container).is_some_and(|e| !e.deleting && e.held.iter().any(|h| h.name == *name));
        let unsaid = || self.server.leases.get(name).is_some_and(|l| l.node == node.name && l.holder.is_none());
        node.forgetful && !noted && (self.restored || unsaid())
    }

    fn is_unclear(&self, l: &Lease) -> bool {
        let mut nodes = self.nodes.iter().enumerate().filter(|(_, node)| node.forgetful && node.name == l.node);
        nodes.any(|(n, node)| {
            node.sandboxes.iter().any(|(c, names)| names.contains(&l.name) && self.nobody_can_tell(n, c, &l.name))
        })
    }

    /// A create that an agent had sent before it lost its id came in after its machine was declared dead. It may as well be of a new
    /// agent there: the pool counts it as out of reach, until `mooring release`.
    fn waits_for_release(&self, l: &Lease) -> bool {
        let dead = self.nodes.iter().find(|n| n.name == l.node && n.declared_dead && n.agent_id != l.agent_id);
        dead.and_then(|n| n.fence.as_ref()).is_some_and(|f| f.done && !f.agents.contains(&*l.agent_id))
    }

    /// Addresses that sandboxes have or that are kept for one. What an ADD under way has goes back if it gets no other family's.
    fn given(&self, family: Family) -> usize {
        let asking = |c: &str| self.nodes.iter().flat_map(|n| &n.asks).any(|a| a.holder.container == c);
        let given = |l: &&Lease| self.is_unclear(l) || l.holder.as_ref().map_or(l.node.is_empty(), |h| !asking(&h.container));
        self.server.leases.values().filter(|l| Family::of(l.name.ip) == family).filter(given).count()
    }

    fn until_settled(&mut self, what: &str, within: Duration) -> Result<(), String> {
        let begin = self.now;
        let mut pause = Duration::from_millis(250);
        loop {
            let until = self.now + pause;
            while self.step(until) {}
            if let Some(why) = &self.broken {
                return Err(why.clone());
            }
            self.now = until;
            let why = match self.unsettled() {
                Some(why) => why,
                None => {
                    self.stays_quiet(what)?;
                    // Something late may have come in meanwhile.
                    match self.unsettled() {
                        Some(why) => why,
                        None => return Ok(()),
                    }
                }
            };
            if self.now - begin > within || self.steps > STEPS_MAX {
                return Err(format!("{what}: not settled after {:?} and {} steps: {why}", self.now - begin, self.steps));
            }
            pause = (pause * 2).min(Duration::from_secs(60));
        }
    }

    /// What is settled writes no more: only pods that wait for an address have a reason to.
    fn stays_quiet(&mut self, what: &str) -> Result<(), String> {
        // A rest may end in this time, once.
        let (until, spares) = (self.now + Duration::from_secs(200), 8 * self.nodes.len() as u64);
        let waiting = self.waiting() > 0;
        let before = self.server.writes;
        while !waiting && self.step(until) {}
        let writes = self.server.writes - before;
        match &self.broken {
            Some(why) => Err(why.clone()),
            None if writes > 4 * spares => Err(format!("{what}: {writes} writes in 200 s without a cause")),
            None => Ok(()),
        }
    }

    /// The whole of a run.
    pub fn run(&mut self, s: &Schedule) -> Result<(), String> {
        let end = s.actions.last().map_or(Duration::ZERO, |a| a.at) + Duration::from_secs(3);
        while self.step(end) {}
        if let Some(why) = &self.broken {
            return Err(why.clone());
        }
        self.now = end.max(self.now);
        self.calm_down();
        if s.actions.iter().any(|a| matches!(a.what, What::Requests { mode: Mode::Late, .. })) {
            let until = self.now + LATE_ONES_ARE_OVER;
            while self.step(until) {}
            self.now = until;
        }
        let soon = !s.actions.iter().any(|a| a.what.needs_comparison());
        let quarantines = s.actions.iter().any(|a| matches!(a.what, What::Stranger { .. }));
        let within = match (soon, quarantines) {
            (true, false) => SETTLES_SOON,
            (true, true) => SETTLES_SOON + QUARANTINES_END_WITHIN,
            (false, _) => SETTLES_WITHIN,
        };
        self.until_settled("after the faults", within)?;
        self.takes_of_the_first_pool(within)?;
        // As many pods as addresses: the last one is handed out.
        let waiting = self.waiting();
        let given: Vec<usize> = self.families.iter().map(|f| self.given(*f)).collect();
        let more = self.families.iter().zip(&given).map(|(f, given)| self.size(*f) - given).min().unwrap_or_default();
        // An identity's second address is given up in the middle of it.
        let mut of = BTreeMap::new();
        for l in self.server.leases.values() {
            *of.entry((l.identity.clone(), Family::of(l.name.ip))).or_insert(0) += usize::from(l.identity.is_some());
        }
        let one_each = of.values().all(|n| *n <= 1);
        let alive = self.alive();
        let first = 1000;
        for i in 0..more {
            self.create(first + i, alive[(i + waiting) % alive.len()], Asks::Any);
        }
        self.until_settled("filling the pool", within)?;
        // What a sandbox has without its lease is not counted as given, and may get one meanwhile.
        let known = one_each && self.nodes.iter().all(|n| n.contested.is_empty() && !n.forgetful);
        // The family that had the fewest has none left, not even a spare.
        for (f, _) in self.families.iter().zip(given).filter(|(f, given)| known && self.size(**f) - given == more) {
            let of = self.server.leases.values().filter(|l| Family::of(l.name.ip) == *f);
            let (now, size) = (of.filter(|l| l.holder.is_some() || l.node.is_empty()).count(), self.size(*f));
            if now != size {
                return Err(format!("{now} of {size} addresses of {f:?} are given"));
            }
        }
        // And all of them come back.
        let all: Vec<usize> = self.pods.keys().copied().collect();
        for pod in all {
            self.delete(pod);
        }
        self.until_settled("after all pods are gone", within)
    }

    /// Pods that would run if they had an address.
    fn waiting(&self) -> usize {
        let waits = |p: &&Pod| matches!(p.state, PodState::Waiting | PodState::Asking(_)) && self.nodes[p.node].alive;
        self.pods.values().filter(waits).count()
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].alive).collect()
    }

    /// All has settled, so that every map is true soon: a pod gets an address of the first pool that has one.
    fn takes_of_the_first_pool(&mut self, within: Duration) -> Result<(), String> {
        let until = self.now + MAPS_COME_WITHIN;
        while self.step(until) {}
        self.until_settled("when the maps have come", within)?;
        let waiting = self.waiting();
        let leased = |name: &str| self.server.leases.values().filter(|l| *l.pool == *name).count();
        let has_one = |w: &Self, f: Family| w.given(f) + waiting < w.size(f);
        let first = &self.pools[0].ask;
        let free = usize::try_from(first.ranges.len()).expect("small pools").saturating_sub(leased(&first.name));
        if self.pools[1..].iter().all(|p| p.ask.ranges.family() == Family::V6)
            || free <= waiting
            || !self.families.iter().all(|f| has_one(self, *f))
        {
            return Ok(());
        }
        let (pod, ranges) = (999, first.ranges.clone());
        self.create(pod, self.alive()[0], Asks::Any);
        self.until_settled("one pod more", within)?;
        let PodState::Running(container) = &self.pods[&pod].state else { return Err("one pod more does not run".to_owned()) };
        let names = self.nodes.iter().filter_map(|n| n.sandboxes.get(container)).flatten();
        match names.into_iter().find(|n| Family::of(n.ip) == Family::V4) {
            Some(n) if ranges.contains(n.ip) => Ok(()),
            n => Err(format!("a pod got {:?} while the first pool had {free} addresses without a lease", n.map(|n| n.ip))),
        }
    }
}
