//! How a NIC gets its addresses: from the pod's annotations to leases. What is chosen is `ipam`'s decision, who has it is the
//! API server's (`leases`). Notes nothing: what was taken is the caller's to write down or to give back.

use std::net::IpAddr;
use std::sync::Arc;

use api::annotations::{self, WantedIp};
use api::convert::{self, Checked};
use api::mooring::{Holder, Identity, IdentityKind};
use cni::{Error, Request};
use ipam::fixed::{self, Controller};
use ipam::machine::{PoolOfAsk, TakeError, Taken, What};
use ipam::{Family, FamilyNames, NicPools, Pool, Ranges};
use kube::ResourceExt;
use model::IfAddr;
use plumbing::Host;
use serde_json::Value;

use super::{Agent, Turn, backoff, hung_up, ifname};
use crate::caches::Pod;
use crate::endpoints::top_owner;
use crate::journal::{Held, Role};
use crate::leases::{identity_object, name_text};

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
        let identity = ipam::Identity::of_pod(namespace, name, controller, &nic.nic, !wanted.is_empty());
        let identity = identity.as_ref().map(identity_object);
        let holder = Holder { interface: nic.nic.clone(), ..words.holder.clone() };
        let is_named = |family: Family| wanted.iter().any(|w| Family::of(w.ip) == family);
        let before = match &identity {
            // Of a family that is not named it is the one it had.
            Some(i) if families(nic).iter().any(|(f, _)| !is_named(*f)) => self.addresses_before(i, &nic.nic).await?,
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
            let old = before.iter().copied().find(|ip| Family::of(*ip) == family);
            // Of a pool that is no longer asked for, or no longer has it: it gets another one.
            let still = old.and_then(|ip| Some((fixed::check_request(&words.checked.pools, pools, ip, None).ok()?, ip)));
            let what = match (explicit, still) {
                (Some(w), _) => {
                    let pool = fixed::check_request(&words.checked.pools, pools, w.ip, w.prefix_len)
                        .map_err(|e| Error::config(e.to_string()))?;
                    What::Fixed { pool: of_ask(words, pool), ip: w.ip }
                }
                (None, Some((pool, ip))) => What::Fixed { pool: of_ask(words, pool), ip },
                (None, None) => any(words, pools),
            };
            let key = backoff::key(pod, &nic.nic, pools);
            if matches!(what, What::Any(_)) && self.pools_are_empty(&key, pools, words.checked) {
                return Err(take_error(words, nic, family, pools, &TakeError::Full));
            }
            let mut got = self.take_one(turn, &holder, identity.as_ref(), what).await?;
            if let (Err(TakeError::Refused { ip, why }), None) = (&got, explicit) {
                // etcd went back in time: what the index remembers is another's by now.
                tracing::warn!(%ip, why, pod = %name, "the address of an identity is lost, it gets another one");
                got = self.take_one(turn, &holder, identity.as_ref(), any(words, pools)).await?;
            }
            match &got {
                Err(TakeError::Full) => self.empty.found_empty(&key, std::time::Instant::now()),
                Ok(_) => self.empty.found(&key),
                Err(_) => {}
            }
            let taken = got.map_err(|e| take_error(words, nic, family, pools, &e))?;
            let ip = taken.name.ip;
            let Some(pool) = words.checked.pools.get(&taken.pool) else {
                return Err(Error::new(Error::INTERNAL, format!("pool {} went while it gave {ip}", taken.pool)));
            };
            let addr = IfAddr::new(ip, pool.subnet.prefix_len()).map_err(|e| Error::new(Error::INTERNAL, e.to_string()))?;
            held.push(Held {
                lease: name_text(&taken.name),
                pool: pool.name.clone(),
                addr,
                gateway: pool.gateway,
                routes: pool.routes.clone(),
                clean_gateway: nic.clean_gateway,
                identity: identity.clone(),
                fresh: taken.fresh,
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

    /// The outer error: the runtime hung up.
    async fn take_one(
        &self,
        turn: &Turn<'_>,
        holder: &Holder,
        identity: Option<&Identity>,
        what: What,
    ) -> Result<Result<Taken, TakeError>, Error> {
        tokio::select! {
            got = self.leases.take(holder.clone(), identity, what) => Ok(got),
            () = turn.abort.wait() => Err(hung_up()),
        }
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

fn of_ask(words: &Words<'_>, pool: &Pool) -> PoolOfAsk {
    let family = Family::of_net(&pool.subnet);
    let ranges = words.checked.pools.allocatable(&pool.name).cloned().unwrap_or_else(|| Ranges::empty(family));
    PoolOfAsk { name: pool.name.as_str().into(), domain: pool.domain.as_str().into(), ranges: Arc::new(ranges) }
}

fn any(words: &Words<'_>, pools: &[String]) -> What {
    What::Any(pools.iter().filter_map(|p| words.checked.pools.get(p)).map(|p| of_ask(words, p)).collect())
}

fn take_error(words: &Words<'_>, nic: &NicPools, family: Family, pools: &[String], e: &TakeError) -> Error {
    match e {
        TakeError::Full => {
            let sizes = pools.iter().map(|p| {
                let total = words.checked.pools.allocatable(p).map_or(0, Ranges::len);
                format!("{p} ({total} addresses)")
            });
            let text = sizes.collect::<Vec<_>>().join(", ");
            let text = format!("no free {family} address for {}: every address is taken in pool {text}", nic.nic);
            Error::new(Error::TRY_AGAIN, text)
        }
        TakeError::Busy { .. } | TakeError::Api { permanent: false, .. } => Error::new(Error::TRY_AGAIN, e.to_string()),
        TakeError::Refused { .. } | TakeError::Api { permanent: true, .. } => Error::new(Error::CONFLICT, e.to_string()),
    }
}
