//! One controller at a time, by a `coordination.k8s.io` Lease as Kubernetes' own controllers have it (client-go's
//! leaderelection, whose durations these are). Two that decide at once would corrupt nothing, for what matters is guarded by
//! resourceVersions; they would only do everything twice.
//!
//! Clocks of different machines are not compared: a holder counts as gone when its Lease has not changed for the lease's
//! duration by our own clock.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

/// The Lease's name; `deploy/rbac` allows this one only.
pub const NAME: &str = "mooring-controller";
/// Its namespace, where the manifests install the controller.
pub const NAMESPACE: &str = "kube-system";

/// How long a holder that does not renew keeps the others waiting.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for so long stops, well before another one may begin.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks, and after a renewal that failed.
const RETRY: Duration = Duration::from_secs(2);
/// After one that succeeded. Longer than client-go's 2 s, for each is a write: when the others take over depends on the lease's
/// duration alone, and within the deadline there is time for another two tries.
const RENEW: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Leader {
    api: Api<Lease>,
    me: String,
    /// The version last seen, and since when.
    seen: Option<(String, Instant)>,
}

impl Leader {
    pub fn new(client: Client) -> Self {
        // Machine, process and time of its start: no two have the same, also where a pid is given out again.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let me = format!("{}_{}_{:x}", host.trim(), std::process::id(), Timestamp::now().as_nanosecond());
        Self { api: Api::namespaced(client, NAMESPACE), me, seen: None }
    }

    /// Returns when we lead.
    pub async fn acquire(&mut self) {
        let mut told = false;
        loop {
            match self.attempt(RENEW_DEADLINE).await {
                Ok(Ok(())) => return,
                Ok(Err(other)) if !told => {
                    tracing::info!(leader = other, "another controller leads, waiting");
                    told = true;
                }
                Ok(Err(_)) => {}
                Err(error) => tracing::warn!(error, "failed to ask who leads, will be tried again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews, and returns when we lead no longer.
    pub async fn keep(&mut self) {
        let (mut renewed, mut pause) = (Instant::now(), RENEW);
        loop {
            tokio::time::sleep(pause).await;
            pause = RETRY;
            match self.attempt(RENEW_DEADLINE.saturating_sub(renewed.elapsed())).await {
                Ok(Ok(())) => (renewed, pause) = (Instant::now(), RENEW),
                Ok(Err(other)) => {
                    tracing::warn!(leader = other, "another controller leads");
                    return;
                }
                Err(error) => tracing::warn!(error, "failed to say that we still lead, will be tried again"),
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                return;
            }
        }
    }

    /// Lets the next one lead at once.
    pub async fn release(&mut self) {
        let give = async {
            let Some(mut l) = self.api.get_opt(NAME).await? else { return Ok(()) };
            let spec = l.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&self.me) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            self.api.replace(NAME, &PostParams::default(), &l).await.map(drop)
        };
        // Whoever waits for our end waits no longer than for one retry.
        match tokio::time::timeout(RETRY, give).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "failed to let another controller lead"),
            Err(_) => tracing::warn!("no answer when letting another controller lead"),
        }
    }

    /// One look, and where it is our turn one write. `Ok(Err(name))`: another one leads.
    async fn attempt(&mut self, limit: Duration) -> Result<Result<(), String>, String> {
        match tokio::time::timeout(limit, self.look()).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    async fn look(&mut self) -> Result<Result<(), String>, kube::Error> {
        let Some(mut there) = self.api.get_opt(NAME).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(0)) };
            return lost_or(self.api.create(&PostParams::default(), &lease).await);
        };
        let version = there.resource_version().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => self.seen.insert((version, Instant::now())).1,
        };
        let spec = there.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or_default();
        let duration = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(DURATION, Duration::from_secs);
        if holder == self.me {
            let acquired = spec.acquire_time;
            there.spec = Some(LeaseSpec { acquire_time: acquired, ..self.spec(transitions) });
        } else if holder.is_empty() || since.elapsed() >= duration {
            there.spec = Some(self.spec(transitions.saturating_add(1)));
        } else {
            return Ok(Err(holder));
        }
        lost_or(self.api.replace(NAME, &PostParams::default(), &there).await)
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = Timestamp::now();
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(MicroTime(now)),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

/// A conflict: somebody was quicker, and leads.
fn lost_or(done: Result<Lease, kube::Error>) -> Result<Result<(), String>, kube::Error> {
    match done {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(s)) if s.code == 409 => Ok(Err("one that was quicker".to_owned())),
        Err(e) => Err(e),
    }
}
