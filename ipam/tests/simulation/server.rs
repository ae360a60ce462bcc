//! A model of the API server with its etcd: what a request does to the leases, and going back in time. Knows nothing of who
//! asks or of what becomes of the answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ipam::machine::{Reply, Request};
use ipam::{Lease, Name};

/// States to go back to, or to answer lists from.
const HISTORY: usize = 64;

#[derive(Debug, Default)]
pub struct Server {
    pub leases: BTreeMap<Name, Lease>,
    revision: u64,
    uids: u64,
    /// Set where the schedule looks back.
    pub remembers: bool,
    history: VecDeque<(Duration, u64, BTreeMap<Name, Lease>)>,
    pub writes: u64,
}

impl Server {
    /// The answer, and the name that changed.
    pub fn carry_out(&mut self, now: Duration, request: &Request, stale: bool) -> (Reply, Option<Name>) {
        match request {
            Request::Get(name) => (self.leases.get(name).map_or(Reply::Absent, |l| Reply::Done(l.clone())), None),
            Request::Create(l) => {
                if self.leases.contains_key(&l.name) {
                    return (Reply::Conflict, None);
                }
                self.uids += 1;
                let made = Lease { uid: self.uids.to_string().into(), ..l.clone() };
                (Reply::Done(self.put(now, made)), Some(l.name.clone()))
            }
            Request::Update(l) => match self.leases.get(&l.name) {
                None => (Reply::Absent, None),
                Some(there) if there.version != l.version || there.uid != l.uid => (Reply::Conflict, None),
                // As kube-apiserver: an update that changes nothing keeps the version.
                Some(there) if there == l => (Reply::Done(l.clone()), None),
                Some(_) => (Reply::Done(self.put(now, l.clone())), Some(l.name.clone())),
            },
            Request::Delete(l) => match self.leases.get(&l.name) {
                None => (Reply::Absent, None),
                Some(there) if there.version != l.version || there.uid != l.uid => (Reply::Conflict, None),
                Some(_) => {
                    self.remember(now);
                    self.revision += 1;
                    self.writes += 1;
                    self.leases.remove(&l.name);
                    (Reply::Deleted, Some(l.name.clone()))
                }
            },
            // The world knows who asks and filters by node.
            Request::ListNode => (Reply::Leases(self.cached(now, stale).values().cloned().collect()), None),
            Request::ListChunk { domain, .. } => {
                let all: BTreeSet<_> = self.cached(now, stale).keys().filter(|n| n.domain == *domain).map(|n| n.ip).collect();
                (Reply::Addresses(all), None)
            }
        }
    }

    fn put(&mut self, now: Duration, l: Lease) -> Lease {
        self.remember(now);
        self.revision += 1;
        self.writes += 1;
        let l = Lease { version: Arc::from(self.revision.to_string()), ..l };
        self.leases.insert(l.name.clone(), l.clone());
        l
    }

    fn remember(&mut self, now: Duration) {
        if self.remembers {
            self.history.push_back((now, self.revision, self.leases.clone()));
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
        }
    }

    fn cached(&self, now: Duration, stale: bool) -> &BTreeMap<Name, Lease> {
        let old = self.history.iter().rev().find(|(at, ..)| stale && *at + Duration::from_secs(5) <= now);
        old.map_or(&self.leases, |(.., l)| l)
    }

    /// etcd as it was at that moment, or the oldest that is remembered.
    pub fn restore(&mut self, to: Duration, bump: bool) {
        // Each remembered state is the one before the change at its time.
        let Some(i) = self.history.iter().position(|(at, ..)| *at > to) else { return };
        let (_, revision, leases) = self.history[i].clone();
        self.history.truncate(i);
        self.leases = leases;
        self.revision = if bump { self.revision + 1_000_000_000 } else { revision };
    }
}
