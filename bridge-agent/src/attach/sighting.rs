//! Addresses whose node's object was deleted: asks the segment whether somebody uses them, where the pool's map names this node,
//! and writes what it hears into their leases. It asks by a NIC of a pod that has an address of the same pool, for that is
//! where such an address would be used. Nothing is taken from anybody.
//!
//! One task; a question is at most 0.6 s for sixteen addresses, and a few more for those that answer.

use std::net::IpAddr;
use std::time::Duration;

use api::mooring::{PoolMap, lease_name};
use model::IfName;
use planner::{Ns, Plan, Step, step::Probe};
use plumbing::{Host, Netns, StepError};
use runtime::Shutdown;

use super::{Agent, living_netns};
use crate::journal::{Role, State, Work};

/// How often maps are looked at: the controller changes its mind about who asks once a minute.
const EVERY: Duration = Duration::from_secs(5);
/// Addresses of one question: whoever answers ends it, and the rest is asked again.
const AT_ONCE: usize = 16;

impl<H: Host + 'static> Agent<H> {
    /// Until the shutdown.
    pub async fn look_for_strays(&self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.wait() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            for map in self.caches.pool_maps() {
                tokio::select! {
                    () = shutdown.wait() => return,
                    () = self.look(&map) => {}
                }
            }
        }
    }

    /// Asks for what this map wants of this node.
    pub async fn look(&self, map: &PoolMap) {
        let mine = map.spec.probes.iter().filter(|p| p.node == self.me.node);
        let all: Vec<IpAddr> = mine.filter_map(|p| p.address.parse().ok()).collect();
        if all.is_empty() {
            return;
        }
        let pool = &map.spec.pool;
        let checked = self.caches.checked_pools();
        let Some(domain) = checked.pools.get(pool).map(|p| p.domain.clone()) else { return };
        let Some((netns, dev)) = self.on_segment(pool) else { return };
        for some in all.chunks(AT_ONCE) {
            let mut left = some.to_vec();
            while !left.is_empty() {
                let ask = Probe { unused: left.clone(), gateways: Vec::new() };
                let plan = Plan { steps: vec![Step::Probe { ns: Ns::Pod, dev: dev.clone(), ask }] };
                let heard = match self.host.apply(Some(&netns), &plan).await.map_err(|e| *e.cause) {
                    Ok(()) => None,
                    Err(StepError::Duplicate { ip, mac }) if left.contains(&ip) => Some((ip, mac)),
                    Err(error) => {
                        tracing::debug!(pool, %dev, %error, "a deleted node's addresses were not asked for; another node will");
                        return;
                    }
                };
                // One that answers, or all that are left.
                let told: Vec<IpAddr> = left.extract_if(.., |ip| heard.is_none_or(|(h, _)| h == *ip)).collect();
                for ip in told {
                    let mac = heard.map(|(_, mac)| mac.to_string());
                    self.leases.sighted(&lease_name(&domain, ip), mac).await;
                }
            }
        }
    }

    /// A NIC here with an address of the pool.
    fn on_segment(&self, pool: &str) -> Option<(Netns, IfName)> {
        let entries = self.journal.all();
        let mut nics = entries.iter().filter(|e| match &e.work {
            Work::Addresses(a) => e.state == State::Added && a.held.iter().any(|h| h.pool == pool),
            _ => false,
        });
        nics.find_map(|a| {
            let main = entries.iter().find(|e| {
                e.key.role == Role::Main
                    && e.state == State::Added
                    && (&e.key.container_id, &e.key.ifname) == (&a.key.container_id, &a.key.ifname)
            })?;
            Some((living_netns(main)?, IfName::new(&main.key.ifname).ok()?))
        })
    }
}
