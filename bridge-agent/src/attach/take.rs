//! How a NIC gets its addresses: from the pod's annotations to leases. What is chosen is `ipam`'s decision, who has it is the
//! API server's (`leases`). Notes nothing: what was taken is the caller's to write down or to give back.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Duration;

use api::annotations::{self, WantedIp};
use api::convert::{self, Checked};
use api::mooring::{Holder, Identity, IdentityKind};
use cni::{Error, Request};
use ipam::fixed::{self, Controller};
use ipam::{Family, FamilyNames, Learned, NicPools, Picker, Pool, Window};
use kube::ResourceExt;
use model::IfAddr;
use plumbing::Host;
use serde_json::Value;

use super::pools::window;
use super::{Agent, Turn, hung_up, ifname};
use crate::caches::Pod;
use crate::endpoints::top_owner;
use crate::journal::{Held, Role};
use crate::leases::{Ask, LeaseError, Taken};

/// Creations that may end in a conflict before another pool is tried. A map is at most a second old, and a random bit of it
/// is taken by somebody else as often as that second's pods fill the window: 32 in a row is a map that says nothing.
const TRIES: usize = 32;
/// How long an ADD that finds every pool full waits for an address that comes back: a rolling update frees and takes at
/// the same time, and a map is written at most once a second.
const FULL_WAIT: Duration = Duration::from_secs(3);
/// How often full pools are looked at again meanwhile: the map's own rhythm.
const FULL_TICK: Duration = Duration::from_millis(500);

/// The pod's words about its addresses, read once.
pub(super) struct Words<'a> {
    pub pod: &'a Pod,
    pub checked: &'a Checked,
    pub holder: Holder,
}

impl<H: Host + 'static> Agent<H> {
    pub(super) fn choose(&self, turn: &Turn<'_>, words: &Words<'_>) -> Result<Vec<NicPools>, Error> {
        let namespace = words.pod.namespace().unwrap_or_default();
        let of_namespace = self.caches.namespace(&namespace).and_then(|ns| ns.metadata.annotations.clone()).unwrap_or_default();
        let sources = convert::sources(words.pod.annotations(), &of_namespace);
        let mut sources = sources.map_err(|e| Error::config(format!("annotation {e}")))?;
        sources.conf = conf_pools(turn.request)?;
        let nics = self.nics_of(Some(words.pod), turn)?;
        let ask = ipam::Ask {
            node: &self.me.node,
            namespace: &namespace,
            nics: &nics,
            current: ifname(turn.request)?.as_str(),
            agent_namespace: &self.me.namespace,
            sources: &sources,
        };
        ipam::choose(&words.checked.pools, &ask).map_err(|mut e| {
            if let ipam::ChoiceError::AllRejected { rejected, .. } = &mut e {
                for r in rejected {
                    if let Some(why) = words.checked.invalid.get(&r.pool) {
                        r.reason = format!("it is not valid: {why}");
                    }
                }
            }
            Error::config(e.to_string())
        })
    }

    /// All families of one NIC. What was taken is in `held` also after an error.
    pub(super) async fn take_nic(
        &self,
        turn: &Turn<'_>,
        words: &Words<'_>,
        nic: &NicPools,
        all: &[NicPools],
        held: &mut Vec<Held>,
    ) -> Result<(), Error> {
        let wanted = self.wanted(turn, words, nic, all)?;
        let pod = words.pod;
        let (namespace, name) = (words.holder.pod_namespace.as_str(), words.holder.pod_name.as_str());
        let owner = top_owner(pod);
        let controller = owner.as_ref().map(|o| Controller { kind: &o.kind, name: &o.name });
        let identity = ipam::Identity::of_pod(namespace, name, controller, &nic.nic, !wanted.is_empty())
            .map(|_| identity_of(namespace, name, controller, &nic.nic));
        let holder = Holder { interface: nic.nic.clone(), ..words.holder.clone() };
        let before = match &identity {
            Some(i) if wanted.is_empty() => self.addresses_before(i, &nic.nic).await?,
            _ => Vec::new(),
        };
        if let Some(w) = wanted.iter().find(|w| !families(nic).iter().any(|(f, _)| *f == Family::of(w.ip))) {
            return Err(Error::config(format!(
                "address {} cannot be given: no {} pool is named for {}",
                w.ip,
                Family::of(w.ip),
                nic.nic
            )));
        }
        for (family, pools) in families(nic) {
            if turn.abort.is_set() {
                return Err(hung_up());
            }
            let explicit = wanted.iter().find(|w| Family::of(w.ip) == family);
            let (pool, ip, lease) = match (explicit, &identity) {
                (Some(w), _) => {
                    let pool = fixed::check_request(&words.checked.pools, pools, w.ip, w.prefix_len)
                        .map_err(|e| Error::config(e.to_string()))?;
                    let ask = Ask { pool: &pool.name, domain: &pool.domain, holder: &holder, identity: identity.as_ref() };
                    (pool, w.ip, self.fixed(turn, &ask, w.ip).await?)
                }
                (None, Some(id)) => {
                    let old = before.iter().copied().find(|ip| Family::of(*ip) == family);
                    // Of a pool that is no longer asked for, or no longer has it: it gets another one.
                    let still =
                        old.and_then(|ip| fixed::check_request(&words.checked.pools, pools, ip, None).ok().map(|p| (p, ip)));
                    match still {
                        Some((pool, ip)) => {
                            let ask = Ask { pool: &pool.name, domain: &pool.domain, holder: &holder, identity: Some(id) };
                            (pool, ip, self.fixed(turn, &ask, ip).await?)
                        }
                        None => self.take_any(turn, words, nic, family, pools, &holder, Some(id)).await?,
                    }
                }
                (None, None) => self.take_any(turn, words, nic, family, pools, &holder, None).await?,
            };
            let addr = IfAddr::new(ip, pool.subnet.prefix_len()).map_err(|e| Error::new(Error::INTERNAL, e.to_string()))?;
            held.push(Held {
                lease: lease.name,
                uid: lease.uid,
                pool: pool.name.clone(),
                addr,
                gateway: pool.gateway,
                routes: pool.routes.clone(),
                clean_gateway: nic.clean_gateway,
                fixed: identity.is_some(),
                fresh: lease.created,
            });
        }
        if let Some(id) = identity.as_ref().filter(|_| before.iter().any(|ip| !held.iter().any(|h| h.addr.ip() == *ip))) {
            let keep: Vec<IpAddr> = held.iter().map(|h| h.addr.ip()).collect();
            if let Err(error) = self.leases.drop_others(id, &keep).await {
                tracing::warn!(identity = ?id, %error, "failed to give up an address of a pool that is no longer asked for");
            }
        }
        let extra = annotations::routes(words.pod.annotations()).map_err(|e| Error::config(format!("annotation {e}")))?;
        for h in held.iter_mut() {
            let net = h.addr.network();
            h.routes.extend(extra.iter().filter(|(_, gw)| net.contains(*gw)));
        }
        Ok(())
    }

    async fn fixed(&self, turn: &Turn<'_>, ask: &Ask<'_>, ip: IpAddr) -> Result<Taken, Error> {
        let taken = self.leases.take_fixed(ask, ip).await.map_err(|e| lease_error(&e))?;
        if turn.abort.is_set() {
            // The caller's list does not have it yet.
            if let Err(error) = self
                .leases
                .release(&taken.name, &taken.uid, &ask.holder.container_id, ask.identity.is_some() && !taken.created)
                .await
            {
                tracing::warn!(lease = taken.name, %error, "failed to give an address back; the next start will");
            }
            return Err(hung_up());
        }
        Ok(taken)
    }

    /// Any free address of the pools, in their order.
    #[expect(clippy::too_many_arguments, reason = "two callers, and no two of them travel together anywhere else")]
    async fn take_any<'w>(
        &self,
        turn: &Turn<'_>,
        words: &'w Words<'_>,
        nic: &NicPools,
        family: Family,
        pools: &[String],
        holder: &Holder,
        identity: Option<&Identity>,
    ) -> Result<(&'w Pool, IpAddr, Taken), Error> {
        let deadline = tokio::time::Instant::now() + FULL_WAIT;
        loop {
            for name in pools {
                let Some(pool) = words.checked.pools.get(name) else { continue };
                let ask = Ask { pool: &pool.name, domain: &pool.domain, holder, identity };
                if let Some((ip, lease)) = self.take_from(turn, words, pool, &ask).await? {
                    return Ok((pool, ip, lease));
                }
            }
            if turn.abort.is_set() {
                return Err(hung_up());
            }
            if tokio::time::Instant::now() + FULL_TICK > deadline {
                let sizes = pools.iter().map(|p| {
                    let total = words.checked.pools.allocatable(p).map_or(0, ipam::Ranges::len);
                    format!("{p} ({total} addresses)")
                });
                let text = sizes.collect::<Vec<_>>().join(", ");
                return Err(Error::new(
                    Error::TRY_AGAIN,
                    format!("no free {family} address for {}: every address is taken in pool {text}", nic.nic),
                ));
            }
            tokio::select! {
                () = tokio::time::sleep(FULL_TICK) => {}
                () = turn.abort.wait() => return Err(hung_up()),
            }
        }
    }

    async fn take_from(
        &self,
        turn: &Turn<'_>,
        words: &Words<'_>,
        pool: &Pool,
        ask: &Ask<'_>,
    ) -> Result<Option<(IpAddr, Taken)>, Error> {
        let Some(allocatable) = words.checked.pools.allocatable(&pool.name) else { return Ok(None) };
        let map = self.caches.pool_map(&pool.name).await;
        let free = map.as_deref().map(window);
        let version = map.as_ref().and_then(|m| m.resource_version());
        let learned = self.learned(&pool.name, free.as_ref(), version);
        let found = self.try_window(turn, ask, free.as_ref(), allocatable, &learned).await?;
        if found.is_some() {
            return Ok(found);
        }
        // No map, or one that knows of nothing free: one chunk's leases, listed from the API server's cache.
        let chunks: Vec<IpAddr> = allocatable.chunks().take(ipam::window::MAX_CHUNKS).collect();
        let Some(base) =
            (!chunks.is_empty()).then(|| chunks[usize::try_from(random() % chunks.len() as u64).expect("few chunks")])
        else {
            return Ok(None);
        };
        let leased = self.leases.of_chunk(&pool.domain, base).await.map_err(|e| lease_error(&e))?;
        let chunk = Window { chunks: vec![ipam::window::free_of_chunk(allocatable, base, &leased)] };
        self.try_window(turn, ask, Some(&chunk), allocatable, &Learned::default()).await
    }

    async fn try_window(
        &self,
        turn: &Turn<'_>,
        ask: &Ask<'_>,
        window: Option<&Window>,
        allocatable: &ipam::Ranges,
        learned: &Learned,
    ) -> Result<Option<(IpAddr, Taken)>, Error> {
        let mut picker = Picker::new(window, allocatable, learned);
        for _ in 0..TRIES {
            if turn.abort.is_set() {
                return Err(hung_up());
            }
            let Some(ip) = picker.next(&mut random) else { break };
            match self.leases.take(ask, ip).await.map_err(|e| lease_error(&e))? {
                Some(lease) => return Ok(Some((ip, lease))),
                None => self.conflict(ask.pool, ip),
            }
        }
        Ok(None)
    }

    /// What is remembered of a pool, after it was compared with the present map.
    fn learned(&self, pool: &str, window: Option<&Window>, version: Option<String>) -> Learned {
        let mut all = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(pool.to_owned()).or_default();
        if let Some(w) = window.filter(|_| known.map_version != version) {
            known.learned.window_changed(w);
            known.map_version = version;
        }
        known.learned.clone()
    }

    fn conflict(&self, pool: &str, ip: IpAddr) {
        let mut all = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(pool.to_owned()).or_default().learned.conflict(ip);
    }

    /// The addresses that this NIC's identity had: its SpiderEndpoint is the index, its leases are the truth.
    async fn addresses_before(&self, identity: &Identity, nic: &str) -> Result<Vec<IpAddr>, Error> {
        let again = |e: &dyn std::error::Error| Error::new(Error::TRY_AGAIN, crate::cni_server::with_causes(e));
        if identity.kind == IdentityKind::StatefulSet {
            let endpoint = self.endpoints.get(&identity.namespace, &identity.name).await.map_err(|e| again(&e))?;
            let ips = endpoint.and_then(|e| e.status).map(|s| s.current.ips).unwrap_or_default();
            let mine = ips.iter().filter(|i| i.interface == nic);
            let found: Vec<IpAddr> = mine
                .flat_map(|i| [&i.ipv4, &i.ipv6])
                .flatten()
                .filter_map(|a| a.split('/').next().and_then(|ip| ip.parse().ok()))
                .collect();
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let leases = self.leases.of_identity(identity).await.map_err(|e| again(&e))?;
        let mine = leases.iter().filter(|l| l.identity.as_ref().is_some_and(|i| i.interface == nic));
        Ok(mine.filter_map(|l| l.address.parse().ok()).collect())
    }

    /// Addresses that are asked for by name: `mooring.dev/ips`, else `ips` of the networks annotation.
    fn wanted(&self, turn: &Turn<'_>, words: &Words<'_>, nic: &NicPools, all: &[NicPools]) -> Result<Vec<WantedIp>, Error> {
        if let Some(list) = annotations::ips(words.pod.annotations()).map_err(|e| Error::config(format!("annotation {e}")))? {
            // Without a name it is for the pod's only NIC of ours; a second one would ask for the same address.
            let others = self.journal.of_container(&turn.request.container_id);
            let others = others.iter().any(|e| e.key.role == Role::Addresses && e.key.ifname != nic.nic);
            if list.iter().any(|n| n.interface.is_none()) && (all.len() > 1 || others) {
                return Err(Error::config(format!(
                    "annotation {}: the pod has several NICs with addresses of pools, so each entry has to name its interface",
                    api::keys::IPS
                )));
            }
            let mine = list.into_iter().find(|n| n.interface.as_ref().is_none_or(|i| i.as_str() == nic.nic));
            if let Some(m) = mine {
                return Ok(m.ips);
            }
        }
        if nic.nic != ifname(turn.request)?.as_str() {
            return Ok(Vec::new());
        }
        let conf = &turn.request.conf;
        let value = conf.runtime("ips").or_else(|| conf.args_cni("ips"));
        let items: Vec<&Value> = match value {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(a)) => a.iter().collect(),
            Some(v @ Value::String(_)) => vec![v],
            Some(v) => return Err(Error::config(format!("ips {v}: must be a list of addresses"))),
        };
        let mut out: Vec<WantedIp> = Vec::new();
        for item in items {
            let text = item.as_str().unwrap_or_default();
            let (ip, len) = text.split_once('/').map_or((text, None), |(ip, len)| (ip, Some(len)));
            let parsed = ip.parse().ok().and_then(|ip| {
                Some(WantedIp { ip, prefix_len: len.map(|l| l.parse().ok()).map_or(Some(None), |l| l.map(Some))? })
            });
            out.push(
                parsed
                    .ok_or_else(|| Error::config(format!("ips {item}: must be an address, with or without a prefix length")))?,
            );
        }
        let ips: Vec<IpAddr> = out.iter().map(|w| w.ip).collect();
        fixed::one_of_each_family(&ips).map_err(|e| Error::config(e.to_string()))?;
        Ok(out)
    }
}

/// A pod of a StatefulSet by its own name; whoever else asks for addresses by its controller's, so that the next pod of a
/// Deployment gets them.
fn identity_of(namespace: &str, pod: &str, controller: Option<Controller<'_>>, nic: &str) -> Identity {
    let (kind, name) = match controller {
        Some(c) if c.kind == "StatefulSet" && fixed::ordinal(c.name, pod).is_some() => (IdentityKind::StatefulSet, pod),
        Some(c) => (IdentityKind::Pod, c.name),
        None => (IdentityKind::Pod, pod),
    };
    Identity { kind, namespace: namespace.to_owned(), name: name.to_owned(), interface: nic.to_owned() }
}

fn families(nic: &NicPools) -> Vec<(Family, &[String])> {
    let v4 = nic.v4.as_deref().map(|l| (Family::V4, l));
    let v6 = nic.v6.as_deref().map(|l| (Family::V6, l));
    v4.into_iter().chain(v6).collect()
}

/// `default_ipv4_ippool` and `default_ipv6_ippool` of the network's `ipam`.
fn conf_pools(request: &Request) -> Result<FamilyNames, Error> {
    let list = |key: &str| -> Result<Option<Vec<String>>, Error> {
        let Some(v) = request.conf.ipam.as_ref().and_then(|o| o.get(key)) else { return Ok(None) };
        match v {
            Value::Null => Ok(None),
            Value::Array(a) => {
                let one = |v: &Value| {
                    v.as_str().map(str::to_owned).ok_or_else(|| Error::config(format!("ipam.{key} {v}: must be a pool's name")))
                };
                let names = a.iter().map(one).collect::<Result<Vec<_>, _>>()?;
                Ok(Some(names).filter(|n| !n.is_empty()))
            }
            v => Err(Error::config(format!("ipam.{key} {v}: must be a list of pools"))),
        }
    };
    Ok(FamilyNames { v4: list("default_ipv4_ippool")?, v6: list("default_ipv6_ippool")? })
}

fn lease_error(e: &LeaseError) -> Error {
    let code = if e.is_temporary() { Error::TRY_AGAIN } else { Error::CONFLICT };
    Error::new(code, crate::cni_server::with_causes(e))
}

/// 64 bits: each `RandomState` has keys of its own, which is random enough to keep nodes apart; the API decides anyway.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
