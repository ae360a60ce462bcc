//! The controller of the world: the real decisions, from a view of the leases that may be late, by a clock that may be wrong,
//! and it may die after each of its writes. Knows no agent but by its leases.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipam::fleet::{self, Fencing, Loss};
use ipam::machine::{Map, Request};
use ipam::{Family, IdentityKind, Lease, Name, Window};

use crate::world::{Ev, World, say};

/// The controller writes a map that often.
const MAP_EVERY: Duration = Duration::from_secs(1);
/// How often it looks at what ends by the clock.
const TICK: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Controller {
    at: Option<Duration>,
    ran: Duration,
    down: Duration,
    /// What it sees, and until when its watch stands still.
    late: Option<(Duration, BTreeMap<Name, Lease>)>,
    /// Dies after so many writes, for so long.
    crash_in: Option<(u64, Duration)>,
    /// Looks again then, at what ends by the clock.
    tick: Duration,
    /// Its wall clock, in seconds off the true time.
    pub wall: i64,
}

impl World {
    pub fn control_soon(&mut self) {
        if self.controller.at.is_none() {
            let c = &self.controller;
            let when = (c.ran + MAP_EVERY).max(self.now + Duration::from_millis(20)).max(c.down);
            self.controller.at = Some(when);
            self.at(when, Ev::Control);
        }
    }

    pub fn controller_down(&mut self, ms: u64) {
        self.controller.down = self.now + Duration::from_millis(ms);
        // The next one begins with a list.
        (self.controller.late, self.controller.crash_in) = (None, None);
    }

    pub fn controller_dies_after(&mut self, writes: u64, ms: u64) {
        self.controller.crash_in = Some((writes, Duration::from_millis(ms)));
    }

    pub fn controller_is_late(&mut self, ms: u64) {
        self.controller.late = Some((self.now + Duration::from_millis(ms), self.server.leases.clone()));
    }

    pub fn controller_recovers(&mut self) {
        // What it was to wake up for later is now.
        (self.controller.down, self.controller.at) = (Duration::ZERO, None);
        (self.controller.late, self.controller.crash_in) = (None, None);
    }

    /// Before each write: whether it dies here.
    fn controller_dies(&mut self) -> bool {
        match &mut self.controller.crash_in {
            Some((0, down)) => {
                let ms = down.as_millis() as u64;
                self.note(|| "controller dies".to_owned());
                self.controller_down(ms);
                self.control_soon();
                true
            }
            Some((n, _)) => {
                *n -= 1;
                false
            }
            None => false,
        }
    }

    pub fn control(&mut self) {
        self.controller.at = None;
        if self.controller.down > self.now {
            return self.control_soon();
        }
        self.controller.ran = self.now;
        self.controller.late = self.controller.late.take().filter(|(until, _)| *until > self.now);
        if let Some((until, _)) = &self.controller.late {
            // The watch goes on then, if nothing else happens.
            self.at(*until, Ev::Control);
        }
        if (0..self.nodes.len()).all(|n| self.fence(n)) && self.end_quarantines() && self.drop_superfluous() {
            self.write_maps();
        }
    }

    fn view(&self) -> &BTreeMap<Name, Lease> {
        self.controller.late.as_ref().map_or(&self.server.leases, |(_, view)| view)
    }

    fn write_maps(&mut self) {
        let reachable: BTreeSet<Arc<str>> = self.nodes.iter().filter(|n| n.alive).map(|n| n.name.clone()).collect();
        for p in 0..self.pools.len() {
            let pool = &self.pools[p];
            let ranges = &pool.ask.ranges;
            let of_pool = || self.view().values().filter(|l| ranges.contains(l.name.ip));
            let leased: BTreeSet<IpAddr> = of_pool().map(|l| l.name.ip).collect();
            let free = ranges.len() - leased.len() as u128;
            let leases: Vec<fleet::Lease<'_>> = of_pool().map(|l| self.of_fleet(l)).collect();
            let map = Map {
                version: "".into(),
                window: Window::build(ranges, &leased),
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
            if pool.map.as_ref().is_some_and(same) {
                continue;
            }
            if self.controller_dies() {
                return;
            }
            let pool = &mut self.pools[p];
            pool.version += 1;
            let map = Arc::new(Map { version: pool.version.to_string().into(), ..map });
            pool.map = Some(map.clone());
            for n in 0..self.nodes.len() {
                if self.nodes[n].follows[p] {
                    let epoch = self.nodes[n].epoch;
                    self.after(2, 100, Ev::Map(n, epoch, p, map.clone()));
                }
            }
        }
    }

    /// Something ends by the clock.
    fn look_again(&mut self) {
        if self.controller.tick <= self.now {
            self.controller.tick = self.now + TICK;
            self.at(self.controller.tick, Ev::Control);
        }
    }

    /// One step. False: it died.
    fn fence(&mut self, n: usize) -> bool {
        let node = &self.nodes[n];
        let leases = || self.view().values().filter(|l| l.node == node.name);
        let of_node = leases().map(|l| self.of_fleet(l));
        let wall = self.wall(self.controller.wall);
        match fleet::fence(node.declared_dead, node.fence.as_ref(), of_node, Some(&node.agent_id), wall) {
            Fencing::Settled => {
                if node.fence.as_ref().is_some_and(|f| !f.done) {
                    self.look_again();
                }
            }
            Fencing::Record(f) => {
                if self.controller_dies() {
                    return false;
                }
                self.nodes[n].fence = Some(f);
                self.control_soon();
            }
            Fencing::Forget => {
                if self.controller_dies() {
                    return false;
                }
                self.nodes[n].fence = None;
            }
            Fencing::Release(lost) => {
                let lost: Vec<(Lease, Loss)> =
                    lost.iter().filter_map(|(ip, how)| Some((leases().find(|l| l.name.ip == *ip)?.clone(), *how))).collect();
                for (l, how) in lost {
                    if !self.lose(l, how) {
                        return false;
                    }
                }
                self.control_soon();
            }
        }
        true
    }

    /// False: it died.
    fn end_quarantines(&mut self) -> bool {
        let wall = self.wall(self.controller.wall);
        let mut over = Vec::new();
        let mut waits = false;
        for l in self.view().values().filter(|l| l.quarantine.is_some()) {
            match fleet::quarantine_over(&self.of_fleet(l), wall) {
                Some(how) => over.push((l.clone(), how)),
                None => waits = true,
            }
        }
        if waits {
            self.look_again();
        }
        over.into_iter().all(|(l, how)| self.lose(l, how))
    }

    /// False: it died.
    fn drop_superfluous(&mut self) -> bool {
        let mut of = BTreeMap::<_, Vec<&Lease>>::new();
        for l in self.view().values() {
            if let Some(i) = l.identity.as_deref().filter(|i| i.kind != IdentityKind::Pod) {
                of.entry((i, Family::of(l.name.ip))).or_default().push(l);
            }
        }
        let mut drop = Vec::new();
        let (wall, mut waits) = (self.wall(self.controller.wall), false);
        for leases in of.into_values().filter(|l| l.len() > 1) {
            let ips = fleet::superfluous(leases.iter().map(|l| self.of_fleet(l)), wall);
            waits |= ips.is_empty();
            drop.extend(leases.into_iter().filter(|l| ips.contains(&l.name.ip)).cloned());
        }
        if waits {
            self.look_again();
        }
        drop.into_iter().all(|l| self.lose(l, Loss::Delete))
    }

    /// Only as it was decided about. False: it died.
    fn lose(&mut self, l: Lease, how: Loss) -> bool {
        if self.controller_dies() {
            return false;
        }
        let name = l.name.clone();
        let request = match how {
            Loss::Delete => Request::Delete(l),
            Loss::Empty => Request::Update(Lease {
                node: "".into(),
                agent_id: "".into(),
                holder: None,
                wanted: None,
                released: true,
                quarantine: None,
                ..l
            }),
        };
        let (_, changed) = self.server.carry_out(self.now, &request, false);
        self.note(|| format!("controller {}{}", say(&request), if changed.is_some() { "" } else { ": a conflict" }));
        if changed.is_some() {
            if matches!(how, Loss::Empty) {
                self.given_back.insert(name.clone(), self.wall(self.controller.wall));
            }
            self.changed(&name);
        }
        true
    }

    fn of_fleet<'a>(&self, l: &'a Lease) -> fleet::Lease<'a> {
        fleet::Lease {
            ip: l.name.ip,
            node: &l.node,
            agent_id: &l.agent_id,
            held: l.holder.is_some(),
            fixed: l.identity.is_some(),
            wanted: l.wanted.is_some(),
            quarantined: l.quarantine.as_ref().map(|_| self.quarantined.get(&l.name).copied().unwrap_or_default()),
            released: l.released.then(|| self.given_back.get(&l.name).copied().unwrap_or_default()),
        }
    }

    /// Seconds of a wall clock that is so far off.
    pub fn wall(&self, off: i64) -> i64 {
        1_000_000_000 + self.now.as_secs() as i64 + off
    }
}
