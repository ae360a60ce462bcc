//! Whether the addresses of a NIC are free on its segment too, and whether its gateways are there: what is asked, and what
//! becomes of an address that a stranger uses. How it is asked is the host's matter (a step of the NIC's plan).
//!
//! Asked is what the pool's annotations say, else the network's coordinator settings, else the SpiderCoordinator's; by default
//! nothing.

use api::annotations;
use api::spider::{CoordinatorSettings, SpiderIPPool};
use cni::Error;
use kube::ResourceExt;
use model::MacAddr;
use planner::step::Probe;
use plumbing::Host;
use serde_json::Value;
use std::net::IpAddr;

use super::coordinator::COORDINATOR;
use super::{Agent, Turn, hung_up, ifname};
use crate::events::Reason;
use crate::journal::{Entry, Held, Key, Role, Work};

/// Addresses that an ADD tries. With a third of a pool in strangers' use one ADD in 6,000 finds none; each one that is used costs
/// milliseconds, for its user answers at once, and at most 0.6 s.
pub(super) const TRIES: usize = 8;

impl<H: Host + 'static> Agent<H> {
    /// What this NIC asks before it uses its addresses. Nothing for addresses that are of no pool.
    pub(super) async fn probe_of(&self, turn: &Turn<'_>) -> Result<Probe, Error> {
        let held = self.held(turn)?;
        let mut probe = Probe::default();
        if held.is_empty() {
            return Ok(probe);
        }
        let network = self.network_detects(turn).await?;
        let pools = self.caches.pools();
        for h in &held {
            let pool = pools.iter().find(|p| p.name_any() == h.pool);
            let wants = pool.map(|p| pool_detects(p)).transpose()?.unwrap_or_default();
            if wants.conflict.unwrap_or(network.conflict) {
                probe.unused.push(h.addr.ip());
            }
            if let Some(gateway) = h.gateway.filter(|_| wants.gateway.unwrap_or(network.gateway)) {
                probe.gateways.push((gateway, h.addr.ip()));
            }
        }
        Ok(probe)
    }

    fn held(&self, turn: &Turn<'_>) -> Result<Vec<Held>, Error> {
        Ok(match self.addresses_entry(turn)?.map(|e| e.work) {
            Some(Work::Addresses(a)) => a.held,
            _ => Vec::new(),
        })
    }

    fn addresses_entry(&self, turn: &Turn<'_>) -> Result<Option<Entry>, Error> {
        let key = Key::new(&turn.request.container_id, ifname(turn.request)?.as_str(), Role::Addresses);
        Ok(self.journal.get(&key))
    }

    async fn network_detects(&self, turn: &Turn<'_>) -> Result<Detects, Error> {
        // It never blocks a pod: what is known is used.
        if let Err(error) = self.caches.ready_for_coordinator().await {
            tracing::debug!(%error, "probing without a SpiderCoordinator");
        }
        let conf = turn.known.coordinator.clone().unwrap_or_default();
        let own: CoordinatorSettings = serde_json::from_value(Value::Object(conf))
            .map_err(|e| Error::config(format!("the coordinator's configuration: {e}")))?;
        let all = api::convert::merged(&own, self.caches.coordinator(COORDINATOR).as_deref());
        Ok(Detects { conflict: all.detect_ip_conflict == Some(true), gateway: all.detect_gateway == Some(true) })
    }

    /// A stranger uses an address of this NIC: it is put into quarantine, and the ADD may try another one. An error ends the ADD;
    /// the caller gives back whatever is still held.
    pub(super) async fn is_duplicate(&self, turn: &Turn<'_>, ip: IpAddr, mac: MacAddr, left: &mut usize) -> Result<(), Error> {
        let mut entry = self.addresses_entry(turn)?;
        let mut at = None;
        if let Some(Entry { work: Work::Addresses(a), .. }) = &mut entry
            && let Some(i) = a.held.iter().position(|h| h.addr.ip() == ip)
        {
            at = Some(a.held.remove(i));
        }
        let (Some(entry), Some(held)) = (entry, at) else {
            return Err(Error::new(Error::INTERNAL, format!("address {ip} was probed and is not held")));
        };
        let text = format!("address {ip} of pool {} is used by somebody with the hardware address {mac}", held.pool);
        tracing::warn!(container = turn.request.container_id, lease = held.lease, %mac, "a stranger uses an address of a pool");
        if let Some(pod) = turn.request.pod() {
            self.events.warn(&pod, Reason::AddressConflict, &text);
        }
        if held.identity.is_some() && (!held.fresh || self.is_named(turn, ip)) {
            return Err(Error::new(Error::TRY_AGAIN, format!("{text}, and the pod is to have this one")));
        }
        *left = left.saturating_sub(1);
        self.leases.quarantine(&held.lease, &turn.request.container_id, Some(mac.to_string()));
        // The lease is no longer ours to give back.
        match &entry.work {
            Work::Addresses(a) if a.held.is_empty() => self.forget(&entry.key),
            _ => self.write(entry)?,
        }
        if turn.abort.is_set() {
            return Err(hung_up());
        }
        if *left == 0 {
            return Err(Error::new(
                Error::TRY_AGAIN,
                format!("strangers use each of the {TRIES} addresses that were tried; {text}"),
            ));
        }
        Ok(())
    }

    /// Whether the pod asks for this very address.
    fn is_named(&self, turn: &Turn<'_>, ip: IpAddr) -> bool {
        let of_pod = turn.known.pod.as_ref().and_then(|p| annotations::ips(p.annotations()).ok().flatten()).unwrap_or_default();
        let conf = &turn.request.conf;
        let of_call = [conf.runtime("ips"), conf.args_cni("ips")].into_iter().flatten();
        let of_call =
            of_call.flat_map(|v| v.as_array().map_or_else(|| vec![v], |a| a.iter().collect())).filter_map(Value::as_str);
        of_pod.iter().flat_map(|n| &n.ips).any(|w| w.ip == ip)
            || of_call.filter_map(|s| s.split('/').next()?.parse().ok()).any(|named: IpAddr| named == ip)
    }
}

/// What a network wants.
#[derive(Debug, Clone, Copy)]
struct Detects {
    conflict: bool,
    gateway: bool,
}

fn pool_detects(pool: &SpiderIPPool) -> Result<annotations::Detect, Error> {
    annotations::detect(pool.annotations()).map_err(|e| Error::config(format!("pool {}: annotation {e}", pool.name_any())))
}
