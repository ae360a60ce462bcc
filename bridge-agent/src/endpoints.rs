//! SpiderEndpoints: which addresses a pod has, for people to read, and the index of fixed identities. Those of ordinary pods
//! are written behind, nothing depends on them and they go with their pod; those of fixed identities are written before the
//! reply. Does not decide who has an address: leases do.
//!
//! One task (`run`), ended by the shutdown; what it had not written is written after the next ADD or never missed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::SpiderEndpoint;
use api::spider::{EndpointIp, EndpointNow, PoolRoute, SpiderEndpointSpec, SpiderEndpointStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use runtime::{Backoff, Shutdown};
use tokio::sync::Notify;

use crate::caches::Pod;
use crate::journal::{Entry, Work};

/// Endpoints that wait to be written: one for each pod of a node, of which kubelet allows 110 by default and few allow more
/// than 500. Beyond it the oldest would be no loss; new ones are not taken in.
const WAITING_MAX: usize = 1024;
/// NICs of one pod come within this time: they make one write.
const GATHER: Duration = Duration::from_millis(100);
/// Conflicts with the controller's or a user's change of the same object: each try reads it anew.
const TRIES: usize = 5;
/// One request; nobody waits for most of them.
const REQUEST_WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("failed to write spiderendpoint {0}/{1}")]
    Write(String, String, #[source] Box<kube::Error>),
    #[error("failed to read spiderendpoint {0}/{1}")]
    Read(String, String, #[source] Box<kube::Error>),
    #[error("no answer within {secs} s about spiderendpoint {0}/{1}", secs = REQUEST_WAIT.as_secs())]
    Timeout(String, String),
    #[error("spiderendpoint {0}/{1} changed {TRIES} times while it was to be written")]
    Contended(String, String),
}

/// The controlling owner at the top: a Deployment rather than its ReplicaSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopOwner {
    pub kind: String,
    pub name: String,
}

/// A ReplicaSet's name is its Deployment's and the pod-template-hash, which the pod has as a label.
pub fn top_owner(pod: &Pod) -> Option<TopOwner> {
    let owner = pod.controller()?;
    if owner.kind == "ReplicaSet" {
        let hash = pod.metadata.labels.as_ref().and_then(|l| l.get("pod-template-hash"));
        let deployment = hash.and_then(|h| owner.name.strip_suffix(h.as_str())).and_then(|n| n.strip_suffix('-'));
        if let Some(name) = deployment {
            return Some(TopOwner { kind: "Deployment".to_owned(), name: name.to_owned() });
        }
    }
    Some(TopOwner { kind: owner.kind.clone(), name: owner.name.clone() })
}

/// The endpoint of a pod, from what the journal has of its container. Owned by the pod, or for a StatefulSet's pod by the
/// StatefulSet, so that it outlives the pod.
pub fn endpoint_of(pod: &Pod, node: &str, entries: &[Entry]) -> SpiderEndpoint {
    let name = pod.name_any();
    let mut ips: Vec<EndpointIp> = Vec::new();
    for e in entries {
        let Work::Addresses(a) = &e.work else { continue };
        let call = entries.iter().find_map(|m| match &m.work {
            Work::Main(c) if m.key.ifname == e.key.ifname => Some(c),
            _ => None,
        });
        let mut ip = EndpointIp {
            interface: e.key.ifname.clone(),
            vlan: call.and_then(|c| c.vlan).map_or(0, i64::from),
            mac: call.and_then(|c| c.mac.clone()),
            ..EndpointIp::default()
        };
        for h in &a.held {
            let (addr, pool, gateway) = if h.addr.is_ipv4() {
                (&mut ip.ipv4, &mut ip.ipv4_pool, &mut ip.ipv4_gateway)
            } else {
                (&mut ip.ipv6, &mut ip.ipv6_pool, &mut ip.ipv6_gateway)
            };
            *addr = Some(h.addr.to_string());
            *pool = Some(h.pool.clone());
            *gateway = h.gateway.map(|g| g.to_string());
            ip.clean_gateway = Some(ip.clean_gateway.unwrap_or(false) || h.clean_gateway);
            ip.routes.extend(h.routes.iter().map(|(dst, gw)| PoolRoute { dst: dst.to_string(), gw: gw.to_string() }));
        }
        ips.push(ip);
    }
    let owner = top_owner(pod).unwrap_or_else(|| TopOwner { kind: "Pod".to_owned(), name: name.clone() });
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let by_pod = || OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: name.clone(),
        uid: uid.clone(),
        ..OwnerReference::default()
    };
    let owned_by = match pod.controller() {
        // Without `blockOwnerDeletion`, for which we would need a right on StatefulSets.
        Some(o) if o.kind == "StatefulSet" => OwnerReference { controller: None, block_owner_deletion: None, ..o.clone() },
        _ => by_pod(),
    };
    let mut endpoint = SpiderEndpoint::new(&name, SpiderEndpointSpec {});
    endpoint.metadata.namespace = pod.namespace();
    endpoint.metadata.owner_references = Some(vec![owned_by]);
    endpoint.status = Some(SpiderEndpointStatus {
        current: EndpointNow { uid, node: node.to_owned(), ips },
        owner_controller_type: owner.kind,
        owner_controller_name: owner.name,
    });
    endpoint
}

pub struct Endpoints {
    client: Client,
    waiting: Mutex<HashMap<(String, String), SpiderEndpoint>>,
    more: Notify,
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoints").finish_non_exhaustive()
    }
}

impl Endpoints {
    pub fn new(client: Client) -> Self {
        Self { client, waiting: Mutex::default(), more: Notify::new() }
    }

    pub async fn get(&self, namespace: &str, name: &str) -> Result<Option<SpiderEndpoint>, EndpointError> {
        let api: Api<SpiderEndpoint> = Api::namespaced(self.client.clone(), namespace);
        match tokio::time::timeout(REQUEST_WAIT, api.get_opt(name)).await {
            Ok(Ok(e)) => Ok(e),
            Ok(Err(e)) => Err(EndpointError::Read(namespace.to_owned(), name.to_owned(), Box::new(e))),
            Err(_) => Err(EndpointError::Timeout(namespace.to_owned(), name.to_owned())),
        }
    }

    /// Writes it some time soon. A later one of the same pod takes its place.
    pub fn write_behind(&self, endpoint: SpiderEndpoint) {
        let key = (endpoint.namespace().unwrap_or_default(), endpoint.name_any());
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= WAITING_MAX && !waiting.contains_key(&key) {
                tracing::warn!(namespace = key.0, name = key.1, "too many spiderendpoints wait to be written, one is left out");
                return;
            }
            waiting.insert(key, endpoint);
        }
        self.more.notify_one();
    }

    pub async fn write_now(&self, endpoint: &SpiderEndpoint) -> Result<(), EndpointError> {
        let (namespace, name) = (endpoint.namespace().unwrap_or_default(), endpoint.name_any());
        match tokio::time::timeout(REQUEST_WAIT, self.write(endpoint, &namespace, &name)).await {
            Ok(done) => done,
            Err(_) => Err(EndpointError::Timeout(namespace, name)),
        }
    }

    async fn write(&self, endpoint: &SpiderEndpoint, namespace: &str, name: &str) -> Result<(), EndpointError> {
        let api: Api<SpiderEndpoint> = Api::namespaced(self.client.clone(), namespace);
        let failed = |e| EndpointError::Write(namespace.to_owned(), name.to_owned(), Box::new(e));
        let is = |e: &kube::Error, code: u16| matches!(e, kube::Error::Api(s) if s.code == code);
        for _ in 0..TRIES {
            let done = match api.get_opt(name).await.map_err(failed)? {
                None => api.create(&PostParams::default(), endpoint).await,
                Some(there)
                    if there.status == endpoint.status
                        && there.metadata.owner_references == endpoint.metadata.owner_references =>
                {
                    return Ok(());
                }
                Some(mut there) => {
                    // Labels and finalizers are other people's.
                    there.metadata.owner_references.clone_from(&endpoint.metadata.owner_references);
                    there.status.clone_from(&endpoint.status);
                    api.replace(name, &PostParams::default(), &there).await
                }
            };
            match done {
                Ok(_) => return Ok(()),
                Err(e) if is(&e, 409) || is(&e, 404) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Err(EndpointError::Contended(namespace.to_owned(), name.to_owned()))
    }

    /// Writes what is waiting, until the shutdown.
    pub async fn run(&self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        loop {
            tokio::select! {
                () = shutdown.wait() => return,
                () = self.more.notified() => {}
            }
            tokio::time::sleep(GATHER).await;
            loop {
                let next = {
                    let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    waiting.iter().next().map(|(k, v)| (k.clone(), v.clone()))
                };
                let Some((key, endpoint)) = next else { break };
                let done = self.write_now(&endpoint).await;
                let refused = match &done {
                    // The namespace is going, or a rule of the CRD: the same write will not succeed later.
                    Err(EndpointError::Write(_, _, e)) => {
                        matches!(e.as_ref(), kube::Error::Api(s) if (400..500).contains(&s.code) && s.code != 429)
                    }
                    _ => false,
                };
                if let Err(error) = &done {
                    tracing::warn!(namespace = key.0, name = key.1, %error, retry = !refused, "failed to write a spiderendpoint");
                }
                if done.is_ok() || refused {
                    let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    // Unless a later one came meanwhile.
                    if waiting.get(&key) == Some(&endpoint) {
                        waiting.remove(&key);
                    }
                    backoff.reset();
                } else {
                    tokio::select! {
                        () = shutdown.wait() => return,
                        () = backoff.wait() => {}
                    }
                }
            }
        }
    }
}
