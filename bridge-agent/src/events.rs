//! Events on Pods: why one got no network, where `kubectl describe pod` shows it. A hint for people: bounded, said once for
//! each pod and reason, and lost rather than waited for.
//!
//! One task, started by `run`, ended by the shutdown; cancelling it loses hints only.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use model::PodRef;
use runtime::Shutdown;
use tokio::sync::mpsc;

/// Events that wait to be written. A node that fails more pods than this at once has one cause for all of them.
const QUEUE: usize = 64;
/// Pairs of pod and reason that are remembered as said: kubelet tries a failing pod again every few seconds for hours.
const REMEMBERED: usize = 512;
/// Kubernetes' own limit of an event's message.
const MESSAGE_MAX: usize = 1024;

/// Why; the word that `kubectl get events` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No pool gives this pod an address.
    NoAddress,
    /// Somebody outside of the cluster uses an address of a pool, or two sandboxes have one since etcd went back in time.
    AddressConflict,
    /// An annotation cannot be read.
    InvalidAnnotation,
    /// A network that the pod names is not there or is no configuration.
    NoNetwork,
    /// The NIC could not be made.
    AttachFailed,
}

impl Reason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::NoAddress => "NoAddress",
            Reason::AddressConflict => "AddressConflict",
            Reason::InvalidAnnotation => "InvalidAnnotation",
            Reason::NoNetwork => "NoNetwork",
            Reason::AttachFailed => "AttachFailed",
        }
    }
}

#[derive(Debug)]
pub struct Events {
    tx: mpsc::Sender<Said>,
    said: Mutex<Memory>,
}

#[derive(Debug)]
struct Said {
    pod: PodRef,
    reason: Reason,
    message: String,
}

#[derive(Debug, Default)]
struct Memory {
    known: HashSet<(String, Reason)>,
    order: VecDeque<(String, Reason)>,
}

impl Events {
    /// Starts the writer. Needs a running tokio runtime.
    pub fn start(client: Client, node: &str, shutdown: Shutdown) -> Self {
        let (tx, mut rx) = mpsc::channel::<Said>(QUEUE);
        let node = node.to_owned();
        tokio::spawn(async move {
            loop {
                let said = tokio::select! {
                    () = shutdown.wait() => return,
                    s = rx.recv() => match s { Some(s) => s, None => return },
                };
                let api: Api<Event> = Api::namespaced(client.clone(), &said.pod.namespace);
                if let Err(error) = api.create(&PostParams::default(), &event(&said, &node)).await {
                    tracing::warn!(pod = %said.pod, reason = said.reason.as_str(), %error, "failed to write an event");
                }
            }
        });
        Self { tx, said: Mutex::default() }
    }

    /// Says it, unless it was said of this pod before.
    pub fn warn(&self, pod: &PodRef, reason: Reason, message: &str) {
        let who = if pod.uid.is_empty() { pod.to_string() } else { pod.uid.clone() };
        {
            let mut m = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if !m.known.insert((who.clone(), reason)) {
                return;
            }
            m.order.push_back((who, reason));
            if m.order.len() > REMEMBERED
                && let Some(oldest) = m.order.pop_front()
            {
                m.known.remove(&oldest);
            }
        }
        let said = Said { pod: pod.clone(), reason, message: message.to_owned() };
        if self.tx.try_send(said).is_err() {
            tracing::debug!(%pod, reason = reason.as_str(), "too many events at once, one is lost");
        }
    }
}

fn event(said: &Said, node: &str) -> Event {
    let now = Timestamp::now();
    let pod = &said.pod;
    let message: String = said
        .message
        .chars()
        .scan(0, |n, c| {
            *n += c.len_utf8();
            (*n <= MESSAGE_MAX).then_some(c)
        })
        .collect();
    let of = |s: &str| Some(s.to_owned()).filter(|s| !s.is_empty());
    Event {
        metadata: ObjectMeta {
            // As client-go's recorder names them: the object and the time.
            name: Some(format!("{}.{:x}", pod.name, now.as_nanosecond())),
            namespace: Some(pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: of("v1"),
            kind: of("Pod"),
            namespace: of(&pod.namespace),
            name: of(&pod.name),
            uid: of(&pod.uid),
            ..ObjectReference::default()
        },
        reason: of(said.reason.as_str()),
        message: of(&message),
        type_: of("Warning"),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: of("mooring-agent"), host: of(node) }),
        reporting_component: of("mooring-agent"),
        reporting_instance: of(node),
        ..Event::default()
    }
}
