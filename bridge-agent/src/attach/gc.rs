//! GC: what the runtime no longer knows of goes, as its DEL would have it go. Only attachments of the network in hand that the
//! calling runtime had made, and that were complete when the call came; what a plugin made alone is not in the journal at all.
//! Then foreign plugins are asked to do the same with what is theirs.

use std::collections::HashSet;

use cni::{Attachment, Error, NetConfList, Request, Verb, Version};
use cni_meta::Delegate;
use model::IfName;
use plumbing::Host;
use serde_json::Value;

use super::foreign::Foreign;
use super::{Agent, Kind, living_netns};
use crate::cni_server::Runner;
use crate::journal::{Entry, Role, State, Work};

impl<H: Host + 'static> Agent<H> {
    /// Goes on after errors and tells them all.
    pub(super) async fn gc<R: Runner>(&self, request: &Request, runtime: &str, runner: &mut R) -> Result<(), Error> {
        // At once: what is added from here on is no concern of this call.
        let then = self.journal.all();
        let Some(kind) = Kind::of_call(request) else { return Ok(()) };
        let Some(role) = kind.role() else { return Ok(()) };
        let Some(valid) = &request.conf.valid_attachments else {
            return Err(Error::config("cni.dev/valid-attachments is missing, GC needs the list of attachments that stay"));
        };
        let lists = if kind == Kind::Mooring { lists_of(&then, &request.conf.name) } else { Vec::new() };
        let mut failed = Vec::new();
        // Nobody's, by what the journal has lost: they go when their sandbox is gone.
        let found = then.iter().filter(|e| e.is_found() && living_netns(e).is_none());
        for e in stale(&then, role, &request.conf.name, runtime, valid).chain(found) {
            // Deleted meanwhile, and perhaps added again.
            if self.journal.get(&e.key).as_ref() != Some(e) {
                continue;
            }
            if let Err(error) = self.take_away(e, runner).await {
                failed.push(format!("{} {}: {error}", e.key.container_id, e.key.ifname));
            }
        }
        match kind {
            Kind::Mooring => self.gc_delegates(request, valid, lists, runner, &mut failed).await,
            Kind::Ovs | Kind::Macvlan => {
                let mut conf = request.conf.raw().clone();
                if let Some(ipam) = foreign_ipam(&conf) {
                    set_valid(&mut conf, &self.standing(&request.conf.name, valid));
                    self.gc_exec(&ipam, conf, &request.path, runner, &mut failed).await;
                }
            }
            Kind::Coordinator | Kind::Spiderpool | Kind::Ifacer => {}
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(Error::new(Error::TRY_AGAIN, format!("failed to collect {} of the garbage", failed.len()))
                .with_details(failed.join("; ")))
        }
    }

    /// The delegates' foreign plugins, where their configuration is of a version that has GC.
    async fn gc_delegates<R: Runner>(
        &self,
        request: &Request,
        valid: &[Attachment],
        mut lists: Vec<NetConfList>,
        runner: &mut R,
        failed: &mut Vec<String>,
    ) {
        let cluster = match self.cluster_network(request.conf.raw()).await {
            Ok((_, list)) => Some(list),
            Err(e) => {
                failed.push(e.to_string());
                None
            }
        };
        let cluster_name = cluster.as_ref().map(|l| l.name.clone());
        if self.journal.all().iter().any(Entry::is_found) {
            // What else stood on other networks is not known any more, and would lose its addresses.
            tracing::warn!(
                "the journal has lost entries: foreign plugins of delegates collect nothing until those pods are gone"
            );
            lists.clear();
        }
        lists.extend(cluster);
        let mut seen = HashSet::new();
        for list in lists.iter().rev().filter(|l| seen.insert(l.name.clone())) {
            if list.version < Version::V1_1_0 || list.disable_gc {
                continue;
            }
            // The runtime's list is about its own interface, which is the cluster network's.
            let runtimes = if cluster_name.as_deref() == Some(list.name.as_str()) { valid } else { &[] };
            let standing = self.standing(&list.name, runtimes);
            for i in 0..list.plugins.len() {
                let Value::Object(conf) = list.gc_conf(i, &standing) else { continue };
                match Kind::of(list.kind(i)) {
                    None => self.gc_exec(list.kind(i), conf, &request.path, runner, failed).await,
                    Some(Kind::Ovs | Kind::Macvlan) => {
                        if let Some(ipam) = foreign_ipam(&conf) {
                            self.gc_exec(&ipam, conf, &request.path, runner, failed).await;
                        }
                    }
                    Some(_) => {}
                }
            }
        }
    }

    async fn gc_exec<R: Runner>(
        &self,
        plugin: &str,
        conf: serde_json::Map<String, Value>,
        path: &str,
        runner: &mut R,
        failed: &mut Vec<String>,
    ) {
        let foreign = Foreign {
            plugin,
            verb: Verb::Gc,
            container_id: "",
            netns: None,
            ifname: "",
            args: "",
            path,
            conf: Value::Object(conf),
        };
        if let Err(e) = self.exec(foreign, runner).await {
            failed.push(e.to_string());
        }
    }

    /// Everything that may stand on a network: the runtime's list, and what we have noted, other runtimes' and unfinished ones
    /// too. A foreign plugin takes away whatever is not in its list.
    fn standing(&self, network: &str, valid: &[Attachment]) -> Vec<Attachment> {
        let mut out = valid.to_vec();
        let mut add = |container: &str, ifname: &str| {
            if let Ok(ifname) = IfName::new(ifname) {
                let a = Attachment { container_id: container.to_owned(), ifname };
                if !out.contains(&a) {
                    out.push(a);
                }
            }
        };
        for e in self.journal.all() {
            if e.network == network {
                add(&e.key.container_id, &e.key.ifname);
            }
            for d in delegates(&e).filter(|d| d.list.name == network) {
                add(&e.key.container_id, d.ifname.as_str());
            }
        }
        out
    }
}

/// Entries of one plugin and network that this runtime does not name any more. One of an unknown runtime is nobody's: it goes
/// when its network namespace is gone.
fn stale<'a>(
    all: &'a [Entry],
    role: Role,
    network: &'a str,
    runtime: &'a str,
    valid: &'a [Attachment],
) -> impl Iterator<Item = &'a Entry> {
    let named = |container: &str, ifname: &str| valid.iter().any(|a| a.container_id == container && a.ifname.as_str() == ifname);
    // The meta plugin's delegates are its own business, also where their network has the name of one that the runtime uses.
    let delegated: HashSet<(&str, String)> =
        all.iter().flat_map(|e| delegates(e).map(|d| (e.key.container_id.as_str(), d.ifname.to_string()))).collect();
    all.iter().filter(move |e| {
        let taken_by = match &e.work {
            Work::Addresses(a) => a.taken_by.as_str(),
            _ => e.key.ifname.as_str(),
        };
        e.key.role == role
            && e.network == network
            && !runtime.is_empty()
            && e.runtime == runtime
            && e.state != State::Adding
            && !named(&e.key.container_id, &e.key.ifname)
            && !named(&e.key.container_id, taken_by)
            && (role == Role::Meta || !delegated.contains(&(e.key.container_id.as_str(), e.key.ifname.clone())))
    })
}

fn delegates(e: &Entry) -> impl Iterator<Item = Delegate> {
    let noted = match &e.work {
        Work::Meta(m) => m.delegates.as_slice(),
        _ => &[],
    };
    noted.iter().filter_map(|n| Delegate::from_value(&n.delegate))
}

/// The networks that the meta plugin of that name has delegated to.
fn lists_of(all: &[Entry], network: &str) -> Vec<NetConfList> {
    all.iter().filter(|e| e.network == network).flat_map(delegates).map(|d| d.list).collect()
}

/// The IPAM plugin of a main plugin's configuration, where it is not ours.
pub(super) fn foreign_ipam(conf: &serde_json::Map<String, Value>) -> Option<String> {
    let kind = conf.get("ipam")?.get("type")?.as_str()?;
    (!kind.is_empty() && kind != "spiderpool").then(|| kind.to_owned())
}

fn set_valid(conf: &mut serde_json::Map<String, Value>, valid: &[Attachment]) {
    let list: Value =
        valid.iter().map(|a| serde_json::json!({"containerID": a.container_id, "ifname": a.ifname.as_str()})).collect();
    conf.insert("cni.dev/attachments".to_owned(), list.clone());
    conf.insert("cni.dev/valid-attachments".to_owned(), list);
}
