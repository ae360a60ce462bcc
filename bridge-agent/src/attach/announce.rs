//! The announcements of a NIC, repeated behind its ADD: the first may have been lost, and who missed it goes on sending to
//! whoever had the address before. The first one is a step of the NIC's plan.
//!
//! One task for each NIC, two seconds long; nobody waits for it. It ends with the process, which costs a repetition at most.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::IfName;
use plumbing::Host;
use tokio::sync::Semaphore;

use super::{Agent, living_netns};
use crate::journal::{Entry, State};

/// RFC 4861 section 7.2.6: advertisements at least `RetransTimer` apart.
const TICK: Duration = Duration::from_secs(1);
/// So there are three advertisements, MAX_NEIGHBOR_ADVERTISEMENT, and with ARP's at the last tick only, ANNOUNCE_NUM of them
/// ANNOUNCE_INTERVAL apart (RFC 5227 section 1.1): two, 2 s apart.
const TICKS: u32 = 2;
/// NICs whose announcements are to be repeated: more than a node may have pods (110 by default), so that only a burst of
/// more is told once instead of three times.
const MAX: usize = 512;
/// Each works on a blocking thread for some 20 ms, almost all of it waiting; 8 do 400 NICs within a second.
const AT_ONCE: usize = 8;

#[derive(Debug)]
pub(super) struct Announcing {
    all: Arc<Semaphore>,
    at_once: Arc<Semaphore>,
}

impl Default for Announcing {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MAX)), at_once: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl<H: Host + 'static> Agent<H> {
    /// Repeats the announcement of a NIC that was just added.
    pub(super) fn announce_again(&self, entry: Entry, dev: IfName, ips: Vec<IpAddr>) {
        let Ok(place) = self.announcing.all.clone().try_acquire_owned() else { return };
        let (host, journal, at_once) = (self.host.clone(), self.journal.clone(), self.announcing.at_once.clone());
        tokio::spawn(async move {
            let _place = place;
            for tick in 1..=TICKS {
                tokio::time::sleep(TICK).await;
                let due: Vec<IpAddr> = ips.iter().filter(|ip| ip.is_ipv6() || tick == TICKS).copied().collect();
                if due.is_empty() {
                    continue;
                }
                let Ok(_turn) = at_once.acquire().await else { return };
                // The namespace is not held meanwhile: it, and what is in it, must be able to go.
                let still = journal.get(&entry.key).is_some_and(|e| e.state == State::Added && e.netns == entry.netns);
                let Some(netns) = still.then(|| living_netns(&entry)).flatten() else { return };
                if let Err(error) = host.announce_again(&netns, &dev, &due).await {
                    tracing::debug!(container = entry.key.container_id, %dev, %error, "an announcement was not repeated");
                }
            }
        });
    }
}
