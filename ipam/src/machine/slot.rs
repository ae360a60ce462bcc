//! One name: what the agent wants of it, what the API server last said, and what follows from the two. The table of all
//! address decisions; it knows no time and no other name.

use std::sync::Arc;

use super::{AskId, Owner, Time};
use crate::fixed::{self, Decision};
use crate::{Holder, Identity, Lease, Name, Quarantine, Wanted};

/// What the lease of a name shall become.
#[derive(Debug, Clone)]
pub(super) enum Want {
    /// A sandbox has the address, or an ADD is about to.
    Hold(Hold),
    /// A new spare, to be created.
    Fill,
    /// Ours by the API server's word and unknown here: looked at before anything is decided.
    Found,
    /// Without a holder, not given before this time.
    Rest {
        until: Time,
    },
    /// Without a holder, for the next ADD.
    Spare {
        since: Time,
    },
    /// Left as it is until the next look at the sandboxes: one of them has the address, or may have it, and no record says which.
    Unclear,
    /// Given back, its identity kept.
    Keep,
    /// Given to nobody: somebody without a lease uses the address.
    Quarantine(Arc<Quarantine>),
    Gone,
}

#[derive(Debug, Clone)]
pub(super) struct Hold {
    pub holder: Arc<Holder>,
    pub identity: Option<Arc<Identity>>,
    pub stage: Stage,
    /// The identity did not have the address before this ADD.
    pub fresh: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The sandbox has it.
    Firm,
    /// Any address would do.
    Any(AskId),
    /// This one or none.
    Fixed(AskId),
}

/// What the API server last said.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    Unknown,
    Absent,
    There(Lease),
}

#[derive(Debug)]
pub(super) struct Slot {
    pub want: Want,
    pub pool: Arc<str>,
    pub seen: Seen,
    /// A request is under way; there is never a second one.
    pub flight: bool,
    /// Nothing is done before.
    pub retry_at: Option<Time>,
    pub failures: u32,
    /// A create without an answer may still be carried out until then.
    pub create_doubt: Option<Time>,
    /// A write guarded by this version may still be carried out until then.
    pub write_doubt: Option<(Arc<str>, Time)>,
    /// The version before the lease was looked at again.
    pub known: Option<Arc<str>>,
    /// A create found the name taken.
    pub conflicted: bool,
    /// Version of another's lease that was reported.
    pub reported: Option<Arc<str>>,
    /// Somebody waits to hear that it is given back.
    pub releasing: bool,
    /// The higher, the later it was written or seen.
    pub order: u64,
    /// Whom a lease of ours may name: who asked for the address or was found to have it, as far as the lease can still say so.
    pub holders: Vec<Arc<Holder>>,
}

/// What comes next for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Get,
    Create(Lease),
    Update(Lease),
    Delete(Lease),
    /// It is as wanted.
    Done,
    /// Nothing of ours is left.
    Forget,
    /// Somebody else has it: the ADD tries another address.
    Next,
    /// Somebody else has it, and the ADD waits.
    Busy {
        holder: String,
        node: Arc<str>,
    },
    Refuse(String),
    /// Found: to be decided by what it says.
    Classify(Lease),
    /// Ours, of somebody whom nothing here tells of: the journal has lost the record, or the ADD never came to write one.
    Unclear,
    /// A sandbox here lives with an address that is another's by the API server's word.
    Contested(Lease),
}

impl Slot {
    pub fn new(want: Want, pool: Arc<str>, seen: Seen) -> Self {
        let mut slot = Self {
            want,
            pool,
            seen,
            flight: false,
            retry_at: None,
            failures: 0,
            create_doubt: None,
            write_doubt: None,
            known: None,
            conflicted: false,
            reported: None,
            releasing: false,
            order: 0,
            holders: Vec::new(),
        };
        slot.admit_holder();
        slot
    }

    /// From now on the lease may name who is to have the address.
    pub fn admit_holder(&mut self) {
        if let Want::Hold(h) = &self.want
            && !self.holders.contains(&h.holder)
        {
            self.holders.push(h.holder.clone());
        }
    }

    /// The lease is as wanted, and nothing can change it: it names no former holder any more.
    pub fn forget_holders(&mut self) {
        if self.doubt().is_none() {
            self.holders.clear();
            self.admit_holder();
        }
    }

    fn is_unclear(&self, l: &Lease, me: &Owner) -> bool {
        let known = |h: &Arc<Holder>| self.holders.iter().any(|k| k.container == h.container);
        let lives = matches!(&self.want, Want::Hold(h) if h.stage == Stage::Firm);
        me.owns(l) && !lives && !l.holder.as_ref().is_none_or(known)
    }

    pub fn is_idle_lease(&self) -> bool {
        matches!(self.want, Want::Rest { .. } | Want::Spare { .. } | Want::Fill)
    }

    pub fn ask(&self) -> Option<AskId> {
        match &self.want {
            Want::Hold(Hold { stage: Stage::Any(id) | Stage::Fixed(id), .. }) => Some(*id),
            _ => None,
        }
    }

    /// Whether the address can be given without a word to the API server: the lease is ours, nobody has it, and no write that
    /// could change that is under way.
    pub fn giveable(&self, me: &Owner) -> bool {
        let Seen::There(l) = &self.seen else { return false };
        matches!(self.want, Want::Spare { .. }) && !self.flight && self.write_doubt.is_none() && is_free_lease(l, me)
    }

    /// Nothing is under way, and the API server did not fail for it.
    pub fn is_quiet(&self) -> bool {
        !self.flight && self.failures == 0
    }

    /// Only a write that may still come in is left of it.
    pub fn lingers(&self) -> bool {
        matches!(self.want, Want::Gone) && !self.flight && self.doubt().is_some() && !matches!(self.seen, Seen::There(_))
    }

    /// Until when something that was given up may still be carried out.
    pub fn doubt(&self) -> Option<Time> {
        self.create_doubt.max(self.write_doubt.as_ref().map(|(_, until)| *until))
    }

    pub fn there(&mut self, l: Lease, order: u64) {
        if self.write_doubt.as_ref().is_some_and(|(v, _)| *v != l.version) {
            self.write_doubt = None;
        }
        self.order = order;
        self.seen = Seen::There(l);
    }

    /// Looks again, and remembers what was there.
    pub fn distrust(&mut self) {
        if let Seen::There(l) = &self.seen {
            self.known = Some(l.version.clone());
            self.seen = Seen::Unknown;
        }
    }

    pub fn act(&self, name: &Name, me: &Owner) -> Act {
        let there = match &self.seen {
            _ if matches!(self.want, Want::Unclear) => return Act::Done,
            Seen::Unknown => return Act::Get,
            Seen::Absent => None,
            Seen::There(l) if self.is_unclear(l, me) => return Act::Unclear,
            Seen::There(l) => Some(l),
        };
        let held = |h: &Hold| {
            let old = there.map(|l| (l.uid.clone(), l.version.clone())).unwrap_or_default();
            Lease {
                name: name.clone(),
                uid: old.0,
                version: old.1,
                pool: self.pool.clone(),
                node: me.node.clone(),
                agent_id: me.agent_id.clone(),
                holder: Some(h.holder.clone()),
                identity: h.identity.clone(),
                wanted: None,
                released: false,
                quarantine: None,
            }
        };
        let owned = there.filter(|l| me.owns(l));
        match (&self.want, there) {
            (Want::Hold(h), Some(l)) if is_held_by(l, h, me) => Act::Done,
            (Want::Hold(h), _) => match h.stage {
                Stage::Firm => match there {
                    None => Act::Create(held(h)),
                    Some(l) if me.owns(l) => Act::Update(held(h)),
                    // Given back for an identity: a running sandbox wins.
                    Some(l) if l.agent_id.is_empty() && l.quarantine.is_none() => Act::Update(held(h)),
                    // Another node's spare: one writer at a time, so it is asked for.
                    Some(l) if l.quarantine.is_none() && l.holder.is_none() && l.wanted.is_none() => {
                        Act::Update(Lease { wanted: Some(me.wanted(h)), ..l.clone() })
                    }
                    Some(l) => Act::Contested(l.clone()),
                },
                Stage::Any(_) => match there {
                    None if self.conflicted => Act::Next,
                    None => Act::Create(held(h)),
                    // A leftover of our own: taking it is as good as creating it.
                    Some(l) if *l.agent_id == *me.agent_id && (l.identity.is_none() || l.identity == h.identity) => {
                        Act::Update(held(h))
                    }
                    Some(_) => Act::Next,
                },
                Stage::Fixed(_) => {
                    // A lease of ours that no sandbox here has, or there would be no second ADD for it.
                    let free =
                        there.map(|l| Lease { holder: l.holder.clone().filter(|_| *l.agent_id != *me.agent_id), ..l.clone() });
                    let asker =
                        fixed::Me { node: &me.node, agent_id: &me.agent_id, holder: &h.holder, identity: h.identity.as_deref() };
                    match (fixed::decide(free.as_ref(), &asker), there) {
                        (Decision::Create, _) => Act::Create(held(h)),
                        (Decision::Mine | Decision::Take, _) => Act::Update(held(h)),
                        (Decision::WaitFor { holder, node }, _) => Act::Busy { holder: holder.to_string(), node },
                        (Decision::Recall { .. }, Some(l)) if l.wanted.is_none() => {
                            Act::Update(Lease { wanted: Some(me.wanted(h)), ..l.clone() })
                        }
                        (Decision::Recall { node }, _) => Act::Busy { holder: "nobody (a spare address)".to_owned(), node },
                        (Decision::Refuse(why), _) => Act::Refuse(why),
                    }
                }
            },
            (Want::Fill, None) if self.conflicted => Act::Forget,
            (Want::Fill, None) => Act::Create(Lease {
                holder: None,
                ..held(&Hold { holder: Arc::new(nobody()), identity: None, stage: Stage::Firm, fresh: false })
            }),
            (Want::Unclear, _) => Act::Done,
            (Want::Fill | Want::Found, _) => owned.map_or(Act::Forget, |l| Act::Classify(l.clone())),
            (Want::Rest { .. } | Want::Spare { .. }, _) => match owned {
                None => Act::Forget,
                // Somebody asks for this very address.
                Some(l) if l.wanted.is_some() => Act::Delete(l.clone()),
                Some(l) if is_free_lease(l, me) && (l.released || matches!(self.want, Want::Spare { .. })) => Act::Done,
                Some(l) => Act::Update(Lease {
                    node: me.node.clone(),
                    agent_id: me.agent_id.clone(),
                    holder: None,
                    identity: None,
                    released: true,
                    ..l.clone()
                }),
            },
            (Want::Keep, _) => match owned {
                None => Act::Forget,
                Some(l) if l.identity.is_none() => Act::Delete(l.clone()),
                Some(l) => Act::Update(Lease { wanted: None, released: true, ..emptied(l) }),
            },
            (Want::Quarantine(q), _) => match owned {
                None => Act::Forget,
                // It is not to come back to an identity, which has another one by then.
                Some(l) => Act::Update(Lease { wanted: None, identity: None, quarantine: Some(q.clone()), ..emptied(l) }),
            },
            (Want::Gone, _) => owned.map_or(Act::Forget, |l| Act::Delete(l.clone())),
        }
    }
}

fn nobody() -> Holder {
    Holder { namespace: String::new(), pod: String::new(), uid: String::new(), nic: String::new(), container: String::new() }
}

fn emptied(l: &Lease) -> Lease {
    Lease { node: "".into(), agent_id: "".into(), holder: None, ..l.clone() }
}

/// To the letter, but for a request to hand it over, which a running sandbox does not answer.
fn is_held_by(l: &Lease, h: &Hold, me: &Owner) -> bool {
    l.agent_id == me.agent_id
        && l.node == me.node
        && l.holder.as_ref() == Some(&h.holder)
        && l.identity == h.identity
        && !l.released
}

/// Ours, and for anybody.
fn is_free_lease(l: &Lease, me: &Owner) -> bool {
    l.agent_id == me.agent_id && l.node == me.node && l.holder.is_none() && l.identity.is_none() && l.wanted.is_none()
}

impl Owner {
    /// Ours, or of an agent whose disk is gone: a new agent under an old node's name is its heir.
    pub(super) fn owns(&self, l: &Lease) -> bool {
        !l.agent_id.is_empty() && (l.agent_id == self.agent_id || l.node == self.node)
    }

    fn wanted(&self, h: &Hold) -> Arc<Wanted> {
        Arc::new(Wanted {
            node: self.node.clone(),
            agent_id: self.agent_id.clone(),
            namespace: h.holder.namespace.clone(),
            pod: h.holder.pod.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spare_is_given_only_while_no_write_can_change_it() {
        let me = Owner { node: "n".into(), agent_id: "a".into() };
        let name = Name { ip: std::net::IpAddr::from([10, 0, 0, 1]), domain: "d".into() };
        let lease = Lease {
            name,
            uid: "1".into(),
            version: "1".into(),
            pool: "p".into(),
            node: me.node.clone(),
            agent_id: me.agent_id.clone(),
            holder: None,
            identity: None,
            wanted: None,
            released: true,
            quarantine: None,
        };
        let spare = || Slot::new(Want::Spare { since: Time::ZERO }, "p".into(), Seen::There(lease.clone()));
        assert!(spare().giveable(&me));
        assert!(!Slot { flight: true, ..spare() }.giveable(&me), "a write is under way");
        assert!(!Slot { write_doubt: Some(("1".into(), Time::MAX)), ..spare() }.giveable(&me), "one may still come in");
        assert!(!Slot { seen: Seen::Unknown, ..spare() }.giveable(&me), "it is looked at");
        let asked_for = Wanted { node: "m".into(), agent_id: "b".into(), namespace: "n".into(), pod: "q".into() };
        let asked_for = Lease { wanted: Some(Arc::new(asked_for)), ..lease.clone() };
        assert!(!Slot { seen: Seen::There(asked_for), ..spare() }.giveable(&me), "somebody asks for it");
        assert!(!Slot { want: Want::Rest { until: Time::MAX }, ..spare() }.giveable(&me), "it rests");
    }
}
