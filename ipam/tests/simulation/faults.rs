//! What a schedule's actions do to the world: agents die, disks and journals are lost, machines go, clocks jump, etcd goes back. Does
//! not know requests, nor what must be true afterwards.

use std::collections::BTreeSet;
use std::time::Duration;

use ipam::Name;

use crate::pods::PodState;
use crate::schedule::What;
use crate::world::{Ev, World};

impl World {
    pub fn carry_out(&mut self, what: What) {
        self.note(|| format!("== {what:?}"));
        match what {
            What::Create { pod, node, asks } => self.create(pod, node, asks),
            What::Delete { pod } => self.delete(pod),
            What::HangUp { pod } => self.hung_up(pod),
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
            What::LoseJournal { node, percent } => {
                if self.nodes[node].alive {
                    self.crash(node, 1000);
                    let (journal, rng) = (&mut self.nodes[node].journal, &mut self.rng);
                    journal.retain(|_, _| !rng.chance(percent));
                    self.nodes[node].forgetful = true;
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
            What::ControllerDown { ms } => self.controller_down(ms),
            What::ControllerDies { writes, ms } => self.controller_dies_after(writes, ms),
            What::ControllerLate { ms } => self.controller_is_late(ms),
            What::Stranger { address, ms } => {
                let name = self.name_of(address);
                self.strangers.insert(name, self.now + Duration::from_millis(ms));
            }
            What::Clock { node: Some(n), secs } => self.nodes[n].wall = secs,
            What::Clock { node: None, secs } => self.controller.wall = secs,
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
        }
    }

    /// Whether the agent dies here.
    pub fn crashes(&mut self, n: usize) -> bool {
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

    /// The process ends; what was being added has failed, and the runtime's DEL comes when the agent is back.
    fn crash(&mut self, n: usize, back_ms: u64) {
        self.note(|| format!("n{n} agent dies"));
        let node = &mut self.nodes[n];
        node.machine = None;
        node.epoch += 1;
        node.tick_at = None;
        node.maps.fill(None);
        node.follows.fill(false);
        node.watching.clear();
        let asks = std::mem::take(&mut node.asks);
        let epoch = node.epoch;
        for a in asks {
            let p = self.pods.get_mut(&a.pod).expect("it asked");
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
        node.forgetful = false;
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

    /// Faults stop.
    pub fn calm_down(&mut self) {
        self.calm = true;
        self.controller_recovers();
        self.strangers.clear();
        for n in 0..self.nodes.len() {
            let node = &mut self.nodes[n];
            node.faults.clear();
            node.watches_lost = self.now;
            node.crash_in = None;
            // The watches that were lost begin anew, with what is there now.
            let (epoch, follows) = (node.epoch, node.follows.clone());
            for (p, _) in follows.into_iter().enumerate().filter(|(_, follows)| *follows) {
                if let Some(map) = self.pools[p].map.clone() {
                    self.after(2, 100, Ev::Map(n, epoch, p, map));
                }
            }
        }
        self.control_soon();
    }
}
