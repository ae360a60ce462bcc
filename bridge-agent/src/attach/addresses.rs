//! Addresses of a NIC out of pools: taken (`take`), noted, told, and given back. All families of a NIC are taken together
//! or not at all, and with `ippools` those of all NICs. Does not know how an address is chosen.

use std::time::Duration;

use api::mooring::Holder;
use cni::{AddResult, Error, Request};
use futures_util::future::join_all;
use kube::ResourceExt;
use model::Cidr;
use plumbing::Host;

use super::take::Words;
use super::{Agent, Turn, hung_up, ifname, journal_error};
use crate::caches::Pod;
use crate::endpoints::endpoint_of;
use crate::journal::{Addresses, Entry, Held, Key, Role, State, Work};

/// How long a DEL waits for its leases to be given back: long enough for the next pod's ADD to find them free, short enough for
/// an API server that does not answer.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

impl<H: Host + 'static> Agent<H> {
    /// `spiderpool` as the IPAM of another project's main plugin.
    pub(crate) async fn ipam_add(&self, turn: Turn<'_>) -> Result<AddResult, Error> {
        let result = self.addresses_add(&turn).await?;
        if let Some(pod) = self.pod_of(&turn).await? {
            self.publish(&pod, &turn.request.container_id).await;
        }
        Ok(result)
    }

    pub(crate) fn addresses_check(&self, request: &Request) -> Result<(), Error> {
        let name = ifname(request)?;
        match self.journal.get(&Key::new(&request.container_id, name.as_str(), Role::Addresses)) {
            Some(Entry { state: State::Added, .. }) => Ok(()),
            _ => Err(Error::new(Error::CHECK, format!("the agent holds no address for {name} of this container"))),
        }
    }

    /// Takes the addresses of the NIC in hand, or hands out those that an earlier NIC's ADD took for it.
    pub(crate) async fn addresses_add(&self, turn: &Turn<'_>) -> Result<AddResult, Error> {
        let container = &turn.request.container_id;
        let current = ifname(turn.request)?.as_str();
        let key = Key::new(container, current, Role::Addresses);
        if let Some(mut entry) = self.journal.get(&key) {
            if entry.state == State::Added
                && let Work::Addresses(a) = &mut entry.work
            {
                a.used = true;
                let result = result_of(&a.held);
                self.write(entry)?;
                return Ok(result);
            }
            // An earlier ADD failed and its addresses could not be given back yet.
            if !self.release_entry(&entry).await {
                return Err(Error::new(
                    Error::TRY_AGAIN,
                    format!("addresses of an earlier attempt for {current} are still being given back"),
                ));
            }
        }
        self.caches.ready_for_addresses().await.map_err(|e| Error::new(Error::TRY_AGAIN, e.to_string()))?;
        let pod = self.pod_of(turn).await?;
        let pod = pod.ok_or_else(|| {
            Error::env("CNI_ARGS: K8S_POD_NAMESPACE and K8S_POD_NAME are missing, addresses of pools are for pods")
        })?;
        let checked = self.caches.checked_pools();
        let reference = pod.reference();
        let holder = Holder {
            pod_namespace: reference.namespace.clone(),
            pod_name: reference.name.clone(),
            pod_uid: reference.uid.clone(),
            interface: String::new(),
            container_id: container.clone(),
        };
        let words = Words { pod: &pod, checked: &checked, holder };
        let mut choices = self.choose(turn, &words)?;
        // An address that a stranger uses is taken anew for its NIC alone.
        let has =
            |nic: &str| self.journal.get(&Key::new(container, nic, Role::Addresses)).is_some_and(|e| e.state == State::Added);
        choices.retain(|c| c.nic == current || !has(&c.nic));
        let mut taken: Vec<(String, Vec<Held>)> = Vec::new();
        let mut failed = None;
        for nic in &choices {
            let mut held = Vec::new();
            let done = self.take_nic(turn, &words, nic, &choices, &mut held).await;
            taken.push((nic.nic.clone(), held));
            if let Err(e) = done {
                failed = Some(e);
                break;
            }
        }
        if failed.is_none() && turn.abort.is_set() {
            failed = Some(hung_up());
        }
        let mut written: Vec<Key> = Vec::new();
        if failed.is_none() {
            for (nic, held) in &taken {
                let work = Work::Addresses(Addresses { held: held.clone(), taken_by: current.to_owned(), used: nic == current });
                let entry = Entry {
                    key: Key::new(container, nic, Role::Addresses),
                    state: State::Added,
                    pod: Some(reference.clone()),
                    netns: turn.netns.map(|n| super::netns_ref(n, turn.request.netns.as_deref())),
                    network: turn.request.conf.name.clone(),
                    runtime: turn.runtime.to_owned(),
                    work,
                };
                written.push(entry.key.clone());
                if let Err(e) = self.journal.put(entry) {
                    failed = Some(journal_error(e));
                    break;
                }
            }
        }
        if let Some(error) = failed {
            for (nic, held) in &taken {
                self.give_back(turn, nic, held).await;
            }
            return Err(error);
        }
        let mine = taken.iter().find(|(nic, _)| nic == current).map(|(_, held)| held.as_slice());
        Ok(result_of(mine.unwrap_or_default()))
    }

    /// Gives addresses back that no entry may stand for. What cannot be given back now is written down first.
    async fn give_back(&self, turn: &Turn<'_>, nic: &str, held: &[Held]) {
        let key = Key::new(&turn.request.container_id, nic, Role::Addresses);
        let entry = Entry {
            key: key.clone(),
            state: State::Deleting,
            pod: turn.request.pod(),
            netns: None,
            network: turn.request.conf.name.clone(),
            runtime: turn.runtime.to_owned(),
            work: Work::Addresses(Addresses { held: held.iter().map(undone).collect(), taken_by: nic.to_owned(), used: false }),
        };
        if held.is_empty() {
            self.forget(&key);
            return;
        }
        if let Err(error) = self.journal.put(entry.clone()) {
            // The next start's list of leases finds them.
            tracing::warn!(%error, nic, "failed to note addresses that are to be given back, they stay until the next start");
            return;
        }
        self.release_entry(&entry).await;
    }

    /// DEL of a NIC's addresses, and of those that its ADD took for NICs which never came. Never fails for the API's sake.
    pub(crate) async fn addresses_del(&self, container: &str, nic: &str) -> Result<(), Error> {
        self.addresses_end(container, nic, false).await
    }

    /// The same after a failed ADD: a fixed address that this ADD was the first to take is not kept.
    pub(crate) async fn addresses_undo(&self, container: &str, nic: &str) -> Result<(), Error> {
        self.addresses_end(container, nic, true).await
    }

    async fn addresses_end(&self, container: &str, nic: &str, failed: bool) -> Result<(), Error> {
        let mut mine = Vec::new();
        for e in self.journal.of_container(container) {
            let Work::Addresses(a) = &e.work else { continue };
            if e.key.ifname == nic || (a.taken_by == nic && !a.used) {
                mine.push(e);
            }
        }
        for mut entry in mine {
            entry.state = State::Deleting;
            if let Work::Addresses(a) = &mut entry.work
                && failed
            {
                a.held = a.held.iter().map(undone).collect();
            }
            let noted = self.write(entry.clone());
            let released = self.release_entry(&entry).await;
            // Not noted and not done: nobody but the runtime would try again.
            if !released {
                noted?;
            }
        }
        Ok(())
    }

    /// Gives the leases of an entry back; then the entry goes. Whether that was done within `RELEASE_WAIT`; it goes on behind.
    pub(crate) async fn release_entry(&self, entry: &Entry) -> bool {
        let Work::Addresses(a) = &entry.work else { return true };
        let container = &entry.key.container_id;
        let released = join_all(a.held.iter().map(|h| self.leases.release(&h.lease, container, h.identity.is_some())));
        let (journal, entry) = (self.journal.clone(), entry.clone());
        let done = tokio::spawn(async move {
            released.await;
            // Not one that was added meanwhile. On a full tmpfs it still says `added`.
            if journal.get(&entry.key).is_some_and(|e| e.state == State::Deleting || e.work == entry.work)
                && let Err(error) = journal.remove(&entry.key)
            {
                tracing::warn!(%error, "failed to strike released addresses from the journal, the next start will");
            }
        });
        tokio::time::timeout(RELEASE_WAIT, done).await.is_ok()
    }

    /// Writes the pod's SpiderEndpoint: at once for a fixed identity, whose index it is, else behind.
    pub(crate) async fn publish(&self, pod: &Pod, container: &str) {
        let entries = self.journal.of_container(container);
        let fixed = entries.iter().any(|e| matches!(&e.work, Work::Addresses(a) if a.held.iter().any(|h| h.identity.is_some())));
        if !entries.iter().any(|e| matches!(e.work, Work::Addresses(_))) {
            return;
        }
        let endpoint = endpoint_of(pod, &self.me.node, &entries);
        if fixed && let Err(error) = self.endpoints.write_now(&endpoint).await {
            // The leases carry the identity: an endpoint that is missing is rebuilt from them.
            tracing::warn!(pod = pod.name_any(), %error, "failed to write a spiderendpoint in time, will retry behind");
        } else if fixed {
            return;
        }
        self.endpoints.write_behind(endpoint);
    }
}

fn undone(h: &Held) -> Held {
    Held { identity: h.identity.clone().filter(|_| !h.fresh), ..h.clone() }
}

/// As an IPAM plugin answers: IPv4 first.
fn result_of(held: &[Held]) -> AddResult {
    let mut result = AddResult::default();
    for v4 in [true, false] {
        for h in held.iter().filter(|h| h.addr.is_ipv4() == v4) {
            let gateway = h.gateway.filter(|_| !h.clean_gateway);
            result.ips.push(cni::Ip { address: h.addr, gateway, interface: None });
            result.routes.extend(gateway.map(|gw| cni::Route::new(Cidr::default_for(gw), Some(gw))));
            result.routes.extend(h.routes.iter().map(|(dst, gw)| cni::Route::new(*dst, Some(*gw))));
        }
    }
    result
}
