//! The runtime of the world, and what an agent's CNI server does for it: pods are made and removed, an ADD asks for one address
//! of each family as one transaction, probes them, notes them in the journal; a DEL gives them back. Does not know requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipam::machine::{Ask, AskId, Held, PoolOfAsk, Reply, RequestId, TakeError, Taken, What as Of};
use ipam::{Family, Holder, Identity, IdentityKind, Lease, Name, Quarantine};

use crate::schedule::Asks;
use crate::world::{Ev, World};

/// How soon the runtime tries an ADD again.
const RETRY: Duration = Duration::from_secs(2);

/// An ADD under way.
#[derive(Debug)]
pub struct Adding {
    /// The ask for the family that comes after those that were taken.
    pub id: AskId,
    pub pod: usize,
    pub holder: Arc<Holder>,
    pub taken: Vec<Taken>,
}

/// A record of the journal.
#[derive(Debug, Clone)]
pub struct Noted {
    pub held: Vec<NotedAddress>,
    pub holder: Arc<Holder>,
    pub deleting: bool,
    /// Of a record that is being deleted: what the machine has not yet called released.
    pub left: BTreeSet<Name>,
}

#[derive(Debug, Clone)]
pub struct NotedAddress {
    pub name: Name,
    pub pool: Arc<str>,
    pub identity: Option<Arc<Identity>>,
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
    /// Families whose address the index names wrongly: another has it by now.
    lost: BTreeSet<Family>,
}

impl World {
    pub fn create(&mut self, pod: usize, node: usize, asks: Asks) {
        if let Asks::Ordinal(_) = asks {
            // Only one of a name.
            let same: Vec<usize> =
                self.pods.iter().filter(|(_, p)| p.asks == asks && p.state != PodState::Gone).map(|(n, _)| *n).collect();
            for old in same {
                self.delete(old);
            }
        }
        self.pods.insert(pod, Pod { node, asks, state: PodState::Waiting, refused: None, lost: BTreeSet::new() });
        self.try_pod(pod);
    }

    pub fn delete(&mut self, pod: usize) {
        let Some(p) = self.pods.get(&pod) else { return };
        let node = p.node;
        match p.state.clone() {
            PodState::Waiting | PodState::Gone => {}
            PodState::Asking(_) => self.hang_up(pod),
            PodState::Running(container) => self.del(node, &container),
        }
        self.pods.get_mut(&pod).expect("found above").state = PodState::Gone;
    }

    /// The sandbox goes, and the agent hears of it, or will when it is back.
    fn del(&mut self, n: usize, container: &str) {
        self.nodes[n].sandboxes.remove(container);
        self.note(|| format!("n{n} DEL {container}"));
        self.release_noted(n, container);
    }

    /// All addresses of a record go back.
    pub fn release_noted(&mut self, n: usize, container: &str) {
        let node = &mut self.nodes[n];
        if node.machine.is_none() {
            return;
        }
        let Some(e) = node.journal.get_mut(container) else { return };
        e.deleting = true;
        e.left = e.held.iter().map(|h| h.name.clone()).collect();
        let epoch = node.epoch;
        for h in e.held.clone() {
            // It may die in the middle.
            if self.lives(n, epoch) {
                self.with(n, |m, now| m.release(now, &h.name, container, h.identity.is_some()));
            }
        }
    }

    /// The list of the node's leases comes: of what the machine does not know is first told what lives in sandboxes, and noted
    /// again, as far as the lease says by whom.
    pub fn listed(&mut self, n: usize, id: RequestId, list: Vec<Lease>) {
        let node = &self.nodes[n];
        let Some(machine) = &node.machine else { return };
        let (mut held, mut used, mut again) = (Vec::new(), Vec::new(), BTreeMap::<String, Noted>::new());
        for l in list.iter().filter(|l| !machine.knows(&l.name)) {
            let has = |c: &str| node.sandboxes.get(c).is_some_and(|names| names.contains(&l.name));
            let holder = l.holder.clone().filter(|h| has(&h.container));
            let record = holder.as_ref().and_then(|h| node.journal.get(&h.container));
            match (holder, record) {
                (Some(holder), None) => {
                    let noted = || Noted { held: Vec::new(), holder: holder.clone(), deleting: false, left: BTreeSet::new() };
                    let (name, pool, identity) = (l.name.clone(), l.pool.clone(), l.identity.clone());
                    let address = NotedAddress { name: name.clone(), pool: pool.clone(), identity: identity.clone() };
                    again.entry(holder.container.clone()).or_insert_with(noted).held.push(address);
                    held.push(Held { name, pool, holder, identity });
                }
                (Some(holder), Some(e)) if !e.deleting && e.held.iter().any(|h| h.name == l.name) => {
                    held.push(Held { name: l.name.clone(), pool: l.pool.clone(), holder, identity: l.identity.clone() });
                }
                _ if node.sandboxes.values().flatten().any(|name| *name == l.name) => used.push((l.name.clone(), l.pool.clone())),
                _ => {}
            }
        }
        self.note(|| format!("n{n} finds {} noted nowhere, {} of sandboxes that nobody can tell", held.len(), used.len()));
        for (container, noted) in again {
            self.nodes[n].journal.insert(container, noted);
            if self.crashes(n) {
                return;
            }
        }
        self.with(n, |m, now| {
            m.living(now, held, used);
            m.reply(now, id, Reply::Leases(list));
        });
    }

    /// The machine called it released. Somebody else's task strikes a record out when all of it is.
    pub fn released(&mut self, n: usize, name: &Name) {
        let node = &mut self.nodes[n];
        let mut gone = Vec::new();
        for (container, e) in node.journal.iter_mut().filter(|(_, e)| e.deleting) {
            if e.held.iter().any(|h| h.name == *name) {
                e.left.remove(name);
                if e.left.is_empty() {
                    gone.push(container.clone());
                }
            }
        }
        let epoch = node.epoch;
        for container in gone {
            self.after(0, 100, Ev::Strike(n, epoch, container));
        }
    }

    /// The runtime does not wait for an ADD any more.
    pub fn hang_up(&mut self, pod: usize) {
        let p = self.pods.get_mut(&pod).expect("asked by the caller");
        let (n, PodState::Asking(id)) = (p.node, p.state.clone()) else { return };
        p.state = PodState::Waiting;
        let Some(i) = self.nodes[n].asks.iter().position(|a| a.id == id) else { return };
        let adding = self.nodes[n].asks.remove(i);
        let epoch = self.nodes[n].epoch;
        self.with(n, |m, now| m.cancel(now, id));
        if self.lives(n, epoch) {
            self.give_back(n, &adding);
        }
    }

    pub fn hung_up(&mut self, pod: usize) {
        if matches!(self.pods.get(&pod), Some(Pod { state: PodState::Asking(_), .. })) {
            self.hang_up(pod);
            self.retry(pod);
        }
    }

    fn retry(&mut self, pod: usize) {
        let when = self.now + RETRY;
        self.at(when, Ev::Retry(pod));
    }

    /// What an ADD took that failed. A fixed address that it was the first to take is not kept.
    fn give_back(&mut self, n: usize, a: &Adding) {
        if a.taken.is_empty() {
            return;
        }
        let container = a.holder.container.clone();
        let noted = self.noted(a, true);
        self.nodes[n].journal.insert(container.clone(), noted);
        if self.crashes(n) {
            return;
        }
        self.release_noted(n, &container);
    }

    fn noted(&self, a: &Adding, undone: bool) -> Noted {
        let identity = self.identity(self.pods[&a.pod].asks);
        let held = a.taken.iter().map(|t| NotedAddress {
            name: t.name.clone(),
            pool: t.pool.clone(),
            identity: identity.clone().filter(|_| !(undone && t.fresh)),
        });
        Noted { held: held.collect(), holder: a.holder.clone(), deleting: undone, left: BTreeSet::new() }
    }

    pub fn identity(&self, asks: Asks) -> Option<Arc<Identity>> {
        let (kind, name) = match asks {
            Asks::Any => return None,
            Asks::Ordinal(n) => (IdentityKind::StatefulSet, format!("web-{n}")),
            Asks::Address(n) => (IdentityKind::Pod, format!("app-{n}")),
        };
        Some(Arc::new(Identity { kind, namespace: "n".into(), name, nic: "eth0".into() }))
    }

    /// ADD, where the agent listens.
    pub fn try_pod(&mut self, pod: usize) {
        let Some(p) = self.pods.get(&pod).filter(|p| p.state == PodState::Waiting) else { return };
        let (n, asks) = (p.node, p.asks);
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
        self.ask(n, pod, holder, Vec::new());
        self.pump(n);
    }

    /// The next family of an ADD.
    fn ask(&mut self, n: usize, pod: usize, holder: Arc<Holder>, taken: Vec<Taken>) {
        let family = self.families[taken.len()];
        let p = &self.pods[&pod];
        let (asks, lost) = (p.asks, p.lost.contains(&family));
        let identity = self.identity(asks);
        let known = || {
            let i = identity.as_ref()?;
            let of_identity = |l: &&ipam::Lease| l.identity.as_ref() == Some(i) && Family::of(l.name.ip) == family;
            let of_lease = || self.server.leases.values().find(of_identity).map(|l| l.name.clone());
            self.index.get(&(i.clone(), family)).cloned().or_else(of_lease)
        };
        let what = match (asks, family) {
            (Asks::Address(k), Family::V4) => Of::Fixed { pool: self.pool_of(self.address(k)).clone(), ip: self.address(k) },
            // The index said one that is another's by now: it gets a new one, as in the driver.
            _ => match known().filter(|_| !lost) {
                Some(name) => Of::Fixed { pool: self.pool_of(name.ip).clone(), ip: name.ip },
                None => Of::Any(self.pools.iter().map(|p| p.ask.clone()).filter(|p| of_family(p, family)).collect()),
            },
        };
        self.note(|| {
            let what = match &what {
                Of::Any(pools) => pools.iter().fold("any of".to_owned(), |t, p| t + " " + &p.name),
                Of::Fixed { ip, .. } => ip.to_string(),
            };
            format!("n{n} ADD {} for {}: {what}", holder.container, holder.pod)
        });
        let ask = Ask { holder: holder.clone(), identity, what };
        let now = self.now;
        let node = &mut self.nodes[n];
        let id = node.machine.as_mut().expect("checked by the caller").take(now, ask);
        node.asks.push(Adding { id, pod, holder, taken });
        self.pods.get_mut(&pod).expect("found above").state = PodState::Asking(id);
    }

    /// False: the agent died over it, or must not have done this.
    pub fn taken(&mut self, n: usize, id: AskId, taken: Taken) -> bool {
        let Some(i) = self.nodes[n].asks.iter().position(|a| a.id == id) else {
            self.breaks(format!("n{n} got an address for an ask that was given up"));
            return false;
        };
        let mut a = self.nodes[n].asks.remove(i);
        a.taken.push(taken);
        if a.taken.len() < self.families.len() {
            if self.crashes(n) {
                return false;
            }
            self.ask(n, a.pod, a.holder, a.taken);
            return true;
        }
        let container = a.holder.container.clone();
        let noted = self.noted(&a, false);
        self.nodes[n].journal.insert(container.clone(), noted);
        if self.crashes(n) {
            return false;
        }
        let now = self.now;
        let used = a.taken.iter().position(|t| self.strangers.get(&t.name).is_some_and(|until| *until > now));
        if let Some(i) = used {
            return self.stranger(n, a, i);
        }
        self.note(|| {
            let names: Vec<String> = a.taken.iter().map(|t| t.name.ip.to_string()).collect();
            format!("n{n} {container} has {}", names.join(" and "))
        });
        for t in &a.taken {
            self.use_address(n, &container, &t.name);
        }
        if let Some(i) = self.identity(self.pods[&a.pod].asks) {
            for t in a.taken {
                self.index.insert((i.clone(), Family::of(t.name.ip)), t.name);
            }
        }
        let p = self.pods.get_mut(&a.pod).expect("it asked");
        p.state = PodState::Running(container);
        p.refused = None;
        p.lost.clear();
        true
    }

    /// The probe finds somebody who uses one of the addresses: nobody gets it for a while, unless an identity is to have it.
    fn stranger(&mut self, n: usize, mut a: Adding, i: usize) -> bool {
        let fixed = self.pods[&a.pod].asks;
        let named = matches!(fixed, Asks::Address(_)) && Family::of(a.taken[i].name.ip) == Family::V4;
        self.pods.get_mut(&a.pod).expect("it asked").state = PodState::Waiting;
        self.retry(a.pod);
        self.note(|| format!("n{n} {} finds a stranger at {}", a.holder.container, a.taken[i].name.ip));
        if self.identity(fixed).is_none() || (a.taken[i].fresh && !named) {
            let name = a.taken.remove(i).name;
            let why = Quarantine { mac: None, reason: "DuplicateAddress".to_owned(), node: self.nodes[n].name.clone() };
            let now = self.now;
            if let Some(m) = &mut self.nodes[n].machine {
                m.quarantine(now, &name, &a.holder.container, why);
            }
            if self.crashes(n) {
                return false;
            }
            // It is no longer ours to give back.
            self.nodes[n].journal.remove(&a.holder.container);
        }
        let epoch = self.nodes[n].epoch;
        self.give_back(n, &a);
        self.lives(n, epoch)
    }

    pub fn failed(&mut self, n: usize, id: AskId, error: TakeError) {
        let Some(i) = self.nodes[n].asks.iter().position(|a| a.id == id) else { return };
        let a = self.nodes[n].asks.remove(i);
        self.note(|| format!("n{n} ADD {} fails: {error}", a.holder.container));
        let family = self.families[a.taken.len()];
        let p = self.pods.get_mut(&a.pod).expect("it asked");
        p.state = PodState::Waiting;
        p.refused = Some(error.clone());
        let asks = p.asks;
        if let TakeError::Refused { .. } = error
            && (matches!(asks, Asks::Ordinal(_)) || family == Family::V6)
        {
            p.lost.insert(family);
            // One that never had it for sure may find another there.
            let had = self.identity(asks).is_some_and(|i| self.index.contains_key(&(i, family)));
            if had && !self.restored {
                self.breaks(format!("{} lost its address: {error}", a.holder.pod));
            }
        }
        self.retry(a.pod);
        self.give_back(n, &a);
    }
}

fn of_family(p: &PoolOfAsk, family: Family) -> bool {
    p.ranges.family() == family
}
