//! `mooring`, the meta plugin: the networks of a pod one after another, each a list of plugins executed as libcni does, ours
//! in the agent and others' by the caller. What the annotations mean is `cni_meta`'s; here NetworkAttachmentDefinitions and
//! files are fetched, delegates are run, undone and remembered.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::NetworkAttachmentDefinition;
use cni::request::RawCall;
use cni::{AddResult, Error, NetConfList, Request, Verb};
use cni_meta::{DefaultRoutes, Delegate, MetaError, Nad, NetworkStatus, Selection, delegate, interface_names};
use ipam::NicOfPod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use model::addr::TABLE_MAIN;
use model::observed::{Look, LookOvs, Scope};
use model::{Cidr, IfName, Route};
use planner::{Ns, Plan, Step};
use plumbing::{Host, Netns};
use serde_json::{Map, Value, json};

use super::foreign::Foreign;
use super::nic::{apply_error, host_error};
use super::{Agent, Kind, Known, Turn, hung_up, ifname, is_noted, living_netns, netns_ref};
use crate::caches::Pod;
use crate::cni_server::{Abort, Runner, with_causes};
use crate::journal::{self, Entry, Key, Role, State, Work};

/// A network that the watch does not have yet is asked for; within the minute of the call.
const GET_WAIT: Duration = Duration::from_secs(5);
/// The annotation is for people and for programs that read it later: the pod's start does not wait long for it.
const STATUS_WAIT: Duration = Duration::from_secs(5);
/// Namespaces whose pods get no `defaultNetworks`, as in Multus.
const SYSTEM_NAMESPACES: [&str; 1] = ["kube-system"];
/// A CNI configuration has some KiB; what is larger in that directory is none.
const CONF_FILE_MAX: u64 = 1 << 20;

/// What one execution of a delegate's plugin has beside the delegate.
struct Around<'a> {
    container_id: &'a str,
    netns: Option<&'a Netns>,
    netns_path: Option<&'a str>,
    args: &'a str,
    path: &'a str,
    abort: &'a Abort,
    runtime: &'a str,
}

impl<'a> Around<'a> {
    fn of(turn: &Turn<'a>) -> Self {
        let request = turn.request;
        Self {
            container_id: &request.container_id,
            netns: turn.netns,
            netns_path: request.netns.as_deref(),
            args: &request.raw_args,
            path: &request.path,
            abort: turn.abort,
            runtime: turn.runtime,
        }
    }
}

impl<H: Host + 'static> Agent<H> {
    pub(crate) async fn meta_add<R: Runner>(&self, turn: Turn<'_>, runner: &mut R) -> Result<AddResult, Error> {
        let request = turn.request;
        let first = ifname(request)?;
        let netns = turn.netns.ok_or_else(|| Error::env("CNI_NETNS: its descriptor did not come with the call"))?;
        let key = Key::new(&request.container_id, first.as_str(), Role::Meta);
        if let Some(e) = self.journal.get(&key) {
            if e.state == State::Added {
                return Err(Error::new(
                    Error::CONFLICT,
                    format!("the networks of {first} of this container were added already, DEL has to come first"),
                ));
            }
            self.meta_take_away(&key, turn.netns, runner).await?;
        }
        let pod = self.pod_of(&turn).await?;
        let delegates = self.delegates(request, pod.as_deref(), first).await?;
        let defaults = DefaultRoutes::of(&delegates).map_err(|e| e.to_cni())?;
        let known = Known { nics: Some(nics_of(&delegates)), pod: pod.clone(), coordinator: None };
        let around = Around::of(&turn);
        let mut entry = Entry {
            key: key.clone(),
            state: State::Adding,
            pod: request.pod(),
            netns: Some(netns_ref(netns, request.netns.as_deref())),
            network: request.conf.name.clone(),
            runtime: turn.runtime.to_owned(),
            work: Work::Meta(journal::Meta { delegates: Vec::new(), args: request.raw_args.clone(), path: request.path.clone() }),
        };
        let mut results = Vec::with_capacity(delegates.len());
        for d in &delegates {
            noted(&mut entry).push(journal::Delegate { delegate: d.to_value(), result: None });
            let added = match self.write(entry.clone()) {
                Ok(()) => self.delegate_add(&around, d, &known, &defaults, runner).await,
                Err(e) => Err(e),
            };
            match added {
                Ok(r) => {
                    if let Some(last) = noted(&mut entry).last_mut() {
                        last.result = Some(r.to_value(d.list.version));
                    }
                    results.push(r);
                }
                Err(mut e) => {
                    if delegates.len() > 1 {
                        e.msg = format!("network {} ({}): {}", d.reference, d.ifname, e.msg);
                    }
                    self.undo(entry, turn.netns, runner).await;
                    return Err(e);
                }
            }
        }
        entry.state = State::Added;
        if let Err(e) = self.write(entry.clone()) {
            self.undo(entry, turn.netns, runner).await;
            return Err(e);
        }
        if let Some(pod) = &pod {
            self.write_status(pod, &delegates, &results).await;
        }
        results.into_iter().next().ok_or_else(|| Error::new(Error::INTERNAL, "a pod has at least its first network"))
    }

    async fn undo<R: Runner>(&self, entry: Entry, netns: Option<&Netns>, runner: &mut R) {
        let key = entry.key.clone();
        // Also where the journal cannot be written any more: memory has it.
        if let Err(error) = self.write(entry.clone()) {
            tracing::warn!(%error, "failed to note what is to be undone");
        }
        if let Err(error) = self.take_away_delegates(entry, netns, runner).await {
            tracing::warn!(container = key.container_id, ifname = key.ifname, %error, "failed to undo all networks, DEL will try again");
        }
    }

    async fn delegate_add<R: Runner>(
        &self,
        around: &Around<'_>,
        d: &Delegate,
        known: &Known,
        defaults: &DefaultRoutes,
        runner: &mut R,
    ) -> Result<AddResult, Error> {
        let mut prev: Option<AddResult> = None;
        for i in 0..d.list.plugins.len() {
            if around.abort.is_set() {
                return Err(hung_up());
            }
            let coordinator =
                d.list.plugins[i + 1..].iter().find(|p| p.get("type").and_then(Value::as_str) == Some("coordinator"));
            let known = Known { coordinator: coordinator.cloned(), ..known.clone() };
            let conf = d.conf(i, prev.as_ref());
            let result = self.plugin(around, d, i, Verb::Add, conf, &known, runner).await?;
            prev =
                Some(result.ok_or_else(|| Error::new(Error::DELEGATE, format!("plugin {} returned no result", d.list.kind(i))))?);
        }
        let result = prev.ok_or_else(|| Error::config(format!("network {} has no plugin", d.reference)))?;
        self.move_default(around, d, defaults, &result).await
    }

    /// One plugin: ours here, others' by the caller.
    #[expect(clippy::too_many_arguments, reason = "one execution; its parts travel together nowhere else")]
    async fn plugin<R: Runner>(
        &self,
        around: &Around<'_>,
        d: &Delegate,
        i: usize,
        verb: Verb,
        conf: Value,
        known: &Known,
        runner: &mut R,
    ) -> Result<Option<AddResult>, Error> {
        let kind = d.list.kind(i);
        match Kind::of(kind) {
            Some(Kind::Mooring) => {
                Err(Error::config(format!("network {}: type \"mooring\" cannot be inside itself", d.reference)))
            }
            Some(own) => {
                let raw = RawCall {
                    command: verb.as_str().to_owned(),
                    container_id: around.container_id.to_owned(),
                    netns: around.netns_path.unwrap_or_default().to_owned(),
                    ifname: d.ifname.to_string(),
                    args: around.args.to_owned(),
                    path: around.path.to_owned(),
                };
                let request = Request::from_value(&raw, conf)?;
                let turn = Turn { request: &request, netns: around.netns, abort: around.abort, known, runtime: around.runtime };
                Box::pin(self.run_own(own, turn, runner)).await
            }
            None => {
                let foreign = Foreign {
                    plugin: kind,
                    verb,
                    container_id: around.container_id,
                    netns: around.netns_path,
                    ifname: d.ifname.as_str(),
                    args: around.args,
                    path: around.path,
                    conf,
                };
                self.exec(foreign, runner).await
            }
        }
    }

    /// Where an annotation says which NIC has the default route, the others lose theirs.
    async fn move_default(
        &self,
        around: &Around<'_>,
        d: &Delegate,
        defaults: &DefaultRoutes,
        result: &AddResult,
    ) -> Result<AddResult, Error> {
        if defaults.v4.is_none() && defaults.v6.is_none() {
            return Ok(result.clone());
        }
        let scope = Scope { host: Look::Nothing, pod: Look::Routes, ovs: LookOvs::Nothing };
        let seen = self.host.observe(around.netns, &scope).await.map_err(|e| host_error(&e))?;
        let mut plan = Plan::default();
        for (v4, slot) in [(true, &defaults.v4), (false, &defaults.v6)] {
            let Some((winner, gw)) = slot else { continue };
            let wanted = Route::new(Cidr::default_for(*gw), Some(*gw), d.ifname.clone());
            let mine = seen
                .pod
                .routes
                .iter()
                .filter(|r| r.dst.is_default() && r.dst.is_ipv4() == v4 && r.table == TABLE_MAIN && r.dev == d.ifname);
            let mut there = false;
            for r in mine {
                if *winner == d.ifname && r.gw == wanted.gw {
                    there = true;
                } else {
                    plan.push(Step::DelRoute { ns: Ns::Pod, route: r.clone() });
                }
            }
            if *winner == d.ifname && !there {
                plan.push(Step::AddRoute { ns: Ns::Pod, route: wanted });
            }
        }
        self.host.apply(around.netns, &plan).await.map_err(|e| apply_error(&e))?;
        Ok(defaults.apply(&d.ifname, result))
    }

    pub(crate) async fn meta_del<R: Runner>(&self, turn: Turn<'_>, runner: &mut R) -> Result<(), Error> {
        let request = turn.request;
        let first = ifname(request)?;
        let key = Key::new(&request.container_id, first.as_str(), Role::Meta);
        if let Some(mut entry) = self.journal.get(&key) {
            if let Work::Meta(m) = &mut entry.work
                && !request.path.is_empty()
            {
                // Where the plugins are now.
                m.path.clone_from(&request.path);
            }
            return self.take_away_delegates(entry, turn.netns, runner).await;
        }
        // Nothing noted: never added, or before the last boot. Foreign plugins keep files over a boot, so they are asked; what
        // cannot be found any more is no reason to fail.
        let pod = request.pod().and_then(|p| self.caches.pod_now(&p.namespace, &p.name));
        let delegates = self.delegates(request, pod.as_deref(), first).await.unwrap_or_else(|error| {
            tracing::debug!(container = request.container_id, %error, "DEL of networks that are not noted and cannot be found");
            Vec::new()
        });
        let around = Around::of(&turn);
        let mut failed = Vec::new();
        for d in delegates.iter().rev() {
            if let Err(e) = self.delegate_del(&around, d, None, runner).await {
                failed.push(format!("{} ({}): {e}", d.reference, d.ifname));
            }
        }
        // What the journal had lost and found again: NICs that none of these networks stands for any more.
        for e in self.journal.of_container(&request.container_id).into_iter().filter(Entry::is_found) {
            if self.journal.get(&e.key).is_some()
                && let Err(error) = self.take_away(&e, runner).await
            {
                failed.push(format!("{}: {error}", e.key.ifname));
            }
        }
        collected(failed)
    }

    pub(crate) async fn meta_take_away<R: Runner>(&self, key: &Key, netns: Option<&Netns>, runner: &mut R) -> Result<(), Error> {
        match self.journal.get(key) {
            Some(entry) => self.take_away_delegates(entry, netns, runner).await,
            None => Ok(()),
        }
    }

    /// All noted delegates, last one first, also after an error. Those that failed stay noted.
    async fn take_away_delegates<R: Runner>(&self, mut entry: Entry, netns: Option<&Netns>, runner: &mut R) -> Result<(), Error> {
        entry.state = State::Deleting;
        self.note(entry.clone());
        let Work::Meta(meta) = &entry.work else { return Ok(()) };
        let never = Abort::new();
        // Another namespace may be at the same path by now: no plugin is to be led there.
        let living = living_netns(&entry);
        let netns = netns.filter(|n| is_noted(&entry, n));
        let around = Around {
            container_id: &entry.key.container_id,
            netns,
            netns_path: entry.netns.as_ref().filter(|_| living.is_some()).map(|n| n.path.as_str()),
            args: &meta.args,
            path: &meta.path,
            abort: &never,
            runtime: &entry.runtime,
        };
        let (mut failed, mut left) = (Vec::new(), Vec::new());
        for noted in meta.delegates.iter().rev() {
            let Some(d) = Delegate::from_value(&noted.delegate) else {
                failed.push("a noted network cannot be read back".to_owned());
                continue;
            };
            let result = noted.result.as_ref().and_then(|r| AddResult::from_value(r).ok());
            if let Err(e) = self.delegate_del(&around, &d, result.as_ref(), runner).await {
                failed.push(format!("{} ({}): {e}", d.reference, d.ifname));
                left.push(noted.clone());
            }
        }
        if left.is_empty() {
            self.forget(&entry.key);
        } else {
            left.reverse();
            *noted(&mut entry) = left;
            self.note(entry);
        }
        collected(failed)
    }

    /// Plugins in reverse; each is asked whatever the one before it said.
    async fn delegate_del<R: Runner>(
        &self,
        around: &Around<'_>,
        d: &Delegate,
        result: Option<&AddResult>,
        runner: &mut R,
    ) -> Result<(), Error> {
        let mut failed = None;
        for i in (0..d.list.plugins.len()).rev() {
            let done = self.plugin(around, d, i, Verb::Del, d.conf(i, result), &Known::default(), runner).await;
            if let Err(e) = done {
                failed.get_or_insert(e);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    pub(crate) async fn meta_check<R: Runner>(&self, turn: Turn<'_>, runner: &mut R) -> Result<(), Error> {
        let request = turn.request;
        let key = Key::new(&request.container_id, ifname(request)?.as_str(), Role::Meta);
        let entry = self.journal.get(&key).filter(|e| e.state == State::Added);
        let Some(Entry { work: Work::Meta(meta), .. }) = entry else {
            return Err(Error::new(Error::CHECK, "the agent knows of no networks of this container"));
        };
        let pod = self.pod_of(&turn).await?;
        let delegates: Vec<Delegate> = meta.delegates.iter().filter_map(|n| Delegate::from_value(&n.delegate)).collect();
        let known = Known { nics: Some(nics_of(&delegates)), pod, coordinator: None };
        let around = Around::of(&turn);
        for (d, noted) in delegates.iter().zip(&meta.delegates).filter(|(d, _)| !d.list.disable_check) {
            let result = noted.result.as_ref().and_then(|r| AddResult::from_value(r).ok());
            for i in 0..d.list.plugins.len() {
                self.plugin(&around, d, i, Verb::Check, d.conf(i, result.as_ref()), &known, runner).await?;
            }
        }
        Ok(())
    }

    /// The pod's networks: the cluster's or the one that the pod puts in its place, those that every pod gets, and its own.
    async fn delegates(&self, request: &Request, pod: Option<&Pod>, first: &IfName) -> Result<Vec<Delegate>, Error> {
        let conf = request.conf.raw();
        let runtime = conf.get("runtimeConfig").and_then(Value::as_object).cloned().unwrap_or_default();
        let annotation = |key: &str| pod.and_then(|p| p.annotations().get(key));
        let chosen = annotation(cni_meta::DEFAULT_NETWORK)
            .map(|t| Selection::parse_default_network(t))
            .transpose()
            .map_err(|e| e.to_cni())?
            .flatten();
        let primary = match &chosen {
            Some(s) => {
                let list = self.network(&s.namespace, &s.name, conf).await?;
                Delegate::primary(&s.reference(), list, first.clone(), Some(s), &runtime)
            }
            None => {
                let (reference, list) = self.cluster_network(conf).await?;
                Delegate::primary(&reference, list, first.clone(), None, &runtime)
            }
        };
        let mut out = vec![primary.map_err(|e| e.to_cni())?];
        let Some(pod) = pod else { return Ok(out) };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut selections = Vec::new();
        if !SYSTEM_NAMESPACES.contains(&namespace.as_str()) {
            for v in conf.get("defaultNetworks").and_then(Value::as_array).into_iter().flatten() {
                let text = v.as_str().ok_or_else(|| Error::config(format!("defaultNetworks {v}: must be a list of names")))?;
                selections.extend(Selection::parse_networks(text, cni_meta::DEFAULT_NETWORK_NAMESPACE).map_err(|e| e.to_cni())?);
            }
        }
        if let Some(text) = annotation(cni_meta::NETWORKS) {
            selections.extend(Selection::parse_networks(text, &namespace).map_err(|e| e.to_cni())?);
        }
        let names = interface_names(&selections, first).map_err(|e| e.to_cni())?;
        for (s, name) in selections.iter().zip(names) {
            let list = self.network(&s.namespace, &s.name, conf).await?;
            out.push(Delegate::additional(s, list, name).map_err(|e| e.to_cni())?);
        }
        Ok(out)
    }

    /// `clusterNetwork` or `delegates` of the configuration, else what the agent was started with.
    pub(super) async fn cluster_network(&self, conf: &Map<String, Value>) -> Result<(String, NetConfList), Error> {
        if let Some(inline) = conf.get("delegates").and_then(Value::as_array).and_then(|d| d.first()) {
            let name = inline.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            let list = delegate::list(&name, &inline.to_string(), &name).map_err(|e| e.to_cni())?;
            return Ok((list.name.clone(), list));
        }
        let name = conf.get("clusterNetwork").and_then(Value::as_str).map(str::to_owned).or_else(|| self.me.primary.clone());
        let name = name.filter(|n| !n.is_empty()).ok_or_else(|| {
            Error::config("clusterNetwork: missing, and neither delegates nor the agent's --primary name a network")
        })?;
        if let Some((namespace, nad)) = name.split_once('/') {
            return Ok((name.clone(), self.network(namespace, nad, conf).await?));
        }
        let files = conf_files(self.conf_dir(conf))?;
        if let Some(text) = delegate::find_on_disk(&name, &files) {
            return Ok((name.clone(), delegate::list(&name, text, &name).map_err(|e| e.to_cni())?));
        }
        let namespace = cni_meta::DEFAULT_NETWORK_NAMESPACE;
        match self.nad(namespace, &name).await? {
            Some(_) => Ok((format!("{namespace}/{name}"), self.network(namespace, &name, conf).await?)),
            None => Err(Error::new(
                Error::MISSING,
                format!(
                    "network {name}: no configuration of that name in {}, and no NetworkAttachmentDefinition {namespace}/{name}",
                    self.conf_dir(conf).display()
                ),
            )),
        }
    }

    async fn network(&self, namespace: &str, name: &str, conf: &Map<String, Value>) -> Result<NetConfList, Error> {
        let found = self.nad(namespace, name).await?;
        let found = found.ok_or_else(|| {
            Error::new(Error::MISSING, format!("network {namespace}/{name}: there is no such NetworkAttachmentDefinition"))
        })?;
        let nad =
            Nad { namespace: namespace.to_owned(), name: name.to_owned(), config: found.config().unwrap_or_default().to_owned() };
        if !nad.is_on_disk() {
            return nad.list(None).map_err(|e| e.to_cni());
        }
        let files = conf_files(self.conf_dir(conf))?;
        nad.list(delegate::find_on_disk(name, &files)).map_err(|e| e.to_cni())
    }

    /// From the watch; where that does not have it yet, from the API server.
    async fn nad(&self, namespace: &str, name: &str) -> Result<Option<Arc<NetworkAttachmentDefinition>>, Error> {
        if let Some(n) = self.caches.nad(namespace, name) {
            return Ok(Some(n));
        }
        let api: Api<NetworkAttachmentDefinition> = Api::namespaced(self.client.clone(), namespace);
        let again = |why: String| {
            Error::new(Error::TRY_AGAIN, format!("failed to read NetworkAttachmentDefinition {namespace}/{name}: {why}"))
        };
        match tokio::time::timeout(GET_WAIT, api.get_opt(name)).await {
            Ok(Ok(n)) => Ok(n.map(Arc::new)),
            Ok(Err(e)) => Err(again(with_causes(&e))),
            Err(_) => Err(again(format!("no answer within {} s", GET_WAIT.as_secs()))),
        }
    }

    fn conf_dir<'a>(&'a self, conf: &'a Map<String, Value>) -> &'a Path {
        conf.get("confDir").and_then(Value::as_str).map_or(self.me.cni_conf_dir.as_path(), Path::new)
    }

    /// `k8s.v1.cni.cncf.io/network-status` on the pod.
    async fn write_status(&self, pod: &Pod, delegates: &[Delegate], results: &[AddResult]) {
        let list: Vec<NetworkStatus> = delegates
            .iter()
            .zip(results)
            .enumerate()
            .map(|(i, (d, r))| NetworkStatus::of(&d.reference, &d.ifname, r, i == 0))
            .collect();
        let reference = pod.reference();
        // The uid makes it a patch of this pod and of no later one of its name.
        let patch = json!({ "metadata": { "uid": reference.uid, "annotations": { cni_meta::NETWORK_STATUS: cni_meta::status::annotation(&list) } } });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &reference.namespace);
        let params = PatchParams::default();
        let patch = Patch::Merge(&patch);
        let done = tokio::time::timeout(STATUS_WAIT, api.patch(&reference.name, &params, &patch)).await;
        match done {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(pod = %reference, %error, "failed to write the network-status annotation"),
            Err(_) => tracing::warn!(pod = %reference, "no answer in time to the network-status annotation"),
        }
    }
}

fn noted(entry: &mut Entry) -> &mut Vec<journal::Delegate> {
    match &mut entry.work {
        Work::Meta(m) => &mut m.delegates,
        _ => unreachable!("made a few lines above as the meta plugin's"),
    }
}

fn collected(failed: Vec<String>) -> Result<(), Error> {
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::new(Error::TRY_AGAIN, format!("failed to take away {} of the pod's networks", failed.len()))
        .with_details(failed.join("; ")))
}

fn nics_of(delegates: &[Delegate]) -> Vec<NicOfPod> {
    let network = |r: &str| r.contains('/').then(|| r.to_owned());
    delegates.iter().map(|d| NicOfPod { name: d.ifname.to_string(), network: network(&d.reference) }).collect()
}

/// The NICs that a pod will have, where another meta plugin calls ours: the first is eth0, or the one in hand where the
/// annotation does not name it.
pub(crate) fn nics_of_pod(pod: &Pod, current: &IfName, cluster_network: Option<&str>) -> Result<Vec<NicOfPod>, MetaError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let annotation = |key: &str| pod.annotations().get(key);
    let selections =
        annotation(cni_meta::NETWORKS).map(|t| Selection::parse_networks(t, &namespace)).transpose()?.unwrap_or_default();
    let eth0 = IfName::new("eth0").expect("a short name");
    let names = interface_names(&selections, &eth0)?;
    let first = if names.contains(current) { eth0 } else { current.clone() };
    let chosen = annotation(cni_meta::DEFAULT_NETWORK).map(|t| Selection::parse_default_network(t)).transpose()?.flatten();
    let network = chosen.map(|s| s.reference()).or_else(|| cluster_network.filter(|n| n.contains('/')).map(str::to_owned));
    let mut out = vec![NicOfPod { name: first.to_string(), network }];
    out.extend(selections.iter().zip(names).map(|(s, n)| NicOfPod { name: n.to_string(), network: Some(s.reference()) }));
    Ok(out)
}

/// File names and texts of a CNI configuration directory; one that is not there has none.
fn conf_files(dir: &Path) -> Result<Vec<(String, String)>, Error> {
    let failed = |e: std::io::Error| Error::io(format!("failed to read the cni configurations in {}: {e}", dir.display()));
    let entries = match std::fs::read_dir(dir) {
        Ok(e) => e,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.metadata().is_ok_and(|m| m.is_file() && m.len() <= CONF_FILE_MAX)
            && let Ok(text) = std::fs::read_to_string(entry.path())
        {
            out.push((entry.file_name().to_string_lossy().into_owned(), text));
        }
    }
    Ok(out)
}
