//! The node's loop: what NodeNetwork asks for against what is there, one round at a time, entered from everywhere: a new
//! spec, a change on the host, the clock. Each bridge is changed by itself; one that could not be, and was rolled back, is
//! held until its spec changes. Decides nothing (`planner::node` does) and writes status through `status` alone.
//!
//! One task, ended by the shutdown; cancelling it leaves a plan to `Host::apply`, which ends it by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::NodeNetwork;
use api::mooring::BridgeOnNode;
use kube::Client;
use model::desired::NodeDesired;
use model::observed::{Look, LookOvs, Observed, Scope};
use planner::node::{self, BridgePlan, Verdict};
use plumbing::{Host, HostError};
use runtime::Shutdown;
use tokio::time::Instant;

use crate::attach::coordinator::COORDINATOR;
use crate::caches::Caches;
use crate::cni_server::with_causes;
use crate::journal::Journal;
use crate::status::{self, Outcome};

/// Drift that no event told of is found by then; a look at everything costs some milliseconds.
const RESYNC: Duration = Duration::from_secs(60);
/// A round after a failure that may pass by itself (Open vSwitch restarts).
const RETRY: Duration = Duration::from_secs(5);
/// Rounds that the host's own changes cause are at least so far apart: every pod that starts is such a change.
const CALM: Duration = Duration::from_secs(1);
/// Passes of one round: a bridge may wait for what another one gives up in the same round.
const PASSES: usize = 3;

/// A change that was rolled back.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    spec: BridgeOnNode,
    message: String,
}

pub struct NodeLoop<H> {
    host: Arc<H>,
    client: Client,
    caches: Caches,
    journal: Arc<Journal>,
    node: String,
    agent_id: String,
    held: BTreeMap<String, Held>,
    /// Steps of the last change of each bridge.
    changes: BTreeMap<String, Vec<String>>,
    /// What an earlier life of the agent held is taken over once.
    started: bool,
}

impl<H> std::fmt::Debug for NodeLoop<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeLoop").field("node", &self.node).field("held", &self.held).finish_non_exhaustive()
    }
}

impl<H: Host + 'static> NodeLoop<H> {
    pub fn new(host: Arc<H>, client: Client, caches: Caches, journal: Arc<Journal>, node: &str, agent_id: &str) -> Self {
        Self {
            host,
            client,
            caches,
            journal,
            node: node.to_owned(),
            agent_id: agent_id.to_owned(),
            held: BTreeMap::new(),
            changes: BTreeMap::new(),
            started: false,
        }
    }

    pub async fn run(mut self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.wait() => return,
            () = self.caches.ready_for_node() => {}
        }
        let mut spec = self.caches.node_network_changed();
        let mut host = self.host.changes();
        loop {
            spec.borrow_and_update();
            host.borrow_and_update();
            let began = Instant::now();
            let settled = match self.caches.node_network() {
                Some(n) => self.round(&n).await,
                // The controller makes it when a Bridge wants this node, or at its leisure.
                None => true,
            };
            let wait = if settled { RESYNC } else { RETRY };
            tokio::select! {
                () = shutdown.wait() => return,
                () = tokio::time::sleep(wait) => {}
                r = spec.changed() => if r.is_err() { return },
                r = host.changed() => {
                    if r.is_err() { return }
                    tokio::select! {
                        () = shutdown.wait() => return,
                        () = tokio::time::sleep_until(began + CALM) => {}
                        r = spec.changed() => if r.is_err() { return },
                    }
                }
            }
        }
    }

    /// Whether there is nothing to try again soon.
    pub async fn round(&mut self, network: &NodeNetwork) -> bool {
        self.take_over(network);
        let specs = &network.spec.bridges;
        self.held.retain(|name, h| specs.iter().any(|b| b.name == *name && *b == h.spec));
        self.changes.retain(|name, _| specs.iter().any(|b| b.name == *name));
        let (desired, wrong) = api::convert::node(specs);
        let mut failures: BTreeMap<String, Outcome> = BTreeMap::new();
        for (name, invalid) in wrong {
            failures.insert(name, Outcome::failed("InvalidSpec", invalid.to_string()));
        }
        let mut settled = true;
        let mut cni = self.cni_fault();
        let seen = match self.settle(specs, &desired, &mut failures).await {
            Ok(seen) => seen,
            Err(e) => {
                let message = with_causes(&e);
                tracing::warn!(message, "failed to look at the host, will retry");
                for b in specs {
                    failures.entry(b.name.clone()).or_insert_with(|| Outcome::failed("HostUnreadable", message.clone()));
                }
                let reason = if matches!(e, HostError::Ovs { .. }) { "OpenVSwitchDown" } else { "HostUnreadable" };
                cni.get_or_insert_with(|| Outcome::failed(reason, message));
                settled = false;
                Observed::default()
            }
        };
        let plans = node::plan(&desired, &seen).bridges;
        settled &= !failures.values().any(|o| o.passing);
        for (name, h) in &self.held {
            failures.entry(name.clone()).or_insert_with(|| Outcome::failed("HeldAfterRollback", h.message.clone()));
        }
        // What is away now is told as soon as it is back.
        settled &= cni.is_none();
        let coordinator = self.caches.coordinator(COORDINATOR);
        let now = status::Now {
            network,
            agent_id: &self.agent_id,
            plans: &plans,
            failures: &failures,
            changes: &self.changes,
            seen: &seen,
            cni: cni.as_ref(),
            coordinator: coordinator.as_deref(),
        };
        if let Err(error) = status::write(&self.client, &self.node, &now).await {
            tracing::warn!(error = with_causes(&error), "failed to write the status of the NodeNetwork, will retry");
            settled = false;
        }
        settled
    }

    /// What keeps ADDs from being served, beside the host.
    fn cni_fault(&self) -> Option<Outcome> {
        if self.journal.is_broken() {
            return Some(Outcome::failed(
                "JournalUnwritable",
                "the journal cannot be written: is the run directory's file system full",
            ));
        }
        let what = self.caches.missing()?;
        Some(Outcome::failed("CacheNotReady", format!("the first list of {what} from the api server is not there yet")))
    }

    /// Plans and applies until nothing changes any more. Returns the last look.
    async fn settle(
        &mut self,
        specs: &[BridgeOnNode],
        desired: &NodeDesired,
        failures: &mut BTreeMap<String, Outcome>,
    ) -> Result<Observed, HostError> {
        let mut seen = self.look().await?;
        for pass in 0..PASSES {
            let mut changed = false;
            for b in node::plan(desired, &seen).bridges {
                let name = b.name.to_string();
                if b.plan.is_empty() || self.held.contains_key(&name) || failures.contains_key(&name) {
                    continue;
                }
                if pass > 0 && matches!(b.verdict, Verdict::Change) {
                    tracing::debug!(bridge = name, pass, "still differs");
                }
                changed |= self.change(&b, specs, failures).await;
            }
            if !changed {
                break;
            }
            seen = self.look().await?;
        }
        Ok(seen)
    }

    async fn change(&mut self, b: &BridgePlan, specs: &[BridgeOnNode], failures: &mut BTreeMap<String, Outcome>) -> bool {
        let name = b.name.to_string();
        let steps: Vec<String> = b.plan.steps.iter().map(ToString::to_string).collect();
        tracing::info!(bridge = name, verdict = b.verdict.reason(), plan = steps.join("; "), "changing");
        match self.host.apply(None, &b.plan).await {
            Ok(()) => {
                self.changes.insert(name, steps);
                true
            }
            Err(e) => {
                tracing::warn!(bridge = name, error = %e, "the change was rolled back");
                let passing = matches!(e.reason(), "OpenVSwitchDown" | "Changed");
                if let Some(spec) = specs.iter().find(|s| s.name == name).filter(|_| !passing) {
                    self.held.insert(name, Held { spec: spec.clone(), message: e.to_string() });
                } else {
                    failures.insert(name, Outcome { passing: true, ..Outcome::failed(e.reason(), e.to_string()) });
                }
                // What was undone may still have moved something.
                true
            }
        }
    }

    async fn look(&self) -> Result<Observed, HostError> {
        let scope = Scope { host: Look::All, pod: Look::Nothing, ovs: LookOvs::All };
        self.host.observe(None, &scope).await
    }

    /// A change that this agent rolled back before it was restarted is still held.
    fn take_over(&mut self, network: &NodeNetwork) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        for b in network.status.iter().flat_map(|s| &s.bridges) {
            let Some(spec) = network.spec.bridges.iter().find(|s| s.name == b.name && s.generation == b.generation) else {
                continue;
            };
            if b.reason.as_deref() == Some("HeldAfterRollback") {
                let message = b.message.clone().unwrap_or_default();
                self.held.insert(b.name.clone(), Held { spec: spec.clone(), message });
            }
            if !b.plan.is_empty() {
                self.changes.insert(b.name.clone(), b.plan.clone());
            }
        }
    }
}
