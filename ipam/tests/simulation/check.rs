//! What must be true: after every event, when faults have stopped and all has settled, and of a pool that is then filled to
//! its last address.

use std::collections::BTreeMap;
use std::time::Duration;

use ipam::Name;
use ipam::machine::TakeError;

use crate::schedule::{Asks, Schedule};
use crate::world::{PodState, World, address, say_lease};

/// Two hourly comparisons fit, and some.
const SETTLES_WITHIN: Duration = Duration::from_secs(3 * 3600);
/// Where no agent died and etcd did not go back: a request that may still be carried out is waited for 90 s.
const SETTLES_SOON: Duration = Duration::from_secs(300);
/// A schedule that goes round in circles.
const STEPS_MAX: u64 = 200_000;

impl World {
    /// A sandbox begins to use an address.
    pub fn use_address(&mut self, n: usize, container: &str, name: &Name) {
        for (other, node) in self.nodes.iter().enumerate() {
            if let Some((c, _)) = node.sandboxes.iter().find(|(_, a)| *a == name)
                && !self.restored
            {
                let why = format!("{} is given to {container} on n{n} while {c} on n{other} has it", name.ip);
                return self.breaks(why);
            }
        }
        self.nodes[n].sandboxes.insert(container.to_owned(), name.clone());
        self.check_name(name);
    }

    /// The lease of an address that a living sandbox has is of that node, as long as etcd does not go back in time.
    pub fn check_name(&mut self, name: &Name) {
        if self.restored {
            return;
        }
        let mut why = None;
        for (n, node) in self.nodes.iter().enumerate() {
            let Some((c, _)) = node.sandboxes.iter().find(|(_, a)| *a == name) else { continue };
            match self.server.leases.get(name) {
                Some(l) if l.node == node.name => {}
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
            for (c, name) in &node.sandboxes {
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
                if says(*n, c) {
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
        let spares_allowed = self.map.as_ref().map_or(0, |m| usize::from(m.spares_per_node));
        let mut spares = vec![0; self.nodes.len()];
        for l in self.server.leases.values() {
            let node = self.nodes.iter().position(|n| n.name == l.node && n.agent_id == l.agent_id && n.alive);
            let lost = match (&l.holder, node) {
                (Some(h), Some(n)) => self.nodes[n].sandboxes.get(&h.container) != Some(&l.name),
                (None, Some(n)) => {
                    spares[n] += 1;
                    l.identity.is_some()
                }
                (None, None) => !l.node.is_empty() || l.identity.is_none(),
                (Some(_), None) => true,
            };
            if lost {
                return Some(format!("nobody has {}", say_lease(l)));
            }
        }
        if let Some(n) = spares.iter().position(|s| *s > spares_allowed) {
            return Some(format!("n{n} has {} spares, {spares_allowed} are allowed", spares[n]));
        }
        for (n, node) in self.nodes.iter().enumerate() {
            for name in node.machine.iter().flat_map(|m| m.spares()) {
                if !self.server.leases.get(name).is_some_and(|l| l.agent_id == node.agent_id && l.holder.is_none()) {
                    return Some(format!("n{n} believes in a spare {}", name.ip));
                }
            }
        }
        let given = self.server.leases.values().filter(|l| l.holder.is_some() || l.node.is_empty()).count();
        for (i, p) in &self.pods {
            if matches!(p.state, PodState::Running(_) | PodState::Gone) || !self.nodes[p.node].alive {
                continue;
            }
            let excused = match (p.asks, &p.refused) {
                // Somebody else has that address, or it is kept for another.
                (Asks::Address(k), Some(TakeError::Refused { .. } | TakeError::Busy { .. })) => {
                    let me = format!("app-{k}");
                    self.server.leases.values().any(|l| {
                        l.name.ip == address(k) && (l.holder.is_some() || l.identity.as_ref().is_some_and(|i| i.name != me))
                    })
                }
                _ => given >= self.pool_size(),
            };
            if !excused {
                return Some(format!("pod {i} has no address: {:?} {:?}", p.state, p.refused));
            }
        }
        None
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
        let waiting = self.pods.values().any(|p| matches!(p.state, PodState::Waiting | PodState::Asking(_)));
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
        let within = if s.actions.iter().any(|a| a.what.needs_comparison()) { SETTLES_WITHIN } else { SETTLES_SOON };
        self.until_settled("after the faults", within)?;
        // As many pods as addresses: the last one is handed out.
        let waiting = self.pods.values().filter(|p| matches!(p.state, PodState::Waiting | PodState::Asking(_))).count();
        let given = self.server.leases.values().filter(|l| l.holder.is_some() || l.node.is_empty()).count();
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].alive).collect();
        let first = 1000;
        for i in 0..(self.pool_size() - given) {
            self.create(first + i, alive[(i + waiting) % alive.len()], Asks::Any);
        }
        self.until_settled("filling the pool", within)?;
        let full = self.server.leases.len();
        if full != self.pool_size() {
            return Err(format!("{full} of {} addresses are given", self.pool_size()));
        }
        // And all of them come back.
        let all: Vec<usize> = self.pods.keys().copied().collect();
        for pod in all {
            self.delete(pod);
        }
        self.until_settled("after all pods are gone", within)
    }
}
